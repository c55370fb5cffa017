//! The command line, one thin file per verb.

mod calibrate;
mod course;
mod data_files;
mod described;
mod draft_folder;
mod estimate;
mod evaluate;
mod export;
mod inspect;
mod run;
mod run_folder;
mod setup;
mod simulate;
mod stages;
mod start;
mod sweep;
mod tables;
mod train;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::trainer::TrainError;

/// Train, evaluate and export draft models for speculative decoding.
#[derive(Debug, Parser)]
#[command(name = "deepspec", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run all stages of a recipe (data, train, export, evaluate) and skip finished ones
    Run(run::Arguments),
    /// Run recipes over a grid of settings and compare the results
    Sweep(sweep::Arguments),
    /// Train a draft
    Train(train::Arguments),
    /// Measure a draft's accepted length and speed
    ///
    /// Sampling defaults in the target's generation_config.json are ignored.
    Evaluate(evaluate::Arguments),
    /// Calibrate the confidence head on held-out prompts and report its calibration before and after
    Calibrate(calibrate::Arguments),
    /// Predict throughput under load from a recorded trace, by mode and number of concurrent requests
    Simulate(simulate::Arguments),
    /// Export a draft for other programs: vLLM (speculators), llama.cpp (GGUF) or DeepSpec
    Export(export::Arguments),
    /// Check a draft or target: architecture, problems and compatibility with inference engines
    Inspect(inspect::Arguments),
}

impl Cli {
    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever went wrong, with the chain of causes.
    pub fn run(self) -> Result<()> {
        match self.verb {
            Verb::Run(arguments) => run::run(&arguments),
            Verb::Sweep(arguments) => sweep::run(&arguments),
            Verb::Train(arguments) => train::run(&arguments),
            Verb::Evaluate(arguments) => evaluate::run(&arguments),
            Verb::Calibrate(arguments) => calibrate::run(&arguments),
            Verb::Simulate(arguments) => simulate::run(&arguments),
            Verb::Export(arguments) => export::run(&arguments),
            Verb::Inspect(arguments) => inspect::run(&arguments),
        }
    }
}

/// 1 when the work or the machine failed, 2 when the input was wrong, 130 after SIGINT, 143 after SIGTERM.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let code = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<TrainError>() {
        Some(TrainError::Interrupted { signal, .. }) => Some(signal.exit_code()),
        Some(TrainError::NotFinite { .. } | TrainError::Teacher { .. }) => Some(1),
        _ => (cause.is::<estimate::PlanError>() || dspark_runtime::commands::machine_failed(cause)).then_some(1),
    };
    error.chain().find_map(code).unwrap_or(2)
}
