//! An Eagle3 draft from recipe to report and from the command line.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use deepspec::replay::{Stage, read_replay};
use dspark_runtime::checkpoint::{JsonFields, WeightDtype};
use dspark_runtime::model::{Draft, Target, TargetConfig, TargetSegment};
use serde_json::{Value, json};

use common::drafts::{GreedyBlock, copy, edit_values, read_json};
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
    Target::random(config, 1, &Device::flex()).write_into(&folder, WeightDtype::Bf16).unwrap();
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
    assert!(!text.contains("mask token") && !text.contains("block convention"), "{text}");
    assert!(text.contains("it knows no model called `Qwen3Eagle3Model`"), "{text}");

    let out = root.path().join("out").display().to_string();
    let exported = deepspec(&[&["export", "--out", &out, "--dtype", "f32"][..], &models].concat());
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let tasks = ["--task", "datasets/quickstart/sums.evaluate.jsonl", "--samples", "1", "--max-new-tokens", "6"];
    let measured = deepspec(&[&["evaluate", "--target", &target, "--draft", &out][..], &tasks].concat());
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));

    // Both folders repeat themselves, and a changed weight is found where it first tells.
    for folder in [&draft, &out] {
        let replayed = deepspec(&["inspect", folder, "--replay", "--target", &target]);
        let text = String::from_utf8_lossy(&replayed.stdout).into_owned();
        assert!(replayed.status.success() && text.contains("the same on"), "{text}");
    }
    decodes_as_the_bundle_says(Path::new(&target), Path::new(&out));
    for (tensor, stage, place) in [
        ("fc.weight", "context", "position 0"),
        ("layers.0.hidden_norm.weight", "layers", "draft layer 0, slot 0"),
        ("norm.weight", "hidden", "slot 0"),
    ] {
        let spoiled = root.path().join("spoiled");
        copy(Path::new(&out), &spoiled);
        edit_values(&spoiled.join("model.safetensors"), tensor, |index, value| {
            value * 1.2 + 0.1 * (index % 3) as f32
        });
        let replayed = deepspec(&["inspect", spoiled.to_str().unwrap(), "--replay", "--target", &target, "--json"]);
        let findings: Value = serde_json::from_slice(&replayed.stdout).unwrap();
        let difference = &findings["replay_difference"];
        assert_eq!(difference["stage"], stage, "{findings}");
        assert!(difference["place"].as_str().unwrap().starts_with(place), "{findings}");
    }

    // In the layout that vLLM reads it computes the same, and it comes back as it was.
    let other = root.path().join("speculators").display().to_string();
    let layout = ["export", "--layout", "speculators", "--verifier", "owner/name", "--out", &other, "--dtype", "f32"];
    let exported = deepspec(&[&layout[..], &models].concat());
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let seen = deepspec(&["inspect", &other, "--target", &target, "--replay"]);
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(
        seen.status.success() && text.contains("the same on") && text.contains("vLLM           loads it"),
        "{text}"
    );
    let back = root.path().join("back").display().to_string();
    let again = ["export", "--target", &target, "--draft", &other, "--out", &back, "--dtype", "f32"];
    assert!(deepspec(&again).status.success());
    let [before, after] = [&out, &back].map(Path::new);
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(before) == weights(after));
    let (ours, first) = (read_json(&after.join("config.json")), read_json(&before.join("config.json")));
    for (field, value) in first.as_object().unwrap() {
        assert_eq!(&ours[field], value, "{field}");
    }

    // What such drafts do not have is said.
    refused(&deepspec(&[&["calibrate"][..], &models, &tasks].concat()), &["no confidence head"]);
    let threshold = [&["evaluate", "--confidence-threshold", "0.5"][..], &models, &tasks].concat();
    refused(&deepspec(&threshold), &["confidence"]);
}

/// A bundle's block is unrolled as in training, anew for every drafted token; decoding goes on from its own last row.
fn decodes_as_the_bundle_says(target: &Path, draft: &Path) {
    let target = Target::load(target, &Device::flex()).unwrap();
    let bundle = read_replay(draft).unwrap();
    assert_eq!(bundle.convention.lookahead, 1);
    let draft = Draft::load(draft, &target).unwrap();
    for case in &bundle.cases {
        let ids = &case.token_ids[..case.anchor_position];
        let output = target.forward(&mut [TargetSegment { ids, cache: None }], &draft.config().target_layer_ids);
        let mut context = draft.new_context(ids.len() + 8);
        draft.extend_context(&mut context, output.features_nf.unwrap(), &case.token_ids[1..=case.anchor_position]);
        let anchor = case.token_ids[case.anchor_position];
        let block = GreedyBlock::draft(&draft, &mut context, anchor);
        let close = |a: &[f32], stage: Stage| {
            let b = &case.stage(stage).unwrap().values;
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()))
        };
        // What a slot leaves, before the final norm.
        assert!(close(&block.hidden, Stage::Layers));
        assert!(close(&block.logits.concat(), Stage::BaseLogits));
        assert_eq!(block.tokens, case.drafted);
        assert!(case.stage(Stage::BiasedLogits).is_none() && case.stage(Stage::ConfidenceLogits).is_none());
    }
}

#[test]
fn a_recipe_that_does_not_fit_the_target_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let recipe = recipe(root.path(), &target(root.path()));
    let train = |setting: &str| deepspec(&["train", &recipe, "--set", setting]);
    refused(&train("model.target_layer_ids=[0, 1, 2, 3, 5]"), &["target_layer_ids", "final layer 5"]);
    refused(&train("model.markov_rank=8"), &["model.markov_rank", "eagle3"]);
}

#[test]
fn an_eagle3_draft_is_trained_further() {
    let root = tempfile::tempdir().unwrap();
    let recipe = recipe(root.path(), &target(root.path()));
    let first = deepspec(&["train", &recipe]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let first = root.path().join("run/checkpoints/step-00000002").display().to_string();
    let output = format!("output.dir={:?}", root.path().join("further"));
    let train = |setting: &str| deepspec(&["train", &recipe, "--from", &first, "--set", &output, "--set", setting]);
    let further = train("model.step_loss_decay=0.5");
    assert!(further.status.success(), "{}", String::from_utf8_lossy(&further.stderr));
    let config = read_json(&root.path().join("further/checkpoints/step-00000002/config.json"));
    assert_eq!((&config["step_loss_decay"], &config["ttt_length"]), (&json!(0.5), &json!(3)));
    assert!(config.get("num_anchors").is_none(), "{config}");
    refused(&train("model.ttt_length=4"), &["train.from", "model.ttt_length is 4, but the draft's is 3"]);
    let dspark = "model={num_draft_layers = 1, target_layer_ids = [0, 1, 2, 3, 4], num_anchors = 8, markov_rank = 8}";
    refused(&train(dspark), &["train.from", "model.algorithm is dspark, but the draft's is eagle3"]);
}
