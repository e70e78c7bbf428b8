//! Finding and loading the plugins that the settings name.

use std::sync::Arc;

use camino::Utf8PathBuf;
use llmpick_core::Router;
use llmpick_plugin_host::{
    CreateError, FindError, Library, LoadError, LoadOptions, PluginKind, RouterOptions, find, router,
};

use crate::settings::Settings;

/// Why a plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No file of that name.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The file is no plugin we can load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It loads, and does not start.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It holds several routers, and the settings do not say which.
    #[error("`{path}` holds several routers: name one, as {choices}")]
    Which {
        /// The library.
        path: Utf8PathBuf,
        /// What the setting could be.
        choices: String,
    },
}

/// Where plugins are looked for: the settings' folders, the user's, and those beside the program.
pub fn folders(settings: &Settings) -> Vec<Utf8PathBuf> {
    let mut folders = settings.router.paths.clone();
    folders.extend(settings.paths.plugin_folders());
    folders
}

/// Loads the library of `FILE` or `FILE:PLUGIN`.
pub fn open(folders: &[Utf8PathBuf], name: &str) -> Result<Arc<Library>, PluginError> {
    let (file, _) = split(name);
    Ok(Library::load(&find(folders, file)?, &LoadOptions::default())?)
}

/// The router that the settings name, supervised.
pub fn configured_router(settings: &Settings) -> Result<Box<dyn Router>, PluginError> {
    let library = open(&folders(settings), &settings.router.plugin)?;
    let (file, plugin) = split(&settings.router.plugin);
    let name = match plugin {
        Some(plugin) => plugin.to_owned(),
        None => only_router(&library, file)?,
    };
    let options = RouterOptions {
        deadline: settings.router.deadline,
        ..RouterOptions::default()
    };
    Ok(router(&library, &name, &settings.router.config_json, &options)?)
}

/// `baselines:round-robin` is the plugin `round-robin` of the library `baselines`.
fn split(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((file, plugin)) => (file, Some(plugin)),
        None => (name, None),
    }
}

/// The one router of a library; the host says it best where there is none.
fn only_router(library: &Library, file: &str) -> Result<String, PluginError> {
    let routers = library.plugins().iter().filter(|info| info.kind == PluginKind::Router);
    let names: Vec<&str> = routers.map(|info| info.name.as_str()).collect();
    match names[..] {
        [] => Ok(file.to_owned()),
        [name] => Ok(name.to_owned()),
        _ => {
            let choices: Vec<String> = names.iter().map(|name| format!("`{file}:{name}`")).collect();
            Err(PluginError::Which {
                path: library.path().to_owned(),
                choices: choices.join(", "),
            })
        }
    }
}
