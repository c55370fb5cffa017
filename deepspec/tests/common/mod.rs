//! Calling the binary.

// Not every test needs all of it.
#![allow(dead_code)]

pub mod drafts;
pub mod fixtures;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `deepspec` in the workspace, with a cache of the tests' own in place of the user's.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepspec"));
    command.current_dir(workspace()).env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

pub fn deepspec(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// The user is to blame: exit code 2, and a message with these words.
#[track_caller]
pub fn refused(output: &Output, words: &[&str]) {
    exits_with(output, 2, words);
}

/// No panic, this exit code, and a message with these words.
#[track_caller]
pub fn exits_with(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}
