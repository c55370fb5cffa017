//! Replay bundles: they come with every export, repeat themselves, and name the place where something else comes out.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use deepspec::replay::{Replay, Stage, first_difference, read_replay};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{Draft, TargetSegment};
use serde_json::{Value, json};

use common::drafts::{GreedyBlock, TARGET, copy, edit_json, edit_values, read_json, save, shape, target};
use common::{deepspec, refused, workspace};

/// An exported draft with its bundle.
fn exported(root: &Path, more: &[&str]) -> PathBuf {
    let draft = save(&root.join("trained"), &shape(), WeightDtype::F32, false);
    let out = root.join("out");
    let arguments =
        ["export", "--draft", draft.to_str().unwrap(), "--target", TARGET, "--out", out.to_str().unwrap()];
    let output = deepspec(&[&arguments[..], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// What a replay says, and whether all was the same.
fn replay(folder: &Path) -> (bool, Value) {
    let output = deepspec(&["inspect", folder.to_str().unwrap(), "--replay", "--target", TARGET, "--json"]);
    let findings = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.success(), findings)
}

/// Where it differs: prompt, stage, place.
#[track_caller]
fn differs(folder: &Path) -> (Value, String, String) {
    let (same, findings) = replay(folder);
    assert!(!same, "{findings}");
    let difference = &findings["replay_difference"];
    let text = |name: &str| difference[name].as_str().unwrap_or_else(|| panic!("{findings}")).to_owned();
    (difference["prompt"].clone(), text("stage"), text("place"))
}

#[test]
fn every_export_repeats_itself() {
    let root = tempfile::tempdir().unwrap();
    for more in [&["--dtype", "f32", "--without-embeddings"][..], &[], &["--layout", "speculators"]] {
        let out = exported(root.path(), more);
        let (same, findings) = replay(&out);
        assert!(same, "{findings}");
        assert!(findings["facts"]["replay"].as_str().unwrap().starts_with("the same on 3 prompt(s)"), "{findings}");
        let bytes: u64 =
            fs::read_dir(out.join("replay")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!((10_000..4 << 20).contains(&bytes), "{bytes}");
        // What a program would read, and a reader of texts too.
        let bundle = read_replay(&out).unwrap();
        assert!(bundle.cases.iter().all(|case| case.stages.len() == Stage::ALL.len() && !case.rounds.is_empty()));
        let output = deepspec(&["inspect", out.to_str().unwrap()]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("--replay --target DIR"));
    }
}

#[test]
fn prompts_can_be_named_and_rounds_follow_each_other() {
    let root = tempfile::tempdir().unwrap();
    let prompts = root.path().join("prompts.jsonl");
    fs::write(&prompts, "{\"turns\": [\"one two three\"]}\n{\"turns\": [\"four\"]}\n").unwrap();
    let out = exported(root.path(), &["--replay-prompts", prompts.to_str().unwrap()]);
    let bundle = read_replay(&out).unwrap();
    assert_eq!(bundle.cases.len(), 2);
    assert_eq!(bundle.cases[1].source, "prompts.jsonl, 1");
    for case in &bundle.cases {
        assert!(case.text.contains(if case.source.ends_with('0') { "one two three" } else { "four" }));
        let first = &case.rounds[0];
        assert_eq!(first.position, case.token_ids.len());
        assert_eq!((first.drafted.len(), first.confidence_logits.len(), first.target_margins.len()), (4, 4, 5));
        let committed: Vec<usize> = case.rounds.windows(2).map(|pair| pair[1].position - pair[0].position).collect();
        assert!(committed.iter().zip(&case.rounds).all(|(committed, round)| *committed == round.accepted + 1));
    }
}

/// A bundle's block goes through in one pass, as in training; decoding goes step by step, with a cache.
#[test]
fn decoding_computes_what_the_bundle_holds() {
    let root = tempfile::tempdir().unwrap();
    let out = exported(root.path(), &[]);
    let (target, bundle) = (target(), read_replay(&out).unwrap());
    let draft = Draft::load(&out, &target).unwrap();
    for case in &bundle.cases {
        let context_ids = &case.token_ids[..case.anchor_position];
        let segment = TargetSegment { ids: context_ids, cache: None };
        let output = target.forward(&mut [segment], &draft.config().target_layer_ids);
        let mut context = draft.new_context(context_ids.len() + 8);
        let following = &case.token_ids[1..=case.anchor_position];
        draft.extend_context(&mut context, output.features_nf.unwrap(), following);
        let anchor = case.token_ids[case.anchor_position];
        let block = GreedyBlock::draft(&draft, &mut context, anchor);
        let close = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + b.abs()))
        };
        assert!(close(&block.hidden, &case.stage(Stage::Hidden).unwrap().values));
        assert!(close(&block.logits.concat(), &case.stage(Stage::BiasedLogits).unwrap().values));
        assert!(close(&block.confidence_logits, &case.stage(Stage::ConfidenceLogits).unwrap().values));
        assert_eq!(block.tokens, case.drafted);
    }
}

#[test]
fn a_changed_weight_is_found_at_the_stage_that_it_changes() {
    let root = tempfile::tempdir().unwrap();
    let out = exported(root.path(), &["--dtype", "f32"]);
    for (tensor, stage, place) in [
        ("fc.weight", "context", "position 0"),
        ("hidden_norm.weight", "context", "position 0"),
        ("layers.0.self_attn.o_proj.weight", "layers", "draft layer 0, slot 0"),
        ("layers.1.mlp.down_proj.weight", "layers", "draft layer 1, slot 0"),
        ("norm.weight", "hidden", "slot 0"),
        ("markov_head.markov_w2.weight", "biased_logits", "slot 0"),
        ("confidence_head.proj.bias", "confidence_logits", "slot 0"),
    ] {
        let spoiled = root.path().join("spoiled");
        copy(&out, &spoiled);
        edit_values(&spoiled.join("model.safetensors"), tensor, |index, value| {
            value * 1.2 + 0.1 * (index % 3 + 1) as f32
        });
        let (prompt, found, at) = differs(&spoiled);
        assert_eq!((prompt, found.as_str()), (json!(0), stage), "{tensor}: {at}");
        assert!(at.starts_with(place), "{tensor}: {at}");
    }
}

#[test]
fn another_convention_is_found_before_anything_is_computed() {
    let root = tempfile::tempdir().unwrap();
    let out = exported(root.path(), &[]);
    for (field, value) in [
        ("sample_from_anchor", json!(false)),
        ("block_size", json!(5)),
        ("target_layer_ids", json!([2, 0])),
        ("mask_token_id", json!(3)),
        ("markov_head_type", json!("gated")),
    ] {
        let spoiled = root.path().join("spoiled");
        copy(&out, &spoiled);
        edit_json(&spoiled.join("config.json"), |config| config[field] = value);
        let (prompt, stage, place) = differs(&spoiled);
        assert_eq!((prompt, stage.as_str()), (Value::Null, "convention"), "{field}");
        assert!(place.contains(&format!("`{field}`")), "{place}");
    }
}

/// An engine that captures other layers than its configuration says.
#[test]
fn other_target_layers_are_found_in_the_features() {
    let root = tempfile::tempdir().unwrap();
    let out = exported(root.path(), &[]);
    edit_json(&out.join("config.json"), |config| config["target_layer_ids"] = json!([1, 2]));
    edit_json(&out.join("replay/replay.json"), |replay| replay["convention"]["target_layer_ids"] = json!([1, 2]));
    let (_, stage, place) = differs(&out);
    assert_eq!(stage, "features");
    assert!(place.starts_with("position 0, captured layer 0 of"), "{place}");
}

#[test]
fn swapped_layers_and_shifted_blocks_are_called_by_name() {
    let root = tempfile::tempdir().unwrap();
    let expected = read_replay(&exported(root.path(), &[])).unwrap();
    assert_eq!(first_difference(&expected, &expected, false, 0.0), None);
    let spoiled = |case: usize, stage: Stage, spoil: &dyn Fn(&mut [f32], usize)| -> Replay {
        let mut found = expected.clone();
        let d = found.convention.hidden_size;
        let (_, rows) = found.cases[case].stages.iter_mut().find(|(own, _)| *own == stage).unwrap();
        let width = if stage == Stage::Features { d } else { *rows.shape.last().unwrap() };
        spoil(&mut rows.values, width);
        found
    };
    let swapped = spoiled(1, Stage::Features, &|values, d| {
        values.chunks_mut(2 * d).for_each(|row| row.rotate_left(d));
    });
    let difference = first_difference(&expected, &swapped, false, 1e-3).unwrap();
    assert_eq!((difference.prompt, difference.stage.as_str()), (Some(1), "features"));
    assert!(difference.hint.unwrap().contains("layers are swapped"));

    let shifted = spoiled(0, Stage::Hidden, &|values, width| values.rotate_left(width));
    let difference = first_difference(&expected, &shifted, false, 1e-3).unwrap();
    assert_eq!(difference.stage, "hidden");
    assert!(difference.hint.unwrap().contains("of slot 1: the block is read with the other convention"));

    // A head whose full row is off where no column is kept.
    let off = spoiled(2, Stage::BaseLogSumExp, &|values, _| values[3] += 0.5);
    let difference = first_difference(&expected, &off, false, 1e-3).unwrap();
    assert_eq!((difference.prompt, difference.place.as_str()), (Some(2), "slot 3"));

    let not_a_number = spoiled(0, Stage::Context, &|values, _| values[5] = f32::NAN);
    let difference = first_difference(&expected, &not_a_number, false, 1e-3).unwrap();
    assert_eq!((difference.found.as_str(), difference.place.as_str()), ("NaN", "position 0, component 5"));

    let mut judged = expected.clone();
    judged.cases[0].rounds[0].accepted += 1;
    let difference = first_difference(&expected, &judged, false, 1e-3).unwrap();
    assert_eq!((difference.stage.as_str(), difference.place.as_str()), ("round 0", "accepted tokens"));
    assert!(difference.hint.unwrap().contains("differ by"));

    // Of two bundles, not only of a bundle and a draft.
    let mut other = expected.clone();
    other.convention.lookahead = 1;
    let difference = first_difference(&expected, &other, false, 1e-3).unwrap();
    assert_eq!((difference.stage.as_str(), difference.place.as_str()), ("convention", "lookahead"));
}

#[test]
fn a_bundle_that_is_missing_or_damaged_is_said_to_be() {
    let root = tempfile::tempdir().unwrap();
    let out = exported(root.path(), &[]);
    let inspect = |folder: &Path, more: &[&str]| {
        deepspec(&[&["inspect", folder.to_str().unwrap(), "--target", TARGET][..], more].concat())
    };
    #[track_caller]
    fn says(output: &std::process::Output, words: &[&str]) {
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
    }
    let numbers = fs::read(out.join("replay/replay.safetensors")).unwrap();
    fs::write(out.join("replay/replay.safetensors"), &numbers[..numbers.len() - 4]).unwrap();
    says(&inspect(&out, &[]), &["replay.safetensors"]);
    says(&inspect(&out, &["--replay"]), &["replay.safetensors"]);
    fs::write(out.join("replay/replay.safetensors"), &numbers).unwrap();
    for (field, value, word) in [
        ("version", json!(2), "`version`: expected 1, found 2"),
        ("prompts", json!([]), "at least one"),
        ("more", json!(1), "unknown field"),
    ] {
        let kept = read_json(&out.join("replay/replay.json"));
        edit_json(&out.join("replay/replay.json"), |replay| replay[field] = value);
        says(&inspect(&out, &[]), &["replay.json", word]);
        fs::write(out.join("replay/replay.json"), kept.to_string()).unwrap();
    }
    edit_json(&out.join("replay/replay.json"), |replay| replay["prompts"][0]["anchor_position"] = json!(1_000_000));
    says(&inspect(&out, &["--replay"]), &["prompt 0: expected an anchor below"]);
    fs::remove_dir_all(out.join("replay")).unwrap();
    says(&inspect(&out, &["--replay"]), &["replay.json", "no such file", "deepspec export"]);
    assert!(inspect(&out, &[]).status.success());
    let output = deepspec(&["inspect", out.to_str().unwrap(), "--replay"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn prompts_that_cannot_be_used_leave_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let draft = save(&root.path().join("trained"), &shape(), WeightDtype::F32, false);
    let out = root.path().join("out");
    let export = |more: &[&str]| {
        let arguments =
            ["export", "--draft", draft.to_str().unwrap(), "--target", TARGET, "--out", out.to_str().unwrap()];
        deepspec(&[&arguments[..], more].concat())
    };
    refused(&export(&["--replay-prompts", "nowhere.jsonl"]), &["--replay-prompts", "nowhere.jsonl"]);
    refused(&export(&["--verifier", "owner/name"]), &["--verifier", "--layout speculators"]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    assert!(workspace().join(TARGET).exists());
}
