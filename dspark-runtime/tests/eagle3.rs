//! Eagle3 drafts: what training unrolls is what decoding computes, together or alone; their files; what is refused.

#![allow(missing_docs)]

mod common;

use std::fs;

use burn::tensor::Tensor;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::checkpoint::gguf::BlockType;
use dspark_runtime::model::{
    Draft, DraftConfig, DraftContext, DraftKind, DraftSample, DraftShape, DraftVocabulary, Eagle3Config, LayerId,
    Target, TargetSegment,
};
use dspark_runtime::schedule::Stopping;
use dspark_runtime::speculate::{
    Block, Decoder, Filters, GenerationOptions, Lane, Randomness, Rounds, Sampler, SequenceState,
};
use serde_json::{Value, json};

const SLOTS: usize = 4;
const IDS: [u32; 14] = [1, 5, 2, 6, 3, 0, 4, 4, 1, 2, 5, 6, 0, 3];

fn features(target: &Target, ids: &[u32]) -> Tensor<2> {
    let layers: Vec<LayerId> = (0..5).map(LayerId).collect();
    target.forward(&mut [TargetSegment { ids, cache: None }], &layers).features_nf.unwrap()
}

/// The context of the first tokens of a text, added in parts that begin at `cuts`.
fn context(draft: &Draft, features_sf: &Tensor<2>, ids: &[u32], count: usize, cuts: &[usize]) -> DraftContext {
    let mut context = draft.new_context(1);
    let mut first = 0;
    for end in cuts.iter().copied().chain([count]) {
        let part = features_sf.clone().narrow(0, first, end - first);
        draft.extend_context(&mut context, part, &ids[first + 1..end + 1]);
        first = end;
    }
    assert_eq!(context.len(), count);
    context
}

/// Logits of every slot when the text itself is what is drafted.
fn forced(draft: &Draft, context: &mut DraftContext, ids: &[u32], anchor: usize) -> Vec<f32> {
    let slots = SLOTS.min(ids.len() - anchor);
    let mut drafting = draft.begin(vec![context], &ids[anchor..=anchor], slots);
    let mut logits = Vec::new();
    for slot in 0..slots {
        assert_eq!(drafting.confidences(&[ids[anchor + slot]]), None);
        logits.extend(drafting.logits(&[0]).concat());
    }
    logits
}

#[track_caller]
fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-4, "{what}: off by {off}");
}

#[test]
fn decoding_computes_what_training_unrolls() {
    let target = common::deep_target(7);
    let draft = common::eagle3_draft(&target, SLOTS);
    let features = features(&target, &IDS);
    let anchors = [1, 2, 6, 11, 13];
    // Beside another sample, whose rows must not be seen.
    let other: Vec<u32> = IDS.iter().rev().copied().take(9).collect();
    let other_features = self::features(&target, &other);
    let samples = [DraftSample { ids: &other, anchors: &[3, 8] }, DraftSample { ids: &IDS, anchors: &anchors }];
    let hidden = draft.forward_blocks(Tensor::cat(vec![other_features, features.clone()], 0), &samples);
    let unrolled: Vec<f32> = draft.base_logits(hidden).try_into_vec_as().unwrap();
    let width = SLOTS * common::VOCABULARY;
    for (block, &anchor) in anchors.iter().enumerate() {
        let unrolled = &unrolled[(block + 2) * width..(block + 3) * width];
        for cuts in [&[][..], &[1], &[anchor / 2 + 1]] {
            let cuts: Vec<usize> = cuts.iter().copied().filter(|&cut| cut < anchor).collect();
            let mut context = context(&draft, &features, &IDS, anchor, &cuts);
            let decoded = forced(&draft, &mut context, &IDS, anchor);
            close(&decoded, &unrolled[..decoded.len()], &format!("anchor {anchor}, cut at {cuts:?}"));
            // The blocks leave nothing behind.
            assert_eq!(context.len(), anchor);
            assert_eq!(forced(&draft, &mut context, &IDS, anchor), decoded);
        }
    }
}

/// What a finished sequence leaves serves another one up to where they part, less the row that saw the parting.
#[test]
fn a_context_goes_on_from_a_beginning_that_was_cut() {
    let target = common::deep_target(8);
    let draft = common::eagle3_draft(&target, SLOTS);
    let mut other = IDS;
    other[6..].iter_mut().for_each(|id| *id = (*id + 3) % 8);
    let own = features(&target, &other);
    let mut fresh = context(&draft, &own, &other, 12, &[]);
    let expected = forced(&draft, &mut fresh, &other, 12);
    for copied in [false, true] {
        let mut context = context(&draft, &features(&target, &IDS), &IDS, 13, &[]);
        // Tokens 0 to 5 are the same; row 5 has the embedding of token 6 in it.
        if copied {
            context = context.copy_prefix(5, 32);
        } else {
            context.truncate(5);
        }
        draft.extend_context(&mut context, own.clone().narrow(0, 5, 7), &other[6..13]);
        assert_eq!(forced(&draft, &mut context, &other, 12), expected);
    }
}

#[test]
fn drafting_together_is_drafting_alone() {
    let target = common::deep_target(9);
    let draft = common::eagle3_draft(&target, SLOTS);
    let features = features(&target, &IDS);
    let rounds = Rounds::new(&target, Some(&draft));
    let propose = |anchors: &[usize]| -> Vec<Block> {
        let mut sequences: Vec<(Vec<u32>, Sampler, SequenceState)> = anchors
            .iter()
            .map(|&anchor| {
                let context = Some(context(&draft, &features, &IDS, anchor, &[]));
                let sampler = Sampler::new(1.0, Filters::NONE, Randomness::Coupled(anchor as u64));
                (IDS[..=anchor].to_vec(), sampler, SequenceState { context, ..rounds.new_state(0) })
            })
            .collect();
        let lane = |(ids, sampler, state)| Lane {
            ids,
            limit: usize::MAX,
            stop_token_ids: &[],
            sampler,
            state,
            keep_logits: false,
        };
        let mut lanes: Vec<Lane<'_>> = sequences.iter_mut().map(|(a, b, c)| lane((a, b, c))).collect();
        rounds.draft(&mut lanes, &Stopping::after(3))
    };
    let anchors = [9, 1, 4, 13];
    for (&anchor, together) in anchors.iter().zip(propose(&anchors)) {
        let alone = propose(&[anchor]).remove(0);
        assert_eq!((together.tokens, together.distributions), (alone.tokens.clone(), alone.distributions));
        assert_eq!((alone.tokens.len(), alone.confidences), (3, vec![1.0; 4]));
    }
}

#[test]
fn a_sequence_that_stops_leaves_the_others_alone() {
    let target = common::deep_target(9);
    let draft = common::eagle3_draft(&target, SLOTS);
    let features = features(&target, &IDS);
    let run = |anchors: &[usize], dropped: Option<usize>| -> Vec<f32> {
        let mut contexts: Vec<DraftContext> =
            anchors.iter().map(|&anchor| context(&draft, &features, &IDS, anchor, &[])).collect();
        let tokens: Vec<u32> = anchors.iter().map(|&anchor| IDS[anchor]).collect();
        let mut drafting = draft.begin(contexts.iter_mut().collect(), &tokens, SLOTS);
        let mut last = Vec::new();
        let mut going: Vec<usize> = (0..anchors.len()).collect();
        for slot in 0..3 {
            let previous: Vec<u32> = going.iter().map(|&row| IDS[anchors[row] + slot]).collect();
            drafting.confidences(&previous);
            let kept: Vec<usize> =
                (0..going.len()).filter(|&index| slot != 1 || Some(going[index]) != dropped).collect();
            going = kept.iter().map(|&index| going[index]).collect();
            last = drafting.logits(&kept).concat();
        }
        last
    };
    assert_eq!(run(&[2, 5, 8], Some(1)), [run(&[2], None), run(&[8], None)].concat());
}

fn options(max_new_tokens: usize, stop: &[u32]) -> GenerationOptions {
    GenerationOptions { max_new_tokens, stop_token_ids: stop.to_vec(), confidence_threshold: 0.0 }
}

#[test]
fn a_drafted_stop_token_ends_its_block() {
    let target = common::deep_target(3);
    let draft = common::eagle3_draft(&target, 6);
    let mut shorter = 0;
    for stop in 0..8 {
        let decoder = Decoder::new(&target, Some(&draft));
        let answered =
            decoder.generate_observed(&IDS[..4], &options(30, &[stop]), &mut Sampler::greedy(), |detail| {
                let tokens = &detail.block.tokens;
                let at = tokens.iter().position(|&token| token == stop);
                assert_eq!(tokens.len(), at.map_or(6, |at| at + 1));
                shorter += usize::from(at.is_some_and(|at| at < 5));
            });
        answered.unwrap();
    }
    assert!(shorter > 0, "no stop token was drafted");
}

#[test]
fn a_checkpoint_is_read_back_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let target = common::deep_target(3);
    let counts: Vec<u64> = (0..common::VOCABULARY as u64).collect();
    let whole = common::eagle3_draft(&target, SLOTS);
    let some = whole.clone().with_vocabulary(DraftVocabulary::most_frequent(&counts, 5));
    for (index, draft) in [whole, some].iter().enumerate() {
        let folder = root.path().join(index.to_string());
        draft.save(&folder, WeightDtype::F32, index == 0).unwrap();
        let read = Draft::load(&folder, &target).unwrap();
        let generate = |draft: &Draft| {
            let decoder = Decoder::new(&target, Some(draft));
            decoder.generate(&IDS[..4], &options(30, &[]), &mut Sampler::greedy()).unwrap()
        };
        let (own, other) = (generate(draft), generate(&read));
        assert_eq!((own.ids, own.rounds), (other.ids, other.rounds));
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("layers.0.self_attn.q_proj.weight").unwrap().shape(), [16, 32]);
        assert!(file.tensor("layers.0.hidden_norm.weight").is_ok() && file.tensor("hidden_norm.weight").is_err());
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], json!(["Qwen3Eagle3Model"]));
        assert_eq!((&config["ttt_length"], &config["draft_num_hidden_layers"]), (&json!(SLOTS), &json!(1)));
        assert_eq!(config["step_loss_decay"], json!(0.8));
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let root = tempfile::tempdir().unwrap();
    let target = common::deep_target(3);
    let folder = root.path().join("draft");
    common::eagle3_draft(&target, SLOTS).save(&folder, WeightDtype::F32, false).unwrap();
    let path = folder.join("config.json");
    let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (field, value) in [
        ("architectures", json!(["LlamaForCausalLMEagle3"])),
        ("target_layer_ids", json!([-1, 0, 1, 2, 3])),
        ("target_layer_ids", json!([0, 1, 2, 3, 5])),
        ("target_layer_ids", json!([0, 1, 1, 2, 3])),
        ("draft_num_hidden_layers", json!(2)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("ttt_length", json!(0)),
        ("ttt_length", Value::Null),
        ("step_loss_decay", json!(1.5)),
        ("step_loss_decay", json!("slow")),
    ] {
        let mut wrong = config.clone();
        wrong[field] = value.clone();
        fs::write(&path, wrong.to_string()).unwrap();
        let error = Draft::load(&folder, &target).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("config.json"), "{field} = {value}: {error}");
    }
    // Fewer layers are fine, but not with weights for five.
    let mut fewer = config.clone();
    fewer["target_layer_ids"] = json!([0, 1, 2, 3]);
    fs::write(&path, fewer.to_string()).unwrap();
    let error = Draft::load(&folder, &target).unwrap_err().to_string();
    assert!(error.contains("fc.weight") && error.contains("[16, 64]"), "{error}");
    fs::write(&path, config.to_string()).unwrap();
    let error = Draft::load(&folder, &common::target(3)).unwrap_err().to_string();
    assert!(error.contains("num_target_layers"), "{error}");
    let gguf = root.path().join("draft.gguf");
    let written = common::eagle3_draft(&target, SLOTS).write_gguf("draft", &[], BlockType::F32, true, &gguf);
    assert!(written.unwrap_err().to_string().contains("architectures") && !gguf.exists());
    let shape = DraftShape {
        block_size: 7,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0); 5],
        kind: DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(0.8) }),
    };
    assert!(DraftConfig::for_target(target.config(), &shape).is_err());
}
