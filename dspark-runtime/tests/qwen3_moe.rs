//! Mixtures of experts: what the `transformers` package computes with a tiny one, and answers that no draft changes.
//!
//! The model and its golden answers are in `golden/qwen3_moe/`; `golden/make_qwen3_moe.py` made them.

#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, LayerId, Target, TargetSegment,
};
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3_moe")
}

fn target() -> Target {
    Target::load(&golden(), &Device::flex()).unwrap()
}

fn logits(target: &Target, segments: &mut [TargetSegment<'_>]) -> Vec<Vec<f32>> {
    let v = target.config().vocab_size;
    let output = target.forward(segments, &[]);
    let all: Vec<f32> = target.logits(output.last_hidden_nd).try_into_vec_as().unwrap();
    all.chunks(v).map(<[f32]>::to_vec).collect()
}

fn options(max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_new_tokens, stop_token_ids: Vec::new(), confidence_threshold: 0.0 }
}

fn draft(target: &Target) -> Draft {
    let shape = DraftShape {
        block_size: 4,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0), LayerId(2)],
        kind: DraftKind::DSpark(DSparkConfig::new(0, 4)),
    };
    Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), target, 2)
}

#[test]
fn ids_and_logits_are_those_of_transformers() {
    let expected: Value = serde_json::from_str(&fs::read_to_string(golden().join("expected.json")).unwrap()).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden().join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = fs::read_to_string(golden().join("config.json")).unwrap();
    for case in cases {
        let normalised = format!("\"norm_topk_prob\": {}", case["norm_topk_prob"]);
        let config = config.replace("\"norm_topk_prob\": true", &normalised);
        assert!(config.contains(&normalised));
        fs::write(folder.path().join("config.json"), config).unwrap();
        let target = Target::load(folder.path(), &Device::flex()).unwrap();
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let (prompt, new) = ids.split_at(case["prompt"].as_u64().unwrap() as usize);
        let generation =
            Decoder::new(&target, None).generate(prompt, &options(new.len()), &mut Sampler::greedy()).unwrap();
        assert_eq!(generation.ids, new, "{normalised}");
        let own = logits(&target, &mut [TargetSegment { ids: &ids, cache: None }]);
        for (row, expected) in own.iter().zip(case["logits"].as_array().unwrap()) {
            for (own, expected) in row.iter().zip(expected.as_array().unwrap()) {
                let expected = expected.as_f64().unwrap();
                let off = (f64::from(*own) - expected).abs();
                assert!(off <= 1e-4 * expected.abs().max(1.0), "{normalised}: {own} instead of {expected}");
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_what_goes_through_with_them() {
    let target = target();
    let texts: [Vec<u32>; 2] = [(0..40).map(|at| at * 7 % 40).collect(), (0..25).map(|at| at * 11 % 40).collect()];
    let whole = texts.each_ref().map(|ids| logits(&target, &mut [TargetSegment { ids, cache: None }]));
    let mut caches = texts.each_ref().map(|_| target.new_cache(1));
    let mut done = 0;
    for step in [1, 8, 3, 5, 2, 6] {
        let mut segments: Vec<TargetSegment<'_>> = texts
            .iter()
            .zip(&mut caches)
            .map(|(ids, cache)| TargetSegment { ids: &ids[done..done + step], cache: Some(cache) })
            .collect();
        let rows = logits(&target, &mut segments);
        assert_eq!(rows[..step], whole[0][done..done + step]);
        assert_eq!(rows[step..], whole[1][done..done + step]);
        done += step;
    }
    assert_eq!(done, 25);
}

#[test]
fn a_draft_for_a_mixture_is_an_ordinary_one() {
    let target = target();
    let draft = draft(&target);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("draft");
    draft.save(&path, WeightDtype::F32, true).unwrap();
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    assert!(config.contains("\"Qwen3DSparkModel\"") && config.contains("\"model_type\": \"qwen3\""), "{config}");
    assert!(!config.contains("expert") && !config.contains("moe"), "{config}");
    let read = Draft::load(&path, &target).unwrap();
    let prompt = [3, 17, 29, 8];
    let alone = Decoder::new(&target, None).generate(&prompt, &options(30), &mut Sampler::greedy()).unwrap().ids;
    for draft in [&draft, &read] {
        let ids =
            Decoder::new(&target, Some(draft)).generate(&prompt, &options(30), &mut Sampler::greedy()).unwrap().ids;
        assert_eq!(ids, alone);
    }
}
