//! Log-probabilities in the shapes of both endpoints.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::engine::TokenOutput;
use crate::text::{Detokenizer, TextError, TokenId, Tokenizer};

/// One token of an answer with its alternatives.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    token: Token,
    logprob: f32,
    top: Vec<(Token, f32)>,
    /// Characters of the answer before it.
    offset: usize,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    bytes: Vec<u8>,
}

impl Token {
    fn new(tokenizer: &Tokenizer, id: TokenId, at_start: bool) -> Self {
        let bytes = if at_start { tokenizer.token_bytes_at_start(id) } else { tokenizer.token_bytes(id) };
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            // A part of a character, written as OpenAI writes it.
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
        };
        Self { text, bytes }
    }
}

/// Follows one answer.
#[derive(Clone, Debug)]
pub(super) struct Logprobs {
    tokenizer: Tokenizer,
    /// They end the answer and are no part of its text.
    stop_token_ids: Vec<TokenId>,
    offset: usize,
    /// No text precedes the next token.
    at_start: bool,
    /// The beginning of a character.
    unfinished: Vec<u8>,
}

impl Logprobs {
    /// Follows an answer to `prompt`.
    ///
    /// # Errors
    /// See [`Tokenizer::decode`].
    pub fn new(tokenizer: &Tokenizer, prompt: &[TokenId], stop_token_ids: &[TokenId]) -> Result<Self, TextError> {
        let (tokenizer, stop_token_ids) = (tokenizer.clone(), stop_token_ids.to_vec());
        let at_start = Detokenizer::new(&tokenizer, prompt, true)?.at_start();
        Ok(Self { tokenizer, stop_token_ids, offset: 0, at_start, unfinished: Vec::new() })
    }

    /// Returns the entries of further tokens; tokens without log-probabilities and stop tokens have none.
    pub fn push(&mut self, tokens: &[TokenOutput]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for output in tokens {
            let Some(logprobs) = output.logprobs.as_ref().filter(|_| !self.stop_token_ids.contains(&output.id))
            else {
                continue;
            };
            let token = |id| Token::new(&self.tokenizer, id, self.at_start);
            let top = logprobs.top.iter().map(|(id, logprob)| (token(*id), *logprob)).collect();
            let token = token(output.id);
            let offset = self.offset;
            if !self.tokenizer.is_special(output.id) {
                self.advance(&token.bytes);
                self.at_start &= self.tokenizer.token_bytes(output.id).is_empty();
            }
            entries.push(Entry { token, logprob: logprobs.chosen, top, offset });
        }
        entries
    }

    fn advance(&mut self, bytes: &[u8]) {
        self.unfinished.extend(bytes);
        let text = String::from_utf8_lossy(&self.unfinished);
        let begun = std::str::from_utf8(&self.unfinished).err().filter(|error| error.error_len().is_none());
        match begun.map(|error| error.valid_up_to()) {
            Some(complete) => {
                self.offset += text.chars().count() - 1;
                self.unfinished.drain(..complete);
            }
            None => {
                self.offset += text.chars().count();
                self.unfinished.clear();
            }
        }
    }
}

/// `logprobs` of a choice, as it is written.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Shown<'a> {
    /// Log-probabilities were not requested.
    None,
    Chat {
        content: Each<'a>,
        refusal: (),
    },
    /// Beside the most likely tokens the chosen one is always listed.
    Completion {
        tokens: Each<'a>,
        token_logprobs: Each<'a>,
        top_logprobs: Each<'a>,
        text_offset: Each<'a>,
    },
}

impl<'a> Shown<'a> {
    /// Returns the log-probabilities of a chat choice.
    pub fn chat(entries: &'a [Entry]) -> Self {
        Self::Chat { content: Each(entries, Field::Content), refusal: () }
    }

    /// Returns the log-probabilities of a completion choice.
    pub fn completion(entries: &'a [Entry]) -> Self {
        Self::Completion {
            tokens: Each(entries, Field::Token),
            token_logprobs: Each(entries, Field::Logprob),
            top_logprobs: Each(entries, Field::Top),
            text_offset: Each(entries, Field::Offset),
        }
    }
}

/// One field of every entry.
pub(super) struct Each<'a>(&'a [Entry], Field);

#[derive(Clone, Copy)]
enum Field {
    Content,
    Token,
    Logprob,
    Top,
    Offset,
}

impl Serialize for Each<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(entries, field) = self;
        match field {
            Field::Content => serializer.collect_seq(entries.iter().map(Content::new)),
            Field::Token => serializer.collect_seq(entries.iter().map(|entry| &entry.token.text)),
            Field::Logprob => serializer.collect_seq(entries.iter().map(|entry| finite(entry.logprob))),
            Field::Top => serializer.collect_seq(entries.iter().map(top)),
            Field::Offset => serializer.collect_seq(entries.iter().map(|entry| entry.offset)),
        }
    }
}

/// A token of a chat choice with its alternatives.
#[derive(Serialize)]
struct Content<'a> {
    token: &'a str,
    logprob: f64,
    bytes: &'a [u8],
    top_logprobs: Vec<Alternative<'a>>,
}

#[derive(Serialize)]
struct Alternative<'a> {
    token: &'a str,
    logprob: f64,
    bytes: &'a [u8],
}

impl<'a> Content<'a> {
    fn new(entry: &'a Entry) -> Self {
        let alternative = |(token, logprob): &'a (Token, f32)| Alternative {
            token: &token.text,
            logprob: finite(*logprob),
            bytes: &token.bytes,
        };
        Self {
            token: &entry.token.text,
            logprob: finite(entry.logprob),
            bytes: &entry.token.bytes,
            top_logprobs: entry.top.iter().map(alternative).collect(),
        }
    }
}

/// The alternatives of a token of a completion choice by their texts, and itself.
fn top(entry: &Entry) -> Map<String, Value> {
    let mut top: Map<String, Value> = Map::new();
    for (token, logprob) in &entry.top {
        top.entry(token.text.clone()).or_insert_with(|| finite(*logprob).into());
    }
    top.entry(entry.token.text.clone()).or_insert_with(|| finite(entry.logprob).into());
    top
}

/// JSON has no infinities; OpenAI writes this number for a token that is out of the question.
fn finite(logprob: f32) -> f64 {
    f64::from(logprob.max(-9999.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Logprobs as Scores;
    use crate::text::testing;

    #[test]
    fn tokens_together_are_the_text() {
        let tokenizer = testing::load(&testing::sentence_piece());
        let ids = |tokens: &[&str]| -> Vec<TokenId> {
            tokens.iter().map(|token| tokenizer.token_id(token).unwrap()).collect()
        };
        let cases: [(&[&str], &[&str]); 3] =
            [(&["<s>", "▁th"], &["▁th", "e", "▁th"]), (&["<s>"], &["▁th", "▁th"]), (&[], &["", "▁th"])];
        for (prompt, answer) in cases {
            let (prompt, answer) = (ids(prompt), ids(answer));
            let mut logprobs = Logprobs::new(&tokenizer, &prompt, &[]).unwrap();
            let output = |id: &TokenId| {
                let scores = Scores { chosen: -1.0, top: vec![(*id, -1.0)] };
                TokenOutput { id: *id, drafted: false, logprobs: Some(scores) }
            };
            let outputs: Vec<TokenOutput> = answer.iter().map(output).collect();
            let shown = serde_json::to_value(Shown::completion(&logprobs.push(&outputs))).unwrap();
            let tokens: Vec<&str> = shown["tokens"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let text = tokenizer.decode_answer(&prompt, &answer).unwrap();
            assert_eq!(tokens.concat(), text);
            for (index, token) in tokens.iter().enumerate() {
                assert_eq!(shown["text_offset"][index], tokens[..index].concat().len(), "{token}");
                assert!(shown["top_logprobs"][index].get(token).is_some(), "{token}");
            }
        }
    }
}
