use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::conversation::report::RowNumber;
use crate::conversation::testing::{self, VOCABULARY_SIZE, lines, read_all};

fn options() -> ReadOptions {
    ReadOptions {
        format: Format::Chat,
        max_length: 512,
        minimum_supervised_tokens: 14,
        template_arguments: Map::new(),
        strict: false,
        cut_answers: false,
        vocabulary_size: VOCABULARY_SIZE,
    }
}

fn row(question: &str, answer: &str) -> String {
    json!({"prompt": question, "response": answer}).to_string()
}

const ANSWER: &str = "an answer of some length";

#[test]
fn rows_keep_the_order_of_the_files() {
    let directory = TempDir::new().unwrap();
    let many: Vec<String> = (0..1500).map(|number| row(&number.to_string(), ANSWER)).collect();
    let first = lines(&directory, "first.jsonl", &many);
    let named = json!({"id": 7, "prompt": "last", "response": ANSWER}).to_string();
    let second = lines(&directory, "second.jsonl", &[named]);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let (samples, report) = read_all(&[first, second], &tokenizer, &options()).unwrap();
    assert_eq!((report.read, report.kept, report.samples, report.malformed), (1501, 1501, 1501, 0));
    assert_eq!(samples[0].id, "first.jsonl, line 1");
    assert_eq!(samples[1499].id, "first.jsonl, line 1500");
    assert_eq!(samples[1500].id, "7");
    for (index, sample) in samples[..1500].iter().enumerate() {
        let text = tokenizer.decode(&sample.token_ids, false).unwrap();
        assert!(text.contains(&format!("user\n{index}<|im_end|>")), "{index}: {text}");
    }
}

#[test]
fn malformed_rows_are_counted_with_file_and_line() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("data.jsonl");
    let mut bytes = format!("\u{feff}{}\n\n", row("q", ANSWER)).into_bytes();
    bytes.extend(b"{\"prompt\": \"q\"}\n[1]\n\"\xff\"\n");
    bytes.extend(row("q", "short").into_bytes());
    bytes.extend(b"\n{\"prompt\": \"cut o");
    std::fs::write(&path, bytes).unwrap();
    let tokenizer = testing::tokenizer(Some("qwen3"));
    let (samples, report) = read_all(std::slice::from_ref(&path), &tokenizer, &options()).unwrap();
    assert_eq!((samples.len(), report.read, report.kept, report.too_short), (1, 6, 1, 1));
    let found: Vec<RowNumber> = report.left_out.iter().map(|left_out| left_out.first.number).collect();
    assert_eq!(found, [3, 4, 5, 6, 7].map(RowNumber::Line));
    assert!(report.left_out.iter().all(|left_out| left_out.first.file == path && left_out.rows == 1));
    let printed = report.to_string();
    assert!(printed.starts_with("6 rows read, 1 kept (0 of them truncated), 1 too short, 4 malformed"), "{printed}");
    assert!(printed.contains("data.jsonl, line 4: should be a JSON object, found a list"), "{printed}");
    let offset = 3 + row("q", ANSWER).len() + 2 + "{\"prompt\": \"q\"}\n[1]\n\"".len();
    assert!(printed.contains(&format!("data.jsonl, line 5: not UTF-8: byte {offset} of the text")), "{printed}");
    assert!(printed.contains("data.jsonl, line 6: fewer than 14 supervised tokens"), "{printed}");
    assert_eq!(report.warning().unwrap(), "5 of 6 rows (83.3 %) are left out");
}

#[test]
fn strict_reading_stops_at_the_first_malformed_row() {
    let directory = TempDir::new().unwrap();
    let path = lines(&directory, "data.jsonl", &[row("q", ANSWER), "{".to_owned(), "[".to_owned()]);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let strict = ReadOptions { strict: true, ..options() };
    let error = read_all(&[path], &tokenizer, &strict).unwrap_err();
    assert!(error.to_string().contains("data.jsonl, line 2: not valid JSON"), "{error}");
}

#[test]
fn long_samples_are_cut_before_their_tokens_are_counted() {
    let directory = TempDir::new().unwrap();
    let long = "word ".repeat(200);
    let path = lines(&directory, "data.jsonl", &[row("q", &long), row(&long, ANSWER)]);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let short = ReadOptions { max_length: 300, ..options() };
    let (samples, report) = read_all(&[path], &tokenizer, &short).unwrap();
    assert_eq!(samples[0].token_ids.len(), 300);
    assert_eq!((report.kept, report.truncated, report.too_short), (1, 1, 1));
}

#[test]
fn template_arguments_reach_the_template() {
    let directory = TempDir::new().unwrap();
    let tools = json!([{"name": "a_tool_to_be_found"}]);
    let path = lines(&directory, "data.jsonl", &[row("q", ANSWER)]);
    let tokenizer = testing::tokenizer(Some("qwen3"));
    let mut arguments = Map::new();
    arguments.insert("tools".to_owned(), tools);
    let with_tools = ReadOptions { template_arguments: arguments, max_length: 4096, ..options() };
    let (samples, _) = read_all(&[path], &tokenizer, &with_tools).unwrap();
    let text = tokenizer.decode(&samples[0].token_ids, false).unwrap();
    assert!(text.contains("a_tool_to_be_found"), "{text}");
}

#[test]
fn plain_text_needs_no_template() {
    let directory = TempDir::new().unwrap();
    let rows = [json!({"text": "once upon a time there was"}).to_string(), row("q", ANSWER)];
    let path = lines(&directory, "data.jsonl", &rows);
    let tokenizer = testing::tokenizer(None);
    let text = ReadOptions { format: Format::Text, ..options() };
    let (samples, report) = read_all(std::slice::from_ref(&path), &tokenizer, &text).unwrap();
    assert_eq!(samples[0].supervised_tokens(), samples[0].token_ids.len() - 1);
    assert!(report.left_out[0].first.reason.contains("`text` is missing"), "{report}");

    let error = read_all(&[path], &tokenizer, &options()).unwrap_err().to_string();
    assert!(error.contains("has no chat template") && error.contains("data.format = \"text\""), "{error}");
}

#[test]
fn nothing_left_is_an_error_with_the_counts() {
    let directory = TempDir::new().unwrap();
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let path = lines(&directory, "data.jsonl", &[row("q", "short"), "{}".to_owned()]);
    let error = read_all(&[path], &tokenizer, &options()).unwrap_err().to_string();
    assert!(
        error.contains("no samples to train on in")
            && error.contains("data.jsonl: ")
            && error.contains("1 too short, 1 malformed"),
        "{error}"
    );
    let error = read_all(&[], &tokenizer, &options()).unwrap_err().to_string();
    assert!(error.contains("an empty list of data files"), "{error}");
}

#[test]
fn a_token_beyond_the_vocabulary_is_an_error_even_when_not_strict() {
    let directory = TempDir::new().unwrap();
    let path = lines(&directory, "data.jsonl", &[row("q", ANSWER)]);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    assert_eq!(tokenizer.vocabulary_size(), VOCABULARY_SIZE);
    let small = ReadOptions { vocabulary_size: VOCABULARY_SIZE - 1, ..options() };
    let error = read_all(&[path], &tokenizer, &small).unwrap_err().to_string();
    assert!(error.contains("data.jsonl, line 1: token \"<|im_end|>\" has the id 262"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let error = read_all(&["nowhere.jsonl".into()], &tokenizer, &options()).unwrap_err();
    assert!(error.to_string().contains("cannot read nowhere.jsonl"), "{error}");
}

#[test]
fn cut_answers_are_left_out_unless_the_recipe_keeps_them() {
    let directory = TempDir::new().unwrap();
    let row = |reason: Value| json!({"prompt": "q", "response": ANSWER, "finish_reason": reason}).to_string();
    let rows = [row(json!("stop")), row(json!("length")), row(Value::Null), row(json!("tool_calls"))];
    let path = lines(&directory, "data.jsonl", &rows);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let (samples, report) = read_all(std::slice::from_ref(&path), &tokenizer, &options()).unwrap();
    assert_eq!((samples.len(), report.read, report.kept, report.cut_answers, report.malformed), (3, 4, 3, 1, 0));
    let printed = report.to_string();
    assert!(printed.contains("line 2: answer cut off by its length limit"), "{printed}");
    let keep = ReadOptions { cut_answers: true, ..options() };
    assert_eq!(read_all(&[path], &tokenizer, &keep).unwrap().0.len(), 4);
}

#[test]
fn a_row_that_the_template_refuses_is_left_out_with_its_reason() {
    let directory = TempDir::new().unwrap();
    let tokenizer = testing::tokenizer_with(Some(
        "{% if messages[0].content == 'bad' %}{{ raise_exception('no bad') }}{% endif %}\
        {% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}",
    ));
    let path = lines(&directory, "data.jsonl", &[row("q", ANSWER), row("bad", ANSWER), row("r", ANSWER)]);
    let (samples, report) = read_all(&[path], &tokenizer, &options()).unwrap();
    assert_eq!((samples.len(), report.malformed), (2, 1));
    let printed = report.to_string();
    assert!(printed.contains("data.jsonl, line 2: ") && printed.contains("no bad"), "{printed}");
}

#[test]
fn tokenised_rows_need_no_template() {
    let directory = TempDir::new().unwrap();
    let ids: Vec<u32> = (0..20).collect();
    let rows = [
        json!({"input_ids": ids, "loss_mask": vec![1; 20], "messages": null}).to_string(),
        json!({"input_ids": ids, "labels": ids, "messages": []}).to_string(),
        json!({"input_ids": [300], "labels": [300]}).to_string(),
    ];
    let path = lines(&directory, "data.jsonl", &rows);
    let (samples, report) = read_all(&[path], &testing::tokenizer(None), &options()).unwrap();
    assert_eq!((samples.len(), report.malformed), (2, 1));
    assert!(report.to_string().contains("line 3: `input_ids`, token 1: the id 300"), "{report}");
    for sample in samples {
        assert_eq!((sample.token_ids.as_slice(), sample.supervised_tokens()), (ids.as_slice(), 19));
    }
    let both = json!({"input_ids": ids, "loss_mask": vec![1; 20], "prompt": "q", "response": ANSWER}).to_string();
    let path = lines(&directory, "both.jsonl", &[both]);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let (samples, _) = read_all(&[path], &tokenizer, &options()).unwrap();
    assert!(tokenizer.decode(&samples[0].token_ids, false).unwrap().contains(ANSWER));
}

/// A read column with `NaN` says so; one that is not read does not matter, nor one that is nested 200 deep.
#[test]
fn columns_that_are_not_read_do_not_matter() {
    let directory = TempDir::new().unwrap();
    let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let with = |field: &str, value: &str| row("q", ANSWER).replacen('{', &format!("{{\"{field}\": {value}, "), 1);
    let good = ["NaN", "-Infinity", "1e999", &nested, "{\"a\": [NaN, \"]}\"]}"].map(|value| with("score", value));
    let path = lines(&directory, "good.jsonl", &good);
    let tokenizer = testing::tokenizer(Some("smollm2"));
    let (samples, report) = read_all(&[path], &tokenizer, &options()).unwrap();
    assert_eq!((samples.len(), report.malformed), (5, 0), "{report}");
    let bad = [
        with("messages", "[NaN, \"Infinity\"]"),
        with("system", "1e999"),
        with("messages", &nested),
        with("score", "!"),
        format!("{},", row("q", ANSWER)),
        row("q", ANSWER),
    ];
    let path = lines(&directory, "bad.jsonl", &bad);
    let (samples, report) = read_all(&[path], &tokenizer, &options()).unwrap();
    assert_eq!((samples.len(), report.malformed), (1, 5), "{report}");
    let expected = [
        "`messages` holds NaN, which is not JSON",
        "`system` is not valid JSON: number out of range",
        "recursion limit exceeded",
        "expected a value",
        "expected the end at byte",
    ];
    for (left_out, expected) in report.left_out.iter().zip(expected) {
        assert!(left_out.first.reason.contains(expected), "{}", left_out.first);
    }
}
