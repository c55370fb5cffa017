//! Stepping through the rounds.

use std::sync::Arc;
use std::time::Duration;

use dspark_runtime::schedule::{Candidate, Mode, Policy, SpsTable, Stopping, StsTable};
use dspark_runtime::speculate::accepted_length;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::report::SimulationPoint;
use crate::evaluation::TraceRound;

/// Minimum number of rounds of all requests together that a point is averaged over, and of steps.
const ROUNDS: usize = 20_000;
const STEPS: usize = 200;

/// The rounds of a trace, by prompt and in order.
#[derive(Debug)]
pub struct Prompts {
    prompts: Vec<Prompt>,
    block_size: usize,
    sts: Arc<StsTable>,
}

/// A prompt and the rounds of its answers.
#[derive(Debug)]
struct Prompt {
    /// Tokens that the draft's context lacks when the answer begins.
    tokens: usize,
    /// Maximum number of tokens of the answer; unlimited if the trace does not record it.
    limit: usize,
    rounds: Vec<Replayed>,
}

/// One round as the replay needs it.
#[derive(Debug)]
struct Replayed {
    /// Calibrated.
    confidences: Vec<f64>,
    accepted: usize,
    /// True if the last accepted token was a stop token, after which the target adds none.
    ends_with_stop: bool,
}

/// The simulated workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The rounds.
    pub prompts: &'a Prompts,
    /// The costs of steps.
    pub table: &'a SpsTable,
    /// Maximum number of tokens in a step, anchors included; no more requests than that run at once.
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
        let prompt = |rounds: &[&TraceRound]| Prompt {
            tokens: rounds[0].prompt_tokens,
            limit: if rounds[0].max_new_tokens > 0 { rounds[0].max_new_tokens } else { usize::MAX },
            rounds: rounds.iter().map(replayed).collect(),
        };
        Self {
            block_size: rounds.first().map_or(0, |round| round.confidence_logits.len()),
            sts: Arc::new(sts.clone()),
            prompts: rounds.chunk_by(same_prompt).map(prompt).collect(),
        }
    }

    /// Returns the number of prompts with rounds.
    pub fn count(&self) -> usize {
        self.prompts.len()
    }
}

/// Simulates one mode at a constant load of this many concurrent requests, averaged over the steps after a warm-up.
///
/// Every decision is the engine's own [`Policy`]'s; the clock is the speed table's. There is at least one round and the load is
/// at least 1.
pub fn simulate(workload: Workload<'_>, mode: Mode, load: usize) -> SimulationPoint {
    let Workload { prompts, table, batch_limit, seed } = workload;
    // The rest waits, and is served as fast as those that run leave places.
    let running = load.min(batch_limit);
    let table = Arc::new(table.clone().for_batches_of(batch_limit));
    let mut policy = Policy::new(mode, Some(Arc::clone(&table)), Some(Arc::clone(&prompts.sts)), prompts.block_size);
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut requests: Vec<Request> =
        (0..running as u64).map(|id| Request::begin(id, prompts, &mut generator)).collect();

    let steps = STEPS.max(ROUNDS.div_ceil(running));
    let warm_up = steps / 10;
    let mut sums = Sums::default();
    for step in 0..warm_up + steps {
        if step == warm_up {
            sums = Sums::default();
        }
        let candidates: Vec<Candidate> = requests.iter().map(|request| request.candidate(prompts)).collect();
        match policy.step(&candidates) {
            Some(stopping) => sums.add(drafting_step(&mut policy, &stopping, &mut requests, prompts, &table)),
            None => {
                let seconds = table.plain_seconds(running);
                requests.iter_mut().for_each(|request| request.say(1));
                policy.decoded_plainly(running, Duration::from_secs_f64(seconds));
                sums.add(Step { committed: running, sent: running, seconds, ..Step::default() });
            }
        }
        for request in &mut requests {
            request.advance(prompts, running as u64, &mut policy);
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
        accepted_length: accepted_length(sums.round_tokens, sums.rounds),
        verify_budget: sums.sent / (sums.steps * running as f64),
        batch_tokens: sums.sent / sums.steps,
        drafted_steps: sums.drafted_steps / sums.steps,
    }
}

/// A step that drafts.
fn drafting_step(
    policy: &mut Policy,
    stopping: &Stopping,
    requests: &mut [Request],
    prompts: &Prompts,
    table: &SpsTable,
) -> Step {
    let drafts = policy.drafts().to_vec();
    // A block has a confidence for one slot more than it has tokens, where there is one.
    let block = |request: &Request| {
        let confidences = &request.round(prompts).confidences;
        let slots = stopping.slots_of(confidences);
        (&confidences[..confidences.len().min(slots + 1)], slots)
    };
    let drafting = requests.iter().zip(&drafts).filter(|(_, drafts)| **drafts).map(|(request, _)| request);
    let lengths = policy.lengths(drafting.map(block)).to_vec();
    let (joined, contexts) = (lengths.len(), lengths.len() * (prompts.block_size + 1));
    let mut lengths = lengths.into_iter();
    let (mut step, mut waiting) = (Step { drafted: true, ..Step::default() }, 0);
    for (request, drafts) in requests.iter_mut().zip(drafts) {
        let mut committed = 1;
        if drafts {
            waiting += std::mem::take(&mut request.waiting);
            let length = lengths.next().unwrap_or(0);
            let round = request.round(prompts);
            policy.judged(length, length.min(round.accepted));
            committed = round.commits(length);
            step.rounds += 1;
            step.round_tokens += committed as u64;
            step.sent += length;
        }
        step.committed += committed;
        step.sent += 1;
        request.say(committed);
    }
    step.seconds = table.verify_seconds(requests.len(), step.sent)
        + table.draft_seconds(joined, stopping.slots.min(prompts.block_size));
    // A round's own features are part of what drafting was measured with.
    let caught_up = if waiting > contexts { waiting } else { 0 };
    let catching_up = caught_up as f64 * table.context_seconds();
    policy.caught_up(caught_up, Duration::from_secs_f64(catching_up));
    policy.drafted(step.committed, Duration::from_secs_f64(step.seconds));
    step.seconds += catching_up;
    step
}

/// Outcome of one simulated step.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    drafted: bool,
    committed: usize,
    /// Tokens that went through the target.
    sent: usize,
    seconds: f64,
    rounds: u64,
    round_tokens: u64,
}

#[derive(Default)]
struct Sums {
    steps: f64,
    drafted_steps: f64,
    seconds: f64,
    committed: f64,
    sent: f64,
    rounds: u64,
    round_tokens: u64,
}

impl Sums {
    fn add(&mut self, step: Step) {
        self.steps += 1.0;
        self.drafted_steps += f64::from(u8::from(step.drafted));
        self.seconds += step.seconds;
        self.committed += step.committed as f64;
        self.sent += step.sent as f64;
        self.rounds += step.rounds;
        self.round_tokens += step.round_tokens;
    }
}

/// A request that is being answered: a cursor in its prompt's rounds.
struct Request {
    id: u64,
    prompt: usize,
    round: usize,
    /// Tokens that the draft's context lacks.
    waiting: usize,
    /// Tokens of the answer so far.
    said: usize,
}

impl Request {
    /// Begins anywhere in the trace, every round being as likely.
    fn begin(id: u64, prompts: &Prompts, generator: &mut ChaCha8Rng) -> Self {
        let total: usize = prompts.prompts.iter().map(|prompt| prompt.rounds.len()).sum();
        let mut round = generator.random_range(0..total);
        let mut prompt = 0;
        while round >= prompts.prompts[prompt].rounds.len() {
            round -= prompts.prompts[prompt].rounds.len();
            prompt += 1;
        }
        Self { id, prompt, round, waiting: 1, said: 1 }
    }

    fn round<'a>(&self, prompts: &'a Prompts) -> &'a Replayed {
        &prompts.prompts[self.prompt].rounds[self.round]
    }

    fn candidate(&self, prompts: &Prompts) -> Candidate {
        let remaining = prompts.prompts[self.prompt].limit.saturating_sub(self.said).max(2);
        Candidate { request: self.id, decoding: true, waiting: self.waiting, remaining }
    }

    /// Tokens were committed.
    fn say(&mut self, tokens: usize) {
        self.said += tokens;
        self.waiting += tokens;
    }

    /// On to the next round. At the end of a prompt's rounds another request takes the place, with a number that is `places`
    /// higher.
    fn advance(&mut self, prompts: &Prompts, places: u64, policy: &mut Policy) {
        self.round += 1;
        let rounds = &prompts.prompts[self.prompt].rounds;
        if self.round == rounds.len() {
            policy.answered(rounds.iter().map(|round| round.commits(usize::MAX)).sum());
            let prompt = (self.prompt + 1) % prompts.prompts.len();
            let waiting = prompts.prompts[prompt].tokens.max(1);
            *self = Self { id: self.id + places, prompt, round: 0, waiting, said: 1 };
        }
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
                prompt_tokens: 0,
                max_new_tokens: 0,
                draft: None,
            }
        };
        (0..64).map(round).collect()
    }

    /// A step takes a second up to eight tokens and one more for each eighth beyond; drafting a tenth per request.
    fn table() -> SpsTable {
        let batch_tokens: Vec<usize> = (1..=512).collect();
        let steps_per_second = batch_tokens.iter().map(|&tokens| 8.0 / (tokens as f64).max(8.0)).collect();
        let draft =
            DraftCost { requests: vec![1, 2], slots: vec![1], seconds: vec![vec![0.1, 0.2]], context_seconds: 0.0 };
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
            // Under light load everything is verified that may be accepted, but for the plain steps that drafting is compared with.
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
