//! A process of its own for a plugin: this program again, with a hidden argument.
//!
//! The child answers one call after the other over a socket and speaks the plugin's own header
//! with it; what the plugin does there, up to a crash or an endless loop, ends the child and
//! one call. It has nothing of ours but that socket: no other descriptors, no variables that
//! may hold keys, and it dies when we do.

mod process;
mod serve;
mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llmpick_core::{Feedback, Outcome, SelectRequest, Snapshot};
use llmpick_plugin_abi as abi;
use serde_json::Value;

use crate::call::CallError;
use crate::instance::RawDecision;
use crate::library::{Facts, Image};
use crate::{LoadErrorKind, PluginInfo, PluginKind};
use process::Process;
use wire::op;

/// The argument that makes a child of this program.
const ARGUMENT: &str = "--llmpick-plugin-process";

/// True once this program has said that it understands [`ARGUMENT`].
static UNDERSTOOD: AtomicBool = AtomicBool::new(false);
static PROGRAM: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Makes this process a plugin's own, if it was started as such, and does not return then.
///
/// Call it first thing in `main`: it is what lets plugins be tried out and run in processes of
/// their own. A program that does not call it starts none.
pub fn run_if_child() {
    UNDERSTOOD.store(true, Ordering::Release);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ARGUMENT) {
        let parent = arguments.next().and_then(|pid| pid.to_str()?.parse().ok());
        serve::run(parent);
    }
}

/// Uses another program, which calls [`run_if_child`], for the processes of plugins: for tests,
/// whose own program does not.
pub fn use_child_program(program: impl Into<PathBuf>) {
    *PROGRAM.lock().unwrap_or_else(PoisonError::into_inner) = Some(program.into());
}

/// Whether plugins can run in processes of their own here: whether there is a program that
/// calls [`run_if_child`].
pub fn can_start_processes() -> bool {
    program().is_some()
}

/// What to start, if there is such a program.
pub(crate) fn program() -> Option<PathBuf> {
    let named = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
    let own = || {
        let understood = UNDERSTOOD.load(Ordering::Acquire);
        // Whatever lies at our path by now, this is what we are.
        understood.then(|| PathBuf::from("/proc/self/exe"))
    };
    named.clone().or_else(own)
}

/// Loads the bytes in a child and answers what they say of themselves.
pub(crate) fn facts(bytes: &[u8], deadline: Duration) -> Result<Facts, LoadErrorKind> {
    let mut process = start("a library")?;
    try_load(&mut process, bytes, deadline)
}

/// Loads the bytes in a child and makes one of each plugin, without settings. Answers in which
/// words each refused, if it did.
pub(crate) fn try_out(
    bytes: &[u8],
    deadline: Duration,
) -> Result<(Facts, Vec<Option<String>>), LoadErrorKind> {
    let mut process = start("a library")?;
    let facts = try_load(&mut process, bytes, deadline)?;
    let mut refusals = Vec::new();
    for info in &facts.plugins {
        create_frame(&mut process, info, "{}", 0);
        let mut made = process.ask(deadline).map(drop);
        if made.is_ok() {
            process.out().begin(op::DESTROY);
            made = process.ask(deadline).map(drop);
        }
        if let Some(why) = process.lost() {
            return Err(LoadErrorKind::Probe(format!(
                "{why} when `{}` was made",
                info.name
            )));
        }
        refusals.push(made.err().map(|error| error.message));
    }
    Ok((facts, refusals))
}

fn start(label: &str) -> Result<Process, LoadErrorKind> {
    let program = program().ok_or_else(|| LoadErrorKind::NoChild(NO_PROGRAM.to_owned()))?;
    Process::start(&program, label).map_err(|error| LoadErrorKind::NoChild(no_start(&error)))
}

const NO_PROGRAM: &str = "this program cannot start one";

fn no_start(error: &std::io::Error) -> String {
    format!("it could not be started: {error}")
}

fn load(process: &mut Process, bytes: &[u8], deadline: Duration) -> Result<Facts, CallError> {
    process.out().begin(op::LOAD).bytes(bytes);
    let json = process.ask(deadline)?.text().map(str::to_owned);
    let facts = json.ok().and_then(|json| serde_json::from_str(&json).ok());
    let named = |facts: &Facts| facts.plugins.iter().all(|p| abi::is_plugin_name(&p.name));
    let facts: Facts = facts.filter(named).ok_or_else(|| process.garbled())?;
    // Of the bytes we know more than the child.
    let sha256 = crate::library::digest(bytes);
    Ok(Facts { sha256, ..facts })
}

/// Loads on trial.
fn try_load(
    process: &mut Process,
    bytes: &[u8],
    deadline: Duration,
) -> Result<Facts, LoadErrorKind> {
    load(process, bytes, deadline).map_err(|error| match process.lost() {
        Some(why) => LoadErrorKind::Probe(format!("{why} when it was loaded")),
        None => LoadErrorKind::Reported(error.message),
    })
}

fn create_frame(process: &mut Process, info: &PluginInfo, config: &str, max_snapshot: usize) {
    let kind = match info.kind {
        PluginKind::Router => abi::KIND_ROUTER,
        PluginKind::Scorer => abi::KIND_SCORER,
    };
    let out = process.out().begin(op::CREATE);
    out.u32(kind)
        .text(&info.name)
        .text(config)
        .u32(crate::context::max_level())
        .u64(max_snapshot as u64);
}

/// How to make an instance in a child.
#[derive(Clone)]
pub(crate) struct Spec {
    pub image: Arc<Image>,
    pub info: PluginInfo,
    pub config: Value,
    /// Longest time to start, to write a snapshot, to take one over.
    pub control_deadline: Duration,
    /// Longest time to learn.
    pub feedback_deadline: Duration,
    pub max_snapshot_bytes: usize,
}

impl Spec {
    /// A child that made the instance, and whether that keeps a state.
    fn create(&self) -> Result<(Process, bool), CallError> {
        let failed = |message| CallError {
            status: abi::E_INTERNAL,
            message,
        };
        let program = program().ok_or_else(|| failed(NO_PROGRAM.to_owned()))?;
        let mut process =
            Process::start(&program, &self.info.name).map_err(|error| failed(no_start(&error)))?;
        let bytes = self
            .image
            .bytes()
            .map_err(|error| failed(error.to_string()))?;
        load(&mut process, &bytes, self.control_deadline)?;
        let config = self.config.to_string();
        create_frame(&mut process, &self.info, &config, self.max_snapshot_bytes);
        let keeps_state = process.ask(self.control_deadline)?.flag();
        // Room for a state, its length, and a decision's worth of everything else.
        process.accept_up_to(self.max_snapshot_bytes.saturating_add(1 << 20));
        match keeps_state {
            Ok(keeps_state) => Ok((process, keeps_state)),
            Err(_) => Err(failed(process.garbled().message)),
        }
    }
}

/// A router in a process of its own. After a loss every call fails; make another one.
pub(crate) struct ChildRouter {
    process: Process,
    spec: Spec,
    pub keeps_state: bool,
}

impl ChildRouter {
    pub(crate) fn create(spec: &Spec) -> Result<Self, CallError> {
        let (process, keeps_state) = spec.create()?;
        Ok(Self {
            process,
            spec: spec.clone(),
            keeps_state,
        })
    }

    pub(crate) fn select(
        &mut self,
        request: &SelectRequest<'_>,
        budget: Duration,
    ) -> Result<RawDecision, CallError> {
        // What the plugin did not ask for does not leave this process.
        let wants = |cap: u64| self.spec.info.has(cap);
        let request = SelectRequest {
            prompt: request.prompt.filter(|_| wants(abi::CAP_NEEDS_PROMPT)),
            features: request.features.filter(|_| wants(abi::CAP_NEEDS_FEATURES)),
            ..request.clone()
        };
        let out = self.process.out();
        out.begin(op::SELECT).request(&request, budget);
        let raw = self.process.ask(budget)?.decision(request.candidates.len());
        raw.map_err(|_| self.process.garbled())
    }

    pub(crate) fn feedback(&mut self, feedback: &Feedback) -> Result<(), CallError> {
        self.process.out().begin(op::FEEDBACK).feedback(feedback);
        self.process.ask(self.spec.feedback_deadline).map(drop)
    }

    pub(crate) fn snapshot(&mut self) -> Result<Snapshot, CallError> {
        self.process.out().begin(op::SNAPSHOT);
        let mut body = self.process.ask(self.spec.control_deadline)?;
        let read = body.u32().and_then(|version| {
            let state = body.bytes()?.to_vec();
            Ok(Snapshot { version, state })
        });
        read.map_err(|_| self.process.garbled())
    }

    pub(crate) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), CallError> {
        let out = self.process.out().begin(op::RESTORE);
        out.u32(snapshot.version).bytes(&snapshot.state);
        self.process.ask(self.spec.control_deadline).map(drop)
    }
}

/// A scorer in a process of its own.
pub(crate) struct ChildScorer {
    process: Process,
}

impl ChildScorer {
    pub(crate) fn create(spec: &Spec) -> Result<Self, CallError> {
        let (process, _) = spec.create()?;
        Ok(Self { process })
    }

    /// Grades: whatever number the plugin wrote.
    pub(crate) fn score(&mut self, outcome: &Outcome, budget: Duration) -> Result<f64, CallError> {
        self.process.out().begin(op::SCORE).outcome(outcome, budget);
        let score = self.process.ask(budget)?.f64();
        score.map_err(|_| self.process.garbled())
    }
}
