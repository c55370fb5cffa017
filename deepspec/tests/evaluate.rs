//! Measuring a draft from the command line, and what `deepspec run` measures.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use common::{deepspec, refused, workspace};

const TARGET: &str = "checkpoints/quickstart-target";

#[track_caller]
fn succeeded(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    errors
}

/// A verb over the quickstart's recipe, made small, in `root/run`.
fn quickstart(verb: &str, root: &Path, settings: &[&str]) -> Output {
    let output = format!("output.dir={:?}", root.join("run").display().to_string());
    let mut arguments = vec![verb, "recipes/quickstart.toml", "--set", &output];
    let small = ["train.steps=2", "train.validate_every=0", "evaluate.samples=2", "evaluate.max_new_tokens=12"];
    for set in small.iter().chain(settings) {
        arguments.extend(["--set", set]);
    }
    deepspec(&arguments)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The figures that do not depend on time.
fn figures(report: &Value) -> Vec<Value> {
    let tasks = report["tasks"].as_array().unwrap();
    let names = ["name", "samples", "skipped", "rounds", "new_tokens", "accepted_length", "conditional_acceptance"];
    tasks.iter().map(|task| names.iter().map(|name| task[*name].clone()).collect()).collect()
}

#[test]
fn a_run_measures_what_it_exports_and_goes_on_where_it_stopped() {
    let root = tempfile::tempdir().unwrap();
    succeeded(&quickstart("run", root.path(), &[]));
    let draft = root.path().join("run/draft");
    let draft = draft.to_str().unwrap();
    let report = read(&root.path().join("run/report.json"));
    assert_eq!(report["evaluation"]["draft"], draft);
    assert_eq!(report["training"]["steps"], 2);
    let again = root.path().join("again.json");
    let mut arguments = vec!["evaluate", "--target", TARGET, "--draft", draft, "--temperature", "0", "--no-plain"];
    arguments.extend(["--samples", "2", "--max-new-tokens", "12", "--json", again.to_str().unwrap(), "--task"]);
    let files = ["sums", "code", "chat"].map(|task| format!("datasets/quickstart/{task}.evaluate.jsonl"));
    arguments.extend(files.iter().map(String::as_str));
    succeeded(&deepspec(&arguments));
    let strip = |mut figures: Vec<Value>| {
        // Tasks given as files are called after them.
        figures.iter_mut().for_each(|task| task[0] = task[0].as_str().unwrap().replace(".evaluate", "").into());
        figures
    };
    assert_eq!(strip(figures(&read(&again))), figures(&report["evaluation"]));

    let skipped = succeeded(&quickstart("run", root.path(), &[]));
    for stage in ["data", "train", "export", "evaluate"] {
        assert!(skipped.contains(&format!("{stage}: already done")), "{stage}: {skipped}");
    }
    // Another evaluation needs no other training and no other export; a lost export is made again.
    fs::remove_dir_all(draft).unwrap();
    let partly = succeeded(&quickstart("run", root.path(), &["evaluate.samples=1"]));
    for (stage, done) in [("data", true), ("train", true), ("export", false), ("evaluate", false)] {
        assert_eq!(partly.contains(&format!("{stage}: already done")), done, "{stage}: {partly}");
    }
    let inspected = deepspec(&["inspect", draft, "--target", TARGET]);
    succeeded(&inspected);
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("BF16"));
}

#[test]
fn a_threshold_without_a_confidence_head_is_refused() {
    let root = tempfile::tempdir().unwrap();
    succeeded(&quickstart("train", root.path(), &["train.steps=1", "model.enable_confidence_head=false"]));
    let draft = root.path().join("run/checkpoints/step-00000001");
    let draft = draft.to_str().unwrap();
    let evaluate = |threshold: &str| {
        let task = "datasets/quickstart/sums.evaluate.jsonl";
        let mut arguments = vec!["evaluate", "--target", TARGET, "--draft", draft, "--task", task, "--samples", "1"];
        arguments.extend(["--max-new-tokens", "4", "--no-plain", "--confidence-threshold", threshold]);
        deepspec(&arguments)
    };
    succeeded(&evaluate("0"));
    refused(&evaluate("0.5"), &["--confidence-threshold", "evaluate.confidence_threshold", "no", draft]);
}

/// A conversation that outgrows the target's context on the way.
#[test]
fn turns_that_find_no_room_are_skipped_and_counted() {
    let root = tempfile::tempdir().unwrap();
    succeeded(&quickstart("train", root.path(), &["train.steps=1"]));
    let draft = root.path().join("run/checkpoints/step-00000001");
    let target = root.path().join("target");
    fs::create_dir(&target).unwrap();
    for entry in fs::read_dir(workspace().join(TARGET)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
    }
    let mut config = read(&target.join("config.json"));
    config["max_position_embeddings"] = json!(60);
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    let task = root.path().join("talk.jsonl");
    let evaluate = |rows: &[Value]| {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(&task, lines).unwrap();
        let (target, draft, task) = (target.to_str().unwrap(), draft.to_str().unwrap(), task.to_str().unwrap());
        let mut arguments = vec!["evaluate", "--target", target, "--draft", draft, "--task", task, "--json", "-"];
        arguments.extend(["--temperature", "0", "--max-new-tokens", "8"]);
        deepspec(&arguments)
    };
    let long = "what is good for dinner when it is late and raining ".repeat(4);
    let output = evaluate(&[json!({"turns": ["Hello!", long, "And now?"]}), json!({"turns": ["Hello!"]})]);
    succeeded(&output);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let task = &report["tasks"][0];
    assert_eq!((&task["samples"], &task["skipped"]), (&json!(2), &json!(2)), "{task}");
    assert!(task["new_tokens"].as_u64().unwrap() >= 2, "the first turns are answered: {task}");
    assert_eq!(task["skipped_prompts"], json!(0));
    // A first turn that does not fit is skipped too, with those behind it; where none fits, nothing is decoded.
    let rows = [json!({"turns": [long, "And now?"]}), json!({"turns": ["Hello!"]}), json!({"turns": [long]})];
    let output = evaluate(&rows);
    succeeded(&output);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let task = &report["tasks"][0];
    let counts = ["samples", "skipped", "skipped_prompts"].map(|name| task[name].as_u64().unwrap());
    assert_eq!(counts, [1, 3, 2], "{task}");
    assert!(task["new_tokens"].as_u64().unwrap() >= 1, "{task}");
    refused(&evaluate(&[json!({"turns": [long]})]), &["none of the 1 prompts fits", "context is 60"]);
}

/// What is written must not be what is read.
#[test]
fn outputs_that_are_inputs_are_refused_before_anything_runs() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let task = path("task.jsonl");
    fs::write(&task, "{\"turns\": [\"Hello!\"]}\n").unwrap();
    let other = root.path().join("folder/../task.jsonl").display().to_string();
    fs::create_dir(root.path().join("folder")).unwrap();
    let evaluate = |more: &[&str]| {
        // There is no such draft, which is found later.
        deepspec(&[&["evaluate", "--target", TARGET, "--draft", "none", "--task", &task], more].concat())
    };
    for flag in ["--json", "--trace", "--answers"] {
        refused(&evaluate(&[flag, &other]), &[flag, "would overwrite the input of --task"]);
    }
    let same = path("out");
    refused(&evaluate(&["--json", &same, "--trace", &same]), &["--trace", "--json writes the same file"]);
    refused(
        &deepspec(&["calibrate", "--trace", &task, "--out", &path("out"), "--json", &other]),
        &["--json", "--trace"],
    );
    let simulate = ["simulate", "--trace", "t", "--sts", "s", "--sps", &task, "--json", &other];
    refused(&deepspec(&simulate), &["--json", "--sps"]);
    assert_eq!(fs::read_to_string(&task).unwrap(), "{\"turns\": [\"Hello!\"]}\n");
}

/// Training and evaluation that render prompts differently are told apart, in every layout of the draft.
#[test]
fn other_template_arguments_than_those_of_training_are_a_warning() {
    let root = tempfile::tempdir().unwrap();
    succeeded(&quickstart("train", root.path(), &["train.steps=1", "data.template_arguments={ calm = true }"]));
    let draft = root.path().join("run/checkpoints/step-00000001");
    let exported = root.path().join("exported");
    let (draft, exported) = (draft.to_str().unwrap(), exported.to_str().unwrap());
    let export = ["export", "--layout", "speculators", "--draft", draft, "--target", TARGET, "--out", exported];
    succeeded(&deepspec(&export));
    let task = "datasets/quickstart/sums.evaluate.jsonl";
    for draft in [draft, exported] {
        let evaluate = |more: &[&str]| {
            let arguments = ["evaluate", "--target", TARGET, "--draft", draft, "--task", task, "--samples", "1"];
            succeeded(&deepspec(&[&arguments[..], &["--no-plain", "--max-new-tokens", "4"], more].concat()))
        };
        let told = evaluate(&[]);
        assert!(told.contains("trained with the template arguments {\"calm\":true}"), "{told}");
        let told = evaluate(&["--template-argument", "calm=true"]);
        assert!(!told.contains("template arguments"), "{told}");
    }
}

/// The scheduled mode measures the machine once, names itself in the report, and the output ends with a verdict.
#[test]
fn modes_are_measured_named_and_judged() {
    let root = tempfile::tempdir().unwrap();
    succeeded(&quickstart("train", root.path(), &["train.steps=1"]));
    let draft = root.path().join("run/checkpoints/step-00000001");
    let json = root.path().join("report.json");
    let task = "datasets/quickstart/sums.evaluate.jsonl";
    let arguments =
        ["evaluate", "--target", TARGET, "--draft", draft.to_str().unwrap(), "--task", task, "--samples", "1"];
    let evaluate = |more: &[&str]| {
        let small = ["--max-new-tokens", "6", "--temperature", "0", "--json", json.to_str().unwrap()];
        let all = [&arguments[..], &small, more].concat();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_deepspec"));
        // Tables that other programs on this machine measured are not for a test.
        command.current_dir(workspace()).env("XDG_CACHE_HOME", root.path().join("cache")).args(all);
        command.output().unwrap()
    };
    let scheduled = evaluate(&["--mode", "scheduled"]);
    assert!(succeeded(&scheduled).contains("measuring the cost of passes"), "{scheduled:?}");
    assert_eq!(read(&json)["mode"], "scheduled");
    let text = String::from_utf8_lossy(&scheduled.stdout).into_owned();
    for words in ["mode scheduled", "speed-up", "accepted length: tokens per round", "Verdict: on this machine"] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    let fixed = evaluate(&["--mode", "fixed:1", "--no-plain"]);
    succeeded(&fixed);
    let report = read(&json);
    assert_eq!(report["mode"], "fixed:1");
    assert!(report["tasks"][0]["draft_tokens_per_round"].as_f64().unwrap() <= 1.0, "{report}");
    assert!(String::from_utf8_lossy(&fixed.stdout).contains("Verdict: none on speed"));
    refused(&evaluate(&["--mode", "off"]), &["--mode", "nothing is drafted"]);
    refused(&evaluate(&["--mode", "fixed:1", "--confidence-threshold", "0.5"]), &["both limit what is verified"]);
}
