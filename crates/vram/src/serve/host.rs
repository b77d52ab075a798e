//! By which name a request asks: one, and on a port of this machine one of its own.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::routes::{Refusal, Shared};
use crate::exit::Failure;

/// Every request names its host, once, and does not contradict itself. Who asks without one, or by two, wants something
/// between here and there to understand it otherwise than this daemon does.
pub(super) async fn named_once(request: Request, next: Next) -> Response {
    match host(request.headers(), request.uri()) {
        Ok(_) => next.run(request).await,
        Err(message) => Refusal(StatusCode::BAD_REQUEST, Failure::new("host", message)).into_response(),
    }
}

/// A page of somebody else's whose name leads to this machine is not to read what is answered here: on a local port, only
/// requests that name this machine are answered.
pub(super) async fn for_this_machine(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if !shared.local || host(request.headers(), request.uri()).is_ok_and(|host| is_local(&host)) {
        return next.run(request).await;
    }
    let message = "this port is for this machine: ask for localhost or its address";
    Refusal(StatusCode::MISDIRECTED_REQUEST, Failure::new("host", message)).into_response()
}

fn host(headers: &HeaderMap, uri: &Uri) -> Result<Authority, &'static str> {
    let mut named = headers.get_all(header::HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host,
        (None, _) => return Err("the request names no host; add one header Host"),
        (Some(_), Some(_)) => return Err("the request names a host twice; leave one header Host"),
    };
    // The name of a user has no place there.
    let host = host.to_str().ok().filter(|host| !host.contains('@')).and_then(|host| host.parse::<Authority>().ok());
    let host = host.filter(has_port_or_none);
    let host = host.ok_or("the header Host is not the name of a host; write it as name or name:port")?;
    match uri.authority() {
        Some(authority) if *authority != host => Err("the request names one host in its address and another in Host"),
        _ => Ok(host),
    }
}

/// Whether what follows the name can be a port.
fn has_port_or_none(host: &Authority) -> bool {
    let Some(rest) = host.as_str().strip_prefix(host.host()) else { return false };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    // A colon and nothing behind it means the usual one.
    rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.is_empty() || is_port(port))
}

/// Whether a host is this machine by its plain names.
fn is_local(host: &Authority) -> bool {
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, hosts: &[&str]) -> Result<Authority, &'static str> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        host(&headers, &uri.parse().unwrap())
    }

    #[test]
    fn a_request_has_one_host_and_says_the_same_twice() {
        for (uri, host) in [("/", "localhost"), ("/", "[::1]:9810"), ("http://a.example:80/x", "A.example:80")] {
            assert!(asked(uri, &[host]).is_ok(), "{uri} {host}");
        }
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a", "a"]),
            ("http://a/", &["b"]),
            ("http://a:1/", &["a"]),
            ("http://a/", &[]),
            ("/", &[""]),
            ("/", &["a b"]),
            ("/", &["a/b"]),
            ("/", &["user@localhost"]),
            ("/", &["localhost:evil"]),
            ("/", &["localhost:99999999"]),
            ("/", &["localhost:+80"]),
            ("/", &["[::1]:x"]),
            ("/", &["[::1]9810"]),
            ("http://user@localhost/", &["localhost"]),
        ] {
            assert!(asked(uri, hosts).is_err(), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn only_this_machines_own_names_are_local() {
        for host in ["localhost", "LocalHost:9810", "127.0.0.1", "127.8.8.8:1", "[::1]", "[::1]:9810"] {
            assert!(is_local(&host.parse().unwrap()), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]"] {
            assert!(!is_local(&host.parse().unwrap()), "{host}");
        }
    }
}
