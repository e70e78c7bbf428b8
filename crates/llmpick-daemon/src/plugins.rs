//! Plugins by name: where they are looked for, and a router made of one.

use std::sync::Arc;

use camino::Utf8PathBuf;
use llmpick_core::Router;
use llmpick_plugin_host::{
    CreateError, FallbackRouter, FindError, Isolation, Library, LoadError, LoadOptions, PluginKind,
    PluginLock, Rounding, RouterOptions, find,
};

/// Makes this process the one of a plugin, if it was started as such: the first thing a
/// program does. It lets plugins be tried out and run in processes of their own.
pub use llmpick_plugin_host::run_if_child;

use crate::Settings;

/// Why a plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// It is nowhere.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The library cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It did not start.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It holds several, and none was named.
    #[error("choose a plugin of `{library}`: write {library}:NAME with one of {names}")]
    Ambiguous {
        /// As it was written.
        library: String,
        /// What there is.
        names: String,
    },
    /// `plugins.scorers` says something that cannot be.
    #[error("use scorer `{named}`: {problem}")]
    Scorer {
        /// As it was written.
        named: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Where plugins are looked for, in order.
pub fn folders(settings: &Settings) -> Vec<Utf8PathBuf> {
    settings.router.paths.clone()
}

/// Which plugins are trusted: `plugins.lock` in the state folder.
pub fn lock(settings: &Settings) -> PluginLock {
    PluginLock::at(settings.paths.state.clone())
        .pinning(settings.plugins.pin)
        .shipped_in(crate::paths::program_plugins())
}

/// How plugins are loaded: only files that nobody else may change, held to the lock.
pub fn load_options(settings: &Settings) -> LoadOptions {
    LoadOptions {
        lock: Some(lock(settings)),
        ..LoadOptions::default()
    }
}

/// Finds and loads the library of a plugin: a name, a path, or either with `:ROUTER`.
///
/// Loading runs code of the library, in a process of its own where the settings say
/// `plugins.isolation = "process"`.
pub fn open(settings: &Settings, plugin: &str) -> Result<Arc<Library>, PluginError> {
    let (library, _) = split(plugin);
    let path = find(&folders(settings), library)?;
    let options = load_options(settings);
    Ok(match settings.plugins.isolation {
        Isolation::Process => Library::load_apart(&path, &options)?,
        Isolation::Actor | Isolation::Inline => Library::load(&path, &options)?,
    })
}

/// The router that the settings name.
pub(crate) fn router(settings: &Settings) -> Result<Box<dyn Router>, PluginError> {
    load_router(settings).map(|(router, _)| router)
}

/// The router that the settings name, and the library it is from.
pub(crate) fn load_router(
    settings: &Settings,
) -> Result<(Box<dyn Router>, Arc<Library>), PluginError> {
    let chosen = &settings.router;
    let library = open(settings, &chosen.plugin)?;
    let name = name_in(&library, &chosen.plugin, PluginKind::Router)?;
    let options = RouterOptions {
        isolation: settings.plugins.isolation,
        // Dispatch has a scheduler for it, which may stand on another machine.
        rounding: Rounding::Caller,
        deadline: chosen.deadline,
        ..RouterOptions::default()
    };
    let router = llmpick_plugin_host::router(&library, &name, &chosen.config_json, &options)?;
    Ok((router, library))
}

/// The router that the settings want beside the first, if they do. It draws its own sets: a
/// scheduler draws for what is run.
pub(crate) fn shadow(settings: &Settings) -> Result<Option<Box<dyn Router>>, PluginError> {
    let Some(plugin) = &settings.router.shadow else {
        return Ok(None);
    };
    let library = open(settings, plugin)?;
    let name = name_in(&library, plugin, PluginKind::Router)?;
    let options = RouterOptions {
        // Never on the thread of a request, where a deadline would not hold.
        isolation: match settings.plugins.isolation {
            Isolation::Process => Isolation::Process,
            Isolation::Actor | Isolation::Inline => Isolation::Actor,
        },
        rounding: Rounding::Host,
        deadline: settings.router.deadline,
        ..RouterOptions::default()
    };
    let router = llmpick_plugin_host::router(&library, &name, "{}", &options)?;
    Ok(Some(router))
}

/// The file of the router that the settings name.
pub(crate) fn path(settings: &Settings) -> Result<Utf8PathBuf, FindError> {
    let (library, _) = split(&settings.router.plugin);
    find(&folders(settings), library)
}

/// SHA-256 of that file as it is now, in hexadecimal; runs none of it.
pub(crate) fn digest(settings: &Settings) -> Result<String, PluginError> {
    Ok(llmpick_plugin_host::digest_file(&path(settings)?)?)
}

/// The built-in router, for when the chosen one cannot be had.
pub(crate) fn fallback() -> Box<dyn Router> {
    Box::new(FallbackRouter)
}

/// `baselines:cucb` is the router `cucb` of the library `baselines`; `c2mabv` is the router
/// of that name, or the only one of the library. Scorers likewise.
pub(crate) fn name_in(
    library: &Library,
    plugin: &str,
    kind: PluginKind,
) -> Result<String, PluginError> {
    let (file, named) = split(plugin);
    if let Some(name) = named {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = library
        .plugins()
        .iter()
        .filter(|info| info.kind == kind)
        .map(|info| info.name.as_str())
        .collect();
    match names.as_slice() {
        [only] => Ok((*only).to_owned()),
        several if several.contains(&file) => Ok(file.to_owned()),
        // None at all: the host says so better than we could.
        [] => Ok(file.to_owned()),
        several => Err(PluginError::Ambiguous {
            library: file.to_owned(),
            names: several.join(", "),
        }),
    }
}

fn split(plugin: &str) -> (&str, Option<&str>) {
    match plugin.rsplit_once(':') {
        Some((library, name)) if !library.is_empty() && !name.contains('/') => {
            (library, Some(name))
        }
        _ => (plugin, None),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_router_of_a_library_is_named_after_a_colon() {
        assert_eq!(split("baselines:cucb"), ("baselines", Some("cucb")));
        assert_eq!(split("c2mabv"), ("c2mabv", None));
        assert_eq!(split("/opt/a:b/libx.so"), ("/opt/a:b/libx.so", None));
    }
}
