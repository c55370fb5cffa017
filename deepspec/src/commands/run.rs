//! `deepspec run`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use dspark_runtime::checkpoint::{WeightDtype, WeightPrecision, write_file};
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, FolderLayout};
use dspark_runtime::speculate::{Decoder, Generation, GenerationOptions, NotFinite, Sampler};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::course::Run;
use super::described::{Described, RecipeArguments};
use super::draft_folder::{FolderOptions, prompt_limits, write_draft_folder};
use super::estimate::check_models_fit;
use super::evaluate::{served_tables, uncalibrated};
use super::model_card::{CardFacts, complete_card};
use super::run_folder::{DRAFT, REPORT, lock, remove_run};
use super::setup::Prepared;
use super::stages::Stages;
use super::train::train_prepared;
use crate::conversation::read_evaluation_prompts;
use crate::digest::{digest, hash_file, hex};
use crate::evaluation::{
    Circumstances, EvaluationOptions, EvaluationReport, Models, Records, Tables, Task, evaluate, read_tasks, table,
    verdict,
};
use crate::process::watch;
use crate::replay::task_prompts;
use crate::trainer::DRAFT_FILES;

/// Longest sample answer shown at the end, tokens.
const SAMPLE_TOKENS: usize = 160;

/// Arguments of `deepspec run`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Delete what an earlier run wrote into the folder and start from scratch. Other files in the folder are kept
    #[arg(long)]
    restart: bool,
}

/// Numbers of samples in the recipe's data.
#[derive(Debug, Serialize, Deserialize)]
struct DataResult {
    training: usize,
    validation: usize,
    /// What became of all rows; null in runs of earlier versions.
    #[serde(default)]
    rows: Value,
}

/// The outcome of a recipe's run.
pub struct Outcome {
    /// The number of training samples.
    pub samples: usize,
    /// What became of all rows of the data.
    pub rows: Value,
    /// The training's report.
    pub training: Value,
    /// The evaluation's.
    pub evaluation: EvaluationReport,
    /// The folder of the exported draft.
    pub exported: PathBuf,
}

/// Runs data, train, export, evaluate and report. The exported draft is evaluated, in its number type.
pub fn run(arguments: &Arguments) -> Result<()> {
    watch().context("watching for signals")?;
    let described = Described::load(&arguments.recipe)?;
    let folder = described.recipe.output_dir();
    let _lock = lock(&folder)?;
    let tasks = checked_tasks(&described)?;
    let (prepared, run) = prepare(described, arguments.recipe.device, arguments.restart)?;
    let Outcome { samples, rows, training, evaluation, exported } = execute(&prepared, run, &tasks, "evaluate")?;
    let report = json!({"data": rows, "evaluation": evaluation, "training": training});
    let report_path = folder.join(REPORT);
    write_file(&report_path, (serde_json::to_string_pretty(&report)? + "\n").as_bytes())?;

    let draft = Draft::load(&exported, &prepared.target)?;
    let circumstances = Circumstances {
        training: training["steps"].as_u64().map(|steps| (steps, samples)),
        on_cpu: prepared.device == DeviceChoice::Cpu,
        uncalibrated: uncalibrated(&exported, &draft),
    };
    print(format_args!("\n{}", table(&evaluation)))?;
    show_sample(&prepared, &draft, &tasks)?;
    print(format_args!("{}\n", verdict(&evaluation, circumstances)))?;
    print(format_args!("report:     {}", report_path.display()))?;
    Ok(print(format_args!("checkpoint: {}", exported.display()))?)
}

/// Loads the target of a recipe whose folder is locked, and finds the run in the folder. With `restart`, removes that run once the
/// target is loaded.
///
/// # Errors
/// Returns an error if the folder holds a run with other settings or data, or a file cannot be read or removed.
pub fn prepare(described: Described, device: DeviceChoice, restart: bool) -> Result<(Prepared, Run)> {
    let run = (!restart).then(|| described.run(true)).transpose()?;
    check_models_fit(&described, device)?;
    let prepared = Prepared::of(described, device)?;
    let run = match run {
        Some(run) => run,
        None => {
            remove_run(&prepared.described.recipe.output_dir())?;
            prepared.described.run(true)?
        }
    };
    Ok((prepared, run))
}

/// The recipe's tasks. Unusable ones are found before hours of training, not after.
///
/// # Errors
/// Returns an error if a task has no file, an unusable one or none whose prompts fit into the target's context, or the target has no chat
/// template to ask with.
pub fn checked_tasks(described: &Described) -> Result<Vec<Task>> {
    let tasks = described.tasks()?;
    read_tasks(&described.target_config, &described.tokenizer, &tasks, &evaluation_options(described))
        .context("evaluate.tasks")?;
    Ok(tasks)
}

/// The options of the recipe's evaluation.
fn evaluation_options(described: &Described) -> EvaluationOptions {
    let settings = &described.recipe.evaluate;
    EvaluationOptions {
        temperature: settings.temperature,
        max_new_tokens: settings.max_new_tokens,
        samples: settings.samples,
        seed: settings.seed,
        sampling: settings.sampling,
        turns: settings.turns,
        mode: settings.mode,
        // Read when there is a draft.
        tables: Tables::default(),
        confidence_threshold: settings.confidence_threshold,
        template_arguments: described.recipe.data.template_arguments.clone(),
        measure_plain: true,
    }
}

/// Runs the stages in the recipe's output folder, and skips those that were completed with the same inputs. Evaluations
/// with different names are stored separately.
///
/// # Errors
/// Returns an error if a stage fails.
pub fn execute(prepared: &Prepared, run: Run, tasks: &[Task], evaluation: &str) -> Result<Outcome> {
    let Prepared { described, target, .. } = prepared;
    let recipe = &described.recipe;
    let Run { folder: run, digest: training_digest } = run;
    let folder = run.path.clone();
    let stages = Stages::of_run(&folder);
    let mut read = None;
    let data: DataResult = stages.run("data", &training_digest, || {
        let (samples, accounting) = described.samples()?;
        let samples = read.insert(samples);
        let (training, validation) = (samples.training.len(), samples.validation.len());
        Ok((DataResult { training, validation, rows: serde_json::to_value(accounting)? }, Vec::new()))
    })?;
    let training: Value = stages.run("train", &training_digest, || {
        let samples = match read.take() {
            Some(samples) => samples,
            None => described.samples()?.0,
        };
        let report = train_prepared(prepared, &samples, run)?;
        let files = DRAFT_FILES.iter().map(|name| report.checkpoint.join(name)).collect();
        Ok((serde_json::to_value(&report)?, files))
    })?;
    let checkpoint = training["checkpoint"].as_str().context("the training stage did not record a checkpoint")?;
    let exported = folder.join(DRAFT);
    let card = CardFacts::of_recipe(described, [data.training, data.validation])?;
    let without = recipe.output.without_embeddings;
    let tables = if without { "without" } else { "with" };
    let export_digest = digest(&[&training_digest, checkpoint, tables, "replay", &task_digest(tasks)?]);
    stages.run("export", &export_digest, || {
        let trained = Draft::load(Path::new(checkpoint), target)?;
        let limits = prompt_limits(target);
        let prompts = task_prompts(tasks, &described.tokenizer, &recipe.data.template_arguments, limits)?;
        let source = PathBuf::from(checkpoint);
        let options = FolderOptions {
            dtype: WeightDtype::Bf16,
            with_embeddings: !without,
            source,
            layout: FolderLayout::Native,
            card: card.clone(),
        };
        let stop = described.tokenizer.stop_token_ids();
        Ok((Value::Null, write_draft_folder(&trained, &exported, &options, target, stop, &prompts)?))
    })?;
    let settings = serde_json::to_string(&recipe.evaluate)?;
    let inputs = digest(&[&export_digest, &settings, &task_digest(tasks)?]);
    let evaluation: EvaluationReport = stages.run(evaluation, &inputs, || {
        let draft = Draft::load(&exported, target)?.with_heads(described.recipe.evaluate.draft_heads);
        Ok((evaluate_recipe(prepared, &draft, &exported, tasks)?, Vec::new()))
    })?;
    complete_card(&exported, card, &evaluation)?;
    Ok(Outcome { samples: data.training, rows: data.rows, training, evaluation, exported })
}

fn task_digest(tasks: &[Task]) -> Result<String> {
    let mut hash = Sha256::new();
    for task in tasks {
        hash.update(task.name.as_bytes());
        hash_file(&mut hash, &task.path)?;
    }
    Ok(hex(hash))
}

fn evaluate_recipe(prepared: &Prepared, draft: &Draft, folder: &Path, tasks: &[Task]) -> Result<EvaluationReport> {
    let Prepared { described, target, .. } = prepared;
    let mut options = evaluation_options(described);
    let circumstances = (WeightPrecision::F32, prepared.device);
    options.tables = served_tables(options.mode, (target, draft), folder, circumstances)?;
    let models = Models { target, draft, tokenizer: &described.tokenizer };
    let names = (described.recipe.target.as_str(), &*folder.to_string_lossy());
    Ok(evaluate(models, names, tasks, &options, Records::default())?)
}

/// Answers the first prompt of the first task with the draft and without, at temperature 0.
fn show_sample(prepared: &Prepared, draft: &Draft, tasks: &[Task]) -> Result<()> {
    let Some(task) = tasks.first() else { return Ok(()) };
    let Described { recipe, tokenizer, .. } = &prepared.described;
    let prompts = read_evaluation_prompts(&task.path)?;
    let Some(template) = tokenizer.chat_template() else { return Ok(()) };
    // The first prompt that the evaluation did not skip.
    let mut rendered = prompts.iter().map(|prompt| -> Result<(&str, Vec<u32>)> {
        let arguments = prompt.template_arguments(&recipe.data.template_arguments);
        let text = template.render(&prompt.opening(), &arguments, true)?;
        Ok((prompt.turns.first().map_or("", String::as_str), tokenizer.encode(&text, false)?))
    });
    let context = prepared.target.config().max_position_embeddings;
    let fits = |prompt: &Result<(&str, Vec<u32>)>| prompt.as_ref().map_or(true, |(_, ids)| ids.len() < context);
    let Some((turn, ids)) = rendered.find(fits).transpose()? else { return Ok(()) };
    let options = GenerationOptions {
        max_new_tokens: SAMPLE_TOKENS,
        stop_token_ids: tokenizer.stop_token_ids().to_vec(),
        confidence_threshold: 0.0,
    };
    let answer = |draft: Option<&Draft>| -> Result<Generation, NotFinite> {
        Decoder::new(&prepared.target, draft).generate(&ids, &options, &mut Sampler::greedy())
    };
    let (with_draft, alone) = (answer(Some(draft))?, answer(None)?);
    print(format_args!("\nprompt:  {turn}"))?;
    let text = tokenizer.decode_answer(&ids, &alone.ids)?;
    print(format_args!("answer:  {}", text.trim().replace('\n', "\n         ")))?;
    let passes = with_draft.rounds.len() + 1;
    let same = with_draft.ids == alone.ids;
    Ok(print(format_args!(
        "with the draft: {} in {passes} passes of the target instead of {}\n",
        if same { "the same tokens" } else { "other tokens (rounding decided a tie differently)" },
        alone.ids.len()
    ))?)
}
