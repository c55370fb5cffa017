//! Stepping through the rounds.

use dspark_runtime::schedule::{Confidences, Mode, Schedule, SpsTable, StsTable, round_gain};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::report::SimulationPoint;
use crate::evaluation::TraceRound;

/// Rounds of all requests together that a point is averaged over, at least, and steps, at least.
const ROUNDS: usize = 20_000;
const STEPS: usize = 200;

/// The rounds of a trace, by prompt and in order.
#[derive(Debug)]
pub struct Prompts {
    prompts: Vec<Vec<Replayed>>,
    block_size: usize,
    /// As the calibration knows it.
    acceptance: Vec<f64>,
}

/// One round as the replay needs it.
#[derive(Debug)]
struct Replayed {
    /// Calibrated.
    confidences: Vec<f64>,
    accepted: usize,
    /// Whether the last accepted token was a stop token, after which the target adds none.
    ends_with_stop: bool,
}

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The rounds.
    pub prompts: &'a Prompts,
    /// What steps cost.
    pub table: &'a SpsTable,
    /// Tokens of a step, anchors included, at most; no more requests than that run at once.
    pub batch_limit: usize,
    /// Seed of where the requests start.
    pub seed: u64,
}

impl Prompts {
    /// Groups the rounds, which [`read_trace`](crate::evaluation::read_trace) has checked, and calibrates their confidences.
    pub fn new(rounds: &[TraceRound], sts: &StsTable) -> Self {
        let mut rounds: Vec<&TraceRound> = rounds.iter().collect();
        rounds.sort_by(|a, b| (&a.task, a.sample, a.round).cmp(&(&b.task, b.sample, b.round)));
        let same_prompt = |a: &&TraceRound, b: &&TraceRound| a.task == b.task && a.sample == b.sample;
        let replayed = |round: &&TraceRound| Replayed {
            confidences: sts.confidences(&round.confidence_logits).collect(),
            accepted: round.accepted,
            ends_with_stop: round.stopped && round.proposed < round.confidence_logits.len(),
        };
        Self {
            block_size: rounds.first().map_or(0, |round| round.confidence_logits.len()),
            acceptance: sts.acceptance.clone(),
            prompts: rounds.chunk_by(same_prompt).map(|rounds| rounds.iter().map(replayed).collect()).collect(),
        }
    }

    /// How many prompts have rounds.
    pub fn count(&self) -> usize {
        self.prompts.len()
    }
}

/// One mode at a constant load of so many concurrent requests, averaged over the rounds after a warm-up.
///
/// There is at least one round and the load is at least 1.
pub fn simulate(workload: Workload<'_>, mode: Mode, load: usize) -> SimulationPoint {
    let Workload { prompts, table, batch_limit, seed } = workload;
    // The rest waits, and is served as fast as those that run leave places.
    let running = load.min(batch_limit);
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut requests: Vec<Request> = (0..running).map(|_| Request::begin(prompts, &mut generator)).collect();
    let mut ids: Vec<u64> = (0..running as u64).collect();
    let mut schedule = Schedule::new(mode).expecting(&prompts.acceptance);
    let (mut confidences, mut lengths) = (Confidences::default(), Vec::new());
    let plain_seconds = table.plain_seconds(running);

    let steps = STEPS.max(ROUNDS.div_ceil(running));
    let warm_up = steps / 10;
    let mut sums = Sums::default();
    for step in 0..warm_up + steps {
        if step == warm_up {
            sums = Sums::default();
        }
        let price = table.price(running, prompts.block_size, batch_limit, schedule.experience());
        let (committed, verified, seconds) = if schedule.drafts(price) {
            let slots = schedule.slots(&ids, 0, prompts.block_size, table, batch_limit);
            confidences.clear();
            for request in &requests {
                // Behind the drafted slots the confidence of one more is known.
                confidences.push(request.round(prompts).confidences.iter().copied().take(slots + 1));
            }
            schedule.lengths(&ids, &confidences, &table.curve(running, slots), batch_limit, &mut lengths);
            lengths.iter_mut().for_each(|length| *length = (*length).min(slots));
            let verified: usize = lengths.iter().sum();
            for (request, &length) in requests.iter().zip(&lengths) {
                schedule.judged(length, length.min(request.round(prompts).accepted));
            }
            let committed =
                requests.iter().zip(&lengths).map(|(request, &length)| request.round(prompts).commits(length));
            let committed: usize = committed.sum();
            let seconds = table.verify_seconds(running, running + verified) + table.draft_seconds(running, slots);
            schedule.drafted(running, round_gain(running, committed, seconds, plain_seconds));
            sums.drafted_steps += 1.0;
            (committed, verified, seconds)
        } else {
            (running, 0, plain_seconds)
        };
        sums.steps += 1.0;
        sums.seconds += seconds;
        sums.committed += committed as f64;
        sums.sent += (running + verified) as f64;
        for (request, id) in requests.iter_mut().zip(&mut ids) {
            if request.advance(prompts) {
                // Another request has its place.
                *id += running as u64;
            }
        }
    }
    let tokens_per_second = sums.committed / sums.seconds;
    SimulationPoint {
        mode: mode.to_string(),
        concurrency: load,
        running,
        tokens_per_second,
        tokens_per_second_per_user: tokens_per_second / load as f64,
        tokens_per_request_step: sums.committed / (sums.steps * running as f64),
        verify_budget: sums.sent / (sums.steps * running as f64),
        batch_tokens: sums.sent / sums.steps,
        drafted_steps: sums.drafted_steps / sums.steps,
    }
}

#[derive(Default)]
struct Sums {
    steps: f64,
    drafted_steps: f64,
    seconds: f64,
    committed: f64,
    sent: f64,
}

/// A cursor.
struct Request {
    prompt: usize,
    round: usize,
}

impl Request {
    /// Anywhere in the trace, every round being as likely.
    fn begin(prompts: &Prompts, generator: &mut ChaCha8Rng) -> Self {
        let total: usize = prompts.prompts.iter().map(Vec::len).sum();
        let mut round = generator.random_range(0..total);
        let mut prompt = 0;
        while round >= prompts.prompts[prompt].len() {
            round -= prompts.prompts[prompt].len();
            prompt += 1;
        }
        Self { prompt, round }
    }

    fn round<'a>(&self, prompts: &'a Prompts) -> &'a Replayed {
        &prompts.prompts[self.prompt][self.round]
    }

    /// On to the next round; whether a new prompt begins with it.
    fn advance(&mut self, prompts: &Prompts) -> bool {
        self.round += 1;
        let ends = self.round == prompts.prompts[self.prompt].len();
        if ends {
            *self = Self { prompt: (self.prompt + 1) % prompts.prompts.len(), round: 0 };
        }
        ends
    }
}

impl Replayed {
    /// Tokens committed when the first `length` drafted ones are verified.
    fn commits(&self, length: usize) -> usize {
        if length >= self.accepted && self.ends_with_stop { self.accepted } else { length.min(self.accepted) + 1 }
    }
}

#[cfg(test)]
mod tests {
    use dspark_runtime::schedule::{DraftCost, StepCost};

    use super::*;

    /// Prompts of eight rounds: all positions accepted, then none, and so on; the head knows it.
    fn rounds(known: bool) -> Vec<TraceRound> {
        let round = |index: usize| {
            let accepted = if index.is_multiple_of(2) { 4 } else { 0 };
            let logit = if known && accepted == 0 { -20.0 } else { 20.0 };
            TraceRound {
                task: "t".into(),
                sample: index / 8,
                round: index % 8,
                temperature: 1.0,
                confidence_logits: vec![logit; 4],
                proposed: 4,
                accepted,
                stopped: false,
            }
        };
        (0..64).map(round).collect()
    }

    /// A step takes a second up to eight tokens and one more for each eighth beyond; drafting a tenth per request.
    fn table() -> SpsTable {
        let batch_tokens: Vec<usize> = (1..=512).collect();
        let steps_per_second = batch_tokens.iter().map(|&tokens| 8.0 / (tokens as f64).max(8.0)).collect();
        let draft = DraftCost { requests: vec![1, 2], slots: vec![1], seconds: vec![vec![0.1, 0.2]] };
        SpsTable::new(StepCost::Probes { batch_tokens, steps_per_second, per_request: None }, 512, Some(draft), None)
    }

    fn point(mode: Mode, load: usize, known: bool) -> SimulationPoint {
        let (prompts, table) = (Prompts::new(&rounds(known), &StsTable::identity(4)), table());
        simulate(Workload { prompts: &prompts, table: &table, batch_limit: 512, seed: 0 }, mode, load)
    }

    #[track_caller]
    fn close(got: f64, expected: f64) {
        assert!((got / expected - 1.0).abs() < 0.02, "{got} instead of {expected}");
    }

    #[test]
    fn tokens_and_times_add_up() {
        close(point(Mode::Off, 4, true).tokens_per_second, 4.0);
        close(point(Mode::Off, 128, true).tokens_per_second, 8.0);
        // One request: five tokens in half of the rounds, one in the others, 1.1 seconds each.
        let fixed = point(Mode::Fixed(4), 1, true);
        close(fixed.tokens_per_second, 3.0 / 1.1);
        close(fixed.tokens_per_request_step, 3.0);
        close(fixed.verify_budget, 5.0);
        // Two of four tokens verified.
        close(point(Mode::Fixed(2), 1, true).tokens_per_second, 2.0 / 1.1);
        // The threshold knows the good rounds.
        let threshold = point(Mode::Threshold(0.5), 1, true);
        close(threshold.tokens_per_second, 3.0 / 1.1);
        close(threshold.verify_budget, 3.0);
    }

    #[test]
    fn the_schedule_is_never_far_below_the_others() {
        for known in [true, false] {
            for load in [1, 4, 32, 256] {
                let scheduled = point(Mode::Scheduled, load, known);
                let off = point(Mode::Off, load, known);
                assert!(scheduled.tokens_per_second > 0.97 * off.tokens_per_second, "{scheduled:?}\n{off:?}");
            }
            // Under light load everything is verified that may be accepted.
            close(point(Mode::Scheduled, 1, known).tokens_per_second, 3.0 / 1.1);
        }
        // Under heavy load a fixed block loses half, and the schedule decodes plainly.
        assert!(point(Mode::Fixed(4), 256, true).tokens_per_second < 5.0);
        assert!(point(Mode::Scheduled, 256, true).drafted_steps < 0.2);
    }

    #[test]
    fn what_does_not_fit_waits() {
        let over = point(Mode::Fixed(4), 1000, true);
        assert_eq!(over.running, 512);
        close(over.verify_budget, 1.0);
        close(over.tokens_per_second_per_user * 1000.0, over.tokens_per_second);
    }

    #[test]
    fn an_accepted_stop_token_has_none_behind_it() {
        let stop = Replayed { confidences: Vec::new(), accepted: 2, ends_with_stop: true };
        assert_eq!([0, 1, 2, 4].map(|length| stop.commits(length)), [1, 2, 2, 2]);
        let rejected = Replayed { ends_with_stop: false, ..stop };
        assert_eq!([0, 1, 2, 4].map(|length| rejected.commits(length)), [1, 2, 3, 3]);
    }
}
