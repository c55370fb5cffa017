//! Runs with a source that needs no model.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;
use crate::process::{Interrupter, Signal};

/// Answers with the seed and the question.
struct Echo {
    /// Number of answers after which it fails for good.
    answers: AtomicUsize,
    /// A question with this text fails.
    refused: &'static str,
}

impl Echo {
    fn new(answers: usize, refused: &'static str) -> Self {
        Self { answers: AtomicUsize::new(answers), refused }
    }
}

impl Source for Echo {
    fn answer(&self, question: &Question<'_>, _: &Stop) -> Result<Reply, AnswerError> {
        let left = self.answers.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            return Err(AnswerError::Fatal(RegenerationError::Engine("enough".to_owned())));
        }
        let asked = question.messages.last().unwrap()["content"].as_str().unwrap();
        if asked == self.refused {
            return Err(AnswerError::Row("refused".to_owned()));
        }
        let finish = if asked.contains("long") { Finish::Length } else { Finish::Stop };
        let content = format!("{} {asked} {} {}", question.seed, question.messages.len(), question.tools.len());
        let Value::Object(message) = json!({"role": "assistant", "content": content}) else { unreachable!() };
        Ok(Reply { message, finish, tokens: 2 })
    }
}

struct Folder {
    root: TempDir,
    prompts: PathBuf,
}

impl Folder {
    fn with(rows: &[Value]) -> Self {
        let root = TempDir::new().unwrap();
        let prompts = root.path().join("prompts.jsonl");
        fs::write(&prompts, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        Self { root, prompts }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(
        &self,
        output: &Path,
        conversations: usize,
        samples: usize,
        echo: Echo,
    ) -> Result<RegenerationReport, String> {
        self.run_until(&Interrupter::new(), output, conversations, samples, echo).map_err(|error| error.to_string())
    }

    fn run_until(
        &self,
        interrupter: &Interrupter,
        output: &Path,
        conversations: usize,
        samples: usize,
        echo: Echo,
    ) -> Result<RegenerationReport, RegenerationError> {
        let settings = Settings {
            by: AnsweredBy::Engine { target: "t".to_owned(), digest: "d".to_owned(), draft: None },
            temperature: Some(1.0),
            top_p: Some(1.0),
            top_k: Some(0),
            min_p: Some(0.0),
            max_tokens: 8,
            seed: 5,
            samples,
            template_arguments: Map::new(),
        };
        let prompts = [self.prompts.clone()];
        let job = Job { prompts: &prompts, output, settings: &settings, conversations };
        regenerate(&job, interrupter, |_| Ok(Arc::new(echo) as Arc<dyn Source>))
    }
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort_by_key(|row| (row["id"].to_string(), row["sample"].as_u64()));
    rows
}

fn twenty() -> Vec<Value> {
    (0..20).map(|index| json!({"id": format!("row {index}"), "prompt": format!("question {index}")})).collect()
}

const ALL: usize = usize::MAX;

#[test]
fn turns_are_answered_one_after_the_other_until_one_is_cut_off() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let folder = Folder::with(&[
        json!({"id": "a", "tools": [tool], "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "one"},
            {"role": "assistant", "content": "old"}, {"role": "user", "content": "two"}]}),
        json!({"id": "b", "turns": ["one", "a long one", "three"]}),
    ]);
    let output = folder.output("out.jsonl");
    let report = folder.run(&output, 2, 1, Echo::new(ALL, "")).unwrap();
    assert_eq!((report.answered, report.stop, report.length, report.tokens), (2, 1, 1, 8));
    let rows = rows(&output);
    let said = |row: &Value| -> Vec<String> {
        let text = |message: &Value| {
            let content = message["content"].as_str().unwrap();
            let spoken = if message["role"] == "assistant" { content.split_once(' ').unwrap().1 } else { content };
            format!("{} {spoken}", message["role"].as_str().unwrap())
        };
        row["messages"].as_array().unwrap().iter().map(text).collect()
    };
    assert_eq!(said(&rows[0]), ["system s", "user one", "assistant one 2 1", "user two", "assistant two 4 1"]);
    assert_eq!((&rows[0]["finish_reason"], &rows[0]["tools"]), (&json!("stop"), &json!([tool])));
    assert_eq!(said(&rows[1]), ["user one", "assistant one 1 0", "user a long one", "assistant a long one 3 0"]);
    assert_eq!(
        (&rows[1]["finish_reason"], rows[1].get("tools"), rows[1].get("sample")),
        (&json!("length"), None, None)
    );
}

#[test]
fn answers_depend_neither_on_concurrency_nor_on_restarts_and_are_there_once() {
    let folder = Folder::with(&twenty());
    let whole = folder.output("whole.jsonl");
    folder.run(&whole, 1, 2, Echo::new(ALL, "")).unwrap();
    let broken = folder.output("broken.jsonl");
    let mut restarts = 0;
    while let Err(error) = folder.run(&broken, 4, 2, Echo::new(7, "")) {
        assert!(error.contains("enough"), "{error}");
        restarts += 1;
        // A process that was killed while it wrote leaves part of a row.
        let mut text = fs::read(&broken).unwrap();
        text.extend_from_slice(b"{\"id\":\"row 1\",\"mess");
        fs::write(&broken, text).unwrap();
    }
    assert!(restarts >= 5, "{restarts}");
    assert_eq!(rows(&whole).len(), 40);
    assert_eq!(rows(&whole), rows(&broken));
    let seeds: std::collections::BTreeSet<String> =
        rows(&whole).iter().map(|row| row["messages"][1]["content"].to_string()).collect();
    assert_eq!(seeds.len(), 40, "every sample has a seed of its own");
    let again = folder.run(&broken, 4, 2, Echo::new(0, "")).unwrap();
    assert_eq!((again.answered, again.before), (0, 40));
}

#[test]
fn equal_prompts_are_answered_once_and_different_ones_need_different_ids() {
    let folder = Folder::with(&[
        json!({"prompt": "a"}),
        json!({"prompt": "a"}),
        json!({"id": "x", "prompt": "b"}),
        json!({"id": "x", "messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "?"}]}),
    ]);
    let output = folder.output("out.jsonl");
    let report = folder.run(&output, 3, 1, Echo::new(ALL, "")).unwrap();
    assert_eq!((report.prompts, report.duplicates, report.answered), (2, 2, 2));
    assert_eq!(rows(&output).len(), 2);

    let folder =
        Folder::with(&[json!({"id": 7, "prompt": "a"}), json!({"prompt": "b"}), json!({"id": "7", "prompt": "c"})]);
    let message = folder.run(&folder.output("out.jsonl"), 1, 1, Echo::new(ALL, "")).unwrap_err();
    for words in ["prompts.jsonl, line 3: the id \"7\"", "prompts.jsonl, line 1"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(!folder.output("out.jsonl").exists());
}

#[test]
fn rows_without_an_answer_are_listed_and_tried_again() {
    let mut prompts = twenty();
    prompts.push(json!({"text": "no prompt"}));
    let folder = Folder::with(&prompts);
    let output = folder.output("out.jsonl");
    let report = folder.run(&output, 3, 1, Echo::new(ALL, "question 4")).unwrap();
    assert_eq!((report.answered, report.failed), (19, 2));
    let failed = rows(&failed_path(&output));
    assert_eq!(
        (&failed[0]["id"], &failed[0]["line"], &failed[0]["reason"]),
        (&json!("row 4"), &json!(5), &json!("refused"))
    );
    assert_eq!((&failed[1]["id"], &failed[1]["line"]), (&Value::Null, &json!(21)));
    assert!(failed[1]["reason"].as_str().unwrap().contains("`prompt`"), "{failed:?}");
    let again = folder.run(&output, 3, 1, Echo::new(1, "")).unwrap();
    assert_eq!((again.before, again.answered, again.failed), (19, 1, 1));
    assert_eq!(rows(&failed_path(&output)).len(), 1);
    // Nothing is left to answer, so nothing is loaded.
    let last = folder.run(&output, 3, 1, Echo::new(0, "")).unwrap();
    assert_eq!((last.before, last.answered, last.failed), (20, 0, 1));
}

#[test]
fn one_process_writes_an_output() {
    let folder = Folder::with(&twenty());
    let output = folder.output("out.jsonl");
    let lock = dspark_runtime::checkpoint::FolderLock::of_file(&output).unwrap();
    let message = folder.run(&output, 1, 1, Echo::new(ALL, "")).unwrap_err();
    assert!(message.contains(&format!("out.jsonl: in use by process {}", std::process::id())), "{message}");
    drop(lock);
    folder.run(&output, 1, 1, Echo::new(ALL, "")).unwrap();
}

#[test]
fn an_interrupted_run_says_how_to_continue() {
    let folder = Folder::with(&twenty());
    let output = folder.output("out.jsonl");
    let interrupter = Interrupter::new();
    interrupter.stop(Signal::Interrupt);
    let error = folder.run_until(&interrupter, &output, 2, 1, Echo::new(ALL, "")).unwrap_err();
    assert_eq!(error.exit_code(), Some(130));
    let message = error.to_string();
    assert!(message.contains("interrupted by SIGINT") && message.contains("repeat the command"), "{message}");
    let written = rows(&output).len();
    assert!(written < 20 && message.contains(&format!("{written} answers are in")), "{message}");
    folder.run(&output, 2, 1, Echo::new(ALL, "")).unwrap();
    assert_eq!(rows(&output).len(), 20);
}
