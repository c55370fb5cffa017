//! Gemma 4 targets and drafts: windows and caches, what lies on disk, and answers that no draft and no load changes.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use dspark_runtime::checkpoint::{JsonFields, WeightDtype, Weights};
use dspark_runtime::engine::{Engine, EngineConfig, Event, Request, Sampling};
use dspark_runtime::model::{Draft, DraftConfig, KvCache, LayerId, Target, TargetConfig, TargetSegment};
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use dspark_runtime::text::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use common::VOCABULARY;

/// Norms and factors away from one, so that leaving one out changes what is computed.
struct Vectors(ChaCha8Rng);

impl ModuleMapper for Vectors {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        if D != 1 {
            return param;
        }
        let values: Vec<f32> = (0..shape.num_elements()).map(|_| self.0.random_range(0.6..1.5)).collect();
        param.map(|old| Tensor::from_data(TensorData::new(values, shape), &old.device()))
    }
}

fn fields(window: usize) -> Value {
    json!({
        "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 16,
        "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
        "head_dim": 8, "global_head_dim": 12, "attention_k_eq_v": true, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "sliding_window": window, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 0, "max_position_embeddings": 1024,
        "final_logit_softcapping": 3.0, "tie_word_embeddings": true,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    })
}

fn config(fields: Value) -> TargetConfig {
    let Value::Object(fields) = fields else { unreachable!() };
    TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap()
}

fn target(window: usize) -> Target {
    let target = Target::random(config(fields(window)), 0, &Device::flex());
    let weights = common::fill(target.parameters().clone(), 21, 0.35);
    target.with_parameters(weights.map(&mut Vectors(ChaCha8Rng::seed_from_u64(22))))
}

fn draft(target: &Target, block: usize) -> Draft {
    let draft = common::draft(target, block);
    let parameters = draft.parameters.clone().map(&mut Vectors(ChaCha8Rng::seed_from_u64(23)));
    draft.with_parameters(parameters)
}

fn text(length: usize, seed: usize) -> Vec<u32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed as u64);
    (0..length).map(|_| generator.random_range(0..VOCABULARY as u32)).collect()
}

fn logits(target: &Target, segments: &mut [TargetSegment<'_>]) -> Vec<Vec<f32>> {
    let output = target.forward(segments, &[]);
    let all: Vec<f32> = target.logits(output.last_hidden_nd).try_into_vec_as().unwrap();
    all.chunks(VOCABULARY).map(<[f32]>::to_vec).collect()
}

#[test]
fn rows_do_not_depend_on_what_goes_through_with_them_nor_on_the_cache() {
    // A window inside a run of keys, and one over the edge of two.
    for window in [1, 7, 300] {
        let target = target(window);
        let texts = [text(560, 1), text(40, 2), text(300, 3)];
        let whole: Vec<Vec<Vec<f32>>> =
            texts.iter().map(|ids| logits(&target, &mut [TargetSegment { ids, cache: None }])).collect();
        let mut caches: Vec<KvCache> = texts.iter().map(|_| target.new_cache(1)).collect();
        let mut done = [0; 3];
        // Prompts together, then ragged passes of one to nine rows per sequence, a rejected end now and then.
        for step in 0.. {
            let count = |sequence: usize| match step {
                0 => [523, 9, 250][sequence],
                _ => 1 + (step * 5 + sequence * 3) % 9,
            };
            let parts: Vec<&[u32]> = (0..3)
                .map(|sequence| &texts[sequence][done[sequence]..])
                .enumerate()
                .map(|(sequence, rest)| &rest[..count(sequence).min(rest.len())])
                .collect();
            if parts.iter().all(|part| part.is_empty()) {
                break;
            }
            let mut segments: Vec<TargetSegment<'_>> = parts
                .iter()
                .zip(&mut caches)
                .filter(|(ids, _)| !ids.is_empty())
                .map(|(ids, cache)| TargetSegment { ids, cache: Some(cache) })
                .collect();
            let mut rows = logits(&target, &mut segments).into_iter();
            for (sequence, part) in parts.iter().enumerate() {
                let expected = whole[sequence].iter().enumerate().skip(done[sequence]).take(part.len());
                for (at, expected) in expected {
                    assert_eq!(rows.next().unwrap(), *expected, "window {window}: {sequence}, row {at}");
                }
                let kept = if step % 3 == 2 { part.len() / 2 } else { part.len() };
                done[sequence] += kept;
                caches[sequence].truncate(done[sequence]);
            }
        }
        assert_eq!(done, [560, 40, 300]);
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    // Two sliding layers with windows of 4 see 7 tokens back; the full ones see all, so their attention is cut off here.
    let mut fields = fields(4);
    fields["num_hidden_layers"] = json!(3);
    fields["layer_types"] = json!(["sliding_attention", "sliding_attention", "full_attention"]);
    let target = Target::random(config(fields), 0, &Device::flex());
    let target = target.with_parameters(common::fill(target.parameters().clone(), 5, 0.35));
    let states = |ids: &[u32]| -> Vec<f32> {
        let output = target.forward(&mut [TargetSegment { ids, cache: None }], &[LayerId(1)]);
        let states: Vec<f32> = output.features_nf.unwrap().try_into_vec_as().unwrap();
        states[states.len() - 16..].to_vec()
    };
    let ids = text(12, 9);
    let with = |at: usize| {
        let mut other = ids.clone();
        other[at] = (other[at] + 1) % VOCABULARY as u32;
        states(&other)
    };
    for at in 0..5 {
        assert_eq!(with(at), states(&ids), "token {at} lies before what two windows see");
    }
    for at in 5..12 {
        assert_ne!(with(at), states(&ids), "token {at} is seen");
    }
}

#[test]
fn greedy_and_seeded_texts_are_the_targets_whatever_the_draft_and_the_load() {
    let target = target(6);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    let request = |index: usize| Request {
        prompt: text(5 + 3 * index, 40 + index),
        max_new_tokens: 20 + index,
        sampling: Sampling {
            temperature: if index.is_multiple_of(2) { 0.0 } else { 1.0 },
            seed: Some(index as u64),
            ..Sampling::default()
        },
        stop_token_ids: Vec::new(),
        stop_strings: Vec::new(),
        include_stop_string: false,
        logprobs: None,
    };
    let answers = |draft: Option<Draft>, together: bool| -> Vec<Vec<u32>> {
        let tokenizer = Tokenizer::from_directory(&folder).unwrap();
        let (engine, handle) = Engine::start(target.clone(), draft, tokenizer, EngineConfig::default()).unwrap();
        let ids = |answer: dspark_runtime::engine::Answer| {
            let (mut answer, mut ids) = (answer, Vec::new());
            while let Some(Event::Delta(delta)) = answer.wait() {
                ids.extend(delta.tokens.iter().map(|token| token.id));
            }
            ids
        };
        let submit = |index: usize| handle.submit(request(index)).unwrap();
        let all = if together {
            let answers: Vec<_> = (0..12).map(submit).collect();
            answers.into_iter().map(ids).collect()
        } else {
            (0..12).map(|index| ids(submit(index))).collect()
        };
        handle.shut_down(Duration::ZERO);
        engine.join();
        all
    };
    let alone = answers(None, false);
    assert!(alone.iter().enumerate().all(|(index, ids)| ids.len() == 20 + index));
    assert_eq!(answers(None, true), alone);
    assert_eq!(answers(Some(draft(&target, 4)), true), alone);
    for index in (0..12).step_by(2) {
        let Request { prompt, max_new_tokens, .. } = request(index);
        let options = GenerationOptions { max_new_tokens, stop_token_ids: Vec::new(), confidence_threshold: 0.0 };
        let draft = draft(&target, 4);
        let own = Decoder::new(&target, Some(&draft)).generate(&prompt, &options, &mut Sampler::greedy()).unwrap();
        assert_eq!(own.ids, alone[index]);
    }
}

#[test]
fn a_draft_lies_on_disk_as_other_programs_read_it() {
    let root = tempfile::tempdir().unwrap();
    let target = target(6);
    let draft = draft(&target, 3);
    let folder = root.path().join("draft");
    draft.save(&folder, WeightDtype::F32, true).unwrap();
    let fields = JsonFields::read(&folder.join("config.json")).unwrap();
    for (field, value) in [
        ("architectures", json!(["Gemma4DSparkModel"])),
        ("model_type", json!("gemma4_text")),
        ("target_text_model_type", json!("gemma4_text")),
        ("layer_types", json!(["full_attention"])),
        ("num_hidden_layers", json!(1)),
        ("num_target_layers", json!(4)),
        ("head_dim", json!(8)),
        ("global_head_dim", json!(12)),
        ("num_key_value_heads", json!(2)),
        ("num_global_key_value_heads", json!(1)),
        ("final_logit_softcapping", json!(3.0)),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("tie_word_embeddings", json!(false)),
        ("sample_from_anchor", json!(true)),
    ] {
        assert_eq!(fields.get(field), Some(&value), "{field}");
    }
    assert!(fields.get("hidden_act").is_none());
    let weights = Weights::open(&folder).unwrap();
    let layer: Vec<(&str, &[usize])> = weights
        .names()
        .filter_map(|name| Some((name.strip_prefix("layers.0.")?, weights.shape(name).unwrap())))
        .collect();
    assert_eq!(
        layer,
        [
            ("input_layernorm.weight", &[16][..]),
            ("layer_scalar", &[1]),
            ("mlp.down_proj.weight", &[16, 24]),
            ("mlp.gate_proj.weight", &[24, 16]),
            ("mlp.up_proj.weight", &[24, 16]),
            ("post_attention_layernorm.weight", &[16]),
            ("post_feedforward_layernorm.weight", &[16]),
            ("pre_feedforward_layernorm.weight", &[16]),
            ("self_attn.k_norm.weight", &[12]),
            ("self_attn.k_proj.weight", &[12, 16]),
            ("self_attn.o_proj.weight", &[16, 24]),
            ("self_attn.q_norm.weight", &[12]),
            ("self_attn.q_proj.weight", &[24, 16]),
        ]
    );
    let read = Draft::load(&folder, &target).unwrap();
    let options = GenerationOptions { max_new_tokens: 40, stop_token_ids: Vec::new(), confidence_threshold: 0.0 };
    let generate = |draft: &Draft| {
        Decoder::new(&target, Some(draft))
            .generate(&text(5, 1), &options, &mut Sampler::repeatable(1.0, 1, 1))
            .unwrap()
    };
    let (own, other) = (generate(&draft), generate(&read));
    assert_eq!((own.ids, own.rounds), (other.ids, other.rounds));

    // Another cap is another target; sliding layers are none of a draft's.
    let config = folder.join("config.json");
    let json = fs::read_to_string(&config).unwrap();
    fs::write(&config, json.replace("\"final_logit_softcapping\": 3.0", "\"final_logit_softcapping\": 4.0")).unwrap();
    let error = Draft::load(&folder, &target).unwrap_err().to_string();
    assert!(error.contains("final_logit_softcapping"), "{error}");
    let sliding = json
        .replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2")
        .replace("\"full_attention\"\n", "\"sliding_attention\", \"full_attention\"\n");
    fs::write(&config, sliding).unwrap();
    let error = DraftConfig::read(&folder).unwrap_err().to_string();
    assert!(error.contains("`layer_types`"), "{error}");
}

#[test]
fn a_wrapped_target_is_loaded_without_what_sees_and_hears() {
    let root = tempfile::tempdir().unwrap();
    let target = target(6);
    target.write_into(root.path(), WeightDtype::F32).unwrap();
    let file = root.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let eye = [0_u8; 4];
    let write = |extra: &[&str]| {
        let mut views: Vec<(String, safetensors::tensor::TensorView<'_>)> =
            parsed.iter().map(|(name, view)| (name.replace("model.", "model.language_model."), view)).collect();
        for name in extra {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &eye).unwrap();
            views.push(((*name).to_owned(), view));
        }
        safetensors::serialize_to_file(views, None, &file).unwrap();
    };
    let mut text_config = fields(6);
    text_config.as_object_mut().unwrap().remove("architectures");
    let wrapper = json!({
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text_config,
        "vision_config": {}, "audio_config": {},
    });
    fs::write(root.path().join("config.json"), wrapper.to_string()).unwrap();
    write(&["model.vision_tower.x.weight", "model.audio_tower.y", "model.embed_vision.z", "model.embed_audio.z"]);
    let read = Target::load(root.path(), &Device::flex()).unwrap();
    let ids = text(30, 4);
    let of = |target: &Target| logits(target, &mut [TargetSegment { ids: &ids, cache: None }]);
    assert_eq!(of(&read), of(&target));
    write(&["model.language_model.layers.0.router.weight"]);
    let error = Target::load(root.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("`model.layers.0.router.weight`"), "{error}");
}
