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
