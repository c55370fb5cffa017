use std::path::PathBuf;

use tempfile::TempDir;

use super::super::testing::{byte_level, load, sentence_piece, write};
use super::*;
use crate::checkpoint::gguf::{GgufValue, GgufWriter};

const TEXTS: [&str; 7] = [
    "the path",
    "  Two spaces, the\tend.\n\n",
    "1234 apples & 56.78 pears, it's 'LL they'll",
    "<|start|>the <note>path<|end|>",
    "日本語 🙂 naïve",
    "a+b<=c ~ $5^2 |x|",
    "",
];

/// The small tokeniser with other pre-tokenisation rules, and with additional files.
fn directory(pre: &str) -> TempDir {
    let directory = byte_level();
    let path = directory.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let rules = rules(pre).unwrap();
    json["normalizer"] = rules.normalizer;
    json["pre_tokenizer"] = rules.pre_tokenizer;
    std::fs::write(&path, json.to_string()).unwrap();
    let template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";
    let config = json!({"bos_token": "<|start|>", "eos_token": "<|end|>", "chat_template": template});
    write(&directory, "tokenizer_config.json", &config);
    directory
}

fn file(directory: &TempDir, metadata: Vec<(String, GgufValue)>) -> PathBuf {
    let path = directory.path().join("model.gguf");
    GgufWriter::new(metadata).write(&path).unwrap();
    path
}

/// More rows than tokens, as padded embeddings have.
const ROWS: usize = 270;

#[test]
fn a_tokeniser_survives_the_way_through_a_file() {
    for pre in ["gpt-2", "smollm", "qwen2", "default"] {
        let (source, empty) = (directory(pre), TempDir::new().unwrap());
        let original = load(&source);
        let metadata = original.gguf_metadata(ROWS).unwrap();
        let name = metadata.iter().find(|(key, _)| key == PRE).map(|(_, value)| value.clone());
        assert_eq!(name, Some(GgufValue::from(pre)));
        let read = Tokenizer::of_model(&file(&empty, metadata)).unwrap();
        for text in TEXTS {
            let ids = original.encode(text, true).unwrap();
            assert_eq!(read.encode(text, true).unwrap(), ids, "{pre}: {text:?}");
            assert_eq!(read.decode(&ids, false).unwrap(), text);
            let offsets = original.encode_with_offsets(text, false).unwrap();
            assert_eq!(read.encode_with_offsets(text, false).unwrap(), offsets, "{pre}: {text:?}");
        }
        assert_eq!(read.special_tokens(), original.special_tokens());
        assert_eq!(read.stop_token_ids(), original.stop_token_ids());
        assert_eq!((read.bos_token_id(), read.eos_token_id()), (original.bos_token_id(), original.eos_token_id()));
        assert_eq!(read.vocabulary_size(), original.vocabulary_size());
        assert_eq!(read.first_unused_row(ROWS), original.first_unused_row(ROWS));
        let render = |tokenizer: &Tokenizer| {
            let messages = [json!({"role": "user", "content": "the"})];
            tokenizer.chat_template().unwrap().render(&messages, &Map::new(), true).unwrap()
        };
        assert_eq!(render(&read), render(&original));
    }
}

#[test]
fn three_stop_tokens_survive_and_more_are_refused() {
    let (source, empty) = (directory("gpt-2"), TempDir::new().unwrap());
    write(&source, "generation_config.json", &json!({"eos_token_id": [5, 6]}));
    let original = load(&source);
    let read = Tokenizer::of_model(&file(&empty, original.gguf_metadata(ROWS).unwrap())).unwrap();
    let end = original.eos_token_id().unwrap();
    assert_eq!((original.stop_token_ids(), read.stop_token_ids()), (&[5, 6, end][..], &[end, 5, 6][..]));
    write(&source, "config.json", &json!({"eos_token_id": 7}));
    let message = load(&source).gguf_metadata(ROWS).unwrap_err().to_string();
    assert!(message.contains(&format!("stop tokens [5, 6, 7, {end}]")), "{message}");
}

#[test]
fn names_of_pre_tokenisers_cut_as_llama_cpp_does() {
    let pieces = |pre: &str, text: &str| {
        let tokenizer = load(&directory(pre));
        let json = tokenizer.to_json();
        // Without merges every byte is a token, so what was cut shows in the pre-tokeniser alone.
        let wrapper: tokenizers::PreTokenizerWrapper = serde_json::from_value(json["pre_tokenizer"].clone()).unwrap();
        let mut text = tokenizers::PreTokenizedString::from(text);
        tokenizers::PreTokenizer::pre_tokenize(&wrapper, &mut text).unwrap();
        let splits = text.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        splits.into_iter().map(|(piece, _, _)| piece.replace('Ġ', " ")).collect::<Vec<String>>()
    };
    assert_eq!(pieces("gpt-2", "at 12345 a.m.!"), ["at", " 12345", " a", ".", "m", ".!"]);
    assert_eq!(pieces("smollm", "at 123 a.m.!"), ["at", " ", "1", "2", "3", " a", ".", "m", ".!"]);
    assert_eq!(pieces("qwen2", "at 123 a.m.!"), ["at", " ", "1", "2", "3", " a", ".m", ".!"]);
    assert_eq!(pieces("default", "at 12345 <b>"), ["at", " ", "123", "45", " ", "<", "b", ">"]);
}

#[test]
fn tokens_around_a_text_survive() {
    let (source, empty) = (directory("gpt-2"), TempDir::new().unwrap());
    let mut metadata = load(&source).gguf_metadata(ROWS).unwrap();
    let flag = |metadata: &mut Vec<(String, GgufValue)>, key: &str| {
        metadata.iter_mut().find(|(known, _)| known == key).unwrap().1 = GgufValue::Bool(true);
    };
    for (key, bos, eos) in [(ADD_BOS, true, false), (ADD_EOS, true, true)] {
        flag(&mut metadata, key);
        let read = Tokenizer::of_model(&file(&empty, metadata.clone())).unwrap();
        let mut expected = read.encode("the", false).unwrap();
        if bos {
            expected.insert(0, read.bos_token_id().unwrap());
        }
        if eos {
            expected.push(read.eos_token_id().unwrap());
        }
        assert_eq!(read.encode("the", true).unwrap(), expected);
        // And back again.
        assert_eq!(read.gguf_metadata(ROWS).unwrap(), metadata);
    }
    metadata.retain(|(key, _)| key != "tokenizer.ggml.bos_token_id");
    let error = Tokenizer::of_model(&file(&empty, metadata)).unwrap_err().to_string();
    assert!(error.contains(ADD_BOS), "{error}");
}

#[test]
fn other_tokenisers_are_named_and_a_file_beside_helps() {
    let (source, empty) = (directory("smollm"), TempDir::new().unwrap());
    let metadata = load(&source).gguf_metadata(ROWS).unwrap();
    let with = |key: &str, value: Option<GgufValue>| {
        let mut metadata = metadata.clone();
        metadata.retain(|(known, _)| known != key);
        metadata.extend(value.map(|value| (key.to_owned(), value)));
        metadata
    };
    for (key, value) in [
        (MODEL, Some(GgufValue::from("llama"))),
        (MODEL, None),
        (PRE, Some(GgufValue::from("llama-bpe"))),
        (PRE, None),
        (TOKENS, None),
        (TOKENS, Some(GgufValue::Texts(vec!["a".to_owned(), "a".to_owned()]))),
        (MERGES, Some(GgufValue::Integer(3))),
        (TOKEN_TYPES, Some(GgufValue::Integers(vec![1]))),
        ("tokenizer.ggml.eos_token_id", Some(GgufValue::Integer(100_000))),
        ("tokenizer.ggml.add_space_prefix", Some(GgufValue::Bool(true))),
    ] {
        let mut metadata = with(key, value);
        if key == TOKENS {
            metadata.retain(|(known, _)| known != TOKEN_TYPES);
        }
        let error = Tokenizer::of_model(&file(&empty, metadata)).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains("model.gguf"), "{key}: {error}");
    }
    // A merge of tokens that are not there is the library's to find.
    let broken = with(MERGES, Some(GgufValue::Texts(vec!["xx yy".to_owned()])));
    let error = Tokenizer::of_model(&file(&empty, broken)).unwrap_err();
    assert!(matches!(error, TextError::Tokenizer { .. }), "{error}");
    // With a tokenizer.json in the same folder the unknown name does no harm.
    let beside = file(&source, with(PRE, Some(GgufValue::from("llama-bpe"))));
    let read = Tokenizer::of_model(&beside).unwrap();
    assert_eq!(read.encode(TEXTS[3], true).unwrap(), load(&source).encode(TEXTS[3], true).unwrap());
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let refused = |tokenizer: &Tokenizer, rows: usize, word: &str| {
        let error = tokenizer.gguf_metadata(rows).unwrap_err();
        assert!(matches!(error, TextError::NotForGguf { .. }) && error.to_string().contains(word), "{error}");
    };
    refused(&load(&sentence_piece()), ROWS, "byte_fallback");
    refused(&load(&directory("smollm")), 260, "260 rows");
    let edited = |change: fn(&mut Value)| {
        let directory = directory("smollm");
        let path = directory.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        load(&directory)
    };
    refused(&edited(|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})), ROWS, "Whitespace");
    refused(&edited(|json| json["normalizer"] = json!({"type": "Lowercase"})), ROWS, "Lowercase");
    refused(&edited(|json| json["decoder"] = json!({"type": "Fuse"})), ROWS, "decoder");
    // Qwen's rules with and without composing characters are the same to llama.cpp.
    edited(|json| json["normalizer"] = json!({"type": "NFC"})).gguf_metadata(ROWS).unwrap();
}
