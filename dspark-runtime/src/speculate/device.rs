//! Sampling and judging of tokens on the device that holds their logits: a row of logits has hundreds of kilobytes, its
//! result a few bytes. Used for devices with their own memory, and sequences without seed and filters.
//!
//! The device samples a token of a distribution `p` as the winner of the race `argmax_v p_v / E_v`, with exponential
//! variables from its own generator (see [`super::coupling`], where they come from a seed). The host can therefore
//! queue the next draw before it has read the previous one. For the acceptance test the device returns the
//! probabilities of the drafted tokens in both distributions. For every row it also returns a token in case the
//! sequence ends there: from the residual of a drafted slot, or from the target itself. The host draws the uniform
//! numbers that decide.
//!
//! Legend: `b` sequences, `s` slots, `r` rows of the target, `n` rows of the draft, `v` vocabulary, `u` tokens that the draft
//! can propose.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Distribution as Numbers, Int, Tensor, TensorData};

use super::distribution::{NO_RESIDUAL, is_greedy};
use crate::model::DraftVocabulary;
use crate::tensors::ints;

/// The distributions that tokens of blocks were sampled from on the device.
#[derive(Clone, Debug)]
pub struct DeviceDistributions {
    /// The distributions of all blocks that were drafted together, `[b, s, u]`.
    blocks_bsu: Tensor<3>,
    /// The index of this block among them.
    block: usize,
}

impl DeviceDistributions {
    pub(super) fn new(blocks_bsu: Tensor<3>, block: usize) -> Self {
        Self { blocks_bsu, block }
    }

    /// Returns the distributions of all blocks, `[n, u]`.
    pub fn all(&self) -> Tensor<2> {
        let [b, s, u] = self.blocks_bsu.dims();
        self.blocks_bsu.clone().reshape([b * s, u])
    }

    /// Returns the row of a slot of this block in [`all`](Self::all).
    pub fn row(&self, slot: usize) -> usize {
        self.block * self.blocks_bsu.dims()[1] + slot
    }
}

/// Chooses one token per sequence and slot: the most likely one at temperature 0, else a sample.
pub(super) struct Chooser {
    /// `1 / temperature`, `[b, 1]`; `None` when all are greedy.
    inverse_b1: Option<Tensor<2>>,
    /// Marks the sequences that are not greedy.
    drawn_b: Tensor<1, Bool>,
    distributions: Vec<Tensor<3>>,
}

impl Chooser {
    pub fn new(temperatures: &[f64], device: &Device) -> Self {
        let drawn: Vec<bool> = temperatures.iter().map(|&temperature| !is_greedy(temperature)).collect();
        let b = drawn.len();
        Self {
            inverse_b1: drawn.contains(&true).then(|| inverse(temperatures, device)),
            drawn_b: Tensor::from_data(TensorData::new(drawn, [b]), device),
            distributions: Vec::new(),
        }
    }

    /// Tokens of the next slot, `[b, u] -> [b]`.
    pub fn choose(&mut self, logits_bu: Tensor<2>) -> Tensor<1, Int> {
        let [b, u] = logits_bu.dims();
        let likeliest_b = logits_bu.clone().argmax(1).reshape([b]);
        let Some(inverse_b1) = &self.inverse_b1 else { return likeliest_b };
        let distributions_bu = softmax(logits_bu.cast(DType::F32) * inverse_b1.clone(), 1);
        self.distributions.push(distributions_bu.clone().reshape([b, 1, u]));
        likeliest_b.mask_where(self.drawn_b.clone(), race(distributions_bu))
    }

    /// Returns the distributions that were sampled from, `[b, s, u]`; `None` if all sequences are greedy.
    pub fn distributions(self) -> Option<Tensor<3>> {
        (!self.distributions.is_empty()).then(|| Tensor::cat(self.distributions, 1))
    }
}

/// A row of the target that a token is wanted from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgedRow {
    /// The temperature of the sequence, above 0.
    pub temperature: f64,
    /// The token that was drafted for this place, and where among the draft's rows its distribution is.
    pub drafted: Option<(u32, usize)>,
}

/// The device's results for rows, still on the device.
#[derive(Clone, Debug)]
pub struct JudgedRows {
    /// The next token if the sequence's round ends at the row, `[r]`.
    pub next_r: Tensor<1, Int>,
    /// The probabilities of the drafted tokens in the target's and the draft's distributions, `[2, r]`.
    pub probabilities_2r: Tensor<2>,
}

/// Prepares the acceptance test for rows of logits, `[r, v]`; `proposals_nu` has the draft's distributions, over its own
/// `vocabulary` where it has one.
pub fn judge_rows(
    logits_rv: Tensor<2>,
    rows: &[JudgedRow],
    proposals_nu: Option<Tensor<2>>,
    vocabulary: Option<&DraftVocabulary>,
) -> JudgedRows {
    let [r, v] = logits_rv.dims();
    let device = logits_rv.device();
    let temperatures: Vec<f64> = rows.iter().map(|row| row.temperature).collect();
    let target_rv = softmax(logits_rv.cast(DType::F32) * inverse(&temperatures, &device), 1);
    let Some(proposals_nu) = proposals_nu.filter(|_| rows.iter().any(|row| row.drafted.is_some())) else {
        return JudgedRows { next_r: race(target_rv), probabilities_2r: Tensor::zeros([2, r], &device) };
    };
    let [n, u] = proposals_nu.dims();
    // A row of zeros for positions without a drafted token: their residual is the target's distribution.
    let proposals_nu = Tensor::cat(vec![proposals_nu, Tensor::zeros([1, u], &device)], 0);
    let which = rows.iter().map(|row| row.drafted.map_or(n, |(_, proposal)| proposal) as i32).collect();
    let draft_ru = proposals_nu.select(0, ints(which, &device));
    let draft_rv = match vocabulary {
        None => draft_ru,
        // Zero columns likewise, for tokens that the draft cannot propose.
        Some(own) => {
            let draft_ru = Tensor::cat(vec![draft_ru, Tensor::zeros([r, 1], &device)], 1);
            let columns = (0..v as u32).map(|id| own.index(id).unwrap_or(u) as i32).collect();
            draft_ru.select(1, ints(columns, &device))
        }
    };
    let tokens = rows.iter().map(|row| row.drafted.map_or(0, |(token, _)| token as i32)).collect();
    let tokens_r1: Tensor<2, Int> = ints(tokens, &device).reshape([r, 1]);
    let of_token =
        |distributions_rv: &Tensor<2>| distributions_rv.clone().gather(1, tokens_r1.clone()).reshape([1, r]);
    let probabilities_2r = Tensor::cat(vec![of_token(&target_rv), of_token(&draft_rv)], 0);
    let residual_rv = (target_rv.clone() - draft_rv).clamp_min(0.0);
    // A draft's distribution that is NaN gives a zero row too: the token sampled from it is rejected.
    let nothing_r1 = residual_rv.clone().sum_dim(1).greater_scalar(NO_RESIDUAL).bool_not();
    let residual_rv = residual_rv.mask_where(nothing_r1.expand([r, v]), target_rv);
    JudgedRows { next_r: race(residual_rv), probabilities_2r }
}

/// One token per row of weights that need not sum to one, `[r, v] -> [r]`: the winner of the race.
fn race(weights_rv: Tensor<2>) -> Tensor<1, Int> {
    let [r, v] = weights_rv.dims();
    let w_rv = uniform([r, v], &weights_rv.device());
    // E = -ln(1 - w): by its series where the logarithm has no digits left.
    let squares_rv = w_rv.clone().square();
    let small_rv = w_rv.clone() + squares_rv.clone() * 0.5 + squares_rv * w_rv.clone() * (1.0 / 3.0);
    let large_rv = (-w_rv.clone() + 1.0).log().neg();
    let e_rv = small_rv.mask_where(w_rv.greater_scalar(0.01), large_rv);
    (weights_rv / e_rv).argmax(1).reshape([r])
}

/// Uniform numbers in `(0, 1]`. The smallest ones decide races, and the backends' multiples of 2^-24 are too coarse for tokens less
/// likely than that.
fn uniform(shape: [usize; 2], device: &Device) -> Tensor<2> {
    #[expect(clippy::disallowed_methods, reason = "the device draws by itself; an engine seeds it when it starts")]
    let coarse = || Tensor::<2>::random(shape, Numbers::Uniform(0.0, 1.0), device);
    (coarse() + coarse() * (1.0 / 16_777_216.0)).clamp_min(1e-30)
}

/// `1 / temperature` per row, `[r, 1]`; 1 for greedy ones.
fn inverse(temperatures: &[f64], device: &Device) -> Tensor<2> {
    let inverse = |&temperature: &f64| if is_greedy(temperature) { 1.0 } else { (1.0 / temperature) as f32 };
    let inverse: Vec<f32> = temperatures.iter().map(inverse).collect();
    let r = inverse.len();
    Tensor::from_data(TensorData::new(inverse, [r, 1]), device)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;
    use crate::speculate::{Distribution, JudgedShares, SeededUniforms};

    /// Taken by each test here: a device has one generator, and tests run at the same time.
    static GENERATOR: Mutex<()> = Mutex::new(());

    const ROUNDS: usize = 40_000;
    const TARGET: [f32; 6] = [0.8, -0.3, 1.1, 0.2, -1.0, 0.5];
    const BEHIND: [f32; 6] = [-0.5, 0.4, 0.9, -2.0, 0.3, 0.1];
    const DRAFT: [f32; 6] = [-0.4, 0.9, 1.3, -0.2, 0.1, -0.8];

    fn rows(logits: &[f32], count: usize, device: &Device) -> Tensor<2> {
        let row: Tensor<2> = Tensor::from_data(TensorData::new(logits.to_vec(), [1, logits.len()]), device);
        row.expand([count, logits.len()])
    }

    /// Seeds the generator, which belongs to the caller until the guard is dropped.
    fn seeded(device: &Device, seed: u64) -> MutexGuard<'static, ()> {
        let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::disallowed_methods, reason = "this is what the lock is for")]
        device.seed(seed);
        guard
    }

    /// Chi-square of counts against a distribution, five degrees of freedom: 20.5 is passed once in a thousand.
    fn statistic(counts: &[u32; 6], expected: &Distribution) -> f64 {
        let all: u32 = counts.iter().sum();
        let cell = |token: usize| {
            let expected = expected.probability(token as u32) * f64::from(all);
            (f64::from(counts[token]) - expected).powi(2) / expected
        };
        (0..6).map(cell).sum()
    }

    /// Rounds of one slot: counts of their first token and, where the draft's was kept, of their second.
    fn rounds(
        device: &Device,
        temperature: f64,
        vocabulary: Option<&DraftVocabulary>,
        residual: bool,
    ) -> ([u32; 6], [u32; 6], usize) {
        let _guard = seeded(device, 3);
        let own: Vec<f32> = (0..6)
            .filter(|&id| vocabulary.is_none_or(|own| own.index(id).is_some()))
            .map(|id| DRAFT[id as usize])
            .collect();
        let mut chooser = Chooser::new(&[temperature; ROUNDS], device);
        let drafted: Vec<u32> = chooser.choose(rows(&own, ROUNDS, device)).try_into_vec_as().unwrap();
        let drafted: Vec<u32> =
            drafted.into_iter().map(|index| vocabulary.map_or(index, |own| own.ids()[index as usize])).collect();
        let blocks = chooser.distributions().unwrap();
        let proposals = DeviceDistributions::new(blocks.clone(), 0).all();
        let row = |round: usize| DeviceDistributions::new(blocks.clone(), round).row(0);
        let judged: Vec<JudgedRow> = (0..2 * ROUNDS)
            .map(|index| {
                let drafted = (index % 2 == 0).then(|| (drafted[index / 2], row(index / 2)));
                JudgedRow { temperature, drafted }
            })
            .collect();
        let two_rows = Tensor::stack::<3>(vec![rows(&TARGET, ROUNDS, device), rows(&BEHIND, ROUNDS, device)], 1);
        let logits = two_rows.reshape([2 * ROUNDS, 6]);
        let JudgedRows { next_r, probabilities_2r } =
            judge_rows(logits.clone(), &judged, Some(proposals), vocabulary);
        let next_r = if residual { next_r } else { judge_rows(logits, &judged, None, vocabulary).next_r };
        let next: Vec<u32> = next_r.try_into_vec_as().unwrap();
        let shares: Vec<f32> = probabilities_2r.try_into_vec_as().unwrap();
        let (target, draft) = shares.split_at(2 * ROUNDS);
        let mut uniforms = SeededUniforms::new(5, 0);
        let (mut first, mut second, mut accepted) = ([0; 6], [0; 6], 0);
        for (round, &token) in drafted.iter().enumerate() {
            let own = 2 * round..2 * round + 2;
            let shares = JudgedShares { target: &target[own.clone()], draft: &draft[own.clone()], next: &next[own] };
            let verdict = shares.judge(&mut uniforms);
            match verdict.accepted {
                0 => first[verdict.next as usize] += 1,
                _ => {
                    first[token as usize] += 1;
                    second[verdict.next as usize] += 1;
                    accepted += 1;
                }
            }
        }
        (first, second, accepted)
    }

    fn rounds_have_the_targets_distribution(device: Device, temperatures: &[f64]) {
        let lacking = DraftVocabulary::most_frequent(&[0, 2, 3, 1, 0, 1], 4);
        for &temperature in temperatures {
            for vocabulary in [None, Some(&lacking)] {
                let (target, behind) = (
                    Distribution::from_logits(&TARGET, temperature),
                    Distribution::from_logits(&BEHIND, temperature),
                );
                let (first, second, accepted) = rounds(&device, temperature, vocabulary, true);
                assert!(statistic(&first, &target) < 20.5, "{first:?}");
                assert!(statistic(&second, &behind) < 20.5, "{second:?}");
                assert!((ROUNDS / 4..ROUNDS * 9 / 10).contains(&accepted), "{accepted}");
                // The test can detect it: after a rejection the target's own distribution is the wrong one.
                let (first, ..) = rounds(&device, temperature, vocabulary, false);
                assert!(statistic(&first, &target) > 100.0, "{first:?}");
            }
        }
    }

    /// A token sampled from a NaN distribution is rejected and replaced by the target's token.
    #[test]
    fn a_draft_of_nan_leaves_the_targets_distribution() {
        let device = Device::flex();
        let _guard = seeded(&device, 4);
        let judged = vec![JudgedRow { temperature: 1.0, drafted: Some((2, 0)) }; ROUNDS];
        let nan = rows(&[f32::NAN; 6], 1, &device);
        let rows = judge_rows(rows(&TARGET, ROUNDS, &device), &judged, Some(nan), None);
        let next: Vec<u32> = rows.next_r.try_into_vec_as().unwrap();
        let shares: Vec<f32> = rows.probabilities_2r.try_into_vec_as().unwrap();
        let (target, draft) = shares.split_at(ROUNDS);
        let mut counts = [0; 6];
        for round in 0..ROUNDS {
            let shares = JudgedShares {
                target: &target[round..=round],
                draft: &draft[round..=round],
                next: &[next[round], 0],
            };
            let verdict = shares.judge(&mut SeededUniforms::new(6, round as u64));
            assert_eq!(verdict.accepted, 0);
            counts[verdict.next as usize] += 1;
        }
        let found = statistic(&counts, &Distribution::from_logits(&TARGET, 1.0));
        assert!(found < 20.5, "{counts:?}");
    }

    #[test]
    fn drawn_tokens_have_the_targets_distribution() {
        rounds_have_the_targets_distribution(Device::flex(), &[0.7, 1.0]);
    }

    #[cfg(feature = "cubecl-cpu")]
    #[test]
    fn drawn_tokens_have_the_targets_distribution_in_the_kernels_for_gpus() {
        rounds_have_the_targets_distribution(Device::cpu(), &[0.7]);
    }

    #[test]
    fn greedy_sequences_take_the_likeliest_beside_others_that_draw() {
        let device = Device::flex();
        let _guard = seeded(&device, 1);
        let temperatures: Vec<f64> = (0..600).map(|row| f64::from(row % 2)).collect();
        let mut chooser = Chooser::new(&temperatures, &device);
        let tokens: Vec<u32> = chooser.choose(rows(&TARGET, 600, &device)).try_into_vec_as().unwrap();
        assert!(tokens.iter().step_by(2).all(|&token| token == 2));
        assert!((0..6).all(|token| tokens.iter().skip(1).step_by(2).any(|&drawn| drawn == token)));
        assert!(Chooser::new(&[0.0, 0.0], &device).distributions().is_none());
    }

    #[test]
    fn small_uniform_numbers_are_fine_ones() {
        let device = Device::flex();
        let _guard = seeded(&device, 2);
        let numbers: Vec<f32> = uniform([1024, 1024], &device).try_into_vec_as().unwrap();
        let mean = numbers.iter().map(|&w| f64::from(w)).sum::<f64>() / numbers.len() as f64;
        assert!((mean - 0.5).abs() < 0.002, "{mean}");
        let small: Vec<f32> = numbers.into_iter().filter(|&w| w < 1.0 / 1024.0).collect();
        assert!((800..1300).contains(&small.len()), "{}", small.len());
        let fine = small.iter().filter(|&&w| (w * 16_777_216.0).fract() != 0.0).count();
        assert!(fine * 10 > small.len() * 9, "{fine} of {}", small.len());
    }
}
