//! Writing weights as `model.safetensors`, one tensor after the other: no more than one of them is in memory twice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use half::bf16;
use safetensors::{Dtype, View};

use super::CheckpointError;
use crate::tensors::host;

/// The number type that weights are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// 16 bits, the range of f32: what engines expect.
    #[default]
    Bf16,
    /// 32 bits: exact.
    F32,
}

impl WeightDtype {
    /// Bytes of a number.
    fn size(self) -> usize {
        match self {
            Self::Bf16 => size_of::<bf16>(),
            Self::F32 => size_of::<f32>(),
        }
    }
}

/// Tensors collected for one file, by their names on disk. They are read from the device when they are wanted.
#[derive(Debug, Default)]
pub struct WeightsToSave {
    tensors: BTreeMap<String, Numbers>,
    integers: BTreeMap<String, Vec<i64>>,
    flags: BTreeMap<String, Vec<bool>>,
}

/// A tensor of any rank.
#[derive(Debug)]
struct Numbers {
    shape: Vec<usize>,
    flat: Tensor<1>,
}

impl Numbers {
    fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let flat = tensor.clone().reshape([shape.iter().product::<usize>()]);
        Self { shape, flat }
    }

    fn values(&self) -> Vec<f32> {
        host(self.flat.clone())
    }
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
        self.tensors.insert(name.to_owned(), Numbers::of(tensor));
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
        self.tensors.into_iter().map(|(name, numbers)| {
            let values = numbers.values();
            (name, numbers.shape, values)
        })
    }

    /// The first tensor that holds a NaN or an infinity, and that value.
    pub fn first_not_finite(&self) -> Option<(&str, f32)> {
        let bad = |numbers: &Numbers| numbers.values().into_iter().find(|value| !value.is_finite());
        self.tensors.iter().find_map(|(name, numbers)| Some((name.as_str(), bad(numbers)?)))
    }

    /// Writes the file into a folder that is not visible yet (see [`super::AtomicDirectory`]).
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write(&self, path: &Path, dtype: WeightDtype) -> Result<(), CheckpointError> {
        let tensors = self.tensors.iter().map(|(name, numbers)| (name.as_str(), Entry::Tensor(numbers, dtype)));
        let integers = self.integers.iter().map(|(name, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.as_str(), Entry::List(Dtype::I64, [values.len()], bytes))
        });
        let flags = self.flags.iter().map(|(name, values)| {
            let bytes = values.iter().map(|value| u8::from(*value)).collect();
            (name.as_str(), Entry::List(Dtype::BOOL, [values.len()], bytes))
        });
        let entries = tensors.chain(integers).chain(flags);
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        safetensors::serialize_to_file(entries, Some(metadata), path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => CheckpointError::Io { path: path.to_owned(), source },
            other => CheckpointError::Invalid { path: path.to_owned(), reason: other.to_string() },
        })
    }
}

/// An entry of the file's writer.
enum Entry<'a> {
    /// Read and encoded when its turn comes.
    Tensor(&'a Numbers, WeightDtype),
    /// Bytes.
    List(Dtype, [usize; 1], Vec<u8>),
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Tensor(_, WeightDtype::Bf16) => Dtype::BF16,
            Self::Tensor(_, WeightDtype::F32) => Dtype::F32,
            Self::List(dtype, ..) => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(numbers, _) => &numbers.shape,
            Self::List(_, shape, _) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Tensor(numbers, dtype) => encode(&numbers.values(), *dtype).into(),
            Self::List(.., bytes) => bytes.into(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Tensor(numbers, dtype) => numbers.shape.iter().product::<usize>() * dtype.size(),
            Self::List(.., bytes) => bytes.len(),
        }
    }
}

struct Collector<'a> {
    tensors: &'a mut BTreeMap<String, Numbers>,
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
        self.tensors.insert(self.path.join("."), Numbers::of(&param.val()));
    }
}

fn encode(values: &[f32], dtype: WeightDtype) -> Vec<u8> {
    match dtype {
        WeightDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightDtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}
