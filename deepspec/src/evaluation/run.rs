//! Answering the prompts of every task, with the draft and without.

use std::path::PathBuf;
use std::time::Duration;

use dspark_runtime::model::{Draft, Target, TargetConfig};
use dspark_runtime::schedule::Mode;
use dspark_runtime::speculate::{
    Decoder, Filters, Generation, GenerationOptions, NotFinite, Randomness, RoundDetail, Sampler,
};
use dspark_runtime::text::{TextError, Tokenizer};
use serde_json::{Value, json};

use super::mode::EvaluationMode;
use super::options::{EvaluationOptions, Records, SamplingMethod, Task, Turns};
use super::report::{EvaluationReport, TaskReport};
use super::statistics::RoundStatistics;
use super::trace::{Answered, Progressed, TraceError, TraceRound, TraceWriter};
use crate::console::Progress;
use crate::conversation::{ConversationError, EvaluationPrompt, read_evaluation_prompts};

/// Reasons that an evaluation failed.
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
    /// No prompt of a task leaves room for an answer.
    #[error(
        "{}: none of the {prompts} prompts fits: the shortest has {tokens} tokens, but the target's context is \
         {context}; shorten the prompts",
        path.display()
    )]
    NoPromptFits {
        /// The task file.
        path: PathBuf,
        /// Prompts.
        prompts: usize,
        /// Tokens of the shortest first turn, system message and template included.
        tokens: usize,
        /// The target's context, tokens.
        context: usize,
    },
    /// A confidence threshold, and a draft that predicts none.
    #[error(
        "the confidence threshold {threshold} (`--confidence-threshold`; `evaluate.confidence_threshold` in a recipe) \
         needs a confidence head, but the draft {draft} has none: omit the threshold, or train with \
         `model.enable_confidence_head = true`"
    )]
    NoConfidenceHead {
        /// The requested threshold.
        threshold: f64,
        /// The draft, as it was named.
        draft: String,
    },
    /// Two limits of what is verified.
    #[error(
        "mode `{mode}` and the confidence threshold {threshold} both limit what is verified: give one of them (`--mode` and \
         `--confidence-threshold`; `evaluate.mode` and `evaluate.confidence_threshold` in a recipe)"
    )]
    TwoLimits {
        /// The mode asked for.
        mode: EvaluationMode,
        /// The threshold asked for.
        threshold: f64,
    },
    /// A mode that reads confidences, and a draft that predicts none.
    #[error(
        "mode `{mode}` needs a confidence head, but the draft {draft} has none: choose another mode, or train with \
         `model.enable_confidence_head = true`"
    )]
    NoConfidences {
        /// The mode asked for.
        mode: EvaluationMode,
        /// The draft, as it was named.
        draft: String,
    },
    /// The scheduled mode without a speed table.
    #[error("mode `scheduled` needs a speed table: measure one with `dspark profile`")]
    NoSpeedTable,
    /// The target gives no distribution for a token.
    #[error("{0}")]
    NotFinite(#[from] NotFinite),
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

/// Answers all prompts of all tasks; `names` are the target's and the draft's for the report. `examples/train.rs` calls it.
///
/// # Errors
/// Returns an error if a task file is unusable, a prompt cannot be rendered, the draft has no head for a confidence threshold, or the
/// records cannot be written.
pub fn evaluate(
    models: Models<'_>,
    names: (&str, &str),
    tasks: &[Task],
    options: &EvaluationOptions,
    records: Records<'_>,
) -> Result<EvaluationReport, EvaluateError> {
    let mut trace = records.trace.map(TraceWriter::create).transpose()?;
    let mut answers = records.answers.map(TraceWriter::create).transpose()?;
    let report = evaluate_observed(models, names, tasks, options, |progressed| match progressed {
        Progressed::Round(round) => trace.as_mut().map_or(Ok(()), |trace| trace.write(&round)),
        Progressed::Answer(answer) => answers.as_mut().map_or(Ok(()), |answers| answers.write(&answer)),
    })?;
    trace.into_iter().chain(answers).try_for_each(TraceWriter::finish)?;
    Ok(report)
}

/// Evaluates as [`evaluate`] does, and hands rounds and answers to `observe` as they come.
///
/// # Errors
/// Returns the errors of [`evaluate`] and of `observe`.
pub fn evaluate_observed(
    models: Models<'_>,
    names: (&str, &str),
    tasks: &[Task],
    options: &EvaluationOptions,
    mut observe: impl FnMut(Progressed) -> Result<(), TraceError>,
) -> Result<EvaluationReport, EvaluateError> {
    let threshold = options.confidence_threshold;
    if threshold > 0.0 && !models.draft.config().has_confidence_head() {
        return Err(EvaluateError::NoConfidenceHead { threshold, draft: names.1.to_owned() });
    }
    let mode = options.mode;
    if threshold > 0.0 && !mode.is_whole() {
        return Err(EvaluateError::TwoLimits { mode, threshold });
    }
    if mode.needs_confidences() && !models.draft.config().has_confidence_head() {
        return Err(EvaluateError::NoConfidences { mode, draft: names.1.to_owned() });
    }
    if mode == EvaluationMode::Served(Mode::Scheduled) && options.tables.speed.is_none() {
        return Err(EvaluateError::NoSpeedTable);
    }
    let read = read_tasks(models.target.config(), models.tokenizer, tasks, options)?;
    let digest = models.draft.digest();
    let mut reports = Vec::new();
    for (task, prompts) in tasks.iter().zip(&read) {
        reports.push(evaluate_task(models, &digest, task, prompts, options, &mut observe)?);
    }
    Ok(EvaluationReport {
        target: names.0.to_owned(),
        draft: names.1.to_owned(),
        mode,
        temperature: options.temperature,
        seed: options.seed,
        sampling: options.sampling,
        draft_heads: models.draft.heads().to_string(),
        max_new_tokens: options.max_new_tokens,
        tasks: reports,
    })
}

/// Reads the prompts of all tasks and renders the first turn of each, so that what cannot be answered is found before anything
/// is decoded.
///
/// # Errors
/// Returns an error if a task file is unusable, a prompt cannot be rendered, or no prompt of a task fits into the target's context.
pub fn read_tasks(
    target: &TargetConfig,
    tokenizer: &Tokenizer,
    tasks: &[Task],
    options: &EvaluationOptions,
) -> Result<Vec<Vec<EvaluationPrompt>>, EvaluateError> {
    let mut read = Vec::new();
    for task in tasks {
        let mut prompts = read_evaluation_prompts(&task.path)?;
        prompts.truncate(options.samples.unwrap_or(usize::MAX));
        let renderer = Renderer { target, tokenizer, options, task };
        let mut shortest = usize::MAX;
        for (sample, prompt) in prompts.iter().enumerate() {
            shortest = shortest.min(renderer.render(sample, prompt, &prompt.opening())?.len());
        }
        let context = target.max_position_embeddings;
        if shortest >= context {
            let (path, prompts) = (task.path.clone(), prompts.len());
            return Err(EvaluateError::NoPromptFits { path, prompts, tokens: shortest, context });
        }
        read.push(prompts);
    }
    Ok(read)
}

/// Everything that turns conversations into tokens.
struct Renderer<'a> {
    target: &'a TargetConfig,
    tokenizer: &'a Tokenizer,
    options: &'a EvaluationOptions,
    task: &'a Task,
}

impl Renderer<'_> {
    /// The tokens of a conversation that waits for its answer.
    fn render(
        &self,
        sample: usize,
        prompt: &EvaluationPrompt,
        messages: &[Value],
    ) -> Result<Vec<u32>, EvaluateError> {
        let template = self.tokenizer.chat_template().ok_or(EvaluateError::NoTemplate)?;
        let arguments = prompt.template_arguments(&self.options.template_arguments);
        let text = template.render(messages, &arguments, true)?;
        let ids = self.tokenizer.encode(&text, false)?;
        let vocabulary = self.target.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => {
                let path = self.task.path.clone();
                Err(EvaluateError::TokenBeyondVocabulary { path, sample, id, vocabulary })
            }
            None => Ok(ids),
        }
    }
}

fn evaluate_task(
    models: Models<'_>,
    digest: &str,
    task: &Task,
    prompts: &[EvaluationPrompt],
    options: &EvaluationOptions,
    observe: &mut impl FnMut(Progressed) -> Result<(), TraceError>,
) -> Result<TaskReport, EvaluateError> {
    let mut statistics = RoundStatistics::new(models.draft.config().block_size);
    let (mut with_draft, mut alone) = (Speed::default(), Speed::default());
    let (mut new_tokens, mut plain_steps, mut skipped, mut skipped_prompts) = (0, 0, 0, 0);
    // Each task meets a server that was just started.
    let mut policy = options.tables.policy(options.mode, models.draft);
    let mut progress = Progress::new(&task.name, prompts.len() as u64, 0);
    for (sample, prompt) in prompts.iter().enumerate() {
        let (mut round, mut rounds) = (0, Vec::new());
        let (answers, left_out) =
            answer(models, task, sample, prompt, options, |ids, generation_options, sampler| {
                let decoder = Decoder::new(models.target, Some(models.draft));
                let observe = |detail: RoundDetail<'_>| {
                    let line = TraceRound {
                        task: task.name.clone(),
                        sample,
                        round,
                        temperature: options.temperature,
                        confidence_logits: detail.block.confidence_logits.clone(),
                        proposed: detail.record.proposed,
                        accepted: detail.record.accepted,
                        stopped: detail.record.stopped,
                        prompt_tokens: ids.len(),
                        max_new_tokens: options.max_new_tokens,
                        draft: Some(digest.to_owned()),
                    };
                    round += 1;
                    rounds.push(line);
                };
                let generation = match &mut policy {
                    Some(policy) => decoder.generate_scheduled(ids, generation_options, sampler, policy, observe)?,
                    None => decoder.generate_observed(ids, generation_options, sampler, observe)?,
                };
                generation.rounds.iter().for_each(|record| statistics.add(record));
                new_tokens += generation.ids.len() as u64;
                plain_steps += generation.plain_steps();
                with_draft.add(&generation);
                Ok(generation)
            })?;
        skipped += left_out;
        skipped_prompts += usize::from(answers.is_empty());
        let answered = |(turn, text)| Progressed::Answer(Answered { task: task.name.clone(), sample, turn, text });
        rounds.into_iter().map(Progressed::Round).try_for_each(&mut *observe)?;
        answers.into_iter().enumerate().map(answered).try_for_each(&mut *observe)?;
        if options.measure_plain {
            answer(models, task, sample, prompt, options, |ids, generation_options, sampler| {
                let generation = Decoder::new(models.target, None).generate(ids, generation_options, sampler)?;
                alone.add(&generation);
                Ok(generation)
            })?;
        }
        progress.step(|| match statistics.accepted_length() {
            Some(accepted) => format!("accepted length {accepted:.2}"),
            None => String::new(),
        });
    }
    progress.finish();
    let mut report = TaskReport::new(&task.name, prompts.len() - skipped_prompts, new_tokens, &statistics);
    (report.plain_steps, report.skipped, report.skipped_prompts) = (plain_steps, skipped, skipped_prompts);
    report.tokens_per_second = with_draft.tokens_per_second();
    report.plain_tokens_per_second = alone.tokens_per_second();
    Ok(report)
}

/// Answers the turns of one prompt in order, each answer becoming part of the conversation. When a turn finds no room for an
/// answer, it and those after it are skipped. Returns the answers, and how many turns were skipped.
fn answer(
    models: Models<'_>,
    task: &Task,
    sample: usize,
    prompt: &EvaluationPrompt,
    options: &EvaluationOptions,
    mut generate: impl FnMut(&[u32], &GenerationOptions, &mut Sampler) -> Result<Generation, NotFinite>,
) -> Result<(Vec<String>, u64), EvaluateError> {
    let renderer = Renderer { target: models.target.config(), tokenizer: models.tokenizer, options, task };
    let context = models.target.config().max_position_embeddings;
    let generation_options = GenerationOptions {
        max_new_tokens: options.max_new_tokens,
        stop_token_ids: models.tokenizer.stop_token_ids().to_vec(),
        confidence_threshold: options.confidence_threshold,
    };
    let mut sampler = match options.sampling {
        SamplingMethod::Rejection => Sampler::repeatable(options.temperature, options.seed, sample as u64),
        // As a request with this seed is served.
        SamplingMethod::Coupled => {
            Sampler::new(options.temperature, Filters::NONE, Randomness::Coupled(options.seed))
        }
    };
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let mut messages = prompt.opening();
    let turns = match options.turns {
        Turns::All => &prompt.turns[..],
        Turns::First => &prompt.turns[..prompt.turns.len().min(1)],
    };
    let mut answers = Vec::new();
    for (number, turn) in turns.iter().enumerate() {
        if number > 0 {
            messages.push(message("user", turn));
        }
        let ids = renderer.render(sample, prompt, &messages)?;
        if ids.len() >= context {
            return Ok((answers, (turns.len() - number) as u64));
        }
        let generation = generate(&ids, &generation_options, &mut sampler)?;
        let answer = models.tokenizer.decode_answer(&ids, &generation.ids)?;
        messages.push(message("assistant", &answer));
        answers.push(answer);
    }
    Ok((answers, 0))
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
