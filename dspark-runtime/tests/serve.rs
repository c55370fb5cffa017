//! `dspark serve` and `dspark chat` as programs, with the small target of this repository.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target")
}

fn dspark(verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dspark"));
    command.arg(verb).arg("--target").arg(target()).env_remove("DSPARK_API_KEY");
    command
}

/// A server that is killed when a test fails.
struct Serving {
    process: Child,
    /// `http://127.0.0.1:PORT/v1`
    url: String,
}

impl Serving {
    fn start() -> Self {
        let mut command = dspark("serve");
        command.args(["--port", "0", "--served-model-name", "tiny"]).env("DSPARK_API_KEY", "secret");
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("serving tiny on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { process, url }
    }

    fn get(&self, path: &str) -> String {
        let address = self.url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "host: x\r\nconnection: close\r\nauthorization: Bearer secret\r\n";
        write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    /// Tells it to stop; it has nothing left to do.
    fn stop(mut self) {
        let process = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn it_serves_until_it_is_told_to_stop() {
    let server = Serving::start();
    assert!(server.get("/health").starts_with("HTTP/1.1 200"));
    assert!(server.get("/v1/models").contains("\"id\":\"tiny\""));
    assert!(server.get("/metrics").contains("dspark_requests_running 0"));
    server.stop();
}

#[test]
fn the_official_client_works_unchanged() {
    let Some(python) = std::env::var_os("DSPARK_TEST_PYTHON") else {
        println!("skipped: DSPARK_TEST_PYTHON does not name a Python with the package `openai`");
        return;
    };
    let server = Serving::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let settings = ["--url", &server.url, "--key", "secret", "--model", "tiny"];
    assert!(Command::new(python).arg(script).args(settings).status().unwrap().success());
    server.stop();
}

fn chat(lines: &str) -> Output {
    let mut command = dspark("chat");
    command.args(["--max-new-tokens", "24", "--show-rejected"]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    process.wait_with_output().unwrap()
}

#[test]
fn a_chat_without_a_terminal_is_plain_text() {
    let once = chat("What is 2 + 3?\n");
    assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stderr));
    let answer = String::from_utf8(once.stdout).unwrap();
    assert!(answer.trim().len() > 1 && !answer.contains('\x1b'), "{answer:?}");
    let beside = String::from_utf8(once.stderr).unwrap();
    assert!(beside.contains("--show-rejected needs a terminal") && beside.contains("tokens/s"), "{beside}");
    assert_eq!(String::from_utf8(chat("\u{feff}What is 2 + 3?\r\n").stdout).unwrap(), answer);
    // A conversation that was reset begins again; one that was not goes on.
    let again = chat("What is 2 + 3?\n/reset\nWhat is 2 + 3?\n/quit\nnever asked\n");
    assert_eq!(String::from_utf8(again.stdout).unwrap(), answer.repeat(2));
    let unknown = chat("/what\n");
    assert!(unknown.stdout.is_empty());
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("unknown command /what"));
}
