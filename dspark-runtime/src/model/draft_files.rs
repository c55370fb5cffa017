//! Draft folders: reading them for a target, writing them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;

use super::draft::{Draft, DraftParameters};
use super::draft_config::DraftConfig;
use super::draft_vocabulary::DraftVocabulary;
use super::nested_layout::to_nested;
use super::speculators_layout::{Verifier, to_speculators};
use super::target::Target;
use crate::checkpoint::{
    AtomicDirectory, CheckpointError, WeightDtype, WeightPrecision, Weights, WeightsToSave, load_module, write_file,
};
use crate::tensors::host;

/// Names of the two tables that a draft takes over from its target.
const SHARED: [&str; 2] = ["embed_tokens.weight", "lm_head.weight"];

/// Tensors that list the tokens of a draft with a reduced vocabulary. The second one, written for other programs,
/// repeats the first and is not read.
pub const VOCABULARY_TENSORS: [&str; 2] = ["d2t", "t2d"];

/// Tensors of the target that drafts of the `speculators` package can contain; not read.
pub const VERIFIER_TENSORS: [&str; 2] = ["verifier_norm.weight", "verifier_lm_head.weight"];

impl Draft {
    /// Loads a draft folder for a target, its own weights in f32.
    ///
    /// # Errors
    /// See [`load_with`](Self::load_with).
    pub fn load(folder: &Path, target: &Target) -> Result<Self, CheckpointError> {
        Self::load_with(folder, WeightPrecision::F32, target)
    }

    /// Loads a draft folder for a target, its own matrices in the given precision.
    ///
    /// Embedding and head are the target's, whether or not the file repeats them. If a file contains different ones,
    /// the draft uses those.
    ///
    /// # Errors
    /// Returns an error if the draft was made for another target, or its weights do not fit its configuration.
    pub fn load_with(folder: &Path, precision: WeightPrecision, target: &Target) -> Result<Self, CheckpointError> {
        let config = DraftConfig::read_for(folder, target.config())?;
        config.check_target(folder, target.config())?;
        let weights = Weights::open(folder)?;
        let (parameters, used) =
            load_module(DraftParameters::new(&config, target.device()), &weights, precision, target.device())?;
        check_finite(&weights, &used)?;
        let reduced = config.draft_vocab_size < config.vocab_size;
        let known = |name: &str| {
            let vocabulary = reduced && VOCABULARY_TENSORS.contains(&name);
            vocabulary || SHARED.contains(&name) || VERIFIER_TENSORS.contains(&name)
        };
        let unexpected: Vec<&str> = weights.names().filter(|name| !used.contains(*name) && !known(name)).collect();
        if let Some(name) = unexpected.first() {
            return Err(CheckpointError::UnexpectedTensor {
                path: folder.to_owned(),
                name: (*name).to_owned(),
                others: unexpected.len() - 1,
            });
        }
        let vocabulary = read_vocabulary(&weights, &config)?;
        let head = match &vocabulary {
            Some(vocabulary) => vocabulary.rows(target.head_weight()),
            None => target.head_weight(),
        };
        let embedding_vd = shared_table(&weights, SHARED[0], precision, target.embed_tokens().weight.val())?;
        let head_ud = shared_table(&weights, SHARED[1], precision, head)?;
        let mut draft = Self::assemble(config, parameters, embedding_vd, head_ud);
        draft.vocabulary = vocabulary.map(Arc::new);
        Ok(draft)
    }

    /// The tokens that the draft in a folder can propose; `None`: all of its target's.
    ///
    /// # Errors
    /// Returns an error if the file does not list the tokens, or lists invalid ones.
    pub fn read_vocabulary(folder: &Path, config: &DraftConfig) -> Result<Option<DraftVocabulary>, CheckpointError> {
        read_vocabulary(&Weights::open(folder)?, config)
    }

    /// Writes the checkpoint folder, whole or not at all. Without embeddings, readers take the two tables from the
    /// target.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written, or a parameter is not finite.
    pub fn save(&self, folder: &Path, dtype: WeightDtype, with_embeddings: bool) -> Result<(), CheckpointError> {
        let directory = AtomicDirectory::begin(folder)?;
        self.write_into(directory.path(), dtype, with_embeddings)?;
        directory.commit_over(is_draft_file)
    }

    /// Writes `config.json` and `model.safetensors` into a folder that is not visible yet.
    ///
    /// # Errors
    /// See [`save`](Self::save).
    pub fn write_into(
        &self,
        folder: &Path,
        dtype: WeightDtype,
        with_embeddings: bool,
    ) -> Result<(), CheckpointError> {
        self.write_layout_into(folder, dtype, with_embeddings, &FolderLayout::Native)
    }

    /// Writes the draft in one of the layouts of folders.
    ///
    /// # Errors
    /// Returns the errors of [`save`](Self::save), and an error for drafts that the layout does not have, such as those with
    /// Gemma 4 layers.
    pub fn write_layout_into(
        &self,
        folder: &Path,
        dtype: WeightDtype,
        with_embeddings: bool,
        layout: &FolderLayout,
    ) -> Result<(), CheckpointError> {
        let mut weights = WeightsToSave::new();
        weights.add_module(&self.parameters);
        if with_embeddings {
            weights.add(SHARED[0], &self.embed_tokens.weight.val());
            weights.add(SHARED[1], &self.lm_head.weight.val());
        }
        if let Some(vocabulary) = &self.vocabulary {
            weights.add_integers(VOCABULARY_TENSORS[0], vocabulary.offsets());
            if matches!(layout, FolderLayout::Speculators(_)) {
                weights.add_flags(VOCABULARY_TENSORS[1], vocabulary.flags());
                // The package makes a full head of the target's, but not a reduced one.
                weights.add(SHARED[1], &self.lm_head.weight.val());
            }
        }
        if let Some((name, value)) = weights.first_not_finite() {
            return Err(CheckpointError::NotFinite { path: folder.to_owned(), name: name.to_owned(), value });
        }
        let native = self.config().to_json(dtype);
        let config = match layout {
            FolderLayout::Native => native,
            FolderLayout::SpecForge => to_nested(&self.config().kind, &native)
                .map_err(|reason| CheckpointError::Invalid { path: folder.to_owned(), reason })?,
            FolderLayout::Speculators(verifier) => to_speculators(&self.config().kind, &native, verifier).ok_or_else(|| {
                let expected =
                    "a DSpark or Eagle3 draft with Qwen3 layers (others cannot be written in the speculators layout)";
                self.config().fields().wrong("architectures", expected)
            })?,
        };
        weights.write(&folder.join("model.safetensors"), dtype)?;
        let config = serde_json::to_string_pretty(&config).unwrap_or_default() + "\n";
        write_file(&folder.join("config.json"), config.as_bytes())
    }
}

/// Layouts of a draft's folder, which differ in `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderLayout {
    /// This project's and the reference's.
    Native,
    /// The `speculators` package's, which names the target.
    Speculators(Verifier),
    /// SpecForge's and Model-Optimizer's.
    SpecForge,
}

/// Returns whether a file of a draft's folder, given by its relative path, is part of the draft: its configuration, its
/// weights or the index of their shards.
pub fn is_draft_file(path: &Path) -> bool {
    let name = path.to_str().unwrap_or_default();
    let weights = name.starts_with("model") && name.ends_with(".safetensors") && path.components().count() == 1;
    weights || matches!(name, "config.json" | "model.safetensors.index.json")
}

/// Refuses weights that are NaN or infinite: a draft with such weights would propose nothing useful, without an error.
fn check_finite(weights: &Weights, names: &BTreeSet<String>) -> Result<(), CheckpointError> {
    for name in names {
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        if let Some(value) = weights.values(name, &shape)?.into_iter().find(|value| !value.is_finite()) {
            let reason =
                format!("tensor `{name}` contains {value}: export the draft again from an undamaged checkpoint");
            return Err(CheckpointError::Damaged { path: weights.path_of(name), reason });
        }
    }
    Ok(())
}

fn read_vocabulary(weights: &Weights, config: &DraftConfig) -> Result<Option<DraftVocabulary>, CheckpointError> {
    if config.draft_vocab_size == config.vocab_size {
        return Ok(None);
    }
    let [offsets, _] = VOCABULARY_TENSORS;
    let path = weights.path_of(offsets);
    let offsets = weights.integers(offsets, &[config.draft_vocab_size])?;
    DraftVocabulary::from_offsets(&path, &offsets, config.vocab_size).map(Some)
}

/// Returns the target's table, unless the draft's file contains a different one. Published drafts repeat the target's
/// table in bf16, so each value may differ by bf16 rounding.
fn shared_table(
    weights: &Weights,
    name: &str,
    precision: WeightPrecision,
    target_vd: Tensor<2>,
) -> Result<Tensor<2>, CheckpointError> {
    if weights.shape(name).is_none() {
        return Ok(target_vd);
    }
    let own = weights.values(name, &target_vd.shape())?;
    let theirs = host(target_vd.clone());
    let same = own.iter().zip(&theirs).all(|(own, theirs)| (own - theirs).abs() <= theirs.abs() / 256.0);
    if same { Ok(target_vd) } else { weights.tensor(name, target_vd.shape(), precision, &target_vd.device()) }
}
