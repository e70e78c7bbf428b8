//! Talking to a running daemon over its socket: what the command needs, and no more.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use futures::{Stream, StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use llmpick_core::{ArmId, FinishReason, Message, Mode, RouteId, Sampling, Score, Usage};
use llmpick_dispatch::Part;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::task::{PartReport, TaskReport};

/// A daemon that answered.
#[derive(Clone, Debug)]
pub struct Client {
    socket: Utf8PathBuf,
}

/// One question, with every option of the command.
#[derive(Clone, Debug, Default)]
pub struct ChatCall {
    /// `auto` without a name.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// How tokens are drawn; seed 0 stands for none.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// How arms work together.
    pub mode: Option<Mode>,
    /// Most arms.
    pub max_arms: Option<u32>,
    /// Most dollars.
    pub max_cost: Option<f64>,
    /// Context tag, may be empty.
    pub context: String,
    /// Numbers that describe the request; empty for none.
    pub features: Vec<f32>,
    /// The right answer.
    pub reference: Option<String>,
    /// The scorer.
    pub scorer: Option<String>,
}

/// A step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatEvent {
    /// Some text.
    Text(String),
    /// The end.
    Done(ChatDone),
}

/// How an answer went.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatDone {
    /// Who answered.
    pub model: String,
    /// Its route.
    pub route_id: RouteId,
    /// Tokens.
    pub usage: Usage,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Milliseconds to the first token, where there was one.
    pub ttft_ms: Option<f64>,
    /// Milliseconds to the end.
    pub latency_ms: f64,
    /// Dollars, all attempts together.
    pub cost_usd: f64,
    /// The grade.
    pub score: Option<Score>,
    /// In a cascade, whether it was accepted.
    pub accepted: Option<bool>,
}

/// An answer as it grows. Dropping it cancels the work.
pub type ChatStream = Pin<Box<dyn Stream<Item = Result<ChatEvent, ClientError>> + Send>>;

/// One request with parts, with every option of the command.
#[derive(Clone, Debug, Default)]
pub struct TaskCall {
    /// `auto` without a name.
    pub model: Option<String>,
    /// What comes before each part's messages.
    pub messages: Vec<Message>,
    /// The parts.
    pub parts: Vec<Part>,
    /// How tokens are drawn; seed 0 stands for none.
    pub sampling: Sampling,
    /// Most tokens of each answer.
    pub max_tokens: Option<u32>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// How arms work together.
    pub mode: Option<Mode>,
    /// Most arms.
    pub max_arms: Option<u32>,
    /// Most dollars.
    pub max_cost: Option<f64>,
    /// Most milliseconds.
    pub max_latency_ms: Option<f64>,
    /// The least score that is accepted.
    pub min_score: Option<Score>,
    /// Context tag, may be empty.
    pub context: String,
    /// The scorer of parts that name none.
    pub scorer: Option<String>,
}

/// A step of a request with parts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TaskStep {
    /// An arm starts on a part.
    Started {
        /// Its name.
        name: String,
        /// Who works on it.
        model: ArmId,
    },
    /// A part has ended.
    Part(PartReport),
    /// The end.
    Done(TaskReport),
}

/// The steps of a request with parts. Dropping it cancels the work.
pub type TaskSteps = Pin<Box<dyn Stream<Item = Result<TaskStep, ClientError>> + Send>>;

/// Why the daemon did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It answered with a refusal.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// OpenAI's error code, if there is one, for example `context_length_exceeded`.
        code: Option<String>,
        /// What it said.
        message: String,
    },
    /// The connection broke.
    #[error("talk to the daemon at `{socket}`")]
    Connection {
        /// The socket.
        socket: Utf8PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It said what we do not understand.
    #[error("understand the daemon at `{socket}`: {reason}")]
    Nonsense {
        /// The socket.
        socket: Utf8PathBuf,
        /// What was odd.
        reason: String,
    },
}

impl Client {
    /// The daemon behind this socket, if one answers.
    pub async fn connect(socket: &Utf8Path) -> Option<Self> {
        let client = Self {
            socket: socket.to_owned(),
        };
        let health = tokio::time::timeout(std::time::Duration::from_secs(2), client.health());
        health.await.ok()?.ok()?;
        Some(client)
    }

    /// What `/health` says.
    pub async fn health(&self) -> Result<Value, ClientError> {
        self.get("/health").await
    }

    /// The names of the models, `auto` first.
    pub async fn models(&self) -> Result<Vec<String>, ClientError> {
        let list = self.get("/v1/models").await?;
        let models = list["data"].as_array().into_iter().flatten();
        Ok(models
            .filter_map(|model| Some(model["id"].as_str()?.to_owned()))
            .collect())
    }

    /// The arms, how they are and what they did.
    pub async fn arms(&self) -> Result<Value, ClientError> {
        self.get("/llmpick/v1/arms").await
    }

    /// Lets it read its settings again and make its pool anew. The answer is a
    /// [`ReloadedArms`](crate::ReloadedArms) as JSON; a refusal leaves the old pool serving.
    pub async fn reload_arms(&self) -> Result<Value, ClientError> {
        self.read(Method::POST, "/llmpick/v1/arms/reload", None)
            .await
    }

    /// The router's plugin: what serves, and why the chosen one does not where so.
    pub async fn plugins(&self) -> Result<Value, ClientError> {
        self.get("/llmpick/v1/plugins").await
    }

    /// Loads the router's plugin anew; what was learnt is handed over. The answer is a
    /// [`Reloaded`](crate::Reloaded) as JSON; a refusal leaves the old one serving.
    pub async fn reload_plugin(&self) -> Result<Value, ClientError> {
        self.read(Method::POST, "/llmpick/v1/plugins/reload", None)
            .await
    }

    /// The person's grade of an answer.
    pub async fn feedback(&self, route: RouteId, score: Score) -> Result<(), ClientError> {
        let body = json!({"route_id": route, "score": score});
        self.read(Method::POST, "/llmpick/v1/feedback", Some(body))
            .await
            .map(drop)
    }

    /// Asks; resolves with the first content.
    pub async fn chat(&self, call: &ChatCall) -> Result<ChatStream, ClientError> {
        let path = "/v1/chat/completions";
        let body = self.send(Method::POST, path, Some(chat_body(call))).await?;
        let reading = Reading {
            client: self.clone(),
            frames: Frames {
                body: BodyStream::new(body),
                buffer: Vec::new(),
            },
            ready: VecDeque::new(),
            end: End::default(),
            over: false,
        };
        Ok(Box::pin(stream::unfold(reading, Reading::step)))
    }

    /// Asks a request with parts; resolves once its plan is made.
    pub async fn task(&self, call: &TaskCall) -> Result<TaskSteps, ClientError> {
        let path = "/llmpick/v1/task";
        let body = self.send(Method::POST, path, Some(task_body(call))).await?;
        let frames = Frames {
            body: BodyStream::new(body),
            buffer: Vec::new(),
        };
        let steps = stream::unfold(Some((self.clone(), frames)), |state| async {
            let (client, mut frames) = state?;
            let step = match frames.next(&client).await {
                Ok(Some(data)) => match data.as_str() {
                    "[DONE]" => return None,
                    data => client.task_step(data),
                },
                Ok(None) => Err(client.nonsense("the task ended without its end".to_owned())),
                Err(error) => Err(error),
            };
            let next = step.is_ok().then_some((client, frames));
            Some((step, next))
        });
        Ok(Box::pin(steps))
    }

    fn task_step(&self, data: &str) -> Result<TaskStep, ClientError> {
        let value: Value =
            serde_json::from_str(data).map_err(|error| self.nonsense(error.to_string()))?;
        if value.get("event").is_none() {
            return Err(refusal(200, &value));
        }
        TaskStep::deserialize(value).map_err(|error| self.nonsense(error.to_string()))
    }

    async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.read(Method::GET, path, None).await
    }

    async fn read(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, ClientError> {
        let body = self.send(method, path, body).await?;
        let bytes = body
            .collect()
            .await
            .map_err(|error| self.broken(error))?
            .to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| self.nonsense(error.to_string()))
    }

    /// One request on a connection of its own; the body of a good answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Incoming, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.broken(error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|error| self.broken(error))?;
        // Ends with the answer, or when the answer is dropped.
        tokio::spawn(connection);
        let bytes = body
            .map(|body| Bytes::from(body.to_string()))
            .unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "localhost")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|error| self.broken(error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(error))?;
        let (head, body) = response.into_parts();
        if head.status == StatusCode::OK {
            return Ok(body);
        }
        let bytes = body
            .collect()
            .await
            .map_err(|error| self.broken(error))?
            .to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Err(refusal(head.status.as_u16(), &value))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Connection {
            socket: self.socket.clone(),
            source: source.into(),
        }
    }

    fn nonsense(&self, reason: String) -> ClientError {
        ClientError::Nonsense {
            socket: self.socket.clone(),
            reason,
        }
    }
}

fn refusal(status: u16, value: &Value) -> ClientError {
    let error = &value["error"];
    ClientError::Refused {
        status,
        code: error["code"].as_str().map(str::to_owned),
        message: error["message"]
            .as_str()
            .unwrap_or("it gave no reason")
            .to_owned(),
    }
}

fn task_body(call: &TaskCall) -> Value {
    let ours = said(json!({
        "mode": call.mode,
        "max_arms": call.max_arms,
        "max_cost": call.max_cost,
        "max_latency_ms": call.max_latency_ms,
        "min_score": call.min_score,
        "context": call.context,
        "scorer": call.scorer,
    }));
    let part = |part: &Part| {
        said(json!({
            "name": part.name,
            "messages": part.messages,
            "reference": part.reference,
            "scorer": part.scorer,
        }))
    };
    let mut body = drawing(&call.sampling);
    let common = (!call.messages.is_empty()).then_some(&call.messages);
    let rest = json!({
        "model": call.model.as_deref().unwrap_or("auto"),
        "messages": common,
        "parts": call.parts.iter().map(part).collect::<Vec<_>>(),
        "stream": true,
        "max_tokens": call.max_tokens,
        "stop": (!call.stop.is_empty()).then_some(&call.stop),
        "llmpick": ours,
    });
    merge(&mut body, rest);
    body
}

/// An object without what says nothing.
fn said(value: Value) -> Value {
    let Value::Object(mut map) = value else {
        return value;
    };
    map.retain(|_, value| !value.is_null() && value != "");
    Value::Object(map)
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn drawing(sampling: &Sampling) -> Value {
    // The seed goes as the signed number of the same bits; the daemon turns it back.
    let seed = (sampling.seed != 0).then_some(sampling.seed as i64);
    json!({
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": sampling.repetition_window,
        "seed": seed,
    })
}

fn chat_body(call: &ChatCall) -> Value {
    let ours = said(json!({
        "mode": call.mode,
        "max_arms": call.max_arms,
        "max_cost": call.max_cost,
        "context": call.context,
        "features": (!call.features.is_empty()).then_some(&call.features),
        "reference": call.reference,
        "scorer": call.scorer,
    }));
    let mut body = drawing(&call.sampling);
    let rest = json!({
        "model": call.model.as_deref().unwrap_or("auto"),
        "messages": call.messages,
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": call.max_tokens,
        "stop": (!call.stop.is_empty()).then_some(&call.stop),
        "llmpick": ours,
    });
    merge(&mut body, rest);
    body
}

/// The parts of the end, which come in two events.
#[derive(Default)]
struct End {
    model: String,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    ours: Option<Ours>,
}

/// The `llmpick` object of the last events.
#[derive(Deserialize)]
struct Ours {
    route_id: RouteId,
    cost_usd: f64,
    score: Option<Score>,
    accepted: Option<bool>,
    ttft_ms: Option<f64>,
    latency_ms: f64,
}

/// The `data:` lines of a body, one by one.
struct Frames {
    body: BodyStream<Incoming>,
    buffer: Vec<u8>,
}

impl Frames {
    /// The data of the next event; `None` at the end. Our own daemon writes one `data:` line each.
    async fn next(&mut self, client: &Client) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let text = String::from_utf8_lossy(&event);
                match text.trim_end().strip_prefix("data: ") {
                    Some(data) => return Ok(Some(data.to_owned())),
                    None => continue,
                }
            }
            let frame = match self.body.next().await {
                Some(frame) => frame.map_err(|error| client.broken(error))?,
                None => return Ok(None),
            };
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

struct Reading {
    client: Client,
    frames: Frames,
    ready: VecDeque<ChatEvent>,
    end: End,
    over: bool,
}

impl Reading {
    async fn step(mut self) -> Option<(Result<ChatEvent, ClientError>, Self)> {
        if self.over {
            return None;
        }
        let event = self.next().await;
        self.over = !matches!(event, Ok(ChatEvent::Text(_)));
        Some((event, self))
    }

    async fn next(&mut self) -> Result<ChatEvent, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match self.frames.next(&self.client).await? {
                Some(data) => self.take(&data)?,
                None => {
                    let reason = "the answer ended without its end".to_owned();
                    return Err(self.client.nonsense(reason));
                }
            }
        }
    }

    fn take(&mut self, data: &str) -> Result<(), ClientError> {
        if data == "[DONE]" {
            let done = self.done()?;
            self.ready.push_back(ChatEvent::Done(done));
            return Ok(());
        }
        let value: Value =
            serde_json::from_str(data).map_err(|error| self.client.nonsense(error.to_string()))?;
        if value.get("error").is_some() {
            return Err(refusal(200, &value));
        }
        if let Some(model) = value["model"].as_str() {
            self.end.model = model.to_owned();
        }
        let choice = &value["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str()
            && !text.is_empty()
        {
            self.ready.push_back(ChatEvent::Text(text.to_owned()));
        }
        match choice["finish_reason"].as_str() {
            Some("length") => self.end.reason = Some(FinishReason::Length),
            Some(_) => self.end.reason = Some(FinishReason::Stop),
            None => {}
        }
        self.take_end(&value)
    }

    fn take_end(&mut self, value: &Value) -> Result<(), ClientError> {
        if value["usage"].is_object() {
            let count = |value: &Value| {
                value
                    .as_u64()
                    .and_then(|count| u32::try_from(count).ok())
                    .unwrap_or(0)
            };
            let usage = &value["usage"];
            self.end.usage = Some(Usage {
                prompt_tokens: count(&usage["prompt_tokens"]),
                cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"]),
                completion_tokens: count(&usage["completion_tokens"]),
            });
        }
        if let Some(ours) = value.get("llmpick") {
            let ours =
                Ours::deserialize(ours).map_err(|error| self.client.nonsense(error.to_string()))?;
            self.end.ours = Some(ours);
        }
        Ok(())
    }

    fn done(&mut self) -> Result<ChatDone, ClientError> {
        let end = std::mem::take(&mut self.end);
        let missing = || {
            self.client
                .nonsense("the end of the answer lacks its figures".to_owned())
        };
        let ours = end.ours.ok_or_else(missing)?;
        Ok(ChatDone {
            model: end.model,
            route_id: ours.route_id,
            usage: end.usage.ok_or_else(missing)?,
            finish_reason: end.reason.ok_or_else(missing)?,
            ttft_ms: ours.ttft_ms,
            latency_ms: ours.latency_ms,
            cost_usd: ours.cost_usd,
            score: ours.score,
            accepted: ours.accepted,
        })
    }
}
