//! Data sets from small sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;
use crate::conversation::{ConversationRow, Format, ReadOptions, RowChunks, Sample, read_samples};

mod outputs;

/// Sources and outputs in a folder of their own.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// A source of the given rows.
    fn source(&self, name: &str, rows: &[Value]) -> Source {
        let path = self.path(&format!("{name}.jsonl"));
        fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        Source { name: name.to_owned(), files: vec![path] }
    }

    fn prepare(&self, sources: &[Source], out: &str, settings: &Settings) -> Result<Manifest, PreparationError> {
        match prepare(sources, &self.path(out), settings, None)? {
            Prepared::Written(manifest) => Ok(*manifest),
            Prepared::Before => panic!("{out} was there before"),
        }
    }

    /// The rows of one side of an output.
    fn rows(&self, side: &str) -> Vec<ConversationRow> {
        let folder = self.path(side);
        let mut files: Vec<_> =
            fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        rows(&files)
    }

    fn ids(&self, side: &str) -> BTreeSet<String> {
        self.rows(side).into_iter().map(|row| row.id.unwrap()).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn rows(files: &[std::path::PathBuf]) -> Vec<ConversationRow> {
    let chunks = RowChunks::of(files).map(Result::unwrap);
    chunks.flatten().map(|row| row.conversation(true).unwrap()).collect()
}

fn row(id: usize, question: &str, answer: &str) -> Value {
    json!({"id": format!("r{id}"), "prompt": question, "response": answer})
}

fn questions(ids: std::ops::Range<usize>) -> Vec<Value> {
    ids.map(|id| row(id, &format!("question {id}"), &format!("answer {id}"))).collect()
}

fn reasons(manifest: &Manifest) -> BTreeMap<String, usize> {
    let left_out = manifest.sources.iter().flat_map(|source| &source.left_out);
    left_out.map(|left_out| (left_out.reason.clone(), left_out.rows)).collect()
}

fn awkward_rows() -> Vec<Value> {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"x": 0.1}}});
    let call =
        json!([{"id": "c", "function": {"name": "f", "arguments": {"x": 1e-7, "y": null, "z": "ü\u{2028}\""}}}]);
    vec![
        json!({"id": 7, "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q\r\n\t\u{0}"},
            {"from": "gpt", "value": " a "}]}),
        json!({"id": "tools", "tools": [tool], "messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": call, "reasoning_content": "hm"},
            {"role": "tool", "content": "{}", "name": "f", "tool_call_id": "c"},
            {"role": "assistant", "content": "done", "weight": 0.30000000000000004}], "finish_reason": "stop"}),
        json!({"instruction": "i", "input": "in", "output": "o"}),
        json!({"id": "question", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
            {"role": "user", "content": "and?"}]}),
    ]
}

/// A long text without repetitions.
fn text(seed: usize) -> String {
    (0..150).map(|word| format!("w{} ", (seed * 7919 + word * word * 31) % 9973)).collect()
}

fn samples(files: &[std::path::PathBuf]) -> Vec<Sample> {
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    let options = ReadOptions {
        format: Format::Chat,
        max_length: 4096,
        minimum_supervised_tokens: 1,
        template_arguments: Map::new(),
        strict: false,
        cut_answers: true,
        vocabulary_size: 1 << 20,
    };
    let mut samples = Vec::new();
    let take = |sample| {
        samples.push(sample);
        Ok(())
    };
    read_samples(files, &Tokenizer::from_directory(&target).unwrap(), &options, take).unwrap();
    samples
}

#[test]
fn an_output_gives_the_samples_of_its_sources() {
    let bench = Bench::new();
    let source = bench.source("a", &awkward_rows());
    let manifest = bench.prepare(std::slice::from_ref(&source), "out", &Settings::default()).unwrap();
    assert_eq!((manifest.sources[0].read, manifest.sources[0].training), (4, 4));
    let (before, after) = (rows(&source.files), bench.rows("out/train"));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.conversation, after.conversation);
        assert_eq!(before.finish_reason, after.finish_reason);
        assert!(before.id.is_none() || before.id == after.id, "{before:?} {after:?}");
    }
    assert_eq!(after[2].id.as_ref().unwrap().len(), 32);
    let file = bench.path("out").join(&manifest.outputs[0].path);
    let strip = |samples: Vec<Sample>| -> Vec<_> {
        samples.into_iter().map(|sample| (sample.token_ids, sample.loss_mask)).collect()
    };
    assert_eq!(strip(samples(&source.files)), strip(samples(&[file])));
}

#[test]
fn every_filter_leaves_out_its_rows_by_reason() {
    let bench = Bench::new();
    let long = |turns: usize| {
        let turn =
            [json!({"role": "user", "content": "q"}), json!({"role": "assistant", "content": format!("a{turns}")})];
        json!({"messages": turn.iter().cycle().take(2 * turns).collect::<Vec<_>>()})
    };
    let rows = [
        row(0, "kept", "yes"),
        long(3),
        row(1, "loop", &"I do not know. ".repeat(100)),
        json!({"prompt": "cut", "response": "a", "finish_reason": "length"}),
        row(2, "empty", " \n"),
        json!({"messages": [{"role": "user", "content": "only a question"}]}),
        json!({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]}),
    ];
    let source = [bench.source("a", &rows)];
    let settings = Settings { turns: Some("1..2".parse().unwrap()), ..Settings::default() };
    let manifest = bench.prepare(&source, "out", &settings).unwrap();
    let expected = [
        ("N user messages, --turns N..N", 1),
        ("an answer is empty", 1),
        ("an answer repeats itself, --repetition N.N", 1),
        ("answer cut off by its length limit", 1),
        ("there is no assistant message", 1),
    ];
    assert_eq!(reasons(&manifest), expected.map(|(reason, rows)| (reason.to_owned(), rows)).into());
    assert_eq!(manifest.sources[0].training, 2);
    // The same rows without filters.
    let settings = Settings { repetition: 1.0, cut_answers: true, ..Settings::default() };
    let manifest = bench.prepare(&source, "all", &settings).unwrap();
    assert_eq!(manifest.sources[0].training, 5);
    assert_eq!(bench.rows("all/train")[3].finish_reason.as_deref(), Some("length"));
}

#[test]
fn tokens_are_counted_with_the_template() {
    let bench = Bench::new();
    let source = [bench.source("a", &[row(0, "q", "a"), row(1, "q", &format!("a long {}", text(1)))])];
    let lengths: Vec<usize> = samples(&source[0].files).iter().map(|sample| sample.token_ids.len()).collect();
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    let tokenizer = Tokenizer::from_directory(&target).unwrap();
    for (most, kept) in [(lengths[0] - 1, 0), (lengths[0], 1), (lengths[1] - 1, 1), (lengths[1], 2)] {
        let bounds = Bounds { least: 0, most };
        let tokens = Some(TokenBounds { bounds, tokenizer: "digest".to_owned(), template_arguments: Map::new() });
        let settings = Settings { tokens, ..Settings::default() };
        let written = match prepare(&source, &bench.path(&format!("out{most}")), &settings, Some(&tokenizer)) {
            Ok(Prepared::Written(manifest)) => manifest.sources[0].training,
            Err(PreparationError::Empty(reasons)) => {
                assert!(reasons.contains("more tokens than --tokens 0.."), "{reasons}");
                0
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(written, kept, "{most}");
    }
}

#[test]
fn the_first_of_equal_and_of_similar_rows_is_kept() {
    let bench = Bench::new();
    let mut first = Vec::new();
    let mut second = Vec::new();
    for id in 0..40 {
        first.push(row(id, &format!("Question {id}"), &text(id)));
        second.push(row(100 + id, &format!(" question  {id}\n"), &text(id).to_uppercase()));
        second.push(row(200 + id, &format!("Question {id}"), &format!("{}other", text(id))));
    }
    let sources = [bench.source("a", &first), bench.source("b", &second)];
    let exact = bench.prepare(&sources, "exact", &Settings::default()).unwrap();
    assert_eq!(reasons(&exact), [("duplicate of an earlier row".to_owned(), 40)].into());
    assert_eq!(exact.sources[1].left_out[0].first.number.to_string(), "line 1");
    let settings = Settings { near_duplicates: Some(0.8), ..Settings::default() };
    let near = bench.prepare(&sources, "near", &settings).unwrap();
    let expected = [("duplicate of an earlier row", 40), ("near duplicate of an earlier row", 40)];
    assert_eq!(reasons(&near), expected.map(|(reason, rows)| (reason.to_owned(), rows)).into());
    assert_eq!(bench.ids("near/train"), (0..40).map(|id| format!("r{id}")).collect());
}

#[test]
fn the_split_stays_when_rows_are_added_and_holds_a_prompt_on_one_side() {
    let bench = Bench::new();
    let settings = Settings { validation: 0.2, ..Settings::default() };
    let mut data = questions(0..300);
    bench.prepare(&[bench.source("a", &data)], "before", &settings).unwrap();
    let before = bench.ids("before/validation");
    assert!((30..90).contains(&before.len()), "{}", before.len());
    data.splice(0..0, questions(300..400));
    data.extend((0..300).map(|id| row(1000 + id, &format!("QUESTION {id}"), "another answer")));
    bench.prepare(&[bench.source("b", &data)], "after", &settings).unwrap();
    let after = bench.ids("after/validation");
    assert!(before.is_subset(&after));
    for id in 0..300 {
        assert_eq!(after.contains(&format!("r{id}")), before.contains(&format!("r{id}")));
        assert_eq!(after.contains(&format!("r{id}")), after.contains(&format!("r{}", 1000 + id)));
    }
    assert!(bench.ids("after/train").is_disjoint(&after));
}

#[test]
fn the_shards_together_are_the_whole() {
    let bench = Bench::new();
    let mut data = questions(0..200);
    data.extend(questions(50..120));
    data.push(row(500, "empty", ""));
    let source = [bench.source("a", &data)];
    bench.prepare(&source, "whole", &Settings { validation: 0.1, ..Settings::default() }).unwrap();
    let mut found = BTreeMap::<_, Vec<String>>::new();
    let mut elsewhere = 0;
    for index in 0..3 {
        let shard = Some(Shard { index, count: 3 });
        let settings = Settings { validation: 0.1, shard, ..Settings::default() };
        let out = format!("shard{index}");
        elsewhere += bench.prepare(&source, &out, &settings).unwrap().sources[0].other_shards;
        for side in ["train", "validation"] {
            let ids = bench.ids(&format!("{out}/{side}"));
            assert!(side == "validation" || ids.len() > 30);
            found.entry(side).or_default().extend(ids);
        }
    }
    assert_eq!(elsewhere, 2 * data.len());
    for (side, mut ids) in found {
        ids.sort();
        assert_eq!(ids, bench.ids(&format!("whole/{side}")).into_iter().collect::<Vec<_>>());
    }
    for settings in [
        Settings { rows: Some(1), ..Settings::default() },
        Settings { near_duplicates: Some(0.8), ..Settings::default() },
    ] {
        let settings = Settings { shard: Some(Shard { index: 0, count: 3 }), ..settings };
        let error = bench.prepare(&source, "refused", &settings).unwrap_err().to_string();
        assert!(error.contains("need all rows"), "{error}");
    }
}

fn weights(pairs: &[(&str, f64)]) -> Vec<Weight> {
    pairs.iter().map(|(source, weight)| Weight { source: (*source).to_owned(), weight: *weight }).collect()
}

#[test]
fn sources_are_mixed_by_weight_and_few_rows_change_when_data_are_added() {
    let bench = Bench::new();
    let sources =
        |more: usize| [bench.source("a", &questions(0..400 + more)), bench.source("b", &questions(1000..1200))];
    let settings = Settings { weights: weights(&[("a", 3.0), ("b", 1.0)]), rows: Some(200), ..Settings::default() };
    let manifest = bench.prepare(&sources(0), "out", &settings).unwrap();
    let counts: Vec<_> = manifest.sources.iter().map(|source| (source.training, source.not_chosen)).collect();
    assert_eq!(counts, [(150, 250), (50, 150)]);
    let before = bench.ids("out/train");
    assert_eq!(before.len(), 200);
    bench.prepare(&sources(40), "more", &settings).unwrap();
    let same = bench.ids("more/train").intersection(&before).count();
    assert!((170..200).contains(&same), "{same}");
    bench.prepare(&sources(0), "seed", &Settings { seed: 1, ..settings.clone() }).unwrap();
    assert_ne!(bench.ids("seed/train"), before);
    // As many as there can be.
    let manifest = bench.prepare(&sources(0), "most", &Settings { rows: None, ..settings.clone() }).unwrap();
    assert_eq!(manifest.sources.iter().map(SourceReport::written).collect::<Vec<_>>(), [400, 133]);
    let manifest = bench.prepare(&sources(0), "pool", &Settings { weights: Vec::new(), ..settings.clone() }).unwrap();
    assert_eq!(manifest.sources.iter().map(SourceReport::written).sum::<usize>(), 200);

    for (changed, expected) in [
        (Settings { rows: Some(2000), ..settings.clone() }, "the source a: 400 rows are left, 1500 are asked for"),
        (Settings { weights: weights(&[("a", 1.0)]), ..settings.clone() }, "the source b has no weight"),
        (Settings { weights: weights(&[("a", 1.0), ("c", 1.0)]), ..settings.clone() }, "found a, b"),
        (Settings { weights: weights(&[("a", 1.0), ("a", 1.0)]), ..settings }, "--weight a: given twice"),
    ] {
        let error = bench.prepare(&sources(0), "refused", &changed).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(!bench.path("refused").exists());
}
