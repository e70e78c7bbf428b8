//! `POST /llmpick/v1/schedule`: sets for other llmpicks, drawn from their marginals.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use llmpick_core::ArmId;
use llmpick_remote::schedule::{Reason, ScheduleCall, ScheduleReply};
use tracing::{debug, warn};

use super::Serving;
use super::error::ApiError;
use crate::scheduling::Refused;

/// How long the answer may wait for what the ledger knows of failures. Without it, an arm is
/// taken to be as healthy as it says itself.
const HEALTH: Duration = Duration::from_millis(20);

/// Draws one set.
pub(crate) async fn schedule(
    State(serving): State<Arc<Serving>>,
    body: Bytes,
) -> Result<Json<ScheduleReply>, ApiError> {
    let Some(sessions) = &serving.sessions else {
        return Err(ApiError::not_found(
            "this llmpick draws no sets; start it with `llmpick serve --scheduler`",
        ));
    };
    let call: ScheduleCall = serde_json::from_slice(&body).map_err(|error| {
        ApiError::invalid("", format!("the question is not understood: {error}"))
    })?;
    let away = away(&serving).await;
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = sessions.answer(&call, |arm| away.get(arm).copied());
    drop(sessions);
    match answer {
        Ok(reply) => {
            debug!(
                session = call.session,
                sequence = call.sequence,
                "set drawn"
            );
            Ok(Json(reply))
        }
        Err(Refused::Wrong(field, message)) => Err(ApiError::invalid(field, message)),
        Err(Refused::UnknownSession) => Err(ApiError::unknown_session()),
        Err(Refused::NoArmFree(away)) => {
            let names: Vec<String> = away.iter().map(|away| away.arm.to_string()).collect();
            let message = format!(
                "every arm that may run is full or down: {}",
                names.join(", ")
            );
            Err(ApiError::no_arm_free(message))
        }
    }
}

/// The arms of the pool that cannot run now.
async fn away(serving: &Arc<Serving>) -> HashMap<ArmId, Reason> {
    let queue = serving.app.settings().scheduler.queue;
    let arms = serving.app.dispatch().arms();
    let mut away = HashMap::new();
    let mut open = Vec::new();
    for backend in arms.iter() {
        let (id, state) = (backend.arm().id.clone(), backend.state());
        match (&state.unavailable, state.inflight >= queue) {
            (Some(_), _) => drop(away.insert(id, Reason::Down)),
            (None, true) => drop(away.insert(id, Reason::Full)),
            (None, false) => open.push(id),
        }
    }
    let reading = {
        let serving = Arc::clone(serving);
        tokio::task::spawn_blocking(move || failing(&serving, open))
    };
    match tokio::time::timeout(HEALTH, reading).await {
        Ok(Ok(failing)) => away.extend(failing.into_iter().map(|id| (id, Reason::Down))),
        _ => warn!("the ledger did not say in time which arms failed"),
    }
    away
}

/// Those whose last calls all failed, not long ago.
fn failing(serving: &Serving, arms: Vec<ArmId>) -> Vec<ArmId> {
    let settings = &serving.app.settings().scheduler;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_millis() as u64);
    let is_down = |arm: &ArmId| {
        let ledger = serving.app.ledger();
        match ledger.failing_since(arm, settings.down_after) {
            Ok(since) => since.is_some_and(|since| {
                Duration::from_millis(now.saturating_sub(since)) < settings.cool_down
            }),
            Err(error) => {
                warn!(%arm, %error, "the ledger does not say whether the arm fails");
                false
            }
        }
    };
    arms.into_iter().filter(is_down).collect()
}
