//! Arguments of the verbs that run an engine, and its start.

use anyhow::Result;
use clap::Args;

use super::defaults::{Defaults, DefaultsArguments};
use super::models::ModelArguments;
use super::output::{MOST_REQUESTS, count, count_to};
use crate::engine::{Engine, EngineConfig, EngineHandle, Sampling};
use crate::model::DraftConfig;
use crate::schedule::Mode;
use crate::text::Tokenizer;

/// Requests that `dspark serve` answers at once by default. Its speed table is measured for as many.
pub const SERVED_REQUESTS: usize = 32;

/// Arguments of an engine.
#[derive(Debug, Args)]
pub struct EngineArguments {
    #[command(flatten)]
    models: ModelArguments,
    #[command(flatten)]
    defaults: DefaultsArguments,
    /// Number of drafted tokens to verify per step: off (none), fixed:N (the first N), threshold:P (until the
    /// confidence falls below P) or scheduled (chosen from the draft's confidence and the measured step times)
    #[arg(long, value_name = "off|fixed:N|threshold:P|scheduled", default_value_t)]
    mode: Mode,
    /// Maximum number of requests decoded at the same time
    #[arg(long, value_name = "COUNT", default_value_t = SERVED_REQUESTS, value_parser = count_to::<MOST_REQUESTS>)]
    max_running: usize,
    /// Maximum number of waiting requests; further requests are rejected
    #[arg(long, value_name = "COUNT", default_value_t = EngineConfig::default().max_waiting, value_parser = count)]
    max_waiting: usize,
    /// Capacity of the KV cache in tokens, shared by all requests
    #[arg(long, value_name = "TOKENS", default_value_t = EngineConfig::default().cache_tokens, value_parser = count)]
    cache_tokens: usize,
}

/// A running engine and what goes with it.
#[derive(Debug)]
pub struct Running {
    /// The engine.
    pub engine: Engine,
    /// A handle to it.
    pub handle: EngineHandle,
    /// The target's tokeniser.
    pub tokenizer: Tokenizer,
    /// The target's own name: that of its folder.
    pub name: String,
    /// The defaults of a request.
    pub defaults: Defaults,
    /// The draft's configuration, if there is a draft.
    pub draft: Option<DraftConfig>,
}

impl EngineArguments {
    /// Starts the engine. `sampling` is the default where the target has none.
    ///
    /// # Errors
    /// See [`start_engine`] and [`DefaultsArguments::read`].
    pub(super) fn start(&self, sampling: Sampling) -> Result<Running> {
        let defaults = self.defaults.read(&self.models.target, sampling)?;
        let config = EngineConfig {
            max_running: self.max_running,
            max_waiting: self.max_waiting,
            cache_tokens: self.cache_tokens,
            mode: self.mode,
            ..EngineConfig::default()
        };
        start_engine(&self.models, defaults, config)
    }
}

/// Loads the models, measures their speed table unless that was done before, and starts an engine with the limits and
/// the mode of `config`; nothing is drafted without a draft.
///
/// # Errors
/// Returns an error if something cannot be loaded, or the settings leave no room for a request.
pub fn start_engine(arguments: &ModelArguments, defaults: Defaults, config: EngineConfig) -> Result<Running> {
    let models = arguments.open()?;
    let calibration = models.calibration()?;
    if let Some((folder, draft)) = models.named_draft() {
        let (mode, block) = (described(config.mode), draft.config().block_size);
        let calibrated = match (&calibration, draft.config().has_confidence_head()) {
            (Some(_), _) => "calibrated",
            (None, true) => "not calibrated (`deepspec calibrate`)",
            (None, false) => "without a confidence head",
        };
        tracing::info!("draft {}: blocks of {block} tokens, {calibrated}; mode {mode}", folder.display());
    }
    let scheduled = config.mode == Mode::Scheduled;
    let config = EngineConfig {
        mode: if models.draft.is_some() { config.mode } else { Mode::Off },
        curve: if scheduled { models.speed_table(config.max_running) } else { None },
        calibration,
        ..config
    };
    let name = models.name();
    let draft = models.draft.as_ref().map(|draft| draft.config().clone());
    let (engine, handle) = Engine::start(models.target, models.draft, models.tokenizer.clone(), config)?;
    Ok(Running { engine, handle, tokenizer: models.tokenizer, name, defaults, draft })
}

/// Returns a mode with what it does.
fn described(mode: Mode) -> String {
    let effect = match mode {
        Mode::Off => "nothing is drafted",
        Mode::Fixed(_) => "every step drafts and verifies that many tokens",
        Mode::Threshold(_) => "every step drafts and verifies up to the first token of a lower confidence",
        Mode::Scheduled => {
            "confidences and measured step times decide how much is drafted; nothing while drafting is slower"
        }
    };
    format!("{mode} ({effect})")
}
