//! An address and the client that reaches it.

use std::time::Duration;

use reqwest::{Client, Url};

use crate::OpenAiError;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client and the addresses to post to.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) client: Client,
    chat: Url,
    text: Url,
}

impl Endpoint {
    /// Reads `http(s)://host/v1` or `unix:/path/to/socket`.
    pub(crate) fn new(base_url: &str, silence: Duration) -> Result<Self, OpenAiError> {
        let (builder, base) = reach(base_url, "/v1")?;
        Ok(Self {
            text: below(base_url, &base, &["completions"])?,
            chat: below(base_url, &base, &["chat", "completions"])?,
            client: builder
                .read_timeout(silence)
                .build()
                .map_err(OpenAiError::Client)?,
        })
    }

    /// Where a body of this kind goes: conversations to one address, plain text to another.
    pub(crate) fn address(&self, body: &serde_json::Value) -> Url {
        match body.get("messages") {
            Some(_) => self.chat.clone(),
            None => self.text.clone(),
        }
    }
}

/// A client for an address, and the address; a socket's is `on_socket` of the host behind it.
///
/// Redirects are not followed: a key must not wander to another host. Loopback and
/// sockets pass by any proxy of the environment.
pub(crate) fn reach(
    address: &str,
    on_socket: &str,
) -> Result<(reqwest::ClientBuilder, Url), OpenAiError> {
    let wrong = |reason: &str| wrong(address, reason);
    let builder = Client::builder()
        .user_agent(concat!("llmpick/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT);
    let (builder, base) = match address.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => (
            unix(builder, path),
            Url::parse(&format!("http://localhost{on_socket}")),
        ),
        Some(_) => return Err(wrong("the path of a socket begins with /")),
        None => (builder, Url::parse(address)),
    };
    let base = base.map_err(|error| wrong(&error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") {
        return Err(wrong("it has to begin with http://, https:// or unix:/"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        // It would end up in logs and in the ledger.
        return Err(wrong("it must not contain a user or a password"));
    }
    let loopback = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let builder = if loopback {
        builder.no_proxy()
    } else {
        builder
    };
    Ok((builder, base))
}

/// An address below another one.
pub(crate) fn below(address: &str, base: &Url, segments: &[&str]) -> Result<Url, OpenAiError> {
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| wrong(address, "it has no path"))?
        .pop_if_empty()
        .extend(segments);
    Ok(url)
}

fn wrong(address: &str, reason: &str) -> OpenAiError {
    OpenAiError::Address {
        url: address.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(unix)]
fn unix(builder: reqwest::ClientBuilder, path: &str) -> reqwest::ClientBuilder {
    builder.unix_socket(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn chat(base_url: &str) -> Result<String, String> {
        Endpoint::new(base_url, Duration::from_secs(1))
            .map(|endpoint| endpoint.chat.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_trailing_slash_changes_nothing() {
        let want = Ok("https://host/openai/v1/chat/completions".to_owned());
        assert_eq!(chat("https://host/openai/v1"), want);
        assert_eq!(chat("https://host/openai/v1/"), want);
    }

    #[test]
    fn a_socket_is_an_address_too() {
        assert!(chat("unix:/run/llmpick.sock").is_ok());
    }

    #[test]
    fn what_cannot_be_called_is_refused() {
        for bad in [
            "ftp://host/v1",
            "host:80/v1",
            "unix:relative",
            "https://me:pw@host/v1",
        ] {
            assert!(chat(bad).is_err(), "{bad}");
        }
    }
}
