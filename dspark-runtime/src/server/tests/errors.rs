//! Every way to be refused.

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::{
    App, CHAT, COMPLETIONS, Reply, ServerConfig, app, ask, config, conversation, limits, merged, played, post, send,
    text,
};
use crate::engine::testing::scripted;
use crate::engine::{Delta, Event, Failure, TokenOutput};
use crate::speculate::NotFinite;

/// The error object, which every refusal must have.
fn error(reply: &Reply) -> Value {
    assert_eq!(reply.headers["content-type"], "application/json");
    let value = reply.json();
    let error = value["error"].clone();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{value}");
    assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{value}");
    error
}

#[tokio::test]
async fn a_field_that_does_not_fit_is_named() {
    let router = played(config());
    let message = |message: Value| json!({"messages": [message]});
    let user = |content: Value| message(json!({"role": "user", "content": content}));
    let chat = [
        (json!({"model": 5}), "model"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hello"}), "messages"),
        (json!({"messages": [1]}), "messages[0]"),
        (message(json!({"content": "x"})), "messages[0].role"),
        (message(json!({"role": "function", "content": "x"})), "messages[0].role"),
        (message(json!({"role": "tool", "content": null})), "messages[0].content"),
        (message(json!({"role": "user"})), "messages[0].content"),
        (user(json!(7)), "messages[0].content"),
        (user(json!([7])), "messages[0].content[0]"),
        (user(json!([{"type": "text"}])), "messages[0].content[0].text"),
        (user(json!([{"type": "image_url", "image_url": {"url": "x"}}])), "messages[0].content[0].type"),
        (message(json!({"role": "assistant", "content": null, "tool_calls": [1]})), "messages[0].tool_calls[0]"),
        (message(json!({"role": "assistant", "tool_calls": [{}]})), "messages[0].tool_calls[0].function"),
        (
            message(json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]})),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"min_p": 1}), "min_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"n": 0}), "n"),
        (json!({"n": 9}), "n"),
        (json!({"n": 1000}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -5}), "max_tokens"),
        (json!({"max_completion_tokens": "many"}), "max_completion_tokens"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ["a", 5]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": 1}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"tools": [{}]}), "tools"),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"response_format": 5}), "response_format"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (json!({"presence_penalty": true}), "presence_penalty"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
    ];
    let completions = [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": {}}), "prompt"),
        (json!({"prompt": [5, "x"]}), "prompt[1]"),
        (json!({"prompt": [5, -1]}), "prompt[1]"),
        (json!({"prompt": ["x", 5]}), "prompt[1]"),
        (json!({"prompt": [[5], [1.5]]}), "prompt[1][0]"),
        (json!({"prompt": [4_294_967_296_u64]}), "prompt[0]"),
        (json!({"prompt": [5000]}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": vec!["x"; 9]}), "prompt"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"best_of": 2}), "best_of"),
    ];
    let cases = chat.into_iter().map(|case| (CHAT, conversation as fn(Value) -> Value, case));
    let cases = cases.chain(completions.into_iter().map(|case| (COMPLETIONS, text as fn(Value) -> Value, case)));
    for (path, body, (further, param)) in cases {
        let reply = ask(&router, path, &body(further.clone())).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{further}");
        let error = error(&reply);
        assert_eq!(error["param"], param, "{further}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn what_is_not_a_request_is_refused() {
    let router = played(config());
    for body in ["", "{", "null", "[]", "5", "\"text\"", "{\"model\": \"tiny\"} more", "\u{feff}{}"] {
        let reply = send(&router, post(CHAT, body)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        error(&reply);
    }
    let nested = "[".repeat(10_000);
    assert_eq!(send(&router, post(CHAT, nested)).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn unknown_paths_methods_and_models() {
    let router = played(config());
    let get = |path: &str| Request::get(path).body(axum::body::Body::empty()).unwrap();
    for (request, status) in [
        (get("/"), StatusCode::NOT_FOUND),
        (get("/v1/embeddings"), StatusCode::NOT_FOUND),
        (get(CHAT), StatusCode::METHOD_NOT_ALLOWED),
        (post("/health", ""), StatusCode::METHOD_NOT_ALLOWED),
        (get("/v1/models/other/name"), StatusCode::NOT_FOUND),
    ] {
        let reply = send(&router, request).await;
        assert_eq!(reply.status, status);
        error(&reply);
    }
    let reply = ask(&router, CHAT, &conversation(json!({"model": "gpt-9"}))).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert_eq!(error(&reply)["code"], "model_not_found");
    let missing = merged(conversation(json!({})), json!({"model": null}));
    assert_eq!(error(&ask(&router, CHAT, &missing).await)["code"], "missing_required_parameter");
}

#[tokio::test]
async fn only_the_key_opens() {
    let router = played(ServerConfig { api_key: Some("secret".to_owned()), ..config() });
    let request = |header: Option<&str>, path: &str| {
        let request = Request::get(path);
        let request = header.into_iter().fold(request, |request, value| request.header(AUTHORIZATION, value));
        request.body(axum::body::Body::empty()).unwrap()
    };
    for wrong in [None, Some("secret"), Some("Bearer"), Some("Bearer "), Some("Bearer secre"), Some("Bearer secret1")]
    {
        for path in ["/v1/models", "/metrics"] {
            let reply = send(&router, request(wrong, path)).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{wrong:?}");
            assert_eq!(error(&reply)["code"], "invalid_api_key");
        }
    }
    for right in ["Bearer secret", "bearer secret"] {
        assert_eq!(send(&router, request(Some(right), "/v1/models")).await.status, StatusCode::OK);
    }
    assert_eq!(send(&router, request(None, "/health")).await.status, StatusCode::OK);
    assert_eq!(send(&router, post(CHAT, "{}")).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn long_bodies_and_prompts() {
    let router = played(config());
    let reply = ask(&router, COMPLETIONS, &text(json!({"prompt": "x".repeat(30_000)}))).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(error(&reply)["code"], "request_too_large");
    for (path, body, param) in [
        (COMPLETIONS, text(json!({"prompt": vec![7; 256]})), "prompt"),
        (CHAT, conversation(json!({"messages": [{"role": "user", "content": "1 ".repeat(400)}]})), "messages"),
    ] {
        let reply = ask(&router, path, &body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        let error = error(&reply);
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)));
    }
    assert_eq!(ask(&router, COMPLETIONS, &text(json!({"prompt": vec![7; 255]}))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let (router, _, script) = app(config());
    // Seven of the eight places go to this request, which waits for ever.
    let first = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, CHAT, &conversation(json!({"n": 7}))).await }
    });
    while script.waiting() < 7 {
        tokio::task::yield_now().await;
    }
    let reply = ask(&router, CHAT, &conversation(json!({"n": 2}))).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(error(&reply)["code"], "queue_full");
    assert!(reply.headers[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    first.abort();
}

#[tokio::test]
async fn an_engine_that_shuts_down_refuses() {
    let (router, engine, _script) = app(config());
    engine.shut_down(Duration::ZERO);
    let reply = ask(&router, CHAT, &conversation(json!({}))).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(error(&reply)["code"], "shutting_down");
    assert!(reply.headers.contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn failures_are_told_before_and_within_a_stream() {
    for (failure, status) in [
        (Failure::ShutDown, StatusCode::SERVICE_UNAVAILABLE),
        (Failure::Internal("a defect".to_owned()), StatusCode::INTERNAL_SERVER_ERROR),
        (Failure::NotFinite(NotFinite { position: 7 }), StatusCode::INTERNAL_SERVER_ERROR),
        (Failure::TimedOut(Duration::from_secs(1)), StatusCode::GATEWAY_TIMEOUT),
    ] {
        let (router, _, script) = app(config());
        let told = failure.clone();
        std::thread::spawn(move || {
            while let Some(taken) = script.take() {
                let tokens = vec![TokenOutput { id: 5, drafted: false, logprobs: None }];
                taken.send(Event::Delta(Delta { text: "well".to_owned(), tokens, ..Delta::default() }));
                taken.send(Event::Failed(told.clone()));
            }
        });
        let reply = ask(&router, CHAT, &conversation(json!({}))).await;
        assert_eq!(reply.status, status);
        let whole = error(&reply);
        let reply = ask(&router, CHAT, &conversation(json!({"stream": true}))).await;
        assert_eq!(reply.status, StatusCode::OK);
        let events = reply.events();
        assert_eq!(events.last().unwrap(), "[DONE]");
        let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        assert_eq!(last["error"], whole);
        let page = Request::get("/metrics").body(axum::body::Body::empty()).unwrap();
        let page = String::from_utf8(send(&router, page).await.body).unwrap();
        assert!(page.contains("path=\"/v1/chat/completions\",outcome=\"failed\"} 2"), "{page}");
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let (engine, script) = scripted(limits());
    let config = ServerConfig { request_timeout: Duration::from_secs(1), ..config() };
    let router = super::router(App::new(engine, super::tokenizer(), config));
    let taken = std::thread::spawn(move || (script.take(), script));
    let reply = ask(&router, CHAT, &conversation(json!({}))).await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(error(&reply)["code"], "request_timeout");
    assert_eq!(reply.headers["x-should-retry"], "false");
    let (taken, _script) = taken.join().unwrap();
    taken.unwrap().cancelled().await;
}
