//! The command line of `dspark`, one thin file per verb.

mod generate;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::checkpoint::CheckpointError;

/// Decodes with a target model and a DSpark draft.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Answer one prompt
    Generate(generate::Arguments),
}

impl Cli {
    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever went wrong, with the chain of causes.
    pub fn run(self) -> Result<()> {
        match self.verb {
            Verb::Generate(arguments) => generate::run(&arguments),
        }
    }
}

/// 1 when the machine failed, 2 when the input was wrong.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let failed = error.chain().any(|cause| match cause.downcast_ref::<CheckpointError>() {
        Some(CheckpointError::Io { source, .. }) => source.kind() != std::io::ErrorKind::NotFound,
        _ => false,
    });
    if failed { 1 } else { 2 }
}
