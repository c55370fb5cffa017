//! Losses of rows of logits against the teacher's, and their gradient: two readings of each row, and one more with a gradient,
//! where tensor operations would take some fifteen and keep several tensors of rows x vocabulary.
//!
//! The computation is described in `deepspec::objective::vocabulary`.
//!
//! Legend: `m` rows, `u` tokens of the draft's vocabulary, `v` of the teacher's, `t` teacher rows.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{LOWEST, largest_of, sign, sum_of};
use super::{empty_like, units};

/// Maximum number of units per row: rows are as long as vocabularies.
const UNITS: usize = 256;

/// Logarithm of what the exponentiated numbers of a row add up to.
#[cube]
fn log_sum_exp(
    numbers: &[f32],
    first: usize,
    count: usize,
    shared: &mut Shared<[f32]>,
    #[comptime] units: usize,
) -> f32 {
    let mut largest = LOWEST.runtime();
    let mut sum = 0.0f32;
    let mut index = UNIT_POS_X as usize;
    while index < count {
        let number = numbers[first + index];
        if number > largest {
            sum *= (largest - number).exp();
            largest = number;
        }
        sum += (number - largest).exp();
        index += units;
    }
    let all = largest_of(largest, shared, units);
    let sum = sum_of(sum * (largest - all).exp(), shared, units);
    all + sum.ln()
}

/// Logits `[m, u]`, the teacher's `[t, v]`, its row of each row `[m]`, the true token of each row `[m]` (negative: none that the
/// draft has), factors of cross-entropy, cross-entropy against the teacher and L1 `[m, 3]`, the teacher's ids of the draft's
/// tokens `[u]` (of one if `v = u`) -> the three losses `[m, 3]` and the gradient of their weighted sum `[m, u]`.
#[cube(launch)]
fn vocabulary_losses(
    logits: &[f32],
    teacher: &[f32],
    teacher_rows: &[i32],
    labels: &[i32],
    factors: &[f32],
    ids: &[i32],
    losses: &mut [f32],
    gradient: &mut [f32],
    tokens: usize,
    teacher_tokens: usize,
    #[comptime] restricted: bool,
    #[comptime] with_gradient: bool,
    #[comptime] units: usize,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS_X as usize;
    let own = row * tokens;
    let taught = teacher_rows[row] as usize * teacher_tokens;
    let mut shared = Shared::<[f32]>::new_slice(units);
    let log_sum = log_sum_exp(logits, own, tokens, &mut shared, units);
    let teacher_log_sum = log_sum_exp(teacher, taught, teacher_tokens, &mut shared, units);

    let mut l1 = 0.0f32;
    let mut mean_sign = 0.0f32;
    let mut soft = 0.0f32;
    let mut mass = 0.0f32;
    let mut index = unit;
    while index < tokens {
        let mut place = index;
        if comptime!(restricted) {
            place = ids[index] as usize;
        }
        let log_p = logits[own + index] - log_sum;
        let p = log_p.exp();
        let q = (teacher[taught + place] - teacher_log_sum).exp();
        l1 += (p - q).abs();
        mean_sign += p * sign(p - q);
        soft -= q * log_p;
        mass += q;
        index += units;
    }
    let mut l1 = sum_of(l1, &mut shared, units);
    let mean_sign = sum_of(mean_sign, &mut shared, units);
    let soft = sum_of(soft, &mut shared, units);
    let mut mass = sum_of(mass, &mut shared, units);
    if comptime!(restricted) {
        // What the draft cannot propose is missed.
        l1 += 1.0 - mass;
    } else {
        mass = 1.0f32;
    }
    let label = labels[row];
    if unit == 0 {
        let mut cross_entropy = 0.0f32;
        if label >= 0 {
            cross_entropy = log_sum - logits[own + label as usize];
        }
        losses[3 * row] = cross_entropy;
        losses[3 * row + 1] = soft;
        losses[3 * row + 2] = l1;
    }

    if comptime!(with_gradient) {
        let factor = select(label >= 0, factors[3 * row], 0.0f32);
        let soft_factor = factors[3 * row + 1];
        let l1_factor = factors[3 * row + 2];
        let mut index = unit;
        while index < tokens {
            let mut place = index;
            if comptime!(restricted) {
                place = ids[index] as usize;
            }
            let p = (logits[own + index] - log_sum).exp();
            let q = (teacher[taught + place] - teacher_log_sum).exp();
            let mut slope = p * (factor + l1_factor * (sign(p - q) - mean_sign)) + soft_factor * (mass * p - q);
            if index as i32 == label {
                slope -= factor;
            }
            gradient[own + index] = slope;
            index += units;
        }
    }
}

/// See [`CubeKernels::vocabulary_rows`](super::CubeKernels::vocabulary_rows).
#[allow(clippy::too_many_arguments)]
pub fn launch(
    logits: CubeTensor,
    teacher: CubeTensor,
    teacher_rows: CubeTensor,
    labels: CubeTensor,
    factors: CubeTensor,
    ids: CubeTensor,
    restricted: bool,
    with_gradient: bool,
) -> (CubeTensor, CubeTensor) {
    let [logits, teacher, factors] = [logits, teacher, factors].map(into_contiguous);
    let [teacher_rows, labels, ids] = [teacher_rows, labels, ids].map(into_contiguous);
    let [m, u] = logits.meta.shape().dims::<2>();
    let [_, v] = teacher.meta.shape().dims::<2>();
    let client = logits.client.clone();
    let losses = empty_like(&logits, [m, 3].into(), DType::F32);
    let gradient = empty_like(&logits, if with_gradient { [m, u] } else { [1, 1] }.into(), DType::F32);
    let units = units(&client, UNITS);
    vocabulary_losses::launch(
        &client,
        CubeCount::Static(m as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        logits.into_buffer_arg(),
        teacher.into_buffer_arg(),
        teacher_rows.into_buffer_arg(),
        labels.into_buffer_arg(),
        factors.into_buffer_arg(),
        ids.into_buffer_arg(),
        losses.clone().into_buffer_arg(),
        gradient.clone().into_buffer_arg(),
        u,
        v,
        restricted,
        with_gradient,
        units,
    );
    (losses, gradient)
}
