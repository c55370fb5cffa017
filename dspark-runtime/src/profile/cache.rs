//! Cached speed tables. Models, device and settings of a measurement identify its table.

use std::path::Path;

use super::measure::{Measured, ProfileOptions, Progress, measure};
use crate::checkpoint::{CheckpointError, JsonFields, WeightPrecision};
use crate::device::DeviceChoice;
use crate::model::{Draft, DraftConfig, DraftHeads, TRAINING_FIELDS, Target, TargetConfig};
use crate::numbers::fnv;
use crate::schedule::{Identity, SpsTable};

/// Name of the cache folder of the tables.
pub const PROFILES: &str = "profiles";

/// Returns what a table is measured for: models of these shapes on this device with this many threads. The
/// time of a pass depends neither on the values of the weights nor on their path.
pub fn identity(
    target: &TargetConfig,
    draft: Option<&DraftConfig>,
    device: DeviceChoice,
    precisions: (WeightPrecision, DraftHeads),
    options: &ProfileOptions,
) -> Identity {
    let stored = precisions.0 == WeightPrecision::AsStored;
    let mut shapes = target_shape(target, stored);
    if let Some(draft) = draft {
        shapes += &draft_shape(draft, stored);
    }
    let ProfileOptions { max_batch_tokens, max_requests, context, .. } = options;
    Identity {
        model: format!(
            "{} {:016x}, {max_batch_tokens} tokens, {max_requests} requests, context {context}",
            target.family,
            fnv(shapes.bytes())
        ),
        device: format!("{device}, {}", processor()),
        dtype: match draft {
            Some(_) => format!("{}, draft heads {}", precisions.0, precisions.1),
            None => precisions.0.to_string(),
        },
        threads: rayon::current_num_threads(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Returns the fields of a target that determine the time of a pass; `stored` is true if weights keep the number type of its files.
fn target_shape(config: &TargetConfig, stored: bool) -> String {
    let TargetConfig { layers, vocab_size, tie_word_embeddings, .. } = config;
    format!("{layers:?} {vocab_size} {tie_word_embeddings} {}", number_type(&config.fields, stored))
}

/// Returns the fields of a draft that determine the time of a pass.
fn draft_shape(config: &DraftConfig, stored: bool) -> String {
    let DraftConfig { layer, num_hidden_layers, vocab_size, draft_vocab_size, target_layer_ids, .. } = config;
    let mut settings = config.drafter().fields(config.block_size);
    if let Some(settings) = settings.as_object_mut() {
        TRAINING_FIELDS.iter().chain(&["mask_token_id"]).for_each(|field| drop(settings.remove(*field)));
    }
    let (name, features) = (config.drafter().name(), target_layer_ids.len());
    let number_type = number_type(config.fields(), stored);
    format!(
        "{name} {layer:?} {num_hidden_layers} {vocab_size} {draft_vocab_size} {features} {settings} {number_type}"
    )
}

/// Returns the number type of the files if weights keep it, else an empty text.
fn number_type(fields: &JsonFields, stored: bool) -> String {
    let named = fields.get("dtype").or(fields.get("torch_dtype")).filter(|_| stored);
    named.map_or_else(String::new, ToString::to_string)
}

/// Reasons that a new table is not cached.
#[derive(Debug, thiserror::Error)]
pub enum Unkept {
    /// The file cannot be written.
    #[error(transparent)]
    Failed(#[from] CheckpointError),
    /// Other programs ran during the measurement.
    #[error("other programs ran while it was measured (times of one pass differ by a factor of {spread:.1})")]
    Disturbed {
        /// See [`Measured`](super::Measured).
        spread: f64,
    },
}

/// Returns the cached table of an earlier run if it matches and is complete, else measures a new one and caches it,
/// unless other programs disturbed the measurement. Without a folder nothing is cached. If the table is not cached, the
/// reason is passed to `unkept`.
pub fn load_or_measure(
    target: &Target,
    draft: Option<&Draft>,
    options: &ProfileOptions,
    identity: &Identity,
    folder: Option<&Path>,
    observe: impl FnMut(Progress),
    unkept: impl FnOnce(Unkept),
) -> SpsTable {
    let path = folder.map(|folder| folder.join(file_name(identity)));
    if let Some(path) = &path
        && let Ok(table) = SpsTable::read(path)
        && table.check_identity(path, identity).is_ok()
        && is_complete(&table)
    {
        return table;
    }
    kept(measure(target, draft, options, observe), identity, folder, unkept)
}

/// Caches a measured table unless other programs disturbed it, and returns it in any case.
fn kept(measured: Measured, identity: &Identity, folder: Option<&Path>, unkept: impl FnOnce(Unkept)) -> SpsTable {
    let (disturbed, spread) = (measured.disturbed(), measured.spread);
    let table = measured.table.with_identity(identity.clone());
    if disturbed {
        unkept(Unkept::Disturbed { spread });
    } else if let Some(Err(error)) = folder.map(|folder| keep(&table, identity, folder)) {
        unkept(error.into());
    }
    table
}

/// Tables of earlier versions lack the cost of updating a draft's context.
fn is_complete(table: &SpsTable) -> bool {
    table.draft().is_none() || table.context_seconds() > 0.0
}

/// Caches a table for later runs.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn keep(table: &SpsTable, identity: &Identity, folder: &Path) -> Result<(), CheckpointError> {
    std::fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
    table.write(&folder.join(file_name(identity)))
}

fn file_name(identity: &Identity) -> String {
    let Identity { model, device, dtype, threads, version } = identity;
    format!("{:016x}.json", fnv(format!("{model}|{device}|{dtype}|{threads}|{version}").bytes()))
}

/// Returns the name of the processor if the system reports it.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |key: &str| {
        info.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    // Different processors of one maker may carry one name; what they can compute tells them apart.
    let wide = line("flags").is_some_and(|flags| flags.contains("avx512f"));
    let name = line("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    if wide { format!("{name}, AVX-512") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DSparkConfig, DraftKind, DraftShape, LayerId};
    use crate::schedule::{DraftCost, StepCost};

    #[test]
    fn a_table_is_found_again_only_for_what_it_was_measured_for() {
        let folder = tempfile::tempdir().unwrap();
        let one = Identity { model: "a".to_owned(), device: "cpu".to_owned(), threads: 2, ..Identity::default() };
        let other = Identity { threads: 4, ..one.clone() };
        assert_ne!(file_name(&one), file_name(&other));
        let cost =
            StepCost::Probes { batch_tokens: vec![1, 2], steps_per_second: vec![10.0, 8.0], per_request: None };
        let table = SpsTable::new(cost, 2, None, None).with_identity(one.clone());
        let path = folder.path().join(file_name(&one));
        table.write(&path).unwrap();
        let read = SpsTable::read(&path).unwrap();
        assert!(read.check_identity(&path, &one).is_ok());
        assert!(read.check_identity(&path, &other).unwrap_err().to_string().contains("threads"));
    }

    /// Retrained, renamed and moved models are measured once; any change to the work of a pass is measured again.
    #[test]
    fn models_of_one_shape_have_one_identity() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
        let target = TargetConfig::read(&path).unwrap();
        let draft = |block_size: usize, num_anchors: usize, mask_token_id: u32| {
            let kind = DraftKind::DSpark(DSparkConfig { num_anchors, ..DSparkConfig::new(mask_token_id, 8) });
            let target_layer_ids = vec![LayerId(0), LayerId(2)];
            let shape = DraftShape { block_size, num_draft_layers: 1, target_layer_ids, kind };
            DraftConfig::for_target(&target, &shape).unwrap()
        };
        let name = |draft: &DraftConfig, precision: WeightPrecision| {
            let precisions = (precision, DraftHeads::Exact);
            identity(&target, Some(draft), DeviceChoice::Cpu, precisions, &ProfileOptions::default())
        };
        let one = name(&draft(4, 8, 1536), WeightPrecision::F32);
        assert_eq!(one, name(&draft(4, 99, 1537), WeightPrecision::F32));
        assert_ne!(one, name(&draft(5, 8, 1536), WeightPrecision::F32));
        assert_ne!(one, name(&draft(4, 8, 1536), WeightPrecision::AsStored));
    }

    #[test]
    fn only_undisturbed_tables_are_kept_and_all_are_used() {
        let cost = StepCost::Probes { batch_tokens: vec![1], steps_per_second: vec![10.0], per_request: None };
        let table = SpsTable::new(cost, 1, None, None);
        let identity = Identity::default();
        let outcome = |spread: f64, folder: &Path| {
            let (measured, mut told) = (Measured { table: table.clone(), spread }, None);
            let used = kept(measured, &identity, Some(folder), |why| told = Some(why.to_string()));
            assert_eq!(used.cost(), table.cost());
            told
        };
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("profiles").join(file_name(&identity));
        let told = outcome(2.0, &root.path().join("profiles")).unwrap();
        assert!(told.contains("factor of 2.0") && !file.exists(), "{told}");
        assert_eq!(outcome(1.1, &root.path().join("profiles")), None);
        assert!(file.exists());
        // A folder cannot be made below a file.
        let told = outcome(1.1, &file.join("profiles")).unwrap();
        assert!(told.contains("profiles"), "{told}");
    }

    #[test]
    fn a_table_that_does_not_say_what_catching_up_costs_is_measured_again() {
        let complete = |draft: Option<DraftCost>| {
            let cost = StepCost::Probes { batch_tokens: vec![1], steps_per_second: vec![10.0], per_request: None };
            is_complete(&SpsTable::new(cost, 1, draft, None))
        };
        let draft = |context_seconds: f64| {
            Some(DraftCost { requests: vec![1], slots: vec![1], seconds: vec![vec![0.1]], context_seconds })
        };
        assert!(complete(None) && complete(draft(1e-5)) && !complete(draft(0.0)));
    }
}
