//! Tensor names of GGUF and of Hugging Face, and the order of rotated rows.

use super::super::CheckpointError;
use super::file::GgufFile;

/// Parts of a layer: `blk.N.<left>` is `layers.N.<right>`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Tensors of a target outside of its layers.
const TARGET: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Tensors of a draft outside of its layers.
const DRAFT: [(&str, &str); 8] = [
    ("token_embd", "embed_tokens"),
    ("output", "lm_head"),
    ("output_norm", "norm"),
    ("fc", "fc"),
    ("enc.output_norm", "hidden_norm"),
    ("markov_w1", "markov_head.markov_w1"),
    ("markov_w2", "markov_head.markov_w2"),
    ("conf_proj", "confidence_head.proj"),
];

/// The order of the rows of one head of q and k. The rotary embedding rotates pairs of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Row `i` belongs to row `i + half`: Hugging Face's, and that of most GGUF architectures.
    Halves,
    /// Rows `2 i` and `2 i + 1` belong together: that of GGUF's `llama`.
    Pairs,
}

/// Rows in the other order: `data` has `rows` rows of equal length, for `heads` heads of an even number of rows each.
pub fn reorder_rows<T: Copy>(data: &[T], rows: usize, heads: usize, to: RowOrder) -> Vec<T> {
    let (row, head) = (data.len() / rows, rows / heads);
    let half = head / 2;
    let mut reordered = Vec::with_capacity(data.len());
    for to_row in 0..rows {
        let (first, within) = (to_row / head * head, to_row % head);
        let from = match to {
            RowOrder::Halves => 2 * (within % half) + within / half,
            RowOrder::Pairs => within % 2 * half + within / 2,
        };
        reordered.extend_from_slice(&data[(first + from) * row..][..row]);
    }
    reordered
}

/// The name that a target's tensor has in Hugging Face files; `None` for one that targets do not have.
pub(super) fn hugging_face_name(name: &str) -> Option<String> {
    let (part, suffix) = name.rsplit_once('.')?;
    let found = |table: &[(&str, &'static str)], part: &str| {
        table.iter().find(|(gguf, _)| *gguf == part).map(|(_, hugging_face)| *hugging_face)
    };
    match part.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => {
            let layer: usize = layer.parse().ok()?;
            Some(format!("model.layers.{layer}.{}.{suffix}", found(&LAYER, part)?))
        }
        None => Some(format!("{}.{suffix}", found(&TARGET, part)?)),
    }
}

/// The name that a target's tensor has in GGUF files; `None` for one that no target has.
pub fn target_tensor_name(name: &str) -> Option<String> {
    gguf_name(name, "model.layers.", &TARGET)
}

/// The name that a draft's tensor has in GGUF files; `None` for one that no draft has.
pub fn draft_tensor_name(name: &str) -> Option<String> {
    gguf_name(name, "layers.", &DRAFT)
}

fn gguf_name(name: &str, layers: &str, around: &[(&'static str, &str)]) -> Option<String> {
    let (part, suffix) = name.rsplit_once('.')?;
    let found = |table: &[(&'static str, &str)], part: &str| {
        table.iter().find(|(_, hugging_face)| *hugging_face == part).map(|(gguf, _)| *gguf)
    };
    match part.strip_prefix(layers).and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => Some(format!("blk.{layer}.{}.{suffix}", found(&LAYER, part)?)),
        None => Some(format!("{}.{suffix}", found(around, part)?)),
    }
}

/// Heads whose rows lie in pairs in this tensor of a file; `None` when its rows lie as Hugging Face's.
pub(super) fn paired_heads(file: &GgufFile, tensor: &str) -> Result<Option<usize>, CheckpointError> {
    const HEADS: &str = "llama.attention.head_count";
    if file.text("general.architecture")? != Some("llama") {
        return Ok(None);
    }
    let key = match tensor.rsplit('.').nth(1) {
        Some("attn_q") => HEADS,
        Some("attn_k") if file.get("llama.attention.head_count_kv").is_some() => "llama.attention.head_count_kv",
        Some("attn_k") => HEADS,
        _ => return Ok(None),
    };
    file.size(key, 1)?.map(Some).ok_or_else(|| file.wrong(key, "a whole number >= 1"))
}
