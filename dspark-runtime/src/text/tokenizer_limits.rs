//! Limits of a `tokenizer.json`.
//!
//! Each rule of a normaliser may replace a letter by several; a dozen such rules in a row make a gigabyte of one letter.
//! The same holds for rules of a decoder. And each regular expression takes time to compile, some a twentieth of a second.
//! So rules are multiplied and expressions counted before the library builds them. What it builds to
//! find added tokens takes a hundred times the memory of their texts.

use serde::Deserialize;
use serde_json::Value;

/// The longest that rules may make a text, as a multiple of its length. Those of Llama 2 reach 12.
const MAX_GROWTH: f64 = 64.0;
/// The most regular expressions. Known tokenisers have fewer than ten.
const MAX_EXPRESSIONS: usize = 64;
/// The longest text of an added token, in bytes. The longest runs of spaces that are tokens have a few hundred.
const MAX_TOKEN: usize = 4096;
/// The longest texts of all added tokens together, in bytes. Known tokenisers have a tenth of it.
const MAX_TOKENS: usize = 2 << 20;

/// The parts of a `tokenizer.json` that hold rules.
#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

/// Refuses rules that make a text too long, more regular expressions than a tokeniser needs, and added tokens that are too
/// long.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    // What is wrong with the file as a whole is the library's to say.
    let Ok(rules) = serde_json::from_slice::<Rules>(json) else { return Ok(()) };
    for token in &rules.added_tokens {
        check_added_token(&token.content)?;
    }
    let bytes: usize = rules.added_tokens.iter().map(|token| token.content.len()).sum();
    if bytes > MAX_TOKENS {
        return Err(format!("the added tokens have {bytes} bytes together, expected at most {MAX_TOKENS}"));
    }
    let parts =
        [("normalizer", &rules.normalizer), ("pre_tokenizer", &rules.pre_tokenizer), ("decoder", &rules.decoder)];
    for (part, rules) in parts {
        let growth = growth(rules);
        if growth > MAX_GROWTH {
            return Err(format!(
                "`{part}` can make a text {growth:.0} times as long, expected at most {MAX_GROWTH:.0} times"
            ));
        }
    }
    let found = [&rules.normalizer, &rules.pre_tokenizer, &rules.decoder].map(expressions).iter().sum::<usize>();
    if found > MAX_EXPRESSIONS {
        return Err(format!(
            "`normalizer`, `pre_tokenizer` and `decoder` have {found} patterns, expected at most {MAX_EXPRESSIONS}"
        ));
    }
    Ok(())
}

/// Refuses an added token that is too long.
pub(super) fn check_added_token(content: &str) -> Result<(), String> {
    if content.len() <= MAX_TOKEN {
        return Ok(());
    }
    let beginning: String = content.chars().take(20).collect();
    let found = content.len();
    Err(format!("the added token that begins with {beginning:?} has {found} bytes, expected at most {MAX_TOKEN}"))
}

/// Every pattern is compiled to a regular expression.
fn expressions(rules: &Value) -> usize {
    match rules {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| usize::from(name == "pattern") + expressions(value)).sum()
        }
        Value::Array(items) => items.iter().map(expressions).sum(),
        _ => 0,
    }
}

fn growth(rules: &Value) -> f64 {
    let length = |field: &str| rules.get(field).and_then(Value::as_str).map_or(0.0, |text| text.len() as f64);
    match rules.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let fields = ["normalizers", "pretokenizers", "decoders"];
            let parts = fields.iter().filter_map(|field| rules.get(*field)?.as_array()).flatten();
            parts.map(growth).product()
        }
        // Every byte becomes a letter of up to two bytes.
        Some("ByteLevel") => 2.0,
        // A space becomes a letter of three bytes, and one is put before every piece.
        Some("Metaspace") => 4.0,
        // A table of its own. Those of published models hold nothing longer.
        Some("Precompiled") => 8.0,
        // An empty text stands between any two letters.
        Some("BPEDecoder") if length("suffix") == 0.0 => 2.0,
        Some("CTC") if length("pad_token") == 0.0 || length("word_delimiter_token") == 0.0 => 2.0,
        Some("Prepend") => 1.0 + length("prepend"),
        Some("Replace") => match rules.get("pattern").and_then(|pattern| pattern.get("String")?.as_str()) {
            Some(text) if !text.is_empty() => (length("content") / text.len() as f64).max(1.0),
            // It may match nothing, between any two letters.
            _ => 1.0 + length("content"),
        },
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    fn normalizer(rules: &Value) -> Result<(), String> {
        check(json!({"normalizer": rules, "model": {}}).to_string().as_bytes())
    }

    #[test]
    fn every_rule_that_grows_counts() {
        let grows = |part: &str, rules: &str, rule: Value, count: usize| {
            let rules = json!({part: {"type": "Sequence", rules: vec![rule; count]}, "model": {}});
            check(rules.to_string().as_bytes())
                .is_err_and(|message| message.starts_with(&format!("`{part}` can make")))
        };
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        assert!(grows("pre_tokenizer", "pretokenizers", byte_level.clone(), 34));
        assert!(!grows("pre_tokenizer", "pretokenizers", byte_level, 2));
        assert!(grows("normalizer", "normalizers", json!({"type": "ByteLevel"}), 34));
        assert!(grows("decoder", "decoders", json!({"type": "BPEDecoder", "suffix": ""}), 40));
        assert!(!grows("decoder", "decoders", json!({"type": "BPEDecoder", "suffix": "</w>"}), 40));
        assert!(grows(
            "decoder",
            "decoders",
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "|"}),
            40
        ));
    }

    #[test]
    fn added_tokens_are_bounded_together() {
        let tokens = |count: usize| {
            let token = json!({"content": "x".repeat(4000)});
            check(json!({"added_tokens": vec![token; count], "model": {}}).to_string().as_bytes())
        };
        assert_eq!(tokens(100), Ok(()));
        assert!(tokens(1000).unwrap_err().contains("4000000 bytes together"));
    }

    #[test]
    fn rules_in_a_row_multiply() {
        let rules = |count: usize| {
            let doubled = replace(json!({"String": "a"}), "aa");
            json!({"type": "Sequence", "normalizers": vec![doubled; count]})
        };
        assert_eq!(normalizer(&rules(6)), Ok(()));
        let message = normalizer(&rules(40)).unwrap_err();
        assert_eq!(message, "`normalizer` can make a text 1099511627776 times as long, expected at most 64 times");
        let nested = json!({"decoder": {"type": "Sequence", "decoders": [rules(4), rules(3)]}});
        assert!(check(nested.to_string().as_bytes()).unwrap_err().starts_with("`decoder` can make a text 128 times"));
        for (rule, fits) in [
            (replace(json!({"String": "``"}), "\""), true),
            (replace(json!({"Regex": "\\s+"}), " "), true),
            (replace(json!({"String": ""}), &"x".repeat(64)), false),
            (replace(json!({"Regex": "x*"}), &"x".repeat(64)), false),
            (json!({"type": "Prepend", "prepend": "x".repeat(64)}), false),
            (json!({"type": "NFKC"}), true),
            (Value::Null, true),
        ] {
            assert_eq!(normalizer(&rule).is_ok(), fits, "{rule}");
        }
    }

    #[test]
    fn rules_of_llama_fit() {
        let rules = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, replace(json!({"String": " "}), "▁"),
        ]});
        assert_eq!(growth(&rules), 12.0);
    }

    #[test]
    fn added_tokens_have_a_length() {
        let token = |length: usize| json!({"added_tokens": [{"id": 0, "content": "x".repeat(length)}]}).to_string();
        assert_eq!(check(token(4096).as_bytes()), Ok(()));
        assert!(check(token(4097).as_bytes()).unwrap_err().contains("has 4097 bytes"));
    }

    #[test]
    fn expressions_are_counted() {
        let split = |count: usize| {
            let split = json!({"type": "Split", "pattern": {"Regex": "\\w{100}"}, "behavior": "Isolated"});
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": vec![split; count]}}).to_string()
        };
        assert_eq!(check(split(64).as_bytes()), Ok(()));
        assert!(check(split(65).as_bytes()).unwrap_err().contains("have 65 patterns"));
    }
}
