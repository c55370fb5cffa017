//! `deepspec train`

use std::path::PathBuf;

use anyhow::Result;
use burn_train::Interrupter;
use clap::Args;
use dspark_runtime::device::DeviceChoice;

use super::setup::Prepared;
use crate::trainer::{TrainJob, TrainReport, train};

/// Arguments of `deepspec train`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The recipe file
    recipe: PathBuf,
    /// Override a field of the recipe, `train.lr=3e-4`; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue from the newest checkpoint of the run
    #[arg(long)]
    resume: bool,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Trains and says where the checkpoint is.
pub fn run(arguments: &Arguments) -> Result<()> {
    let prepared = Prepared::load(&arguments.recipe, &arguments.set, arguments.device)?;
    let report = train_prepared(&prepared, arguments.resume)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    Ok(())
}

/// Trains a prepared recipe in its output folder.
pub fn train_prepared(prepared: &Prepared, resume: bool) -> Result<TrainReport> {
    let (training, validation) = prepared.samples()?;
    let job = TrainJob {
        target: &prepared.target,
        draft: prepared.fresh_draft()?,
        training: &training,
        validation: &validation,
        settings: prepared.train_settings(training.len()),
        folder: prepared.recipe.output_dir(),
        digest: prepared.training_digest()?,
        resume,
        interrupter: on_interrupt(),
    };
    Ok(train(job)?)
}

/// The first Ctrl-C lets the step finish and saves; the second ends the process.
fn on_interrupt() -> Interrupter {
    let interrupter = Interrupter::new();
    let handler = interrupter.clone();
    // A handler that is there already belongs to an earlier training of this process, which has ended.
    let _ = ctrlc::set_handler(move || {
        if handler.should_stop() {
            std::process::exit(130);
        }
        eprintln!("finishing this step and saving; interrupt again to stop at once");
        handler.stop(Some("interrupted"));
    });
    interrupter
}

/// The outcome in words.
pub fn print_report(report: &TrainReport) {
    println!(
        "trained {} parameters for {} steps in {:.1} s ({:.0} tokens/s through the teacher)",
        report.parameters, report.steps, report.seconds, report.tokens_per_second
    );
    if let Some(last) = &report.last {
        println!(
            "last step: loss {:.4}, tau {:.3}",
            last.loss, last.tau_probabilistic
        );
    }
    if let Some(best) = report.best {
        println!(
            "best validation: tau {:.3} at step {}",
            best.tau_probabilistic, best.step
        );
    }
    println!("checkpoint: {}", report.checkpoint.display());
}
