//! Kernels for devices with their own memory, written in CubeCL: the operations between matrix products in training,
//! and attention of few rows to a cache in decoding.
//!
//! Large products stay the backend's, which knows the device's matrix units; a chain of tensor operations between two of them
//! would go through memory once per link, and a kernel here goes once or twice. Each computes what tensor operations or loops
//! over this machine's memory compute elsewhere, and is tested against them on CubeCL's CPU runtime (feature `cubecl-cpu`).
//!
//! All numbers are `f32` internally, whatever the tensors contain.

mod block_softmax;
mod cache_attention;
mod reduce;
mod vocabulary_rows;

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Cube, Dispatch, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;

/// The operations that a backend computes with these kernels.
#[backend_extension(Cube, Fusion)]
pub(crate) trait CubeKernels: Backend {
    #[fusion(meta = |context, block, _seen, _scale| (context.clone(), block.clone(), per_row(context)))]
    fn block_softmax(
        context: FloatTensor<Self>,
        block: FloatTensor<Self>,
        seen: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[allow(clippy::too_many_arguments)]
    #[fusion(meta = |context, block, _c, _b, _seen, _sums, _means, _scale| {
        (context.clone(), block.clone(), context.clone(), block.clone())
    })]
    fn block_slopes(
        context: FloatTensor<Self>,
        block: FloatTensor<Self>,
        context_products: FloatTensor<Self>,
        block_products: FloatTensor<Self>,
        seen: IntTensor<Self>,
        log_sums: FloatTensor<Self>,
        means: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |queries, _buffer, _matrices, _seen, _scale| {
        let [n, h, w] = queries.shape.dims::<3>();
        TensorSpec::new(Shape::new([n, h * w]), queries.dtype)
    })]
    fn cache_attention(
        queries: FloatTensor<Self>,
        buffer: FloatTensor<Self>,
        matrices: [usize; 2],
        seen: SeenKeys,
        scale: f32,
    ) -> FloatTensor<Self>;

    #[allow(clippy::too_many_arguments)]
    #[fusion(meta = |logits, _teacher, _rows, _labels, _factors, _ids, _restricted, with_gradient| {
        let [m, _] = logits.shape.dims::<2>();
        let gradient = if *with_gradient { logits.shape.clone() } else { Shape::new([1, 1]) };
        (TensorSpec::new(Shape::new([m, 3]), DType::F32), TensorSpec::new(gradient, DType::F32))
    })]
    fn vocabulary_rows(
        logits: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        teacher_rows: IntTensor<Self>,
        labels: IntTensor<Self>,
        factors: FloatTensor<Self>,
        ids: IntTensor<Self>,
        restricted: bool,
        with_gradient: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl CubeKernels for CubeBackend {
    fn block_softmax(
        context: FloatTensor<Self>,
        block: FloatTensor<Self>,
        seen: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        block_softmax::launch_softmax(context, block, seen, scale)
    }

    fn block_slopes(
        context: FloatTensor<Self>,
        block: FloatTensor<Self>,
        context_products: FloatTensor<Self>,
        block_products: FloatTensor<Self>,
        seen: IntTensor<Self>,
        log_sums: FloatTensor<Self>,
        means: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        block_softmax::launch_slopes(
            [context, block],
            [context_products, block_products],
            seen,
            log_sums,
            means,
            scale,
        )
    }

    fn cache_attention(
        queries: FloatTensor<Self>,
        buffer: FloatTensor<Self>,
        matrices: [usize; 2],
        seen: SeenKeys,
        scale: f32,
    ) -> FloatTensor<Self> {
        cache_attention::launch(queries, buffer, matrices, seen, scale)
    }

    fn vocabulary_rows(
        logits: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        teacher_rows: IntTensor<Self>,
        labels: IntTensor<Self>,
        factors: FloatTensor<Self>,
        ids: IntTensor<Self>,
        restricted: bool,
        with_gradient: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        vocabulary_rows::launch(logits, teacher, teacher_rows, labels, factors, ids, restricted, with_gradient)
    }
}

/// Returns whether a tensor is where these kernels run.
pub fn runs_on<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.clone().try_into_primitive::<Cube>().is_ok()
}

/// Softmax of a part's scaled scores, `[c, p, r, t]` to context tokens and `[c, p, r, b]` to a block's own slots: weights of the
/// same shapes and types, and the logarithms of what the exponentiated scores add up to, `[c, p, r, 1]` in f32.
///
/// `seen [p, 2]`: first and one past the last of the `t` tokens that a block sees.
pub fn block_softmax(scores: [Tensor<4>; 2], seen_p2: Tensor<2, Int>, scale: f32) -> ([Tensor<4>; 2], Tensor<4>) {
    let [context, block] = scores.map(Tensor::into_dispatch);
    let (context, block, log_sums) =
        <Dispatch as CubeKernels>::block_softmax(context, block, seen_p2.into_dispatch(), scale);
    ([context, block].map(Tensor::from_dispatch), Tensor::from_dispatch(log_sums))
}

/// Returns the recomputed weights, and the slopes of the scores: `weight * (product - mean) * scale`, where `products`
/// are of gradients with values, and log sums and means are `[c, p, r, 1]`, f32.
pub fn block_slopes(
    scores: [Tensor<4>; 2],
    products: [Tensor<4>; 2],
    seen_p2: Tensor<2, Int>,
    log_sums: Tensor<4>,
    means: Tensor<4>,
    scale: f32,
) -> ([Tensor<4>; 2], [Tensor<4>; 2]) {
    let [context, block] = scores.map(Tensor::into_dispatch);
    let [context_products, block_products] = products.map(Tensor::into_dispatch);
    let (context_weights, block_weights, context_slopes, block_slopes) = <Dispatch as CubeKernels>::block_slopes(
        context,
        block,
        context_products,
        block_products,
        seen_p2.into_dispatch(),
        log_sums.into_dispatch(),
        means.into_dispatch(),
        scale,
    );
    (
        [context_weights, block_weights].map(Tensor::from_dispatch),
        [context_slopes, block_slopes].map(Tensor::from_dispatch),
    )
}

/// The keys that the rows of a sequence see in its cache.
#[derive(Clone, Copy, Debug)]
pub struct SeenKeys {
    /// One past the last key that the first row sees.
    pub end: usize,
    /// Number of additional keys that each row sees compared with the preceding one: 1 if causal, else 0.
    pub step: usize,
    /// Maximum number of keys that a row sees.
    pub window: Option<usize>,
}

/// Attention of rows to the keys of a cache, read where they lie: `queries [n, h, w]` -> `[n, h * w]`.
///
/// `buffer [m, c, capacity, w]` holds keys and values as the two `matrices`. A row's result depends only on the keys
/// that it sees, not on the other rows.
pub fn cache_attention(
    queries_nhw: Tensor<3>,
    buffer_mctw: Tensor<4>,
    matrices: [usize; 2],
    seen: SeenKeys,
) -> Tensor<2> {
    let [_, _, w] = queries_nhw.dims();
    let scale = (w as f32).powf(-0.5);
    let (queries, buffer) = (queries_nhw.into_dispatch(), buffer_mctw.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CubeKernels>::cache_attention(queries, buffer, matrices, seen, scale))
}

/// Rows of logits against rows of the teacher's.
pub struct VocabularyRows {
    /// Logits of `m` rows over the draft's `u` tokens, f32.
    pub logits_mu: Tensor<2>,
    /// The teacher's over its `v` tokens, f32.
    pub teacher_tv: Tensor<2>,
    /// Row of the teacher's logits for each row.
    pub teacher_rows_m: Tensor<1, Int>,
    /// The true token of each row in the draft's vocabulary; negative if the draft does not have it.
    pub labels_m: Tensor<1, Int>,
    /// Factors of cross-entropy, cross-entropy against the teacher and L1, `[m, 3]`; without them there is no gradient.
    pub factors_m3: Option<Tensor<2>>,
    /// The teacher's ids of the draft's tokens, `[u]`, where these are not all.
    pub ids_u: Option<Tensor<1, Int>>,
}

impl VocabularyRows {
    /// Cross-entropy, cross-entropy against the teacher and L1 of each row, `[m, 3]`, and the gradient of their weighted sum with
    /// respect to the logits, `[m, u]`.
    pub fn losses(self) -> (Tensor<2>, Option<Tensor<2>>) {
        let device = self.logits_mu.device();
        let (restricted, with_gradient) = (self.ids_u.is_some(), self.factors_m3.is_some());
        let ids = self.ids_u.unwrap_or_else(|| self.labels_m.clone().narrow(0, 0, 1));
        let factors = self.factors_m3.unwrap_or_else(|| Tensor::zeros([1, 3], &device));
        let (losses, gradient) = <Dispatch as CubeKernels>::vocabulary_rows(
            self.logits_mu.into_dispatch(),
            self.teacher_tv.into_dispatch(),
            self.teacher_rows_m.into_dispatch(),
            self.labels_m.into_dispatch(),
            factors.into_dispatch(),
            ids.into_dispatch(),
            restricted,
            with_gradient,
        );
        (Tensor::from_dispatch(losses), with_gradient.then(|| Tensor::from_dispatch(gradient)))
    }
}

/// Describes a tensor with one number per row of scores.
fn per_row(scores: &TensorSpec) -> TensorSpec {
    let [c, p, r, _] = scores.shape.dims::<4>();
    TensorSpec::new(Shape::new([c, p, r, 1]), DType::F32)
}

/// Returns an uninitialised tensor on the device of another one.
fn empty_like(other: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_dtype(other.client.clone(), other.device.clone(), shape, dtype)
}

fn element(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_storage_type(dtype)
}

/// Returns the units of a cube, a power of two. A CPU runs each of them in a separate thread, which busy-waits for the
/// others.
fn units(client: &Client, most: usize) -> usize {
    let hardware = &client.properties().hardware;
    let most = most.min(hardware.max_cube_dim.0 as usize).min(hardware.max_units_per_cube as usize);
    let most = hardware.num_cpu_cores.map_or(most, |cores| most.min(cores as usize));
    1 << most.max(1).ilog2()
}
