//! A training killed or interrupted at any moment and resumed ends with the same files, bit for bit.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use common::workspace;

const STEPS: u64 = 24;
const KILLS: usize = 10;

fn train(output: &Path, data: &Path, resume: bool) -> Child {
    spawn(output, data, resume, &[&format!("train.steps={STEPS}"), "train.checkpoint_every=3"])
}

fn spawn(output: &Path, data: &Path, resume: bool, steps: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepspec"));
    command.current_dir(workspace()).env("RAYON_NUM_THREADS", "2").args(["train", "recipes/quickstart.toml"]);
    for set in [
        format!("output.dir={:?}", output.display().to_string()),
        format!("data.train=[{:?}]", data.display().to_string()),
        "data.validation=[]".to_owned(),
        "data.validation_fraction=0.1".to_owned(),
        "train.validate_every=5".to_owned(),
        "train.global_batch_size=4".to_owned(),
        "train.micro_batch_size=2".to_owned(),
        "model.num_anchors=6".to_owned(),
    ] {
        command.args(["--set", &set]);
    }
    for set in steps {
        command.args(["--set", set]);
    }
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end, at most for a while; the exit code if it came.
fn wait(child: &mut Child, patience: Option<Duration>) -> Option<i32> {
    let mut errors = child.stderr.take().unwrap();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        let _ = ended.send(text);
    });
    let text = match patience {
        None => end.recv().unwrap(),
        Some(patience) => match end.recv_timeout(patience) {
            Ok(text) => text,
            Err(_) => {
                child.kill().unwrap();
                child.wait().unwrap();
                return None;
            }
        },
    };
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(0), "{text}");
    code
}

fn last_checkpoint(output: &Path) -> PathBuf {
    output.join(format!("checkpoints/step-{STEPS:08}"))
}

#[test]
fn a_killed_training_ends_with_the_same_weights() {
    let root = tempfile::tempdir().unwrap();
    let rows = fs::read_to_string(workspace().join("datasets/quickstart/code.train.jsonl")).unwrap();
    let data = root.path().join("rows.jsonl");
    fs::write(&data, rows.lines().take(60).map(|line| format!("{line}\n")).collect::<String>()).unwrap();

    let whole = root.path().join("whole");
    wait(&mut train(&whole, &data, false), None);
    let mut dice = ChaCha8Rng::seed_from_u64(20261121);
    let killed = root.path().join("killed");
    let (mut kills, mut resumed) = (0, 0);
    // On a slow machine a training may not get far in the first patience: it grows until a kill came in the middle.
    while kills < KILLS || resumed == 0 {
        let mut child = train(&killed, &data, true);
        let patience = Duration::from_millis(dice.random_range(50..1500 + 300 * kills as u64));
        match wait(&mut child, Some(patience)) {
            None => {
                kills += 1;
                resumed += usize::from((1..STEPS).contains(&newest(&killed)));
            }
            // Finished before ten kills: what is left is killed in a run of its own.
            Some(_) => {
                compare(&whole, &killed);
                fs::remove_dir_all(&killed).unwrap();
            }
        }
    }
    wait(&mut train(&killed, &data, true), None);
    compare(&whole, &killed);
}

/// The samples of the first start are used again, wherever the data have gone in the meantime.
#[test]
fn a_training_whose_data_moved_ends_with_the_same_weights() {
    const KEPT: u64 = 7;
    let root = tempfile::tempdir().unwrap();
    let rows = fs::read_to_string(workspace().join("datasets/quickstart/code.train.jsonl")).unwrap();
    let (data, moved) = (root.path().join("rows.jsonl"), root.path().join("elsewhere").join("other.jsonl"));
    fs::write(&data, rows.lines().take(60).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let (steps, store) = (format!("train.steps={STEPS}"), root.path().join("samples"));
    let stored = format!("data.store={:?}", store.display().to_string());
    let sets = [&steps, "train.checkpoint_every=1", "train.keep_last=24", &stored];
    let (whole, stopped) = (root.path().join("whole"), root.path().join("stopped"));
    wait(&mut spawn(&whole, &data, false, &sets), None);
    let stores = || {
        let mut names: Vec<_> = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = stores();
    // A copy whose later checkpoints are gone goes on from the last that is left.
    fs::create_dir_all(stopped.join("checkpoints")).unwrap();
    fs::copy(whole.join("metrics.jsonl"), stopped.join("metrics.jsonl")).unwrap();
    for step in 1..=KEPT {
        let name = format!("checkpoints/step-{step:08}");
        fs::create_dir(stopped.join(&name)).unwrap();
        for file in fs::read_dir(whole.join(&name)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), stopped.join(&name).join(file.file_name())).unwrap();
        }
    }
    fs::create_dir(moved.parent().unwrap()).unwrap();
    fs::rename(&data, &moved).unwrap();
    wait(&mut spawn(&stopped, &moved, true, &sets), None);
    compare(&whole, &stopped);
    assert_eq!(stores(), before, "the moved data have the same store");
}

#[test]
fn an_interrupted_training_saves_the_steps_that_it_did() {
    let root = tempfile::tempdir().unwrap();
    let data = workspace().join("datasets/quickstart/code.train.jsonl");
    for (signal, name, code) in [("-INT", "SIGINT", 130), ("-TERM", "SIGTERM", 143)] {
        let run = root.path().join(name);
        let mut child = spawn(&run, &data, false, &["train.steps=2000", "train.checkpoint_every=2000"]);
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        // Its first line of progress says that a step is done.
        wait_for(&mut errors, "train 1/2000 ");
        let last = interrupt(&mut child, errors, signal, code);
        let saved = newest(&run);
        assert!(saved >= 1, "{last}");
        assert!(last.contains(&format!("interrupted after step {saved} by {name}: ")), "{last}");
    }
}

/// One handler serves all trainings of a process.
#[test]
fn the_second_training_of_a_sweep_saves_the_steps_that_it_did() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().display().to_string();
    let mut child = stages(&["sweep", "--vary", "train.steps=1,2000", "--out", &out], "evaluate.samples=1");
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    // A training's first line of progress says that a step is done.
    wait_for(&mut errors, "train 1/1 ");
    wait_for(&mut errors, "train 1/2000 ");
    let last = interrupt(&mut child, errors, "-TERM", 143);
    let point = root.path().join("quickstart+steps=2000");
    let saved = newest(&point);
    assert!(saved >= 1, "{last}");
    assert!(last.contains(&format!("interrupted after step {saved} by SIGTERM")), "{last}");
    assert!(!point.join("draft").exists());
}

/// A stage that has nothing to save ends at once; those before it are complete.
#[test]
fn an_interrupted_evaluation_is_all_that_is_done_again() {
    let root = tempfile::tempdir().unwrap();
    let folder = format!("output.dir={:?}", root.path().display().to_string());
    let arguments = ["run", "--set", &folder, "--set", "train.steps=1"];
    let mut child = stages(&arguments, "evaluate.samples=40");
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    wait_for(&mut errors, "sums 1/40 ");
    let last = interrupt(&mut child, errors, "-INT", 130);
    assert!(last.starts_with("SIGINT: stopped immediately"), "{last}");
    let again = stages(&arguments, "evaluate.samples=1").wait_with_output().unwrap();
    let errors = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.success() && errors.matches("already done").count() == 3, "{errors}");
}

/// A verb on a tiny recipe.
fn stages(arguments: &[&str], samples: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepspec"));
    command.current_dir(workspace()).env("RAYON_NUM_THREADS", "2").arg(arguments[0]).arg("recipes/quickstart.toml");
    command.args(&arguments[1..]);
    for set in [
        r#"data.train=["datasets/quickstart/code.train.jsonl"]"#,
        "data.validation=[]",
        "train.validate_every=0",
        "train.checkpoint_every=2000",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
        "model.num_anchors=6",
        r#"evaluate.tasks=[{name="sums",path="datasets/quickstart/sums.evaluate.jsonl"}]"#,
        samples,
    ] {
        command.args(["--set", set]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

type Errors = Lines<BufReader<ChildStderr>>;

/// Reads errors up to the first line with this start.
#[track_caller]
fn wait_for(errors: &mut Errors, start: &str) {
    let found = errors.any(|line| line.unwrap().starts_with(start));
    assert!(found, "no line of the errors starts with {start}");
}

/// Sends a signal and waits for the exit code. Returns the last line of the errors.
#[track_caller]
fn interrupt(child: &mut Child, errors: Errors, signal: &str, code: i32) -> String {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    let last = errors.last().unwrap().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(code), "{last}");
    last
}

/// Steps of the newest checkpoint; 0 without one.
fn newest(run: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
}

fn compare(whole: &Path, killed: &Path) {
    for file in ["model.safetensors", "config.json", "optimizer.bpk", "state.json"] {
        let bytes = |run: &Path| fs::read(last_checkpoint(run).join(file)).unwrap();
        assert!(bytes(whole) == bytes(killed), "{file} differs after kills");
    }
    let log = |run: &Path| -> Vec<Value> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("train/tokens_per_second")));
        rows
    };
    assert_eq!(log(whole), log(killed), "the log has one line per logged step");
    let names = |run: &Path| {
        let mut names: Vec<_> = fs::read_dir(run.join("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(whole), names(killed), "nothing half-written is left");
}
