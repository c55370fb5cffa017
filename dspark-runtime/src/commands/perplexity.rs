//! `dspark perplexity`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::output::{count, print, weight_precision};
use crate::checkpoint::{LARGEST_TEXT, WeightPrecision, read_text, resolve_model};
use crate::device::DeviceChoice;
use crate::model::Target;
use crate::text::Tokenizer;

/// Arguments of `dspark perplexity`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The target: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// A file of plain text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The text is cut into runs of so many tokens, each read without the ones before
    #[arg(long, default_value_t = 1024, value_parser = count)]
    context: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What matrices are kept in: f32, or `stored`, which keeps bf16 files in bf16 (half the memory, the same results on
    /// the CPU)
    #[arg(long, value_name = "f32|stored", default_value = "f32", value_parser = weight_precision)]
    weights: WeightPrecision,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Reads the text and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    let text = read_text(&arguments.text, LARGEST_TEXT).with_context(|| arguments.text.display().to_string())?;
    let device = arguments.device.open()?;
    let model = resolve_model(&arguments.target)?;
    let tokenizer = Tokenizer::of_model(&model)?;
    let target = Target::load_with(&model, arguments.weights, &device)?;
    let longest = target.config().max_position_embeddings;
    if arguments.context > longest {
        bail!("--context: expected at most {longest} for this target, found {}", arguments.context);
    }
    let ids = tokenizer.encode(&text, true)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= target.config().vocab_size) {
        bail!(
            "the text holds token id {id}, which the target has no embedding for: tokenizer and weights do not match"
        );
    }
    let losses: Vec<f64> = ids.chunks(arguments.context).flat_map(|run| target.token_losses(run)).collect();
    if losses.is_empty() {
        bail!("{}: {} tokens, expected at least 2", arguments.text.display(), ids.len());
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
