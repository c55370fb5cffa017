//! Choosing prefixes: Algorithm 1, the search without its early stop, and the best of a fixed number.
//!
//! All three use the same list of candidates: the positions of all requests by falling survival; ties are ordered by
//! position, then by request. Survival never rises along a block, so every start of that list is a prefix of every
//! block. Positions with survival 0 are not candidates.

use super::confidences::Confidences;

/// Steps per second of the engine by the number of tokens per step, anchors included.
pub trait SpeedCurve {
    /// Steps per second at `batch_tokens >= 1`.
    fn steps_per_second(&self, batch_tokens: usize) -> f64;

    /// Returns a number of tokens up to which, from `batch_tokens` on, the speed is known to be constant. Within this
    /// range every additional token that may be accepted is worthwhile, and need not be evaluated separately.
    fn constant_until(&self, batch_tokens: usize) -> usize {
        batch_tokens
    }
}

impl<F: Fn(usize) -> f64> SpeedCurve for F {
    fn steps_per_second(&self, batch_tokens: usize) -> f64 {
        self(batch_tokens)
    }
}

/// The result of a choice of prefixes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    /// Draft tokens admitted, over all requests.
    pub admitted: usize,
    /// Expected tokens per second: (requests + sum of admitted survivals) * steps per second.
    pub theta: f64,
    /// Candidates looked at.
    pub examined: usize,
}

/// Buckets of candidates, by the logarithm of their survival: 64 for each halving, the last for all that is below.
const BUCKETS: usize = 1024;

/// Low bits of a float that are ignored to form buckets: of the 52 fraction bits, 6 remain.
const BUCKET_SHIFT: u32 = 52 - 6;

/// The three ways to choose prefixes. It owns the sort buffers, so a step does not allocate once they have grown.
///
/// `batch_limit` bounds the tokens of a step, anchors included: `requests + admitted <= max(batch_limit, requests)`.
/// `lengths` receives one length per request.
#[derive(Clone, Debug, Default)]
pub struct PrefixScheduler {
    /// The candidates, request by request.
    unsorted: Vec<u128>,
    /// The candidates by bucket; a bucket is sorted when it is reached, which few are.
    candidates: Vec<u128>,
    /// The end of each bucket.
    ends: Vec<usize>,
}

impl PrefixScheduler {
    /// Algorithm 1: admits while each candidate raises the expected tokens per second, and stops at the first that does
    /// not.
    pub fn early_stop(
        &mut self,
        confidences: &Confidences,
        curve: &impl SpeedCurve,
        batch_limit: usize,
        lengths: &mut Vec<usize>,
    ) -> Admission {
        self.walk(confidences, curve, batch_limit, true, lengths)
    }

    /// Finds the best start of the list, the shortest one among equals.
    ///
    /// On the confidences of the step that it decides on, this biases the output: see the module documentation.
    pub fn search(
        &mut self,
        confidences: &Confidences,
        curve: &impl SpeedCurve,
        batch_limit: usize,
        lengths: &mut Vec<usize>,
    ) -> Admission {
        self.walk(confidences, curve, batch_limit, false, lengths)
    }

    /// The first `capacity` candidates, or as many as there are and the limit allows; how many that is.
    pub fn top(
        &mut self,
        confidences: &Confidences,
        capacity: usize,
        batch_limit: usize,
        lengths: &mut Vec<usize>,
    ) -> usize {
        self.collect(confidences);
        let admitted = capacity.min(room(confidences, batch_limit)).min(self.candidates.len());
        let bucket = self.ends.partition_point(|end| *end <= admitted);
        if let Some(&end) = self.ends.get(bucket) {
            // The only bucket that is partly admitted.
            let start = if bucket == 0 { 0 } else { self.ends[bucket - 1] };
            self.candidates[start..end].select_nth_unstable(admitted - start);
        }
        self.write_lengths(confidences, admitted, lengths);
        admitted
    }

    fn walk(
        &mut self,
        confidences: &Confidences,
        curve: &impl SpeedCurve,
        batch_limit: usize,
        stop_at_first_drop: bool,
        lengths: &mut Vec<usize>,
    ) -> Admission {
        self.collect(confidences);
        let requests = confidences.requests();
        let mut tokens = requests as f64;
        let theta = if requests == 0 { 0.0 } else { tokens * curve.steps_per_second(requests) };
        let mut best = Admission { admitted: 0, theta, examined: 0 };
        let room = room(confidences, batch_limit);
        let mut start = 0;
        'buckets: for &end in &self.ends {
            if end <= room && start < end && requests > 0 && curve.constant_until(requests + start) >= requests + end
            {
                tokens += self.candidates[start..end].iter().map(|&candidate| survival(candidate)).sum::<f64>();
                let theta = tokens * curve.steps_per_second(requests + end);
                if theta > best.theta {
                    (best.admitted, best.theta) = (end, theta);
                }
                (best.examined, start) = (end, end);
                continue;
            }
            self.candidates[start..end].sort_unstable();
            for &candidate in &self.candidates[start..end.min(room).max(start)] {
                best.examined += 1;
                tokens += survival(candidate);
                let theta = tokens * curve.steps_per_second(requests + best.examined);
                if theta > best.theta {
                    (best.admitted, best.theta) = (best.examined, theta);
                } else if stop_at_first_drop {
                    break 'buckets;
                }
            }
            if end >= room {
                break;
            }
            start = end;
        }
        self.write_lengths(confidences, best.admitted, lengths);
        best
    }

    fn collect(&mut self, confidences: &Confidences) {
        self.unsorted.clear();
        self.ends.clear();
        self.ends.resize(BUCKETS, 0);
        for request in 0..confidences.requests() {
            for (position, &survival) in confidences.survival(request).iter().enumerate() {
                if survival <= 0.0 {
                    break;
                }
                self.ends[bucket(survival)] += 1;
                self.unsorted.push(key(survival, position, request));
            }
        }
        // First the count of each bucket becomes its start; filling moves the start to the end.
        let mut start = 0;
        for end in &mut self.ends {
            start += std::mem::replace(end, start);
        }
        self.candidates.clear();
        self.candidates.resize(self.unsorted.len(), 0);
        for &candidate in &self.unsorted {
            let end = &mut self.ends[bucket(survival(candidate))];
            self.candidates[*end] = candidate;
            *end += 1;
        }
    }

    /// The first `admitted` candidates, in any order among themselves, as lengths.
    fn write_lengths(&self, confidences: &Confidences, admitted: usize, lengths: &mut Vec<usize>) {
        lengths.clear();
        lengths.resize(confidences.requests(), 0);
        for &candidate in &self.candidates[..admitted] {
            lengths[request(candidate)] += 1;
        }
    }
}

/// Returns the number of draft tokens that fit in addition to the anchors.
fn room(confidences: &Confidences, batch_limit: usize) -> usize {
    batch_limit.saturating_sub(confidences.requests())
}

fn bucket(survival: f64) -> usize {
    (((1.0_f64.to_bits() - survival.to_bits()) >> BUCKET_SHIFT) as usize).min(BUCKETS - 1)
}

/// A candidate as one number that sorts as the list does: the bits of a positive float rise with its value, so their
/// complement falls; position and request follow.
fn key(survival: f64, position: usize, request: usize) -> u128 {
    u128::from(!survival.to_bits()) << 64 | (position as u128) << 32 | request as u128
}

fn survival(key: u128) -> f64 {
    f64::from_bits(!((key >> 64) as u64))
}

fn request(key: u128) -> usize {
    key as u32 as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A curve that reports its constant ranges.
    struct Stairs(Vec<f64>);

    impl SpeedCurve for Stairs {
        fn steps_per_second(&self, batch_tokens: usize) -> f64 {
            self.0[batch_tokens - 1]
        }

        fn constant_until(&self, batch_tokens: usize) -> usize {
            let same = self.0[batch_tokens - 1..].iter().take_while(|speed| **speed == self.0[batch_tokens - 1]);
            batch_tokens + same.count() - 1
        }
    }

    fn confidences(rows: &[Vec<f64>]) -> Confidences {
        let mut confidences = Confidences::default();
        rows.iter().for_each(|row| confidences.push(row.iter().copied()));
        confidences
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<f64>>> {
        // Zeros and ones are likely, so that ties and impossible positions are.
        let confidence = prop_oneof![1 => Just(0.0), 2 => Just(1.0), 2 => Just(0.5), 6 => 0.0..1.0];
        prop::collection::vec(prop::collection::vec(confidence, 0..5), 1..6)
    }

    /// A curve over `1..=40` tokens whose step time rises by arbitrary amounts.
    fn falling() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.0..0.5, 40).prop_map(|rises| {
            let mut seconds = 1.0;
            rises
                .iter()
                .map(|rise| {
                    seconds += rise;
                    1.0 / seconds
                })
                .collect()
        })
    }

    /// The best theta over all combinations of lengths.
    fn exhaustive(confidences: &Confidences, curve: &[f64], limit: usize) -> f64 {
        fn go(
            confidences: &Confidences,
            request: usize,
            tokens: f64,
            batch: usize,
            curve: &[f64],
            limit: usize,
        ) -> f64 {
            if batch > limit.max(confidences.requests()) {
                return 0.0;
            }
            if request == confidences.requests() {
                return tokens * curve[batch - 1];
            }
            let row = confidences.survival(request).iter().take_while(|survival| **survival > 0.0);
            let gains = std::iter::once(0.0).chain(row.scan(0.0, |sum, a| {
                *sum += a;
                Some(*sum)
            }));
            gains
                .enumerate()
                .map(|(length, gain)| go(confidences, request + 1, tokens + gain, batch + length, curve, limit))
                .fold(0.0, f64::max)
        }
        go(confidences, 0, confidences.requests() as f64, confidences.requests(), curve, limit)
    }

    /// Returns whether theta rises to one peak along the list of candidates and falls from there.
    fn is_unimodal(confidences: &Confidences, curve: &[f64], limit: usize) -> bool {
        let mut survivals: Vec<f64> =
            (0..confidences.requests()).flat_map(|request| confidences.survival(request).to_vec()).collect();
        survivals.retain(|survival| *survival > 0.0);
        survivals.sort_by(|a, b| b.total_cmp(a));
        survivals.truncate(limit.saturating_sub(confidences.requests()));
        let requests = confidences.requests();
        let mut tokens = requests as f64;
        let mut thetas = vec![tokens * curve[requests - 1]];
        for (index, survival) in survivals.iter().enumerate() {
            tokens += survival;
            thetas.push(tokens * curve[requests + index]);
        }
        let first_drop = thetas.windows(2).position(|pair| pair[1] <= pair[0]).unwrap_or(thetas.len());
        thetas[first_drop.min(thetas.len() - 1)..].windows(2).all(|pair| pair[1] <= pair[0])
    }

    proptest! {
        #[test]
        fn lengths_are_prefixes_of_likely_positions_within_the_limit(
            rows in rows(), curve in falling(), limit in 0_usize..30, capacity in 0_usize..30,
        ) {
            let confidences = confidences(&rows);
            let speed = |batch: usize| curve[batch - 1];
            let (mut scheduler, mut lengths) = (PrefixScheduler::default(), Vec::new());
            for way in 0..3 {
                let admitted = match way {
                    0 => scheduler.early_stop(&confidences, &speed, limit, &mut lengths).admitted,
                    1 => scheduler.search(&confidences, &speed, limit, &mut lengths).admitted,
                    _ => scheduler.top(&confidences, capacity, limit, &mut lengths),
                };
                prop_assert_eq!(lengths.len(), rows.len());
                prop_assert_eq!(lengths.iter().sum::<usize>(), admitted);
                prop_assert!(rows.len() + admitted <= limit.max(rows.len()));
                // No position outside is more likely than one inside, and none inside is impossible.
                let inside = (0..rows.len()).flat_map(|r| confidences.survival(r)[..lengths[r]].to_vec());
                let outside = (0..rows.len()).flat_map(|r| confidences.survival(r)[lengths[r]..].to_vec());
                let least = inside.fold(f64::INFINITY, f64::min);
                prop_assert!(least > 0.0 && outside.fold(0.0, f64::max) <= least);
            }
        }

        #[test]
        fn the_early_stop_is_optimal_on_unimodal_curves(rows in rows(), curve in falling(), limit in 0_usize..30) {
            let confidences = confidences(&rows);
            prop_assume!(is_unimodal(&confidences, &curve, limit));
            let speed = |batch: usize| curve[batch - 1];
            let got = PrefixScheduler::default().early_stop(&confidences, &speed, limit, &mut Vec::new());
            let best = exhaustive(&confidences, &curve, limit);
            prop_assert!((got.theta - best).abs() <= 1e-12 * best, "{} instead of {best}", got.theta);
        }

        #[test]
        fn the_search_is_optimal_on_every_curve(
            rows in rows(), curve in prop::collection::vec(0.1..2.0, 40), limit in 0_usize..30,
        ) {
            let confidences = confidences(&rows);
            let speed = |batch: usize| curve[batch - 1];
            let (mut scheduler, mut lengths) = (PrefixScheduler::default(), Vec::new());
            let got = scheduler.search(&confidences, &speed, limit, &mut lengths);
            let best = exhaustive(&confidences, &curve, limit);
            prop_assert!((got.theta - best).abs() <= 1e-12 * best, "{} instead of {best}", got.theta);
            let early = scheduler.early_stop(&confidences, &speed, limit, &mut lengths);
            prop_assert!(early.theta <= got.theta && early.admitted <= got.admitted);
        }

        #[test]
        fn knowing_where_a_curve_is_flat_changes_nothing(
            rows in prop::collection::vec(prop::collection::vec(0.9..1.0_f64, 0..8), 1..20),
            steps in prop::collection::vec((1_usize..40, 0.1..2.0), 200),
            limit in 0_usize..200,
        ) {
            // Many positions with nearly equal survival, which share a bucket.
            let confidences = confidences(&rows);
            let stairs = Stairs(steps.iter().flat_map(|&(width, speed)| vec![speed; width]).take(200).collect());
            let plain = |batch: usize| stairs.steps_per_second(batch);
            let (mut scheduler, mut one, mut other) = (PrefixScheduler::default(), Vec::new(), Vec::new());
            for early in [true, false] {
                let (a, b) = if early {
                    let a = scheduler.early_stop(&confidences, &stairs, limit, &mut one);
                    (a, scheduler.early_stop(&confidences, &plain, limit, &mut other))
                } else {
                    let a = scheduler.search(&confidences, &stairs, limit, &mut one);
                    (a, scheduler.search(&confidences, &plain, limit, &mut other))
                };
                prop_assert_eq!(&one, &other);
                prop_assert_eq!((a.admitted, a.examined), (b.admitted, b.examined));
                prop_assert!((a.theta - b.theta).abs() <= 1e-12 * b.theta);
            }
        }

        /// Raising the confidences of one request never shortens its own prefix.
        #[test]
        fn a_likelier_request_gets_no_shorter_prefix(
            rows in rows(), curve in falling(), limit in 0_usize..30, capacity in 0_usize..30, raise in 0.0..1.0_f64,
        ) {
            let before = confidences(&rows);
            let mut raised = rows.clone();
            raised[0].iter_mut().for_each(|confidence| *confidence += (1.0 - *confidence) * raise);
            let after = confidences(&raised);
            let speed = |batch: usize| curve[batch - 1];
            let (mut scheduler, mut old, mut new) = (PrefixScheduler::default(), Vec::new(), Vec::new());
            scheduler.top(&before, capacity, limit, &mut old);
            scheduler.top(&after, capacity, limit, &mut new);
            prop_assert!(new[0] >= old[0]);
            if is_unimodal(&before, &curve, limit) && is_unimodal(&after, &curve, limit) {
                scheduler.early_stop(&before, &speed, limit, &mut old);
                scheduler.early_stop(&after, &speed, limit, &mut new);
                prop_assert!(new[0] >= old[0], "{old:?} became {new:?}");
            }
        }
    }

    #[test]
    fn only_the_search_looks_past_a_drop_and_neither_takes_more_for_nothing() {
        // The paper's counterexample (appendix A), and one in which a token is worth exactly what it costs.
        let (mut scheduler, mut lengths) = (PrefixScheduler::default(), Vec::new());
        for (row, speeds, early, searched) in
            [(vec![0.8, 0.9], [1.0, 0.5, 0.45], 0, 2), (vec![1.0, 0.5], [1.0, 0.5, 0.4], 0, 0)]
        {
            let confidences = confidences(&[row]);
            let speed = |batch: usize| speeds[batch - 1];
            assert_eq!(scheduler.early_stop(&confidences, &speed, 100, &mut lengths).admitted, early);
            assert_eq!(scheduler.search(&confidences, &speed, 100, &mut lengths).admitted, searched);
        }
    }

    #[test]
    fn the_likelier_of_nearly_equal_ones_comes_first() {
        let confidences = confidences(&[vec![0.9], vec![0.9001], vec![0.9002]]);
        let mut lengths = Vec::new();
        PrefixScheduler::default().top(&confidences, 1, 100, &mut lengths);
        assert_eq!(lengths, [0, 0, 1]);
        PrefixScheduler::default().top(&confidences, 2, 100, &mut lengths);
        assert_eq!(lengths, [0, 1, 1]);
    }

    #[test]
    fn without_requests_there_is_nothing_to_do() {
        let mut lengths = vec![3];
        let got = PrefixScheduler::default().early_stop(&Confidences::default(), &|_| 1.0, 8, &mut lengths);
        assert_eq!((got.admitted, got.theta, lengths), (0, 0.0, Vec::new()));
    }
}
