//! Every format's reader against inputs that are nearly in order: the same ones in every run.
//!
//! `FORMATS_SEED` and `FORMATS_TIMES` make other inputs, and more of them; `FORMATS_CORPUS` is a folder for the inputs that
//! they are made from. An input that fails is written to a file that the message names.

#![allow(missing_docs)]

mod memory;
mod mutations;
mod seeds;
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use targets::{TARGETS, Workbench};

/// Bytes that a reader may allocate for an input of some kilobytes.
const MEMORY: usize = 256 << 20;

/// After this time a reader hangs.
const HANGS: Duration = Duration::from_secs(60);

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Feeds one format.
fn feed(format: &str) {
    let folder = tempfile::tempdir().unwrap();
    let workbench = Workbench::new(folder.path(), &root());
    let (_, target) = TARGETS.iter().find(|(name, _)| *name == format).unwrap();
    let (seeds, times) = seeds::of(format, folder.path(), &root());
    let times = times * from_environment("FORMATS_TIMES", 1) as usize;
    let mut dice = ChaCha8Rng::seed_from_u64(from_environment("FORMATS_SEED", 7));
    let failed = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("failed {format}"));
    if let Some(corpus) = std::env::var_os("FORMATS_CORPUS") {
        let corpus = Path::new(&corpus).join(format);
        fs::create_dir_all(&corpus).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(corpus.join(format!("seed {number}")), seed).unwrap();
        }
    }
    let watch = Watch::start(format, &failed);
    let found = found(format);
    let fixed = found.iter().chain(&seeds).cloned().collect::<Vec<_>>();
    for number in 0..times {
        let seed = &fixed[number % fixed.len()];
        let other = &seeds[dice.random_range(0..seeds.len())];
        let input = if number < fixed.len() { seed.clone() } else { mutations::mutated(seed, other, &mut dice) };
        watch.begins(&input);
        memory::forget_the_peak();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&workbench, &input)));
        let taken = memory::peak();
        if outcome.is_err() || taken > MEMORY {
            fs::write(&failed, &input).unwrap();
            let what = if outcome.is_err() { "panicked".to_owned() } else { format!("took {} MiB", taken >> 20) };
            panic!("{format}, input {number}: the reader {what}; the input is in {}", failed.display());
        }
    }
}

/// Inputs of a format that a reader failed on once, by file name.
fn found(format: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/found").join(format);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Ends the process when a reader does not come back.
struct Watch(mpsc::Sender<Vec<u8>>);

impl Watch {
    fn start(format: &str, failed: &Path) -> Self {
        let (sender, receiver) = mpsc::channel::<Vec<u8>>();
        let (format, failed) = (format.to_owned(), failed.to_owned());
        std::thread::spawn(move || {
            let mut input = Vec::new();
            loop {
                match receiver.recv_timeout(HANGS) {
                    Ok(next) => input = next,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        fs::write(&failed, &input).unwrap();
                        eprintln!("{format}: the reader hangs; the input is in {}", failed.display());
                        std::process::abort();
                    }
                }
            }
        });
        Self(sender)
    }

    fn begins(&self, input: &[u8]) {
        self.0.send(input.to_vec()).unwrap();
    }
}

macro_rules! formats {
    ($($format:ident),* $(,)?) => {
        $(#[test] fn $format() { feed(stringify!($format)); })*

        #[test]
        fn every_target_is_fed() {
            let fed = [$(stringify!($format)),*];
            assert_eq!(TARGETS.map(|(name, _)| name).as_slice(), fed.as_slice());
        }
    };
}

formats!(
    safetensors,
    shard_index,
    gguf,
    target_config,
    draft_config,
    tokenizer,
    tokenizer_config,
    generation_config,
    chat_template,
    recipe,
    override_argument,
    speed_table,
    calibration_table,
    trace,
    rows,
    parquet,
    bundle,
);
