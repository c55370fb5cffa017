//! The target as a teacher: hidden states, online or from a cache on disk, without gradients.
//!
//! `states` is a cache of this project, which `states_build` makes: files of blocks (`states_file`) in one of several number
//! formats (`codec`). `reference` reads caches of the reference. A training takes either as [`CachedStates`].
//!
//! Legend: `s` tokens of all samples, `f` width of the captured features, `d` hidden size.

mod cached;
mod codec;
mod reference;
mod states;
mod states_build;
mod states_file;
#[cfg(test)]
mod tests;

pub use cached::CachedStates;
pub use codec::Codec;
pub use reference::{CachedSample, TargetCache};
pub use states::{CacheSettings, MANIFEST, StateCache, file_bytes, kept_rows};
pub use states_build::{Built, CacheBuild, CachedTokens, SAMPLES_PER_FILE, sizes};

use burn::tensor::Tensor;
use dspark_runtime::model::{LayerId, Target, TargetSegment};
use dspark_runtime::tensors::host;

/// The training data of the draft from the teacher.
#[derive(Clone, Debug)]
pub struct TeacherOutput {
    /// Outputs of the captured layers side by side, `[s, f]`.
    pub features_sf: Tensor<2>,
    /// After the target's final norm, `[s, d]`.
    pub last_hidden_sd: Tensor<2>,
}

impl TeacherOutput {
    /// Returns whether all hidden states are finite. Looks at every number on the host.
    pub fn is_finite(&self) -> bool {
        [&self.features_sf, &self.last_hidden_sd]
            .into_iter()
            .all(|states| host(states.clone()).into_iter().all(f32::is_finite))
    }
}

/// Runs whole samples through the target; nothing is kept or written.
///
/// `layers` has at least one id that the target has.
pub fn teach(target: &Target, samples: &[&[u32]], layers: &[LayerId]) -> TeacherOutput {
    let mut segments: Vec<TargetSegment<'_>> = samples.iter().map(|ids| TargetSegment { ids, cache: None }).collect();
    let output = target.forward(&mut segments, layers);
    let features_sf = output.features_nf.unwrap_or_else(|| output.last_hidden_nd.clone());
    TeacherOutput { features_sf, last_hidden_sd: output.last_hidden_nd }
}
