//! What a training step keeps in memory, counted from shapes.
//!
//! Legend: `s` tokens of a micro-batch, `n` block slots, `r` supervised slots, `d` hidden size, `q` and `k` widths of queries and of
//! keys, `f` width inside the MLP, `m` captured layers, `u` tokens that the draft can propose, `v` vocabulary.

use burn::tensor::{DType, Device};
use dspark_runtime::model::{DraftConfig, LayerConfig, TargetConfig};
use serde::Serialize;

use crate::objective::vocabulary_chunk;

/// Bytes of a number.
const F32: usize = 4;

/// What threads, buffers of products, code that training runs through and holes in the allocator take beyond what the process had before.
const PROGRAM: usize = 20 << 20;

/// Writing a checkpoint takes so many times the weights: copies of weights and moments, and the bytes that they become.
const SAVING: f64 = 5.5;

/// The share of a step's memory that the allocator has not given back when a checkpoint is written right behind it.
const NOT_GIVEN_BACK: f64 = 0.4;

/// What goes through the models together.
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
    /// What the process had when the plan was made: program, tokeniser, data. Nothing of it is in a device's own memory.
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
    /// What the draft's pass over it keeps for the way back, features of the target included.
    pub activations: usize,
    /// One chunk of the loss over the vocabulary, and its gradients.
    pub vocabulary: usize,
    /// All of it that is there at once, at most.
    pub peak: usize,
}

/// Numbers of parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Of the target.
    pub target: usize,
    /// Trained.
    pub draft: usize,
    /// The largest trained tensor.
    pub largest: usize,
}

/// What is known before anything is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Models<'a> {
    /// The teacher.
    pub target: &'a TargetConfig,
    /// The draft.
    pub draft: &'a DraftConfig,
    /// Their sizes.
    pub parameters: Parameters,
    /// Where it would run.
    pub device: &'a Device,
    /// What matrix products would be taken in. What a pass keeps is counted as f32 all the same, which is at most twice as much.
    pub products: DType,
}

impl Models<'_> {
    /// Memory of a step whose largest micro-batch this is. `several` micro-batches need their gradients added up.
    pub fn memory(&self, process: usize, shape: &MicroBatchShape, several: bool) -> Memory {
        let weights = F32 * self.parameters.draft;
        let features = F32 * shape.tokens * (self.draft.target_layer_ids.len() + 1) * self.target.layer.hidden_size;
        let (teacher, vocabulary) = (self.teacher(shape.tokens), self.vocabulary(shape));
        let activations = features + self.activations(shape);
        let gradients = if several { 2 * weights } else { weights };
        let before = gradients - weights;
        let (target, optimizer) = (F32 * self.parameters.target, 2 * weights);
        let always = process + PROGRAM + target + weights + optimizer;
        let left = NOT_GIVEN_BACK * (activations + vocabulary) as f64;
        // The teacher's pass; the draft's, before its gradients replace what it kept; the optimiser, tensor by tensor; a
        // checkpoint.
        let peak = [
            before + teacher,
            before + activations + vocabulary,
            before + activations.max(weights + features) + self.way_back(shape),
            weights + 3 * F32 * self.parameters.largest,
            (SAVING * weights as f64 + left) as usize,
        ];
        let peak = always + peak.into_iter().max().unwrap_or(0);
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

    /// What the draft's forward pass keeps.
    fn activations(&self, shape: &MicroBatchShape) -> usize {
        let Widths { d, q, k, f } = Widths::of(&self.draft.layer);
        let (s, n) = (shape.tokens, shape.blocks * self.draft.block_size);
        let layers = self.draft.num_hidden_layers;
        // Keys before their norm and behind the rotation, and values.
        let context = if self.draft.drafter.lookahead() == 0 { layers * 3 * k } else { 3 * k + 3 * d };
        let slots = match self.draft.drafter.lookahead() {
            0 => layers * (4 * d + 3 * q + 3 * k + 3 * f),
            // A slot's keys and values are put together anew with those before it in every step.
            _ => 7 * d + 3 * q + 3 * k + 3 * f + k * (self.draft.block_size + 1),
        };
        let heads = shape.supervised * (2 * d + 2 * self.draft.markov_rank);
        F32 * (s * (2 * d + context) + n * (slots + 2 * d) + heads)
    }

    /// What the way back needs beside what was kept and what it yields: gradients of one layer's widest rows.
    fn way_back(&self, shape: &MicroBatchShape) -> usize {
        let Widths { d, q, f, .. } = Widths::of(&self.draft.layer);
        let n = shape.blocks * self.draft.block_size;
        F32 * n * (3 * f + 2 * d + q)
    }

    /// A chunk of rows with base logits, Markov bias and the teacher's logits.
    fn vocabulary(&self, shape: &MicroBatchShape) -> usize {
        let (u, v, rank) = (self.draft.draft_vocab_size, self.draft.vocab_size, self.draft.markov_rank);
        let rows = shape.supervised.min(vocabulary_chunk(u, self.device));
        let drafts = if rank > 0 { 2 * u } else { u };
        let d = self.draft.layer.hidden_size;
        // What is multiplied, as products take it.
        let copies = if self.products == DType::F32 { 0 } else { self.products.size() * ((u + v) * d + u * rank) };
        F32 * (rows * (drafts + v) + 2 * u * rank + shape.supervised * (d + rank)) + copies
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
