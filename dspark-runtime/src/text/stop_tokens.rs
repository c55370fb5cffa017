//! The tokens that end an answer.

use std::path::Path;

use serde_json::{Map, Value};

use super::generation_config::GenerationConfig;
use super::tokenizer_config::{read_object, wrong_field};
use super::{TextError, TokenId};

const FIELD: &str = "eos_token_id";

/// Reads `eos_token_id` of `generation_config.json` and of `config.json`, in this order and without duplicates: models
/// name the end of a turn in one of them and the end of a text in the other. `is_token` returns whether the tokeniser
/// has an id.
///
/// # Errors
/// [`TextError::Field`] when a field is no token id, or one that neither the tokeniser nor the embedding has.
pub(super) fn read_stop_token_ids(
    directory: &Path,
    is_token: impl Fn(TokenId) -> bool,
) -> Result<Vec<TokenId>, TextError> {
    let generation = GenerationConfig::of_model(directory)?;
    let path = directory.join("config.json");
    let config = read_object(&path)?.unwrap_or_default();
    // A multimodal model has the settings of its text model in an object of their own.
    let text = config.get("text_config").and_then(Value::as_object);
    let field = |fields: &Map<String, Value>, name: &str| fields.get(name).filter(|value| !value.is_null()).cloned();
    let rows =
        [text, Some(&config)].into_iter().flatten().filter_map(|fields| field(fields, "vocab_size")?.as_u64()).max();
    let in_vocabulary = |id: TokenId| is_token(id) || rows.is_some_and(|rows| u64::from(id) < rows);

    let named = [
        (generation.path(), FIELD.to_owned(), generation.field(FIELD).cloned()),
        (&path, FIELD.to_owned(), field(&config, FIELD)),
        (&path, format!("text_config.{FIELD}"), text.and_then(|text| field(text, FIELD))),
    ];
    let mut ids = Vec::new();
    for (path, name, value) in named {
        let Some(value) = value else { continue };
        let listed = value.as_array().map_or_else(|| vec![&value], |items| items.iter().collect());
        for item in listed {
            let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
            let id = id.ok_or_else(|| wrong_field(path, &name, "a token id or a list of token ids", &value))?;
            if !in_vocabulary(id) {
                return Err(wrong_field(path, &name, "token ids of the vocabulary", &value));
            }
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}
