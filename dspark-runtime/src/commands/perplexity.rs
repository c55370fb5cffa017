//! `dspark perplexity`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::models::{read_tokenizer, warn_of};
use super::output::{count, default_precision, print, weight_precision};
use crate::checkpoint::{LARGEST_TEXT, WeightPrecision, read_text, resolve_model};
use crate::device::DeviceChoice;
use crate::model::Target;
use crate::speculate::NotFinite;

/// Arguments of `dspark perplexity`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Target model: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// Plain text file to score
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Split the text into chunks of this many tokens and score each without the preceding ones
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = count)]
    context: usize,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Weight precision: `stored` keeps bf16 weights in bf16 (half the memory, identical results on the CPU), `f32`
    /// converts them to f32 (default: `stored` on the CPU, `f32` on a GPU)
    #[arg(long, value_name = "f32|stored", value_parser = weight_precision)]
    weights: Option<WeightPrecision>,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Reads the text and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    let text = read_text(&arguments.text, LARGEST_TEXT).with_context(|| arguments.text.display().to_string())?;
    let device = arguments.device.open()?;
    let model = resolve_model(&arguments.target)?;
    let tokenizer = read_tokenizer(&model)?;
    let precision = arguments.weights.unwrap_or_else(|| default_precision(arguments.device));
    let target = Target::load_with(&model, precision, &device)?;
    warn_of(target.config());
    let longest = target.config().max_position_embeddings;
    if arguments.context > longest {
        bail!("--context: expected at most {longest} for this target, found {}", arguments.context);
    }
    let ids = tokenizer.encode(&text, true)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= target.config().vocab_size) {
        bail!(
            "the text contains token id {id}, which has no embedding in the target: tokenizer and weights do not match"
        );
    }
    let mut losses: Vec<f64> = Vec::new();
    for run in ids.chunks(arguments.context) {
        let own = target.token_losses(run);
        if let Some(index) = own.iter().position(|loss| !loss.is_finite()) {
            bail!(NotFinite { position: index as u64 + 1 });
        }
        losses.extend(own);
    }
    if losses.is_empty() {
        bail!("{}: the text has {} tokens; expected at least 2", arguments.text.display(), ids.len());
    }
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    if arguments.json {
        let report = json!({"perplexity": mean.exp(), "mean_loss": mean, "tokens": losses.len()});
        print(serde_json::to_string_pretty(&report)?)?;
    } else {
        print(format_args!("perplexity {:.6} ({} tokens, {mean:.6} nats each)", mean.exp(), losses.len()))?;
    }
    Ok(())
}
