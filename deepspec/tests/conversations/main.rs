//! Conversations become the samples that the target was served: one file per case in `cases`, with a row, the template
//! that renders it, and the samples that it gives. README.md describes the files and how they are made.

mod case;
mod tokenizers;

use std::path::{Path, PathBuf};

use deepspec::conversation::{Format, ReadOptions, Sample, read_samples};
use dspark_runtime::text::{ChatTemplate, TokenId, Tokenizer};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use case::{Case, Outcome, shown};

/// The environment variable with the folder of the models' own tokenizers.
const TOKENIZERS: &str = "DEEPSPEC_TOKENIZERS";
/// The environment variable that writes the samples of every case into its file.
const WRITE: &str = "DEEPSPEC_WRITE_CASES";
const MODELS: [&str; 6] = ["smollm2", "qwen2_5", "qwen3", "llama3_1", "gemma3", "deepseek_v3"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations")
}

fn cases() -> Vec<Case> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder().join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| Case::read(path)).collect()
}

/// The template that a case names: one of this folder, or one of the runtime's tests.
fn template_source(name: &str) -> String {
    let file = format!("{name}.jinja");
    let shared = folder().join("../../../dspark-runtime/tests/golden/templates");
    let path = [folder().join("templates"), shared].map(|folder| folder.join(&file));
    let path = path.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("there is no template {name}"));
    std::fs::read_to_string(path).unwrap()
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The special tokens of a template.
fn tokens(name: &str) -> Value {
    read_json(&folder().join("templates/tokens.json"))[name].clone()
}

/// Reads a row as a training does.
fn read(case: &Case, tokenizer: &Tokenizer) -> Outcome {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("row.jsonl");
    std::fs::write(&path, format!("{}\n", case.row)).unwrap();
    let options = ReadOptions {
        format: Format::Chat,
        max_length: case.max_length,
        minimum_supervised_tokens: 1,
        template_arguments: case.arguments.clone(),
        strict: true,
        cut_answers: false,
        vocabulary_size: tokenizer.vocabulary_size(),
    };
    let mut samples = Vec::new();
    match read_samples(&[path], tokenizer, &options, |sample| {
        samples.push(sample);
        Ok(())
    }) {
        Ok(_) => Outcome::Samples(samples),
        Err(error) => {
            let message = error.to_string();
            let (_, reason) = message.split_once("line 1: ").unwrap_or_else(|| panic!("{}: {message}", case.name));
            // A template's name is its file, which lies in a folder of this test.
            Outcome::LeftOut(reason.replace(&format!("{}/", tokenizer.directory().display()), ""))
        }
    }
}

#[test]
fn every_case_gives_its_samples() {
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let tokenizer = tokenizers::byte_level(&template_source(&case.template), &tokens(&case.template));
        let found = case.text(&read(case, &tokenizer), &tokenizer);
        if std::env::var_os(WRITE).is_some() {
            case.write(&found);
        } else if found != case.expected {
            wrong.push(format!("== {}\n-- expected\n{}\n-- found\n{found}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The messages and the arguments of a case as `make_golden.py` passes them to `transformers`.
fn as_given(case: &Case) -> (Vec<Value>, Map<String, Value>) {
    let row: Value = serde_json::from_str(&case.row).unwrap();
    let mut arguments = case.arguments.clone();
    let tools = match row["tools"].as_str() {
        Some(text) => serde_json::from_str(text).unwrap(),
        None => row["tools"].clone(),
    };
    if tools.as_array().is_some_and(|tools| !tools.is_empty()) {
        arguments.insert("tools".to_owned(), tools);
    }
    (row["messages"].as_array().unwrap().clone(), arguments)
}

/// For each rendering of `golden`, the text that the template gives here; null where it refuses the messages.
fn renderings<'a>(case: &Case, template: &ChatTemplate, golden: &'a Value) -> Vec<(&'a Value, [Value; 2])> {
    let (messages, arguments) = as_given(case);
    let renderings = |entry: &'a Value| {
        let index = entry["message"].as_u64().unwrap() as usize;
        let text =
            |part: &[Value], prompt: bool| template.render(part, &arguments, prompt).map_or(Value::Null, Value::from);
        (entry, [text(&messages[..index], true), text(&messages[..=index], false)])
    };
    golden.as_array().unwrap().iter().map(renderings).collect()
}

#[test]
fn every_prefix_is_rendered_as_transformers_does() {
    let golden = read_json(&folder().join("golden.json"));
    let mut compared = 0;
    for case in cases() {
        let variables = tokens(&case.template)["variables"].as_object().unwrap().clone();
        let template = ChatTemplate::new(&case.template, template_source(&case.template), &variables).unwrap();
        for (entry, [context, turn]) in renderings(&case, &template, &golden[&case.name]) {
            assert_eq!(context, entry["context"], "{}, {}", case.name, entry["message"]);
            assert_eq!(turn, entry["turn"], "{}, {}", case.name, entry["message"]);
            compared += 2;
        }
    }
    assert!(compared > 250, "{compared}");
}

/// Where the renderings of `transformers` show an answer, it is the supervised text after its context in a sample.
#[test]
fn samples_are_what_the_renderings_of_transformers_show() {
    let golden = read_json(&folder().join("golden.json"));
    let mut compared = 0;
    for case in cases() {
        let tokenizer = tokenizers::byte_level(&template_source(&case.template), &tokens(&case.template));
        let (Outcome::Samples(samples), true) = (read(&case, &tokenizer), case.is_given_as_templates_read_it())
        else {
            continue;
        };
        let texts: Vec<String> = samples.iter().map(|sample| shown(sample, &tokenizer)).collect();
        for entry in golden[&case.name].as_array().unwrap() {
            let (context, turn) = (entry["context"].as_str().unwrap(), entry["turn"].as_str().unwrap());
            let index = entry["message"].as_u64().unwrap() as usize;
            let Some(answer) = turn.strip_prefix(context) else { continue };
            // Thinking that is switched off, and thoughts that the template removes, are in the expected samples.
            let removed = case.thoughts(index).is_some_and(|thoughts| !answer.contains(&thoughts));
            if removed || answer.starts_with("<think>\n\n</think>") || (index > 1 && case.is_cut()) {
                continue;
            }
            let expected = format!("⟦{answer}⟧");
            let is_it = |text: &String| {
                text.match_indices(&expected).any(|(at, _)| text[..at].replace(['⟦', '⟧'], "") == context)
            };
            assert!(texts.iter().any(is_it), "{}: {expected} after {context}\n{texts:#?}", case.name);
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

/// The ids of every rendering are those of `apply_chat_template(..., tokenize=True)` with the models' own tokenizers, which are
/// too large for the repository.
#[test]
fn ids_are_those_of_transformers() {
    let Some(directory) = std::env::var_os(TOKENIZERS).map(PathBuf::from) else {
        println!("skipped: {TOKENIZERS} does not name the folder of the models' tokenizers (see README.md)");
        return;
    };
    let golden = read_json(&directory.join("ids.json"));
    let mut compared = 0;
    for model in MODELS {
        let tokenizer = Tokenizer::from_directory(&directory.join(model)).unwrap();
        let source = template_source(model);
        let variables = tokens(model)["variables"].as_object().unwrap().clone();
        let template = ChatTemplate::new(model, source, &variables).unwrap();
        for case in cases().iter().filter(|case| case.template == model) {
            for (entry, texts) in renderings(case, &template, &golden[&case.name]) {
                for (text, expected) in texts.iter().zip([&entry["context"], &entry["turn"]]) {
                    let ids = text.as_str().map(|text| tokenizer.encode(text, false).unwrap());
                    assert_eq!(json!(ids), *expected, "{}, {}", case.name, entry["message"]);
                    compared += 1;
                }
            }
            check_real_samples(case, &tokenizer, &golden[&case.name]);
        }
    }
    println!("{compared} renderings have the ids of transformers");
}

/// Samples with the model's own tokeniser begin with the ids of a context of `transformers`, unless the context has the empty
/// think block that thinking switched off adds.
fn check_real_samples(case: &Case, tokenizer: &Tokenizer, golden: &Value) {
    if case.template == "qwen3" || !case.is_given_as_templates_read_it() {
        return;
    }
    let Outcome::Samples(samples) = read(case, tokenizer) else { return };
    let ids = |value: &Value| -> Vec<TokenId> { serde_json::from_value(value.clone()).unwrap() };
    for sample in &samples {
        let context = |entry: &&Value| {
            let context = ids(&entry["context"]);
            sample.token_ids.starts_with(&context) && supervised_from(sample) == context.len()
        };
        assert!(golden.as_array().unwrap().iter().any(|entry| context(&entry)), "{}: {}", case.name, sample.id);
    }
}

fn supervised_from(sample: &Sample) -> usize {
    sample.loss_mask.iter().position(|supervised| *supervised).unwrap()
}
