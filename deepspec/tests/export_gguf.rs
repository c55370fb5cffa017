//! `deepspec export --layout gguf`, from the command line to what is read back.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::checkpoint::gguf::{BlockType, GgufFile};
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, LayerId, Target, TargetSegment,
};
use dspark_runtime::text::Tokenizer;
use serde_json::{Value, json};

use common::{deepspec, refused, workspace};

const QUICKSTART: &str = "checkpoints/quickstart-target";

/// The quickstart's target with GPT-2's way of cutting texts, because its own has no name in GGUF, and a draft for it.
fn models(root: &Path) -> (PathBuf, PathBuf) {
    let (folder, draft_folder) = (root.join("target"), root.join("draft"));
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(workspace().join(QUICKSTART)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    fs::write(&path, tokenizer.to_string()).unwrap();
    let target = Target::load(&folder, &Device::flex()).unwrap();
    let shape = DraftShape {
        block_size: 5,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(1), LayerId(3)],
        kind: DraftKind::DSpark(DSparkConfig::new(1536, 8)),
    };
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape).unwrap(), &target, 2);
    draft.save(&draft_folder, WeightDtype::F32, false).unwrap();
    (folder, draft_folder)
}

fn logits(path: &Path, ids: &[u32]) -> Vec<f32> {
    let target = Target::load(path, &Device::flex()).unwrap();
    let output = target.forward(&mut [TargetSegment { ids, cache: None }], &[]);
    target.logits(output.last_hidden_nd).try_into_vec_as().unwrap()
}

#[test]
fn draft_and_target_are_written_and_the_target_is_a_target_again() {
    let root = tempfile::tempdir().unwrap();
    let (target, draft) = models(root.path());
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let export = |target: &str, out: &str, more: &[&str]| {
        let mut arguments =
            vec!["export", "--layout", "gguf", "--draft", draft.to_str().unwrap(), "--target", target];
        arguments.extend(["--out", out]);
        arguments.extend(more);
        deepspec(&arguments)
    };
    let (first, target_file) = (path("first/draft.gguf"), path("target.gguf"));
    let output = export(target.to_str().unwrap(), &first, &["--target-out", &target_file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ids = [300, 512, 7, 1000, 1535];
    assert!(logits(Path::new(&target_file), &ids) == logits(&target, &ids));
    let (read, original) =
        (Tokenizer::of_model(Path::new(&target_file)).unwrap(), Tokenizer::from_directory(&target).unwrap());
    let text = "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n";
    assert_eq!(read.encode(text, true).unwrap(), original.encode(text, true).unwrap());
    assert_eq!(read.stop_token_ids(), original.stop_token_ids());
    assert_eq!(read.first_unused_row(1552), Some(1536));
    assert_eq!(read.chat_template().unwrap().source(), original.chat_template().unwrap().source());
    let output = deepspec(&["inspect", &target_file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    // Whether the target is read from its folder or from its own export makes no difference to a byte of the draft.
    let second = path("second/draft.gguf");
    let output = export(&target_file, &second, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());

    let small = path("small.gguf");
    let output = export(&target_file, &small, &["--dtype", "q8_0", "--without-embeddings"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = GgufFile::open(Path::new(&small)).unwrap();
    assert_eq!(file.tensor("fc.weight").unwrap().block_type, BlockType::Q8_0);
    // Rows of 8 are no whole blocks of 32.
    assert_eq!(file.tensor("markov_w1.weight").unwrap().block_type, BlockType::F16);
    assert!(file.tensor("token_embd.weight").is_none() && file.tensor("output.weight").is_none());

    refused(&export(&target_file, &target_file, &[]), &["--out", "overwrite the input of --target"]);
    refused(
        &export(&target_file, &small, &["--target-out", &small]),
        &["--target-out", "--out writes the same file"],
    );
    refused(&export(&target_file, &path("folder"), &[]), &["--out", ".gguf"]);
    refused(&export(&path("absent.gguf"), &small, &[]), &["absent.gguf", "no such GGUF file"]);
    // The quickstart's own tokeniser cuts texts in a way that llama.cpp does not know.
    let own = export(QUICKSTART, &path("own.gguf"), &[]);
    refused(&own, &[QUICKSTART, "cannot be written to GGUF", "pre-tokeniser"]);
    assert!(!Path::new(&path("own.gguf")).exists());
}

#[test]
fn what_belongs_to_gguf_is_refused_for_folders() {
    let root = tempfile::tempdir().unwrap();
    let (target, draft) = models(root.path());
    let out = root.path().join("out");
    let export = |more: &[&str]| {
        let mut arguments = vec!["export", "--draft", draft.to_str().unwrap(), "--target", target.to_str().unwrap()];
        arguments.extend(["--out", out.to_str().unwrap()]);
        arguments.extend(more);
        deepspec(&arguments)
    };
    refused(&export(&["--dtype", "q8_0"]), &["--dtype q8_0", "--layout gguf"]);
    refused(&export(&["--target-out", "target.gguf"]), &["--target-out", "--layout gguf"]);
    assert!(!out.exists());
    assert!(export(&[]).status.success());
}
