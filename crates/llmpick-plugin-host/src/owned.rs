//! A request that can be kept.

use std::time::Duration;

use llmpick_core::{Candidate, Mode, RouteId, SelectRequest};

/// A request that outlives its caller's patience: the plugin may still read it when the
/// caller has gone on.
pub(crate) struct OwnedRequest {
    pub route_id: RouteId,
    pub seed: u64,
    pub arms_epoch: u64,
    pub time_budget: Duration,
    pub candidates: Vec<Candidate>,
    pub allowed_modes: Vec<Mode>,
    pub task: String,
    pub session: String,
    pub prompt: Option<String>,
    pub features: Option<Vec<f32>>,
    pub prompt_tokens: u32,
    pub max_new_tokens: u32,
    pub max_cost: f64,
    pub max_latency_ms: f64,
    pub min_score: f64,
    pub cost_budget: f64,
    pub max_arms: u32,
}

impl OwnedRequest {
    pub(crate) fn new(request: &SelectRequest<'_>) -> Self {
        Self {
            route_id: request.route_id,
            seed: request.seed,
            arms_epoch: request.arms_epoch,
            time_budget: request.time_budget,
            candidates: request.candidates.to_vec(),
            allowed_modes: request.allowed_modes.to_vec(),
            task: request.task.to_owned(),
            session: request.session.to_owned(),
            prompt: request.prompt.map(str::to_owned),
            features: request.features.map(<[f32]>::to_vec),
            prompt_tokens: request.prompt_tokens,
            max_new_tokens: request.max_new_tokens,
            max_cost: request.max_cost,
            max_latency_ms: request.max_latency_ms,
            min_score: request.min_score,
            cost_budget: request.cost_budget,
            max_arms: request.max_arms,
        }
    }

    pub(crate) fn borrow(&self) -> SelectRequest<'_> {
        SelectRequest {
            route_id: self.route_id,
            seed: self.seed,
            arms_epoch: self.arms_epoch,
            time_budget: self.time_budget,
            candidates: &self.candidates,
            allowed_modes: &self.allowed_modes,
            task: &self.task,
            session: &self.session,
            prompt: self.prompt.as_deref(),
            features: self.features.as_deref(),
            prompt_tokens: self.prompt_tokens,
            max_new_tokens: self.max_new_tokens,
            max_cost: self.max_cost,
            max_latency_ms: self.max_latency_ms,
            min_score: self.min_score,
            cost_budget: self.cost_budget,
            max_arms: self.max_arms,
        }
    }
}
