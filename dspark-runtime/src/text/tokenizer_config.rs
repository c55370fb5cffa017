//! `tokenizer_config.json`: special and added tokens, and where the chat template is.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{ChatTemplate, TextError, TokenId, Tokenizer, template_files};
use crate::checkpoint::{LARGEST_TEXT, read_file};

/// `tokenizer_config.json` and the files of chat templates, all optional.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    path: PathBuf,
    /// `bos_token`, `eos_token`, ... by name, each the token's text; what the chat template sees.
    pub(super) special_tokens: Map<String, Value>,
    pub(super) chat_template: Option<ChatTemplate>,
    /// Tokens declared here, by ascending id. They may be missing from `tokenizer.json`.
    pub(super) added_tokens: Vec<(TokenId, AddedToken)>,
    /// `add_bos_token` and the like.
    flags: Map<String, Value>,
    /// Templates that are not used.
    contradictions: Vec<String>,
}

impl TokenizerConfig {
    /// Reads what `directory` has.
    pub(super) fn read(directory: &Path) -> Result<Self, TextError> {
        let path = directory.join("tokenizer_config.json");
        let mut config = Self { path, ..Self::default() };
        let fields = read_object(&config.path)?.unwrap_or_default();
        config.read_special_tokens(&fields)?;
        config.read_added_tokens(&fields)?;
        config.read_chat_template(directory, &fields)?;
        config.flags = fields.into_iter().filter(|(_, value)| value.is_boolean()).collect();
        Ok(config)
    }

    /// Creates the configuration from another source than files in a directory; `path` is that source.
    pub(super) fn new(
        path: PathBuf,
        special_tokens: Map<String, Value>,
        chat_template: Option<ChatTemplate>,
    ) -> Self {
        Self { path, special_tokens, chat_template, ..Self::default() }
    }

    /// The text of a special token such as `eos_token`.
    pub(super) fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name).and_then(Value::as_str)
    }

    fn read_special_tokens(&mut self, fields: &Map<String, Value>) -> Result<(), TextError> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        for name in NAMES {
            if let Some(value) = fields.get(name).filter(|value| !value.is_null()) {
                let text = token_text(value)
                    .ok_or_else(|| wrong_field(&self.path, name, "a string or an object with `content`", value))?;
                self.special_tokens.insert(name.to_owned(), Value::from(text));
            }
        }
        if let Some(Value::Array(tokens)) = fields.get("additional_special_tokens") {
            let texts = tokens.iter().filter_map(token_text).map(Value::from).collect();
            self.special_tokens.insert("additional_special_tokens".to_owned(), texts);
        }
        Ok(())
    }

    fn read_added_tokens(&mut self, fields: &Map<String, Value>) -> Result<(), TextError> {
        const FIELD: &str = "added_tokens_decoder";
        let Some(declared) = fields.get(FIELD).filter(|value| !value.is_null()) else {
            return Ok(());
        };
        let declared = declared.as_object().ok_or_else(|| wrong_field(&self.path, FIELD, "an object", declared))?;
        for (id, token) in declared {
            let field = format!("{FIELD}.{id}");
            let number =
                id.parse::<TokenId>().map_err(|_| wrong_field(&self.path, &field, "a token id as the key", token))?;
            let content = token_text(token)
                .ok_or_else(|| wrong_field(&self.path, &field, "an object with `content`", token))?;
            let flag = |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
            let special = flag("special", false);
            let added = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            self.added_tokens.push((number, added));
        }
        self.added_tokens.sort_by_key(|(id, _)| *id);
        Ok(())
    }

    fn read_chat_template(&mut self, directory: &Path, fields: &Map<String, Value>) -> Result<(), TextError> {
        if let Some(found) = template_files::find(directory, (&self.path, fields), &mut self.contradictions)? {
            self.chat_template = Some(ChatTemplate::new(found.name, found.source, &self.special_tokens)?);
        }
        Ok(())
    }

    /// Returns contradictions: settings of files that are not used because other files or the tokeniser itself differ.
    pub(super) fn contradictions(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let path = self.path.display();
        let mut said = self.contradictions.clone();
        for name in ["bos_token", "eos_token"] {
            if let Some(token) = self.special_token(name).filter(|token| tokenizer.token_id(token).is_none()) {
                said.push(format!("{path}: {name} {token:?} is not in the vocabulary"));
            }
        }
        let around = tokenizer.encode("", true).unwrap_or_default();
        let added = |name: &str| tokenizer.special_token_id(name).map(|id| around.contains(&id));
        let pre_tokenizer = tokenizer.pre_tokenizer().and_then(|rules| serde_json::to_value(rules).ok());
        let followed = [
            ("add_bos_token", added("bos_token")),
            ("add_eos_token", added("eos_token")),
            ("add_prefix_space", pre_tokenizer.and_then(|rules| rules.get("add_prefix_space")?.as_bool())),
        ];
        for (field, followed) in followed {
            if let (Some(flag), Some(followed)) = (self.flags.get(field).and_then(Value::as_bool), followed)
                && flag != followed
            {
                said.push(format!(
                    "{path}: {field} is {flag}, but tokenizer.json has {followed} and takes precedence"
                ));
            }
        }
        said
    }
}

/// Special tokens are written as their text, or as an object with the text under `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The object in a JSON file; `None` if there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let bytes = match read_file(path, LARGEST_TEXT) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(TextError::Read { path: path.to_owned(), source });
        }
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| TextError::Json { path: path.to_owned(), source })
}

/// Returns the error for an unexpected value of `field` in `path`.
pub(super) fn wrong_field(path: &Path, field: &str, expected: &'static str, found: &Value) -> TextError {
    TextError::Field { path: path.to_owned(), field: field.to_owned(), expected, found: shortened(found) }
}

/// Returns the beginning of a value as JSON.
pub(super) fn shortened(value: &Value) -> String {
    const SHOWN: usize = 60;
    let mut shown = value.to_string();
    if let Some((cut, _)) = shown.char_indices().nth(SHOWN) {
        shown.truncate(cut);
        shown.push_str("...");
    }
    shown
}
