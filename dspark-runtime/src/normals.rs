//! Normally distributed numbers from a seed.
//!
//! A backend's generator is global to the process: its numbers depend on everything else that draws from it, and differ
//! between devices. The numbers of this module are the same on every device.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Shape, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

/// Spread of freshly initialised weights, unless a configuration has another `initializer_range`.
pub(crate) const INITIAL_STD: f64 = 0.02;

/// A stream of normally distributed numbers with a private generator.
#[derive(Clone, Debug)]
pub struct Normals(ChaCha12Rng);

impl Normals {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    /// The next numbers, with mean 0 and this standard deviation, f32.
    pub fn tensor<const D: usize>(&mut self, shape: impl Into<Shape>, std: f64, device: &Device) -> Tensor<D> {
        let numbers = TensorData::random::<f32, _, _>(shape, Distribution::Normal(0.0, std), &mut self.0);
        Tensor::from_data(numbers, device)
    }

    /// Redraws the matrices of a module in the order of its fields. Vectors are unchanged: fresh biases are 0 and norms
    /// are 1 for every spread.
    #[must_use]
    pub fn matrices<M: Module>(&mut self, module: M, std: f64) -> M {
        module.map(&mut Matrices { normals: self, factor: std / INITIAL_STD })
    }
}

struct Matrices<'a> {
    normals: &'a mut Normals,
    /// On numbers of the usual spread.
    factor: f64,
}

impl ModuleMapper for Matrices<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D == 1 {
            return param;
        }
        let usual = self.normals.tensor::<D>(param.lazy_shape(), INITIAL_STD, &param.lazy_device());
        Param::initialized(param.id, usual * self.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Linear;

    fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.to_data().try_into_vec_as().unwrap()
    }

    #[test]
    fn numbers_follow_from_the_seed_alone() {
        let device = Device::flex();
        let draw = |seed: u64| numbers(&Normals::new(seed).tensor::<2>([64, 512], 3.0, &device));
        // Numbers drawn elsewhere in between have no effect.
        let (first, _, again) = (draw(1), draw(2), draw(1));
        assert_eq!(first, again);
        assert_ne!(first, draw(2));
        let moment = |power: i32| first.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / first.len() as f64;
        let (mean, deviation) = (moment(1), moment(2).sqrt());
        assert!(mean.abs() < 0.1 && (deviation - 3.0).abs() < 0.1, "{mean}, {deviation}");
        // The next numbers are others.
        let mut stream = Normals::new(1);
        let one_by_one: Vec<f32> = (0..64).flat_map(|_| numbers(&stream.tensor::<1>([512], 3.0, &device))).collect();
        assert_eq!(one_by_one, first);
    }

    #[test]
    fn matrices_are_drawn_and_vectors_kept() {
        let layer = || Linear::new(300, 200, true, &Device::flex());
        let drawn = |seed: u64, std: f64| Normals::new(seed).matrices(layer(), std);
        let deviation = |layer: &Linear| layer.weight.val().square().mean().sqrt().into_scalar::<f64>();
        for std in [INITIAL_STD, 0.08] {
            let found = deviation(&drawn(3, std));
            assert!((found / std - 1.0).abs() < 0.02, "{found} instead of {std}");
        }
        let fresh = drawn(3, INITIAL_STD);
        assert_eq!(numbers(&fresh.weight.val()), numbers(&drawn(3, INITIAL_STD).weight.val()));
        assert_ne!(numbers(&fresh.weight.val()), numbers(&drawn(4, INITIAL_STD).weight.val()));
        assert_eq!(numbers(&fresh.bias.unwrap().val()), [0.0; 200]);
    }
}
