//! `dspark generate` and `dspark bench` as programs, with copies of the small target of this repository.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROMPT: &str = "Help me, please: it scratches the chair.";

/// A copy of the target that can be changed.
struct Copy(TempDir);

impl Copy {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
        for entry in fs::read_dir(original).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_str(&fs::read_to_string(self.file(file)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.file(file), value.to_string()).unwrap();
    }

    /// Runs a verb, with a text on standard input.
    fn run(&self, verb: &str, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dspark"));
        command.arg(verb).arg("--target").arg(self.0.path()).args(arguments);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A program that refuses its arguments reads nothing.
        let _ = process.stdin.take().unwrap().write_all(input.as_bytes());
        process.wait_with_output().unwrap()
    }

    fn generate(&self, arguments: &[&str], input: &str) -> Output {
        self.run("generate", &[&["--json", "--max-new-tokens", "12"], arguments].concat(), input)
    }

    fn answer(&self, arguments: &[&str]) -> Value {
        report(&self.generate(&[&["--prompt", PROMPT], arguments].concat(), ""))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(output: &Output, words: &[&str]) {
    let message = said(output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{words:?} in {message}");
}

#[test]
fn a_decoder_that_strips_the_start_of_a_text_does_not_strip_an_answer() {
    let target = Copy::new();
    let arguments = ["--raw", "--prompt", "Line up the"];
    let expected = report(&target.generate(&arguments, ""))["text"].clone();
    assert!(expected.as_str().unwrap().starts_with(' '), "{expected}");
    target.edit("tokenizer.json", |fields| {
        fields["decoder"] = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "Ġ"}, "content": " "},
            {"type": "Replace", "pattern": {"String": "Ċ"}, "content": "\n"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
    });
    assert_eq!(report(&target.generate(&arguments, ""))["text"], expected);
}

#[test]
fn an_answer_ends_at_the_end_token_of_any_file() {
    let target = Copy::new();
    let whole = target.answer(&[]);
    let ids = whole["ids"].as_array().unwrap();
    let end = &ids[4];
    let first = ids.iter().position(|id| id == end).unwrap();
    for file in ["config.json", "generation_config.json"] {
        let target = Copy::new();
        target.edit(file, |fields| fields["eos_token_id"] = json!([2, end]));
        assert_eq!(target.answer(&[])["ids"], json!(ids[..=first]), "{file}");
        target.edit(file, |fields| fields["eos_token_id"] = json!(60_000));
        refused(&target.generate(&["--prompt", PROMPT], ""), &[file, "eos_token_id", "60000"]);
    }
}

#[test]
fn sampling_settings_of_the_target_are_defaults() {
    let target = Copy::new();
    let greedy = target.answer(&[]);
    target.edit("generation_config.json", |fields| {
        fields["temperature"] = json!(5.0);
        fields["repetition_penalty"] = json!(1.1);
    });
    let output = target.generate(&["--prompt", PROMPT, "--seed", "1"], "");
    let words = ["generation_config.json: temperature 5 (", "have no effect: repetition_penalty 1.1"];
    assert!(words.iter().all(|word| said(&output).contains(word)), "{}", said(&output));
    assert_ne!(report(&output)["ids"], greedy["ids"]);
    for own in [["--temperature", "0"], ["--top-k", "1"], ["--generation-config", "none"]] {
        assert_eq!(target.answer(&own)["ids"], greedy["ids"], "{own:?}");
    }
    let none = target.generate(&["--prompt", PROMPT, "--generation-config", "none"], "");
    assert!(!said(&none).contains("generation_config.json"), "{}", said(&none));

    target.edit("generation_config.json", |fields| fields["top_p"] = json!(3));
    refused(&target.generate(&["--prompt", PROMPT], ""), &["generation_config.json: top_p", "found 3"]);
}

#[test]
fn the_token_limit_of_the_target_is_a_default() {
    let target = Copy::new();
    target.edit("generation_config.json", |fields| fields["max_new_tokens"] = json!(3));
    let count = |arguments: &[&str]| {
        let arguments = [&["--json", "--prompt", PROMPT], arguments].concat();
        report(&target.run("generate", &arguments, ""))["ids"].as_array().unwrap().len()
    };
    assert_eq!(count(&[]), 3);
    assert_eq!(count(&["--max-new-tokens", "5"]), 5);
}

#[test]
fn without_a_chat_template_a_prompt_is_raw_only_when_that_is_said() {
    let target = Copy::new();
    let templated = target.answer(&[]);
    let mut template = Value::Null;
    target.edit("tokenizer_config.json", |fields| template = fields["chat_template"].take());
    let words = ["has no chat template", "--raw"];
    refused(&target.generate(&["--prompt", PROMPT], ""), &words);
    assert_ne!(target.answer(&["--raw"])["prompt_ids"], templated["prompt_ids"]);
    refused(&target.generate(&["--prompt", PROMPT, "--raw", "--system", "x"], ""), &["--raw", "--system"]);

    let prompts = target.file("prompts.jsonl");
    fs::write(&prompts, format!("{}\n", json!({"prompt": PROMPT}))).unwrap();
    let bench = |further: &[&str]| {
        let load =
            ["--modes", "off", "--concurrency", "1", "--repeats", "1", "--requests", "1", "--max-new-tokens", "2"];
        target.run("bench", &[&["--prompts", prompts.to_str().unwrap()], &load[..], further].concat(), "")
    };
    refused(&bench(&[]), &words);
    assert!(bench(&["--raw"]).status.success());

    fs::write(target.file("chat_template.json"), json!({"chat_template": template}).to_string()).unwrap();
    assert_eq!(target.answer(&[])["ids"], templated["ids"]);
}

#[test]
fn the_line_end_of_standard_input_is_not_part_of_the_prompt() {
    let target = Copy::new();
    let expected = target.answer(&[])["prompt_ids"].clone();
    let typed = |input: String| report(&target.generate(&[], &input))["prompt_ids"].clone();
    for end in ["", "\n", "\r\n"] {
        assert_eq!(typed(format!("{PROMPT}{end}")), expected, "{end:?}");
    }
    assert_eq!(typed(format!("\u{feff}{PROMPT}\r\n")), expected);
    assert_ne!(typed(format!("{PROMPT}\n\n")), expected, "one line end");
}
