//! One request to a server, and whose fault a failure is.

use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use ureq::{Agent, Body, Timeout};

use super::EndpointOptions;
use super::reply;
use super::retry_after::retry_after;
use crate::regeneration::answer::Reply;

/// Largest size of a reply, bytes.
const LARGEST_REPLY: u64 = 64 << 20;
/// Largest size of the reply to a refused request that is read, bytes.
const LARGEST_REFUSAL: u64 = 64 << 10;
/// Characters of a reply that are quoted.
const QUOTED: usize = 200;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Age of idle connections from which they are not used again, because the server may be closing them.
const IDLE: Duration = Duration::from_secs(3);

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server refuses this row.
    Row(String),
    /// The server has no room now.
    Busy { wait: Option<Duration>, reason: String },
    /// The server cannot be reached, does not accept the key, or serves something else: no row would be answered.
    Server(String),
    /// The reply is missing or useless, perhaps because of the row.
    Unknown(String),
}

/// Returns an address as requests need it: without the last slash, with `/v1` if it has no path.
///
/// # Errors
/// Says what is wrong with the address.
pub fn check_endpoint(url: &str) -> Result<String, String> {
    let expected = "expected an address like http://127.0.0.1:8000/v1";
    let uri: ureq::http::Uri = url.parse().map_err(|error| format!("{error}; {expected}"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if cfg!(feature = "https") => {}
        Some("https") => {
            return Err(
                "this program was built without https; build it with `--features https`, or use http".to_owned()
            );
        }
        _ => return Err(expected.to_owned()),
    }
    if uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
        return Err(expected.to_owned());
    }
    let whole = url.trim_end_matches('/');
    if whole.ends_with("/chat/completions") {
        return Err("expected the address without /chat/completions, which is added".to_owned());
    }
    Ok(if uri.path() == "/" { format!("{whole}/v1") } else { whole.to_owned() })
}

/// Returns the client of all requests. It follows no redirects and uses no proxy.
pub(super) fn agent(options: &EndpointOptions) -> Agent {
    let connections = options.concurrency.max(1);
    let config = Agent::config_builder()
        .timeout_global(Some(options.timeout))
        .timeout_connect(Some(options.timeout.min(CONNECT)))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(connections * options.urls.len().max(1))
        .max_idle_connections_per_host(connections)
        .max_idle_age(IDLE)
        .proxy(None)
        .user_agent(concat!("deepspec/", env!("CARGO_PKG_VERSION")));
    config.build().new_agent()
}

/// Sends a request and reads the reply.
pub(super) fn ask(agent: &Agent, options: &EndpointOptions, url: &str, body: &str) -> Result<Reply, Fault> {
    let mut request = agent.post(format!("{url}/chat/completions")).header(CONTENT_TYPE, "application/json");
    if let Some(key) = &options.api_key {
        request = request.header(AUTHORIZATION, format!("Bearer {key}"));
    }
    let mut response = request.send(body).map_err(|error| without_reply(&error, options.timeout))?;
    if !response.status().is_success() {
        return Err(refusal(response));
    }
    let text = response.body_mut().with_config().limit(LARGEST_REPLY).read_to_vec();
    let text = text.map_err(|error| Fault::Unknown(format!("half a reply: {}", cause(&error, options.timeout))))?;
    let wanted = (!options.any_model).then_some(options.model.as_str());
    reply::read(&text, wanted)
}

fn without_reply(error: &ureq::Error, timeout: Duration) -> Fault {
    use ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let reason = cause(error, timeout);
    let unreachable = match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) => true,
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        ureq::Error::Io(error) => {
            matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | AddrNotAvailable)
        }
        _ => false,
    };
    if unreachable { Fault::Server(reason) } else { Fault::Unknown(reason) }
}

fn cause(error: &ureq::Error, timeout: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no reply within {} s (--timeout)", timeout.as_secs_f64()),
        ureq::Error::BodyExceedsLimit(limit) => format!("a reply of more than {limit} bytes"),
        other => other.to_string(),
    }
}

/// Judges a reply other than 200.
fn refusal(mut response: Response<Body>) -> Fault {
    let status = response.status();
    let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait = wait.and_then(|text| retry_after(text, SystemTime::now()));
    let text = response.body_mut().with_config().limit(LARGEST_REFUSAL).read_to_vec().unwrap_or_default();
    let reason = format!("HTTP {status}: {}", reply::refusal(&text));
    match status.as_u16() {
        429 | 503 => Fault::Busy { wait, reason },
        300..=399 => Fault::Server(format!("{reason}; use the address that it leads to")),
        401 | 403 | 407 => Fault::Server(format!("{reason}; check the API key (--api-key-variable)")),
        404 | 405 => Fault::Server(format!("{reason}; check the address and --model")),
        408 | 425 => Fault::Unknown(reason),
        400..=499 => Fault::Row(reason),
        _ => Fault::Unknown(reason),
    }
}

/// Returns the beginning of a text, in one line.
pub(super) fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut characters = line.chars();
    let start: String = characters.by_ref().take(QUOTED).collect();
    if characters.next().is_some() { format!("{start}...") } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_or_refused() {
        for (url, expected) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
            ("http://host/api/openai", "http://host/api/openai"),
        ] {
            assert_eq!(check_endpoint(url).as_deref(), Ok(expected));
        }
        for wrong in
            ["127.0.0.1:8000", "ftp://a", "http://", "a b", "http://a/v1?x=1", "http://a/v1/chat/completions"]
        {
            assert!(check_endpoint(wrong).is_err(), "{wrong}");
        }
        if !cfg!(feature = "https") {
            assert!(check_endpoint("https://a/v1").unwrap_err().contains("--features https"));
        }
    }
}
