//! The assembled program: every concrete part, put together as the settings say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use camino::Utf8PathBuf;
use llmpick_core::{
    Arm, ArmId, ArmState, Backend, BackendError, BoxFuture, ContextKey, EventStream,
    GenerateRequest, Locality, Outcome, Price, Router, Score, Scorer,
};
use llmpick_dispatch::{Dispatch, DispatchError, DispatchSettings, Parts, SystemClock};
use llmpick_engine::{EngineOptions, LoadError, LocalModel, read_info};
use llmpick_ledger::{Budget, Ledger, LedgerError, Window};
use llmpick_plugin_host::FallbackRouter;
use llmpick_remote::{OpenAi, OpenAiError, OpenAiOptions};
use llmpick_store::{ResolveError, Store, StoreError, StoreOptions};

use crate::plugins::{self, PluginError};
use crate::settings::{RemoteSettings, Settings};
use crate::Paths;

/// How the program is put together.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppOptions {
    /// Go on with the built-in fallback when the router plugin cannot be used. The daemon does
    /// (it must answer while any one part is broken); a command says what is wrong instead.
    pub tolerate_plugin: bool,
}

/// All parts, running.
pub struct App {
    settings: Settings,
    store: Store,
    ledger: Arc<Ledger>,
    dispatch: Arc<Dispatch>,
    scorers: Vec<Arc<dyn Scorer>>,
    plugin_fault: Option<String>,
}

/// Why the parts cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The router plugin cannot be used.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The model cache or the catalogue cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A remote arm's settings cannot be used.
    #[error("set up the remote arm `{name}`")]
    Remote {
        /// The arm.
        name: ArmId,
        /// Why.
        #[source]
        source: OpenAiError,
    },
    /// Dispatch refuses its settings.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
}

/// Why a model that was named cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It is not here.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Its file cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It answers no prompts.
    #[error("`{0}` turns text into vectors and answers no prompts")]
    Embedder(String),
}

impl App {
    /// Opens the ledger, the store and the router, and makes an arm of every pool entry and
    /// remote. Loads no weights and asks nothing of the network. Blocks for some milliseconds.
    pub fn open(settings: Settings, options: AppOptions) -> Result<Self, AppError> {
        let store = open_store(&settings)?;
        let ledger = Arc::new(open_ledger(&settings)?);
        let (router, plugin_fault) = match plugins::configured_router(&settings) {
            Ok(router) => (router, None),
            Err(error) if options.tolerate_plugin => {
                let fault = chain(&error);
                tracing::error!(plugin = %settings.router.plugin, %fault, "router plugin not usable; the built-in fallback chooses");
                (Box::new(FallbackRouter) as Box<dyn Router>, Some(fault))
            }
            Err(error) => return Err(error.into()),
        };
        let scorers = llmpick_score::all();
        let parts = Parts {
            ledger: Arc::clone(&ledger),
            arms: arms(&settings, &store)?,
            router,
            scorers: scorers.clone(),
            settings: dispatch_settings(&settings, &ledger)?,
            snapshot_dir: Some(settings.paths.routers().into_std_path_buf()),
            clock: Arc::new(SystemClock::new()),
        };
        let dispatch = Dispatch::new(parts)?;
        Ok(Self { settings, store, ledger, dispatch, scorers, plugin_fault })
    }

    /// What the user set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where things are kept.
    pub fn paths(&self) -> &Paths {
        &self.settings.paths
    }

    /// The catalogue and the models on this machine.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The memory of decisions.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Where requests go.
    pub fn dispatch(&self) -> &Arc<Dispatch> {
        &self.dispatch
    }

    /// Why the router plugin is not in use, if it is not.
    pub fn plugin_fault(&self) -> Option<&str> {
        self.plugin_fault.as_deref()
    }

    /// The pool's arm of that name.
    pub fn arm(&self, name: &str) -> Option<Arc<dyn Backend>> {
        self.dispatch.arms().iter().find(|arm| arm.arm().id.as_str() == name).cloned()
    }

    /// A local model outside the pool: an installed name, or the path of a .gguf file.
    pub fn local_backend(&self, name_or_path: &str) -> Result<Arc<dyn Backend>, ModelError> {
        local_model(&self.settings, &self.store, name_or_path)
    }

    /// Makes the arms anew, after models were pulled or removed. What was learnt stays.
    pub fn refresh_arms(&self) -> Result<(), AppError> {
        Ok(self.dispatch.set_arms(arms(&self.settings, &self.store)?)?)
    }

    /// Lets a router that knows nothing yet choose for this context, and learn from this
    /// context's feedback only. The shared state is neither read nor written.
    pub fn isolate_learner(&self, context: &ContextKey) -> Result<(), AppError> {
        let router = plugins::configured_router(&self.settings)?;
        Ok(self.dispatch.set_router_for(router, context)?)
    }

    /// The grade of an answer whose right answer is known, by the named scorer or the first
    /// that has something to go by.
    pub fn score(&self, prompt: &str, response: &str, reference: &str, scorer: Option<&str>) -> Option<Score> {
        let outcome = Outcome {
            prompt: prompt.to_owned(),
            response: response.to_owned(),
            reference: Some(reference.to_owned()),
            ..Outcome::default()
        };
        let wanted = |one: &&Arc<dyn Scorer>| scorer.is_none_or(|name| one.name() == name);
        self.scorers.iter().filter(wanted).find_map(|one| one.score(&outcome).ok().flatten())
    }

    /// Learns the rest and writes the router's state. Call it before the program ends.
    pub async fn close(&self) {
        self.dispatch.shutdown().await;
    }
}

/// The store that the settings describe.
pub fn open_store(settings: &Settings) -> Result<Store, StoreError> {
    let extra = settings.paths.config.join("models");
    Store::open(StoreOptions {
        models_dir: settings.store.models_dir.clone().into_std_path_buf(),
        offline: settings.store.offline,
        hub_endpoint: settings.store.hub_endpoint.clone(),
        hub_token: None,
        python: settings.store.python.clone(),
        extra_catalogue: extra.is_dir().then(|| extra.into_std_path_buf()),
    })
}

/// The ledger that the settings name, made if it is not there.
pub fn open_ledger(settings: &Settings) -> Result<Ledger, LedgerError> {
    if let Some(parent) = settings.ledger.path.parent() {
        // Opening says it better if this fails.
        let _ = std::fs::create_dir_all(parent);
    }
    Ledger::open(&settings.ledger.path)
}

/// How the engine is run.
pub fn engine_options(settings: &Settings) -> EngineOptions {
    EngineOptions {
        threads: settings.compute.threads,
        max_context: settings.compute.max_context,
        memory_limit: settings.compute.memory_limit,
    }
}

fn arms(settings: &Settings, store: &Store) -> Result<Vec<Arc<dyn Backend>>, AppError> {
    let mut arms: Vec<Arc<dyn Backend>> = Vec::new();
    for name in &settings.pool {
        arms.push(match local_model(settings, store, name) {
            Ok(model) => model,
            Err(error) => absent(settings, name, &error)?,
        });
    }
    for remote in &settings.remotes {
        arms.push(remote_arm(remote)?);
    }
    Ok(arms)
}

fn local_model(
    settings: &Settings,
    store: &Store,
    name_or_path: &str,
) -> Result<Arc<dyn Backend>, ModelError> {
    let model = store.resolve(name_or_path)?;
    if model.card.as_ref().is_some_and(|card| card.kind == llmpick_store::ModelKind::Embed) {
        return Err(ModelError::Embedder(model.arm_name));
    }
    let info = read_info(&model.path)?;
    let limit = settings.compute.max_context.unwrap_or(u32::MAX);
    let id = ArmId::new(&model.arm_name).map_err(|error| ResolveError::BadFile {
        path: model.path.clone(),
        reason: error.to_string(),
    })?;
    let arm = local_arm(settings, id, info.context_tokens.min(limit));
    Ok(Arc::new(LocalModel::new(arm, model.path, engine_options(settings))))
}

fn local_arm(settings: &Settings, id: ArmId, context_tokens: u32) -> Arm {
    Arm {
        id,
        locality: Locality::Local,
        context_tokens,
        price: Price::PerHour { usd: settings.compute.usd_per_hour },
    }
}

/// A pool entry that cannot run keeps its place, so that routes can say why it was passed over.
fn absent(settings: &Settings, name: &str, error: &ModelError) -> Result<Arc<dyn Backend>, AppError> {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    let id = ArmId::new(name).or_else(|_| ArmId::new(stem.unwrap_or("model")));
    let id = id.map_err(|error| DispatchError::InvalidRequest(error.to_string()))?;
    Ok(Arc::new(Absent { arm: local_arm(settings, id, u32::MAX), why: chain(error) }))
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
    let name = remote.name.clone();
    let backend = OpenAi::new(arm, options).map_err(|source| AppError::Remote { name, source })?;
    Ok(Arc::new(backend))
}

/// The one budget that the settings can name.
const LIMIT: &str = "limit";

fn dispatch_settings(settings: &Settings, ledger: &Ledger) -> Result<DispatchSettings, AppError> {
    let budgets = match settings.budget.limit {
        Some(limit) => {
            let window = settings.budget.window.map_or(Window::Forever, Window::Every);
            ledger.set_budget(&Budget { key: LIMIT.to_owned(), window, limit })?;
            vec![LIMIT.to_owned()]
        }
        None => Vec::new(),
    };
    let router = &settings.router;
    Ok(DispatchSettings {
        base_seed: router.seed,
        modes: vec![router.mode],
        max_arms: router.max_arms,
        accept_threshold: Some(router.accept_threshold),
        cost_budget: settings.budget.per_request_usd,
        budgets,
        keep_prompts: settings.ledger.keep_prompts,
        // The host holds the plugin to its deadline; this is what the plugin is told.
        select_budget: router.deadline,
        ..DispatchSettings::default()
    })
}

/// An arm that is in the settings and cannot run now.
struct Absent {
    arm: Arm,
    why: String,
}

impl Backend for Absent {
    fn arm(&self) -> &Arm {
        &self.arm
    }

    fn state(&self) -> ArmState {
        ArmState { unavailable: Some(self.why.clone()), ..ArmState::default() }
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(std::future::ready(Err(BackendError::Load(self.why.clone().into()))))
    }

    fn generate(
        &self,
        _request: GenerateRequest,
    ) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        Box::pin(std::future::ready(Err(BackendError::Load(self.why.clone().into()))))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The path of a local model: an installed name, or any .gguf file.
pub fn model_path(settings: &Settings, name_or_path: &str) -> Result<PathBuf, ModelError> {
    let store = open_store(settings).map_err(|error| ResolveError::BadFile {
        path: Utf8PathBuf::from(name_or_path).into_std_path_buf(),
        reason: chain(&error),
    })?;
    Ok(store.resolve(name_or_path)?.path)
}
