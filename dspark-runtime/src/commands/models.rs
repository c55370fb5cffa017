//! The models that a verb works with: how they are named on the command line, and loading them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::output::{default_precision, weight_precision};
use super::outputs::Named;
use crate::checkpoint::{CheckpointError, WeightPrecision, cache_folder, resolve_model};
use crate::device::DeviceChoice;
use crate::model::{Draft, DraftHeads, Target, TargetConfig};
use crate::profile::{PROFILES, ProfileOptions, Progress, Unkept, identity, load_or_measure};
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

/// Warns that a speed table is not kept.
pub(super) fn warn_unkept(why: Unkept) {
    let advice = match why {
        Unkept::Failed(_) => "",
        Unkept::Disturbed { .. } => {
            ". `dspark profile --again` measures now and keeps the result, best on an idle machine"
        }
    };
    eprintln!("warning: the speed table is used but not kept, the next start measures again: {why}{advice}");
}

/// Returns what passes of a target and a draft cost on this machine: as measured before, else measured now.
pub fn speed_table(
    target: &Target,
    draft: &Draft,
    (precision, device): (WeightPrecision, DeviceChoice),
    max_requests: usize,
) -> SpsTable {
    let options = ProfileOptions { max_requests, ..ProfileOptions::default() };
    let precisions = (precision, draft.heads());
    let identity = identity(target.config(), Some(draft.config()), device, precisions, &options);
    let cache = cache_folder(PROFILES);
    let place = cache.as_ref().map_or_else(|| "not kept".to_owned(), |cache| format!("kept in {}", cache.display()));
    let observe = |progress: Progress| {
        if let Progress::Begun { seconds } = progress {
            eprintln!(
                "measuring the cost of passes on this machine for mode `scheduled`: about {seconds:.0} s, once ({place})"
            );
        }
    };
    load_or_measure(target, Some(draft), &options, &identity, cache.as_deref(), observe, warn_unkept)
}

/// Returns the calibration table in a draft's folder, if the draft was calibrated.
///
/// # Errors
/// Returns an error if the table cannot be read, or was fitted for another draft.
pub fn calibration(folder: &Path, draft: &Draft) -> Result<Option<StsTable>, CheckpointError> {
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
    /// Returns the precision that weights are kept in.
    pub fn precision(&self) -> WeightPrecision {
        self.arguments.precision()
    }

    /// Returns what a speed table must have been measured for to fit these models here.
    pub fn identity(&self, options: &ProfileOptions) -> Identity {
        let arguments = self.arguments;
        let precisions = (arguments.precision(), self.draft.as_ref().map_or(arguments.draft_heads, Draft::heads));
        identity(self.target.config(), self.draft.as_ref().map(Draft::config), arguments.device, precisions, options)
    }

    /// Returns [`speed_table`] of these models; `None` without a draft: only scheduling asks for it.
    pub fn speed_table(&self, max_requests: usize) -> Option<SpsTable> {
        let circumstances = (self.arguments.precision(), self.arguments.device);
        Some(speed_table(&self.target, self.draft.as_ref()?, circumstances, max_requests))
    }

    /// Returns [`calibration`] of the draft, if there is one.
    ///
    /// # Errors
    /// See [`calibration`].
    pub fn calibration(&self) -> Result<Option<StsTable>, CheckpointError> {
        self.named_draft().map_or(Ok(None), |(folder, draft)| calibration(folder, draft))
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
