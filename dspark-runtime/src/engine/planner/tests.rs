use super::*;
use crate::schedule::StepCost;

/// A machine on which up to eight tokens cost what one does.
fn planner(mode: Mode) -> Planner {
    let cost = StepCost::Probes { batch_tokens: vec![1, 9], steps_per_second: vec![100.0, 50.0], per_request: None };
    Planner::new(mode, Some(SpsTable::new(cost, 64, None, None)), None, 7)
}

/// Requests whose contexts lack nothing.
fn drafting(planner: &mut Planner, requests: impl IntoIterator<Item = u64>) -> Option<Drafting> {
    let candidates: Vec<Candidate> =
        requests.into_iter().map(|id| Candidate { id, waiting: 1, remaining: 1000 }).collect();
    planner.drafting(candidates.len(), candidates)
}

fn plain(planner: &mut Planner, steps: usize) {
    for _ in 0..steps {
        assert_eq!(drafting(planner, [1]), None);
        planner.decoded_plainly(1, Duration::from_millis(10));
    }
}

fn drafted(confidences: &[f64]) -> Drafted {
    let tokens = vec![0; confidences.len() - 1];
    Drafted { tokens, distributions: Vec::new(), confidences: confidences.to_vec(), on_device: None }
}

#[test]
fn plain_steps_are_timed_before_anything_is_drafted_and_from_time_to_time() {
    let mut planner = planner(Mode::Scheduled);
    plain(&mut planner, TIMED as usize);
    for _ in 0..COMPARED_EVERY {
        assert!(drafting(&mut planner, [1]).is_some());
        planner.lengths([&drafted(&[0.9, 0.9, 0.9])]);
        planner.drafted(3, Duration::from_millis(12));
    }
    plain(&mut planner, 1);
    assert!(drafting(&mut planner, [1]).is_some());
    // A number of requests that is far from this one has other times.
    assert_eq!(drafting(&mut planner, [1, 2]), None);
}

#[test]
fn numbers_of_requests_that_are_alike_share_what_is_known() {
    let groups: Vec<u32> = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16].map(like_numbers).to_vec();
    assert_eq!(groups, [0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]);
    let mut planner = planner(Mode::Scheduled);
    // Never twice the same number, as where clients come and go.
    for requests in [8, 9] {
        assert_eq!(drafting(&mut planner, 0..requests), None);
        planner.decoded_plainly(requests as usize, Duration::from_millis(10));
    }
    assert!(drafting(&mut planner, 0..10).is_some());
    // At nine tokens the curve halves its speed: 15 ms at half the way from one, 20 ms from there on.
    for (requests, expected) in [(5, 0.015), (9, 0.02), (40, 0.02)] {
        let curve = planner.curve.as_ref().unwrap();
        assert!((curve.plain_seconds_between(requests) - expected).abs() < 1e-12);
    }
}

/// A draft that pays is not given up because the step before had fewer requests and was faster.
#[test]
fn a_round_is_compared_with_plain_steps_of_as_many_requests() {
    let cost = StepCost::Probes { batch_tokens: vec![4, 6], steps_per_second: vec![100.0, 50.0], per_request: None };
    let mut planner = Planner::new(Mode::Scheduled, Some(SpsTable::new(cost, 64, None, None)), None, 7);
    for _ in 0..TIMED {
        assert_eq!(drafting(&mut planner, 0..4), None);
        planner.decoded_plainly(4, Duration::from_millis(10));
    }
    // Five requests take 15 ms plainly; with drafts 17 ms for a fifth more tokens: just worth it.
    for _ in 0..100 {
        assert!(drafting(&mut planner, 0..5).is_some());
        let blocks = vec![drafted(&[0.5, 0.5, 0.5]); 5];
        planner.lengths(&blocks);
        planner.drafted(6, Duration::from_millis(17));
    }
}

#[test]
fn a_draft_that_does_not_pay_is_soon_left_alone() {
    let mut planner = planner(Mode::Scheduled);
    plain(&mut planner, TIMED as usize);
    let mut rounds = 0;
    for _ in 0..200 {
        if drafting(&mut planner, [1]).is_some() {
            // Sure of itself, and wrong: one token in twice the time.
            planner.lengths([&drafted(&[0.9, 0.9, 0.9])]);
            planner.drafted(1, Duration::from_millis(20));
            rounds += 1;
        } else {
            planner.decoded_plainly(1, Duration::from_millis(10));
        }
    }
    assert!((1..=12).contains(&rounds), "{rounds} of 200 rounds drafted");
}

#[test]
fn contexts_that_catch_up_put_the_next_try_off() {
    let second_try = |catching_up: u64| {
        let mut planner = planner(Mode::Scheduled);
        let mut tries = Vec::new();
        for step in 0..400 {
            if drafting(&mut planner, [1]).is_some() {
                planner.lengths([&drafted(&[0.9, 0.9, 0.9])]);
                planner.caught_up(0, Duration::from_millis(if tries.is_empty() { catching_up } else { 0 }));
                planner.drafted(1, Duration::from_millis(20));
                tries.push(step);
            } else {
                planner.decoded_plainly(1, Duration::from_millis(10));
            }
        }
        tries.windows(2).find(|pair| pair[1] > pair[0] + 1).map(|pair| pair[1] - pair[0] - 1)
    };
    // Three rounds lost a step each, of 10 ms; so did the context, in 15 ms, one and a half.
    assert_eq!(second_try(0), Some(192));
    assert_eq!(second_try(15), Some(288));
}

#[test]
fn blocks_are_drafted_as_far_as_they_were_verified_and_one_further() {
    let mut planner = planner(Mode::Scheduled);
    plain(&mut planner, TIMED as usize);
    let mut slots = Vec::new();
    for _ in 0..16 {
        let drafting = drafting(&mut planner, [1]).unwrap();
        slots.push(drafting.slots);
        let confidences = vec![0.95; (drafting.slots + 1).min(7) + usize::from(drafting.slots == 7)];
        planner.lengths([&drafted(&confidences)]);
        planner.drafted(drafting.slots + 1, Duration::from_millis(11));
    }
    assert_eq!(slots[0], 1);
    assert!(slots.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{slots:?}");
    assert_eq!(slots.last(), Some(&7), "{slots:?}");
}

#[test]
fn a_try_begins_with_what_pays_best_by_what_is_known() {
    // A token more costs an eighth of a step. With 0.8 accepted, five commit 3.69 in 1.625 steps.
    for (acceptance, slots) in [(vec![0.8; 7], 5), (vec![0.3; 7], 1), (vec![0.9, 0.9, 0.0], 2), (Vec::new(), 1)] {
        let steps_per_second = (0..8).map(|more| 100.0 / (1.0 + 0.125 * f64::from(more))).collect();
        let cost = StepCost::Probes { batch_tokens: (1..=8).collect(), steps_per_second, per_request: None };
        let calibration = StsTable { acceptance: acceptance.clone(), ..StsTable::identity(7) };
        let table = SpsTable::new(cost, 64, None, None);
        let mut planner = Planner::new(Mode::Scheduled, Some(table), Some(calibration), 7);
        plain(&mut planner, TIMED as usize);
        assert_eq!(drafting(&mut planner, [1]).map(|drafting| drafting.slots), Some(slots), "{acceptance:?}");
        // Sure of itself, and wrong, until it is given up; what calibration saw still counts for more than these few rounds.
        let (mut plainly, mut next) = (0, None);
        for _ in 0..10_000 {
            match drafting(&mut planner, [1]) {
                Some(drafting) if plainly > 0 => next = next.or(Some(drafting.slots)),
                Some(_) => {
                    planner.lengths([&drafted(&[0.9, 0.9, 0.9])]);
                    planner.judged(2, 0);
                    planner.drafted(1, Duration::from_millis(20));
                }
                None => {
                    planner.decoded_plainly(1, Duration::from_millis(10));
                    plainly += 1;
                }
            }
            if next.is_some() {
                break;
            }
        }
        assert_eq!(next, Some(slots), "{acceptance:?}");
    }
}

#[test]
fn what_was_accepted_before_says_where_drafts_can_pay() {
    // A second token costs two thirds of a step; drafting itself nothing.
    let cost = StepCost::Probes { batch_tokens: vec![1, 2], steps_per_second: vec![100.0, 60.0], per_request: None };
    let mut planner = Planner::new(Mode::Scheduled, Some(SpsTable::new(cost, 64, None, None)), None, 1);
    plain(&mut planner, TIMED as usize);
    assert!(drafting(&mut planner, [1]).is_some());
    (0..8).for_each(|_| planner.judged(1, 0));
    assert!(drafting(&mut planner, [1]).is_none());
    (0..40).for_each(|_| planner.judged(1, 1));
    assert!(drafting(&mut planner, [1]).is_some());
}

#[test]
fn where_calibration_says_that_drafts_cannot_pay_none_is_tried() {
    let cost = StepCost::Probes { batch_tokens: vec![1, 2], steps_per_second: vec![100.0, 60.0], per_request: None };
    for (acceptance, pays) in [(0.1, false), (0.8, true)] {
        let calibration = StsTable { acceptance: vec![acceptance], ..StsTable::identity(1) };
        let table = SpsTable::new(cost.clone(), 64, None, None);
        let mut planner = Planner::new(Mode::Scheduled, Some(table), Some(calibration), 1);
        plain(&mut planner, TIMED as usize);
        assert_eq!(drafting(&mut planner, [1]).is_some(), pays);
    }
}

#[test]
fn only_the_scheduled_mode_waits() {
    assert_eq!(drafting(&mut planner(Mode::Off), [1]), None);
    assert_eq!(drafting(&mut planner(Mode::Fixed(2)), [1]).map(|drafting| drafting.slots), Some(2));
    assert_eq!(drafting(&mut planner(Mode::Threshold(0.3)), [1]).map(|drafting| drafting.confidence), Some(0.3));
    assert_eq!(drafting(&mut planner(Mode::Fixed(2)), []), None);
}

/// Eight tokens cost what one does, so a round of one request wins as much as is accepted.
#[test]
fn a_context_catches_up_where_that_will_pay() {
    let acceptance = vec![0.5; 7];
    let calibration = StsTable { acceptance, ..StsTable::identity(7) };
    let cost = StepCost::Probes { batch_tokens: vec![1, 17], steps_per_second: vec![100.0, 50.0], per_request: None };
    let table = SpsTable::new(cost, 64, None, None);
    let mut planner = Planner::new(Mode::Scheduled, Some(table), Some(calibration), 7).with_context_seconds(1e-3);
    plain(&mut planner, TIMED as usize);
    // Nearly two tokens a round in the time of one: a token of 10 ms is won in each of 10 rounds.
    let joins = |planner: &mut Planner, waiting: usize, remaining: usize| {
        planner.joining(1, &[Candidate { id: 3, waiting, remaining }]) == [3]
    };
    assert!(joins(&mut planner, 40, 20) && !joins(&mut planner, 60, 20));
    assert!(joins(&mut planner, 600, 1000), "256 tokens are expected");
    assert!(!joins(&mut planner, 700, 1000));
    (0..100).for_each(|_| planner.answered(20));
    assert!(!joins(&mut planner, 60, 1000), "answers are short");
    // A context that is up to date costs nothing.
    assert!(joins(&mut planner, 8, 2));
    // Beside another, which has half of the step, only half as much is won.
    let both = [Candidate { id: 3, waiting: 30, remaining: 20 }, Candidate { id: 4, waiting: 8, remaining: 20 }];
    for _ in 0..TIMED {
        planner.decoded_plainly(2, Duration::from_millis(10));
    }
    assert_eq!(planner.joining(2, &both), [4]);
    let drafting = planner.drafting(2, both).unwrap();
    assert!(drafting.slots > 0 && planner.drafts(4) && !planner.drafts(3));
    // What catching up really took is what counts from then on.
    planner.caught_up(100, Duration::from_millis(1));
    (0..40).for_each(|_| planner.caught_up(100, Duration::from_millis(1)));
    assert!(joins(&mut planner, 600, 20));
}

#[test]
fn of_a_draft_that_is_not_known_one_request_learns() {
    let mut planner = planner(Mode::Scheduled).with_context_seconds(1e-6);
    for _ in 0..TIMED {
        planner.decoded_plainly(3, Duration::from_millis(10));
    }
    let candidates = [90, 40, 70].into_iter().zip(1..).map(|(waiting, id)| Candidate { id, waiting, remaining: 100 });
    assert!(planner.drafting(3, candidates.clone()).is_some());
    assert_eq!(planner.requests, [2]);
    planner.lengths([&drafted(&[0.9, 0.9])]);
    planner.judged(1, 1);
    planner.drafted(4, Duration::from_millis(10));
    assert!(planner.drafting(3, candidates).is_some());
    assert_eq!(planner.requests, [1, 2, 3]);
}
