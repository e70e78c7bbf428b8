//! The assembled program: every part, put together as the settings say.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use llmpick_core::{
    Arm, ArmId, Backend, ContextKey, Locality, Outcome, Price, Scheduler, Score, Scorer,
};
use llmpick_dispatch::{Dispatch, DispatchError, DispatchSettings, Parts, SystemClock};
use llmpick_ledger::{Ledger, LedgerError};
use llmpick_plugin_host::LocalScheduler;
use llmpick_remote::{OpenAi, OpenAiError, OpenAiOptions, RemoteScheduler, RemoteSchedulerOptions};
use llmpick_store::{Store, StoreError};
use tracing::{error, warn};

use crate::parts::{
    ModelError, TOTAL_BUDGET, context_of, engine_options, open_ledger, open_store, refuse_embedder,
};
use crate::plugins::{self, PluginError};
use crate::reload::{Reloaded, Reloading};
use crate::residency::{Find, Residency};
use crate::settings::{RemoteSettings, read_secret};
use crate::{Paths, Settings, scorers};

/// How an [`App`] is put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppOptions {
    /// A plugin that is missing or broken is logged, and the built-in fallback routes. The
    /// daemon wants that; a command says what is wrong instead.
    pub tolerate_plugin: bool,
}

/// Every part of the program.
pub struct App {
    settings: Settings,
    store: Store,
    ledger: Arc<Ledger>,
    dispatch: Arc<Dispatch>,
    scorers: Vec<Arc<dyn Scorer>>,
    residency: Arc<Residency>,
    /// Backends outside the pool, by file, so that a model is loaded once.
    outside: Mutex<HashMap<PathBuf, Arc<dyn Backend>>>,
    /// Which library routes, or why the fallback does.
    reloading: Reloading,
}

/// Why the parts do not go together.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The router's plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The models' cache or catalogue.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A remote arm.
    #[error("prepare the remote arm `{name}`")]
    Remote {
        /// The arm.
        name: ArmId,
        /// Why.
        #[source]
        source: OpenAiError,
    },
    /// The scheduler's key.
    #[error("read the key of router.scheduler_key_file: {0}")]
    SchedulerKey(String),
    /// The scheduler on another machine.
    #[error("prepare the scheduler of router.scheduler")]
    Scheduler(#[source] OpenAiError),
    /// What dispatch says of the parts together.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
}

impl App {
    /// Opens everything. Blocks; loads no weights and asks nothing of the network.
    pub fn open(settings: Settings, options: AppOptions) -> Result<Self, AppError> {
        let store = open_store(&settings)?;
        let ledger = Arc::new(open_ledger(&settings)?);
        let residency = Residency::new(settings.compute.memory_limit);
        let mut arms = pool_arms(&settings, &store, &residency);
        for remote in &settings.remotes {
            arms.push(remote_arm(remote)?);
        }
        let (router, reloading) = match plugins::load_router(&settings) {
            Ok((router, library)) => (router, Reloading::new(Ok(&library))),
            Err(fault) if options.tolerate_plugin => {
                let fault = sentence(&fault);
                error!(plugin = settings.router.plugin, %fault, "router cannot be used, the fallback routes");
                (plugins::fallback(), Reloading::new(Err(fault)))
            }
            Err(fault) => return Err(fault.into()),
        };
        let scorers = scorers::all(&settings, options.tolerate_plugin)?;
        let dispatch = Dispatch::new(Parts {
            ledger: Arc::clone(&ledger),
            arms,
            router,
            scorers: scorers.clone(),
            settings: dispatch_settings(&settings),
            snapshot_dir: Some(settings.paths.routers().into()),
            clock: Arc::new(SystemClock::new()),
        })?;
        dispatch.set_scheduler(scheduler(&settings)?);
        set_shadow(&settings, &dispatch);
        Ok(Self {
            settings,
            store,
            ledger,
            dispatch,
            scorers,
            residency,
            outside: Mutex::default(),
            reloading,
        })
    }

    /// An app of given parts, for tests of what is built on top.
    pub fn with_dispatch(
        settings: Settings,
        ledger: Arc<Ledger>,
        dispatch: Arc<Dispatch>,
    ) -> Result<Self, AppError> {
        Ok(Self {
            store: open_store(&settings)?,
            residency: Residency::new(settings.compute.memory_limit),
            settings,
            ledger,
            dispatch,
            scorers: llmpick_score::all(),
            outside: Mutex::default(),
            reloading: Reloading::default(),
        })
    }

    /// The settings it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where things are kept.
    pub fn paths(&self) -> &Paths {
        &self.settings.paths
    }

    /// The models.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The memory of decisions.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The runtime of requests.
    pub fn dispatch(&self) -> &Arc<Dispatch> {
        &self.dispatch
    }

    /// Why the chosen router does not serve, where the fallback took its place.
    pub fn router_fault(&self) -> Option<String> {
        self.reloading.fault()
    }

    /// SHA-256 of the router's library in hexadecimal; `None` where the fallback routes.
    pub fn router_sha256(&self) -> Option<String> {
        self.reloading.sha256()
    }

    /// Loads the router's library anew, and hands over what was learnt. Until then, and when it
    /// fails, the old one serves. Blocks.
    ///
    /// # Errors
    /// What keeps the new one from being used.
    pub fn reload_router(&self) -> Result<Reloaded, AppError> {
        self.reloading.reload(&self.settings, &self.dispatch)
    }

    /// The arm of this name, if it is in the pool.
    pub fn arm(&self, name: &str) -> Option<Arc<dyn Backend>> {
        let arms = self.dispatch.arms();
        arms.iter()
            .find(|arm| arm.arm().id.as_str() == name)
            .cloned()
    }

    /// A local model by name or path as a backend, in the pool or not. Reads the file's
    /// header; the weights follow with the first request.
    pub fn local_backend(&self, name_or_path: &str) -> Result<Arc<dyn Backend>, ModelError> {
        let resolved = self.store.resolve(name_or_path)?;
        refuse_embedder(resolved.card.as_ref())?;
        if let Some(arm) = self.arm(&resolved.arm_name)
            && resolved.card.is_some()
        {
            return Ok(arm);
        }
        if let Ok(outside) = self.outside.lock()
            && let Some(known) = outside.get(&resolved.path)
        {
            return Ok(Arc::clone(known));
        }
        let options = engine_options(&self.settings);
        let arm = Arm {
            id: ArmId::new(&resolved.arm_name)?,
            locality: Locality::Local,
            context_tokens: context_of(&resolved.path, &options)?,
            price: local_price(&self.settings),
        };
        let found = (arm.clone(), resolved.path.clone());
        let find: Find = Box::new(move || Ok(found.clone()));
        let backend: Arc<dyn Backend> = self.residency.arm(arm, find, options);
        if let Ok(mut outside) = self.outside.lock() {
            outside.insert(resolved.path, Arc::clone(&backend));
        }
        Ok(backend)
    }

    /// Grades a text with a scorer by name, or with the first that has something to go by.
    /// `None` where none has.
    pub fn score(
        &self,
        prompt: &str,
        response: &str,
        reference: &str,
        scorer: Option<&str>,
    ) -> Option<Score> {
        let outcome = Outcome {
            prompt: prompt.to_owned(),
            response: response.to_owned(),
            reference: Some(reference.to_owned()),
            ..Outcome::default()
        };
        let asked = self
            .scorers
            .iter()
            .filter(|known| scorer.is_none_or(|name| known.name() == name));
        for scorer in asked {
            match scorer.score(&outcome) {
                Ok(Some(score)) => return Some(score),
                Ok(None) => {}
                Err(error) => warn!(%error, "scorer failed"),
            }
        }
        None
    }

    /// Replaces the router by a fresh one of the same plugin that learns from this context
    /// only, and leaves what is learnt elsewhere as it is.
    pub fn isolate_learner(&self, context: &ContextKey) -> Result<(), AppError> {
        let router = plugins::router(&self.settings)?;
        Ok(self.dispatch.set_router_for(router, context)?)
    }

    /// Waits until everything is in the ledger, and saves what was learnt.
    pub async fn close(&self) {
        self.dispatch.shutdown().await;
    }
}

/// Starts the second router, where the settings name one. Without it everything goes on.
fn set_shadow(settings: &Settings, dispatch: &Dispatch) {
    let plugin = settings.router.shadow.as_deref();
    match plugins::shadow(settings) {
        Ok(None) => {}
        Ok(Some(router)) => {
            if let Err(error) = dispatch.set_shadow(router) {
                warn!(plugin, %error, "shadow router cannot be started");
            }
        }
        Err(fault) => {
            warn!(
                plugin,
                fault = sentence(&fault),
                "shadow router cannot be used"
            );
        }
    }
}

fn dispatch_settings(settings: &Settings) -> DispatchSettings {
    let router = &settings.router;
    DispatchSettings {
        base_seed: router.seed,
        modes: vec![router.mode],
        max_arms: router.max_arms,
        accept_threshold: Some(router.accept_threshold),
        context: router.context,
        cost_budget: settings.budget.per_request_usd,
        budgets: vec![TOTAL_BUDGET.to_owned()],
        frozen: router.frozen,
        keep_prompts: settings.ledger.keep_prompts,
        select_budget: router.deadline,
        ..DispatchSettings::default()
    }
}

/// Who draws sets: this machine, or another one as long as it answers.
fn scheduler(settings: &Settings) -> Result<Arc<dyn Scheduler>, AppError> {
    let here = Arc::new(LocalScheduler);
    match &settings.router.scheduler {
        None => Ok(here),
        Some(options) => {
            let file = settings.router.scheduler_key_file.as_ref();
            let options = RemoteSchedulerOptions {
                api_key: file
                    .map(|path| read_secret(path))
                    .transpose()
                    .map_err(AppError::SchedulerKey)?,
                ..options.clone()
            };
            let remote = RemoteScheduler::new(options, here).map_err(AppError::Scheduler)?;
            Ok(Arc::new(remote))
        }
    }
}

fn local_price(settings: &Settings) -> Price {
    Price::PerHour {
        usd: settings.compute.usd_per_hour,
    }
}

/// An arm for each entry of the pool, here or not. One that cannot be used says why, and
/// the others answer.
fn pool_arms(
    settings: &Settings,
    store: &Store,
    residency: &Arc<Residency>,
) -> Vec<Arc<dyn Backend>> {
    let options = engine_options(settings);
    let mut arms: Vec<Arc<dyn Backend>> = Vec::new();
    for name in &settings.pool {
        let Some(id) = expected_id(store, name) else {
            warn!(
                arm = name,
                "pool entry left out, its name cannot be an arm's"
            );
            continue;
        };
        let card_context = store.card(name).map_or(0, |card| card.context_tokens);
        let expected = Arm {
            id,
            locality: Locality::Local,
            context_tokens: options
                .max_context
                .map_or(card_context, |most| most.min(card_context)),
            price: local_price(settings),
        };
        let find = finder(
            store.clone(),
            name.clone(),
            expected.clone(),
            options.clone(),
        );
        let arm = residency.arm(expected, find, options.clone());
        if arm.path().is_none() {
            warn!(
                arm = name,
                reason = arm.state().unavailable,
                "arm is not available"
            );
        }
        arms.push(arm);
    }
    arms
}

/// The arm's name before its file is found: the catalogue's, or the file's stem.
fn expected_id(store: &Store, name: &str) -> Option<ArmId> {
    let stem = match store.resolve(name) {
        Ok(resolved) => resolved.arm_name,
        Err(_) if name.ends_with(".gguf") => camino::Utf8Path::new(name)
            .file_stem()
            .unwrap_or(name)
            .to_owned(),
        Err(_) => name.to_owned(),
    };
    ArmId::new(stem).ok()
}

fn finder(
    store: Store,
    name: String,
    expected: Arm,
    options: llmpick_engine::EngineOptions,
) -> Find {
    Box::new(move || {
        let resolved = store.resolve(&name).map_err(|error| sentence(&error))?;
        refuse_embedder(resolved.card.as_ref()).map_err(|error| sentence(&error))?;
        let context_tokens =
            context_of(&resolved.path, &options).map_err(|error| sentence(&error))?;
        Ok((
            Arm {
                context_tokens,
                ..expected.clone()
            },
            resolved.path,
        ))
    })
}

fn remote_arm(remote: &RemoteSettings) -> Result<Arc<dyn Backend>, AppError> {
    let arm = Arm {
        id: remote.name.clone(),
        locality: Locality::Remote,
        context_tokens: remote.context_tokens,
        price: Price::PerToken {
            input_usd: remote.input_usd_per_mtok,
            output_usd: remote.output_usd_per_mtok,
        },
    };
    let options = OpenAiOptions {
        base_url: remote.base_url.clone(),
        model: remote.model.clone(),
        api_key: remote.api_key.clone(),
        unavailable: remote.key_missing.clone(),
        timeout: remote.timeout,
        extended_sampling: remote.extended_sampling,
    };
    let backend = OpenAi::new(arm, options).map_err(|source| AppError::Remote {
        name: remote.name.clone(),
        source,
    })?;
    Ok(Arc::new(backend))
}

/// An error and its causes in one line, each said once.
pub(crate) fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
