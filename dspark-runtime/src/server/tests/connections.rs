//! Over real sockets: clients that say nothing, go away, or are there when the server stops.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{CHAT, ServerConfig, config, conversation, limits, player, tokenizer};
use crate::engine::testing::{ScriptedEngine, Taken, scripted};
use crate::engine::{Delta, Event, Failure, FinishReason, Finished, TokenOutput, Usage};
use crate::server::{Server, ServerError};

/// A server on a free port of this machine.
pub(super) struct Running {
    pub address: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub task: JoinHandle<Result<(), ServerError>>,
}

pub(super) async fn start(config: ServerConfig) -> (Running, ScriptedEngine) {
    let (engine, script) = scripted(limits());
    let server = Server::bind("127.0.0.1:0", engine, tokenizer(), config).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let address = server.address().unwrap();
    let task = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    (Running { address, stop, task }, script)
}

impl Running {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request for a chat answer and leaves the connection open.
    pub async fn ask(&self, further: serde_json::Value) -> TcpStream {
        let body = conversation(further).to_string();
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        let stream = self.connect().await;
        write_all(&stream, format!("{head}{body}").as_bytes()).await;
        stream
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// Writes as much as is taken: a connection that the server has closed takes nothing.
/// Writes all bytes, or as many as the server takes; returns the number of bytes that it did not take.
pub(super) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> usize {
    while !bytes.is_empty() {
        stream.writable().await.unwrap();
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    bytes.len()
}

/// Reads until the text has come, or to the end.
pub(super) async fn read_until(stream: &TcpStream, text: &str) -> String {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        stream.readable().await.unwrap();
        let count = match stream.try_read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => 0,
        };
        read.extend_from_slice(&buffer[..count]);
        let so_far = String::from_utf8_lossy(&read).into_owned();
        if count == 0 || so_far.contains(text) {
            return so_far;
        }
    }
}

pub(super) async fn take(script: ScriptedEngine) -> (Taken, ScriptedEngine) {
    tokio::task::spawn_blocking(move || (script.take().unwrap(), script)).await.unwrap()
}

pub(super) fn delta(text: &str) -> Event {
    let tokens = vec![TokenOutput { id: 5, drafted: false, logprobs: None }];
    Event::Delta(Delta { text: text.to_owned(), tokens, ..Delta::default() })
}

pub(super) fn finished() -> Event {
    let (time_to_first_token, time) = (Duration::ZERO, Duration::ZERO);
    Event::Finished(Finished { reason: FinishReason::Stop, usage: Usage::default(), time_to_first_token, time })
}

#[tokio::test]
async fn five_hundred_silent_connections_do_not_keep_out_a_client() {
    // Silent ones find a place, or more come than there are places.
    for (silent_connections, max_connections) in [(200, 300), (500, 64)] {
        let (server, script) = start(ServerConfig { max_connections, ..config() }).await;
        player::play(script);
        let mut silent = Vec::new();
        for number in 0..silent_connections {
            let stream = server.connect().await;
            if number % 2 == 1 {
                // Some of them begin to say something.
                write_all(&stream, b"POST /v1/chat/comp").await;
            }
            silent.push(stream);
        }
        let stream = server.ask(json!({"max_tokens": 3})).await;
        let reply = read_until(&stream, "total_tokens").await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        if silent_connections > max_connections {
            // The first to come was the first to go.
            assert_eq!(read_until(&silent[0], "never").await, "");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn silent_connections_are_closed_after_a_while() {
    let (server, _script) = start(ServerConfig { idle_timeout: Duration::from_millis(100), ..config() }).await;
    let silent = server.connect().await;
    let slow = server.connect().await;
    write_all(&slow, b"GET /health HT").await;
    let answered = server.connect().await;
    write_all(&answered, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(read_until(&answered, "ok").await.contains("200"));
    for stream in [&silent, &slow, &answered] {
        assert_eq!(read_until(stream, "never").await, "");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    for stream in [false, true] {
        let (server, script) = start(config()).await;
        let client = server.ask(json!({"stream": stream, "n": 2})).await;
        let (first, script) = take(script).await;
        let (second, _script) = take(script).await;
        if stream {
            first.send(delta("well"));
            assert!(read_until(&client, "well").await.contains("well"));
        }
        drop(client);
        // Neither has to send anything for the server to notice.
        first.cancelled().await;
        second.cancelled().await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted() {
    for stream in [false, true] {
        let (server, script) = start(config()).await;
        let client = server.ask(json!({"stream": stream})).await;
        let (taken, _script) = take(script).await;
        if stream {
            taken.send(delta("well"));
            read_until(&client, "well").await;
        }
        drop(client);
        taken.cancelled().await;
        let other = server.connect().await;
        write_all(&other, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let page = read_until(&other, "never").await;
        assert!(page.contains("path=\"/v1/chat/completions\",outcome=\"cancelled\"} 1"), "{page}");
    }
}

#[tokio::test]
async fn what_is_not_http_harms_nobody() {
    let (server, script) = start(config()).await;
    player::play(script);
    let mut dice = ChaCha8Rng::seed_from_u64(500);
    for number in 0..500 {
        let mut bytes = vec![0; dice.random_range(1..2000)];
        dice.fill_bytes(&mut bytes);
        if number % 2 == 1 {
            // A head that is in order up to somewhere.
            let head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\n";
            let right = dice.random_range(0..head.len());
            bytes.splice(0..0, head[..right].iter().copied());
        }
        write_all(&server.connect().await, &bytes).await;
    }
    let stream = server.ask(json!({"max_tokens": 3})).await;
    let reply = read_until(&stream, "total_tokens").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    server.stop().await;
}

#[tokio::test]
async fn stopping_finishes_what_was_begun_and_refuses_the_rest() {
    let (server, script) = start(config()).await;
    let idle = server.connect().await;
    let begun = server.ask(json!({"stream": true})).await;
    let (taken, script) = take(script).await;
    taken.send(delta("well"));
    read_until(&begun, "well").await;
    server.stop.send(()).unwrap();
    // The engine is told, and until the answer is complete new requests are refused in words.
    let script = tokio::task::spawn_blocking(move || {
        assert!(script.take().is_none());
        script
    });
    let _script = script.await.unwrap();
    let late = TcpStream::connect(server.address).await.unwrap();
    let body = conversation(json!({})).to_string();
    let request = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    write_all(&late, request.as_bytes()).await;
    let refusal = read_until(&late, "shutting_down").await;
    assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
    write_all(&late, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(read_until(&late, "shutting down").await.starts_with("HTTP/1.1 503"));
    taken.send(delta(" then"));
    taken.send(finished());
    let rest = read_until(&begun, "never").await;
    assert!(rest.contains(" then") && rest.contains("[DONE]"), "{rest}");
    server.task.await.unwrap().unwrap();
    assert_eq!(read_until(&idle, "never").await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn what_is_not_finished_in_time_fails_cleanly() {
    let (server, script) = start(config()).await;
    let whole = server.ask(json!({})).await;
    let (first, script) = take(script).await;
    let streamed = server.ask(json!({"stream": true})).await;
    let (second, script) = take(script).await;
    second.send(delta("well"));
    read_until(&streamed, "well").await;
    server.stop.send(()).unwrap();
    tokio::task::spawn_blocking(move || assert!(script.take().is_none())).await.unwrap();
    for taken in [first, second] {
        taken.send(Event::Failed(Failure::ShutDown));
    }
    let refusal = read_until(&whole, "never").await;
    assert!(refusal.starts_with("HTTP/1.1 503") && refusal.contains("shutting_down"), "{refusal}");
    let rest = read_until(&streamed, "never").await;
    assert!(rest.contains("shutting_down") && rest.contains("[DONE]"), "{rest}");
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_stops_even_if_the_engine_does_not_answer() {
    let (server, script) = start(ServerConfig { grace: Duration::ZERO, ..config() }).await;
    let client = server.ask(json!({})).await;
    let (_taken, _script) = take(script).await;
    server.stop().await;
    assert_eq!(read_until(&client, "never").await, "");
}

#[tokio::test]
async fn an_oversized_body_is_refused_in_words() {
    let (server, script) = start(config()).await;
    player::play(script);
    let stream = server.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 150000\r\n\r\n";
    write_all(&stream, head.as_bytes()).await;
    write_all(&stream, &vec![b'x'; 150_000]).await;
    let reply = read_until(&stream, "request_too_large").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    // The same connection goes on.
    write_all(&stream, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(read_until(&stream, "ok").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let (server, _script) = start(ServerConfig { idle_timeout: Duration::from_millis(50), ..config() }).await;
    let stream = server.connect().await;
    write_all(&stream, b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc").await;
    assert!(read_until(&stream, "body_timeout").await.starts_with("HTTP/1.1 408"));
}
