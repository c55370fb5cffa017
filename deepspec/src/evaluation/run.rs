//! Answering the prompts of every task, with the draft and without.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dspark_runtime::model::{Draft, Target};
use dspark_runtime::speculate::{Decoder, Generation, GenerationOptions, SeededUniforms};
use dspark_runtime::text::{TextError, Tokenizer};
use serde_json::{Map, Value, json};

use super::report::{EvaluationReport, TaskReport};
use super::statistics::RoundStatistics;
use super::trace::{TraceError, TraceRound, TraceWriter};
use crate::conversation::{ConversationError, EvaluationPrompt, read_evaluation_prompts};
use crate::recipe::Turns;
use crate::trainer::Progress;

/// How to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Token limit of an answer.
    pub max_new_tokens: usize,
    /// Prompts per task; `None`: all.
    pub samples: Option<usize>,
    /// Seed of sampling.
    pub seed: u64,
    /// Which turns are answered.
    pub turns: Turns,
    /// Slots below this confidence end a proposal; 0: none.
    pub confidence_threshold: f64,
    /// Extra variables for the chat template.
    pub template_arguments: Map<String, Value>,
    /// Whether the target alone answers too, for its speed.
    pub measure_plain: bool,
}

/// A named file of prompts.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name in the report.
    pub name: String,
    /// JSONL with `turns` per line.
    pub path: PathBuf,
}

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A task file cannot be used.
    #[error(transparent)]
    Prompts(#[from] ConversationError),
    /// A prompt cannot be rendered or tokenised.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The tokeniser has no chat template.
    #[error(
        "the target's tokenizer has no chat template: `turns` cannot be rendered (expected `chat_template` in tokenizer_config.json)"
    )]
    NoTemplate,
    /// A prompt holds a token that the target has no embedding for.
    #[error("{}: prompt {sample}: token id {id} is beyond the target's vocabulary of {vocabulary}", path.display())]
    TokenBeyondVocabulary {
        /// The task file.
        path: PathBuf,
        /// 0-based prompt.
        sample: usize,
        /// The token.
        id: u32,
        /// Rows of the target's embedding.
        vocabulary: usize,
    },
    /// The first turn of a prompt leaves no room for an answer.
    #[error(
        "{}: prompt {sample}: {tokens} tokens, but the target's context is {context}: shorten it, or leave it out",
        path.display()
    )]
    PromptTooLong {
        /// The task file.
        path: PathBuf,
        /// 0-based prompt.
        sample: usize,
        /// Tokens of the first turn, system message and template included.
        tokens: usize,
        /// The target's context, tokens.
        context: usize,
    },
    /// A confidence threshold, and a draft that predicts none.
    #[error(
        "the confidence threshold {threshold} (`--confidence-threshold`; `evaluate.confidence_threshold` in a recipe) \
         needs a confidence head, and the draft {draft} has none: leave the threshold out, or train with \
         `model.enable_confidence_head = true`"
    )]
    NoConfidenceHead {
        /// The threshold asked for.
        threshold: f64,
        /// The draft, as it was named.
        draft: String,
    },
    /// A task file has no prompts.
    #[error("{}: no prompts", path.display())]
    Empty {
        /// The task file.
        path: PathBuf,
    },
    /// The trace cannot be written.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// The models of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Models<'a> {
    /// The target.
    pub target: &'a Target,
    /// The draft.
    pub draft: &'a Draft,
    /// The target's tokeniser.
    pub tokenizer: &'a Tokenizer,
}

/// Answers all prompts of all tasks; `names` are the target's and the draft's for the report.
///
/// # Errors
/// When a task file is unusable, a prompt cannot be rendered, the draft has no head for a confidence threshold, or the
/// trace cannot be written.
pub fn evaluate(
    models: Models<'_>,
    names: (&str, &str),
    tasks: &[Task],
    options: &EvaluationOptions,
    trace: Option<&Path>,
) -> Result<EvaluationReport, EvaluateError> {
    let mut trace = trace.map(TraceWriter::create).transpose()?;
    let report = evaluate_observed(models, names, tasks, options, |round| match &mut trace {
        Some(trace) => trace.write(&round),
        None => Ok(()),
    })?;
    if let Some(trace) = trace {
        trace.finish()?;
    }
    Ok(report)
}

/// The same, handing every round to `observe`.
///
/// # Errors
/// As [`evaluate`], and what `observe` returns.
pub fn evaluate_observed(
    models: Models<'_>,
    names: (&str, &str),
    tasks: &[Task],
    options: &EvaluationOptions,
    mut observe: impl FnMut(TraceRound) -> Result<(), TraceError>,
) -> Result<EvaluationReport, EvaluateError> {
    let threshold = options.confidence_threshold;
    if threshold > 0.0 && !models.draft.config().has_confidence_head() {
        return Err(EvaluateError::NoConfidenceHead { threshold, draft: names.1.to_owned() });
    }
    let mut reports = Vec::new();
    for task in tasks {
        let mut prompts = read_evaluation_prompts(&task.path)?;
        prompts.truncate(options.samples.unwrap_or(usize::MAX));
        if prompts.is_empty() {
            return Err(EvaluateError::Empty { path: task.path.clone() });
        }
        reports.push(evaluate_task(models, task, &prompts, options, &mut observe)?);
    }
    Ok(EvaluationReport {
        target: names.0.to_owned(),
        draft: names.1.to_owned(),
        temperature: options.temperature,
        seed: options.seed,
        max_new_tokens: options.max_new_tokens,
        tasks: reports,
    })
}

fn evaluate_task(
    models: Models<'_>,
    task: &Task,
    prompts: &[EvaluationPrompt],
    options: &EvaluationOptions,
    observe: &mut impl FnMut(TraceRound) -> Result<(), TraceError>,
) -> Result<TaskReport, EvaluateError> {
    let mut statistics = RoundStatistics::new(models.draft.config().block_size);
    let (mut with_draft, mut alone) = (Speed::default(), Speed::default());
    let (mut new_tokens, mut skipped) = (0, 0);
    let mut progress = Progress::new(&task.name, prompts.len() as u64, 0);
    for (sample, prompt) in prompts.iter().enumerate() {
        let mut round = 0;
        let mut failure = None;
        skipped += answer(models, task, sample, prompt, options, |ids, generation_options, uniforms| {
            let decoder = Decoder::new(models.target, Some(models.draft));
            let generation = decoder.generate_observed(ids, generation_options, uniforms, |detail| {
                statistics.add(&detail.record);
                let line = TraceRound {
                    task: task.name.clone(),
                    sample,
                    round,
                    temperature: options.temperature,
                    confidence_logits: detail.proposal.confidence_logits.clone(),
                    proposed: detail.record.proposed,
                    accepted: detail.record.accepted,
                    stopped: detail.record.stopped,
                };
                round += 1;
                if let Err(error) = observe(line) {
                    failure = Some(error);
                }
            });
            new_tokens += generation.ids.len() as u64;
            with_draft.add(&generation);
            generation
        })?;
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        if options.measure_plain {
            answer(models, task, sample, prompt, options, |ids, generation_options, uniforms| {
                let generation = Decoder::new(models.target, None).generate(ids, generation_options, uniforms);
                alone.add(&generation);
                generation
            })?;
        }
        progress.step(|| match statistics.accepted_length() {
            Some(accepted) => format!("accepted length {accepted:.2}"),
            None => String::new(),
        });
    }
    progress.finish();
    let mut report = TaskReport::new(&task.name, prompts.len(), new_tokens, &statistics);
    report.skipped = skipped;
    report.tokens_per_second = with_draft.tokens_per_second();
    report.plain_tokens_per_second = alone.tokens_per_second();
    Ok(report)
}

/// Answers the turns of one prompt in order, each answer becoming part of the conversation. When a later turn finds no
/// room for an answer, it and those after it are skipped; returns how many.
fn answer(
    models: Models<'_>,
    task: &Task,
    sample: usize,
    prompt: &EvaluationPrompt,
    options: &EvaluationOptions,
    mut generate: impl FnMut(&[u32], &GenerationOptions, &mut SeededUniforms) -> Generation,
) -> Result<u64, EvaluateError> {
    let template = models.tokenizer.chat_template().ok_or(EvaluateError::NoTemplate)?;
    let generation_options = GenerationOptions {
        temperature: options.temperature,
        max_new_tokens: options.max_new_tokens,
        stop_token_ids: models.tokenizer.stop_token_ids().to_vec(),
        confidence_threshold: options.confidence_threshold,
    };
    let mut uniforms = SeededUniforms::new(options.seed, sample as u64);
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let mut messages: Vec<Value> = prompt.system.iter().map(|system| message("system", system)).collect();
    let turns = match options.turns {
        Turns::All => &prompt.turns[..],
        Turns::First => &prompt.turns[..prompt.turns.len().min(1)],
    };
    for (number, turn) in turns.iter().enumerate() {
        messages.push(message("user", turn));
        let text = template.render(&messages, &options.template_arguments, true)?;
        let ids = models.tokenizer.encode(&text, false)?;
        let vocabulary = models.target.config().vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(EvaluateError::TokenBeyondVocabulary { path: task.path.clone(), sample, id, vocabulary });
        }
        let context = models.target.config().max_position_embeddings;
        if ids.len() >= context && number > 0 {
            return Ok((turns.len() - number) as u64);
        }
        if ids.len() >= context {
            let (path, tokens) = (task.path.clone(), ids.len());
            return Err(EvaluateError::PromptTooLong { path, sample, tokens, context });
        }
        let generation = generate(&ids, &generation_options, &mut uniforms);
        messages.push(message("assistant", &models.tokenizer.decode(&generation.ids, true)?));
    }
    Ok(0)
}

/// Tokens and time after prefill.
#[derive(Default)]
struct Speed {
    tokens: usize,
    time: Duration,
}

impl Speed {
    fn add(&mut self, generation: &Generation) {
        self.tokens += generation.ids.len().saturating_sub(1);
        self.time += generation.decode;
    }

    fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens as f64 / self.time.as_secs_f64())
    }
}
