//! What comes back from dispatch: the answer as it grows, then the bill.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use llmpick_core::{
    ArmId, Decision, DecisionSource, FinishReason, Mode, NanoDollars, OutcomeKind, RouteId, Score,
    TokenPiece, Usage,
};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::DispatchError;

/// One step of a routed request.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteEvent {
    /// An arm starts. Comes again when the next arm of a cascade starts or when another arm
    /// takes over; never after the first [`Token`](Self::Token).
    Chosen {
        /// The request's number in the ledger.
        route_id: RouteId,
        /// Who works now.
        arm: ArmId,
        /// The plan it comes from.
        decision: Decision,
    },
    /// A part of the answer. In a cascade, parts come only once an answer is accepted.
    Token(TokenPiece),
    /// The end. Everything in it is in the ledger by now.
    Finished(RouteSummary),
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteSummary {
    /// The request's number in the ledger.
    pub route_id: RouteId,
    /// Whose answer was released.
    pub arm: ArmId,
    /// How arms worked together.
    pub mode: Mode,
    /// The whole answer.
    pub text: String,
    /// Tokens of the released answer.
    pub usage: Usage,
    /// Why the released answer ended.
    pub reason: FinishReason,
    /// From the request's arrival to the first token the client could see.
    pub ttft: Option<Duration>,
    /// From the request's arrival to the end of the released answer.
    pub latency: Duration,
    /// What all attempts cost together.
    pub cost: NanoDollars,
    /// Grade of the released answer; `None` when nothing could score it in time.
    pub score: Option<Score>,
    /// In a cascade: whether the acceptance threshold was reached. `None` in other modes.
    pub accepted: Option<bool>,
    /// Every arm that was tried, in order.
    pub attempts: Vec<Attempt>,
    /// Who decided.
    pub source: DecisionSource,
}

/// One step of a request with parts.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// An arm starts on a part. Comes again when another arm takes the part over.
    Started {
        /// The part, from 0.
        part: usize,
        /// Its name.
        name: String,
        /// Who works on it.
        arm: ArmId,
    },
    /// A part is answered and graded, or nobody could.
    Ended(PartSummary),
    /// The end. Everything in it is in the ledger by now.
    Finished(TaskSummary),
}

/// How a request with parts went. A part that failed is no error of the request: it is reported
/// here, and `success` says what it means in this mode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskSummary {
    /// The request's number in the ledger.
    pub route_id: RouteId,
    /// `sum_up` or `all_in`.
    pub mode: Mode,
    /// `sum_up`: at least one part was answered. `all_in`: every part was answered, and none was
    /// graded below the acceptance threshold.
    pub success: bool,
    /// Why there is no success, with the names of the parts, for people.
    pub failure: Option<String>,
    /// The parts, in the order of the request.
    pub parts: Vec<PartSummary>,
    /// The sum of the parts' scores, which `sum_up` is about; `None` when nothing was graded.
    pub score_sum: Option<f64>,
    /// Tokens of all attempts.
    pub usage: Usage,
    /// What all attempts cost together.
    pub cost: NanoDollars,
    /// From the request's arrival to the end of its last part.
    pub latency: Duration,
    /// The arms that the parts were dealt over, in the plan's order.
    pub arms: Vec<ArmId>,
    /// Who decided.
    pub source: DecisionSource,
}

/// How one part went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartSummary {
    /// Which, from 0.
    pub part: usize,
    /// Its name.
    pub name: String,
    /// Who answered; `None` when nobody did.
    pub arm: Option<ArmId>,
    /// The answer, empty when there is none.
    pub text: String,
    /// Why the answer ended.
    pub reason: Option<FinishReason>,
    /// Its grade; `None` when nothing could grade it.
    pub score: Option<Score>,
    /// Answered, and not graded below the acceptance threshold.
    pub accepted: bool,
    /// What its attempts cost together.
    pub cost: NanoDollars,
    /// From the request's arrival to this part's end, waiting for its arm included.
    pub latency: Duration,
    /// Every arm that tried it, in order.
    pub attempts: Vec<Attempt>,
    /// Why nobody answered, for people.
    pub error: Option<String>,
}

/// The events of one request with parts. Dropping it cancels what still runs; what ran until
/// then is paid for and recorded.
#[derive(Debug)]
pub struct TaskStream {
    route_id: RouteId,
    events: mpsc::Receiver<Result<TaskEvent, DispatchError>>,
}

impl TaskStream {
    pub(crate) fn new(
        route_id: RouteId,
        events: mpsc::Receiver<Result<TaskEvent, DispatchError>>,
    ) -> Self {
        Self { route_id, events }
    }

    /// The request's number in the ledger.
    pub fn route_id(&self) -> RouteId {
        self.route_id
    }
}

impl Stream for TaskStream {
    type Item = Result<TaskEvent, DispatchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx)
    }
}

/// One arm's try.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attempt {
    /// Who.
    pub arm: ArmId,
    /// How it ended.
    pub outcome: OutcomeKind,
    /// Tokens read and written, as far as known.
    pub usage: Usage,
    /// From its start to its end.
    pub latency: Duration,
    /// From its start to its first content.
    pub ttft: Option<Duration>,
    /// What it cost.
    pub cost: NanoDollars,
    /// Its grade.
    pub score: Option<Score>,
    /// What went wrong, for people.
    pub error: Option<String>,
}

/// The events of one request: any number of `Chosen` and `Token`, then one `Finished` or one
/// error. Dropping it cancels the work; what ran until then is paid for and recorded.
///
/// An error before the first `Token` means that no arm could answer, after it that the answer
/// was cut. [`committed`](Self::committed) tells the two apart before a caller says anything.
#[derive(Debug)]
pub struct RouteStream {
    route_id: RouteId,
    ahead: VecDeque<RouteEvent>,
    events: mpsc::Receiver<Result<RouteEvent, DispatchError>>,
}

impl RouteStream {
    pub(crate) fn new(
        route_id: RouteId,
        events: mpsc::Receiver<Result<RouteEvent, DispatchError>>,
    ) -> Self {
        Self {
            route_id,
            ahead: VecDeque::new(),
            events,
        }
    }

    /// The request's number in the ledger.
    pub fn route_id(&self) -> RouteId {
        self.route_id
    }

    /// Waits until the first content (or the end) is there; nothing is lost, the events follow
    /// when the stream is read. An HTTP handler calls it before it sends its status.
    ///
    /// # Errors
    /// Why no arm could answer.
    pub async fn committed(&mut self) -> Result<(), DispatchError> {
        while !self.ahead.iter().any(is_commitment) {
            match self.events.recv().await {
                Some(Ok(event)) => self.ahead.push_back(event),
                Some(Err(error)) => return Err(error),
                None => return Err(DispatchError::Stopped),
            }
        }
        Ok(())
    }
}

fn is_commitment(event: &RouteEvent) -> bool {
    !matches!(event, RouteEvent::Chosen { .. })
}

impl Stream for RouteStream {
    type Item = Result<RouteEvent, DispatchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(event) = self.ahead.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        self.events.poll_recv(cx)
    }
}
