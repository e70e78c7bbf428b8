//! Running a request with parts: every part on its arm at the same time, and one bill.
//!
//! Each part is a future of its own; all of them run within one task and share the open route.
//! Every part runs to its end whatever becomes of the others, in `all_in` too: an arm that worked
//! is heard of, and a result that was paid for is delivered.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use llmpick_core::{
    ArmId, BackendError, Candidate, Decision, GenerateRequest, Locality, Mode, NanoDollars,
    Outcome, OutcomeKind, RouteId, Score, Usage,
};
use llmpick_ledger::{CallEnd, CallId, LedgerError, PartCall, PartEnd, Reserved, RouteStatus};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::candidates::Candidature;
use crate::drive::{USUAL_THRESHOLD, attempt, explain, is_the_arms_doing};
use crate::grade::Grade;
use crate::open::{Meter, OpenRoute};
use crate::plan::{Bound, Plan, PlannedPart};
use crate::work::{Answer, pump, within};
use crate::{
    Attempt, Dispatch, DispatchError, Part, PartSummary, RouteRequest, TaskEvent, TaskSummary,
    fallback,
};

/// Parts that a remote arm is asked at the same time.
const REMOTE_AT_ONCE: usize = 16;

type Events = mpsc::Sender<Result<TaskEvent, DispatchError>>;

/// A plan with parts on its way.
pub(crate) struct Task {
    dispatch: Arc<Dispatch>,
    request: RouteRequest,
    arrived: Duration,
    deadline: Option<Instant>,
    events: Events,
    route_id: RouteId,
    /// True once one part could not go on: the others stop as well.
    stop: watch::Sender<bool>,
    open: Arc<Mutex<OpenRoute>>,
    pool: Vec<Candidature>,
    candidates: Vec<Candidate>,
    decision: Decision,
    order: Vec<usize>,
    parts: Vec<PlannedPart>,
    seed: u64,
    pinned: bool,
    threshold: f64,
    /// Room at each arm of the pool. A local arm computes one answer at a time anyway: its parts
    /// wait here, where their waiting is no latency of the arm's.
    room: Vec<Semaphore>,
    shared: Mutex<Shared>,
}

/// What the parts have in common while they run.
#[derive(Default)]
struct Shared {
    /// Paid, and set aside for what has not ended: what the request's own limit is held against.
    held: NanoDollars,
    /// Arms outside the plan that took over, in the order in which they did.
    helpers: Vec<usize>,
}

/// A part that has ended.
struct Ended {
    summary: PartSummary,
    answered: Option<CallId>,
    grade: Option<Grade>,
}

/// How one arm's try at a part ended.
enum Try {
    Answered(CallId, Answer),
    Failed(BackendError),
}

/// The client went away, or the ledger cannot be written: the rest stops too.
struct Broken(DispatchError);

impl From<DispatchError> for Broken {
    fn from(error: DispatchError) -> Self {
        Self(error)
    }
}

impl Task {
    pub(crate) fn new(
        dispatch: &Arc<Dispatch>,
        plan: Plan,
        request: RouteRequest,
        arrived: Duration,
        deadline: Option<Instant>,
        events: Events,
    ) -> Self {
        let threshold = request.min_score.or(dispatch.settings.accept_threshold);
        let at_once = |c: &Candidature| match c.candidate.locality {
            Locality::Local => 1,
            Locality::Remote => REMOTE_AT_ONCE,
        };
        let held = plan.parts.iter().filter_map(|part| bound(part, part.arm));
        Self {
            candidates: plan.candidates(),
            threshold: threshold.map_or(USUAL_THRESHOLD, Score::get),
            room: plan
                .pool
                .iter()
                .map(|c| Semaphore::new(at_once(c)))
                .collect(),
            shared: Mutex::new(Shared {
                held: held.map(|bound| bound.amount).sum(),
                helpers: Vec::new(),
            }),
            route_id: plan.open.id,
            stop: watch::Sender::new(false),
            open: Arc::new(Mutex::new(plan.open)),
            pool: plan.pool,
            decision: plan.decision,
            order: plan.order,
            parts: plan.parts,
            seed: plan.seed,
            pinned: plan.pinned,
            dispatch: Arc::clone(dispatch),
            request,
            arrived,
            deadline,
            events,
        }
    }

    /// Runs every part to its end. When the future is dropped, or the client goes away, what runs
    /// is broken off, and the route is closed as cancelled.
    pub(crate) async fn run(self) -> Result<TaskSummary, DispatchError> {
        let mut broken: Option<DispatchError> = None;
        let mut ended: Vec<Ended> = Vec::new();
        {
            let mut running: FuturesUnordered<_> =
                (0..self.parts.len()).map(|part| self.part(part)).collect();
            while let Some(part) = running.next().await {
                match part {
                    Ok(part) => ended.push(part),
                    // The others are let stop where they are rather than dropped, so that none
                    // begins a call after the route is closed.
                    Err(Broken(error)) => {
                        broken.get_or_insert(error);
                        self.stop.send_replace(true);
                    }
                }
            }
        }
        ended.sort_by_key(|part| part.summary.part);
        match broken {
            None => self.conclude(ended).await,
            Some(error) => {
                self.close(RouteStatus::Cancelled, None, &ended).await?;
                Err(error)
            }
        }
    }

    /// One part from its arm to its grade.
    async fn part(&self, part: usize) -> Result<Ended, Broken> {
        let mut tries = Tries::default();
        let (Some(planned), Some(asked)) = (self.parts.get(part), self.request.parts.get(part))
        else {
            return Err(DispatchError::Stopped.into());
        };
        let generate = self.generate(part, asked);
        let mut next = Some((planned.arm, part as u32));
        while let Some((index, position)) = next.take() {
            let Some(arm) = self.pool.get(index) else {
                break;
            };
            tries.tried.push(index);
            let at = At {
                part,
                position,
                index,
            };
            match self.attempt(at, arm, &generate, &mut tries).await? {
                Try::Answered(call, answer) => {
                    return self.answered(part, arm, call, answer, tries).await;
                }
                Try::Failed(error) => {
                    let hopeless = self.is_late() || !error.is_arm_fault();
                    tries.failures.push((arm.candidate.id.clone(), error));
                    if !hopeless {
                        next = self.takes_over(part, index, &tries).await?;
                    }
                }
            }
        }
        let failures: Vec<String> = tries
            .failures
            .iter()
            .map(|(arm, error)| format!("{arm}: {}", explain(error)))
            .collect();
        let summary = PartSummary {
            part,
            name: asked.name.clone(),
            arm: None,
            text: String::new(),
            reason: None,
            score: None,
            accepted: false,
            cost: tries.cost(),
            latency: self.elapsed(),
            attempts: tries.attempts,
            error: Some(failures.join("; ")),
        };
        let _ = self.told(TaskEvent::Ended(summary.clone())).await;
        Ok(Ended {
            summary,
            answered: None,
            grade: None,
        })
    }

    fn generate(&self, part: usize, asked: &Part) -> GenerateRequest {
        let mut generate = self.request.generate_part(asked);
        // Without a reference, how sure the model was is all there is to grade by.
        generate.logprobs |= asked.reference.is_none();
        if generate.sampling.seed == 0 {
            // Two parts that ask the same shall not be drawn the same.
            generate.sampling.seed = self
                .seed
                .wrapping_add((part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .max(1);
        }
        generate
    }

    /// Makes one arm work on a part once there is room, and records how that went.
    async fn attempt(
        &self,
        at: At,
        arm: &Candidature,
        generate: &GenerateRequest,
        tries: &mut Tries,
    ) -> Result<Try, Broken> {
        let late = || BackendError::Timeout(self.request.max_latency.unwrap_or_default());
        let room = self.room.get(at.index).ok_or(DispatchError::Stopped)?;
        let _place = match self
            .unless_gone(within(self.deadline, room.acquire()))
            .await?
        {
            Some(place) => place.map_err(|_| DispatchError::Stopped)?,
            // It never began: there is no call to pay or to learn from.
            None => return Ok(Try::Failed(late())),
        };
        let (call, meter) = self.start(at, arm).await?;
        let id = arm.candidate.id.clone();
        info!(route = %self.route_id, part = at.part, arm = %id, "part started");
        let name = self.name(at.part);
        let part = at.part;
        self.told(TaskEvent::Started {
            part,
            name,
            arm: id,
        })
        .await?;
        let began = self.dispatch.clock.monotonic();
        let mut committed = false;
        let pump = pump(
            &arm.backend,
            generate,
            &self.dispatch.clock,
            None,
            &mut committed,
            &meter,
        );
        let ended = self.unless_gone(within(self.deadline, pump)).await?;
        let ended = ended.unwrap_or_else(|| Err(late()));
        let elapsed = self.dispatch.clock.monotonic().saturating_sub(began);
        let end = match &ended {
            Ok(answer) => answered_end(arm, answer),
            Err(error) => self.failed_end(call, error, elapsed)?,
        };
        tries.attempts.push(attempt(&arm.candidate.id, &end));
        self.settle(at, call, end).await?;
        Ok(match ended {
            Ok(answer) => Try::Answered(call, answer),
            Err(error) => {
                let (route, arm) = (self.route_id, &arm.candidate.id);
                warn!(%route, part = at.part, %arm, error = %explain(&error), "arm failed");
                Try::Failed(error)
            }
        })
    }

    async fn start(&self, at: At, arm: &Candidature) -> Result<(CallId, Meter), DispatchError> {
        let planned = self.parts.get(at.part).ok_or(DispatchError::Stopped)?;
        let bound = bound(planned, at.index).map_or(arm.bound, |bound| bound.amount);
        let prompt = planned.estimate.prompt;
        let described = arm.backend.arm().clone();
        let of = PartCall {
            part: at.part as u32,
            place: self.place(at.index),
        };
        let position = at.position;
        self.write(move |open| open.start_part(position, of, &described, bound, prompt))
            .await
    }

    /// An arm's place in the plan; arms that only take over stand behind the plan's.
    fn place(&self, index: usize) -> u32 {
        let choices = &self.decision.choices;
        let planned = choices.iter().position(|choice| *choice as usize == index);
        let place = planned.unwrap_or_else(|| {
            let helpers = &mut self.shared.lock().helpers;
            let known = helpers.iter().position(|helper| *helper == index);
            choices.len()
                + known.unwrap_or_else(|| {
                    helpers.push(index);
                    helpers.len() - 1
                })
        });
        place as u32
    }

    fn failed_end(
        &self,
        call: CallId,
        error: &BackendError,
        elapsed: Duration,
    ) -> Result<CallEnd, DispatchError> {
        let outcome = match error {
            BackendError::Timeout(_) => OutcomeKind::Timeout,
            _ => OutcomeKind::Error,
        };
        let open = self.open.lock();
        let running = open.call_of(call).ok_or(DispatchError::Stopped)?;
        let mut end = running.broken_off(elapsed, outcome, Some(explain(error)));
        end.learn = is_the_arms_doing(error);
        Ok(end)
    }

    async fn settle(&self, at: At, call: CallId, end: CallEnd) -> Result<(), DispatchError> {
        let set_aside = self
            .parts
            .get(at.part)
            .and_then(|part| bound(part, at.index));
        let cost = end.cost;
        self.write(move |open| open.end_call(call, &end)).await?;
        let mut shared = self.shared.lock();
        let bound = set_aside.map_or(NanoDollars::ZERO, |bound| bound.amount);
        shared.held = shared.held.saturating_sub(bound) + cost;
        Ok(())
    }

    /// Who takes a part over after its arm failed, with money set aside: the next arm of the
    /// plan, or else the best other one. A part is taken over once.
    async fn takes_over(
        &self,
        part: usize,
        failed: usize,
        tries: &Tries,
    ) -> Result<Option<(usize, u32)>, DispatchError> {
        let most = self.dispatch.settings.max_attempts.min(2) as usize;
        if self.pinned || tries.tried.len() >= most {
            return Ok(None);
        }
        let barred = fallback::barred(&self.candidates, &tries.tried, &tries.failures);
        let choices: Vec<usize> = self.decision.choices.iter().map(|c| *c as usize).collect();
        let after = choices.iter().position(|choice| *choice == failed);
        let next = (choices.iter().cycle())
            .skip(after.map_or(0, |after| after + 1))
            .take(choices.len())
            .copied()
            .find(|index| {
                !barred.contains(index) && self.candidates.get(*index).is_some_and(|c| c.eligible)
            })
            .or_else(|| fallback::best(&self.candidates, &barred));
        let Some(index) = next else {
            return Ok(None);
        };
        let planned = self.parts.get(part).ok_or(DispatchError::Stopped)?;
        let Some(Bound { amount, known }) = bound(planned, index) else {
            return Ok(None);
        };
        {
            let mut shared = self.shared.lock();
            let over = |limit| shared.held + amount > limit;
            if known && self.request.max_cost.is_some_and(over) {
                return Ok(None);
            }
            shared.held += amount;
        }
        let (position, reserved) = self
            .write(move |open| {
                let position = open.next_position();
                Ok((position, open.reserve(&[amount])?))
            })
            .await?;
        if reserved == Reserved::Granted {
            return Ok(Some((index, position)));
        }
        let mut shared = self.shared.lock();
        shared.held = shared.held.saturating_sub(amount);
        Ok(None)
    }

    async fn answered(
        &self,
        part: usize,
        arm: &Candidature,
        call: CallId,
        answer: Answer,
        mut tries: Tries,
    ) -> Result<Ended, Broken> {
        let grade = self.grade(part, arm, &answer).await;
        let score = grade.as_ref().map(|grade| grade.score);
        if let Some(last) = tries.attempts.last_mut() {
            last.score = score;
        }
        let summary = PartSummary {
            part,
            name: self.name(part),
            arm: Some(arm.candidate.id.clone()),
            text: answer.measured.text,
            reason: Some(answer.reason),
            score,
            // An answer that nothing can grade is taken.
            accepted: score.is_none_or(|score| score.get() >= self.threshold),
            cost: tries.cost(),
            latency: self.elapsed(),
            attempts: tries.attempts,
            error: None,
        };
        // Graded and paid for, whether anybody still listens or not.
        let _ = self.told(TaskEvent::Ended(summary.clone())).await;
        Ok(Ended {
            summary,
            answered: Some(call),
            grade,
        })
    }

    /// Asks the part's scorers, and waits for them: the grades are what the request is about.
    async fn grade(&self, part: usize, arm: &Candidature, answer: &Answer) -> Option<Grade> {
        let asked = self.request.parts.get(part)?;
        let outcome = Outcome {
            route_id: Some(self.route_id),
            arm: Some(arm.candidate.id.clone()),
            task: self.request.context.0.clone(),
            prompt: self.request.generate_part(asked).prompt.text(),
            response: answer.measured.text.clone(),
            reference: asked.reference.clone(),
            logprobs: answer.measured.logprobs.clone(),
            seed: self.seed,
        };
        let jury = self.parts.get(part)?.jury.clone();
        let grading = spawn_blocking(move || jury.grade(&outcome));
        grading.await.unwrap_or_default()
    }

    /// Writes the end of the request and says what it came to.
    async fn conclude(self, ended: Vec<Ended>) -> Result<TaskSummary, DispatchError> {
        let mode = self.decision.mode;
        let failure = self.failure(&ended);
        let success = failure.is_none();
        let status = match success {
            true => RouteStatus::Done,
            false => RouteStatus::Failed,
        };
        let accepted = (mode == Mode::AllIn).then_some(success);
        self.close(status, accepted, &ended).await?;
        let parts: Vec<PartSummary> = ended.into_iter().map(|part| part.summary).collect();
        let scores: Vec<f64> = (parts.iter())
            .filter_map(|part| part.score.map(Score::get))
            .collect();
        let mut usage = Usage::default();
        for attempt in parts.iter().flat_map(|part| &part.attempts) {
            usage += attempt.usage;
        }
        let arms = self.order.iter().filter_map(|index| self.pool.get(*index));
        Ok(TaskSummary {
            route_id: self.route_id,
            mode,
            success,
            failure,
            score_sum: (!scores.is_empty()).then(|| scores.iter().sum()),
            usage,
            cost: parts.iter().map(|part| part.cost).sum(),
            latency: self.elapsed(),
            arms: arms.map(|arm| arm.candidate.id.clone()).collect(),
            source: self.decision.source,
            parts,
        })
    }

    /// Why the request as a whole failed, if it did.
    fn failure(&self, ended: &[Ended]) -> Option<String> {
        let told = |part: &PartSummary| match (&part.error, part.score) {
            (Some(error), _) => format!("part `{}` failed: {error}", part.name),
            (None, Some(score)) => format!(
                "part `{}` scored {score}, and {:.3} was asked for",
                part.name, self.threshold
            ),
            (None, None) => format!("part `{}` was not accepted", part.name),
        };
        let summaries = || ended.iter().map(|part| &part.summary);
        let fails: Vec<String> = match self.decision.mode {
            Mode::AllIn => summaries().filter(|p| !p.accepted).map(told).collect(),
            _ if summaries().any(|part| part.error.is_none()) => Vec::new(),
            _ => summaries().map(told).collect(),
        };
        (!fails.is_empty()).then(|| fails.join("; "))
    }

    async fn close(
        &self,
        status: RouteStatus,
        accepted: Option<bool>,
        ended: &[Ended],
    ) -> Result<(), DispatchError> {
        let grades = (ended.iter())
            .filter_map(|part| Some((part.answered?, part.grade.clone()?)))
            .collect();
        let parts: Vec<PartEnd> = ended
            .iter()
            .map(|part| PartEnd {
                part: part.summary.part as u32,
                answered: part.answered,
                accepted: part.summary.accepted,
            })
            .collect();
        self.write(move |open| open.close(status, None, accepted, grades, &parts))
            .await
    }

    /// Writes to the ledger, off the async threads.
    async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut OpenRoute) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, DispatchError> {
        let open = Arc::clone(&self.open);
        let written = spawn_blocking(move || write(&mut open.lock()));
        Ok(written.await.map_err(|_| DispatchError::Stopped)??)
    }

    /// Goes on unless the client is gone.
    async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Result<T, Broken> {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            biased;
            () = self.events.closed() => Err(DispatchError::Stopped.into()),
            // The sender lives as long as this task.
            _ = stop.wait_for(|stop| *stop) => Err(DispatchError::Stopped.into()),
            done = work => Ok(done),
        }
    }

    async fn told(&self, event: TaskEvent) -> Result<(), Broken> {
        let sent = self.events.send(Ok(event)).await;
        sent.map_err(|_| DispatchError::Stopped.into())
    }

    fn name(&self, part: usize) -> String {
        let part = self.request.parts.get(part);
        part.map(|part| part.name.clone()).unwrap_or_default()
    }

    fn elapsed(&self) -> Duration {
        self.dispatch.clock.monotonic().saturating_sub(self.arrived)
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Which part, at which place among the attempts, on which arm of the pool.
#[derive(Clone, Copy)]
struct At {
    part: usize,
    position: u32,
    index: usize,
}

/// What was tried for one part.
#[derive(Default)]
struct Tries {
    tried: Vec<usize>,
    attempts: Vec<Attempt>,
    failures: Vec<(ArmId, BackendError)>,
}

impl Tries {
    fn cost(&self) -> NanoDollars {
        self.attempts.iter().map(|attempt| attempt.cost).sum()
    }
}

/// The most that a part can cost on an arm of the pool.
fn bound(part: &PlannedPart, index: usize) -> Option<Bound> {
    part.bounds.get(index).copied()
}

fn answered_end(arm: &Candidature, answer: &Answer) -> CallEnd {
    let measured = &answer.measured;
    CallEnd {
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
    }
}
