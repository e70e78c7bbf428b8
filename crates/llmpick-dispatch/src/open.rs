//! A route while it is open. Whatever happens to the task that drives it, it is closed.
//!
//! Every method writes to the ledger and blocks for it; the driver calls them off the async
//! threads, handing the route over and back. A route that is dropped before its end was
//! cancelled: what ran is paid for and recorded.

use std::sync::Arc;
use std::time::Duration;

use llmpick_core::{Arm, Decision, NanoDollars, OutcomeKind, Price, RouteId, Usage};
use llmpick_ledger::{
    CallEnd, CallId, CandidateRecord, LedgerError, NewPart, PartCall, PartEnd, Reservation,
    Reserved, RouteEnd, RouteStatus, ScoredCall,
};
use parking_lot::Mutex;
use tracing::error;

use crate::Dispatch;
use crate::dispatch::Busy;
use crate::grade::Grade;

pub(crate) struct OpenRoute {
    dispatch: Arc<Dispatch>,
    pub(crate) id: RouteId,
    /// The calls that run: one at a time, or one for each part that is at work.
    calls: Vec<OpenCall>,
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
    pub(crate) meter: Meter,
}

/// What has been seen of a call so far, shared between who counts and who pays.
pub(crate) type Meter = Arc<Mutex<Progress>>;

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
            calls: Vec::new(),
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

    /// Records the parts of the request.
    pub(crate) fn parts(&self, parts: &[NewPart]) -> Result<(), LedgerError> {
        self.dispatch.ledger.record_parts(self.id, parts)
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
        self.calls.push(open_call(dispatch, id, arm, prompt_tokens));
        Ok(())
    }

    /// Where the money of the next call stands that has none yet: after all that were reserved.
    pub(crate) fn next_position(&self) -> u32 {
        self.reserved
    }

    /// Starts a call for one part, at the place where its money was set aside.
    pub(crate) fn start_part(
        &mut self,
        position: u32,
        of: PartCall,
        arm: &Arm,
        bound: NanoDollars,
        prompt_tokens: u32,
    ) -> Result<(CallId, Meter), LedgerError> {
        let dispatch = &self.dispatch;
        let now = dispatch.clock.unix_ms();
        let id = dispatch
            .ledger
            .start_part_call(self.id, position, of, &arm.id, bound, now)?;
        let call = open_call(dispatch, id, arm, prompt_tokens);
        let meter = Arc::clone(&call.meter);
        self.calls.push(call);
        Ok((id, meter))
    }

    /// The call that runs.
    pub(crate) fn call(&self) -> Option<&OpenCall> {
        self.calls.last()
    }

    /// One of the calls that run.
    pub(crate) fn call_of(&self, id: CallId) -> Option<&OpenCall> {
        self.calls.iter().find(|call| call.id == id)
    }

    /// Settles the call that runs.
    pub(crate) fn end(&mut self, end: &CallEnd) -> Result<Option<CallId>, LedgerError> {
        match self.call().map(|call| call.id) {
            Some(id) => self.end_call(id, end).map(|()| Some(id)),
            None => Ok(None),
        }
    }

    /// Settles one of the calls that run.
    pub(crate) fn end_call(&mut self, id: CallId, end: &CallEnd) -> Result<(), LedgerError> {
        self.calls.retain(|call| call.id != id);
        let ended = self.dispatch.ledger.end_call(id, end);
        if let Err(error) = &ended {
            error!(route = %self.id, %error, "call was not recorded");
        }
        ended
    }

    /// Writes the end of the route.
    pub(crate) fn finish(
        mut self,
        status: RouteStatus,
        answered: Option<CallId>,
        accepted: Option<bool>,
        grades: Vec<(CallId, Grade)>,
    ) -> Result<(), LedgerError> {
        self.close(status, answered, accepted, grades, &[])
    }

    /// Writes the end of the route, and of its parts. Calls that still run are broken off.
    pub(crate) fn close(
        &mut self,
        status: RouteStatus,
        answered: Option<CallId>,
        accepted: Option<bool>,
        grades: Vec<(CallId, Grade)>,
        parts: &[PartEnd],
    ) -> Result<(), LedgerError> {
        self.closed = true;
        for call in std::mem::take(&mut self.calls) {
            let elapsed = self.dispatch.clock.monotonic().saturating_sub(call.started);
            let end = call.broken_off(elapsed, OutcomeKind::Cancelled, None);
            self.dispatch.ledger.end_call(call.id, &end)?;
        }
        let scores = grades
            .into_iter()
            .map(|(call, grade)| ScoredCall {
                call,
                score: grade.score,
                scorer: grade.scorer,
            })
            .collect();
        let end = RouteEnd {
            route: self.id,
            at_ms: self.dispatch.clock.unix_ms(),
            status,
            answered,
            accepted,
            scores,
        };
        self.dispatch.ledger.finish_parts(&end, parts)
    }
}

fn open_call(dispatch: &Dispatch, id: CallId, arm: &Arm, prompt_tokens: u32) -> OpenCall {
    OpenCall {
        id,
        price: arm.price,
        started: dispatch.clock.monotonic(),
        meter: Arc::new(Mutex::new(Progress {
            prompt_tokens,
            ..Progress::default()
        })),
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
        let progress = *self.meter.lock();
        let silent = progress.completion_tokens == 0;
        let free = silent && outcome == OutcomeKind::Error;
        let usage = match free {
            true => Usage::default(),
            false => Usage {
                prompt_tokens: progress.prompt_tokens,
                cached_tokens: 0,
                completion_tokens: progress.completion_tokens,
            },
        };
        // How long the device worked is unknown from outside; the whole time is its upper bound.
        let busy = if free { Duration::ZERO } else { elapsed };
        CallEnd {
            outcome,
            learn: true,
            usage,
            latency: elapsed,
            ttft: progress.ttft,
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
        if self.closed {
            return;
        }
        if let Err(error) = self.close(RouteStatus::Cancelled, None, None, Vec::new(), &[]) {
            // The next program that opens the ledger closes it.
            error!(route = %self.id, %error, "cancelled route was not recorded");
        }
    }
}
