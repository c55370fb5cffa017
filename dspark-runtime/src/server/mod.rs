//! An HTTP server that speaks the OpenAI API.
//!
//! A connection is accepted (`connections`) and watched (`activity`), its request is given an id and accompanied to its last byte
//! (`record`), the page that asks (`origin`) and the key are looked at and the path chosen (`app`). A body is read, and when it is
//! its turn (`turns`) checked field by field (`fields`, `parameters`, `unsupported`, `messages`, `prompts`). It becomes requests to the engine, one per choice (`generation`), whose events are written in the shape of the endpoint
//! (`shape`, `logprobs`), whole or as server-sent events (`respond`). Whatever goes wrong is an `error`; `metrics` are for
//! Prometheus.
//!
//! A client that goes away takes its connection's task with it, and with the task go the engine's answers: dropped, they
//! are cancelled. Nothing here knows tensors.

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

/// What a server may be told.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What clients call the model.
    pub model: String,
    /// What they have to send as `Authorization: Bearer`; `None` lets anybody in.
    pub api_key: Option<String>,
    /// Web pages that may use the server, as `http://host:port`; `*` lets all. With an API key they need the key, too.
    pub allow_origins: Vec<String>,
    /// Names under which the server may be reached, beside addresses and `localhost`, while there is no API key.
    pub allow_hosts: Vec<String>,
    /// True if other machines reach the server. Without an API key it then answers to names without a dot, too, which only
    /// their own network gives out.
    pub network: bool,
    /// Bytes of a request's body, at most.
    pub max_body_bytes: usize,
    /// Open connections, at most.
    pub max_connections: usize,
    /// Time limit for a request's head, for its body, and for a client that takes nothing of
    /// a reply.
    pub idle_timeout: Duration,
    /// How long a request may take from its arrival to its last token.
    pub request_timeout: Duration,
    /// How long answers may still take when the server is told to stop.
    pub grace: Duration,
    /// The treatment of special tokens in messages.
    pub user_text: UserText,
    /// Sampling settings where a request gives none.
    pub sampling: Sampling,
    /// Limit of new tokens where a request gives none; `None` is the context length.
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

/// Why a server stopped by itself.
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
    /// When the address cannot be had.
    pub async fn bind(
        address: impl ToSocketAddrs,
        engine: EngineHandle,
        tokenizer: Tokenizer,
        config: ServerConfig,
    ) -> io::Result<Self> {
        Ok(Self { listener: connections::listen(address).await?, app: app::App::new(engine, tokenizer, config) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop` is ready, then finishes or fails what was begun and shuts the engine down.
    ///
    /// # Errors
    /// When the engine ends before it was told to: every request was answered with an error by then.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        connections::serve(self.listener, self.app, stop).await
    }
}
