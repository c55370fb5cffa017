//! Counting the target's good answers.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::Target;
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, json};

use crate::conversation::Domain;
use crate::judge::{judge_sum, reads_as_sentences};
use crate::split::{Split, conversations};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of the target
    #[arg(long, default_value = "checkpoints/quickstart-target")]
    target: PathBuf,
    /// Prompts per domain, from the split that no training uses
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// Seed of the prompts
    #[arg(long, default_value_t = 1000)]
    seed: u64,
    /// Answers to show per domain
    #[arg(long, default_value_t = 2)]
    show: usize,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Answers unseen prompts greedily and counts the good answers.
pub fn run(arguments: &Arguments) -> Result<()> {
    let target = Target::load(&arguments.target, &arguments.device.open()?)?;
    let tokenizer = Tokenizer::of_model(&arguments.target)?;
    let template = tokenizer.chat_template().context("the target has no chat template")?;
    let options = GenerationOptions {
        max_new_tokens: 256,
        stop_token_ids: tokenizer.stop_token_ids().to_vec(),
        confidence_threshold: 0.0,
    };
    for domain in Domain::ALL {
        let (mut good, mut asked) = (0, 0);
        for conversation in conversations(domain, Split::Evaluate, arguments.seed).take(arguments.prompts) {
            let Some(exchange) = conversation.exchanges.first() else {
                continue;
            };
            let messages = [json!({"role": "user", "content": exchange.user})];
            let ids = tokenizer.encode(&template.render(&messages, &Map::new(), true)?, false)?;
            let generation = Decoder::new(&target, None).generate(&ids, &options, &mut Sampler::greedy())?;
            let answer = tokenizer.decode_answer(&ids, &generation.ids)?;
            if asked < arguments.show {
                print(format_args!("[{}] {}\n{}\n", domain.name(), exchange.user, answer.trim()))?;
            }
            asked += 1;
            good += usize::from(match domain {
                Domain::Sums => judge_sum(&exchange.user, &answer),
                Domain::Code => parses_as_python(&answer)?,
                Domain::Chat => reads_as_sentences(answer.trim()),
            });
        }
        print(format_args!("{}: {good} of {asked} good", domain.name()))?;
    }
    Ok(())
}

/// Asks Python's own parser.
fn parses_as_python(code: &str) -> Result<bool> {
    let mut python = Command::new("python3")
        .args(["-c", "import ast, sys; ast.parse(sys.stdin.read())"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("python3 is needed to judge code")?;
    if let Some(mut stdin) = python.stdin.take() {
        stdin.write_all(code.as_bytes())?;
    }
    Ok(python.wait()?.success())
}
