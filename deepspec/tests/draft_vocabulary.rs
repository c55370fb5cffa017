//! Drafts with a vocabulary of their own, from recipe to report and from the command line.

mod common;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use common::{deepspec, refused};

const TARGET: &str = "checkpoints/quickstart-target";
const DATA: &str = "datasets/quickstart/sums.train.jsonl";

/// One step of the quickstart.
fn trained(root: &Path, settings: &[&str]) -> String {
    let run = root.join("run");
    let output = format!("output.dir={:?}", run.display().to_string());
    let mut arguments = vec!["train", "recipes/quickstart.toml", "--set", &output, "--set", "train.steps=1"];
    arguments.extend(["--set", "train.validate_every=0"]);
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let output = deepspec(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    run.join("checkpoints/step-00000001").display().to_string()
}

#[test]
fn a_draft_of_some_tokens_is_trained_inspected_measured_and_written_again() {
    let root = tempfile::tempdir().unwrap();
    let draft = trained(root.path(), &["model.draft_vocab_size=300", "model.markov_head_type=rnn"]);
    let seen = deepspec(&["inspect", &draft, "--target", TARGET]);
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.status.success() && text.contains("nothing wrong"), "{text}");
    let line = text.lines().find(|line| line.trim_start().starts_with("draft vocabulary")).unwrap();
    assert!(line.ends_with(" 300") && text.contains("rnn Markov head"), "{text}");

    let report = root.path().join("report.json").display().to_string();
    let task = "datasets/quickstart/sums.evaluate.jsonl";
    let arguments = ["evaluate", "--target", TARGET, "--draft", &draft, "--task", task, "--samples", "2"];
    let output = deepspec(&[&arguments[..], &["--max-new-tokens", "12", "--json", &report]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert!(report["tasks"][0]["rounds"].as_u64().unwrap() > 0);

    // With tables of its own, for a program that does not take them from the target.
    let out = root.path().join("out").display().to_string();
    assert!(deepspec(&["export", "--draft", &draft, "--target", TARGET, "--out", &out]).status.success());
    let seen = deepspec(&["inspect", &out, "--target", TARGET]);
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stdout));
    // It cannot lose tokens twice.
    let again = root.path().join("again").display().to_string();
    let export = ["export", "--draft", &out, "--target", TARGET, "--out", &again, "--vocabulary-data", DATA];
    refused(
        &deepspec(&[&export[..], &["--draft-vocab-size", "100"]].concat()),
        &["--draft-vocab-size 100", "proposes 300"],
    );
    assert!(!Path::new(&again).exists());

    // Offsets without a configuration that asks for them.
    let config = Path::new(&out).join("config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    fields["draft_vocab_size"] = json!(301);
    fs::write(&config, fields.to_string()).unwrap();
    let seen = deepspec(&["inspect", &out]);
    assert_eq!(seen.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&seen.stdout).contains("d2t"), "{}", String::from_utf8_lossy(&seen.stdout));
}

#[test]
fn a_trained_draft_gives_up_tokens() {
    let root = tempfile::tempdir().unwrap();
    let draft = trained(root.path(), &[]);
    let out = root.path().join("out").display().to_string();
    let export = |size: &str, data: &str| {
        let arguments = ["export", "--draft", &draft, "--target", TARGET, "--out", &out, "--without-embeddings"];
        deepspec(&[&arguments[..], &["--draft-vocab-size", size, "--vocabulary-data", data]].concat())
    };
    refused(&export("5000", DATA), &["--draft-vocab-size 5000", "fewer than 1552"]);
    refused(&export("100", "nowhere.jsonl"), &["nowhere.jsonl"]);
    assert!(export("100", DATA).status.success());
    let seen = deepspec(&["inspect", &out, "--target", TARGET]);
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.status.success() && text.contains("nothing wrong"), "{text}");
    let gguf = root.path().join("draft.gguf").display().to_string();
    let arguments = ["export", "--draft", &draft, "--target", TARGET, "--out", &gguf, "--layout", "gguf"];
    let vocabulary = ["--draft-vocab-size", "100", "--vocabulary-data", DATA];
    refused(&deepspec(&[&arguments[..], &vocabulary].concat()), &["--draft-vocab-size", "--layout deepspec"]);
}

#[test]
fn a_recipe_cannot_ask_for_more_tokens_than_there_are() {
    let root = tempfile::tempdir().unwrap();
    let output = format!("output.dir={:?}", root.path().join("run").display().to_string());
    let arguments = ["train", "recipes/quickstart.toml", "--set", &output, "--set"];
    let train = |setting: &str| deepspec(&[&arguments[..], &[setting]].concat());
    refused(&train("model.draft_vocab_size=1553"), &["model.draft_vocab_size = 1553", "1552 tokens"]);
    refused(&train("model.draft_vocab_size=0"), &["model.draft_vocab_size"]);
    refused(&train("model.markov_head_type=bilinear"), &["markov_head_type", "bilinear", "gated"]);
}
