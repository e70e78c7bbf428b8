//! From what a provider or the network says to a [`BackendError`].

use std::error::Error;
use std::time::Duration;

use llmpick_core::BackendError;
use reqwest::StatusCode;
use serde::Deserialize;

use crate::Secret;

/// Why a remote arm cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenAiError {
    /// The address cannot be used.
    #[error("use `{url}` as the address of a provider: {reason}")]
    Address {
        /// What was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The key cannot be put into a header.
    #[error("use the key of the provider: it has characters that a header cannot hold")]
    Key,
    /// The HTTP client could not be made.
    #[error("prepare the connection to the provider")]
    Client(#[source] reqwest::Error),
}

/// A text, as the cause of a transport error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Reason(pub(crate) String);

/// The stream ended, or said what it must not.
pub(crate) fn broken(reason: impl Into<String>) -> BackendError {
    BackendError::Transport(Box::new(Reason(reason.into())))
}

/// A failed call. The address is dropped: some people keep keys in it.
pub(crate) fn transport(error: reqwest::Error, timeout: Duration) -> BackendError {
    let error = error.without_url();
    if error.is_timeout() {
        return BackendError::Timeout(timeout);
    }
    broken(innermost(&error))
}

/// The sentence of the last cause, which is the one that says something.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// An answer that is no success.
pub(crate) fn refused(
    status: StatusCode,
    retry_after: Option<Duration>,
    body: &str,
    key: Option<&Secret>,
) -> BackendError {
    let said = said(body);
    if let Some((prompt_tokens, context_tokens)) = said.overflow() {
        return BackendError::ContextExceeded {
            prompt_tokens,
            context_tokens,
        };
    }
    let mut message = said.message;
    if let Some(wait) = retry_after {
        message.push_str(&format!(" (come back in {} s)", wait.as_secs()));
    }
    BackendError::Provider {
        status: status.as_u16(),
        message: key.map_or(message.clone(), |key| key.blot(&message)),
    }
}

/// The error object in the middle of a stream.
pub(crate) fn in_stream(object: &ErrorBody, key: Option<&Secret>) -> BackendError {
    let message = shorten(&object.message());
    broken(key.map_or(message.clone(), |key| key.blot(&message)))
}

/// `Retry-After` in seconds; dates are rare, and ignored.
pub(crate) fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let value = headers.get(reqwest::header::RETRY_AFTER)?;
    let seconds: f64 = value.to_str().ok()?.trim().parse().ok()?;
    (0.0..=86_400.0 * 30.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds.ceil()))
}

struct Said {
    message: String,
    figures: Option<(u32, u32)>,
}

impl Said {
    fn overflow(&self) -> Option<(u32, u32)> {
        self.figures
    }
}

/// Reads OpenAI's error object, or takes the beginning of whatever was sent.
fn said(body: &str) -> Said {
    let object: Option<Envelope> = serde_json::from_str(body).ok();
    match object.map(|envelope| envelope.error) {
        Some(error) => Said {
            figures: error.figures(),
            message: shorten(&error.message()),
        },
        None => Said {
            figures: None,
            message: match body.trim() {
                "" => "nothing more was said".to_owned(),
                text => shorten(text),
            },
        },
    }
}

fn shorten(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &one_line[..end]),
        None => one_line,
    }
}

#[derive(Deserialize)]
struct Envelope {
    error: ErrorBody,
}

/// `{"message": …}`, or just a text, as some servers have it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ErrorBody {
    Object {
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        n_prompt_tokens: Option<u32>,
        #[serde(default)]
        n_ctx: Option<u32>,
    },
    Text(String),
}

impl ErrorBody {
    fn message(&self) -> String {
        match self {
            ErrorBody::Object {
                message: Some(message),
                ..
            } => message.clone(),
            ErrorBody::Object { .. } => "an error without a message".to_owned(),
            ErrorBody::Text(text) => text.clone(),
        }
    }

    fn figures(&self) -> Option<(u32, u32)> {
        match self {
            ErrorBody::Object {
                n_prompt_tokens,
                n_ctx,
                ..
            } => Some(((*n_prompt_tokens)?, (*n_ctx)?)),
            ErrorBody::Text(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_providers_words_is_blotted_out() {
        let key = Secret::new("sk-abc");
        let body = r#"{"error":{"message":"Incorrect API key provided: sk-abc."}}"#;
        let error = refused(StatusCode::UNAUTHORIZED, None, body, Some(&key));
        assert_eq!(
            error.to_string(),
            "the provider answered 401: Incorrect API key provided: [key]."
        );
    }

    #[test]
    fn an_overflow_keeps_its_figures() {
        let body = r#"{"error":{"message":"too long","n_prompt_tokens":9000,"n_ctx":8192}}"#;
        let error = refused(StatusCode::BAD_REQUEST, None, body, None);
        assert!(matches!(
            error,
            BackendError::ContextExceeded {
                prompt_tokens: 9000,
                context_tokens: 8192
            }
        ));
    }

    #[test]
    fn pages_instead_of_objects_are_shortened() {
        let body = "<html>".to_owned() + &"x".repeat(5_000);
        let error = refused(
            StatusCode::BAD_GATEWAY,
            Some(Duration::from_secs(7)),
            &body,
            None,
        );
        let text = error.to_string();
        assert!(
            text.len() < 400 && text.ends_with("(come back in 7 s)"),
            "{text}"
        );
    }
}
