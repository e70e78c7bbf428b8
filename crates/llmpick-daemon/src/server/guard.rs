//! Who may talk to us over TCP: those with the key, or programs of this machine that are
//! not a web page.
//!
//! A page in a browser can send requests to loopback. It cannot choose the `Host` it is
//! shown under (DNS rebinding ends there) nor hide its `Origin`. The unix socket needs none
//! of this: only its owner can open it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use llmpick_remote::Secret;

use super::error::ApiError;

/// What the TCP side asks for.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    pub(crate) key: Option<Secret>,
    pub(crate) address: SocketAddr,
}

/// Lets a request through, or answers 401 or 403.
pub(crate) async fn check(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    match guard.admit(request.headers(), request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

impl Guard {
    fn admit(&self, headers: &HeaderMap, path: &str) -> Result<(), ApiError> {
        if let Some(origin) = text(headers, header::ORIGIN)
            && !is_loopback_origin(origin)
        {
            return Err(ApiError::forbidden(
                "web pages of other hosts may not talk to this llmpick",
            ));
        }
        match &self.key {
            // Whoever knows the key is no rebound page.
            Some(key) if path != "/health" => match given_key(headers) {
                Some(given) if key.matches(given) => Ok(()),
                _ => Err(ApiError::unauthorized()),
            },
            Some(_) => Ok(()),
            None => self.check_host(headers),
        }
    }

    fn check_host(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = text(headers, header::HOST).unwrap_or_default();
        let name = host_name(host);
        let own = self.address.ip().to_string();
        if is_loopback_name(name) || name == own {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "the Host header names another machine than this one",
        ))
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn given_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = text(headers, header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// `localhost` of `localhost:11435`, `::1` of `[::1]:11435`.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

fn is_loopback_name(name: &str) -> bool {
    let address: Option<std::net::IpAddr> = name.parse().ok();
    name.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

fn is_loopback_origin(origin: &str) -> bool {
    let rest = origin.split_once("://").map(|(_, rest)| rest);
    rest.is_some_and(|rest| is_loopback_name(host_name(rest)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn admit(key: Option<&str>, headers: &[(&'static str, &str)]) -> u16 {
        let guard = Guard {
            key: key.map(Secret::new),
            address: "127.0.0.1:11435".parse().unwrap(),
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        guard
            .admit(&map, "/v1/models")
            .map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_this_machine_and_no_page_of_another() {
        for host in ["localhost:11435", "127.0.0.1", "[::1]:11435", "LOCALHOST"] {
            assert_eq!(admit(None, &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "",
            "localhost.evil.example:80",
        ] {
            assert_eq!(admit(None, &[("host", host)]), 403, "{host}");
        }
        let host = ("host", "localhost");
        assert_eq!(
            admit(None, &[host, ("origin", "http://localhost:3000")]),
            200
        );
        for origin in [
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
        ] {
            assert_eq!(admit(None, &[host, ("origin", origin)]), 403, "{origin}");
        }
    }

    #[test]
    fn a_key_may_come_in_two_ways_and_must_be_right() {
        let host = ("host", "anything.example");
        assert_eq!(admit(Some("k"), &[host]), 401);
        assert_eq!(
            admit(Some("k"), &[host, ("authorization", "Bearer wrong")]),
            401
        );
        assert_eq!(admit(Some("k"), &[host, ("authorization", "Basic k")]), 401);
        assert_eq!(
            admit(Some("k"), &[host, ("authorization", "bearer k")]),
            200
        );
        assert_eq!(admit(Some("k"), &[host, ("x-api-key", "k")]), 200);
    }
}
