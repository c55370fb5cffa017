//! `deepspec regenerate`: every prompt has its answer exactly once, whoever answers and whatever fails.

#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dspark_runtime::checkpoint::WeightDtype;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use common::drafts::{TARGET, save, shape};
use common::{exits_with, refused, workspace};

const KILLS: usize = 10;

fn command(prompts: &Path, out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepspec"));
    command.current_dir(workspace()).env("RAYON_NUM_THREADS", "2").env_remove("DSPARK_API_KEY");
    command.args(["regenerate", "--prompts"]).arg(prompts).arg("--out").arg(out).args(arguments);
    command
}

fn regenerate(prompts: &Path, out: &Path, arguments: &[&str]) -> Output {
    command(prompts, out, arguments).output().unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The first rows of a task of the quickstart, without ids.
fn prompts(folder: &Path, count: usize) -> PathBuf {
    let rows = fs::read_to_string(workspace().join("datasets/quickstart/chat.evaluate.jsonl")).unwrap();
    let path = folder.join("prompts.jsonl");
    fs::write(&path, rows.lines().take(count).map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    path
}

/// Prompts with the ids 0, 1, ...
fn numbered(folder: &Path, count: usize) -> PathBuf {
    let path = folder.join("numbered.jsonl");
    let row = |id| format!("{}\n", json!({"id": id, "prompt": format!("question {id}")}));
    fs::write(&path, (0..count).map(row).collect::<String>()).unwrap();
    path
}

/// Answers by id and sample. An answer that is there twice fails the test.
#[track_caller]
fn answers(out: &Path) -> BTreeMap<(String, u64), Value> {
    let mut answers = BTreeMap::new();
    for line in fs::read_to_string(out).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let key = (row["id"].as_str().unwrap().to_owned(), row["sample"].as_u64().unwrap_or(0));
        assert!(answers.insert(key.clone(), row).is_none(), "{key:?} is there twice");
    }
    answers
}

#[test]
fn the_engines_answers_depend_neither_on_concurrency_nor_on_a_draft() {
    let root = tempfile::tempdir().unwrap();
    let prompts = prompts(root.path(), 6);
    let draft = save(&root.path().join("draft"), &shape(), WeightDtype::F32, false);
    let draft = draft.display().to_string();
    let common = ["--target", TARGET, "--max-tokens", "12", "--samples", "2", "--temperature", "0.9", "--seed", "3"];
    let run = |name: &str, more: &[&str]| {
        let out = root.path().join(name);
        let table = succeeds(&regenerate(&prompts, &out, &[&common, more].concat()));
        assert!(table.contains("answered    12 now, 0 before"), "{table}");
        answers(&out)
    };
    let one = run("one.jsonl", &["--concurrency", "1"]);
    assert_eq!(one.len(), 12);
    assert_eq!(one, run("many.jsonl", &["--concurrency", "8"]));
    assert_eq!(one, run("draft.jsonl", &["--draft", &draft, "--mode", "fixed:4"]));
    for row in one.values() {
        let messages = row["messages"].as_array().unwrap();
        assert_eq!(messages.last().unwrap()["role"], "assistant", "{row}");
        assert!(["stop", "length"].contains(&row["finish_reason"].as_str().unwrap()), "{row}");
    }
}

#[test]
fn a_server_of_the_target_gives_the_engines_answers() {
    let root = tempfile::tempdir().unwrap();
    let prompts = prompts(root.path(), 4);
    let settings = ["--max-tokens", "12", "--temperature", "0.9", "--top-p", "0.95"];
    let own = root.path().join("own.jsonl");
    succeeds(&regenerate(&prompts, &own, &[&["--target", TARGET], &settings[..]].concat()));

    let binary = Path::new(env!("CARGO_BIN_EXE_deepspec")).with_file_name("dspark");
    assert!(binary.is_file(), "{} is missing: run `cargo test --workspace`", binary.display());
    let mut server = Command::new(binary);
    server.current_dir(workspace()).env_remove("DSPARK_API_KEY");
    server.args(["serve", "--target", TARGET, "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = server.spawn().unwrap();
    let line = BufReader::new(server.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let url = line.rsplit(' ').next().unwrap().to_owned();
    let served = root.path().join("served.jsonl");
    let asked = [&["--endpoint", &url, "--model", "quickstart-target"], &settings[..]].concat();
    let output = regenerate(&prompts, &served, &asked);
    server.kill().unwrap();
    server.wait().unwrap();
    succeeds(&output);
    assert_eq!(answers(&own), answers(&served));
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_every_answer_once() {
    let root = tempfile::tempdir().unwrap();
    let prompts = prompts(root.path(), 20);
    let settings = ["--target", TARGET, "--max-tokens", "40", "--concurrency", "2", "--samples", "3"];
    let whole = root.path().join("whole.jsonl");
    succeeds(&regenerate(&prompts, &whole, &settings));
    let whole = answers(&whole);

    let mut dice = ChaCha8Rng::seed_from_u64(22);
    let (mut kills, mut in_the_middle, mut round) = (0, 0, 0);
    // On a slow machine nothing is written in the first patience: it grows until a kill came in the middle.
    while kills < KILLS || in_the_middle == 0 {
        let out = root.path().join(format!("killed{round}.jsonl"));
        let patience = Duration::from_millis(dice.random_range(10..200 + 100 * kills as u64));
        let mut child =
            command(&prompts, &out, &settings).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if ends_within(&mut child, patience) {
            // Finished before it was killed: the next kills are those of a new run.
            assert_eq!(answers(&out), whole);
            round += 1;
            continue;
        }
        kills += 1;
        let written = fs::read_to_string(&out).map_or(0, |text| text.lines().count());
        in_the_middle += usize::from((1..whole.len()).contains(&written));
    }
    let out = root.path().join(format!("killed{round}.jsonl"));
    succeeds(&regenerate(&prompts, &out, &settings));
    assert_eq!(answers(&out), whole);
}

/// Waits for the end, or kills the process after a while.
fn ends_within(child: &mut Child, patience: Duration) -> bool {
    let mut errors = child.stderr.take().unwrap();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        let _ = ended.send(text);
    });
    match end.recv_timeout(patience) {
        Ok(text) => {
            assert!(child.wait().unwrap().success(), "{text}");
            true
        }
        Err(_) => {
            child.kill().unwrap();
            child.wait().unwrap();
            false
        }
    }
}

#[test]
fn an_interrupted_run_keeps_its_answers_and_says_how_to_continue() {
    let root = tempfile::tempdir().unwrap();
    let prompts = numbered(root.path(), 400);
    let out = root.path().join("out.jsonl");
    let settings = ["--target", TARGET, "--max-tokens", "200", "--concurrency", "2"];
    let mut child = command(&prompts, &out, &settings).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(errors.any(|line| line.unwrap().starts_with("regenerate 1/400 ")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let last = errors.last().unwrap().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{last}");
    let written = answers(&out).len();
    assert!((1..400).contains(&written));
    assert!(last.contains(&format!("interrupted by SIGINT: {written} answers are in")), "{last}");
}

/// What a server does with its n-th request, counted from 0.
type Behaviour = fn(usize, &mut TcpStream, &Value);

/// Starts a server. Returns its address and the number of requests that reached it.
fn server(behaviour: Behaviour) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, counted) = (stream.unwrap(), Arc::clone(&counted));
            thread::spawn(move || {
                let Some(body) = request(&mut stream) else { return };
                behaviour(counted.fetch_add(1, Ordering::Relaxed), &mut stream, &body);
            });
        }
    });
    (url, requests)
}

/// Reads a request's body.
fn request(stream: &mut TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn reply(body: &Value) -> Value {
    let asked = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    json!({
        "model": body["model"],
        "choices": [{"message": {"role": "assistant", "content": format!("answer to {asked}")}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    })
}

fn good(_: usize, stream: &mut TcpStream, body: &Value) {
    send(stream, "200 OK", "", &reply(body).to_string());
}

/// Never replies.
fn silent(_: usize, stream: &mut TcpStream, _: &Value) {
    let _ = stream.read(&mut [0]);
}

fn busy_once(index: usize, stream: &mut TcpStream, body: &Value) {
    match index {
        0 => send(stream, "429 Too Many Requests", "Retry-After: 1\r\n", "{}"),
        1 => send(stream, "429 Too Many Requests", "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "{}"),
        _ => good(index, stream, body),
    }
}

fn failing_twice(index: usize, stream: &mut TcpStream, body: &Value) {
    match index {
        0 | 1 => send(stream, "500 Internal Server Error", "", r#"{"error": {"message": "out of memory"}}"#),
        _ => good(index, stream, body),
    }
}

fn garbage(index: usize, stream: &mut TcpStream, body: &Value) {
    match index % 3 {
        0 => send(stream, "200 OK", "", "<html>not this</html>"),
        1 => drop(stream.write_all(b"\x00\x01garbage\r\n\r\n")),
        _ => good(index, stream, body),
    }
}

/// Ends in the middle of a reply, with the length of the whole and without any.
fn half(index: usize, stream: &mut TcpStream, body: &Value) {
    let text = reply(body).to_string();
    let part = &text[..text.len() / 2];
    let _ = match index % 3 {
        0 => stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{part}", text.len()).as_bytes()),
        1 => stream.write_all(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{part}").as_bytes()),
        _ => return good(index, stream, body),
    };
}

fn another_model(_: usize, stream: &mut TcpStream, body: &Value) {
    let mut reply = reply(body);
    reply["model"] = json!("someone else");
    send(stream, "200 OK", "", &reply.to_string());
}

/// An address where nobody listens.
fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

const PATIENCE: [&str; 6] = ["--back-off", "0.01", "--timeout", "0.5", "--give-up-after", "60"];

#[test]
fn whatever_servers_do_every_row_is_answered_once() {
    let root = tempfile::tempdir().unwrap();
    let prompts = numbered(root.path(), 60);
    let servers = [good, silent, busy_once, failing_twice, garbage, half, another_model].map(server);
    let dead = dead();
    let mut arguments = vec!["--model", "m", "--concurrency", "2", "--retries", "50", "--endpoint", &dead];
    arguments.extend(servers.iter().map(|(url, _)| url.as_str()));
    arguments.extend(PATIENCE);
    let out = root.path().join("out.jsonl");
    let output = regenerate(&prompts, &out, &arguments);
    succeeds(&output);
    let answers = answers(&out);
    assert_eq!(answers.len(), 60);
    for ((id, _), row) in &answers {
        assert_eq!(row["messages"][1]["content"], format!("answer to question {id}"));
    }
    for (url, requests) in &servers {
        assert!(requests.load(Ordering::Relaxed) > 0, "{url} was not asked");
    }
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains(": set aside, tried again in 1.0 s: HTTP 429 Too Many Requests"), "{notes}");
}

#[test]
fn a_row_that_servers_refuse_is_listed_and_the_others_are_answered() {
    fn refuses(index: usize, stream: &mut TcpStream, body: &Value) {
        match body["messages"][0]["content"].as_str() {
            Some("question 3") => send(stream, "400 Bad Request", "", r#"{"error": {"message": "prompt too long"}}"#),
            _ => good(index, stream, body),
        }
    }
    let root = tempfile::tempdir().unwrap();
    let prompts = numbered(root.path(), 8);
    let out = root.path().join("out.jsonl");
    let (url, requests) = server(refuses);
    let arguments = [&["--endpoint", &url, "--model", "m"], &PATIENCE[..]].concat();
    exits_with(&regenerate(&prompts, &out, &arguments), 1, &["1 rows have no answer", "out.jsonl.failed.jsonl"]);
    assert_eq!((answers(&out).len(), requests.load(Ordering::Relaxed)), (7, 8));
    let failed: Value =
        serde_json::from_str(&fs::read_to_string(root.path().join("out.jsonl.failed.jsonl")).unwrap()).unwrap();
    assert_eq!((&failed["id"], &failed["line"]), (&json!("3"), &json!(4)));
    assert!(failed["reason"].as_str().unwrap().contains("400 Bad Request: prompt too long"), "{failed}");
    // Another server of the model takes over, and the row is tried again.
    let (url, requests) = server(good);
    let arguments = [&["--endpoint", &url, "--model", "m"], &PATIENCE[..]].concat();
    succeeds(&regenerate(&prompts, &out, &arguments));
    assert_eq!((answers(&out).len(), requests.load(Ordering::Relaxed)), (8, 1));
    assert!(!root.path().join("out.jsonl.failed.jsonl").exists());
}

#[test]
fn when_no_server_answers_the_run_ends_and_names_the_causes() {
    let root = tempfile::tempdir().unwrap();
    let prompts = numbered(root.path(), 3);
    let out = root.path().join("out.jsonl");
    let (dead, (other, _)) = (dead(), server(another_model));
    let arguments = ["--endpoint", &dead, &other, "--model", "m", "--back-off", "0.01", "--give-up-after", "0.3"];
    let output = regenerate(&prompts, &out, &arguments);
    let words =
        ["no endpoint has answered for", &dead, "refused", "\"someone else\", not \"m\"", "Repeat the command"];
    exits_with(&output, 1, &words);
    // The name does not matter where the user says so.
    succeeds(&regenerate(&prompts, &out, &[&arguments[..], &["--any-model"]].concat()));
    assert_eq!(answers(&out).len(), 3);
}

#[test]
fn other_settings_and_wrong_arguments_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let prompts = numbered(root.path(), 2);
    let out = root.path().join("out.jsonl");
    let (url, _) = server(good);
    let endpoint = ["--endpoint", &url, "--model", "m"];
    let with = |more: &[&str]| regenerate(&prompts, &out, &[&endpoint, more].concat());
    succeeds(&with(&["--temperature", "0.5"]));
    refused(&with(&["--temperature", "0.6"]), &["out.jsonl.settings.json", "temperature = 0.5, but now it is 0.6"]);
    refused(&with(&["--temperature", "0.5", "--max-tokens", "9"]), &["max_tokens = 2048, but now it is 9"]);
    refused(&with(&["--target", TARGET]), &["--target", "cannot be used with"]);
    refused(&with(&["--top-p", "2"]), &["top_p: expected"]);
    refused(&regenerate(&prompts, &out, &["--endpoint", &url]), &["--model NAME"]);
    if !cfg!(feature = "https") {
        refused(&regenerate(&prompts, &out, &["--endpoint", "https://a/v1", "--model", "m"]), &["--features https"]);
    }
    refused(&regenerate(&prompts, &out, &[]), &["--target"]);
    refused(&regenerate(&prompts, &out, &["--target", TARGET, "--model", "m"]), &["--model", "cannot be used with"]);
    let greedy = ["--target", TARGET, "--samples", "2", "--temperature", "0"];
    refused(&regenerate(&prompts, &out, &greedy), &["--samples 2", "temperature 0"]);
    refused(
        &regenerate(&prompts, &prompts, &["--target", TARGET]),
        &["--out", "would overwrite the input of --prompts"],
    );
    assert_eq!(answers(&out).len(), 2);
}
