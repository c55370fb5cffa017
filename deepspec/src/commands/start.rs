//! The draft that a training starts from: a fresh one, or one that exists.

use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::model::{Draft, DraftConfig, DraftKind, TRAINING_FIELDS};
use serde_json::json;

use super::described::Described;
use super::setup::Prepared;
use super::tables::other_tables;
use crate::conversation::{Format, SampleSet};
use crate::recipe::{Algorithm, ModelSection};

/// Reasons that a recipe cannot fine-tune an existing draft.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The recipe describes another draft.
    #[error(
        "train.from {}: the recipe's model.{field} is {recipe}, but the draft's is {found}: change the recipe, or \
         start from another draft",
        path.display()
    )]
    OtherShape {
        /// The draft's folder.
        path: PathBuf,
        /// The key in the recipe's `[model]`.
        field: String,
        /// The value in the recipe.
        recipe: String,
        /// The value of the draft.
        found: String,
    },
    /// The draft has its own embedding or head, which checkpoints do not contain.
    #[error(
        "train.from {}: its embedding or output head differs from the target's, but drafts are trained with the \
         target's own tables; start from a draft of this target",
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

impl Described {
    /// Checks, from its configuration only, that the draft of `train.from` matches the recipe.
    ///
    /// # Errors
    /// Returns an error if there is such a draft, and it is another one or cannot be read.
    pub fn check_start(&self) -> Result<(), StartError> {
        let Some(folder) = &self.recipe.train.from else { return Ok(()) };
        let config = DraftConfig::read_for(folder, &self.target_config)?;
        config.check_target(folder, &self.target_config)?;
        kind_to_train(folder, &self.recipe.model, &config).map(drop)
    }
}

impl Prepared {
    /// The draft of `train.from`, or a fresh one as the recipe describes it.
    ///
    /// # Errors
    /// Returns an error if the existing draft does not match the recipe; see also [`fresh_draft`](Self::fresh_draft).
    pub fn starting_draft(&self, samples: &SampleSet) -> Result<Draft> {
        let recipe = &self.described.recipe;
        let draft = match &recipe.train.from {
            Some(folder) => self.existing_draft(folder)?,
            None => self.fresh_draft(samples)?,
        };
        Ok(match recipe.data.format {
            Format::Chat => draft.with_template_arguments(&recipe.data.template_arguments),
            Format::Text => draft,
        })
    }

    fn existing_draft(&self, folder: &Path) -> Result<Draft, StartError> {
        let draft = Draft::load(folder, &self.target)?;
        let kind = kind_to_train(folder, &self.described.recipe.model, draft.config())?;
        if other_tables(folder, &self.described.target_folder)? == Some(true) {
            return Err(StartError::OtherTables { path: folder.to_owned() });
        }
        Ok(draft.with_kind(kind))
    }
}

/// Compares everything in `[model]` that decides a draft's parameters. Returns the settings that the recipe trains it with.
fn kind_to_train(folder: &Path, model: &ModelSection, config: &DraftConfig) -> Result<DraftKind, StartError> {
    let mask_token_id = match &config.kind {
        DraftKind::DSpark(own) => own.mask_token_id,
        DraftKind::Eagle3(_) => 0,
    };
    let kind = model.kind(|| Ok::<_, StartError>(mask_token_id))?;
    let ids: Vec<i64> = config.target_layer_ids.iter().map(|id| id.0).collect();
    let vocabulary = model.draft_vocab_size.unwrap_or(config.vocab_size);
    let (recipe, found) = (kind.drafter().fields(model.slots()), config.drafter().fields(config.block_size));
    let mut pairs = vec![
        ("algorithm", json!(model.algorithm.name()), json!(Algorithm::of(&config.kind).name())),
        ("num_draft_layers", json!(model.num_draft_layers), json!(config.num_hidden_layers)),
        ("target_layer_ids", json!(format!("{:?}", model.target_layer_ids)), json!(format!("{ids:?}"))),
        ("draft_vocab_size", json!(vocabulary), json!(config.draft_vocab_size)),
    ];
    for (name, value) in recipe.as_object().into_iter().flatten() {
        if !TRAINING_FIELDS.contains(&name.as_str()) {
            pairs.push((name, value.clone(), found[name].clone()));
        }
    }
    let Some((field, recipe, found)) = pairs.into_iter().find(|(_, recipe, found)| recipe != found) else {
        return Ok(kind);
    };
    let [recipe, found] = [recipe, found].map(|value| value.to_string().trim_matches('"').to_owned());
    Err(StartError::OtherShape { path: folder.to_owned(), field: field.to_owned(), recipe, found })
}
