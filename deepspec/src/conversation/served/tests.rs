use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::conversation::supervision::RENDERINGS;
use crate::conversation::testing;

fn read(tokenizer: &Tokenizer, turns: &[(&str, &str)], max_length: usize) -> Vec<Sample> {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    let conversation = Conversation { messages, ..Conversation::default() };
    Sample::from_conversation("x".to_owned(), conversation, tokenizer, &Map::new(), max_length).unwrap()
}

/// The text of every run of supervised tokens.
fn supervised(tokenizer: &Tokenizer, samples: &[Sample]) -> Vec<String> {
    let mut runs = Vec::new();
    for sample in samples {
        assert_eq!(sample.token_ids.len(), sample.loss_mask.len());
        let tokens: Vec<_> = sample.token_ids.iter().zip(&sample.loss_mask).collect();
        for run in tokens.chunk_by(|left, right| left.1 == right.1).filter(|run| *run[0].1) {
            let ids: Vec<TokenId> = run.iter().map(|(id, _)| **id).collect();
            runs.push(tokenizer.decode(&ids, false).unwrap());
        }
    }
    runs
}

const TURNS: [(&str, &str); 6] = [
    ("system", "Be kind."),
    ("user", "the first"),
    ("assistant", "\n an answer, größer 🦀"),
    ("user", "the second"),
    ("assistant", "the end."),
    ("user", "left out"),
];

#[test]
fn turns_that_continue_one_another_share_a_sample() {
    for template in ["smollm2", "qwen2_5"] {
        let tokenizer = testing::tokenizer(Some(template));
        let samples = read(&tokenizer, &TURNS, usize::MAX);
        let runs = supervised(&tokenizer, &samples);
        assert_eq!(runs, ["\n an answer, größer 🦀<|im_end|>\n", "the end.<|im_end|>\n"], "{template}");
        assert_eq!((samples.len(), samples[0].id.as_str()), (1, "x"));
        // One sample has the ids of the conversation as one text.
        let values: Vec<Value> =
            TURNS[..5].iter().map(|(role, content)| Message::new(*role, *content).to_json()).collect();
        let text = tokenizer.chat_template().unwrap().render(&values, &Map::new(), false).unwrap();
        assert_eq!(samples[0].token_ids, tokenizer.encode(&text, false).unwrap(), "{template}");
    }
}

#[test]
fn a_turn_whose_history_is_rewritten_has_a_sample_of_its_own() {
    let tokenizer = testing::tokenizer(Some("qwen3"));
    let samples = read(&tokenizer, &TURNS, usize::MAX);
    let ids: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
    assert_eq!(ids, ["x", "x#2"]);
    assert_eq!(supervised(&tokenizer, &samples), [" an answer, größer 🦀<|im_end|>\n", "the end.<|im_end|>\n"]);
    let texts: Vec<String> =
        samples.iter().map(|sample| tokenizer.decode(&sample.token_ids, false).unwrap()).collect();
    assert!(texts[0].contains("<think>\n\n</think>\n\n an answer"), "{}", texts[0]);
    assert!(texts[1].contains("assistant\n\n an answer"), "{}", texts[1]);
}

/// The texts continue one another, and ` a` is one token.
#[test]
fn ids_are_compared_and_not_characters() {
    let line = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}";
    let prompt = "{% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = testing::tokenizer_with(Some(&format!("{line}{prompt}")));
    let shared = read(&tokenizer, &[("user", "q"), ("assistant", "b."), ("user", "q"), ("assistant", "c")], 100);
    assert_eq!(shared.len(), 1);
    // The answer ends in a space, which the tokeniser merges with the next role.
    let odd = [("user", "q"), ("assistant", "b "), ("assistant", "c")];
    let own = read(&tokenizer, &odd, 100);
    assert_eq!(own.len(), 2);
    assert_eq!(supervised(&tokenizer, &own), ["b ", "c"]);
}

#[test]
fn an_answer_that_merges_with_the_prompt_is_encoded_alone() {
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}\
                  {% if add_generation_prompt %}assistant: {% endif %}";
    let tokenizer = testing::tokenizer_with(Some(source));
    let samples = read(&tokenizer, &[("user", "q"), ("assistant", "a b")], 100);
    let expected = [tokenizer.encode("user: q;assistant: ", false), tokenizer.encode("a b;", false)];
    let [context, answer] = expected.map(Result::unwrap);
    assert_eq!(samples[0].token_ids, [context.as_slice(), &answer].concat());
    assert_eq!(samples[0].supervised_tokens(), answer.len());
    assert_ne!(samples[0].token_ids, tokenizer.encode("user: q;assistant: a b;", false).unwrap());
}

#[test]
fn tools_reach_the_template() {
    let tokenizer = testing::tokenizer(Some("qwen2_5"));
    let messages = vec![Message::new("user", "q"), Message::new("assistant", "a")];
    let conversation = Conversation { messages, tools: vec![json!({"name": "a_tool_to_be_found"})] };
    let read = |arguments: &Value| {
        let arguments = arguments.as_object().unwrap();
        let samples = Sample::from_conversation(String::new(), conversation.clone(), &tokenizer, arguments, 9999);
        tokenizer.decode(&samples.unwrap()[0].token_ids, false).unwrap()
    };
    assert!(read(&json!({})).contains("a_tool_to_be_found"));
    // Those of the row replace those of the recipe.
    let text = read(&json!({"tools": [{"name": "another"}]}));
    assert!(text.contains("a_tool_to_be_found") && !text.contains("another"), "{text}");
}

/// Calls whose arguments are concatenated as text, beside a content that must be null.
#[test]
fn calls_are_given_in_the_form_that_the_template_prints() {
    let source = "{% for m in messages %}{{ m.role }}:{% if m.content is none %}{% for c in m.tool_calls %}\
                  {{ '!' + c.function.name + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %};\
                  {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = testing::tokenizer_with(Some(source));
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    let mut calling = Message::new("assistant", "");
    calling.extra.insert("tool_calls".to_owned(), call);
    let messages =
        vec![Message::new("user", "q"), calling, Message::new("tool", "r"), Message::new("assistant", "a")];
    let conversation = Conversation { messages, ..Conversation::default() };
    let samples = Sample::from_conversation(String::new(), conversation, &tokenizer, &Map::new(), 999).unwrap();
    assert_eq!(supervised(&tokenizer, &samples), ["!f{\"x\": 1};", "a;"]);
}

fn long(turns: usize) -> Vec<(&'static str, &'static str)> {
    (0..turns).map(|turn| [("user", "Is the number even?"), ("assistant", "the answer is no.")][turn % 2]).collect()
}

#[test]
fn turns_beyond_the_maximum_length_are_not_rendered() {
    for template in ["smollm2", "qwen2_5", "qwen3"] {
        let tokenizer = testing::tokenizer(Some(template));
        let renderings = |turns: usize| {
            RENDERINGS.set(0);
            let samples = read(&tokenizer, &long(turns), 256);
            assert!(samples.iter().any(|sample| sample.token_ids.len() > 256), "{template}");
            RENDERINGS.get()
        };
        let few = renderings(1000);
        assert_eq!(few, renderings(2000), "{template}");
        assert!(few < 40, "{template}: {few}");
    }
}

#[test]
fn a_limit_changes_nothing_before_it() {
    for template in ["smollm2", "qwen3"] {
        let tokenizer = testing::tokenizer(Some(template));
        let all = read(&tokenizer, &long(40), usize::MAX);
        for max_length in [50, 100, 256, 300] {
            let mut limited = read(&tokenizer, &long(40), max_length);
            let mut expected = all.clone();
            expected.truncate(limited.len());
            for (sample, expected) in limited.iter_mut().zip(&mut expected) {
                assert_eq!(sample.truncate(max_length), expected.truncate(max_length), "{template}, {max_length}");
            }
            assert_eq!(limited, expected, "{template}, {max_length}");
        }
    }
}

#[test]
fn a_context_that_becomes_shorter_is_used_again() {
    let tokenizer = testing::tokenizer(Some("qwen3"));
    let thoughts = format!("<think>\n{}\n</think>\n\nyes", "the long thought ".repeat(40));
    let turns = [("user", "q"), ("assistant", &thoughts), ("assistant", "more"), ("user", "q"), ("assistant", "no")];
    let samples = read(&tokenizer, &turns, 300);
    let runs = supervised(&tokenizer, &samples);
    assert_eq!(runs.last().unwrap(), "no<|im_end|>\n");
    assert!(samples.last().unwrap().token_ids.len() < 300);
}

proptest! {
    /// For any questions and answers, the supervised tokens are the answers and their end of turn.
    #[test]
    fn answers_and_nothing_else_are_supervised(
        turns in prop::collection::vec(("(\\PC|\n|<\\|im_end\\|>\n){0,8}", "([^<\\pC]|\n){0,12}"), 1..4),
        template in prop::sample::select(vec!["smollm2", "qwen2_5", "qwen3"]),
    ) {
        let messages: Vec<(&str, &str)> = turns
            .iter()
            .flat_map(|(question, answer)| [("user", question.as_str()), ("assistant", answer.as_str())])
            .collect();
        // After the empty think block, Qwen3's template removes the newlines that an answer begins with.
        let written = |answer: &str| match template {
            "qwen3" => answer.trim_start_matches('\n').to_owned(),
            _ => answer.to_owned(),
        };
        let answers: Vec<String> = turns.iter().map(|(_, answer)| format!("{}<|im_end|>\n", written(answer))).collect();
        let tokenizer = testing::tokenizer(Some(template));
        let samples = read(&tokenizer, &messages, usize::MAX);
        prop_assert_eq!(samples.len(), if template == "qwen3" { turns.len() } else { 1 });
        prop_assert_eq!(supervised(&tokenizer, &samples), answers);
    }
}
