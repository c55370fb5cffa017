//! What the verbs that run an engine are told about it, and its start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::output::{count, weight_precision};
use crate::checkpoint::{CheckpointError, WeightPrecision, resolve_model};
use crate::device::DeviceChoice;
use crate::engine::{Engine, EngineConfig, EngineHandle};
use crate::model::{Draft, DraftHeads, Target};
use crate::profile::{ProfileOptions, cache_folder, identity, load_or_measure};
use crate::schedule::{Mode, SpsTable, StsTable};
use crate::text::Tokenizer;

/// Arguments of an engine.
#[derive(Debug, Args)]
pub struct EngineArguments {
    /// The target: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// A draft for it: a checkpoint folder; without one the target decodes alone
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
    /// How much of a drafted block is verified: off, fixed:N, threshold:P or scheduled
    #[arg(long, default_value_t)]
    mode: Mode,
    /// Requests answered at once
    #[arg(long, default_value_t = EngineConfig::default().max_running, value_parser = count)]
    max_running: usize,
    /// Requests that may wait; further ones are refused
    #[arg(long, default_value_t = EngineConfig::default().max_waiting, value_parser = count)]
    max_waiting: usize,
    /// Tokens that the caches of all requests may hold together
    #[arg(long, default_value_t = EngineConfig::default().cache_tokens, value_parser = count)]
    cache_tokens: usize,
    /// What matrices are kept in: f32, or `stored`, which keeps bf16 files in bf16 (half the memory, the same results on
    /// the CPU)
    #[arg(long, value_name = "f32|stored", default_value = "f32", value_parser = weight_precision)]
    weights: WeightPrecision,
    /// What drafts are proposed with where a product has the vocabulary's size: `int8`, copies in 8 bits, on the CPU, or
    /// `exact`, the weights themselves. Answers are the same
    #[arg(long, value_name = "int8|exact", default_value_t)]
    draft_heads: DraftHeads,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// A running engine and what goes with it.
pub(super) struct Running {
    pub engine: Engine,
    pub handle: EngineHandle,
    pub tokenizer: Tokenizer,
    /// The target's own name: that of its folder.
    pub name: String,
}

impl EngineArguments {
    /// Loads the models, measures their speed curve unless that was done before, and starts the engine.
    ///
    /// # Errors
    /// When something cannot be loaded, or the settings leave no room for a request.
    pub(super) fn start(&self) -> Result<Running> {
        let device = self.device.open()?;
        let folder = resolve_model(&self.target)?;
        let tokenizer = Tokenizer::of_model(&folder)?;
        let target = Target::load_with(&folder, self.weights, &device)?;
        let draft = self.draft.as_deref();
        let draft = draft.map(|folder| Draft::load_with(folder, self.weights, &target)).transpose()?;
        let draft = draft.map(|draft| draft.with_heads(self.draft_heads));
        let curve = match &draft {
            Some(draft) if self.mode == Mode::Scheduled => {
                let folders = (folder.as_path(), self.draft.as_deref());
                let precisions = (self.weights, self.draft_heads);
                Some(speed_curve((&target, draft), folders, self.device, precisions, self.max_running)?)
            }
            _ => None,
        };
        let calibration = match (&self.draft, &draft) {
            (Some(folder), Some(draft)) => calibration(folder, draft)?,
            _ => None,
        };
        let config = EngineConfig {
            max_running: self.max_running,
            max_waiting: self.max_waiting,
            cache_tokens: self.cache_tokens,
            mode: if draft.is_some() { self.mode } else { Mode::Off },
            curve,
            calibration,
            ..EngineConfig::default()
        };
        let (engine, handle) = Engine::start(target, draft, tokenizer.clone(), config)?;
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Running { engine, handle, tokenizer, name: name.unwrap_or_else(|| self.target.clone()) })
    }
}

/// What a pass costs on this machine, which only scheduling asks for: measured now unless it was before.
pub(super) fn speed_curve(
    models: (&Target, &Draft),
    folders: (&Path, Option<&Path>),
    device: DeviceChoice,
    precisions: (WeightPrecision, DraftHeads),
    max_requests: usize,
) -> Result<SpsTable> {
    let options = ProfileOptions { max_requests, ..ProfileOptions::default() };
    let identity = identity(folders.0, folders.1, device, precisions, &options)?;
    let mut told = false;
    let observe = |_: &str, _: usize, _: f64| {
        if !std::mem::replace(&mut told, true) {
            eprintln!("measuring what a pass costs on this machine; the next start will find it");
        }
    };
    let (target, draft) = models;
    let table = load_or_measure(target, Some(draft), &options, &identity, cache_folder().as_deref(), observe);
    table.context("the speed curve")
}

/// The temperatures beside a draft, if it was calibrated.
pub(super) fn calibration(folder: &Path, draft: &Draft) -> Result<Option<StsTable>, CheckpointError> {
    let file = folder.join(StsTable::FILE);
    if !file.is_file() {
        return Ok(None);
    }
    StsTable::read(&file, draft.config().block_size).map(Some)
}
