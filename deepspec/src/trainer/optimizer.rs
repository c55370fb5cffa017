//! AdamW over 32-bit parameters, Muon for the matrices inside the draft where the recipe asks for it; gradients are clipped
//! by their global norm.

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamWConfig, AdjustLrFn, GradientsParams, ModuleOptimizer, MuonConfig, OptimizerRecord};
use burn::tensor::{Gradients, Tensor};

/// The parameters that Muon may update: linear maps between hidden states. Embedding tables, heads and vectors use
/// AdamW, as recommended by Muon's authors.
const HIDDEN_MATRICES: [&str; 2] = [r"^fc\.weight$", r"^layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$"];

/// The optimiser's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub max_grad_norm: f64,
    /// True if Muon (Jordan et al., 2024) updates the matrices of the layers and of the projection: momentum 0.95 with
    /// Nesterov's look-ahead, made orthogonal by five Newton-Schulz steps, scaled to the root mean square of AdamW's updates
    /// (Liu et al., 2025), so that both share one learning rate.
    pub muon: bool,
}

/// Gradients of one step, summed over its micro-batches in 32 bits.
#[derive(Debug, Default)]
pub struct GradientSum {
    sum: Option<GradientsParams>,
}

impl GradientSum {
    /// Adds the gradients of one micro-batch.
    pub fn add<M: Module>(&mut self, gradients: Gradients, module: &M) {
        let mut new = GradientsParams::from_grads(gradients, module);
        if let Some(mut old) = self.sum.take() {
            module.visit(&mut Adder { old: &mut old, new: &mut new });
        }
        self.sum = Some(new);
    }
}

struct Adder<'a> {
    old: &'a mut GradientsParams,
    new: &'a mut GradientsParams,
}

impl ModuleVisitor for Adder<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(old) = self.old.remove::<D>(param.id) else {
            return;
        };
        let sum = match self.new.remove::<D>(param.id) {
            Some(new) => old + new,
            None => old,
        };
        self.new.register(param.id, sum);
    }
}

/// The optimiser and its moments.
#[derive(Clone)]
pub struct Optimizer {
    inner: ModuleOptimizer,
    max_grad_norm: f64,
}

impl std::fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimizer").field("max_grad_norm", &self.max_grad_norm).finish_non_exhaustive()
    }
}

impl Optimizer {
    /// Fresh moments.
    pub fn new(settings: &OptimizerSettings) -> Self {
        let config = AdamWConfig::new()
            .with_beta_1(settings.beta_1 as f32)
            .with_beta_2(settings.beta_2 as f32)
            .with_epsilon(settings.epsilon as f32)
            .with_weight_decay(settings.weight_decay as f32);
        let mut inner = config.init();
        if settings.muon {
            let decay = (settings.weight_decay > 0.0).then(|| WeightDecayConfig::new(settings.weight_decay as f32));
            let muon =
                MuonConfig::new().with_weight_decay(decay).with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW).build();
            inner = inner.with_group(hidden_matrices(), muon, None);
        }
        Self { inner, max_grad_norm: settings.max_grad_norm }
    }

    /// The global norm of the summed gradients: the root of the sum of all squares.
    pub fn gradient_norm<M: Module>(gradients: &GradientSum, module: &M) -> f64 {
        let mut norm = SquareSum { gradients, total: 0.0 };
        module.visit(&mut norm);
        norm.total.sqrt()
    }

    /// Scales the gradients down where their global norm exceeds the limit; returns them with the norm before.
    pub fn clip<M: Module>(&self, mut gradients: GradientSum, module: &M) -> (GradientSum, f64) {
        let norm = Self::gradient_norm(&gradients, module);
        // The reference's coefficient (torch's clip_grad_norm_).
        let factor = self.max_grad_norm / (norm + 1e-6);
        if let Some(gradients) = gradients.sum.as_mut().filter(|_| factor < 1.0) {
            module.visit(&mut Scaler { gradients, factor });
        }
        (gradients, norm)
    }

    /// Updates the parameters with clipped gradients.
    pub fn step<M: Module>(&mut self, learning_rate: f64, module: M, gradients: GradientSum) -> M {
        match gradients.sum {
            Some(gradients) => self.inner.step(learning_rate, module, gradients),
            None => module,
        }
    }

    /// Writes the moments, whole or not at all. Equal moments give equal files.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        // The optimiser hands its moments out in the order of a hash table, which differs from process to process. What is
        // read from bytes is in the order of names.
        let ordered = self.inner.into_bytes().and_then(OptimizerRecord::from_bytes);
        ordered.and_then(|record| record.save(path)).map_err(|error| error.to_string())
    }

    /// Reads the moments of an optimiser with the same settings.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn load(self, path: &Path) -> Result<Self, String> {
        let record = OptimizerRecord::load(path).map_err(|error| error.to_string())?;
        let written = record.len();
        let inner = self.inner.load_record(record);
        // What does not fit is left out by Burn.
        match inner.to_record().len() {
            read if read == written => Ok(Self { inner, ..self }),
            read => Err(format!(
                "the file contains {written} tensors, but only {read} of them are moments of this optimiser"
            )),
        }
    }
}

fn hidden_matrices() -> ParamGroup {
    ParamGroup::from_any_regexes(HIDDEN_MATRICES.to_vec())
        .unwrap_or_else(|error| unreachable!("the patterns are constants: {error:?}"))
}

struct SquareSum<'a> {
    gradients: &'a GradientSum,
    total: f64,
}

impl ModuleVisitor for SquareSum<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.total += gradient.square().sum().into_scalar::<f32>() as f64;
        }
    }
}

impl GradientSum {
    /// The summed gradient of one parameter.
    pub fn get<const D: usize>(&self, id: ParamId) -> Option<Tensor<D>> {
        self.sum.as_ref()?.get(id)
    }
}

struct Scaler<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scaler<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient.mul_scalar(self.factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::tiny_models;

    /// Earlier versions wrote them in the order of a hash table.
    #[test]
    fn moments_are_written_in_one_order_and_read_in_any() {
        let settings = OptimizerSettings {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            muon: true,
        };
        let parameters = tiny_models().1.parameters.unfreeze().train();
        let mut gradients = GradientSum::default();
        let sum = parameters.norm.weight.val().sum() + parameters.fc.weight.val().square().sum();
        gradients.add((sum + parameters.hidden_norm.as_ref().unwrap().weight.val().sum()).backward(), &parameters);
        let mut optimizer = Optimizer::new(&settings);
        optimizer.step(1e-3, parameters, gradients);
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("optimizer.bpk");
        optimizer.save(&path).unwrap();
        let written = fs::read(&path).unwrap();
        for _ in 0..8 {
            optimizer.inner.save(&path).unwrap();
            // A new hash table every time.
            optimizer = Optimizer::new(&settings).load(&path).unwrap();
            optimizer.save(&path).unwrap();
            assert!(fs::read(&path).unwrap() == written);
        }
        let other = Optimizer::new(&OptimizerSettings { muon: false, ..settings }).load(&path).err().unwrap();
        assert!(other.contains("moments of this optimiser"), "{other}");
    }
}
