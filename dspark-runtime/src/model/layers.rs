//! The layers that every decoder here is built from.
//!
//! Legend: `n` rows (tokens), `d` hidden size, `f` width inside the MLP, `v` vocabulary.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Int, Tensor};

use super::attention::SelfAttention;
use super::config::LayerConfig;
use super::feed_forward::FeedForward;
use crate::kernels;

/// Returns a matrix to be read from a file or drawn ([`Normals`](crate::Normals)); nothing is allocated before the
/// first use.
fn blank(shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    Initializer::Zeros.init(shape, device)
}

/// `y = x W^T + b`, the weight lying as it does on disk: `[d_out, d_in]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_out, d_in]`
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Returns an uninitialised layer: zeros, to be read or drawn; nothing is allocated before the first use.
    pub fn new(d_in: usize, d_out: usize, bias: bool, device: &Device) -> Self {
        let bias = bias.then(|| Initializer::Zeros.init([d_out], device));
        Self { weight: blank([d_out, d_in], device), bias }
    }

    /// `[n, d_in] -> [n, d_out]`
    pub fn forward(&self, x_nd: Tensor<2>) -> Tensor<2> {
        self.with_bias(kernels::linear(x_nd, self.weight.val()))
    }

    /// Applies several layers to the same rows, `[n, d_in] -> [n, d_out]` each; faster than one after the other.
    pub fn forward_all<const M: usize>(layers: [&Self; M], x_nd: Tensor<2>) -> [Tensor<2>; M] {
        let mut products = kernels::linears(x_nd, layers.map(|layer| layer.weight.val())).into_iter();
        layers.map(|layer| layer.with_bias(products.next().unwrap_or_else(|| unreachable!("one product per layer"))))
    }

    fn with_bias(&self, y_no: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => {
                let bias = bias.val().unsqueeze::<2>().cast(y_no.dtype());
                y_no + bias
            }
            None => y_no,
        }
    }
}

/// A table of vectors by token id.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[v, d]`
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Blank, as [`Linear::new`].
    pub fn new(rows: usize, width: usize, device: &Device) -> Self {
        Self { weight: blank([rows, width], device) }
    }

    /// `[n] -> [n, d]`, f32 also where the table is kept in bf16.
    pub fn forward(&self, ids_n: Tensor<1, Int>) -> Tensor<2> {
        kernels::widened(self.weight.val().select(0, ids_n))
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[d]`
    pub weight: Param<Tensor<1>>,
    eps: f64,
}

impl RmsNorm {
    /// Unit weight.
    pub fn new(width: usize, eps: f64, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([width], device), eps }
    }

    /// Accepts any shape with last axis `d`, and preserves it.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        kernels::rms_norm(x, self.weight.val(), self.eps)
    }
}

/// One decoder layer: attention and MLP, each after a norm and with a residual connection. Gemma 4's layer has norms on
/// both sides of each; its norm after attention has the name that other families use for the norm before the MLP.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Norm before attention; in a layer that also reads embeddings, the norm of the embeddings.
    pub input_layernorm: RmsNorm,
    /// Norm of the rows in a layer that also reads embeddings (Eagle3); absent in others.
    pub hidden_norm: Option<RmsNorm>,
    /// Attention; the caller decides which keys are attended to.
    pub self_attn: SelfAttention,
    /// Norm before the MLP; for Gemma 4, after attention.
    pub post_attention_layernorm: RmsNorm,
    /// The gated MLP or mixture of experts.
    pub mlp: FeedForward,
    /// Gemma 4's norm before the MLP.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// Gemma 4's norm after the MLP.
    pub post_feedforward_layernorm: Option<RmsNorm>,
    /// Gemma 4's factor on the output, `[1]`. Nothing trains it.
    pub layer_scalar: Option<Param<Tensor<1>>>,
}

impl DecoderLayer {
    /// Blank, as [`Linear::new`].
    pub fn new(config: &LayerConfig, device: &Device) -> Self {
        let norm = || RmsNorm::new(config.hidden_size, config.rms_norm_eps, device);
        let gemma = config.gemma.is_some();
        Self {
            pre_feedforward_layernorm: gemma.then(norm),
            post_feedforward_layernorm: gemma.then(norm),
            layer_scalar: gemma.then(|| Initializer::Ones.init([1], device)),
            input_layernorm: norm(),
            hidden_norm: None,
            self_attn: SelfAttention::new(config, config.hidden_size, device),
            post_attention_layernorm: norm(),
            mlp: FeedForward::new(config, device),
        }
    }

    /// Returns a layer whose attention reads an embedding in addition to each row, at twice the width.
    pub fn beside_embeddings(config: &LayerConfig, device: &Device) -> Self {
        Self {
            hidden_norm: Some(RmsNorm::new(config.hidden_size, config.rms_norm_eps, device)),
            self_attn: SelfAttention::new(config, 2 * config.hidden_size, device),
            ..Self::new(config, device)
        }
    }

    /// `h = x + attention(norm(x))`, then `h + mlp(norm(h))`; `attend` computes the attention from the normed rows. Gemma 4:
    /// `h = x + norm(attention(norm(x)))`, then `s * (h + norm(mlp(norm(h))))`.
    pub fn forward(&self, x_nd: Tensor<2>, attend: impl FnOnce(&SelfAttention, Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let attended_nd = attend(&self.self_attn, self.input_layernorm.forward(x_nd.clone()));
        self.behind_attention(x_nd, attended_nd)
    }

    /// Applies a layer that also reads embeddings: `attend` receives the output of [`input_beside`](Self::input_beside)
    /// for both.
    pub fn forward_beside(
        &self,
        x_nd: Tensor<2>,
        embedded_nd: Tensor<2>,
        attend: impl FnOnce(&SelfAttention, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let attended_nd = attend(&self.self_attn, self.input_beside(x_nd.clone(), embedded_nd));
        self.behind_attention(x_nd, attended_nd)
    }

    /// Returns the attention input for rows and their embeddings, `[n, d], [n, d] -> [n, 2d]`: the embeddings first,
    /// each after its norm.
    pub fn input_beside(&self, x_nd: Tensor<2>, embedded_nd: Tensor<2>) -> Tensor<2> {
        let x_nd = match &self.hidden_norm {
            Some(norm) => norm.forward(x_nd),
            None => x_nd,
        };
        Tensor::cat(vec![self.input_layernorm.forward(embedded_nd), x_nd], 1)
    }

    fn behind_attention(&self, x_nd: Tensor<2>, attended_nd: Tensor<2>) -> Tensor<2> {
        if let (Some(before), Some(behind), Some(scalar)) =
            (&self.pre_feedforward_layernorm, &self.post_feedforward_layernorm, &self.layer_scalar)
        {
            let h_nd = x_nd + self.post_attention_layernorm.forward(attended_nd);
            let fed_nd = behind.forward(self.mlp.forward(before.forward(h_nd.clone())));
            let scalar = scalar.val().detach().unsqueeze::<2>().cast(h_nd.dtype());
            return (h_nd + fed_nd) * scalar;
        }
        let h_nd = x_nd + attended_nd;
        let fed_nd = self.mlp.forward(self.post_attention_layernorm.forward(h_nd.clone()));
        h_nd + fed_nd
    }
}
