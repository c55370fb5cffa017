//! `deepspec evaluate`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::write_file;
use dspark_runtime::commands::{count, print, share, temperature, template_arguments};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::Draft;

use super::setup::load_target;
use crate::cards::{Card, Kind, dataset_folders};
use crate::evaluation::{EvaluationOptions, Models, Task, Turns, evaluate, table};

/// Arguments of `deepspec evaluate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The target: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// The draft: a checkpoint folder
    #[arg(long, value_name = "DIR")]
    draft: PathBuf,
    /// A task: a JSONL file with `turns` per line, or the name of a dataset card; may be given several times
    #[arg(long = "task", required = true, num_args = 1..)]
    tasks: Vec<String>,
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,
    /// Token limit of an answer
    #[arg(long, default_value_t = 2048, value_parser = count)]
    max_new_tokens: usize,
    /// Prompts per task, from the start of its file (default: all)
    #[arg(long, value_parser = count)]
    samples: Option<usize>,
    /// Seed of sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which turns of a conversation are answered; published figures are of the first
    #[arg(long, value_enum, default_value = "all")]
    turns: TurnsArgument,
    /// Verify no slot whose confidence is below this
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    confidence_threshold: f64,
    /// A variable of the chat template, `enable_thinking=false`; may be given several times
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
    /// Leave out the run without the draft
    #[arg(long)]
    no_plain: bool,
    /// Write the report as JSON to this file (`-`: standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write one JSON line per round to this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
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
    let device = arguments.device.open()?;
    let (_, target, tokenizer) = load_target(&arguments.target, &device)?;
    let draft = Draft::load(&arguments.draft, &target)?;
    let options = EvaluationOptions {
        temperature: arguments.temperature,
        max_new_tokens: arguments.max_new_tokens,
        samples: arguments.samples,
        seed: arguments.seed,
        turns: match arguments.turns {
            TurnsArgument::All => Turns::All,
            TurnsArgument::First => Turns::First,
        },
        confidence_threshold: arguments.confidence_threshold,
        template_arguments: template_arguments(&arguments.template_arguments)?,
        measure_plain: !arguments.no_plain,
    };
    let models = Models { target: &target, draft: &draft, tokenizer: &tokenizer };
    let names = (arguments.target.as_str(), &*arguments.draft.to_string_lossy());
    let report = evaluate(models, names, &tasks, &options, arguments.trace.as_deref())?;
    let json = serde_json::to_string_pretty(&report)?;
    match &arguments.json {
        Some(path) if path.as_os_str() == "-" => print(json)?,
        other => {
            if let Some(path) = other {
                write_file(path, (json + "\n").as_bytes())?;
            }
            print(table(&report))?;
        }
    }
    Ok(())
}

/// A task by its file or the name of its card.
///
/// # Errors
/// When there is neither.
pub fn find_task(name: &str) -> Result<Task> {
    let path = PathBuf::from(name);
    if path.is_file() {
        let stem = path.file_stem().map_or(name.to_owned(), |stem| stem.to_string_lossy().into_owned());
        return Ok(Task { name: stem, path });
    }
    if name.contains(['/', '.']) {
        bail!("--task {name}: no such file");
    }
    let path = Card::named(name, Kind::Task)?.resolve(&dataset_folders())?;
    Ok(Task { name: name.to_owned(), path })
}
