//! The tiny target's tokeniser: byte-level BPE, trained on the quickstart's own conversations.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use dspark_runtime::checkpoint::write_file;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as SplitAt, SplitPattern};
use tokenizers::{AddedToken, DecoderWrapper, SplitDelimiterBehavior, Tokenizer};

use crate::conversation::Domain;
use crate::split::{Split, conversations};

/// Tokens of the shipped tokeniser, special tokens included.
pub const VOCABULARY_SIZE: usize = 1536;

/// Conversations per domain that merges are learned from.
const CONVERSATIONS: usize = 6000;

const END_OF_TEXT: &str = "<|endoftext|>";
const START_OF_TURN: &str = "<|im_start|>";
const END_OF_TURN: &str = "<|im_end|>";

/// ChatML without a default system prompt: every message between the turn tokens, its role on the first line.
pub const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
";

/// Boundaries that merges must not cross: words with the space before them, runs of punctuation likewise, single digits
/// (so that every number is written digit by digit), line breaks with the indentation after them, other white
/// space.
const PIECES: &str = r" ?\p{L}+(?:'\p{L}+)?|\p{N}| ?[^\s\p{L}\p{N}]+|\n *|\s";

/// Trains the tokeniser on the training streams of `seed` and writes `tokenizer.json`,
/// `tokenizer_config.json` (with [`CHAT_TEMPLATE`]) and `generation_config.json` into `folder`, which is made
/// if needed. The ids are 0 `<|endoftext|>`, 1 `<|im_start|>`, 2 `<|im_end|>`, then the 256 bytes, then
/// merges. Equal arguments give equal files.
pub fn train_tokenizer(folder: &Path, seed: u64, vocabulary_size: usize) -> Result<()> {
    let tokenizer = train(seed, vocabulary_size).map_err(|error| anyhow!(error))?;
    let found = tokenizer.get_vocab_size(true);
    ensure!(found == vocabulary_size, "{vocabulary_size} tokens were requested, but the conversations give {found}");
    let model = tokenizer.to_string(true).map_err(|error| anyhow!(error))?;
    write_file(&folder.join("tokenizer.json"), model.as_bytes())?;
    let special = |content: &str| {
        json!({
            "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
            "special": true,
        })
    };
    let config = json!({
        "added_tokens_decoder": {
            "0": special(END_OF_TEXT), "1": special(START_OF_TURN), "2": special(END_OF_TURN),
        },
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "bos_token": null,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": null,
    });
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    let generation = json!({"do_sample": true, "eos_token_id": 2, "pad_token_id": 0, "temperature": 1.0});
    write_json(&folder.join("generation_config.json"), &generation)
}

fn train(seed: u64, vocabulary_size: usize) -> tokenizers::Result<Tokenizer> {
    let split = SplitAt::new(SplitPattern::Regex(PIECES.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    let special = [END_OF_TEXT, START_OF_TURN, END_OF_TURN].map(|token| AddedToken::from(token, true));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocabulary_size)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.to_vec())
        .show_progress(false)
        .build()
        .into();
    let texts: Vec<String> = Domain::ALL
        .into_iter()
        .flat_map(|domain| conversations(domain, Split::Train, seed).take(CONVERSATIONS))
        .flat_map(|conversation| conversation.exchanges)
        .flat_map(|exchange| [format!("user\n{}", exchange.user), format!("assistant\n{}", exchange.assistant)])
        .collect();
    tokenizer.train(&mut trainer, texts.into_iter())?;
    Ok(tokenizer)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(write_file(path, format!("{value:#}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_alone_text_survives_and_training_repeats() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        train_tokenizer(&first, 1, 700).unwrap();
        train_tokenizer(&second, 1, 700).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert_eq!(std::fs::read(first.join(file)).unwrap(), std::fs::read(second.join(file)).unwrap(), "{file}");
        }

        let tokenizer = Tokenizer::from_file(first.join("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 700);
        for (id, token) in [END_OF_TEXT, START_OF_TURN, END_OF_TURN].into_iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
        }
        let text = "<|im_start|>user\nWhat is 1234 + 56?<|im_end|>\n\tdef f(x1):\n    return 'naïve – ☃'  \n";
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
        for token in encoding.get_tokens() {
            assert!(token.len() == 1 || !token.contains(|c: char| c.is_ascii_digit()), "{token}");
        }
        assert_eq!(encoding.get_ids()[0], 1);

        let config: Value =
            serde_json::from_slice(&std::fs::read(first.join("tokenizer_config.json")).unwrap()).unwrap();
        assert_eq!(config["chat_template"], CHAT_TEMPLATE);
    }

    #[test]
    fn a_vocabulary_that_cannot_be_filled_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for size in [100, 1_000_000] {
            let message = train_tokenizer(folder.path(), 1, size).unwrap_err().to_string();
            assert!(message.contains(&format!("{size} tokens were requested")), "{message}");
        }
    }
}
