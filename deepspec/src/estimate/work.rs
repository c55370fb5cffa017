//! Floating-point operations of a training.
//!
//! Legend: as in [`memory`](super::memory).

use dspark_runtime::model::{DraftKind, LayerConfig};

use super::memory::{MicroBatchShape, ModelShapes};

/// Operations of a micro-batch: the teacher's pass, the draft's there and twice as many back, and the loss.
pub fn operations(models: &ModelShapes<'_>, shape: &MicroBatchShape) -> f64 {
    let (target, draft) = (models.target, models.draft);
    let (s, n) = (shape.tokens as f64, (shape.blocks * draft.block_size) as f64);
    let d = target.layer.hidden_size as f64;
    let of_target: f64 = target.layers.iter().map(|layer| slot_products(layer, 1) + context_products(layer, 1)).sum();
    // Attention reads rows this many times as wide as the hidden size.
    let beside = match draft.kind {
        DraftKind::DSpark(_) => 1,
        DraftKind::Eagle3(_) => 2,
    };
    let layers = draft.num_hidden_layers as f64;
    let of_slots = layers * (slot_products(&draft.layer, beside) + context_products(&draft.layer, beside));
    let of_context = layers * context_products(&draft.layer, beside) + draft.feature_width() as f64 * d;
    let rank = draft.markov_rank() as f64;
    let (u, v) = (draft.draft_vocab_size as f64, draft.vocab_size as f64);
    // Logits of draft and teacher, the gradient of the hidden states, and all three of the Markov head.
    let loss = shape.supervised as f64 * (2.0 * u * d + v * d + 3.0 * u * rank);
    let of_target = if models.cached { 0.0 } else { of_target };
    2.0 * (s * of_target + 3.0 * (n * of_slots + s * of_context) + loss)
}

/// Returns the products per row of a layer's queries, output and MLP; its input is `beside` times as wide as the hidden
/// size.
fn slot_products(layer: &LayerConfig, beside: usize) -> f64 {
    let (d, q) = (layer.hidden_size, layer.query_width());
    let width = layer.experts.map_or(layer.intermediate_size, |experts| experts.per_token * experts.width);
    (d * (beside + 1) * q + 3 * d * width) as f64
}

/// Returns the products per row of its keys and values.
fn context_products(layer: &LayerConfig, beside: usize) -> f64 {
    (2 * beside * layer.hidden_size * layer.key_value_width()) as f64
}
