//! The models, the arms, the routes and their grades.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use bytes::Bytes;
use llmpick_core::{Locality, RouteId, Score};
use llmpick_dispatch::StatsFilter;
use llmpick_store::{ModelKind, Store};
use serde_json::{Value, json};
use tracing::info;

use super::Serving;
use super::chat::unknown;
use super::error::ApiError;

type Reply = Result<Json<Value>, ApiError>;

/// `GET /health`: alive, and whether all is as it should be. Open to everybody, so it says
/// nothing about this machine's files.
pub(crate) async fn health(State(serving): State<Arc<Serving>>) -> Json<Value> {
    let arms = serving.app.dispatch().arms();
    let usable = arms
        .iter()
        .filter(|arm| arm.state().unavailable.is_none())
        .count();
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "router": serving.app.dispatch().router_name(),
        "router_ok": serving.app.router_fault().is_none(),
        "arms": {"total": arms.len(), "usable": usable},
    }))
}

/// `GET /v1/models`.
pub(crate) async fn models(State(serving): State<Arc<Serving>>) -> Reply {
    let data = blocking(move || all_models(&serving)).await?;
    Ok(Json(json!({"object": "list", "data": data})))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model(State(serving): State<Arc<Serving>>, Path(id): Path<String>) -> Reply {
    let models = blocking(move || all_models(&serving)).await?;
    let found = models.into_iter().find(|model| model["id"] == id.as_str());
    found.map(Json).ok_or_else(|| unknown(&id))
}

/// `auto`, the pool, and what else is installed and can be pinned.
fn all_models(serving: &Serving) -> Vec<Value> {
    let started = serving.started;
    let entry = |id: &str, owner: &str| json!({"id": id, "object": "model", "created": started, "owned_by": owner});
    let mut models = vec![entry("auto", "llmpick")];
    let arms = serving.app.dispatch().arms();
    for arm in arms.iter() {
        let arm = arm.arm();
        let owner = match arm.locality {
            Locality::Local => "local",
            Locality::Remote => "remote",
        };
        models.push(entry(arm.id.as_str(), owner));
    }
    for name in generative(&serving.app.store()) {
        if !models.iter().any(|model| model["id"] == name.as_str()) {
            models.push(entry(&name, "local"));
        }
    }
    models
}

fn generative(store: &Store) -> Vec<String> {
    let installed = store.list_installed().unwrap_or_default();
    let names = installed.into_iter().map(|model| model.name);
    let answers = |name: &String| {
        store
            .card(name)
            .is_ok_and(|card| card.kind == ModelKind::Generate)
    };
    names.filter(answers).collect()
}

/// `GET /llmpick/v1/arms`: what each arm is, how it is, what it did.
pub(crate) async fn arms(State(serving): State<Arc<Serving>>) -> Reply {
    blocking(move || {
        let dispatch = serving.app.dispatch();
        let stats = dispatch.stats(&StatsFilter::default())?;
        let arms = dispatch.arms();
        let rows: Vec<Value> = arms
            .iter()
            .map(|backend| {
                let arm = backend.arm();
                let stats = stats.iter().find(|stats| stats.arm == arm.id);
                json!({"arm": arm, "state": backend.state(), "stats": stats})
            })
            .collect();
        Ok(Json(
            json!({"router": dispatch.router_name(), "arms": rows}),
        ))
    })
    .await?
}

/// `POST /llmpick/v1/arms/reload`: the settings are read again, and the pool made anew.
pub(crate) async fn reload_arms(State(serving): State<Arc<Serving>>) -> Reply {
    let reloaded = blocking(move || serving.app.reload_arms()).await?;
    let reloaded = reloaded.map_err(|error| ApiError::settings(&error))?;
    let value = serde_json::to_value(reloaded).map_err(|error| ApiError::internal(&error))?;
    Ok(Json(value))
}

/// `GET /llmpick/v1/routes/{id}` and `…/routes/last`: why this model.
pub(crate) async fn route(State(serving): State<Arc<Serving>>, Path(id): Path<String>) -> Reply {
    blocking(move || {
        let dispatch = serving.app.dispatch();
        let record = match id.as_str() {
            "last" => dispatch
                .last_route()?
                .ok_or_else(|| ApiError::not_found("the ledger has no route yet"))?,
            id => dispatch.route_record(read_id(id)?)?,
        };
        let value = serde_json::to_value(record).map_err(|error| ApiError::internal(&error))?;
        Ok(Json(value))
    })
    .await?
}

/// `POST /llmpick/v1/feedback`: `{"route_id": "r17", "score": 0..=1}`.
pub(crate) async fn feedback(State(serving): State<Arc<Serving>>, body: Bytes) -> Reply {
    let body: Value = serde_json::from_slice(&body)
        .map_err(|error| ApiError::invalid("", format!("the body is no JSON: {error}")))?;
    let known = ["route_id", "score"];
    let keys = body.as_object().into_iter().flat_map(|map| map.keys());
    if let Some(key) = keys.into_iter().find(|key| !known.contains(&key.as_str())) {
        return Err(ApiError::invalid(
            key,
            format!("the field `{key}` is not known here"),
        ));
    }
    let route_id = match &body["route_id"] {
        Value::String(text) => read_id(text)?,
        Value::Number(number) if number.as_u64().is_some() => read_id(&number.to_string())?,
        _ => {
            return Err(ApiError::invalid(
                "route_id",
                "`route_id` has to be there, such as \"r17\"",
            ));
        }
    };
    let score = body["score"]
        .as_f64()
        .ok_or_else(|| ApiError::invalid("score", "`score` has to be a number from 0 to 1"))?;
    let score = Score::new(score).map_err(|error| ApiError::invalid("score", error.to_string()))?;
    serving
        .app
        .dispatch()
        .feedback(route_id, score, "user")
        .await?;
    info!(route = %route_id, %score, "feedback taken");
    Ok(Json(json!({"route_id": route_id, "score": score})))
}

fn read_id(text: &str) -> Result<RouteId, ApiError> {
    text.parse()
        .map_err(|error: llmpick_core::InvalidId| ApiError::invalid("route_id", error.to_string()))
}

/// Reads files and the ledger off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(&error))
}
