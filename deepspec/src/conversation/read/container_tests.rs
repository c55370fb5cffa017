//! Containers: equal rows give equal samples, and what is damaged is named.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;

use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, Fields};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::conversation::rows::AllRows;
use crate::conversation::testing::{self, VOCABULARY_SIZE, read_all};

fn options() -> ReadOptions {
    ReadOptions {
        format: Format::Chat,
        max_length: 4096,
        minimum_supervised_tokens: 1,
        template_arguments: Map::new(),
        strict: false,
        cut_answers: false,
        vocabulary_size: VOCABULARY_SIZE,
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Texts of the columns that a row has; those that it lacks are null.
const COLUMNS: [&str; 9] =
    ["id", "prompt", "response", "question", "answer", "instruction", "input", "output", "tools"];

type Messages = Vec<(String, Option<String>)>;

/// A row of a table: its texts by column, and its messages.
#[derive(Debug, Clone)]
struct TableRow {
    texts: Vec<(&'static str, String)>,
    messages: Option<Messages>,
}

impl TableRow {
    fn text(&self, column: &str) -> Option<&str> {
        self.texts.iter().find(|(name, _)| *name == column).map(|(_, text)| text.as_str())
    }

    fn json(&self) -> Value {
        let mut row: Map<String, Value> =
            COLUMNS.iter().map(|column| ((*column).to_owned(), self.text(column).into())).collect();
        let message =
            |(role, content): &(String, Option<String>)| json!({"role": role, "content": content, "from": null});
        let messages = self.messages.as_ref().map(|messages| messages.iter().map(message).collect::<Vec<_>>());
        row.insert("messages".to_owned(), json!(messages));
        Value::Object(row)
    }
}

fn parquet(rows: &[TableRow]) -> Vec<u8> {
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    for column in COLUMNS {
        columns.push((column, Arc::new(rows.iter().map(|row| row.text(column)).collect::<StringArray>())));
    }
    let all: Vec<&(String, Option<String>)> = rows.iter().filter_map(|row| row.messages.as_ref()).flatten().collect();
    let fields =
        Fields::from(vec![Field::new("role", DataType::Utf8, true), Field::new("content", DataType::Utf8, true)]);
    let messages = StructArray::new(
        fields.clone(),
        vec![
            Arc::new(all.iter().map(|(role, _)| Some(role.as_str())).collect::<StringArray>()),
            Arc::new(all.iter().map(|(_, content)| content.as_deref()).collect::<StringArray>()),
        ],
        None,
    );
    let lengths = rows.iter().map(|row| row.messages.as_ref().map_or(0, Vec::len));
    let nulls: NullBuffer = rows.iter().map(|row| row.messages.is_some()).collect::<Vec<bool>>().into();
    let item = Arc::new(Field::new("item", DataType::Struct(fields), true));
    let list = ListArray::new(item, OffsetBuffer::from_lengths(lengths), Arc::new(messages), Some(nulls));
    columns.push(("messages", Arc::new(list)));
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
    let batch = batch.unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// The same rows in every container.
fn containers(rows: &[TableRow]) -> Vec<(String, Vec<u8>)> {
    let values: Vec<Value> = rows.iter().map(TableRow::json).collect();
    let lines = |end: &str| values.iter().map(|row| format!("{row}{end}")).collect::<String>().into_bytes();
    let array = |text: Result<String, serde_json::Error>| text.unwrap().into_bytes();
    let marked = [b"\xef\xbb\xbf".to_vec(), lines("\r\n\r\n")].concat();
    let marked_array =
        [b"\xef\xbb\xbf \r\n".to_vec(), array(serde_json::to_string(&values)), b"\n\n".to_vec()].concat();
    let plain = [
        ("jsonl", lines("\n")),
        ("mark, CRLF and blank lines", marked),
        ("array", array(serde_json::to_string(&values))),
        ("pretty array", array(serde_json::to_string_pretty(&values))),
        ("array with a mark", marked_array),
    ];
    let mut found = vec![("parquet".to_owned(), parquet(rows))];
    for (name, bytes) in plain {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        found.push((format!("{name}, gzip"), gzip(&bytes)));
        found.push((format!("{name}, two gzip members"), [gzip(first), gzip(second)].concat()));
        found.push((format!("{name}, two Zstandard frames"), [zstandard(first), zstandard(second)].concat()));
        found.push((name.to_owned(), bytes));
    }
    found
}

fn any_row() -> impl Strategy<Value = TableRow> {
    let text = || "(\\PC|[\"\\\\\\[\\]{},:\n\r\t]){0,10}";
    let answer = || "(\\PC|[\"\\\\\\[\\]{},:\n\t]){1,10}";
    let pair =
        (0..3_usize, text(), answer(), prop::option::of(text())).prop_map(|(form, question, answer, input)| {
            let [asked, answered] = [["prompt", "response"], ["question", "answer"], ["instruction", "output"]][form];
            let mut texts = vec![(asked, question), (answered, answer)];
            texts.extend(input.filter(|_| form == 2).map(|input| ("input", input)));
            TableRow { texts, messages: None }
        });
    let turns = prop::collection::vec((text(), prop::option::weighted(0.9, answer())), 1..3);
    let messages = turns.prop_map(|turns| {
        let messages = turns
            .into_iter()
            .flat_map(|(question, answer)| [("user".to_owned(), Some(question)), ("assistant".to_owned(), answer)]);
        let tools = json!([{"type": "function", "function": {"name": "f"}}]).to_string();
        TableRow { texts: vec![("tools", tools)], messages: Some(messages.collect()) }
    });
    prop_oneof![pair, messages]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn equal_rows_in_every_container_give_equal_samples(rows in prop::collection::vec(any_row(), 1..6)) {
        let mut rows = rows;
        for (index, row) in rows.iter_mut().enumerate() {
            row.texts.push(("id", format!("row {index}")));
        }
        let tokenizer = testing::tokenizer(Some("qwen2_5"));
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("data");
        let mut expected = None;
        for (name, bytes) in containers(&rows) {
            fs::write(&path, bytes).unwrap();
            let found = match read_all(std::slice::from_ref(&path), &tokenizer, &options()) {
                Ok((samples, report)) => (samples, report.malformed),
                Err(ConversationError::Empty { report, .. }) => (Vec::new(), report.malformed),
                Err(error) => return Err(TestCaseError::fail(format!("{name}: {error}"))),
            };
            let expected = expected.get_or_insert_with(|| found.clone());
            prop_assert_eq!(&found, expected, "{}", name);
        }
    }
}

fn read_bytes(name: &str, bytes: &[u8]) -> Result<(Vec<Sample>, ReadReport), String> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_all(&[path], &testing::tokenizer(Some("qwen2_5")), &options()).map_err(|error| error.to_string())
}

fn line(answer: &str) -> String {
    json!({"prompt": "q", "response": answer}).to_string()
}

#[test]
fn a_damaged_file_is_named_with_the_rows_before() {
    let (first, second) = (line("a"), line("b"));
    let array = format!("[\n{first},\n{second}\n]\n");
    let many: String = (0..5000).map(|number| line(&format!("{number} {}", number * 7919 % 4999)) + "\n").collect();
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 20].to_vec();
    let (gz, zst) = (gzip(many.as_bytes()), zstandard(many.as_bytes()));
    let mut flipped = gz.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    for (name, bytes, expected) in [
        (
            "cut.json",
            array.as_bytes()[..array.len() - 10].to_vec(),
            "after its first 1 rows: the JSON array is cut off at line 3",
        ),
        (
            "cut.json.gz",
            gzip(&array.as_bytes()[..array.len() - 2]),
            "after its first 1 rows: the JSON array is cut off at line 4",
        ),
        ("begun.json", b"[".to_vec(), "the JSON array is cut off at line 1, byte 1"),
        ("more.json", format!("{array} x").into_bytes(), "text follows the JSON array at line 5"),
        ("two.json", format!("{array}{array}").into_bytes(), "text follows the JSON array at line 5"),
        ("early.jsonl.gz", cut(gz.clone()), "the gzip data end early"),
        ("early.jsonl.zst", cut(zst), "the Zstandard data end early"),
        ("flipped.jsonl.gz", flipped, "damaged gzip data"),
        ("header.gz", gz[..5].to_vec(), "the gzip data end early"),
        ("twice.jsonl.gz", gzip(&gz), "compressed twice"),
        (
            "rows.parquet.gz",
            gzip(&parquet(&[TableRow { texts: Vec::new(), messages: None }])),
            "a Parquet file inside gzip",
        ),
        ("object.json", format!("{{\n{}", &first[1..]).into_bytes(), "a JSON object over several lines"),
    ] {
        let message = read_bytes(name, &bytes).unwrap_err();
        assert!(message.contains(name) && message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn elements_of_an_array_that_cannot_be_used_are_left_out_by_line() {
    let mut bytes = format!("[\n  {},\n  3, {{\"a\" 1}},\n\n  \"", line("a")).into_bytes();
    let offset = bytes.len();
    bytes.extend(b"\xff\", ,");
    bytes.extend(format!("\n{{}}, {},\n]", line("],[ \\\" }")).into_bytes());
    let (samples, report) = read_bytes("rows.json", &bytes).unwrap();
    assert_eq!((samples.len(), report.read, report.malformed), (2, 7, 5));
    assert_eq!(samples[0].id, "rows.json, row 1 (line 2)");
    let printed = report.to_string();
    for expected in [
        "rows.json, row 2 (line 3): should be a JSON object, found a number",
        "rows.json, row 3 (line 3): not valid JSON: expected `:`",
        &format!("rows.json, row 4 (line 5): not UTF-8: byte {offset} of the text"),
        "rows.json, row 5 (line 5): not valid JSON",
        "rows.json, row 6 (line 6): should have `conversations`",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
}

#[test]
fn text_that_decompresses_out_of_proportion_is_refused() {
    let row = line(&"a".repeat(1 << 20)) + "\n";
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("bomb.jsonl.zst");
    let mut encoder = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
    (0..300).for_each(|_| encoder.write_all(row.as_bytes()).unwrap());
    encoder.finish().unwrap();
    let rows = AllRows::of(std::slice::from_ref(&path)).map(|row| row.map(drop));
    let outcomes: Vec<_> = rows.take(400).collect();
    let message = outcomes.last().unwrap().as_ref().unwrap_err().to_string();
    assert!((250..=256).contains(&(outcomes.len() - 1)), "{}", outcomes.len());
    assert!(message.contains("bomb.jsonl.zst after its first") && message.contains("100 times as many"), "{message}");

    let long = format!("[{}, {}]", line("a"), line(&"b".repeat(16 << 20)));
    let message = read_bytes("long.json.gz", &gzip(long.as_bytes())).unwrap_err();
    assert!(message.contains("row 2 (line 1) has more than 16777216 bytes"), "{message}");
}

#[test]
fn rows_as_people_have_them_are_read() {
    let asked = json!({"role": "user", "content": "Add 100 and 200."});
    let answered = json!({"role": "assistant", "content": "Line up the digits. Answer: 300"});
    let with_nulls = |message: &Value| {
        let mut message = message.clone();
        (message["from"], message["value"]) = (Value::Null, Value::Null);
        message
    };
    let text = |message: &Value| message["content"].clone();
    let rows = [
        json!({"conversations": null, "messages": [asked, answered]}),
        json!({"messages": [with_nulls(&asked), with_nulls(&answered)]}),
        json!({"messages": null, "prompt": text(&asked), "response": text(&answered)}),
        json!({"prompt": null, "response": null, "question": text(&asked), "answer": text(&answered)}),
        json!({"conversations": [], "messages": [asked, answered]}),
    ];
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let (samples, report) = read_bytes("rows.jsonl", lines.as_bytes()).unwrap();
    assert_eq!((samples.len(), report.malformed), (5, 0));
    assert!(samples.iter().all(|sample| sample.token_ids == samples[0].token_ids));

    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let array = json!([
        {"id": 1, "conversations": [turn("human", "Add 100 and 200."), turn("gpt", "Answer: 300")]},
        {"id": 2, "conversations": [turn("human", "Add."), turn("gpt", ""), turn("human", "Please."), turn("gpt", "300")]},
    ]);
    let (samples, report) =
        read_bytes("sharegpt.json", serde_json::to_string_pretty(&array).unwrap().as_bytes()).unwrap();
    assert_eq!((samples.len(), report.malformed), (2, 0));
}

/// A template that refuses conversations without tools sees those of each row, and the call of a row with null content.
#[test]
fn tools_reach_the_template() {
    let template = "{% if not tools %}{{ raise_exception('no tools reached the template') }}{% endif %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}\
        <call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let tokenizer = testing::tokenizer_with(Some(template));
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]);
    let row = |content: Value, arguments: Value, tools: Value| {
        let call = json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}});
        json!({"messages": [
            {"role": "user", "content": "How is the weather in Ulm?"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "{\"sky\": \"clear\"}"},
            {"role": "assistant", "content": "The sky over Ulm is clear."},
        ], "tools": tools})
    };
    let (text, object) = (json!("{\"town\": \"Ulm\"}"), json!({"town": "Ulm"}));
    let rows = [
        row(Value::Null, text.clone(), tools.clone()),
        row(json!(""), object, tools.clone()),
        row(json!(""), text.clone(), json!(tools.to_string())),
        row(json!(""), text, json!([])),
    ];
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("rows.jsonl");
    fs::write(&path, lines).unwrap();
    let (samples, report) = read_all(&[path], &tokenizer, &options()).unwrap();
    assert_eq!((samples.len(), report.malformed), (3, 1));
    assert!(report.to_string().contains("line 4: ") && report.to_string().contains("no tools reached"), "{report}");
    for sample in &samples {
        assert_eq!(sample.token_ids, samples[0].token_ids);
        assert_eq!(sample.loss_mask, samples[0].loss_mask);
    }
    let supervised: Vec<u32> = samples[0]
        .token_ids
        .iter()
        .zip(&samples[0].loss_mask)
        .filter(|(_, mask)| **mask)
        .map(|(id, _)| *id)
        .collect();
    let supervised = tokenizer.decode(&supervised, false).unwrap();
    assert!(supervised.contains("<call>weather") && !supervised.contains("\"sky\""), "{supervised}");
}
