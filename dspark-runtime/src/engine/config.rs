//! What an engine may use and how it drafts.

use std::time::Duration;

use crate::schedule::{Mode, SpsTable, StsTable};

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Requests answered at once.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Tokens that the caches of all requests may hold together.
    pub cache_tokens: usize,
    /// Prompt tokens that go through the target in one step, at most, while answers are being decoded beside them.
    pub prefill_rows: usize,
    /// A request that takes longer fails.
    pub request_timeout: Option<Duration>,
    /// How much of a drafted block is verified.
    pub mode: Mode,
    /// How long steps take; [`Mode::Scheduled`] needs it.
    pub curve: Option<SpsTable>,
    /// Calibrates the draft's confidences.
    pub calibration: Option<StsTable>,
    /// Whether tokens are drawn and judged on the device that computes, and their logits stay there: those of greedy requests,
    /// and of requests without seed and filters. The others' logits, and those that are asked for, come to the host.
    /// `None`: where the device has a memory of its own.
    pub sampling_on_device: Option<bool>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_running: 32,
            max_waiting: 256,
            cache_tokens: 65_536,
            prefill_rows: 128,
            request_timeout: None,
            mode: Mode::Fixed(usize::MAX),
            curve: None,
            calibration: None,
            sampling_on_device: None,
        }
    }
}
