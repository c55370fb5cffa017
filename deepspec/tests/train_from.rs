//! Training that goes on from a draft that exists.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use dspark_runtime::checkpoint::{WeightDtype, Weights};
use serde_json::json;

use common::drafts::{TARGET, edit_json, edit_values, read_json, save, shape};
use common::{deepspec, refused, workspace};

/// Settings of the quickstart that describe [`shape`].
const SHAPE: [&str; 4] =
    ["model.block_size=4", "model.num_draft_layers=2", "model.markov_rank=8", "model.num_anchors=16"];

fn train(verb: &str, run: &Path, settings: &[&str], more: &[&str]) -> Output {
    let output = format!("output.dir={:?}", run.display().to_string());
    let mut arguments = vec![verb, "recipes/quickstart.toml", "--set", &output];
    let small = ["train.steps=10", "train.validate_every=0", "train.global_batch_size=2", "train.micro_batch_size=2"];
    let evaluate = ["evaluate.samples=1", "evaluate.max_new_tokens=8", "train.lr=1e-3"];
    for setting in small.iter().chain(&evaluate).chain(&SHAPE).chain(settings) {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(more);
    deepspec(&arguments)
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn export(draft: &Path, out: &Path, more: &[&str]) {
    let arguments =
        ["export", "--draft", draft.to_str().unwrap(), "--target", TARGET, "--out", out.to_str().unwrap()];
    succeeded(&deepspec(&[&arguments[..], more].concat()));
}

fn values(folder: &Path, name: &str) -> Vec<f32> {
    let weights = Weights::open(folder).unwrap();
    let shape = weights.shape(name).unwrap().to_vec();
    weights.values(name, &shape).unwrap()
}

fn distance(a: &Path, b: &Path, name: &str) -> f32 {
    values(a, name).iter().zip(values(b, name)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Export, read, train ten steps, export, read: in both layouts, with and without tables.
#[test]
fn an_exported_draft_is_trained_further_and_exported_again() {
    let root = tempfile::tempdir().unwrap();
    let first = save(&root.path().join("first"), &shape(), WeightDtype::F32, false);
    for (index, layout) in
        [&["--dtype", "f32"][..], &["--without-embeddings"], &["--layout", "speculators"]].into_iter().enumerate()
    {
        let exported = root.path().join(format!("exported-{index}"));
        export(&first, &exported, layout);
        let run = root.path().join(format!("run-{index}"));
        succeeded(&train("train", &run, &[], &["--from", exported.to_str().unwrap()]));
        let trained = run.join("checkpoints/step-00000010");
        // Ten small steps away from where it began, and nowhere near another beginning.
        let moved = distance(&first, &trained, "layers.0.self_attn.q_proj.weight");
        assert!(moved > 1e-5 && moved < 0.05, "{moved}");
        let random = root.path().join(format!("random-{index}"));
        succeeded(&train("train", &random, &["model.initialize_from_target=false"], &[]));
        let elsewhere =
            distance(&first, &random.join("checkpoints/step-00000010"), "layers.0.self_attn.q_proj.weight");
        assert!(elsewhere > 2.0 * moved, "{elsewhere} {moved}");
        assert_eq!(read_json(&trained.join("config.json"))["num_anchors"], 16);
        let again = root.path().join(format!("again-{index}"));
        export(&trained, &again, layout);
        let seen = deepspec(&["inspect", again.to_str().unwrap(), "--replay", "--target", TARGET]);
        assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stdout));
    }
}

#[test]
fn a_recipe_can_name_it_and_a_run_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let first = save(&root.path().join("first"), &shape(), WeightDtype::F32, true);
    let from = format!("train.from={:?}", first.display().to_string());
    let run = root.path().join("run");
    succeeded(&train("run", &run, &[&from, "train.steps=2"], &[]));
    let output = train("run", &run, &[&from, "train.steps=2"], &[]);
    succeeded(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("train: already done"));
    // Another draft under the same name is another training.
    edit_values(&first.join("model.safetensors"), "norm.weight", |_, value| value + 0.25);
    let output = train("train", &run, &[&from, "train.steps=2"], &["--resume"]);
    refused(&output, &["made with other settings"]);
}

#[test]
fn a_draft_of_another_shape_is_refused_by_the_field() {
    let root = tempfile::tempdir().unwrap();
    let first = save(&root.path().join("first"), &shape(), WeightDtype::F32, true);
    let run = root.path().join("run");
    let path: PathBuf = first.clone();
    for (setting, field, recipe, found) in [
        ("model.block_size=5", "block_size", "5", "4"),
        ("model.num_draft_layers=1", "num_draft_layers", "1", "2"),
        ("model.target_layer_ids=[0, 1]", "target_layer_ids", "[0, 1]", "[0, 2]"),
        ("model.mask_token_id=3", "mask_token_id", "3", "1536"),
        ("model.markov_rank=9", "markov_rank", "9", "8"),
        ("model.markov_head_type=rnn", "markov_head_type", "rnn", "vanilla"),
        ("model.enable_confidence_head=false", "enable_confidence_head", "false", "true"),
        ("model.confidence_head_with_markov=false", "confidence_head_with_markov", "false", "true"),
        ("model.draft_vocab_size=100", "draft_vocab_size", "100", "1552"),
    ] {
        let output = train("train", &run, &[setting], &["--from", path.to_str().unwrap()]);
        refused(&output, &["train.from", &format!("model.{field} is {recipe}, but the draft's is {found}")]);
    }
    let missing = root.path().join("nowhere");
    refused(
        &train("train", &run, &[], &["--from", missing.to_str().unwrap()]),
        &["train.from", "nowhere", "config.json"],
    );
    edit_json(&first.join("config.json"), |config| config["num_target_layers"] = json!(9));
    refused(&train("train", &run, &[], &["--from", path.to_str().unwrap()]), &["train.from", "num_target_layers"]);
    edit_json(&first.join("config.json"), |config| config["num_target_layers"] = json!(5));
    edit_values(&first.join("model.safetensors"), "embed_tokens.weight", |_, value| value + 1.0);
    refused(
        &train("train", &run, &[], &["--from", path.to_str().unwrap()]),
        &["train.from", "differs from the target's"],
    );
    assert!(!run.join("checkpoints").exists() || fs::read_dir(run.join("checkpoints")).unwrap().count() == 0);
    assert!(workspace().join(TARGET).is_dir());
}
