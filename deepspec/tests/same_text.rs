//! A seed means one text: `generate`, `chat`, `serve`, `bench` and `evaluate --sampling coupled` say the same, with a draft and
//! without, and usage counts its rounds as evaluation does.

#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::DraftShape;
use serde_json::{Value, json};

use common::drafts::{TARGET, save, shape};
use common::{deepspec, workspace};

const PROMPT: &str = "Tell me about the rain.";
const SEED: &str = "11";
const TOKENS: &str = "40";
const BLOCK: usize = 4;

/// The other binary, which `cargo test --workspace` builds beside this crate's.
fn dspark(verb: &str, draft: Option<&Path>) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_deepspec")).with_file_name("dspark");
    assert!(binary.is_file(), "{} is missing: run `cargo test --workspace`", binary.display());
    let mut command = Command::new(binary);
    command.current_dir(workspace()).env_remove("DSPARK_API_KEY").args([verb, "--target", TARGET]);
    if let Some(draft) = draft {
        command.arg("--draft").arg(draft);
    }
    command
}

/// What a program says on standard output, given a text on standard input.
fn said(command: &mut Command, input: &str) -> String {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// How much of a block the engine's verbs verify: all of it.
fn mode(draft: Option<&Path>) -> String {
    draft.map_or_else(|| "off".to_owned(), |_| format!("fixed:{BLOCK}"))
}

fn sampled<'a>(command: &'a mut Command, temperature: &str) -> &'a mut Command {
    command.args(["--temperature", temperature, "--seed", SEED, "--max-new-tokens", TOKENS])
}

fn generated(draft: Option<&Path>, temperature: &str) -> Value {
    let mut command = dspark("generate", draft);
    serde_json::from_str(&said(sampled(&mut command, temperature).args(["--json", "--prompt", PROMPT]), "")).unwrap()
}

fn chatted(draft: Option<&Path>, temperature: &str) -> String {
    let mut command = dspark("chat", draft);
    said(sampled(&mut command, temperature).args(["--mode", &mode(draft)]), &format!("{PROMPT}\n"))
}

fn benched(draft: Option<&Path>, temperature: &str, folder: &Path) -> Vec<String> {
    let (prompts, answers) = (folder.join("prompts.jsonl"), folder.join("answers.jsonl"));
    fs::write(&prompts, format!("{}\n", json!({"prompt": PROMPT}))).unwrap();
    let mut command = dspark("bench", draft);
    command.arg("--prompts").arg(&prompts).arg("--answers").arg(&answers);
    command.args(["--modes", &mode(draft), "--concurrency", "3", "--repeats", "1", "--requests", "1"]);
    said(sampled(&mut command, temperature), "");
    lines(&answers)
}

/// The texts of a file of answers.
fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().trim().to_owned();
    text.lines().map(line).collect()
}

/// The reply of a server to one chat request.
fn served(draft: Option<&Path>, temperature: &str) -> Value {
    let mut command = dspark("serve", draft);
    command.args(["--port", "0", "--served-model-name", "tiny", "--mode", &mode(draft)]);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.trim().strip_prefix("serving tiny on http://").and_then(|url| url.strip_suffix("/v1")).unwrap();
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": PROMPT}],
        "temperature": temperature.parse::<f64>().unwrap(), "seed": SEED.parse::<u64>().unwrap(),
        "max_tokens": TOKENS.parse::<u64>().unwrap(),
    })
    .to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let length = body.len();
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {length}\r\n\r\n{body}").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

/// The text and the accepted length of an evaluation.
fn evaluated(draft: &Path, temperature: &str, sampling: &str, folder: &Path) -> (String, f64) {
    let [task, answers, report] = ["task.jsonl", "evaluated.jsonl", "report.json"].map(|name| folder.join(name));
    fs::write(&task, format!("{}\n", json!({"turns": [PROMPT]}))).unwrap();
    let paths = [draft, &task, &answers, &report].map(|path: &Path| path.to_str().unwrap());
    let output = deepspec(&[
        "evaluate",
        "--target",
        TARGET,
        "--draft",
        paths[0],
        "--task",
        paths[1],
        "--answers",
        paths[2],
        "--json",
        paths[3],
        "--no-plain",
        "--sampling",
        sampling,
        "--temperature",
        temperature,
        "--seed",
        SEED,
        "--max-new-tokens",
        TOKENS,
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!((&report["sampling"], &report["draft_heads"]), (&json!(sampling), &json!("int8")));
    (lines(&answers).remove(0), report["tasks"][0]["accepted_length"].as_f64().unwrap())
}

fn draft(folder: &Path) -> PathBuf {
    save(&folder.join("draft"), &DraftShape { block_size: BLOCK, ..shape() }, WeightDtype::F32, false)
}

#[test]
fn a_seed_says_one_text_whichever_command_serves_it() {
    let root = tempfile::tempdir().unwrap();
    let draft = draft(root.path());
    for temperature in ["0", "1"] {
        let alone = generated(None, temperature);
        let text = alone["text"].as_str().unwrap().trim().to_owned();
        assert!(text.len() > 20, "{text:?}");
        for draft in [None, Some(&*draft)] {
            let with = if draft.is_some() { "with the draft" } else { "alone" };
            let own = generated(draft, temperature);
            assert_eq!(own["ids"], alone["ids"], "generate {with}, temperature {temperature}");
            assert_eq!(chatted(draft, temperature), text, "chat {with}, temperature {temperature}");
            let benched = benched(draft, temperature, root.path());
            assert_eq!(benched, vec![text.clone(); 3], "bench {with}, temperature {temperature}");
            let reply = served(draft, temperature);
            let content = reply["choices"][0]["message"]["content"].as_str().unwrap().trim();
            assert_eq!(content, text, "serve {with}, temperature {temperature}");
            let details = &reply["usage"]["completion_tokens_details"];
            let Some(draft) = draft else {
                assert_eq!(details["draft_rounds"], 0);
                continue;
            };
            let (evaluated_text, tau) = evaluated(draft, temperature, "coupled", root.path());
            assert_eq!(evaluated_text, text, "evaluate, temperature {temperature}");
            // One definition of accepted length: what rounds committed, per round.
            let (tokens, rounds) = (reply["usage"]["completion_tokens"].as_f64(), details["draft_rounds"].as_f64());
            let per_round = (tokens.unwrap() - 1.0) / rounds.unwrap();
            for (name, length) in [
                ("usage", details["accepted_length"].as_f64()),
                ("evaluate", Some(tau)),
                ("generate", own["accepted_length"].as_f64()),
            ] {
                assert_eq!(length, Some(per_round), "{name}, temperature {temperature}");
            }
            // Rejection sampling draws otherwise: were it used anywhere above, its text would not be this one.
            let (rejection, _) = evaluated(draft, temperature, "rejection", root.path());
            assert_eq!(rejection == text, temperature == "0", "{rejection:?}");
        }
    }
}
