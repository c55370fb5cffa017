//! What the verbs that run an engine are told about it, and its start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::output::count;
use crate::checkpoint::{CheckpointError, resolve_model};
use crate::device::DeviceChoice;
use crate::engine::{Engine, EngineConfig, EngineHandle};
use crate::model::{Draft, Target};
use crate::profile::{ProfileOptions, cache_folder, identity, load_or_measure};
use crate::schedule::{Mode, SpsTable, StsTable};
use crate::text::Tokenizer;

/// Arguments of an engine.
#[derive(Debug, Args)]
pub struct EngineArguments {
    /// The target: a folder in Hugging Face layout or, with the `hub` feature, a Hugging Face name
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
        let tokenizer = Tokenizer::from_directory(&folder)?;
        let target = Target::load(&folder, &device)?;
        let draft = self.draft.as_deref().map(|folder| Draft::load(folder, &target)).transpose()?;
        let config = EngineConfig {
            max_running: self.max_running,
            max_waiting: self.max_waiting,
            cache_tokens: self.cache_tokens,
            mode: if draft.is_some() { self.mode } else { Mode::Off },
            curve: self.curve(&folder, &target, draft.as_ref())?,
            calibration: self.calibration(draft.as_ref())?,
            ..EngineConfig::default()
        };
        let (engine, handle) = Engine::start(target, draft, tokenizer.clone(), config)?;
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Running { engine, handle, tokenizer, name: name.unwrap_or_else(|| self.target.clone()) })
    }

    /// What a pass costs on this machine, which only scheduling asks for.
    fn curve(&self, folder: &Path, target: &Target, draft: Option<&Draft>) -> Result<Option<SpsTable>> {
        let (Some(_), Mode::Scheduled) = (draft, self.mode) else {
            return Ok(None);
        };
        let options = ProfileOptions { max_requests: self.max_running, ..ProfileOptions::default() };
        let identity = identity(folder, self.draft.as_deref(), self.device, "f32", &options)?;
        let mut told = false;
        let observe = |_: &str, _: usize, _: f64| {
            if !std::mem::replace(&mut told, true) {
                eprintln!("measuring what a pass costs on this machine; the next start will find it");
            }
        };
        let table = load_or_measure(target, draft, &options, &identity, cache_folder().as_deref(), observe);
        Ok(Some(table.context("the speed curve")?))
    }

    /// The temperatures beside the draft, if it was calibrated.
    fn calibration(&self, draft: Option<&Draft>) -> Result<Option<StsTable>, CheckpointError> {
        let file = self.draft.as_deref().map(|folder| folder.join(StsTable::FILE)).filter(|file| file.is_file());
        let (Some(file), Some(draft)) = (file, draft) else {
            return Ok(None);
        };
        StsTable::read(&file, draft.config().block_size).map(Some)
    }
}
