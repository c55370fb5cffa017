//! The vocabulary loss in this machine's memory.
//!
//! The rows of a chunk are lanes. Logits are stored token by token, `[u, l]`, so a token's logits of all rows are
//! vectors, and both heads are multiplied in their storage order. Tokens are divided into parts. Sums of parts are
//! combined in order, for every number of threads.
//!
//! Legend: as in [`super`]; `l` lanes, `m` filled up to whole vectors with rows of zeros; `z` lanes of the teacher's rows; `k` width
//! of a row.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use dspark_runtime::kernels::{HostMatrix, Matrix, multiply, round_to_bf16, simd};
use rayon::prelude::*;

use super::lanes::{Differences, Factors, LANES, Softmax, Teacher};
use super::{Gradients, RowTerms, VocabularyRows, VocabularyWeights};

/// Maximum number of parts of the tokens. Each has separate sums for the gradient of a chunk's rows.
pub const VOCABULARY_PARTS: usize = 16;

/// Minimum number of tokens per part: rows are packed again for each product.
const LEAST_PART: usize = 256;

/// Rows of a matrix that is kept in bf16, widened at a time.
const WIDENED: usize = 512;

/// The factors of the products.
pub(super) struct OnHost<'a> {
    rows: &'a VocabularyRows,
    hidden: HostMatrix,
    head: HostMatrix,
    /// Factors and `W2`.
    markov: Option<[HostMatrix; 2]>,
    teacher: HostMatrix,
    teacher_head: HostMatrix,
}

/// Buffers of a chunk's logits, allocated once.
#[derive(Default)]
struct Buffers {
    /// `[u, l]`
    logits: Vec<f32>,
    /// The slope of the cap at each, where there is one. `[u, l]`
    slopes: Vec<f32>,
    /// `[v, z]`
    teacher: Vec<f32>,
}

/// Gradients of the rows, and of `W2`, which all chunks add to.
struct Sums {
    hidden: Vec<f32>,
    factors: Vec<f32>,
    w2: Vec<f32>,
}

/// Some rows.
struct Chunk {
    rows: Range<usize>,
    /// `l`
    lanes: usize,
    /// The teacher's rows that they need, each once.
    distinct: Vec<usize>,
    /// For each lane its place among them.
    local: Vec<usize>,
}

impl Chunk {
    fn of(rows: &VocabularyRows, range: Range<usize>) -> Self {
        let wanted = &rows.teacher_rows[range.clone()];
        let mut distinct = wanted.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let lanes = range.len().next_multiple_of(LANES);
        let place = |row| distinct.binary_search(row).unwrap_or_else(|_| unreachable!("every row is among them"));
        let mut local: Vec<usize> = wanted.iter().map(place).collect();
        local.resize(lanes, 0);
        Self { rows: range, lanes, distinct, local }
    }

    /// `z`
    fn teacher_lanes(&self) -> usize {
        self.distinct.len().next_multiple_of(LANES)
    }
}

impl<'a> OnHost<'a> {
    /// Returns `None` if a tensor is not in host memory.
    pub fn new(rows: &'a VocabularyRows) -> Option<Self> {
        let markov = match &rows.markov {
            Some((factors_nr, w2_ur)) => Some([HostMatrix::new(factors_nr)?, HostMatrix::new(w2_ur)?]),
            None => None,
        };
        Some(Self {
            rows,
            hidden: HostMatrix::new(&rows.hidden_nd)?,
            head: HostMatrix::new(&rows.head_vd)?,
            markov,
            teacher: HostMatrix::new(&rows.teacher_td)?,
            teacher_head: HostMatrix::new(&rows.teacher_head_vd)?,
        })
    }

    /// The terms of all rows and, with weights, the gradients of their weighted sum, `most` rows at a time.
    pub fn losses(&self, weights: Option<&VocabularyWeights>, most: usize) -> (Vec<RowTerms>, Option<Gradients>) {
        let [n, d] = self.rows.hidden_nd.dims();
        let ([u, _], [v, _]) = (self.rows.head_vd.dims(), self.rows.teacher_head_vd.dims());
        let r = self.rank();
        let chunks: Vec<Chunk> =
            (0..n).step_by(most).map(|first| Chunk::of(self.rows, first..n.min(first + most))).collect();
        let widest = |lanes: fn(&Chunk) -> usize| chunks.iter().map(lanes).max().unwrap_or(0);
        let lanes = widest(|chunk| chunk.lanes);
        let capped = self.rows.softcap.is_some() && weights.is_some();
        let mut buffers = Buffers {
            logits: vec![0.0; u * lanes],
            slopes: if capped { vec![0.0; u * lanes] } else { Vec::new() },
            teacher: vec![0.0; v * widest(Chunk::teacher_lanes)],
        };
        let mut sums =
            weights.map(|_| Sums { hidden: vec![0.0; n * d], factors: vec![0.0; n * r], w2: vec![0.0; u * r] });
        let mut terms = Vec::with_capacity(n);
        for chunk in &chunks {
            terms.extend(self.chunk(chunk, &mut buffers, weights.zip(sums.as_mut())));
        }
        let gradients = sums.map(|sums| {
            let device = self.rows.hidden_nd.device();
            Gradients {
                hidden_nd: tensor(sums.hidden, [n, d], &device),
                markov: (r > 0).then(|| (tensor(sums.factors, [n, r], &device), tensor(sums.w2, [u, r], &device))),
            }
        });
        (terms, gradients)
    }

    fn rank(&self) -> usize {
        self.markov.as_ref().map_or(0, |[_, w2]| w2.columns())
    }

    fn chunk(
        &self,
        chunk: &Chunk,
        buffers: &mut Buffers,
        weights: Option<(&VocabularyWeights, &mut Sums)>,
    ) -> Vec<RowTerms> {
        let ([u, _], [v, _]) = (self.rows.head_vd.dims(), self.rows.teacher_head_vd.dims());
        let (l, z) = (chunk.lanes, chunk.teacher_lanes());
        let teacher = self.teacher_probabilities(chunk, &mut buffers.teacher[..v * z]);
        let logits = &mut buffers.logits[..u * l];
        let slopes = match buffers.slopes.is_empty() {
            true => &mut [],
            false => &mut buffers.slopes[..u * l],
        };
        let hidden = filled(&self.hidden, chunk.rows.clone(), l);
        let factors = self.markov.as_ref().map(|[factors, _]| filled(factors, chunk.rows.clone(), l));
        let part = part(u);
        let parts = logits.par_chunks_mut(part * l).zip(pieces(slopes, part * l)).enumerate();
        let softmax: Vec<Softmax> = parts
            .map(|(index, (logits, slopes))| {
                let tokens = tokens(index, part, logits.len() / l);
                product(logits, l, &self.head, tokens.clone(), &hidden, false);
                if let Some(cap) = self.rows.softcap {
                    soft_caps(logits, slopes, cap as f32);
                }
                if let (Some([_, w2]), Some(factors)) = (&self.markov, &factors) {
                    product(logits, l, w2, tokens, factors, true);
                }
                Softmax::of(logits, l)
            })
            .collect();
        let softmax = Softmax::all(softmax);
        let labels = &self.rows.labels[chunk.rows.clone()];
        let of_label = |(row, label): (usize, &Option<u32>)| label.map(|label| logits[label as usize * l + row]);
        let label_logits: Vec<Option<f32>> = labels.iter().enumerate().map(of_label).collect();

        let parts = logits.par_chunks_mut(part * l).enumerate();
        let differences: Vec<Differences> = parts
            .map(|(index, logits)| {
                let tokens = tokens(index, part, logits.len() / l);
                Differences::of(logits, tokens, &softmax, &teacher)
            })
            .collect();
        let differences = Differences::all(differences, self.rows.vocabulary.is_none());
        if let Some((weights, sums)) = weights {
            let factors_of = Factors::of(weights, chunk.rows.clone(), labels, &differences);
            let gradient =
                Gradient { chunk, factors_of, teacher: &teacher, part, hidden_factors: factors.as_deref() };
            self.gradients(&gradient, logits, slopes, sums);
        }
        let terms = label_logits.iter().enumerate();
        terms
            .map(|(row, logit)| differences.terms(row, logit.map(|logit| logit - softmax.maximum[row]), &softmax))
            .collect()
    }

    /// The teacher's probabilities, `[v, z]`.
    fn teacher_probabilities<'b>(&'b self, chunk: &'b Chunk, values: &'b mut [f32]) -> Teacher<'b> {
        let z = chunk.teacher_lanes();
        let rows: Vec<f32> = {
            let mut rows = Vec::with_capacity(z * self.teacher.columns());
            for &row in &chunk.distinct {
                rows.extend_from_slice(&self.teacher.rows(row..row + 1));
            }
            rows.resize(z * self.teacher.columns(), 0.0);
            rows
        };
        let [v, _] = self.rows.teacher_head_vd.dims();
        let part = part(v);
        let parts = values.par_chunks_mut(part * z).enumerate();
        let softmax: Vec<Softmax> = parts
            .map(|(index, values)| {
                let tokens = tokens(index, part, values.len() / z);
                product(values, z, &self.teacher_head, tokens, &rows, false);
                if let Some(cap) = self.rows.softcap {
                    soft_caps(values, &mut [], cap as f32);
                }
                Softmax::of(values, z)
            })
            .collect();
        let softmax = Softmax::all(softmax);
        values.par_chunks_mut(part * z).for_each(|values| softmax.normalize(values));
        Teacher { values, lanes: z, local: &chunk.local, ids: self.rows.vocabulary.as_deref() }
    }

    /// Turns probabilities into the gradient, and adds what it gives.
    fn gradients(&self, gradient: &Gradient<'_>, p: &mut [f32], slopes: &mut [f32], sums: &mut Sums) {
        let (chunk, l, part) = (gradient.chunk, gradient.chunk.lanes, gradient.part);
        let (d, r) = (self.hidden.columns(), self.rank());
        let labels = &self.rows.labels[chunk.rows.clone()];
        let parts = p.par_chunks_mut(part * l).zip(pieces(slopes, part * l)).zip(pieces(&mut sums.w2, part * r));
        // Of the hidden states, `[d, l]`, then of the factors, `[r, l]`.
        let of_parts: Vec<Vec<f32>> = parts
            .enumerate()
            .map(|(index, ((p, slopes), w2))| {
                let tokens = tokens(index, part, p.len() / l);
                gradient.factors_of.apply(p, tokens.clone(), gradient.teacher);
                for (row, label) in labels.iter().enumerate() {
                    if let Some(label) = label.map(|label| label as usize).filter(|label| tokens.contains(label)) {
                        p[(label - tokens.start) * l + row] -= gradient.factors_of.cross_entropy[row];
                    }
                }
                let narrow = self.rows.products == DType::BF16;
                let mut out = vec![0.0; (d + r) * l];
                if let (Some([_, matrix]), Some(factors)) = (&self.markov, gradient.hidden_factors) {
                    if narrow {
                        round_to_bf16(p);
                    }
                    back(&mut out[d * l..], l, matrix, tokens.clone(), p);
                    let (p, factors) = (Matrix::rows(p, tokens.len(), l, l), Matrix::rows(factors, l, r, r));
                    multiply(w2, r, p, factors, true);
                }
                if !slopes.is_empty() {
                    p.iter_mut().zip(&*slopes).for_each(|(p, slope)| *p *= slope);
                }
                if narrow {
                    round_to_bf16(p);
                }
                back(&mut out[..d * l], l, &self.head, tokens, p);
                out
            })
            .collect();
        let mut of_parts = of_parts.into_iter();
        let mut all = of_parts.next().unwrap_or_default();
        for part in of_parts {
            all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
        }
        for (index, row) in chunk.rows.clone().enumerate() {
            let column = |from: usize| all.iter().skip(from * l + index).step_by(l);
            sums.hidden[row * d..][..d].iter_mut().zip(column(0)).for_each(|(to, from)| *to = *from);
            sums.factors[row * r..][..r].iter_mut().zip(column(d)).for_each(|(to, from)| *to = *from);
        }
    }
}

/// The terms of a chunk's gradient.
struct Gradient<'a> {
    chunk: &'a Chunk,
    factors_of: Factors,
    teacher: &'a Teacher<'a>,
    /// Tokens of a part.
    part: usize,
    /// The input of `W2`, `[l, r]`.
    hidden_factors: Option<&'a [f32]>,
}

/// Returns the number of tokens per part.
fn part(tokens: usize) -> usize {
    tokens.div_ceil(VOCABULARY_PARTS).max(LEAST_PART)
}

fn tokens(index: usize, part: usize, count: usize) -> Range<usize> {
    index * part..index * part + count
}

/// Splits values into pieces of a length, or returns empty pieces for no values.
fn pieces(values: &mut [f32], length: usize) -> impl IndexedParallelIterator<Item = &mut [f32]> {
    let count = if length == 0 || values.is_empty() { VOCABULARY_PARTS } else { values.len().div_ceil(length) };
    let mut rest = values;
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        let (piece, behind) = rest.split_at_mut(length.min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces.into_par_iter()
}

/// Rows of a matrix, filled up to `lanes` with zeros.
fn filled(matrix: &HostMatrix, rows: Range<usize>, lanes: usize) -> Vec<f32> {
    let mut filled = matrix.rows(rows).into_owned();
    filled.resize(lanes * matrix.columns(), 0.0);
    filled
}

/// Some tokens' rows of a matrix, at most so many at a time as should be widened at once.
fn runs(matrix: &HostMatrix, tokens: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let most = if matrix.is_narrow() { WIDENED } else { tokens.len().max(1) };
    let end = tokens.end;
    tokens.step_by(most).map(move |first| first..end.min(first + most))
}

/// `out[token] = matrix[token] rows^T`, or `+=`: `[tokens, k] x [l, k] -> [tokens, l]`.
fn product(out: &mut [f32], l: usize, matrix: &HostMatrix, tokens: Range<usize>, rows: &[f32], add: bool) {
    let (k, first) = (matrix.columns(), tokens.start);
    for run in runs(matrix, tokens) {
        let own = matrix.rows(run.clone());
        let out = &mut out[(run.start - first) * l..];
        multiply(out, l, Matrix::rows(&own, run.len(), k, k), Matrix::rows(rows, l, k, k).turned(), add);
    }
}

/// `out += matrix[tokens]^T gradient`: `[tokens, k] x [tokens, l] -> [k, l]`.
fn back(out: &mut [f32], l: usize, matrix: &HostMatrix, tokens: Range<usize>, gradient: &[f32]) {
    let (k, first) = (matrix.columns(), tokens.start);
    for run in runs(matrix, tokens) {
        let own = matrix.rows(run.clone());
        let gradient = Matrix::rows(&gradient[(run.start - first) * l..], run.len(), l, l);
        multiply(out, l, Matrix::rows(&own, run.len(), k, k).turned(), gradient, true);
    }
}

/// Caps logits; where slopes are wanted, `d(c tanh(x / c)) / dx = 1 - tanh(x / c)^2`.
fn soft_caps(logits: &mut [f32], slopes: &mut [f32], cap: f32) {
    simd::vectorized(
        #[inline(always)]
        || {
            logits.iter_mut().for_each(|x| *x = simd::soft_cap(*x, cap));
            slopes.iter_mut().zip(&*logits).for_each(|(slope, x)| *slope = 1.0 - (x / cap) * (x / cap));
        },
    );
}

fn tensor(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
