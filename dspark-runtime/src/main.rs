//! The `dspark` binary.

use std::process::ExitCode;

use dspark_runtime::commands::{Cli, exit_code, message};
use dspark_runtime::text::template_process;

/// A server makes and drops tensors of all sizes for days, and small ones stay among them for as long as a sequence is
/// kept. The system's allocator cannot give back what lies between; this one keeps sizes apart.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
