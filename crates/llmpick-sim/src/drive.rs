//! One request after another through a router, by the calls that dispatch makes.

use std::time::Duration;

use llmpick_core::{
    ArmId, Candidate, Decision, DecisionSource, Feedback, InvalidScore, Locality, Mode,
    OutcomeKind, RouteId, Router, RouterError, Score, SelectRequest,
};

use crate::chance::derive;

/// What every simulated call takes. The routers that weigh latency find one second neutral.
const LATENCY_MS: f64 = 1000.0;

/// The score from which a cascade takes an answer.
const ACCEPTED: f64 = 0.5;

/// Why a run came to an end before its last round.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlayError {
    /// The router did not start.
    #[error("start the router: {0}")]
    Start(String),
    /// The router had no answer.
    #[error("choose in round {round}")]
    Select {
        /// The round, from 1.
        round: u64,
        /// Why.
        #[source]
        source: RouterError,
    },
    /// The router would not learn.
    #[error("learn in round {round}")]
    Feedback {
        /// The round, from 1.
        round: u64,
        /// Why.
        #[source]
        source: RouterError,
    },
    /// The router broke its contract in a way that a loaded one cannot.
    #[error("the router named arm {index} of {arms} in round {round}")]
    NoSuchArm {
        /// The round, from 1.
        round: u64,
        /// What it named.
        index: u32,
        /// How many there are.
        arms: usize,
    },
    /// A score outside 0..=1.
    #[error(transparent)]
    Score(#[from] InvalidScore),
}

/// One arm as a run presents it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub id: ArmId,
    /// The most a call can cost, in dollars.
    pub cost_max: f64,
}

/// What stays the same over a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub mode: Mode,
    /// N.
    pub max_arms: u32,
    /// ρ in dollars; NaN or infinite for none.
    pub budget: f64,
    pub seed: u64,
}

/// What each arm would answer in one round, had it been asked.
pub(crate) struct Truth<'a> {
    pub context: &'a str,
    pub scores: &'a [f64],
    /// Dollars.
    pub costs: &'a [f64],
}

/// What one round came to.
pub(crate) struct Played {
    /// The plan: indexes into the arms, in order.
    pub choices: Vec<u32>,
    /// How many of the plan ran, from its beginning.
    pub ran: usize,
    /// What those cost together.
    pub paid: f64,
}

/// Decisions that were not the router's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fallbacks {
    pub count: u64,
    /// Why the first one was needed.
    pub reason: Option<String>,
}

/// A router in the middle of a run.
pub(crate) struct Drive {
    router: Box<dyn Router>,
    candidates: Vec<Candidate>,
    rules: Rules,
    round: u64,
    pub fallbacks: Fallbacks,
}

impl Drive {
    pub(crate) fn new(router: Box<dyn Router>, entries: &[Entry], rules: Rules) -> Self {
        Self {
            router,
            candidates: entries.iter().map(stranger).collect(),
            rules,
            round: 0,
            fallbacks: Fallbacks::default(),
        }
    }

    /// Asks, runs what was chosen, and tells the router of every arm that ran.
    pub(crate) fn play(&mut self, truth: &Truth<'_>) -> Result<Played, PlayError> {
        self.round += 1;
        let mut decision = self.select(truth.context)?;
        if decision.mode == Mode::Single {
            decision.choices.truncate(1);
        }
        let is_fallback = self.note(&decision.source);
        let mut played = Played {
            choices: decision.choices,
            ran: 0,
            paid: 0.0,
        };
        for (position, &choice) in (0u32..).zip(&played.choices) {
            let (score, cost) = self.run(choice, position, truth, is_fallback)?;
            played.ran += 1;
            played.paid += cost;
            if decision.mode == Mode::AnyWin && score >= ACCEPTED {
                break;
            }
        }
        Ok(played)
    }

    fn select(&mut self, context: &str) -> Result<Decision, PlayError> {
        let rules = self.rules;
        let request = SelectRequest {
            route_id: RouteId(self.round),
            seed: derive(rules.seed, self.round),
            arms_epoch: 1,
            time_budget: Duration::ZERO,
            candidates: &self.candidates,
            allowed_modes: &[rules.mode],
            task: context,
            session: "",
            prompt: None,
            features: None,
            prompt_tokens: 0,
            max_new_tokens: 0,
            max_cost: f64::NAN,
            max_latency_ms: f64::NAN,
            min_score: f64::NAN,
            cost_budget: if rules.budget.is_finite() {
                rules.budget
            } else {
                f64::NAN
            },
            max_arms: rules.max_arms,
        };
        let round = self.round;
        let decision = self.router.select(&request);
        decision.map_err(|source| PlayError::Select { round, source })
    }

    fn note(&mut self, source: &DecisionSource) -> bool {
        let DecisionSource::Fallback(why) = source else {
            return false;
        };
        self.fallbacks.count += 1;
        self.fallbacks.reason.get_or_insert_with(|| why.clone());
        true
    }

    /// Runs one arm; answers its score and cost.
    fn run(
        &mut self,
        choice: u32,
        position: u32,
        truth: &Truth<'_>,
        fallback: bool,
    ) -> Result<(f64, f64), PlayError> {
        let round = self.round;
        let index = choice as usize;
        let arms = self.candidates.len();
        let known = truth.scores.get(index).zip(truth.costs.get(index));
        let (Some((&score, &cost)), Some(candidate)) = (known, self.candidates.get_mut(index))
        else {
            return Err(PlayError::NoSuchArm {
                round,
                index: choice,
                arms,
            });
        };
        let feedback = Feedback {
            route_id: RouteId(round),
            arm: candidate.id.clone(),
            position,
            outcome: OutcomeKind::Ok,
            task: truth.context.to_owned(),
            features: Vec::new(),
            fallback,
            cold: false,
            prompt_tokens: 0,
            completion_tokens: 0,
            latency_ms: LATENCY_MS,
            ttft_ms: f64::NAN,
            cost,
            score: Some(Score::new(score)?),
        };
        measure(candidate, score);
        let learnt = self.router.feedback(&feedback);
        learnt.map_err(|source| PlayError::Feedback { round, source })?;
        Ok((score, cost))
    }
}

/// An arm of which nothing is known but the most that it can cost. Its expected cost is
/// withheld on purpose: learning it is part of the problem (C2MAB-V, section 3).
fn stranger(entry: &Entry) -> Candidate {
    Candidate {
        id: entry.id.clone(),
        locality: Locality::Remote,
        warm: true,
        eligible: true,
        context_tokens: u32::MAX,
        price_in: f64::NAN,
        price_out: f64::NAN,
        est_cost: f64::NAN,
        cost_max: entry.cost_max,
        latency_ms: f64::NAN,
        ttft_ms: f64::NAN,
        score: f64::NAN,
        n_ok: 0,
        n_err: 0,
        inflight: 0,
    }
}

/// What the host would know of an arm after one more call.
fn measure(candidate: &mut Candidate, score: f64) {
    candidate.n_ok += 1;
    candidate.latency_ms = LATENCY_MS;
    candidate.score = if candidate.score.is_nan() {
        score
    } else {
        candidate.score + (score - candidate.score) / candidate.n_ok as f64
    };
}
