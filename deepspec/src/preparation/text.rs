//! Texts as preparation compares them: normalised, and cut into words without regard to the language.

use sha2::{Digest, Sha256};

use crate::conversation::{Conversation, Message};

/// Longest word in characters; longer runs are cut, so that a text without blanks has words too.
const LONGEST_WORD: usize = 16;

/// Ends a part of a digest. No UTF-8 text contains it.
const SEPARATOR: [u8; 1] = [0xff];

/// Digests of a conversation. Conversations that differ only in the case of letters and in blanks have equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    /// Digest of all messages, calls and tools.
    pub whole: u128,
    /// Digest of the messages before the first answer.
    pub prompt: u128,
}

impl Digests {
    pub(super) fn of(conversation: &Conversation) -> Self {
        let (mut hash, mut text) = (Sha256::new(), String::new());
        let mut prompt = None;
        for message in &conversation.messages {
            if prompt.is_none() && is_answer(message) {
                prompt = Some(hash.clone());
            }
            text.clear();
            normalise(&message.content, &mut text);
            for part in [&message.role, &text] {
                hash.update(part);
                hash.update(SEPARATOR);
            }
            // Calls, results' names and thoughts, as they are.
            if !message.extra.is_empty() {
                hash.update(serde_json::to_string(&message.extra).unwrap_or_default());
            }
            hash.update(SEPARATOR);
        }
        let prompt = prompt.unwrap_or_else(|| hash.clone());
        for tool in &conversation.tools {
            hash.update(tool.to_string());
            hash.update(SEPARATOR);
        }
        Self { whole: first_bits(hash), prompt: first_bits(prompt) }
    }
}

/// A number that is evenly spread over different texts.
pub(super) fn digest(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    first_bits(hash)
}

fn first_bits(hash: Sha256) -> u128 {
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}

/// The upper half of a digest, as a number of 64 bits.
pub(super) fn upper(digest: u128) -> u64 {
    (digest >> 64) as u64
}

/// Returns whether a message is one of the target.
pub(super) fn is_answer(message: &Message) -> bool {
    message.role == "assistant"
}

/// Adds a text in lower case, with one blank between words.
fn normalise(text: &str, normalised: &mut String) {
    let start = normalised.len();
    let mut gap = false;
    for c in text.chars() {
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        if gap && normalised.len() > start {
            normalised.push(' ');
        }
        gap = false;
        match c {
            c if c.is_ascii() => normalised.push(c.to_ascii_lowercase()),
            c => normalised.extend(c.to_lowercase()),
        }
    }
}

/// Adds hashes of the words of a text, in lower case. A word is a run of letters and digits, or of other characters, of at most
/// [`LONGEST_WORD`] characters; in scripts without blanks between words, every character is one.
pub(super) fn words(text: &str, words: &mut Vec<u64>) {
    let (mut hash, mut length, mut letters) = (SEED, 0, false);
    for c in text.chars() {
        let alphanumeric = c.is_alphanumeric();
        let ends = c.is_whitespace() || alphanumeric != letters || length >= LONGEST_WORD || is_unspaced(c);
        if ends && length > 0 {
            words.push(mix(hash));
            (hash, length) = (SEED, 0);
        }
        if c.is_whitespace() {
            continue;
        }
        letters = alphanumeric;
        length += 1;
        if c.is_ascii() {
            hash = add(hash, u64::from(c.to_ascii_lowercase()));
        } else {
            hash = c.to_lowercase().fold(hash, |hash, c| add(hash, u64::from(c)));
        }
        if is_unspaced(c) {
            words.push(mix(hash));
            (hash, length) = (SEED, 0);
        }
    }
    if length > 0 {
        words.push(mix(hash));
    }
}

/// Characters of scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, Kana and Han.
fn is_unspaced(c: char) -> bool {
    matches!(
        c,
        '\u{0e00}'..='\u{0eff}'
            | '\u{1000}'..='\u{109f}'
            | '\u{1780}'..='\u{17ff}'
            | '\u{3040}'..='\u{30ff}'
            | '\u{3400}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{3ffff}'
    )
}

/// Start and factor of the hash.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

fn add(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(FACTOR).rotate_left(29)
}

/// Spreads a number over all bits.
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(FACTOR);
    let value = (value ^ (value >> 29)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ (value >> 32)
}

/// The hash of a sequence of words.
pub(super) fn sequence(words: &[u64]) -> u64 {
    mix(words.iter().fold(SEED, |hash, word| add(hash, *word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(turns: &[(&str, &str)]) -> Digests {
        let messages = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        Digests::of(&Conversation { messages, ..Conversation::default() })
    }

    fn count(text: &str) -> usize {
        let mut found = Vec::new();
        words(text, &mut found);
        found.len()
    }

    #[test]
    fn case_and_blanks_do_not_matter_and_everything_else_does() {
        let one = digests(&[("user", "Grüße  an\n ÉVA "), ("assistant", "Ok.")]);
        assert_eq!(one, digests(&[("user", " grüße an éva"), ("assistant", "OK.")]));
        let other = digests(&[("user", "Grüße an Éva"), ("assistant", "Ok!")]);
        assert_eq!(one.prompt, other.prompt);
        assert_ne!(one.whole, other.whole);
        assert_ne!(one.whole, digests(&[("user", "Grüße anÉva"), ("assistant", "Ok.")]).whole);
        assert_ne!(digests(&[("user", "ab"), ("user", "c")]).whole, digests(&[("user", "a"), ("user", "bc")]).whole);
        assert_ne!(digests(&[("user", "a")]).whole, digests(&[("system", "a")]).whole);
    }

    #[test]
    fn calls_and_tools_are_part_of_a_conversation() {
        let mut conversation = Conversation {
            messages: vec![Message::new("user", "q"), Message::new("assistant", "")],
            ..Default::default()
        };
        let plain = Digests::of(&conversation);
        conversation.messages[1].extra.insert("tool_calls".to_owned(), serde_json::json!([{"name": "f"}]));
        let call = Digests::of(&conversation);
        assert_ne!(plain.whole, call.whole);
        conversation.tools.push(serde_json::json!({"name": "f"}));
        assert_ne!(call.whole, Digests::of(&conversation).whole);
        assert_eq!(plain.prompt, Digests::of(&conversation).prompt);
    }

    #[test]
    fn words_are_found_in_every_script() {
        assert_eq!(count("Two words, two"), 4);
        assert_eq!(count("今天天气"), 4);
        assert_eq!(count(&"a".repeat(40)), 3);
        assert_eq!(count("!!!! 😂😂"), 2);
        assert_eq!(count(" \n"), 0);
        let (mut upper, mut lower) = (Vec::new(), Vec::new());
        words("Ein ÄRGER", &mut upper);
        words("ein  ärger", &mut lower);
        assert_eq!(upper, lower);
    }
}
