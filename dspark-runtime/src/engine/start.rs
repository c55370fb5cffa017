//! Starting and ending an engine.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use burn::tensor::Device;
use rand::Rng;
use tokio::sync::watch;

use super::config::EngineConfig;
use super::finisher;
use super::handle::{EngineHandle, Limits, Shared};
use super::memory::CacheMemory;
use super::metrics::Metrics;
use super::step_loop::StepLoop;
use crate::model::{Draft, Target};
use crate::schedule::{Mode, Policy};
use crate::speculate::Rounds;
use crate::text::Tokenizer;

/// Clients that the running requests are enough for when each asks for its share.
const SHARES: usize = 4;

/// A running engine. It ends when it is shut down, or when all handles are dropped and all answers are complete.
///
/// [`EngineHandle`] has an example.
#[derive(Debug)]
pub struct Engine {
    threads: Vec<JoinHandle<()>>,
}

/// Reasons that an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The cache is too small for a single short answer.
    #[error("cache_tokens: expected at least {least}, found {found}")]
    CacheTooSmall {
        /// Number of tokens that one short answer needs.
        least: usize,
        /// The configured number.
        found: usize,
    },
    /// A limit is zero.
    #[error("{field}: expected at least 1, found 0")]
    Zero {
        /// The name of the field.
        field: &'static str,
    },
    /// The scheduled mode needs a speed table, and none was given.
    #[error("mode `scheduled` needs a speed table: measure one with `dspark profile`, or choose another mode")]
    NoCurve,
    /// The mode has a confidence threshold, but the draft has no confidence head.
    #[error(
        "mode `{mode}` needs a confidence head, but the draft has none: choose another mode, or use a draft trained with \
         `model.enable_confidence_head = true`"
    )]
    NoConfidenceHead {
        /// The requested mode.
        mode: Mode,
    },
    /// The machine has no thread to spare.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Engine {
    /// Checks that a draft has what a mode looks at.
    ///
    /// # Errors
    /// Returns an error if the mode is a confidence threshold and the draft has no confidence head.
    pub fn check_mode(mode: Mode, draft: Option<&Draft>) -> Result<(), EngineError> {
        match (mode, draft) {
            (Mode::Threshold(_), Some(draft)) if !draft.config().has_confidence_head() => {
                Err(EngineError::NoConfidenceHead { mode })
            }
            _ => Ok(()),
        }
    }

    /// Starts the two threads.
    ///
    /// # Errors
    /// Returns an error if the settings leave no room for any request.
    pub fn start(
        target: Target,
        draft: Option<Draft>,
        tokenizer: Tokenizer,
        config: EngineConfig,
    ) -> Result<(Self, EngineHandle), EngineError> {
        if config.mode == Mode::Scheduled && config.curve.is_none() && draft.is_some() {
            return Err(EngineError::NoCurve);
        }
        Self::check_mode(config.mode, draft.as_ref())?;
        let draft = draft.filter(|_| config.mode != Mode::Off);
        let block = draft.as_ref().map_or(0, |draft| draft.config().block_size);
        let limits = [
            ("max_running", config.max_running),
            ("max_waiting", config.max_waiting),
            ("prefill_rows", config.prefill_rows),
        ];
        if let Some((field, _)) = limits.into_iter().find(|(_, limit)| *limit == 0) {
            return Err(EngineError::Zero { field });
        }
        let longest = CacheMemory::longest_sequence(config.cache_tokens, block);
        if longest < 2 {
            return Err(EngineError::CacheTooSmall { least: 128 + block, found: config.cache_tokens });
        }
        let memory = CacheMemory::new(config.cache_tokens, &target, draft.as_ref());
        let (commands, command_receiver) = channel();
        let (outputs, output_receiver) = channel();
        let (stopped, stopped_receiver) = channel();
        let shared = Arc::new(Shared {
            limits: Limits {
                vocab_size: target.config().vocab_size,
                context_length: target.config().max_position_embeddings.min(longest),
                queue: config.max_waiting,
                share: config.max_running.div_ceil(SHARES),
            },
            next_id: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            shutting_down: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            metrics: Mutex::new(Metrics::default()),
        });
        let sampling_on_device = config.sampling_on_device.unwrap_or_else(|| *target.device() != Device::flex());
        if sampling_on_device {
            // A device must not repeat the random numbers of an earlier engine.
            #[expect(clippy::disallowed_methods, reason = "this noise is to be another one every time")]
            target.device().seed(rand::rng().next_u64());
        }
        let (table, calibration) = (config.curve.clone().map(Arc::new), config.calibration.clone().map(Arc::new));
        let policy = Policy::new(config.mode, table, calibration, block);
        let loop_shared = Arc::clone(&shared);
        let step_loop = move || {
            let step_loop = StepLoop {
                rounds: Rounds::new(&target, draft.as_ref()).sampling_on_device(sampling_on_device),
                config,
                commands: command_receiver,
                outputs,
                stopped: stopped_receiver,
                shared: loop_shared,
                memory,
                policy,
                waiting: VecDeque::new(),
                running: Vec::new(),
                metrics: Metrics::default(),
                deadline: None,
            };
            step_loop.run();
        };
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        // Run on a worker of a thread pool: parallel operations then start without handing over to another thread. The
        // pool is private because the loop also occupies the worker while it waits.
        let pool = rayon::ThreadPoolBuilder::new().thread_name(|index| format!("engine-{index}")).build();
        let pool = pool.map_err(std::io::Error::other)?;
        let steps = named("engine").spawn(move || pool.install(step_loop))?;
        let texts = named("finisher").spawn(move || {
            // Without a step loop there is nothing left to stop.
            finisher::run(&tokenizer, &output_receiver, |answer| _ = stopped.send(answer));
        })?;
        Ok((Self { threads: vec![steps, texts] }, EngineHandle { commands, shared }))
    }

    /// Waits until both threads have ended, and returns whether neither failed.
    pub fn join(self) -> bool {
        // The thread itself printed the panic. Wait for each thread, even after one has failed.
        self.threads.into_iter().filter_map(|thread| thread.join().err()).count() == 0
    }
}
