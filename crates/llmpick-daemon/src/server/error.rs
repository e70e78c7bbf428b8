//! Errors as HTTP sees them: a status, and OpenAI's error object.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use llmpick_core::BackendError;
use llmpick_dispatch::DispatchError;
use llmpick_remote::schedule::{NO_ARM_FREE, UNKNOWN_SESSION};
use serde_json::{Map, Value, json};

use crate::app::sentence;

/// A refusal or a failure on its way to a client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Tokens of the prompt and of the context, where the one passes the other.
    overflow: Option<(u32, u32)>,
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            overflow: None,
            retry_after: None,
        }
    }

    /// 400: the request is wrong in this place.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.param = Some(param.to_owned()).filter(|param| !param.is_empty());
        error
    }

    /// 400: the request is right, and we cannot do that yet.
    pub(crate) fn unsupported(param: &str) -> Self {
        let message = format!("`{param}` is not supported yet");
        Self {
            code: Some("unsupported"),
            ..Self::invalid(param, message)
        }
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "send the key of this llmpick as `Authorization: Bearer …` or `X-Api-Key`";
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        Self {
            code: Some("invalid_api_key"),
            ..error
        }
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// 404: what the client thinks is held here is not.
    pub(crate) fn unknown_session() -> Self {
        let message = "nothing is held for this session; send its marginals again";
        let mut error = Self::not_found(message);
        error.code = Some(UNKNOWN_SESSION);
        error
    }

    /// 503: nobody can be drawn.
    pub(crate) fn no_arm_free(message: impl Into<String>) -> Self {
        let mut error = Self::unavailable(message);
        error.code = Some(NO_ARM_FREE);
        error
    }

    pub(crate) fn unknown_model(name: &str, known: &str) -> Self {
        let message = format!("there is no model `{name}` here; there are {known}");
        let mut error = Self::not_found(message);
        error.kind = "invalid_request_error";
        error.param = Some("model".to_owned());
        error.code = Some("model_not_found");
        error
    }

    pub(crate) fn method() -> Self {
        let message = "this address does not take that method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            message,
        )
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request is larger than {limit} bytes (server.body_limit)");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
    }

    /// A request with parts that did not succeed: 502 where an arm failed, 422 where an answer
    /// was not good enough.
    pub(crate) fn task_failed(arm_failed: bool, message: impl Into<String>) -> Self {
        let status = match arm_failed {
            true => StatusCode::BAD_GATEWAY,
            false => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self {
            code: Some("task_failed"),
            ..Self::new(status, "server_error", message)
        }
    }

    /// 429: come back later.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.retry_after = Some(1);
        error
    }

    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            sentence(error),
        )
    }

    /// 409: the plugin cannot be used as it is now.
    pub(crate) fn plugin(error: &(dyn std::error::Error + 'static)) -> Self {
        let error = Self::new(StatusCode::CONFLICT, "plugin_error", sentence(error));
        Self {
            code: Some("plugin_refused"),
            ..error
        }
    }

    /// 409: the settings cannot be used as they are now.
    pub(crate) fn settings(error: &(dyn std::error::Error + 'static)) -> Self {
        let message = format!("{}; the old arms go on serving", sentence(error));
        let error = Self::new(StatusCode::CONFLICT, "settings_error", message);
        Self {
            code: Some("settings_refused"),
            ..error
        }
    }

    fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        error.retry_after = Some(5);
        error
    }

    fn backend(error: &BackendError, message: String) -> Self {
        let server = |status| Self::new(status, "server_error", message.clone());
        match error {
            BackendError::ContextExceeded {
                prompt_tokens,
                context_tokens,
            } => {
                let mut error = Self::invalid("messages", message);
                error.code = Some("context_length_exceeded");
                error.overflow = Some((*prompt_tokens, *context_tokens));
                error
            }
            BackendError::InvalidRequest(_) | BackendError::Unsupported(_) => {
                Self::invalid("", message)
            }
            BackendError::Load(_) => Self::unavailable(message),
            BackendError::Busy { .. } => Self::busy(message),
            BackendError::Provider {
                status: 429 | 503, ..
            } => Self::unavailable(message),
            BackendError::Provider { .. } | BackendError::Transport(_) => {
                server(StatusCode::BAD_GATEWAY)
            }
            BackendError::Timeout(_) => server(StatusCode::GATEWAY_TIMEOUT),
            BackendError::Internal(_) => server(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The error object, as it also stands in a stream.
    pub(crate) fn body(&self) -> Value {
        let mut error = Map::new();
        error.insert("message".to_owned(), json!(self.message));
        error.insert("type".to_owned(), json!(self.kind));
        error.insert("param".to_owned(), json!(self.param));
        error.insert("code".to_owned(), json!(self.code));
        if let Some((prompt_tokens, context_tokens)) = self.overflow {
            error.insert("n_prompt_tokens".to_owned(), json!(prompt_tokens));
            error.insert("n_ctx".to_owned(), json!(context_tokens));
        }
        json!({"error": error})
    }
}

impl From<DispatchError> for ApiError {
    fn from(error: DispatchError) -> Self {
        let message = sentence(&error);
        if let Some(backend) = error.backend() {
            return Self::backend(backend, message);
        }
        match error {
            DispatchError::InvalidRequest(_) => Self::invalid("", message),
            DispatchError::UnknownArm { name, known } => Self::unknown_model(name.as_str(), &known),
            DispatchError::Budget { .. } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", message);
                Self {
                    code: Some("insufficient_quota"),
                    ..error
                }
            }
            DispatchError::UnknownRoute(_) => Self::not_found(message),
            DispatchError::NothingToScore(_) => {
                Self::new(StatusCode::CONFLICT, "invalid_request_error", message)
            }
            DispatchError::NoArms
            | DispatchError::NoEligibleArm { .. }
            | DispatchError::Stopped => Self::unavailable(message),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
