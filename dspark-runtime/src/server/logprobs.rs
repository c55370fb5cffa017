//! Log-probabilities in the shapes of both endpoints.

use serde_json::{Map, Value, json};

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
    /// As [`Tokenizer::decode`].
    pub fn new(tokenizer: &Tokenizer, prompt: &[TokenId], stop_token_ids: &[TokenId]) -> Result<Self, TextError> {
        let (tokenizer, stop_token_ids) = (tokenizer.clone(), stop_token_ids.to_vec());
        let at_start = Detokenizer::new(&tokenizer, prompt, true)?.at_start();
        Ok(Self { tokenizer, stop_token_ids, offset: 0, at_start, unfinished: Vec::new() })
    }

    /// The entries of further tokens; those without log-probabilities and stop tokens have none.
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

/// `logprobs` of a chat choice.
pub(super) fn chat(entries: &[Entry]) -> Value {
    let token =
        |token: &Token, logprob: f32| json!({"token": token.text, "logprob": finite(logprob), "bytes": token.bytes});
    let content: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let mut value = token(&entry.token, entry.logprob);
            value["top_logprobs"] = entry.top.iter().map(|(top, logprob)| token(top, *logprob)).collect();
            value
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// `logprobs` of a completion choice. Beside the most likely tokens the chosen one is always listed.
pub(super) fn completion(entries: &[Entry]) -> Value {
    let top = |entry: &Entry| {
        let mut top: Map<String, Value> = Map::new();
        for (token, logprob) in &entry.top {
            top.entry(token.text.clone()).or_insert_with(|| finite(*logprob));
        }
        top.entry(entry.token.text.clone()).or_insert_with(|| finite(entry.logprob));
        Value::from(top)
    };
    json!({
        "tokens": entries.iter().map(|entry| entry.token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": entries.iter().map(|entry| finite(entry.logprob)).collect::<Vec<_>>(),
        "top_logprobs": entries.iter().map(top).collect::<Vec<_>>(),
        "text_offset": entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(),
    })
}

/// JSON has no infinities; OpenAI writes this number for a token that is out of the question.
fn finite(logprob: f32) -> Value {
    Value::from(f64::from(logprob.max(-9999.0)))
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
            let shown = completion(&logprobs.push(&outputs));
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
