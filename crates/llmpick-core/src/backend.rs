//! The contract of everything that can answer a prompt.
//!
//! The one decision that shaped it: a backend takes a request and returns a stream, and
//! dropping the stream is how it is cancelled. Queues, batches and retries are the
//! backend's own affair, so a local engine that owns a schedule and a remote API look
//! the same, and no caller can forget to free a slot.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::{Arm, ArmState, GenerateRequest, Prompt, Usage};

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a generation sends: any number of [`Event::Token`], then exactly one
/// [`Event::Finish`], or an error that ends it. Dropping it cancels the work before its
/// next token step.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, BackendError>> + Send>>;

/// One arm that can run.
pub trait Backend: Send + Sync {
    /// The fixed description of the arm.
    fn arm(&self) -> &Arm;

    /// What is true of the arm right now. Cheap; does no I/O.
    fn state(&self) -> ArmState;

    /// Makes the arm ready (loads weights, opens a connection). [`generate`](Self::generate)
    /// does so by itself; calling it first keeps the loading out of a measurement.
    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Starts one generation. The request is checked and its prompt counted before the
    /// future resolves: a prompt beyond the context is an error here, never a short answer.
    fn generate(
        &self,
        request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>>;

    /// Log-likelihood of each choice as the continuation of a prompt, as
    /// lm-evaluation-harness asks it. Backends that cannot see logits refuse.
    fn choices(
        &self,
        _request: ChoicesRequest,
    ) -> BoxFuture<'_, Result<Vec<ChoiceLikelihood>, BackendError>> {
        Box::pin(std::future::ready(Err(BackendError::Unsupported(
            "the log-likelihood of given continuations",
        ))))
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Text, never a part of a character, never a part of a stop string.
    Token(TokenPiece),
    /// The end, with the bill.
    Finish(Finish),
}

/// Some text and the tokens it came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenPiece {
    /// The text; one piece may stand for several tokens.
    pub text: String,
    /// Natural log-probability of each token, where asked for and known.
    pub logprobs: Vec<f32>,
}

/// How a generation ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens read and written.
    pub usage: Usage,
    /// Time the device worked for this request: prefill and decode, without queueing and
    /// loading. Zero for a remote arm, which is billed by tokens.
    pub busy: Duration,
    /// Time spent loading the model before the work began, zero when it was warm.
    pub load: Duration,
    /// Prefill time, a part of `busy`. Zero where unknown.
    pub prefill: Duration,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its answer, or a stop string came up.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
}

/// Continuations to compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoicesRequest {
    /// What comes before each choice.
    pub prompt: Prompt,
    /// The texts to compare, each with its own leading space where it needs one.
    pub choices: Vec<String>,
}

/// How likely one choice is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceLikelihood {
    /// Sum of the natural log-probabilities of the choice's tokens.
    pub logprob: f64,
    /// Tokens of the choice.
    pub tokens: u32,
    /// Bytes of the choice: the divisor of `acc_norm`.
    pub bytes: u32,
    /// Prompt tokens, and time the device worked, both for the whole request: equal in every row.
    pub prompt_tokens: u32,
    /// Time the device worked for the whole request.
    pub busy: Duration,
}

/// Why a backend could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt_tokens} tokens, and the model's context holds {context_tokens}"
    )]
    ContextExceeded {
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
        /// Tokens of the model's context.
        context_tokens: u32,
    },
    /// The request asks for what makes no sense, or a value is out of range.
    #[error("{0}")]
    InvalidRequest(String),
    /// The backend cannot do this at all.
    #[error("this model cannot give {0}")]
    Unsupported(&'static str),
    /// The model is not there, cannot be read, or does not fit the machine.
    #[error("load the model")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Too many requests wait already.
    #[error("{waiting} requests wait for this model already")]
    Busy {
        /// Requests in the queue.
        waiting: u32,
    },
    /// The provider refused, with its status.
    #[error("the provider answered {status}: {message}")]
    Provider {
        /// HTTP status.
        status: u16,
        /// What it said, secrets removed.
        message: String,
    },
    /// The connection or the stream broke.
    #[error("reach the provider")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// A fault of ours.
    #[error("run the model")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BackendError {
    /// True when another arm may well succeed where this one failed; false when the
    /// request itself is wrong.
    pub fn is_arm_fault(&self) -> bool {
        !matches!(self, BackendError::InvalidRequest(_))
    }
}
