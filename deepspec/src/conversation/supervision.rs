//! Finds the part of a rendered conversation that the target itself would have generated.
//!
//! A chat template is a program: it may add a default system message, strip the thoughts from earlier answers,
//! trim text, close the last turn differently from the others. So the parts are not guessed from its source but
//! observed in what it renders, turn by turn:
//!
//! * An answer begins where the generation prompt ends: the messages before it are rendered with that prompt,
//!   and the result must be how the whole conversation begins.
//! * It ends after the text that closes a turn. The conversation is rendered again with a placeholder for the
//!   answer, once whole and once up to this answer: what follows the placeholder is, in the first, the rest of
//!   the conversation, and in the second, the closing text alone.
//!
//! Inconsistencies are errors and never give a wrong mask.

use std::ops::Range;

use dspark_runtime::text::ChatTemplate;
use serde_json::{Map, Value};

use super::error::RowError;
use super::message::{ASSISTANT, Message};

/// The template argument that switches thinking on and off in Qwen3 and models that follow it. An answer without
/// thoughts is rendered with the empty think block that the generation prompt adds when thinking is off, whatever the
/// conversation was rendered with. Both prompts are therefore tried.
const THINKING_ARGUMENT: &str = "enable_thinking";

/// A conversation as text, with the parts that carry loss.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RenderedConversation {
    pub(super) text: String,
    /// Bytes of `text`, in order, one range for each answer.
    pub(super) supervised: Vec<Range<usize>>,
}

/// Renders `messages` and finds the answers in the text.
///
/// # Errors
/// If the template refuses the conversation, or if its renderings do not fit together as described above.
pub(super) fn render(
    template: &ChatTemplate,
    arguments: &Map<String, Value>,
    messages: &[Message],
) -> Result<RenderedConversation, RowError> {
    let values: Vec<Value> = messages.iter().map(Message::to_json).collect();
    let observer = Observer { template, prompts: prompt_variants(template, arguments), arguments };
    let text = observer.render(&values)?;
    let mut supervised = Vec::new();
    for index in (0..messages.len()).filter(|index| messages[*index].role == ASSISTANT) {
        let start = observer.answer_start(&text, &values, index)?;
        let end = observer.answer_end(&text, &values, index)?;
        if end < start {
            return Err(observer.misfit(index, "the answer ends before it begins").into());
        }
        supervised.push(start..end);
    }
    Ok(RenderedConversation { text, supervised })
}

/// The arguments with which the generation prompt is rendered: those given, and both states of thinking if the
/// template knows it.
fn prompt_variants(template: &ChatTemplate, arguments: &Map<String, Value>) -> Vec<Map<String, Value>> {
    let mut variants = vec![arguments.clone()];
    if template.source().contains(THINKING_ARGUMENT) {
        for thinking in [false, true] {
            let mut variant = arguments.clone();
            variant.insert(THINKING_ARGUMENT.to_owned(), Value::from(thinking));
            variants.push(variant);
        }
    }
    variants
}

struct Observer<'a> {
    template: &'a ChatTemplate,
    arguments: &'a Map<String, Value>,
    prompts: Vec<Map<String, Value>>,
}

impl Observer<'_> {
    fn render(&self, messages: &[Value]) -> Result<String, RowError> {
        Ok(self.template.render(messages, self.arguments, false)?)
    }

    /// Returns the end of the longest generation prompt that continues the text after the messages before `index`.
    fn answer_start(&self, text: &str, messages: &[Value], index: usize) -> Result<usize, RowError> {
        let mut start = None;
        for arguments in &self.prompts {
            let prompt = self.template.render(&messages[..index], arguments, true)?;
            if text.starts_with(&prompt) {
                start = start.max(Some(prompt.len()));
            }
        }
        Ok(start.ok_or_else(|| {
            self.misfit(
                index,
                "the messages before the answer, with the generation prompt, are not a prefix of the whole text",
            )
        })?)
    }

    /// The end of the text that closes the turn of message `index`.
    fn answer_end(&self, text: &str, messages: &[Value], index: usize) -> Result<usize, RowError> {
        let mut placeholder = "PLACEHOLDER OF THE ANSWER".to_owned();
        while text.contains(&placeholder) {
            placeholder.push('.');
        }
        let mut replaced = messages.to_vec();
        replaced[index]["content"] = Value::from(placeholder.as_str());
        let rest = self.after_placeholder(&replaced, &placeholder, index)?;
        let closing = match index + 1 == messages.len() {
            true => rest.clone(),
            false => self.after_placeholder(&replaced[..=index], &placeholder, index)?,
        };
        if !text.ends_with(&rest) {
            return Err(self.misfit(index, "what follows the answer depends on the answer").into());
        }
        if !rest.starts_with(&closing) {
            return Err(self.misfit(index, "the last turn is closed differently from the others").into());
        }
        Ok(text.len() - rest.len() + closing.len())
    }

    fn after_placeholder(&self, messages: &[Value], placeholder: &str, index: usize) -> Result<String, RowError> {
        let text = self.render(messages)?;
        match text.split_once(placeholder) {
            Some((_, after)) if !after.contains(placeholder) => Ok(after.to_owned()),
            Some(_) => Err(self.misfit(index, "the answer occurs more than once").into()),
            None => Err(self.misfit(index, "the answer is not written unchanged").into()),
        }
    }

    fn misfit(&self, index: usize, what: &str) -> String {
        format!("chat template {}: cannot find the answer in message {}: {what}", self.template.name(), index + 1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conversation::testing::golden_template;

    fn conversation(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    fn supervised(template: &str, arguments: &Value, turns: &[(&str, &str)]) -> Vec<String> {
        let template = golden_template(template);
        let rendered = render(&template, arguments.as_object().unwrap(), &conversation(turns)).unwrap();
        rendered.supervised.into_iter().map(|range| rendered.text[range].to_owned()).collect()
    }

    const TWO_TURNS: [(&str, &str); 4] =
        [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", " a2\n")];

    #[test]
    fn answers_carry_their_end_of_turn_and_nothing_of_the_prompt() {
        for template in ["smollm2", "qwen2_5", "qwen3"] {
            let found = supervised(template, &json!({}), &TWO_TURNS);
            assert_eq!(found, ["a1<|im_end|>\n", " a2\n<|im_end|>\n"], "{template}");
        }
    }

    #[test]
    fn a_default_system_message_is_not_supervised() {
        let template = golden_template("smollm2");
        let rendered = render(&template, &Map::new(), &conversation(&TWO_TURNS)).unwrap();
        assert!(rendered.text.starts_with("<|im_start|>system\n"));
        assert!(rendered.supervised[0].start > rendered.text.find("q1").unwrap());
    }

    #[test]
    fn the_empty_think_block_is_never_supervised() {
        for arguments in [json!({}), json!({"enable_thinking": false}), json!({"enable_thinking": true})] {
            let found = supervised("qwen3", &arguments, &TWO_TURNS);
            assert_eq!(found, ["a1<|im_end|>\n", " a2\n<|im_end|>\n"], "{arguments}");
        }
    }

    #[test]
    fn thoughts_are_supervised_where_the_template_keeps_them() {
        let turns = [
            ("user", "q1"),
            ("assistant", "<think>\nt1\n</think>\n\na1"),
            ("user", "q2"),
            ("assistant", "<think>\nt2\n</think>\n\na2"),
        ];
        let found = supervised("qwen3", &json!({}), &turns);
        assert_eq!(found, ["a1<|im_end|>\n", "<think>\nt2\n</think>\n\na2<|im_end|>\n"]);
    }

    #[test]
    fn an_answer_that_looks_like_its_surroundings_is_found() {
        let turns = [("user", "a<|im_end|>\n"), ("assistant", "a"), ("user", "a"), ("assistant", "")];
        assert_eq!(supervised("qwen2_5", &json!({}), &turns), ["a<|im_end|>\n", "<|im_end|>\n"]);
        let turns = [("user", "PLACEHOLDER OF THE ANSWER"), ("assistant", "PLACEHOLDER OF THE ANSWER")];
        let found = supervised("smollm2", &json!({}), &turns);
        assert_eq!(found, ["PLACEHOLDER OF THE ANSWER<|im_end|>\n"]);
    }

    fn reason(source: &str, turns: &[(&str, &str)]) -> String {
        let template = ChatTemplate::new("odd.jinja", source, &Map::new()).unwrap();
        match render(&template, &Map::new(), &conversation(turns)) {
            Err(RowError::Malformed(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn templates_that_do_not_fit_together_are_named() {
        let line = "{{ m.role }}: {{ m.content }};";
        let prompt = "{% if add_generation_prompt %}assistant: {% endif %}";
        for (source, expected) in [
            (
                format!("{{{{ messages | length }}}} {{% for m in messages %}}{line}{{% endfor %}}{prompt}"),
                "are not a prefix of the whole text",
            ),
            (
                format!(
                    "{{% for m in messages %}}{line}{{% if loop.last and m.role == 'assistant' %}} end{{% endif %}}{{% endfor %}}{prompt}"
                ),
                "closed differently",
            ),
            (format!("{{% for m in messages %}}{line}{{{{ m.content }}}}{{% endfor %}}{prompt}"), "more than once"),
            (
                format!(
                    "{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content|lower }}}};{{% endfor %}}{prompt}"
                ),
                "not written unchanged",
            ),
            (
                format!("{{% for m in messages %}}{line}{{{{ m.content | length }}}}{{% endfor %}}{prompt}"),
                "depends on the answer",
            ),
        ] {
            let reason = reason(&source, &TWO_TURNS);
            assert!(reason.contains("odd.jinja") && reason.contains(expected), "{source}: {reason}");
        }
    }

    #[test]
    fn a_refusal_of_the_template_is_passed_on() {
        let reason = reason("{{ raise_exception('no such talk') }}", &TWO_TURNS);
        assert!(reason.contains("odd.jinja, line 1") && reason.contains("no such talk"), "{reason}");
    }
}
