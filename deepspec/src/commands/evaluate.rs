//! `deepspec evaluate`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::{WeightPrecision, open_file, write_file};
use dspark_runtime::commands::{
    ModelArguments, Named, SERVED_REQUESTS, calibration, check_outputs, count, print, share, speed_table,
    temperature, template_arguments, warn_of_other_template_arguments,
};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, Target};
use dspark_runtime::schedule::{Mode, StsTable};

use crate::cards::{Card, Kind, card_hint, dataset_folders};
use crate::evaluation::{
    Circumstances, EvaluationMode, EvaluationOptions, Models, Records, SamplingMethod, Tables, Task, Turns, evaluate,
    table, verdict,
};

/// Arguments of `deepspec evaluate`.
#[derive(Debug, Args)]
#[command(mut_arg("draft", |draft| draft.required(true).help("Checkpoint folder of the draft")))]
pub struct Arguments {
    #[command(flatten)]
    models: ModelArguments,
    /// Task to evaluate on: a JSONL or Parquet file with `turns`, `messages`, `prompt` or `question` per row, or the
    /// name of a dataset card. Can be repeated
    #[arg(long = "task", value_name = "FILE|CARD", required = true, num_args = 1..)]
    tasks: Vec<String>,
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,
    /// Maximum number of tokens per answer
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = count)]
    max_new_tokens: usize,
    /// Maximum number of prompts per task, taken from the start of its file (default: all)
    #[arg(long, value_name = "COUNT", value_parser = count)]
    samples: Option<usize>,
    /// Sampling seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Sampling method: `rejection` is standard speculative sampling, with the highest acceptance, as in published
    /// results; `coupled` reproduces the text that a served request with this seed returns
    #[arg(long, value_name = "rejection|coupled", default_value_t)]
    sampling: SamplingMethod,
    /// Turns of each conversation to answer; published results use the first
    #[arg(long, value_name = "TURNS", value_enum, default_value = "all")]
    turns: TurnsArgument,
    /// Number of drafted tokens to verify per round: `whole` (all, as in published accepted lengths) or, as `dspark serve`
    /// with one client, `fixed:N`, `threshold:P` or `scheduled`. `scheduled` is the default of `dspark serve`. It needs this
    /// machine's speed table, which is measured and cached if missing; results vary between runs because it uses measured
    /// times
    #[arg(long, value_name = "whole|fixed:N|threshold:P|scheduled", default_value_t)]
    mode: EvaluationMode,
    /// With `--mode whole`, stop verification before the first drafted token whose confidence is below P; 0 verifies all.
    /// `--mode threshold:P` also stops drafting there, and applies the draft's calibration
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    confidence_threshold: f64,
    /// Set a variable of the chat template, for example `enable_thinking=false`. Can be repeated
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
    /// Skip the baseline run without the draft
    #[arg(long)]
    no_plain: bool,
    /// Write the report as JSON to this file; `-` prints JSON on standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a trace to this file, one JSON object per round
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write every answer of the run with the draft to this file, one JSON object per line with task, sample, turn and
    /// text
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TurnsArgument {
    All,
    First,
}

/// Evaluates and prints the table.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.temperature.is_finite() || arguments.temperature < 0.0 {
        bail!("--temperature: expected a number >= 0, found {}", arguments.temperature);
    }
    let tasks: Vec<Task> = arguments.tasks.iter().map(|name| find_task(name)).collect::<Result<_>>()?;
    let mut inputs = arguments.models.inputs();
    inputs.extend(tasks.iter().map(|task| ("--task", task.path.as_path())));
    let outputs = [("--json", &arguments.json), ("--trace", &arguments.trace), ("--answers", &arguments.answers)];
    let outputs: Vec<Named<'_>> = outputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))).collect();
    check_outputs(&outputs, &inputs)?;
    let loaded = arguments.models.open()?;
    let Some((folder, draft)) = loaded.named_draft() else { bail!("--draft DIR: expected a checkpoint folder") };
    let device = arguments.models.device;
    let options = EvaluationOptions {
        mode: arguments.mode,
        tables: served_tables(arguments.mode, (&loaded.target, draft), folder, (loaded.precision(), device))?,
        temperature: arguments.temperature,
        max_new_tokens: arguments.max_new_tokens,
        samples: arguments.samples,
        seed: arguments.seed,
        sampling: arguments.sampling,
        turns: match arguments.turns {
            TurnsArgument::All => Turns::All,
            TurnsArgument::First => Turns::First,
        },
        confidence_threshold: arguments.confidence_threshold,
        template_arguments: template_arguments(&arguments.template_arguments)?,
        measure_plain: !arguments.no_plain,
    };
    warn_of_other_template_arguments(draft.config(), &options.template_arguments);
    let models = Models { target: &loaded.target, draft, tokenizer: &loaded.tokenizer };
    let names = (arguments.models.target.as_str(), &*folder.to_string_lossy());
    let records = Records { trace: arguments.trace.as_deref(), answers: arguments.answers.as_deref() };
    let report = evaluate(models, names, &tasks, &options, records)?;
    let json = serde_json::to_string_pretty(&report)?;
    match &arguments.json {
        Some(path) if path.as_os_str() == "-" => print(json)?,
        other => {
            if let Some(path) = other {
                write_file(path, (json + "\n").as_bytes())?;
            }
            let circumstances = Circumstances {
                training: None,
                on_cpu: device == DeviceChoice::Cpu,
                uncalibrated: uncalibrated(folder, draft),
            };
            print(format_args!("{}\n\n{}", table(&report), verdict(&report, circumstances)))?;
        }
    }
    Ok(())
}

/// Reads or measures the tables that a mode decides by.
///
/// # Errors
/// Returns an error if the draft's calibration cannot be read, or was fitted for another draft.
pub fn served_tables(
    mode: EvaluationMode,
    (target, draft): (&Target, &Draft),
    folder: &Path,
    circumstances: (WeightPrecision, DeviceChoice),
) -> Result<Tables> {
    let EvaluationMode::Served(mode) = mode else { return Ok(Tables::default()) };
    let speed =
        (mode == Mode::Scheduled).then(|| Arc::new(speed_table(target, draft, circumstances, SERVED_REQUESTS)));
    Ok(Tables { speed, calibration: calibration(folder, draft)?.map(Arc::new) })
}

/// Returns whether a draft could be calibrated and was not.
pub fn uncalibrated(folder: &Path, draft: &Draft) -> bool {
    draft.config().has_confidence_head() && !folder.join(StsTable::FILE).exists()
}

/// A task by its file or the name of its card.
///
/// # Errors
/// Returns an error if there is neither.
pub fn find_task(name: &str) -> Result<Task> {
    let path = PathBuf::from(name);
    if path.exists() {
        open_file(&path).with_context(|| format!("--task {name}"))?;
        let stem = path.file_stem().map_or(name.to_owned(), |stem| stem.to_string_lossy().into_owned());
        return Ok(Task { name: stem, path });
    }
    if name.contains(['/', '.']) {
        bail!("--task {name}: no such file{}", card_hint(&path, Kind::Task));
    }
    let path = Card::named(name, Kind::Task)?.resolve(&dataset_folders())?;
    Ok(Task { name: name.to_owned(), path })
}
