//! `deepspec prepare` as a program.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{deepspec, refused, workspace};

fn prepare(source: &Path, out: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["prepare", source.to_str().unwrap(), "--out", out.to_str().unwrap()];
    arguments.extend(more);
    deepspec(&arguments)
}

#[test]
fn an_output_is_data_for_a_training_and_a_second_run_has_nothing_to_do() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let source = workspace().join("datasets/quickstart/chat.train.jsonl");
    let first = prepare(&source, &out, &["--validation", "0.1"]);
    let text = String::from_utf8_lossy(&first.stdout);
    assert!(first.status.success() && text.contains("rows for training"), "{text}{first:?}");
    let second = prepare(&source, &out, &["--validation", "0.1"]);
    assert!(second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("nothing to do"));
    let [train, validation] = ["train", "validation"].map(|side| format!("{:?}", out.join(side).to_str().unwrap()));
    let plan = deepspec(&[
        "train",
        "recipes/quickstart.toml",
        "--plan",
        "--set",
        &format!("data.train=[{train}]"),
        "--set",
        &format!("data.validation=[{validation}]"),
        "--set",
        &format!("output.dir={:?}", root.path().join("run").to_str().unwrap()),
    ]);
    let text = String::from_utf8_lossy(&plan.stderr);
    assert!(text.contains("0 malformed"), "{text}");
}

#[test]
fn a_killed_preparation_leaves_nothing_that_looks_complete() {
    let root = tempfile::tempdir().unwrap();
    let (source, out) = (root.path().join("rows.jsonl"), root.path().join("out"));
    let mut rows = String::new();
    for id in 0..100_000 {
        let _ = writeln!(rows, "{{\"prompt\": \"question {id}\", \"response\": \"{}\"}}", "answer ".repeat(20));
    }
    fs::write(&source, rows).unwrap();
    let hidden = || {
        let mut entries = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap());
        entries.find(|entry| entry.file_name().to_string_lossy().ends_with(".partial"))
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_deepspec"))
        .args(["prepare", "--repetition", "1", source.to_str().unwrap(), "--out", out.to_str().unwrap()])
        .spawn()
        .unwrap();
    while hidden().is_none_or(|folder| !folder.path().join("train/train-00000.parquet").exists()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before a file was begun");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists());
    let again = prepare(&source, &out, &["--repetition", "1"]);
    assert!(again.status.success(), "{again:?}");
    assert!(hidden().is_none());
    assert!(out.join("manifest.json").is_file());
}

#[test]
fn wrong_arguments_are_named() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("data/rows.jsonl");
    fs::create_dir(source.parent().unwrap()).unwrap();
    fs::write(&source, "{\"prompt\": \"q\", \"response\": \"a\"}\n").unwrap();
    let out = root.path().join("out");
    for (more, words) in [
        (["--turns", "3"], "expected MIN..MAX"),
        (["--shard", "4/4"], "INDEX from 0 to COUNT - 1"),
        (["--tokens", "1..2"], "--target"),
        (["--weight", "x"], "--weight x: expected NAME=W"),
        (["--weight", "x=1"], "there is no source of this name"),
        (["--near-duplicates", "0.2"], "0.5 to 0.95"),
        (["--validation", "1"], "below 1"),
    ] {
        refused(&prepare(&source, &out, &more), &[words]);
    }
    refused(&prepare(source.parent().unwrap(), &root.path().join("data/out"), &[]), &["lies in the source"]);
    refused(&prepare(&root.path().join("gone.jsonl"), &out, &[]), &["no such file or folder"]);
    assert!(!out.exists());
}
