//! Any server that speaks OpenAI's chat completions, as an arm.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, stream};
use llmpick_core::{
    Arm, ArmState, Backend, BackendError, BoxFuture, Event, EventStream, Finish, FinishReason,
    GenerateRequest, TokenPiece, Usage,
};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use sse_stream::{Error as SseError, Sse, SseStream};
use tracing::debug;

use crate::endpoint::Endpoint;
use crate::error::{broken, in_stream, refused, retry_after, transport};
use crate::wire::{self, Chunk};
use crate::{OpenAiError, Secret};

/// A key as the header that carries it.
pub(crate) fn bearer(key: &Secret) -> Result<HeaderValue, OpenAiError> {
    let text = format!("Bearer {}", key.expose());
    let mut value = HeaderValue::from_str(&text).map_err(|_| OpenAiError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

/// How a provider is reached.
#[derive(Clone, Debug)]
pub struct OpenAiOptions {
    /// The address up to and with `/v1`, or `unix:/path/to/socket` of another llmpick.
    pub base_url: String,
    /// The model's name over there.
    pub model: String,
    /// The key, sent as a Bearer token.
    pub api_key: Option<Secret>,
    /// A reason known beforehand why this arm cannot be used, such as a missing key.
    pub unavailable: Option<String>,
    /// The longest silence: before the answer begins, and between two parts of it.
    pub timeout: Duration,
    /// The provider takes `top_k`, `min_p`, `repeat_penalty` and `repeat_last_n`. Without
    /// it, requests whose values differ from the defaults are refused.
    pub extended_sampling: bool,
}

/// A model behind somebody's API.
pub struct OpenAi {
    arm: Arm,
    options: OpenAiOptions,
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    shared: Arc<Shared>,
}

/// What the streams of an arm share with it.
#[derive(Default)]
struct Shared {
    inflight: AtomicU32,
    /// Found out that the provider refuses to give log-probabilities.
    no_logprobs: AtomicBool,
    /// Found out that it refuses `stream_options`.
    no_stream_options: AtomicBool,
    /// Found out that it wants `max_completion_tokens`.
    max_completion_tokens: AtomicBool,
    /// It told us to come back later.
    pause: std::sync::Mutex<Option<Instant>>,
}

impl OpenAi {
    /// Prepares the arm; nothing is sent before the first request.
    pub fn new(arm: Arm, options: OpenAiOptions) -> Result<Self, OpenAiError> {
        let endpoint = Endpoint::new(&options.base_url, options.timeout)?;
        let authorization = options.api_key.as_ref().map(bearer).transpose()?;
        Ok(Self {
            arm,
            options,
            endpoint,
            authorization,
            shared: Arc::default(),
        })
    }

    async fn start(&self, request: GenerateRequest) -> Result<EventStream, BackendError> {
        if let Some(reason) = self.state().unavailable {
            return Err(BackendError::Load(reason.into()));
        }
        let guard = Inflight::new(&self.shared);
        let body = wire::body(
            &request,
            &self.options.model,
            self.options.extended_sampling,
        )?;
        let response = self.send_adapting(body).await?;
        let sse = SseStream::from_bytes_stream(response.bytes_stream());
        let answer = Answer {
            sse: Box::pin(sse),
            key: self.options.api_key.clone(),
            timeout: self.options.timeout,
            prompt_bytes: request.prompt.len(),
            answer_bytes: 0,
            reason: None,
            usage: None,
            ended: false,
            _guard: guard,
        };
        Ok(Box::pin(stream::unfold(answer, Answer::step)))
    }

    /// Sends, and once for each optional field that the provider turns out not to know,
    /// sends again without it. None of these fields changes the answer.
    async fn send_adapting(&self, mut body: Value) -> Result<Response, BackendError> {
        loop {
            self.shared.adapt(&mut body);
            let error = match self.send(&body).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if !self.shared.learn(&error, &body) {
                return Err(error);
            }
        }
    }

    async fn send(&self, body: &Value) -> Result<Response, BackendError> {
        let timeout = self.options.timeout;
        let mut call = self
            .endpoint
            .client
            .post(self.endpoint.address(body))
            .json(body);
        if let Some(value) = &self.authorization {
            call = call.header(AUTHORIZATION, value.clone());
        }
        let response = call
            .send()
            .await
            .map_err(|error| transport(error, timeout))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = retry_after(response.headers());
        if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            self.shared.pause_for(wait);
        }
        let body = beginning_of(response).await;
        Err(refused(status, wait, &body, self.options.api_key.as_ref()))
    }
}

impl Backend for OpenAi {
    fn arm(&self) -> &Arm {
        &self.arm
    }

    fn state(&self) -> ArmState {
        let pause = self.shared.pause_left().map(|left| {
            let seconds = left.as_secs() + 1;
            format!("the provider asked to come back in {seconds} s")
        });
        ArmState {
            warm: true,
            unavailable: self.options.unavailable.clone().or(pause),
            inflight: self.shared.inflight.load(Ordering::Relaxed),
            resident_bytes: 0,
        }
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn generate(
        &self,
        request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        Box::pin(self.start(request))
    }
}

/// The first 64 KiB of an error page; more would only fill memory.
async fn beginning_of(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > 64 << 10 {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Shared {
    /// Leaves out what the provider is known not to take.
    fn adapt(&self, body: &mut Value) {
        let Some(body) = body.as_object_mut() else {
            return;
        };
        if self.no_logprobs.load(Ordering::Relaxed) {
            body.shift_remove("logprobs");
        }
        if self.no_stream_options.load(Ordering::Relaxed) {
            body.shift_remove("stream_options");
        }
        if self.max_completion_tokens.load(Ordering::Relaxed)
            && let Some(limit) = body.shift_remove("max_tokens")
        {
            body.insert("max_completion_tokens".to_owned(), limit);
        }
    }

    /// True if the error teaches something that sending again can make use of.
    fn learn(&self, error: &BackendError, body: &Value) -> bool {
        let BackendError::Provider {
            status: 400 | 404 | 422,
            message,
        } = error
        else {
            return false;
        };
        let names = |field: &str| body.get(field).is_some() && message.contains(field);
        let flag = if message.contains("max_completion_tokens") && body.get("max_tokens").is_some()
        {
            &self.max_completion_tokens
        } else if names("logprobs") {
            &self.no_logprobs
        } else if names("stream_options") {
            &self.no_stream_options
        } else {
            return false;
        };
        debug!(message, "provider refused an optional field");
        flag.store(true, Ordering::Relaxed);
        true
    }

    fn pause_for(&self, wait: Option<Duration>) {
        if let (Some(wait), Ok(mut pause)) = (wait, self.pause.lock()) {
            *pause = Instant::now().checked_add(wait);
        }
    }

    fn pause_left(&self) -> Option<Duration> {
        let until = (*self.pause.lock().ok()?)?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// Counts a call for as long as it lives.
struct Inflight(Arc<Shared>);

impl Inflight {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.inflight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.inflight.fetch_sub(1, Ordering::Relaxed);
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<Sse, SseError>> + Send>>;

/// An answer on its way. Dropping it closes the connection, which is how a provider
/// learns that nobody listens.
struct Answer {
    sse: Events,
    key: Option<Secret>,
    timeout: Duration,
    prompt_bytes: usize,
    answer_bytes: usize,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    ended: bool,
    _guard: Inflight,
}

impl Answer {
    async fn step(mut self) -> Option<(Result<Event, BackendError>, Self)> {
        if self.ended {
            return None;
        }
        let event = match self.next_event().await {
            Ok(Some(piece)) => Ok(Event::Token(piece)),
            Ok(None) => self.finish(),
            Err(error) => Err(error),
        };
        self.ended = !matches!(event, Ok(Event::Token(_)));
        Some((event, self))
    }

    /// The next text, or `None` where the stream ends.
    async fn next_event(&mut self) -> Result<Option<TokenPiece>, BackendError> {
        while let Some(sse) = self.sse.next().await {
            let data = match sse {
                Ok(sse) => sse.data.unwrap_or_default(),
                Err(error) => return Err(self.read_error(error)),
            };
            if data.trim() == "[DONE]" {
                return Ok(None);
            }
            if data.is_empty() {
                continue;
            }
            let chunk: Chunk = serde_json::from_str(&data)
                .map_err(|error| broken(format!("a part of the answer is no JSON: {error}")))?;
            if let Some(piece) = self.take(chunk)? {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn take(&mut self, chunk: Chunk) -> Result<Option<TokenPiece>, BackendError> {
        if let Some(error) = &chunk.error {
            return Err(in_stream(error, self.key.as_ref()));
        }
        if let Some(usage) = chunk.usage {
            self.usage = Some(usage.into());
        }
        let Some(choice) = chunk.choices.into_iter().next() else {
            return Ok(None);
        };
        if let Some(reason) = &choice.finish_reason {
            self.reason = Some(wire::finish_reason(reason));
        }
        let text = choice.delta.content.or(choice.text).unwrap_or_default();
        let logprobs = choice
            .logprobs
            .map(wire::Logprobs::into_figures)
            .unwrap_or_default();
        if text.is_empty() && logprobs.is_empty() {
            return Ok(None);
        }
        self.answer_bytes += text.len();
        Ok(Some(TokenPiece { text, logprobs }))
    }

    fn finish(&self) -> Result<Event, BackendError> {
        let Some(reason) = self.reason else {
            return Err(broken("the stream ended before the answer did"));
        };
        let usage = self.usage.unwrap_or_else(|| {
            debug!("the provider gave no usage, it was estimated from the text");
            Usage {
                prompt_tokens: wire::estimate_tokens(self.prompt_bytes),
                cached_tokens: 0,
                completion_tokens: wire::estimate_tokens(self.answer_bytes),
            }
        });
        Ok(Event::Finish(Finish {
            reason,
            usage,
            busy: Duration::ZERO,
            load: Duration::ZERO,
            prefill: Duration::ZERO,
        }))
    }

    fn read_error(&self, error: SseError) -> BackendError {
        match error {
            SseError::Body(source) => match source.downcast::<reqwest::Error>() {
                Ok(error) => transport(*error, self.timeout),
                Err(source) => BackendError::Transport(source),
            },
            other => broken(format!("the stream is no event stream: {other}")),
        }
    }
}
