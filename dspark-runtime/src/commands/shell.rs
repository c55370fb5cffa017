//! Completion scripts for shells, and man pages.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Command};
use clap_complete::Shell;

use super::output::print;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// Folder to write the pages into; it is created if it does not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completion script of a program.
///
/// # Errors
/// Returns an error if standard output is gone.
pub fn completions(mut program: Command, arguments: &CompletionsArguments) -> io::Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, name, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a man page of a program and one of each of its verbs.
///
/// # Errors
/// Returns an error if the folder is a file, or a page cannot be written.
pub fn man_pages(program: Command, arguments: &ManArguments) -> Result<()> {
    let folder = &arguments.folder;
    if folder.exists() && !folder.is_dir() {
        bail!("{}: expected a folder to write man pages into, found a file", folder.display());
    }
    let written = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(program, folder));
    written.with_context(|| folder.display().to_string())?;
    Ok(print(format_args!("wrote man pages into {}; read one with `man -l FILE`", folder.display()))?)
}
