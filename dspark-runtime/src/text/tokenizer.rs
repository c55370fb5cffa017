//! The tokeniser of a Hugging Face model directory.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::{DecoderWrapper, PostProcessorWrapper};

use super::tokenizer_config::{TokenizerConfig, read_stop_token_ids};
use super::{ChatTemplate, TextError, TokenId};

/// Cuts text into token ids and puts ids together to text again. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    config: TokenizerConfig,
    stop_token_ids: Vec<TokenId>,
    has_byte_fallback: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json` (required), `tokenizer_config.json`, `chat_template.jinja`,
    /// `generation_config.json` and `config.json` of a model directory.
    ///
    /// # Errors
    /// A file that cannot be read or understood, with its name and the field.
    pub fn from_directory(directory: &Path) -> Result<Self, TextError> {
        let path = directory.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TextError::Read {
            path: path.clone(),
            source,
        })?;
        let broken = |message: String| TextError::Tokenizer {
            path: path.clone(),
            message,
        };
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| broken(error.to_string()))?;
        // Truncation and padding left over from training would cut or fill every text unasked.
        tokenizer
            .with_padding(None)
            .with_truncation(None)
            .map_err(|error| broken(error.to_string()))?;
        if let Some(post_processor) = tokenizer.get_post_processor() {
            let mut post_processor = post_processor.clone();
            keep_whitespace_in_offsets(&mut post_processor);
            tokenizer.with_post_processor(Some(post_processor));
        }

        let config = TokenizerConfig::read(directory)?;
        for (id, token) in &config.added_tokens {
            if tokenizer.token_to_id(&token.content).is_none() {
                tokenizer
                    .add_tokens([token.clone()])
                    .map_err(|error| broken(error.to_string()))?;
            }
            let actual = tokenizer.token_to_id(&token.content);
            if actual != Some(*id) {
                let actual = actual.map_or("none".to_owned(), |actual| actual.to_string());
                return Err(broken(format!(
                    "tokenizer_config.json gives the added token {:?} the id {id}, here it has the id {actual}; \
                     the two files belong to different tokenisers",
                    token.content
                )));
            }
        }
        let stop_token_ids = match read_stop_token_ids(directory)? {
            Some(ids) => ids,
            None => config
                .special_token("eos_token")
                .and_then(|token| tokenizer.token_to_id(token))
                .into_iter()
                .collect(),
        };
        let has_byte_fallback = tokenizer.get_decoder().is_some_and(falls_back_to_bytes);
        let directory = directory.to_owned();
        Ok(Self {
            inner: Arc::new(Inner {
                directory,
                tokenizer,
                config,
                stop_token_ids,
                has_byte_fallback,
            }),
        })
    }

    /// The directory it was read from.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// The ids of `text`. `add_special_tokens` adds what the tokeniser puts around a plain text, such as a
    /// begin-of-sequence token; a rendered chat template has its special tokens already and wants `false`.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokeniser has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TextError> {
        let encoding = self
            .inner
            .tokenizer
            .encode_fast(text, add_special_tokens)
            .map_err(|error| encode_error(text, &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text`, each with the bytes of `text` it stands for, whitespace included. Tokens that are
    /// parts of one character all have that character's bytes; tokens that were added have none.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<(TokenId, Range<usize>)>, TextError> {
        let encoding = self
            .inner
            .tokenizer
            .encode(text, add_special_tokens)
            .map_err(|error| encode_error(text, &error))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The text of `ids`, without special tokens if `skip_special_tokens`. Ids that no token has add nothing;
    /// bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokeniser's decoder refuses the tokens.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> Result<String, TextError> {
        self.inner
            .tokenizer
            .decode(ids, skip_special_tokens)
            .map_err(|error| TextError::Decode {
                count: ids.len(),
                message: error.to_string(),
            })
    }

    /// The id of a token as it stands in the vocabulary, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token with this id as it stands in the vocabulary, which for most is not the text it decodes to.
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The number of tokens, added ones included. Ids may have gaps, so the largest may be beyond it.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// Whether any token has this id.
    pub fn is_token_used(&self, id: TokenId) -> bool {
        self.inner.tokenizer.id_to_token(id).is_some()
    }

    /// The first of `embedding_rows` rows that no token uses: where a draft's mask token can live. Embeddings
    /// have such rows when they were padded to a round size.
    pub fn first_unused_row(&self, embedding_rows: usize) -> Option<TokenId> {
        let rows = TokenId::try_from(embedding_rows).unwrap_or(TokenId::MAX);
        (0..rows).find(|id| !self.is_token_used(*id))
    }

    /// Every special token with its id, by ascending id.
    pub fn special_tokens(&self) -> Vec<(TokenId, String)> {
        let added = self
            .inner
            .tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder();
        let mut special: Vec<_> = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (*id, token.content.clone()))
            .collect();
        special.sort_unstable();
        special
    }

    /// Whether `skip_special_tokens` leaves this id out.
    pub fn is_special(&self, id: TokenId) -> bool {
        let added = self
            .inner
            .tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// The id of the configured begin-of-sequence token.
    pub fn bos_token_id(&self) -> Option<TokenId> {
        self.configured_token_id("bos_token")
    }

    /// The id of the configured end-of-sequence token. What ends an answer is
    /// [`stop_token_ids`](Self::stop_token_ids).
    pub fn eos_token_id(&self) -> Option<TokenId> {
        self.configured_token_id("eos_token")
    }

    /// The id of the configured padding token.
    pub fn pad_token_id(&self) -> Option<TokenId> {
        self.configured_token_id("pad_token")
    }

    /// The ids that end an answer: `eos_token_id` of `generation_config.json`, else of `config.json`, else the
    /// end-of-sequence token. Empty if the directory names none.
    pub fn stop_token_ids(&self) -> &[TokenId] {
        &self.inner.stop_token_ids
    }

    /// The chat template, if the tokeniser has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.config.chat_template.as_ref()
    }

    fn configured_token_id(&self, name: &str) -> Option<TokenId> {
        self.token_id(self.inner.config.special_token(name)?)
    }

    /// Whether this token stands for a single byte, `<0x0A>`, and the decoder joins such bytes.
    pub(super) fn is_fallback_byte(&self, id: TokenId) -> bool {
        self.inner.has_byte_fallback
            && self.token(id).is_some_and(|token| {
                token
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'))
                    .is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
            })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .field("stop_token_ids", &self.stop_token_ids())
            .field("chat_template", &self.chat_template())
            .finish_non_exhaustive()
    }
}

/// Some tokenisers report offsets without the whitespace of a token. A loss mask needs to know where a
/// newline is, and nothing else here looks at offsets.
fn keep_whitespace_in_offsets(post_processor: &mut PostProcessorWrapper) {
    match post_processor {
        PostProcessorWrapper::ByteLevel(byte_level) => byte_level.trim_offsets = false,
        PostProcessorWrapper::Roberta(roberta) => *roberta = roberta.clone().trim_offsets(false),
        PostProcessorWrapper::Sequence(sequence) => {
            sequence.as_mut().iter_mut().for_each(keep_whitespace_in_offsets);
        }
        PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_) => {}
    }
}

fn falls_back_to_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(falls_back_to_bytes),
        _ => false,
    }
}

fn encode_error(text: &str, error: &tokenizers::Error) -> TextError {
    TextError::Encode {
        text: text.chars().take(60).collect(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
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
            assert!(
                bytes.start <= covered && bytes.end >= covered,
                "{token} at {bytes:?}, covered {covered}"
            );
            covered = bytes.end;
        }
        assert_eq!(covered, text.len());
    }

    #[test]
    fn the_first_unused_row_lies_after_the_last_token() {
        let tokenizer = load(&testing::byte_level());
        let size = tokenizer.vocabulary_size();
        assert_eq!(tokenizer.first_unused_row(size), None);
        assert_eq!(
            tokenizer.first_unused_row(size + 5),
            Some(TokenId::try_from(size).unwrap())
        );
        assert!(tokenizer.is_token_used(0) && !tokenizer.is_token_used(TokenId::try_from(size).unwrap()));
    }

    #[test]
    fn special_tokens_are_listed() {
        let tokenizer = load(&testing::byte_level());
        let listed: Vec<String> = tokenizer
            .special_tokens()
            .into_iter()
            .map(|(_, token)| token)
            .collect();
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
    fn stop_tokens_come_from_the_generation_settings_first() {
        let directory = testing::byte_level();
        write(&directory, "config.json", &json!({"eos_token_id": 7}));
        assert_eq!(load(&directory).stop_token_ids(), [7]);
        write(
            &directory,
            "generation_config.json",
            &json!({"eos_token_id": [5, 6]}),
        );
        assert_eq!(load(&directory).stop_token_ids(), [5, 6]);
    }

    #[test]
    fn a_wrong_stop_token_names_file_and_field() {
        let directory = testing::byte_level();
        write(&directory, "config.json", &json!({"eos_token_id": ["two"]}));
        let message = Tokenizer::from_directory(directory.path())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("config.json: `eos_token_id`") && message.contains("two"),
            "{message}"
        );
    }

    #[test]
    fn the_template_file_wins_over_the_field() {
        let directory = testing::byte_level();
        assert!(load(&directory).chat_template().is_none());
        write(
            &directory,
            "tokenizer_config.json",
            &json!({"chat_template": "field"}),
        );
        assert_eq!(load(&directory).chat_template().unwrap().source(), "field");
        std::fs::write(directory.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(load(&directory).chat_template().unwrap().source(), "file");
    }

    #[test]
    fn of_several_templates_the_default_is_taken() {
        let directory = testing::byte_level();
        let named = json!([
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "{{ eos_token }}"},
        ]);
        write(
            &directory,
            "tokenizer_config.json",
            &json!({"chat_template": named, "eos_token": "<|end|>"}),
        );
        let tokenizer = load(&directory);
        let rendered = tokenizer
            .chat_template()
            .unwrap()
            .render(&[], &serde_json::Map::new(), false)
            .unwrap();
        assert_eq!(rendered, "<|end|>");
    }

    #[test]
    fn tokens_declared_only_in_the_configuration_are_added() {
        let directory = testing::byte_level();
        let size = load(&directory).vocabulary_size();
        let declare = |id: usize| json!({"added_tokens_decoder": {id.to_string(): {"content": "<late>", "special": true}}});
        write(&directory, "tokenizer_config.json", &declare(size));
        assert_eq!(
            load(&directory).token_id("<late>"),
            Some(TokenId::try_from(size).unwrap())
        );
        write(&directory, "tokenizer_config.json", &declare(size + 1));
        let message = Tokenizer::from_directory(directory.path())
            .unwrap_err()
            .to_string();
        assert!(message.contains("<late>"), "{message}");
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let empty = tempfile::TempDir::new().unwrap();
        let message = Tokenizer::from_directory(empty.path()).unwrap_err().to_string();
        assert!(
            message.contains("cannot read") && message.contains("tokenizer.json"),
            "{message}"
        );

        let directory = testing::byte_level();
        std::fs::write(directory.path().join("tokenizer_config.json"), "{").unwrap();
        let message = Tokenizer::from_directory(directory.path())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("tokenizer_config.json is not valid JSON"),
            "{message}"
        );

        std::fs::write(directory.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
        let message = Tokenizer::from_directory(directory.path())
            .unwrap_err()
            .to_string();
        assert!(message.contains("tokenizer.json cannot be loaded"), "{message}");
    }
}
