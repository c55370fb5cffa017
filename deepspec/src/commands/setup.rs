//! What several verbs start with: models, samples, digests.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::Args;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftVocabulary, Target};
use dspark_runtime::text::Tokenizer;
use sha2::{Digest, Sha256};

use super::described::Described;
use crate::conversation::Sample;

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
    described: Described,
    /// The target.
    pub target: Target,
}

impl Deref for Prepared {
    type Target = Described;

    fn deref(&self) -> &Described {
        &self.described
    }
}

impl DerefMut for Prepared {
    fn deref_mut(&mut self) -> &mut Described {
        &mut self.described
    }
}

impl Prepared {
    /// Reads the recipe and loads its target.
    ///
    /// # Errors
    /// When the recipe or the target is unusable.
    pub fn load(arguments: &RecipeArguments) -> Result<Self> {
        let device = arguments.device.open()?;
        let described = Described::load(arguments)?;
        let target = Target::load(&described.target_folder, &device)?;
        Ok(Self { described, target })
    }

    /// A fresh draft as the recipe describes it; one that starts from the target looks at a few of the samples.
    ///
    /// # Errors
    /// When the recipe's layer ids or mask token do not fit the target.
    pub fn fresh_draft(&self, samples: &[Sample]) -> Result<Draft> {
        let model = &self.recipe.model;
        let rows = self.target.config().vocab_size;
        let config = self.draft_config()?;
        let draft = Draft::new(config, &self.target, self.recipe.train.seed);
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
}

/// Everything that a model and its tokeniser are read from: a GGUF file, or files of a folder.
pub(super) fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
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

pub(super) fn special_tokens(tokenizer: &Tokenizer) -> String {
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
pub(super) fn hash_ends(hash: &mut Sha256, path: &Path) -> Result<()> {
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
