//! The models that a verb works with: how they are named on the command line, and loading them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::output::{default_precision, weight_precision};
use super::outputs::Named;
use crate::checkpoint::{CheckpointError, WeightPrecision, resolve_model};
use crate::device::DeviceChoice;
use crate::model::{Draft, DraftHeads, Target, TargetConfig};
use crate::profile::{ProfileOptions, cache_folder, identity, load_or_measure};
use crate::schedule::{Identity, SpsTable, StsTable};
use crate::text::{TextError, Tokenizer};

/// Target, draft, and how they compute.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Target model: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    pub target: String,
    /// Checkpoint folder of a draft for the target (default: decode without a draft)
    #[arg(long, value_name = "DIR")]
    pub draft: Option<PathBuf>,
    /// Weight precision: `stored` keeps bf16 weights in bf16 (half the memory, identical results on the CPU), `f32`
    /// converts them to f32 (default: `stored` on the CPU, `f32` on a GPU)
    #[arg(long, value_name = "f32|stored", value_parser = weight_precision)]
    pub weights: Option<WeightPrecision>,
    /// Weights for the draft's vocabulary-sized matrix products: `int8` (8-bit copies on the CPU) or `exact`. The
    /// output follows the target's distribution either way; the accepted length may differ slightly
    #[arg(long, value_name = "int8|exact", default_value_t)]
    pub draft_heads: DraftHeads,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    pub device: DeviceChoice,
}

/// Warns of fields of a target's configuration that are not known here.
pub fn warn_of(target: &TargetConfig) {
    if let Some(warning) = target.warning() {
        eprintln!("warning: {warning}");
    }
}

/// Loaded models.
#[derive(Debug)]
pub struct LoadedModels<'a> {
    arguments: &'a ModelArguments,
    /// The target's folder or file.
    pub folder: PathBuf,
    /// The target.
    pub target: Target,
    /// The target's tokeniser.
    pub tokenizer: Tokenizer,
    /// The draft, with the selected heads for proposals.
    pub draft: Option<Draft>,
}

/// Says that a speed table could not be kept.
pub(super) fn warn_unkept(error: CheckpointError) {
    eprintln!("warning: the speed table could not be saved, so the next start will measure again: {error}");
}

impl ModelArguments {
    /// Returns the precision that weights are kept in.
    pub(super) fn precision(&self) -> WeightPrecision {
        self.weights.unwrap_or_else(|| default_precision(self.device))
    }

    /// Returns the files and folders that are read, with the arguments that name them.
    pub fn inputs(&self) -> Vec<Named<'_>> {
        let draft = self.draft.iter().map(|draft| ("--draft", draft.as_path()));
        [("--target", Path::new(&self.target))].into_iter().chain(draft).collect()
    }

    /// Loads the tokeniser, the target and the draft.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be loaded, or the draft does not fit the target.
    pub fn open(&self) -> Result<LoadedModels<'_>> {
        let device = self.device.open()?;
        let folder = resolve_model(&self.target)?;
        let tokenizer = read_tokenizer(&folder)?;
        let precision = self.precision();
        let target = Target::load_with(&folder, precision, &device)?;
        warn_of(target.config());
        let draft = self.draft.as_deref();
        let draft = draft.map(|folder| Draft::load_with(folder, precision, &target)).transpose()?;
        let draft = draft.map(|draft| draft.with_heads(self.draft_heads));
        Ok(LoadedModels { arguments: self, folder, target, tokenizer, draft })
    }
}

/// Reads the tokeniser of a model, and prints contradictions between its files on standard error.
///
/// # Errors
/// See [`Tokenizer::of_model`].
pub fn read_tokenizer(model: &Path) -> Result<Tokenizer, TextError> {
    let tokenizer = Tokenizer::of_model(model)?;
    for contradiction in tokenizer.contradictions() {
        eprintln!("warning: {contradiction}");
    }
    if tokenizer.stop_token_ids().is_empty() {
        eprintln!(
            "warning: {}: no file names an end token (`eos_token_id`, `eos_token`): every answer will run to its token limit",
            model.display()
        );
    }
    Ok(tokenizer)
}

impl LoadedModels<'_> {
    /// Returns what a speed table must have been measured for to fit these models here.
    pub fn identity(&self, options: &ProfileOptions) -> Identity {
        let arguments = self.arguments;
        let precisions = (arguments.precision(), arguments.draft_heads);
        identity(self.target.config(), self.draft.as_ref().map(Draft::config), arguments.device, precisions, options)
    }

    /// Returns what passes cost on this machine: as measured before, else measured now. `None` without a draft: only scheduling
    /// asks for it.
    ///
    /// # Errors
    /// Returns an error if a file of the models cannot be read.
    pub fn speed_table(&self, max_requests: usize) -> Result<Option<SpsTable>> {
        let Some(draft) = &self.draft else { return Ok(None) };
        let options = ProfileOptions { max_requests, ..ProfileOptions::default() };
        let identity = self.identity(&options);
        let mut told = false;
        let observe = |_: &str, _: usize, _: f64| {
            if !std::mem::replace(&mut told, true) {
                eprintln!(
                    "measuring the time of forward passes on this machine; the result is cached for later starts"
                );
            }
        };
        let cache = cache_folder();
        Ok(Some(load_or_measure(
            &self.target,
            Some(draft),
            &options,
            &identity,
            cache.as_deref(),
            observe,
            warn_unkept,
        )))
    }

    /// Returns the calibration table in the draft's folder, if the draft was calibrated.
    ///
    /// # Errors
    /// Returns an error if the table cannot be read, or was fitted for another draft.
    pub fn calibration(&self) -> Result<Option<StsTable>, CheckpointError> {
        let (Some(folder), Some(draft)) = (&self.arguments.draft, &self.draft) else { return Ok(None) };
        let file = folder.join(StsTable::FILE);
        if !file.exists() {
            return Ok(None);
        }
        let table = StsTable::read(&file, draft.config().block_size)?;
        match table.draft {
            Some(_) => table.check_draft(&file, &draft.digest())?,
            None => eprintln!(
                "warning: {}: the table does not record which draft it was fitted for; fit it again with `deepspec calibrate`",
                file.display()
            ),
        }
        Ok(Some(table))
    }

    /// Returns the name of the target: that of its folder or file.
    pub fn name(&self) -> String {
        let name =
            self.folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        name.unwrap_or_else(|| self.arguments.target.clone())
    }

    /// Returns the draft's folder with the draft.
    pub fn named_draft(&self) -> Option<(&Path, &Draft)> {
        self.arguments.draft.as_deref().zip(self.draft.as_ref())
    }
}
