//! The `deepspec` binary.

use std::process::ExitCode;

use deepspec::commands::{Cli, exit_code};
use dspark_runtime::commands::message;
use dspark_runtime::text::template_process;

fn main() -> ExitCode {
    if let Some(code) = template_process() {
        return code;
    }
    let cli = Cli::read();
    // On a worker of the thread pool: parallel operations then start without handing over to another thread and sleeping
    // until it answers, which costs more than a small matrix product.
    match rayon::scope(|_| cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}
