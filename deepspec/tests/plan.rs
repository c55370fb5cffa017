//! `deepspec train --plan`.

mod common;

use std::fs;
use std::path::Path;

use dspark_runtime::checkpoint::WeightDtype;
use serde_json::Value;

use common::drafts::{TARGET, edit_json, save, shape};
use common::{deepspec, exits_with, refused, workspace};

/// The quickstart's plan with some settings.
fn plan(settings: &[&str]) -> Value {
    let mut arguments = vec!["train", "recipes/quickstart.toml", "--plan", "--json"];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let output = deepspec(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(plan: &Value, path: &str) -> f64 {
    plan.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} is not in {plan}"))
}

/// The quickstart's target without its weights.
fn without_weights(folder: &Path) -> String {
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(workspace().join(TARGET).join(file), folder.join(file)).unwrap();
    }
    format!("target={:?}", folder.display().to_string())
}

#[test]
fn weights_are_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (of_shapes, of_target) = (plan(&[&without_weights(folder.path())]), plan(&[]));
    // Embedding, five layers of q, k, v, o, three of the MLP and four norms, and the last norm.
    let layer = 192 * (192 + 64 + 64 + 192) + 3 * 192 * 448 + 2 * 192 + 2 * 32;
    assert_eq!(number(&of_shapes, "/parameters/target"), f64::from(1552 * 192 + 5 * layer + 192));
    assert_eq!(number(&of_shapes, "/steps"), 400.0);
    for same in ["/parameters", "/samples", "/tokens", "/largest", "/operations"] {
        assert_eq!(of_shapes.pointer(same), of_target.pointer(same), "{same}");
    }
    assert!(number(&of_shapes, "/seconds") > 0.0);
    // This program with its data, weights and moments are there while the draft's pass and its loss are.
    let together = ["process", "target", "draft", "optimizer", "activations", "vocabulary"];
    let together = together.map(|part| number(&of_shapes, &format!("/memory/{part}")));
    assert!(together[0] > 4e6, "{} bytes of a process", together[0]);
    assert!(number(&of_shapes, "/memory/peak") > together.iter().sum::<f64>());
}

#[test]
fn more_takes_more() {
    let usual = plan(&[]);
    let bytes = |plan: &Value, part: &str| number(plan, &format!("/memory/{part}"));
    let few = plan(&["model.num_anchors=16"]);
    assert!(bytes(&few, "activations") < 0.5 * bytes(&usual, "activations"));
    assert!(number(&few, "/operations") < 0.7 * number(&usual, "/operations"));
    let small = plan(&["train.micro_batch_size=2"]);
    assert!(bytes(&small, "teacher") < 0.5 * bytes(&usual, "teacher"));
    // Several micro-batches, whose gradients are summed.
    assert_eq!(bytes(&small, "gradients"), 2.0 * bytes(&usual, "gradients"));
    assert_eq!(number(&small, "/operations"), number(&usual, "/operations"));
    let packed = plan(&["train.micro_batch_tokens=512"]);
    assert!(number(&packed, "/largest/tokens") <= 512.0);
    // What is multiplied is there in bf16 too: both heads and the Markov head's W2.
    let narrow = plan(&["train.compute=bf16"]);
    let copies = bytes(&narrow, "vocabulary") - bytes(&usual, "vocabulary");
    assert_eq!(copies, f64::from(2 * 1552 * (192 + 192 + 64)));
    let long = plan(&["train.steps=4000"]);
    let ratio = number(&long, "/operations") / number(&usual, "/operations");
    assert!((ratio - 10.0).abs() < 0.2, "{ratio}");
}

/// Tight bounds are for benchmarks; this one finds what is forgotten.
#[test]
fn a_training_takes_about_what_was_planned() {
    let run = tempfile::tempdir().unwrap();
    let settings = ["train.steps=4", "train.validate_every=0", "train.checkpoint_every=4"];
    let planned = number(&plan(&settings), "/memory/peak");
    let output = format!("output.dir={:?}", run.path().display().to_string());
    let mut arguments = vec!["train", "recipes/quickstart.toml", "--json", "--set", &output];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let output = deepspec(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ratio = planned / number(&report, "/peak_memory");
    assert!(ratio > 0.75 && ratio < 1.33, "planned {planned}, {ratio} of what it took");
}

#[test]
fn what_does_not_fit_is_said_to() {
    let folder = tempfile::tempdir().unwrap();
    let target = without_weights(folder.path());
    edit_json(&folder.path().join("config.json"), |config| {
        config["hidden_size"] = 60_000.into();
        config["intermediate_size"] = 400_000.into();
    });
    let output = deepspec(&["train", "recipes/quickstart.toml", "--plan", "--set", &target]);
    // The models alone are too large: smaller batches are no advice.
    exits_with(&output, 1, &["does not fit into memory", "Batch settings do not help", "model.num_draft_layers"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("micro_batch"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("peak") && printed.contains("tokens/s"), "{printed}");
    let usual = deepspec(&["train", "recipes/quickstart.toml", "--plan"]);
    assert!(usual.status.success() && !String::from_utf8_lossy(&usual.stderr).contains("does not fit"));
    // What the smallest micro-batch takes is part of what all take.
    let usual = plan(&[]);
    assert!(number(&usual, "/least") < number(&usual, "/memory/peak"));
    // And what cannot be at all.
    edit_json(&folder.path().join("config.json"), |config| config["vocab_size"] = "many".into());
    let output = deepspec(&["train", "recipes/quickstart.toml", "--plan", "--set", &target]);
    refused(&output, &["vocab_size", "config.json"]);
}

#[test]
fn the_draft_to_start_from_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let draft = save(&folder.path().join("draft"), &shape(), WeightDtype::F32, false);
    let from = |settings: &[&str], draft: &str| {
        let mut arguments = vec!["train", "recipes/quickstart.toml", "--plan", "--from", draft];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        deepspec(&arguments)
    };
    let draft = draft.to_str().unwrap();
    let shape = ["model.block_size=4", "model.num_draft_layers=2", "model.markov_rank=8"];
    let output = from(&shape, draft);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    refused(&from(&shape[..1], draft), &["train.from", "model.num_draft_layers", "2"]);
    refused(&from(&shape, "no/such/draft"), &["train.from", "no/such/draft"]);
}
