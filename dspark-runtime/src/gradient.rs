//! Operations with hand-written derivatives.
//!
//! Autodiff keeps every intermediate result of the operations that it differentiates. An operation that should
//! recompute a value in the backward pass runs without autodiff instead. It enters the graph as one step, with a rule
//! that turns the gradient with respect to its output into the gradients with respect to its inputs.

use std::fmt;
use std::sync::Arc;

use burn::backend::{Autodiff, Backend, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

/// Returns `output` as a differentiable function of `inputs`. `output` was computed from the values of `inputs` without
/// autodiff, and `rule` maps the gradient with respect to `output` to the gradients with respect to `inputs`. Tensors
/// that the rule captures must not be tracked.
///
/// # Panics
/// Panics on devices other than the CPU and, with the corresponding feature, those of CubeCL.
pub fn with_gradient<const N: usize, const I: usize, const O: usize>(
    inputs: [Tensor<I>; N],
    output: Tensor<O>,
    rule: impl Fn(Tensor<O>) -> [Tensor<I>; N] + Send + Sync + 'static,
) -> Tensor<O> {
    let rule = Rule(Arc::new(rule));
    let inputs = inputs.map(|input| if input.is_autodiff() { input } else { Tensor::from_inner(input) });
    let tracked = on_backend::<Flex, N, I, O>(&inputs, &output, &rule);
    #[cfg(feature = "cube")]
    let tracked = tracked.or_else(|| on_backend::<burn::backend::Cube, N, I, O>(&inputs, &output, &rule));
    tracked.unwrap_or_else(|| unreachable!("a tensor on a device that is not opened here"))
}

/// `None` when the tensors are another backend's.
fn on_backend<B: Backend, const N: usize, const I: usize, const O: usize>(
    inputs: &[Tensor<I>; N],
    output: &Tensor<O>,
    rule: &Rule<N, I, O>,
) -> Option<Tensor<O>>
where
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B>>,
{
    let output = output.clone().try_into_primitive::<B>().ok()?;
    let nodes = inputs.each_ref().map(|input| {
        let primitive = input.clone().try_into_primitive::<Autodiff<B>>();
        primitive.unwrap_or_else(|error| unreachable!("inputs are on the output's device: {error:?}")).node()
    });
    let tracked = match ByHand::<I, O>.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(rule.clone(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Some(Tensor::from_primitive::<Autodiff<B>>(tracked))
}

/// The backward rule of an operation.
struct Rule<const N: usize, const I: usize, const O: usize>(Arc<dyn Fn(Tensor<O>) -> [Tensor<I>; N] + Send + Sync>);

impl<const N: usize, const I: usize, const O: usize> Clone for Rule<N, I, O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<const N: usize, const I: usize, const O: usize> fmt::Debug for Rule<N, I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rule")
    }
}

/// The step of the graph.
#[derive(Debug)]
struct ByHand<const I: usize, const O: usize>;

impl<B: Backend, const N: usize, const I: usize, const O: usize> Backward<B, N> for ByHand<I, O>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Rule<N, I, O>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = Tensor::from_primitive::<B>(gradients.consume::<B>(&ops.node));
        for (parent, gradient) in ops.parents.into_iter().zip((ops.state.0)(gradient)) {
            if let Some(parent) = parent {
                let gradient = gradient.try_into_primitive::<B>();
                let gradient = gradient.unwrap_or_else(|error| unreachable!("a rule changed the device: {error:?}"));
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// `sum(x * x)` per row, once by hand and once by autodiff.
    #[test]
    fn the_rule_is_the_derivative() {
        let device = Device::flex().autodiff();
        let x = || Tensor::<2>::from_floats([[1.0, -2.0, 3.0], [0.5, 0.0, 4.0]], &device).require_grad();
        let (a, b) = (x(), x());
        let inner = a.clone().inner();
        let by_hand = with_gradient([a.clone() * 3.0], (inner.clone() * 3.0).square().sum_dim(1), move |gradient| {
            [inner.clone() * 6.0 * gradient]
        });
        let plain = (b.clone() * 3.0).square().sum_dim(1);
        let factors = Tensor::<2>::from_floats([[2.0], [-1.0]], &device);
        let gradients = [(a, by_hand), (b, plain)].map(|(x, y)| {
            let gradients = (y * factors.clone()).sum().backward();
            x.grad(&gradients).unwrap().try_into_vec_as::<f32>().unwrap()
        });
        assert_eq!(gradients[0], gradients[1]);
        assert_eq!(gradients[0], [36.0, -72.0, 108.0, -9.0, 0.0, -72.0]);
    }

    #[test]
    fn inputs_that_are_not_tracked_get_none() {
        let device = Device::flex();
        let tracked = Tensor::<1>::from_floats([2.0, 3.0], &device.clone().autodiff()).require_grad();
        let constant = Tensor::<1>::from_floats([5.0, 7.0], &device);
        let product = with_gradient(
            [tracked.clone(), constant.clone()],
            tracked.clone().inner() * constant.clone(),
            move |gradient| [constant.clone() * gradient.clone(), gradient],
        );
        let gradients = product.sum().backward();
        assert_eq!(tracked.grad(&gradients).unwrap().try_into_vec_as::<f32>().unwrap(), [5.0, 7.0]);
        let untracked = Tensor::<1>::from_floats([1.0], &device.autodiff());
        let output = with_gradient([untracked.clone()], untracked.inner(), |_| unreachable!("nothing is tracked"));
        assert!(!output.is_require_grad());
    }
}
