//! `dspark bench`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, json};

use super::models::{LoadedModels, ModelArguments};
use super::output::{MOST_REQUESTS, count, count_to, print};
use super::outputs::{Named, check_outputs};
use super::prompt::chat_template;
use super::sampling::SamplingArguments;
use crate::bench::{Ceiling, Load, Measured, Ratio, Run, read_prompts, run as run_load};
use crate::checkpoint::write_file;
use crate::engine::{Engine, EngineConfig, Request, Sampling};
use crate::numbers::median;
use crate::plot::Chart;
use crate::profile::{ProfileOptions, draft_seconds, verify_seconds};
use crate::schedule::{Mode, SpsTable, StsTable};
use crate::text::UserText;

/// Arguments of `dspark bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    models: ModelArguments,
    /// JSONL file of prompts with `turns`, `messages`, `prompt` or `question` per line; only the first user message of
    /// a line is used
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Pass prompts to the model unchanged, without the chat template
    #[arg(long)]
    raw: bool,
    /// Numbers of concurrent clients to measure, separated by commas
    #[arg(long, value_name = "CLIENTS", value_delimiter = ',', default_values_t = [1_usize, 2, 4, 8], value_parser = count_to::<MOST_REQUESTS>)]
    concurrency: Vec<usize>,
    /// Modes to compare, separated by commas: off, fixed:N, threshold:P, scheduled
    #[arg(long, value_name = "MODES", value_delimiter = ',', default_values_t = [Mode::Off, Mode::Fixed(1), Mode::Fixed(7), Mode::Scheduled])]
    modes: Vec<Mode>,
    /// Number of runs per mode and concurrency; modes alternate and the median is reported
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = count)]
    repeats: usize,
    /// Number of requests per client in each run
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = count_to::<{ 1 << 20 }>)]
    requests: usize,
    /// Maximum number of tokens per answer
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = count)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Continue after the model's stop tokens, so that every mode does the same work
    #[arg(long)]
    ignore_stop: bool,
    /// Write the measurements as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Plot tokens per second by number of clients, one line per mode, into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write every answer to this file, one JSON object per line with mode, clients, prompt and text
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
}

/// Tokens per second against clients, a line per mode.
fn throughput(runs: &[Run]) -> Chart<'static> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for run in runs {
        let point = (run.concurrency as f64, run.median(Measured::tokens_per_second));
        match lines.iter_mut().find(|(mode, _)| *mode == run.mode) {
            Some((_, points)) => points.push(point),
            None => lines.push((run.mode.clone(), vec![point])),
        }
    }
    lines.iter_mut().for_each(|(_, points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    Chart { title: "throughput by load", x_label: "clients", y_label: "tokens per second", x_in_octaves: true, lines }
}

/// Measures, prints a table and writes the report.
pub fn run(arguments: &Arguments) -> Result<()> {
    let outputs = [("--json", &arguments.json), ("--plot", &arguments.plot), ("--answers", &arguments.answers)];
    let outputs: Vec<Named<'_>> = outputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))).collect();
    let mut inputs = arguments.models.inputs();
    inputs.push(("--prompts", &arguments.prompts));
    check_outputs(&outputs, &inputs)?;
    let models = arguments.models.open()?;
    for &mode in &arguments.modes {
        Engine::check_mode(mode, models.draft.as_ref())?;
    }
    if models.draft.is_none()
        && let Some(mode) = arguments.modes.iter().find(|mode| **mode != Mode::Off)
    {
        bail!("--modes {mode}: no draft was given; give --draft DIR, or use --modes off");
    }
    let most = arguments.concurrency.iter().copied().max().unwrap_or(1);
    let scheduled = arguments.modes.contains(&Mode::Scheduled);
    let table = if scheduled { models.speed_table(most) } else { None };
    let bench = Bench { arguments, table, calibration: models.calibration()?, models };
    let prompts = bench.prompts()?;
    let mut runs = Vec::new();
    let mut probes = Probes::default();
    let mut answers = Vec::new();
    let lowest = arguments.concurrency.iter().copied().min();
    for &concurrency in &arguments.concurrency {
        let mut own: Vec<Run> = arguments
            .modes
            .iter()
            .map(|mode| Run { mode: mode.to_string(), concurrency, repeats: Vec::new() })
            .collect();
        for repeat in 0..arguments.repeats {
            // There and back again: whatever comes first or last in a round of modes is not always the same one.
            let mut order: Vec<_> = arguments.modes.iter().zip(&mut own).collect();
            if repeat % 2 == 1 {
                order.reverse();
            }
            for (mode, run) in order {
                let measured = bench.measure(*mode, concurrency, &prompts)?;
                let speed = measured.tokens_per_second();
                eprintln!("{concurrency} clients, {mode}, run {}: {speed:.1} tokens/s", repeat + 1);
                for (request, text) in &measured.answers {
                    let prompt = request % prompts.len();
                    let mode = mode.to_string();
                    answers.push(json!({"mode": mode, "concurrency": concurrency, "prompt": prompt, "text": text}));
                }
                run.repeats.push(measured);
                if Some(concurrency) == lowest {
                    bench.probe(&mut probes);
                }
            }
        }
        runs.extend(own);
    }
    if let Some(path) = &arguments.answers {
        let lines: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
        write_file(path, lines.as_bytes())?;
    }
    bench.report(&runs, &probes)
}

/// Seconds of passes for one client, timed next to the runs: changes of the machine's speed then affect both.
#[derive(Debug, Default)]
struct Probes {
    /// Times with one more token each.
    verify: Vec<Vec<f64>>,
    /// Times with one more slot each.
    draft: Vec<Vec<f64>>,
}

struct Bench<'a> {
    arguments: &'a Arguments,
    models: LoadedModels<'a>,
    table: Option<SpsTable>,
    calibration: Option<StsTable>,
}

impl Bench<'_> {
    fn prompts(&self) -> Result<Vec<Vec<u32>>> {
        let room = self.models.target.config().max_position_embeddings.saturating_sub(self.arguments.max_new_tokens);
        let tokenizer = &self.models.tokenizer;
        let template = (!self.arguments.raw)
            .then(|| {
                chat_template(tokenizer, &self.models.name(), "use --raw to pass prompts to the model unchanged")
            })
            .transpose()?;
        let mut prompts = Vec::new();
        for text in read_prompts(&self.arguments.prompts)? {
            let ids = match template {
                Some(template) => {
                    let messages = [json!({"role": "user", "content": text})];
                    template.prompt(tokenizer, &messages, &Map::new(), UserText::default())?
                }
                None => tokenizer.encode(&text, true)?,
            };
            if !ids.is_empty() && ids.len() < room {
                prompts.push(ids);
            }
        }
        if prompts.is_empty() {
            bail!(
                "{}: no prompt leaves room for {} new tokens in the context",
                self.arguments.prompts.display(),
                self.arguments.max_new_tokens
            );
        }
        Ok(prompts)
    }

    /// One run on a fresh engine, so that nothing is left in its cache.
    fn measure(&self, mode: Mode, concurrency: usize, prompts: &[Vec<u32>]) -> Result<Measured> {
        let arguments = self.arguments;
        let stop = if arguments.ignore_stop { Vec::new() } else { self.models.tokenizer.stop_token_ids().to_vec() };
        let requests: Vec<Request> = prompts
            .iter()
            .cycle()
            .take(concurrency * arguments.requests)
            .map(|prompt| Request {
                prompt: prompt.clone(),
                max_new_tokens: arguments.max_new_tokens,
                sampling: arguments.sampling.sampling(Sampling::GREEDY),
                stop_token_ids: stop.clone(),
                stop_strings: Vec::new(),
                include_stop_string: false,
                logprobs: None,
            })
            .collect();
        let longest =
            requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0) + arguments.max_new_tokens;
        let config = EngineConfig {
            max_running: concurrency,
            max_waiting: concurrency.max(1),
            cache_tokens: (longest + 128) * concurrency * 2,
            mode,
            curve: self.table.clone(),
            calibration: self.calibration.clone(),
            ..EngineConfig::default()
        };
        let LoadedModels { target, draft, tokenizer, .. } = &self.models;
        let (engine, handle) = Engine::start(target.clone(), draft.clone(), tokenizer.clone(), config)?;
        let measured = run_load(&handle, &Load { requests, concurrency });
        handle.shut_down(std::time::Duration::ZERO);
        engine.join();
        Ok(measured?)
    }

    /// Times every length once more, if a ceiling is wanted.
    fn probe(&self, probes: &mut Probes) {
        let fixed = self.arguments.modes.iter().any(|mode| matches!(mode, Mode::Fixed(_)));
        let target = &self.models.target;
        let Some(draft) = self.models.draft.as_ref().filter(|_| fixed) else { return };
        let (block, context) = (draft.config().block_size, ProfileOptions::default().context);
        probes.verify.resize(block + 1, Vec::new());
        probes.draft.resize(block, Vec::new());
        for (index, seconds) in probes.verify.iter_mut().enumerate() {
            seconds.push(verify_seconds(target, Some(draft), index + 1, context, 1));
        }
        for (index, seconds) in probes.draft.iter_mut().enumerate() {
            seconds.push(draft_seconds(target, draft, 1, index + 1, context, 1));
        }
    }

    fn report(&self, runs: &[Run], probes: &Probes) -> Result<()> {
        print(
            "mode           clients  tokens/s  to off (95 % between)  steady  per user  accepted  verified  first ms  p50 ms  p99 ms  host",
        )?;
        let against_off = |run: &Run, speed: fn(&Measured) -> f64| {
            let off = Mode::Off.to_string();
            let off = runs.iter().find(|other| other.mode == off && other.concurrency == run.concurrency)?;
            Some(run.ratio(off, speed))
        };
        let mut rows = Vec::with_capacity(runs.len());
        for run in runs {
            let mut row = run.to_json();
            let figure = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
            let to_off = against_off(run, Measured::tokens_per_second);
            print(format!(
                "{:<13}  {:>7}  {:>8.1}  {:>21}  {:>6}  {:>8.1}  {:>8}  {:>8.2}  {:>8.0}  {:>6.1}  {:>6.1}  {:>4.1}%",
                run.mode,
                run.concurrency,
                figure("tokens_per_second"),
                to_off.map_or_else(
                    || "-".to_owned(),
                    |Ratio { median, between: (low, high) }| format!("{median:.3} ({low:.3}-{high:.3})")
                ),
                run.steady().map_or_else(|| "-".to_owned(), |speed| format!("{speed:.1}")),
                figure("tokens_per_second_per_user"),
                run.accepted_length().map_or_else(|| "-".to_owned(), |length| format!("{length:.3}")),
                figure("verify_budget"),
                figure("ttft_ms_p50"),
                figure("itl_ms_p50"),
                figure("itl_ms_p99"),
                figure("host_share") * 100.0,
            ))?;
            if let Some(Ratio { median, between: (low, high) }) = to_off {
                row["to_off"] = json!({"median": median, "low": low, "high": high});
            }
            rows.push(row);
        }
        let ceiling = self.ceiling(runs, probes);
        if let Some(ceiling) = ceiling {
            let Ceiling { length, speedup } = ceiling;
            print(format!(
                "\nceiling for one client: {speedup:.3} times plain decoding, with {length} drafted tokens"
            ))?;
            let scheduled = Mode::Scheduled.to_string();
            let reached = runs.iter().find(|run| run.mode == scheduled && run.concurrency == 1);
            if let Some(reached) = reached.and_then(|run| against_off(run, Measured::tokens_per_second_per_user)) {
                let reached = reached.median;
                print(format!("reached by `scheduled`: {reached:.3}, {:.2} of it", reached / speedup))?;
            }
        }
        if let Some(path) = &self.arguments.plot {
            throughput(runs).write(path)?;
        }
        let Some(path) = &self.arguments.json else { return Ok(()) };
        let named = &self.arguments.models;
        let report = json!({
            "target": named.target,
            "draft": named.draft,
            "draft_heads": named.draft_heads.to_string(),
            "device": named.device.to_string(),
            "dtype": named.precision().to_string(),
            "threads": rayon::current_num_threads(),
            "ceiling": ceiling.map(Ceiling::to_json),
            "runs": rows,
        });
        let text = serde_json::to_string_pretty(&report)? + "\n";
        write_file(path, text.as_bytes()).with_context(|| format!("{}", path.display()))
    }

    /// Computes the ceiling from the rounds of the longest fixed mode at the lowest concurrency, and the passes timed
    /// next to them.
    fn ceiling(&self, runs: &[Run], probes: &Probes) -> Option<Ceiling> {
        let lowest = runs.iter().map(|run| run.concurrency).min()?;
        let fixed = |run: &&Run| {
            let mode: Option<Mode> = run.mode.parse().ok();
            matches!(mode, Some(Mode::Fixed(_))) && run.concurrency == lowest
        };
        let length = |run: &&Run| match run.mode.parse() {
            Ok(Mode::Fixed(length)) => length,
            _ => 0,
        };
        let run = runs.iter().filter(fixed).max_by_key(length)?;
        let rounds: Vec<(usize, usize)> = run.repeats.iter().flat_map(|measured| measured.rounds.clone()).collect();
        Ceiling::new(
            &rounds,
            |tokens| median(probes.verify[tokens - 1].clone()),
            |slots| median(probes.draft[slots - 1].clone()),
        )
    }
}
