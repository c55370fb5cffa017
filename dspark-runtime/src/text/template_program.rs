//! A compiled chat template, and the limits within which it runs.
//!
//! A template comes with a downloaded model and is a program: it can loop forever and write without end. The number of
//! instructions, the depth of recursion and the length of the text are bounded here. The memory and time of a single
//! instruction are not: for these, `template_process` runs a template in a separate process.

use std::borrow::Cow;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{TextError, python, tojson};
use crate::panics;

/// The name under which the one template of an environment is stored.
const TEMPLATE: &str = "chat_template";
/// Instructions of one rendering. A conversation of a thousand messages takes about a hundred thousand.
const MAX_INSTRUCTIONS: u64 = 50_000_000;
/// Bytes of a rendered conversation: several million tokens.
const MAX_BYTES: usize = 8 << 20;

/// Input of one rendering.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Conversation<'a> {
    pub(super) messages: Cow<'a, [serde_json::Value]>,
    pub(super) arguments: Cow<'a, Map<String, serde_json::Value>>,
    pub(super) add_generation_prompt: bool,
}

/// Reasons that a template gives no text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TemplateFault {
    /// It does not compile, fails, or refuses the conversation.
    Refused { line: usize, message: String },
    /// It was stopped. The text describes why, as the predicate of a sentence.
    Limit(String),
}

impl TemplateFault {
    /// The error about the template called `name`.
    pub(super) fn of(self, name: &str) -> TextError {
        let name = name.to_owned();
        match self {
            Self::Refused { line, message } => TextError::Template { name, line, message },
            Self::Limit(limit) => TextError::TemplateLimit { name, limit },
        }
    }
}

impl From<minijinja::Error> for TemplateFault {
    fn from(error: minijinja::Error) -> Self {
        if error.kind() == ErrorKind::OutOfFuel {
            return Self::Limit(format!("executed more than {MAX_INSTRUCTIONS} instructions"));
        }
        let message = match error.detail() {
            Some(detail) => format!("{}: {}", error.kind(), shown(detail)),
            None => error.kind().to_string(),
        };
        Self::Refused { line: error.line().unwrap_or(0), message }
    }
}

/// A text of the template's in an error message: cut off, and without characters that control a terminal.
fn shown(text: &str) -> String {
    const CHARACTERS: usize = 500;
    let visible = |character: char| if character.is_control() { ' ' } else { character };
    let mut shown: String = text.chars().take(CHARACTERS).map(visible).collect();
    if text.chars().nth(CHARACTERS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// A compiled chat template together with the special tokens it may name.
pub(super) struct Program {
    environment: Environment<'static>,
    special_tokens: Vec<(String, Value)>,
}

impl Program {
    /// Compiles `source`. `special_tokens` are the variables `bos_token`, `eos_token` and so on of the tokeniser.
    pub(super) fn compile(
        source: &str,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateFault> {
        panics::caught(|| Self::compile_unguarded(source, special_tokens)).unwrap_or_else(engine_failed)
    }

    fn compile_unguarded(
        source: &str,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateFault> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python::call_method);
        environment.set_formatter(python::print);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        environment.add_filter("tojson", tojson::tojson);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_template_owned(TEMPLATE, prepared(source))?;
        Ok(Self { environment, special_tokens: variables(special_tokens) })
    }

    /// Writes a conversation as text.
    pub(super) fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateFault> {
        panics::caught(|| self.render_unguarded(conversation)).unwrap_or_else(engine_failed)
    }

    fn render_unguarded(&self, conversation: &Conversation<'_>) -> Result<String, TemplateFault> {
        // `tools` and `documents` are always defined there, as none, and templates do test for both.
        let defaults = [("tools", Value::from(())), ("documents", Value::from(()))];
        let given = [
            ("messages", conversation.messages.iter().map(python::to_template_value).collect()),
            ("add_generation_prompt", Value::from(conversation.add_generation_prompt)),
        ];
        let named = |(name, value): (&str, Value)| (name.to_owned(), value);
        let context = Value::from_pairs(
            defaults
                .into_iter()
                .map(named)
                .chain(self.special_tokens.iter().cloned())
                .chain(variables(&conversation.arguments))
                .chain(given.into_iter().map(named)),
        );
        let mut written = Written::default();
        let rendered = self.environment.get_template(TEMPLATE)?.render_captured_to(context, &mut written).map(drop);
        if written.is_full {
            return Err(TemplateFault::Limit(format!("wrote more than {MAX_BYTES} bytes of text")));
        }
        rendered?;
        String::from_utf8(written.bytes)
            .map_err(|error| TemplateFault::Refused { line: 0, message: error.to_string() })
    }
}

fn engine_failed<T>(panic: String) -> Result<T, TemplateFault> {
    Err(TemplateFault::Refused { line: 0, message: format!("the template engine failed: {panic}") })
}

/// The text of one rendering, up to [`MAX_BYTES`].
#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_BYTES - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn variables(values: &Map<String, serde_json::Value>) -> Vec<(String, Value)> {
    values.iter().map(|(name, value)| (name.clone(), python::to_template_value(value))).collect()
}

/// Returns the source as the engine expects it. As in Jinja, every line of a template ends with a line feed, whatever
/// the file has. `{% generation %}` blocks, which mark the assistant's text and print nothing themselves, become
/// `{% with %}` blocks, which also open a scope and are known to the engine. Line numbers and whitespace control are
/// preserved.
fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let lead = tag.len() - tag.trim_start_matches(['-', '+']).trim_start().len();
        let (lead, body) = tag.split_at(lead);
        out.push_str(lead);
        rest = body;
        for (word, replacement) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some(after) = body.strip_prefix(word)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(replacement);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(source: &str) -> TemplateFault {
        let program = Program::compile(source, &Map::new()).unwrap();
        let conversation = Conversation {
            messages: Cow::Borrowed(&[]),
            arguments: Cow::Owned(Map::new()),
            add_generation_prompt: true,
        };
        program.render(&conversation).unwrap_err()
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert_eq!(fault(nested), TemplateFault::Limit("executed more than 50000000 instructions".to_owned()));
    }

    #[test]
    fn a_text_without_end_is_stopped() {
        for source in [
            "{% for a in range(99999) %}{% for b in range(99) %}{{ 'xxxxxxxxxxxxxxxx' }}{% endfor %}{% endfor %}",
            "{{ 'x' * 9000000 }}",
        ] {
            assert_eq!(fault(source), TemplateFault::Limit("wrote more than 8388608 bytes of text".to_owned()));
        }
    }

    #[test]
    fn what_a_template_says_is_cut_off_and_cannot_control_a_terminal() {
        let TemplateFault::Refused { message, .. } = fault("{{ raise_exception('x' * 1000000) }}") else { panic!() };
        assert!(message.len() < 600 && message.ends_with("x..."), "{message}");
        let TemplateFault::Refused { message, .. } = fault("{{ raise_exception('a\\x1b[2Jb\\nc') }}") else {
            panic!()
        };
        assert!(message.ends_with("a [2Jb c"), "{message:?}");
    }

    #[test]
    fn recursion_is_bounded() {
        for source in [
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
            "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns | tojson }}",
        ] {
            let TemplateFault::Refused { message, .. } = fault(source) else { panic!("{source}") };
            assert!(message.contains("recursion") || message.contains("deep"), "{source}: {message}");
        }
    }

    #[test]
    fn a_panic_of_the_engine_is_an_error() {
        let error = engine_failed::<()>(panics::caught(|| -> () { panic!("no such thing") }).unwrap_err());
        let message = "the template engine failed: no such thing".to_owned();
        assert_eq!(error, Err(TemplateFault::Refused { line: 0, message }));
    }
}
