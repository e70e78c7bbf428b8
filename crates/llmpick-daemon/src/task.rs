//! What a request with parts came to, as JSON has it: the same from a daemon and from a command
//! that answers itself.

use std::time::Duration;

use llmpick_core::{ArmId, FinishReason, Mode, OutcomeKind, RouteId, Score, Usage};
use llmpick_dispatch::{Attempt, PartSummary, TaskSummary};
use serde::{Deserialize, Serialize};

/// How a request with parts went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its route.
    pub route_id: RouteId,
    /// `sum_up` or `all_in`.
    pub mode: Mode,
    /// `sum_up`: a part was answered. `all_in`: every part was, well enough.
    pub success: bool,
    /// Why there is no success, with the names of the parts.
    pub failure: Option<String>,
    /// Sum of the parts' scores; `null` when nothing was graded.
    pub score_sum: Option<f64>,
    /// Tokens of all attempts.
    pub usage: Usage,
    /// Dollars, all attempts together.
    pub cost_usd: f64,
    /// Milliseconds to the end of the last part.
    pub latency_ms: f64,
    /// The arms that the parts were dealt over, in the plan's order.
    pub arms: Vec<ArmId>,
    /// The parts, in the order of the request.
    pub parts: Vec<PartReport>,
}

/// How one part went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// Which, from 0.
    pub part: usize,
    /// Its name.
    pub name: String,
    /// Who answered; `null` when nobody did.
    pub model: Option<ArmId>,
    /// The answer, empty when there is none.
    pub text: String,
    /// Why the answer ended.
    pub finish_reason: Option<FinishReason>,
    /// Its grade; `null` when nothing could grade it.
    pub score: Option<Score>,
    /// Answered, and not graded below the acceptance threshold.
    pub accepted: bool,
    /// Dollars, all its attempts together.
    pub cost_usd: f64,
    /// Milliseconds from the request's arrival to this part's end, waiting for its arm included.
    pub latency_ms: f64,
    /// Every arm that tried it, in order.
    pub attempts: Vec<AttemptReport>,
    /// Why nobody answered.
    pub error: Option<String>,
}

/// One arm's try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// Who.
    pub model: ArmId,
    /// How it ended.
    pub outcome: OutcomeKind,
    /// Tokens.
    pub usage: Usage,
    /// Milliseconds from its start to its end.
    pub latency_ms: f64,
    /// Milliseconds to its first content.
    pub ttft_ms: Option<f64>,
    /// Dollars.
    pub cost_usd: f64,
    /// What went wrong.
    pub error: Option<String>,
}

impl From<TaskSummary> for TaskReport {
    fn from(summary: TaskSummary) -> Self {
        Self {
            route_id: summary.route_id,
            mode: summary.mode,
            success: summary.success,
            failure: summary.failure,
            score_sum: summary.score_sum,
            usage: summary.usage,
            cost_usd: summary.cost.usd(),
            latency_ms: ms(summary.latency),
            arms: summary.arms,
            parts: summary.parts.into_iter().map(PartReport::from).collect(),
        }
    }
}

impl From<PartSummary> for PartReport {
    fn from(part: PartSummary) -> Self {
        Self {
            part: part.part,
            name: part.name,
            model: part.arm,
            text: part.text,
            finish_reason: part.reason,
            score: part.score,
            accepted: part.accepted,
            cost_usd: part.cost.usd(),
            latency_ms: ms(part.latency),
            attempts: part.attempts.into_iter().map(AttemptReport::from).collect(),
            error: part.error,
        }
    }
}

impl From<Attempt> for AttemptReport {
    fn from(attempt: Attempt) -> Self {
        Self {
            model: attempt.arm,
            outcome: attempt.outcome,
            usage: attempt.usage,
            latency_ms: ms(attempt.latency),
            ttft_ms: attempt.ttft.map(ms),
            cost_usd: attempt.cost.usd(),
            error: attempt.error,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
