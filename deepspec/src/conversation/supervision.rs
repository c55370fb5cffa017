//! Finds what the target was shown and what it answered, for each answer of a conversation.
//!
//! A chat template is a program: it may add a default system message, remove the thoughts of earlier answers,
//! trim text, print a tool call in place of the content. So nothing is concluded from its source; its renderings
//! are observed:
//!
//! * The context of an answer is the rendering of the messages before it with the generation prompt. This is what a
//!   server gives to the target.
//! * The answer is what follows the context in the rendering of the messages up to and with it.
//! * Where the template removes the thoughts of the answer itself, `thoughts` puts them back.
//!
//! A conversation with tool calls is given to the template in the form that it prints (`call_forms`). An answer that
//! cannot be found is an error and never gives a wrong sample.

use dspark_runtime::text::ChatTemplate;
use serde_json::{Map, Value};

use super::call_forms;
use super::error::RowError;
use super::thoughts::{self, Thoughts};

/// The template argument that switches thinking on and off in Qwen3 and models that follow it. An answer without
/// thoughts is rendered with the empty think block that the generation prompt adds when thinking is off, whatever the
/// conversation was rendered with. Both prompts are therefore tried.
const THINKING_ARGUMENT: &str = "enable_thinking";

/// The text of one answer as it was served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// The messages before the answer, and the generation prompt.
    pub(super) context: String,
    /// What the target generated: the answer, and the text that closes its turn.
    pub(super) answer: String,
}

/// Renders the answers of a conversation.
pub(super) struct Observer<'a> {
    template: &'a ChatTemplate,
    /// The messages, as the template reads them.
    messages: &'a [Value],
    arguments: &'a Map<String, Value>,
    /// The arguments with which the generation prompt is rendered: those given, and both states of thinking if the
    /// template knows it.
    prompts: Vec<Map<String, Value>>,
}

impl<'a> Observer<'a> {
    pub(super) fn new(template: &'a ChatTemplate, messages: &'a [Value], arguments: &'a Map<String, Value>) -> Self {
        let mut prompts = vec![arguments.clone()];
        if template.source().contains(THINKING_ARGUMENT) {
            for thinking in [false, true].map(Value::from) {
                if arguments.get(THINKING_ARGUMENT) != Some(&thinking) {
                    let mut variant = arguments.clone();
                    variant.insert(THINKING_ARGUMENT.to_owned(), thinking);
                    prompts.push(variant);
                }
            }
        }
        Self { template, messages, arguments, prompts }
    }

    /// Returns the answer in message `index`, with its context.
    ///
    /// # Errors
    /// If the template refuses the messages, or if its renderings do not show the answer as described above.
    pub(super) fn served(&self, index: usize) -> Result<Served, RowError> {
        let message = &self.messages[index];
        let text = self.render(&self.messages[..=index], self.arguments, false)?;
        let mut contexts = Vec::with_capacity(self.prompts.len());
        for arguments in &self.prompts {
            contexts.push(self.render(&self.messages[..index], arguments, true)?);
        }
        // The longest: an empty think block belongs to the context if a generation prompt can contain it.
        let continued = contexts.iter().filter(|context| text.starts_with(context.as_str()));
        let served = match continued.max_by_key(|context| context.len()) {
            Some(context) => {
                let answer = &text[context.len()..];
                match Thoughts::of(message) {
                    Some(thoughts) if !thoughts.are_in(answer) && self.removes(&thoughts, index, context)? => {
                        self.with_thoughts(&thoughts, index, context, &text)?
                    }
                    _ => Served { context: context.clone(), answer: answer.to_owned() },
                }
            }
            None => {
                let context = &contexts[0];
                if !thoughts::are_opened_by(context) {
                    let what = "the messages before it, with the generation prompt, are not a prefix of the messages \
                                up to and with it";
                    return Err(self.misfit(index, what));
                }
                let thoughts = Thoughts::of(message).ok_or_else(|| {
                    let what = "the generation prompt opens `<think>`, and the message has no thoughts; put them into \
                                `reasoning_content`, or into the content before `</think>`";
                    self.misfit(index, what)
                })?;
                self.with_thoughts(&thoughts, index, context, &text)?
            }
        };
        self.check_calls(index, &served)?;
        Ok(served)
    }

    /// Returns true if the template removes the thoughts of message `index`. A template that does not know
    /// `reasoning_content` does not read it, and writes `<think>` in a content like any other text.
    fn removes(&self, thoughts: &Thoughts<'_>, index: usize, context: &str) -> Result<bool, RowError> {
        let Some(message) = thoughts.inside_content(&self.messages[index]) else {
            return Ok(true);
        };
        let text = self.with_message(index, message)?;
        Ok(!text.get(context.len()..).is_some_and(|answer| thoughts.are_in(answer)))
    }

    fn with_thoughts(
        &self,
        thoughts: &Thoughts<'_>,
        index: usize,
        context: &str,
        text: &str,
    ) -> Result<Served, RowError> {
        let answer = thoughts.put_back(context, text).map_err(|what| self.misfit(index, what))?;
        Ok(Served { context: context.to_owned(), answer })
    }

    /// Checks that the template prints every tool call of message `index`: it is rendered with other names of functions,
    /// which the answer must contain.
    fn check_calls(&self, index: usize, served: &Served) -> Result<(), RowError> {
        let Some((renamed, names)) = call_forms::renamed_calls(&self.messages[index], &served.answer) else {
            return Ok(());
        };
        let text = self.with_message(index, renamed)?;
        match names.iter().find(|(_, placeholder)| !text.contains(placeholder.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let what = format!("the template does not print the call of the function `{name}`");
                Err(self.misfit(index, &what))
            }
        }
    }

    /// Renders the messages up to `index`, with another message in its place.
    fn with_message(&self, index: usize, message: Value) -> Result<String, RowError> {
        let mut messages = self.messages[..index].to_vec();
        messages.push(message);
        self.render(&messages, self.arguments, false)
    }

    fn render(
        &self,
        messages: &[Value],
        arguments: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<String, RowError> {
        #[cfg(test)]
        RENDERINGS.set(RENDERINGS.get() + 1);
        Ok(self.template.render(messages, arguments, add_generation_prompt)?)
    }

    fn misfit(&self, index: usize, what: &str) -> RowError {
        let (template, number) = (self.template.name(), index + 1);
        format!("chat template {template}: cannot find the answer in message {number}: {what}").into()
    }
}

#[cfg(test)]
thread_local! {
    /// Renderings of this thread.
    pub(super) static RENDERINGS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests;
