//! `deepspec sweep`: a grid of runs, each done once.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use common::{deepspec, refused};

/// Two depths, each trained for two steps and measured with two thresholds.
fn sweep(out: &Path, more: &[&str]) -> std::process::Output {
    let out = out.display().to_string();
    let set = [
        "train.steps=2",
        "train.validate_every=0",
        "train.global_batch_size=2",
        "train.micro_batch_size=2",
        "model.num_anchors=4",
        "model.initialize_from_target=false",
        r#"data.train=["datasets/quickstart/sums.train.jsonl"]"#,
        r#"evaluate.tasks=[{name="sums",path="datasets/quickstart/sums.evaluate.jsonl"}]"#,
        "evaluate.samples=2",
        "evaluate.max_new_tokens=8",
    ];
    let set = set.iter().flat_map(|set| ["--set", set]);
    let start = ["sweep", "recipes/quickstart.toml", "--out", &out];
    deepspec(&start.into_iter().chain(set).chain(more.iter().copied()).collect::<Vec<_>>())
}

#[test]
fn a_grid_is_run_compared_and_not_run_again() {
    let root = tempfile::tempdir().unwrap();
    let axes = ["--vary", "model.num_draft_layers=1,2", "--vary", "evaluate.confidence_threshold=0,0.9"];
    let first = sweep(root.path(), &axes);
    let errors = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(first.status.success(), "{errors}");
    // What is only measured differently is trained once.
    assert_eq!(errors.matches("train: already done").count(), 2, "{errors}");
    let report: Value = serde_json::from_slice(&fs::read(root.path().join("sweep.json")).unwrap()).unwrap();
    let points = report["points"].as_array().unwrap();
    let of = |field: &str| points.iter().map(|point| point[field].to_string()).collect::<HashSet<_>>().len();
    assert_eq!((points.len(), of("settings"), of("folder")), (4, 4, 2));
    let parameters = |point: usize| points[point]["training"]["parameters"].as_u64().unwrap();
    assert!(parameters(0) == parameters(1) && parameters(2) > parameters(0));
    let drafted = |point: usize| points[point]["evaluation"]["tasks"][0]["draft_tokens_per_round"].as_f64().unwrap();
    assert!(drafted(0) == 7.0 && drafted(1) < 7.0, "a threshold leaves drafts out: {} {}", drafted(0), drafted(1));
    let table = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(table.contains("num_draft_layers=2 confidence_threshold=0.9"), "{table}");
    for picture in ["conditional_acceptance.svg", "accepted_length.svg", "verify_rate.svg"] {
        let text = fs::read_to_string(root.path().join(picture)).unwrap();
        assert!(text.contains("<svg") && text.contains("num_draft_layers"), "{picture}");
    }

    let again = sweep(root.path(), &axes);
    let errors = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success(), "{errors}");
    for stage in ["train", "export", "evaluate+confidence_threshold=0", "evaluate+confidence_threshold=0.9"] {
        assert!(errors.contains(&format!("{stage}: already done")), "{errors}");
    }
    assert_eq!(errors.matches("already done").count(), 16, "{errors}");
    assert_eq!(String::from_utf8_lossy(&again.stdout), table);
}

#[test]
fn a_grid_that_cannot_be_run_is_refused_before_anything_is_trained() {
    let root = tempfile::tempdir().unwrap();
    let wrong = [
        (["--vary", "model.num_draft_layers=1,1"], "another point has the same folder"),
        (["--vary", "model.num_draft_layers=1,0"], "num_draft_layers"),
        (["--vary", "model.num_draft_layer=1,2"], "num_draft_layers"),
        (["--vary", "output.dir=a,b"], "output.dir"),
        (["--vary", "train.lr"], "KEY=VALUE"),
    ];
    for (axis, word) in wrong {
        refused(&sweep(root.path(), &axis), &[word]);
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}
