//! The handle through which everybody asks.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use llmpick_core::{
    ArmId, Backend, BackendError, Candidate, ContextKey, Decision, RouteId, Router, Scheduler,
    Score, Scorer,
};
use llmpick_ledger::{
    ArmStats, LateScore, Ledger, RouteRecord, RouteStatus, SnapshotStore, StatsFilter,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::warn;

use crate::drive::drive;
use crate::grade::Jury;
use crate::learner::{Handover, Learner};
use crate::plan::{Plan, Pool, plan, runnable};
use crate::shadow::{Shadow, settled};
use crate::task::Task;
use crate::work::{Called, Streaming};
use crate::{
    Clock, DispatchError, DispatchSettings, Measured, RouteEvent, RouteRequest, RouteStream,
    RouteSummary, TaskEvent, TaskStream,
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
    pub(crate) pool: Mutex<Pool>,
    pub(crate) learner: Mutex<Learner>,
    /// Draws the set where the router gives marginals only.
    pub(crate) scheduler: Mutex<Option<Arc<dyn Scheduler>>>,
    /// Decides beside the router, without effect.
    pub(crate) shadow: Mutex<Option<Shadow>>,
    pub(crate) scorers: Vec<Arc<dyn Scorer>>,
    pub(crate) settings: DispatchSettings,
    pub(crate) clock: Arc<dyn Clock>,
    /// Routes and late scores that are not in the ledger yet.
    pub(crate) running: watch::Sender<usize>,
    snapshot_dir: Option<PathBuf>,
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch").finish_non_exhaustive()
    }
}

/// Events that may wait for a slow client before its arm waits too.
const EVENTS_AHEAD: usize = 64;

impl Dispatch {
    /// Puts the parts together and brings the router's state up to the ledger's. Blocks.
    ///
    /// # Errors
    /// When the ledger cannot be read, or a setting is out of range. A bad snapshot is no error.
    pub fn new(parts: Parts) -> Result<Arc<Self>, DispatchError> {
        check(&parts.settings)?;
        Jury::new(&parts.scorers, parts.settings.scorer.as_deref())?;
        let learner = Learner::open(
            parts.router,
            &parts.ledger,
            parts.snapshot_dir.clone().map(SnapshotStore::new),
            parts.settings.snapshot_every,
        )?;
        Ok(Arc::new(Self {
            pool: Mutex::new(Pool::new(parts.arms)?),
            learner: Mutex::new(learner),
            scheduler: Mutex::default(),
            shadow: Mutex::default(),
            ledger: parts.ledger,
            scorers: parts.scorers,
            settings: parts.settings,
            clock: parts.clock,
            running: watch::Sender::new(0),
            snapshot_dir: parts.snapshot_dir,
        }))
    }

    /// Routes and runs one request. Resolves once a plan is made and its money set aside;
    /// failures of arms come through the stream.
    ///
    /// # Errors
    /// A request that makes no sense, no eligible arm, or a budget that does not allow it.
    pub async fn run(
        self: &Arc<Self>,
        request: RouteRequest,
    ) -> Result<RouteStream, DispatchError> {
        no_parts(&request)?;
        let arrived = self.clock.monotonic();
        let deadline = deadline(&request);
        let (plan, request) = self.plan(request).await?;
        let route_id = plan.open.id;
        let mut generate = request.generate.clone();
        // Without a reference, how sure the model was is all there is to grade by.
        generate.logprobs |= request.reference.is_none();
        if generate.sampling.seed == 0 {
            generate.sampling.seed = plan.seed;
        }
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let mut work = Streaming {
            request: generate,
            events: sender,
            clock: Arc::clone(&self.clock),
            limit: request.max_latency,
            deadline,
        };
        let dispatch = Arc::clone(self);
        tokio::spawn(async move {
            let driven = drive(Arc::clone(&dispatch), plan, request, arrived, &mut work).await;
            // Nobody may be listening any more.
            let _ = work.events.send(driven.map(RouteEvent::Finished)).await;
            dispatch.learn().await;
        });
        Ok(RouteStream::new(route_id, events))
    }

    /// Deals the parts of a request over the arms of a plan and runs them at the same time: a
    /// remote arm works on several at once, a local one on one after the other. Part *i* goes to
    /// the arm at place *i* mod *n* of a plan of *n* arms, and to one other arm if that one fails.
    /// Resolves once the money of all parts is set aside; failures of parts come through the
    /// stream.
    ///
    /// # Errors
    /// A request without parts or with parts that make no sense, no eligible arm, or a budget that
    /// does not allow it.
    pub async fn task(
        self: &Arc<Self>,
        request: RouteRequest,
    ) -> Result<TaskStream, DispatchError> {
        if request.parts.is_empty() {
            return Err(DispatchError::InvalidRequest(
                "there are no parts to deal over arms".into(),
            ));
        }
        let arrived = self.clock.monotonic();
        let deadline = deadline(&request);
        let (plan, request) = self.plan(request).await?;
        let route_id = plan.open.id;
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let dispatch = Arc::clone(self);
        tokio::spawn(async move {
            let task = Task::new(&dispatch, plan, request, arrived, deadline, sender.clone());
            let ended = task.run().await;
            // Nobody may be listening any more.
            let _ = sender.send(ended.map(TaskEvent::Finished)).await;
            dispatch.learn().await;
        });
        Ok(TaskStream::new(route_id, events))
    }

    /// The whole loop, with each arm's work done (or looked up) by the caller. Latencies in the
    /// summary are the sums of what the caller measured.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when no arm answered.
    pub async fn run_with<F, Fut>(
        self: &Arc<Self>,
        meta: RouteRequest,
        work: F,
    ) -> Result<RouteSummary, DispatchError>
    where
        F: Fn(ArmId) -> Fut,
        Fut: Future<Output = Result<Measured, BackendError>>,
    {
        no_parts(&meta)?;
        let arrived = self.clock.monotonic();
        let mut work = Called {
            work,
            limit: meta.max_latency,
            deadline: deadline(&meta),
        };
        let (plan, meta) = self.plan(meta).await?;
        let driven = drive(Arc::clone(self), plan, meta, arrived, &mut work).await;
        self.learn().await;
        driven
    }

    /// Decides only: records the plan and runs nothing.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn route(self: &Arc<Self>, request: RouteRequest) -> Result<Planned, DispatchError> {
        let (plan, _) = self.plan(request).await?;
        let candidates = plan.candidates();
        let (route_id, decision, open) = (plan.open.id, plan.decision, plan.open);
        self.blocking(move |_| open.finish(RouteStatus::Planned, None, None, Vec::new()))
            .await??;
        Ok(Planned {
            route_id,
            arms: decision
                .choices
                .iter()
                .filter_map(|choice| candidates.get(*choice as usize))
                .map(|candidate| candidate.id.clone())
                .collect(),
            decision,
            candidates,
        })
    }

    /// A later score for the released answer of a route. The source `user` is kept apart from
    /// scorers, and goes before them in statistics.
    ///
    /// # Errors
    /// An unknown route, one without an answer, or a source without a name.
    pub async fn feedback(
        self: &Arc<Self>,
        route_id: RouteId,
        score: Score,
        source: &str,
    ) -> Result<(), DispatchError> {
        if source.is_empty() || source == "run" {
            return Err(DispatchError::InvalidRequest(format!(
                "a score comes from somebody, such as `user`, not from `{source}`"
            )));
        }
        let late = LateScore {
            route: route_id,
            call: None,
            score,
            origin: source.to_owned(),
            at_ms: self.clock.unix_ms(),
        };
        self.blocking(move |dispatch| {
            if dispatch.ledger.late_score(&late)? {
                return Ok(());
            }
            match dispatch.ledger.route(route_id)? {
                Some(_) => Err(DispatchError::NothingToScore(route_id)),
                None => Err(DispatchError::UnknownRoute(route_id)),
            }
        })
        .await??;
        self.learn().await;
        Ok(())
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

    /// The ledger that everything is recorded in.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The pool, in the order in which routers see it.
    pub fn arms(&self) -> Arc<Vec<Arc<dyn Backend>>> {
        Arc::clone(&self.pool.lock().arms)
    }

    /// Replaces the pool. What was learnt about arms that stay is kept.
    ///
    /// # Errors
    /// Two arms of one name; the pool stays as it was.
    pub fn set_arms(&self, arms: Vec<Arc<dyn Backend>>) -> Result<(), DispatchError> {
        *self.pool.lock() = Pool::new(arms)?;
        Ok(())
    }

    /// Replaces the router by another, or by itself with other settings. It takes over its own
    /// snapshot and the ledger's rows since; the old one serves until then, and stays when this
    /// fails. Blocks.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn set_router(&self, router: Box<dyn Router>) -> Result<(), DispatchError> {
        let mut serving = self.learner.lock();
        serving.save(&self.ledger, true);
        *serving = Learner::open(
            router,
            &self.ledger,
            self.snapshot_dir.clone().map(SnapshotStore::new),
            self.settings.snapshot_every,
        )?;
        Ok(())
    }

    /// Replaces the router by a new build of itself. The new one takes over what was learnt, bit
    /// for bit, or learns it from the ledger where it reads no state of the old version; requests
    /// wait as long. Blocks.
    ///
    /// # Errors
    /// When the new one breaks over the old state, or the ledger cannot be read: the old one
    /// goes on serving.
    pub fn reload_router(&self, router: Box<dyn Router>) -> Result<Handover, DispatchError> {
        self.learner.lock().hand_over(router, &self.ledger)
    }

    /// Replaces the router by one that starts from nothing, and learns from this context's
    /// feedback only: an experiment beside the shared state. Blocks.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn set_router_for(
        &self,
        router: Box<dyn Router>,
        context: &ContextKey,
    ) -> Result<(), DispatchError> {
        let mut serving = self.learner.lock();
        serving.save(&self.ledger, true);
        *serving = Learner::isolated(router, &self.ledger, context.clone())?;
        Ok(())
    }

    /// Who draws the set when the router gives marginals only. Without one such a decision
    /// breaks the router's contract, and the built-in fallback decides.
    pub fn set_scheduler(&self, scheduler: Arc<dyn Scheduler>) {
        *self.scheduler.lock() = Some(scheduler);
    }

    /// Runs a second router beside the first on live traffic, without effect: what it would have
    /// decided is recorded beside what was decided. It learns what the first learns, told as
    /// somebody else's choices. Replaces an earlier one; its failures and its time cost nobody
    /// anything.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn set_shadow(&self, router: Box<dyn Router>) -> std::io::Result<()> {
        *self.shadow.lock() = Some(Shadow::start(router, Arc::clone(&self.ledger))?);
        Ok(())
    }

    /// The name of the router that serves.
    pub fn router_name(&self) -> String {
        self.learner.lock().name().to_owned()
    }

    /// The names of the scorers, in the order in which they are asked.
    pub fn scorer_names(&self) -> Vec<String> {
        let names = self.scorers.iter().map(|scorer| scorer.name().to_owned());
        names.collect()
    }

    /// Waits until everything that runs is in the ledger, learns the rest and writes a snapshot.
    /// Call it before the program ends; a crash loses nothing but the time to replay.
    pub async fn shutdown(self: &Arc<Self>) {
        let mut running = self.running.subscribe();
        // The sender lives as long as this dispatch.
        let _ = running.wait_for(|running| *running == 0).await;
        let pending = self.shadow.lock().as_ref().map(Shadow::pending);
        if let Some(pending) = pending {
            settled(pending).await;
        }
        let _ = self.blocking(|dispatch| dispatch.keep_up(true)).await;
    }

    /// Start of derived seeds.
    pub(crate) fn base_seed(&self) -> u64 {
        self.settings
            .base_seed
            .unwrap_or_else(|| self.ledger.base_seed())
    }

    /// Counts as running until dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.running.send_modify(|running| *running += 1);
        Busy(Arc::clone(self))
    }

    async fn plan(
        self: &Arc<Self>,
        request: RouteRequest,
    ) -> Result<(Plan, RouteRequest), DispatchError> {
        self.blocking(move |dispatch| Ok((plan(dispatch, &request)?, request)))
            .await?
    }

    /// Applies what is new, off the async threads; the next decision would do it anyway.
    async fn learn(self: &Arc<Self>) {
        let _ = self.blocking(|dispatch| dispatch.keep_up(false)).await;
    }

    fn keep_up(&self, now: bool) {
        let mut learner = self.learner.lock();
        match learner.catch_up(&self.ledger) {
            Ok(_) => learner.save(&self.ledger, now),
            Err(error) => warn!(%error, "feedback was not read"),
        }
    }

    /// Runs what blocks off the async threads.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> Result<T, DispatchError> {
        let dispatch = Arc::clone(self);
        spawn_blocking(move || work(&dispatch))
            .await
            .map_err(|_| DispatchError::Stopped)
    }
}

/// Something that [`Dispatch::shutdown`] waits for.
pub(crate) struct Busy(Arc<Dispatch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0
            .running
            .send_modify(|running| *running = running.saturating_sub(1));
    }
}

fn deadline(request: &RouteRequest) -> Option<Instant> {
    Instant::now().checked_add(request.max_latency?)
}

/// Refuses what only [`Dispatch::task`] can run.
fn no_parts(request: &RouteRequest) -> Result<(), DispatchError> {
    match request.parts.is_empty() {
        true => Ok(()),
        false => Err(DispatchError::InvalidRequest(
            "a request with parts is a task, and has many answers".into(),
        )),
    }
}

fn check(settings: &DispatchSettings) -> Result<(), DispatchError> {
    let bad = |what: &str| Err(DispatchError::InvalidRequest(what.into()));
    if settings.modes.is_empty() {
        return bad("at least one mode must be allowed");
    }
    settings.modes.iter().try_for_each(|mode| runnable(*mode))?;
    if settings.max_arms == 0 || settings.max_attempts == 0 {
        return bad("max_arms and max_attempts are at least 1");
    }
    let speed = |tps: f64| tps.is_finite() && tps > 0.0;
    if !speed(settings.assumed_prefill_tps) || !speed(settings.assumed_decode_tps) {
        return bad("assumed speeds are above 0 tokens per second");
    }
    match settings.cost_budget {
        Some(rho) if !rho.is_finite() || rho < 0.0 => {
            bad("the cost budget is an amount of dollars from 0 on")
        }
        _ => Ok(()),
    }
}
