//! The model card of exported drafts.

mod common;

use std::fs;
use std::path::Path;

use deepspec::evaluation::{TraceRound, TraceWriter};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use common::drafts::{TARGET, edit_values};
use common::{deepspec, workspace};

const DATA: &str = "datasets/quickstart/sums.train.jsonl";
const TASK: &str = "datasets/quickstart/sums.evaluate.jsonl";

#[track_caller]
fn succeeds(arguments: &[&str]) {
    let output = deepspec(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a tiny recipe in a folder.
#[track_caller]
fn run(folder: &Path, target: &str, more: &[&str]) {
    let set = [
        "train.steps=2".to_owned(),
        "train.validate_every=0".to_owned(),
        "train.global_batch_size=2".to_owned(),
        "train.micro_batch_size=2".to_owned(),
        "model.num_anchors=4".to_owned(),
        format!("target={target:?}"),
        format!("data.train=[{DATA:?}]"),
        "data.validation=[]".to_owned(),
        format!("evaluate.tasks=[{{name=\"sums\",path={TASK:?}}}]"),
        "evaluate.samples=2".to_owned(),
        "evaluate.max_new_tokens=8".to_owned(),
        format!("output.dir={:?}", folder.display().to_string()),
    ];
    let set = set.iter().flat_map(|set| ["--set", set]);
    succeeds(
        &["run", "recipes/quickstart.toml"].into_iter().chain(set).chain(more.iter().copied()).collect::<Vec<_>>(),
    );
}

fn card(folder: &Path) -> String {
    fs::read_to_string(folder.join("README.md")).unwrap()
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn a_card_says_what_the_draft_is_and_equal_runs_write_equal_cards() {
    let root = tempfile::tempdir().unwrap();
    // A copy of the target under a licence.
    let target = root.path().join("licensed");
    fs::create_dir(&target).unwrap();
    for entry in fs::read_dir(workspace().join(TARGET)).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    fs::write(target.join("README.md"), "---\nlanguage: en\nlicense: apache-2.0\n---\n# It\n").unwrap();
    let [one, other] = ["one", "other"].map(|name| root.path().join(name));
    run(&one, &target.display().to_string(), &[]);
    let text = card(&one.join("draft"));
    assert!(
        text.starts_with("---\nlibrary_name: deepspec\nlicense: apache-2.0\npipeline_tag: text-generation\n"),
        "{text}"
    );
    contains(
        &text,
        &[
            "- speculative-decoding\n",
            "- dspark\n---\n# quickstart\n",
            "speculative decoding with licensed",
            "1000 conversations",
            "- sums.train.jsonl\n",
            "markov_rank = 64",
            "steps = 2",
            "| sums | 2 | ",
            "temperature 0,",
            "dspark serve --target",
            "| vLLM | ",
            "\"num_speculative_tokens\": 7",
            "enable_adaptive_verification",
        ],
    );
    let machine = root.path().display().to_string();
    for file in ["README.md", "card.json"] {
        assert!(!fs::read_to_string(one.join("draft").join(file)).unwrap().contains(&machine), "{file}");
    }
    assert!(text.lines().all(|line| !line.ends_with(' ')) && !text.contains("\n\n\n"), "{text}");
    run(&one, &target.display().to_string(), &[]);
    run(&other, &target.display().to_string(), &[]);
    assert_eq!(card(&one.join("draft")), text);
    assert_eq!(card(&other.join("draft")), text);
}

#[test]
fn a_card_of_the_user_stays_and_one_of_ours_goes_with_the_draft() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    run(&folder, TARGET, &[]);
    let draft = folder.join("draft");
    let ours = card(&draft);
    contains(&ours, &["**Licence.**"]);
    assert!(!ours.contains("\nlicense:"), "{ours}");
    let edited = ours.clone() + "More about it.\n";
    fs::write(draft.join("README.md"), &edited).unwrap();
    run(&folder, TARGET, &[]);
    run(&folder, TARGET, &["--restart"]);
    assert_eq!(card(&draft), edited);
    let named = draft.display().to_string();
    succeeds(&["export", "--target", TARGET, "--draft", &named, "--out", &named]);
    assert_eq!(card(&draft), edited);
    fs::remove_file(draft.join("README.md")).unwrap();
    run(&folder, TARGET, &[]);
    assert_eq!(card(&draft), ours);
    // A draft that evaluates differently has another card.
    run(&folder, TARGET, &["--set", "evaluate.samples=1"]);
    contains(&card(&draft), &["| sums | 1 | "]);
}

#[test]
fn what_is_known_goes_along_with_an_export_and_calibration_is_added() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    run(&folder, TARGET, &[]);
    let draft = folder.join("draft").display().to_string();
    let out = root.path().join("speculators");
    let export = ["export", "--target", TARGET, "--layout", "speculators", "--verifier", "owner/name", "--draft"];
    succeeds(&[&export[..], &[&draft, "--out", &out.display().to_string()]].concat());
    contains(
        &card(&out),
        &[
            "---\nbase_model: owner/name\nlibrary_name: speculators\n",
            "# quickstart\n",
            "- sums.train.jsonl\n",
            "| sums | 2 | ",
            "| layout | speculators |",
        ],
    );
    assert!(!card(&out).contains("## Calibration"));
    // Other weights: the checkpoint of a step says nothing of its training.
    let step = folder.join("checkpoints/step-00000001").display().to_string();
    let step =
        if Path::new(&step).exists() { step } else { folder.join("checkpoints/step-00000002").display().to_string() };
    let unknown = root.path().join("unknown");
    succeeds(&["export", "--target", TARGET, "--draft", &step, "--out", &unknown.display().to_string()]);
    contains(&card(&unknown), &["# unknown\n", "does not say how it was trained", "Not measured."]);

    // The facts beside other weights are not theirs.
    let (changed, exported) = (root.path().join("changed"), root.path().join("exported"));
    let [changed_name, exported_name] = [&changed, &exported].map(|path| path.display().to_string());
    let export = |from: &str, out: &str| {
        succeeds(&["export", "--target", TARGET, "--dtype", "f32", "--draft", from, "--out", out]);
    };
    export(&draft, &changed_name);
    contains(&card(&changed), &["# quickstart\n", "- sums.train.jsonl\n", "| sums | 2 | "]);
    edit_values(&changed.join("model.safetensors"), "fc.weight", |_, value| value + 1.0);
    export(&changed_name, &exported_name);
    contains(&card(&exported), &["# exported\n", "does not say how it was trained", "Not measured."]);

    let digest: Value = serde_json::from_str(&fs::read_to_string(folder.join("draft/card.json")).unwrap()).unwrap();
    let trace = root.path().join("trace.jsonl");
    write_trace(&trace, digest["facts"]["draft"].as_str().unwrap());
    succeeds(&["calibrate", "--trace", &trace.display().to_string(), "--draft", &draft]);
    contains(
        &card(&folder.join("draft")),
        &["## Calibration\n", " rounds of\nsynthetic at temperature 0.8.", "| 7 | ", "| sums | 2 | "],
    );
}

/// Rounds of a draft whose confidence head is twice as sure as it should be.
fn write_trace(path: &Path, draft: &str) {
    let mut generator = ChaCha8Rng::seed_from_u64(11);
    let mut writer = TraceWriter::create(path).unwrap();
    for (sample, round) in (0..60).flat_map(|sample| (0..40).map(move |round| (sample, round))) {
        let confidence_logits: Vec<f32> = (0..7).map(|_| generator.random_range(-3.0..7.0)).collect();
        let keeps = |logit: &&f32| generator.random::<f32>() < 1.0 / (1.0 + (-**logit / 2.0).exp());
        let accepted = confidence_logits.iter().take_while(keeps).count();
        let line = TraceRound {
            task: "synthetic".to_owned(),
            sample,
            round,
            temperature: 0.8,
            confidence_logits,
            proposed: 7,
            accepted,
            stopped: false,
            prompt_tokens: 0,
            max_new_tokens: 0,
            draft: Some(draft.to_owned()),
        };
        writer.write(&line).unwrap();
    }
    writer.finish().unwrap();
}
