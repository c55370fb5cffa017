//! The prompts of a bundle: those that the user or the recipe names, or three of our own.

use std::path::Path;

use anyhow::{Context, Result, bail};
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value};

use crate::conversation::{EvaluationPrompt, read_evaluation_prompts};
use crate::evaluation::Task;

/// Prompts of a bundle that the user names none for.
const DEFAULT: [&str; 3] = [
    "What is 27 + 38? Work it out step by step.",
    "Write a Python function that returns the largest number of a list.",
    "Name three things to pack for a walk in the rain.",
];

/// Most prompts of a bundle.
const LARGEST: usize = 8;

/// Maximum number of tokens of a prompt; the rest is truncated.
const LONGEST: usize = 256;

/// A tokenised prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayPrompt {
    /// The origin of the prompt.
    pub source: String,
    /// The tokenised text.
    pub text: String,
    /// At least two tokens.
    pub token_ids: Vec<u32>,
}

/// The settings for rendering and checking prompts.
struct Renderer<'a> {
    tokenizer: &'a Tokenizer,
    template_arguments: &'a Map<String, Value>,
    /// The target's vocabulary size and context length.
    limits: [usize; 2],
}

impl Renderer<'_> {
    /// The messages up to the first turn through the chat template; the turn alone where there is none.
    fn render(&self, source: String, prompt: &EvaluationPrompt) -> Result<ReplayPrompt> {
        let (text, plain) = match self.tokenizer.chat_template() {
            Some(template) => {
                let arguments = prompt.template_arguments(self.template_arguments);
                (template.render(&prompt.opening(), &arguments, true)?, false)
            }
            None => (prompt.turns.first().cloned().unwrap_or_default(), true),
        };
        let mut token_ids = self.tokenizer.encode(&text, plain).with_context(|| source.clone())?;
        let [vocabulary, context] = self.limits;
        token_ids.truncate(LONGEST.min(context / 2));
        if let Some(id) = token_ids.iter().find(|&&id| id as usize >= vocabulary) {
            bail!("{source}: token id {id} is beyond the target's vocabulary of {vocabulary}");
        }
        if token_ids.len() < 2 {
            bail!("{source}: expected a prompt of at least two tokens, found {}", token_ids.len());
        }
        Ok(ReplayPrompt { source, text, token_ids })
    }
}

fn render_all(
    tokenizer: &Tokenizer,
    template_arguments: &Map<String, Value>,
    limits: [usize; 2],
    prompts: Vec<(String, EvaluationPrompt)>,
) -> Result<Vec<ReplayPrompt>> {
    let renderer = Renderer { tokenizer, template_arguments, limits };
    prompts.into_iter().map(|(source, prompt)| renderer.render(source, &prompt)).collect()
}

/// Three prompts that were written for this. `limits` are the target's vocabulary size and context length.
///
/// # Errors
/// Returns an error if they cannot be rendered or tokenised.
pub fn default_prompts(tokenizer: &Tokenizer, limits: [usize; 2]) -> Result<Vec<ReplayPrompt>> {
    let prompts = DEFAULT
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let prompt = EvaluationPrompt { turns: vec![(*text).to_owned()], ..EvaluationPrompt::default() };
            (format!("built in, {index}"), prompt)
        })
        .collect();
    render_all(tokenizer, &Map::new(), limits, prompts)
}

/// The first prompts of a file as evaluations have it.
///
/// # Errors
/// Returns an error if it cannot be read, or a prompt cannot be tokenised.
pub fn file_prompts(file: &Path, tokenizer: &Tokenizer, limits: [usize; 2]) -> Result<Vec<ReplayPrompt>> {
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let prompts = read_evaluation_prompts(file)?;
    let numbered = prompts.into_iter().take(LARGEST).enumerate();
    let prompts = numbered.map(|(index, prompt)| (format!("{name}, {index}"), prompt)).collect();
    render_all(tokenizer, &Map::new(), limits, prompts)
}

/// The first prompts of evaluation tasks, as many as there are built-in ones, each task in its turn; the built-in ones
/// without tasks.
///
/// # Errors
/// See [`file_prompts`].
pub fn task_prompts(
    tasks: &[Task],
    tokenizer: &Tokenizer,
    template_arguments: &Map<String, Value>,
    limits: [usize; 2],
) -> Result<Vec<ReplayPrompt>> {
    let mut read = Vec::new();
    for task in tasks.iter().take(DEFAULT.len()) {
        read.push((&task.name, read_evaluation_prompts(&task.path)?));
    }
    let longest = read.iter().map(|(_, prompts)| prompts.len()).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|index| {
        read.iter().filter_map(move |(name, prompts)| Some((format!("{name}, {index}"), prompts.get(index)?.clone())))
    });
    let prompts: Vec<(String, EvaluationPrompt)> = in_turn.take(DEFAULT.len()).collect();
    match prompts.is_empty() {
        true => default_prompts(tokenizer, limits),
        false => render_all(tokenizer, template_arguments, limits, prompts),
    }
}
