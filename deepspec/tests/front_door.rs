//! `deepspec doctor`, `deepspec completions` and `deepspec man` as programs.

#[path = "../../dspark-runtime/tests/common/front_door.rs"]
mod common;

use std::fs;
use std::path::Path;

use common::{Program, copy_target, has_problem};

fn deepspec() -> Program {
    Program::new(env!("CARGO_BIN_EXE_deepspec"))
}

#[test]
fn doctor_describes_the_machine_and_names_what_is_set_wrongly() {
    common::doctor(&deepspec());
}

/// Targets of recipes are found, missing or damaged; a damaged one and a recipe that cannot be read are named.
#[test]
fn doctor_checks_the_targets_of_recipes() {
    let program = deepspec();
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.toml");
    let quickstart = fs::read_to_string(quickstart).unwrap();
    fs::create_dir(program.path("recipes")).unwrap();
    let recipe = |name: &str, target: &str| {
        let text = quickstart.replace("\"checkpoints/quickstart-target\"", &format!("{target:?}"));
        fs::write(program.path("recipes").join(name), text).unwrap();
    };
    for folder in ["whole", "cut", "garbled", "wordless"] {
        copy_target(&program.path(folder));
        recipe(&format!("{folder}.toml"), folder);
    }
    recipe("again.toml", "whole");
    recipe("missing.toml", "nowhere/to-be-found");
    let diagnosis = program.diagnosis(&[]);
    let targets = |state: [&str; 5]| {
        let names = ["whole", "cut", "garbled", "nowhere/to-be-found", "wordless"];
        names.iter().zip(state).map(|(name, state)| format!("{name}: {state}")).collect::<Vec<_>>()
    };
    assert_eq!(
        diagnosis["facts"]["targets_of_recipes"],
        serde_json::json!(targets(["found", "found", "found", "not found", "found"]))
    );

    let weights = program.path("cut/model.safetensors");
    let length = fs::metadata(&weights).unwrap().len();
    fs::File::options().write(true).open(&weights).unwrap().set_len(length / 2).unwrap();
    fs::write(program.path("garbled/config.json"), "{\"architectures\": [").unwrap();
    fs::remove_file(program.path("wordless/tokenizer.json")).unwrap();
    fs::write(program.path("recipes/not-toml.toml"), "target = [").unwrap();
    let diagnosis = program.diagnosis(&[]);
    assert_eq!(
        diagnosis["facts"]["targets_of_recipes"],
        serde_json::json!(targets(["found", "damaged", "damaged", "not found", "damaged"]))
    );
    has_problem(&diagnosis, &["cut", "model.safetensors", "download it again"]);
    has_problem(&diagnosis, &["garbled", "config.json", "not valid JSON"]);
    has_problem(&diagnosis, &["wordless", "tokenizer.json"]);
    has_problem(&diagnosis, &["recipes/not-toml.toml"]);
    let text = program.prints(&[], &["doctor"]);
    assert!(text.contains("cut: damaged") && text.contains("problem: a recipe's target"), "{text}");
}

#[test]
fn every_shell_completes_every_verb() {
    common::completions(&deepspec());
}

#[test]
fn every_verb_has_a_man_page_with_its_options() {
    common::man(&deepspec(), "deepspec");
}
