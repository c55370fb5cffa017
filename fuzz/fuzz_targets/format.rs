//! The target of `deepspec/tests/formats/targets.rs` that has this binary's name.

#![no_main]

// Only some of the seeds stand in place of files that a target needs.
#[allow(dead_code)]
#[path = "../../deepspec/tests/formats/seeds.rs"]
mod seeds;
#[path = "../../deepspec/tests/formats/targets.rs"]
mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target, Workbench};

static TARGET: OnceLock<(Workbench, Target)> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let (workbench, target) = TARGET.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let (_, target) = TARGETS.iter().find(|(name, _)| *name == env!("CARGO_BIN_NAME")).unwrap();
        (Workbench::new(&folder, &root), *target)
    });
    target(workbench, bytes);
});
