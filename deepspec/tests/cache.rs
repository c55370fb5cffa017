//! `deepspec cache` as a program, and a training that reads a cache.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{program, refused, workspace};

/// A folder with 200 conversations and the settings of a short training on them.
struct Data {
    root: tempfile::TempDir,
}

impl Data {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let rows = fs::read_to_string(workspace().join("datasets/quickstart/sums.train.jsonl")).unwrap();
        let rows: String = rows.lines().take(200).map(|row| format!("{row}\n")).collect();
        fs::write(root.path().join("rows.jsonl"), rows).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A command with the recipe of the quickstart on these data.
    fn command(&self, verb: &[&str], more: &[(&str, &str)]) -> Command {
        let mut command = program();
        command.args(verb).arg("recipes/quickstart.toml");
        let train = format!("[{:?}]", self.path("rows.jsonl").to_str().unwrap());
        let settings = [
            ("data.train", train.as_str()),
            ("data.validation", "[]"),
            ("train.steps", "3"),
            ("train.validate_every", "0"),
        ];
        for (key, value) in settings.iter().chain(more) {
            command.args(["--set", &format!("{key}={value}")]);
        }
        command
    }

    fn build(&self, cache: &str, more: &[&str]) -> Output {
        let cache = self.path(cache);
        self.command(&["cache", "build"], &[("data.cache", cache.to_str().unwrap())]).args(more).output().unwrap()
    }

    /// The losses of a training, with the cache if one is named.
    fn train(&self, cache: Option<&str>, run: &str) -> Output {
        let (cache, run) = (cache.map(|cache| self.path(cache)), self.path(run));
        let mut settings = vec![("output.dir", run.to_str().unwrap())];
        settings.extend(cache.iter().map(|cache| ("data.cache", cache.to_str().unwrap())));
        self.command(&["train"], &settings).arg("--json").output().unwrap()
    }
}

/// The files of blocks of a cache with their contents.
fn files(cache: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let blocks = entries.filter(|path| path.extension().is_some_and(|extension| extension == "states"));
    blocks.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

fn loss(output: &Output) -> f64 {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["last"]["loss"].as_f64().unwrap()
}

#[test]
fn a_training_from_a_cache_is_that_from_the_target() {
    let data = Data::new();
    let cache = data.path("cache");
    let plan = data.command(&["cache", "plan"], &[]).arg("--json").output().unwrap();
    assert!(plan.status.success() && !cache.exists(), "{}", String::from_utf8_lossy(&plan.stderr));
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert!(data.build("cache", &["--codec", "bf16-lossless"]).status.success());
    let size: usize = files(&cache).values().map(Vec::len).sum();
    let formats = plan["formats"].as_array().unwrap();
    let planned =
        formats.iter().find(|format| format["codec"] == "bf16-lossless").unwrap()["bytes"].as_f64().unwrap();
    assert!((planned / size as f64 - 1.0).abs() < 0.02, "planned {planned}, found {size}");

    let (online, cached) = (loss(&data.train(None, "online")), loss(&data.train(Some("cache"), "cached")));
    assert!((online / cached - 1.0).abs() < 2e-3 && online.to_bits() != cached.to_bits(), "{online}, {cached}");
    // A run belongs to the numbers that it was trained on, wherever they are.
    fs::rename(&cache, data.path("moved")).unwrap();
    let run = data.path("cached");
    let resume = |settings: &[(&str, &str)]| {
        let settings: Vec<_> = settings.iter().copied().chain([("output.dir", run.to_str().unwrap())]).collect();
        data.command(&["train"], &settings).arg("--resume").output().unwrap()
    };
    let moved = data.path("moved");
    assert!(resume(&[("data.cache", moved.to_str().unwrap())]).status.success());
    refused(&resume(&[]), &["data.cache"]);

    // Other data are not in it.
    fs::copy(workspace().join("datasets/quickstart/chat.train.jsonl"), data.path("rows.jsonl")).unwrap();
    let other = data.train(Some("moved"), "other");
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && said.contains("not in this cache") && said.contains("cache build"), "{said}");
}

#[test]
fn parts_and_stopped_builds_make_the_same_files() {
    let data = Data::new();
    assert!(data.build("whole", &[]).status.success());
    let whole = files(&data.path("whole"));
    assert!(whole.len() > 2, "{} files", whole.len());
    for shard in ["1/2", "0/2"] {
        assert!(data.build("parts", &["--shard", shard]).status.success());
    }
    assert_eq!(files(&data.path("parts")), whole);

    let cache = data.path("killed");
    let mut child = data
        .command(&["cache", "build"], &[("data.cache", cache.to_str().unwrap())])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() && (!cache.exists() || files(&cache).is_empty()) {
        std::thread::yield_now();
    }
    let _ = child.kill();
    child.wait().unwrap();
    assert!(data.build("killed", &[]).status.success());
    assert_eq!(files(&cache), whole);
    let again = data.build("killed", &[]);
    assert!(String::from_utf8_lossy(&again.stdout).contains(": 0 files written"), "{again:?}");
}

#[test]
fn a_damaged_block_is_named_and_never_trained_on() {
    let data = Data::new();
    assert!(data.build("cache", &["--codec", "int8"]).status.success());
    let cache = data.path("cache");
    let (name, mut bytes) = files(&cache).pop_first().unwrap();
    // In the first block.
    bytes[100] ^= 4;
    fs::write(cache.join(&name), &bytes).unwrap();
    let verify = program().args(["cache", "verify", cache.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stdout);
    assert_eq!(verify.status.code(), Some(1), "{said}");
    assert!(said.contains(&name) && said.contains("block 0"), "{said}");
    let mut settings = vec![("data.cache", cache.to_str().unwrap())];
    let run = data.path("run");
    settings.extend([("output.dir", run.to_str().unwrap()), ("train.steps", "40")]);
    let trained = data.command(&["train"], &settings).output().unwrap();
    let said = String::from_utf8_lossy(&trained.stderr);
    assert!(!trained.status.success() && said.contains(&name) && said.contains("block 0"), "{said}");
    let rebuilt = data.build("cache", &["--codec", "int8"]);
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    let verify = program().args(["cache", "verify", cache.to_str().unwrap()]).output().unwrap();
    assert!(verify.status.success() && String::from_utf8_lossy(&verify.stdout).contains("200 blocks, all intact"));
}

#[test]
fn what_is_missing_is_named() {
    let data = Data::new();
    let none = data.command(&["cache", "build"], &[]).output().unwrap();
    refused(&none, &["data.cache"]);
    let empty = data.path("empty");
    fs::create_dir(&empty).unwrap();
    let output = data.train(Some("empty"), "run");
    refused(&output, &["data.cache", "cache.json", "deepspec cache build"]);
    refused(&program().args(["cache", "verify", empty.to_str().unwrap()]).output().unwrap(), &["cache.json"]);
}
