//! The assembled program: every part, put together as the settings say.

use std::sync::Arc;

use llmpick_core::{ArmId, Backend, ContextKey, Outcome, Scheduler, Score, Scorer};
use llmpick_dispatch::{Dispatch, DispatchError, DispatchSettings, Parts, SystemClock};
use llmpick_ledger::{Ledger, LedgerError};
use llmpick_plugin_host::LocalScheduler;
use llmpick_remote::{OpenAiError, RemoteScheduler, RemoteSchedulerOptions};
use llmpick_store::{Store, StoreError};
use tracing::{error, warn};

use crate::parts::{ModelError, TOTAL_BUDGET, open_ledger, open_store, refuse_embedder};
use crate::plugins::{self, PluginError};
use crate::pool::{Pool, ReloadedArms};
use crate::reload::{Reloaded, Reloading};
use crate::settings::read_secret;
use crate::{Paths, Settings, SettingsError, scorers};

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
    ledger: Arc<Ledger>,
    dispatch: Arc<Dispatch>,
    scorers: Vec<Arc<dyn Scorer>>,
    /// The arms as the settings want them, and local models outside of the pool.
    pool: Pool,
    /// Which library routes, or why the fallback does.
    reloading: Reloading,
}

/// Why the parts do not go together.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings, read again.
    #[error(transparent)]
    Settings(#[from] SettingsError),
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
        let pool = Pool::open(&settings, store)?;
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
            arms: pool.backends(),
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
            ledger,
            dispatch,
            scorers,
            pool,
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
            pool: Pool::empty(&settings, open_store(&settings)?),
            settings,
            ledger,
            dispatch,
            scorers: llmpick_score::all(),
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

    /// The models, as the settings were last read.
    pub fn store(&self) -> Store {
        self.pool.store()
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

    /// Reads the settings again and makes the pool anew: models that were pulled or removed,
    /// remotes that came, went or changed, prices. An arm that stays keeps its loaded weights, and
    /// what is being written is written to its end. What was learnt of an arm outlives it. Blocks.
    ///
    /// # Errors
    /// What is wrong in the settings; the old pool goes on serving.
    pub fn reload_arms(&self) -> Result<ReloadedArms, AppError> {
        self.pool.reload(&self.settings, &self.dispatch)
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
        let resolved = self.store().resolve(name_or_path)?;
        refuse_embedder(resolved.card.as_ref())?;
        if let Some(arm) = self.arm(&resolved.arm_name)
            && resolved.card.is_some()
        {
            return Ok(arm);
        }
        self.pool.outside(resolved)
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
