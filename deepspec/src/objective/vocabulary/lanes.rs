//! Softmax, losses and their gradient for rows that are lanes: values lie token by token, `[tokens, lanes]`.
//!
//! Legend: as in [`super::on_host`].

use std::ops::Range;

use dspark_runtime::kernels::simd;

use super::{RowTerms, VocabularyWeights};

/// Rows that are handled together: a number of lanes is a multiple of it.
pub(super) const LANES: usize = 16;

/// Tokens that are gone through at a time: few enough to stay in the first cache, and sums over them stay exact.
const TOKENS: usize = 64;

type Lanes = [f32; LANES];

/// The maximum of each lane, and the sum of `e^(value - maximum)`.
#[derive(Clone, Debug)]
pub(super) struct Softmax {
    pub maximum: Vec<f32>,
    pub sum: Vec<f32>,
}

impl Softmax {
    /// Computes them for some tokens.
    pub fn of(values: &[f32], lanes: usize) -> Self {
        let mut of = Self { maximum: vec![f32::MIN; lanes], sum: vec![0.0; lanes] };
        simd::vectorized(
            #[inline(always)]
            || {
                for values in values.chunks(TOKENS * lanes) {
                    for group in 0..lanes / LANES {
                        of.add(group, values, lanes);
                    }
                }
            },
        );
        of
    }

    #[inline(always)]
    fn add(&mut self, group: usize, values: &[f32], lanes: usize) {
        let maximum = lanes_mut(&mut self.maximum, group);
        let mut larger = *maximum;
        for token in 0..values.len() / lanes {
            let x = lanes_at(values, token * lanes, group);
            for lane in 0..LANES {
                larger[lane] = if x[lane] > larger[lane] { x[lane] } else { larger[lane] };
            }
        }
        let mut added = [0.0; LANES];
        for token in 0..values.len() / lanes {
            let x = lanes_at(values, token * lanes, group);
            for lane in 0..LANES {
                added[lane] += simd::exp(x[lane] - larger[lane]);
            }
        }
        let sum = lanes_mut(&mut self.sum, group);
        for lane in 0..LANES {
            sum[lane] = sum[lane] * simd::exp(maximum[lane] - larger[lane]) + added[lane];
        }
        *maximum = larger;
    }

    /// Combines all parts.
    pub fn all(parts: Vec<Self>) -> Self {
        let mut maximum = parts[0].maximum.clone();
        for part in &parts {
            maximum.iter_mut().zip(&part.maximum).for_each(|(all, own)| *all = all.max(*own));
        }
        let mut sum = vec![0.0; maximum.len()];
        for part in parts {
            for (lane, sum) in sum.iter_mut().enumerate() {
                *sum += part.sum[lane] * (part.maximum[lane] - maximum[lane]).exp();
            }
        }
        Self { maximum, sum }
    }

    /// Turns the values of some tokens into probabilities.
    pub fn normalize(&self, values: &mut [f32]) {
        let lanes = self.sum.len();
        simd::vectorized(
            #[inline(always)]
            || {
                let scale: Vec<f32> = self.sum.iter().map(|sum| 1.0 / sum).collect();
                for token in values.chunks_exact_mut(lanes) {
                    for ((x, maximum), scale) in token.iter_mut().zip(&self.maximum).zip(&scale) {
                        *x = simd::exp(*x - maximum) * scale;
                    }
                }
            },
        );
    }
}

/// The teacher's probabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Teacher<'a> {
    /// `[v, z]`
    pub values: &'a [f32],
    /// `z`
    pub lanes: usize,
    /// The index of the teacher's lane for each of the draft's lanes, `[l]`.
    pub local: &'a [usize],
    /// The teacher's ids of the draft's tokens, where these are not all.
    pub ids: Option<&'a [u32]>,
}

impl Teacher<'_> {
    /// A token's probabilities in a group of the draft's lanes.
    #[inline(always)]
    fn of(&self, token: usize, local: &[usize; LANES]) -> Lanes {
        let token = self.ids.map_or(token, |ids| ids[token] as usize);
        let row = &self.values[token * self.lanes..][..self.lanes];
        local.map(|lane| row[lane])
    }
}

/// Differences between draft and teacher in each lane.
#[derive(Clone, Debug)]
pub(super) struct Differences {
    /// The teacher's mean of `logit - maximum`.
    expected_logit: Vec<f32>,
    /// `sum |p - q|`
    l1: Vec<f32>,
    /// `sum p sign(p - q)`
    mean_sign: Vec<f32>,
    /// The teacher's probability of the draft's tokens.
    mass: Vec<f32>,
}

impl Differences {
    /// Over some tokens, whose logits become probabilities.
    pub fn of(logits: &mut [f32], tokens: Range<usize>, softmax: &Softmax, teacher: &Teacher<'_>) -> Self {
        let lanes = softmax.sum.len();
        let zeros = || vec![0.0; lanes];
        let mut of = Self { expected_logit: zeros(), l1: zeros(), mean_sign: zeros(), mass: zeros() };
        simd::vectorized(
            #[inline(always)]
            || {
                for (index, logits) in logits.chunks_mut(TOKENS * lanes).enumerate() {
                    let first = tokens.start + index * TOKENS;
                    for group in 0..lanes / LANES {
                        of.add(group, logits, first, softmax, teacher);
                    }
                }
            },
        );
        of
    }

    #[inline(always)]
    fn add(&mut self, group: usize, logits: &mut [f32], first: usize, softmax: &Softmax, teacher: &Teacher<'_>) {
        let lanes = softmax.sum.len();
        let maximum = *lanes_at(&softmax.maximum, 0, group);
        let scale = lanes_at(&softmax.sum, 0, group).map(|sum| 1.0 / sum);
        let local = group_of(teacher.local, group);
        let [mut expected, mut l1, mut mean_sign, mut mass] = [[0.0; LANES]; 4];
        for token in 0..logits.len() / lanes {
            let q = teacher.of(first + token, local);
            let x = lanes_mut(&mut logits[token * lanes..][..lanes], group);
            for lane in 0..LANES {
                let shifted = x[lane] - maximum[lane];
                let p = simd::exp(shifted) * scale[lane];
                let difference = p - q[lane];
                expected[lane] += q[lane] * shifted;
                l1[lane] += difference.abs();
                mean_sign[lane] += p * sign(difference);
                mass[lane] += q[lane];
                x[lane] = p;
            }
        }
        let sums = [(&mut self.expected_logit, expected), (&mut self.l1, l1), (&mut self.mean_sign, mean_sign)];
        for (sum, own) in sums.into_iter().chain([(&mut self.mass, mass)]) {
            lanes_mut(sum, group).iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
    }

    /// Over all parts together; of a draft that can propose all tokens the mass is 1.
    pub fn all(parts: Vec<Self>, complete: bool) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_else(|| unreachable!("there is a part"));
        for part in parts {
            let add = |all: &mut Vec<f32>, own: &[f32]| all.iter_mut().zip(own).for_each(|(all, own)| *all += own);
            add(&mut all.expected_logit, &part.expected_logit);
            add(&mut all.l1, &part.l1);
            add(&mut all.mean_sign, &part.mean_sign);
            add(&mut all.mass, &part.mass);
        }
        if complete {
            all.mass.fill(1.0);
        }
        all
    }

    /// The losses of a lane, given its label's `logit - maximum`.
    pub fn terms(&self, lane: usize, label_logit: Option<f32>, softmax: &Softmax) -> RowTerms {
        let log_sum = softmax.sum[lane].ln();
        RowTerms {
            cross_entropy: label_logit.map_or(0.0, |logit| log_sum - logit),
            soft_cross_entropy: self.mass[lane] * log_sum - self.expected_logit[lane],
            l1: self.l1[lane] + 1.0 - self.mass[lane],
        }
    }
}

/// Factors of each lane's gradient; lanes beyond the rows have none.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    pub cross_entropy: Vec<f32>,
    soft_cross_entropy: Vec<f32>,
    l1: Vec<f32>,
    mean_sign: Vec<f32>,
    mass: Vec<f32>,
}

impl Factors {
    /// For some rows. A label that the draft cannot propose counts as nothing.
    pub fn of(weights: &VocabularyWeights, rows: Range<usize>, labels: &[Option<u32>], of: &Differences) -> Self {
        let lanes = of.l1.len();
        let padded = |values: &[f32]| {
            let mut values = values[rows.clone()].to_vec();
            values.resize(lanes, 0.0);
            values
        };
        let mut cross_entropy = padded(&weights.cross_entropy);
        for (factor, label) in cross_entropy.iter_mut().zip(labels) {
            *factor = if label.is_some() { *factor } else { 0.0 };
        }
        Self {
            cross_entropy,
            soft_cross_entropy: padded(&weights.soft_cross_entropy),
            l1: padded(&weights.l1),
            mean_sign: of.mean_sign.clone(),
            mass: of.mass.clone(),
        }
    }

    /// Turns some tokens' probabilities into the gradient with respect to their logits, but for what labels take off.
    pub fn apply(&self, p: &mut [f32], tokens: Range<usize>, teacher: &Teacher<'_>) {
        let lanes = self.l1.len();
        simd::vectorized(
            #[inline(always)]
            || {
                for (index, p) in p.chunks_mut(TOKENS * lanes).enumerate() {
                    let first = tokens.start + index * TOKENS;
                    for group in 0..lanes / LANES {
                        self.apply_to(group, p, first, teacher);
                    }
                }
            },
        );
    }

    #[inline(always)]
    fn apply_to(&self, group: usize, p: &mut [f32], first: usize, teacher: &Teacher<'_>) {
        let lanes = self.l1.len();
        let of = |values: &[f32]| *lanes_at(values, 0, group);
        let (w_ce, w_soft, w_l1) = (of(&self.cross_entropy), of(&self.soft_cross_entropy), of(&self.l1));
        let (mean_sign, mass) = (of(&self.mean_sign), of(&self.mass));
        let local = group_of(teacher.local, group);
        for token in 0..p.len() / lanes {
            let q = teacher.of(first + token, local);
            let p = lanes_mut(&mut p[token * lanes..][..lanes], group);
            for lane in 0..LANES {
                let own = p[lane];
                let l1 = w_l1[lane] * (sign(own - q[lane]) - mean_sign[lane]);
                p[lane] = own * (w_ce[lane] + l1) + w_soft[lane] * (mass[lane] * own - q[lane]);
            }
        }
    }
}

/// -1, 0 or 1.
#[inline(always)]
fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

#[inline(always)]
fn lanes_at(values: &[f32], from: usize, group: usize) -> &Lanes {
    values[from + group * LANES..].first_chunk().unwrap_or_else(|| unreachable!("lanes are whole vectors"))
}

#[inline(always)]
fn lanes_mut(values: &mut [f32], group: usize) -> &mut Lanes {
    values[group * LANES..].first_chunk_mut().unwrap_or_else(|| unreachable!("lanes are whole vectors"))
}

#[inline(always)]
fn group_of(local: &[usize], group: usize) -> &[usize; LANES] {
    local[group * LANES..].first_chunk().unwrap_or_else(|| unreachable!("lanes are whole vectors"))
}
