//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use llmpick_core::{ArmId, Mode, RouteId, TokenPiece};
use llmpick_dispatch::{DispatchError, RouteEvent, RouteStream, RouteSummary, Target};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{info, warn};

use super::Serving;
use super::error::ApiError;
use super::reply::{self, Header};
use super::request::{self, ChatRequest};

/// Routes and answers. Nothing is sent before the first content (or the end) is there, so
/// that another arm may take over until then, and an error still has a status of its own.
pub(crate) async fn completions(
    State(serving): State<Arc<Serving>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let permit = serving.admit()?;
    let plain = &serving.app.settings().chat.sampling;
    let mut chat = request::read(&body, &headers, plain)?;
    chat.route.target = target(&serving, &chat.model).await?;
    let route = chat.route.clone();
    let mut events = serving.app.dispatch().run(route).await?;
    let (arm, begun) = first_content(&mut events).await?;
    let header = Header {
        id: format!("chatcmpl-{}", events.route_id()),
        created: now(),
        model: arm.to_string(),
        logprobs: chat.logprobs,
        include_usage: chat.include_usage,
    };
    let answering = Answering {
        header,
        arm,
        events,
        begun,
        _permit: permit,
    };
    match chat.stream {
        true => Ok(answering.streamed()),
        false => answering.whole(&chat).await,
    }
}

/// Who may answer to this name.
pub(crate) async fn target(serving: &Arc<Serving>, model: &str) -> Result<Target, ApiError> {
    if model == "auto" {
        return Ok(Target::Auto);
    }
    if serving.app.arm(model).is_some() {
        let id = ArmId::new(model).map_err(|error| ApiError::internal(&error))?;
        return Ok(Target::Pinned(id));
    }
    // A client must not make the daemon open files: names of the catalogue only. Looking
    // into the cache may hash a file, so not on this thread.
    let (serving, name) = (Arc::clone(serving), model.to_owned());
    let found = tokio::task::spawn_blocking(move || {
        let installed = serving.app.store().installed(&name)?;
        Some(serving.app.local_backend(&installed.name))
    });
    match found.await {
        Ok(Some(Ok(backend))) => Ok(Target::Outside(backend)),
        Ok(Some(Err(error))) => Err(ApiError::invalid("model", crate::app::sentence(&error))),
        Ok(None) => Err(unknown(model)),
        Err(error) => Err(ApiError::internal(&error)),
    }
}

/// Names are not listed: the list is at `/v1/models`.
pub(crate) fn unknown(model: &str) -> ApiError {
    ApiError::unknown_model(model, "those of /v1/models, and `auto`")
}

/// Waits for the first content or the end, and for who it comes from.
///
/// In a cascade in which several arms answered, the released answer may be an earlier arm's,
/// and only the end says whose. Such an answer is complete before any of it is released, so
/// waiting for the end costs nothing.
async fn first_content(
    events: &mut RouteStream,
) -> Result<(ArmId, Vec<RouteEvent>), DispatchError> {
    let mut chosen: Option<ArmId> = None;
    let mut held_back = false;
    let mut begun = Vec::new();
    while let Some(event) = events.next().await {
        match event? {
            RouteEvent::Chosen { arm, decision, .. } => {
                held_back = chosen.is_some() && decision.mode == Mode::AnyWin;
                chosen = Some(arm);
            }
            RouteEvent::Finished(summary) => {
                let arm = summary.arm.clone();
                begun.push(RouteEvent::Finished(summary));
                return Ok((arm, begun));
            }
            token => {
                begun.push(token);
                if let (Some(arm), false) = (&chosen, held_back) {
                    return Ok((arm.clone(), begun));
                }
            }
        }
    }
    Err(DispatchError::Stopped)
}

/// An answer that has begun. Dropping it, as happens when the client goes away, cancels the
/// work and gives the place back.
struct Answering {
    header: Header,
    arm: ArmId,
    events: RouteStream,
    begun: Vec<RouteEvent>,
    _permit: OwnedSemaphorePermit,
}

impl Answering {
    fn streamed(self) -> Response {
        let route_id = self.events.route_id();
        let headers = route_headers(route_id, &self.arm);
        let opening = reply::opening(&self.header);
        let first = stream::iter(self.begun).map(Ok);
        let steps = first.chain(self.events).map(|step| step.map_err(log_cut));
        let (header, permit) = (self.header, self._permit);
        let parts = steps.flat_map(move |step| {
            // The place is taken for as long as the stream lives.
            let _held = &permit;
            if let Ok(RouteEvent::Finished(summary)) = &step {
                log(summary);
            }
            stream::iter(reply::events(&header, step))
        });
        let body = stream::iter([opening])
            .chain(parts)
            .map(Ok::<_, std::io::Error>);
        let mut response = Response::new(Body::from_stream(body));
        let own = response.headers_mut();
        own.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        own.extend(headers);
        response
    }

    async fn whole(self, chat: &ChatRequest) -> Result<Response, ApiError> {
        let mut pieces: Vec<TokenPiece> = Vec::new();
        let mut steps = stream::iter(self.begun).map(Ok).chain(self.events);
        while let Some(step) = steps.next().await {
            match step? {
                RouteEvent::Chosen { .. } => {}
                RouteEvent::Token(piece) => pieces.push(piece),
                RouteEvent::Finished(summary) => {
                    log(&summary);
                    debug_assert!(!chat.stream);
                    let mut headers = route_headers(summary.route_id, &summary.arm);
                    if let Ok(cost) = HeaderValue::from_str(&summary.cost.usd().to_string()) {
                        headers.insert("x-llmpick-cost", cost);
                    }
                    let body = reply::whole(&self.header, &pieces, &summary);
                    return Ok((headers, Json(body)).into_response());
                }
            }
        }
        Err(DispatchError::Stopped.into())
    }
}

fn log(summary: &RouteSummary) {
    info!(
        route = %summary.route_id,
        arm = %summary.arm,
        cost = %summary.cost,
        attempts = summary.attempts.len(),
        latency_ms = summary.latency.as_millis() as u64,
        "chat answered"
    );
}

fn log_cut(error: DispatchError) -> ApiError {
    warn!(error = crate::app::sentence(&error), "answer cut short");
    error.into()
}

fn route_headers(route_id: RouteId, arm: &ArmId) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let pairs = [
        ("x-llmpick-route-id", route_id.to_string()),
        ("x-llmpick-model", arm.to_string()),
    ];
    for (name, value) in pairs {
        // A file's name may have letters that no header can hold; the body has it anyway.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
