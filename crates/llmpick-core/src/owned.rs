//! A request that can be kept.

use std::time::Duration;

use crate::{Candidate, Mode, RouteId, SelectRequest};

/// A [`SelectRequest`] with everything in it: for a router that may still read it when the caller
/// has gone on, or that is asked later. The fields are the request's.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented in SelectRequest")]
pub struct OwnedRequest {
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

impl Default for OwnedRequest {
    fn default() -> Self {
        Self {
            route_id: RouteId(0),
            seed: 0,
            arms_epoch: 0,
            time_budget: Duration::ZERO,
            candidates: Vec::new(),
            allowed_modes: Vec::new(),
            task: String::new(),
            session: String::new(),
            prompt: None,
            features: None,
            prompt_tokens: 0,
            max_new_tokens: 0,
            max_cost: f64::NAN,
            max_latency_ms: f64::NAN,
            min_score: f64::NAN,
            cost_budget: f64::NAN,
            max_arms: 0,
        }
    }
}

impl OwnedRequest {
    /// Becomes a copy of `request` in the memory that it has: the arms of one pool have the
    /// same names from request to request.
    pub fn assign(&mut self, request: &SelectRequest<'_>) {
        let Self {
            mut candidates,
            mut allowed_modes,
            mut task,
            mut session,
            ..
        } = std::mem::take(self);
        candidates.truncate(request.candidates.len());
        for (own, new) in candidates.iter_mut().zip(request.candidates) {
            assign(own, new);
        }
        let known = candidates.len();
        candidates.extend_from_slice(&request.candidates[known..]);
        request.allowed_modes.clone_into(&mut allowed_modes);
        request.task.clone_into(&mut task);
        request.session.clone_into(&mut session);
        *self = Self {
            route_id: request.route_id,
            seed: request.seed,
            arms_epoch: request.arms_epoch,
            time_budget: request.time_budget,
            candidates,
            allowed_modes,
            task,
            session,
            prompt: request.prompt.map(str::to_owned),
            features: request.features.map(<[f32]>::to_vec),
            prompt_tokens: request.prompt_tokens,
            max_new_tokens: request.max_new_tokens,
            max_cost: request.max_cost,
            max_latency_ms: request.max_latency_ms,
            min_score: request.min_score,
            cost_budget: request.cost_budget,
            max_arms: request.max_arms,
        };
    }

    /// The request again.
    pub fn borrow(&self) -> SelectRequest<'_> {
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

/// Copies without a new name where the name is the same.
fn assign(own: &mut Candidate, new: &Candidate) {
    if own.id != new.id {
        own.clone_from(new);
        return;
    }
    let Candidate {
        id: _,
        locality,
        warm,
        eligible,
        context_tokens,
        price_in,
        price_out,
        est_cost,
        cost_max,
        latency_ms,
        ttft_ms,
        score,
        n_ok,
        n_err,
        inflight,
    } = new;
    own.locality = *locality;
    own.warm = *warm;
    own.eligible = *eligible;
    own.context_tokens = *context_tokens;
    own.price_in = *price_in;
    own.price_out = *price_out;
    own.est_cost = *est_cost;
    own.cost_max = *cost_max;
    own.latency_ms = *latency_ms;
    own.ttft_ms = *ttft_ms;
    own.score = *score;
    own.n_ok = *n_ok;
    own.n_err = *n_err;
    own.inflight = *inflight;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{ArmId, Locality};

    fn arm(number: u32, round: u64) -> Candidate {
        Candidate {
            id: ArmId::new(format!("arm{number}")).unwrap(),
            locality: Locality::Local,
            warm: round.is_multiple_of(2),
            eligible: number.is_multiple_of(2),
            context_tokens: number,
            price_in: 0.5,
            price_out: f64::NAN,
            est_cost: f64::from(number),
            cost_max: 7.0,
            latency_ms: round as f64,
            ttft_ms: 3.0,
            score: 0.25,
            n_ok: round,
            n_err: 2,
            inflight: 1,
        }
    }

    #[test]
    fn whatever_was_in_it_before_it_is_a_copy() {
        let mut owned = OwnedRequest::default();
        let pools = [0..5u32, 0..5, 3..9, 2..4, 0..0, 0..7];
        for (round, pool) in (1..).zip(pools) {
            let arms: Vec<Candidate> = pool.map(|number| arm(number, round)).collect();
            let request = SelectRequest {
                route_id: RouteId(round),
                seed: round + 1,
                arms_epoch: round + 2,
                time_budget: Duration::from_millis(round),
                candidates: &arms,
                allowed_modes: &[Mode::Single, Mode::AnyWin],
                task: ["", "maths"][(round % 2) as usize],
                session: "evening",
                prompt: Some("why").filter(|_| round == 2),
                features: Some([0.5f32].as_slice()).filter(|_| round == 3),
                prompt_tokens: 4,
                max_new_tokens: 5,
                max_cost: 0.1,
                max_latency_ms: f64::NAN,
                min_score: 0.2,
                cost_budget: 0.3,
                max_arms: 6,
            };
            owned.assign(&request);
            // As text, in which NaN is like NaN.
            assert_eq!(format!("{:?}", owned.borrow()), format!("{request:?}"));
        }
    }
}
