//! The folder of golden fixtures.

use std::path::{Path, PathBuf};

/// The folder in `DEEPSPEC_FIXTURES`, or the one in this repository. Without it, a test fails.
#[track_caller]
pub fn fixtures() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data");
    let folder = std::env::var_os("DEEPSPEC_FIXTURES").map_or_else(own, PathBuf::from);
    assert!(folder.is_dir(), "no golden fixtures in {}: check DEEPSPEC_FIXTURES", folder.display());
    folder
}
