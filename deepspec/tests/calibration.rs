//! `deepspec calibrate` and `deepspec simulate`, as they are called.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use deepspec::evaluation::{TraceRound, TraceWriter, read_trace};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{Draft, DraftConfig};
use dspark_runtime::schedule::StsTable;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use common::drafts::{TARGET, copy, edit_values, save, shape};
use common::{deepspec, refused};

const BLOCK: usize = 4;

#[track_caller]
fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Rounds of 60 prompts whose head is twice as sure as it should be, of the draft with this digest.
fn write_trace(path: &Path, draft: Option<&str>) {
    let mut generator = ChaCha8Rng::seed_from_u64(11);
    let mut writer = TraceWriter::create(path).unwrap();
    for sample in 0..60 {
        for round in 0..40 {
            let logits: Vec<f32> = (0..BLOCK).map(|_| generator.random_range(-3.0..7.0)).collect();
            let keeps = |logit: &&f32| generator.random::<f32>() < 1.0 / (1.0 + (-**logit / 2.0).exp());
            let accepted = logits.iter().take_while(keeps).count();
            let task = "synthetic".to_owned();
            let stopped = false;
            let confidence_logits = logits;
            let temperature = 0.8;
            let proposed = BLOCK;
            let (prompt_tokens, max_new_tokens) = (0, 0);
            let line = TraceRound {
                task,
                sample,
                round,
                temperature,
                confidence_logits,
                proposed,
                accepted,
                stopped,
                prompt_tokens,
                max_new_tokens,
                draft: draft.map(str::to_owned),
            };
            writer.write(&line).unwrap();
        }
    }
    writer.finish().unwrap();
}

/// A machine whose steps are flat up to 64 tokens.
fn write_speeds(path: &Path) {
    let tokens: Vec<usize> = (0..9).map(|octave| 1 << octave).collect();
    let speeds: Vec<f64> = tokens.iter().map(|&tokens| 50.0 / (tokens as f64 / 64.0).max(1.0)).collect();
    let table = json!({
        "sample_batch_tokens": tokens, "sample_steps_per_sec": speeds, "max_batch_tokens": 512,
        "draft_requests": [1, 64], "draft_slots": [4], "draft_seconds": [[0.002, 0.008]],
    });
    fs::write(path, table.to_string()).unwrap();
}

#[test]
fn a_trace_is_calibrated_and_simulated() {
    let root = tempfile::tempdir().unwrap();
    let file = |name: &str| root.path().join(name).display().to_string();
    let (trace, speeds, out) = (file("trace.jsonl"), file("sps.json"), file("out"));
    write_trace(Path::new(&trace), None);
    write_speeds(Path::new(&speeds));

    let report = json_of(&deepspec(&["calibrate", "--trace", &trace, "--out", &out, "--json", "-"]));
    assert_eq!(report["fitted"], json!({"prompts": 30, "rounds": 1200}));
    let sts_path = root.path().join("out").join(StsTable::FILE);
    let sts = StsTable::read(&sts_path, BLOCK).unwrap();
    assert_eq!((sts.sampling_temperature, sts.num_samples, sts.dataset.as_str()), (Some(0.8), 1200, "synthetic"));
    for (position, temperature) in sts.temperatures.iter().enumerate() {
        let (before, after) = (sts.ece_before[position].unwrap(), sts.ece_after[position].unwrap());
        assert!((1.0..4.0).contains(temperature), "{temperature}");
        assert!(after < 0.6 * before, "position {position}: {before} became {after}");
        assert_eq!(report["positions"][position]["enough"], json!(true));
    }
    let fields: Value = serde_json::from_str(&fs::read_to_string(&sts_path).unwrap()).unwrap();
    let names: Vec<&String> = fields.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "temperatures",
            "sts_temperatures",
            "dataset",
            "num_samples",
            "ece_before",
            "ece_after",
            "sampling_temperature",
            "acceptance"
        ]
    );
    let diagram = fs::read_to_string(root.path().join("out/reliability.svg")).unwrap();
    assert!(diagram.starts_with("<svg") && diagram.contains("position 4") && diagram.trim_end().ends_with("</svg>"));

    let sts = sts_path.display().to_string();
    let simulate = |more: &[&str]| {
        deepspec(&[&["simulate", "--trace", &trace, "--sts", &sts, "--sps", &speeds, "--json", "-"], more].concat())
    };
    // What tables and traces of earlier versions do not say is named, since it changes the result.
    let told = String::from_utf8(simulate(&["--modes", "off", "--loads", "1"]).stderr).unwrap();
    assert!(told.contains("`draft_context_seconds`") && told.contains("`prompt_tokens`"), "{told}");
    assert!(told.contains("trace.jsonl: the file does not record its draft"), "{told}");
    let plots = file("plots");
    let report =
        json_of(&simulate(&["--modes", "off,fixed:1,fixed:4,scheduled", "--loads", "1,16,512", "--plots", &plots]));
    let point = |mode: &str, load: usize| -> Value {
        let points = report["points"].as_array().unwrap();
        points.iter().find(|point| point["mode"] == mode && point["concurrency"] == load).unwrap().clone()
    };
    let speed = |mode: &str, load: usize| point(mode, load)["tokens_per_second"].as_f64().unwrap();
    assert_eq!(report["points"].as_array().unwrap().len(), 12);
    assert!((speed("off", 1) - 50.0).abs() < 1e-6);
    for load in [1, 16, 512] {
        for mode in ["off", "fixed:1", "fixed:4"] {
            let (own, other) = (speed("scheduled", load), speed(mode, load));
            assert!(own > 0.97 * other, "{load} requests: {own} tokens/s, {mode} {other}");
        }
    }
    let budget = |load: usize| point("scheduled", load)["verify_budget"].as_f64().unwrap();
    assert!(budget(1) > 4.5 && budget(16) > budget(512) && budget(512) < 1.1, "{}", report["points"]);
    for name in ["throughput.svg", "budget.svg"] {
        assert!(fs::read_to_string(Path::new(&plots).join(name)).unwrap().starts_with("<svg"));
    }

    // What does not fit together is refused.
    let other = file("other.json");
    fs::write(&other, json!({"temperatures": [1, 1, 1]}).to_string()).unwrap();
    let with = |sts: &str, sps: &str| deepspec(&["simulate", "--trace", &trace, "--sts", sts, "--sps", sps]);
    refused(&with(&other, &speeds), &["other.json", "`temperatures`", "4 numbers"]);
    fs::write(&other, json!({"temperatures": [1, 1, 1, 1], "sampling_temperature": 1.0}).to_string()).unwrap();
    refused(&with(&other, &speeds), &["other.json", "temperature 1", "0.8"]);
    refused(&with(&sts, &trace), &["trace.jsonl", "not valid JSON"]);
    refused(&with(&sts, &file("none.json")), &["none.json", "no such file", "dspark profile"]);
    refused(&simulate(&["--modes", "fixed:0"]), &["fixed:0", "expected `off`"]);
    refused(&deepspec(&["calibrate", "--trace", &sts, "--out", &file("new")]), &["sts.json", "line 1"]);
    refused(&deepspec(&["calibrate", "--trace", &sts, "--out", &out]), &["would overwrite the input of --trace"]);
    refused(&deepspec(&["calibrate", "--trace", &trace]), &["--out"]);
    refused(&deepspec(&["calibrate", "--trace", &trace, "--out", &sts]), &["--out", "expected a folder"]);
}

#[test]
fn rounds_are_the_same_decoded_and_traced() {
    let root = tempfile::tempdir().unwrap();
    let file = |name: &str| root.path().join(name).display().to_string();
    let output = format!("output.dir={:?}", file("run"));
    let trained = deepspec(&[
        "train",
        "recipes/quickstart.toml",
        "--set",
        "train.steps=1",
        "--set",
        "train.validate_every=0",
        "--set",
        &output,
    ]);
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let draft = root.path().join("run/checkpoints/step-00000001");
    let (draft_name, ours, theirs) = (draft.display().to_string(), file("ours.jsonl"), file("theirs.jsonl"));
    let same = [
        "--target",
        "checkpoints/quickstart-target",
        "--draft",
        &draft_name,
        "--task",
        "datasets/quickstart/sums.evaluate.jsonl",
        "--samples",
        "4",
        "--max-new-tokens",
        "24",
        "--temperature",
        "1",
    ];
    // Rounds of four prompts say too little.
    let few = deepspec(&[&["calibrate", "--write-trace", &ours], &same[..]].concat());
    refused(&few, &["too few rounds", "at least 200 judged", "position 1:", "--samples"]);
    assert!(!draft.join("sts.json").exists() && !draft.join("reliability.svg").exists());
    let evaluated = deepspec(&[&["evaluate", "--no-plain", "--trace", &theirs], &same[..]].concat());
    assert!(evaluated.status.success(), "{}", String::from_utf8_lossy(&evaluated.stderr));
    let rounds = read_trace(Path::new(&ours)).unwrap();
    assert_eq!(rounds, read_trace(Path::new(&theirs)).unwrap());
    let config = DraftConfig::read(&draft).unwrap();
    assert_eq!(rounds[0].draft, Some(Draft::digest_of(&draft, &config).unwrap()));
}

/// A table is of one draft. It goes along with copies of the draft, and nowhere else.
#[test]
fn a_table_belongs_to_its_draft() {
    let root = tempfile::tempdir().unwrap();
    let file = |name: &str| root.path().join(name).display().to_string();
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let other = root.path().join("other");
    copy(&draft, &other);
    edit_values(
        &other.join("model.safetensors"),
        "fc.weight",
        |index, value| if index == 5 { 1.0 + value } else { value },
    );
    let digest = Draft::digest_of(&draft, &DraftConfig::read(&draft).unwrap()).unwrap();
    let (trace, speeds, draft_name) = (file("trace.jsonl"), file("sps.json"), draft.display().to_string());
    write_trace(Path::new(&trace), Some(&digest));
    write_speeds(Path::new(&speeds));
    let calibrate =
        |draft: &Path| deepspec(&["calibrate", "--trace", &trace, "--draft", &draft.display().to_string()]);
    refused(&calibrate(&other), &["--trace", "is not of the draft", &digest]);
    assert!(!other.join("sts.json").exists());
    let output = calibrate(&draft);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sts = draft.join("sts.json");
    let table = fs::read_to_string(&sts).unwrap();
    assert_eq!(StsTable::read(&sts, BLOCK).unwrap().draft, Some(digest.clone()));

    // Fewer rounds do not replace it.
    let lines = fs::read_to_string(&trace).unwrap();
    let sure = |line: &str| serde_json::from_str::<TraceRound>(line).unwrap().accepted < 2;
    fs::write(
        file("few.jsonl"),
        lines.lines().filter(|line| sure(line)).map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    let fewer = deepspec(&["calibrate", "--trace", &file("few.jsonl"), "--draft", &draft_name]);
    refused(&fewer, &["sts.json: not overwritten", "positions 2, 3, 4", "--out DIR"]);
    assert_eq!(fs::read_to_string(&sts).unwrap(), table);

    // Into copies in every layout and number type; in place; not into a draft that proposes other tokens.
    let export = |from: &Path, out: &Path, more: &[&str]| {
        let (from, out) = (from.display().to_string(), out.display().to_string());
        let output = deepspec(&[&["export", "--draft", &from, "--target", TARGET, "--out", &out], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    let inspect = |folder: &Path| deepspec(&["inspect", &folder.display().to_string(), "--target", TARGET]);
    let copied = root.path().join("copied");
    for more in [&["--dtype", "bf16"][..], &["--dtype", "f32"], &["--layout", "speculators", "--without-embeddings"]]
    {
        let told = export(&draft, &copied, more);
        assert_eq!(fs::read_to_string(copied.join("sts.json")).unwrap(), table, "{more:?}: {told}");
        let seen = inspect(&copied);
        let text = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.status.success() && text.contains("sts.json: fitted on 1200 rounds of \"synthetic\""), "{text}");
    }
    export(&copied, &copied, &[]);
    assert_eq!(fs::read_to_string(copied.join("sts.json")).unwrap(), table);
    let data = "datasets/quickstart/chat.train.jsonl";
    let reduced = root.path().join("reduced");
    let told = export(&draft, &reduced, &["--draft-vocab-size", "200", "--vocabulary-data", data]);
    assert!(told.contains("not copied") && told.contains("deepspec calibrate"), "{told}");
    assert!(!reduced.join("sts.json").exists());

    // Where it does not belong, it is named.
    fs::copy(&sts, other.join("sts.json")).unwrap();
    let seen = inspect(&other);
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(
        seen.status.code() == Some(2) && text.contains("WRONG") && text.contains("fitted for another draft"),
        "{text}"
    );
    let foreign = table.replace(&digest, "0000000000000000");
    fs::write(file("foreign.json"), foreign).unwrap();
    let simulate = |sts: &str| {
        let modes = ["--modes", "off", "--loads", "1"];
        deepspec(&[&["simulate", "--trace", &trace, "--sts", sts, "--sps", &speeds], &modes[..]].concat())
    };
    refused(&simulate(&file("foreign.json")), &["foreign.json", "fitted for another draft"]);
    let output = simulate(sts.to_str().unwrap());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !told.contains("record its draft"), "{told}");
}
