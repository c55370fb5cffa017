//! Bodies of chat requests to a server of the repository's small target, in this process.

#![no_main]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::OnceLock;

use burn::tensor::Device;
use dspark_runtime::engine::{Engine, EngineConfig};
use dspark_runtime::model::Target;
use dspark_runtime::schedule::Mode;
use dspark_runtime::server::{Server, ServerConfig};
use dspark_runtime::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();

/// Starts the server on a thread of its own.
fn start() -> SocketAddr {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    let tokenizer = Tokenizer::from_directory(&folder).unwrap();
    let target = Target::load(&folder, &Device::flex()).unwrap();
    let config = EngineConfig { mode: Mode::Off, ..EngineConfig::default() };
    let (engine, handle) = Engine::start(target, None, tokenizer.clone(), config).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let config = ServerConfig { model: "m".to_owned(), ..ServerConfig::default() };
            let server = Server::bind("127.0.0.1:0", handle, tokenizer, config).await.unwrap();
            sender.send(server.address().unwrap()).unwrap();
            server.run(std::future::pending()).await;
        });
        drop(engine);
    });
    receiver.recv().unwrap()
}

fuzz_target!(|bytes: &[u8]| {
    let mut stream = TcpStream::connect(*ADDRESS.get_or_init(start)).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: ";
    write!(stream, "{head}{}\r\n\r\n", bytes.len()).unwrap();
    // A body that is too large is refused before it was sent whole.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(reply.starts_with(b"HTTP/1.1 200") || reply.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&reply));
});
