//! The result of a round: acceptance test and counting, on plain numbers.

use super::distribution::Distribution;
use super::uniforms::Uniforms;

/// The target's verdict on a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Draft tokens kept.
    pub accepted: usize,
    /// The token after them: sampled from the residual after a rejection, else from the target's last row.
    pub next: u32,
}

/// The acceptance test of speculative sampling: token `x` at slot `j` is kept with probability
/// `min(1, target_j(x) / draft_j(x))`. After the first rejection, the next token is sampled from the residual of that
/// slot. If all are kept, it is sampled from the target's row after the last one.
///
/// `target` has one distribution more than there are drafted tokens. Draws one number per drafted token, then one.
pub fn judge(
    drafted: &[u32],
    draft: &[Distribution],
    target: &[Distribution],
    uniforms: &mut dyn Uniforms,
) -> Verdict {
    let draws: Vec<f64> = drafted.iter().map(|_| uniforms.next()).collect();
    let keeps = |slot: usize| {
        let token = drafted[slot];
        is_kept(draws[slot], target[slot].probability(token), draft[slot].probability(token))
    };
    let accepted = (0..drafted.len()).take_while(|&slot| keeps(slot)).count();
    let u = uniforms.next();
    let next = if accepted < drafted.len() {
        target[accepted].residual(&draft[accepted]).sample(u)
    } else {
        target[accepted].sample(u)
    };
    Verdict { accepted, next }
}

/// Returns true with probability `min(1, target / draft)`, given a uniform number.
fn is_kept(u: f64, target: f64, draft: f64) -> bool {
    u * draft < target
}

/// The inputs of the acceptance test for distributions on a device: one entry per drafted token, and one more in
/// `next`.
#[derive(Clone, Copy, Debug)]
pub struct JudgedShares<'a> {
    /// The drafted tokens' probabilities in the target's distributions.
    pub target: &'a [f32],
    /// The probabilities of the drafted tokens in the draft's distributions.
    pub draft: &'a [f32],
    /// A token of each slot's residual, and one of the target's row after the last slot.
    pub next: &'a [u32],
}

impl JudgedShares<'_> {
    /// The acceptance test of [`judge`].
    pub(super) fn judge(&self, uniforms: &mut dyn Uniforms) -> Verdict {
        let draws: Vec<f64> = self.next[1..].iter().map(|_| uniforms.next()).collect();
        let keeps = |&slot: &usize| is_kept(draws[slot], self.target[slot].into(), self.draft[slot].into());
        let accepted = (0..draws.len()).take_while(keeps).count();
        Verdict { accepted, next: self.next[accepted] }
    }
}

/// The accepted length (tau): tokens that rounds committed within the limit of new tokens, per round; `None` without rounds.
/// The module's documentation defines what counts. Every report of the project computes it here.
pub fn accepted_length(committed_tokens: u64, rounds: u64) -> Option<f64> {
    (rounds > 0).then(|| committed_tokens as f64 / rounds as f64)
}

/// One round as it is counted. See the module's documentation for the definition of the accepted length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundRecord {
    /// Number of verified draft tokens; those after an accepted stop token do not count.
    pub proposed: usize,
    /// Draft tokens kept.
    pub accepted: usize,
    /// Tokens committed: accepted ones, and the target's own unless a stop token ended the round before it.
    pub committed: usize,
    /// Committed tokens within the limit of new tokens: what the accepted length counts.
    pub counted: usize,
    /// True if a stop token was committed (within the limit or not).
    pub stopped: bool,
}

impl RoundRecord {
    /// Counts a round and returns it with the tokens to append.
    ///
    /// `remaining` is how many tokens the limit still allows.
    pub fn close(drafted: &[u32], verdict: &Verdict, stop: &[u32], remaining: usize) -> (Self, Vec<u32>) {
        let kept = &drafted[..verdict.accepted];
        let (mut tokens, proposed, stopped) = match kept.iter().position(|token| stop.contains(token)) {
            Some(at) => (kept[..=at].to_vec(), at + 1, true),
            None => {
                let tokens: Vec<u32> = kept.iter().copied().chain([verdict.next]).collect();
                (tokens, drafted.len(), stop.contains(&verdict.next))
            }
        };
        let accepted = verdict.accepted.min(proposed);
        let committed = tokens.len();
        tokens.truncate(remaining);
        (Self { proposed, accepted, committed, counted: tokens.len(), stopped }, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: [u32; 1] = [9];

    fn close(drafted: &[u32], accepted: usize, next: u32, remaining: usize) -> (RoundRecord, Vec<u32>) {
        RoundRecord::close(drafted, &Verdict { accepted, next }, &STOP, remaining)
    }

    #[test]
    fn an_ordinary_round_commits_accepted_tokens_and_one_more() {
        let (round, tokens) = close(&[1, 2, 3], 2, 7, 100);
        assert_eq!(tokens, [1, 2, 7]);
        assert_eq!(round, RoundRecord { proposed: 3, accepted: 2, committed: 3, counted: 3, stopped: false });
    }

    #[test]
    fn an_accepted_stop_token_ends_the_round_without_a_bonus() {
        let (round, tokens) = close(&[1, 9, 3], 3, 7, 100);
        assert_eq!(tokens, [1, 9]);
        assert_eq!(round, RoundRecord { proposed: 2, accepted: 2, committed: 2, counted: 2, stopped: true });
    }

    #[test]
    fn a_rejected_stop_token_does_not_stop() {
        let (round, tokens) = close(&[1, 9, 3], 1, 7, 100);
        assert_eq!(tokens, [1, 7]);
        assert_eq!(round, RoundRecord { proposed: 3, accepted: 1, committed: 2, counted: 2, stopped: false });
    }

    #[test]
    fn a_stop_token_as_bonus_counts() {
        let (round, tokens) = close(&[1, 2, 3], 1, 9, 100);
        assert_eq!(tokens, [1, 9]);
        assert_eq!(round, RoundRecord { proposed: 3, accepted: 1, committed: 2, counted: 2, stopped: true });
    }

    #[test]
    fn tokens_beyond_the_limit_do_not_count() {
        let (round, tokens) = close(&[1, 2, 3], 3, 7, 2);
        assert_eq!(tokens, [1, 2]);
        assert_eq!(round, RoundRecord { proposed: 3, accepted: 3, committed: 4, counted: 2, stopped: false });
    }

    #[test]
    fn an_empty_proposal_commits_one_token() {
        let (round, tokens) = close(&[], 0, 7, 100);
        assert_eq!(tokens, [7]);
        assert_eq!(round, RoundRecord { proposed: 0, accepted: 0, committed: 1, counted: 1, stopped: false });
    }

    #[derive(Debug)]
    struct Fixed(Vec<f64>);

    impl Uniforms for Fixed {
        fn next(&mut self) -> f64 {
            self.0.remove(0)
        }
    }

    #[test]
    fn the_test_divides_by_the_draft_and_resamples_from_the_residual() {
        let draft = vec![Distribution::Dense(vec![0.5, 0.5]); 2];
        let target = vec![Distribution::Dense(vec![0.25, 0.75]); 3];
        // Token 0 is kept below 0.25 / 0.5.
        let verdict = judge(&[0, 1], &draft, &target, &mut Fixed(vec![0.49, 0.99, 0.0]));
        assert_eq!(verdict, Verdict { accepted: 2, next: 0 });
        let verdict = judge(&[0, 1], &draft, &target, &mut Fixed(vec![0.51, 0.0, 0.0]));
        assert_eq!(verdict, Verdict { accepted: 0, next: 1 });
    }
}
