//! Filling a module from weight files: a parameter's dotted path is its name on disk.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};

use super::{CheckpointError, WeightPrecision, Weights};
use crate::numbers::fnv;

/// Loads every parameter of `module` from the tensor named by its path.
///
/// Parameters that were not initialised yet never are: their values come from the file alone. Returns the module and
/// the names that were used, so that the caller can refuse what has no place.
///
/// # Errors
/// Returns an error if a tensor is missing (the first one is named, the others counted), or has another shape or an unknown dtype.
pub fn load_module<M: Module>(
    module: M,
    weights: &Weights,
    precision: WeightPrecision,
    device: &Device,
) -> Result<(M, BTreeSet<String>), CheckpointError> {
    let mut loader = Loader {
        weights,
        precision,
        device,
        path: Vec::new(),
        used: BTreeSet::new(),
        missing: Vec::new(),
        error: None,
    };
    let module = module.map(&mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    if let Some(name) = loader.missing.first() {
        return Err(weights.missing(name, loader.missing.len() - 1));
    }
    Ok((module, loader.used))
}

/// Names and shapes of a module's parameters, without initialising any.
pub fn parameter_shapes<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    let mut shapes = Shapes { path: Vec::new(), found: Vec::new() };
    module.visit(&mut shapes);
    shapes.found
}

struct Shapes {
    path: Vec<String>,
    found: Vec<(String, Vec<usize>)>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push((self.path.join("."), param.lazy_shape().to_vec()));
    }
}

/// Gives every parameter an id that follows from its name, so that the state of an optimiser, which is kept by id, finds
/// its parameters again in another process. Loaded modules have such ids.
pub fn with_stable_ids<M: Module>(module: M) -> M {
    module.map(&mut StableIds { path: Vec::new() })
}

struct StableIds {
    path: Vec<String>,
}

impl ModuleMapper for StableIds {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::initialized(stable_id(&self.path), param.val())
    }
}

/// A hash of the dotted path.
fn stable_id(path: &[String]) -> ParamId {
    ParamId::from(fnv(path.iter().flat_map(|part| part.bytes().chain([b'.']))))
}

struct Loader<'a> {
    weights: &'a Weights,
    precision: WeightPrecision,
    device: &'a Device,
    path: Vec<String>,
    used: BTreeSet<String>,
    missing: Vec<String>,
    error: Option<CheckpointError>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        if self.error.is_some() {
            return param;
        }
        if self.weights.shape(&name).is_none() {
            self.missing.push(name);
            return param;
        }
        match self.weights.tensor(&name, param.lazy_shape(), self.precision, self.device) {
            Ok(tensor) => {
                self.used.insert(name);
                Param::initialized(stable_id(&self.path), tensor)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
