//! The `deepspec` binary.

use std::process::ExitCode;

use clap::Parser;
use deepspec::commands::{Cli, exit_code};

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}
