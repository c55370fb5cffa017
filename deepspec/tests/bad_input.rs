//! What bad input gets: exit code 2 (1 where the machine failed) and a message that names what is wrong.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use common::{deepspec, exits_with, workspace};

/// A copy of the quickstart's target that can be spoilt.
fn target_copy(root: &Path) -> PathBuf {
    let copy = root.join("target");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(workspace().join("checkpoints/quickstart-target")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// Trains the quickstart for a step with some settings changed.
fn train(root: &Path, settings: &[String]) -> Output {
    let output = format!("output.dir={}", quoted(&root.join("run")));
    let mut arguments = vec!["train", "recipes/quickstart.toml", "--set", "train.steps=1", "--set", &output];
    for set in settings {
        arguments.extend(["--set", set]);
    }
    deepspec(&arguments)
}

#[test]
fn spoilt_targets_are_named() {
    let root = tempfile::tempdir().unwrap();
    let target = target_copy(root.path());
    let set = [format!("target={}", quoted(&target))];
    let weights = target.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();

    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    exits_with(&train(root.path(), &set), 2, &["model.safetensors", "damaged"]);
    fs::remove_file(&weights).unwrap();
    exits_with(&train(root.path(), &set), 2, &["no weights found"]);
    fs::write(&weights, &whole).unwrap();

    let config = target.join("config.json");
    let original = fs::read(&config).unwrap();
    for (field, value, words) in [
        ("intermediate_size", json!(449), ["mlp.gate_proj.weight", "[449, 192]"]),
        ("num_hidden_layers", json!(6), ["model.layers.5", "missing"]),
        ("num_hidden_layers", json!(4), ["model.layers.4", "is not part of the model"]),
        ("architectures", json!(["BertModel"]), ["architectures", "BertModel"]),
        ("hidden_act", json!("relu"), ["hidden_act", "relu"]),
    ] {
        edit(&config, |fields| fields[field] = value);
        exits_with(&train(root.path(), &set), 2, &words);
        fs::write(&config, &original).unwrap();
    }
    edit(&target.join("tokenizer_config.json"), |fields| {
        fields.as_object_mut().unwrap().remove("chat_template");
    });
    exits_with(&train(root.path(), &set), 2, &["has no chat template, which conversations need", "data.format"]);
}

#[test]
fn a_template_that_does_not_end_is_named() {
    let root = tempfile::tempdir().unwrap();
    let target = target_copy(root.path());
    let set = [format!("target={}", quoted(&target))];
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let spin = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                {% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}";
    let doubled = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for (template, limit) in [
        // A slow machine runs into the limit of time first.
        (nested, "more than 5"),
        (spin, "ran for more than 5 s"),
        (doubled, "needed more than 512 MiB of memory"),
    ] {
        fs::write(target.join("chat_template.jinja"), template).unwrap();
        // The first rows end the reading; thousands follow.
        exits_with(&train(root.path(), &set), 2, &["chat_template.jinja", limit, ".jsonl"]);
    }
}

#[test]
fn recipes_that_do_not_fit_are_refused() {
    let root = tempfile::tempdir().unwrap();
    exits_with(
        &train(root.path(), &["model.target_layer_ids=[0, 4]".into()]),
        2,
        &["model.target_layer_ids = [0, 4]", "final layer 4"],
    );
    exits_with(
        &train(root.path(), &["model.target_layer_ids=[2, 1]".into()]),
        2,
        &["target_layer_ids", "increasing"],
    );
    exits_with(&train(root.path(), &["train.lrr=1".into()]), 2, &["train.lrr", "train.lr"]);
    exits_with(&train(root.path(), &["model.mask_token_id=99999".into()]), 2, &["mask_token_id", "1552"]);
    exits_with(&train(root.path(), &["target=\"no/such/target\"".into()]), 2, &["no/such/target"]);
    exits_with(&deepspec(&["train", "no-such-recipe.toml"]), 2, &["no-such-recipe.toml"]);
}

/// The accounting of a JSON array: a warning first, then a table on standard error, and the same as JSON.
#[test]
fn rows_that_are_left_out_are_accounted_for() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("rows.json");
    let turn = |role: &str, value: &str| json!({"from": role, "value": value});
    let long = "Line up the digits: ones, tens and hundreds, and then read the sum from the top.";
    let row =
        |role: &str, answer: &str| json!({"conversations": [turn("human", "Add 1 and 2."), turn(role, answer)]});
    let mut rows = vec![row("gpt", long); 9];
    rows.insert(1, row("claude", long));
    rows.push(row("gpt", ""));
    rows.push(row("llama", long));
    fs::write(&data, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    let data = format!("data.train=[{}]", quoted(&data));
    let recipe = ["train", "recipes/quickstart.toml", "--plan", "--set", "data.validation=[]", "--set", &data];
    let output = deepspec(&[&recipe[..], &["--json"]].concat());
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{printed}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let training = &report["data"]["training"];
    let counts = ["read", "kept", "samples"].map(|name| training[name].as_u64());
    assert_eq!(counts, [12, 9, 9].map(Some), "{training}");
    let reasons = [0, 1].map(|index| training["left_out"][index]["rows"].as_u64());
    assert_eq!(reasons, [2, 1].map(Some), "{training}");
    assert!(training["left_out"][0]["first"]["row"].as_str().unwrap().starts_with("row 2 (line "), "{training}");
    let warning = printed.find("warning: training data: 3 of 12 rows (25.0 %) are left out").expect(&printed);
    let table = printed.find("training data: 12 rows read, 9 kept").expect(&printed);
    assert!(warning < table && printed.contains("the role \"claude\" is unknown"), "{printed}");

    let strict = deepspec(&[&recipe[..], &["--strict"]].concat());
    exits_with(&strict, 2, &["rows.json, row 2 (line ", "the role \"claude\" is unknown"]);
}

#[test]
fn data_that_cannot_be_used_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("rows.jsonl");
    let set = |strict: bool| {
        [format!("data.train=[{}]", quoted(&data)), "data.validation=[]".into(), format!("data.strict={strict}")]
    };
    fs::write(&data, "").unwrap();
    exits_with(&train(root.path(), &set(false)), 2, &["rows.jsonl"]);
    fs::write(&data, "{\"conversations\": [}\n").unwrap();
    exits_with(&train(root.path(), &set(false)), 2, &["rows.jsonl", "1"]);
    exits_with(&train(root.path(), &set(true)), 2, &["rows.jsonl", "1"]);
    // A token that the embedding has no row for.
    let target = target_copy(root.path());
    edit(&target.join("tokenizer.json"), |tokenizer| {
        let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
        for id in 1536..=1700 {
            let mut token = tokens[0].clone();
            token["id"] = json!(id);
            token["content"] = json!(if id == 1700 { "<|far|>".to_owned() } else { format!("<|filler{id}|>") });
            tokens.push(token);
        }
    });
    let row = json!({"conversations": [{"role": "user", "content": "Hello, what is this?"},
        {"role": "assistant", "content": "<|far|> is a token that stands far beyond the last row of the embedding table."}]});
    fs::write(&data, format!("{row}\n")).unwrap();
    let mut settings = set(false).to_vec();
    settings.extend([format!("target={}", quoted(&target)), "model.mask_token_id=1540".into()]);
    exits_with(&train(root.path(), &settings), 2, &["1700", "vocabulary"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_its_weights_are_no_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let settings: Vec<String> = [
        "train.steps=20",
        "train.lr=1e38",
        "train.warmup_ratio=0.0",
        "train.max_grad_norm=1e30",
        "train.checkpoint_every=1",
        "train.validate_every=0",
    ]
    .map(String::from)
    .to_vec();
    let output = train(root.path(), &settings);
    // The first update ruins the weights, and the second step's loss shows it.
    exits_with(&output, 1, &["step 2: the ", "training stopped", "none yet"]);
    assert!(!root.path().join("run/checkpoints/step-00000001").exists(), "it would be a ruined checkpoint");
}

#[test]
fn a_draft_for_another_target_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let output = train(root.path(), &["train.validate_every=0".into()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let draft = root.path().join("run/checkpoints/step-00000001");
    let evaluate = || {
        deepspec(&[
            "evaluate",
            "--target",
            "checkpoints/quickstart-target",
            "--draft",
            draft.to_str().unwrap(),
            "--task",
            "datasets/quickstart/sums.evaluate.jsonl",
            "--samples",
            "1",
        ])
    };
    assert!(evaluate().status.success());
    let inspect = || deepspec(&["inspect", draft.to_str().unwrap(), "--target", "checkpoints/quickstart-target"]);
    let seen = inspect();
    assert!(seen.status.success() && String::from_utf8_lossy(&seen.stdout).contains("nothing wrong"));

    let config = draft.join("config.json");
    let original = fs::read(&config).unwrap();
    for (field, value, words) in [
        ("hidden_size", json!(256), vec!["hidden_size", "256", "192"]),
        ("vocab_size", json!(1600), vec!["vocab_size", "1600", "1552"]),
        ("num_target_layers", json!(36), vec!["num_target_layers", "36", "5"]),
        ("target_layer_ids", json!([0, 4]), vec!["target_layer_ids", "final layer"]),
        ("block_size", json!(0), vec!["block_size"]),
        ("block_size", json!(5000), vec!["block_size", "1024"]),
        ("sample_from_anchor", json!(false), vec!["sample_from_anchor"]),
        ("markov_head_type", json!("bilinear"), vec!["markov_head_type", "bilinear"]),
        ("markov_rank", json!(32), vec!["markov_head", "32"]),
    ] {
        edit(&config, |fields| fields[field] = value);
        exits_with(&evaluate(), 2, &words);
        let seen = inspect();
        let text = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert_eq!(seen.status.code(), Some(2), "{field}: {text}");
        assert!(text.contains("WRONG"), "{field}: {text}");
        fs::write(&config, &original).unwrap();
    }
}

/// A small file system that is full after half a megabyte, where this user may mount one.
struct TinyDisk(PathBuf);

impl TinyDisk {
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing_half_written() {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) = TinyDisk::mount(&root.path().join("disk")) else {
        println!("skipped: this user may not mount a file system");
        return;
    };
    let run = disk.0.join("run");
    let output = train(root.path(), &[format!("output.dir={}", quoted(&run)), "train.validate_every=0".into()]);
    exits_with(&output, 1, &["No space left", "step-00000001"]);
    let left: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A device never ends and a pipe may never begin: both are refused before they are opened, wherever a path is named.
#[cfg(unix)]
#[test]
fn devices_pipes_and_folders_are_no_files() {
    let root = tempfile::tempdir().unwrap();
    let pipe = root.path().join("pipe.toml");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let pipe = pipe.to_str().unwrap();
    let folder = root.path().to_str().unwrap();
    let set = |key: &str, value: &str| [format!("{key}={value}"), "data.validation=[]".into()];
    exits_with(
        &train(root.path(), &set("data.train", "[\"/dev/zero\"]")),
        2,
        &["data.train", "/dev/zero", "found a device"],
    );
    exits_with(&train(root.path(), &set("data.train", &format!("[{pipe:?}]"))), 2, &["data.train", "found a pipe"]);
    exits_with(&deepspec(&["train", pipe]), 2, &["pipe.toml", "found a pipe"]);
    exits_with(&deepspec(&["train", folder]), 2, &["found a folder"]);
    let task = format!("evaluate.tasks=[{{name=\"x\", path={pipe:?}}}]");
    let output = format!("output.dir={}", quoted(&root.path().join("run")));
    let run = ["run", "recipes/quickstart.toml", "--set", &output, "--set", &task];
    exits_with(&deepspec(&run), 2, &["evaluate.tasks[].path", "found a pipe"]);
    let models = ["--target", "checkpoints/quickstart-target", "--draft", "none"];
    let evaluate = |task: &str| deepspec(&[&["evaluate", "--task", task], &models[..]].concat());
    exits_with(&evaluate("/dev/zero"), 2, &["--task", "found a device"]);
    exits_with(&evaluate(folder), 2, &["--task", "found a folder"]);
    for trace in ["/dev/zero", pipe, folder] {
        exits_with(&deepspec(&["calibrate", "--trace", trace, "--out", folder]), 2, &["expected a regular file"]);
    }
}

#[test]
fn missing_files_are_named_with_the_recipes_key_and_the_way_to_get_them() {
    let root = tempfile::tempdir().unwrap();
    let settings: [String; 2] =
        ["data.train=[\"../nowhere/open-perfectblend.jsonl\"]".into(), "data.validation=[]".into()];
    exits_with(&train(root.path(), &settings), 2, &["data.train", "no such file or folder", "hf download"]);
    let output = format!("output.dir={}", quoted(&root.path().join("run")));
    let task = "evaluate.tasks=[{name=\"maths\", path=\"../nowhere/gsm8k.jsonl\"}]";
    let run = deepspec(&["run", "recipes/quickstart.toml", "--set", &output, "--set", task]);
    exits_with(&run, 2, &["evaluate.tasks[].path of \"maths\"", "../nowhere/gsm8k.jsonl", "To get it"]);
}

#[test]
fn models_that_do_not_fit_are_refused_before_they_are_loaded() {
    let root = tempfile::tempdir().unwrap();
    let target = target_copy(root.path());
    edit(&target.join("config.json"), |fields| fields["intermediate_size"] = json!(1 << 30));
    // Nothing reads the weights, which do not belong to this configuration.
    let output = train(root.path(), &[format!("target={}", quoted(&target))]);
    exits_with(&output, 1, &["does not fit", "target, draft, gradients"]);
    assert!(!root.path().join("run/checkpoints").exists(), "nothing was begun");
}

#[test]
fn files_of_a_data_folder_that_are_not_read_are_named() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("rows");
    fs::create_dir(&folder).unwrap();
    fs::copy(workspace().join("datasets/quickstart/chat.validation.jsonl"), folder.join("rows.jsonl")).unwrap();
    let settings = [format!("data.train=[{}]", quoted(&folder)), "data.validation=[]".into()];
    let warning = "ignored files without rows, or whose name does not end in";
    let output = train(&root.path().join("first"), &settings);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !text.contains(warning), "{text}");
    fs::write(folder.join("notes.txt"), "none of this is a row").unwrap();
    exits_with(
        &train(&root.path().join("second"), &settings),
        0,
        &["warning: ", "rows: ", warning, ".jsonl", "notes.txt"],
    );
}

#[test]
fn a_fraction_of_one_sample_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("row.jsonl");
    let text = fs::read_to_string(workspace().join("datasets/quickstart/chat.train.jsonl")).unwrap();
    let rows = |count: usize| text.lines().take(count).map(|line| format!("{line}\n")).collect::<String>();
    let settings: [String; 4] = [
        format!("data.train=[{}]", quoted(&data)),
        "data.validation=[]".into(),
        "data.validation_fraction=0.02".into(),
        "data.min_supervised_tokens=1".into(),
    ];
    fs::write(&data, rows(1)).unwrap();
    exits_with(&train(root.path(), &settings), 2, &["data.validation_fraction = 0.02", "expected at least 2"]);
    fs::write(&data, rows(20)).unwrap();
    let output = train(root.path(), &settings);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
