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
    ///
    /// Redirects are not followed: a key must not wander to another host. Loopback and
    /// sockets pass by any proxy of the environment.
    pub(crate) fn new(base_url: &str, silence: Duration) -> Result<Self, OpenAiError> {
        let address = |reason: &str| OpenAiError::Address {
            url: base_url.to_owned(),
            reason: reason.to_owned(),
        };
        let builder = Client::builder()
            .user_agent(concat!("llmpick/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(silence);
        let (builder, base) = match base_url.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => {
                (unix(builder, path), Url::parse("http://localhost/v1"))
            }
            Some(_) => return Err(address("the path of a socket begins with /")),
            None => (builder, Url::parse(base_url)),
        };
        let chat = base.map_err(|error| address(&error.to_string()))?;
        if !matches!(chat.scheme(), "http" | "https") {
            return Err(address("it has to begin with http://, https:// or unix:/"));
        }
        if !chat.username().is_empty() || chat.password().is_some() {
            // It would end up in logs and in the ledger.
            return Err(address("it must not contain a user or a password"));
        }
        let loopback = matches!(chat.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let builder = if loopback {
            builder.no_proxy()
        } else {
            builder
        };
        let below = |segments: &[&str]| {
            let mut url = chat.clone();
            url.path_segments_mut()
                .map_err(|()| address("it has no path"))?
                .pop_if_empty()
                .extend(segments);
            Ok(url)
        };
        Ok(Self {
            text: below(&["completions"])?,
            chat: below(&["chat", "completions"])?,
            client: builder.build().map_err(OpenAiError::Client)?,
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
