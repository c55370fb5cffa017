//! The draft that a training starts from: a fresh one, or one that exists.

use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::model::Draft;

use super::setup::Prepared;
use super::tables::other_tables;
use crate::conversation::Sample;
use crate::recipe::ModelSection;

/// Why an existing draft cannot be trained further by a recipe.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The recipe describes another draft.
    #[error(
        "train.from {}: the recipe's model.{field} is {recipe}, the draft's is {found}: set it to that in the recipe, or start \
         from another draft",
        path.display()
    )]
    OtherShape {
        /// The draft's folder.
        path: PathBuf,
        /// The key in the recipe's `[model]`.
        field: &'static str,
        /// What the recipe says.
        recipe: String,
        /// What the draft is.
        found: String,
    },
    /// The draft brings tables of its own, which checkpoints do not hold.
    #[error(
        "train.from {}: its embedding or head is not the target's: drafts are trained with the target's own tables; start \
         from a draft of this very target",
        path.display()
    )]
    OtherTables {
        /// The draft's folder.
        path: PathBuf,
    },
    /// The draft cannot be read, or is one for another target.
    #[error("train.from: {0}")]
    Checkpoint(#[from] CheckpointError),
}

impl Prepared {
    /// The draft of `train.from`, or a fresh one as the recipe describes it.
    ///
    /// # Errors
    /// When the draft that exists is not the one that the recipe describes; as
    /// [`fresh_draft`](Self::fresh_draft).
    pub fn starting_draft(&self, samples: &[Sample]) -> Result<Draft> {
        match &self.described.recipe.train.from {
            Some(folder) => Ok(self.existing_draft(folder)?),
            None => self.fresh_draft(samples),
        }
    }

    fn existing_draft(&self, folder: &Path) -> Result<Draft, StartError> {
        let draft = Draft::load(folder, &self.target)?;
        let model = &self.described.recipe.model;
        check_shape(folder, model, &draft)?;
        if other_tables(folder, &self.described.target_folder)? == Some(true) {
            return Err(StartError::OtherTables { path: folder.to_owned() });
        }
        Ok(draft.with_num_anchors(model.num_anchors))
    }
}

/// Compares everything in `[model]` that decides a draft's parameters.
fn check_shape(folder: &Path, model: &ModelSection, draft: &Draft) -> Result<(), StartError> {
    let config = draft.config();
    let ids: Vec<i64> = config.target_layer_ids.iter().map(|id| id.0).collect();
    let text = |value: &dyn ToString| value.to_string();
    let mut pairs = vec![
        ("block_size", text(&model.block_size), text(&config.block_size)),
        ("num_draft_layers", text(&model.num_draft_layers), text(&config.num_hidden_layers)),
        ("target_layer_ids", format!("{:?}", model.target_layer_ids), format!("{ids:?}")),
        ("markov_rank", text(&model.markov_rank), text(&config.markov_rank)),
        ("enable_confidence_head", text(&model.enable_confidence_head), text(&config.enable_confidence_head)),
        (
            "draft_vocab_size",
            text(&model.draft_vocab_size.unwrap_or(config.vocab_size)),
            text(&config.draft_vocab_size),
        ),
    ];
    if let Some(mask) = model.mask_token_id {
        pairs.push(("mask_token_id", text(&mask), text(&config.mask_token_id)));
    }
    if config.markov_rank > 0 {
        pairs.push(("markov_head_type", text(&model.markov_head_type.name()), text(&config.markov_head_type.name())));
    }
    if config.enable_confidence_head && config.markov_rank > 0 {
        let (recipe, found) = (model.confidence_head_with_markov, config.confidence_head_with_markov);
        pairs.push(("confidence_head_with_markov", text(&recipe), text(&found)));
    }
    match pairs.into_iter().find(|(_, recipe, found)| recipe != found) {
        Some((field, recipe, found)) => Err(StartError::OtherShape { path: folder.to_owned(), field, recipe, found }),
        None => Ok(()),
    }
}
