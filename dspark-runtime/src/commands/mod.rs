//! The command line of `dspark`, one thin file per verb.

mod bench;
mod chat;
mod defaults;
mod device;
mod doctor;
mod engine;
mod examples;
mod generate;
mod help;
mod models;
mod output;
mod outputs;
mod perplexity;
mod profile;
mod prompt;
mod sampling;
mod serve;
mod shell;
mod user_text;

pub use defaults::{Defaults, DefaultsArguments};
pub use doctor::{Diagnosis, DoctorArguments, Unusable};
pub use engine::{Running, SERVED_REQUESTS, start_engine};
pub use help::{Examples, check_examples, finish};
pub use models::{LoadedModels, ModelArguments, calibration, read_tokenizer, speed_table, warn_of};
pub use output::{
    MOST_REQUESTS, count, count_to, print, share, temperature, template_arguments, warn_of_other_template_arguments,
    weight_precision,
};
pub use outputs::{Named, check_outputs, same_file};
pub use shell::{CompletionsArguments, ManArguments, completions, man_pages};

use anyhow::Result;
use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::device::DeviceError;
use crate::server::ServerError;
use crate::speculate::NotFinite;

/// Run a target model with a speculative-decoding draft: generate, chat, serve and measure.
#[derive(Debug, Parser)]
#[command(name = "dspark", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Generate an answer to one prompt
    Generate(generate::Arguments),
    /// Chat in the terminal and see which tokens the draft proposed
    Chat(chat::Arguments),
    /// Serve an OpenAI-compatible HTTP API
    Serve(serve::Arguments),
    /// Measure the time of decoding steps on this machine
    Profile(profile::Arguments),
    /// Compute the perplexity of a text under a target model
    Perplexity(perplexity::Arguments),
    /// Measure throughput and latency under load
    ///
    /// Decoding is greedy by default. Sampling defaults in the target's generation_config.json are ignored.
    Bench(bench::Arguments),
    /// Describe a device, compare its results with the CPU's and time matrix products on it
    Device(device::Arguments),
    /// Describe this machine and this build, and name problems with what to do about them
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
            Verb::Generate(arguments) => generate::run(&arguments),
            Verb::Chat(arguments) => chat::run(&arguments),
            Verb::Serve(arguments) => serve::run(&arguments),
            Verb::Profile(arguments) => profile::run(&arguments),
            Verb::Perplexity(arguments) => perplexity::run(&arguments),
            Verb::Bench(arguments) => bench::run(&arguments),
            Verb::Device(arguments) => device::run(&arguments),
            Verb::Doctor(arguments) => doctor::run(&arguments),
            Verb::Completions(arguments) => Ok(completions(Self::command_line(), &arguments)?),
            Verb::Man(arguments) => man_pages(Self::command_line(), &arguments),
        }
    }
}

/// 1 when the machine failed, 2 when the input was wrong.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(machine_failed) { 1 } else { 2 }
}

/// Returns whether a cause is the machine's refusal (a full disk, a missing permission, a device or an engine that fails, numbers that
/// are not finite), not a file that is not there or not what it should be.
pub fn machine_failed(cause: &(dyn std::error::Error + 'static)) -> bool {
    let failed = matches!(cause.downcast_ref::<DeviceError>(), Some(DeviceError::Failed { .. }));
    if failed || cause.is::<Unusable>() || cause.is::<NotFinite>() || cause.is::<ServerError>() {
        return true;
    }
    use std::io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    let input = [InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof];
    cause.downcast_ref::<std::io::Error>().is_some_and(|error| !input.contains(&error.kind()))
}

/// Formats an error with its causes in one line; a cause that is already quoted is not repeated.
pub fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |message, cause| {
        let text = cause.to_string();
        match message.as_str() {
            "" => text,
            said if said.contains(&text) => message,
            said => format!("{said}: {text}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::checkpoint::CheckpointError;

    #[test]
    fn every_verb_has_examples_that_parse() {
        check_examples(&Cli::command_line(), examples::EXAMPLES);
    }

    #[test]
    fn the_version_is_that_of_the_program() {
        let version = Cli::command().render_version();
        assert_eq!(version, format!("dspark {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn the_exit_code_tells_the_machine_from_the_input() {
        let code = |error: CheckpointError| exit_code(&anyhow::Error::new(error).context("loading"));
        let io = |source: io::Error| code(CheckpointError::io("model")(source));
        assert_eq!(io(io::ErrorKind::StorageFull.into()), 1);
        assert_eq!(io(io::Error::other("the hub does not answer")), 1);
        let failed = DeviceError::Failed { reason: "out of memory".to_owned() };
        assert_eq!(exit_code(&anyhow::Error::new(failed)), 1);
        let not_finite = crate::engine::Failure::NotFinite(NotFinite { position: 3 });
        assert_eq!(exit_code(&anyhow::Error::new(not_finite.clone())), 1);
        assert_eq!(exit_code(&anyhow::Error::new(crate::bench::LoadError::Failed(not_finite))), 1);
        assert_eq!(exit_code(&anyhow::Error::new(ServerError::EngineEnded)), 1);
        assert_eq!(io(io::ErrorKind::NotFound.into()), 2);
        assert_eq!(code(CheckpointError::Invalid { path: "model".into(), reason: "no such model".into() }), 2);
    }
}
