//! The contract of whoever turns marginals into a set: the cloud's half of a decision.
//!
//! The one decision that shaped it: a scheduler is told arms and probabilities and nothing
//! else, so that it may stand on another machine. What it must not know (the prompt, scores,
//! costs) is not in [`ScheduleRequest`], and cannot leak by an oversight.

use std::time::Duration;

use crate::{ArmId, Mode, RouteId};

/// One arm as a scheduler sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduledArm {
    /// The arm's stable name.
    pub id: ArmId,
    /// Whether it may be drawn for this request; where not, its marginal is 0.
    pub eligible: bool,
    /// The router's P(arm is in the set), in 0..=1 and finite.
    pub marginal: f64,
}

/// Marginals to draw a set from (the paper's Z̃).
#[derive(Clone, Debug)]
pub struct ScheduleRequest<'a> {
    /// The request's number in the ledger. For notes on this side; it is not sent anywhere.
    pub route_id: RouteId,
    /// The only source of chance.
    pub seed: u64,
    /// Which marginals belong together: a scheduler that holds some between requests holds
    /// them by this text. It is not sent anywhere.
    pub stream: &'a str,
    /// The arms, in the router's order.
    pub arms: &'a [ScheduledArm],
    /// How the set will work together.
    pub mode: Mode,
    /// Most arms in the set, at least 1.
    pub max_arms: u32,
    /// Time allowed for the answer.
    pub time_budget: Duration,
}

/// A set, and the marginals that it was really drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Indexes into the arms, distinct, the likeliest first, at least one.
    pub choices: Vec<u32>,
    /// P(arm is in the set), one per arm. They differ from the request's where an arm was full
    /// or down, or where earlier marginals were still held; these are the propensities to log.
    pub marginals: Vec<f64>,
    /// What people should know about it, for the decision's reason; empty where there is
    /// nothing to say.
    pub note: String,
}

/// Draws sets. Knows which arms are free, full or down; never learns.
pub trait Scheduler: Send + Sync {
    /// Draws a set with the request's marginals. May block for as long as the request's
    /// `time_budget`.
    ///
    /// # Errors
    /// When no set can be drawn.
    fn schedule(&self, request: &ScheduleRequest<'_>) -> Result<Schedule, SchedulerError>;
}

/// Why there is no set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    /// The marginals cannot be rounded.
    #[error("{0}")]
    Marginals(String),
    /// Every arm that could be drawn is full or down.
    #[error("no arm is free: {0}")]
    NoArmFree(String),
    /// It cannot be asked.
    #[error("{0}")]
    Away(String),
}
