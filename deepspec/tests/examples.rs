//! The examples of both crates, on small settings: a draft is trained, decodes a prompt and answers several at once.

// Their `main` functions are not called.
#![allow(dead_code, missing_docs)]

mod common;
#[path = "../../dspark-runtime/examples/decode.rs"]
mod decode;
#[path = "../../dspark-runtime/examples/engine.rs"]
mod engine;
#[path = "../examples/train.rs"]
mod train;

use common::drafts::TARGET;
use common::workspace;

#[test]
fn a_draft_is_trained_decodes_and_streams() {
    let root = tempfile::tempdir().unwrap();
    let (target, output) = (workspace().join(TARGET), root.path().join("run"));
    let data = workspace().join("datasets/quickstart");
    let report = train::train_and_evaluate(&target, &data, &output, 12, 1).unwrap();
    let sums = &report.tasks[0];
    assert_eq!((&*sums.name, sums.samples), ("sums", 1));
    // Chance accepts nothing.
    assert!(sums.accepted_length.unwrap() > 1.2, "{report:?}");

    let draft = output.join("draft");
    let accepted_length = decode::decode(&target, &draft, "What is 347 + 86?").unwrap().unwrap();
    assert!(accepted_length > 1.0, "{accepted_length}");

    let usage = engine::stream(&target, &draft, &["What is 347 + 86?", "Hello!"]).unwrap();
    assert!(usage.new_tokens > 2 && usage.accepted_tokens > 0, "{usage:?}");
    assert_eq!(usage.round_tokens - usage.rounds, usage.accepted_tokens, "{usage:?}");
}
