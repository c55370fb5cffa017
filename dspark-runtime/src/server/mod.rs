//! An HTTP server that speaks the OpenAI API.
//!
//! A connection is accepted (`connections`) and watched (`activity`). Its request gets an id and is tracked to its last
//! byte (`record`), its origin (`origin`) and key are checked, and the route is chosen (`app`). A body is read and,
//! when it is its turn (`turns`), checked field by field (`fields`, `parameters`, `unsupported`, `messages`,
//! `prompts`). It becomes requests to the engine, one per choice (`generation`), whose events are written in the format
//! of the endpoint (`shape`, `logprobs`), as a whole or as server-sent events (`respond`). Failures become an `error`;
//! `metrics` are for Prometheus.
//!
//! When a client disconnects, its connection's task is dropped, and with it the engine's answers, which cancels them.
//! This module does not use tensors.

mod activity;
mod app;
mod connections;
mod error;
mod fields;
mod generation;
mod logprobs;
mod messages;
mod metrics;
mod origin;
mod parameters;
mod prompts;
mod record;
mod respond;
mod shape;
#[cfg(test)]
mod tests;
mod turns;
mod unsupported;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, ToSocketAddrs};

pub use self::turns::PROMPT_THREADS;

use crate::engine::{EngineHandle, Sampling};
use crate::text::{Tokenizer, UserText};

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Model name in the API.
    pub model: String,
    /// Key that clients must send as `Authorization: Bearer`; `None` accepts all clients.
    pub api_key: Option<String>,
    /// Web pages that may use the server, as `http://host:port`; `*` lets all. With an API key they need the key, too.
    pub allow_origins: Vec<String>,
    /// Host names that are accepted without an API key, in addition to addresses and `localhost`.
    pub allow_hosts: Vec<String>,
    /// True if other machines reach the server. Without an API key it then answers to names without a dot, too, which only
    /// their own network gives out.
    pub network: bool,
    /// Maximum size of a request body in bytes.
    pub max_body_bytes: usize,
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Time limit for a request's head, for its body, and for a client that reads nothing of a reply.
    pub idle_timeout: Duration,
    /// Maximum time of a request from its arrival to its last token.
    pub request_timeout: Duration,
    /// Time that running answers get when the server is told to stop.
    pub grace: Duration,
    /// The treatment of special tokens in messages.
    pub user_text: UserText,
    /// Sampling settings of requests that set none.
    pub sampling: Sampling,
    /// Limit of new tokens of requests that set none; `None` is the context length.
    pub max_new_tokens: Option<usize>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            model: "default".to_owned(),
            api_key: None,
            allow_origins: Vec::new(),
            allow_hosts: Vec::new(),
            network: false,
            max_body_bytes: 2 << 20,
            max_connections: 512,
            idle_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            grace: Duration::from_secs(30),
            user_text: UserText::default(),
            sampling: Sampling::default(),
            max_new_tokens: None,
        }
    }
}

/// Reasons that a server stopped by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// The engine's thread failed.
    #[error("the engine stopped because of an internal error: no more requests can be answered; restart the server")]
    EngineEnded,
}

/// A server that has its port and does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Arc<app::App>,
}

impl Server {
    /// Takes the port; 0 is any that is free.
    ///
    /// # Errors
    /// Returns an error if the address cannot be had.
    pub async fn bind(
        address: impl ToSocketAddrs,
        engine: EngineHandle,
        tokenizer: Tokenizer,
        config: ServerConfig,
    ) -> io::Result<Self> {
        Ok(Self { listener: connections::listen(address).await?, app: app::App::new(engine, tokenizer, config) })
    }

    /// Returns the address that it listens on.
    ///
    /// # Errors
    /// Returns an error if the system does not report the address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready, then finishes or fails running requests and shuts the engine down.
    ///
    /// # Errors
    /// Returns an error if the engine ends before it was told to; every request has then been answered with an error.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        connections::serve(self.listener, self.app, stop).await
    }
}
