use serde_json::json;

use super::*;
use crate::conversation::testing::golden_source;

fn served(source: &str, arguments: &Value, messages: &Value) -> Result<Vec<Served>, String> {
    let template = ChatTemplate::new("odd.jinja", source, &Map::new()).unwrap();
    let messages = messages.as_array().unwrap();
    let observer = Observer::new(&template, messages, arguments.as_object().unwrap());
    let answers = (0..messages.len()).filter(|index| messages[*index]["role"] == "assistant");
    let served = answers.map(|index| observer.served(index)).collect::<Result<_, _>>();
    served.map_err(|error| match error {
        RowError::Malformed(reason) => reason,
        RowError::Template(error) => panic!("{error}"),
    })
}

fn answers(source: &str, arguments: &Value, messages: &Value) -> Vec<String> {
    served(source, arguments, messages).unwrap().into_iter().map(|served| served.answer).collect()
}

fn turns(contents: &[&str]) -> Value {
    let role = |index: usize| ["user", "assistant"][index % 2];
    contents.iter().enumerate().map(|(index, content)| json!({"role": role(index), "content": content})).collect()
}

const TWO_TURNS: [&str; 4] = ["q1", "a1", "q2", " a2\n"];

#[test]
fn answers_carry_their_end_of_turn_and_nothing_of_the_prompt() {
    for template in ["smollm2", "qwen2_5", "qwen3"] {
        let found = answers(&golden_source(template), &json!({}), &turns(&TWO_TURNS));
        assert_eq!(found, ["a1<|im_end|>\n", " a2\n<|im_end|>\n"], "{template}");
    }
}

#[test]
fn a_default_system_message_belongs_to_the_context() {
    let found = served(&golden_source("smollm2"), &json!({}), &turns(&TWO_TURNS)).unwrap();
    assert!(found[0].context.starts_with("<|im_start|>system\n"));
    assert!(found[0].context.ends_with("q1<|im_end|>\n<|im_start|>assistant\n"));
}

#[test]
fn the_empty_think_block_belongs_to_the_context() {
    for arguments in [json!({}), json!({"enable_thinking": false}), json!({"enable_thinking": true})] {
        let found = served(&golden_source("qwen3"), &arguments, &turns(&TWO_TURNS)).unwrap();
        for (served, answer) in found.iter().zip(["a1<|im_end|>\n", " a2\n<|im_end|>\n"]) {
            assert!(served.context.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "{arguments}");
            assert_eq!(served.answer, answer, "{arguments}");
        }
    }
}

#[test]
fn thoughts_are_in_each_answer_and_in_no_later_context() {
    let messages = turns(&["q1", "<think>\nt1\n</think>\n\na1", "q2", "<think>\nt2\n</think>\n\na2"]);
    let found = served(&golden_source("qwen3"), &json!({}), &messages).unwrap();
    assert_eq!(found[0].answer, "<think>\nt1\n</think>\n\na1<|im_end|>\n");
    assert_eq!(found[1].answer, "<think>\nt2\n</think>\n\na2<|im_end|>\n");
    assert!(!found[1].context.contains("t1"), "{}", found[1].context);
}

#[test]
fn an_answer_that_looks_like_its_surroundings_is_found() {
    let found = answers(&golden_source("qwen2_5"), &json!({}), &turns(&["a<|im_end|>\n", "a", "a", ""]));
    assert_eq!(found, ["a<|im_end|>\n", "<|im_end|>\n"]);
}

const LINE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}";
const PROMPT: &str = "{% if add_generation_prompt %}assistant: {% endif %}";
/// Removes thoughts from every answer.
const REMOVES: &str =
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1].lstrip('\\n') }};{% endfor %}";

#[test]
fn thoughts_that_the_template_removes_are_put_back() {
    let opens = format!("{REMOVES}{}", PROMPT.replace("assistant: ", "assistant: <think>\n"));
    let messages = turns(&["q1", "<think>\nt1\n</think>\n\na1", "q2", "<think>\nt2\n</think>\n\na2"]);
    let found = served(&opens, &json!({}), &messages).unwrap();
    assert_eq!(found[0].answer, "t1\n</think>\n\na1;");
    assert_eq!(found[1].answer, "t2\n</think>\n\na2;");
    assert_eq!(found[1].context, "user: q1;assistant: a1;user: q2;assistant: <think>\n");

    let closed = format!("{REMOVES}{PROMPT}");
    let expected = ["<think>\nt1\n</think>\n\na1;", "<think>\nt2\n</think>\n\na2;"];
    assert_eq!(answers(&closed, &json!({}), &messages), expected);
}

#[test]
fn thoughts_in_a_field_that_a_template_does_not_know_are_not_in_the_answer() {
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
    ]);
    assert_eq!(answers(&format!("{LINE}{PROMPT}"), &json!({}), &messages), ["a;"]);
    // This one knows thoughts, though not the field.
    assert_eq!(answers(&format!("{REMOVES}{PROMPT}"), &json!({}), &messages), ["<think>\nt\n</think>\n\na;"]);
}

#[test]
fn a_call_in_place_of_the_content_is_the_answer() {
    let source = "{% for m in messages %}{{ m.role }}: {% if m.tool_calls %}{{ m.tool_calls[0].function.name }}\
                  {% else %}{{ m.content }}{% endif %};{% endfor %}";
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]);
    let found = served(&format!("{source}{PROMPT}"), &json!({}), &messages).unwrap();
    assert_eq!(found[0].answer, "f;");
    assert_eq!(
        (found[1].context.as_str(), found[1].answer.as_str()),
        ("user: q;assistant: f;tool: r;assistant: ", "a;")
    );

    let mut two = messages.clone();
    let second = json!({"function": {"name": "g", "arguments": {}}});
    two[1]["tool_calls"].as_array_mut().unwrap().push(second);
    let reason = served(&format!("{source}{PROMPT}"), &json!({}), &two).unwrap_err();
    assert!(
        reason.contains("message 2") && reason.contains("does not print the call of the function `g`"),
        "{reason}"
    );
    let reason = served(&format!("{LINE}{PROMPT}"), &json!({}), &messages).unwrap_err();
    assert!(reason.contains("the function `f`"), "{reason}");
}

#[test]
fn templates_that_do_not_fit_together_are_named() {
    let opens = PROMPT.replace("assistant: ", "assistant: <think>");
    for (source, expected) in [
        (format!("{{{{ messages | length }}}} {LINE}{PROMPT}"), "are not a prefix of the messages"),
        (format!("{LINE}{opens}"), "the message has no thoughts; put them into `reasoning_content`"),
        ("{{ raise_exception('no such talk') }}".to_owned(), "odd.jinja, line 1: invalid operation: no such talk"),
    ] {
        let reason = served(&source, &json!({}), &turns(&TWO_TURNS)).unwrap_err();
        assert!(reason.contains("odd.jinja") && reason.contains(expected), "{source}: {reason}");
    }
}
