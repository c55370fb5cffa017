//! The two threads: the order of their messages, and behaviour when one of them ends.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::finisher::{self, Output, Stopped, Tokens};
use super::handle::{Command, Submission};
use super::*;
use crate::checkpoint::JsonFields;
use crate::model::{Target, TargetConfig};
use crate::text::Tokenizer;

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    Tokenizer::from_directory(&folder).unwrap()
}

/// A finisher whose step loop is the test.
fn finisher() -> (Sender<Output>, Receiver<Stopped>) {
    let (outputs, receiver) = channel();
    let (sender, stopped) = channel();
    let tokenizer = tokenizer();
    std::thread::spawn(move || finisher::run(&tokenizer, &receiver, |stopped| sender.send(stopped).unwrap()));
    (outputs, stopped)
}

fn begin(outputs: &Sender<Output>, id: u64, room: usize, stop: &str) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(room);
    let stop_strings = vec![stop.to_owned()];
    let begin =
        Output::Begin { id, events, stop_strings, include_stop: false, submitted: Instant::now(), prompt: vec![1] };
    outputs.send(begin).unwrap();
    receiver
}

fn tokens(id: u64, text: &str) -> Output {
    let ids = tokenizer().encode(text, false).unwrap();
    let tokens = ids.into_iter().map(|id| TokenOutput { id, drafted: false, logprobs: None }).collect();
    Output::Tokens(Tokens { id, tokens, drafted: Vec::new(), round: false, cached_prompt: 0, end: None })
}

/// A client that has the whole answer may disconnect immediately; that must not count as a cancelled request.
#[test]
fn the_step_loop_hears_of_a_stop_string_before_the_client_does() {
    let (outputs, receiver) = channel();
    let mut events = begin(&outputs, 7, 8, "=");
    outputs.send(tokens(7, "1+1=2")).unwrap();
    drop(outputs);
    // The client's events up to the moment when the step loop hears of the end, and after it.
    let received =
        |events: &mut mpsc::Receiver<Event>| std::iter::from_fn(|| events.try_recv().ok()).collect::<Vec<_>>();
    let (mut heard, mut before) = (Vec::new(), Vec::new());
    finisher::run(&tokenizer(), &receiver, |stopped| {
        heard.push((stopped.id, stopped.complete));
        before = received(&mut events);
    });
    let after = received(&mut events);
    assert_eq!(heard, [(7, true)]);
    assert!(matches!(&before[..], [Event::Delta(_)]), "{before:?}");
    assert!(matches!(&after[..], [Event::Finished(_)]), "{after:?}");
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let (outputs, stopped) = finisher();
    let mut events = begin(&outputs, 7, 3, "never");
    for _ in 0..5 {
        outputs.send(tokens(7, "1")).unwrap();
    }
    let heard = stopped.recv().unwrap();
    assert!(heard.id == 7 && !heard.complete);
    let seen: Vec<Event> = std::iter::from_fn(|| events.blocking_recv()).collect();
    assert!(matches!(&seen[..], [Event::Delta(_), Event::Delta(_), Event::Failed(Failure::NotRead(_))]), "{seen:?}");
}

fn start() -> (Engine, EngineHandle) {
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 1, "vocab_size": 8,
        "max_position_embeddings": 4096, "tie_word_embeddings": true,
    });
    let Value::Object(fields) = fields else { unreachable!("an object was written") };
    let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
    Engine::start(Target::random(config, 1, &Device::flex()), None, tokenizer(), EngineConfig::default()).unwrap()
}

fn request(prompt: Vec<u32>) -> Request {
    Request {
        prompt,
        max_new_tokens: 4000,
        sampling: Sampling::default(),
        stop_token_ids: Vec::new(),
        stop_strings: Vec::new(),
        include_stop_string: false,
        logprobs: None,
    }
}

#[test]
fn an_engine_that_fails_says_so_and_leaves_nobody_waiting() {
    let (engine, handle) = start();
    let mut answer = handle.submit(request(vec![1, 2, 3])).unwrap();
    assert!(matches!(answer.wait(), Some(Event::Delta(_))));
    // A defect: a token that `submit` would have refused.
    let (events, _receiver) = mpsc::channel(8);
    let submission = Submission { id: 99, request: request(vec![1000]), events, at: Instant::now() };
    handle.shared.waiting.fetch_add(1, Ordering::AcqRel);
    handle.commands.send(Command::Submit(submission)).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(handle.ended());
    while let Some(event) = answer.wait() {
        assert!(matches!(event, Event::Delta(_)), "{event:?}");
    }
    assert_eq!(handle.submit(request(vec![1])).unwrap_err(), Refusal::ShuttingDown);
    assert!(!engine.join());
}

#[test]
fn an_engine_that_was_told_to_stop_ends_well() {
    let (engine, handle) = start();
    handle.shut_down(Duration::ZERO);
    assert!(engine.join());
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(handle.ended());
}
