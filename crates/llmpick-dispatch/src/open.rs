//! A route while it is open. Whatever happens to the task that drives it, it is closed.
//!
//! Every method writes to the ledger and blocks for it; the driver calls them off the async
//! threads, handing the route over and back. A route that is dropped before its end was
//! cancelled: what ran is paid for and recorded.

use std::sync::Arc;
use std::time::Duration;

use llmpick_core::{Arm, Decision, NanoDollars, OutcomeKind, Price, RouteId, Usage};
use llmpick_ledger::{
    CallEnd, CallId, CandidateRecord, LedgerError, Reservation, Reserved, RouteEnd, RouteStatus,
    ScoredCall,
};
use tracing::error;

use crate::Dispatch;
use crate::dispatch::Busy;
use crate::grade::Grade;

pub(crate) struct OpenRoute {
    dispatch: Arc<Dispatch>,
    pub(crate) id: RouteId,
    /// The call that runs, and what is known of it so far.
    call: Option<OpenCall>,
    /// Attempts so far; the next call's place.
    attempts: u32,
    /// Places for which money is set aside.
    reserved: u32,
    closed: bool,
    _busy: Busy,
}

/// A call while it runs.
pub(crate) struct OpenCall {
    pub(crate) id: CallId,
    price: Price,
    started: Duration,
    pub(crate) progress: Progress,
}

/// What has been seen of a call that has not ended: the bill if it is broken off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// Tokens of the prompt, estimated.
    pub(crate) prompt_tokens: u32,
    /// Tokens that came.
    pub(crate) completion_tokens: u32,
    /// First content after the call's start.
    pub(crate) ttft: Option<Duration>,
}

impl OpenRoute {
    /// Takes charge of a route that was just begun.
    pub(crate) fn new(dispatch: Arc<Dispatch>, id: RouteId) -> Self {
        Self {
            _busy: dispatch.busy(),
            dispatch,
            id,
            call: None,
            attempts: 0,
            reserved: 0,
            closed: false,
        }
    }

    pub(crate) fn decided(
        &self,
        candidates: &[CandidateRecord],
        decision: Option<&Decision>,
    ) -> Result<(), LedgerError> {
        self.dispatch
            .ledger
            .record_decision(self.id, candidates, decision)
    }

    /// Sets money aside for the next attempts that have none yet, one amount each.
    pub(crate) fn reserve(&mut self, amounts: &[NanoDollars]) -> Result<Reserved, LedgerError> {
        let reservations: Vec<Reservation> = (self.reserved..)
            .zip(amounts)
            .map(|(position, amount)| Reservation {
                position,
                amount: *amount,
            })
            .collect();
        let reserved = self.dispatch.ledger.reserve(
            self.id,
            &reservations,
            &self.dispatch.settings.budgets,
            self.dispatch.clock.unix_ms(),
        )?;
        if reserved == Reserved::Granted {
            self.reserved += reservations.len() as u32;
        }
        Ok(reserved)
    }

    /// True when the next attempt has money set aside.
    pub(crate) fn is_reserved(&self) -> bool {
        self.attempts < self.reserved
    }

    pub(crate) fn start(
        &mut self,
        arm: &Arm,
        bound: NanoDollars,
        prompt_tokens: u32,
    ) -> Result<(), LedgerError> {
        let dispatch = &self.dispatch;
        let now = dispatch.clock.unix_ms();
        let id = dispatch
            .ledger
            .start_call(self.id, self.attempts, &arm.id, bound, now)?;
        self.attempts += 1;
        self.call = Some(OpenCall {
            id,
            price: arm.price,
            started: dispatch.clock.monotonic(),
            progress: Progress {
                prompt_tokens,
                ..Progress::default()
            },
        });
        Ok(())
    }

    /// The call that runs.
    pub(crate) fn call(&mut self) -> Option<&mut OpenCall> {
        self.call.as_mut()
    }

    /// Settles the call that runs.
    pub(crate) fn end(&mut self, end: &CallEnd) -> Result<Option<CallId>, LedgerError> {
        let Some(call) = self.call.take() else {
            return Ok(None);
        };
        let ended = self.dispatch.ledger.end_call(call.id, end);
        if let Err(error) = &ended {
            error!(route = %self.id, %error, "call was not recorded");
        }
        ended.map(|()| Some(call.id))
    }

    /// Writes the end of the route.
    pub(crate) fn finish(
        mut self,
        status: RouteStatus,
        answered: Option<CallId>,
        accepted: Option<bool>,
        grades: Vec<(CallId, Grade)>,
    ) -> Result<(), LedgerError> {
        self.closed = true;
        let scores = grades
            .into_iter()
            .map(|(call, grade)| ScoredCall {
                call,
                score: grade.score,
                scorer: grade.scorer,
            })
            .collect();
        self.dispatch.ledger.finish_route(&RouteEnd {
            route: self.id,
            at_ms: self.dispatch.clock.unix_ms(),
            status,
            answered,
            accepted,
            scores,
        })
    }

    fn cancel(&mut self) -> Result<(), LedgerError> {
        if let Some(call) = self.call.take() {
            let elapsed = self.dispatch.clock.monotonic().saturating_sub(call.started);
            let end = call.broken_off(elapsed, OutcomeKind::Cancelled, None);
            self.dispatch.ledger.end_call(call.id, &end)?;
        }
        self.dispatch.ledger.finish_route(&RouteEnd {
            route: self.id,
            at_ms: self.dispatch.clock.unix_ms(),
            status: RouteStatus::Cancelled,
            answered: None,
            accepted: None,
            scores: Vec::new(),
        })
    }
}

impl OpenCall {
    /// The end of a call that was broken off: the bill is estimated from what came. An arm that
    /// sent nothing and then failed is taken to have cost nothing; one that was cancelled had
    /// read the prompt.
    pub(crate) fn broken_off(
        &self,
        elapsed: Duration,
        outcome: OutcomeKind,
        error: Option<String>,
    ) -> CallEnd {
        let silent = self.progress.completion_tokens == 0;
        let free = silent && outcome == OutcomeKind::Error;
        let usage = match free {
            true => Usage::default(),
            false => Usage {
                prompt_tokens: self.progress.prompt_tokens,
                cached_tokens: 0,
                completion_tokens: self.progress.completion_tokens,
            },
        };
        // How long the device worked is unknown from outside; the whole time is its upper bound.
        let busy = if free { Duration::ZERO } else { elapsed };
        CallEnd {
            outcome,
            learn: true,
            usage,
            latency: elapsed,
            ttft: self.progress.ttft,
            busy,
            prefill: Duration::ZERO,
            load: Duration::ZERO,
            cost: self.price.cost(usage, busy),
            error,
        }
    }
}

impl Drop for OpenRoute {
    fn drop(&mut self) {
        if !self.closed
            && let Err(error) = self.cancel()
        {
            // The next program that opens the ledger closes it.
            error!(route = %self.id, %error, "cancelled route was not recorded");
        }
    }
}
