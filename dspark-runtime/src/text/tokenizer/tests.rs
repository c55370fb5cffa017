use serde_json::json;

use super::*;
use crate::text::testing::{self, load, write};

#[test]
fn a_byte_level_text_comes_back() {
    let tokenizer = load(&testing::byte_level());
    let text = "<|start|>the thing, größer 🦀\n<|end|>";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the thing, größer 🦀\n");
}

#[test]
fn special_tokens_are_added_on_request() {
    let tokenizer = load(&testing::sentence_piece());
    let plain = tokenizer.encode("the", false).unwrap();
    let with_start = tokenizer.encode("the", true).unwrap();
    assert_eq!(with_start, [&[1], plain.as_slice()].concat());
}

#[test]
fn offsets_cover_the_text_with_its_whitespace() {
    let tokenizer = load(&testing::byte_level());
    let text = "a th  é\n<|end|>\n";
    let mut covered = 0;
    for (id, bytes) in tokenizer.encode_with_offsets(text, false).unwrap() {
        let token = tokenizer.token(id).unwrap();
        assert!(bytes.start <= covered && bytes.end >= covered, "{token} at {bytes:?}, covered {covered}");
        covered = bytes.end;
    }
    assert_eq!(covered, text.len());
}

#[test]
fn the_first_unused_row_lies_after_the_last_token() {
    let tokenizer = load(&testing::byte_level());
    let size = tokenizer.vocabulary_size();
    assert_eq!(tokenizer.first_unused_row(size), None);
    assert_eq!(tokenizer.first_unused_row(size + 5), Some(TokenId::try_from(size).unwrap()));
    assert!(tokenizer.is_token_used(0) && !tokenizer.is_token_used(TokenId::try_from(size).unwrap()));
}

#[test]
fn special_tokens_are_listed() {
    let tokenizer = load(&testing::byte_level());
    let listed: Vec<String> = tokenizer.special_tokens().into_iter().map(|(_, token)| token).collect();
    assert_eq!(listed, ["<|start|>", "<|end|>"]);
    assert!(tokenizer.is_special(tokenizer.token_id("<|end|>").unwrap()));
    assert!(!tokenizer.is_special(tokenizer.token_id("<note>").unwrap()));
}

#[test]
fn configured_tokens_are_found_in_either_form() {
    let directory = testing::byte_level();
    let config = json!({
        "bos_token": {"content": "<|start|>", "lstrip": false}, "eos_token": "<|end|>", "pad_token": null,
    });
    write(&directory, "tokenizer_config.json", &config);
    let tokenizer = load(&directory);
    assert_eq!(tokenizer.bos_token_id(), tokenizer.token_id("<|start|>"));
    assert_eq!(tokenizer.eos_token_id(), tokenizer.token_id("<|end|>"));
    assert_eq!(tokenizer.pad_token_id(), None);
    assert_eq!(tokenizer.stop_token_ids(), [tokenizer.eos_token_id().unwrap()]);
}

#[test]
fn an_answer_ends_at_every_end_token_that_a_file_names() {
    let directory = testing::byte_level();
    write(&directory, "config.json", &json!({"eos_token_id": 7}));
    assert_eq!(load(&directory).stop_token_ids(), [7]);
    write(&directory, "generation_config.json", &json!({"eos_token_id": [5, 6, 5]}));
    assert_eq!(load(&directory).stop_token_ids(), [5, 6, 7]);
    write(&directory, "tokenizer_config.json", &json!({"eos_token": "<|end|>"}));
    let tokenizer = load(&directory);
    assert_eq!(tokenizer.stop_token_ids(), [5, 6, 7, tokenizer.eos_token_id().unwrap()]);
    write(&directory, "generation_config.json", &json!({"eos_token_id": tokenizer.eos_token_id()}));
    write(&directory, "config.json", &json!({"eos_token_id": null, "text_config": {"eos_token_id": [8]}}));
    assert_eq!(load(&directory).stop_token_ids(), [tokenizer.eos_token_id().unwrap(), 8]);
}

#[test]
fn an_end_token_outside_of_the_vocabulary_names_file_and_field() {
    let directory = testing::byte_level();
    let beyond = load(&directory).vocabulary_size();
    for file in ["generation_config.json", "config.json"] {
        write(&directory, file, &json!({"eos_token_id": [2, beyond]}));
        let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
        let words = format!("{file}: `eos_token_id` should be token ids of the vocabulary, found [2,{beyond}]");
        assert!(message.contains(&words), "{message}");
        write(&directory, file, &json!({"eos_token_id": 2}));
    }
    // A row of the embedding that no token uses can be sampled.
    write(&directory, "config.json", &json!({"eos_token_id": beyond, "vocab_size": beyond + 1}));
    assert_eq!(load(&directory).stop_token_ids(), [2, TokenId::try_from(beyond).unwrap()]);
}

#[test]
fn a_wrong_stop_token_names_file_and_field() {
    let directory = testing::byte_level();
    write(&directory, "config.json", &json!({"eos_token_id": ["two"]}));
    let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("config.json: `eos_token_id`") && message.contains("two"), "{message}");
}

#[test]
fn the_template_file_wins_over_the_field() {
    let directory = testing::byte_level();
    assert!(load(&directory).chat_template().is_none());
    write(&directory, "tokenizer_config.json", &json!({"chat_template": "field"}));
    assert_eq!(load(&directory).chat_template().unwrap().source(), "field");
    std::fs::write(directory.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(load(&directory).chat_template().unwrap().source(), "file");
}

#[test]
fn chat_templates_are_found_in_every_file_and_contradictions_are_said() {
    let directory = testing::byte_level();
    let source = || {
        let tokenizer = load(&directory);
        (tokenizer.chat_template().unwrap().source().to_owned(), tokenizer.contradictions().len())
    };
    write(&directory, "chat_template.json", &json!({"chat_template": {"default": "processor", "tool_use": "tools"}}));
    assert_eq!(source(), ("processor".to_owned(), 0));
    write(&directory, "tokenizer_config.json", &json!({"chat_template": "processor"}));
    assert_eq!(source(), ("processor".to_owned(), 0), "the same template twice");
    write(&directory, "tokenizer_config.json", &json!({"chat_template": "field"}));
    assert_eq!(source(), ("processor".to_owned(), 1));
    std::fs::create_dir(directory.path().join("additional_chat_templates")).unwrap();
    std::fs::write(directory.path().join("additional_chat_templates/tool_use.jinja"), "tools").unwrap();
    assert_eq!(source(), ("processor".to_owned(), 1));
    std::fs::write(directory.path().join("additional_chat_templates/default.jinja"), "folder").unwrap();
    assert_eq!(source(), ("folder".to_owned(), 2));
    // A byte order mark is no part of the template.
    std::fs::write(directory.path().join("chat_template.jinja"), "\u{feff}file").unwrap();
    assert_eq!(source(), ("file".to_owned(), 3));
    let tokenizer = load(&directory);
    let words = ["chat_template.jinja; ", "chat_template.json (chat_template) contains a different one"];
    assert!(
        words.iter().all(|word| tokenizer.contradictions()[1].contains(word)),
        "{:?}",
        tokenizer.contradictions()
    );

    write(
        &directory,
        "chat_template.json",
        &json!({"chat_template": [{"name": "rag", "template": "a"}, {"name": "x"}]}),
    );
    let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("chat_template.json: `chat_template` should be"), "{message}");
}

#[test]
fn fields_that_the_tokeniser_contradicts_are_named() {
    let directory = testing::sentence_piece();
    let config =
        |bos: bool| json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": bos, "add_eos_token": false});
    write(&directory, "tokenizer_config.json", &config(true));
    assert!(load(&directory).contradictions().is_empty(), "{:?}", load(&directory).contradictions());
    write(&directory, "tokenizer_config.json", &config(false));
    let contradictions = load(&directory).contradictions().to_vec();
    assert!(
        matches!(&contradictions[..], [only] if only.contains("tokenizer_config.json: add_bos_token is false")),
        "{contradictions:?}"
    );
    let directory = testing::byte_level();
    write(&directory, "tokenizer_config.json", &json!({"add_prefix_space": true, "eos_token": "<|none|>"}));
    let contradictions = load(&directory).contradictions().to_vec();
    let words = ["eos_token \"<|none|>\" is not in the vocabulary", "add_prefix_space is true"];
    assert!(
        contradictions.len() == 2 && words.iter().zip(&contradictions).all(|(word, said)| said.contains(word)),
        "{contradictions:?}"
    );
}

#[test]
fn of_several_templates_the_default_is_taken() {
    let directory = testing::byte_level();
    let named = json!([
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ eos_token }}"},
    ]);
    write(&directory, "tokenizer_config.json", &json!({"chat_template": named, "eos_token": "<|end|>"}));
    let tokenizer = load(&directory);
    let rendered = tokenizer.chat_template().unwrap().render(&[], &serde_json::Map::new(), false).unwrap();
    assert_eq!(rendered, "<|end|>");
}

#[test]
fn tokens_declared_only_in_the_configuration_are_added() {
    let directory = testing::byte_level();
    let size = load(&directory).vocabulary_size();
    let declare =
        |id: usize| json!({"added_tokens_decoder": {id.to_string(): {"content": "<late>", "special": true}}});
    write(&directory, "tokenizer_config.json", &declare(size));
    assert_eq!(load(&directory).token_id("<late>"), Some(TokenId::try_from(size).unwrap()));
    write(&directory, "tokenizer_config.json", &declare(size + 1));
    let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("<late>"), "{message}");
}

#[test]
fn missing_and_broken_files_are_named() {
    let empty = tempfile::TempDir::new().unwrap();
    let message = Tokenizer::from_directory(empty.path()).unwrap_err().to_string();
    assert!(message.contains("cannot read") && message.contains("tokenizer.json"), "{message}");

    let directory = testing::byte_level();
    std::fs::write(directory.path().join("tokenizer_config.json"), "{").unwrap();
    let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json is not valid JSON"), "{message}");

    std::fs::write(directory.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
    let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json cannot be loaded"), "{message}");
}

/// A tokeniser that the library loads and then panics at.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let directory = testing::byte_level();
    let path = directory.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
    directory
}

#[test]
fn a_panic_of_the_library_is_an_error() {
    let replace = json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"});
    let tokenizer = load(&edited(|json| json["normalizer"] = replace));
    for _ in 0..2 {
        for message in [
            tokenizer.encode("the", false).unwrap_err().to_string(),
            tokenizer.encode_with_offsets("the", false).unwrap_err().to_string(),
        ] {
            assert!(
                message.contains("tokenizer.json") && message.contains("the tokeniser library failed"),
                "{message}"
            );
        }
    }
    // Some make it panic at once.
    let fixed = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA////////////////////////////////"});
    let directory = edited(|json| json["normalizer"] = fixed);
    let message = Tokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json cannot be loaded") && message.contains("library failed"), "{message}");
    // The tokeniser itself is as good as before.
    let ids: Vec<TokenId> =
        "the".bytes().filter_map(|byte| tokenizer.token_id(&char::from(byte).to_string())).collect();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "the");
}

#[test]
fn rules_without_bound_are_refused() {
    let tenfold = json!({"type": "Replace", "pattern": {"String": "t"}, "content": "tttttttttt"});
    let rules = json!({"type": "Sequence", "normalizers": vec![tenfold; 12]});
    let message =
        Tokenizer::from_directory(edited(|json| json["normalizer"] = rules).path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json") && message.contains("`normalizer` can make a text"), "{message}");
}
