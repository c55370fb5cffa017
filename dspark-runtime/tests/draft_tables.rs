//! What `dspark` does with a draft's calibration table, its confidence head and files that it would overwrite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use burn::tensor::Device;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, LayerId, Target};
use dspark_runtime::schedule::StsTable;

fn target_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target")
}

/// Saves a fresh draft.
fn save(folder: &Path, enable_confidence_head: bool) -> Draft {
    let target = Target::load(&target_folder(), &Device::flex()).unwrap();
    let kind = DraftKind::DSpark(DSparkConfig { enable_confidence_head, ..DSparkConfig::new(1536, 8) });
    let target_layer_ids = vec![LayerId(0), LayerId(2)];
    let shape = DraftShape { block_size: 4, num_draft_layers: 1, target_layer_ids, kind };
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), &target, 7);
    draft.save(folder, WeightDtype::Bf16, false).unwrap();
    draft
}

/// Runs a verb with a draft and nothing on standard input.
fn dspark(verb: &str, draft: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dspark"));
    command.arg(verb).arg("--target").arg(target_folder()).arg("--draft").arg(draft).args(more);
    command.stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for word in words {
        assert!(told.contains(word), "`{word}` is not in: {told}");
    }
}

#[test]
fn a_calibration_table_is_used_for_its_own_draft_alone() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(root.path(), true);
    let path = root.path().join(StsTable::FILE);
    let chat = || dspark("chat", root.path(), &["--mode", "fixed:2"]);
    let table = |draft: Option<String>| StsTable { draft, ..StsTable::identity(4) };
    // The file's weights are rounded to bf16, the draft's are not.
    table(Some(draft.digest())).write(&path).unwrap();
    let output = chat();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !told.contains("warning"), "{told}");
    table(None).write(&path).unwrap();
    let output = chat();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("does not record which draft"), "{told}");
    table(Some("0123456789abcdef".to_owned())).write(&path).unwrap();
    refused(&chat(), &["sts.json", "fitted for another draft", &draft.digest(), "deepspec calibrate"]);
}

#[test]
fn a_threshold_without_a_confidence_head_is_refused() {
    let root = tempfile::tempdir().unwrap();
    save(root.path(), false);
    let prompts = root.path().join("prompts.jsonl");
    fs::write(&prompts, "{\"prompt\": \"Hello!\"}\n").unwrap();
    let threshold = "mode `threshold:0.5` needs a confidence head";
    refused(&dspark("chat", root.path(), &["--mode", "threshold:0.5"]), &[threshold]);
    let bench = ["--prompts", prompts.to_str().unwrap(), "--modes", "off,threshold:0.5"];
    refused(&dspark("bench", root.path(), &bench), &[threshold]);
    assert!(dspark("chat", root.path(), &["--mode", "fixed:2"]).status.success());
}

#[test]
fn outputs_do_not_overwrite_what_is_read() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let prompts = path("prompts.jsonl");
    fs::write(&prompts, "{\"prompt\": \"Hello!\"}\n").unwrap();
    fs::write(path("config.json"), "{}").unwrap();
    let bench = |more: &[&str]| dspark("bench", root.path(), &[&["--prompts", &prompts], more].concat());
    for flag in ["--json", "--plot", "--answers"] {
        refused(&bench(&[flag, &prompts]), &[flag, "would overwrite the input of --prompts"]);
        refused(&bench(&[flag, &path("config.json")]), &[flag, "would overwrite the input of --draft"]);
    }
    refused(&dspark("profile", root.path(), &["--out", &path("config.json")]), &["--out", "--draft"]);
    assert_eq!(fs::read_to_string(path("config.json")).unwrap(), "{}");
}
