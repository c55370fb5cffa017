//! Checks which web pages may use the server, and which host names it accepts.
//!
//! A browser sends requests for every page that it shows, also to this machine. Without an API key, nothing else
//! distinguishes requests of a foreign page from the user's own, so the server checks two headers that pages cannot
//! forge. `Origin` names the page: it must be the server's own address or one that `--allow-origin` allows. `Host`
//! names the server: a page whose name was later made to point to this machine (DNS rebinding) has its own name there.
//! Programs send no `Origin`, and send the address that they were given as `Host`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::ServerConfig;
use super::app::App;
use super::error::ApiError;
use super::respond::refuse;

const ASKS_FOR_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOWS_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Checks `Origin` and `Host`, answers preflight requests of browsers, and sets the headers that allow a page to read
/// the reply.
pub(super) async fn check_origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let origin = headers.get(ORIGIN).cloned();
    let allowed = origin.as_ref().is_some_and(|origin| is_allowed(&app.config, origin));
    let open = app.config.api_key.is_none() && request.uri().path() != "/health";
    if open && let Err(error) = check(&app.config, &request, allowed) {
        return refuse(error, request.into_body(), &app.config).await;
    }
    let Some(origin) = origin.filter(|_| allowed) else {
        return next.run(request).await;
    };
    let asks_first = request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if asks_first { permission(headers) } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    response
}

/// The answer to a browser that asks what a page may send.
fn permission(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if asked.contains_key(ASKS_FOR_PRIVATE_NETWORK) {
        headers.insert(ALLOWS_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    response
}

fn check(config: &ServerConfig, request: &Request, allowed: bool) -> Result<(), ApiError> {
    let headers = request.headers();
    let asked = headers.get_all(HOST).into_iter().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let hosts: Vec<String> = asked.chain(request.uri().authority().map(ToString::to_string)).collect();
    if let Some(host) = hosts.iter().find(|host| !is_own_name(config, host)) {
        return Err(ApiError::strange_host(host));
    }
    match headers.get(ORIGIN) {
        Some(origin) if !allowed && !is_own_page(origin, &hosts) => {
            Err(ApiError::strange_origin(&String::from_utf8_lossy(origin.as_bytes())))
        }
        _ => Ok(()),
    }
}

fn is_allowed(config: &ServerConfig, origin: &HeaderValue) -> bool {
    let same = |allowed: &String| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
    config.allow_origins.iter().any(same)
}

/// Returns whether a page was served under the name that the request was sent to.
fn is_own_page(origin: &HeaderValue, hosts: &[String]) -> bool {
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let place = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    place.is_some_and(|place| hosts.iter().any(|host| host.eq_ignore_ascii_case(place)))
}

/// Returns whether a foreign site cannot make this name point to the server: an address, this machine's name for
/// itself, a name of the local network if the server listens there, or an allowed name.
fn is_own_name(config: &ServerConfig, host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    bare.parse::<Ipv4Addr>().is_ok()
        || bare.parse::<Ipv6Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || (config.network && !name.is_empty() && !name.contains('.'))
        || config.allow_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(&name))
}
