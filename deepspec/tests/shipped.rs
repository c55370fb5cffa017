//! What the repository ships fits together.

mod common;

use std::collections::HashSet;
use std::fs;

use burn::tensor::Device;
use deepspec::conversation::read_evaluation_prompts;
use deepspec::recipe::Recipe;
use dspark_runtime::model::{LayerId, Target, TargetSegment};
use dspark_runtime::text::Tokenizer;
use serde_json::Value;

use common::workspace;

#[test]
fn evaluation_prompts_are_not_among_the_training_prompts() {
    let folder = workspace().join("datasets/quickstart");
    for domain in ["sums", "code", "chat"] {
        let mut trained = HashSet::new();
        for split in ["train", "validation"] {
            let text = fs::read_to_string(folder.join(format!("{domain}.{split}.jsonl"))).unwrap();
            for line in text.lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                for message in row["conversations"].as_array().unwrap() {
                    if message["role"] == "user" {
                        trained.insert(message["content"].as_str().unwrap().to_owned());
                    }
                }
            }
        }
        let prompts = read_evaluation_prompts(&folder.join(format!("{domain}.evaluate.jsonl"))).unwrap();
        assert!(prompts.len() >= 40 && trained.len() > 500);
        for turn in prompts.iter().flat_map(|prompt| &prompt.turns) {
            assert!(!trained.contains(turn), "{domain}: trained on `{turn}`");
        }
    }
}

#[test]
fn the_quickstart_target_has_a_row_for_the_mask_token() {
    let folder = workspace().join("checkpoints/quickstart-target");
    let target = Target::load(&folder, &Device::flex()).unwrap();
    let tokenizer = Tokenizer::from_directory(&folder).unwrap();
    assert_eq!(tokenizer.first_unused_row(target.config().vocab_size), Some(1536));
    assert!((1_000_000..3_000_000).contains(&target.num_parameters()));
    assert!(tokenizer.chat_template().is_some());
}

/// What makes greedy output the same with and without a draft, bit for bit: on the CPU a row's result does not depend on
/// how many rows go through together.
#[test]
fn rows_together_and_one_by_one_are_equal_bit_for_bit() {
    let target = Target::load(&workspace().join("checkpoints/quickstart-target"), &Device::flex()).unwrap();
    let layers = [LayerId(0), LayerId(2), LayerId(3)];
    let ids: Vec<u32> = (0..60).map(|token| 300 + token * 13 % 1000).collect();
    let (prompt, rest) = ids.split_at(28);
    let pass = |ids: &[u32], cache: &mut _| -> Vec<u32> {
        let output = target.forward(&mut [TargetSegment { ids, cache: Some(cache) }], &layers);
        let features: Vec<f32> = output.features_nf.unwrap().try_into_vec_as().unwrap();
        let logits: Vec<f32> = target.logits(output.last_hidden_nd).try_into_vec_as().unwrap();
        let rows = features.chunks(features.len() / ids.len()).zip(logits.chunks(logits.len() / ids.len()));
        rows.flat_map(|(features, logits)| features.iter().chain(logits).map(|value| value.to_bits())).collect()
    };
    for rows in [2, 3, 8, 16, 32] {
        let (mut together, mut stepped) = (target.new_cache(64), target.new_cache(64));
        pass(prompt, &mut together);
        pass(prompt, &mut stepped);
        let at_once = pass(&rest[..rows], &mut together);
        let one_by_one: Vec<u32> = rest[..rows].chunks(1).flat_map(|id| pass(id, &mut stepped)).collect();
        assert!(at_once == one_by_one, "{rows} rows");
    }
}

#[test]
fn every_recipe_is_valid() {
    let mut count = 0;
    for entry in fs::read_dir(workspace().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = fs::read_to_string(&path).unwrap();
            Recipe::parse(&text, &path, &[]).unwrap_or_else(|error| panic!("{error}"));
            count += 1;
        }
    }
    assert!(count >= 2);
}
