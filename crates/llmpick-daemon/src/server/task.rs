//! `POST /llmpick/v1/task`: a request with parts.
//!
//! Whole, it answers 200 with the report, or with the status of its failure and the report beside
//! the error. In events (`stream: true`), `{"event": "started"}` and `{"event": "part"}` come as
//! parts begin and end, and `{"event": "done"}` is the report.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use llmpick_dispatch::{DispatchError, TaskEvent, TaskStream, TaskSummary};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::info;

use super::Serving;
use super::chat::target;
use super::error::ApiError;
use super::reply::{done, event};
use super::request;
use crate::task::{PartReport, TaskReport};

/// Deals the parts and answers with what became of them.
pub(crate) async fn task(
    State(serving): State<Arc<Serving>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let permit = serving.admit()?;
    let plain = &serving.app.settings().chat.sampling;
    let mut task = request::read_task(&body, &headers, plain)?;
    task.route.target = target(&serving, &task.model).await?;
    let events = serving.app.dispatch().task(task.route).await?;
    if !task.stream {
        return whole(events).await;
    }
    let route_id = events.route_id().to_string();
    let steps = events.map(move |step| {
        // The place is taken for as long as the stream lives.
        let _held = &permit;
        step.map_or_else(
            |error| event(&ApiError::from(error).body()),
            |step| event(&told(step)),
        )
    });
    let last = stream::iter([done()]);
    let body = steps.chain(last).map(Ok::<_, std::io::Error>);
    let mut response = Response::new(Body::from_stream(body));
    let own = response.headers_mut();
    own.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(route_id) = HeaderValue::from_str(&route_id) {
        own.insert("x-llmpick-route-id", route_id);
    }
    Ok(response)
}

async fn whole(mut events: TaskStream) -> Result<Response, ApiError> {
    while let Some(step) = events.next().await {
        if let TaskEvent::Finished(summary) = step? {
            log(&summary);
            let report = TaskReport::from(summary);
            let Some(failure) = &report.failure else {
                return Ok(Json(report).into_response());
            };
            let arm_failed = report.parts.iter().any(|part| part.error.is_some());
            let error = ApiError::task_failed(arm_failed, failure);
            let mut body = error.body();
            body["task"] = value(&report);
            return Ok((error.status, Json(body)).into_response());
        }
    }
    Err(DispatchError::Stopped.into())
}

fn told(step: TaskEvent) -> Value {
    match step {
        TaskEvent::Started { part, name, arm } => {
            json!({"event": "started", "part": part, "name": name, "model": arm})
        }
        TaskEvent::Ended(part) => named("part", &PartReport::from(part)),
        TaskEvent::Finished(summary) => {
            log(&summary);
            named("done", &TaskReport::from(summary))
        }
    }
}

fn named<T: Serialize>(event: &str, report: &T) -> Value {
    let mut value = value(report);
    value["event"] = json!(event);
    value
}

fn value<T: Serialize>(report: &T) -> Value {
    // Reports hold texts, numbers and lists: nothing that JSON has no word for.
    serde_json::to_value(report).unwrap_or_default()
}

fn log(summary: &TaskSummary) {
    info!(
        route = %summary.route_id,
        parts = summary.parts.len(),
        success = summary.success,
        cost = %summary.cost,
        latency_ms = summary.latency.as_millis() as u64,
        "task ended"
    );
}
