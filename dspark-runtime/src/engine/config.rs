//! Resource limits of an engine and its drafting mode.

use std::time::Duration;

use crate::schedule::{Mode, SpsTable, StsTable};

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Requests answered at once.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Capacity of the KV cache in tokens, shared by all requests.
    pub cache_tokens: usize,
    /// Maximum number of prompt tokens that go through the target in one step while other answers are being decoded.
    pub prefill_rows: usize,
    /// A request that takes longer fails.
    pub request_timeout: Option<Duration>,
    /// Amount of each drafted block that is verified.
    pub mode: Mode,
    /// Step times of this machine; required by [`Mode::Scheduled`].
    pub curve: Option<SpsTable>,
    /// Calibrates the draft's confidences.
    pub calibration: Option<StsTable>,
    /// True if tokens of greedy requests, and of requests without seed and filters, are sampled and judged on the
    /// compute device, where their logits stay. Logits of other requests, and logits that a request asks for, are
    /// copied to the host. `None` chooses the device if it has its own memory.
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
