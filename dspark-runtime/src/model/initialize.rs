//! Initialisation of a draft: random, or with copies of the target's last layers.
//!
//! A draft layer reads the same kind of context as a target layer: keys and values of hidden states. Draft layer `j` of
//! `n` is therefore initialised from target layer `N - n + j`, `fc` passes on the captured layer directly before the
//! first of them (or the nearest one below), and the final norm is the target's. The copies then see the same context
//! as the originals, as far as one hidden state can replace that of every later layer. Training has to learn the step
//! from a bare embedding to the input of the originals.
//!
//! A draft has one norm for the context of all its layers, but the target has one per layer. The weights of norms are
//! therefore multiplied into the matrices that follow them, and the norms start at one.
//!
//! Draft layers norm their queries and keys. Where the target does not, these norms start at the length that the target's
//! own queries and keys have on given texts.
//!
//! Legend: `n` rows (tokens of the texts), `d` hidden size, `m` captured layers.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use super::draft::Draft;
use super::layers::DecoderLayer;
use super::target::{LayerId, Target, TargetSegment};
use crate::checkpoint::with_stable_ids;
use crate::tensors::host;

/// The matrices after the norm before attention.
const ATTENTION: (&str, [&str; 3]) =
    ("input_layernorm.weight", ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]);

/// The matrices after the norm before the MLP; the norm is the first of these that a layer has.
const MLP: ([&str; 2], [&str; 2]) = (
    ["pre_feedforward_layernorm.weight", "post_attention_layernorm.weight"],
    ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
);

impl Draft {
    /// Returns the draft with its parameters initialised from the target, a better start than random ones.
    ///
    /// `texts` are token ids that the target may be asked about, at least one text; they matter only for a target without
    /// q/k norms.
    pub fn initialized_from(&self, target: &Target, texts: &[&[u32]]) -> Self {
        let mut parameters = self.parameters.clone();
        let depth = parameters.layers.len();
        // If the target's layers differ, those of the draft's kind.
        let alike: Vec<usize> =
            (0..target.layers().len()).filter(|&layer| target.config().layers[layer].window().is_none()).collect();
        let first = alike.len().saturating_sub(depth);
        let sources: Vec<usize> = (0..depth).map(|layer| alike[(first + layer).min(alike.len() - 1)]).collect();
        let inputs: Vec<LayerId> = sources.iter().map(|&source| LayerId(source as i64 - 1)).collect();
        let d = self.config().layer.hidden_size;
        let needs_norms = !target.config().layer.qk_norm;
        let inputs_nf = needs_norms.then(|| {
            let mut segments: Vec<TargetSegment<'_>> =
                texts.iter().map(|ids| TargetSegment { ids, cache: None }).collect();
            let output = target.forward(&mut segments, &inputs);
            output.features_nf.unwrap_or(output.last_hidden_nd)
        });
        for (index, (layer, &source)) in parameters.layers.iter_mut().zip(&sources).enumerate() {
            let original = &target.layers()[source];
            *layer = folded_copy(layer.clone(), original);
            if let Some(inputs_nf) = &inputs_nf {
                let normed_nd = original.input_layernorm.forward(inputs_nf.clone().narrow(1, index * d, d));
                layer.self_attn.norm_like(&original.self_attn, normed_nd);
            }
        }
        let ids = &self.config().target_layer_ids;
        let nearest = ids.iter().rposition(|id| *id <= inputs[0]).unwrap_or(0);
        let device = target.device();
        let passed_on = |slot: usize| {
            if slot == nearest { Tensor::<2>::eye(d, device) } else { Tensor::zeros([d, d], device) }
        };
        parameters.fc.weight = parameters.fc.weight.map(|_| Tensor::cat((0..ids.len()).map(passed_on).collect(), 1));
        parameters.norm = target.final_norm().clone();
        self.with_parameters(with_stable_ids(parameters))
    }
}

/// Returns a layer that computes the same as another one, with norms of one. Tensors that the other one lacks, or has
/// in another shape, are unchanged.
fn folded_copy(layer: DecoderLayer, from: &DecoderLayer) -> DecoderLayer {
    let mut tensors = Tensors::default();
    from.visit(&mut tensors);
    let before_mlp = MLP.0.into_iter().find(|norm| tensors.by_name.contains_key(*norm));
    let norms = [Some((ATTENTION.0, &ATTENTION.1[..])), before_mlp.map(|norm| (norm, &MLP.1[..]))];
    for (norm, matrices) in norms.into_iter().flatten() {
        let Some((_, factors)) = tensors.by_name.get_mut(norm) else { continue };
        let columns = factors.len();
        let factors = std::mem::replace(factors, vec![1.0; columns]);
        for &matrix in matrices {
            let Some((_, values)) = tensors.by_name.get_mut(matrix) else { continue };
            for row in values.chunks_mut(factors.len()) {
                row.iter_mut().zip(&factors).for_each(|(value, factor)| *value *= factor);
            }
        }
    }
    layer.map(&mut tensors)
}

/// Tensors by the name that they have in their module: shapes and values.
#[derive(Default)]
struct Tensors {
    path: Vec<String>,
    by_name: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl ModuleVisitor for Tensors {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.by_name.insert(self.path.join("."), (param.lazy_shape().to_vec(), host(param.val())));
    }
}

impl ModuleMapper for Tensors {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        match self.by_name.remove(&self.path.join(".")) {
            Some((found, values)) if found == shape.to_vec() => {
                param.map(|old| Tensor::from_data(TensorData::new(values, shape), &old.device()))
            }
            _ => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use serde_json::{Value, json};

    use super::*;
    use crate::Normals;
    use crate::checkpoint::JsonFields;
    use crate::model::{DSparkConfig, DraftConfig, DraftKind, DraftShape, Rotary, TargetConfig};

    const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

    /// A target whose norms are not one, and a new draft of its last `depth` layers.
    fn models(architecture: &str, depth: usize) -> (Target, Draft) {
        struct Shake(Normals, ChaCha8Rng);
        impl ModuleMapper for Shake {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|old| match D {
                    1 => {
                        let values = (0..old.shape().num_elements()).map(|_| self.1.random_range(0.5_f32..2.0));
                        Tensor::from_data(TensorData::new(values.collect(), old.shape()), &old.device())
                    }
                    _ => self.0.tensor(old.shape(), 0.2, &old.device()),
                })
            }
        }
        let mut fields = json!({
            "architectures": [architecture], "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 4, "vocab_size": 40,
            "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        if architecture.starts_with("Gemma4") {
            let own = json!({
                "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": true, "sliding_window": 4,
                "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"],
                "hidden_size_per_layer_input": 0, "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.5},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            });
            own.as_object().unwrap().iter().for_each(|(field, value)| fields[field] = value.clone());
        }
        let Value::Object(fields) = fields else { unreachable!("an object was written") };
        let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
        let shape = DraftShape {
            block_size: 3,
            num_draft_layers: depth,
            target_layer_ids: vec![LayerId(0), LayerId(3 - depth as i64)],
            kind: DraftKind::DSpark(DSparkConfig::new(39, 4)),
        };
        let draft = DraftConfig::for_target(&config, &shape).unwrap();
        let target = Target::random(config, 21, &Device::flex());
        let mut shake = Shake(Normals::new(22), ChaCha8Rng::seed_from_u64(23));
        let target = target.with_parameters(target.parameters().clone().map(&mut shake));
        let draft = Draft::new(draft, &target, 24);
        (target, draft)
    }

    #[test]
    fn a_fresh_draft_is_spread_as_its_configuration_says() {
        let (target, draft) = models("Qwen3ForCausalLM", 1);
        for std in [0.02, 0.08] {
            let mut config = draft.config().clone();
            config.initializer_range = std;
            let fresh = Draft::new(config, &target, 25).parameters;
            let markov = fresh.markov_head.unwrap();
            for matrix in [fresh.fc.weight, markov.markov_w1.weight, markov.markov_w2.weight] {
                let found = matrix.val().square().mean().sqrt().into_scalar::<f64>();
                assert!((found / std - 1.0).abs() < 0.2, "{found} instead of {std}");
            }
            assert_eq!(fresh.norm.weight.val().sum().into_scalar::<f32>(), 32.0);
        }
    }

    fn root_mean_square(x: Tensor<3>) -> f32 {
        x.square().mean_dim(2).sqrt().mean().into_scalar()
    }

    #[test]
    fn the_first_draft_layer_sees_the_context_as_its_original_does() {
        for architecture in ["Qwen3ForCausalLM", "Gemma4ForCausalLM"] {
            sees_the_context(architecture);
        }
    }

    fn sees_the_context(architecture: &str) {
        let (target, draft) = models(architecture, 2);
        let draft = draft.initialized_from(&target, &[]);
        let captured = [LayerId(0), LayerId(1)];
        let features = |layers: &[LayerId]| {
            let output = target.forward(&mut [TargetSegment { ids: &IDS, cache: None }], layers);
            output.features_nf.unwrap()
        };
        let rotation = Rotary::new(&target.config().layer).at(&(0..IDS.len()).collect::<Vec<_>>(), target.device());
        let original = &target.layers()[2];
        let expected =
            original.self_attn.keys_values(original.input_layernorm.forward(features(&captured[1..])), &rotation);
        let context = draft.context_feature(features(&captured));
        let copied = draft.parameters.layers[0].self_attn.keys_values(context, &rotation);
        for (copied, expected) in [(copied.keys_ncw, expected.keys_ncw), (copied.values_ncw, expected.values_ncw)] {
            let largest: f32 = expected.clone().abs().max().into_scalar();
            let off: f32 = (copied - expected).abs().max().into_scalar();
            assert!(off < 1e-4 * largest, "off by {off} of {largest}");
        }
        // The MLP of the last layer, after its norm.
        let (copied, original) = (&draft.parameters.layers[1], &target.layers()[3]);
        let x = Normals::new(26).tensor::<2>([5, 32], 3.0, target.device());
        let behind = |layer: &DecoderLayer| {
            let norm = layer.pre_feedforward_layernorm.as_ref().unwrap_or(&layer.post_attention_layernorm);
            layer.mlp.forward(norm.forward(x.clone()))
        };
        let off: f32 = (behind(copied) - behind(original)).abs().max().into_scalar();
        assert!(off < 1e-4, "off by {off}");
        let scalar =
            |layer: &DecoderLayer| layer.layer_scalar.as_ref().map(|scalar| scalar.val().into_scalar::<f32>());
        assert_eq!(
            (scalar(copied), scalar(original).is_some()),
            (scalar(original), architecture.starts_with("Gemma"))
        );
    }

    #[test]
    fn norms_that_the_target_lacks_keep_its_lengths() {
        let (target, draft) = models("LlamaForCausalLM", 1);
        let draft = draft.initialized_from(&target, &[&IDS]);
        let input = target.forward(&mut [TargetSegment { ids: &IDS, cache: None }], &[LayerId(2)]);
        let rotation = Rotary::new(&target.config().layer).at(&(0..IDS.len()).collect::<Vec<_>>(), target.device());
        let original = &target.layers()[3];
        let normed = original.input_layernorm.forward(input.features_nf.clone().unwrap());
        let copied_normed = draft.parameters.layers[0].input_layernorm.forward(input.features_nf.unwrap());
        let expected = root_mean_square(original.self_attn.project(normed, &rotation).0);
        let got = root_mean_square(draft.parameters.layers[0].self_attn.project(copied_normed, &rotation).0);
        assert!((got / expected - 1.0).abs() < 1e-3, "{got} instead of {expected}");
        assert!((expected - 1.0).abs() > 0.1, "a length of one shows nothing");
    }
}
