//! Folders of runs: who may write them, what a run in them is told by, and what is removed from them.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use dspark_runtime::checkpoint::FolderLock;

use common::{deepspec, refused, workspace};

const DATA: &str = "datasets/quickstart/sums.train.jsonl";

/// Runs a verb on a tiny recipe in a folder.
fn recipe(verb: &str, folder: &Path, more: &[&str]) -> Output {
    let folder = format!("output.dir={:?}", folder.display().to_string());
    let set = [
        "train.steps=3",
        "train.checkpoint_every=1",
        "train.keep_last=9",
        "train.validate_every=0",
        "train.global_batch_size=2",
        "train.micro_batch_size=2",
        "model.num_anchors=4",
        "model.initialize_from_target=false",
        &format!("data.train=[{DATA:?}]"),
        "data.validation=[]",
        r#"evaluate.tasks=[{name="sums",path="datasets/quickstart/sums.evaluate.jsonl"}]"#,
        "evaluate.samples=1",
        "evaluate.max_new_tokens=4",
        &folder,
    ];
    let set = set.iter().flat_map(|set| ["--set", set]);
    deepspec(
        &[verb, "recipes/quickstart.toml"].into_iter().chain(set).chain(more.iter().copied()).collect::<Vec<_>>(),
    )
}

#[track_caller]
fn succeeded(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

fn export(draft: &Path, out: &Path) -> Output {
    let [draft, out] = [draft, out].map(|path| path.display().to_string());
    deepspec(&["export", "--target", "checkpoints/quickstart-target", "--draft", &draft, "--out", &out])
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_folder_that_another_process_uses_is_refused_and_the_process_named() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let lock = FolderLock::acquire(&run).unwrap();
    let named = format!("in use by process {}", std::process::id());
    refused(&recipe("train", &run, &[]), &[&named]);
    refused(&recipe("run", &run, &[]), &[&named]);
    let sweep = ["sweep", "recipes/quickstart.toml", "--out", &run.display().to_string()];
    refused(&deepspec(&sweep), &[&named]);
    let draft = workspace().join("checkpoints/smollm2-135m-dspark");
    refused(&export(&draft, &run.join("draft")), &[&named]);
    let out = run.join("draft").display().to_string();
    refused(&deepspec(&["calibrate", "--trace", "none.jsonl", "--out", &out]), &[&named]);
    drop(lock);
    succeeded(recipe("train", &run, &[]));
}

/// What is trained is the same, so the run goes on; what would change it is named with both values.
#[test]
fn a_run_goes_on_under_settings_that_do_not_change_it() {
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("run");
    succeeded(recipe("train", &whole, &[]));
    let moved = root.path().join("moved.jsonl");
    fs::copy(workspace().join(DATA), &moved).unwrap();
    let moved = format!("data.train=[{:?}]", moved.display().to_string());
    let weights = |step: u64| whole.join(format!("checkpoints/step-{step:08}/model.safetensors"));
    let last = fs::read(weights(3)).unwrap();
    let resume = |set: &[&str]| {
        fs::remove_dir_all(whole.join("checkpoints/step-00000003")).unwrap();
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).chain(["--resume"]).collect();
        recipe("train", &whole, &set)
    };
    for set in ["train.log_every=5", "train.checkpoint_every=5", "train.keep_last=4", "data.strict=true", &moved] {
        let text = succeeded(resume(&[set]));
        assert!(!text.contains("the run has"), "{text}");
        assert!(fs::read(weights(3)).unwrap() == last, "{set}");
    }
    let text = succeeded(resume(&["train.micro_batch_size=1"]));
    assert!(text.contains("`train.micro_batch_size` is 1, the run has 2"), "{text}");

    fs::copy(workspace().join("datasets/quickstart/code.train.jsonl"), root.path().join("moved.jsonl")).unwrap();
    let refusals: [(&[&str], &[&str]); 3] = [
        (
            &["train.lr=0.5", "train.steps=4"],
            &["`train.lr` is 0.5, the run has", "`train.steps` is 4, the run has 3"],
        ),
        (&["model.markov_rank=3"], &["`model.markov_rank` is 3, the run has"]),
        (&[&moved], &["`data.train` is [sha256:"]),
    ];
    for (set, words) in refusals {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        refused(&recipe("train", &whole, &[&set[..], &["--resume"]].concat()), words);
        refused(&recipe("run", &whole, &set), words);
    }
}

#[test]
fn restarting_removes_what_the_run_wrote_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    succeeded(recipe("run", &run, &[]));
    let mine = [
        "notes.txt",
        "draft/notes.txt",
        "checkpoints/notes.txt",
        "checkpoints/step-00000002.bak/model.safetensors",
        "checkpoints/step-00000001/notes.txt",
        "stages/mine.json",
        "tensorboard/events.out.tfevents.123.mine",
    ];
    mine.iter().for_each(|name| write(&run.join(name), "mine"));
    // Of no use in a run of two steps.
    write(&run.join("draft/sts.json"), "ours");
    let text = succeeded(recipe("run", &run, &["--restart", "--set", "train.steps=2"]));
    assert!(!text.contains("already done"), "{text}");
    for name in mine {
        assert_eq!(fs::read_to_string(run.join(name)).unwrap(), "mine", "{name}");
    }
    assert!(!run.join("checkpoints/step-00000003").exists() && !run.join("draft/sts.json").exists());
}

/// A file and what happens to it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_lost_or_damaged_file_of_the_export_is_made_again() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    succeeded(recipe("run", &run, &[]));
    let weights = run.join("draft/model.safetensors");
    let exported = fs::read(&weights).unwrap();
    write(&run.join("draft/notes.txt"), "mine");
    let mut flipped = exported.clone();
    flipped[exported.len() - 1] ^= 1;
    let damages: [Damage<'_>; 3] = [
        ("model.safetensors", &|path| fs::write(path, &flipped).unwrap()),
        ("config.json", &|path| fs::remove_file(path).unwrap()),
        ("replay/replay.safetensors", &|path| fs::remove_file(path).unwrap()),
    ];
    for (file, damage) in damages {
        damage(&run.join("draft").join(file));
        let text = succeeded(recipe("run", &run, &[]));
        assert!(text.contains("train: already done"), "{text}");
        assert!(text.contains("export: running again: ") && text.contains(file), "{text}");
        assert!(fs::read(&weights).unwrap() == exported, "{file}");
        assert_eq!(fs::read_to_string(run.join("draft/notes.txt")).unwrap(), "mine");
    }
    let text = succeeded(recipe("run", &run, &[]));
    assert!(text.contains("export: already done"), "{text}");
}

#[test]
fn an_export_replaces_drafts_alone_and_keeps_other_files() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    succeeded(recipe("train", &run, &[]));
    let (draft, out) = (run.join("checkpoints/step-00000003"), root.path().join("out"));
    succeeded(export(&draft, &out));
    write(&out.join("notes.txt"), "mine");
    write(&out.join("mine/more.txt"), "mine");
    // Weights of the folder's earlier draft in two files: a reader would take them for this one's.
    write(&out.join("model-00001-of-00002.safetensors"), "earlier");
    write(&out.join("model.safetensors.index.json"), "{}");
    succeeded(export(&draft, &out));
    // Onto itself.
    succeeded(export(&out, &out));
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(out.join("mine/more.txt")).unwrap(), "mine");
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    // The draft's two files, its bundle, its card with its facts, and the user's file and folder.
    assert_eq!(names.len(), 7, "{names:?}");

    let mine = root.path().join("mine");
    write(&mine.join("notes.txt"), "mine");
    refused(&export(&draft, &mine), &["exists and is not a draft"]);
    assert_eq!(fs::read_dir(&mine).unwrap().count(), 1);
    fs::create_dir(root.path().join("empty")).unwrap();
    succeeded(export(&draft, &root.path().join("empty")));
}

/// The console says which file is damaged and where training goes on.
#[test]
fn a_damaged_checkpoint_is_reported() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    succeeded(recipe("train", &run, &[]));
    fs::write(run.join("checkpoints/step-00000003/optimizer.bpk"), "no moments").unwrap();
    let text = succeeded(recipe("train", &run, &["--resume"]));
    for words in [
        "step-00000003/optimizer.bpk: missing or changed since it was written",
        "step-00000003.damaged",
        "step-00000002",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// A folder that is a file stands for a disk that refuses to write.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_run_to_be_continued() {
    let root = tempfile::tempdir().unwrap();
    let [whole, run] = ["whole", "run"].map(|name| root.path().join(name));
    succeeded(recipe("train", &whole, &[]));
    succeeded(recipe("train", &run, &["--set", "train.steps=3"]));
    fs::remove_dir_all(run.join("checkpoints/step-00000003")).unwrap();
    // `clock.json` cannot replace a folder.
    fs::remove_file(run.join("clock.json")).unwrap();
    write(&run.join("clock.json/in the way"), "");
    let failed = recipe("train", &run, &["--resume"]);
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && text.contains("clock.json") && !text.contains("panicked"), "{text}");
    fs::remove_dir_all(run.join("clock.json")).unwrap();
    succeeded(recipe("train", &run, &["--resume"]));
    for file in ["model.safetensors", "optimizer.bpk", "state.json"] {
        let read = |run: &Path| fs::read(run.join("checkpoints/step-00000003").join(file)).unwrap();
        assert!(read(&whole) == read(&run), "{file}");
    }
}
