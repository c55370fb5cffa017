//! The feed-forward part of a decoder layer: one gated MLP, or a mixture of experts.
//!
//! Legend: `n` rows (tokens), `d` hidden size, `f` width inside an MLP, `e` experts, `m` rows of one expert.

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, IndexingUpdateOp, Tensor, TensorData};

use super::config::{Activation, ExpertsConfig, LayerConfig};
use super::layers::Linear;
use crate::kernels;
use crate::tensors::{host, ints};

/// The gated MLP: `down(a(gate x) * up x)`, `a` being the activation.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[f, d]`
    pub gate_proj: Linear,
    /// `[f, d]`
    pub up_proj: Linear,
    /// `[d, f]`
    pub down_proj: Linear,
    gelu: bool,
}

impl Mlp {
    fn new(config: &LayerConfig, width: usize, device: &Device) -> Self {
        let (d, bias) = (config.hidden_size, config.mlp_bias);
        Self {
            gate_proj: Linear::new(d, width, bias, device),
            up_proj: Linear::new(d, width, bias, device),
            down_proj: Linear::new(width, d, bias, device),
            gelu: config.activation == Activation::GeluTanh,
        }
    }

    fn forward(&self, x_nd: Tensor<2>) -> Tensor<2> {
        let [gate_nf, up_nf] = Linear::forward_all([&self.gate_proj, &self.up_proj], x_nd);
        let gated_nf = if self.gelu { kernels::geglu(gate_nf, up_nf) } else { kernels::swiglu(gate_nf, up_nf) };
        self.down_proj.forward(gated_nf)
    }
}

/// A mixture of experts (Qwen3-MoE): `sum over the chosen of p_i MLP_i(x)`, where the choice and `p` are the largest of
/// `softmax(gate x)`. For inference only: the choice is not trained.
#[derive(Module, Debug)]
pub struct Experts {
    /// `[e, d]`
    gate: Linear,
    experts: Vec<Mlp>,
    per_token: usize,
    normalize: bool,
}

impl Experts {
    fn new(config: &LayerConfig, experts: ExpertsConfig, device: &Device) -> Self {
        Self {
            gate: Linear::new(config.hidden_size, experts.count, false, device),
            experts: (0..experts.count).map(|_| Mlp::new(config, experts.width, device)).collect(),
            per_token: experts.per_token,
            normalize: experts.normalize,
        }
    }

    /// Each expert processes its rows together. The outputs for a row are added in the order of its experts, so its
    /// result does not depend on the other rows of the pass.
    fn forward(&self, x_nd: Tensor<2>) -> Tensor<2> {
        let (device, mut out_nd) = (x_nd.device(), x_nd.zeros_like());
        let scores_ne = self.gate.forward(x_nd.clone());
        let scores_ne = if scores_ne.is_autodiff() { scores_ne.inner() } else { scores_ne };
        let scores = host(scores_ne);
        let mut rows: Vec<(Vec<i32>, Vec<f32>)> = vec![Default::default(); self.experts.len()];
        for (row, scores) in scores.chunks(self.experts.len()).enumerate() {
            for (expert, weight) in chosen(scores, self.per_token, self.normalize) {
                rows[expert].0.push(row as i32);
                rows[expert].1.push(weight);
            }
        }
        for (expert, (rows, weights)) in self.experts.iter().zip(rows) {
            let m = rows.len();
            if m == 0 {
                continue;
            }
            let rows_m = ints(rows, &device);
            let weights_m1: Tensor<2> = Tensor::from_data(TensorData::new(weights, [m, 1]), &device);
            let y_md = expert.forward(x_nd.clone().select(0, rows_m.clone())) * weights_m1;
            out_nd = out_nd.select_assign(0, rows_m, y_md, IndexingUpdateOp::Add);
        }
        out_nd
    }
}

/// The experts with the largest probabilities, of equals the first, and their weights; which add up to 1 if normalised.
fn chosen(scores: &[f32], count: usize, normalize: bool) -> Vec<(usize, f32)> {
    let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    let mut order: Vec<(usize, f32)> = exponentials.iter().map(|x| x / sum).enumerate().collect();
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    order.truncate(count);
    if normalize {
        let sum: f32 = order.iter().map(|(_, weight)| weight).sum();
        order.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
    order
}

/// One of the two kinds. Both are called `mlp` in files, so this enum adds nothing to the paths of parameters, unlike a
/// derived one.
#[expect(clippy::large_enum_variant, reason = "one per layer, beside weights of megabytes")]
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// One for all tokens.
    Dense(Mlp),
    /// A mixture of which each token uses a few experts.
    Experts(Experts),
}

impl FeedForward {
    /// Blank, as [`Linear::new`].
    pub fn new(config: &LayerConfig, device: &Device) -> Self {
        match config.experts {
            None => Self::Dense(Mlp::new(config, config.intermediate_size, device)),
            Some(experts) => Self::Experts(Experts::new(config, experts, device)),
        }
    }

    /// `[n, d] -> [n, d]`
    pub fn forward(&self, x_nd: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(mlp) => mlp.forward(x_nd),
            Self::Experts(experts) => experts.forward(x_nd),
        }
    }

    fn map_either(self, dense: impl FnOnce(Mlp) -> Mlp, experts: impl FnOnce(Experts) -> Experts) -> Self {
        match self {
            Self::Dense(mlp) => Self::Dense(dense(mlp)),
            Self::Experts(mixture) => Self::Experts(experts(mixture)),
        }
    }
}

impl Module for FeedForward {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Dense(mlp) => mlp.collect_devices(devices),
            Self::Experts(experts) => experts.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        self.map_either(|mlp| mlp.fork(device), |experts| experts.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_either(|mlp| mlp.to_device(device), |experts| experts.to_device(device))
    }

    fn train(self) -> Self {
        self.map_either(Module::train, Module::train)
    }

    fn valid(&self) -> Self {
        match self {
            Self::Dense(mlp) => Self::Dense(mlp.valid()),
            Self::Experts(experts) => Self::Experts(experts.valid()),
        }
    }

    fn materialize(self) -> Self {
        self.map_either(Module::materialize, Module::materialize)
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        match self {
            Self::Dense(mlp) => mlp.visit(visitor),
            Self::Experts(experts) => experts.visit(visitor),
        }
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        match self {
            Self::Dense(mlp) => Self::Dense(mlp.map(mapper)),
            Self::Experts(experts) => Self::Experts(experts.map(mapper)),
        }
    }
}

impl ModuleDisplayDefault for FeedForward {
    fn content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Dense(mlp) => content.add_single(mlp).optional(),
            Self::Experts(experts) => content.add_single(experts).optional(),
        }
    }
}

impl ModuleDisplay for FeedForward {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_experts_are_chosen() {
        let scores = [0.0, 3.0_f32.ln(), 2.0_f32.ln(), 3.0_f32.ln()];
        let close = |(expert, weight): (usize, f32), to: (usize, f32)| {
            assert_eq!(expert, to.0);
            assert!((weight - to.1).abs() < 1e-6, "{weight}");
        };
        // Shares of 9: 1, 3, 2, 3.
        for (got, expected) in chosen(&scores, 3, false).into_iter().zip([(1, 3.0), (3, 3.0), (2, 2.0)]) {
            close(got, (expected.0, expected.1 / 9.0));
        }
        for (got, expected) in chosen(&scores, 3, true).into_iter().zip([(1, 3.0), (3, 3.0), (2, 2.0)]) {
            close(got, (expected.0, expected.1 / 8.0));
        }
        assert_eq!(chosen(&[1000.0, -1000.0], 1, false), [(0, 1.0)]);
    }
}
