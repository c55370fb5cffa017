//! Chat templates: Jinja programs that write a conversation as the text a target was trained on.
//!
//! Rendering follows the `transformers` package: block tags remove their line break (`trim_blocks`, `lstrip_blocks`),
//! nothing is escaped, and undefined variables are empty. Python's string and dictionary methods, `raise_exception`,
//! `strftime_now`, `break`, `continue` and `{% generation %}` are available.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::TextError;
use super::template_process::Renderers;
use super::template_program::{Conversation, Program};

/// A compiled chat template together with the special tokens it may name.
///
/// A template is a program that comes with a downloaded model, so it runs within limits. In programs that call
/// [`template_process`](super::template_process), such as the two binaries, a template is compiled and rendered in
/// separate processes: at most 5 s and 512 MiB of memory for each rendering, whatever the template does (on Unix).
/// Everywhere else a template runs in the calling thread. The number of its instructions, the depth of its recursion
/// and the length of its text are then bounded, but not the memory and time of a single instruction: do not load
/// templates that you do not trust.
pub struct ChatTemplate {
    name: String,
    source: String,
    runs: Runs,
}

/// The place where a template runs.
enum Runs {
    Here(Box<Program>),
    Apart(Renderers),
}

/// Variables that [`ChatTemplate::render`] sets itself: arguments of these names would have no effect.
pub const RENDERED: [&str; 2] = ["messages", "add_generation_prompt"];

impl ChatTemplate {
    /// Compiles `source`. `name` is its origin and appears in errors; `special_tokens` are the variables `bos_token`,
    /// `eos_token` and so on of the tokeniser.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line if the template is not valid Jinja, [`TextError::TemplateLimit`] if compiling
    /// it takes too much time or memory, [`TextError::TemplateProcess`] if no process can be started for it.
    pub fn new(
        name: impl Into<String>,
        source: impl Into<String>,
        special_tokens: &Map<String, Value>,
    ) -> Result<Self, TextError> {
        let (name, source) = (name.into(), source.into());
        let runs = match Renderers::start(&name, &source, special_tokens)? {
            Some(renderers) => Runs::Apart(renderers),
            None => {
                let program = Program::compile(&source, special_tokens).map_err(|fault| fault.of(&name))?;
                Runs::Here(Box::new(program))
            }
        };
        Ok(Self { name, source, runs })
    }

    /// Returns the origin of the template: a file, and the field in it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders `messages` (objects with `role`, `content` and any other field that the template reads) as text.
    ///
    /// `arguments` are further variables, such as `enable_thinking` or `tools`; they win over the special
    /// tokens of the same name. With `add_generation_prompt` the text ends where the assistant is to begin.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line where the template failed, or where it refused the
    /// conversation through `raise_exception`. [`TextError::TemplateLimit`] if the template was stopped at a limit.
    /// [`TextError::TemplateProcess`] if no process can be started for it.
    pub fn render(
        &self,
        messages: &[Value],
        arguments: &Map<String, Value>,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let (messages, arguments) = (Cow::Borrowed(messages), Cow::Borrowed(arguments));
        let conversation = Conversation { messages, arguments, add_generation_prompt };
        match &self.runs {
            Runs::Here(program) => program.render(&conversation).map_err(|fault| fault.of(&self.name)),
            Runs::Apart(renderers) => renderers.render(&self.name, conversation),
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, arguments: Value) -> Result<String, TextError> {
        let template = ChatTemplate::new("test", source, json!({"bos_token": "<s>"}).as_object().unwrap())?;
        let messages = [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "ho"})];
        template.render(&messages, arguments.as_object().unwrap(), true)
    }

    #[test]
    fn block_tags_take_their_line_with_them() {
        let source = "{{ bos_token }}\n{% for message in messages %}\n    {% if true %}\n{{ message.role }}\n    \
                      {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source, json!({})).unwrap(), "<s>\nuser\nassistant\n");
    }

    #[test]
    fn lines_end_with_a_line_feed() {
        assert_eq!(render("a\r\n{% if true %}\r\nb\rc{% endif %}{{ '\\r' }}", json!({})).unwrap(), "a\nb\nc\r");
    }

    #[test]
    fn tools_are_none_unless_given() {
        let source = "{{ tools is defined }} {{ tools is none }} {{ documents }} {{ nothing }}|";
        assert_eq!(render(source, json!({})).unwrap(), "True True None |");
        assert_eq!(render(source, json!({"tools": [1]})).unwrap(), "True False None |");
    }

    #[test]
    fn arguments_win_over_special_tokens() {
        assert_eq!(render("{{ bos_token }}", json!({"bos_token": "<b>"})).unwrap(), "<b>");
    }

    #[test]
    fn tojson_is_pythons() {
        let tool = json!({"b": "<é>&'\"\n\u{1}", "a": [1, 2.0, true, null], "e": {}, "f": []});
        assert_eq!(
            render("{{ tool | tojson }}", json!({"tool": tool})).unwrap(),
            r#"{"b": "<é>&'\"\n\u0001", "a": [1, 2.0, true, null], "e": {}, "f": []}"#
        );
        assert_eq!(
            render("{{ tool | tojson(indent=2) }}", json!({"tool": {"a": [1, "x"], "e": {}}})).unwrap(),
            "{\n  \"a\": [\n    1,\n    \"x\"\n  ],\n  \"e\": {}\n}"
        );
        assert_eq!(
            render(
                "{{ tool | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
                json!({"tool": {"b": "é😀", "a": 1}})
            )
            .unwrap(),
            r#"{"a":1,"b":"\u00e9\ud83d\ude00"}"#
        );
    }

    #[test]
    fn a_refusal_names_template_and_line() {
        let error = render("first\n{{ raise_exception('roles must alternate') }}", json!({})).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("chat template test, line 2:"), "{message}");
        assert!(message.contains("roles must alternate"), "{message}");
    }

    #[test]
    fn a_template_that_is_not_jinja_names_its_line() {
        let message = render("a\nb\n{% if %}", json!({})).unwrap_err().to_string();
        assert!(message.starts_with("chat template test, line 3:"), "{message}");
    }

    #[test]
    fn generation_blocks_print_what_they_hold() {
        let source = "{% for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n  {%- endgeneration %}\n;\n\
                      {% endfor %}{{ 'generation' }}";
        assert_eq!(render(source, json!({})).unwrap(), "hi;\nho;\ngeneration");
    }

    #[test]
    fn loops_can_be_left_and_lists_reversed() {
        let source = "{% for m in messages[::-1] %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}\
                      {% break %}{% endfor %}";
        assert_eq!(render(source, json!({})).unwrap(), "user");
    }

    #[test]
    fn python_methods_exist() {
        let cases = [
            ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}", "b"),
            ("{{ 'abc'.removeprefix('a').removesuffix('c') }}", "b"),
            ("{{ 'a-b-c'.rsplit('-', 1) }}", "['a-b', 'c']"),
            ("{{ 'a-b-c'.partition('-')[2] }} {{ 'a-b-c'.rpartition('-')[0] }}", "b-c a-b"),
            ("{{ messages[0].get('name', 'none') }}", "none"),
            ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hi;"),
            ("{{ ' x '.strip() | upper }}", "X"),
            ("{{ 'x' is sequence }} {{ messages is sequence }} {{ 1 is sequence }}", "True True False"),
            ("{{ 1e-5 }} {{ 1.0 }} {{ none }} {{ true }} {{ ['a'] }}", "1e-05 1.0 None True ['a']"),
        ];
        for (source, rendered) in cases {
            assert_eq!(render(source, json!({})).unwrap(), rendered, "{source}");
        }
    }
}
