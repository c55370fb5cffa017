//! `deepspec inspect`

mod compatibility;
mod replay;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::Args;
use dspark_runtime::checkpoint::{CheckpointError, JsonFields, Weights, parameter_shapes, resolve_model};
use dspark_runtime::commands::{print, share};
use dspark_runtime::model::{
    Draft, DraftConfig, DraftKind, DraftParameters, TargetConfig, VERIFIER_TENSORS, VOCABULARY_TENSORS,
    is_speculators,
};
use dspark_runtime::schedule::StsTable;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::compatibility::Verdict;
use crate::replay::Difference;

/// Tables that a draft may leave to its target.
const SHARED: [&str; 2] = ["embed_tokens.weight", "lm_head.weight"];

/// Arguments of `deepspec inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Checkpoint folder of a draft or target, or GGUF file of a target
    folder: PathBuf,
    /// Also check the draft against this target
    #[arg(long, value_name = "DIR")]
    target: Option<String>,
    /// Recompute the activations in the draft's replay bundle and report the first mismatch
    #[arg(long, requires = "target")]
    replay: bool,
    /// Relative tolerance of the replay: a number may differ by this fraction of its own size plus the size of its row
    #[arg(long, value_name = "FRACTION", default_value_t = 1e-3, requires = "replay", value_parser = share)]
    tolerance: f64,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// Description of a checkpoint and its faults.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// Facts in the order of printing.
    facts: Map<String, Value>,
    /// Faults, one sentence each.
    problems: Vec<String>,
    /// Remarks on facts that are not faults but may surprise.
    warnings: Vec<String>,
    /// Answers of the engines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engines: Vec<Verdict>,
    /// First differences of the replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay_difference: Option<Difference>,
}

/// Prints the findings; an error when anything is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    let target = arguments.target.as_deref().map(resolve_model).transpose()?;
    let mut findings = inspect(&arguments.folder, target.as_deref());
    match (&arguments.target, arguments.replay) {
        (Some(target), true) => findings.replay(&arguments.folder, target, arguments.tolerance as f32),
        _ => findings.has_replay(&arguments.folder),
    }
    if arguments.json {
        print(serde_json::to_string_pretty(&findings)?)?;
    } else {
        for (name, value) in &findings.facts {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            print(format_args!("{:<24} {value}", name.replace('_', " ")))?;
        }
        if !findings.engines.is_empty() {
            print("")?;
            compatibility::lines(&findings.engines).iter().try_for_each(print)?;
            print("")?;
        }
        for warning in &findings.warnings {
            print(format_args!("MIND: {warning}"))?;
        }
        for problem in &findings.problems {
            print(format_args!("WRONG: {problem}"))?;
        }
        if findings.problems.is_empty() {
            print("nothing wrong was found")?;
        }
    }
    match findings.problems.len() {
        0 => Ok(()),
        count => bail!("{}: {count} problem(s)", arguments.folder.display()),
    }
}

fn inspect(folder: &Path, target: Option<&Path>) -> Findings {
    let mut findings = Findings::default();
    match read_config(folder, target) {
        Ok(config) => {
            findings.draft(folder, &config, target);
            findings.engines(folder, target);
        }
        Err(not_read) if is_foreign(folder) => findings.foreign(folder, &not_read, target),
        // A folder that is no draft may be a target.
        Err(not_a_draft) => match TargetConfig::read(folder) {
            Ok(config) if !looks_like_draft(&config) => findings.target(folder, &config),
            Err(not_read @ CheckpointError::NotComputed { .. }) => findings.problem(&not_read),
            _ => {
                findings.problems.push(not_a_draft.to_string());
                findings.engines(folder, target);
            }
        },
    }
    findings
}

/// A draft's configuration; a target that is known fills in what other layouts leave out.
fn read_config(folder: &Path, target: Option<&Path>) -> Result<DraftConfig, CheckpointError> {
    match target.and_then(|target| TargetConfig::read(target).ok()) {
        Some(target) => DraftConfig::read_for(folder, &target),
        None => DraftConfig::read(folder),
    }
}

/// Returns whether somebody else's programs write such drafts, so that not reading one is no fault of it.
fn is_foreign(folder: &Path) -> bool {
    JsonFields::read(&folder.join("config.json")).is_ok_and(|fields| {
        let names = fields.get("architectures").and_then(Value::as_array);
        let name = names.and_then(|names| names.first()).and_then(Value::as_str).unwrap_or_default();
        is_speculators(&fields) || name.contains("DFlash") || name.starts_with("DSpark")
    })
}

fn looks_like_draft(config: &TargetConfig) -> bool {
    config.fields.get("block_size").or(config.fields.get("target_layer_ids")).is_some()
}

/// Numbers in tensors of these shapes, which may be more than there can be.
fn numbers(tensors: &[(String, Vec<usize>)]) -> usize {
    let of = |shape: &[usize]| shape.iter().fold(1_usize, |count, &size| count.saturating_mul(size));
    tensors.iter().fold(0, |count: usize, (_, shape)| count.saturating_add(of(shape)))
}

/// Describes a draft's heads; `None` if it has none.
pub(super) fn heads(kind: &DraftKind) -> Option<String> {
    let own = match kind {
        DraftKind::DSpark(own) if own.markov_rank > 0 || own.enable_confidence_head => own,
        DraftKind::DSpark(_) | DraftKind::Eagle3(_) => return None,
    };
    let markov = match own.markov_rank {
        0 => "no Markov head".to_owned(),
        rank => format!("{} Markov head of rank {rank}", own.markov_head_type.name()),
    };
    let confidence = if own.enable_confidence_head { "confidence head" } else { "no confidence head" };
    Some(format!("{markov}, {confidence}"))
}

impl Findings {
    fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    fn problem(&mut self, error: &CheckpointError) {
        self.problems.push(error.to_string());
    }

    fn draft(&mut self, folder: &Path, config: &DraftConfig, target: Option<&Path>) {
        let ids: Vec<String> = config.target_layer_ids.iter().map(ToString::to_string).collect();
        let name = config.drafter().name();
        self.fact("algorithm", name);
        self.fact("heads", heads(&config.kind).unwrap_or_else(|| format!("none ({name})")));
        self.fact("block_size", config.block_size);
        self.fact("draft_layers", config.num_hidden_layers);
        self.fact("hidden_size", config.layer.hidden_size);
        self.fact("vocabulary", config.vocab_size);
        self.fact("draft_vocabulary", config.draft_vocab_size);
        match &config.kind {
            DraftKind::DSpark(own) => self.fact("mask_token", own.mask_token_id),
            DraftKind::Eagle3(_) => {}
        }
        self.fact("attention_heads", config.layer.num_attention_heads);
        self.fact("key_value_heads", config.layer.num_key_value_heads);
        self.fact("head_width", config.layer.head_dim);
        self.fact("intermediate_size", config.layer.intermediate_size);
        let (d, v, ids) = (config.layer.hidden_size, config.vocab_size, ids.join(", "));
        self.warnings.extend(config.rope_warning());
        let layers = config.num_target_layers;
        let fits =
            format!("{layers} layers, hidden size {d}, vocabulary {v}; it reads the outputs of layers [{ids}]");
        self.fact("fits_a_target_of", fits);
        let expected = parameter_shapes(&DraftParameters::new(config, &Device::flex()));
        self.fact("trained_parameters", numbers(&expected));
        self.calibration(folder, config);
        let tables = [config.vocab_size, config.draft_vocab_size].map(|rows| [rows, config.layer.hidden_size]);
        let reduced = config.draft_vocab_size < config.vocab_size;
        // Looked at on their own, below.
        let vocabulary: &[&str] = if reduced { &VOCABULARY_TENSORS } else { &[] };
        let apart = [vocabulary, &VERIFIER_TENSORS].concat();
        let optional = [(SHARED[0], tables[0]), (SHARED[1], tables[1])];
        self.weights(folder, Weights::open(folder), expected, &optional, &apart);
        // Files that cannot be opened have been named by now.
        if reduced
            && Weights::open(folder).is_ok()
            && let Err(error) = Draft::read_vocabulary(folder, config)
        {
            self.problem(&error);
        }
        if let Some(target) = target {
            match TargetConfig::read(target) {
                Ok(target) => {
                    if let Err(error) = config.check_target(folder, &target) {
                        self.problem(&error);
                    }
                }
                Err(error) => self.problem(&error),
            }
        }
    }

    /// Describes the calibration table beside a draft.
    fn calibration(&mut self, folder: &Path, config: &DraftConfig) {
        let path = folder.join(StsTable::FILE);
        if !path.exists() {
            return;
        }
        let table = match StsTable::read(&path, config.block_size) {
            Ok(table) => table,
            Err(error) => return self.problem(&error),
        };
        let fitted = table.temperatures.iter().filter(|temperature| **temperature != 1.0).count();
        let sampling =
            table.sampling_temperature.map_or("an unknown temperature".to_owned(), |t| format!("temperature {t}"));
        self.fact(
            "calibration",
            format!(
                "{}: fitted on {} rounds of {:?} at {sampling}; {fitted} of {} positions have a temperature of their own: {:?}",
                StsTable::FILE,
                table.num_samples,
                table.dataset,
                table.temperatures.len(),
                table.temperatures
            ),
        );
        if table.draft.is_none() {
            self.warnings.push(format!("{}: does not say which draft it was fitted for", path.display()));
        // Weights that cannot be read are a problem of their own.
        } else if let Ok(digest) = Draft::digest_of(folder, config)
            && let Err(error) = table.check_draft(&path, &digest)
        {
            self.problem(&error);
        }
    }

    fn target(&mut self, folder: &Path, config: &TargetConfig) {
        self.warnings.extend(config.warning());
        self.fact("algorithm", "none: a target model");
        self.fact("family", config.family.to_string());
        self.fact("layers", config.num_hidden_layers);
        self.fact("hidden_size", config.layer.hidden_size);
        self.fact("vocabulary", config.vocab_size);
        self.fact("context", config.max_position_embeddings);
        self.fact("head", if config.tie_word_embeddings { "the embedding" } else { "its own" });
        let expected = dspark_runtime::model::target_shapes(config);
        self.fact("parameters", numbers(&expected));
        self.weights(folder, config.open_weights(folder), expected, &[], &[]);
    }

    /// Compares names, shapes and values with what the configuration asks for.
    /// Tensors `apart` are left alone.
    fn weights(
        &mut self,
        folder: &Path,
        weights: Result<Weights, CheckpointError>,
        expected: Vec<(String, Vec<usize>)>,
        optional: &[(&str, [usize; 2])],
        apart: &[&str],
    ) {
        let weights = match weights {
            Ok(weights) => weights,
            Err(error) => return self.problem(&error),
        };
        let present: Vec<&str> =
            optional.iter().map(|(name, _)| *name).filter(|name| weights.shape(name).is_some()).collect();
        if !optional.is_empty() {
            self.fact("embedding_and_head", if present.is_empty() { "left to the target" } else { "in the file" });
            // A head of fewer rows is the draft's own; the embedding is the target's.
            let reduced_head = present == [SHARED[1]]
                && optional.first().map(|table| table.1) != optional.last().map(|table| table.1);
            if present.len() == 1 && !reduced_head {
                self.problems.push(format!(
                    "{} holds `{}` but not the other table: both or neither",
                    folder.display(),
                    present[0]
                ));
            }
        }
        self.fact("bytes_on_disk", weights.bytes());
        let mut dtypes: Vec<String> = Vec::new();
        let optional_shapes = optional.iter().filter(|(name, _)| present.contains(name));
        let expected: Vec<(String, Vec<usize>)> = expected
            .into_iter()
            .chain(optional_shapes.map(|(name, shape)| ((*name).to_owned(), shape.to_vec())))
            .collect();
        for (name, shape) in &expected {
            match weights.values(name, shape) {
                Ok(values) => {
                    if values.iter().any(|value| !value.is_finite()) {
                        self.problems.push(format!("tensor `{name}` holds values that are not finite"));
                    }
                    let dtype = weights.dtype(name).unwrap_or_default();
                    if !dtypes.contains(&dtype) {
                        dtypes.push(dtype);
                    }
                }
                Err(error) => self.problem(&error),
            }
        }
        self.fact("number_type", dtypes.join(", "));
        let known = |name: &str| expected.iter().any(|(expected, _)| expected == name);
        for name in weights.names().filter(|name| !known(name) && !apart.contains(name)) {
            self.problems.push(format!("tensor `{name}` is not part of the model that config.json describes"));
        }
    }
}
