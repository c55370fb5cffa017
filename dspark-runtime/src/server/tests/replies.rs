//! Over real sockets: half-sent bodies, replies that are read slowly or not at all, and the end of the engine.

use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use super::connections::{Running, delta, finished, read_until, start, take, write_all};
use super::{CHAT, ServerConfig, config, conversation, player};
use crate::server::ServerError;

const HALF: &[u8] = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{";

#[tokio::test]
async fn half_sent_bodies_do_not_keep_out_a_client() {
    let (server, script) = start(ServerConfig { max_connections: 64, ..config() }).await;
    player::play(script);
    let mut halves = Vec::new();
    for _ in 0..100 {
        let stream = server.connect().await;
        write_all(&stream, HALF).await;
        halves.push(stream);
    }
    let stream = server.ask(json!({"max_tokens": 3})).await;
    assert!(read_until(&stream, "total_tokens").await.starts_with("HTTP/1.1 200"));
    // The first to come was the first to go.
    assert_eq!(read_until(&halves[0], "never").await, "");
    // Nor do they keep the server from its end: nobody is being answered.
    server.stop().await;
}

#[tokio::test]
async fn who_is_refused_before_the_body_is_read_can_send_it_and_reads_why() {
    // More than the system's buffers hold, and less than is drained: eight times the limit.
    let body = "x".repeat(8 << 20);
    let config = || ServerConfig { max_body_bytes: 2 << 20, ..config() };
    for (config, host, code) in [
        (config(), "evil.example", "host_not_allowed"),
        (ServerConfig { api_key: Some("secret".to_owned()), ..config() }, "localhost", "invalid_api_key"),
    ] {
        let (server, script) = start(config).await;
        player::play(script);
        let stream = server.connect().await;
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n", body.len());
        assert_eq!(write_all(&stream, format!("{head}{body}").as_bytes()).await, 0, "{code}: bytes not taken");
        let reply = read_until(&stream, code).await;
        assert!(reply.contains(code), "{reply}");
        server.stop().await;
    }
}

/// A client whose system takes little of a reply before it reads.
async fn ask_with_small_buffer(server: &Running, stream: bool) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let client = socket.connect(server.address).await.unwrap();
    let body = conversation(json!({"stream": stream})).to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    write_all(&client, format!("{head}{body}").as_bytes()).await;
    client
}

/// Reads everything, with pauses.
async fn read_slowly(client: &TcpStream) -> usize {
    let (mut total, mut buffer) = (0, [0; 16 << 10]);
    loop {
        client.readable().await.unwrap();
        match client.try_read(&mut buffer) {
            Ok(0) => return total,
            Ok(count) => total += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return total,
        }
        if buffer[..].ends_with(b"0\r\n\r\n") {
            return total;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn slow_readers_get_whole_replies() {
    const BYTES: usize = 3 << 20;
    // Reading takes a few times as long as a connection may be idle.
    let (server, script) = start(ServerConfig { idle_timeout: Duration::from_secs(1), ..config() }).await;
    let whole = ask_with_small_buffer(&server, false).await;
    let (taken, _script) = take(script).await;
    taken.send(delta(&"x".repeat(BYTES)));
    taken.send(finished());
    let total = read_slowly(&whole).await;
    assert!(total > BYTES, "{total} bytes of {BYTES}");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    for stream in [false, true] {
        let (server, script) = start(ServerConfig { idle_timeout: Duration::from_millis(50), ..config() }).await;
        let client = ask_with_small_buffer(&server, stream).await;
        let (taken, _script) = take(script).await;
        for _ in 0..100 {
            taken.send(delta(&"x".repeat(100_000)));
        }
        taken.send(finished());
        // It does not read until it was given up.
        loop {
            let other = server.connect().await;
            write_all(&other, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
            if read_until(&other, "never").await.contains("\ndspark_connections 1\n") {
                break;
            }
        }
        assert!(read_until(&client, "never").await.len() < 10_000_000);
        server.stop().await;
    }
}

#[tokio::test]
async fn the_end_of_the_engine_is_the_end_of_the_server() {
    let (server, script) = start(config()).await;
    let whole = server.ask(json!({})).await;
    let (first, script) = take(script).await;
    let streamed = server.ask(json!({"stream": true})).await;
    let (second, script) = take(script).await;
    second.send(delta("well"));
    read_until(&streamed, "well").await;
    // As when its thread panics.
    drop((first, second, script));
    let reply = read_until(&whole, "never").await;
    assert!(reply.starts_with("HTTP/1.1 500") && reply.contains("the engine ended"), "{reply}");
    let rest = read_until(&streamed, "never").await;
    assert!(rest.contains("the engine ended") && rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.task.await.unwrap(), Err(ServerError::EngineEnded));
    assert!(TcpStream::connect(server.address).await.is_err());
}
