//! `dspark doctor`, `dspark completions` and `dspark man` as programs.

#[path = "common/front_door.rs"]
mod common;

use std::fs;

use common::Program;
use serde_json::Value;

fn dspark() -> Program {
    Program::new(env!("CARGO_BIN_EXE_dspark"))
}

#[test]
fn doctor_describes_the_machine_and_names_what_is_set_wrongly() {
    common::doctor(&dspark());
}

#[test]
fn every_shell_completes_every_verb() {
    common::completions(&dspark());
}

#[test]
fn every_verb_has_a_man_page_with_its_options() {
    common::man(&dspark(), "dspark");
}

/// By default, `profile` measures contexts that leave room for a pass in the target's own.
#[test]
fn profile_measures_contexts_that_fit_the_target() {
    let program = dspark();
    common::copy_target(&program.path("target"));
    let config: Value = serde_json::from_slice(&fs::read(program.path("target/config.json")).unwrap()).unwrap();
    assert_eq!(config["max_position_embeddings"], 1024);
    let few = ["--max-batch-tokens", "2", "--max-requests", "1", "--repeats", "1", "--json"];
    let report = program.prints(&[], &[&["profile", "--target", "target"], &few[..]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    let measured = report["contexts"].as_array().unwrap().iter();
    let measured: Vec<[u64; 2]> =
        measured.map(|row| ["context", "tokens"].map(|name| row[name].as_u64().unwrap())).collect();
    assert_eq!(measured, [[256, 1], [256, 8], [1016, 1], [1016, 8]]);
}
