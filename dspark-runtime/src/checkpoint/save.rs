//! Writing weights as `model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::CheckpointError;

/// The number type that weights are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// 16 bits, the range of f32: what engines expect.
    #[default]
    Bf16,
    /// 32 bits: exact.
    F32,
}

/// Tensors collected for one file, by their names on disk.
#[derive(Debug, Default)]
pub struct WeightsToSave {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    integers: BTreeMap<String, Vec<i64>>,
    flags: BTreeMap<String, Vec<bool>>,
}

impl WeightsToSave {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every parameter of a module under its dotted path.
    pub fn add_module<M: Module>(&mut self, module: &M) {
        module.visit(&mut Collector { tensors: &mut self.tensors, path: Vec::new() });
    }

    /// Adds one tensor.
    pub fn add<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        self.tensors.insert(name.to_owned(), host_values(tensor));
    }

    /// Adds a list of whole numbers, which is written as I64.
    pub fn add_integers(&mut self, name: &str, values: Vec<i64>) {
        self.integers.insert(name.to_owned(), values);
    }

    /// Adds a list of yes and no, which is written as BOOL.
    pub fn add_flags(&mut self, name: &str, values: Vec<bool>) {
        self.flags.insert(name.to_owned(), values);
    }

    /// Names, shapes and values, by name.
    pub fn into_tensors(self) -> impl Iterator<Item = (String, Vec<usize>, Vec<f32>)> {
        self.tensors.into_iter().map(|(name, (shape, values))| (name, shape, values))
    }

    /// The first tensor that holds a NaN or an infinity, and that value.
    pub fn first_not_finite(&self) -> Option<(&str, f32)> {
        let bad = |values: &[f32]| values.iter().copied().find(|value| !value.is_finite());
        self.tensors.iter().find_map(|(name, (_, values))| Some((name.as_str(), bad(values)?)))
    }

    /// Writes the file into a folder that is not visible yet (see [`super::AtomicDirectory`]).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path, dtype: WeightDtype) -> Result<(), CheckpointError> {
        let kind = match dtype {
            WeightDtype::Bf16 => Dtype::BF16,
            WeightDtype::F32 => Dtype::F32,
        };
        let mut encoded: Vec<(&String, Vec<usize>, Dtype, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| (name, shape.clone(), kind, encode(values, dtype)))
            .collect();
        encoded.extend(self.integers.iter().map(|(name, values)| {
            (name, vec![values.len()], Dtype::I64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        }));
        encoded.extend(self.flags.iter().map(|(name, values)| {
            (name, vec![values.len()], Dtype::BOOL, values.iter().map(|value| u8::from(*value)).collect())
        }));
        let fail = |reason: String| CheckpointError::Invalid { path: path.to_owned(), reason };
        let mut views = Vec::with_capacity(encoded.len());
        for (name, shape, kind, bytes) in &encoded {
            let view = TensorView::new(*kind, shape.clone(), bytes).map_err(|error| fail(error.to_string()))?;
            views.push((name.as_str(), view));
        }
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => CheckpointError::Io { path: path.to_owned(), source },
            other => fail(other.to_string()),
        })
    }
}

struct Collector<'a> {
    tensors: &'a mut BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    path: Vec<String>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.tensors.insert(self.path.join("."), host_values(&param.val()));
    }
}

fn host_values<const D: usize>(tensor: &Tensor<D>) -> (Vec<usize>, Vec<f32>) {
    let values = tensor.try_to_vec_as::<f32>().unwrap_or_else(|error| panic!("the device failed: {error}"));
    (tensor.dims().to_vec(), values)
}

fn encode(values: &[f32], dtype: WeightDtype) -> Vec<u8> {
    match dtype {
        WeightDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightDtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}
