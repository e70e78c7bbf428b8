//! The contract of everything that chooses arms.
//!
//! The one decision that shaped it: `select` never learns. All learning happens in
//! `feedback`, which the ledger feeds in its own order, so replaying the ledger rebuilds a
//! router bit for bit, and a decision is a function of state, request and seed alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ArmId, Locality, RouteId, Score};

/// How the chosen arms work together: the reward model of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Run the first arm of the plan.
    Single,
    /// AWC: run in plan order, stop at the first answer that the acceptance scorer takes.
    AnyWin,
    /// SUC: all at once, each arm does its parts, parts add up.
    SumUp,
    /// AIC: all at once, every part must succeed.
    AllIn,
}

/// What a router is told about one arm, for this request. Money is in dollars.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The arm's stable name.
    pub id: ArmId,
    /// Where it computes.
    pub locality: Locality,
    /// No cold start to pay.
    pub warm: bool,
    /// Healthy, fits the context, permitted. Only eligible arms may be chosen.
    pub eligible: bool,
    /// Tokens of its context.
    pub context_tokens: u32,
    /// Dollars per 10⁶ prompt tokens (for a local arm: derived from measured speed; NaN before).
    pub price_in: f64,
    /// Dollars per 10⁶ completion tokens (likewise).
    pub price_out: f64,
    /// Expected dollars of this request; NaN where unknown.
    pub est_cost: f64,
    /// Upper bound of this request in dollars, which scales cost radii; NaN where unknown.
    pub cost_max: f64,
    /// Measured latency of a whole response in ms, smoothed; NaN before the first.
    pub latency_ms: f64,
    /// Measured time to first token in ms, smoothed; NaN before the first.
    pub ttft_ms: f64,
    /// Measured score, smoothed; NaN before the first.
    pub score: f64,
    /// Calls that succeeded.
    pub n_ok: u64,
    /// Calls that failed.
    pub n_err: u64,
    /// Calls running or queued now.
    pub inflight: u32,
}

/// One question to a router.
#[derive(Clone, Debug)]
pub struct SelectRequest<'a> {
    /// The request's number in the ledger.
    pub route_id: RouteId,
    /// The only source of chance: same state, same request, same seed, same decision.
    pub seed: u64,
    /// Changes when the set or the order of arm ids changes.
    pub arms_epoch: u64,
    /// Time allowed for the answer.
    pub time_budget: Duration,
    /// The arms, in an order that is stable within an epoch.
    pub candidates: &'a [Candidate],
    /// Modes that dispatch will run for this request; never empty.
    pub allowed_modes: &'a [Mode],
    /// Context tag, may be empty.
    pub task: &'a str,
    /// Opaque session, may be empty.
    pub session: &'a str,
    /// The prompt; `None` unless the router declared that it needs it.
    pub prompt: Option<&'a str>,
    /// Features of the request; `None` unless the router declared that it needs them.
    pub features: Option<&'a [f32]>,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens that may be generated.
    pub max_new_tokens: u32,
    /// The user's limit for this request in dollars; NaN for none.
    pub max_cost: f64,
    /// The user's limit in ms; NaN for none.
    pub max_latency_ms: f64,
    /// The least score the user accepts; NaN for none.
    pub min_score: f64,
    /// Long-term budget per request in dollars (the paper's ρ); NaN for none.
    pub cost_budget: f64,
    /// Most arms that may run for this request (the paper's N), at least 1.
    pub max_arms: u32,
}

/// A plan: which arms, in which order, how together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Indexes into the candidates, ordered, distinct, each eligible, at least one. Empty only
    /// where `marginals` has one probability per candidate: then a [`Scheduler`](crate::Scheduler)
    /// is to draw the set from them (the paper's local–cloud split).
    pub choices: Vec<u32>,
    /// How the chosen arms work together.
    pub mode: Mode,
    /// P(this set was chosen); NaN if unknown.
    pub propensity: f64,
    /// P(arm is in the set), one per candidate, NaN where unknown. Empty if none are known.
    pub marginals: Vec<f64>,
    /// A short note for people: why these.
    pub reason: String,
    /// Who decided.
    pub source: DecisionSource,
}

/// Who made a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionSource {
    /// The router itself.
    Router,
    /// The built-in fallback, because of the reason given.
    Fallback(String),
    /// The user named the model.
    Pinned,
}

/// How an arm's call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// It answered.
    Ok,
    /// It failed.
    Error,
    /// It took too long.
    Timeout,
    /// The client went away or said stop.
    Cancelled,
}

/// What came back from one arm that ran. May be late, out of order, or from before a reload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// The request it belongs to.
    pub route_id: RouteId,
    /// The arm that ran.
    pub arm: ArmId,
    /// Its place in the plan. A router counts a round when it sees position 0 with a known cost.
    pub position: u32,
    /// How the call ended.
    pub outcome: OutcomeKind,
    /// Context tag, may be empty.
    pub task: String,
    /// The features the request had; empty for none. Every value is finite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<f32>,
    /// The fallback or the user chose, not this router.
    pub fallback: bool,
    /// Latency includes loading the model.
    pub cold: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Whole response in ms; NaN when this is a later score for a call already reported.
    pub latency_ms: f64,
    /// First token in ms; NaN where unknown.
    pub ttft_ms: f64,
    /// Dollars; NaN when this is a later score for a call already reported.
    pub cost: f64,
    /// The grade; `None` when nothing scored it.
    pub score: Option<Score>,
}

/// What a router needs beyond numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterNeeds {
    /// The prompt's text.
    pub prompt: bool,
    /// A feature vector.
    pub features: bool,
}

/// Learnt state in the router's own format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Version of the format, the router's own count.
    pub version: u32,
    /// The bytes.
    pub state: Vec<u8>,
}

/// Chooses arms, and learns from what comes back.
pub trait Router: Send {
    /// Name for people and for the ledger, for example `c2mabv`.
    fn name(&self) -> &str;

    /// What must be put into [`SelectRequest`].
    fn needs(&self) -> RouterNeeds {
        RouterNeeds::default()
    }

    /// Chooses. Must not change learnt state.
    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError>;

    /// Learns from one arm that ran.
    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError>;

    /// All that has been learnt.
    fn snapshot(&mut self) -> Result<Snapshot, RouterError>;

    /// Takes learnt state over; on an error the router stays as it was.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RouterError>;
}

/// Why a router could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// It has no opinion on this request; not a fault.
    #[error("the router abstained")]
    Abstained,
    /// No arm is eligible.
    #[error("no arm can take this request")]
    NoEligibleArm,
    /// It broke the contract, panicked, or missed its deadline.
    #[error("{0}")]
    Fault(String),
    /// The snapshot is not one it understands.
    #[error("the learnt state cannot be read: {0}")]
    State(String),
}
