//! `dspark serve`

use std::fs;
use std::future::Future;
use std::io::{self, IsTerminal, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tracing_subscriber::fmt;

use super::engine::EngineArguments;
use super::output::{count, print};
use super::user_text::UserTextArguments;
use crate::engine::Sampling;
use crate::model::DraftConfig;
use crate::server::{PROMPT_THREADS, Server, ServerConfig, ServerError};

/// Largest size of an API key's file, bytes.
const LONGEST_KEY: u64 = 4096;

/// Environment variable of the API key if no file is given.
const KEY_VARIABLE: &str = "DSPARK_API_KEY";

/// Arguments of `dspark serve`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// Model name in the API (default: the name of the target's folder or file)
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// IP address to listen on; 0.0.0.0 accepts connections from any network
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 chooses a free port
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// File with the API key that clients must send (default: the environment variable DSPARK_API_KEY; if it is not
    /// set, no key is required)
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Allow web pages of this origin, http://HOST:PORT, to use the server; * allows all origins. Can be repeated
    /// (default: none)
    #[arg(long = "allow-origin", value_name = "ORIGIN", value_parser = origin)]
    allow_origins: Vec<String>,
    /// Accept requests that address the server by this host name when no API key is set. Can be repeated. IP addresses
    /// and localhost are always accepted. Names without a dot are accepted unless --host is a loopback address
    #[arg(long = "allow-host", value_name = "NAME", value_parser = host_name)]
    allow_hosts: Vec<String>,
    /// Maximum size of a request body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 20, value_parser = count)]
    max_body_bytes: usize,
    /// Maximum number of open connections. Beyond it, the connections that have been idle longest are closed
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = count)]
    max_connections: usize,
    /// Close a connection when its client takes longer than this to send a request, or reads nothing of its reply for
    /// this long
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds)]
    idle_seconds: u64,
    /// Maximum time of a request
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = seconds)]
    request_seconds: u64,
    /// Time that running requests get to finish after SIGINT or SIGTERM; the exit code is 0. A second signal stops the
    /// server immediately with exit code 130 or 143
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=86_400))]
    grace_seconds: u64,
    #[command(flatten)]
    user_text: UserTextArguments,
    /// Format of the log on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Serves until it is told to stop.
pub fn run(arguments: &Arguments) -> Result<()> {
    start_log(arguments.log_format);
    let api_key = api_key(arguments.api_key_file.as_deref())?;
    let open = api_key.is_none() && !arguments.host.is_loopback();
    if open {
        tracing::warn!("no API key is set: anyone who can reach {} can use the server", arguments.host);
    }
    if api_key.is_none() && arguments.allow_origins.iter().any(|origin| origin == "*") {
        tracing::warn!("no API key is set: every web page opened in a browser on this machine can use the server");
    }
    let running = arguments.engine.start(Sampling::default())?;
    let trained = running.draft.as_ref().and_then(DraftConfig::template_arguments);
    if let Some(trained) = trained.filter(|trained| !trained.is_empty()) {
        let trained = Value::from(trained.clone());
        tracing::warn!(
            "the draft was trained with chat_template_kwargs {trained}: expect lower accepted lengths for requests with other arguments"
        );
    }
    let config = ServerConfig {
        model: arguments.served_model_name.clone().unwrap_or(running.name),
        api_key,
        allow_origins: arguments.allow_origins.clone(),
        allow_hosts: arguments.allow_hosts.clone(),
        network: !arguments.host.is_loopback(),
        max_body_bytes: arguments.max_body_bytes,
        max_connections: arguments.max_connections,
        idle_timeout: Duration::from_secs(arguments.idle_seconds),
        request_timeout: Duration::from_secs(arguments.request_seconds),
        grace: Duration::from_secs(arguments.grace_seconds),
        user_text: arguments.user_text.user_text(),
        sampling: running.defaults.sampling,
        max_new_tokens: running.defaults.max_new_tokens,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("server")
        .max_blocking_threads(PROMPT_THREADS)
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    runtime.block_on(async {
        let model = config.model.clone();
        let address = (arguments.host, arguments.port);
        let server = Server::bind(address, running.handle, running.tokenizer, config)
            .await
            .with_context(|| format!("listening on {}, port {}", arguments.host, arguments.port))?;
        let stop = signals().context("listening for signals")?;
        print(format!("serving {model} on http://{}/v1", server.address()?))?;
        server.run(stop).await?;
        anyhow::Ok(())
    })?;
    // It may have failed while it finished what was begun.
    if running.engine.join() { Ok(()) } else { Err(ServerError::EngineEnded.into()) }
}

/// A page's origin as browsers send it, or all of them.
fn origin(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    let place = text.split_once("://").map(|(_, place)| place);
    if text == "*" || place.is_some_and(|place| !place.is_empty() && !place.contains(['/', '?', '#', ' '])) {
        return Ok(text.to_owned());
    }
    Err("expected scheme://host or scheme://host:port, or * for all origins".to_owned())
}

/// A name of the server without its port.
fn host_name(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Ok(text.trim_end_matches('.').to_owned());
    }
    Err("expected a host name without scheme, port or path".to_owned())
}

/// A number of seconds that clocks can count.
fn seconds(text: &str) -> Result<u64, String> {
    const MOST: u64 = 86_400 * 365;
    let expected = || format!("expected a whole number of seconds from 1 to {MOST}");
    text.parse().ok().filter(|seconds| (1..=MOST).contains(seconds)).ok_or_else(expected)
}

/// Reads the key from the file, else from the environment.
fn api_key(file: Option<&Path>) -> Result<Option<String>> {
    let (key, source) = match file {
        Some(file) => {
            let mut text = String::new();
            // A pipe will do, as in `--api-key-file <(pass show key)`.
            let read = fs::File::open(file).and_then(|file| file.take(LONGEST_KEY + 1).read_to_string(&mut text));
            read.with_context(|| format!("--api-key-file: {}", file.display()))?;
            if text.len() as u64 > LONGEST_KEY {
                bail!("--api-key-file: {}: expected a key of at most {LONGEST_KEY} bytes", file.display());
            }
            (text, file.display().to_string())
        }
        None => match std::env::var(KEY_VARIABLE) {
            Ok(key) => (key, KEY_VARIABLE.to_owned()),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(error) => bail!("{KEY_VARIABLE}: {error}"),
        },
    };
    let key = key.trim();
    // What cannot be a header's value could never be sent.
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{source}: expected a key of visible ASCII characters without spaces");
    }
    Ok(Some(key.to_owned()))
}

fn start_log(format: LogFormat) {
    let log = fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Completes at the first SIGINT or SIGTERM; after that, the second ends the process.
#[cfg(unix)]
fn signals() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        let mut signalled = async move || {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        };
        signalled().await;
        tokio::spawn(async move { std::process::exit(signalled().await) });
    })
}

/// Completes at the first Ctrl-C; after that, the second ends the process.
#[cfg(not(unix))]
fn signals() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
        tokio::spawn(async {
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(130);
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_and_hosts_are_what_browsers_send() {
        assert_eq!(origin("http://localhost:3000/").as_deref(), Ok("http://localhost:3000"));
        assert_eq!(origin("*").as_deref(), Ok("*"));
        for wrong in ["localhost:3000", "http://", "http://a/b", "", "http://a b"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
        assert_eq!(host_name("gpu-box.lan.").as_deref(), Ok("gpu-box.lan"));
        for wrong in ["", "http://gpu", "gpu:8000", "gpu/"] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_one_word_of_a_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("key");
        for (text, key) in
            [("secret\n", Some("secret")), (" sk-1_2 ", Some("sk-1_2")), ("", None), ("two words", None)]
        {
            fs::write(&file, text).unwrap();
            match key {
                Some(key) => assert_eq!(api_key(Some(&file)).unwrap().as_deref(), Some(key)),
                None => assert!(api_key(Some(&file)).unwrap_err().to_string().contains("visible ASCII"), "{text:?}"),
            }
        }
        assert!(api_key(Some(&folder.path().join("none"))).is_err());
    }
}
