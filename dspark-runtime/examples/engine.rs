//! Starts the engine, submits several requests at once and streams their answers.
//!
//! ```sh
//! cargo run --release -p deepspec -- run recipes/quickstart.toml     # makes the draft
//! cargo run --release -p dspark-runtime --example engine -- [TARGET [DRAFT]]
//! ```

use std::error::Error;
use std::io::Write;
use std::path::Path;

use dspark_runtime::device::DeviceChoice;
use dspark_runtime::engine::{Engine, EngineConfig, Event, Request, Sampling, Usage};
use dspark_runtime::model::{Draft, Target};
use dspark_runtime::schedule::Mode;
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().unwrap_or_else(|| "checkpoints/quickstart-target".to_owned());
    let draft = arguments.next().unwrap_or_else(|| "runs/quickstart/draft".to_owned());
    stream(Path::new(&target), Path::new(&draft), &["What is 347 + 86?", "What is 12 + 30?", "Hello!"])?;
    Ok(())
}

/// Answers the prompts at once, prints the answers as they come and returns the tokens counted over all of them.
pub fn stream(target: &Path, draft: &Path, prompts: &[&str]) -> Result<Usage, Box<dyn Error>> {
    let tokenizer = Tokenizer::of_model(target)?;
    let target = Target::load(target, &DeviceChoice::Cpu.open()?)?;
    let draft = Draft::load(draft, &target)?;

    let mut requests = Vec::new();
    for prompt in prompts {
        let template = tokenizer.chat_template().ok_or("the target has no chat template")?;
        let messages = [json!({"role": "user", "content": prompt})];
        requests.push(Request {
            prompt: tokenizer.encode(&template.render(&messages, &Map::new(), true)?, false)?,
            max_new_tokens: 128,
            sampling: Sampling::GREEDY,
            stop_token_ids: tokenizer.stop_token_ids().to_vec(),
            stop_strings: Vec::new(),
            include_stop_string: false,
            logprobs: None,
        });
    }

    // `Mode::Scheduled` chooses the draft length per step. It needs a speed table of this machine
    // (`dspark profile`), which `EngineConfig::curve` takes.
    let config = EngineConfig { mode: Mode::Fixed(4), ..EngineConfig::default() };
    let (engine, handle) = Engine::start(target, Some(draft), tokenizer, config)?;

    // The engine computes all requests together. Submitting returns at once.
    let answers: Result<Vec<_>, _> = requests.into_iter().map(|request| handle.submit(request)).collect();
    let mut total = Usage::default();
    for (prompt, mut answer) in prompts.iter().zip(answers?) {
        println!("> {prompt}");
        // In a task of an async runtime: `answer.next().await`. Dropping an answer cancels its request.
        while let Some(event) = answer.wait() {
            match event {
                Event::Delta(delta) => print!("{}", delta.text),
                Event::Finished(finished) => total += finished.usage,
                Event::Failed(failure) => return Err(failure.into()),
            }
            std::io::stdout().flush()?;
        }
        println!();
    }
    println!("{} tokens, accepted length {:.2}", total.new_tokens, total.accepted_length().unwrap_or(1.0));

    // The engine ends with its last handle.
    drop(handle);
    engine.join();
    Ok(total)
}
