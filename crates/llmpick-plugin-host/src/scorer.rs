//! A loaded scorer behind core's trait: deadline, checked grades, quarantine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use llmpick_core::{Outcome, Score, Scorer, ScorerError};
use llmpick_plugin_abi as abi;
use serde_json::Value;

use crate::call::CallError;
use crate::child::{ChildScorer, Spec};
use crate::instance::ScorerInstance;
use crate::lane::{Lane, NoAnswer, Ticket};
use crate::library::{Library, ScorerTable, Table};
use crate::router::{Isolation, apart, lane_error, mark, no_such_plugin, parse_config, patience};
use crate::{CreateError, PluginInfo, PluginKind};

/// How a scorer is supervised.
#[derive(Clone, Copy, Debug)]
pub struct ScorerOptions {
    /// Where it runs.
    pub isolation: Isolation,
    /// Longest time for a grade, waiting for earlier grades included.
    pub deadline: Duration,
    /// Longest time to start.
    pub control_deadline: Duration,
    /// A call that takes longer than this is given up with its thread.
    pub abandon_after: Duration,
    /// Faults after which it is asked no more.
    pub quarantine_after: u32,
}

impl Default for ScorerOptions {
    fn default() -> Self {
        Self {
            isolation: Isolation::Actor,
            deadline: Duration::from_secs(2),
            control_deadline: Duration::from_secs(5),
            abandon_after: Duration::from_secs(4),
            quarantine_after: 3,
        }
    }
}

/// Makes a scorer of a loaded library. Faults are errors of the one call; after
/// `quarantine_after` of them every call is.
pub fn scorer(
    library: &Arc<Library>,
    name: &str,
    config_json: &str,
    options: &ScorerOptions,
) -> Result<Arc<dyn Scorer>, CreateError> {
    let Some((info, table)) = library.plugin(PluginKind::Scorer, name) else {
        return Err(no_such_plugin(library, PluginKind::Scorer, name));
    };
    let config = parse_config(name, config_json)?;
    let place = match (options.isolation, table) {
        (Isolation::Process, _) => Place::Apart(Box::new(Spec {
            image: Arc::clone(library.image()),
            info: info.clone(),
            config: config.clone(),
            control_deadline: options.control_deadline,
            feedback_deadline: options.deadline,
            max_snapshot_bytes: 0,
        })),
        (_, Some(Table::Scorer(table))) => Place::Here(table),
        _ => return Err(apart(name)),
    };
    let _marker = mark(library, name, options.isolation)?;
    let blueprint = Blueprint {
        info: info.clone(),
        place,
        config,
        options: *options,
    };
    let state = State {
        engine: Some(blueprint.start()?),
        faults: 0,
        stuck: None,
    };
    Ok(Arc::new(Supervised {
        blueprint,
        state: Mutex::new(state),
    }))
}

#[derive(Clone)]
struct Blueprint {
    info: PluginInfo,
    place: Place,
    config: Value,
    options: ScorerOptions,
}

/// Where an instance lives.
#[derive(Clone)]
enum Place {
    Here(ScorerTable),
    Apart(Box<Spec>),
}

/// A live scorer, wherever it lives.
enum Instance {
    Here(ScorerInstance),
    Apart(Box<ChildScorer>),
}

impl Instance {
    fn score(&mut self, outcome: &Outcome, budget: Duration) -> Result<f64, CallError> {
        match self {
            Instance::Here(scorer) => scorer.score(outcome, budget),
            Instance::Apart(scorer) => scorer.score(outcome, budget),
        }
    }
}

impl Blueprint {
    fn create(&self) -> Result<Instance, CallError> {
        Ok(match &self.place {
            Place::Here(table) => {
                Instance::Here(ScorerInstance::create(&self.info, *table, &self.config)?)
            }
            Place::Apart(spec) => Instance::Apart(Box::new(ChildScorer::create(spec)?)),
        })
    }

    /// How long to wait for a call of this deadline.
    fn waits(&self, deadline: Duration) -> Duration {
        match self.options.isolation {
            Isolation::Process => patience(deadline),
            Isolation::Actor | Isolation::Inline => deadline,
        }
    }

    fn start(&self) -> Result<Engine, CreateError> {
        let own = self.clone();
        let make = move || own.create();
        let (name, options) = (&self.info.name, &self.options);
        match options.isolation {
            Isolation::Inline => make()
                .map(|instance| Engine::Inline(Box::new(instance)))
                .map_err(|error| crate::router::create_error(name, error)),
            Isolation::Actor | Isolation::Process => {
                let waits = self.waits(options.control_deadline);
                Lane::start(name, waits, make)
                    .map(|lane| Engine::Actor(Arc::new(lane)))
                    .map_err(|error| lane_error(name, waits, error))
            }
        }
    }
}

enum Engine {
    Inline(Box<Instance>),
    /// Shared, so that callers wait for their grades without holding the lock.
    Actor(Arc<Lane<Instance>>),
}

struct State {
    /// `None` after a panic, until the next call starts a new instance.
    engine: Option<Engine>,
    faults: u32,
    stuck: Option<(Ticket, Instant)>,
}

struct Supervised {
    blueprint: Blueprint,
    state: Mutex<State>,
}

impl Supervised {
    fn run(&self, outcome: &Outcome) -> Result<Option<Score>, String> {
        let budget = self.blueprint.options.deadline;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.faults >= self.blueprint.options.quarantine_after {
            return Err(format!("it is quarantined after {} faults", state.faults));
        }
        self.unstick(&mut state)?;
        let result = match self.engine(&mut state)? {
            Engine::Inline(instance) => Ok(instance.score(outcome, budget)),
            Engine::Actor(lane) => {
                let (lane, outcome) = (Arc::clone(lane), outcome.clone());
                drop(state);
                let job = move |instance: &mut Instance| instance.score(&outcome, budget);
                let result = lane.call(self.blueprint.waits(budget), job);
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                result
            }
        };
        self.judge(&mut state, result)
    }

    fn engine<'a>(&self, state: &'a mut State) -> Result<&'a mut Engine, String> {
        if state.engine.is_none() {
            let started = self.blueprint.start();
            state.faults += u32::from(started.is_err());
            state.engine = Some(started.map_err(|error| error.to_string())?);
        }
        state.engine.as_mut().ok_or_else(|| "it is gone".to_owned())
    }

    fn unstick(&self, state: &mut State) -> Result<(), String> {
        let (Some((ticket, since)), Some(Engine::Actor(lane))) = (state.stuck, &state.engine)
        else {
            return Ok(());
        };
        if lane.busy_with(ticket) {
            if since.elapsed() < self.blueprint.options.abandon_after {
                return Err("it is still busy with an earlier answer".to_owned());
            }
            state.engine = None;
        }
        state.stuck = None;
        Ok(())
    }

    /// Turns whatever came back into a grade, none, or a fault.
    fn judge(
        &self,
        state: &mut State,
        result: Result<Result<f64, CallError>, NoAnswer>,
    ) -> Result<Option<Score>, String> {
        let fault = match result {
            Ok(Ok(raw)) => match Score::new(raw) {
                Ok(score) => return Ok(Some(score)),
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) if error.status == abi::E_ABSTAIN => return Ok(None),
            Ok(Err(error)) => {
                if error.status == abi::E_PANIC {
                    state.engine = None;
                }
                error.message
            }
            Err(NoAnswer::Late(ticket)) => {
                state.stuck = Some((ticket, Instant::now()));
                let waited = self.blueprint.options.deadline;
                format!("it did not answer within {waited:?}")
            }
            Err(NoAnswer::Gone) => {
                state.engine = None;
                "its thread is gone".to_owned()
            }
        };
        state.faults += 1;
        Err(fault)
    }
}

impl Scorer for Supervised {
    fn name(&self) -> &str {
        &self.blueprint.info.name
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        self.run(outcome).map_err(|reason| ScorerError {
            scorer: self.blueprint.info.name.clone(),
            reason,
        })
    }
}
