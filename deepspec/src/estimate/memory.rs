//! Memory of a training step, computed from shapes.
//!
//! Legend: `s` tokens of a micro-batch, `n` block slots, `r` supervised slots, `d` hidden size, `q` and `k` widths of queries and of
//! keys, `f` width inside the MLP, `m` captured layers, `u` tokens that the draft can propose, `v` vocabulary.

use burn::tensor::{DType, Device};
use dspark_runtime::model::{DraftConfig, DraftKind, LayerConfig, TargetConfig};
use serde::Serialize;

use crate::objective::{VOCABULARY_PARTS, vocabulary_chunk};

/// Bytes of a number.
const F32: usize = 4;

/// Memory of threads, product buffers and code that training adds to the process.
const PROGRAM: usize = 18 << 20;

/// Factor for the memory of temporary tensors: tensors of all sizes fragment the allocator.
const HOLES: f64 = 1.12;

/// Factor of the weights' memory for writing a checkpoint: the moments. Weights are read one by one.
const SAVING: usize = 2;

/// The shape of one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MicroBatchShape {
    /// Tokens of all samples.
    pub tokens: usize,
    /// Trained blocks.
    pub blocks: usize,
    /// Slots that count in the loss.
    pub supervised: usize,
}

/// Bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Memory of the process before training: program, tokeniser, data. None of it is in a GPU's memory.
    pub process: usize,
    /// The target's weights.
    pub target: usize,
    /// The draft's own weights.
    pub draft: usize,
    /// Moments of the optimiser.
    pub optimizer: usize,
    /// Gradients, of this micro-batch and of those before.
    pub gradients: usize,
    /// The target's pass over the largest micro-batch.
    pub teacher: usize,
    /// Bytes that the draft's pass keeps for the backward pass, including features of the target.
    pub activations: usize,
    /// One chunk of the loss over the vocabulary, and its gradients.
    pub vocabulary: usize,
    /// Peak of all of it.
    pub peak: usize,
}

/// Numbers of parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Bytes of the target.
    pub target: usize,
    /// Trained.
    pub draft: usize,
    /// The largest trained tensor.
    pub largest: usize,
}

/// Shapes of the models of a training, and where it would run.
#[derive(Clone, Copy, Debug)]
pub struct ModelShapes<'a> {
    /// The teacher.
    pub target: &'a TargetConfig,
    /// The draft.
    pub draft: &'a DraftConfig,
    /// Their sizes.
    pub parameters: Parameters,
    /// The device of the planned training.
    pub device: &'a Device,
    /// True if hidden states come from a cache, so that the target computes nothing.
    pub cached: bool,
    /// The number type of matrix products. Activations of a pass are counted as f32 all the same, which is at most
    /// twice as much.
    pub products: DType,
}

impl ModelShapes<'_> {
    /// Memory of a step whose largest micro-batch this is. `several` micro-batches need their gradients added up.
    pub fn memory(&self, process: usize, shape: &MicroBatchShape, several: bool) -> Memory {
        let weights = F32 * self.parameters.draft;
        let features = F32 * shape.tokens * (self.draft.target_layer_ids.len() + 1) * self.target.layer.hidden_size;
        let teacher = if self.cached { features } else { self.teacher(shape.tokens) };
        let vocabulary = self.vocabulary(shape);
        let activations = features + self.activations(shape);
        let gradients = if several { 2 * weights } else { weights };
        let before = gradients - weights;
        let (target, optimizer) = (F32 * self.parameters.target, 2 * weights);
        let always = process + PROGRAM + target + weights + optimizer;
        // The teacher's pass; the draft's, before its gradients replace what it kept; the end of the way back; the optimiser, tensor
        // by tensor; a checkpoint.
        let passing = [
            before + teacher,
            before + activations + vocabulary,
            before + weights + features,
            weights + 3 * F32 * self.parameters.largest,
            SAVING * weights,
        ];
        let passing = passing.into_iter().max().unwrap_or(0);
        let peak = always + (HOLES * passing as f64) as usize;
        Memory { process, target, draft: weights, optimizer, gradients, teacher, activations, vocabulary, peak }
    }

    /// The target's pass, features included.
    fn teacher(&self, s: usize) -> usize {
        let Widths { d, q, k, f } = Widths::of(&self.target.layer);
        let m = self.draft.target_layer_ids.len();
        let inside_a_layer = m * d + 3 * d + (3 * f).max(2 * q + 4 * k);
        let at_the_end = 2 * m * d + 2 * d;
        F32 * s * inside_a_layer.max(at_the_end)
    }

    /// Returns the bytes that the draft's forward pass keeps.
    fn activations(&self, shape: &MicroBatchShape) -> usize {
        let Widths { d, q, k, f } = Widths::of(&self.draft.layer);
        let (s, n) = (shape.tokens, shape.blocks * self.draft.block_size);
        let layers = self.draft.num_hidden_layers;
        let (context, slots) = match self.draft.kind {
            // Keys before their norm and behind the rotation, and values.
            DraftKind::DSpark(_) => (layers * 3 * k + 2 * d, layers * (4 * d + 3 * q + 3 * k + 3 * f) + 2 * d),
            // A slot's keys and values are put together anew with those before it in every step.
            DraftKind::Eagle3(_) => (3 * k + 4 * d, 8 * d + 3 * q + k + 3 * f + k * (self.draft.block_size + 1)),
        };
        let heads = shape.supervised * (2 * d + 2 * self.draft.markov_rank());
        F32 * (s * context + n * slots + heads)
    }

    /// Returns the bytes of a chunk of rows: the logits of draft and teacher, their gradients, and either the slopes of
    /// capped logits (on the CPU) or the Markov head's bias (elsewhere).
    fn vocabulary(&self, shape: &MicroBatchShape) -> usize {
        let (u, v, rank) = (self.draft.draft_vocab_size, self.draft.vocab_size, self.draft.markov_rank());
        let d = self.draft.layer.hidden_size;
        let rows = shape.supervised.min(vocabulary_chunk(u, self.device));
        let derived = shape.supervised * (d + rank) + u * rank;
        // What is multiplied, as products take it.
        let copies = if self.products == DType::F32 { 0 } else { self.products.size() * ((u + v) * d + u * rank) };
        let chunk = if *self.device == Device::flex() {
            let draft = if self.draft.logit_softcap.is_some() { 2 * u } else { u };
            rows * (draft + v + VOCABULARY_PARTS * (d + rank))
        } else {
            let draft = if rank > 0 { 2 * u } else { u };
            rows * (draft + v) + u * rank
        };
        F32 * (chunk + derived) + copies
    }
}

/// Widths of a layer's rows.
struct Widths {
    d: usize,
    q: usize,
    k: usize,
    f: usize,
}

impl Widths {
    fn of(layer: &LayerConfig) -> Self {
        Self { d: layer.hidden_size, q: layer.query_width(), k: layer.key_value_width(), f: layer.intermediate_size }
    }
}
