//! `deepspec quickstart-data`, `quickstart-target` and `quickstart-check`: how the quickstart's files were made.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use serde_json::{Map, json};

use super::setup::load_target;
use crate::quickstart::{
    Domain, PretrainSettings, Sizes, Split, conversations, judge_sum, pretrain_target, reads_as_sentences,
    write_datasets,
};

/// Arguments of `deepspec quickstart-data`.
#[derive(Debug, Args)]
pub struct DataArguments {
    /// Where to write the files
    #[arg(long, default_value = "datasets/quickstart")]
    out: PathBuf,
    /// Seed of the conversations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Writes the conversations.
pub fn write_data(arguments: &DataArguments) -> Result<()> {
    for path in write_datasets(&arguments.out, arguments.seed, Sizes::default())? {
        print(format_args!("wrote {}", path.display()))?;
    }
    Ok(())
}

/// Arguments of `deepspec quickstart-target`.
#[derive(Debug, Args)]
pub struct TargetArguments {
    /// Where to write the target
    #[arg(long, default_value = "checkpoints/quickstart-target")]
    out: PathBuf,
    /// Optimiser steps
    #[arg(long, default_value_t = 3600)]
    steps: u64,
    /// Conversations per step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Seed of tokeniser, data and weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Trains the target.
pub fn train_target(arguments: &TargetArguments) -> Result<()> {
    let settings = PretrainSettings {
        steps: arguments.steps,
        batch: arguments.batch,
        learning_rate: arguments.lr,
        seed: arguments.seed,
    };
    pretrain_target(&arguments.out, &settings, &arguments.device.open()?)?;
    Ok(print(format_args!("wrote {}", arguments.out.display()))?)
}

/// Arguments of `deepspec quickstart-check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// The target
    #[arg(long, default_value = "checkpoints/quickstart-target")]
    target: String,
    /// Prompts per domain, of the split that no training saw
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// Seed of the prompts
    #[arg(long, default_value_t = 1000)]
    seed: u64,
    /// Answers shown per domain
    #[arg(long, default_value_t = 2)]
    show: usize,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Answers unseen prompts greedily and counts the good answers.
pub fn check_target(arguments: &CheckArguments) -> Result<()> {
    let (_, target, tokenizer) = load_target(&arguments.target, &arguments.device.open()?)?;
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
            let generation = Decoder::new(&target, None).generate(&ids, &options, &mut Sampler::greedy());
            let answer = tokenizer.decode(&generation.ids, true)?;
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

/// Asks Python itself.
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
