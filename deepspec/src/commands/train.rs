//! `deepspec train`

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use burn_train::Interrupter;
use clap::Args;
use dspark_runtime::checkpoint::expand_home;
use dspark_runtime::commands::print;

use super::described::{Described, RecipeArguments};
use super::estimate::{check_fit, estimate, print_estimate};
use super::setup::Prepared;
use crate::conversation::Samples;
use crate::trainer::{RunFolder, TrainJob, TrainReport, train};

/// Arguments of `deepspec train`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Continue from the newest checkpoint of the run
    #[arg(long)]
    resume: bool,
    /// Start from this draft instead of a fresh one, a checkpoint of this project or a published one (the recipe's
    /// `train.from`)
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Say what the training would take (parameters, memory, time) and do nothing else; no weights are loaded. The exit code is 1
    /// when the memory does not suffice
    #[arg(long, conflicts_with = "resume")]
    plan: bool,
    /// Print the report, or the plan, as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Trains and says where the checkpoint is.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.plan {
        let mut described = Described::load(&arguments.recipe)?;
        start_from(&mut described, arguments.from.as_deref());
        described.check_start()?;
        let estimate = estimate(&described, &described.samples()?, arguments.recipe.device)?;
        if arguments.json {
            print(serde_json::to_string_pretty(&estimate)?)?;
        } else {
            print_estimate(&estimate)?;
        }
        return Ok(check_fit(&estimate)?);
    }
    let mut prepared = Prepared::load(&arguments.recipe)?;
    start_from(&mut prepared.described, arguments.from.as_deref());
    let samples = prepared.described.samples()?;
    let report = train_prepared(&prepared, &samples, arguments.resume)?;
    if arguments.json { Ok(print(serde_json::to_string_pretty(&report)?)?) } else { print_report(&report) }
}

/// Sets the draft that the training starts from, if one is named.
fn start_from(described: &mut Described, from: Option<&Path>) {
    if let Some(from) = from {
        described.recipe.train.from = Some(expand_home(from));
    }
}

/// Trains a prepared recipe in its output folder.
pub fn train_prepared(prepared: &Prepared, samples: &Samples, resume: bool) -> Result<TrainReport> {
    let Prepared { described, target } = prepared;
    let job = TrainJob {
        target,
        draft: prepared.starting_draft(&samples.training)?,
        samples,
        settings: described.train_settings(samples.training.len()),
        run: RunFolder { path: described.recipe.output_dir(), digest: described.training_digest()?, resume },
        interrupter: on_interrupt(),
    };
    TRAINING.store(true, Ordering::Relaxed);
    let report = train(job);
    TRAINING.store(false, Ordering::Relaxed);
    Ok(report?)
}

/// Whether an interrupt has a step to wait for.
static TRAINING: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C lets the step finish and saves; the second ends the process.
fn on_interrupt() -> Interrupter {
    let interrupter = Interrupter::new();
    let handler = interrupter.clone();
    // A handler that is there already belongs to an earlier training of this process, which has ended.
    let _ = ctrlc::set_handler(move || {
        if handler.should_stop() || !TRAINING.load(Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("finishing this step and saving; interrupt again to stop at once");
        handler.stop(Some("interrupted"));
    });
    interrupter
}

/// The outcome in words.
fn print_report(report: &TrainReport) -> Result<()> {
    print(format_args!(
        "trained {} parameters for {} steps in {:.1} s ({:.0} tokens/s through the teacher)",
        report.parameters, report.steps, report.seconds, report.tokens_per_second
    ))?;
    if let Some(last) = &report.last {
        print(format_args!("last step: loss {:.4}, tau {:.3}", last.loss, last.tau_probabilistic))?;
    }
    if let Some(bytes) = report.peak_memory {
        print(format_args!("peak memory: {:.2} GiB", bytes as f64 / f64::from(1 << 30)))?;
    }
    if let Some(best) = report.best {
        print(format_args!("best validation: tau {:.3} at step {}", best.tau_probabilistic, best.step))?;
    }
    Ok(print(format_args!("checkpoint: {}", report.checkpoint.display()))?)
}
