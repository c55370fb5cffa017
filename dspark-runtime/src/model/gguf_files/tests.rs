use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::gguf::GgufFile;
use crate::checkpoint::gguf::testing::RawFile;
use crate::checkpoint::{AtomicDirectory, JsonFields, WeightDtype, WeightPrecision};
use crate::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, DraftVocabulary, LayerId, MarkovHeadType, Target,
    TargetConfig, TargetSegment,
};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

/// Every parameter gets numbers, biases and norms too: those of a fresh model are alike.
struct Fill(ChaCha8Rng);

impl ModuleMapper for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let values: Vec<f32> = (0..shape.num_elements()).map(|_| self.0.random_range(-0.5..0.9)).collect();
        param.map(|old| Tensor::from_data(TensorData::new(values, shape), &old.device()))
    }
}

fn config(changes: &Value) -> TargetConfig {
    let mut fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 40,
        "rms_norm_eps": 1e-5, "rope_theta": 12345.0, "max_position_embeddings": 128, "tie_word_embeddings": true,
    });
    for (field, value) in changes.as_object().unwrap() {
        fields[field] = value.clone();
    }
    let Value::Object(fields) = fields else { unreachable!() };
    TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap()
}

fn target(changes: &Value) -> Target {
    let target = Target::random(config(changes), 0, &Device::flex());
    let weights = target.parameters().clone().map(&mut Fill(ChaCha8Rng::seed_from_u64(7)));
    target.with_parameters(weights)
}

/// The target as a Hugging Face folder and as a GGUF file.
fn written(target: &Target, root: &Path, dtype: WeightDtype, block_type: BlockType) -> (PathBuf, PathBuf) {
    let folder = root.join("folder");
    let directory = AtomicDirectory::begin(&folder).unwrap();
    target.write_into(directory.path(), dtype).unwrap();
    directory.commit().unwrap();
    let file = root.join("target.gguf");
    write_target_gguf(&folder, &[], block_type, &file).unwrap();
    (folder, file)
}

fn logits(target: &Target) -> Vec<f32> {
    let output = target.forward(&mut [TargetSegment { ids: &IDS, cache: None }], &[]);
    target.logits(output.last_hidden_nd).try_into_vec_as().unwrap()
}

#[test]
fn targets_of_all_families_compute_the_same_from_a_gguf_file() {
    let root = tempfile::tempdir().unwrap();
    for changes in [
        json!({}),
        json!({"tie_word_embeddings": false, "attention_bias": true}),
        json!({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        json!({"architectures": ["LlamaForCausalLM"], "attention_bias": true, "mlp_bias": true}),
        json!({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": false}),
    ] {
        let original = target(&changes);
        let (_, file) = written(&original, root.path(), WeightDtype::F32, BlockType::F32);
        let read = Target::load(&file, &Device::flex()).unwrap();
        let (config, expected) = (read.config(), original.config());
        assert_eq!((config.family, &config.layer), (expected.family, &expected.layer));
        assert_eq!(config.tie_word_embeddings, expected.tie_word_embeddings);
        assert_eq!(config.max_position_embeddings, expected.max_position_embeddings);
        assert!(logits(&read) == logits(&original), "{changes}");
    }
}

#[test]
fn smaller_number_types_are_kept_and_stay_close() {
    let root = tempfile::tempdir().unwrap();
    let original = target(&json!({"architectures": ["LlamaForCausalLM"]}));
    let (folder, file) = written(&original, root.path(), WeightDtype::Bf16, BlockType::Bf16);
    for precision in [WeightPrecision::F32, WeightPrecision::AsStored] {
        let load = |path: &Path| logits(&Target::load_with(path, precision, &Device::flex()).unwrap());
        assert!(load(&file) == load(&folder), "{precision}");
    }
    let matrix = |file: &Path| GgufFile::open(file).unwrap().tensor("blk.1.ffn_up.weight").unwrap().block_type;
    assert_eq!(matrix(&file), BlockType::Bf16);
    for (block_type, tolerance) in [(BlockType::F16, 0.2), (BlockType::Q8_0, 3.0)] {
        let (_, file) = written(&original, root.path(), WeightDtype::F32, block_type);
        assert_eq!(matrix(&file), block_type);
        let read = logits(&Target::load(&file, &Device::flex()).unwrap());
        let worst = read.iter().zip(logits(&original)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < tolerance, "{block_type}: {worst}");
    }
}

/// The metadata of a Llama target, without its tensors but the embedding.
fn metadata() -> RawFile {
    RawFile::new()
        .text("general.architecture", "llama")
        .number("llama.block_count", 2)
        .number("llama.context_length", 128)
        .number("llama.embedding_length", 8)
        .number("llama.feed_forward_length", 16)
        .number("llama.attention.head_count", 2)
        .number("llama.attention.head_count_kv", 1)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .number("tokenizer.ggml.eos_token_id", 2)
        .tensor("token_embd.weight", &[8, 3], &[0.0; 24])
}

#[test]
fn configurations_follow_from_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let config = TargetConfig::read(&metadata().write(folder.path())).unwrap();
    assert_eq!((config.vocab_size, config.num_hidden_layers), (3, 2));
    assert_eq!((config.layer.head_dim, config.layer.rms_norm_eps), (4, 1e-5));
    assert_eq!((config.layer.rope_theta, config.layer.rope_scaling), (10_000.0, super::super::RopeScaling::None));
    assert!(config.tie_word_embeddings);
    assert_eq!(config.fields.get("eos_token_id"), Some(&json!(2)));
    // Heads for each layer, all alike.
    let mut file = metadata();
    file.metadata[6].1 =
        [&9_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &2_u64.to_le_bytes(), &[1, 0, 0, 0, 1, 0, 0, 0]].concat();
    assert_eq!(TargetConfig::read(&file.write(folder.path())).unwrap().layer.num_key_value_heads, 1);
}

#[test]
fn unsupported_metadata_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |file: RawFile, key: &str| {
        let error = TargetConfig::read(&file.write(folder.path())).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains("model.gguf"), "{key}: {error}");
    };
    for (key, number) in [
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 512),
        ("llama.attention.value_length", 8),
        ("llama.rope.dimension_count", 2),
        ("llama.vocab_size", 4),
        ("llama.logit_scale", 1),
        ("llama.attention.key_length_mla", 64),
        ("tokenizer.ggml.bos_token_id", u32::MAX),
    ] {
        refused(metadata().number(key, number), key);
    }
    refused(metadata().text("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type");
    refused(metadata().float("llama.rope.scaling.factor", -1.0), "llama.rope.scaling.factor");
    refused(metadata().float("llama.rope.scaling.attn_factor", 0.5), "llama.rope.scaling.attn_factor");
    refused(metadata().text("llama.rope.freq_base", "high"), "llama.rope.freq_base");
    // Whatever is taken away is missed, but the heads of keys and values, which are those of queries then.
    for index in (0..8).filter(|index| *index != 6) {
        let mut file = metadata();
        let (key, _) = file.metadata.remove(index);
        refused(file, &key);
    }
    let mut file = metadata();
    file.metadata[6].1 =
        [&9_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &2_u64.to_le_bytes(), &[1, 0, 0, 0, 2, 0, 0, 0]].concat();
    refused(file, "llama.attention.head_count_kv");
    let mut file = metadata();
    file.metadata[0].1 = [&8_u32.to_le_bytes()[..], &crate::checkpoint::gguf::testing::string("gemma4")].concat();
    refused(file, "general.architecture");
    refused(RawFile { tensors: Vec::new(), ..metadata() }, "token_embd.weight");
}

#[test]
fn a_file_without_some_tensors_is_named_with_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let error = Target::load(&metadata().write(folder.path()), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("`blk.0.") && error.contains("is missing (and 18 more)"), "{error}");
    let error =
        write_target_gguf(&metadata().write(folder.path()), &[], BlockType::F32, &folder.path().join("out.gguf"));
    assert!(error.unwrap_err().to_string().contains("`blk.0."));
    assert!(!folder.path().join("out.gguf").exists());
}

fn draft(target: &Target, own: DSparkConfig) -> Draft {
    let shape = DraftShape {
        block_size: 5,
        num_draft_layers: 2,
        target_layer_ids: vec![LayerId(-1), LayerId(0)],
        kind: DraftKind::DSpark(own),
    };
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), target, 0);
    let parameters = draft.parameters.clone().map(&mut Fill(ChaCha8Rng::seed_from_u64(9)));
    draft.with_parameters(parameters)
}

fn dspark() -> DSparkConfig {
    DSparkConfig::new(39, 8)
}

/// Names and shapes as llama.cpp asks for them, fastest axis first; two layers, hidden size 64, two captured layers,
/// rank 8, vocabulary 40.
fn expected_tensors(with_embeddings: bool) -> Vec<(String, Vec<usize>)> {
    let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, axes: &[usize]| expected.push((name.to_owned(), axes.to_vec()));
    for layer in 0..2 {
        for (name, axes) in [
            ("attn_norm", &[64][..]),
            ("attn_q", &[64, 64]),
            ("attn_k", &[64, 32]),
            ("attn_v", &[64, 32]),
            ("attn_output", &[64, 64]),
            ("attn_q_norm", &[16]),
            ("attn_k_norm", &[16]),
            ("ffn_norm", &[64]),
            ("ffn_gate", &[64, 96]),
            ("ffn_up", &[64, 96]),
            ("ffn_down", &[96, 64]),
        ] {
            add(&format!("blk.{layer}.{name}.weight"), axes);
        }
    }
    for (name, axes) in [
        ("fc.weight", &[128, 64][..]),
        ("enc.output_norm.weight", &[64]),
        ("output_norm.weight", &[64]),
        ("markov_w1.weight", &[8, 40]),
        ("markov_w2.weight", &[8, 40]),
        ("conf_proj.weight", &[72, 1]),
        ("conf_proj.bias", &[1]),
    ] {
        add(name, axes);
    }
    if with_embeddings {
        add("token_embd.weight", &[64, 40]);
        add("output.weight", &[64, 40]);
    }
    expected.sort();
    expected
}

#[test]
fn drafts_have_the_keys_and_tensors_that_llama_cpp_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("draft.gguf");
    // An untied target: its embedding and its head are different tables, and the file has both or neither.
    let target = target(&json!({"tie_word_embeddings": false}));
    let draft = draft(&target, dspark());
    let tokenizer = [("tokenizer.ggml.model".to_owned(), GgufValue::from("gpt2"))];
    for with_embeddings in [true, false] {
        draft.write_gguf("small", &tokenizer, BlockType::F32, with_embeddings, &path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let mut tensors: Vec<(String, Vec<usize>)> = file
            .tensors()
            .iter()
            .map(|tensor| (tensor.name.clone(), tensor.shape.iter().rev().copied().collect()))
            .collect();
        tensors.sort();
        assert_eq!(tensors, expected_tensors(with_embeddings));
        for (key, value) in [
            ("general.architecture", GgufValue::from("dflash")),
            ("general.name", "small".into()),
            ("dflash.block_count", GgufValue::Integer(2)),
            ("dflash.context_length", GgufValue::Integer(128)),
            ("dflash.embedding_length", GgufValue::Integer(64)),
            ("dflash.feed_forward_length", GgufValue::Integer(96)),
            ("dflash.attention.head_count", GgufValue::Integer(4)),
            ("dflash.attention.head_count_kv", GgufValue::Integer(2)),
            ("dflash.attention.key_length", GgufValue::Integer(16)),
            ("dflash.attention.value_length", GgufValue::Integer(16)),
            ("dflash.attention.layer_norm_rms_epsilon", GgufValue::Float(1e-5)),
            ("dflash.rope.freq_base", GgufValue::Float(12345.0)),
            ("dflash.block_size", GgufValue::Integer(5)),
            ("dflash.sample_from_anchor", GgufValue::Bool(true)),
            ("dflash.has_confidence_head", GgufValue::Bool(true)),
            ("dflash.target_layers", GgufValue::Integers(vec![0, 1])),
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.mask_token_id", GgufValue::Integer(39)),
        ] {
            assert_eq!(file.get(key), Some(&value), "{key}");
        }
    }
    // Values lie as they do in the module: no rows are moved, and the two tables are not mixed up.
    draft.write_gguf("small", &[], BlockType::F32, true, &path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let values = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let chunks = bytes[tensor.start..tensor.end].chunks(4);
        chunks.map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect::<Vec<f32>>()
    };
    let own = |tensor: Tensor<2>| tensor.try_into_vec_as::<f32>().unwrap();
    assert_eq!(values("fc.weight"), own(draft.parameters.fc.weight.val()));
    let mut modules = WeightsToSave::new();
    modules.add_module(&draft.parameters);
    for (name, _, expected) in modules.into_tensors() {
        assert_eq!(values(&draft_tensor_name(&name).unwrap()), expected, "{name}");
    }
    assert_eq!(values("token_embd.weight"), own(target.embed_tokens().weight.val()));
    assert_eq!(values("output.weight"), own(target.head_weight()));
}

#[test]
fn drafts_that_llama_cpp_would_decode_otherwise_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("draft.gguf");
    let refused = |target: &Value, own: DSparkConfig, field: &str| {
        let draft = draft(&self::target(target), own);
        let error = draft.write_gguf("small", &[], BlockType::F32, true, &path).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
        assert!(!path.exists());
    };
    let plain = json!({});
    refused(&plain, DSparkConfig { markov_rank: 0, enable_confidence_head: false, ..dspark() }, "markov_rank");
    refused(&plain, DSparkConfig { confidence_head_with_markov: false, ..dspark() }, "confidence_head_with_markov");
    let sliding = Some(crate::model::Sliding { window: 4, layers: vec![true, false], causal: true });
    refused(&plain, DSparkConfig { sliding, ..dspark() }, "layer_types");
    let gated = DSparkConfig { markov_head_type: MarkovHeadType::Gated, ..dspark() };
    refused(&plain, gated, "markov_head_type");
    refused(&json!({"attention_bias": true}), dspark(), "attention_bias");
    let fewer = draft(&target(&plain), dspark()).with_vocabulary(DraftVocabulary::most_frequent(&[1; 40], 7));
    let error = fewer.write_gguf("small", &[], BlockType::F32, true, &path).unwrap_err().to_string();
    assert!(error.contains("`draft_vocab_size`") && !path.exists(), "{error}");
}

#[test]
fn llama3_scaling_is_not_written_without_a_word() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let target = target(&json!({"architectures": ["LlamaForCausalLM"], "rope_scaling": scaling}));
    let root = tempfile::tempdir().unwrap();
    target.write_into(root.path(), WeightDtype::F32).unwrap();
    let error = write_target_gguf(root.path(), &[], BlockType::F32, &root.path().join("out.gguf")).unwrap_err();
    assert!(error.to_string().contains("`rope_scaling`"), "{error}");
}
