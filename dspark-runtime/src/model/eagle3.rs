//! The Eagle3 drafter (Li et al., 2025): one decoder layer that continues from the target's features, token by token.
//!
//! Row `i` of its context has the feature of token `i` and the embedding of token `i + 1`. The layer's output for a row
//! predicts token `i + 2`, and replaces the feature in the next row, whose token was drafted. The block of an anchor
//! `p` therefore begins with row `p - 1`. Slot `j` has position `p - 1 + j` and sees the rows of features before
//! `p - 1` and the slots of its own block up to itself. Training unrolls it in the same way (test-time training), at
//! many anchors at once.
//!
//! Legend: `s` tokens of all samples, `a` anchors, `k` block size, `j` slots so far, `n` rows, `f` width of the target's
//! features, `d` hidden size, `c` key and value heads, `w` head width, `g` sequences still going, `u` tokens that the draft can
//! propose.

use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};

use super::attention::KeysValues;
use super::block_attention::attend_blocks;
use super::config::Family;
use super::draft::{Draft, DraftContext, DraftParameters, DraftSample, reserve_rows, seen_contexts, write_rows};
use super::draft_config::DraftConfig;
use super::drafter::{DraftKind, Drafter, Drafting, rows};
use super::kv_cache::Visible;
use super::layers::{DecoderLayer, Linear, RmsNorm};
use crate::checkpoint::{CheckpointError, JsonFields};
use crate::kernels;
use crate::tensors::{host, ints};

/// Settings of Eagle3 drafts alone. Their block size is the number of slots that training unrolls, `ttt_length`. The reference
/// captures exactly five target layers.
#[derive(Clone, Debug, Default)]
pub struct Eagle3Config {
    /// Slot `j` of a block weighs this to the power of `j` in training, if that is known; not used in decoding.
    pub step_loss_decay: Option<f64>,
}

impl Drafter for Eagle3Config {
    fn name(&self) -> &'static str {
        "Eagle3"
    }

    fn architecture(&self, family: Family) -> &'static str {
        if family == Family::Gemma4 { "Gemma4Eagle3Model" } else { "Qwen3Eagle3Model" }
    }

    fn block_size_field(&self) -> &'static str {
        "ttt_length"
    }

    fn read(&self, fields: &JsonFields, _vocab_size: usize) -> Result<DraftKind, CheckpointError> {
        for field in ["num_hidden_layers", "draft_num_hidden_layers"] {
            if fields.size(field, 1)? != 1 {
                return Err(fields.wrong(field, "1 (Eagle3 drafts have one layer)"));
            }
        }
        let ids = fields.integers("target_layer_ids")?;
        if ids.iter().any(|&id| id < 0) {
            return Err(fields.wrong("target_layer_ids", "layers of the target; -1 (the embedding) is not allowed"));
        }
        let step_loss_decay = fields.optional_float("step_loss_decay")?;
        if step_loss_decay.is_some_and(|decay| !(decay > 0.0 && decay <= 1.0)) {
            return Err(fields.wrong("step_loss_decay", "a number above 0 and at most 1"));
        }
        Ok(DraftKind::Eagle3(Self { step_loss_decay }))
    }

    fn own_fields(&self) -> &'static [&'static str] {
        &["draft_num_hidden_layers", "ttt_length", "step_loss_decay"]
    }

    fn fields(&self, block_size: usize) -> Value {
        let mut fields = json!({"draft_num_hidden_layers": 1, "ttt_length": block_size});
        if let Some(decay) = self.step_loss_decay {
            fields["step_loss_decay"] = json!(decay);
        }
        fields
    }

    fn parameters(&self, config: &DraftConfig, device: &Device) -> DraftParameters {
        let d = config.layer.hidden_size;
        DraftParameters {
            fc: Linear::new(config.feature_width(), d, false, device),
            hidden_norm: None,
            layers: vec![DecoderLayer::beside_embeddings(&config.layer, device)],
            norm: RmsNorm::new(d, config.layer.rms_norm_eps, device),
            markov_head: None,
            confidence_head: None,
        }
    }

    /// A token's row of the context has the embedding of the next one.
    fn lookahead(&self) -> usize {
        1
    }

    fn is_autoregressive(&self) -> bool {
        true
    }

    fn forward_blocks(
        &self,
        draft: &Draft,
        features_sf: Tensor<2>,
        samples: &[DraftSample<'_>],
        observe: &mut dyn FnMut(usize, &Tensor<2>),
    ) -> Tensor<2> {
        let device = features_sf.device();
        let dtype = features_sf.dtype();
        let lifted = |x: Tensor<2>| {
            let x = x.cast(dtype);
            if device.is_autodiff() { Tensor::from_inner(x) } else { x }
        };
        let layer = only_layer(draft);
        let hidden_sd = draft.context_feature(features_sf);
        // No row sees the row of a sample's last token, or a slot after it.
        let token = |sample: &DraftSample<'_>, position: usize| sample.ids.get(position).copied().unwrap_or(0);
        let following: Vec<u32> =
            samples.iter().flat_map(|sample| (1..=sample.ids.len()).map(|next| token(sample, next))).collect();
        let positions: Vec<usize> = samples.iter().flat_map(|sample| 0..sample.ids.len()).collect();
        let input_se = layer.input_beside(hidden_sd.clone(), lifted(draft.embedded(signed(&following))));
        let context = layer.self_attn.keys_values(input_se, &draft.rotary.at(&positions, &device));

        let seen = seen_contexts(samples, 1);
        let mut offset = 0;
        let mut first_rows = Vec::new();
        for sample in samples {
            first_rows.extend(sample.anchors.iter().map(|anchor| (offset + anchor - 1) as i32));
            offset += sample.ids.len();
        }
        let mut hidden_ad = hidden_sd.select(0, ints(first_rows, &device));
        let mut own: Vec<KeysValues> = Vec::new();
        let mut normed = Vec::new();
        for slot in 0..draft.config().block_size {
            let anchors =
                || samples.iter().flat_map(|sample| sample.anchors.iter().map(move |anchor| (sample, anchor)));
            let previous: Vec<u32> = anchors().map(|(sample, anchor)| token(sample, anchor + slot)).collect();
            let positions: Vec<usize> = anchors().map(|(_, anchor)| anchor - 1 + slot).collect();
            let rotation = draft.rotary.at(&positions, &device);
            hidden_ad =
                layer.forward_beside(hidden_ad, lifted(draft.embedded(signed(&previous))), |attention, input_ae| {
                    let (queries_ahw, new) = attention.project(input_ae, &rotation);
                    own.push(new);
                    let block = side_by_side(&own);
                    attention.output(attend_blocks(queries_ahw, &context, &block, &seen, false))
                });
            observe(slot, &hidden_ad);
            normed.push(draft.parameters.norm.forward(hidden_ad.clone()));
        }
        let [a, d] = hidden_ad.dims();
        let k = normed.len();
        Tensor::stack::<3>(normed, 1).reshape([a * k, d])
    }

    fn extend_contexts(
        &self,
        draft: &Draft,
        contexts: &mut [(&mut DraftContext, usize)],
        features_nf: Tensor<2>,
        following: &[u32],
    ) {
        let positions = reserve_rows(contexts);
        let rotation = draft.rotary.at(&positions, &features_nf.device());
        let hidden_nd = draft.context_feature(features_nf);
        let layer = only_layer(draft);
        let input_ne = layer.input_beside(hidden_nd.clone(), draft.embedded(signed(following)));
        write_rows(contexts, 0, &layer.self_attn.keys_values(input_ne, &rotation));
        // Only the last rows need more than keys and values.
        let mut ends = Vec::with_capacity(contexts.len());
        let mut first = 0;
        for (context, count) in contexts.iter_mut() {
            context.cache.advance(*count);
            first += *count;
            ends.push(first - 1..first);
        }
        let last = kernels::copied_rows(&hidden_nd, &ends);
        for ((context, _), last_1d) in contexts.iter_mut().zip(last) {
            context.newest = Some(last_1d);
        }
    }

    fn begin<'a>(
        &self,
        draft: &'a Draft,
        mut contexts: Vec<&'a mut DraftContext>,
        anchors: &[u32],
        slots: usize,
    ) -> Box<dyn Drafting + 'a> {
        let mut newest = Vec::with_capacity(contexts.len());
        for context in &mut contexts {
            context.cache.reserve(slots);
            let last_1d = context.newest.clone();
            newest.push(last_1d.unwrap_or_else(|| panic!("a context was not extended since it was truncated")));
        }
        Box::new(Eagle3Drafting {
            draft,
            lengths: contexts.iter().map(|context| context.cache.len()).collect(),
            going: (0..contexts.len()).collect(),
            contexts,
            hidden_gd: Tensor::cat(newest, 0),
            previous: anchors.to_vec(),
            hidden: Vec::new(),
            logits: Vec::new(),
        })
    }
}

/// Blocks while they are drafted: their slots follow the contexts' own rows.
struct Eagle3Drafting<'a> {
    draft: &'a Draft,
    contexts: Vec<&'a mut DraftContext>,
    /// Rows of the contexts themselves.
    lengths: Vec<usize>,
    going: Vec<usize>,
    /// The replacement for features in the next slot.
    hidden_gd: Tensor<2>,
    /// The tokens before the next slot, of the sequences still going.
    previous: Vec<u32>,
    /// The output of each slot so far.
    hidden: Vec<Tensor<2>>,
    /// Logits of the slot, `[g, u]`.
    logits: Vec<f32>,
}

impl Drafting for Eagle3Drafting<'_> {
    fn confidences(&mut self, previous: &[u32]) -> Option<Vec<f32>> {
        self.previous = previous.to_vec();
        None
    }

    fn logits(&mut self, kept: &[usize]) -> Vec<&mut [f32]> {
        if kept.is_empty() {
            self.going.clear();
            return Vec::new();
        }
        let went = self.going.len();
        let slot = self.hidden.len();
        self.going = kept.iter().map(|&index| self.going[index]).collect();
        let previous: Vec<u32> = kept.iter().map(|&index| self.previous[index]).collect();
        let hidden_gd = rows(self.hidden_gd.clone(), kept, went);
        let positions: Vec<usize> = self.going.iter().map(|&row| self.lengths[row] - 1 + slot).collect();
        let rotation = self.draft.rotary.at(&positions, &hidden_gd.device());
        let (contexts, going) = (&mut self.contexts, &self.going);
        kernels::keep_awake(&hidden_gd);
        let out_gd = only_layer(self.draft).forward_beside(
            hidden_gd,
            self.draft.embedded(signed(&previous)),
            |attention, input_ge| {
                let (queries_ghw, new) = attention.project(input_ge, &rotation);
                let mut attended = Vec::with_capacity(going.len());
                for (index, (&row, &position)) in going.iter().zip(&positions).enumerate() {
                    let cache = &mut contexts[row].cache;
                    // The first slot is the context's last row.
                    cache.truncate(position);
                    let queries_1hw = queries_ghw.clone().narrow(0, index, 1);
                    attended.push(cache.attend(0, queries_1hw, new.narrow(index, 1), Visible::Causal));
                    cache.advance(1);
                }
                attention.output(Tensor::cat(attended, 0))
            },
        );
        self.hidden_gd = out_gd.clone();
        let logits_gu = self.draft.proposal_logits(self.draft.parameters.norm.forward(out_gd.clone()));
        self.hidden.push(out_gd);
        let [_, u] = logits_gu.dims();
        self.logits = host(logits_gu);
        self.logits.chunks_mut(u).collect()
    }

    fn hidden(&self) -> Tensor<2> {
        Tensor::cat(self.hidden.clone(), 0)
    }
}

impl Drop for Eagle3Drafting<'_> {
    /// The slots go, and the contexts are what they were.
    fn drop(&mut self) {
        for (context, &length) in self.contexts.iter_mut().zip(&self.lengths) {
            context.cache.truncate(length);
        }
    }
}

/// The layer of an Eagle3 draft.
fn only_layer(draft: &Draft) -> &DecoderLayer {
    &draft.parameters.layers[0]
}

/// Token ids as tables take them.
fn signed(ids: &[u32]) -> Vec<i32> {
    ids.iter().map(|&id| id as i32).collect()
}

/// Keys and values of the slots so far, each `[a, c, w]`, anchor by anchor: `[a * j, c, w]`
fn side_by_side(own: &[KeysValues]) -> KeysValues {
    let stacked = |of: fn(&KeysValues) -> &Tensor<3>| {
        let x_ajcw: Tensor<4> = Tensor::stack(own.iter().map(|slot| of(slot).clone()).collect(), 1);
        let [a, j, c, w] = x_ajcw.dims();
        x_ajcw.reshape([a * j, c, w])
    };
    KeysValues { keys_ncw: stacked(|own| &own.keys_ncw), values_ncw: stacked(|own| &own.values_ncw) }
}
