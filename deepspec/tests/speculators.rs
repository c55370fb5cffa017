//! `deepspec export --layout speculators`, and reading such drafts. That the package itself computes the same is shown by
//! `benchmarks/speculators_peer.py`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{DSparkConfig, Draft, DraftKind, DraftShape, Sliding};
use safetensors::Dtype;
use serde_json::{Value, json};

use common::drafts::{GreedyBlock, TARGET, dspark, edit_json, edit_tensors, read_json, save, shape, target};
use common::{deepspec, refused};

fn export(root: &Path, draft: &Path, name: &str, more: &[&str]) -> PathBuf {
    let out = root.join(name);
    let arguments =
        ["export", "--draft", draft.to_str().unwrap(), "--target", TARGET, "--out", out.to_str().unwrap()];
    let output = deepspec(&[&arguments[..], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// What evaluating gives that does not depend on time.
fn figures(draft: &Path) -> Value {
    let task = "datasets/quickstart/sums.evaluate.jsonl";
    let arguments = ["evaluate", "--target", TARGET, "--draft", draft.to_str().unwrap(), "--task", task];
    let small = ["--samples", "2", "--max-new-tokens", "12", "--temperature", "0", "--no-plain", "--json", "-"];
    let output = deepspec(&[&arguments[..], &small].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let task = &report["tasks"][0];
    json!([task["rounds"], task["new_tokens"], task["accepted_length"], task["conditional_acceptance"]])
}

#[test]
fn the_layout_is_what_the_package_reads_and_comes_back_whole() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let options = ["--layout", "speculators", "--dtype", "f32", "--verifier", "owner/name"];
    let out = export(root.path(), &draft, "out", &options);
    let config = read_json(&out.join("config.json"));
    for (field, value) in [
        ("speculators_model_type", json!("dspark")),
        ("aux_hidden_state_layer_ids", json!([1, 3])),
        ("draft_vocab_size", json!(1552)),
        ("sample_from_anchor", json!(true)),
        ("block_size", json!(4)),
        ("tie_word_embeddings", json!(false)),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
    assert_eq!(config["speculators_config"]["verifier"]["name_or_path"], "owner/name");
    assert_eq!(config["speculators_config"]["verifier"]["architectures"], json!(["Qwen3ForCausalLM"]));
    assert_eq!(config["speculators_config"]["proposal_methods"][0]["speculative_tokens"], 4);
    assert_eq!(config["transformer_layer_config"]["num_hidden_layers"], 2);
    assert!(config.get("target_layer_ids").is_none() && config.get("hidden_size").is_none());

    // The same numbers, and the same configuration after a way back.
    assert_eq!(figures(&out), figures(&draft));
    let back = export(root.path(), &out, "back", &["--dtype", "f32", "--without-embeddings"]);
    assert!(fs::read(back.join("model.safetensors")).unwrap() == fs::read(draft.join("model.safetensors")).unwrap());
    let (ours, before) = (read_json(&back.join("config.json")), read_json(&draft.join("config.json")));
    for (field, value) in before.as_object().unwrap() {
        assert_eq!(&ours[field], value, "{field}");
    }
    let seen = deepspec(&["inspect", out.to_str().unwrap(), "--target", TARGET]);
    let text = String::from_utf8_lossy(&seen.stdout);
    assert!(seen.status.success() && text.contains("nothing wrong") && text.contains("speculators"), "{text}");
}

#[test]
fn a_draft_of_some_tokens_brings_maps_and_its_head() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let fewer = ["--draft-vocab-size", "300", "--vocabulary-data", "datasets/quickstart/sums.train.jsonl"];
    let layout = ["--layout", "speculators", "--without-embeddings"];
    let out = export(root.path(), &draft, "out", &[&layout[..], &fewer].concat());
    edit_tensors(&out.join("model.safetensors"), |all| {
        assert_eq!((all["d2t"].0, all["t2d"].0), (Dtype::I64, Dtype::BOOL));
        assert_eq!((all["t2d"].2.len(), all["t2d"].2.iter().filter(|flag| **flag == 1).count()), (1552, 300));
        let offsets: Vec<i64> =
            all["d2t"].2.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
        let tokens = offsets.iter().enumerate().map(|(index, offset)| index + *offset as usize);
        assert!(tokens.into_iter().all(|token| all["t2d"].2[token] == 1));
        assert_eq!(all["lm_head.weight"].1, [300, 192]);
        assert!(!all.contains_key("embed_tokens.weight"));
    });
    let seen = deepspec(&["inspect", out.to_str().unwrap(), "--target", TARGET, "--replay"]);
    let text = String::from_utf8_lossy(&seen.stdout);
    assert!(seen.status.success(), "{text}");
}

/// A draft comes back whole from SpecForge's layout, which has no drafts with windows and none without a Markov head.
#[test]
fn the_layout_of_specforge_comes_back_whole() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let out = export(root.path(), &draft, "out", &["--layout", "specforge", "--dtype", "f32"]);
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["architectures"], json!(["DSparkDraftModel"]));
    assert_eq!(config["dflash_config"]["mask_token_id"], 1536);
    assert_eq!(figures(&out), figures(&draft));
    let back = export(root.path(), &out, "back", &["--dtype", "f32", "--without-embeddings"]);
    assert!(fs::read(back.join("model.safetensors")).unwrap() == fs::read(draft.join("model.safetensors")).unwrap());
    let (ours, before) = (read_json(&back.join("config.json")), read_json(&draft.join("config.json")));
    assert_eq!(ours, before);
    let seen = deepspec(&["inspect", out.to_str().unwrap(), "--target", TARGET, "--replay"]);
    let text = String::from_utf8_lossy(&seen.stdout);
    assert!(seen.status.success() && text.contains("nothing wrong"), "{text}");
    let sliding = Some(Sliding { window: 3, layers: vec![true, false], causal: true });
    for own in [DSparkConfig { sliding, ..dspark() }, DSparkConfig { markov_rank: 0, ..dspark() }] {
        let own = DSparkConfig { confidence_head_with_markov: false, ..own };
        let other = DraftShape { kind: DraftKind::DSpark(own), ..shape() };
        let draft = save(&root.path().join("other"), &other, WeightDtype::F32, false);
        let arguments =
            ["export", "--draft", draft.to_str().unwrap(), "--target", TARGET, "--layout", "specforge", "--out"];
        let out = root.path().join("refused");
        refused(&deepspec(&[&arguments[..], &[out.to_str().unwrap()]].concat()), &["SpecForge"]);
        assert!(!out.exists());
        fs::remove_dir_all(draft).unwrap();
    }
}

/// A draft with a window drafts the same in both layouts, and another draft without it.
#[test]
fn windows_survive_the_way_through_the_layout() {
    let root = tempfile::tempdir().unwrap();
    let sliding = Some(Sliding { window: 3, layers: vec![true, false], causal: true });
    let windows = DraftShape { kind: DraftKind::DSpark(DSparkConfig { sliding, ..dspark() }), ..shape() };
    let draft = save(&root.path().join("draft"), &windows, WeightDtype::F32, false);
    let options = ["--layout", "speculators", "--dtype", "f32", "--verifier", "owner/name"];
    let out = export(root.path(), &draft, "out", &options);
    let config = read_json(&out.join("config.json"));
    let layers = &config["transformer_layer_config"];
    assert_eq!(config["sliding_window_non_causal"], false);
    assert_eq!(layers["layer_types"], json!(["sliding_attention", "full_attention"]));
    assert_eq!((&layers["sliding_window"], &layers["use_sliding_window"]), (&json!(3), &json!(true)));
    assert_eq!(figures(&out), figures(&draft));
    let seen = deepspec(&["inspect", out.to_str().unwrap(), "--target", TARGET, "--replay"]);
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stdout));
    let back = export(root.path(), &out, "back", &["--dtype", "f32", "--without-embeddings"]);
    let (ours, before) = (read_json(&back.join("config.json")), read_json(&draft.join("config.json")));
    for (field, value) in before.as_object().unwrap() {
        assert_eq!(&ours[field], value, "{field}");
    }
    let without = root.path().join("without");
    fs::create_dir(&without).unwrap();
    for entry in fs::read_dir(&draft).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        fs::copy(&entry, without.join(entry.file_name().unwrap())).unwrap();
    }
    edit_json(&without.join("config.json"), |config| {
        config["layer_types"] = json!(["full_attention", "full_attention"]);
        config["use_sliding_window"] = json!(false);
    });
    let confidences = |folder: &Path| -> Vec<u32> {
        let draft = Draft::load(folder, &target()).unwrap();
        let mut context = draft.new_context(32);
        let features = Tensor::<2>::ones([20, draft.config().feature_width()], &Device::flex()).cumsum(0);
        draft.extend_context(&mut context, features, &[]);
        let block = GreedyBlock::draft(&draft, &mut context, 7);
        block.confidence_logits.iter().map(|logit| logit.to_bits()).collect()
    };
    assert_ne!(confidences(&without), confidences(&draft));
}

/// Windows are what the package trains by default. A file that says that layers are sliding and windows are off is refused: what
/// it means depends on its reader.
#[test]
fn windows_that_are_off_and_used_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let out = export(root.path(), &draft, "out", &["--layout", "speculators"]);
    edit_json(&out.join("config.json"), |config| {
        let layers = &mut config["transformer_layer_config"];
        layers["layer_types"] = json!(["sliding_attention", "sliding_attention"]);
        layers["sliding_window"] = json!(16);
    });
    for target in [&["--target", TARGET][..], &[]] {
        let seen = deepspec(&[&["inspect", out.to_str().unwrap()][..], target].concat());
        let text = String::from_utf8_lossy(&seen.stdout);
        assert_eq!(seen.status.code(), Some(2), "{text}");
        assert!(text.contains("WRONG: ") && text.contains("`use_sliding_window`"), "{text}");
        assert!(text.contains("its layers attend to windows"), "{text}");
    }
    let again = root.path().join("again");
    let arguments =
        ["export", "--draft", out.to_str().unwrap(), "--target", TARGET, "--out", again.to_str().unwrap()];
    refused(&deepspec(&arguments), &["config.json", "`use_sliding_window`", "sliding"]);
}

/// The package does not write how many layers the target has.
#[test]
fn a_draft_of_the_package_is_read_for_its_target() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let out = export(root.path(), &draft, "out", &["--layout", "speculators"]);
    edit_json(&out.join("config.json"), |config| {
        let fields = config.as_object_mut().unwrap();
        ["num_target_layers", "num_anchors"].iter().for_each(|name| drop(fields.remove(*name)));
    });
    edit_tensors(&out.join("model.safetensors"), |all| {
        let norm = all["norm.weight"].clone();
        all.insert("verifier_norm.weight".into(), norm);
    });
    let seen = deepspec(&["inspect", out.to_str().unwrap(), "--target", TARGET, "--replay"]);
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stdout));
    // Alone it is described, not refused.
    let seen = deepspec(&["inspect", out.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&seen.stdout);
    assert!(seen.status.success() && text.contains("MIND: ") && text.contains("num_target_layers"), "{text}");
    // The other convention is no draft for here, whoever wrote it.
    edit_json(&out.join("config.json"), |config| config["sample_from_anchor"] = json!(false));
    let again = root.path().join("again");
    let arguments =
        ["export", "--draft", out.to_str().unwrap(), "--target", TARGET, "--out", again.to_str().unwrap()];
    refused(&deepspec(&arguments), &["config.json", "`sample_from_anchor`"]);
}

/// A DFlash draft with a Markov head of zeros drafts what it drafted before, in both layouts.
#[test]
fn a_markov_head_of_zeros_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let kind = DSparkConfig { markov_rank: 0, enable_confidence_head: false, ..DSparkConfig::new(1536, 8) };
    let dflash = DraftShape { kind: DraftKind::DSpark(kind), ..shape() };
    let draft = save(&root.path().join("draft"), &dflash, WeightDtype::F32, false);
    let before = figures(&draft);
    for layout in ["deepspec", "speculators"] {
        let options = ["--layout", layout, "--dtype", "f32", "--zero-markov-head", "--verifier", "owner/name"];
        let options = if layout == "deepspec" { &options[..5] } else { &options[..] };
        let out = export(root.path(), &draft, layout, options);
        let config = read_json(&out.join("config.json"));
        assert_eq!((&config["markov_rank"], &config["markov_head_type"]), (&json!(32), &json!("vanilla")));
        assert_eq!(figures(&out), before, "{layout}");
        let seen = deepspec(&["inspect", out.to_str().unwrap(), "--target", TARGET]);
        let text = String::from_utf8_lossy(&seen.stdout);
        assert!(seen.status.success() && text.contains("vLLM           loads it"), "{text}");
        let again = root.path().join("again");
        let twice =
            ["export", "--draft", out.to_str().unwrap(), "--target", TARGET, "--out", again.to_str().unwrap()];
        refused(&deepspec(&[&twice[..], &["--zero-markov-head"]].concat()), &["--zero-markov-head", "rank 32"]);
    }
}
