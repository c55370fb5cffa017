//! The `dspark` binary.

use std::process::ExitCode;

use dspark_runtime::commands::{Cli, exit_code, message};
use dspark_runtime::text::template_process;

/// A server allocates and frees tensors of all sizes for days, while small ones live as long as a sequence is kept. The
/// system's allocator cannot return the memory between them; this one separates allocations by size.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(code) = template_process() {
        return code;
    }
    let cli = Cli::read();
    // Run on a worker of the thread pool: parallel operations then start without handing over to another thread and
    // waiting for it, which costs more than a small matrix product.
    match rayon::scope(|_| cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}
