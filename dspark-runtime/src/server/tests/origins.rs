//! Web pages of strangers, and names that they make point to this machine.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::json;

use super::{CHAT, Reply, ServerConfig, config, conversation, played, send};

/// A chat request with these headers, as a page sends it without asking first.
fn simple(headers: &[(&str, &str)]) -> Request<Body> {
    let request = Request::post(CHAT).header("content-type", "text/plain");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(conversation(json!({"max_tokens": 1})).to_string().into()).unwrap()
}

async fn status(config: ServerConfig, headers: &[(&str, &str)]) -> StatusCode {
    send(&played(config), simple(headers)).await.status
}

#[tokio::test]
async fn strange_pages_and_strange_names_are_refused_where_there_is_no_key() {
    let router = played(config());
    for (headers, code) in [
        (vec![("origin", "http://evil.example"), ("host", "localhost:8000")], "origin_not_allowed"),
        (vec![("origin", "null"), ("host", "127.0.0.1:8000")], "origin_not_allowed"),
        (vec![("origin", "http://localhost:3000"), ("host", "localhost:8000")], "origin_not_allowed"),
        (vec![("origin", "http://evil.example"), ("host", "evil.example")], "host_not_allowed"),
        (vec![("host", "evil.example:8000")], "host_not_allowed"),
        (vec![("host", "localhost.evil.example")], "host_not_allowed"),
        (vec![("host", "127.0.0.1.evil.example")], "host_not_allowed"),
        (vec![("host", "gpu-box")], "host_not_allowed"),
        (vec![("host", "")], "host_not_allowed"),
        (vec![("host", "localhost"), ("host", "evil.example")], "host_not_allowed"),
    ] {
        let reply = send(&router, simple(&headers)).await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{headers:?}");
        assert_eq!(reply.json()["error"]["code"], code, "{headers:?}");
        assert!(!reply.headers.contains_key("access-control-allow-origin"));
    }
    for path in ["/v1/models", "/metrics"] {
        let request = Request::get(path).header("host", "evil.example").body(Body::empty()).unwrap();
        assert_eq!(send(&router, request).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    let health = Request::get("/health").header("host", "probe.example").body(Body::empty()).unwrap();
    assert_eq!(send(&router, health).await.status, StatusCode::OK);
}

#[tokio::test]
async fn programs_and_the_servers_own_pages_may_ask() {
    for host in
        ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7:9", "a.localhost", "localhost."]
    {
        assert_eq!(status(config(), &[("host", host)]).await, StatusCode::OK, "{host}");
    }
    assert_eq!(status(config(), &[]).await, StatusCode::OK);
    let own = [("origin", "http://localhost:8000"), ("host", "localhost:8000")];
    assert_eq!(status(config(), &own).await, StatusCode::OK);
    // Names of the local network have no dot; others have to be allowed.
    let network = || ServerConfig { network: true, ..config() };
    assert_eq!(status(network(), &[("host", "gpu-box:8000")]).await, StatusCode::OK);
    assert_eq!(status(network(), &[("host", "gpu.lan")]).await, StatusCode::FORBIDDEN);
    let allowed = ServerConfig { allow_hosts: vec!["gpu.lan".to_owned()], ..config() };
    assert_eq!(status(allowed, &[("host", "GPU.lan:8000")]).await, StatusCode::OK);
    // A key is what strangers do not have.
    let with_key = ServerConfig { api_key: Some("secret".to_owned()), ..config() };
    let headers = [("host", "api.example"), ("origin", "http://a.example"), ("authorization", "Bearer secret")];
    assert_eq!(status(with_key, &headers).await, StatusCode::OK);
}

fn question(origin: &str) -> Request<Body> {
    Request::options(CHAT)
        .header("host", "localhost:8000")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,x-stainless-os")
        .header("access-control-request-private-network", "true")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn allowed_pages_are_answered_as_browsers_expect() {
    const PAGE: &str = "http://localhost:3000";
    let value = |reply: &Reply, name: &str| reply.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    for api_key in [None, Some("secret".to_owned())] {
        for allowed in [PAGE, "*"] {
            let (allow_origins, api_key) = (vec![allowed.to_owned()], api_key.clone());
            let router = played(ServerConfig { allow_origins, api_key, ..config() });
            // Browsers ask before they send a key.
            let reply = send(&router, question(PAGE)).await;
            assert_eq!(reply.status, StatusCode::NO_CONTENT);
            assert_eq!(value(&reply, "access-control-allow-origin").as_deref(), Some(PAGE));
            assert_eq!(value(&reply, "access-control-allow-methods").as_deref(), Some("GET, POST"));
            let headers = value(&reply, "access-control-allow-headers").unwrap();
            assert_eq!(headers, "authorization,content-type,x-stainless-os");
            assert_eq!(value(&reply, "access-control-allow-private-network").as_deref(), Some("true"));
            let headers = [("origin", PAGE), ("host", "localhost:8000"), ("authorization", "Bearer secret")];
            let reply = send(&router, simple(&headers)).await;
            assert_eq!(reply.status, StatusCode::OK);
            assert_eq!(value(&reply, "access-control-allow-origin").as_deref(), Some(PAGE));
            assert_eq!(value(&reply, "vary").as_deref(), Some("Origin"));
        }
    }
    let router = played(ServerConfig { allow_origins: vec![PAGE.to_owned()], ..config() });
    for page in ["http://evil.example", "http://localhost:3001", "https://localhost:3000"] {
        assert_eq!(send(&router, question(page)).await.status, StatusCode::FORBIDDEN, "{page}");
    }
}
