//! Ten thousand requests that are not in order.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, ask, config, conversation, played, post, send, text};

const REQUESTS: usize = 10_000;

/// A value of any kind, seldom the right one.
fn any_value(dice: &mut ChaCha8Rng, depth: usize) -> Value {
    match dice.random_range(0..if depth == 0 { 9 } else { 11 }) {
        0 => Value::Null,
        1 => json!(dice.random::<bool>()),
        2 => json!(dice.random_range(-3_i64..3)),
        3 => json!(dice.random::<i64>()),
        4 => json!(dice.random::<u64>()),
        5 => json!((dice.random::<f64>() - 0.5) * 10_f64.powi(dice.random_range(-300..300))),
        6 => json!(""),
        7 => json!("\u{0}\u{202e}🦀<|im_end|>\n"),
        8 => json!("x".repeat(dice.random_range(0..300))),
        9 => (0..dice.random_range(0..4)).map(|_| any_value(dice, depth - 1)).collect(),
        _ => {
            let names = ["role", "content", "type", "text", "include_usage", "", "messages"];
            let field = |dice: &mut ChaCha8Rng| {
                (names[dice.random_range(0..names.len())].to_owned(), any_value(dice, depth - 1))
            };
            (0..dice.random_range(0..4)).map(|_| field(dice)).collect()
        }
    }
}

/// A request in order but for one field or a few.
fn wrong_types(dice: &mut ChaCha8Rng, chat: bool) -> Vec<u8> {
    const FIELDS: [&str; 24] = [
        "model",
        "messages",
        "prompt",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "max_completion_tokens",
        "tools",
        "tool_choice",
        "response_format",
        "logit_bias",
        "echo",
        "suffix",
        "chat_template_kwargs",
        "modalities",
    ];
    let mut value = if chat { conversation(json!({})) } else { text(json!({})) };
    for _ in 0..dice.random_range(1..4) {
        value[FIELDS[dice.random_range(0..FIELDS.len())]] = any_value(dice, 3);
    }
    value.to_string().into_bytes()
}

fn body(dice: &mut ChaCha8Rng, chat: bool) -> Vec<u8> {
    match dice.random_range(0..6) {
        0 => {
            let mut bytes = vec![0; dice.random_range(0..200)];
            dice.fill_bytes(&mut bytes);
            bytes
        }
        1 => {
            // Cut off, sometimes in the middle of a character.
            let mut bytes = conversation(json!({"stop": "é🦀", "user": "x"})).to_string().into_bytes();
            bytes.truncate(dice.random_range(0..bytes.len()));
            bytes
        }
        2 => {
            // One byte is another.
            let mut bytes = text(json!({"stop": ["a", "b"], "temperature": 0.5, "n": 1})).to_string().into_bytes();
            let place = dice.random_range(0..bytes.len());
            bytes[place] = dice.random();
            bytes
        }
        3 => {
            let open = ["[", "{\"a\":", "{\"messages\":[", "[["][dice.random_range(0..4)];
            open.repeat(dice.random_range(1..2000)).into_bytes()
        }
        _ => wrong_types(dice, chat),
    }
}

#[tokio::test]
async fn the_server_stays_healthy() {
    let router = played(config());
    let mut dice = ChaCha8Rng::seed_from_u64(20_000);
    let mut refused = 0;
    for number in 0..REQUESTS {
        let chat = dice.random();
        let bytes = body(&mut dice, chat);
        let shown = String::from_utf8_lossy(&bytes).chars().take(400).collect::<String>();
        let reply = send(&router, post(if chat { CHAT } else { COMPLETIONS }, bytes)).await;
        // By accident some are in order; what is not is the client's fault, and the answer says so.
        if reply.status != StatusCode::OK {
            assert!(reply.status.is_client_error(), "request {number}, {}: {shown}", reply.status);
            assert!(reply.json()["error"]["message"].is_string(), "request {number}: {shown}");
            refused += 1;
        }
    }
    assert!(refused > REQUESTS / 2, "only {refused} were malformed");
    let health = send(&router, Request::get("/health").body(Body::empty()).unwrap()).await;
    assert_eq!(health.status, StatusCode::OK);
    let reply = ask(&router, CHAT, &conversation(json!({"max_tokens": 3}))).await;
    assert_eq!(reply.json()["usage"]["completion_tokens"], 3);
}
