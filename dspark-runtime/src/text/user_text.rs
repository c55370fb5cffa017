//! Prompts in which special tokens come from the chat template alone.
//!
//! A rendered conversation is one text, in which the special tokens of the template and those written by a user look
//! alike. To distinguish them, the conversation is rendered a second time with marks next to the users' text. The
//! special tokens without a mark belong to the template. They are renamed in the text, and a tokeniser that knows
//! special tokens by their new names only encodes it. Marks and names are random for each tokeniser, so nobody can
//! write them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, AddedVocabulary};

use super::{ChatTemplate, TextError, TokenId, Tokenizer};
use crate::panics;

/// The treatment of special tokens, such as `<|im_end|>`, in messages and template arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserText {
    /// Special tokens in messages are encoded as such everywhere, like in the `transformers` package.
    #[default]
    WithSpecialTokens,
    /// Their characters are encoded like any other text. Special tokens are those that the tokeniser marks as special.
    Plain,
}

impl ChatTemplate {
    /// Returns the token ids of a prompt: the messages, and the beginning of the assistant's answer.
    ///
    /// # Errors
    /// Returns the errors of [`render`](Self::render) and [`Tokenizer::encode`], and [`TextError::PlainUserText`] if
    /// the special tokens of the template and of the messages cannot be distinguished.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        arguments: &Map<String, Value>,
        user_text: UserText,
    ) -> Result<Vec<TokenId>, TextError> {
        if user_text == UserText::Plain {
            let plain = tokenizer.plain()?;
            for side in [Side::Before, Side::After, Side::Within] {
                let mut marker = Marker { plain, side, marked: false, holds_special_token: false };
                let marked_messages: Vec<Value> = messages.iter().map(|message| marker.value(message)).collect();
                let marked_arguments = marker.object(arguments);
                if !marker.marked {
                    break;
                }
                let text = self.render(messages, arguments, true)?;
                match self.render(&marked_messages, &marked_arguments, true) {
                    Ok(marked) if plain.without_marks(&marked) == text => {
                        let (renamed, own) = plain.renamed(&marked, side);
                        self.check_own(tokenizer, &marked_messages, &marked_arguments, side, &own)?;
                        return plain.encode(tokenizer, &renamed, &text);
                    }
                    // What the template does depends on where the marks are.
                    Ok(_) | Err(TextError::Template { .. }) => {}
                    Err(error) => return Err(error),
                }
                if side == Side::Within && marker.holds_special_token {
                    let reason = format!(
                        "chat template {} transforms special tokens in messages, so they cannot be distinguished \
                         from the template's own; remove the special tokens from the messages",
                        self.name()
                    );
                    return Err(TextError::PlainUserText { path: tokenizer.directory().to_owned(), reason });
                }
            }
            let text = self.render(messages, arguments, true)?;
            let (_, own) = plain.renamed(&text, Side::Before);
            self.check_own(tokenizer, messages, arguments, Side::Before, &own)?;
            return tokenizer.encode(&text, false);
        }
        tokenizer.encode(&self.render(messages, arguments, true)?, false)
    }

    /// Checks that the special tokens that are taken for the template's are its own: those that it writes too when the letters of
    /// the messages stand apart. A template that cuts or replaces parts of a message could make further ones of the rest.
    fn check_own(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        arguments: &Map<String, Value>,
        side: Side,
        own: &[String],
    ) -> Result<(), TextError> {
        let apart: Vec<Value> = messages.iter().map(|message| letters_apart(message, false)).collect();
        let plain = tokenizer.plain()?;
        let same = match self.render(&apart, arguments, true) {
            Ok(text) => plain.renamed(&text, side).1 == own,
            Err(TextError::Template { .. }) => false,
            Err(error) => return Err(error),
        };
        if same {
            return Ok(());
        }
        let reason = format!(
            "chat template {} changes messages in a way that could turn ordinary text into special tokens, which \
             could not be distinguished from its own",
            self.name()
        );
        Err(TextError::PlainUserText { path: tokenizer.directory().to_owned(), reason })
    }
}

/// Returns a message with a mark after every letter of its texts; `is_text` tells whether `value` is one. Names and
/// roles are unchanged.
fn letters_apart(value: &Value, is_text: bool) -> Value {
    const TEXTS: [&str; 3] = ["content", "text", "reasoning_content"];
    match value {
        Value::String(text) if is_text => text.chars().flat_map(|letter| [letter, APART]).collect::<String>().into(),
        Value::Array(items) => items.iter().map(|item| letters_apart(item, is_text)).collect(),
        Value::Object(fields) => {
            let apart = |(name, value): (&String, &Value)| {
                (name.clone(), letters_apart(value, TEXTS.contains(&name.as_str())))
            };
            Value::Object(fields.iter().map(apart).collect())
        }
        other => other.clone(),
    }
}

/// The mark after letters. It is not part of any special token.
const APART: char = '\u{e003}';

/// Place of the mark of a special token in a message. Templates look for special tokens in messages, cut messages at them
/// and trim them; a mark that changes what such a template writes is put elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Before,
    After,
    Within,
}

/// Encoder of texts in which special tokens have other names.
pub(super) struct PlainText {
    tokenizer: tokenizers::Tokenizer,
    /// Maps the ids of this tokeniser's added tokens to the original ids.
    ids: HashMap<TokenId, TokenId>,
    /// The added tokens, the longest first, and whether each is special.
    added: Vec<(String, bool)>,
    /// The bytes that they begin with.
    first_bytes: HashSet<u8>,
    /// Ids that no text of a user may get.
    forbidden: HashSet<TokenId>,
    /// The mark next to or in a special token of a message.
    user: String,
    /// The mark where a message and the template's adjacent text could together form a special token.
    edge: String,
    /// Goes before the names of special tokens.
    name: String,
}

impl PlainText {
    /// `unknown` is the token of what has no other, which a text may well get.
    pub(super) fn of(original: &tokenizers::Tokenizer, unknown: Option<TokenId>) -> Result<Self, String> {
        let mut tokens: Vec<(TokenId, AddedToken)> = original.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_unstable_by_key(|(id, _)| *id);
        let nonce = nonce();
        let [user, edge, name] = ['\u{e000}', '\u{e001}', '\u{e002}'].map(|kind| format!("{nonce}{kind}"));
        let renamed = tokens.iter().map(|(_, token)| match token.special {
            true => AddedToken { content: format!("{name}{}", token.content), ..token.clone() },
            false => token.clone(),
        });
        let renamed: Vec<AddedToken> = renamed.collect();
        let mut tokenizer = original.clone();
        tokenizer.with_added_vocabulary(AddedVocabulary::new());
        tokenizer.add_tokens(renamed.iter().cloned()).map_err(|error| error.to_string())?;
        let model = |id| tokenizers::Model::id_to_token(tokenizer.get_model(), id);
        let mut ids = HashMap::new();
        for ((id, token), renamed) in tokens.iter().zip(&renamed) {
            let new =
                tokenizer.token_to_id(&renamed.content).ok_or_else(|| format!("{:?} has no id", token.content))?;
            if model(new).is_some_and(|text| text != renamed.content) {
                return Err(format!("the vocabulary has gaps, and {:?} would fall into one", token.content));
            }
            ids.insert(new, *id);
        }
        let special = tokens.iter().filter(|(_, token)| token.special);
        let forbidden = special.map(|(id, _)| *id).filter(|id| Some(*id) != unknown).collect();
        let mut added: Vec<_> = tokens.into_iter().map(|(_, token)| (token.content, token.special)).collect();
        added.sort_by_key(|(content, _)| std::cmp::Reverse(content.len()));
        let first_bytes = added.iter().filter_map(|(content, _)| content.bytes().next()).collect();
        Ok(Self { tokenizer, ids, added, first_bytes, forbidden, user, edge, name })
    }

    /// The longest added token that `text` begins with.
    fn token_at(&self, text: &str) -> Option<&(String, bool)> {
        let possible = text.bytes().next().is_some_and(|first| self.first_bytes.contains(&first));
        self.added.iter().filter(|_| possible).find(|(content, _)| text.starts_with(content.as_str()))
    }

    fn special_tokens(&self) -> impl Iterator<Item = &str> {
        self.added.iter().filter(|(_, special)| *special).map(|(content, _)| content.as_str())
    }

    fn without_marks(&self, text: &str) -> String {
        text.replace(&self.user, "").replace(&self.edge, "")
    }

    /// The text without marks, in which the special tokens that have none have their new names; and these special tokens.
    fn renamed(&self, marked: &str, side: Side) -> (String, Vec<String>) {
        let mut out = String::with_capacity(marked.len() + marked.len() / 8);
        let mut own = Vec::new();
        let mut at = 0;
        while let Some(character) = marked[at..].chars().next() {
            let rest = &marked[at..];
            if let Some(mark) = [&self.user, &self.edge].into_iter().find(|mark| rest.starts_with(mark.as_str())) {
                at += mark.len();
                continue;
            }
            let Some((content, special)) = self.token_at(rest) else {
                out.push(character);
                at += character.len_utf8();
                continue;
            };
            let users = match side {
                Side::Before => marked[..at].ends_with(&self.user),
                Side::After => rest[content.len()..].starts_with(&self.user),
                Side::Within => false,
            };
            if *special && !users {
                out.push_str(&self.name);
                own.push(content.clone());
            }
            out.push_str(content);
            at += content.len();
        }
        (out, own)
    }

    /// `original` is the text for errors.
    fn encode(&self, of: &Tokenizer, renamed: &str, original: &str) -> Result<Vec<TokenId>, TextError> {
        let encoded =
            panics::caught(|| self.tokenizer.encode_fast(renamed, false).map_err(|error| error.to_string()));
        let encoding = encoded.unwrap_or_else(Err).map_err(|message| of.encode_error(original, message))?;
        let mut names = renamed.matches(&self.name).count();
        let mut ids = Vec::with_capacity(encoding.len());
        for id in encoding.get_ids() {
            let original = self.ids.get(id);
            names = names.wrapping_sub(usize::from(original.is_some_and(|id| of.is_special(*id))));
            if original.is_none() && self.forbidden.contains(id) {
                let reason = "the tokeniser encodes ordinary message text as a special token";
                return Err(TextError::PlainUserText { path: of.directory().to_owned(), reason: reason.to_owned() });
            }
            ids.push(*original.unwrap_or(id));
        }
        if names != 0 {
            let reason = "the tokeniser changes special tokens before it looks for them".to_owned();
            return Err(TextError::PlainUserText { path: of.directory().to_owned(), reason });
        }
        Ok(ids)
    }
}

/// Marks what a user wrote.
struct Marker<'a> {
    plain: &'a PlainText,
    side: Side,
    /// True if anything was marked.
    marked: bool,
    /// True if a special token was marked.
    holds_special_token: bool,
}

impl Marker<'_> {
    fn value(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => Value::Object(self.object(fields)),
            other => other.clone(),
        }
    }

    fn object(&mut self, fields: &Map<String, Value>) -> Map<String, Value> {
        fields.iter().map(|(key, value)| (self.text(key), self.value(value))).collect()
    }

    fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let (content, special) = match self.plain.token_at(rest) {
                Some((content, special)) => (content.as_str(), *special),
                None => (&rest[..character.len_utf8()], false),
            };
            let inside = if special { self.side } else { Side::After };
            let (before, after) = match inside {
                Side::Before => ("", content),
                Side::After => (content, ""),
                Side::Within => content.split_at(character.len_utf8()),
            };
            out.push_str(before);
            if special {
                out.push_str(&self.plain.user);
                self.marked = true;
                self.holds_special_token = true;
            }
            out.push_str(after);
            rest = &rest[content.len()..];
        }
        self.edges(out)
    }

    /// Marks the edges of a text that could be a part of a special token. Whitespace around it may be trimmed.
    fn edges(&mut self, mut text: String) -> String {
        let cuts = |token: &str| token.char_indices().map(|(at, _)| at).skip(1).collect::<Vec<_>>();
        let start = text.len() - text.trim_start().len();
        let end = text.trim_end().len();
        if end <= start {
            return text;
        }
        let core = &text[start..end];
        let (mut begins, mut ends) = (false, false);
        for token in self.plain.special_tokens() {
            for cut in cuts(token) {
                begins |= core.starts_with(&token[cut..]);
                ends |= core.ends_with(&token[..cut]);
            }
        }
        if ends {
            text.insert_str(end, &self.plain.edge);
        }
        if begins {
            text.insert_str(start, &self.plain.edge);
        }
        self.marked |= begins || ends;
        text
    }
}

/// Returns random characters from the private use area.
fn nonce() -> String {
    let bits = RandomState::new().hash_one(0_u8);
    let character = |part: u32| char::from_u32(0xf_0000 + (bits >> (16 * part) & 0xffff).min(0xfffd) as u32);
    (0..4).filter_map(character).collect()
}

#[cfg(test)]
mod tests;
