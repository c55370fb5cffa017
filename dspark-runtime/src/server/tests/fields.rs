//! What is obeyed, what is refused by name, and what changes nothing.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    App, CHAT, COMPLETIONS, app, ask, config, conversation, limits, played, player, router, scripted, text, tokenizer,
};
use crate::engine::Limits;

#[tokio::test]
async fn what_would_change_the_answer_is_refused_unless_it_asks_for_what_happens_anyway() {
    let router = played(config());
    for (field, changes, neutral) in [
        ("repetition_penalty", json!(1.5), json!(1.0)),
        ("repeat_penalty", json!(1.1), json!(1)),
        ("frequency_penalty", json!(0.5), json!(0)),
        ("length_penalty", json!(2), json!(1.0)),
        ("min_tokens", json!(110), json!(0)),
        ("min_new_tokens", json!(3), json!(0)),
        ("bad_words", json!(["Answer"]), json!([])),
        ("guided_json", json!({"type": "object"}), Value::Null),
        ("guided_regex", json!("a+"), Value::Null),
        ("guided_choice", json!(["a"]), Value::Null),
        ("structured_outputs", json!({"json": {}}), Value::Null),
        ("json_schema", json!({}), Value::Null),
        ("grammar", json!("root ::= x"), Value::Null),
        ("truncate_prompt_tokens", json!(3), Value::Null),
        ("prompt_logprobs", json!(1), json!(false)),
        ("prompt_logprobs", json!(0), Value::Null),
        ("use_beam_search", json!(true), json!(false)),
        ("continue_final_message", json!(true), json!(false)),
        ("add_generation_prompt", json!(false), json!(true)),
        ("skip_special_tokens", json!(false), json!(true)),
        ("best_of", json!(2), json!(1)),
        ("echo", json!(true), json!(false)),
        ("logit_bias", json!({"5": 1}), json!({})),
        ("allowed_token_ids", json!([5]), Value::Null),
        ("typical_p", json!(0.5), json!(1)),
        ("mirostat", json!(2), json!(0)),
        ("reasoning_effort", json!("high"), Value::Null),
        ("store", json!(true), json!(false)),
        ("max_new_tokens", json!(5), Value::Null),
        ("n_predict", json!(5), Value::Null),
    ] {
        for (path, body) in [(CHAT, conversation as fn(Value) -> Value), (COMPLETIONS, text)] {
            let reply = ask(&router, path, &body(json!({field: changes}))).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{field}: {changes}");
            let error = &reply.json()["error"];
            assert_eq!((&error["code"], &error["param"]), (&json!("unsupported_parameter"), &json!(field)));
            let reply = ask(&router, path, &body(json!({field: neutral, "max_tokens": 1}))).await;
            assert_eq!(reply.status, StatusCode::OK, "{field}: {neutral}");
        }
    }
}

#[tokio::test]
async fn an_unknown_field_is_refused_wherever_it_is_and_the_nearest_is_named() {
    let router = played(config());
    let user =
        |further: Value| json!({"messages": [super::merged(json!({"role": "user", "content": "x"}), further)]});
    let part =
        |further: Value| user(json!({"content": [super::merged(json!({"type": "text", "text": "x"}), further)]}));
    for (further, param, meant) in [
        (json!({"max_tokns": 5}), "max_tokns", Some("max_tokens")),
        (json!({"temprature": 0}), "temprature", Some("temperature")),
        (json!({"Stop": "x"}), "Stop", Some("stop")),
        (json!({"xyzzy": 1}), "xyzzy", None),
        (json!({"prompt": "x"}), "prompt", None),
        (user(json!({"rolle": "x"})), "messages[0].rolle", Some("messages[0].role")),
        (part(json!({"txet": "y"})), "messages[0].content[0].txet", Some("messages[0].content[0].text")),
        (
            json!({"stream": true, "stream_options": {"inclde_usage": true}}),
            "stream_options.inclde_usage",
            Some("stream_options.include_usage"),
        ),
    ] {
        let reply = ask(&router, CHAT, &conversation(further.clone())).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{further}");
        let error = &reply.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!("unknown_parameter"), &json!(param)));
        let message = error["message"].as_str().unwrap();
        assert_eq!(message.contains("did you mean"), meant.is_some(), "{message}");
        assert!(meant.is_none_or(|meant| message.ends_with(&format!("`{meant}`?"))), "{message}");
    }
    let reply = ask(&router, COMPLETIONS, &text(json!({"messages": []}))).await;
    assert_eq!(reply.json()["error"]["param"], "messages");
}

#[tokio::test]
async fn what_changes_nothing_is_accepted() {
    let router = played(config());
    let common = json!({
        "max_tokens": 1, "user": "somebody", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
        "safety_identifier": "x", "prompt_cache_key": "y", "parallel_tool_calls": true, "max_tokns": null, "priority": 3,
        "request_id": "z", "cache_prompt": true,
    });
    assert_eq!(ask(&router, COMPLETIONS, &text(common.clone())).await.status, StatusCode::OK);
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "y", "refusal": null, "annotations": [], "audio": null, "tool_calls": [],
         "function_call": null, "id": "m1"},
        {"role": "user", "content": "z", "name": "somebody", "prefix": false},
    ]);
    let chat = super::merged(conversation(common), json!({"messages": messages}));
    let reply = ask(&router, CHAT, &chat).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json());
    let stream = json!({"stream": true, "max_tokens": 1, "stream_options": {"include_obfuscation": false}});
    assert_eq!(ask(&router, CHAT, &conversation(stream)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn ends_of_answers_are_the_requests_own() {
    let (router, _, script) = app(config());
    let engine = std::thread::spawn(move || {
        let first = script.take().unwrap().request;
        [first, script.take().unwrap().request]
    });
    let asked = json!({"ignore_eos": true, "stop_token_ids": [7, 8], "stop": "x", "include_stop_str_in_output": true,
        "max_completion_tokens": 6});
    ask(&router, CHAT, &conversation(asked)).await;
    ask(&router, COMPLETIONS, &text(json!({"stop_token_ids": [9], "max_completion_tokens": 5}))).await;
    let [first, second] = engine.join().unwrap();
    assert_eq!((first.stop_token_ids, first.include_stop_string, first.max_new_tokens), (vec![7, 8], true, 6));
    assert_eq!((second.stop_token_ids, second.include_stop_string, second.max_new_tokens), (vec![2, 9], false, 5));
}

#[tokio::test]
async fn stop_strings_and_stop_tokens_are_bounded() {
    let router = played(config());
    for (further, param) in [
        (json!({"stop": "y".repeat(1025)}), "stop"),
        (json!({"stop": ["a", "y".repeat(5000)]}), "stop"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop_token_ids": vec![1; 65]}), "stop_token_ids"),
        (json!({"stop_token_ids": [1.5]}), "stop_token_ids"),
        (json!({"stop_token_ids": 5}), "stop_token_ids"),
    ] {
        let reply = ask(&router, CHAT, &conversation(further)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert_eq!(reply.json()["error"]["param"], param);
    }
    let longest = json!({"stop": vec!["y".repeat(1024); 16], "stop_token_ids": vec![1; 64], "max_tokens": 1});
    assert_eq!(ask(&router, CHAT, &conversation(longest)).await.status, StatusCode::OK);
}

/// A tokeniser that panics when it is asked would fail this test: texts that cannot fit never reach it.
#[tokio::test]
async fn prompts_that_cannot_fit_are_refused_before_they_are_tokenised() {
    let (engine, _script) = scripted(limits());
    let app = App::new(engine, tokenizer(), super::ServerConfig { max_body_bytes: 4 << 20, ..config() });
    let most = app.most_prompt_bytes.unwrap();
    assert_eq!(most, 256 * app.tokenizer.most_bytes_per_token().unwrap());
    let router = router(app);
    let long = " ".repeat(most + 1);
    let message = format!("{} bytes", most + 1);
    let ways: [(&str, Value, &str); 3] = [
        (COMPLETIONS, text(json!({"prompt": long})), "prompt"),
        (COMPLETIONS, text(json!({"prompt": ["a", long]})), "prompt[1]"),
        (CHAT, conversation(json!({"messages": [{"role": "user", "content": long}]})), "messages"),
    ];
    for (path, body, param) in ways {
        let reply = ask(&router, path, &body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        let error = &reply.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)));
        let said = error["message"].as_str().unwrap();
        assert!(path == CHAT && said.contains("bytes") || said.contains(&message), "{said}");
    }
}

#[tokio::test]
async fn a_reply_that_would_fill_the_memory_is_refused() {
    let (engine, script) = scripted(Limits { context_length: 100_000, queue: 256, ..limits() });
    player::play(script);
    let router = router(App::new(engine, tokenizer(), config()));
    let asked = json!({"n": 8, "logprobs": true, "top_logprobs": 20});
    let reply = ask(&router, CHAT, &conversation(asked.clone())).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.json()["error"]["param"], "top_logprobs");
    let reply = ask(&router, COMPLETIONS, &text(json!({"n": 128, "max_tokens": 100_000, "logprobs": 0}))).await;
    assert_eq!(reply.json()["error"]["param"], "logprobs");
    let reply = ask(&router, COMPLETIONS, &text(json!({"n": 200, "max_tokens": 100_000}))).await;
    assert_eq!(reply.json()["error"]["param"], "n");
    for further in [json!({"max_tokens": 40}), json!({"stream": true})] {
        let reply = ask(&router, CHAT, &conversation(super::merged(asked.clone(), further))).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_request_with_many_choices_has_its_share_of_the_engine_at_a_time() {
    let (engine, script) = scripted(Limits { share: 2, ..limits() });
    let router = router(App::new(engine, tokenizer(), config()));
    let many = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, CHAT, &conversation(json!({"n": 5, "seed": 10}))).await }
    });
    let (first, second, script) =
        tokio::task::spawn_blocking(move || (script.take().unwrap(), script.take().unwrap(), script)).await.unwrap();
    // Another client comes before the third choice.
    let other = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, CHAT, &conversation(json!({"seed": 99}))).await }
    });
    let (next, script) = tokio::task::spawn_blocking(move || (script.take().unwrap(), script)).await.unwrap();
    assert_eq!(next.request.sampling.seed, Some(99));
    next.send(super::connections::finished());
    assert_eq!(other.await.unwrap().status, StatusCode::OK);
    let mut seeds = vec![first.request.sampling.seed, second.request.sampling.seed];
    second.send(super::connections::finished());
    first.send(super::connections::finished());
    let rest = tokio::task::spawn_blocking(move || {
        (0..3)
            .map(|_| {
                let taken = script.take().unwrap();
                taken.send(super::connections::finished());
                taken.request.sampling.seed
            })
            .collect::<Vec<_>>()
    });
    seeds.extend(rest.await.unwrap());
    assert_eq!(seeds, [10, 11, 12, 13, 14].map(Some));
    assert_eq!(many.await.unwrap().json()["choices"].as_array().unwrap().len(), 5);
}
