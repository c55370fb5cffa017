//! What reads each format, as a function of bytes. A target may accept or refuse its input; it may not panic, hang, or
//! take memory out of proportion.
//!
//! `main.rs` beside this file feeds them in CI; the binaries in `fuzz/` feed the same functions for longer.

use std::fs;
use std::path::{Path, PathBuf};

use deepspec::conversation::{Format, ReadOptions, read_evaluation_prompts, read_samples};
use deepspec::evaluation::read_trace;
use deepspec::recipe::Recipe;
use deepspec::replay::read_replay;
use deepspec::teacher::TargetCache;
use dspark_runtime::checkpoint::Weights;
use dspark_runtime::checkpoint::gguf::GgufFile;
use dspark_runtime::model::{DraftConfig, TargetConfig, target_shapes};
use dspark_runtime::schedule::{SpsTable, StsTable};
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};

/// A folder of its own for every target, and the models of the repository.
pub struct Workbench {
    folder: PathBuf,
    target: PathBuf,
    config: TargetConfig,
    tokenizer: Tokenizer,
}

/// A format's reader.
pub type Target = fn(&Workbench, &[u8]);

/// All targets by the name of their format.
pub const TARGETS: [(&str, Target); 17] = [
    ("safetensors", safetensors),
    ("shard_index", shard_index),
    ("gguf", gguf),
    ("target_config", target_config),
    ("draft_config", draft_config),
    ("tokenizer", tokenizer),
    ("tokenizer_config", tokenizer_config),
    ("generation_config", generation_config),
    ("chat_template", chat_template),
    ("recipe", recipe),
    ("override_argument", override_argument),
    ("speed_table", speed_table),
    ("calibration_table", calibration_table),
    ("trace", trace),
    ("rows", rows),
    ("parquet", rows),
    ("bundle", bundle),
];

impl Workbench {
    /// Works in `folder`, which must be empty. `root` is the repository.
    pub fn new(folder: &Path, root: &Path) -> Self {
        let target = root.join("checkpoints/quickstart-target");
        Self {
            folder: folder.to_owned(),
            config: TargetConfig::read(&target).unwrap(),
            tokenizer: Tokenizer::from_directory(&target).unwrap(),
            target,
        }
    }

    /// A file with these bytes, and the folder that it lies in.
    fn file(&self, folder: &str, name: &str, bytes: &[u8]) -> (PathBuf, PathBuf) {
        let folder = self.folder.join(folder);
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        fs::write(&file, bytes).unwrap();
        (folder, file)
    }

    /// A model's folder in which one file is not the repository's.
    fn model(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let folder = self.folder.join(format!("model with {name}"));
        if !folder.exists() {
            fs::create_dir_all(&folder).unwrap();
            for other in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
                fs::copy(self.target.join(other), folder.join(other)).unwrap();
            }
        }
        fs::write(folder.join(name), bytes).unwrap();
        folder
    }
}

fn read_all(weights: &Weights) {
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    for name in names {
        let shape = weights.shape(&name).unwrap_or_default().to_vec();
        let _ = weights.values(&name, &shape);
        let _ = weights.integers(&name, &shape);
    }
}

fn safetensors(workbench: &Workbench, bytes: &[u8]) {
    let (folder, _) = workbench.file("safetensors", "model.safetensors", bytes);
    if let Ok(weights) = Weights::open(&folder) {
        read_all(&weights);
    }
}

fn shard_index(workbench: &Workbench, bytes: &[u8]) {
    let (folder, _) = workbench.file("shards", "model.safetensors.index.json", bytes);
    let shard = folder.join("a.safetensors");
    if !shard.exists() {
        fs::write(&shard, super::seeds::safetensors()).unwrap();
    }
    if let Ok(weights) = Weights::open(&folder) {
        read_all(&weights);
    }
}

fn gguf(workbench: &Workbench, bytes: &[u8]) {
    let (_, file) = workbench.file("gguf", "model.gguf", bytes);
    let _ = GgufFile::open(&file);
    let _ = TargetConfig::read(&file);
    if let Ok(tokenizer) = Tokenizer::of_model(&file) {
        use_tokenizer(&tokenizer);
    }
}

fn target_config(workbench: &Workbench, bytes: &[u8]) {
    let (folder, _) = workbench.file("target config", "config.json", bytes);
    if let Ok(config) = TargetConfig::read(&folder) {
        let _ = target_shapes(&config);
    }
}

fn draft_config(workbench: &Workbench, bytes: &[u8]) {
    let (folder, _) = workbench.file("draft config", "config.json", bytes);
    let _ = DraftConfig::read(&folder);
    let _ = DraftConfig::read_for(&folder, &workbench.config);
}

fn tokenizer(workbench: &Workbench, bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_directory(&workbench.model("tokenizer.json", bytes)) {
        use_tokenizer(&tokenizer);
    }
}

fn tokenizer_config(workbench: &Workbench, bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_directory(&workbench.model("tokenizer_config.json", bytes)) {
        use_tokenizer(&tokenizer);
        render(&tokenizer);
    }
}

fn generation_config(workbench: &Workbench, bytes: &[u8]) {
    let _ = Tokenizer::from_directory(&workbench.model("generation_config.json", bytes));
}

fn chat_template(workbench: &Workbench, bytes: &[u8]) {
    let config = json!({ "chat_template": String::from_utf8_lossy(bytes) });
    tokenizer_config(workbench, config.to_string().as_bytes());
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["", "Add 583 and 695.\n", "<|im_start|>user\né🦀\u{0}<|im_end|>"] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&ids, false);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, 700, u32::MAX], true);
}

fn render(tokenizer: &Tokenizer) {
    let messages = [
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "Hello"}),
        json!({"role": "assistant", "content": "Good day.", "tool_calls": [{"function": {"arguments": {"a": [1.5]}}}]}),
    ];
    if let Some(template) = tokenizer.chat_template() {
        let _ = template.render(&messages, &Map::new(), true);
    }
}

fn recipe(_: &Workbench, bytes: &[u8]) {
    let _ = Recipe::parse(&String::from_utf8_lossy(bytes), Path::new("recipe.toml"), &[]);
}

fn override_argument(_: &Workbench, bytes: &[u8]) {
    let _ = Recipe::parse(super::seeds::RECIPE, Path::new("r.toml"), &[String::from_utf8_lossy(bytes).into_owned()]);
}

fn speed_table(workbench: &Workbench, bytes: &[u8]) {
    let (_, file) = workbench.file("speed table", "sps.json", bytes);
    if let Ok(table) = SpsTable::read(&file) {
        let _ = (table.verify_seconds(3, 17), table.draft_seconds(3, 5), table.rises());
    }
}

fn calibration_table(workbench: &Workbench, bytes: &[u8]) {
    let (_, file) = workbench.file("calibration table", "sts.json", bytes);
    if let Ok(table) = StsTable::read(&file, 7) {
        let _ = table.confidence(3, 0.5);
    }
}

fn trace(workbench: &Workbench, bytes: &[u8]) {
    let (_, file) = workbench.file("trace", "trace.jsonl", bytes);
    let _ = read_trace(&file);
}

fn rows(workbench: &Workbench, bytes: &[u8]) {
    let (_, file) = workbench.file("rows", "rows", bytes);
    for format in [Format::Chat, Format::Text] {
        let options = ReadOptions {
            format,
            max_length: 64,
            minimum_supervised_tokens: 1,
            template_arguments: Map::<String, Value>::new(),
            strict: false,
            cut_answers: false,
            vocabulary_size: workbench.config.vocab_size,
        };
        let _ = read_samples(std::slice::from_ref(&file), &workbench.tokenizer, &options, |_| Ok(()));
    }
    let _ = read_evaluation_prompts(&file);
}

/// Folders of tensors with a list of what is in them.
fn bundle(workbench: &Workbench, bytes: &[u8]) {
    let (folder, _) = workbench.file("bundle/replay", "replay.json", bytes);
    fs::write(folder.join("replay.safetensors"), super::seeds::safetensors()).unwrap();
    let _ = read_replay(folder.parent().unwrap());
    let (folder, _) = workbench.file("cache", "manifest.json", bytes);
    fs::write(folder.join("samples.idx"), [0; 64]).unwrap();
    fs::write(folder.join("shard.bin"), [0; 64]).unwrap();
    let _ = TargetCache::open(&folder);
}
