//! Inputs that are in order, from which others are made.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use dspark_runtime::checkpoint::gguf::{BlockType, GgufValue, GgufWriter};
use parquet::arrow::ArrowWriter;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub const RECIPE: &str = include_str!("../../../recipes/quickstart.toml");

const SPEED_TABLE: &str = r#"{"version": 1, "batch_tokens": [1, 8, 64], "sps": [90.0, 70.5, 12.25], "max_batch_tokens": 64,
 "draft": {"requests": [1, 4], "slots": [1, 7], "seconds": [[0.001, 0.002], [0.002, 0.004]]}}"#;

const CALIBRATION_TABLE: &str = r#"{"temperatures": [1.1, 1.2, 1.3, 1.4, 1.0, 1.0, 1.0], "sts_temperatures": [1.1, 1.2, 1.3, 1.4, 1.0, 1.0,
 1.0], "dataset": "own", "num_samples": 400, "sampling_temperature": 1.0}"#;

const TRACE: &str = r#"{"task":"sums","sample":0,"round":0,"temperature":1.0,"confidence_logits":[2.1,0.3,-1.7],"proposed":3,"accepted":1,"stopped":false,"prompt_tokens":58,"max_new_tokens":256}
{"task":"sums","sample":0,"round":1,"temperature":1.0,"confidence_logits":[2.1,0.3,1e-3],"proposed":2,"accepted":2,"stopped":true}
"#;

const ROWS: &str = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "It is 3, as far as I can see."}]}
{"conversations": [{"from": "human", "value": "é🦀"}, {"from": "gpt", "value": "A crab \u0000 and a letter."}], "system": null}
{"prompt": "Hello", "response": "Good day to you, and to all others.", "text": "A plain text of some words."}
{"turns": ["Add 1 and 2.", "And 3?"]}
{"instruction": "Add.", "input": "1 and 2", "output": "It is 3.", "score": NaN, "finish_reason": "length"}
{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}], "tools": "[{\"name\": \"f\"}]"}
"#;

const ROW_ARRAY: &str = r#"[
  {"conversations": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "It is 3."}]},
  {"prompt": "Hello", "response": "Good day."}
]
"#;

const TEMPLATE: &str = r#"{%- for message in messages -%}{%- if loop.first and tools -%}{{ tools | tojson(indent=2) }}{%- endif -%}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ (message['content'] | trim).split('</think>')[-1] ~ '<|im_end|>\n' -}}
{%- endfor -%}{%- set ns = namespace(n=0) -%}{%- for i in range(3) -%}{%- set ns.n = ns.n + i -%}{%- endfor -%}
{%- macro m(x) -%}{{ x[1:] | upper }}{%- endmacro -%}{{ m("abc") }}{%- if ns.n > 9 %}{{ raise_exception("no") }}{% endif -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"#;

const SPECULATORS: &str = r#"{"architectures": ["DSparkSpeculator"], "speculators_model_type": "dspark", "block_size": 7, "mask_token_id": 1536,
 "markov_rank": 8, "markov_head_type": "vanilla", "aux_hidden_state_layer_ids": [1, 3], "draft_vocab_size": 1552, "target_hidden_size": 192,
 "transformer_layer_config": {"model_type": "qwen3", "hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 6,
 "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 448, "vocab_size": 1552, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
 "max_position_embeddings": 1024}, "speculators_config": {"algorithm": "dspark", "verifier": {"name_or_path": "x"}}}"#;

const DRAFT: &str = r#"{"architectures": ["Qwen3DSparkModel"], "model_type": "qwen3", "hidden_size": 192, "num_hidden_layers": 1,
 "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 448, "vocab_size": 1552, "rms_norm_eps": 1e-6,
 "rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
 "original_max_position_embeddings": 256}, "max_position_embeddings": 1024, "target_layer_ids": [0, 2], "num_target_layers": 5,
 "block_size": 7, "mask_token_id": 1536, "num_anchors": 64, "markov_rank": 8, "enable_confidence_head": true,
 "markov_head_type": "vanilla", "confidence_head_with_markov": true}"#;

const REPLAY: &str = r#"{"version": 1, "convention": {}, "prompts": [{"source": "a", "text": "b", "token_ids": [1, 2], "anchor_position": 1,
 "drafted": [3], "rounds": []}]}"#;

const MANIFEST: &str = r#"{"version": 2, "index_record_size": 32, "hidden_dtype": "bfloat16", "token_dtype": "int32", "mask_dtype": "uint8",
 "target_layer_ids": [0, 2], "hidden_size": 8, "num_samples": 2, "shards": ["shard.bin"]}"#;

/// The bytes of a small file of weights.
pub fn safetensors() -> Vec<u8> {
    let data: Vec<u8> = (0..48).collect();
    let tensors = [
        ("a.weight", TensorView::new(Dtype::F32, vec![3, 4], &data).unwrap()),
        ("b.weight", TensorView::new(Dtype::BF16, vec![24], &data).unwrap()),
        ("c", TensorView::new(Dtype::I64, vec![2, 3], &data).unwrap()),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

/// A model with one tensor and a tokeniser of the 256 bytes and one merge.
fn gguf(folder: &Path) -> Vec<u8> {
    let mut metadata = vec![("general.architecture".to_owned(), GgufValue::Text("qwen3".to_owned()))];
    for (key, size) in [
        ("block_count", 1),
        ("embedding_length", 192),
        ("attention.head_count", 6),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 32),
        ("feed_forward_length", 448),
        ("context_length", 1024),
    ] {
        metadata.push((format!("qwen3.{key}"), GgufValue::Integer(size)));
    }
    metadata.push(("qwen3.attention.layer_norm_rms_epsilon".to_owned(), GgufValue::Float(1e-6)));
    // As byte-level tokenisers write bytes: printable ones as themselves, the others from 256 on.
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let (own, moved): (Vec<u32>, Vec<u32>) = (0..256).partition(printable);
    let codes = own.into_iter().chain((256..).take(moved.len()));
    let mut tokens: Vec<String> = codes.filter_map(char::from_u32).map(String::from).collect();
    tokens.extend(["ab".to_owned(), "<|im_start|>".to_owned(), "<|im_end|>".to_owned()]);
    let types = (0..tokens.len()).map(|token| if token > 256 { 3 } else { 1 }).collect();
    for (key, value) in [
        ("model", GgufValue::Text("gpt2".to_owned())),
        ("pre", GgufValue::Text("qwen2".to_owned())),
        ("eos_token_id", GgufValue::Integer(258)),
        ("tokens", GgufValue::Texts(tokens)),
        ("token_type", GgufValue::Integers(types)),
        ("merges", GgufValue::Texts(vec!["a b".to_owned()])),
    ] {
        metadata.push((format!("tokenizer.ggml.{key}"), value));
    }
    metadata.push(("tokenizer.chat_template".to_owned(), GgufValue::Text(TEMPLATE.to_owned())));
    let mut writer = GgufWriter::new(metadata);
    writer.add("token_embd.weight".to_owned(), &[2, 32], BlockType::Q8_0, || Ok(vec![0.5; 64]));
    let file = folder.join("seed.gguf");
    writer.write(&file).unwrap();
    fs::read(file).unwrap()
}

fn parquet() -> Vec<u8> {
    let prompts = Arc::new(StringArray::from(vec![Some("Add 1 and 2."), None])) as ArrayRef;
    let answers = Arc::new(StringArray::from(vec!["It is 3, I think.", "none of it"])) as ArrayRef;
    let numbers = Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
    let columns = [("prompt", prompts, true), ("response", answers, true), ("id", numbers, true)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// The inputs of a format, and the number of inputs to make of them. Large and slow ones are tried less often.
pub fn of(format: &str, folder: &Path, root: &Path) -> (Vec<Vec<u8>>, usize) {
    let target = root.join("checkpoints/quickstart-target");
    let file = |name: &str| fs::read(target.join(name)).unwrap();
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    match format {
        "safetensors" => (vec![safetensors()], 3000),
        "shard_index" => {
            let index = r#"{"metadata": {"total_size": 144}, "weight_map": {"a.weight": "a.safetensors", "b.weight": "a.safetensors", "c": "a.safetensors"}}"#;
            (texts(&[index]), 2000)
        }
        "gguf" => (vec![gguf(folder)], 1500),
        "target_config" => (vec![file("config.json"), DRAFT.into()], 3000),
        "draft_config" => (texts(&[DRAFT, SPECULATORS]), 3000),
        "tokenizer" => (vec![file("tokenizer.json")], 300),
        "tokenizer_config" => (vec![file("tokenizer_config.json")], 300),
        "generation_config" => (vec![file("generation_config.json")], 200),
        "chat_template" => (texts(&[TEMPLATE]), 300),
        "recipe" => (texts(&[RECIPE]), 2000),
        "override_argument" => {
            (texts(&["train.lr=3e-4", "data.train=[\"a\", \"b\"]", "data.template_arguments={a = 1}"]), 2000)
        }
        "speed_table" => (texts(&[SPEED_TABLE]), 2000),
        "calibration_table" => (texts(&[CALIBRATION_TABLE]), 2000),
        "trace" => (texts(&[TRACE]), 2000),
        "rows" => (texts(&[ROWS, ROW_ARRAY]), 1500),
        "parquet" => (vec![parquet()], 3000),
        "bundle" => (texts(&[REPLAY, MANIFEST]), 2000),
        _ => unreachable!("no seed for {format}"),
    }
}
