//! The text of a recipe that `deepspec init` writes.

use std::path::Path;

use anyhow::{Context, Result};
use dspark_runtime::device::DeviceChoice;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use toml::{Table, Value};

use super::Kind;
use super::rules::{Length, MaskToken, Scale};
use crate::recipe::Recipe;

/// Template of the recipe.
const TEMPLATE: &str = include_str!("recipe.toml.jinja");

/// Placeholder for the training data, relative to the working directory.
pub const DATA: &str = "conversations.jsonl";

/// Placeholder for the prompts to measure with.
pub const PROMPTS: &str = "prompts.jsonl";

/// Values of a recipe.
#[derive(Clone, Debug)]
pub struct Choices {
    /// Name of the run.
    pub name: String,
    /// The target as the user named it.
    pub target: String,
    /// The target's name in comments.
    pub model: String,
    /// The draft's architecture.
    pub kind: Kind,
    /// Device that trains.
    pub device: DeviceChoice,
    /// Target layers that the draft reads.
    pub layer_ids: Vec<usize>,
    /// Rule by which they were chosen, a sentence.
    pub layer_rule: &'static str,
    /// Mask token; `None` for drafts that need none.
    pub mask: Option<MaskToken>,
    /// Settings by the target's size.
    pub scale: Scale,
    /// Steps, and the number of training samples that determines them; `None` if the data are unknown.
    pub length: Option<(Length, usize)>,
    /// Tokens per forward pass.
    pub micro_batch_tokens: usize,
    /// Tokens after which a conversation is cut.
    pub max_length: usize,
    /// True if the chat template reads `enable_thinking`.
    pub thinking: bool,
    /// Training data as the user named them; empty for the placeholder.
    pub data: Vec<String>,
    /// Tasks: names, and files for those without a card; empty for the placeholder.
    pub tasks: Vec<(String, Option<String>)>,
}

impl Choices {
    /// Returns the recipe's text, and the recipe that it parses to. `file` names the recipe in errors.
    ///
    /// # Errors
    /// Returns an error if the text is not a valid recipe.
    pub fn text(&self, file: &Path) -> Result<(String, Recipe)> {
        let text = self.render().context("the recipe template")?;
        let recipe = Recipe::parse(&text, file, &[]).context("the recipe of `deepspec init`")?;
        Ok((text, recipe))
    }

    fn render(&self) -> Result<String, minijinja::Error> {
        let strings = |texts: &[&str]| {
            toml_text(Value::Array(texts.iter().map(|text| Value::String((*text).to_owned())).collect()))
        };
        let data: Vec<&str> = self.data.iter().map(String::as_str).collect();
        let task = |(name, path): &(String, Option<String>)| {
            let path = path.iter().map(|path| ("path".to_owned(), Value::String(path.clone())));
            Value::Table(
                [("name".to_owned(), Value::String(name.clone()))].into_iter().chain(path).collect::<Table>(),
            )
        };
        let placeholder = [("prompts".to_owned(), Some(PROMPTS.to_owned()))];
        let tasks = if self.tasks.is_empty() { &placeholder[..] } else { &self.tasks[..] };
        let length = self.length.map(|(length, _)| length);
        let passes = length.map(|length| match length.passes {
            1 => "one pass".to_owned(),
            passes => format!("at most {passes} passes"),
        });
        let part = |of: u64| length.map(|length| length.steps.div_ceil(of));
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).keep_trailing_newline(true).build()?);
        environment.render_str(
            TEMPLATE,
            context! {
                name => toml_text(Value::String(self.name.clone())),
                target => toml_text(Value::String(self.target.clone())),
                model => one_line(&self.model),
                kind => self.kind.with_article(),
                device => self.device.to_string(),
                layer_ids => format!("{:?}", self.layer_ids),
                layer_rule => self.layer_rule,
                mask => self.mask.as_ref().map(|mask| mask.id),
                mask_reason => self.mask.as_ref().map(|mask| mask.reason.as_str()),
                anchors => self.scale.anchors,
                draft_layers => self.scale.draft_layers,
                rank => self.scale.rank,
                from_target => self.scale.from_target.to_string(),
                optimizer => self.scale.optimizer,
                lr => self.scale.lr,
                epochs => self.scale.epochs,
                steps => length.map(|length| length.steps),
                passes => passes,
                samples => self.length.map(|(_, samples)| samples),
                batch => length.map_or(self.scale.batch, |length| length.batch),
                checkpoint_every => part(8),
                validate_every => part(4),
                micro_batch_tokens => self.micro_batch_tokens,
                max_length => self.max_length,
                compute => if matches!(self.device, DeviceChoice::Cuda(_)) { "bf16" } else { "f32" },
                thinking => self.thinking,
                validation_fraction => if self.length.is_some_and(|(_, samples)| samples < 1000) { "0.05" } else { "0.02" },
                data_given => !data.is_empty(),
                data => strings(if data.is_empty() { &[DATA] } else { &data }),
                tasks_given => !self.tasks.is_empty(),
                tasks => toml_text(Value::Array(tasks.iter().map(task).collect())),
            },
        )
    }
}

/// Formats a value as TOML in one line.
fn toml_text(value: Value) -> String {
    value.to_string()
}

/// Removes control characters from a user's text, for a comment.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rules::scale;
    use super::*;
    use crate::recipe::Algorithm;

    fn choices(kind: Kind) -> Choices {
        Choices {
            name: "qwen3-4b".to_owned(),
            target: "models/a \"quoted\" folder".to_owned(),
            model: "Qwen3\n4B".to_owned(),
            kind,
            device: DeviceChoice::Cpu,
            layer_ids: vec![1, 9],
            layer_rule: "two of them.",
            mask: (kind != Kind::Eagle3).then(|| MaskToken { id: 7, reason: "it is free".to_owned() }),
            scale: scale(1 << 32),
            length: None,
            micro_batch_tokens: 2048,
            max_length: 512,
            thinking: true,
            data: Vec::new(),
            tasks: Vec::new(),
        }
    }

    #[test]
    fn every_field_has_a_comment_and_every_kind_is_a_recipe() {
        for kind in [Kind::Dspark, Kind::Dflash, Kind::Eagle3] {
            let unknown = choices(kind);
            let length = Length { steps: 30, batch: 4, passes: 3 };
            let task = [("mine".to_owned(), Some("it's\\mine.jsonl".to_owned())), ("gsm8k".to_owned(), None)];
            let known = Choices {
                length: Some((length, 40)),
                data: vec!["a.jsonl".to_owned(), "b".to_owned()],
                tasks: task.into(),
                device: DeviceChoice::Cuda(1),
                ..choices(kind)
            };
            for choices in [unknown, known] {
                let (text, recipe) = choices.text(Path::new("it.toml")).unwrap();
                let lines: Vec<&str> = text.lines().collect();
                for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#')) {
                    assert!(pair[0].starts_with("# "), "no comment above `{}` in:\n{text}", pair[1]);
                }
                assert!(lines.iter().all(|line| line.len() <= 130 && !line.ends_with(' ')), "{text}");
                assert!(!text.contains("\n\n\n"), "{text}");
                assert_eq!(recipe.target, choices.target);
                assert_eq!(recipe.model.algorithm == Algorithm::Eagle3, kind == Kind::Eagle3);
                assert_eq!(recipe.model.markov_rank > 0, kind == Kind::Dspark);
                assert_eq!(recipe.data.template_arguments["enable_thinking"], false);
                match choices.length {
                    Some(_) => {
                        assert_eq!((recipe.train.steps, recipe.train.checkpoint_every), (Some(30), 4));
                        assert_eq!(recipe.data.train.len(), 2);
                        assert_eq!(recipe.evaluate.tasks[0].path.as_deref(), Some(Path::new("it's\\mine.jsonl")));
                        assert_eq!(recipe.evaluate.tasks[1].path, None);
                    }
                    None => assert_eq!((recipe.train.epochs, recipe.data.train.len()), (Some(10), 1)),
                }
            }
        }
    }
}
