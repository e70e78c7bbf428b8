//! The handle through which everybody asks.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use llmpick_core::{
    ArmId, Backend, BackendError, Candidate, Decision, RouteId, Router, Score, Scorer,
};
use llmpick_ledger::{ArmStats, Ledger, RouteRecord, StatsFilter};
use parking_lot::Mutex;

use crate::{
    Clock, DispatchError, DispatchSettings, Measured, RouteRequest, RouteStream, RouteSummary,
};

/// What dispatch is made of. It knows none of the parts by name.
pub struct Parts {
    /// Remembers.
    pub ledger: Arc<Ledger>,
    /// The pool, in the order in which routers see it.
    pub arms: Vec<Arc<dyn Backend>>,
    /// Chooses.
    pub router: Box<dyn Router>,
    /// Grade, in the order in which they are asked.
    pub scorers: Vec<Arc<dyn Scorer>>,
    /// The rest.
    pub settings: DispatchSettings,
    /// Where the router's learnt state is kept; `None` relearns from the ledger at each start.
    pub snapshot_dir: Option<PathBuf>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A decision that was made and not run.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The request's number in the ledger.
    pub route_id: RouteId,
    /// The arms that the plan names, in order.
    pub arms: Vec<ArmId>,
    /// The plan.
    pub decision: Decision,
    /// What the router was told about each arm.
    pub candidates: Vec<Candidate>,
}

/// The runtime of a request: choose, reserve, run, settle, score, record, learn.
pub struct Dispatch {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) arms: Mutex<Arc<Vec<Arc<dyn Backend>>>>,
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch").finish_non_exhaustive()
    }
}

impl Dispatch {
    /// Puts the parts together and brings the router's state up to the ledger's.
    ///
    /// # Errors
    /// When the ledger cannot be read, or a setting is out of range. A bad snapshot is no error.
    pub fn new(parts: Parts) -> Result<Arc<Self>, DispatchError> {
        Ok(Arc::new(Self {
            ledger: parts.ledger,
            arms: Mutex::new(Arc::new(parts.arms)),
        }))
    }

    /// Routes and runs one request. Resolves once a plan is made and paid for; failures of arms
    /// come through the stream.
    ///
    /// # Errors
    /// A request that makes no sense, no eligible arm, or a budget that does not allow it.
    pub async fn run(
        self: &Arc<Self>,
        _request: RouteRequest,
    ) -> Result<RouteStream, DispatchError> {
        Err(DispatchError::Stopped)
    }

    /// The whole loop, with each arm's work done (or looked up) by the caller.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when no arm answered.
    pub async fn run_with<F, Fut>(
        self: &Arc<Self>,
        _meta: RouteRequest,
        _work: F,
    ) -> Result<RouteSummary, DispatchError>
    where
        F: Fn(ArmId) -> Fut,
        Fut: Future<Output = Result<Measured, BackendError>>,
    {
        Err(DispatchError::Stopped)
    }

    /// Decides only: records the plan and runs nothing.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn route(self: &Arc<Self>, _request: RouteRequest) -> Result<Planned, DispatchError> {
        Err(DispatchError::Stopped)
    }

    /// A later score from the user (or whoever `source` says) for the released answer of a route.
    ///
    /// # Errors
    /// An unknown route, or one without an answer.
    pub async fn feedback(
        self: &Arc<Self>,
        route_id: RouteId,
        _score: Score,
        _source: &str,
    ) -> Result<(), DispatchError> {
        Err(DispatchError::UnknownRoute(route_id))
    }

    /// What each arm did so far.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn stats(&self, filter: &StatsFilter) -> Result<Vec<ArmStats>, DispatchError> {
        Ok(self.ledger.stats(filter)?)
    }

    /// Everything the ledger knows about one route.
    ///
    /// # Errors
    /// An unknown route, or an unreadable ledger.
    pub fn route_record(&self, route_id: RouteId) -> Result<RouteRecord, DispatchError> {
        self.ledger
            .route(route_id)?
            .ok_or(DispatchError::UnknownRoute(route_id))
    }

    /// The newest route, if there is one.
    ///
    /// # Errors
    /// An unreadable ledger.
    pub fn last_route(&self) -> Result<Option<RouteRecord>, DispatchError> {
        Ok(self.ledger.last_route()?)
    }

    /// The pool, in the order in which routers see it.
    pub fn arms(&self) -> Arc<Vec<Arc<dyn Backend>>> {
        self.arms.lock().clone()
    }

    /// Replaces the pool. What was learnt about arms that stay is kept.
    pub fn set_arms(&self, arms: Vec<Arc<dyn Backend>>) {
        *self.arms.lock() = Arc::new(arms);
    }

    /// Waits for running requests to be recorded, learns the rest and writes a snapshot.
    /// Call it before the program ends; a crash loses nothing but the time to replay.
    pub async fn shutdown(&self) {}
}
