use super::super::pace::TIMED;
use super::*;
use crate::schedule::StepCost;

fn table(batch_tokens: Vec<usize>, steps_per_second: Vec<f64>) -> Option<Arc<SpsTable>> {
    let cost = StepCost::Probes { batch_tokens, steps_per_second, per_request: None };
    Some(Arc::new(SpsTable::new(cost, 64, None, None)))
}

fn calibration(acceptance: Vec<f64>) -> Option<Arc<StsTable>> {
    let identity = StsTable::identity(acceptance.len());
    Some(Arc::new(StsTable { acceptance, ..identity }))
}

/// A machine on which up to eight tokens cost what one does.
fn policy(mode: Mode) -> Policy {
    Policy::new(mode, table(vec![1, 9], vec![100.0, 50.0]), None, 7)
}

fn candidate(request: u64, waiting: usize, remaining: usize) -> Candidate {
    Candidate { request, decoding: true, waiting, remaining }
}

/// Requests whose contexts lack nothing.
fn step(policy: &mut Policy, requests: impl IntoIterator<Item = u64>) -> Option<Stopping> {
    let candidates: Vec<Candidate> = requests.into_iter().map(|request| candidate(request, 1, 1000)).collect();
    policy.step(&candidates)
}

/// Blocks with confidences for one position more than they have tokens.
fn lengths(policy: &mut Policy, blocks: &[&[f64]]) -> Vec<usize> {
    policy.lengths(blocks.iter().map(|confidences| (*confidences, confidences.len() - 1))).to_vec()
}

fn plain(policy: &mut Policy, steps: usize) {
    for _ in 0..steps {
        assert_eq!(step(policy, [1]), None);
        policy.decoded_plainly(1, Duration::from_millis(10));
    }
}

#[test]
fn plain_steps_are_timed_before_anything_is_drafted_and_from_time_to_time() {
    let mut policy = policy(Mode::Scheduled);
    plain(&mut policy, TIMED as usize);
    for _ in 0..COMPARED_EVERY {
        assert!(step(&mut policy, [1]).is_some());
        lengths(&mut policy, &[&[0.9, 0.9, 0.9]]);
        policy.drafted(3, Duration::from_millis(12));
    }
    plain(&mut policy, 1);
    assert!(step(&mut policy, [1]).is_some());
    // A number of requests that is far from this one has other times.
    assert_eq!(step(&mut policy, [1, 2]), None);
}

#[test]
fn numbers_of_requests_that_are_alike_share_what_is_known() {
    let mut policy = policy(Mode::Scheduled);
    // Never twice the same number, as where clients come and go.
    for requests in [8, 9] {
        assert_eq!(step(&mut policy, 0..requests), None);
        policy.decoded_plainly(requests as usize, Duration::from_millis(10));
    }
    assert!(step(&mut policy, 0..10).is_some());
    // At nine tokens the curve halves its speed: 15 ms at half the way from one, 20 ms from there on.
    for (requests, expected) in [(5, 0.015), (9, 0.02), (40, 0.02)] {
        let curve = policy.table.as_ref().unwrap();
        assert!((curve.plain_seconds_between(requests) - expected).abs() < 1e-12);
    }
}

/// A draft that pays is not given up because the step before had fewer requests and was faster.
#[test]
fn a_round_is_compared_with_plain_steps_of_as_many_requests() {
    let mut policy = Policy::new(Mode::Scheduled, table(vec![4, 6], vec![100.0, 50.0]), None, 7);
    for _ in 0..TIMED {
        assert_eq!(step(&mut policy, 0..4), None);
        policy.decoded_plainly(4, Duration::from_millis(10));
    }
    // Five requests take 15 ms plainly; with drafts 17 ms for a fifth more tokens: just worth it.
    for _ in 0..100 {
        assert!(step(&mut policy, 0..5).is_some());
        lengths(&mut policy, &[&[0.5, 0.5, 0.5][..]; 5]);
        policy.drafted(6, Duration::from_millis(17));
    }
}

#[test]
fn a_draft_that_does_not_pay_is_soon_left_alone() {
    let mut policy = policy(Mode::Scheduled);
    plain(&mut policy, TIMED as usize);
    let mut rounds = 0;
    for _ in 0..200 {
        if step(&mut policy, [1]).is_some() {
            // Sure of itself, and wrong: one token in twice the time.
            lengths(&mut policy, &[&[0.9, 0.9, 0.9]]);
            policy.drafted(1, Duration::from_millis(20));
            rounds += 1;
        } else {
            policy.decoded_plainly(1, Duration::from_millis(10));
        }
    }
    assert!((1..=12).contains(&rounds), "{rounds} of 200 rounds drafted");
}

#[test]
fn contexts_that_catch_up_put_the_next_try_off() {
    let second_try = |catching_up: u64| {
        let mut policy = policy(Mode::Scheduled);
        let mut tries = Vec::new();
        for at in 0..400 {
            if step(&mut policy, [1]).is_some() {
                lengths(&mut policy, &[&[0.9, 0.9, 0.9]]);
                policy.caught_up(0, Duration::from_millis(if tries.is_empty() { catching_up } else { 0 }));
                policy.drafted(1, Duration::from_millis(20));
                tries.push(at);
            } else {
                policy.decoded_plainly(1, Duration::from_millis(10));
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
    let mut policy = policy(Mode::Scheduled);
    plain(&mut policy, TIMED as usize);
    let mut slots = Vec::new();
    for _ in 0..16 {
        let stopping = step(&mut policy, [1]).unwrap();
        slots.push(stopping.slots);
        let confidences = vec![0.95; (stopping.slots + 1).min(7) + usize::from(stopping.slots == 7)];
        lengths(&mut policy, &[&confidences]);
        policy.drafted(stopping.slots + 1, Duration::from_millis(11));
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
        let table = table((1..=8).collect(), steps_per_second);
        let mut policy = Policy::new(Mode::Scheduled, table, calibration(acceptance.clone()), 7);
        plain(&mut policy, TIMED as usize);
        assert_eq!(step(&mut policy, [1]).map(|stopping| stopping.slots), Some(slots), "{acceptance:?}");
        // Sure of itself, and wrong, until it is given up; what calibration saw still counts for more than these few rounds.
        let (mut plainly, mut next) = (0, None);
        for _ in 0..10_000 {
            match step(&mut policy, [1]) {
                Some(stopping) if plainly > 0 => next = next.or(Some(stopping.slots)),
                Some(_) => {
                    lengths(&mut policy, &[&[0.9, 0.9, 0.9]]);
                    policy.judged(2, 0);
                    policy.drafted(1, Duration::from_millis(20));
                }
                None => {
                    policy.decoded_plainly(1, Duration::from_millis(10));
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
    let mut policy = Policy::new(Mode::Scheduled, table(vec![1, 2], vec![100.0, 60.0]), None, 1);
    plain(&mut policy, TIMED as usize);
    assert!(step(&mut policy, [1]).is_some());
    (0..8).for_each(|_| policy.judged(1, 0));
    assert!(step(&mut policy, [1]).is_none());
    (0..40).for_each(|_| policy.judged(1, 1));
    assert!(step(&mut policy, [1]).is_some());
}

#[test]
fn where_calibration_says_that_drafts_cannot_pay_none_is_tried() {
    for (acceptance, pays) in [(0.1, false), (0.8, true)] {
        let table = table(vec![1, 2], vec![100.0, 60.0]);
        let mut policy = Policy::new(Mode::Scheduled, table, calibration(vec![acceptance]), 1);
        plain(&mut policy, TIMED as usize);
        assert_eq!(step(&mut policy, [1]).is_some(), pays);
    }
}

#[test]
fn only_the_scheduled_mode_waits() {
    assert_eq!(step(&mut policy(Mode::Off), [1]), None);
    assert_eq!(step(&mut policy(Mode::Fixed(2)), [1]).map(|stopping| stopping.slots), Some(2));
    assert_eq!(step(&mut policy(Mode::Threshold(0.3)), [1]).map(|stopping| stopping.confidence), Some(0.3));
    assert_eq!(step(&mut policy(Mode::Fixed(2)), []), None);
}

/// Eight tokens cost what one does, so a round of one request wins as much as is accepted.
#[test]
fn a_context_catches_up_where_that_will_pay() {
    let table = table(vec![1, 17], vec![100.0, 50.0]);
    let mut policy = Policy::new(Mode::Scheduled, table, calibration(vec![0.5; 7]), 7);
    policy.joining = Joining::new(1e-3);
    plain(&mut policy, TIMED as usize);
    // Nearly two tokens a round in the time of one: a token of 10 ms is won in each of 10 rounds.
    let joins = |policy: &mut Policy, waiting: usize, remaining: usize| {
        let table = policy.table.clone().unwrap();
        policy.drafts = vec![false];
        policy.join(&table, &[candidate(3, waiting, remaining)]);
        policy.requests == [3]
    };
    assert!(joins(&mut policy, 40, 20) && !joins(&mut policy, 60, 20));
    assert!(joins(&mut policy, 600, 1000), "256 tokens are expected");
    assert!(!joins(&mut policy, 700, 1000));
    (0..100).for_each(|_| policy.answered(20));
    assert!(!joins(&mut policy, 60, 1000), "answers are short");
    // A context that is up to date costs nothing.
    assert!(joins(&mut policy, 8, 2));
    // Beside another, which has half of the step, only half as much is won.
    let both = [candidate(3, 30, 20), candidate(4, 8, 20)];
    for _ in 0..TIMED {
        policy.decoded_plainly(2, Duration::from_millis(10));
    }
    assert!(policy.step(&both).unwrap().slots > 0);
    assert_eq!(policy.drafts(), [false, true]);
    // What catching up really took is what counts from then on.
    (0..41).for_each(|_| policy.caught_up(100, Duration::from_millis(1)));
    assert!(joins(&mut policy, 600, 20));
}

#[test]
fn of_a_draft_that_is_not_known_one_request_learns() {
    let mut policy = policy(Mode::Scheduled);
    policy.joining = Joining::new(1e-6);
    for _ in 0..TIMED {
        policy.decoded_plainly(3, Duration::from_millis(10));
    }
    let candidates = [candidate(1, 90, 100), candidate(2, 40, 100), candidate(3, 70, 100)];
    assert!(policy.step(&candidates).is_some());
    assert_eq!(policy.requests, [2]);
    lengths(&mut policy, &[&[0.9, 0.9]]);
    policy.judged(1, 1);
    policy.drafted(4, Duration::from_millis(10));
    assert!(policy.step(&candidates).is_some());
    assert_eq!(policy.requests, [1, 2, 3]);
}

/// Blocks of which the last position is known and not drafted, on a machine where verifying costs nothing.
fn chosen(mode: Mode, rows: &[&[f64]], batch_limit: usize) -> Vec<usize> {
    let cost = StepCost::Probes { batch_tokens: vec![1], steps_per_second: vec![100.0], per_request: None };
    let table = Arc::new(SpsTable::new(cost, batch_limit, None, None));
    let mut policy = Policy::new(mode, Some(table), None, 3);
    let candidates: Vec<Candidate> = (0..rows.len() as u64).map(|request| candidate(request, 1, 100)).collect();
    policy.drafts = vec![false; rows.len()];
    policy.choose(&candidates, |_| true);
    policy.lengths(rows.iter().map(|row| (*row, row.len()))).to_vec()
}

const ROWS: [&[f64]; 4] = [&[0.9, 0.4, 0.9], &[0.6, 0.8, 0.5], &[], &[0.1]];

#[test]
fn modes_choose_prefixes() {
    assert_eq!(chosen(Mode::Off, &ROWS, 100), [0, 0, 0, 0]);
    assert_eq!(chosen(Mode::Fixed(2), &ROWS, 100), [2, 2, 0, 1]);
    assert_eq!(chosen(Mode::Threshold(0.5), &ROWS, 100), [1, 3, 0, 0]);
    assert_eq!(chosen(Mode::Scheduled, &ROWS, 100), [3, 3, 0, 1]);
}

#[test]
fn no_mode_goes_beyond_the_limit() {
    assert_eq!(chosen(Mode::Fixed(3), &ROWS, 9), [2, 2, 0, 1]);
    assert_eq!(chosen(Mode::Fixed(3), &ROWS, 10), [3, 2, 0, 1]);
    assert_eq!(chosen(Mode::Threshold(0.5), &ROWS, 6), [1, 1, 0, 0]);
    assert_eq!(chosen(Mode::Scheduled, &ROWS, 6), [1, 1, 0, 0]);
    for limit in 0..=4 {
        assert_eq!(chosen(Mode::Fixed(3), &ROWS, limit), [0, 0, 0, 0]);
    }
}

#[test]
fn only_the_scheduled_mode_is_guarded() {
    for (mode, expected) in [(Mode::Off, 0), (Mode::Fixed(1), 50), (Mode::Threshold(0.5), 50), (Mode::Scheduled, 3)] {
        let mut policy = policy(mode);
        for _ in 0..TIMED {
            policy.decoded_plainly(4, Duration::from_millis(10));
        }
        let mut drafted = 0;
        for _ in 0..50 {
            if step(&mut policy, 0..4).is_some() {
                drafted += 1;
                lengths(&mut policy, &[&[0.9, 0.9][..]; 4]);
                // 0.4 of a step lost, which counts twice for four requests.
                policy.drafted(4, Duration::from_millis(14));
            }
        }
        assert_eq!(drafted, expected, "{mode}");
    }
}

/// The last token that an answer may get is not drafted for, but its round counts where the mode drafts always.
#[test]
fn the_last_token_of_an_answer_is_a_round_where_the_mode_drafts_always() {
    let last = [candidate(1, 1, 1)];
    assert!(policy(Mode::Off).step(&last).is_none());
    let mut fixed = policy(Mode::Fixed(3));
    assert!(fixed.step(&last).is_some());
    assert_eq!(fixed.drafts(), [true]);
    let mut scheduled = policy(Mode::Scheduled);
    plain(&mut scheduled, TIMED as usize);
    assert!(scheduled.step(&last).is_none());
    // A prompt that is not complete is never drafted for.
    assert!(fixed.step(&[Candidate { decoding: false, ..candidate(2, 1, 100) }]).is_none());
}

#[test]
fn a_loss_and_its_end_are_told_with_their_numbers() {
    let mut policy = policy(Mode::Scheduled);
    plain(&mut policy, TIMED as usize);
    let mut told = Vec::new();
    let mut decode = |policy: &mut Policy, steps: usize, accepted: usize, time: u64| {
        for _ in 0..steps {
            if step(policy, [1]).is_some() {
                lengths(policy, &[&[0.9, 0.9, 0.9]]);
                policy.judged(2, accepted);
                policy.drafted(1 + accepted, Duration::from_millis(time));
            } else {
                policy.decoded_plainly(1, Duration::from_millis(10));
            }
            told.extend(policy.switched());
        }
    };
    // Nothing is accepted, and a step takes as long as two plain ones; then all is.
    decode(&mut policy, 20_000, 0, 20);
    decode(&mut policy, 20_000, 2, 10);
    let [off, on] = &told[..] else { panic!("{told:?}") };
    let numbers = |switch: &Switch| (switch.speedup.unwrap(), switch.accepted_length.unwrap());
    assert!(!off.drafts && on.drafts);
    assert!((numbers(off).0 - 0.5).abs() < 1e-9 && numbers(off).1 == 1.0, "{off}");
    assert!((numbers(on).0 - 3.0).abs() < 1e-9 && (numbers(on).1 - 3.0).abs() < 1e-9, "{on}");
}
