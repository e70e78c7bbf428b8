//! Opening what verbs need, and turning each failure into a message, a hint and an exit code.

use std::path::PathBuf;

use camino::Utf8PathBuf;
use llmpick_core::BackendError;
use llmpick_daemon::client::ClientError;
use llmpick_daemon::dispatch::DispatchError;
use llmpick_daemon::engine::{EngineOptions, Model};
use llmpick_daemon::ledger::{Ledger, LedgerError};
use llmpick_daemon::{
    App, AppError, AppOptions, ModelError, ServeError, Settings, SettingsError, SettingsSources,
};
use llmpick_store::{PullError, PullErrorKind, ResolveError, Store};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::printer::Printer;
use crate::verbs::pull::pull_one;

/// The settings, with the flags of this run on top.
pub fn settings(global: &Global, overrides: Vec<(String, String)>) -> Result<Settings> {
    let mut sources = SettingsSources::of_process();
    sources.file = global.config.clone();
    for pair in &global.set {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            CliError::new(ExitCode::Usage, format!("`--set {pair}` has no `=`"))
                .hint("--set KEY=VALUE, for example --set router.max_arms=2")
        })?;
        sources
            .overrides
            .push((key.trim().to_owned(), value.trim().to_owned()));
    }
    sources.overrides.extend(overrides);
    Settings::load(sources).map_err(|error| settings_error(&error))
}

/// A text as it stands in TOML.
pub fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Texts as a list in TOML.
pub fn toml_list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| toml_string(text)).collect();
    format!("[{}]", quoted.join(", "))
}

/// Names, with each named pool replaced by its models.
pub fn expand_pools(names: &[String]) -> Vec<String> {
    let expand = |name: &String| match llmpick_store::pool(name) {
        Some(members) => members.iter().map(|member| (*member).to_owned()).collect(),
        None => vec![name.clone()],
    };
    names.iter().flat_map(expand).collect()
}

/// The store of these settings.
pub fn store(settings: &Settings) -> Result<Store> {
    llmpick_daemon::open_store(settings)
        .map_err(|error| CliError::new(ExitCode::Failed, chain(&error)))
}

/// The ledger of these settings.
pub fn ledger(settings: &Settings) -> Result<Ledger> {
    llmpick_daemon::open_ledger(settings).map_err(|error| ledger_error(&error))
}

/// The engine's part of the settings.
pub fn engine_options(settings: &Settings) -> EngineOptions {
    llmpick_daemon::engine_options(settings)
}

/// Where plugins are looked for.
pub fn plugin_folders(settings: &Settings) -> Vec<Utf8PathBuf> {
    llmpick_daemon::plugins::folders(settings)
}

/// The file of a model that is named, or is a path.
pub fn model_path(settings: &Settings, name: &str) -> Result<PathBuf> {
    llmpick_daemon::model_path(settings, name).map_err(|error| model_error(&error))
}

/// A model, loaded.
pub fn model(settings: &Settings, name: &str) -> Result<Model> {
    let path = model_path(settings, name)?;
    Model::open(&path, &engine_options(settings))
        .map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))
}

/// Everything, for a command that answers: the pool is fetched on first use.
pub async fn app_for_command(
    global: &Global,
    overrides: Vec<(String, String)>,
    needs_pool: bool,
) -> Result<App> {
    let settings = settings(global, overrides)?;
    if needs_pool {
        fetch_pool(&settings).await?;
    }
    App::open(settings, AppOptions::default()).map_err(|error| app_error(&error))
}

/// Everything, for the daemon: it answers while any one part is broken.
pub async fn app_for_serve(global: &Global, overrides: Vec<(String, String)>) -> Result<App> {
    let settings = settings(global, overrides)?;
    fetch_pool(&settings).await?;
    let options = AppOptions {
        tolerate_plugin: true,
    };
    App::open(settings, options).map_err(|error| app_error(&error))
}

/// Pulls what the pool names and this machine lacks. Where some arm is usable already, a pull
/// that fails is told and passed over.
async fn fetch_pool(settings: &Settings) -> Result<()> {
    let store = store(settings)?;
    let is_missing = |name: &&String| store.installed(name).is_none() && store.card(name).is_ok();
    let missing: Vec<&String> = settings.pool.iter().filter(is_missing).collect();
    let usable = settings.pool.len() > missing.len() || !settings.remotes.is_empty();
    let printer = Printer::new(false);
    if !missing.is_empty() && !settings.store.offline {
        printer.note(&format!(
            "first use: fetching {} of the pool",
            models_in_words(missing.len())
        ));
    }
    for name in missing {
        match pull_one(&store, name).await {
            Ok(_) => {}
            Err(error) if usable && error.code != ExitCode::Interrupted => {
                printer.note(&format!("{name} is left out: {}", error.message));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn models_in_words(count: usize) -> String {
    if count == 1 {
        "1 model".to_owned()
    } else {
        format!("{count} models")
    }
}

/// Wrong settings.
pub fn settings_error(error: &SettingsError) -> CliError {
    CliError::new(ExitCode::Settings, chain(error))
        .hint("`llmpick config default` prints every setting with its meaning")
}

/// A ledger that cannot be used.
pub fn ledger_error(error: &LedgerError) -> CliError {
    CliError::new(ExitCode::Ledger, chain(error))
}

/// A model that is not here or cannot be read.
pub fn model_error(error: &ModelError) -> CliError {
    match error {
        ModelError::Resolve(error) => resolve_error(error),
        other => CliError::new(ExitCode::ModelFile, chain(other)),
    }
}

/// A name that leads to no file.
pub fn resolve_error(error: &ResolveError) -> CliError {
    let code = match error {
        ResolveError::Damaged { .. } | ResolveError::BadFile { .. } => ExitCode::ModelFile,
        _ => ExitCode::ModelMissing,
    };
    CliError::new(code, chain(error))
}

/// A pull that failed.
pub fn pull_error(error: &PullError) -> CliError {
    let code = match &error.kind {
        PullErrorKind::Unknown(_) | PullErrorKind::Offline => ExitCode::ModelMissing,
        _ => ExitCode::Download,
    };
    CliError::new(code, chain(error))
}

/// Parts that do not go together.
pub fn app_error(error: &AppError) -> CliError {
    match error {
        AppError::Plugin(error) => CliError::new(ExitCode::Plugin, chain(error))
            .hint("`llmpick plugin list` shows what there is; router.plugin chooses"),
        AppError::Ledger(error) => ledger_error(error),
        AppError::Settings(error) => settings_error(error),
        AppError::Dispatch(error) => dispatch_error(error),
        AppError::Remote { .. } | AppError::Scheduler(_) | AppError::SchedulerKey(_) => {
            CliError::new(ExitCode::Settings, chain(error))
        }
        AppError::Store(_) => CliError::new(ExitCode::Failed, chain(error)),
    }
}

/// A request that got no answer.
pub fn dispatch_error(error: &DispatchError) -> CliError {
    let code = match error {
        DispatchError::InvalidRequest(_) | DispatchError::Budget { .. } => ExitCode::Request,
        DispatchError::UnknownArm { .. } | DispatchError::NoArms => ExitCode::ModelMissing,
        DispatchError::Ledger(_) => ExitCode::Ledger,
        _ => error.backend().map_or(ExitCode::Failed, backend_code),
    };
    let told = CliError::new(code, chain(error));
    match error {
        DispatchError::NoEligibleArm { route_id, .. } => {
            let hint = format!("`llmpick route show {route_id}` shows what was known of each arm");
            CliError {
                code: ExitCode::Request,
                ..told
            }
            .hint(hint)
        }
        DispatchError::UnknownRoute(_) => told.hint("`llmpick route last` shows the newest one"),
        _ => told,
    }
}

fn backend_code(error: &BackendError) -> ExitCode {
    match error {
        BackendError::ContextExceeded { .. }
        | BackendError::InvalidRequest(_)
        | BackendError::Unsupported(_) => ExitCode::Request,
        BackendError::Load(_) => ExitCode::ModelFile,
        BackendError::Provider { .. } | BackendError::Transport(_) | BackendError::Timeout(_) => {
            ExitCode::Provider
        }
        BackendError::Busy { .. } | BackendError::Internal(_) => ExitCode::Failed,
    }
}

/// A daemon that cannot begin, or stopped.
pub fn serve_error(error: &ServeError) -> CliError {
    CliError::new(ExitCode::Failed, chain(error))
}

/// A daemon that refused, or went away.
pub fn client_error(error: &ClientError) -> CliError {
    let code = match error {
        ClientError::Refused { status: 404, .. } => ExitCode::ModelMissing,
        ClientError::Refused {
            status: 400..=403 | 405..=499,
            ..
        } => ExitCode::Request,
        ClientError::Refused {
            status: 502 | 504, ..
        } => ExitCode::Provider,
        _ => ExitCode::Failed,
    };
    CliError::new(code, chain(error))
}
