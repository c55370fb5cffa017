//! Two engines do not draw the same answers on a device. Alone in its program: a device's generator is one for the process.

mod common;

use std::path::Path;
use std::time::Duration;

use burn::tensor::Device;
use dspark_runtime::engine::{Engine, EngineConfig, Event, Request, Sampling};
use dspark_runtime::schedule::Mode;
use dspark_runtime::text::Tokenizer;

/// Forty unseeded tokens of an engine that starts where the device's generator is as it was for the engine before.
fn answer(mode: Mode) -> Vec<u32> {
    #[expect(clippy::disallowed_methods, reason = "the engine must not take it as it finds it")]
    Device::flex().seed(1);
    let target = common::target(5);
    let draft = common::draft(&target, 3);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    let config = EngineConfig { mode, sampling_on_device: Some(true), ..EngineConfig::default() };
    let tokenizer = Tokenizer::from_directory(&folder).unwrap();
    let (engine, handle) = Engine::start(target, Some(draft), tokenizer, config).unwrap();
    let request = Request {
        prompt: vec![1, 5, 2],
        max_new_tokens: 40,
        sampling: Sampling::default(),
        stop_token_ids: Vec::new(),
        stop_strings: Vec::new(),
        include_stop_string: false,
        logprobs: None,
    };
    let mut answer = handle.submit(request).unwrap();
    let mut ids = Vec::new();
    loop {
        match answer.wait().expect("an answer ends with an event") {
            Event::Delta(delta) => ids.extend(delta.tokens.iter().map(|token| token.id)),
            Event::Finished(_) => break,
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
    handle.shut_down(Duration::ZERO);
    engine.join();
    ids
}

#[test]
fn engines_that_start_alike_answer_differently() {
    // One in 8^40 if it is a matter of chance.
    assert_ne!(answer(Mode::Off), answer(Mode::Off));
    assert_ne!(answer(Mode::Fixed(3)), answer(Mode::Fixed(3)));
}
