//! The tokeniser of a Hugging Face model directory or of a GGUF file.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokenizers::{DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::stop_tokens::read_stop_token_ids;
use super::token_bytes::fallback_byte;
use super::tokenizer_config::TokenizerConfig;
use super::user_text::PlainText;
use super::{ChatTemplate, TextError, TokenId, gguf_tokenizer, tokenizer_limits};
use crate::checkpoint::gguf::is_gguf;
use crate::checkpoint::{LARGEST_TEXT, read_file};
use crate::panics;

/// Cuts text into token ids and puts ids together to text again. Cloning is cheap.
///
/// ```
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::text::Tokenizer;
///
/// let tokenizer = Tokenizer::of_model(Path::new("checkpoints/quickstart-target"))?;
/// let ids = tokenizer.encode("What is 347 + 86?", false)?;
/// assert_eq!(tokenizer.decode(&ids, false)?, "What is 347 + 86?");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// Created on first use.
    plain: OnceLock<Result<PlainText, String>>,
}

impl Tokenizer {
    /// Loads the tokeniser that comes with a model: from a Hugging Face directory, or from a GGUF file. If the file's
    /// own metadata has no supported tokeniser, a `tokenizer.json` next to it is used.
    ///
    /// # Errors
    /// Returns the errors of [`from_directory`](Self::from_directory); for a GGUF file, an error that names the key
    /// with an unsupported value.
    pub fn of_model(model: &Path) -> Result<Self, TextError> {
        if !is_gguf(model) {
            return Self::from_directory(model);
        }
        match (gguf_tokenizer::read(model), model.parent()) {
            (Err(TextError::Gguf(_)), Some(folder)) if folder.join("tokenizer.json").is_file() => {
                Self::from_directory(folder)
            }
            (read, _) => read,
        }
    }

    /// Reads `tokenizer.json` (required), `tokenizer_config.json`, the files of chat templates,
    /// `generation_config.json` and `config.json` of a model directory.
    ///
    /// # Errors
    /// A file that cannot be read or understood, with its name and the field.
    pub fn from_directory(directory: &Path) -> Result<Self, TextError> {
        let path = directory.join("tokenizer.json");
        let bytes =
            read_file(&path, LARGEST_TEXT).map_err(|source| TextError::Read { path: path.clone(), source })?;
        let broken = |message: String| TextError::Tokenizer { path: path.clone(), message };
        let mut tokenizer = build(&path, &bytes)?;
        let config = TokenizerConfig::read(directory)?;
        let missing = config.added_tokens.iter().map(|(_, token)| token);
        let missing: Vec<_> =
            missing.filter(|token| tokenizer.token_to_id(&token.content).is_none()).cloned().collect();
        missing.iter().try_for_each(|token| tokenizer_limits::check_added_token(&token.content)).map_err(broken)?;
        panics::caught(|| tokenizer.add_tokens(missing).map_err(|error| error.to_string()))
            .unwrap_or_else(|panic| Err(library_failed(&panic)))
            .map_err(broken)?;
        for (id, token) in &config.added_tokens {
            let actual = tokenizer.token_to_id(&token.content);
            if actual != Some(*id) {
                let actual = actual.map_or("none".to_owned(), |actual| actual.to_string());
                return Err(broken(format!(
                    "tokenizer_config.json gives the added token {:?} the id {id}, but it has the id {actual} here; \
                     the two files belong to different tokenisers",
                    token.content
                )));
            }
        }
        let mut stop_token_ids = read_stop_token_ids(directory, |id| tokenizer.id_to_token(id).is_some())?;
        let eos = config.special_token("eos_token").and_then(|token| tokenizer.token_to_id(token));
        stop_token_ids.extend(eos.filter(|id| !stop_token_ids.contains(id)));
        Ok(Self::assemble(directory, tokenizer, config, stop_token_ids))
    }

    /// A tokeniser of the parts that another source than a directory gives; `json` is what a `tokenizer.json` would hold.
    ///
    /// # Errors
    /// Returns an error if the parts of `json` do not fit each other.
    pub(super) fn from_parts(
        source: &Path,
        json: &[u8],
        config: TokenizerConfig,
        stop_token_ids: Vec<TokenId>,
    ) -> Result<Self, TextError> {
        Ok(Self::assemble(source, build(source, json)?, config, stop_token_ids))
    }

    fn assemble(
        directory: &Path,
        tokenizer: tokenizers::Tokenizer,
        config: TokenizerConfig,
        stop_token_ids: Vec<TokenId>,
    ) -> Self {
        let has_byte_fallback = tokenizer.get_decoder().is_some_and(falls_back_to_bytes);
        let directory = directory.to_owned();
        let plain = OnceLock::new();
        let inner = Inner { directory, tokenizer, config, stop_token_ids, has_byte_fallback, plain };
        Self { inner: Arc::new(inner) }
    }

    /// The directory or GGUF file it was read from.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// The ids of `text`. `add_special_tokens` adds what the tokeniser puts around a plain text, such as a
    /// begin-of-sequence token; a rendered chat template has its special tokens already and wants `false`.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokeniser has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TextError> {
        let encoding = self.guarded(|tokenizer| tokenizer.encode_fast(text, add_special_tokens));
        Ok(encoding.map_err(|message| self.encode_error(text, message))?.get_ids().to_vec())
    }

    /// The ids of `text`, each with the bytes of `text` it stands for, whitespace included. Tokens that are
    /// parts of one character all have that character's bytes; tokens that were added have none.
    ///
    /// # Errors
    /// See [`encode`](Self::encode).
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<(TokenId, Range<usize>)>, TextError> {
        let encoding = self.guarded(|tokenizer| tokenizer.encode(text, add_special_tokens));
        let encoding = encoding.map_err(|message| self.encode_error(text, message))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The text of `ids`, without special tokens if `skip_special_tokens`. Ids that no token has add nothing;
    /// bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokeniser's decoder refuses the tokens.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> Result<String, TextError> {
        let decoded = self.guarded(|tokenizer| tokenizer.decode(ids, skip_special_tokens));
        decoded.map_err(|message| TextError::Decode { path: self.file(), count: ids.len(), message })
    }

    /// Returns the library's result for a text or for ids. A file that loads may still make it panic.
    fn guarded<T>(&self, work: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>) -> Result<T, String> {
        panics::caught(|| work(&self.inner.tokenizer).map_err(|error| error.to_string()))
            .unwrap_or_else(|panic| Err(library_failed(&panic)))
    }

    /// The file that it was read from.
    fn file(&self) -> PathBuf {
        let directory = &self.inner.directory;
        if is_gguf(directory) { directory.clone() } else { directory.join("tokenizer.json") }
    }

    pub(super) fn encode_error(&self, text: &str, message: String) -> TextError {
        TextError::Encode { path: self.file(), text: text.chars().take(60).collect(), message }
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

    /// Returns whether any token has this id.
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
        let added = self.inner.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut special: Vec<_> =
            added.iter().filter(|(_, token)| token.special).map(|(id, token)| (*id, token.content.clone())).collect();
        special.sort_unstable();
        special
    }

    /// Returns whether `skip_special_tokens` leaves this id out.
    pub fn is_special(&self, id: TokenId) -> bool {
        let added = self.inner.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// The id of the configured begin-of-sequence token.
    pub fn bos_token_id(&self) -> Option<TokenId> {
        self.special_token_id("bos_token")
    }

    /// Returns the id of the configured end-of-sequence token. What ends an answer is
    /// [`stop_token_ids`](Self::stop_token_ids).
    pub fn eos_token_id(&self) -> Option<TokenId> {
        self.special_token_id("eos_token")
    }

    /// The id of the configured padding token.
    pub fn pad_token_id(&self) -> Option<TokenId> {
        self.special_token_id("pad_token")
    }

    /// Returns the ids that end an answer: `eos_token_id` of `generation_config.json` and of `config.json`, and the
    /// end-of-sequence token. Empty if the model names none.
    pub fn stop_token_ids(&self) -> &[TokenId] {
        &self.inner.stop_token_ids
    }

    /// Returns contradictions between files of the model, one sentence for each setting that is not used.
    pub fn contradictions(&self) -> Vec<String> {
        self.inner.config.contradictions(self)
    }

    /// Returns the chat template, if the tokeniser has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.config.chat_template.as_ref()
    }

    /// Returns the encoder of messages without special tokens.
    pub(super) fn plain(&self) -> Result<&PlainText, TextError> {
        let inner = &self.inner;
        let make = || {
            let unknown = self.special_token_id("unk_token");
            panics::caught(|| PlainText::of(&inner.tokenizer, unknown)).unwrap_or_else(Err)
        };
        inner.plain.get_or_init(make).as_ref().map_err(|reason| {
            let (path, reason) = (inner.directory.clone(), reason.clone());
            TextError::PlainUserText { path, reason }
        })
    }

    pub(super) fn special_token_id(&self, name: &str) -> Option<TokenId> {
        self.token_id(self.inner.config.special_token(name)?)
    }

    /// Returns whether this token stands for a single byte, `<0x0A>`, and the decoder joins such bytes.
    pub(super) fn is_fallback_byte(&self, id: TokenId) -> bool {
        self.inner.has_byte_fallback && self.token(id).is_some_and(|token| fallback_byte(&token).is_some())
    }

    /// Returns whether this token was added to the vocabulary: its text is stored literally, without a byte alphabet.
    pub(super) fn is_added(&self, id: TokenId) -> bool {
        self.inner.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    /// Returns the tokeniser in the format of `tokenizer.json`.
    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.inner.tokenizer).unwrap_or_default()
    }

    /// The tokeniser with its parts.
    pub(super) fn parts(&self) -> &tokenizers::Tokenizer {
        &self.inner.tokenizer
    }

    pub(super) fn pre_tokenizer(&self) -> Option<&PreTokenizerWrapper> {
        self.inner.tokenizer.get_pre_tokenizer()
    }

    pub(super) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.inner.tokenizer.get_decoder()
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

fn build(path: &Path, json: &[u8]) -> Result<tokenizers::Tokenizer, TextError> {
    panics::caught(|| build_unguarded(json).map_err(|error| error.to_string()))
        .unwrap_or_else(|panic| Err(library_failed(&panic)))
        .map_err(|message| TextError::Tokenizer { path: path.to_owned(), message })
}

fn build_unguarded(json: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    tokenizer_limits::check(json)?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
    // Truncation and padding left over from training would cut or fill every text unasked.
    tokenizer.with_padding(None).with_truncation(None)?;
    if let Some(post_processor) = tokenizer.get_post_processor() {
        let mut post_processor = post_processor.clone();
        keep_whitespace_in_offsets(&mut post_processor);
        tokenizer.with_post_processor(Some(post_processor));
    }
    Ok(tokenizer)
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

fn library_failed(panic: &str) -> String {
    format!(
        "the tokeniser library failed: {panic}; the file is damaged or uses features that the library does not support"
    )
}

#[cfg(test)]
mod tests;
