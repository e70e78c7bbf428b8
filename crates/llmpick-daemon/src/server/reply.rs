//! Answers in OpenAI's shape: whole, or in events.

use bytes::Bytes;
use llmpick_core::{FinishReason, TokenPiece, Usage};
use llmpick_dispatch::{RouteEvent, RouteSummary};
use serde_json::{Value, json};

use super::error::ApiError;

/// What every part of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) logprobs: bool,
    pub(crate) include_usage: bool,
}

/// The whole answer.
pub(crate) fn whole(header: &Header, pieces: &[TokenPiece], summary: &RouteSummary) -> Value {
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    json!({
        "id": header.id,
        "object": "chat.completion",
        "created": header.created,
        "model": header.model,
        "system_fingerprint": null,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": logprobs(header, pieces),
            "finish_reason": finish_reason(summary.reason),
        }],
        "usage": usage(summary.usage),
        "llmpick": ours(summary),
    })
}

/// The first event: who speaks.
pub(crate) fn opening(header: &Header) -> Bytes {
    let delta = json!({"role": "assistant", "content": "", "refusal": null});
    event(&chunk(header, delta, Value::Null, None))
}

/// The events that one step of the route becomes.
pub(crate) fn events(header: &Header, step: Result<RouteEvent, ApiError>) -> Vec<Bytes> {
    match step {
        Ok(RouteEvent::Chosen { .. }) => Vec::new(),
        Ok(RouteEvent::Token(piece)) => token(header, &piece),
        Ok(RouteEvent::Finished(summary)) => closing(header, &summary),
        Err(error) => vec![event(&error.body()), done()],
    }
}

fn token(header: &Header, piece: &TokenPiece) -> Vec<Bytes> {
    if piece.text.is_empty() && (!header.logprobs || piece.logprobs.is_empty()) {
        return Vec::new();
    }
    let delta = json!({"content": piece.text});
    let logprobs = logprobs(header, std::slice::from_ref(piece));
    vec![event(&chunk(header, delta, logprobs, None))]
}

fn closing(header: &Header, summary: &RouteSummary) -> Vec<Bytes> {
    let reason = Some(finish_reason(summary.reason));
    let mut last = chunk(header, json!({}), Value::Null, reason);
    last["llmpick"] = ours(summary);
    let mut events = vec![event(&last)];
    if header.include_usage {
        let mut bill = chunk(header, json!({}), Value::Null, None);
        bill["choices"] = json!([]);
        bill["usage"] = usage(summary.usage);
        events.push(event(&bill));
    }
    events.push(done());
    events
}

fn chunk(header: &Header, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
    let mut chunk = json!({
        "id": header.id,
        "object": "chat.completion.chunk",
        "created": header.created,
        "model": header.model,
        "system_fingerprint": null,
        "choices": [{
            "index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason,
        }],
    });
    if header.include_usage {
        chunk["usage"] = Value::Null;
    }
    chunk
}

pub(crate) fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

pub(crate) fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// One entry for each token. A piece that took several tokens to become whole characters
/// has its text at the last of them.
fn logprobs(header: &Header, pieces: &[TokenPiece]) -> Value {
    if !header.logprobs {
        return Value::Null;
    }
    let mut entries = Vec::new();
    for piece in pieces {
        for (index, logprob) in piece.logprobs.iter().enumerate() {
            let is_last = index + 1 == piece.logprobs.len();
            let text = if is_last { piece.text.as_str() } else { "" };
            entries.push(json!({
                "token": text,
                // JSON has no infinities; OpenAI writes -9999 for "next to impossible".
                "logprob": if logprob.is_finite() { *logprob } else { -9999.0 },
                "bytes": text.as_bytes(),
                "top_logprobs": [],
            }));
        }
    }
    json!({"content": entries, "refusal": null})
}

/// What our own clients show: the route, its price and its score.
fn ours(summary: &RouteSummary) -> Value {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    json!({
        "route_id": summary.route_id,
        "cost_usd": summary.cost.usd(),
        "score": summary.score,
        "accepted": summary.accepted,
        "mode": summary.mode,
        "ttft_ms": summary.ttft.map(ms),
        "latency_ms": ms(summary.latency),
        "attempts": summary.attempts.len(),
    })
}
