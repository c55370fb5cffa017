//! What several verbs start with: models, samples, digests.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::Args;
use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{
    DSpark, Draft, DraftConfig, DraftShape, DraftVocabulary, Drafter, Eagle3, Eagle3Shape, LayerId, Target,
};
use dspark_runtime::text::Tokenizer;
use sha2::{Digest, Sha256};

use super::data_files::data_files;
use super::stages::hex;
use crate::cards::{Card, Kind, dataset_folders};
use crate::conversation::{ReadOptions, Sample, read_samples, split_validation};
use crate::evaluation::Task;
use crate::objective::{BlockChoice, Denominator, LossWeights};
use crate::recipe::{Algorithm, OptimizerKind, Recipe, Schedule, Supervision};
use crate::trainer::{LearningRate, MicroBatches, OptimizerSettings, TrainSettings};

/// Samples on which the initial norms of a draft are measured.
const INITIAL_TEXTS: usize = 4;

/// Bytes hashed at each end of a weight file.
const HASHED_ENDS: u64 = 1 << 20;

/// How verbs name a recipe.
#[derive(Debug, Args)]
pub struct RecipeArguments {
    /// The recipe file
    pub recipe: PathBuf,
    /// Override a field of the recipe, `train.lr=3e-4`; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Stop at the first malformed line of the data (the recipe's `data.strict`)
    #[arg(long)]
    pub strict: bool,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    pub device: DeviceChoice,
}

/// A recipe with its target loaded.
pub struct Prepared {
    /// The recipe.
    pub recipe: Recipe,
    /// The target's folder.
    pub target_folder: PathBuf,
    /// The target.
    pub target: Target,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
}

/// Tokenised conversations.
pub struct Samples {
    /// To train on.
    pub training: Vec<Sample>,
    /// To validate on; may be empty.
    pub validation: Vec<Sample>,
}

impl Prepared {
    /// Reads the recipe and loads its target.
    ///
    /// # Errors
    /// When the recipe or the target is unusable.
    pub fn load(arguments: &RecipeArguments) -> Result<Self> {
        let mut recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
        recipe.data.strict |= arguments.strict;
        let folders = dataset_folders();
        recipe.data.train = data_files(&recipe.data.train, &folders).context("data.train")?;
        recipe.data.validation = data_files(&recipe.data.validation, &folders).context("data.validation")?;
        let device = arguments.device.open()?;
        let (target_folder, target, tokenizer) = load_target(&recipe.target, &device)?;
        Ok(Self { recipe, target_folder, target, tokenizer })
    }

    /// Training and validation samples, the reading reported on standard error.
    ///
    /// # Errors
    /// When a file is unusable or nothing is left.
    pub fn samples(&self) -> Result<Samples> {
        let data = &self.recipe.data;
        let context = self.target.config().max_position_embeddings;
        if data.max_length > context {
            bail!(
                "data.max_length = {}: the target's context is {context} tokens; choose at most that",
                data.max_length
            );
        }
        let options = ReadOptions {
            format: data.format,
            max_length: data.max_length,
            minimum_supervised_tokens: data.min_supervised_tokens,
            template_arguments: data.template_arguments.clone(),
            strict: data.strict,
            vocabulary_size: self.target.config().vocab_size,
        };
        let (training, report) = read_samples(&data.train, &self.tokenizer, &options)?;
        eprintln!("training data: {report}");
        if let Some(fraction) = data.validation_fraction {
            let split = split_validation(training, fraction)?;
            if split.training.is_empty() || split.validation.is_empty() {
                let total = split.training.len() + split.validation.len();
                bail!(
                    "data.validation_fraction = {fraction}: of {total} samples it leaves {} to train on and {} to \
                     validate on; choose another fraction, or files of their own (data.validation)",
                    split.training.len(),
                    split.validation.len()
                );
            }
            return Ok(Samples { training: split.training, validation: split.validation });
        }
        if data.validation.is_empty() {
            return Ok(Samples { training, validation: Vec::new() });
        }
        let (validation, report) = read_samples(&data.validation, &self.tokenizer, &options)?;
        eprintln!("validation data: {report}");
        Ok(Samples { training, validation })
    }

    /// A fresh draft as the recipe describes it; one that starts from the target looks at a few of the samples.
    ///
    /// # Errors
    /// When the recipe's layer ids or mask token do not fit the target.
    pub fn fresh_draft(&self, samples: &[Sample]) -> Result<Draft> {
        let model = &self.recipe.model;
        let rows = self.target.config().vocab_size;
        let config = match model.algorithm {
            Algorithm::Dspark => self.dspark_config()?,
            Algorithm::Eagle3 => DraftConfig::eagle3(
                self.target.config(),
                &Eagle3Shape {
                    ttt_length: model.ttt_length,
                    step_loss_decay: model.step_loss_decay,
                    target_layer_ids: self.layer_ids(),
                },
            ),
        }
        .and_then(|config| {
            config.check_target(&self.target_folder, self.target.config())?;
            Ok(config)
        })
        .context("the recipe's [model] does not fit the target")?;
        self.target.device().seed(self.recipe.train.seed);
        let draft = Draft::new(config, &self.target);
        let texts: Vec<&[u32]> =
            samples.iter().take(INITIAL_TEXTS).map(|sample| sample.token_ids.as_slice()).collect();
        let draft = if model.initialize_from_target { draft.initialized_from(&self.target, &texts) } else { draft };
        match model.draft_vocab_size {
            Some(size) if size > rows => {
                bail!("model.draft_vocab_size = {size}: the target has {rows} tokens; expected at most that")
            }
            Some(size) if size < rows => Ok(draft.with_vocabulary(most_frequent(samples, size, rows))),
            _ => Ok(draft),
        }
    }

    fn layer_ids(&self) -> Vec<LayerId> {
        self.recipe.model.target_layer_ids.iter().map(|&id| LayerId(id as i64)).collect()
    }

    /// The outer error: the recipe must name a mask token; the inner one: what it names does not fit the target.
    fn dspark_config(&self) -> Result<Result<DraftConfig, CheckpointError>> {
        let model = &self.recipe.model;
        let rows = self.target.config().vocab_size;
        let mask_token_id = match model.mask_token_id.or_else(|| self.tokenizer.first_unused_row(rows)) {
            Some(id) => id,
            None => bail!(
                "model.mask_token_id: every one of the target's {rows} embedding rows belongs to a token, so the recipe must \
                 name a reserved special token that texts never contain; the tokenizer's special tokens are {}",
                special_tokens(&self.tokenizer)
            ),
        };
        Ok(DraftConfig::for_target(
            self.target.config(),
            &DraftShape {
                block_size: model.block_size,
                num_draft_layers: model.num_draft_layers,
                target_layer_ids: self.layer_ids(),
                mask_token_id,
                num_anchors: model.num_anchors,
                markov_rank: model.markov_rank,
                markov_head_type: model.markov_head_type.into(),
                enable_confidence_head: model.enable_confidence_head,
                confidence_head_with_markov: model.confidence_head_with_markov,
            },
        ))
    }

    /// The trainer's settings.
    pub fn train_settings(&self, samples: usize) -> TrainSettings {
        let (train, model) = (&self.recipe.train, &self.recipe.model);
        let overshoot = train.schedule == Schedule::Reference;
        // Left out of an Eagle3 recipe, they are as many as there can be.
        let count = if model.num_anchors == 0 { usize::MAX } else { model.num_anchors };
        let blocks = match (model.algorithm, model.supervision) {
            (Algorithm::Dspark, _) => BlockChoice::Drawn { count, first: DSpark.lookahead() },
            (Algorithm::Eagle3, Supervision::Predicted) => BlockChoice::Drawn { count, first: Eagle3.lookahead() },
            (Algorithm::Eagle3, Supervision::Reference) => BlockChoice::Eagle3Reference,
        };
        let loss = match model.algorithm {
            Algorithm::Eagle3 => LossWeights::eagle3(model.step_loss_decay),
            Algorithm::Dspark => LossWeights {
                cross_entropy: model.ce_loss_alpha,
                soft_cross_entropy: model.soft_ce_loss_alpha,
                l1: model.l1_loss_alpha,
                confidence: if model.enable_confidence_head { model.confidence_head_alpha } else { 0.0 },
                decay: model.loss_decay(),
                denominator: Denominator::SlotWeights,
            },
        };
        TrainSettings {
            learning_rate: LearningRate::new(train.lr, train.total_steps(samples), train.warmup_ratio, overshoot),
            optimizer: OptimizerSettings {
                beta_1: train.adam_beta1,
                beta_2: train.adam_beta2,
                epsilon: train.adam_epsilon,
                weight_decay: train.weight_decay,
                max_grad_norm: train.max_grad_norm,
                muon: train.optimizer == OptimizerKind::Muon,
            },
            loss,
            global_batch_size: train.global_batch_size,
            micro_batches: match (train.micro_batch_size, train.micro_batch_tokens) {
                (None, Some(tokens)) => MicroBatches::Tokens(tokens),
                (samples, _) => MicroBatches::Samples(samples.unwrap_or(1)),
            },
            blocks,
            block_size: model.slots(),
            seed: train.seed,
            checkpoint_every: train.checkpoint_every,
            keep_last: train.keep_last,
            validate_every: train.validate_every,
            log_every: train.log_every,
        }
    }

    /// Digest of everything that decides the course of a training: settings, data, target.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn training_digest(&self) -> Result<String> {
        let recipe = &self.recipe;
        let mut hash = Sha256::new();
        let sections = serde_json::to_string(&(&recipe.model, &recipe.train, &recipe.data))?;
        hash.update(sections.as_bytes());
        for file in recipe.data.train.iter().chain(&recipe.data.validation) {
            hash_file(&mut hash, file)?;
        }
        let start = self.recipe.train.from.as_deref().map(model_files).transpose()?.unwrap_or_default();
        for file in model_files(&self.target_folder)?.into_iter().chain(start) {
            let weights = file.extension().is_some_and(|extension| extension == "safetensors" || extension == "gguf");
            if weights { hash_ends(&mut hash, &file)? } else { hash_file(&mut hash, &file)? }
        }
        Ok(hex(hash))
    }

    /// The recipe's evaluation tasks with their files.
    ///
    /// # Errors
    /// When a task has no file and its card finds none.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let of = |task: &crate::recipe::EvaluationTask| -> Result<Task> {
            let path = match &task.path {
                Some(path) => path.clone(),
                None => Card::named(&task.name, Kind::Task)?.resolve(&dataset_folders())?,
            };
            Ok(Task { name: task.name.clone(), path })
        };
        self.recipe.evaluate.tasks.iter().map(of).collect()
    }
}

/// Everything that a model and its tokeniser are read from: a GGUF file, or files of a folder.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("json" | "jinja" | "safetensors"))
    };
    let entries = std::fs::read_dir(model).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<PathBuf>>>()
    });
    let entries = entries.with_context(|| model.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.into_iter().filter(wanted).collect();
    files.sort();
    Ok(files)
}

/// Loads a target and its tokeniser from a folder or a GGUF file, or, with the `hub` feature, by its Hugging Face name.
///
/// # Errors
/// When the folder or its files are unusable.
pub fn load_target(name: &str, device: &Device) -> Result<(PathBuf, Target, Tokenizer)> {
    let folder = dspark_runtime::checkpoint::resolve_model(name)?;
    let target = Target::load(&folder, device)?;
    let tokenizer = Tokenizer::of_model(&folder)?;
    Ok((folder, target, tokenizer))
}

fn special_tokens(tokenizer: &Tokenizer) -> String {
    let tokens: Vec<String> =
        tokenizer.special_tokens().iter().map(|(id, token)| format!("{token} ({id})")).collect();
    if tokens.is_empty() { "none".to_owned() } else { tokens.join(", ") }
}

/// Adds a file's contents.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(hash: &mut Sha256, path: &Path) -> Result<()> {
    let read = File::open(path).and_then(|mut file| {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => hash.update(&buffer[..count]),
            }
        }
    });
    read.with_context(|| path.display().to_string())
}

/// Adds the length and the two ends of a weight file: training changes all of it, and reading all of a large target
/// twice would take longer than loading it.
fn hash_ends(hash: &mut Sha256, path: &Path) -> Result<()> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = length.to_le_bytes().to_vec();
        file.by_ref().take(HASHED_ENDS).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::End(-(HASHED_ENDS.min(length) as i64)))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    hash.update(&read().with_context(|| path.display().to_string())?);
    Ok(())
}

/// The tokens that samples have most of where they are supervised: there a draft proposes.
pub fn most_frequent(samples: &[Sample], size: usize, vocabulary: usize) -> DraftVocabulary {
    let mut counts = vec![0; vocabulary];
    for sample in samples {
        let supervised = sample.token_ids.iter().zip(&sample.loss_mask).filter(|(_, supervised)| **supervised);
        supervised.for_each(|(&id, _)| counts[id as usize] += 1);
    }
    DraftVocabulary::most_frequent(&counts, size)
}
