//! `deepspec train`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use dspark_runtime::checkpoint::expand_home;
use dspark_runtime::commands::print;
use serde::Serialize;

use super::described::{Accounting, Described, RecipeArguments};
use super::estimate::{check_fit, check_models_fit, estimate, print_estimate};
use super::run_folder::lock;
use super::setup::Prepared;
use crate::conversation::Samples;
use crate::process::{defer, watch};
use crate::trainer::{RunFolder, TrainError, TrainJob, TrainReport, train};

/// Arguments of `deepspec train`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Resume from the newest checkpoint of the run
    #[arg(long)]
    resume: bool,
    /// Fine-tune this draft instead of training a new one; accepts checkpoints of this project and published drafts
    /// (sets the recipe's `train.from`)
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Estimate parameters, memory and time without loading weights, then exit. The exit code is 1 if the training does
    /// not fit into memory
    #[arg(long, conflicts_with = "resume")]
    plan: bool,
    /// Print the report or the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Trains and prints the path of the checkpoint.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.plan {
        let mut described = Described::load(&arguments.recipe)?;
        start_from(&mut described, arguments.from.as_deref());
        described.check_start()?;
        let (samples, accounting) = described.samples()?;
        let estimate = estimate(&described, &samples, arguments.recipe.device)?;
        if arguments.json {
            print_json(&estimate, &accounting)?;
        } else {
            print_estimate(&estimate)?;
        }
        return Ok(check_fit(&estimate)?);
    }
    watch().context("watching for signals")?;
    let mut described = Described::load(&arguments.recipe)?;
    start_from(&mut described, arguments.from.as_deref());
    let _lock = lock(&described.recipe.output_dir())?;
    let run = described.run(arguments.resume)?;
    check_models_fit(&described, arguments.recipe.device)?;
    let prepared = Prepared::of(described, arguments.recipe.device)?;
    let (samples, accounting) = prepared.described.samples()?;
    let report = train_prepared(&prepared, &samples, run.folder)?;
    if arguments.json { print_json(&report, &accounting) } else { print_report(&report) }
}

/// Prints a report as JSON, with the accounting of the data's rows as `data`.
fn print_json(report: &impl Serialize, accounting: &Accounting) -> Result<()> {
    let mut report = serde_json::to_value(report)?;
    report["data"] = serde_json::to_value(accounting)?;
    Ok(print(serde_json::to_string_pretty(&report)?)?)
}

/// Sets the draft that the training starts from, if one is named.
fn start_from(described: &mut Described, from: Option<&Path>) {
    if let Some(from) = from {
        described.recipe.train.from = Some(expand_home(from));
    }
}

/// Trains a prepared recipe in its folder.
pub fn train_prepared(prepared: &Prepared, samples: &Samples, run: RunFolder) -> Result<TrainReport> {
    let Prepared { described, target, .. } = prepared;
    let draft = prepared.starting_draft(&samples.training)?;
    let settings = described.train_settings(samples.training.len());
    let cache = prepared.cache()?;
    let (report, signal) = defer("finishing this step and saving a checkpoint", |interrupter| {
        train(TrainJob { target, cache: cache.as_ref(), draft, samples, settings, run, interrupter })
    });
    let report = report?;
    match signal {
        // It came after the last step: everything is saved.
        Some(signal) => Err(TrainError::Interrupted { step: report.steps, signal }.into()),
        None => Ok(report),
    }
}

/// The outcome in words.
fn print_report(report: &TrainReport) -> Result<()> {
    print(format_args!(
        "trained {} parameters for {} steps in {:.1} s ({:.0} tokens/s through the teacher)",
        report.parameters, report.steps, report.seconds, report.tokens_per_second
    ))?;
    if let Some(last) = &report.last {
        print(format_args!(
            "last step: loss {:.4}, estimated accepted length {:.3}",
            last.loss, last.tau_probabilistic
        ))?;
    }
    if let Some(bytes) = report.peak_memory {
        print(format_args!("peak memory: {:.2} GiB", bytes as f64 / f64::from(1 << 30)))?;
    }
    if let Some(best) = report.best {
        print(format_args!(
            "best validation: estimated accepted length {:.3} at step {}",
            best.tau_probabilistic, best.step
        ))?;
    }
    Ok(print(format_args!("checkpoint: {}", report.checkpoint.display()))?)
}
