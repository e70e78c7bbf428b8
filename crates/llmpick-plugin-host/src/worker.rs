//! A router instance and what it takes to make it again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmpick_core::{Decision, Feedback, RouterError, SelectRequest, Snapshot};
use llmpick_plugin_abi as abi;
use serde_json::Value;

use crate::call::CallError;
use crate::child::{ChildRouter, Spec};
use crate::instance::{RawDecision, RouterInstance};
use crate::library::RouterTable;
use crate::{PluginInfo, Rounding, verdict};

/// Feedbacks after which a state of our own is taken, so that the tail stays short.
const TAIL: usize = 512;

/// How to make an instance.
pub(crate) struct Blueprint {
    pub info: PluginInfo,
    pub place: Place,
    pub config: Value,
    pub max_snapshot_bytes: usize,
    pub rounding: Rounding,
}

/// Where an instance lives.
pub(crate) enum Place {
    /// In this process.
    Here(RouterTable),
    /// In a process of its own.
    Apart(Box<Spec>),
}

impl Blueprint {
    pub(crate) fn create(&self) -> Result<Instance, CallError> {
        Ok(match &self.place {
            Place::Here(table) => {
                Instance::Here(RouterInstance::create(&self.info, *table, &self.config)?)
            }
            Place::Apart(spec) => Instance::Apart(Box::new(ChildRouter::create(spec)?)),
        })
    }
}

/// A live router, wherever it lives.
pub(crate) enum Instance {
    Here(RouterInstance),
    Apart(Box<ChildRouter>),
}

impl Instance {
    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        budget: Duration,
    ) -> Result<RawDecision, CallError> {
        match self {
            Instance::Here(router) => router.select(request, budget),
            Instance::Apart(router) => router.select(request, budget),
        }
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), CallError> {
        match self {
            Instance::Here(router) => router.feedback(feedback),
            Instance::Apart(router) => router.feedback(feedback),
        }
    }

    fn snapshot(&mut self, max_bytes: usize) -> Result<Snapshot, CallError> {
        match self {
            Instance::Here(router) => router.snapshot(max_bytes),
            Instance::Apart(router) => router.snapshot(),
        }
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), CallError> {
        match self {
            Instance::Here(router) => router.restore(snapshot),
            Instance::Apart(router) => router.restore(snapshot),
        }
    }

    /// Whether its snapshots hold anything.
    fn keeps_state(&self) -> bool {
        match self {
            Instance::Here(router) => router.keeps_state(),
            Instance::Apart(router) => router.keeps_state,
        }
    }
}

/// The last state that was good, and what was learnt since: enough to rebuild an instance
/// exactly. Outlives the instance, and a thread that does not come back.
#[derive(Default)]
pub(crate) struct Keeper {
    good: Option<Snapshot>,
    tail: VecDeque<Feedback>,
    /// Feedbacks since a state was last asked for, whether or not it came.
    unasked: usize,
}

impl Keeper {
    fn is_now(&mut self, snapshot: Snapshot) {
        self.good = Some(snapshot);
        self.tail.clear();
        self.unasked = 0;
    }

    fn learnt(&mut self, feedback: &Feedback) {
        if self.tail.len() >= 2 * TAIL {
            // Only where the router writes no snapshots.
            self.tail.pop_front();
        }
        self.tail.push_back(feedback.clone());
        self.unasked += 1;
    }
}

/// Why a worker has no decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fail {
    /// No opinion; not a fault.
    Abstained,
    /// It is still busy with a call that was given up; that call was the fault.
    Busy,
    /// It broke the contract.
    Fault(String),
}

/// Runs one instance and rebuilds it after a panic.
pub(crate) struct Worker {
    blueprint: Arc<Blueprint>,
    keeper: Arc<Mutex<Keeper>>,
    /// `None` after a rebuild that failed.
    instance: Option<Instance>,
    keeps_state: bool,
}

impl Worker {
    /// A worker whose instance has what the keeper knows.
    pub(crate) fn new(
        blueprint: Arc<Blueprint>,
        keeper: Arc<Mutex<Keeper>>,
    ) -> Result<Self, CallError> {
        let instance = blueprint.create()?;
        let mut worker = Self {
            blueprint,
            keeper,
            keeps_state: instance.keeps_state(),
            instance: Some(instance),
        };
        worker.catch_up();
        Ok(worker)
    }

    pub(crate) fn select(
        &mut self,
        request: &SelectRequest<'_>,
        budget: Duration,
    ) -> Result<Decision, Fail> {
        let raw = self.call(|instance| instance.select(request, budget));
        let raw = raw.map_err(|error| match error.status {
            abi::E_ABSTAIN => Fail::Abstained,
            _ => Fail::Fault(error.message),
        })?;
        let multi_select = self.blueprint.info.has(abi::CAP_MULTI_SELECT);
        verdict::check(raw, request, multi_select, self.blueprint.rounding).map_err(Fail::Fault)
    }

    /// Learns. A router that does not care about a feedback (an arm it does not know, say)
    /// may say so; only a failure of its own is an error here.
    pub(crate) fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        let plugin = self.blueprint.info.name.clone();
        match self.call(|instance| instance.feedback(feedback)) {
            Ok(()) => {
                let mut keeper = self.keeper();
                keeper.learnt(feedback);
                let due = keeper.unasked >= TAIL;
                if due {
                    keeper.unasked = 0;
                }
                drop(keeper);
                if due && self.keeps_state {
                    // Its failure shows when the state is asked for; the tail stays.
                    let _ = self.snapshot();
                }
                Ok(())
            }
            Err(error)
                if matches!(
                    error.status,
                    abi::E_ABSTAIN | abi::E_INVALID | abi::E_UNSUPPORTED
                ) =>
            {
                tracing::debug!(%plugin, reason = %error.message, "feedback was declined");
                Ok(())
            }
            Err(error) => Err(RouterError::Fault(error.message)),
        }
    }

    pub(crate) fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        let most = self.blueprint.max_snapshot_bytes;
        let snapshot = self
            .call(|instance| instance.snapshot(most))
            .map_err(|error| RouterError::Fault(error.message))?;
        if self.keeps_state {
            self.keeper().is_now(snapshot.clone());
        }
        Ok(snapshot)
    }

    pub(crate) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RouterError> {
        let restored = self.call(|instance| instance.restore(snapshot));
        restored.map_err(|error| match error.status {
            abi::E_PANIC => RouterError::Fault(error.message),
            _ => RouterError::State(error.message),
        })?;
        self.keeper().is_now(snapshot.clone());
        Ok(())
    }

    /// Calls the instance; after a panic, replaces it.
    fn call<R>(
        &mut self,
        run: impl FnOnce(&mut Instance) -> Result<R, CallError>,
    ) -> Result<R, CallError> {
        self.revive();
        let Some(instance) = &mut self.instance else {
            return Err(CallError {
                status: abi::E_INTERNAL,
                message: "it could not be started again".to_owned(),
            });
        };
        let result = run(instance);
        if matches!(&result, Err(error) if error.status == abi::E_PANIC) {
            match self.blueprint.place {
                Place::Here(_) => self.rebuild(),
                // That takes a while: whoever waits for this answer gets it first.
                Place::Apart(_) => self.instance = None,
            }
        }
        result
    }

    /// Makes an instance again where the last one was lost.
    pub(crate) fn revive(&mut self) {
        if self.instance.is_none() {
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let plugin = &self.blueprint.info.name;
        self.instance = match self.blueprint.create() {
            Ok(instance) => {
                tracing::warn!(%plugin, "the plugin was started again");
                Some(instance)
            }
            Err(error) => {
                tracing::warn!(%plugin, reason = %error.message, "the plugin did not start again");
                None
            }
        };
        self.catch_up();
    }

    /// Brings a fresh instance to where the last one was: the last good state, then what was
    /// learnt since. Whatever makes it panic again is forgotten.
    fn catch_up(&mut self) {
        let keeper = Arc::clone(&self.keeper);
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let replayed = self.instance.as_mut().is_none_or(|instance| {
            let good = &keeper.good;
            let restored = good
                .as_ref()
                .is_none_or(|good| instance.restore(good).is_ok());
            restored
                && keeper
                    .tail
                    .iter()
                    .all(|feedback| alive(instance.feedback(feedback)))
        });
        if replayed {
            return;
        }
        keeper.tail.clear();
        self.instance = self.blueprint.create().ok().and_then(|mut instance| {
            let good = keeper.good.as_ref();
            match good.is_none_or(|good| instance.restore(good).is_ok()) {
                true => Some(instance),
                false => {
                    keeper.good = None;
                    self.blueprint.create().ok()
                }
            }
        });
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn alive(result: Result<(), CallError>) -> bool {
    !matches!(result, Err(error) if error.status == abi::E_PANIC)
}
