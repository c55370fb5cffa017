//! The model card of an exported draft: a `README.md` as the Hugging Face Hub shows it.
//!
//! The facts of the card are kept in `card.json` beside it, with the card's digest: a card that still has this digest may be
//! replaced; any other `README.md` is the user's and stays. Cards contain no times and no speeds, so equal runs write equal cards.

use std::path::{Component, Path};

use anyhow::{Context, Result};
use dspark_runtime::checkpoint::{LARGEST_TEXT, read_text, write_file};
use dspark_runtime::model::{Draft, DraftConfig, TargetConfig};
use dspark_runtime::schedule::StsTable;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use serde::{Deserialize, Serialize};

use super::described::Described;
use crate::compatibility::{Answer, DraftFacts, Drafts, Layout, Verdict, verdicts};
use crate::digest::digest;
use crate::evaluation::{EvaluationReport, TaskReport};
use crate::recipe::Recipe;

/// File name of the card.
pub const CARD: &str = "README.md";

/// File name of the card's facts, which later cards of the same draft use.
pub const FACTS: &str = "card.json";

const TEMPLATE: &str = include_str!("model_card.md.jinja");

/// Facts of a card that the draft's own files do not contain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CardFacts {
    /// Name of the draft: of its run, or of its folder.
    name: String,
    /// The target's name, without the path on this machine.
    target: String,
    /// The target's name on the Hugging Face Hub, where known.
    base_model: Option<String>,
    /// Licence of the target, where its files say so.
    licence: Option<String>,
    /// Digest of the draft.
    draft: String,
    /// Training of the draft, if known.
    training: Option<Training>,
    /// Measurements, if known.
    evaluation: Option<Measured>,
}

/// Training of a draft.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Training {
    /// Names of the data, without paths.
    data: Vec<String>,
    conversations: usize,
    validation: usize,
    /// The recipe's settings as TOML.
    settings: String,
}

/// Accepted lengths with their conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    mode: String,
    temperature: f64,
    sampling: String,
    seed: u64,
    max_new_tokens: usize,
    draft_heads: String,
    tasks: Vec<MeasuredTask>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MeasuredTask {
    name: String,
    samples: usize,
    rounds: u64,
    accepted_length: Option<f64>,
}

/// `card.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Digest of the `README.md` made from these facts.
    card: String,
    facts: CardFacts,
}

impl CardFacts {
    /// Facts about a draft for a target that the user named.
    pub fn new(name: &str, named: &str, folder: &Path, config: &TargetConfig) -> Self {
        let of_config = || config.fields.get("_name_or_path").and_then(serde_json::Value::as_str);
        let local = Path::new(named).exists();
        let base_model = Some(named).filter(|_| !local).or_else(of_config).filter(|name| is_hub_name(name));
        Self {
            name: name.to_owned(),
            target: base_model.map_or_else(|| last_name(folder), str::to_owned),
            base_model: base_model.map(str::to_owned),
            licence: licence(folder),
            ..Self::default()
        }
    }

    /// Facts about the draft of a recipe that was trained on this many conversations.
    ///
    /// # Errors
    /// Returns an error if the settings cannot be written as TOML.
    pub fn of_recipe(described: &Described, [conversations, validation]: [usize; 2]) -> Result<Self> {
        let Described { recipe, target_folder, target_config, .. } = described;
        let data = recipe.data.train.iter().map(|path| last_name(path)).collect();
        let training = Training { data, conversations, validation, settings: settings(recipe)? };
        let facts = Self::new(&recipe.name, &recipe.target, target_folder, target_config);
        Ok(Self { training: Some(training), ..facts })
    }

    /// Returns the facts with the results of an evaluation.
    fn with_evaluation(self, report: &EvaluationReport) -> Self {
        let task = |task: &TaskReport| MeasuredTask {
            name: task.name.clone(),
            samples: task.samples,
            rounds: task.rounds,
            accepted_length: task.accepted_length,
        };
        let evaluation = Measured {
            mode: report.mode.to_string(),
            temperature: report.temperature,
            sampling: report.sampling.to_string(),
            seed: report.seed,
            max_new_tokens: report.max_new_tokens,
            draft_heads: report.draft_heads.clone(),
            tasks: report.tasks.iter().map(task).collect(),
        };
        Self { evaluation: Some(evaluation), ..self }
    }

    /// Returns the facts of the draft with this digest. If it is a copy of the draft in `source`, the training and measurements in
    /// the facts there are added.
    pub fn of_draft(mut self, draft: String, source: &Path) -> Self {
        if let Some(Kept { facts, .. }) = Kept::read(source).filter(|kept| kept.facts.draft == draft) {
            self.training = self.training.or(facts.training);
            self.evaluation = self.evaluation.or(facts.evaluation);
            self.name = facts.name;
            if let (None, Some(name)) = (&self.base_model, facts.base_model.filter(|name| is_hub_name(name))) {
                (self.target, self.base_model) = (name.clone(), Some(name));
            }
        }
        self.draft = draft;
        self
    }
}

impl Kept {
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_str(&read_text(&folder.join(FACTS), LARGEST_TEXT).ok()?).ok()
    }
}

/// Returns whether a folder has no `README.md`, or a card that nobody has changed.
pub fn is_own_card(folder: &Path) -> bool {
    let card = folder.join(CARD);
    if card.symlink_metadata().is_err() {
        return true;
    }
    let text = read_text(&card, LARGEST_TEXT).ok();
    text.zip(Kept::read(folder)).is_some_and(|(text, kept)| kept.card == digest(&[&text]))
}

/// Writes the card of the draft in `folder`, and its facts. With `keep_readme`, only the facts are written: the folder's `README.md`
/// is the user's.
///
/// # Errors
/// Returns an error if the draft cannot be read or a file cannot be written.
pub fn write_card(folder: &Path, facts: &CardFacts, keep_readme: bool) -> Result<()> {
    let text = card(folder, facts).with_context(|| format!("the model card of {}", folder.display()))?;
    if !keep_readme {
        write_file(&folder.join(CARD), text.as_bytes())?;
    }
    let kept = Kept { card: digest(&[&text]), facts: facts.clone() };
    Ok(write_file(&folder.join(FACTS), (serde_json::to_string_pretty(&kept)? + "\n").as_bytes())?)
}

/// Adds the results of an evaluation to the card of an exported draft.
///
/// # Errors
/// See [`write_card`].
pub fn complete_card(folder: &Path, facts: CardFacts, report: &EvaluationReport) -> Result<()> {
    let draft = match Kept::read(folder) {
        Some(kept) => kept.facts.draft,
        // Exported by an earlier version.
        None => Draft::digest_of(folder, &DraftConfig::read(folder)?)?,
    };
    write_card(folder, &CardFacts { draft, ..facts.with_evaluation(report) }, !is_own_card(folder))
}

/// Rewrites the card of a draft's folder after a change in the folder. A folder without facts was not exported by this project and
/// stays as it is.
///
/// # Errors
/// See [`write_card`].
pub fn refresh_card(folder: &Path) -> Result<()> {
    let Some(kept) = Kept::read(folder) else { return Ok(()) };
    write_card(folder, &kept.facts, !is_own_card(folder))
}

fn card(folder: &Path, facts: &CardFacts) -> Result<String> {
    let draft = DraftFacts::read(folder)?.context("config.json describes no draft")?;
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).keep_trailing_newline(true).build()?);
    let (kind, tag, method) = match draft.drafts {
        Drafts::Eagle3 => ("EAGLE-3", "eagle3", "eagle3"),
        // Engines are given a DFlash draft of this project as a DSpark draft without heads.
        Drafts::Blocks if draft.markov_rank == 0 => ("DFlash", "dflash", "dspark"),
        Drafts::Blocks => ("DSpark", "dspark", "dspark"),
    };
    let speculators = draft.layout == Layout::Speculators;
    let ids: Vec<String> = draft.target_layer_ids.iter().flatten().map(ToString::to_string).collect();
    let engines = verdicts(&draft);
    let vllm = engines.iter().any(|row| row.engine == "vLLM" && row.verdict <= Answer::WithCare);
    let confidence_head = draft.confidence_head == Some(true);
    let layers = draft.layers.map_or_else(
        || "layers not known".to_owned(),
        |layers| match layers {
            1 => "1 layer".to_owned(),
            layers => format!("{layers} layers"),
        },
    );
    Ok(environment.render_str(
        TEMPLATE,
        context! {
            base_model => facts.base_model.clone(),
            library => if speculators { "speculators" } else { "deepspec" },
            licence => facts.licence.clone(),
            tag => tag,
            title => facts.name.clone(),
            kind => kind,
            target => facts.target.clone(),
            layers => layers,
            block_size => draft.block_size,
            layer_ids => ids.join(", "),
            mask_token_id => draft.mask_token_id,
            markov_rank => draft.markov_rank,
            confidence_head => confidence_head,
            with_tables => draft.has("embed_tokens.weight"),
            layout => if speculators { "speculators" } else { "deepspec" },
            version => env!("CARGO_PKG_VERSION"),
            training => facts.training.as_ref().map(Training::values),
            evaluation => facts.evaluation.as_ref().map(Measured::values),
            calibration => calibration(folder, draft.block_size),
            method => method,
            adaptive => confidence_head && method == "dspark",
            vllm => vllm,
            engines => engines.iter().map(engine).collect::<Vec<_>>(),
        },
    )?)
}

impl Training {
    fn values(&self) -> Value {
        context! {
            data => self.data.clone(),
            conversations => self.conversations,
            validation => self.validation,
            settings => self.settings.clone(),
        }
    }
}

impl Measured {
    fn values(&self) -> Value {
        let task = |task: &MeasuredTask| {
            let accepted_length =
                task.accepted_length.map_or_else(|| "-".to_owned(), |length| format!("{length:.3}"));
            context! {
                name => in_table(&task.name), samples => task.samples, rounds => task.rounds,
                accepted_length => accepted_length,
            }
        };
        context! {
            mode => self.mode.clone(),
            temperature => self.temperature.to_string(),
            sampling => self.sampling.clone(),
            seed => self.seed,
            max_new_tokens => self.max_new_tokens,
            draft_heads => self.draft_heads.clone(),
            tasks => self.tasks.iter().map(task).collect::<Vec<_>>(),
        }
    }
}

/// Returns the folder's calibration table for the template; `None` if there is no readable one.
fn calibration(folder: &Path, block_size: Option<i64>) -> Option<Value> {
    let block_size = usize::try_from(block_size?).ok()?;
    let table = StsTable::read(&folder.join(StsTable::FILE), block_size).ok()?;
    let row = |(index, temperature): (usize, &f64)| {
        let acceptance = table.acceptance.get(index).map_or_else(|| "-".to_owned(), |share| format!("{share:.3}"));
        context! { position => index + 1, temperature => format!("{temperature:.2}"), acceptance => acceptance }
    };
    Some(context! {
        rounds => table.num_samples,
        dataset => in_table(&table.dataset),
        sampling => table.sampling_temperature.map_or_else(String::new, |temperature| format!(" at temperature {temperature}")),
        rows => table.temperatures.iter().enumerate().map(row).collect::<Vec<_>>(),
    })
}

fn engine(verdict: &Verdict) -> Value {
    let reasons = verdict.reasons.iter().chain(&verdict.fix).map(|reason| in_table(reason)).collect::<Vec<_>>();
    context! { engine => verdict.engine, answer => verdict.verdict.word(), reasons => reasons.join("; "), known_by => verdict.known_by }
}

/// Returns the recipe's settings as TOML, without paths of this machine.
fn settings(recipe: &Recipe) -> Result<String> {
    let mut settings = toml::Table::new();
    for (name, section) in [
        ("model", toml::Value::try_from(&recipe.model)?),
        ("train", toml::Value::try_from(&recipe.train)?),
        ("data", toml::Value::try_from(&recipe.data)?),
    ] {
        let mut section = section;
        if let Some(section) = section.as_table_mut() {
            section.retain(|key, _| !["from", "train", "validation"].contains(&key));
        }
        settings.insert(name.to_owned(), section);
    }
    Ok(toml::to_string(&settings)?)
}

/// Returns whether a name has the form `owner/name` of the Hub.
fn is_hub_name(name: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    name.split_once('/').is_some_and(|(owner, model)| allowed(owner) && allowed(model))
}

/// Returns the licence that the front matter of a model's `README.md` names.
fn licence(folder: &Path) -> Option<String> {
    let text = read_text(&folder.join(CARD), LARGEST_TEXT).ok()?;
    let mut lines = text.lines();
    lines.next().filter(|line| line.trim_end() == "---")?;
    let mut front = lines.take_while(|line| line.trim_end() != "---");
    let licence = front.find_map(|line| line.strip_prefix("license:"))?.trim().to_owned();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+');
    (!licence.is_empty() && licence.bytes().all(plain)).then_some(licence)
}

/// Returns the last part of a path, which does not describe this machine.
pub fn last_name(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = real.components().rev().find_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    in_table(&name.unwrap_or_default())
}

/// Escapes a text for a table cell or a line.
fn in_table(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect::<String>()
        .replace('|', "\\|")
}
