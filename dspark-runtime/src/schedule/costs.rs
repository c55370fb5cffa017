//! Measured costs of steps: the target's part by tokens and requests, and the draft's part.

use serde_json::Value;

use crate::checkpoint::{CheckpointError, JsonFields};

/// The target's part of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepCost {
    /// Steps per second measured at some numbers of tokens. Between two probes, the speed is that of the lower probe,
    /// as other programs read such tables, so cliffs are preserved. Below the first probe, it is that of the first. If
    /// the part of requests was measured too, seconds are interpolated linearly between two probes: a constant would
    /// make the tokens in between look free.
    Probes {
        /// Strictly increasing, at least 1.
        batch_tokens: Vec<usize>,
        /// One per probe, above 0.
        steps_per_second: Vec<f64>,
        /// The part of a step's seconds that depends on its requests and not on the verified tokens, if measured. Other
        /// programs do not read it.
        per_request: Option<PerRequest>,
    },
    /// Measured in parts.
    Additive(AdditiveCost),
}

/// The cost of requests: each has its own cache to read.
#[derive(Clone, Debug, PartialEq)]
pub struct PerRequest {
    /// Number of requests that the tokens of each probe belonged to.
    pub sample_requests: Vec<usize>,
    /// Seconds of a step by number of requests, beyond those of one request with the same tokens.
    pub cost: RequestCost,
}

/// `seconds = bias + alpha(requests) + theta(tokens)`, alpha and theta linear between their probes.
#[derive(Clone, Debug, PartialEq)]
pub struct AdditiveCost {
    /// Seconds that every step takes.
    pub bias_seconds: f64,
    /// Numbers of requests, strictly increasing.
    pub requests: Vec<usize>,
    /// Seconds at each.
    pub alpha_seconds: Vec<f64>,
    /// Numbers of tokens, strictly increasing.
    pub batch_tokens: Vec<usize>,
    /// Seconds at each.
    pub theta_seconds: Vec<f64>,
}

/// Seconds by the number of requests, linear between the probes and beyond them as between the last two.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestCost {
    /// Numbers of requests, strictly increasing.
    pub requests: Vec<usize>,
    /// Seconds at each, at least 0.
    pub seconds: Vec<f64>,
}

/// Seconds of drafting by number of drafting requests and slots per request, linear between the probes.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftCost {
    /// Numbers of requests, strictly increasing.
    pub requests: Vec<usize>,
    /// Numbers of slots, strictly increasing.
    pub slots: Vec<usize>,
    /// For each number of slots, seconds by number of requests, at least 0.
    pub seconds: Vec<Vec<f64>>,
    /// Seconds that a context takes to take in a token when it catches up with many; 0 when that was not measured.
    pub context_seconds: f64,
}

impl StepCost {
    pub(super) fn last_probe(&self) -> usize {
        let probes = match self {
            Self::Probes { batch_tokens, .. } => batch_tokens,
            Self::Additive(cost) => &cost.batch_tokens,
        };
        probes.last().copied().unwrap_or(1)
    }

    /// Returns the seconds that depend on the requests and not on the verified tokens.
    pub(super) fn request_seconds(&self, requests: usize) -> f64 {
        match self {
            Self::Probes { per_request: None, .. } => 0.0,
            Self::Probes { per_request: Some(PerRequest { cost, .. }), .. } => cost.at(requests),
            Self::Additive(cost) => cost.bias_seconds + linear(&cost.requests, &cost.alpha_seconds, requests),
        }
    }

    /// Seconds that come with the tokens.
    pub(super) fn token_seconds(&self, tokens: usize) -> f64 {
        match self {
            Self::Probes { batch_tokens, steps_per_second, per_request } => {
                let seconds = |probe: usize| {
                    let seconds = 1.0 / steps_per_second[probe];
                    let with_requests = per_request
                        .as_ref()
                        .map_or(0.0, |PerRequest { sample_requests, cost }| cost.at(sample_requests[probe]));
                    // Noise must not make a pass over more tokens free.
                    (seconds - with_requests).max(seconds / 100.0)
                };
                match per_request {
                    Some(_) => linear_by(batch_tokens, seconds, tokens),
                    None => seconds(batch_tokens.partition_point(|probe| *probe <= tokens).saturating_sub(1)),
                }
            }
            Self::Additive(cost) => linear(&cost.batch_tokens, &cost.theta_seconds, tokens),
        }
    }
}

impl RequestCost {
    /// Returns the seconds for this many requests.
    pub fn at(&self, requests: usize) -> f64 {
        linear(&self.requests, &self.seconds, requests).max(0.0)
    }
}

impl DraftCost {
    /// Returns the seconds of drafting this many slots for each of this many requests.
    pub fn at(&self, requests: usize, slots: usize) -> f64 {
        let seconds = |probe: usize| linear(&self.requests, &self.seconds[probe], requests);
        linear_by(&self.slots, seconds, slots).max(0.0)
    }

    /// Returns `None` if the table has no drafting costs.
    pub(super) fn from_fields(fields: &JsonFields) -> Result<Option<Self>, CheckpointError> {
        if ["draft_requests", "draft_slots", "draft_seconds"].iter().all(|name| fields.get(name).is_none()) {
            return Ok(None);
        }
        let (requests, slots) = (increasing(fields, "draft_requests")?, increasing(fields, "draft_slots")?);
        let row = |row: &Value| -> Option<Vec<f64>> {
            let row: Vec<f64> = row.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
            (row.len() == requests.len() && row.iter().all(|seconds| *seconds >= 0.0)).then_some(row)
        };
        let rows = fields.get("draft_seconds").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let seconds: Vec<Vec<f64>> = rows.iter().filter_map(row).collect();
        if rows.len() != slots.len() || seconds.len() != rows.len() {
            let (rows, columns) = (slots.len(), requests.len());
            let expected =
                format!("{rows} lists, one per entry of `draft_slots`, of {columns} numbers of at least 0");
            return Err(fields.wrong("draft_seconds", expected));
        }
        let context_seconds = fields.optional_float("draft_context_seconds")?.unwrap_or(0.0);
        if !(0.0..=LARGEST).contains(&context_seconds) {
            return Err(fields.wrong("draft_context_seconds", format!("a number from 0 to {LARGEST:e}")));
        }
        Ok(Some(Self { requests, slots, seconds, context_seconds }))
    }
}

impl AdditiveCost {
    pub(super) fn from_fields(fields: &JsonFields) -> Result<Self, CheckpointError> {
        let bias = fields.optional_float("bias_seconds")?.filter(is_positive);
        let bias_seconds = bias.ok_or_else(|| {
            fields.wrong("bias_seconds", format!("a number from {:e} to {LARGEST:e}", LARGEST.recip()))
        })?;
        let requests = increasing(fields, "bs_probes")?;
        let batch_tokens = increasing(fields, "m_probes")?;
        Ok(Self {
            bias_seconds,
            alpha_seconds: not_negative(fields, "alpha_seconds", requests.len())?,
            theta_seconds: not_negative(fields, "theta_seconds", batch_tokens.len())?,
            requests,
            batch_tokens,
        })
    }
}

/// Reads strictly increasing whole numbers of at least 1, at least one of them.
pub(super) fn increasing(fields: &JsonFields, field: &str) -> Result<Vec<usize>, CheckpointError> {
    let wrong = || fields.wrong(field, "strictly increasing whole numbers >= 1, at least one");
    let numbers = fields.integers(field)?;
    let increases = numbers.windows(2).all(|pair| pair[0] < pair[1]);
    match numbers.first() {
        Some(first) if *first >= 1 && increases => Ok(numbers.into_iter().map(|number| number as usize).collect()),
        _ => Err(wrong()),
    }
}

/// Largest time in seconds, and largest speed per second, that a table may state. The smallest speed is its reciprocal.
const LARGEST: f64 = 1e9;

fn is_positive(number: &f64) -> bool {
    (LARGEST.recip()..=LARGEST).contains(number)
}

/// Numbers above 0, as many as there are probes.
pub(super) fn positive(fields: &JsonFields, field: &str, count: usize) -> Result<Vec<f64>, CheckpointError> {
    let numbers = fields.numbers(field)?;
    let good = numbers.len() == count && numbers.iter().all(is_positive);
    let expected = || format!("{count} numbers above 0, one per probe, none beyond {LARGEST:e} or its reciprocal");
    if good { Ok(numbers) } else { Err(fields.wrong(field, expected())) }
}

/// Numbers of at least 0, as many as there are probes.
pub(super) fn not_negative(fields: &JsonFields, field: &str, count: usize) -> Result<Vec<f64>, CheckpointError> {
    let numbers = fields.numbers(field)?;
    let good = numbers.len() == count && numbers.iter().all(|number| (0.0..=LARGEST).contains(number));
    let expected = || format!("{count} numbers from 0 to {LARGEST:e}, one per probe");
    if good { Ok(numbers) } else { Err(fields.wrong(field, expected())) }
}

/// Reads seconds by requests from two fields; `None` if neither exists.
pub(super) fn request_cost(
    fields: &JsonFields,
    probes: &str,
    seconds: &str,
) -> Result<Option<RequestCost>, CheckpointError> {
    if fields.get(probes).is_none() && fields.get(seconds).is_none() {
        return Ok(None);
    }
    let requests = increasing(fields, probes)?;
    Ok(Some(RequestCost { seconds: not_negative(fields, seconds, requests.len())?, requests }))
}

/// Linear between the probes, constant below the first, and beyond the last as between the last two.
fn linear(probes: &[usize], seconds: &[f64], at: usize) -> f64 {
    linear_by(probes, |probe| seconds[probe], at)
}

/// Interpolates like `linear`, with seconds computed from the index of the probe.
fn linear_by(probes: &[usize], seconds: impl Fn(usize) -> f64, at: usize) -> f64 {
    let above = probes.partition_point(|probe| *probe <= at);
    if above == 0 || probes.len() == 1 {
        return seconds(0);
    }
    let low = (above - 1).min(probes.len() - 2);
    let share = (at - probes[low]) as f64 / (probes[low + 1] - probes[low]) as f64;
    let (from, to) = (seconds(low), seconds(low + 1));
    from + share * (to - from)
}
