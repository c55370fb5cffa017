//! Time and peak memory of the two operations with derivatives of their own, forward and backward, against the same composed of
//! tensor operations that autodiff derives: the vocabulary loss by rows and vocabulary, the attention of blocks by context
//! and blocks.
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p deepspec --bench operations`
//!
//! Memory is what is allocated at most beyond the inputs, counted by an allocator. Where the composed form would take more than
//! this machine has, it is not run.

mod shape;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use deepspec::objective::{VocabularyRows, VocabularyWeights, vocabulary_loss};
use dspark_runtime::Normals;
use dspark_runtime::model::{KeysValues, attend_blocks, unseen_context};

/// The composed form is run up to so many numbers in its largest tensor.
const MOST_COMPOSED: usize = 80 << 20;

fn main() {
    // Nothing to be timed where tests are run.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    rayon::scope(|_| {
        println!("| rows x vocabulary | ours, ms | MiB | composed, ms | MiB |\n|---|---|---|---|---|");
        for (rows, vocabulary) in
            [(112, 32_768), (448, 32_768), (1792, 32_768), (3584, 32_768), (448, 4_096), (448, 151_936)]
        {
            VocabularyCase::new(rows, vocabulary).report();
        }
        println!("\n| blocks of 7, context | ours, ms | MiB | composed, ms | MiB |\n|---|---|---|---|---|");
        for (blocks, context) in
            [(64, 512), (64, 1024), (64, 2048), (64, 4096), (256, 2048), (512, 2048), (512, 4096)]
        {
            AttentionCase::new(blocks, context).report();
        }
    });
}

/// Milliseconds and MiB of an operation; the median of three times behind a first one.
fn measured(operation: impl Fn()) -> String {
    operation();
    let before = allocated();
    let times: Vec<f64> = (0..3)
        .map(|_| {
            let started = Instant::now();
            operation();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let most = most_allocated().saturating_sub(before);
    format!("{:.1} | {:.0}", shape::median(&times), most as f64 / f64::from(1 << 20))
}

fn tracked<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(x.clone()).require_grad()
}

struct VocabularyCase {
    rows: VocabularyRows,
    weights: VocabularyWeights,
    inputs: [Tensor<2>; 3],
}

impl VocabularyCase {
    fn new(n: usize, v: usize) -> Self {
        let device = Device::flex();
        let (d, r) = (256, 64);
        let mut normals = Normals::new(2);
        let mut normal = |rows: usize, width: usize| normals.tensor::<2>([rows, width], 1.0, &device);
        let inputs = [normal(n, d), normal(n, r), normal(v, r) * 0.1];
        let rows = VocabularyRows {
            hidden_nd: inputs[0].clone(),
            markov: Some((inputs[1].clone(), inputs[2].clone())),
            head_vd: normal(v, d) * 0.1,
            softcap: None,
            vocabulary: None,
            teacher_td: normal(n, d),
            teacher_head_vd: normal(v, d) * 0.1,
            teacher_rows: (0..n).collect(),
            labels: (0..n).map(|row| Some((row * 7 % v) as u32)).collect(),
            products: DType::F32,
        };
        let weights = VocabularyWeights {
            cross_entropy: vec![0.1 / n as f32; n],
            soft_cross_entropy: vec![0.0; n],
            l1: vec![0.9 / n as f32; n],
        };
        Self { rows, weights, inputs }
    }

    fn report(&self) {
        let ours = measured(|| {
            let [hidden_nd, factors, w2] = self.inputs.each_ref().map(tracked);
            let rows = VocabularyRows { hidden_nd, markov: Some((factors, w2)), ..self.rows.clone() };
            let loss = vocabulary_loss(&rows, Some(&self.weights));
            loss.surrogate.expect("there are weights").backward();
        });
        let [v, _] = self.rows.head_vd.dims();
        let n = self.rows.labels.len();
        let composed = if n * v <= MOST_COMPOSED { measured(|| self.composed()) } else { "not run | ".into() };
        println!("| {n} x {v} | {ours} | {composed} |");
    }

    fn composed(&self) {
        let n = self.rows.labels.len();
        let [hidden, factors, w2] = self.inputs.each_ref().map(tracked);
        let device = hidden.device();
        let constant = |x: &Tensor<2>| Tensor::<2>::from_inner(x.clone());
        let logits = hidden.matmul(constant(&self.rows.head_vd).transpose()) + factors.matmul(w2.transpose());
        let q = softmax(self.rows.teacher_td.clone().matmul(self.rows.teacher_head_vd.clone().transpose()), 1);
        let labels: Vec<i32> = self.rows.labels.iter().map(|label| label.unwrap_or(0) as i32).collect();
        let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [n, 1]), &device);
        let log_p = log_softmax(logits, 1);
        let cross_entropy = log_p.clone().gather(1, labels).neg();
        let l1 = (log_p.exp() - constant(&q)).abs().sum_dim(1);
        ((cross_entropy * 0.1 + l1 * 0.9).sum() / n as f64).backward();
    }
}

struct AttentionCase {
    inputs: [Tensor<3>; 5],
    seen: Vec<Range<usize>>,
    context: usize,
}

/// Heads, heads of keys and values, head width, slots.
const HEADS: [usize; 4] = [8, 4, 32, 7];

impl AttentionCase {
    fn new(blocks: usize, context: usize) -> Self {
        let device = Device::flex();
        let [h, c, w, k] = HEADS;
        let mut normals = Normals::new(3);
        let mut random = |rows: usize, heads: usize| normals.tensor([rows, heads, w], 1.0, &device);
        let own = blocks * k;
        let inputs = [random(own, h), random(context, c), random(context, c), random(own, c), random(own, c)];
        Self { inputs, seen: (0..blocks).map(|block| 0..(block + 1) * context / blocks).collect(), context }
    }

    fn report(&self) {
        let ours = measured(|| {
            let [queries, keys, values, own_keys, own_values] = self.inputs.each_ref().map(tracked);
            let context = KeysValues { keys_ncw: keys, values_ncw: values };
            let block = KeysValues { keys_ncw: own_keys, values_ncw: own_values };
            attend_blocks(queries, &context, &block, &self.seen, false).sum().backward();
        });
        let blocks = self.seen.len();
        let [h, _, _, k] = HEADS;
        let scores = blocks * k * h * (self.context + blocks * k);
        let composed = if scores <= MOST_COMPOSED { measured(|| self.composed()) } else { "not run | ".into() };
        println!("| {blocks}, {} | {ours} | {composed} |", self.context);
    }

    /// All queries against all keys, masked, as one that does not know of blocks would.
    fn composed(&self) {
        let [h, c, w, k] = HEADS;
        let [queries, keys, values, own_keys, own_values] = self.inputs.each_ref().map(tracked);
        let device = Device::flex();
        let (a, s) = (self.seen.len(), self.context);
        let n = a * k;
        let all = |context: Tensor<3>, own: Tensor<3>| Tensor::cat(vec![context, own], 0).swap_dims(0, 1);
        let queries = queries.swap_dims(0, 1).reshape([c, h / c * n, w]).mul_scalar((w as f64).powf(-0.5));
        let scores = queries.matmul(all(keys, own_keys).swap_dims(1, 2)).reshape([c, h / c, n, s + n]);
        let unseen =
            unseen_context(&self.seen, &(0..s), &device).reshape([a, 1, s]).expand([a, k, s]).reshape([n, s]);
        let own: Vec<bool> = (0..n * n).map(|pair| pair / n / k != pair % n / k).collect();
        let own = Tensor::<2, burn::tensor::Bool>::from_data(TensorData::new(own, [n, n]), &device);
        let mask = Tensor::cat(vec![unseen, own], 1).reshape([1, 1, n, s + n]).expand([c, h / c, n, s + n]);
        let mask = Tensor::from_inner(mask);
        let weights = softmax(scores.mask_fill(mask, -1e30), 3).reshape([c, h / c * n, s + n]);
        weights.matmul(all(values, own_values)).sum().backward();
    }
}

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are allocated now, from which on the most are counted.
fn allocated() -> usize {
    let now = ALLOCATED.load(Ordering::Relaxed);
    MOST.store(now, Ordering::Relaxed);
    now
}

fn most_allocated() -> usize {
    MOST.load(Ordering::Relaxed)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as asked of us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as asked of us.
        unsafe { System.dealloc(pointer, layout) }
    }
}
