//! An Eagle3 draft from recipe to report and from the command line.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use dspark_runtime::checkpoint::{JsonFields, WeightDtype};
use dspark_runtime::model::{Target, TargetConfig};
use serde_json::{Value, json};

use common::{deepspec, refused, workspace};

/// Six random layers with the quickstart's tokeniser: its own target has too few for an Eagle3 draft.
fn target(root: &Path) -> PathBuf {
    let folder = root.join("target");
    fs::create_dir(&folder).unwrap();
    let quickstart = workspace().join("checkpoints/quickstart-target");
    let text = fs::read_to_string(quickstart.join("config.json")).unwrap();
    let Value::Object(mut fields) = serde_json::from_str(&text).unwrap() else { panic!("no object") };
    for (field, value) in [("num_hidden_layers", 6), ("hidden_size", 32), ("intermediate_size", 48)] {
        fields.insert(field.to_owned(), json!(value));
    }
    let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
    Target::random(config, &Device::flex()).write_into(&folder, WeightDtype::Bf16).unwrap();
    for entry in fs::read_dir(&quickstart).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name();
        if name != "config.json" && name != "model.safetensors" {
            fs::copy(entry.path(), folder.join(name)).unwrap();
        }
    }
    folder
}

fn recipe(root: &Path, target: &Path) -> String {
    let text = format!(
        r#"name = "eagle3"
target = {target:?}
[model]
algorithm = "eagle3"
ttt_length = 3
target_layer_ids = [0, 1, 2, 3, 4]
num_anchors = 8
[train]
lr = 1e-3
steps = 2
global_batch_size = 2
micro_batch_size = 2
[data]
train = ["datasets/quickstart/sums.train.jsonl"]
validation = ["datasets/quickstart/sums.validation.jsonl"]
max_length = 64
[evaluate]
tasks = [{{ name = "sums", path = "datasets/quickstart/sums.evaluate.jsonl" }}]
samples = 2
max_new_tokens = 12
[output]
dir = {output:?}
without_embeddings = true
"#,
        output = root.join("run"),
    );
    let path = root.join("eagle3.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn an_eagle3_draft_goes_through_every_verb() {
    let root = tempfile::tempdir().unwrap();
    let target = target(root.path());
    let recipe = recipe(root.path(), &target);
    let run = deepspec(&["run", &recipe]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&fs::read(root.path().join("run/report.json")).unwrap()).unwrap();
    let task = &report["evaluation"]["tasks"][0];
    assert!(task["rounds"].as_u64().unwrap() > 0 && report["training"]["last"]["loss"].as_f64().unwrap() > 0.0);

    let (target, draft) = (target.display().to_string(), root.path().join("run/draft").display().to_string());
    let models = ["--target", &target, "--draft", &draft];
    let seen = deepspec(&["inspect", &draft, "--target", &target]);
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.status.success() && text.contains("Eagle3") && text.contains("nothing wrong"), "{text}");
    assert!(!text.contains("mask token"), "{text}");

    let out = root.path().join("out").display().to_string();
    let exported = deepspec(&[&["export", "--out", &out, "--dtype", "f32"][..], &models].concat());
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let tasks = ["--task", "datasets/quickstart/sums.evaluate.jsonl", "--samples", "1", "--max-new-tokens", "6"];
    let measured = deepspec(&[&["evaluate", "--target", &target, "--draft", &out][..], &tasks].concat());
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));

    // What such drafts do not have is said.
    refused(&deepspec(&[&["calibrate"][..], &models, &tasks].concat()), &["no confidence head"]);
    let threshold = [&["evaluate", "--confidence-threshold", "0.5"][..], &models, &tasks].concat();
    refused(&deepspec(&threshold), &["confidence"]);
}

#[test]
fn a_recipe_that_does_not_fit_the_target_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let recipe = recipe(root.path(), &target(root.path()));
    let train = |setting: &str| deepspec(&["train", &recipe, "--set", setting]);
    refused(&train("model.target_layer_ids=[0, 1, 2, 3, 5]"), &["target_layer_ids", "final layer 5"]);
    refused(&train("model.markov_rank=8"), &["model.markov_rank", "eagle3"]);
}
