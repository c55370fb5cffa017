//! Rotary position embedding.
//!
//! Legend: `n` rows, `h` heads, `p` half of the head width (pairs).

use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};

use super::config::{LayerConfig, RopeScaling};
use crate::kernels;

/// The rotary frequencies of a layer: pair `i` of a head turns by `position * theta^(-2i / head_dim)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    frequencies: Vec<f32>,
}

impl Rotary {
    /// The frequencies that the configuration asks for.
    pub fn new(config: &LayerConfig) -> Self {
        let base = |pair: usize| (1.0 / config.rope_theta.powf(2.0 * pair as f64 / config.head_dim as f64)) as f32;
        let frequencies = (0..config.head_dim / 2).map(|pair| match config.rope_scaling {
            RopeScaling::Proportional { pairs } if pair >= pairs => 0.0,
            scaling => scaled(base(pair), scaling),
        });
        Self { frequencies: frequencies.collect() }
    }

    /// The rotation of `n` rows by their positions.
    ///
    /// Angles are products in f32, as the families' own code has them, so that long positions agree with it.
    pub fn at(&self, positions: &[usize], device: &Device) -> Rotation {
        let angles = positions.iter().flat_map(|&position| {
            self.frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency).sin_cos())
        });
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        let shape = [positions.len(), 1, self.frequencies.len()];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        Rotation { cos_n1p: tensor(cos), sin_n1p: tensor(sin) }
    }
}

/// The rotary frequencies of all layers of a model.
#[derive(Clone, Debug)]
pub(super) struct Rotaries {
    /// The distinct rotary embeddings.
    distinct: Vec<Rotary>,
    /// Index of each layer's rotary embedding.
    of_layer: Vec<usize>,
}

impl Rotaries {
    /// Returns the rotary embeddings of the layers' configurations.
    pub fn new(layers: &[LayerConfig]) -> Self {
        let mut distinct = Vec::new();
        let of_layer = layers
            .iter()
            .map(|layer| {
                let rotary = Rotary::new(layer);
                distinct.iter().position(|known| *known == rotary).unwrap_or_else(|| {
                    distinct.push(rotary);
                    distinct.len() - 1
                })
            })
            .collect();
        Self { distinct, of_layer }
    }

    /// The rotation of rows by their positions, for each layer.
    pub fn at(&self, positions: &[usize], device: &Device) -> Vec<Rotation> {
        let distinct: Vec<Rotation> = self.distinct.iter().map(|rotary| rotary.at(positions, device)).collect();
        self.of_layer.iter().map(|&index| distinct[index].clone()).collect()
    }
}

/// The angles of some rows.
#[derive(Clone, Debug)]
pub struct Rotation {
    cos_n1p: Tensor<3>,
    sin_n1p: Tensor<3>,
}

impl Rotation {
    /// Turns every head: the first half of a head pairs with its second half. `[n, h, 2p] -> [n, h, 2p]`
    pub fn apply(&self, x_nhd: Tensor<3>) -> Tensor<3> {
        kernels::rotate(x_nhd, &self.cos_n1p, &self.sin_n1p)
    }
}

fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None | RopeScaling::Proportional { .. } => frequency,
        RopeScaling::Linear { factor } => (f64::from(frequency) / factor) as f32,
        RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_max_position } => {
            let frequency = f64::from(frequency);
            // Number of turns of the pair over the pre-training context.
            let turns = original_max_position as f64 * frequency / TAU;
            let kept = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
            let kept = kept.clamp(0.0, 1.0);
            (kept * frequency + (1.0 - kept) * frequency / factor) as f32
        }
    }
}
