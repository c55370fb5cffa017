//! The rules by which `deepspec init` chooses the settings of a recipe.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use dspark_runtime::model::TargetConfig;
use dspark_runtime::text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

use crate::conversation::SampleSet;

/// Maximum number of target layers that a draft reads.
pub const LAYERS: usize = 5;

/// Minimum number of training samples for small targets, repeats included: as many as the shipped draft of SmolLM2 was trained on.
const LEAST_TAKEN: u64 = 2560;

/// Maximum number of passes over the data.
const MOST_PASSES: u64 = 10;

/// Settings that follow from the size of the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Decoder layers of the draft.
    pub draft_layers: usize,
    /// Rank of the Markov head.
    pub rank: usize,
    /// Blocks per conversation and step.
    pub anchors: usize,
    /// Optimiser, as recipes name it.
    pub optimizer: &'static str,
    /// Peak learning rate.
    pub lr: &'static str,
    /// True if the draft starts as a copy of the target's last layers.
    pub from_target: bool,
    /// Conversations per optimiser step.
    pub batch: usize,
    /// Passes over the data if the number of samples is unknown.
    pub epochs: u64,
}

/// Returns the settings for a target with this many parameters: those of the quickstart, of the recipes for SmolLM2, and of the
/// published recipes for Qwen3. Sizes between those three were not measured.
pub fn scale(parameters: usize) -> Scale {
    let small = Scale {
        draft_layers: 1,
        rank: 64,
        anchors: 64,
        optimizer: "muon",
        lr: "1e-2",
        from_target: true,
        batch: 8,
        epochs: 1,
    };
    match parameters {
        0..50_000_000 => small,
        50_000_000..1_000_000_000 => Scale { draft_layers: 2, anchors: 96, lr: "3e-3", batch: 4, ..small },
        _ => Scale {
            draft_layers: 5,
            rank: 256,
            anchors: 512,
            optimizer: "adamw",
            lr: "6e-4",
            from_target: false,
            batch: 512,
            epochs: MOST_PASSES,
        },
    }
}

/// Returns the target layers that a draft reads, 0-based and increasing: at most five, in equal steps from layer 1 to the third last,
/// as in the recipes for SmolLM2 and Qwen3. For a target with at most six layers, they are all but the last. For a target with
/// sliding-window layers, they are four layers without a window and the second last, as in the recipes for Gemma 4.
///
/// # Errors
/// Returns an error if the target has a single layer: drafts never read the last one.
pub fn layer_ids(target: &TargetConfig) -> Result<Vec<usize>> {
    let count = target.num_hidden_layers;
    if count < 2 {
        bail!(
            "{}: the target has {count} layer; expected at least two, because drafts read layers before the last one",
            target.fields.path().display()
        );
    }
    let unbounded: Vec<usize> = (0..count - 1).filter(|&layer| target.layers[layer].window().is_none()).collect();
    if unbounded.len() == count - 1 || unbounded.is_empty() {
        return Ok(spread(count));
    }
    let (places, last) = (LAYERS - 1, unbounded.len() - 1);
    let chosen = (0..places).map(|place| unbounded[place * last / (places - 1)]);
    Ok(chosen.chain([count - 2]).collect::<BTreeSet<_>>().into_iter().collect())
}

/// Returns layers that are spread evenly over a target with `count` layers.
fn spread(count: usize) -> Vec<usize> {
    if count <= LAYERS + 1 {
        return (0..count - 1).collect();
    }
    let (first, last) = (1, count - 3);
    let step = (last - first).div_ceil(LAYERS - 1);
    (first..last).step_by(step).chain([last]).collect()
}

/// The token in the place of positions that are still to be drafted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskToken {
    /// Its id.
    pub id: u32,
    /// Why it is this one, a sentence.
    pub reason: String,
}

/// Chooses the mask token: the first embedding row that no token uses, or else a special token that is reserved for such uses, or
/// else one that neither the chat template nor the samples contain.
///
/// # Errors
/// Returns an error if no token is free.
pub fn mask_token(tokenizer: &Tokenizer, rows: usize, samples: &SampleSet) -> Result<MaskToken> {
    if let Some(id) = tokenizer.first_unused_row(rows) {
        return Ok(MaskToken { id, reason: "the first embedding row that no token uses".to_owned() });
    }
    let template = tokenizer.chat_template().map_or("", ChatTemplate::source);
    let mut contained = BTreeSet::new();
    for sample in samples.iter() {
        contained.extend(sample?.token_ids);
    }
    let roles = [tokenizer.bos_token_id(), tokenizer.eos_token_id(), tokenizer.pad_token_id()];
    let free = |(id, token): &(u32, String)| {
        (*id as usize) < rows
            && !roles.contains(&Some(*id))
            && !tokenizer.stop_token_ids().contains(id)
            && !contained.contains(id)
            && !template.contains(token.as_str())
            && !token.to_lowercase().contains("unk")
    };
    let reserved =
        |token: &str| ["reserved", "unused", "mask"].iter().any(|word| token.to_lowercase().contains(word));
    let mut tokens = tokenizer.special_tokens();
    tokens.retain(free);
    let chosen = tokens.iter().find(|(_, token)| reserved(token)).or(tokens.first());
    let Some((id, token)) = chosen else {
        bail!(
            "all {rows} embedding rows of the target belong to tokens, and every special token starts, ends or pads texts or occurs in the \
             chat template or the data: no token is left to be the mask token of a DSpark or DFlash draft. Train an Eagle3 draft, \
             which needs none (`--algorithm eagle3`), or add a special token to the target"
        );
    };
    let where_not = if samples.is_empty() { "the chat template" } else { "the chat template and the data" };
    let reason = format!("every embedding row belongs to a token; {where_not} do not contain {token:?}");
    let reason = if samples.is_empty() { reason.replace("do not", "does not") } else { reason };
    Ok(MaskToken { id: *id, reason })
}

/// Returns whether a chat template renders a different prompt if a variable is false.
pub fn reads(template: &ChatTemplate, variable: &str) -> bool {
    let messages = [("user", "Hello"), ("assistant", "Hi."), ("user", "Bye")]
        .map(|(role, content)| json!({"role": role, "content": content}));
    let off: Map<String, Value> = [(variable.to_owned(), Value::Bool(false))].into_iter().collect();
    [&messages[..1], &messages[..]].into_iter().any(|messages| {
        match (template.render(messages, &Map::new(), true), template.render(messages, &off, true)) {
            (Ok(without), Ok(with)) => without != with,
            _ => false,
        }
    })
}

/// Length of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Optimiser steps.
    pub steps: u64,
    /// Conversations per step.
    pub batch: usize,
    /// Passes over the data, rounded up.
    pub passes: u64,
}

/// Returns the length of a training on this many samples.
///
/// A small target (`scale.epochs` of 1) gets one pass; with fewer than 2,560 samples, it gets enough passes for 2,560, but at most
/// ten. A large one gets ten passes, as published. Its steps have at most the published 512 conversations, and fewer (at least 4) if
/// ten passes would otherwise make fewer than 1,000 steps.
pub fn length(scale: &Scale, samples: usize) -> Length {
    let samples = samples.max(1) as u64;
    let taken = LEAST_TAKEN.clamp(samples, samples * MOST_PASSES).max(scale.epochs * samples);
    let batch = if scale.epochs == 1 {
        scale.batch
    } else {
        let largest = (taken / 1000).clamp(4, scale.batch as u64);
        1 << largest.ilog2()
    };
    Length { steps: taken.div_ceil(batch as u64), batch, passes: taken.div_ceil(samples) }
}

#[cfg(test)]
mod tests {
    use dspark_runtime::checkpoint::JsonFields;
    use dspark_runtime::model::{LayerId, check_layer_ids};

    use super::*;

    fn qwen3(layers: usize) -> TargetConfig {
        let fields = json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": layers, "vocab_size": 8,
            "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        TargetConfig::from_fields(JsonFields::new("config.json", fields.as_object().unwrap().clone())).unwrap()
    }

    /// `None` where no layer would see all tokens.
    fn gemma4(layers: usize, period: usize) -> Option<TargetConfig> {
        let kind = |layer| if (layer + 1) % period == 0 { "full_attention" } else { "sliding_attention" };
        let fields = json!({
            "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 16,
            "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
            "head_dim": 8, "global_head_dim": 12, "attention_k_eq_v": true, "num_hidden_layers": layers,
            "layer_types": (0..layers).map(kind).collect::<Vec<_>>(), "sliding_window": 4, "vocab_size": 64,
            "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 0,
            "max_position_embeddings": 64, "final_logit_softcapping": 3.0, "tie_word_embeddings": true,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 1e6, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        });
        TargetConfig::from_fields(JsonFields::new("config.json", fields.as_object().unwrap().clone())).ok()
    }

    #[test]
    fn layers_are_those_of_the_recipes() {
        assert_eq!(layer_ids(&qwen3(5)).unwrap(), [0, 1, 2, 3]);
        assert_eq!(layer_ids(&qwen3(30)).unwrap(), [1, 8, 15, 22, 27]);
        assert_eq!(layer_ids(&qwen3(36)).unwrap(), [1, 9, 17, 25, 33]);
        assert_eq!(layer_ids(&qwen3(40)).unwrap(), [1, 10, 19, 28, 37]);
        assert_eq!(layer_ids(&gemma4(48, 6).unwrap()).unwrap(), [5, 17, 29, 41, 46]);
    }

    #[test]
    fn layers_of_any_target_are_valid() {
        assert!(layer_ids(&qwen3(1)).unwrap_err().to_string().contains("at least two"));
        for layers in 2..=100 {
            let targets = [Some(qwen3(layers)), gemma4(layers, 2), gemma4(layers, 6)];
            for ids in targets.iter().flatten().map(|target| layer_ids(target).unwrap()) {
                let checked: Vec<LayerId> = ids.iter().map(|&id| LayerId(id as i64)).collect();
                assert_eq!(check_layer_ids(&checked, layers), Ok(()), "{ids:?} of {layers}");
                assert!((1..=5).contains(&ids.len()), "{ids:?} of {layers}");
                assert!(layers < 4 || ids.len() >= 2, "{ids:?} of {layers}");
            }
        }
    }

    #[test]
    fn steps_follow_from_the_number_of_samples() {
        let (tiny, small, large) = (scale(2_100_000), scale(135_000_000), scale(4_000_000_000));
        let of = |scale: &Scale, samples| {
            let Length { steps, batch, passes } = length(scale, samples);
            (steps, batch, passes)
        };
        assert_eq!(of(&tiny, 3000), (375, 8, 1));
        assert_eq!(of(&small, 2560), (640, 4, 1));
        assert_eq!(of(&small, 1000), (640, 4, 3));
        assert_eq!(of(&small, 50), (125, 4, 10));
        assert_eq!(of(&large, 1_400_000), (27_344, 512, 10));
        assert_eq!(of(&large, 5_000), (1_563, 32, 10));
        assert_eq!(of(&large, 0), (3, 4, 10));
    }
}
