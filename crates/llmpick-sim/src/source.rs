//! Routers by name: a plugin, its settings, and as many fresh ones of it as there are seeds.

use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_core::Router;
use llmpick_plugin_host::{
    CreateError, FindError, Isolation, Library, LoadError, LoadOptions, PluginKind, RouterOptions,
    find, router,
};
use serde_json::{Map, Value};

use crate::PlayError;

/// A loaded router plugin with settings, ready to be started once for each seed.
#[derive(Debug)]
pub struct RouterSource {
    library: Arc<Library>,
    plugin: String,
    config_json: String,
    label: String,
}

/// Why a router cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No file of that name.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The file is no plugin we can load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It loads, and does not start.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The library holds no router, or several.
    #[error("`{path}` holds {held}: name one, as `{file}:NAME`")]
    Which {
        /// The library.
        path: Utf8PathBuf,
        /// What it was asked for as.
        file: String,
        /// What it holds.
        held: String,
    },
    /// A setting without a value.
    #[error("`{0}` is no setting: KEY=VALUE was expected")]
    Setting(String),
}

impl RouterSource {
    /// `LIBRARY[:PLUGIN][,KEY=VALUE]…`, for example `c2mabv,alpha_c=0.01` or `baselines:cucb`,
    /// looked for in `folders`, with `settings` (each KEY=VALUE) on top. A value is JSON, or
    /// else a text. One instance is started at once, so that bad settings show here.
    pub fn open(
        folders: &[Utf8PathBuf],
        text: &str,
        settings: &[String],
    ) -> Result<Self, SourceError> {
        let (name, own) = split_settings(text);
        let (file, _) = split_plugin(name);
        let library = Library::load(&find(folders, file)?, &LoadOptions::default())?;
        let settings = own.into_iter().chain(settings.iter().map(String::as_str));
        Self::of_library(library, name, settings)
    }

    pub(crate) fn of_library<'a>(
        library: Arc<Library>,
        name: &str,
        settings: impl Iterator<Item = &'a str>,
    ) -> Result<Self, SourceError> {
        let (file, plugin) = split_plugin(name);
        let plugin = match plugin {
            Some(plugin) => plugin.to_owned(),
            None => only_router(&library, file)?,
        };
        let settings: Vec<&str> = settings.collect();
        let source = Self {
            label: label(name, &settings),
            library,
            plugin,
            config_json: config(&settings)?,
        };
        source.create()?;
        Ok(source)
    }

    /// The router and its settings in one line, for tables and plots.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A fresh router that has learnt nothing.
    pub fn start(&self) -> Result<Box<dyn Router>, PlayError> {
        let started = self.create();
        started.map_err(|error| PlayError::Start(error.to_string()))
    }

    /// The plugin's own name.
    pub(crate) fn plugin(&self) -> &str {
        &self.plugin
    }

    /// True where no setting was given.
    pub(crate) fn has_usual_settings(&self) -> bool {
        self.config_json == "{}"
    }

    fn create(&self) -> Result<Box<dyn Router>, CreateError> {
        // On the caller's thread, without a deadline: nothing but the state may matter here.
        self.create_as(Isolation::Inline)
    }

    /// A fresh router that runs there. A deadline is the request's own, where it has one.
    pub(crate) fn create_as(&self, isolation: Isolation) -> Result<Box<dyn Router>, CreateError> {
        let options = RouterOptions {
            isolation,
            deadline: Duration::from_secs(10),
            ..RouterOptions::default()
        };
        router(&self.library, &self.plugin, &self.config_json, &options)
    }
}

/// What a person typed, but for the folders of a path.
fn label(name: &str, settings: &[&str]) -> String {
    let (file, plugin) = split_plugin(name);
    let parts = [plugin.unwrap_or(stem(file))];
    let parts: Vec<&str> = parts.into_iter().chain(settings.iter().copied()).collect();
    parts.join(",")
}

/// A library's name without folders and `librouter_`.
fn stem(file: &str) -> &str {
    let stem = Utf8Path::new(file).file_stem().unwrap_or(file);
    stem.strip_prefix("librouter_").unwrap_or(stem)
}

/// `baselines:cucb` is the plugin `cucb` of the library `baselines`.
fn split_plugin(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((file, plugin)) => (file, Some(plugin)),
        None => (name, None),
    }
}

/// Splits off the settings: at each comma that a KEY= follows, so that a value may hold others.
fn split_settings(text: &str) -> (&str, Vec<&str>) {
    let begins = |at: &usize| {
        let rest = text.get(at + 1..).unwrap_or_default();
        let is_key = |key: &str| {
            !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        rest.split_once('=')
            .is_some_and(|(key, _)| is_key(key.trim()))
    };
    let commas = text.match_indices(',').map(|(at, _)| at).filter(begins);
    let commas: Vec<usize> = commas.collect();
    let name = text.get(..commas.first().copied().unwrap_or(text.len()));
    let ends = commas.iter().skip(1).copied().chain([text.len()]);
    let setting = |(&at, end): (&usize, usize)| text.get(at + 1..end);
    let settings = commas.iter().zip(ends).filter_map(setting).collect();
    (name.unwrap_or(text), settings)
}

/// Settings as a JSON object; a later one wins.
fn config(settings: &[&str]) -> Result<String, SourceError> {
    let mut object = Map::new();
    for setting in settings {
        let pair = setting
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty());
        let (key, value) = pair.ok_or_else(|| SourceError::Setting((*setting).to_owned()))?;
        let text = || Value::String(value.trim().to_owned());
        let value = serde_json::from_str(value).unwrap_or_else(|_| text());
        object.insert(key.trim().to_owned(), value);
    }
    Ok(Value::Object(object).to_string())
}

/// The router of a library: its only one, or the one it is named after.
fn only_router(library: &Library, file: &str) -> Result<String, SourceError> {
    let routers = library.plugins().iter();
    let routers = routers.filter(|info| info.kind == PluginKind::Router);
    let names: Vec<&str> = routers.map(|info| info.name.as_str()).collect();
    match names[..] {
        [name] => Ok(name.to_owned()),
        // Of several the one that its library is named after, as in the daemon.
        _ if names.contains(&stem(file)) => Ok(stem(file).to_owned()),
        _ => Err(SourceError::Which {
            path: library.path().to_owned(),
            file: file.to_owned(),
            held: match names[..] {
                [] => "no router".to_owned(),
                _ => format!("the routers {}", names.join(", ")),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_carries_its_settings() {
        let text = "lib/x,y.so:fixed,arms=[\"a\",\"b\"],by=cheapest";
        let (name, settings) = split_settings(text);
        assert_eq!(name, "lib/x,y.so:fixed");
        assert_eq!(settings, ["arms=[\"a\",\"b\"]", "by=cheapest"]);
        assert_eq!(split_settings("c2mabv"), ("c2mabv", vec![]));
        let json = config(&["arms=[\"a\"]", "by=dearest", "x=0.5", "x=1"]).unwrap();
        assert_eq!(json, r#"{"arms":["a"],"by":"dearest","x":1}"#);
        assert!(matches!(config(&["alpha"]), Err(SourceError::Setting(_))));
        assert_eq!(label("a/librouter_mine.so", &["x=1"]), "mine,x=1");
        assert_eq!(label("baselines:cucb", &[]), "cucb");
    }
}
