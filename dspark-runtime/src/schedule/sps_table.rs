//! The speed table: steps per second by number of tokens, in SGLang's format, and the cost of drafting.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::costs::{AdditiveCost, DraftCost, PerRequest, StepCost, increasing, positive, request_cost};
use super::experience::Experience;
use super::prefix::SpeedCurve;
use crate::checkpoint::{CheckpointError, JsonFields, write_file};

/// Tokens up to which seconds are kept one by one.
const DENSE: usize = 1 << 13;

/// Seconds of a step by the tokens that go through the target, seconds of drafting by number of requests, and the
/// circumstances of the measurement.
///
/// ```no_run
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::schedule::SpsTable;
///
/// let table = SpsTable::read(Path::new("speed.json"))?;
/// println!("a step of one request takes {:.1} ms", 1e3 * table.plain_seconds(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SpsTable {
    cost: StepCost,
    max_batch_tokens: usize,
    draft: Option<DraftCost>,
    identity: Option<Identity>,
    /// Seconds by tokens, as far as they are looked up in every step.
    seconds: Vec<f64>,
}

/// The circumstances that a table was measured for. It applies only if all of them are equal.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// Digest of target and draft.
    pub model: String,
    /// Device, by name.
    pub device: String,
    /// Number type of weights and arithmetic.
    pub dtype: String,
    /// Threads that compute.
    pub threads: usize,
    /// Version of this program.
    pub version: String,
}

/// A rise in speed between neighbouring probes that cannot be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rise {
    /// The smaller number of tokens.
    pub from: usize,
    /// The larger one, at which the table has a faster step.
    pub to: usize,
    /// The ratio of the speeds.
    pub factor: f64,
}

impl fmt::Display for Rise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, factor } = self;
        write!(
            f,
            "{to} tokens per step were measured {factor:.2} times as fast as {from}: a measurement error; measure again with `dspark profile --again`"
        )
    }
}

impl SpsTable {
    /// A rise in speed from one probe to the next beyond this share is a measuring error.
    pub const LARGEST_RISE: f64 = 0.1;

    /// Returns a table of the target's part, the largest batch in tokens that it covers, and the known costs of the
    /// draft and circumstances. Probes must satisfy the conditions of [`StepCost`] and [`DraftCost`].
    pub fn new(
        cost: StepCost,
        max_batch_tokens: usize,
        draft: Option<DraftCost>,
        identity: Option<Identity>,
    ) -> Self {
        let seconds = (0..=cost.last_probe().min(DENSE)).map(|tokens| cost.token_seconds(tokens)).collect();
        Self { cost, max_batch_tokens, draft, identity, seconds }
    }

    /// Returns the largest batch that the table covers, in tokens.
    pub fn max_batch_tokens(&self) -> usize {
        self.max_batch_tokens
    }

    /// The target's part.
    pub fn cost(&self) -> &StepCost {
        &self.cost
    }

    /// The draft's part, when it was measured. Other programs do not read it.
    pub fn draft(&self) -> Option<&DraftCost> {
        self.draft.as_ref()
    }

    /// Returns the circumstances of the measurement, if known. Other programs do not read them.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Returns the table with the circumstances of its measurement.
    #[must_use]
    pub fn with_identity(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// Returns the table for batches of up to this many tokens.
    #[must_use]
    pub fn for_batches_of(self, max_batch_tokens: usize) -> Self {
        Self { max_batch_tokens, ..self }
    }

    /// Reads a table, in probes or in parts. Fields that are not known here are left alone.
    ///
    /// # Errors
    /// Returns an error if a field is missing or has the wrong type, numbers of tokens do not increase, or a time or
    /// speed is not above 0. Rises of the speed are not errors: see [`rises`](Self::rises).
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let fields = JsonFields::read_table(path, "a speed table, as `dspark profile` writes it")?;
        let cost = if fields.get("bias_seconds").is_some() {
            StepCost::Additive(AdditiveCost::from_fields(&fields)?)
        } else {
            let batch_tokens = increasing(&fields, "sample_batch_tokens")?;
            let steps_per_second = positive(&fields, "sample_steps_per_sec", batch_tokens.len())?;
            let cost = request_cost(&fields, "request_probes", "request_seconds")?;
            let per_request = cost.map(|cost| -> Result<PerRequest, CheckpointError> {
                let sample_requests = fields.integers("sample_requests")?;
                let good = sample_requests.len() == batch_tokens.len()
                    && sample_requests
                        .iter()
                        .zip(&batch_tokens)
                        .all(|(requests, tokens)| (1..=*tokens as i64).contains(requests));
                if !good {
                    let expected = "whole numbers >= 1, one per probe and none above its tokens";
                    return Err(fields.wrong("sample_requests", expected));
                }
                let sample_requests = sample_requests.into_iter().map(|requests| requests as usize).collect();
                Ok(PerRequest { sample_requests, cost })
            });
            let per_request = per_request.transpose()?;
            StepCost::Probes { batch_tokens, steps_per_second, per_request }
        };
        let last = cost.last_probe();
        let required = matches!(cost, StepCost::Probes { .. });
        let max_batch_tokens = match fields.optional_size("max_batch_tokens", last)? {
            None if required => return Err(fields.wrong("max_batch_tokens", format!("a whole number >= {last}"))),
            found => found.unwrap_or(last),
        };
        let draft = DraftCost::from_fields(&fields)?;
        let identity = fields.object("identity")?.map(|fields| Identity::from_fields(&fields)).transpose()?;
        Ok(Self::new(cost, max_batch_tokens, draft, identity))
    }

    /// Writes the table, whole or not at all.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let text = serde_json::to_string_pretty(&self.to_json()).unwrap_or_default() + "\n";
        write_file(path, text.as_bytes())
    }

    /// Neighbouring probes between which the speed rises by more than 10 %.
    pub fn rises(&self) -> Vec<Rise> {
        let StepCost::Probes { batch_tokens, steps_per_second, .. } = &self.cost else { return Vec::new() };
        let pairs = batch_tokens.windows(2).zip(steps_per_second.windows(2));
        let rise = |(tokens, speed): (&[usize], &[f64])| Rise {
            from: tokens[0],
            to: tokens[1],
            factor: speed[1] / speed[0],
        };
        pairs.map(rise).filter(|rise| rise.factor > 1.0 + Self::LARGEST_RISE).collect()
    }

    /// Returns an error if the table was measured for something else, or does not record its circumstances.
    ///
    /// # Errors
    /// Names the first field that differs.
    pub fn check_identity(&self, path: &Path, expected: &Identity) -> Result<(), CheckpointError> {
        let unknown = Identity::default();
        let found = self.identity.as_ref().unwrap_or(&unknown);
        let fields = expected.fields().into_iter().zip(found.fields());
        let Some(((field, expected), (_, found))) = fields.into_iter().find(|(expected, found)| expected != found)
        else {
            return Ok(());
        };
        Err(CheckpointError::Field {
            path: path.to_owned(),
            field: format!("identity.{field}"),
            expected: expected.to_string(),
            found: if self.identity.is_some() { found.to_string() } else { "nothing".to_owned() },
        })
    }

    /// Returns the seconds of a target pass over the tokens of this many requests, anchors included.
    pub fn verify_seconds(&self, requests: usize, batch_tokens: usize) -> f64 {
        self.cost.request_seconds(requests) + self.token_seconds(batch_tokens)
    }

    fn token_seconds(&self, batch_tokens: usize) -> f64 {
        self.seconds.get(batch_tokens).copied().unwrap_or_else(|| self.cost.token_seconds(batch_tokens))
    }

    /// Returns the seconds of drafting this many slots for each of this many requests; 0 if that was not measured.
    pub fn draft_seconds(&self, requests: usize, slots: usize) -> f64 {
        match &self.draft {
            Some(draft) if requests > 0 && slots > 0 => draft.at(requests, slots),
            _ => 0.0,
        }
    }

    /// Seconds that a draft's context takes to take in a token when it catches up with many; 0 when that was not measured.
    pub fn context_seconds(&self) -> f64 {
        self.draft.as_ref().map_or(0.0, |draft| draft.context_seconds)
    }

    /// Returns the seconds of a plain decoding step of this many requests.
    pub fn plain_seconds(&self, requests: usize) -> f64 {
        self.verify_seconds(requests, requests)
    }

    /// Interpolates [`plain_seconds`](Self::plain_seconds) linearly between two probes instead of using the lower one,
    /// to compare neighbouring numbers of requests. Not suitable for deciding how much to verify, because it blurs
    /// cliffs.
    pub fn plain_seconds_between(&self, requests: usize) -> f64 {
        let StepCost::Probes { batch_tokens, steps_per_second, .. } = &self.cost else {
            return self.plain_seconds(requests);
        };
        let seconds = |probe: usize| 1.0 / steps_per_second[probe];
        let above = batch_tokens.partition_point(|probe| *probe <= requests);
        if above == 0 || above == batch_tokens.len() {
            return seconds(above.saturating_sub(1));
        }
        let (from, to) = (batch_tokens[above - 1] as f64, batch_tokens[above] as f64);
        seconds(above - 1) + (seconds(above) - seconds(above - 1)) * (requests as f64 - from) / (to - from)
    }

    /// Returns the speed of a step in which this many requests draft this many slots each, by number of verified
    /// tokens.
    pub fn curve(&self, requests: usize, slots: usize) -> StepCurve<'_> {
        self.curve_beside(requests, slots, 0)
    }

    /// Returns the curve of a step with additional requests that contribute one token each and do not draft.
    pub fn curve_beside(&self, requests: usize, slots: usize, beside: usize) -> StepCurve<'_> {
        let fixed_seconds = self.cost.request_seconds(requests + beside) + self.draft_seconds(requests, slots);
        StepCurve { table: self, fixed_seconds, beside }
    }

    /// Returns the extra cost of a round with one draft token per request over a plain one, in plain steps. It is
    /// infinite if no length would pay even with the optimistic acceptance estimate.
    pub fn price(&self, requests: usize, block_size: usize, batch_limit: usize, experience: &Experience) -> f64 {
        let plain = self.plain_seconds(requests);
        let cost = |length: usize| self.round_seconds(requests, length) / plain;
        let mut lengths = lengths(requests, block_size, batch_limit);
        let pays = lengths.any(|length| experience.tokens(length) > cost(length));
        if pays { cost(1) - 1.0 } else { f64::INFINITY }
    }

    /// Returns the gain of a round over plain ones in the same time, in plain steps, and the tokens it commits per
    /// request, at the best length for the acceptance so far. The gain is below 0 if no length pays.
    pub fn gain(
        &self,
        requests: usize,
        block_size: usize,
        batch_limit: usize,
        experience: &Experience,
    ) -> (f64, f64) {
        let plain = self.plain_seconds(requests);
        let rounds = lengths(requests, block_size, batch_limit).map(|length| {
            let tokens = experience.mean_tokens(length);
            (tokens - self.round_seconds(requests, length) / plain, tokens)
        });
        rounds.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::NEG_INFINITY, 1.0))
    }

    /// Returns the number of tokens to draft per request, at least one, that maximises committed tokens per second for
    /// the acceptance so far.
    pub fn best_length(
        &self,
        requests: usize,
        block_size: usize,
        batch_limit: usize,
        experience: &Experience,
    ) -> usize {
        let speed = |length: usize| experience.tokens(length) / self.round_seconds(requests, length);
        lengths(requests, block_size, batch_limit).max_by(|a, b| speed(*a).total_cmp(&speed(*b))).unwrap_or(1)
    }

    /// Returns the seconds of a round that drafts and verifies this many tokens per request.
    fn round_seconds(&self, requests: usize, length: usize) -> f64 {
        1.0 / self.curve(requests, length).steps_per_second(requests * (1 + length))
    }

    /// Returns the table in its file format.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        match &self.cost {
            StepCost::Probes { batch_tokens, steps_per_second, per_request } => {
                add("sample_batch_tokens", json!(batch_tokens));
                add("sample_steps_per_sec", json!(steps_per_second));
                if let Some(PerRequest { sample_requests, cost }) = per_request {
                    add("sample_requests", json!(sample_requests));
                    add("request_probes", json!(cost.requests));
                    add("request_seconds", json!(cost.seconds));
                }
            }
            StepCost::Additive(cost) => {
                add("bias_seconds", json!(cost.bias_seconds));
                add("bs_probes", json!(cost.requests));
                add("alpha_seconds", json!(cost.alpha_seconds));
                add("m_probes", json!(cost.batch_tokens));
                add("theta_seconds", json!(cost.theta_seconds));
            }
        }
        add("max_batch_tokens", json!(self.max_batch_tokens));
        if let Some(draft) = &self.draft {
            add("draft_requests", json!(draft.requests));
            add("draft_slots", json!(draft.slots));
            add("draft_seconds", json!(draft.seconds));
            add("draft_context_seconds", json!(draft.context_seconds));
        }
        if let Some(identity) = &self.identity {
            let fields: Map<String, Value> =
                identity.fields().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            add("identity", Value::Object(fields));
        }
        fields
    }
}

/// Returns the numbers of drafted tokens per request for which a step stays within its limit.
fn lengths(requests: usize, block_size: usize, batch_limit: usize) -> impl Iterator<Item = usize> {
    (1..=block_size).take_while(move |length| requests * (1 + length) <= batch_limit)
}

/// The speed of one step, drafting included, by the number of tokens that go through the target.
#[derive(Clone, Copy, Debug)]
pub struct StepCurve<'a> {
    table: &'a SpsTable,
    /// Seconds that do not depend on the tokens.
    fixed_seconds: f64,
    /// Additional tokens in the step.
    beside: usize,
}

impl SpeedCurve for StepCurve<'_> {
    fn steps_per_second(&self, batch_tokens: usize) -> f64 {
        1.0 / (self.table.token_seconds(batch_tokens + self.beside) + self.fixed_seconds)
    }

    fn constant_until(&self, batch_tokens: usize) -> usize {
        match &self.table.cost {
            StepCost::Probes { batch_tokens: probes, per_request: None, .. } => {
                let above = probes.partition_point(|probe| *probe <= batch_tokens + self.beside).max(1);
                probes.get(above).map_or(usize::MAX, |next| (next - 1).saturating_sub(self.beside))
            }
            StepCost::Probes { .. } | StepCost::Additive(_) => batch_tokens,
        }
    }
}

impl Identity {
    fn fields(&self) -> [(&'static str, Value); 5] {
        [
            ("model", json!(self.model)),
            ("device", json!(self.device)),
            ("dtype", json!(self.dtype)),
            ("threads", json!(self.threads)),
            ("version", json!(self.version)),
        ]
    }

    fn from_fields(fields: &JsonFields) -> Result<Self, CheckpointError> {
        let text = |field: &str| -> Result<String, CheckpointError> {
            let found = fields.optional_text(field)?;
            Ok(found.ok_or_else(|| fields.wrong(field, "a string"))?.to_owned())
        };
        Ok(Self {
            model: text("model")?,
            device: text("device")?,
            dtype: text("dtype")?,
            threads: fields.size("threads", 1)?,
            version: text("version")?,
        })
    }
}

#[cfg(test)]
mod tests;
