//! Outputs as a whole: made once, complete, repeatable, in little memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::conversation::FileRow;
use crate::preparation::run::scan;

#[test]
fn an_output_is_made_once_and_never_replaced() {
    let bench = Bench::new();
    let source = [bench.source("a", &questions(0..20))];
    let settings = Settings::default();
    let written = bench.prepare(&source, "out", &settings).unwrap();
    let again = |source: &[Source], settings: &Settings| prepare(source, &bench.path("out"), settings, None);
    assert!(matches!(again(&source, &settings).unwrap(), Prepared::Before));
    let refused = |source: &[Source], settings: &Settings, expected: &str| {
        let error = again(source, settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&source, &Settings { validation: 0.5, ..settings.clone() }, "validation = 0.0, now it is 0.5");
    refused(&[bench.source("a", &questions(0..21))], &settings, "from other data");
    let source = [bench.source("a", &questions(0..20))];
    let file = bench.path("out").join(&written.outputs[0].path);
    fs::write(&file, "x").unwrap();
    refused(&source, &settings, "train-00000.parquet is missing or damaged");
    fs::write(bench.path("out/manifest.json"), "{}").unwrap();
    refused(&source, &settings, "is not one of `deepspec prepare`");
    fs::remove_file(bench.path("out/manifest.json")).unwrap();
    refused(&source, &settings, "holds files and no manifest.json");
    assert_eq!(fs::read_to_string(&file).unwrap(), "x");
    let _lock = dspark_runtime::checkpoint::FolderLock::of_file(&bench.path("out")).unwrap();
    refused(&source, &settings, "in use by process");
}

#[test]
fn a_preparation_that_fails_in_the_middle_leaves_nothing() {
    let bench = Bench::new();
    let mut source = bench.source("a", &questions(0..9000));
    let broken = bench.path("broken.json");
    fs::write(&broken, "[{\"prompt\": \"q\", \"response\": \"a\"}, {").unwrap();
    source.files.push(broken);
    let before = bench.names();
    let error = bench.prepare(&[source], "out", &Settings::default()).unwrap_err().to_string();
    assert!(error.contains("the JSON array is cut off"), "{error}");
    let mut after = bench.names();
    assert!(after.remove(".out.lock"));
    assert_eq!(after, before);
}

#[test]
fn unusable_rows_are_counted_with_the_first_example() {
    let bench = Bench::new();
    let rows = [
        json!({"text": "plain"}),
        json!({"input_ids": [1], "loss_mask": [1]}),
        json!({"conversations": [{"from": "claude", "value": "x"}]}),
        json!({"conversations": [{"from": "other", "value": "x"}]}),
        row(0, "q", "a"),
    ];
    let manifest = bench.prepare(&[bench.source("a", &rows)], "out", &Settings::default()).unwrap();
    let report = &manifest.sources[0];
    assert_eq!((report.read, report.training, report.unusable), (5, 1, 4));
    let found: Vec<_> =
        report.left_out.iter().map(|left_out| (left_out.rows, left_out.first.number.to_string())).collect();
    assert_eq!(found, [(1, "line 1".to_owned()), (1, "line 2".to_owned()), (2, "line 3".to_owned())]);
    assert!(report.reasons().to_string().contains("the role \"claude\" is unknown"));
    let text: Value = serde_json::from_str(&fs::read_to_string(bench.path("out/manifest.json")).unwrap()).unwrap();
    assert_eq!(text["sources"][0]["left_out"][0]["first"]["row"], "line 1");
    assert_eq!(text["settings"]["repetition"], REPETITION);
    let error = bench.prepare(&[bench.source("b", &rows[..4])], "none", &Settings::default()).unwrap_err();
    assert!(error.to_string().contains("no row is left to write:\n  b: 1 rows of 4"), "{error}");
}

#[test]
fn equal_preparations_write_equal_bytes_with_any_number_of_threads() {
    let bench = Bench::new();
    let source = [bench.source("a", &questions(0..5000))];
    let settings = Settings { validation: 0.1, near_duplicates: Some(0.9), ..Settings::default() };
    let outputs = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bench.prepare(&source, &format!("out{threads}"), &settings)).unwrap().outputs
    });
    assert_eq!(outputs[0], outputs[1]);
}

/// A value that is counted as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn few_rows_are_in_memory_at_a_time() {
    let bench = Bench::new();
    let source = [bench.source("a", &questions(0..6000))];
    let (alive, mut most, mut taken) = (Arc::new(AtomicUsize::new(0)), 0, 0);
    let judge = |_: usize, _: &FileRow<'_>| {
        alive.fetch_add(1, Ordering::SeqCst);
        Ok(Counted(Arc::clone(&alive)))
    };
    let take = |_: usize, number: usize, _: &FileRow<'_>, counted: Counted| {
        most = most.max(alive.load(Ordering::SeqCst));
        assert_eq!(number, taken);
        taken += 1;
        drop(counted);
        Ok(())
    };
    scan(&source, "rows read", judge, take).unwrap();
    assert_eq!(taken, 6000);
    assert!(most <= 1024, "{most}");
}
