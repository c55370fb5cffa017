//! The files beside `tokenizer.json`: special tokens, chat template, and the ids that end an answer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{ChatTemplate, TextError, TokenId};
use crate::checkpoint::{LARGEST_TEXT, read_file, read_text};

/// The name a template has when a tokeniser comes with several.
const DEFAULT_TEMPLATE: &str = "default";

/// `tokenizer_config.json` and `chat_template.jinja`, both optional.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    path: PathBuf,
    /// `bos_token`, `eos_token`, ... by name, each the token's text; what the chat template sees.
    pub(super) special_tokens: Map<String, Value>,
    pub(super) chat_template: Option<ChatTemplate>,
    /// Tokens declared here, by ascending id. They may be missing from `tokenizer.json`.
    pub(super) added_tokens: Vec<(TokenId, AddedToken)>,
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
        Ok(config)
    }

    /// What another source than files in a directory says; `path` is that source.
    pub(super) fn new(
        path: PathBuf,
        special_tokens: Map<String, Value>,
        chat_template: Option<ChatTemplate>,
    ) -> Self {
        Self { path, special_tokens, chat_template, added_tokens: Vec::new() }
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

    /// A `chat_template.jinja` beside the configuration wins over the field, as in `transformers`.
    fn read_chat_template(&mut self, directory: &Path, fields: &Map<String, Value>) -> Result<(), TextError> {
        let file = directory.join("chat_template.jinja");
        let (name, source) = match read_text(&file, LARGEST_TEXT) {
            Ok(source) => (file.display().to_string(), source),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match fields.get("chat_template") {
                None | Some(Value::Null) => return Ok(()),
                Some(value) => {
                    (format!("{} (chat_template)", self.path.display()), self.choose_template(value)?.to_owned())
                }
            },
            Err(source) => return Err(TextError::Read { path: file, source }),
        };
        self.chat_template = Some(ChatTemplate::new(name, source, &self.special_tokens)?);
        Ok(())
    }

    /// The field is one template, or a list of `{"name", "template"}` with one called `default`.
    fn choose_template<'a>(&self, value: &'a Value) -> Result<&'a str, TextError> {
        let wrong = || {
            wrong_field(
                &self.path,
                "chat_template",
                "a string, or a list of objects with `name` and `template`, one of them named `default`",
                value,
            )
        };
        match value {
            Value::String(source) => Ok(source),
            Value::Array(named) => named
                .iter()
                .find(|entry| entry["name"] == DEFAULT_TEMPLATE || named.len() == 1)
                .and_then(|entry| entry["template"].as_str())
                .ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

/// The ids that end an answer: `eos_token_id` of `generation_config.json`, or else of `config.json`.
/// `None` if neither file names any.
pub(super) fn read_stop_token_ids(directory: &Path) -> Result<Option<Vec<TokenId>>, TextError> {
    const FIELD: &str = "eos_token_id";
    for file in ["generation_config.json", "config.json"] {
        let path = directory.join(file);
        let Some(fields) = read_object(&path)? else {
            continue;
        };
        let Some(value) = fields.get(FIELD).filter(|value| !value.is_null()) else {
            continue;
        };
        let listed = match value {
            Value::Array(items) => items.iter().collect(),
            single => vec![single],
        };
        let mut ids = Vec::with_capacity(listed.len());
        for item in listed {
            let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
            ids.push(id.ok_or_else(|| wrong_field(&path, FIELD, "a token id or a list of token ids", value))?);
        }
        return Ok(Some(ids));
    }
    Ok(None)
}

/// Special tokens are written as their text, or as an object with the text under `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The object in a JSON file; `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let bytes = match read_file(path, LARGEST_TEXT) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(TextError::Read { path: path.to_owned(), source });
        }
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| TextError::Json { path: path.to_owned(), source })
}

fn wrong_field(path: &Path, field: &str, expected: &'static str, found: &Value) -> TextError {
    const SHOWN: usize = 60;
    let mut shown: String = found.to_string();
    if let Some((cut, _)) = shown.char_indices().nth(SHOWN) {
        shown.truncate(cut);
        shown.push_str("...");
    }
    TextError::Field { path: path.to_owned(), field: field.to_owned(), expected, found: shown }
}
