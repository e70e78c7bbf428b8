//! From a plan to an answer: one arm after another, until one has answered well enough.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use llmpick_core::{
    ArmId, BackendError, Candidate, Decision, Mode, NanoDollars, Outcome, OutcomeKind, RouteId,
    Score,
};
use llmpick_ledger::{CallEnd, CallId, LateScore, LedgerError, Reserved, RouteStatus};
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{debug, info, warn};

use crate::candidates::{Candidature, Estimate};
use crate::grade::{Grade, Jury};
use crate::open::OpenRoute;
use crate::plan::Plan;
use crate::work::{Answer, Ended, Work};
use crate::{Attempt, Dispatch, DispatchError, RouteRequest, RouteSummary, fallback};

/// The score that ends a cascade where neither request nor settings say.
pub(crate) const USUAL_THRESHOLD: f64 = 0.5;
/// Who graded an answer that came with its score.
const CALLER: &str = "caller";

/// Runs a plan. When the future is dropped, the route is closed as cancelled.
pub(crate) async fn drive<W: Work>(
    dispatch: Arc<Dispatch>,
    plan: Plan,
    request: RouteRequest,
    arrived: Duration,
    work: &mut W,
) -> Result<RouteSummary, DispatchError> {
    let mut run = Run::new(dispatch, plan, request, arrived, work);
    while let Some(index) = run.next_arm() {
        match run.attempt(index).await? {
            Next::Stop => break,
            Next::Go => {}
        }
    }
    run.conclude().await
}

/// Whether another arm is needed.
enum Next {
    Go,
    Stop,
}

/// A plan on its way.
struct Run<'a, W> {
    dispatch: Arc<Dispatch>,
    work: &'a mut W,
    request: RouteRequest,
    arrived: Duration,
    /// Away only while the ledger is written.
    open: Option<OpenRoute>,
    pool: Vec<Candidature>,
    candidates: Vec<Candidate>,
    decision: Decision,
    queue: VecDeque<usize>,
    estimate: Estimate,
    jury: Jury,
    seed: u64,
    pinned: bool,
    /// Content goes to the client as it comes.
    live: bool,
    threshold: f64,
    tried: Vec<usize>,
    attempts: Vec<Attempt>,
    answers: Vec<Graded>,
    failures: Vec<(ArmId, BackendError)>,
}

/// An answer and what is thought of it.
struct Graded {
    arm: ArmId,
    call: CallId,
    attempt: usize,
    /// When the arm started, and ended, by the clock.
    began: Duration,
    ended: Duration,
    answer: Answer,
    grade: Option<Grade>,
    /// Scorers still at work.
    grading: Option<JoinHandle<Option<Grade>>>,
}

impl<'a, W: Work> Run<'a, W> {
    fn new(
        dispatch: Arc<Dispatch>,
        plan: Plan,
        request: RouteRequest,
        arrived: Duration,
        work: &'a mut W,
    ) -> Self {
        let threshold = request.min_score.or(dispatch.settings.accept_threshold);
        Self {
            candidates: plan.candidates(),
            // What is held back waits for acceptance; the only arm of a plan has nobody behind
            // it to wait for.
            live: plan.decision.mode != Mode::AnyWin || plan.order.len() == 1,
            threshold: threshold.map_or(USUAL_THRESHOLD, Score::get),
            open: Some(plan.open),
            pool: plan.pool,
            decision: plan.decision,
            queue: plan.order.into(),
            estimate: plan.estimate,
            jury: plan.jury,
            seed: plan.seed,
            pinned: plan.pinned,
            dispatch,
            work,
            request,
            arrived,
            tried: Vec::new(),
            attempts: Vec::new(),
            answers: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Writes to the ledger, off the async threads.
    async fn write<T: Send + 'static>(
        &mut self,
        write: impl FnOnce(&mut OpenRoute) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, DispatchError> {
        let mut open = self.open.take().ok_or(DispatchError::Stopped)?;
        let task = spawn_blocking(move || {
            let written = write(&mut open);
            (open, written)
        });
        let (open, written) = task.await.map_err(|_| DispatchError::Stopped)?;
        self.open = Some(open);
        Ok(written?)
    }

    /// The next arm of the plan, or one that takes over for those that failed.
    fn next_arm(&mut self) -> Option<usize> {
        if let Some(index) = self.queue.pop_front() {
            return Some(index);
        }
        let most = self.dispatch.settings.max_attempts as usize;
        if self.pinned || !self.answers.is_empty() || self.tried.len() >= most {
            return None;
        }
        let barred = fallback::barred(&self.candidates, &self.tried, &self.failures);
        let planned = self.decision.choices.iter().map(|choice| *choice as usize);
        planned
            .filter(|index| !barred.contains(index))
            .find(|index| self.candidates.get(*index).is_some_and(|c| c.eligible))
            .or_else(|| fallback::best(&self.candidates, &barred))
    }

    /// Makes one arm work, and records how that went.
    async fn attempt(&mut self, index: usize) -> Result<Next, DispatchError> {
        let Some(arm) = self.pool.get(index).cloned() else {
            return Ok(Next::Stop);
        };
        if !self.has_money(arm.bound).await? {
            return Ok(Next::Stop);
        }
        self.tried.push(index);
        let route_id = self.open.as_ref().ok_or(DispatchError::Stopped)?.id;
        let id = &arm.candidate.id;
        info!(route = %route_id, arm = %id, bound = %arm.bound, "arm chosen");
        self.work.chosen(route_id, id, &self.decision).await;
        let (described, bound, prompt) =
            (arm.backend.arm().clone(), arm.bound, self.estimate.prompt);
        self.write(move |open| open.start(&described, bound, prompt))
            .await?;
        let began = self.dispatch.clock.monotonic();
        let open = self.open.as_ref().ok_or(DispatchError::Stopped)?;
        let call = open.call().ok_or(DispatchError::Stopped)?;
        let meter = Arc::clone(&call.meter);
        let ended = self.work.attempt(&arm.backend, self.live, &meter).await;
        match ended {
            // The open route is dropped with this run, and closes itself as cancelled.
            Ended::Cancelled => Err(self.cancelled().await),
            Ended::Failed { error, committed } => self.failed(&arm, error, committed, began).await,
            Ended::Answered(answer) => self.answered(&arm, answer, began).await,
        }
    }

    /// Arms of the plan have their money set aside already; one that takes over gets it here.
    async fn has_money(&mut self, bound: NanoDollars) -> Result<bool, DispatchError> {
        if self.open.as_ref().is_some_and(OpenRoute::is_reserved) {
            return Ok(true);
        }
        let spent: NanoDollars = self.attempts.iter().map(|attempt| attempt.cost).sum();
        if self
            .request
            .max_cost
            .is_some_and(|limit| spent + bound > limit)
        {
            return Ok(false);
        }
        match self.write(move |open| open.reserve(&[bound])).await? {
            Reserved::Granted => Ok(true),
            Reserved::Short { key, left } => {
                debug!(key, %left, "no money for another arm");
                Ok(false)
            }
        }
    }

    async fn cancelled(&mut self) -> DispatchError {
        if let Some(open) = self.open.take() {
            // Dropping it writes to the ledger.
            let _ = spawn_blocking(move || drop(open)).await;
        }
        DispatchError::Stopped
    }

    async fn failed(
        &mut self,
        arm: &Candidature,
        error: BackendError,
        committed: bool,
        began: Duration,
    ) -> Result<Next, DispatchError> {
        let timeout = matches!(error, BackendError::Timeout(_));
        let outcome = match timeout {
            true => OutcomeKind::Timeout,
            false => OutcomeKind::Error,
        };
        let elapsed = self.dispatch.clock.monotonic().saturating_sub(began);
        let open = self.open.as_ref().ok_or(DispatchError::Stopped)?;
        let route_id = open.id;
        let call = open.call().ok_or(DispatchError::Stopped)?;
        let mut end = call.broken_off(elapsed, outcome, Some(explain(&error)));
        end.learn = is_the_arms_doing(&error);
        warn!(route = %route_id, arm = %arm.candidate.id, error = %explain(&error), "arm failed");
        self.attempts.push(attempt(&arm.candidate.id, &end));
        self.write(move |open| open.end(&end)).await?;
        let name = arm.candidate.id.clone();
        if committed {
            self.finish(RouteStatus::Failed, None, None, Vec::new())
                .await?;
            return Err(DispatchError::Cut {
                route_id,
                arm: name,
                source: error,
            });
        }
        let hopeless = timeout && self.work.is_late() || !error.is_arm_fault();
        self.failures.push((name, error));
        Ok(if hopeless { Next::Stop } else { Next::Go })
    }

    async fn answered(
        &mut self,
        arm: &Candidature,
        answer: Answer,
        began: Duration,
    ) -> Result<Next, DispatchError> {
        let measured = &answer.measured;
        let end = CallEnd {
            outcome: OutcomeKind::Ok,
            learn: true,
            usage: measured.usage,
            latency: measured.latency,
            ttft: measured.ttft,
            busy: measured.busy,
            prefill: measured.prefill,
            load: measured.load,
            cost: arm.backend.arm().price.cost(measured.usage, measured.busy),
            error: None,
        };
        let ended = self.dispatch.clock.monotonic();
        self.attempts.push(attempt(&arm.candidate.id, &end));
        let call = self
            .write(move |open| open.end(&end))
            .await?
            .ok_or(DispatchError::Stopped)?;
        let mut graded = Graded {
            arm: arm.candidate.id.clone(),
            call,
            attempt: self.attempts.len() - 1,
            began,
            ended,
            grade: None,
            grading: None,
            answer,
        };
        self.grade(&mut graded).await;
        let accepted = self.accepts(&graded);
        self.answers.push(graded);
        let more = self.decision.mode == Mode::AnyWin && !accepted && !self.work.is_late();
        Ok(if more { Next::Go } else { Next::Stop })
    }

    /// Asks the scorers. A cascade needs their word; otherwise the end of the answer waits only
    /// a little for it.
    async fn grade(&mut self, graded: &mut Graded) {
        if let Some(score) = graded.answer.measured.score {
            let scorer = CALLER.to_owned();
            graded.grade = Some(Grade { score, scorer });
            return;
        }
        let outcome = self.outcome(graded);
        let jury = self.jury.clone();
        let mut grading = spawn_blocking(move || jury.grade(&outcome));
        if self.decision.mode == Mode::AnyWin {
            graded.grade = grading.await.unwrap_or_default();
            return;
        }
        match tokio::time::timeout(self.dispatch.settings.score_wait, &mut grading).await {
            Ok(grade) => graded.grade = grade.unwrap_or_default(),
            Err(_) => graded.grading = Some(grading),
        }
    }

    fn outcome(&self, graded: &Graded) -> Outcome {
        Outcome {
            route_id: self.open.as_ref().map(|open| open.id),
            arm: Some(graded.arm.clone()),
            task: self.request.context.0.clone(),
            prompt: self.request.generate.prompt.text(),
            response: graded.answer.measured.text.clone(),
            reference: self.request.reference.clone(),
            logprobs: graded.answer.measured.logprobs.clone(),
            seed: self.seed,
        }
    }

    /// An answer that nothing can grade is taken.
    fn accepts(&self, graded: &Graded) -> bool {
        let score = graded.grade.as_ref().map(|grade| grade.score.get());
        score.is_none_or(|score| score >= self.threshold)
    }

    async fn finish(
        &mut self,
        status: RouteStatus,
        answered: Option<CallId>,
        accepted: Option<bool>,
        grades: Vec<(CallId, Grade)>,
    ) -> Result<(), DispatchError> {
        let open = self.open.take().ok_or(DispatchError::Stopped)?;
        spawn_blocking(move || open.finish(status, answered, accepted, grades))
            .await
            .map_err(|_| DispatchError::Stopped)??;
        Ok(())
    }

    /// Where the released answer stands among the answers: the accepted one, or the best.
    fn best(&self) -> Option<usize> {
        let last = self.answers.len().checked_sub(1)?;
        if self
            .answers
            .get(last)
            .is_some_and(|graded| self.accepts(graded))
        {
            return Some(last);
        }
        let score = |graded: &Graded| graded.grade.as_ref().map(|grade| grade.score.get());
        let mut best = 0;
        for (place, graded) in self.answers.iter().enumerate() {
            if score(graded) > self.answers.get(best).and_then(score) {
                best = place;
            }
        }
        Some(best)
    }

    /// Releases the best answer and writes the end.
    async fn conclude(mut self) -> Result<RouteSummary, DispatchError> {
        let Some(best) = self.best() else {
            return self.without_answer().await;
        };
        let cascade = self.decision.mode == Mode::AnyWin;
        let accepted = cascade.then(|| self.answers.get(best).is_some_and(|g| self.accepts(g)));
        for graded in &self.answers {
            let score = graded.grade.as_ref().map(|grade| grade.score);
            if let Some(attempt) = self.attempts.get_mut(graded.attempt) {
                attempt.score = score;
            }
        }
        let grades = self
            .answers
            .iter()
            .filter_map(|graded| Some((graded.call, graded.grade.clone()?)))
            .collect();
        let mut released = self.answers.swap_remove(best);
        let shown = self.dispatch.clock.monotonic();
        if !self.live && !self.work.release(&released.answer).await {
            self.finish(RouteStatus::Cancelled, None, accepted, grades)
                .await?;
            return Err(DispatchError::Stopped);
        }
        let route_id = self.open.as_ref().ok_or(DispatchError::Stopped)?.id;
        self.finish(RouteStatus::Done, Some(released.call), accepted, grades)
            .await?;
        if let Some(grading) = released.grading.take() {
            grade_late(&self.dispatch, route_id, released.call, grading);
        }
        Ok(self.summary(route_id, released, accepted, shown))
    }

    async fn without_answer(&mut self) -> Result<RouteSummary, DispatchError> {
        let route_id = self.open.as_ref().ok_or(DispatchError::Stopped)?.id;
        self.finish(RouteStatus::Failed, None, None, Vec::new())
            .await?;
        let failures: Vec<String> = self
            .failures
            .iter()
            .map(|(arm, error)| format!("{arm}: {}", explain(error)))
            .collect();
        let Some((arm, last)) = self.failures.pop() else {
            return Err(DispatchError::Stopped);
        };
        Err(match self.failures.is_empty() {
            true => DispatchError::Arm {
                route_id,
                arm,
                source: last,
            },
            false => DispatchError::AllArmsFailed {
                route_id,
                failures: failures.join("; "),
                last,
            },
        })
    }

    fn summary(
        self,
        route_id: RouteId,
        released: Graded,
        accepted: Option<bool>,
        shown: Duration,
    ) -> RouteSummary {
        let measured = released.answer.measured;
        let since = |moment: Duration| moment.saturating_sub(self.arrived);
        let (latency, ttft) = match (W::REAL_TIME, self.live) {
            (true, true) => (
                since(released.ended),
                measured.ttft.map(|ttft| since(released.began) + ttft),
            ),
            (true, false) => (since(shown), Some(since(shown))),
            // A looked-up call takes no time of ours: what it took is in its own figures.
            (false, _) => {
                let before: Duration = self.attempts.iter().map(|a| a.latency).sum();
                let first = before.saturating_sub(measured.latency);
                (before, measured.ttft.map(|ttft| first + ttft))
            }
        };
        RouteSummary {
            route_id,
            arm: released.arm,
            mode: self.decision.mode,
            text: measured.text,
            usage: measured.usage,
            reason: released.answer.reason,
            ttft,
            latency,
            cost: self.attempts.iter().map(|attempt| attempt.cost).sum(),
            score: released.grade.map(|grade| grade.score),
            accepted,
            attempts: self.attempts,
            source: self.decision.source,
        }
    }
}

/// Learns a grade that came after the answer's end.
fn grade_late(
    dispatch: &Arc<Dispatch>,
    route: RouteId,
    call: CallId,
    grading: JoinHandle<Option<Grade>>,
) {
    let dispatch = Arc::clone(dispatch);
    let busy = dispatch.busy();
    tokio::spawn(async move {
        let Ok(Some(grade)) = grading.await else {
            return;
        };
        let written = spawn_blocking(move || {
            let _busy = busy;
            dispatch.ledger.late_score(&LateScore {
                route,
                call: Some(call),
                score: grade.score,
                origin: grade.scorer,
                at_ms: dispatch.clock.unix_ms(),
            })
        });
        if let Ok(Err(error)) = written.await {
            warn!(%route, %error, "late score was not recorded");
        }
    });
}

pub(crate) fn attempt(arm: &ArmId, end: &CallEnd) -> Attempt {
    Attempt {
        arm: arm.clone(),
        outcome: end.outcome,
        usage: end.usage,
        latency: end.latency,
        ttft: end.ttft,
        cost: end.cost,
        score: None,
        error: end.error.clone(),
    }
}

/// False where the request asked for what this arm is not made for: nothing to learn from.
pub(crate) fn is_the_arms_doing(error: &BackendError) -> bool {
    !matches!(
        error,
        BackendError::ContextExceeded { .. }
            | BackendError::InvalidRequest(_)
            | BackendError::Unsupported(_)
    )
}

/// An error with everything behind it, in one line.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
