//! The paper's counterexample (appendix A): choosing how much to verify from what was sampled changes what is said. The
//! early stop and the number from two steps earlier do not. Counted over 100,000 draws.

#![allow(missing_docs)]

use dspark_runtime::schedule::{Asynchronous, Confidences, PrefixScheduler};
use dspark_runtime::speculate::{Distribution, SeededUniforms, Uniforms, judge};

const DRAWS: usize = 100_000;

/// Of chi-square with one degree of freedom: what is passed once in a thousand times.
const PASSED_RARELY: f64 = 10.83;

const TARGET: [f32; 2] = [0.7, 0.3];

/// Steps per second at one, two and three tokens: verifying one is not worth it, verifying two is.
fn speed(batch: usize) -> f64 {
    [1.0, 0.5, 0.45][batch - 1]
}

/// Another curve, on which verifying one token is worth it always and the second sometimes.
fn gentle(batch: usize) -> f64 {
    [1.0, 0.9, 0.7][batch - 1]
}

/// The first token is drafted from (0.5, 0.5), so that it is accepted with probability 0.8; whether the second will be
/// depends on which one it is.
fn round(uniforms: &mut SeededUniforms, choose: impl FnOnce(&Confidences) -> usize) -> u32 {
    let target = vec![Distribution::Dense(TARGET.to_vec()); 3];
    let draft = vec![Distribution::Dense(vec![0.5, 0.5]); 2];
    let drafted: Vec<u32> = draft.iter().map(|distribution| uniforms.draw(distribution)).collect();
    let mut confidences = Confidences::default();
    confidences.push([0.8, if drafted[0] == 0 { 0.9 } else { 0.0 }]);
    let length = choose(&confidences);
    let verdict = judge(&drafted[..length], &draft[..length], &target[..=length], uniforms);
    if verdict.accepted > 0 { drafted[0] } else { verdict.next }
}

/// How often the first token said is token 0, and chi-square of that against the target.
fn count(seed: u64, mut draw: impl FnMut(&mut SeededUniforms) -> u32) -> (f64, f64) {
    let mut uniforms = SeededUniforms::new(seed, 0);
    let zeros = (0..DRAWS).filter(|_| draw(&mut uniforms) == 0).count() as f64;
    let total = DRAWS as f64;
    let square = |seen: f64, share: f32| (seen - total * f64::from(share)).powi(2) / (total * f64::from(share));
    (zeros / total, square(zeros, TARGET[0]) + square(total - zeros, TARGET[1]))
}

#[test]
fn searching_on_present_confidences_biases_the_output() {
    let (mut scheduler, mut lengths) = (PrefixScheduler::default(), Vec::new());
    let (share, chi_square) = count(1, |uniforms| {
        round(uniforms, |confidences| scheduler.search(confidences, &speed, 100, &mut lengths).admitted)
    });
    assert!((share - 0.85).abs() < 0.005, "{share}");
    assert!(chi_square > 1000.0, "{chi_square}");
}

#[test]
fn the_early_stop_does_not() {
    let (mut scheduler, mut lengths) = (PrefixScheduler::default(), Vec::new());
    let mut verified = [0; 3];
    for (seed, curve) in [(2, speed as fn(usize) -> f64), (3, gentle)] {
        let (share, chi_square) = count(seed, |uniforms| {
            round(uniforms, |confidences| {
                let length = scheduler.early_stop(confidences, &curve, 100, &mut lengths).admitted;
                verified[length] += 1;
                length
            })
        });
        assert!(chi_square < PASSED_RARELY, "{share}: {chi_square}");
    }
    // On the gentle curve the second confidence did decide, about the second token.
    assert!(verified[1] > 10_000 && verified[2] > 10_000, "{verified:?}");
}

#[test]
fn the_number_from_two_steps_earlier_does_not() {
    // Every draw is the third round of a request, so that its number comes from the first.
    let mut asynchronous = Asynchronous::default();
    let mut lengths = Vec::new();
    let mut verified = [0; 3];
    let mut request = 0;
    let (share, chi_square) = count(4, |uniforms| {
        request += 1;
        for _ in 0..3 {
            asynchronous.pass();
        }
        let mut said = 0;
        for at in 0..3 {
            said = round(uniforms, |confidences| {
                asynchronous.step(&[request], confidences, &speed, 100, &mut lengths);
                if at == 2 {
                    verified[lengths[0]] += 1;
                }
                lengths[0]
            });
        }
        said
    });
    assert!(chi_square < PASSED_RARELY, "{share}: {chi_square}");
    assert!(verified[0] > 10_000 && verified[2] > 10_000, "{verified:?}");
}
