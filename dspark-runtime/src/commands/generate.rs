//! `dspark generate`

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::defaults::DefaultsArguments;
use super::models::ModelArguments;
use super::output::{count, print, share, template_arguments, warn_of_other_template_arguments};
use super::prompt::{chat_template, standard_input};
use super::sampling::SamplingArguments;
use super::user_text::UserTextArguments;
use crate::engine::Sampling;
use crate::model::Draft;
use crate::speculate::{Decoder, Generation, GenerationOptions};
use crate::text::Tokenizer;

/// The token limit of an answer where neither the user nor the model gives one.
const ANSWER_TOKENS: usize = 256;

/// Arguments of `dspark generate`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    models: ModelArguments,
    /// Prompt text (default: read standard input and drop the final line break)
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// System message before the prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Pass the prompt to the model unchanged, without the chat template
    #[arg(long, conflicts_with_all = ["system", "template_arguments", "plain_user_text"])]
    raw: bool,
    /// Set a variable of the chat template, for example `enable_thinking=false`. Can be repeated
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
    #[command(flatten)]
    user_text: UserTextArguments,
    #[command(flatten)]
    defaults: DefaultsArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Maximum number of tokens in the answer (default: 256)
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    max_new_tokens: Option<usize>,
    /// Stop verification before the first drafted token whose confidence is below P; 0 verifies all
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    confidence_threshold: f64,
    /// Continue after the model's stop tokens
    #[arg(long)]
    ignore_stop: bool,
    /// Print token ids, text, rounds, accepted lengths and times as JSON
    #[arg(long)]
    json: bool,
}

/// Answers and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    let defaults = arguments.defaults.read(&arguments.models.target, Sampling::GREEDY)?;
    let started = Instant::now();
    let models = arguments.models.open()?;
    let load = started.elapsed();
    let (target, tokenizer) = (&models.target, &models.tokenizer);
    if let Some((_, draft)) = models.named_draft() {
        warn_of_other_template_arguments(draft.config(), &template_arguments(&arguments.template_arguments)?);
    }
    if arguments.confidence_threshold > 0.0 {
        check_confidence_head(models.named_draft(), arguments.confidence_threshold)?;
    }

    let ids = prompt_ids(arguments, tokenizer, &models.name())?;
    let vocabulary = target.config().vocab_size;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!(
            "the prompt contains token id {id}, beyond the target's vocabulary of {vocabulary}: tokenizer and weights do not match"
        );
    }
    let context = target.config().max_position_embeddings;
    if ids.is_empty() || ids.len() >= context {
        bail!("the prompt has {} tokens; expected 1 to {} for a context of {context}", ids.len(), context - 1);
    }
    let stop = if arguments.ignore_stop { Vec::new() } else { tokenizer.stop_token_ids().to_vec() };
    let options = GenerationOptions {
        max_new_tokens: arguments.max_new_tokens.or(defaults.max_new_tokens).unwrap_or(ANSWER_TOKENS),
        stop_token_ids: stop,
        confidence_threshold: arguments.confidence_threshold,
    };
    let mut sampler = arguments.sampling.sampling(defaults.sampling).sampler();
    let generation = Decoder::new(target, models.draft.as_ref()).generate(&ids, &options, &mut sampler)?;
    let text = tokenizer.decode_answer(&ids, &generation.ids)?;
    let speed = generation.ids.len().saturating_sub(1) as f64 / generation.decode.as_secs_f64().max(1e-9);
    if arguments.json {
        let report = report(&ids, &generation, &text, load.as_secs_f64(), speed);
        print(serde_json::to_string_pretty(&report)?)?;
    } else {
        print(text.trim_end())?;
        let accepted =
            generation.accepted_length().map(|tau| format!(", accepted length {tau:.2}")).unwrap_or_default();
        eprintln!("{} tokens, {speed:.1} tokens/s{accepted}", generation.ids.len());
    }
    Ok(())
}

/// A threshold without a head to compare with would be ignored without a word.
fn check_confidence_head(draft: Option<(&Path, &Draft)>, threshold: f64) -> Result<()> {
    match draft {
        None => bail!("--confidence-threshold {threshold}: a confidence threshold needs a draft; give --draft DIR"),
        Some((folder, draft)) if !draft.config().has_confidence_head() => bail!(
            "--confidence-threshold {threshold}: the draft {} has no confidence head; omit the threshold, or use a draft with a confidence head",
            folder.display()
        ),
        Some(_) => Ok(()),
    }
}

fn prompt_ids(arguments: &Arguments, tokenizer: &Tokenizer, name: &str) -> Result<Vec<u32>> {
    let prompt = arguments.prompt.clone().map_or_else(standard_input, Ok)?;
    if prompt.trim().is_empty() {
        bail!("the prompt is empty: give --prompt TEXT, or pass text on standard input");
    }
    if arguments.raw {
        return Ok(tokenizer.encode(&prompt, true)?);
    }
    let template = chat_template(tokenizer, name, "use --raw to pass the prompt to the model unchanged")?;
    let system = arguments.system.iter().map(|system| json!({"role": "system", "content": system}));
    let messages: Vec<Value> = system.chain([json!({"role": "user", "content": prompt})]).collect();
    let template_arguments = template_arguments(&arguments.template_arguments)?;
    Ok(template.prompt(tokenizer, &messages, &template_arguments, arguments.user_text.user_text())?)
}

fn report(prompt: &[u32], generation: &Generation, text: &str, load: f64, speed: f64) -> Value {
    let committed: Vec<usize> = generation.rounds.iter().map(|round| round.counted).collect();
    let proposed: Vec<usize> = generation.rounds.iter().map(|round| round.proposed).collect();
    json!({
        "prompt_ids": prompt,
        "ids": generation.ids,
        "text": text,
        "rounds": generation.rounds.len(),
        "accepted_lengths": committed,
        "proposed_lengths": proposed,
        "accepted_length": generation.accepted_length(),
        "tokens_per_second": speed,
        "times": {
            "load_seconds": load,
            "prefill_seconds": generation.prefill.as_secs_f64(),
            "decode_seconds": generation.decode.as_secs_f64(),
        },
    })
}
