//! `deepspec calibrate`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::{FolderLock, write_file};
use dspark_runtime::commands::{
    Named, check_outputs, count, print, temperature, template_arguments, warn_of_other_template_arguments,
};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig, DraftHeads};
use dspark_runtime::schedule::StsTable;

use super::evaluate::find_task;
use super::model_card::refresh_card;
use super::setup::load_target;
use crate::calibration::{CalibrationReport, calibrate, table, write_diagram};
use crate::evaluation::{
    EvaluationMode, EvaluationOptions, Models, Progressed, SamplingMethod, Tables, Task, TraceRound, TraceWriter,
    Turns, evaluate_observed, read_trace,
};

/// File name of the reliability diagram, next to the table.
pub const DIAGRAM: &str = "reliability.svg";

/// Arguments of `deepspec calibrate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Target model: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR", required_unless_present = "trace")]
    target: Option<String>,
    /// Checkpoint folder of the draft; `sts.json` and `reliability.svg` are written into it
    #[arg(long, value_name = "DIR", required_unless_present = "trace")]
    draft: Option<PathBuf>,
    /// Held-out prompts: a file in the formats of `deepspec evaluate --task`, or the name of a dataset card. Can be
    /// repeated. Every second prompt is used for fitting, the others for the report
    #[arg(long = "task", value_name = "FILE|CARD", num_args = 1.., required_unless_present = "trace")]
    tasks: Vec<String>,
    /// Read the rounds from a trace of `deepspec evaluate --trace` instead of decoding
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "tasks", "write_trace", "temperature", "samples", "max_new_tokens", "seed"])]
    trace: Option<PathBuf>,
    /// Write the rounds as a trace to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    write_trace: Option<PathBuf>,
    /// Sampling temperature; use the one that will be served
    #[arg(long, default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,
    /// Maximum number of prompts per task, taken from the start of its file (default: all)
    #[arg(long, value_name = "COUNT", value_parser = count)]
    samples: Option<usize>,
    /// Maximum number of tokens per answer
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = count)]
    max_new_tokens: usize,
    /// Sampling seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Set a variable of the chat template, for example `enable_thinking=false`. Can be repeated
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
    /// Write the table and the diagram into this folder (default: the folder of the draft)
    #[arg(long, value_name = "DIR", required_unless_present = "draft")]
    out: Option<PathBuf>,
    /// Write the report as JSON to this file; `-` prints JSON on standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Weights for the draft's vocabulary-sized matrix products, `int8` or `exact`; use the setting that will be served
    #[arg(long, value_name = "int8|exact", default_value_t)]
    draft_heads: DraftHeads,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Calibrates, writes the table and the diagram and prints the report.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Some(folder) = arguments.out.as_deref().or(arguments.draft.as_deref()) else {
        bail!("pass --out DIR or --draft DIR, the folder to write the table to");
    };
    // Before minutes of decoding, not after.
    if folder.exists() && !folder.is_dir() {
        bail!("--out {}: expected a folder (for {} and {DIAGRAM}), found a file", folder.display(), StsTable::FILE);
    }
    // A run that writes the draft must not replace it meanwhile.
    let _lock = FolderLock::around(folder)?;
    let table_path = folder.join(StsTable::FILE);
    let tasks: Vec<Task> = arguments.tasks.iter().map(|name| find_task(name)).collect::<Result<_>>()?;
    check_files(arguments, &tasks, folder)?;
    let rounds = match (&arguments.trace, &arguments.target, &arguments.draft) {
        (Some(trace), _, draft) => traced(trace, draft.as_deref())?,
        (None, Some(target), Some(draft)) => decode(arguments, &tasks, target, draft)?,
        (None, _, _) => bail!("pass --target DIR and --draft DIR, or --trace FILE, as the source of the rounds"),
    };
    let (sts, report) = calibrate(&rounds)?;
    check_previous(&table_path, &sts, &report)?;
    let json = serde_json::to_string_pretty(&report)?;
    sts.write(&table_path)?;
    write_diagram(&report, &folder.join(DIAGRAM))?;
    refresh_card(folder)?;
    match &arguments.json {
        Some(path) if path.as_os_str() == "-" => print(json)?,
        other => {
            if let Some(path) = other {
                write_file(path, (json + "\n").as_bytes())?;
            }
            print(table(&report))?;
            print(format_args!("wrote {} and {DIAGRAM} in the same folder", table_path.display()))?;
        }
    }
    Ok(())
}

/// Refuses outputs that would overwrite an input.
fn check_files(arguments: &Arguments, tasks: &[Task], folder: &Path) -> Result<()> {
    let (table, diagram) = (folder.join(StsTable::FILE), folder.join(DIAGRAM));
    let target = arguments.target.as_ref().map(Path::new);
    let named = |flag, path| Some((flag, path?));
    let (json, write_trace) = (arguments.json.as_deref(), arguments.write_trace.as_deref());
    let outputs = [named("--json", json), named("--write-trace", write_trace)].into_iter().flatten();
    let outputs: Vec<Named<'_>> =
        [("the table", &*table), ("the diagram", &diagram)].into_iter().chain(outputs).collect();
    let inputs = [
        named("--trace", arguments.trace.as_deref()),
        named("--target", target),
        named("--draft", arguments.draft.as_deref()),
    ];
    let inputs: Vec<Named<'_>> =
        inputs.into_iter().flatten().chain(tasks.iter().map(|task| ("--task", task.path.as_path()))).collect();
    check_outputs(&outputs, &inputs)
}

/// The rounds of a trace, which must be of this draft.
fn traced(trace: &Path, draft: Option<&Path>) -> Result<Vec<TraceRound>> {
    let rounds = read_trace(trace)?;
    if let (Some(round), Some(folder)) = (rounds.first(), draft) {
        let (found, block) = (round.confidence_logits.len(), DraftConfig::read(folder)?.block_size);
        if found != block {
            bail!(
                "--trace {}: the trace has blocks of {found} tokens, but the draft {} has blocks of {block}: trace this draft with `deepspec evaluate \
                 --trace`",
                trace.display(),
                folder.display()
            );
        }
    }
    match (rounds.first().and_then(|round| round.draft.as_deref()), draft) {
        (None, _) => eprintln!(
            "warning: {}: the trace does not record its draft, so the table cannot record it either; trace again with \
             `deepspec evaluate --trace`",
            trace.display()
        ),
        (Some(_), None) => {}
        (Some(traced), Some(folder)) => {
            let digest = Draft::digest_of(folder, &DraftConfig::read(folder)?)?;
            if traced != digest {
                bail!(
                    "--trace {}: the trace is not of the draft {} (digest {traced}; the draft has digest {digest}): \
                     trace this draft with `deepspec evaluate --trace`",
                    trace.display(),
                    folder.display()
                );
            }
        }
    }
    Ok(rounds)
}

/// Refuses to replace a table of the same draft by one that fits fewer positions.
fn check_previous(path: &Path, table: &StsTable, report: &CalibrationReport) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // A table that cannot be read, or is for another block size, is no use to this draft.
    let Ok(previous) = StsTable::read(path, table.temperatures.len()) else { return Ok(()) };
    let other_draft = previous.draft.is_some() && previous.draft != table.draft;
    let other_temperature =
        previous.sampling_temperature.is_some() && previous.sampling_temperature != table.sampling_temperature;
    if other_draft || other_temperature {
        return Ok(());
    }
    let lost = report.positions.iter().zip(&previous.temperatures);
    let lost: Vec<String> = lost
        .filter(|(position, before)| !position.fitted && **before != 1.0)
        .map(|(position, _)| position.position.to_string())
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    bail!(
        "{}: not overwritten. The existing table has temperatures for the positions {}, fitted on {} rounds; these \
         {} rounds are too few to fit them: give more prompts, write to another folder (--out DIR), or delete the \
         table first",
        path.display(),
        lost.join(", "),
        previous.num_samples,
        table.num_samples
    )
}

/// The rounds of the tasks, every block judged whole.
fn decode(arguments: &Arguments, tasks: &[Task], target_name: &str, draft_folder: &Path) -> Result<Vec<TraceRound>> {
    let device = arguments.device.open()?;
    let (_, target, tokenizer) = load_target(target_name, &device)?;
    let draft = Draft::load(draft_folder, &target)?.with_heads(arguments.draft_heads);
    if !draft.config().has_confidence_head() {
        bail!("{}: this draft has no confidence head to calibrate", draft_folder.display());
    }
    let options = EvaluationOptions {
        temperature: arguments.temperature,
        max_new_tokens: arguments.max_new_tokens,
        samples: arguments.samples,
        seed: arguments.seed,
        sampling: SamplingMethod::Rejection,
        turns: Turns::All,
        mode: EvaluationMode::Whole,
        tables: Tables::default(),
        confidence_threshold: 0.0,
        template_arguments: template_arguments(&arguments.template_arguments)?,
        measure_plain: false,
    };
    warn_of_other_template_arguments(draft.config(), &options.template_arguments);
    let models = Models { target: &target, draft: &draft, tokenizer: &tokenizer };
    let names = (target_name, &*draft_folder.to_string_lossy());
    let mut writer = arguments.write_trace.as_deref().map(TraceWriter::create).transpose()?;
    let mut rounds = Vec::new();
    evaluate_observed(models, names, tasks, &options, |progressed| {
        let Progressed::Round(round) = progressed else { return Ok(()) };
        let written = writer.as_mut().map_or(Ok(()), |writer| writer.write(&round));
        rounds.push(round);
        written
    })?;
    writer.map_or(Ok(()), TraceWriter::finish)?;
    Ok(rounds)
}
