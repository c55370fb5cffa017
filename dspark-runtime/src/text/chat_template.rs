//! Chat templates: Jinja programs that write a conversation as the text a target was trained on.
//!
//! Rendering is that of the `transformers` package: block tags take their line with them (`trim_blocks`,
//! `lstrip_blocks`), nothing is escaped, undefined variables are empty, Python's string and dictionary
//! methods exist, and so do `raise_exception`, `strftime_now`, `break`, `continue` and `{% generation %}`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment};
use serde_json::Map;

use super::{TextError, python, tojson};

/// The name under which the one template of an environment is stored.
const TEMPLATE: &str = "chat_template";

/// A compiled chat template together with the special tokens it may name.
pub struct ChatTemplate {
    name: String,
    source: String,
    environment: Environment<'static>,
    special_tokens: Vec<(String, Value)>,
}

impl ChatTemplate {
    /// Compiles `source`. `name` says where it comes from and appears in errors; `special_tokens` are the
    /// variables `bos_token`, `eos_token` and so on of the tokeniser.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line if the template is not valid Jinja.
    pub fn new(
        name: impl Into<String>,
        source: impl Into<String>,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<Self, TextError> {
        let (name, source) = (name.into(), source.into());
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|error| template_error(&name, &error))?,
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python::call_method);
        environment.set_formatter(python::print);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_template_owned(TEMPLATE, prepared(&source)).map_err(|error| template_error(&name, &error))?;
        let special_tokens = variables(special_tokens);
        Ok(Self { name, source, environment, special_tokens })
    }

    /// Where the template comes from: a file, and the field in it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes `messages` (objects with `role`, `content` and whatever else the template reads) as text.
    ///
    /// `arguments` are further variables, such as `enable_thinking` or `tools`; they win over the special
    /// tokens of the same name. With `add_generation_prompt` the text ends where the assistant is to begin.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line where the template failed, or where it refused the
    /// conversation through `raise_exception`.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        arguments: &Map<String, serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        // `tools` and `documents` are always defined there, as none, and templates do test for both.
        let defaults = [("tools", Value::from(())), ("documents", Value::from(()))];
        let conversation = [
            ("messages", messages.iter().map(python::to_template_value).collect()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let named = |(name, value): (&str, Value)| (name.to_owned(), value);
        let context = Value::from_pairs(
            defaults
                .into_iter()
                .map(named)
                .chain(self.special_tokens.iter().cloned())
                .chain(variables(arguments))
                .chain(conversation.into_iter().map(named)),
        );
        self.environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(context))
            .map_err(|error| template_error(&self.name, &error))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.name).finish_non_exhaustive()
    }
}

fn variables(values: &Map<String, serde_json::Value>) -> Vec<(String, Value)> {
    values.iter().map(|(name, value)| (name.clone(), python::to_template_value(value))).collect()
}

fn template_error(name: &str, error: &minijinja::Error) -> TextError {
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TextError::Template { name: name.to_owned(), line: error.line().unwrap_or(0), message }
}

/// The source as the engine takes it. As in Jinja every line of a template ends with a line feed, whatever the
/// file has. `{% generation %}` blocks, which mark the assistant's text and print nothing themselves, become
/// `{% with %}` blocks: like them a scope of their own, and known to the engine. Line numbers and whitespace
/// control stay as they are.
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
    use serde_json::json;

    fn render(source: &str, arguments: serde_json::Value) -> Result<String, TextError> {
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
