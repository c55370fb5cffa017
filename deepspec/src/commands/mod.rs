//! The command line, one thin file per verb.

mod cache;
mod calibrate;
mod course;
mod data_files;
mod described;
mod doctor;
mod draft_folder;
mod estimate;
mod evaluate;
mod examples;
mod export;
mod init;
mod inspect;
mod model_card;
mod prepare;
mod regenerate;
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
use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use dspark_runtime::commands::{CompletionsArguments, DoctorArguments, ManArguments, completions, finish, man_pages};

use crate::regeneration::RegenerationError;
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
    /// Write a recipe for a target and this machine
    Init(init::Arguments),
    /// Make one data set of several sources: without duplicates, filtered, mixed and split
    Prepare(prepare::Arguments),
    /// Run all stages of a recipe (data, train, export, evaluate) and skip finished ones
    Run(run::Arguments),
    /// Run recipes over a grid of settings and compare the results
    Sweep(sweep::Arguments),
    /// Have the target answer prompts, as training data
    ///
    /// The engine of this program answers, with a draft if there is one, or OpenAI-compatible servers (--endpoint). Repeat
    /// the same command to continue a run that was stopped: no answer is lost, and none is there twice.
    Regenerate(regenerate::Arguments),
    /// Store the hidden states of a recipe's training data on disk
    ///
    /// A training whose recipe names the folder (`data.cache`) reads them instead of running the target in every step. This pays
    /// when the same data are trained on several times, or for many epochs.
    #[command(subcommand)]
    Cache(cache::Verb),
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
    /// Describe this machine, this build, datasets and models, and name problems with what to do about them
    Doctor(DoctorArguments),
    /// Print the completion script of a shell
    Completions(CompletionsArguments),
    /// Write man pages into a folder
    Man(ManArguments),
}

impl Cli {
    /// Returns the program's command line, with examples in its help.
    pub fn command_line() -> Command {
        finish(Self::command(), examples::EXAMPLES)
    }

    /// Reads the arguments of this process. Ends it where they are wrong or ask for help.
    pub fn read() -> Self {
        Self::from_arg_matches(&Self::command_line().get_matches()).unwrap_or_else(|error| error.exit())
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// Returns the error with its chain of causes.
    pub fn run(self) -> Result<()> {
        match self.verb {
            Verb::Init(arguments) => init::run(&arguments),
            Verb::Prepare(arguments) => prepare::run(&arguments),
            Verb::Run(arguments) => run::run(&arguments),
            Verb::Sweep(arguments) => sweep::run(&arguments),
            Verb::Regenerate(arguments) => regenerate::run(&arguments),
            Verb::Cache(verb) => cache::run(&verb),
            Verb::Train(arguments) => train::run(&arguments),
            Verb::Evaluate(arguments) => evaluate::run(&arguments),
            Verb::Calibrate(arguments) => calibrate::run(&arguments),
            Verb::Simulate(arguments) => simulate::run(&arguments),
            Verb::Export(arguments) => export::run(&arguments),
            Verb::Inspect(arguments) => inspect::run(&arguments),
            Verb::Doctor(arguments) => doctor::run(&arguments),
            Verb::Completions(arguments) => Ok(completions(Self::command_line(), &arguments)?),
            Verb::Man(arguments) => man_pages(Self::command_line(), &arguments),
        }
    }
}

/// 1 when the work or the machine failed, 2 when the input was wrong, 130 after SIGINT, 143 after SIGTERM.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let code = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<TrainError>() {
        Some(TrainError::Interrupted { signal, .. }) => Some(signal.exit_code()),
        Some(TrainError::NotFinite { .. } | TrainError::Teacher { .. }) => Some(1),
        _ => (cause.is::<estimate::PlanError>()
            || cause.is::<cache::Damaged>()
            || dspark_runtime::commands::machine_failed(cause))
        .then_some(1),
    };
    let regeneration =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<RegenerationError>()?.exit_code();
    error.chain().find_map(|cause| regeneration(cause).or_else(|| code(cause))).unwrap_or(2)
}

#[cfg(test)]
mod tests {
    use dspark_runtime::commands::check_examples;

    use super::*;

    #[test]
    fn every_verb_has_examples_that_parse() {
        check_examples(&Cli::command_line(), examples::EXAMPLES);
    }
}
