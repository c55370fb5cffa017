//! A checkpoint written here has the keys, shapes and number types that the reference writes.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, LayerId, MarkovHeadType, Sliding, Target,
};
use safetensors::SafeTensors;

use common::drafts::read_json;
use common::fixtures::fixtures;

/// Fields that the reference's library writes and that say nothing about the model, or that only this project writes.
const NOT_COMPARED: [&str; 4] = ["transformers_version", "sample_from_anchor", "rope_theta", "rope_scaling"];

/// Names, number types and shapes of a weight file.
fn tensors(path: &Path) -> BTreeMap<String, String> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| {
        let view = file.tensor(name).unwrap();
        (name.to_owned(), format!("{:?} {:?}", view.dtype(), view.shape()))
    };
    file.names().into_iter().map(of).collect()
}

/// Loads a target of the fixtures, whose files have other names.
fn target(folder: &Path) -> Target {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(folder.join("target_config.json"), copy.path().join("config.json")).unwrap();
    fs::copy(folder.join("target.safetensors"), copy.path().join("model.safetensors")).unwrap();
    Target::load(copy.path(), &Device::flex()).unwrap()
}

#[test]
fn keys_shapes_and_number_types_are_the_references() {
    let root = fixtures();
    let mut compared = 0;
    for name in [
        "dspark_qwen3_vanilla",
        "dspark_qwen3_gated",
        "dspark_qwen3_rnn",
        "dspark_qwen3_vanilla_conf_nomarkov",
        "dflash_qwen3",
    ] {
        let folder = root.join(name);
        let theirs = read_json(&folder.join("config.json"));
        let size = |field: &str| theirs[field].as_u64().unwrap() as usize;
        let flag = |field: &str| theirs[field].as_bool().unwrap_or(false);
        let ids = theirs["target_layer_ids"].as_array().unwrap();
        let kind = theirs["markov_head_type"].as_str();
        let shape = DraftShape {
            block_size: size("block_size"),
            num_draft_layers: size("num_hidden_layers"),
            target_layer_ids: ids.iter().map(|id| LayerId(id.as_i64().unwrap())).collect(),
            kind: DraftKind::DSpark(DSparkConfig {
                mask_token_id: size("mask_token_id") as u32,
                num_anchors: size("num_anchors"),
                markov_rank: theirs["markov_rank"].as_u64().unwrap_or(0) as usize,
                markov_head_type: MarkovHeadType::ALL
                    .into_iter()
                    .find(|own| Some(own.name()) == kind)
                    .unwrap_or_default(),
                enable_confidence_head: flag("enable_confidence_head"),
                confidence_head_with_markov: flag("confidence_head_with_markov"),
                sliding: theirs["layer_types"].as_array().filter(|_| flag("use_sliding_window")).map(|types| {
                    Sliding {
                        window: size("sliding_window"),
                        layers: types.iter().map(|kind| kind == "sliding_attention").collect(),
                        causal: !flag("sliding_window_non_causal"),
                    }
                }),
            }),
        };
        let case = read_json(&folder.join("case.json"));
        let target = target(&folder.join(case["target_dir"].as_str().unwrap()));
        // Made from the target alone: nothing of their file is handed on.
        let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), &target, 2);
        let out = tempfile::tempdir().unwrap();
        let own = out.path().join("draft");
        draft.save(&own, WeightDtype::F32, true).unwrap();

        assert_eq!(tensors(&own.join("model.safetensors")), tensors(&folder.join("model.safetensors")), "{name}");
        let ours = read_json(&own.join("config.json"));
        for (field, value) in theirs.as_object().unwrap() {
            if !NOT_COMPARED.contains(&field.as_str()) {
                assert_eq!(ours.get(field), Some(value), "{name}: {field}");
            }
        }
        let extra = ours.as_object().unwrap().keys().filter(|field| theirs.get(field.as_str()).is_none());
        let extra: Vec<&String> = extra.filter(|field| !NOT_COMPARED.contains(&field.as_str())).collect();
        assert!(extra.is_empty(), "{name}: {extra:?}");
        compared += 1;
    }
    assert_eq!(compared, 5);
}
