//! An evaluation against answers given by hand with the decoder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use dspark_runtime::model::{DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, LayerId, Target};
use dspark_runtime::schedule::{SpsTable, StepCost, StsTable};
use dspark_runtime::speculate::{Decoder, Filters, Generation, GenerationOptions, Randomness, Sampler};
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

const SYSTEM: &str = "Answer in one sentence.";
const TURNS: [[&str; 2]; 2] =
    [["What is 12 + 30?", "And 50 + 7?"], ["Tell me about the rain.", "What should I wear?"]];

struct Fixture {
    target: Target,
    draft: Draft,
    tokenizer: Tokenizer,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
        let target = Target::load(&path, &Device::flex()).unwrap();
        let shape = DraftShape {
            block_size: 4,
            num_draft_layers: 1,
            target_layer_ids: vec![LayerId(0), LayerId(2)],
            kind: DraftKind::DSpark(DSparkConfig::new(1536, 8)),
        };
        let config = DraftConfig::for_target(target.config(), &shape).unwrap();
        let draft = Draft::new(config, &target, 3).initialized_from(&target, &[&[1, 2, 3]]);
        let folder = tempfile::tempdir().unwrap();
        let rows: String =
            TURNS.iter().map(|turns| format!("{}\n", json!({"system": SYSTEM, "turns": turns}))).collect();
        fs::write(folder.path().join("talk.jsonl"), rows).unwrap();
        Self { tokenizer: Tokenizer::from_directory(&path).unwrap(), target, draft, folder }
    }

    fn task(&self) -> Task {
        Task { name: "talk".to_owned(), path: self.folder.path().join("talk.jsonl") }
    }

    fn trace(&self) -> PathBuf {
        self.folder.path().join("trace.jsonl")
    }

    fn evaluate(&self, options: &EvaluationOptions) -> EvaluationReport {
        let models = Models { target: &self.target, draft: &self.draft, tokenizer: &self.tokenizer };
        evaluate(
            models,
            ("the target", "the draft"),
            &[self.task()],
            options,
            Records { trace: Some(&self.trace()), answers: Some(&self.folder.path().join("answers.jsonl")) },
        )
        .unwrap()
    }

    /// The file of answers.
    fn answered(&self) -> String {
        fs::read_to_string(self.folder.path().join("answers.jsonl")).unwrap()
    }

    /// The answers to the first `turns` turns of a prompt, every answer standing in the conversation after its question.
    fn answers(&self, prompt: usize, turns: usize, options: &EvaluationOptions) -> Vec<Generation> {
        let generation_options = GenerationOptions {
            max_new_tokens: options.max_new_tokens,
            stop_token_ids: self.tokenizer.stop_token_ids().to_vec(),
            confidence_threshold: options.confidence_threshold,
        };
        let mut sampler = match options.sampling {
            SamplingMethod::Rejection => Sampler::repeatable(options.temperature, options.seed, prompt as u64),
            SamplingMethod::Coupled => {
                Sampler::new(options.temperature, Filters::NONE, Randomness::Coupled(options.seed))
            }
        };
        let mut messages = vec![json!({"role": "system", "content": SYSTEM})];
        let mut answer = |turn: &&str| {
            messages.push(json!({"role": "user", "content": turn}));
            let template = self.tokenizer.chat_template().unwrap();
            let text = template.render(&messages, &options.template_arguments, true).unwrap();
            let ids = self.tokenizer.encode(&text, false).unwrap();
            let decoder = Decoder::new(&self.target, Some(&self.draft));
            let generation = decoder.generate(&ids, &generation_options, &mut sampler).unwrap();
            let content = self.tokenizer.decode_answer(&ids, &generation.ids).unwrap();
            messages.push(json!({"role": "assistant", "content": content}));
            generation
        };
        TURNS[prompt][..turns].iter().map(&mut answer).collect()
    }
}

fn options() -> EvaluationOptions {
    EvaluationOptions {
        temperature: 1.0,
        max_new_tokens: 12,
        samples: None,
        seed: 3,
        sampling: SamplingMethod::Rejection,
        turns: Turns::All,
        mode: EvaluationMode::Whole,
        tables: Tables::default(),
        confidence_threshold: 0.0,
        template_arguments: Map::new(),
        measure_plain: false,
    }
}

/// Returns the rounds of a trace: sample, round, proposed, accepted.
fn traced(path: &Path) -> Vec<[u64; 4]> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            assert_eq!(line["task"], "talk");
            assert_eq!(line["confidence_logits"].as_array().unwrap().len(), 4);
            ["sample", "round", "proposed", "accepted"].map(|name| line[name].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn the_report_and_the_trace_are_those_of_the_conversations_held_by_hand() {
    let fixture = Fixture::new();
    for (name, options, prompts, turns) in [
        ("all turns", options(), 2, 2),
        ("the first turn", EvaluationOptions { turns: Turns::First, ..options() }, 2, 1),
        ("one prompt", EvaluationOptions { samples: Some(1), ..options() }, 1, 2),
        ("coupled", EvaluationOptions { sampling: SamplingMethod::Coupled, ..options() }, 2, 2),
        ("greedy", EvaluationOptions { temperature: 0.0, ..options() }, 2, 2),
        ("some slots", EvaluationOptions { confidence_threshold: 0.5, ..options() }, 2, 2),
    ] {
        let report = fixture.evaluate(&options);
        let task = &report.tasks[0];
        let (mut rounds, mut tokens, mut counted) = (Vec::new(), 0, 0);
        for prompt in 0..prompts {
            let records: Vec<_> = fixture
                .answers(prompt, turns, &options)
                .into_iter()
                .inspect(|generation| tokens += generation.ids.len() as u64)
                .flat_map(|generation| generation.rounds)
                .collect();
            counted += records.iter().map(|record| record.counted).sum::<usize>();
            let line = |(round, record): (usize, _)| {
                let record: dspark_runtime::speculate::RoundRecord = record;
                [prompt, round, record.proposed, record.accepted].map(|number| number as u64)
            };
            rounds.extend(records.into_iter().enumerate().map(line));
        }
        assert_eq!(traced(&fixture.trace()), rounds, "{name}");
        assert_eq!((task.samples, task.skipped), (prompts, 0), "{name}");
        assert_eq!((task.rounds, task.new_tokens), (rounds.len() as u64, tokens), "{name}");
        assert_eq!(task.accepted_length, Some(counted as f64 / rounds.len() as f64), "{name}");
        assert!(task.tokens_per_second.is_some() && task.plain_tokens_per_second.is_none(), "{name}");
    }
}

#[test]
fn the_target_alone_is_measured_when_asked() {
    let fixture = Fixture::new();
    let options = EvaluationOptions { measure_plain: true, samples: Some(1), ..options() };
    let report = fixture.evaluate(&options);
    assert!(report.tasks[0].plain_tokens_per_second.is_some());
    assert_eq!((report.target.as_str(), report.draft.as_str()), ("the target", "the draft"));
    let table = table(&report);
    assert!(table.contains("draft the draft") && table.contains("talk") && !table.contains("skipped"), "{table}");
}

/// A machine on which the pass of a token takes a second and each further one so many.
fn tables(seconds_per_token: f64, acceptance: f64) -> Tables {
    let batch_tokens: Vec<usize> = (1..=64).collect();
    let speed = |&tokens: &usize| 1.0 / (1.0 + (tokens - 1) as f64 * seconds_per_token);
    let steps_per_second = batch_tokens.iter().map(speed).collect();
    let cost = StepCost::Probes { batch_tokens, steps_per_second, per_request: None };
    let calibration = StsTable { acceptance: vec![acceptance; 4], ..StsTable::identity(4) };
    Tables { speed: Some(Arc::new(SpsTable::new(cost, 64, None, None))), calibration: Some(Arc::new(calibration)) }
}

/// Modes choose what is verified and never what is answered.
#[test]
fn served_modes_verify_what_they_say_and_answer_alike() {
    let fixture = Fixture::new();
    let greedy = EvaluationOptions { temperature: 0.0, max_new_tokens: 24, ..options() };
    let evaluate = |mode: &str, tables: Tables| {
        let options = EvaluationOptions { mode: mode.parse().unwrap(), tables, ..greedy.clone() };
        let report = fixture.evaluate(&options);
        assert_eq!(report.mode, options.mode);
        (report.tasks[0].clone(), fixture.answered())
    };
    let (whole, answers) = evaluate("whole", Tables::default());
    assert_eq!(whole.plain_steps, 0);
    let (fixed, same) = evaluate("fixed:2", Tables::default());
    assert_eq!((same, fixed.new_tokens, fixed.plain_steps), (answers.clone(), whole.new_tokens, 0));
    assert!(fixed.draft_tokens_per_round.unwrap() <= 2.0 && fixed.survival[2..] == [None, None], "{fixed:?}");
    // No token is sure: nothing is verified.
    let (threshold, same) = evaluate("threshold:1", Tables::default());
    assert_eq!((same, threshold.draft_tokens_per_round), (answers.clone(), Some(0.0)));
    // Where nothing is accepted and every token costs, nothing is drafted.
    let (off, same) = evaluate("scheduled", tables(1.0, 0.0));
    assert_eq!((same, off.rounds, off.accepted_length), (answers.clone(), 0, None));
    assert_eq!(off.plain_steps, whole.new_tokens - 4, "the first token of each of four answers is the prompt's");
    // Where all is accepted and nothing costs, at least a try is made.
    let (on, same) = evaluate("scheduled", tables(0.0, 1.0));
    assert_eq!(same, answers);
    assert!(on.rounds > 0 && on.plain_steps > 0, "{on:?}");
}

#[test]
fn modes_that_cannot_be_measured_are_refused() {
    let fixture = Fixture::new();
    let models = Models { target: &fixture.target, draft: &fixture.draft, tokenizer: &fixture.tokenizer };
    for (mode, confidence_threshold, words) in [("fixed:2", 0.5, "both limit"), ("scheduled", 0.0, "speed table")] {
        let options = EvaluationOptions { mode: mode.parse().unwrap(), confidence_threshold, ..options() };
        let error = evaluate(models, ("a", "b"), &[fixture.task()], &options, Records::default()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    // A threshold needs confidences, by either name; other modes do without.
    let kind = DraftKind::DSpark(DSparkConfig { enable_confidence_head: false, ..DSparkConfig::new(1536, 8) });
    let shape = DraftShape { block_size: 4, num_draft_layers: 1, target_layer_ids: vec![LayerId(0)], kind };
    let draft = Draft::new(DraftConfig::for_target(fixture.target.config(), &shape).unwrap(), &fixture.target, 3);
    let models = Models { draft: &draft, ..models };
    for (mode, confidence_threshold, words) in [
        ("threshold:0.5", 0.0, "mode `threshold:0.5` needs a confidence head, but the draft b has none"),
        ("whole", 0.5, "the confidence threshold 0.5"),
    ] {
        let options = EvaluationOptions { mode: mode.parse().unwrap(), confidence_threshold, ..options() };
        let error = evaluate(models, ("a", "b"), &[fixture.task()], &options, Records::default()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let options = EvaluationOptions { mode: "fixed:2".parse().unwrap(), max_new_tokens: 2, ..options() };
    evaluate(models, ("a", "b"), &[fixture.task()], &options, Records::default()).unwrap();
}
