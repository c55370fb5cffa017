//! The official Python client against the engine of few words: the protocol. The same script runs against the binary with a
//! real engine in `tests/serve.rs`.

use std::process::Command;

use tokio::sync::oneshot;

use super::{ServerConfig, config, played_app};
use crate::server::Server;

#[tokio::test]
async fn the_official_client_works_unchanged() {
    let Some(python) = std::env::var_os("DSPARK_TEST_PYTHON") else {
        println!("skipped: DSPARK_TEST_PYTHON does not name a Python with the package `openai`");
        return;
    };
    let config = ServerConfig { api_key: Some("secret".to_owned()), max_body_bytes: 1 << 20, ..config() };
    let app = played_app(config);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { listener, app };
    let address = server.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    let status = tokio::task::spawn_blocking(move || {
        let url = format!("http://{address}/v1");
        Command::new(python).arg(script).args(["--url", &url, "--key", "secret", "--model", super::MODEL]).status()
    });
    assert!(status.await.unwrap().unwrap().success());
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}
