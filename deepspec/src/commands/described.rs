//! A recipe with its target's configuration and tokeniser, without weights: enough to read the data and to shape the draft.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::DType;
use clap::Args;
use dspark_runtime::checkpoint::{cache_folder, open_file, resolve_model};
use dspark_runtime::commands::{read_tokenizer, warn_of};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{
    DSparkConfig, DraftConfig, DraftShape, Drafter, Eagle3Config, LayerId, TargetConfig, check_layer_ids,
};
use dspark_runtime::text::Tokenizer;
use serde::Serialize;

use super::data_files::data_files;
use crate::cards::{Card, Kind, card_hint, dataset_folders};
use crate::conversation::{ReadOptions, ReadReport, SampleSet, SampleStore, Samples, StoreRequest, split_validation};
use crate::digest::{FileDigests, digest, model_files};
use crate::evaluation::Task;
use crate::objective::{BlockChoice, Denominator, LossWeights};
use crate::recipe::{Algorithm, Compute, LearningRateSchedule, OptimizerKind, Recipe, Supervision};
use crate::trainer::{BatchSettings, LearningRate, MicroBatches, OptimizerSettings, TrainSettings};

/// Arguments that name a recipe, its overrides and the device.
#[derive(Debug, Args)]
pub struct RecipeArguments {
    /// Recipe file
    pub recipe: PathBuf,
    /// Override a field of the recipe, for example `train.lr=3e-4`. Can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Stop at the first malformed row of the data (sets the recipe's `data.strict`)
    #[arg(long)]
    pub strict: bool,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    pub device: DeviceChoice,
}

/// The accounting of a recipe's data: what became of all rows.
#[derive(Debug, Clone, Serialize)]
pub struct Accounting {
    /// Rows of `data.train`.
    pub training: ReadReport,
    /// Rows of `data.validation`, if the recipe names some.
    pub validation: Option<ReadReport>,
}

/// Prints the accounting of some data on standard error, a warning first if many rows are left out.
pub fn print_accounting(data: &str, report: &ReadReport) {
    if let Some(warning) = report.warning() {
        eprintln!("warning: {data}: {warning}");
    }
    eprintln!("{data}: {report}");
}

/// A recipe with its target's configuration and tokeniser.
pub struct Described {
    /// The recipe.
    pub recipe: Recipe,
    /// Its file, which errors name.
    pub file: PathBuf,
    /// The target's folder.
    pub target_folder: PathBuf,
    /// Its configuration.
    pub target_config: TargetConfig,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
}

impl Described {
    /// Reads the recipe, and the target's configuration and tokeniser.
    ///
    /// # Errors
    /// Returns an error if one of them is unusable.
    pub fn load(arguments: &RecipeArguments) -> Result<Self> {
        let mut recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
        recipe.data.strict |= arguments.strict;
        let folders = dataset_folders();
        let file = arguments.recipe.clone();
        let key = |name: &str| format!("{}: {name}", file.display());
        recipe.data.train = data_files(&recipe.data.train, &folders).with_context(|| key("data.train"))?;
        recipe.data.validation =
            data_files(&recipe.data.validation, &folders).with_context(|| key("data.validation"))?;
        let target_folder = resolve_model(&recipe.target).with_context(|| key("target"))?;
        let target_config = TargetConfig::read(&target_folder)?;
        warn_of(&target_config);
        let tokenizer = read_tokenizer(&target_folder)?;
        Ok(Self { recipe, file, target_folder, target_config, tokenizer })
    }

    /// Training and validation samples with the accounting of their rows, which is printed on standard error.
    ///
    /// # Errors
    /// Returns an error if a file is unusable or nothing is left.
    pub fn samples(&self) -> Result<(Samples, Accounting)> {
        let data = &self.recipe.data;
        let context = self.target_config.max_position_embeddings;
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
            cut_answers: data.cut_answers,
            vocabulary_size: self.target_config.vocab_size,
        };
        let (training, report) = self.stored("data.train", "training data", &data.train, &options)?;
        let mut accounting = Accounting { training: report, validation: None };
        if let Some(fraction) = data.validation_fraction {
            let key = || format!("data.validation_fraction = {fraction}");
            let split = split_validation(training, fraction).with_context(key)?;
            if split.training.is_empty() {
                bail!(
                    "{}: all {} samples have the same text and cannot be split; use separate validation files \
                     (data.validation)",
                    key(),
                    split.validation.len()
                );
            }
            return Ok((split, accounting));
        }
        if data.validation.is_empty() {
            return Ok((Samples { training, validation: SampleSet::default() }, accounting));
        }
        let (validation, report) = self.stored("data.validation", "validation data", &data.validation, &options)?;
        accounting.validation = Some(report);
        Ok((Samples { training, validation }, accounting))
    }

    /// The samples of some files in their store, with the accounting of their rows, which is printed.
    fn stored(
        &self,
        key: &'static str,
        name: &str,
        files: &[PathBuf],
        options: &ReadOptions,
    ) -> Result<(SampleSet, ReadReport)> {
        let digests = self.file_digests()?;
        let request = StoreRequest {
            files,
            digests: &digests,
            tokenizer: &self.tokenizer,
            tokenizer_digest: &self.tokenizer_digest(&digests)?,
            options,
            folder: &self.store_folder()?,
        };
        let store = SampleStore::open(&request, |notice| eprintln!("{name}: {notice}")).context(key)?;
        print_accounting(name, store.report());
        eprintln!("{name}: samples in {}", store.path().display());
        let report = store.report().clone();
        Ok((store.into(), report))
    }

    /// Digests of data files, remembered beside the stores of samples.
    ///
    /// # Errors
    /// Returns an error if there is no folder for them.
    pub fn file_digests(&self) -> Result<FileDigests> {
        Ok(FileDigests::remembered_in(self.store_folder()?.join("digests")))
    }

    /// The folder of all stores of samples.
    fn store_folder(&self) -> Result<PathBuf> {
        let chosen = self.recipe.data.store.clone().or_else(|| cache_folder("samples"));
        chosen.with_context(|| {
            format!(
                "{}: data.store: there is no folder for tokenised samples, because neither XDG_CACHE_HOME nor HOME is an \
                 absolute path; name one with data.store",
                self.file.display()
            )
        })
    }

    /// The digest of the files that determine the tokeniser and its template.
    fn tokenizer_digest(&self, digests: &FileDigests) -> Result<String> {
        let mut files = model_files(&self.target_folder)?;
        files.retain(|file| file.extension().is_none_or(|extension| extension != "safetensors"));
        let parts: Vec<String> = files.iter().map(|file| digests.of(file)).collect::<Result<_, _>>()?;
        Ok(digest(&parts.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// The draft that the recipe describes.
    ///
    /// # Errors
    /// Returns an error if the recipe's layer ids or mask token do not fit the target.
    pub fn draft_config(&self) -> Result<DraftConfig> {
        let model = &self.recipe.model;
        let layers = self.target_config.num_hidden_layers;
        let ids: Vec<LayerId> = model.target_layer_ids.iter().map(|&id| LayerId(id as i64)).collect();
        if let Err(expected) = check_layer_ids(&ids, layers) {
            bail!(
                "{}: model.target_layer_ids = {:?}: the target has {layers} layers; expected {expected}",
                self.file.display(),
                model.target_layer_ids
            );
        }
        let shape = DraftShape {
            block_size: model.slots(),
            num_draft_layers: model.num_draft_layers,
            target_layer_ids: ids,
            kind: model.kind(|| self.unused_row())?,
        };
        DraftConfig::for_target(&self.target_config, &shape)
            .and_then(|config| {
                config.check_target(&self.target_folder, &self.target_config)?;
                Ok(config)
            })
            .with_context(|| format!("{}: [model] does not fit the target", self.file.display()))
    }

    /// The first embedding row that belongs to no token: the mask token of recipes that name none.
    fn unused_row(&self) -> Result<u32> {
        let rows = self.target_config.vocab_size;
        self.tokenizer.first_unused_row(rows).with_context(|| {
            format!(
                "{}: model.mask_token_id: every one of the target's {rows} embedding rows belongs to a token, so the recipe must \
                 name a reserved special token that texts never contain; the tokenizer's special tokens are {}",
                self.file.display(),
                special_tokens(&self.tokenizer)
            )
        })
    }

    /// The trainer's settings.
    pub fn train_settings(&self, samples: usize) -> TrainSettings {
        let (train, model) = (&self.recipe.train, &self.recipe.model);
        let overshoot = train.schedule == LearningRateSchedule::Reference;
        // Left out of an Eagle3 recipe, they are as many as there can be.
        let count = if model.num_anchors == 0 { usize::MAX } else { model.num_anchors };
        let blocks = match (model.algorithm, model.supervision) {
            (Algorithm::Dspark, _) => BlockChoice::Drawn { count, first: DSparkConfig::default().lookahead() },
            (Algorithm::Eagle3, Supervision::Predicted) => {
                BlockChoice::Drawn { count, first: Eagle3Config::default().lookahead() }
            }
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
            compute: match train.compute {
                Compute::F32 => DType::F32,
                Compute::Bf16 => DType::BF16,
            },
            batches: BatchSettings {
                global_batch_size: train.global_batch_size,
                micro_batches: match (train.micro_batch_size, train.micro_batch_tokens) {
                    (None, Some(tokens)) => MicroBatches::Tokens(tokens),
                    (samples, _) => MicroBatches::Samples(samples.unwrap_or(1)),
                },
                blocks,
                block_size: model.slots(),
                seed: train.seed,
            },
            checkpoint_every: train.checkpoint_every,
            keep_last: train.keep_last,
            validate_every: train.validate_every,
            log_every: train.log_every,
        }
    }

    /// The recipe's evaluation tasks with their files.
    ///
    /// # Errors
    /// Returns an error if a task has no file and its card finds none.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let of = |task: &crate::recipe::EvaluationTask| -> Result<Task> {
            let path = match &task.path {
                Some(path) => {
                    let key = || {
                        let (file, name) = (self.file.display(), &task.name);
                        format!("{file}: evaluate.tasks[].path of {name:?}: cannot read {}", path.display())
                    };
                    if !path.exists() {
                        bail!("{}: no such file{}", key(), card_hint(path, Kind::Task));
                    }
                    open_file(path).with_context(key)?;
                    path.clone()
                }
                None => Card::named(&task.name, Kind::Task)
                    .and_then(|card| card.resolve(&dataset_folders()))
                    .with_context(|| format!("{}: evaluate.tasks", self.file.display()))?,
            };
            Ok(Task { name: task.name.clone(), path })
        };
        self.recipe.evaluate.tasks.iter().map(of).collect()
    }
}

/// The tokeniser's special tokens with their ids, for an error message.
fn special_tokens(tokenizer: &Tokenizer) -> String {
    let tokens: Vec<String> =
        tokenizer.special_tokens().iter().map(|(id, token)| format!("{token} ({id})")).collect();
    if tokens.is_empty() { "none".to_owned() } else { tokens.join(", ") }
}
