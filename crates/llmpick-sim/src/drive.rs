//! One request after another through a router, by the calls that dispatch makes.

use std::time::Duration;

use llmpick_core::{
    ArmId, Candidate, Decision, DecisionSource, Feedback, InvalidScore, Locality, Mode,
    OutcomeKind, RouteId, Router, RouterError, Score, SelectRequest,
};

use crate::TokenPrice;
use crate::chance::derive;

/// What a call takes where nobody measured. The routers that weigh latency find one second
/// neutral.
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
    /// Whoever looked on had enough.
    #[error("it was stopped")]
    Stopped,
}

/// One arm as a run presents it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub id: ArmId,
    /// The most a call can cost, in dollars.
    pub cost_max: f64,
    pub known: Known,
}

/// What a router is told of an arm's cost beside its bound.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known {
    /// Nothing: learning it is part of the problem (C2MAB-V, section 3).
    Nothing,
    /// Its mean, in dollars.
    Mean(f64),
    /// Its prices, as in life: the prompt's cost is known exactly, and the answer is expected
    /// to be as long as the arm's answers so far.
    Price(TokenPrice),
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
    /// Milliseconds; `None` where nobody measured.
    pub latencies: Option<&'a [f64]>,
    /// `None` where nobody counted.
    pub tokens: Option<Tokens<'a>>,
}

/// Tokens of one round.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub prompt: f64,
    /// Of each arm's answer.
    pub answers: &'a [f64],
    /// Of each arm's longest answer, which bounds its cost.
    pub longest: &'a [f64],
}

/// What one round came to.
pub(crate) struct Played {
    /// The plan: indexes into the arms, in order.
    pub choices: Vec<u32>,
    /// P(arm is chosen), one for each arm, or empty.
    pub marginals: Vec<f64>,
    /// How many of the plan ran, from its beginning.
    pub ran: usize,
    /// What those cost together.
    pub paid: f64,
    /// How long they took, one after another, in ms.
    pub waited_ms: f64,
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
    known: Vec<Known>,
    /// Length of each arm's answers so far, in tokens.
    written: Vec<Mean>,
    rules: Rules,
    round: u64,
    pub fallbacks: Fallbacks,
}

/// A running mean.
#[derive(Clone, Copy, Default)]
struct Mean {
    count: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
    }

    /// NaN of nothing.
    fn value(&self) -> f64 {
        self.sum / self.count
    }
}

impl Drive {
    pub(crate) fn new(router: Box<dyn Router>, entries: &[Entry], rules: Rules) -> Self {
        Self {
            router,
            candidates: entries.iter().map(stranger).collect(),
            known: entries.iter().map(|entry| entry.known).collect(),
            written: vec![Mean::default(); entries.len()],
            rules,
            round: 0,
            fallbacks: Fallbacks::default(),
        }
    }

    /// Makes the router meet every arm, by a report of a call that had neither cost nor grade.
    /// A router that gives strangers a share of their own then begins as on paper, with all arms
    /// alike.
    pub(crate) fn introduce(&mut self) -> Result<(), PlayError> {
        for candidate in &self.candidates {
            let met = self.router.feedback(&Feedback {
                route_id: RouteId(0),
                arm: candidate.id.clone(),
                position: 0,
                outcome: OutcomeKind::Ok,
                task: String::new(),
                features: Vec::new(),
                fallback: false,
                cold: false,
                prompt_tokens: 0,
                completion_tokens: 0,
                latency_ms: f64::NAN,
                ttft_ms: f64::NAN,
                cost: f64::NAN,
                score: None,
            });
            met.map_err(|source| PlayError::Feedback { round: 0, source })?;
        }
        Ok(())
    }

    /// Asks, runs what was chosen, and tells the router of every arm that ran.
    pub(crate) fn play(&mut self, truth: &Truth<'_>) -> Result<Played, PlayError> {
        self.round += 1;
        if let Some(tokens) = truth.tokens {
            self.price(tokens);
        }
        let mut decision = self.select(truth)?;
        if decision.mode == Mode::Single {
            decision.choices.truncate(1);
        }
        let is_fallback = self.note(&decision.source);
        let mut played = Played {
            choices: decision.choices,
            marginals: decision.marginals,
            ran: 0,
            paid: 0.0,
            waited_ms: 0.0,
        };
        for (position, &choice) in (0u32..).zip(&played.choices) {
            let (score, cost, latency_ms) = self.run(choice, position, truth, is_fallback)?;
            played.ran += 1;
            played.paid += cost;
            played.waited_ms += latency_ms;
            if decision.mode == Mode::AnyWin && score >= ACCEPTED {
                break;
            }
        }
        Ok(played)
    }

    /// What each arm with known prices is expected to cost this time, and can cost at most: as
    /// dispatch reckons it, an arm that never ran is expected to write as much as the others do.
    fn price(&mut self, tokens: Tokens<'_>) {
        let lengths = self.written.iter().filter(|mean| mean.count > 0.0);
        let (count, sum) = lengths.fold((0.0, 0.0), |(n, sum), mean| (n + 1.0, sum + mean.value()));
        let usual = sum / count;
        let arms = self.candidates.iter_mut().zip(&self.known);
        let lengths = self.written.iter().zip(tokens.longest);
        for ((candidate, known), (written, &longest)) in arms.zip(lengths) {
            let Known::Price(price) = known else { continue };
            let expected = match written.count {
                0.0 => usual,
                _ => written.value(),
            };
            candidate.est_cost = price.of(tokens.prompt, expected.min(longest));
            if expected.is_nan() {
                candidate.est_cost = f64::NAN;
            }
            candidate.cost_max = price.of(tokens.prompt, longest);
        }
    }

    fn select(&mut self, truth: &Truth<'_>) -> Result<Decision, PlayError> {
        let rules = self.rules;
        let whole = |tokens: f64| tokens.ceil() as u32;
        let longest = |tokens: Tokens<'_>| tokens.longest.iter().copied().fold(0.0, f64::max);
        let request = SelectRequest {
            route_id: RouteId(self.round),
            seed: derive(rules.seed, self.round),
            arms_epoch: 1,
            time_budget: Duration::ZERO,
            candidates: &self.candidates,
            allowed_modes: &[rules.mode],
            task: truth.context,
            session: "",
            prompt: None,
            features: None,
            prompt_tokens: truth.tokens.map_or(0, |tokens| whole(tokens.prompt)),
            max_new_tokens: truth.tokens.map_or(0, |tokens| whole(longest(tokens))),
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

    /// Runs one arm; answers its score, its cost and its latency.
    fn run(
        &mut self,
        choice: u32,
        position: u32,
        truth: &Truth<'_>,
        fallback: bool,
    ) -> Result<(f64, f64, f64), PlayError> {
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
        let latency_ms = truth.latencies.and_then(|all| all.get(index));
        let latency_ms = latency_ms.copied().unwrap_or(LATENCY_MS);
        let answer = truth.tokens.and_then(|tokens| tokens.answers.get(index));
        if let Some((&length, written)) = answer.zip(self.written.get_mut(index)) {
            written.add(length);
        }
        let whole = |tokens: f64| tokens.round() as u32;
        let feedback = Feedback {
            route_id: RouteId(round),
            arm: candidate.id.clone(),
            position,
            outcome: OutcomeKind::Ok,
            task: truth.context.to_owned(),
            features: Vec::new(),
            fallback,
            cold: false,
            prompt_tokens: truth.tokens.map_or(0, |tokens| whole(tokens.prompt)),
            completion_tokens: answer.map_or(0, |length| whole(*length)),
            latency_ms,
            ttft_ms: f64::NAN,
            cost,
            score: Some(Score::new(score)?),
        };
        measure(candidate, score, latency_ms);
        let learnt = self.router.feedback(&feedback);
        learnt.map_err(|source| PlayError::Feedback { round, source })?;
        Ok((score, cost, latency_ms))
    }
}

/// An arm of which nothing has been seen.
fn stranger(entry: &Entry) -> Candidate {
    let (price_in, price_out) = match entry.known {
        Known::Price(price) => (price.input, price.output),
        Known::Nothing | Known::Mean(_) => (f64::NAN, f64::NAN),
    };
    let est_cost = match entry.known {
        Known::Mean(cost) => cost,
        Known::Nothing | Known::Price(_) => f64::NAN,
    };
    Candidate {
        id: entry.id.clone(),
        locality: Locality::Remote,
        warm: true,
        eligible: true,
        context_tokens: u32::MAX,
        price_in,
        price_out,
        est_cost,
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
fn measure(candidate: &mut Candidate, score: f64, latency_ms: f64) {
    candidate.n_ok += 1;
    candidate.latency_ms = latency_ms;
    candidate.score = if candidate.score.is_nan() {
        score
    } else {
        candidate.score + (score - candidate.score) / candidate.n_ok as f64
    };
}
