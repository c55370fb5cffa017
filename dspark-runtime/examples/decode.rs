//! Decodes one prompt with a draft and prints every round.
//!
//! ```sh
//! cargo run --release -p deepspec -- run recipes/quickstart.toml     # makes the draft
//! cargo run --release -p dspark-runtime --example decode -- [TARGET [DRAFT [PROMPT]]]
//! ```

use std::error::Error;
use std::path::Path;

use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, Target};
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().unwrap_or_else(|| "checkpoints/quickstart-target".to_owned());
    let draft = arguments.next().unwrap_or_else(|| "runs/quickstart/draft".to_owned());
    let prompt = arguments.next().unwrap_or_else(|| "What is 347 + 86?".to_owned());
    decode(Path::new(&target), Path::new(&draft), &prompt)?;
    Ok(())
}

/// Decodes a prompt, prints the rounds and the answer, and returns the accepted length.
pub fn decode(target: &Path, draft: &Path, prompt: &str) -> Result<Option<f64>, Box<dyn Error>> {
    // The tokeniser comes with the target. The draft has none: it proposes token ids of the target's vocabulary.
    let tokenizer = Tokenizer::of_model(target)?;
    let target = Target::load(target, &DeviceChoice::Cpu.open()?)?;
    let draft = Draft::load(draft, &target)?;

    // A chat model expects its chat template around the prompt.
    let template = tokenizer.chat_template().ok_or("the target has no chat template")?;
    let messages = [json!({"role": "user", "content": prompt})];
    let prompt_ids = tokenizer.encode(&template.render(&messages, &Map::new(), true)?, false)?;

    let options = GenerationOptions {
        max_new_tokens: 128,
        stop_token_ids: tokenizer.stop_token_ids().to_vec(),
        // 0 verifies the whole block in every round.
        confidence_threshold: 0.0,
    };
    // A round drafts a block of tokens, verifies it in one pass of the target and commits the accepted ones plus one token of
    // the target.
    let decoder = Decoder::new(&target, Some(&draft));
    let generation = decoder.generate_observed(&prompt_ids, &options, &mut Sampler::greedy(), |round| {
        let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
        let record = round.record;
        let (accepted, dropped) = round.block.tokens.split_at(record.accepted);
        print!("accepted {:?}, dropped {:?}", text(accepted), text(dropped));
        // A round that ends with an accepted stop token has no token of the target.
        if record.committed > record.accepted {
            print!(", the target's own token {:?}", text(&[round.verdict.next]));
        }
        println!();
    })?;

    println!("\n{}", tokenizer.decode_answer(&prompt_ids, &generation.ids)?.trim());
    if let Some(accepted_length) = generation.accepted_length() {
        let rounds = generation.rounds.len();
        println!("{} tokens, {rounds} rounds, accepted length {accepted_length:.2}", generation.ids.len());
    }

    // The draft changes the speed, never the answer.
    let alone = Decoder::new(&target, None).generate(&prompt_ids, &options, &mut Sampler::greedy())?;
    assert_eq!(generation.ids, alone.ids);
    Ok(generation.accepted_length())
}
