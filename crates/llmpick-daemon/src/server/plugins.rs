//! The router's plugin: what serves, and loading it anew on command, signal and change. The
//! signal renews the arms as well.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Serving;
use super::error::ApiError;
use crate::reload::{Watcher, reload_and_log, reload_arms_and_log, reload_if_other};

/// How often the router's file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// `POST /llmpick/v1/plugins/reload`: the router's library anew, with what was learnt.
pub(crate) async fn reload(State(serving): State<Arc<Serving>>) -> Result<Json<Value>, ApiError> {
    let work = move || serving.app.reload_router();
    let done = tokio::task::spawn_blocking(work).await;
    let reloaded = done
        .map_err(|error| ApiError::internal(&error))?
        .map_err(|error| ApiError::plugin(&error))?;
    let value = serde_json::to_value(reloaded).map_err(|error| ApiError::internal(&error))?;
    Ok(Json(value))
}

/// `GET /llmpick/v1/plugins`: what serves, and why the chosen one does not where so.
pub(crate) async fn status(State(serving): State<Arc<Serving>>) -> Json<Value> {
    let app = &serving.app;
    let settings = app.settings();
    Json(json!({
        "router": app.dispatch().router_name(),
        "plugin": settings.router.plugin,
        "sha256": app.router_sha256(),
        "fault": app.router_fault(),
        "isolation": format!("{:?}", settings.plugins.isolation).to_lowercase(),
        "watch": settings.plugins.watch,
    }))
}

/// Reloads at every SIGHUP, and when the file changes where the settings want that. Never ends.
pub(super) async fn keep_fresh(serving: Arc<Serving>) {
    let watch = serving.app.settings().plugins.watch;
    tokio::join!(on_signal(Arc::clone(&serving)), async {
        if watch {
            on_change(serving).await;
        }
    });
}

async fn on_signal(serving: Arc<Serving>) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => return warn!(%error, "SIGHUP reloads nothing here"),
    };
    while hangups.recv().await.is_some() {
        info!("told by SIGHUP to reload the arms and the router");
        let serving = Arc::clone(&serving);
        let reload = move || {
            reload_arms_and_log(&serving.app);
            reload_and_log(&serving.app);
        };
        // A panic in it is in the log already.
        let _ = tokio::task::spawn_blocking(reload).await;
    }
}

async fn on_change(serving: Arc<Serving>) {
    let mut watcher = Watcher::default();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let serving = Arc::clone(&serving);
        let look = move || {
            if watcher.has_changed(serving.app.settings()) {
                reload_if_other(&serving.app);
            }
            watcher
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(back) => watcher = back,
            Err(error) => return warn!(%error, "the router's file is not watched any more"),
        }
    }
}
