//! The thoughts before an answer, and answers from which the template removes them.
//!
//! Templates of reasoning models remove the thoughts of finished turns, some of them also those of the last one. Their
//! generation prompt may end in `<think>`. The target generated the thoughts all the same. They are in the message: in
//! `reasoning_content`, or in the content before `</think>`.

use serde_json::Value;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
/// The field of a message for thoughts without the tags around them.
const FIELD: &str = "reasoning_content";

/// Returns true if a generation prompt ends in `<think>`.
pub(super) fn are_opened_by(prompt: &str) -> bool {
    prompt.trim_end().ends_with(OPEN)
}

/// The thoughts of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thoughts<'a> {
    /// In the content.
    Inside {
        /// The content up to and with the last `</think>`.
        closed: &'a str,
        /// The content after it, with the whitespace between the two.
        rest: &'a str,
    },
    /// In a field of their own.
    Apart {
        /// The field.
        text: &'a str,
        /// The content.
        rest: &'a str,
    },
}

impl<'a> Thoughts<'a> {
    /// Returns the thoughts of a message; `None` if it has none.
    pub(super) fn of(message: &'a Value) -> Option<Self> {
        let text = |field: &str| message.get(field).and_then(Value::as_str);
        let content = text("content").unwrap_or_default();
        if let Some(found) = content.rfind(CLOSE) {
            let (closed, rest) = content.split_at(found + CLOSE.len());
            let thoughts = Self::Inside { closed, rest };
            return (!thoughts.text().is_empty()).then_some(thoughts);
        }
        let thoughts = text(FIELD).filter(|thoughts| !thoughts.trim().is_empty())?;
        Some(Self::Apart { text: thoughts, rest: content })
    }

    /// The thoughts without tags and without whitespace around them.
    fn text(&self) -> &'a str {
        match self {
            Self::Inside { closed, .. } => {
                let text = closed.strip_suffix(CLOSE).unwrap_or(closed).trim();
                text.strip_prefix(OPEN).unwrap_or(text).trim()
            }
            Self::Apart { text, .. } => text.trim(),
        }
    }

    /// Returns true if a rendered answer contains the thoughts: more often than the content after them does.
    pub(super) fn are_in(&self, answer: &str) -> bool {
        let (Self::Inside { rest, .. } | Self::Apart { rest, .. }) = self;
        let thoughts = self.text();
        answer.matches(thoughts).count() > rest.matches(thoughts).count()
    }

    /// Returns the message with thoughts of their own field in the content; `None` if they are there already.
    pub(super) fn inside_content(&self, message: &Value) -> Option<Value> {
        let Self::Apart { text, rest } = self else { return None };
        let mut message = message.clone();
        let fields = message.as_object_mut()?;
        fields.remove(FIELD);
        let content = format!("{OPEN}\n{}\n{CLOSE}\n\n{rest}", text.trim_matches('\n'));
        fields.insert("content".to_owned(), content.into());
        Some(message)
    }

    /// Returns the answer that the target generated after `prompt`: the thoughts, and what the template wrote of the
    /// answer. `text` is the rendering of the answer without its thoughts.
    ///
    /// What stands in the content is used as it stands. Thoughts of a field of their own are written as the generation
    /// prompt opens them: on lines of their own if it ends with a line break.
    ///
    /// # Errors
    /// Returns the reason that the answer cannot be told, as the end of a sentence.
    pub(super) fn put_back(&self, prompt: &str, text: &str) -> Result<String, &'static str> {
        if prompt.trim_end().ends_with(CLOSE) {
            return Err("the generation prompt closes the think block, and the template does not write the thoughts");
        }
        let opened = are_opened_by(prompt);
        let (base, opening) = match prompt.rfind(OPEN).filter(|_| opened) {
            Some(start) => (&prompt[..start], &prompt[start + OPEN.len()..]),
            None => (prompt, ""),
        };
        let written = text.strip_prefix(base).ok_or(
            "the messages before it, with the generation prompt up to `<think>`, are not a prefix of the messages up to and \
             with it",
        )?;
        if written.contains(CLOSE) {
            return Err("the template writes another think block in place of the thoughts");
        }
        let (thoughts, separator) = match self {
            Self::Inside { closed, rest } if opened => {
                let generated = match closed.trim_start().strip_prefix(OPEN) {
                    Some(after) => after.strip_prefix(opening).unwrap_or(after.trim_start()),
                    // The server that gave the answer did not repeat what the prompt opens.
                    None => *closed,
                };
                (generated.to_owned(), leading_space(rest))
            }
            Self::Inside { closed, rest } => ((*closed).to_owned(), leading_space(rest)),
            Self::Apart { text: thoughts, .. } => {
                let thoughts = thoughts.trim_matches('\n');
                match (opened, opening.contains('\n')) {
                    (true, true) => (format!("{thoughts}\n{CLOSE}"), "\n\n"),
                    (true, false) => (format!("{thoughts}{CLOSE}"), ""),
                    (false, _) => (format!("{OPEN}\n{thoughts}\n{CLOSE}"), "\n\n"),
                }
            }
        };
        // A template that does not trim has written the separator already.
        let separator = if written.starts_with(separator) { "" } else { separator };
        Ok(format!("{thoughts}{separator}{written}"))
    }
}

fn leading_space(text: &str) -> &str {
    &text[..text.len() - text.trim_start().len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BASE: &str = "<|im_start|>assistant\n";

    fn put_back(message: &Value, opening: &str, rest: &str) -> Result<String, &'static str> {
        Thoughts::of(message).unwrap().put_back(&format!("{BASE}{opening}"), &format!("{BASE}{rest}"))
    }

    #[test]
    fn thoughts_are_put_back_after_an_opened_block() {
        let rest = "a<|im_end|>\n";
        let expected = "t\n</think>\n\na<|im_end|>\n";
        for message in [
            json!({"content": "<think>\nt\n</think>\n\na"}),
            json!({"content": "<think>t\n</think>\n\na"}),
            json!({"content": "t\n</think>\n\na"}),
            json!({"content": "a", "reasoning_content": "t"}),
            json!({"content": "a", "reasoning_content": "\nt\n"}),
        ] {
            assert_eq!(put_back(&message, "<think>\n", rest).unwrap(), expected, "{message}");
        }
        let untrimmed = json!({"content": "<think>\nt\n</think>\n\na"});
        assert_eq!(put_back(&untrimmed, "<think>\n", &format!("\n\n{rest}")).unwrap(), expected);
    }

    #[test]
    fn a_block_opened_on_the_line_of_the_answer_is_closed_there() {
        let expected = "t</think>a<|im_end|>";
        for message in [json!({"content": "<think>t</think>a"}), json!({"content": "a", "reasoning_content": "t"})] {
            assert_eq!(put_back(&message, "<think>", "a<|im_end|>").unwrap(), expected, "{message}");
        }
    }

    #[test]
    fn a_prompt_that_opens_nothing_leaves_the_opening_to_the_target() {
        let expected = "<think>\nt\n</think>\n\na<|im_end|>";
        for message in
            [json!({"content": "<think>\nt\n</think>\n\na"}), json!({"content": "a", "reasoning_content": "t"})]
        {
            assert_eq!(put_back(&message, "", "a<|im_end|>").unwrap(), expected, "{message}");
        }
    }

    #[test]
    fn a_message_without_thoughts_has_none() {
        for message in [
            json!({"content": "a"}),
            json!({"content": "<think>\n\n</think>\n\na"}),
            json!({"content": "a", "reasoning_content": " "}),
            json!({"content": null}),
            json!({"content": "<think> without an end"}),
        ] {
            assert_eq!(Thoughts::of(&message), None, "{message}");
        }
    }

    #[test]
    fn thoughts_that_the_answer_repeats_are_not_taken_for_kept() {
        let message = json!({"content": "<think>\nfour\n</think>\n\nfour"});
        let thoughts = Thoughts::of(&message).unwrap();
        assert!(thoughts.are_in("<think>\nfour\n</think>\n\nfour"));
        assert!(!thoughts.are_in("four"));
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        let message = json!({"content": "<think>\nt\n</think>\n\na"});
        let error = put_back(&message, "<think>\n", "<think>\n\n</think>\n\na").unwrap_err();
        assert!(error.contains("another think block"), "{error}");
        let error = put_back(&message, "<think>\n\n</think>\n\n", "<think>\n\n</think>\n\na").unwrap_err();
        assert!(error.contains("closes the think block"), "{error}");
        let error = Thoughts::of(&message).unwrap().put_back("b<think>", "a").unwrap_err();
        assert!(error.contains("up to `<think>`"), "{error}");
    }
}
