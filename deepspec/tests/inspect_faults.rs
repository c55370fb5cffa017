//! Checkpoints that are wrong on purpose: every fault is named, none twice, and nothing is said about good ones.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{DSparkConfig, MarkovHeadType};
use safetensors::Dtype;
use serde_json::{Value, json};

use common::drafts::{TARGET, Tensors, copy, dspark, edit_json, edit_tensors, edit_values, save, shape, shape_of};
use common::fixtures::fixtures;
use common::{deepspec, workspace};

/// What `deepspec inspect` finds, and its exit code.
fn inspect(folder: &Path, more: &[&str]) -> (Value, Option<i32>) {
    let output = deepspec(&[&["inspect", folder.to_str().unwrap(), "--json"][..], more].concat());
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (findings, output.status.code())
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn rename(tensors: &mut Tensors, from: &str, to: &str) {
    let tensor = tensors.remove(from).unwrap();
    tensors.insert(to.to_owned(), tensor);
}

/// Zeros of a type and shape.
fn zeros(dtype: Dtype, shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (dtype, shape.to_vec(), vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
}

type Spoil = Box<dyn Fn(&Path)>;

fn tensors(edit: impl Fn(&mut Tensors) + 'static) -> Spoil {
    Box::new(move |folder| edit_tensors(&folder.join("model.safetensors"), &edit))
}

fn config(edit: impl Fn(&mut Value) + 'static) -> Spoil {
    Box::new(move |folder| edit_json(&folder.join("config.json"), &edit))
}

/// Faults that the folder alone shows, and words of what must be said.
fn faults() -> Vec<(&'static str, Spoil, Vec<&'static str>)> {
    vec![
        (
            "a tensor is missing",
            tensors(|all| drop(all.remove("layers.1.mlp.down_proj.weight"))),
            vec!["layers.1.mlp.down_proj.weight", "missing"],
        ),
        (
            "a tensor has another name",
            tensors(|all| rename(all, "hidden_norm.weight", "context_norm.weight")),
            vec!["hidden_norm.weight", "context_norm.weight"],
        ),
        (
            "a tensor has another shape",
            tensors(|all| drop(all.insert("fc.weight".into(), zeros(Dtype::F32, &[4, 4])))),
            vec!["fc.weight", "expected shape"],
        ),
        (
            "a tensor that no model has",
            tensors(|all| drop(all.insert("layers.2.mlp.up_proj.weight".into(), zeros(Dtype::F32, &[2])))),
            vec!["layers.2.mlp.up_proj.weight", "is not part of the model"],
        ),
        (
            "a number that is none",
            Box::new(|folder| {
                edit_values(&folder.join("model.safetensors"), "norm.weight", |index, value| {
                    if index == 3 { f32::NAN } else { value }
                });
            }),
            vec!["norm.weight", "not finite"],
        ),
        (
            "a number type that is not read",
            tensors(|all| {
                let shape = all["norm.weight"].1.clone();
                all.insert("norm.weight".into(), zeros(Dtype::I8, &shape));
            }),
            vec!["norm.weight", "dtype I8"],
        ),
        (
            "half a download",
            Box::new(|folder| {
                let path = folder.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }),
            vec!["model.safetensors", "damaged"],
        ),
        (
            "no weights",
            Box::new(|folder| fs::remove_file(folder.join("model.safetensors")).unwrap()),
            vec!["no weights found"],
        ),
        (
            "the embedding without the head",
            tensors(|all| drop(all.remove("lm_head.weight"))),
            vec!["embed_tokens.weight", "both or neither"],
        ),
        (
            "no configuration",
            Box::new(|folder| fs::write(folder.join("config.json"), "{").unwrap()),
            vec!["not valid JSON"],
        ),
        (
            "the other block convention",
            config(|all| all["sample_from_anchor"] = json!(false)),
            vec!["`sample_from_anchor`"],
        ),
        ("layers out of order", config(|all| all["target_layer_ids"] = json!([2, 0])), vec!["`target_layer_ids`"]),
        (
            "the final layer",
            config(|all| all["target_layer_ids"] = json!([0, 4])),
            vec!["`target_layer_ids`", "final layer"],
        ),
        (
            "more captured layers than `fc` has",
            config(|all| all["target_layer_ids"] = json!([0, 1, 2])),
            vec!["fc.weight"],
        ),
        ("a mask beyond the vocabulary", config(|all| all["mask_token_id"] = json!(1552)), vec!["`mask_token_id`"]),
        (
            "a kind of head that there is not",
            config(|all| all["markov_head_type"] = json!("bilinear")),
            vec!["`markov_head_type`"],
        ),
        (
            "a head of another kind than its tensors",
            config(|all| all["markov_head_type"] = json!("rnn")),
            vec!["joint_proj"],
        ),
        (
            "another rank than its tensors",
            config(|all| all["markov_rank"] = json!(9)),
            vec!["markov_w1", "markov_w2", "confidence_head"],
        ),
        ("no block", config(|all| all["block_size"] = json!(0)), vec!["`block_size`"]),
        (
            "one table that is two",
            config(|all| all["tie_word_embeddings"] = json!(true)),
            vec!["`tie_word_embeddings`"],
        ),
        (
            "fewer tokens without a map",
            config(|all| all["draft_vocab_size"] = json!(100)),
            vec!["d2t", "lm_head.weight", "markov_w2"],
        ),
        (
            "a map that leads nowhere",
            Box::new(|folder| {
                edit_json(&folder.join("config.json"), |all| all["draft_vocab_size"] = json!(2));
                edit_tensors(&folder.join("model.safetensors"), |all| {
                    for name in ["lm_head.weight", "markov_head.markov_w2.weight"] {
                        let width = all[name].1[1];
                        all.insert(name.into(), zeros(Dtype::F32, &[2, width]));
                    }
                    let mut map = zeros(Dtype::I64, &[2]);
                    map.2[0] = 0xff;
                    map.2[1] = 0xff;
                    all.insert("d2t".into(), map);
                });
            }),
            vec!["`d2t`", "increasing token ids"],
        ),
        (
            "sliding layers while windows are off",
            config(|all| {
                all["layer_types"] = json!(["sliding_attention", "full_attention"]);
                all["sliding_window"] = json!(16);
            }),
            vec!["`use_sliding_window`"],
        ),
        ("a field of somebody else's", config(|all| all["selector_rank"] = json!(256)), vec!["`selector_rank`"]),
        (
            "two rotations",
            config(|all| all["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0})),
            vec!["`rope_scaling`"],
        ),
        (
            "an architecture of nobody",
            config(|all| all["architectures"] = json!(["Qwen9DraftModel"])),
            vec!["`architectures`"],
        ),
    ]
}

#[test]
fn every_fault_is_named() {
    let root = tempfile::tempdir().unwrap();
    let good = save(&root.path().join("good"), &shape(), WeightDtype::F32, true);
    let (findings, code) = inspect(&good, &["--target", TARGET]);
    assert_eq!((texts(&findings["problems"]), texts(&findings["warnings"]), code), (vec![], vec![], Some(0)));
    let all = faults();
    assert!(all.len() >= 12);
    for (name, spoil, words) in all {
        let folder = root.path().join("spoiled");
        let _ = fs::remove_dir_all(&folder);
        copy(&good, &folder);
        spoil(&folder);
        let (findings, code) = inspect(&folder, &[]);
        let problems = texts(&findings["problems"]);
        assert_eq!(code, Some(2), "{name}: {findings}");
        // Each word in some problem, and no problem without a word.
        for word in &words {
            assert!(problems.iter().any(|problem| problem.contains(word)), "{name}: `{word}` is not in {problems:?}");
        }
        let related = |problem: &&str| words.iter().any(|word| problem.contains(word));
        assert!(problems.iter().all(related), "{name}: {problems:?}");
    }
}

/// Faults that only the target shows.
#[test]
fn drafts_of_other_targets_are_found_out() {
    let root = tempfile::tempdir().unwrap();
    let good = save(&root.path().join("good"), &shape(), WeightDtype::F32, true);
    let target = root.path().join("target");
    copy(&workspace().join(TARGET), &target);
    for (field, value) in [("num_hidden_layers", 6), ("vocab_size", 1000), ("hidden_size", 64)] {
        let other = root.path().join("other");
        copy(&target, &other);
        edit_json(&other.join("config.json"), |config| config[field] = json!(value));
        let (findings, code) = inspect(&good, &["--target", other.to_str().unwrap()]);
        let problems = texts(&findings["problems"]);
        assert_eq!((problems.len(), code), (1, Some(2)), "{field}: {findings}");
        assert!(problems[0].contains("does not fit the target"), "{problems:?}");
    }
    // A head that is not the target's is no fault, and engines that take the target's misread it.
    edit_values(&good.join("model.safetensors"), "lm_head.weight", |index, value| value + (index % 2) as f32);
    let (findings, code) = inspect(&good, &["--target", TARGET]);
    assert_eq!((texts(&findings["problems"]), code), (vec![], Some(0)));
    assert!(texts(&findings["warnings"])[0].contains("other than the target's"), "{findings}");
    assert_eq!(verdict(&findings, "SGLang"), "misreads");
    assert_eq!(verdict(&findings, "vLLM"), "takes");
}

fn verdict<'a>(findings: &'a Value, engine: &str) -> &'a str {
    let engines = findings["engines"].as_array().unwrap();
    engines.iter().find(|row| row["engine"] == engine).unwrap()["verdict"].as_str().unwrap()
}

#[test]
fn nothing_is_said_about_good_ones() {
    let root = tempfile::tempdir().unwrap();
    let shipped = ["smollm2-135m-dspark", "quickstart-target"].map(|name| workspace().join("checkpoints").join(name));
    let mut good: Vec<PathBuf> = shipped.to_vec();
    for (index, kind) in MarkovHeadType::ALL.into_iter().enumerate() {
        let shape = shape_of(DSparkConfig { markov_head_type: kind, ..dspark() });
        let dtype = if index == 0 { WeightDtype::Bf16 } else { WeightDtype::F32 };
        good.push(save(&root.path().join(kind.name()), &shape, dtype, index != 1));
    }
    let plain = shape_of(DSparkConfig { markov_rank: 0, enable_confidence_head: false, ..dspark() });
    good.push(save(&root.path().join("dflash"), &plain, WeightDtype::Bf16, false));
    for name in [
        "dspark_qwen3_vanilla",
        "dspark_qwen3_gated",
        "dspark_qwen3_rnn",
        "dspark_qwen3_vanilla_conf_nomarkov",
        "dflash_qwen3",
    ] {
        let folder = fixtures().join(name);
        assert!(folder.is_dir(), "{}", folder.display());
        good.push(folder);
    }
    for folder in good {
        let (findings, code) = inspect(&folder, &[]);
        assert_eq!((texts(&findings["problems"]), code), (vec![], Some(0)), "{}", folder.display());
    }
}

/// Drafts of other makers are described, not refused, and the way their blocks are read is said.
#[test]
fn foreign_drafts_are_described() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("foreign");
    save(&folder, &shape(), WeightDtype::F32, false);
    edit_json(&folder.join("config.json"), |config| {
        config["architectures"] = json!(["DFlashDraftModel"]);
        for name in [
            "sample_from_anchor",
            "markov_rank",
            "markov_head_type",
            "enable_confidence_head",
            "confidence_head_with_markov",
        ] {
            config.as_object_mut().unwrap().remove(name);
        }
        config["dflash_config"] = json!({"mask_token_id": 1536, "target_layer_ids": [0, 2]});
        ["mask_token_id", "target_layer_ids"]
            .iter()
            .for_each(|name| drop(config.as_object_mut().unwrap().remove(*name)));
    });
    edit_tensors(&folder.join("model.safetensors"), |all| all.retain(|name, _| !name.contains("head")));
    let (findings, code) = inspect(&folder, &[]);
    assert_eq!((texts(&findings["problems"]), code), (vec![], Some(0)));
    assert_eq!(findings["facts"]["block_convention"], "the anchor's slot drafts nothing: 3 tokens per block");
    let warnings = texts(&findings["warnings"]);
    assert!(warnings[0].contains("`architectures`") && warnings[1].contains("`sample_from_anchor`"), "{warnings:?}");
    assert_eq!(verdict(&findings, "vLLM"), "takes");
    assert_eq!(verdict(&findings, "speculators"), "with-care");
    let output = deepspec(&["inspect", folder.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("vLLM           loads it") && text.contains("MIND: "), "{text}");
}
