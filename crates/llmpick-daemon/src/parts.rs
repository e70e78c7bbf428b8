//! Single parts as the settings want them, for commands that need no more than one.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use llmpick_engine::{EngineOptions, LoadError, read_info};
use llmpick_ledger::{Budget, Ledger, LedgerError, Window};
use llmpick_store::{ModelCard, ModelKind, ResolveError, Store, StoreError, StoreOptions};

use crate::Settings;

/// The budget that every request is charged to.
pub(crate) const TOTAL_BUDGET: &str = "total";

/// Why a named model cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The name leads to no file.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The file cannot be read as a model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model does something else.
    #[error("`{name}` turns text into vectors and cannot answer")]
    NotGenerative {
        /// The model.
        name: String,
    },
    /// Its name cannot be an arm's.
    #[error(transparent)]
    Name(#[from] llmpick_core::InvalidId),
}

/// The catalogue and the cache of models.
pub fn open_store(settings: &Settings) -> Result<Store, StoreError> {
    let store = &settings.store;
    Store::open(StoreOptions {
        models_dir: store.models_dir.clone().into(),
        offline: store.offline,
        hub_endpoint: store.hub_endpoint.clone(),
        // The store reads HF_TOKEN and the token file of the Hugging Face tools itself.
        hub_token: None,
        python: store.python.clone(),
        extra_catalogue: Some(settings.paths.config.join("models").into()),
    })
}

/// The ledger, its folder made, its limits as the settings say.
pub fn open_ledger(settings: &Settings) -> Result<Ledger, LedgerError> {
    let path = &settings.ledger.path;
    if let Some(folder) = path.parent() {
        // Where this fails, opening the file says so with the path.
        let _ = make_private_folder(folder.as_std_path());
    }
    let ledger = Ledger::open(path)?;
    let budget = settings.budget.limit.map(|limit| Budget {
        key: TOTAL_BUDGET.to_owned(),
        window: settings
            .budget
            .window
            .map_or(Window::Forever, Window::Every),
        limit,
    });
    // Written only where it changed, so that reading commands stay readers.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let current = ledger.budget(TOTAL_BUDGET, now.map_or(0, |now| now.as_millis() as u64))?;
    match budget {
        Some(budget) if current.limit != Some(budget.limit) || current.window != budget.window => {
            ledger.set_budget(&budget)?;
        }
        None if current.limit.is_some() => {
            ledger.remove_budget(TOTAL_BUDGET)?;
        }
        _ => {}
    }
    Ok(ledger)
}

/// Makes a folder that only its owner can enter; prompts and costs are private.
pub(crate) fn make_private_folder(folder: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// The engine's part of the settings.
pub fn engine_options(settings: &Settings) -> EngineOptions {
    EngineOptions {
        threads: settings.compute.threads,
        max_context: settings.compute.max_context,
        memory_limit: settings.compute.memory_limit,
        kv_type: settings.compute.kv_cache,
        rounding: settings.compute.activations,
        device: settings.compute.device,
    }
}

/// The file behind a model's name or path.
pub fn model_path(settings: &Settings, name_or_path: &str) -> Result<PathBuf, ModelError> {
    let store = open_store(settings).map_err(|error| {
        // A broken card of the user's hides every name; say which.
        ModelError::Resolve(ResolveError::BadFile {
            path: settings.paths.config.join("models").into(),
            reason: error.to_string(),
        })
    })?;
    let resolved = store.resolve(name_or_path)?;
    refuse_embedder(resolved.card.as_ref())?;
    Ok(resolved.path)
}

pub(crate) fn refuse_embedder(card: Option<&ModelCard>) -> Result<(), ModelError> {
    match card {
        Some(card) if card.kind == ModelKind::Embed => Err(ModelError::NotGenerative {
            name: card.name.clone(),
        }),
        _ => Ok(()),
    }
}

/// Tokens of context that a file will be run with. Reads the header only.
pub(crate) fn context_of(
    path: &std::path::Path,
    options: &EngineOptions,
) -> Result<u32, LoadError> {
    let own = read_info(path)?.context_tokens;
    Ok(options.max_context.map_or(own, |most| most.min(own)))
}
