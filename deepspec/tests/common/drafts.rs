//! Small drafts for the quickstart's target, and ways to spoil them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{DSparkConfig, Draft, DraftConfig, DraftContext, DraftKind, DraftShape, LayerId, Target};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::workspace;

pub const TARGET: &str = "checkpoints/quickstart-target";

pub fn shape() -> DraftShape {
    shape_of(dspark())
}

pub fn shape_of(own: DSparkConfig) -> DraftShape {
    DraftShape {
        block_size: 4,
        num_draft_layers: 2,
        target_layer_ids: vec![LayerId(0), LayerId(2)],
        kind: DraftKind::DSpark(own),
    }
}

pub fn dspark() -> DSparkConfig {
    DSparkConfig { num_anchors: 4, ..DSparkConfig::new(1536, 8) }
}

pub fn target() -> Target {
    Target::load(&workspace().join(TARGET), &Device::flex()).unwrap()
}

/// A greedy block behind a context, slot by slot, with the numbers that it came of.
#[derive(Default)]
pub struct GreedyBlock {
    pub tokens: Vec<u32>,
    pub logits: Vec<Vec<f32>>,
    pub confidence_logits: Vec<f32>,
    pub hidden: Vec<f32>,
}

impl GreedyBlock {
    pub fn draft(draft: &Draft, context: &mut DraftContext, anchor: u32) -> Self {
        let mut block = Self::default();
        let slots = draft.config().block_size;
        let mut drafting = draft.begin(vec![context], &[anchor], slots);
        for slot in 0..slots {
            let previous = if slot == 0 { anchor } else { block.tokens[slot - 1] };
            block.confidence_logits.extend(drafting.confidences(&[previous]).unwrap_or_default());
            let logits = drafting.logits(&[0])[0].to_vec();
            let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            block.tokens.push(best as u32);
            block.logits.push(logits);
        }
        block.hidden = drafting.hidden().try_into_vec_as().unwrap();
        block
    }
}

/// A fresh draft of this shape, saved.
pub fn save(folder: &Path, shape: &DraftShape, dtype: WeightDtype, with_embeddings: bool) -> PathBuf {
    let target = target();
    let draft = Draft::new(DraftConfig::for_target(target.config(), shape).unwrap(), &target, 7);
    draft.save(folder, dtype, with_embeddings).unwrap();
    folder.to_owned()
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changes what a weight file holds.
pub fn edit_tensors(path: &Path, edit: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = |name: &str| {
        let view = file.tensor(name).unwrap();
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let mut tensors: Tensors = file.names().into_iter().map(own).collect();
    edit(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let written = safetensors::serialize(views, None).unwrap();
    fs::write(path, written).unwrap();
}

/// Changes the numbers of one tensor in 32 bits.
pub fn edit_values(path: &Path, name: &str, edit: impl Fn(usize, f32) -> f32) {
    edit_tensors(path, |tensors| {
        let (dtype, _, data) = tensors.get_mut(name).unwrap();
        assert_eq!(*dtype, Dtype::F32, "{name}");
        for (index, value) in data.chunks_exact_mut(4).enumerate() {
            let old = f32::from_le_bytes(value.try_into().unwrap());
            value.copy_from_slice(&edit(index, old).to_le_bytes());
        }
    });
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}
