//! What clients read.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::engine::Sampling;

use super::{
    App, CHAT, COMPLETIONS, ServerConfig, Tokenizer, ask, config, conversation, limits, played, player, router,
    scripted, text, tokenizer,
};

fn parsed(events: &[String]) -> Vec<Value> {
    events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn a_chat_answer_has_the_fields_of_the_api() {
    let router = played(config());
    let reply = ask(&router, CHAT, &conversation(json!({"max_completion_tokens": 5, "seed": 3}))).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert!(reply.headers["x-request-id"].to_str().unwrap().starts_with("req-"));
    let value = reply.json();
    assert!(value["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(value["object"], "chat.completion");
    assert_eq!(value["model"], "tiny");
    let choice = &value["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["message"]["role"], "assistant");
    let content = choice["message"]["content"].as_str().unwrap();
    assert!(!content.is_empty() && player::text(3).starts_with(content), "{content}");
    let usage = &value["usage"];
    assert_eq!(usage["completion_tokens"], 5);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + 5),
        "prompt and answer together"
    );
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 1);
    assert_eq!(
        usage["completion_tokens_details"],
        json!({"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 3, "draft_rounds": 2, "accepted_length": 1.5})
    );
}

#[tokio::test]
async fn a_stream_says_the_same_as_a_whole_answer() {
    let router = played(config());
    for (path, body) in [(CHAT, conversation as fn(Value) -> Value), (COMPLETIONS, text)] {
        let settings = json!({"max_tokens": 12, "seed": 5, "n": 2, "logprobs": true, "top_logprobs": 2});
        let settings =
            if path == CHAT { settings } else { json!({"max_tokens": 12, "seed": 5, "n": 2, "logprobs": 2}) };
        let whole = ask(&router, path, &body(settings.clone())).await.json();
        let mut streamed = body(settings);
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let reply = ask(&router, path, &streamed).await;
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        let events = reply.events();
        assert_eq!(events.last().unwrap(), "[DONE]");
        let mut chunks = parsed(&events);
        let usage = chunks.pop().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"], whole["usage"]);
        for index in 0..2 {
            let mine: Vec<&Value> =
                chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
            let expected = &whole["choices"][index];
            let pieces = |piece: &Value| -> String {
                let text = if path == CHAT { &piece["delta"]["content"] } else { &piece["text"] };
                text.as_str().unwrap_or_default().to_owned()
            };
            let together: String = mine.iter().map(|piece| pieces(piece)).collect();
            let whole_text = if path == CHAT { &expected["message"]["content"] } else { &expected["text"] };
            assert_eq!(together, whole_text.as_str().unwrap());
            assert!(
                player::text(5 + index as u64).starts_with(&together),
                "choice {index} has the seed plus {index}"
            );
            assert_eq!(mine.last().unwrap()["finish_reason"], "length");
            let list = if path == CHAT { "content" } else { "token_logprobs" };
            let listed = |choice: &Value| choice["logprobs"][list].as_array().cloned().unwrap_or_default();
            let all: Vec<Value> = mine.iter().flat_map(|piece| listed(piece)).collect();
            assert_eq!(all, listed(expected));
            assert_eq!(all.len(), 12);
        }
        assert_ne!(whole["choices"][0], whole["choices"][1]);
    }
}

#[tokio::test]
async fn a_chat_stream_opens_with_the_role() {
    let router = played(config());
    let reply = ask(&router, CHAT, &conversation(json!({"stream": true, "max_tokens": 2}))).await;
    let chunks = parsed(&reply.events());
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "nobody asked for it");
    assert_eq!(chunks.last().unwrap()["choices"][0]["delta"], json!({}));
}

#[tokio::test]
async fn stop_strings_are_one_or_several() {
    let router = played(config());
    for stop in [json!(" 4"), json!(["nothing", " 4", " 7"])] {
        let value = ask(&router, COMPLETIONS, &text(json!({"stop": stop, "max_tokens": 100}))).await.json();
        assert_eq!(value["choices"][0]["text"], "1 2 3");
        assert_eq!(value["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn log_probabilities_have_the_shape_of_their_endpoint() {
    let router = played(config());
    let asked = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3});
    let value = ask(&router, CHAT, &conversation(asked)).await.json();
    let content = value["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["logprob"], -0.25);
    let token = content[0]["token"].as_str().unwrap();
    assert_eq!(content[0]["bytes"], json!(token.as_bytes()));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["top_logprobs"][1]["logprob"], -1.5);
    let joined: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(value["choices"][0]["message"]["content"], joined);

    let asked = json!({"logprobs": 1, "max_tokens": 6});
    let value = ask(&router, COMPLETIONS, &text(asked)).await.json();
    let logprobs = &value["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    let said = value["choices"][0]["text"].as_str().unwrap();
    assert_eq!(tokens.concat(), said);
    for (token, offset) in tokens.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
        let rest: String = said.chars().skip(offset.as_u64().unwrap() as usize).collect();
        assert!(rest.starts_with(token), "{token:?} is not at {offset} of {said:?}");
    }
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top[tokens[0]], -0.25, "the chosen token is listed beside the most likely one");
    assert_eq!(top.len(), 2);
}

#[tokio::test]
async fn prompts_are_texts_or_token_ids_and_one_or_many() {
    let router = played(config());
    for (prompt, choices) in
        [(json!("a b"), 1), (json!(["a", "b c"]), 2), (json!([5, 6, 7]), 1), (json!([[5, 6], [7], "x"]), 3)]
    {
        let value = ask(&router, COMPLETIONS, &text(json!({"prompt": prompt, "max_tokens": 1}))).await.json();
        assert_eq!(value["choices"].as_array().unwrap().len(), choices, "{prompt}");
        assert_eq!(value["object"], "text_completion");
        assert_eq!(value["choices"][choices - 1]["index"], choices - 1);
    }
    let value =
        ask(&router, COMPLETIONS, &text(json!({"prompt": [[5, 6], [7]], "n": 3, "max_tokens": 1}))).await.json();
    assert_eq!(value["choices"].as_array().unwrap().len(), 6);
    assert_eq!(value["usage"]["prompt_tokens"], 3, "each prompt counts once");
    assert_eq!(value["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn requests_arrive_at_the_engine_as_they_were_asked() {
    let (router, _, script) = super::app(config());
    let engine = std::thread::spawn(move || script.take().unwrap().request);
    let tokenizer = tokenizer();
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]);
    let body = json!({
        "model": "tiny", "messages": messages, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": -1,
        "max_tokens": 9, "max_completion_tokens": 4, "stop": ["x"], "logprobs": true, "frequency_penalty": 0, "tools": [],
        "response_format": {"type": "text"}, "user": "somebody", "a field of the future": null,
    });
    // The engine of this test gives no answer, which is an answer too.
    let reply = ask(&router, CHAT, &body).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    let request = engine.join().unwrap();
    let expected =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(request.prompt, tokenizer.encode(expected, false).unwrap());
    let sampling = request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.25, 7, 0.125));
    assert_eq!(sampling.seed, Some(u64::MAX));
    assert_eq!(request.max_new_tokens, 4);
    assert_eq!(request.stop_strings, ["x"]);
    assert_eq!(request.stop_token_ids, [2]);
    assert_eq!(request.logprobs, Some(0));
}

/// The tokeniser of these tests with another template.
fn with_template(template: &str) -> Tokenizer {
    let folder = tempfile::TempDir::new().unwrap();
    for file in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(tokenizer().directory().join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Tokenizer::from_directory(folder.path()).unwrap()
}

#[tokio::test]
async fn a_history_with_tools_reaches_the_template() {
    let template = "{% for m in messages %}[{{ m.role }}|{{ m.content }}\
        {% for call in m.tool_calls %}|{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}\
        {% endfor %}{% if m.tool_call_id %}|{{ m.tool_call_id }}{% endif %}]{% endfor %}{% if tools %}tools{% endif %}";
    let (engine, script) = scripted(limits());
    let router = router(App::new(engine, with_template(template), config()));
    let engine = std::thread::spawn(move || script.take().unwrap().request);
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"town\": \"Ulm\"}"}});
    let messages = json!([
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "clear"},
        {"role": "assistant", "content": null},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let asked = json!({"messages": messages, "tools": tools, "tool_choice": "none"});
    ask(&router, CHAT, &conversation(asked)).await;
    let said = tokenizer().decode(&engine.join().unwrap().prompt, false).unwrap();
    assert_eq!(said, "[user|How is it?][assistant||c1 weather {\"town\": \"Ulm\"}][tool|clear|c1][assistant|]");
}

#[tokio::test]
async fn what_a_request_does_not_say_is_as_the_server_was_told() {
    let sampling = Sampling { temperature: 0.6, top_p: 0.5, top_k: 3, min_p: 0.25, seed: None };
    let (router, _, script) = super::app(ServerConfig { sampling, max_new_tokens: Some(8), ..config() });
    let engine = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(script.take().unwrap().request);
        }
        requests
    });
    ask(&router, CHAT, &conversation(json!({}))).await;
    ask(&router, COMPLETIONS, &text(json!({}))).await;
    let own = json!({"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "max_tokens": 9});
    ask(&router, CHAT, &conversation(own)).await;
    let requests = engine.join().unwrap();
    for request in &requests[..2] {
        assert_eq!((request.sampling, request.max_new_tokens), (sampling, 8));
    }
    assert_eq!((requests[2].sampling, requests[2].max_new_tokens), (Sampling::GREEDY, 9));
}

#[tokio::test]
async fn template_arguments_reach_the_template() {
    let original = tokenizer();
    let tokenizer = with_template("{{ messages[0].content }}{% if enable_thinking %} think{% endif %}");
    let (engine, script) = scripted(limits());
    let router = router(App::new(engine, tokenizer, config()));
    let engine = std::thread::spawn(move || {
        let first = script.take().unwrap().request;
        [first, script.take().unwrap().request]
    });
    // `messages` are those of the request.
    let reply = ask(&router, CHAT, &conversation(json!({"chat_template_kwargs": {"messages": []}}))).await;
    assert_eq!(reply.json()["error"]["param"], "chat_template_kwargs.messages");
    for kwargs in [json!({}), json!({"enable_thinking": true})] {
        ask(&router, CHAT, &conversation(json!({"chat_template_kwargs": kwargs}))).await;
    }
    let prompts = engine.join().unwrap().map(|request| original.decode(&request.prompt, false).unwrap());
    assert_eq!(prompts, ["Hello there", "Hello there think"]);
}

#[tokio::test]
async fn models_health_and_metrics() {
    let router = played(config());
    let get = |path: &str| axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
    let models = super::send(&router, get("/v1/models")).await.json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(super::send(&router, get("/v1/models/tiny")).await.json(), models["data"][0]);
    assert_eq!(super::send(&router, get("/health")).await.json(), json!({"status": "ok"}));
    ask(&router, CHAT, &conversation(json!({"max_tokens": 1}))).await;
    let page = super::send(&router, get("/metrics")).await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let page = String::from_utf8(page.body).unwrap();
    let line = "dspark_http_requests_total{path=\"/v1/chat/completions\",outcome=\"finished\"} 1";
    assert!(page.contains(line), "{page}");
    assert!(page.contains("dspark_time_to_first_token_seconds_count 1\n"), "{page}");
}
