//! `deepspec regenerate`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::{expand_home, resolve_model, write_file};
use dspark_runtime::commands::{
    Defaults, DefaultsArguments, MOST_REQUESTS, ModelArguments, Named, Running, SERVED_REQUESTS, check_outputs,
    count, count_to, print, start_engine, temperature, template_arguments, warn_of_other_template_arguments,
};
use dspark_runtime::engine::{Engine, EngineConfig, EngineHandle, Sampling};
use dspark_runtime::schedule::Mode;

use super::course::model_digest;
use super::data_files::data_files;
use crate::cards::dataset_folders;
use crate::process::{Interrupter, defer, watch};
use crate::regeneration::{
    AnsweredBy, EndpointOptions, Endpoints, InProcess, Job, Note, RegenerationError, RegenerationReport, Settings,
    Source, check_endpoint, failed_path, regenerate, settings_path,
};

/// Environment variable of the API key.
const KEY_VARIABLE: &str = "DSPARK_API_KEY";

/// Arguments of `deepspec regenerate`.
#[derive(Debug, Args)]
#[command(
    mut_arg("target", |target| target.required(false).required_unless_present("endpoints").conflicts_with("endpoints")),
    mut_arg("draft", |draft| draft.conflicts_with("endpoints")),
    mut_arg("weights", |weights| weights.conflicts_with("endpoints")),
    mut_arg("draft_heads", |heads| heads.conflicts_with("endpoints")),
    mut_arg("device", |device| device.conflicts_with("endpoints")),
    mut_arg("generation_config", |config| config.conflicts_with("endpoints")),
)]
pub struct Arguments {
    /// Prompts: JSONL or Parquet files, folders of them or names of dataset cards, with rows as in training data and
    /// tasks. Answers in them are replaced
    #[arg(long, value_name = "FILE|DIR|CARD", required = true, num_args = 1..)]
    prompts: Vec<PathBuf>,
    /// File for the answers, one JSON object per line, which `data.train` of a recipe reads. An existing file is continued
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    models: Option<ModelArguments>,
    #[command(flatten)]
    defaults: DefaultsArguments,
    #[command(flatten)]
    sampling: AnswerArguments,
    /// Number of drafted tokens to verify per step: off (none), fixed:N (the first N), threshold:P (until the
    /// confidence falls below P) or scheduled (chosen from the draft's confidence and the measured step times)
    #[arg(long, value_name = "off|fixed:N|threshold:P|scheduled", default_value_t, conflicts_with = "endpoints")]
    mode: Mode,
    /// Capacity of the KV cache in tokens, shared by all requests
    #[arg(
        long, value_name = "TOKENS", default_value_t = EngineConfig::default().cache_tokens, value_parser = count,
        conflicts_with = "endpoints"
    )]
    cache_tokens: usize,
    /// Requests decoded at the same time, or in flight per endpoint
    #[arg(long, value_name = "COUNT", default_value_t = SERVED_REQUESTS, value_parser = count_to::<MOST_REQUESTS>)]
    concurrency: usize,
    #[command(flatten)]
    endpoints: EndpointArguments,
    /// Write the counts as JSON to this file; `-` prints JSON on standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What an answer depends on.
#[derive(Debug, Args)]
struct AnswerArguments {
    /// Sampling temperature; 0 is greedy (default: the target's own, else 1; with --endpoint the server's)
    #[arg(long, value_parser = temperature)]
    temperature: Option<f64>,
    /// Sample from the smallest set of most likely tokens whose total probability reaches P; 1 keeps all tokens
    /// (default: the target's own, else 1; with --endpoint the server's)
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample from the COUNT most likely tokens; 0 keeps all tokens (default: the target's own, else 0; with --endpoint
    /// the server's)
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Sample from tokens at least P times as likely as the most likely one; 0 keeps all tokens (default: the target's
    /// own, else 0; with --endpoint the server's)
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Maximum number of tokens per answer. Answers that it cuts off get the `finish_reason` "length"
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = count)]
    max_tokens: usize,
    /// Seed. Every answer has its own, made of this one, the row's id, the number of the sample and the turn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Answers per prompt, with different seeds
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = count_to::<1024>)]
    samples: usize,
    /// Set a variable of the chat template, for example `enable_thinking=false`. Can be repeated
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
}

/// Servers and how patiently they are asked.
#[derive(Debug, Args)]
struct EndpointArguments {
    /// Address of an OpenAI-compatible server of the target, as http://HOST:PORT/v1. Can be repeated: several share the work
    #[arg(long = "endpoint", id = "endpoints", value_name = "URL", num_args = 1.., value_parser = check_endpoint)]
    urls: Vec<String>,
    /// Model to ask the endpoints for
    #[arg(long, value_name = "NAME", requires = "endpoints", conflicts_with = "target")]
    model: Option<String>,
    /// Accept replies of a model with another name
    #[arg(long, requires = "endpoints", conflicts_with = "target")]
    any_model: bool,
    /// Environment variable that holds the endpoints' API key (default: DSPARK_API_KEY, if it is set)
    #[arg(long, value_name = "NAME", requires = "endpoints", conflicts_with = "target")]
    api_key_variable: Option<String>,
    /// Attempts after the first before a row is given up. Attempts that did not reach a server do not count
    #[arg(long, value_name = "COUNT", default_value_t = 5, requires = "endpoints", conflicts_with = "target")]
    retries: usize,
    /// Maximum time of an attempt
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds, requires = "endpoints", conflicts_with = "target")]
    timeout: Duration,
    /// Time before the second attempt; every further one waits twice as long, at most a minute
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, requires = "endpoints", conflicts_with = "target")]
    back_off: Duration,
    /// Time without an answer of any endpoint after which the run ends
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds, requires = "endpoints", conflicts_with = "target")]
    give_up_after: Duration,
}

/// A time, from a thousandth of a second to a week.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|seconds| (0.001..=604_800.0).contains(seconds));
    number.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0.001 to 604800".to_owned())
}

/// Answers all prompts that have no answer yet, and prints the counts.
pub fn run(arguments: &Arguments) -> Result<()> {
    let out = expand_home(&arguments.out);
    let prompts = data_files(&arguments.prompts, &dataset_folders())?;
    let side_files = [settings_path(&out), failed_path(&out)];
    let written = [&out, &side_files[0], &side_files[1]];
    let mut outputs: Vec<Named<'_>> = written.iter().map(|path| ("--out", path.as_path())).collect();
    outputs.extend(arguments.json.as_deref().map(|path| ("--json", path)));
    let mut inputs: Vec<Named<'_>> = prompts.iter().map(|path| ("--prompts", path.as_path())).collect();
    inputs.extend(arguments.models.iter().flat_map(ModelArguments::inputs));
    check_outputs(&outputs, &inputs)?;
    watch().context("listening for signals")?;
    let answer = |interrupter: Interrupter| arguments.answer(&prompts, &out, &interrupter);
    let (result, _) = defer("stopping; the answers so far are kept", answer);
    let report = result?;
    show(arguments, &report)?;
    match report.failed {
        0 => Ok(()),
        failed => Err(RegenerationError::RowsFailed { failed, path: failed_path(&out) }.into()),
    }
}

fn show(arguments: &Arguments, report: &RegenerationReport) -> Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    match &arguments.json {
        Some(path) if path.as_os_str() == "-" => print(json)?,
        other => {
            if let Some(path) = other {
                write_file(path, (json + "\n").as_bytes())?;
            }
            print(report)?;
        }
    }
    Ok(())
}

impl Arguments {
    /// Answers the prompts of `files` through servers, or through the engine.
    fn answer(&self, files: &[PathBuf], output: &Path, interrupter: &Interrupter) -> Result<RegenerationReport> {
        let Some(models) = &self.models else {
            let (options, settings) = self.endpoints.options(self)?;
            let conversations = options.concurrency * options.urls.len();
            let job = Job { prompts: files, output, settings: &settings, conversations };
            let start =
                |note: Note| -> Result<Arc<dyn Source>> { Ok(Arc::new(Endpoints::new(options, &settings, note))) };
            return regenerate(&job, interrupter, start);
        };
        let (settings, sampling) = self.settings(models)?;
        // Some prompts wait, so that a place that becomes free is taken at once.
        let conversations = self.concurrency + self.concurrency.div_ceil(4);
        let job = Job { prompts: files, output, settings: &settings, conversations };
        let mut engine = None;
        let start = |_: Note| self.start_engine(models, &settings, sampling, &mut engine);
        let report = regenerate(&job, interrupter, start);
        if let Some((engine, handle)) = engine {
            handle.shut_down(Duration::ZERO);
            engine.join();
        }
        report
    }

    /// Returns the settings of answers of the engine, and the same as the engine takes them.
    fn settings(&self, models: &ModelArguments) -> Result<(Settings, Sampling)> {
        let folder = resolve_model(&models.target)?;
        let defaults = self.defaults.read(&models.target, Sampling::default())?.sampling;
        let own = &self.sampling;
        let sampling = Sampling {
            temperature: own.temperature.unwrap_or(defaults.temperature),
            top_p: own.top_p.unwrap_or(defaults.top_p),
            top_k: own.top_k.unwrap_or(defaults.top_k),
            min_p: own.min_p.unwrap_or(defaults.min_p),
            seed: None,
        };
        let by = AnsweredBy::Engine {
            target: models.target.clone(),
            digest: model_digest(&folder)?,
            draft: models.draft.as_deref().map(model_digest).transpose()?,
        };
        let settings = own.settings(by, [Some(sampling.temperature), Some(sampling.top_p), Some(sampling.min_p)])?;
        Ok((Settings { top_k: Some(sampling.top_k), ..settings }, sampling))
    }

    /// Loads the models and starts the engine, which goes to `engine` with a handle.
    fn start_engine(
        &self,
        models: &ModelArguments,
        settings: &Settings,
        sampling: Sampling,
        engine: &mut Option<(Engine, EngineHandle)>,
    ) -> Result<Arc<dyn Source>> {
        let config = EngineConfig {
            max_running: self.concurrency,
            cache_tokens: self.cache_tokens,
            mode: self.mode,
            ..EngineConfig::default()
        };
        let defaults = Defaults { sampling, max_new_tokens: None };
        let Running { engine: started, handle, tokenizer, draft, .. } = start_engine(models, defaults, config)?;
        *engine = Some((started, handle.clone()));
        if let Some(draft) = &draft {
            warn_of_other_template_arguments(draft, &settings.template_arguments);
        }
        let arguments = settings.template_arguments.clone();
        Ok(Arc::new(InProcess::new(handle, tokenizer, sampling, settings.max_tokens, arguments)?))
    }
}

impl AnswerArguments {
    /// Returns the settings with temperature, top-p and min-p as given.
    fn settings(&self, by: AnsweredBy, [temperature, top_p, min_p]: [Option<f64>; 3]) -> Result<Settings> {
        let neutral = Sampling::default();
        let checked = Sampling {
            temperature: temperature.unwrap_or(neutral.temperature),
            top_p: top_p.unwrap_or(neutral.top_p),
            min_p: min_p.unwrap_or(neutral.min_p),
            ..neutral
        };
        checked.check()?;
        if self.samples > 1 && temperature == Some(0.0) {
            bail!("--samples {}: all answers would be equal at temperature 0; set --temperature", self.samples);
        }
        Ok(Settings {
            by,
            temperature,
            top_p,
            top_k: self.top_k,
            min_p,
            max_tokens: self.max_tokens,
            seed: self.seed,
            samples: self.samples,
            template_arguments: template_arguments(&self.template_arguments)?,
        })
    }
}

impl EndpointArguments {
    /// Returns how servers are asked, and the settings of their answers.
    fn options(&self, arguments: &Arguments) -> Result<(EndpointOptions, Settings)> {
        let Some(model) = self.model.clone() else {
            bail!("--model NAME: expected the name under which the endpoints serve the target")
        };
        let mut urls = self.urls.clone();
        urls.sort();
        urls.dedup();
        let by = AnsweredBy::Endpoints { urls: urls.clone(), model: model.clone() };
        let own = &arguments.sampling;
        let settings = own.settings(by, [own.temperature, own.top_p, own.min_p])?;
        let options = EndpointOptions {
            urls,
            model,
            any_model: self.any_model,
            api_key: self.api_key()?,
            concurrency: arguments.concurrency,
            retries: self.retries,
            timeout: self.timeout,
            back_off: self.back_off,
            give_up_after: self.give_up_after,
        };
        Ok((options, settings))
    }

    fn api_key(&self) -> Result<Option<String>> {
        let name = self.api_key_variable.as_deref().unwrap_or(KEY_VARIABLE);
        let key = match std::env::var(name) {
            Ok(key) => key.trim().to_owned(),
            Err(std::env::VarError::NotPresent) if self.api_key_variable.is_none() => return Ok(None),
            Err(error) => bail!("--api-key-variable {name}: {error}"),
        };
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("{name}: expected a key of visible ASCII characters without spaces");
        }
        Ok(Some(key))
    }
}
