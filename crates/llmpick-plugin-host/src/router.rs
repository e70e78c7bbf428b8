//! A loaded router behind core's trait: deadline, faults, quarantine, fallback.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llmpick_core::{
    Decision, DecisionSource, Feedback, OwnedRequest, Router, RouterError, RouterNeeds,
    SelectRequest, Snapshot,
};
use llmpick_plugin_abi as abi;
use serde_json::Value;

use crate::call::CallError;
use crate::child::Spec;
use crate::lane::{Lane, NoAnswer, NoLane, Ticket};
use crate::library::{Library, Table};
use crate::sentinel::Marker;
use crate::worker::{Blueprint, Fail, Keeper, Place, Worker};
use crate::{CreateError, FallbackRouter, PluginKind};

/// Where a plugin's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// On a thread of its own, with a deadline.
    Actor,
    /// On the caller's thread, without one: for simulation and replay, where nothing but
    /// the state may matter.
    Inline,
    /// In a process of its own, with a deadline: a crash or an endless loop ends that process
    /// and costs one decision. Needs a program that calls
    /// [`run_if_child`](crate::run_if_child).
    Process,
}

/// Who draws the set where a plugin gives marginals only ("round for me").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// The host, from the request's seed.
    #[default]
    Host,
    /// Whoever asked: the decision has marginals and no choices, for a
    /// [`Scheduler`](llmpick_core::Scheduler) to draw from.
    Caller,
}

/// How a router is supervised.
#[derive(Clone, Copy, Debug)]
pub struct RouterOptions {
    /// Where it runs.
    pub isolation: Isolation,
    /// Who rounds marginals.
    pub rounding: Rounding,
    /// Longest time for a choice; the request's own limit counts if it is shorter.
    pub deadline: Duration,
    /// Longest time to start, to write a snapshot, to take one over.
    pub control_deadline: Duration,
    /// A call that takes longer than this is given up with its thread, and a new instance
    /// takes over. Until then the fallback answers at once.
    pub abandon_after: Duration,
    /// Feedbacks that may wait; then the caller waits for at most `deadline`, then the
    /// oldest is dropped and counted.
    pub backlog: usize,
    /// Faults after which only the fallback answers.
    pub quarantine_after: u32,
    /// Good choices in a row after which earlier faults are forgotten.
    pub forgive_after: u32,
    /// Most bytes of a snapshot.
    pub max_snapshot_bytes: usize,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            isolation: Isolation::Actor,
            rounding: Rounding::Host,
            deadline: Duration::from_millis(100),
            control_deadline: Duration::from_secs(5),
            abandon_after: Duration::from_secs(1),
            backlog: 1024,
            quarantine_after: 3,
            forgive_after: 1000,
            max_snapshot_bytes: 64 << 20,
        }
    }
}

/// Makes a router of a loaded library. `config_json` is a JSON object; nothing means `{}`.
///
/// Whatever the plugin does wrong later, `select` has an answer: the built-in fallback's,
/// marked with [`DecisionSource::Fallback`] and the reason.
pub fn router(
    library: &Arc<Library>,
    name: &str,
    config_json: &str,
    options: &RouterOptions,
) -> Result<Box<dyn Router>, CreateError> {
    let Some((info, table)) = library.plugin(PluginKind::Router, name) else {
        return Err(no_such_plugin(library, PluginKind::Router, name));
    };
    let config = parse_config(name, config_json)?;
    let place = match (options.isolation, table) {
        (Isolation::Process, _) => Place::Apart(Box::new(Spec {
            image: Arc::clone(library.image()),
            info: info.clone(),
            config: config.clone(),
            control_deadline: options.control_deadline,
            feedback_deadline: options.abandon_after.max(options.deadline),
            max_snapshot_bytes: options.max_snapshot_bytes,
        })),
        (_, Some(Table::Router(table))) => Place::Here(table),
        _ => return Err(apart(name)),
    };
    let _marker = mark(library, name, options.isolation)?;
    let blueprint = Arc::new(Blueprint {
        info: info.clone(),
        place,
        config,
        max_snapshot_bytes: options.max_snapshot_bytes,
        rounding: options.rounding,
    });
    let keeper = Arc::default();
    let engine = Engine::start(&blueprint, &keeper, options)?;
    Ok(Box::new(Supervised {
        blueprint,
        keeper,
        engine,
        options: *options,
        faults: Arc::default(),
        good_in_a_row: 0,
        spare: Box::default(),
        stuck: None,
        quarantined: None,
    }))
}

/// Leaves word that the constructor runs, where it runs in this process.
pub(crate) fn mark(
    library: &Library,
    name: &str,
    isolation: Isolation,
) -> Result<Option<Marker>, CreateError> {
    if isolation == Isolation::Process {
        return Ok(None);
    }
    library.mark().map_err(|source| CreateError::Lock {
        name: name.to_owned(),
        source,
    })
}

pub(crate) fn apart(name: &str) -> CreateError {
    CreateError::Apart {
        name: name.to_owned(),
    }
}

pub(crate) fn no_such_plugin(library: &Library, kind: PluginKind, name: &str) -> CreateError {
    CreateError::NoSuchPlugin {
        library: library.path().to_owned(),
        kind,
        name: name.to_owned(),
        held: library.held(),
    }
}

/// The configuration as an object; plugins see it as JSON and by key.
pub(crate) fn parse_config(name: &str, json: &str) -> Result<Value, CreateError> {
    let refuse = |reason: String| CreateError::Config {
        name: name.to_owned(),
        reason,
    };
    if json.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    match serde_json::from_str(json) {
        Ok(Value::Object(map)) => Ok(Value::Object(map)),
        Ok(_) => Err(refuse("its settings must be a JSON object".to_owned())),
        Err(error) => Err(refuse(format!("its settings are no JSON: {error}"))),
    }
}

/// What a failed constructor means.
pub(crate) fn create_error(name: &str, error: CallError) -> CreateError {
    let (name, reason) = (name.to_owned(), error.message);
    match error.status {
        abi::E_CONFIG => CreateError::Config { name, reason },
        _ => CreateError::Failed { name, reason },
    }
}

/// What a thread that did not start means.
pub(crate) fn lane_error(name: &str, waited: Duration, error: NoLane<CallError>) -> CreateError {
    let name = name.to_owned();
    match error {
        NoLane::Refused(error) => create_error(&name, error),
        NoLane::Late => CreateError::TimedOut { name, waited },
        NoLane::Thread(source) => CreateError::Thread { name, source },
    }
}

/// How long to wait for the thread that waits for a process: it keeps the deadline itself, and
/// needs a moment more to end what overran it.
pub(crate) fn patience(deadline: Duration) -> Duration {
    deadline + GRACE.max(deadline)
}

const GRACE: Duration = Duration::from_millis(100);

enum Engine {
    Inline(Box<Worker>),
    Actor(Lane<Worker>),
}

impl Engine {
    fn start(
        blueprint: &Arc<Blueprint>,
        keeper: &Arc<Mutex<Keeper>>,
        options: &RouterOptions,
    ) -> Result<Self, CreateError> {
        let (blueprint, keeper) = (Arc::clone(blueprint), Arc::clone(keeper));
        let name = blueprint.info.name.clone();
        let make = move || Worker::new(blueprint, keeper);
        match options.isolation {
            Isolation::Inline => make()
                .map(|worker| Engine::Inline(Box::new(worker)))
                .map_err(|error| create_error(&name, error)),
            Isolation::Actor => Lane::start(&name, options.control_deadline, make)
                .map(Engine::Actor)
                .map_err(|error| lane_error(&name, options.control_deadline, error)),
            Isolation::Process => {
                let patience = patience(options.control_deadline);
                Lane::start(&name, patience, make)
                    .map(Engine::Actor)
                    .map_err(|error| lane_error(&name, patience, error))
            }
        }
    }
}

struct Supervised {
    blueprint: Arc<Blueprint>,
    keeper: Arc<Mutex<Keeper>>,
    engine: Engine,
    options: RouterOptions,
    /// Counted here and, for feedback that nobody waits for, on the plugin's thread.
    faults: Arc<AtomicU32>,
    good_in_a_row: u32,
    /// The last request's memory, for the next.
    spare: Box<OwnedRequest>,
    /// A call that was given up and, when last seen, still ran.
    stuck: Option<(Ticket, Instant)>,
    /// Why only the fallback answers.
    quarantined: Option<String>,
}

impl Supervised {
    fn name_text(&self) -> &str {
        &self.blueprint.info.name
    }

    /// Asks the plugin, or says why it was not to be asked.
    fn ask(&mut self, request: &SelectRequest<'_>) -> Result<Decision, Fail> {
        self.unstick()?;
        let deadline = match request.time_budget {
            Duration::ZERO => self.options.deadline,
            budget => budget.min(self.options.deadline),
        };
        let waits = self.waits(deadline);
        match &mut self.engine {
            Engine::Inline(worker) => worker.select(request, deadline),
            Engine::Actor(lane) => {
                let mut owned = std::mem::take(&mut self.spare);
                owned.assign(request);
                let job = move |worker: &mut Worker| {
                    let answer = worker.select(&owned.borrow(), deadline);
                    (answer, owned)
                };
                let answer = lane.call(waits, job);
                let answer = self.answered(answer, deadline).and_then(|(answer, owned)| {
                    self.spare = owned;
                    answer
                });
                if matches!(answer, Err(Fail::Fault(_))) {
                    self.revive();
                }
                answer
            }
        }
    }

    /// How long to wait for a call of this deadline.
    fn waits(&self, deadline: Duration) -> Duration {
        match self.options.isolation {
            Isolation::Process => patience(deadline),
            Isolation::Actor | Isolation::Inline => deadline,
        }
    }

    /// Lets a lost process be replaced now, not when the next answer is waited for.
    fn revive(&mut self) {
        if let (Isolation::Process, Engine::Actor(lane)) = (self.options.isolation, &self.engine) {
            lane.post(usize::MAX, Duration::ZERO, Worker::revive);
        }
    }

    /// Turns a missing answer into a fault, and remembers that the thread may be busy.
    fn answered<R>(&mut self, answer: Result<R, NoAnswer>, waited: Duration) -> Result<R, Fail> {
        answer.map_err(|error| match error {
            NoAnswer::Late(ticket) => {
                self.stuck = Some((ticket, Instant::now()));
                Fail::Fault(format!("it did not answer within {waited:?}"))
            }
            NoAnswer::Gone => Fail::Fault("its thread is gone".to_owned()),
        })
    }

    /// A thread that is still busy with a call that was given up gets no new one: the
    /// fallback answers at once, and before long another instance takes over.
    fn unstick(&mut self) -> Result<(), Fail> {
        let (Some((ticket, since)), Engine::Actor(lane)) = (self.stuck, &self.engine) else {
            return Ok(());
        };
        if !lane.busy_with(ticket) {
            self.stuck = None;
            return Ok(());
        }
        // The thread of a process comes back: it ends whatever overruns.
        let waits = self.options.isolation == Isolation::Process;
        if waits || since.elapsed() < self.options.abandon_after {
            return Err(Fail::Busy);
        }
        let engine = Engine::start(&self.blueprint, &self.keeper, &self.options)
            .map_err(|error| Fail::Fault(format!("it hangs, and no other took over: {error}")))?;
        tracing::warn!(plugin = %self.name_text(), "a call did not return; its thread was given up");
        if let (Engine::Actor(new), Engine::Actor(old)) = (&engine, &self.engine) {
            new.inherit(old);
        }
        self.engine = engine;
        self.stuck = None;
        Ok(())
    }

    fn note_fault(&mut self, why: &str) {
        self.faults.fetch_add(1, Ordering::AcqRel);
        self.good_in_a_row = 0;
        tracing::warn!(plugin = %self.name_text(), reason = %why, "the router failed");
        self.judge(why);
    }

    /// Quarantines after too many faults.
    fn judge(&mut self, last: &str) {
        let faults = self.faults.load(Ordering::Acquire);
        if self.quarantined.is_none() && faults >= self.options.quarantine_after {
            let name = self.name_text();
            let why = format!("`{name}` is quarantined after {faults} faults, the last: {last}");
            tracing::error!(plugin = %name, faults, "the router was quarantined");
            self.quarantined = Some(why);
        }
    }

    fn note_good(&mut self) {
        self.good_in_a_row = self.good_in_a_row.saturating_add(1);
        if self.good_in_a_row >= self.options.forgive_after {
            self.good_in_a_row = 0;
            self.faults.store(0, Ordering::Release);
        }
    }

    /// Runs a call that is no choice: a snapshot, a restore.
    fn control<R: Send + 'static>(
        &mut self,
        run: impl FnOnce(&mut Worker) -> Result<R, RouterError> + Send + 'static,
    ) -> Result<R, RouterError> {
        if let Some(why) = &self.quarantined {
            return Err(RouterError::Fault(why.clone()));
        }
        let deadline = self.waits(self.options.control_deadline);
        let result = self.unstick().and_then(|()| match &mut self.engine {
            Engine::Inline(worker) => Ok(run(worker)),
            Engine::Actor(lane) => {
                let answer = lane.call(deadline, run);
                self.answered(answer, deadline)
            }
        });
        let result = match result {
            Ok(result) => result,
            Err(Fail::Busy) => return Err(RouterError::Fault(BUSY.to_owned())),
            Err(Fail::Abstained) => Err(RouterError::Abstained),
            Err(Fail::Fault(why)) => Err(RouterError::Fault(why)),
        };
        if let Err(RouterError::Fault(why)) = &result {
            self.note_fault(why);
        }
        result
    }
}

const BUSY: &str = "it is still busy with an earlier call";

impl Router for Supervised {
    fn name(&self) -> &str {
        self.name_text()
    }

    fn needs(&self) -> RouterNeeds {
        RouterNeeds {
            prompt: self.blueprint.info.has(abi::CAP_NEEDS_PROMPT),
            features: self.blueprint.info.has(abi::CAP_NEEDS_FEATURES),
        }
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        if !request
            .candidates
            .iter()
            .any(|candidate| candidate.eligible)
        {
            return Err(RouterError::NoEligibleArm);
        }
        self.judge("a feedback failed");
        let why = match &self.quarantined {
            Some(why) => why.clone(),
            None => match self.ask(request) {
                Ok(decision) => {
                    self.note_good();
                    return Ok(decision);
                }
                Err(Fail::Abstained) => format!("`{}` abstained", self.name_text()),
                Err(Fail::Busy) => format!("`{}` failed: {BUSY}", self.name_text()),
                Err(Fail::Fault(why)) => {
                    let why = format!("`{}` failed: {why}", self.name_text());
                    self.note_fault(&why);
                    why
                }
            },
        };
        FallbackRouter::decide(request, DecisionSource::Fallback(why))
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        if self.quarantined.is_some() {
            return Ok(());
        }
        match &mut self.engine {
            Engine::Inline(worker) => {
                let result = worker.feedback(feedback);
                if let Err(error) = &result {
                    self.note_fault(&error.to_string());
                }
                result
            }
            Engine::Actor(lane) => {
                let (feedback, faults) = (feedback.clone(), Arc::clone(&self.faults));
                let RouterOptions {
                    backlog, deadline, ..
                } = self.options;
                let dropped = lane.post(backlog, deadline, move |worker| {
                    if let Err(error) = worker.feedback(&feedback) {
                        faults.fetch_add(1, Ordering::AcqRel);
                        tracing::warn!(reason = %error, "the router failed to learn");
                    }
                });
                if dropped.is_power_of_two() {
                    let plugin = self.name_text();
                    tracing::warn!(%plugin, dropped, "the router is too slow to learn it all");
                }
                Ok(())
            }
        }
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        self.control(Worker::snapshot)
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RouterError> {
        let snapshot = snapshot.clone();
        self.control(move |worker| worker.restore(&snapshot))
    }
}
