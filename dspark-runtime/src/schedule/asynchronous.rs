//! The asynchronous form (paper, section 5.2): how much to verify comes from two steps ago, what to verify from now.
//!
//! While the device computes a step, the host has the confidences of earlier steps only. The number of draft tokens of
//! step `t` is therefore searched on the confidences of step `t - 2`, without early stop, because nothing of step `t`
//! can leak into it. Step `t` then verifies that number of its own most likely tokens.

use super::confidences::Confidences;
use super::prefix::{PrefixScheduler, SpeedCurve};

/// Number of steps whose confidences are kept: of any two, one is at least two steps old at the next step.
const KEPT: usize = 2;

/// Prefix lengths by the confidences of two steps earlier, for a changing set of requests.
///
/// If requests started or ended in between, each remaining request counts with its own old survival, and each new one
/// with the mean of the old ones. The number is counted in draft tokens, and the speed curve uses the current number of
/// requests. [`pass`](Self::pass) reports steps without drafting; the earlier confidences are then simply older.
/// Nothing is allocated once the buffers have grown.
#[derive(Clone, Debug, Default)]
pub struct Asynchronous {
    scheduler: PrefixScheduler,
    step: u64,
    /// The latest first.
    kept: [Snapshot; KEPT],
    /// The old confidences as the present requests see them.
    carried: Confidences,
    mean: Vec<f64>,
    unused: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Snapshot {
    /// The step at which it was recorded; `None` before the first.
    step: Option<u64>,
    requests: Vec<u64>,
    confidences: Confidences,
}

impl Asynchronous {
    /// Returns the number of draft tokens that the current step may verify, computed from a step at least two steps
    /// old; `None` if there is none yet. It can be called before the step's own confidences are known.
    ///
    /// `requests` are numbers that a request keeps as long as it lives and no other one gets.
    pub fn capacity(&mut self, requests: &[u64], curve: &impl SpeedCurve, batch_limit: usize) -> Option<usize> {
        let old = |snapshot: &&Snapshot| snapshot.step.is_some_and(|step| step + KEPT as u64 <= self.step);
        let snapshot = self.kept.iter().find(old)?;
        if snapshot.requests == requests {
            return Some(self.scheduler.search(&snapshot.confidences, curve, batch_limit, &mut self.unused).admitted);
        }
        mean_confidence(&snapshot.confidences, &mut self.mean);
        self.carried.clear();
        for request in requests {
            match snapshot.requests.iter().position(|old| old == request) {
                Some(old) => self.carried.push(snapshot.confidences.confidence(old).iter().copied()),
                None => self.carried.push(self.mean.iter().copied()),
            }
        }
        Some(self.scheduler.search(&self.carried, curve, batch_limit, &mut self.unused).admitted)
    }

    /// Writes one length per request and stores the confidences. Until a step is two steps old, Algorithm 1 decides.
    pub fn step(
        &mut self,
        requests: &[u64],
        confidences: &Confidences,
        curve: &impl SpeedCurve,
        batch_limit: usize,
        lengths: &mut Vec<usize>,
    ) {
        match self.capacity(requests, curve, batch_limit) {
            Some(capacity) => {
                self.scheduler.top(confidences, capacity, batch_limit, lengths);
            }
            None => {
                self.scheduler.early_stop(confidences, curve, batch_limit, lengths);
            }
        }
        self.kept.rotate_right(1);
        let snapshot = &mut self.kept[0];
        snapshot.step = Some(self.step);
        snapshot.requests.clear();
        snapshot.requests.extend_from_slice(requests);
        snapshot.confidences.copy_from(confidences);
        self.step += 1;
    }

    /// Records a step without drafting.
    pub fn pass(&mut self) {
        self.step += 1;
    }
}

/// Per position, the mean over the rows that have it.
fn mean_confidence(confidences: &Confidences, mean: &mut Vec<f64>) {
    mean.clear();
    let rows = || (0..confidences.requests()).map(|request| confidences.confidence(request));
    for position in 0..rows().map(<[f64]>::len).max().unwrap_or(0) {
        let (mut sum, mut count) = (0.0, 0.0);
        for confidence in rows().filter_map(|row| row.get(position)) {
            sum += confidence;
            count += 1.0;
        }
        mean.push(sum / count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verifying is free up to six tokens and out of the question beyond.
    fn cliff(batch: usize) -> f64 {
        if batch <= 6 { 1.0 } else { 0.01 }
    }

    fn rows<const N: usize>(rows: [[f64; 3]; N]) -> Confidences {
        let mut confidences = Confidences::default();
        rows.iter().for_each(|row| confidences.push(*row));
        confidences
    }

    #[test]
    fn the_number_is_that_of_two_steps_earlier() {
        let mut asynchronous = Asynchronous::default();
        let mut lengths = Vec::new();
        // The number of certain tokens changes from step to step.
        for (step, certain) in [3, 1, 2, 0, 3, 2].into_iter().enumerate() {
            let mut confidences = Confidences::default();
            confidences.push((0..3).map(|position| if position < certain { 1.0 } else { 0.0 }));
            let capacity = asynchronous.capacity(&[7], &cliff, 100);
            asynchronous.step(&[7], &confidences, &cliff, 100, &mut lengths);
            let expected = [None, None, Some(3), Some(1), Some(2), Some(0)][step];
            assert_eq!(capacity, expected);
            assert_eq!(lengths, [certain.min(expected.unwrap_or(3))]);
        }
    }

    #[test]
    fn requests_come_and_go() {
        let mut asynchronous = Asynchronous::default();
        let mut lengths = Vec::new();
        let step = |asynchronous: &mut Asynchronous, ids: &[u64], confidences: Confidences, lengths: &mut _| {
            let capacity = asynchronous.capacity(ids, &cliff, 100);
            asynchronous.step(ids, &confidences, &cliff, 100, lengths);
            capacity
        };
        let (sure, hopeless) = ([1.0; 3], [0.0; 3]);
        step(&mut asynchronous, &[1, 2], rows([sure, hopeless]), &mut lengths);
        step(&mut asynchronous, &[1, 2], rows([sure, hopeless]), &mut lengths);
        // The first has gone: what is known of the second stays its own.
        assert_eq!(step(&mut asynchronous, &[2], rows([sure]), &mut lengths), Some(0));
        // A new one is taken for the mean of the old ones, 0.5 0.5 0.5, as likely as not to be worth it.
        assert_eq!(step(&mut asynchronous, &[2, 9], rows([hopeless, sure]), &mut lengths), Some(3));
        assert_eq!(lengths, [0, 3]);
        // The order does not matter. Two steps ago there was the second alone, and it was sure.
        assert_eq!(step(&mut asynchronous, &[9, 2], rows([sure, sure]), &mut lengths), Some(4));
        assert_eq!(step(&mut asynchronous, &[], Confidences::default(), &mut lengths), Some(0));
        assert!(lengths.is_empty());
    }

    #[test]
    fn as_many_requests_are_not_the_same_ones() {
        let mut asynchronous = Asynchronous::default();
        asynchronous.step(&[1, 2], &rows([[1.0; 3], [0.0; 3]]), &cliff, 100, &mut Vec::new());
        asynchronous.pass();
        // Worth it for a sure request, and not for one that is as likely as not.
        let dear = |batch: usize| if batch <= 2 { 1.0 } else { 0.6 };
        assert_eq!(asynchronous.capacity(&[1, 2], &dear, 100), Some(3));
        assert_eq!(asynchronous.capacity(&[2, 3], &dear, 100), Some(0));
    }

    #[test]
    fn plain_steps_make_the_past_older() {
        let mut asynchronous = Asynchronous::default();
        let mut lengths = Vec::new();
        asynchronous.step(&[1], &rows([[1.0; 3]]), &cliff, 100, &mut lengths);
        assert_eq!(asynchronous.capacity(&[1], &cliff, 100), None);
        asynchronous.pass();
        assert_eq!(asynchronous.capacity(&[1], &cliff, 100), Some(3));
        asynchronous.step(&[1], &rows([[0.0; 3]]), &cliff, 100, &mut lengths);
        assert_eq!(asynchronous.capacity(&[1], &cliff, 100), Some(3));
        asynchronous.pass();
        assert_eq!(asynchronous.capacity(&[1], &cliff, 100), Some(0));
    }
}
