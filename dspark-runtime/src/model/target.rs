//! The target: a decoder-only language model of one of the families that [`Family`](super::Family) lists.
//!
//! Legend: `n` rows (the tokens of all segments), `d` hidden size, `v` vocabulary.

use std::fmt;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::attention::attend_sequence;
use super::config::TargetConfig;
use super::kv_cache::{KvCache, Visible};
use super::layers::{DecoderLayer, Embedding, Linear, RmsNorm};
use super::rope::Rotaries;
use crate::checkpoint::{
    CheckpointError, WeightDtype, WeightPrecision, Weights, WeightsToSave, load_module, parameter_shapes,
    with_stable_ids, write_file,
};
use crate::normals::INITIAL_STD;
use crate::tensors::{host, ints};
use crate::{Normals, kernels};

/// A hidden state of the target: the output of decoder layer `0..N`, or -1 for the embedding's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub i64);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The weights, named as on disk.
#[derive(Module, Debug)]
pub struct TargetParameters {
    model: Decoder,
    /// Absent when the head is the embedding.
    lm_head: Option<Linear>,
}

#[derive(Module, Debug)]
struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
}

/// A target model on a device.
///
/// ```
/// # std::env::set_current_dir("..")?;
/// use std::path::Path;
///
/// use dspark_runtime::device::DeviceChoice;
/// use dspark_runtime::model::{Target, TargetSegment};
///
/// let target = Target::load(Path::new("checkpoints/quickstart-target"), &DeviceChoice::Cpu.open()?)?;
/// // Logits after each of three tokens. Without a cache, the tokens are a whole text.
/// let output = target.forward(&mut [TargetSegment { ids: &[1, 2, 3], cache: None }], &[]);
/// let logits = target.logits(output.last_hidden_nd);
/// assert_eq!(logits.dims(), [3, target.config().vocab_size]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Target {
    config: TargetConfig,
    weights: TargetParameters,
    rotaries: Rotaries,
    device: Device,
}

/// A run of new tokens of one sequence.
#[derive(Debug)]
pub struct TargetSegment<'a> {
    /// The new tokens, at least one.
    pub ids: &'a [u32],
    /// The cache of the preceding tokens, to which the new keys are added. Without one, the segment is a whole
    /// sequence.
    pub cache: Option<&'a mut KvCache>,
}

/// Hidden states of the rows of all segments, in order.
#[derive(Debug, Clone)]
pub struct TargetOutput {
    /// Concatenated outputs of the captured layers, `[n, m * d]`; absent if none was requested.
    pub features_nf: Option<Tensor<2>>,
    /// After the final norm, `[n, d]`.
    pub last_hidden_nd: Tensor<2>,
}

impl Target {
    /// Loads a Hugging Face folder or a GGUF file, all weights in f32.
    ///
    /// # Errors
    /// Returns an error if the configuration asks for something unsupported, or the weights do not fit it.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, CheckpointError> {
        Self::load_with(folder, WeightPrecision::F32, device)
    }

    /// Loads a Hugging Face folder or a GGUF file, its matrices in the given precision.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn load_with(folder: &Path, precision: WeightPrecision, device: &Device) -> Result<Self, CheckpointError> {
        let config = TargetConfig::read(folder)?;
        let weights = config.open_weights(folder)?;
        Self::from_weights(config, &weights, precision, device)
    }

    /// Builds a target from a configuration and weight files, as [`TargetConfig::open_weights`] opens them.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing, has another shape, or has no place in the model.
    pub fn from_weights(
        config: TargetConfig,
        weights: &Weights,
        precision: WeightPrecision,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let blank = TargetParameters::new(&config, device);
        let (loaded, used) = load_module(blank, weights, precision, device)?;
        // Old files carry rotary buffers; files of tied models may repeat the embedding as a head.
        let ignored = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
        };
        let unexpected: Vec<&str> = weights.names().filter(|name| !used.contains(*name) && !ignored(name)).collect();
        if let Some(name) = unexpected.first() {
            return Err(CheckpointError::UnexpectedTensor {
                path: weights.folder().to_owned(),
                name: (*name).to_owned(),
                others: unexpected.len() - 1,
            });
        }
        Ok(Self { rotaries: Rotaries::new(&config.layers), config, weights: loaded, device: device.clone() })
    }

    /// A target with weights drawn from a seed, for training one or for tests.
    pub fn random(config: TargetConfig, seed: u64, device: &Device) -> Self {
        let blank = TargetParameters::new(&config, device);
        let weights = with_stable_ids(Normals::new(seed).matrices(blank, INITIAL_STD));
        Self { rotaries: Rotaries::new(&config.layers), config, weights, device: device.clone() }
    }

    /// The configuration.
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// The device that the weights are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of parameters, the head of a tied model counted once.
    pub fn num_parameters(&self) -> usize {
        self.weights.num_params()
    }

    /// The token embedding, for a draft to share.
    pub fn embed_tokens(&self) -> &Embedding {
        &self.weights.model.embed_tokens
    }

    /// The output head's weight `[v, d]`, for a draft to share; the embedding's in a tied model. In the precision that the
    /// target was loaded with.
    pub fn head_weight(&self) -> Tensor<2> {
        match &self.weights.lm_head {
            Some(head) => head.weight.val(),
            None => self.weights.model.embed_tokens.weight.val(),
        }
    }

    /// Returns whether all numbers of the output head are finite. Looks at every one on the host.
    pub fn head_is_finite(&self) -> bool {
        host(self.head_weight()).into_iter().all(f32::is_finite)
    }

    /// The norm before the output head, for a draft that starts from it.
    pub fn final_norm(&self) -> &RmsNorm {
        &self.weights.model.norm
    }

    /// The decoder layers, for a draft that starts from them.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.weights.model.layers
    }

    /// An empty cache with room for `capacity` tokens.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::for_layers(&self.config.layers, capacity, &self.device)
    }

    /// Runs all segments at once. Captured are the outputs of the layers in `capture`, in that order.
    ///
    /// Every id must be below the vocabulary size; every layer id at least -1 and below the number of layers.
    pub fn forward(&self, segments: &mut [TargetSegment<'_>], capture: &[LayerId]) -> TargetOutput {
        let ids: Vec<i32> = segments.iter().flat_map(|segment| segment.ids.iter().map(|&id| id as i32)).collect();
        let total = ids.len();
        let mut positions = Vec::with_capacity(total);
        for segment in segments.iter_mut() {
            let past = segment.cache.as_ref().map_or(0, |cache| cache.len());
            positions.extend(past..past + segment.ids.len());
            if let Some(cache) = &mut segment.cache {
                cache.reserve(segment.ids.len());
            }
        }
        let rotations = self.rotaries.at(&positions, &self.device);
        let mut x_nd = self.weights.model.embed_tokens.forward(ints(ids, &self.device));
        if self.config.embedding_scale != 1.0 {
            x_nd = x_nd.mul_scalar(self.config.embedding_scale);
        }
        kernels::keep_awake(&x_nd);
        let mut captured: Vec<Option<Tensor<2>>> = vec![None; capture.len()];
        let mut keep = |layer: i64, x_nd: &Tensor<2>| {
            for (slot, id) in captured.iter_mut().zip(capture) {
                if id.0 == layer {
                    *slot = Some(x_nd.clone());
                }
            }
        };
        keep(-1, &x_nd);
        for (index, layer) in self.weights.model.layers.iter().enumerate() {
            x_nd = layer.forward(x_nd, |attention, normed_nd| {
                let (queries_nhw, new) = attention.project(normed_nd, &rotations[index]);
                let mut rows = Vec::with_capacity(segments.len());
                let mut first = 0;
                for segment in segments.iter_mut() {
                    let count = segment.ids.len();
                    let (queries_nhw, new) = (queries_nhw.clone().narrow(0, first, count), new.narrow(first, count));
                    first += count;
                    rows.push(match &mut segment.cache {
                        Some(cache) => cache.attend(index, queries_nhw, new, Visible::Causal),
                        None => attend_sequence(queries_nhw, new, self.config.layers[index].window()),
                    });
                }
                attention.output(join(rows))
            });
            keep(index as i64, &x_nd);
        }
        for segment in segments.iter_mut() {
            if let Some(cache) = &mut segment.cache {
                cache.advance(segment.ids.len());
            }
        }
        let captured: Vec<Tensor<2>> = captured.into_iter().flatten().collect();
        assert_eq!(captured.len(), capture.len(), "a captured layer id is out of range");
        TargetOutput {
            features_nf: (!captured.is_empty()).then(|| Tensor::cat(captured, 1)),
            last_hidden_nd: self.weights.model.norm.forward(x_nd),
        }
    }

    /// Logits from hidden states after the final norm: `[n, d] -> [n, v]`
    pub fn logits(&self, last_hidden_nd: Tensor<2>) -> Tensor<2> {
        let logits_nv = kernels::linear(last_hidden_nd, self.head_weight());
        match self.config.logit_softcap {
            Some(cap) => kernels::soft_cap(logits_nv, cap),
            None => logits_nv,
        }
    }

    /// The weights, to be trained or saved.
    pub fn parameters(&self) -> &TargetParameters {
        &self.weights
    }

    /// Returns the target with other weights, on the device of these weights.
    pub fn with_parameters(&self, weights: TargetParameters) -> Self {
        let device = weights.model.embed_tokens.weight.val().device();
        Self { config: self.config.clone(), weights, rotaries: self.rotaries.clone(), device }
    }

    /// Writes `config.json` and `model.safetensors` into a folder that is not visible yet.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn write_into(&self, folder: &Path, dtype: WeightDtype) -> Result<(), CheckpointError> {
        let mut weights = WeightsToSave::new();
        weights.add_module(&self.weights);
        weights.write(&folder.join("model.safetensors"), dtype)?;
        let config = serde_json::to_string_pretty(self.config.fields.as_map()).unwrap_or_default() + "\n";
        write_file(&folder.join("config.json"), config.as_bytes())
    }
}

/// Returns the names and shapes of the tensors in a target's files.
pub fn target_shapes(config: &TargetConfig) -> Vec<(String, Vec<usize>)> {
    parameter_shapes(&TargetParameters::new(config, &Device::flex()))
}

impl TargetParameters {
    fn new(config: &TargetConfig, device: &Device) -> Self {
        let (v, d) = (config.vocab_size, config.layer.hidden_size);
        let model = Decoder {
            embed_tokens: Embedding::new(v, d, device),
            layers: config.layers.iter().map(|layer| DecoderLayer::new(layer, device)).collect(),
            norm: RmsNorm::new(d, config.layer.rms_norm_eps, device),
        };
        Self { model, lm_head: (!config.tie_word_embeddings).then(|| Linear::new(d, v, false, device)) }
    }
}

fn join(mut rows: Vec<Tensor<2>>) -> Tensor<2> {
    if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) }
}
