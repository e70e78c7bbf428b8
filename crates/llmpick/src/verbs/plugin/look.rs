//! `llmpick plugin list` and `inspect`: which plugins are here, and what one says of itself.

use camino::{Utf8Path, Utf8PathBuf};
use llmpick_daemon::Settings;
use serde_json::json;

use crate::error::{CliError, ExitCode, Result, chain};
use crate::printer::{Printer, table};

/// The libraries in these folders; none is loaded.
pub(super) fn list(folders: &[Utf8PathBuf], chosen: &str, printer: Printer) -> Result<()> {
    let mut rows = Vec::new();
    for library in folders.iter().flat_map(|folder| libraries(folder)) {
        let stem = library.file_stem().unwrap_or_default();
        let stem = stem
            .strip_prefix(std::env::consts::DLL_PREFIX)
            .unwrap_or(stem);
        let (kind, name) = stem.split_once('_').unwrap_or(("plugin", stem));
        let name = name.replace('_', "-");
        let in_use = kind == "router" && chosen.split(':').next() == Some(name.as_str());
        rows.push(json!({"name": name, "kind": kind, "path": library, "in_use": in_use}));
    }
    let cells = |row: &serde_json::Value| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let used = if row["in_use"].as_bool() == Some(true) {
            "in use"
        } else {
            ""
        };
        vec![text("name"), text("kind"), used.to_owned(), text("path")]
    };
    printer.value(&rows, || {
        if rows.is_empty() {
            let places: Vec<&str> = folders.iter().map(|folder| folder.as_str()).collect();
            return format!("no plugins; looked in\n  {}", places.join("\n  "));
        }
        table(&["plugin", "kind", "", "library"], rows.iter().map(cells))
    })
}

/// The shared libraries of a folder, by name; a folder that is not there holds none.
fn libraries(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    let suffix = std::env::consts::DLL_SUFFIX;
    let is_library = |path: &Utf8PathBuf| {
        path.file_name()
            .is_some_and(|name| name.ends_with(suffix) && !name.starts_with('.'))
    };
    let mut found: Vec<Utf8PathBuf> = entries
        .map(|entry| entry.into_path())
        .filter(is_library)
        .collect();
    found.sort();
    found
}

/// What the plugins of a library say of themselves.
pub(super) fn inspect(settings: &Settings, plugin: &str, printer: Printer) -> Result<()> {
    let failed =
        |error: &(dyn std::error::Error + 'static)| CliError::new(ExitCode::Plugin, chain(error));
    let library =
        llmpick_daemon::plugins::open(settings, plugin).map_err(|error| failed(&error))?;
    let plugins: Vec<_> = library
        .plugins()
        .iter()
        .map(|info| {
            json!({
                "name": info.name, "kind": format!("{:?}", info.kind).to_lowercase(),
                "version": info.version, "description": info.description,
                "state_version": info.state_version, "config_schema": info.config_schema,
            })
        })
        .collect();
    let value = json!({"path": library.path(), "sha256": library.sha256(), "plugins": plugins});
    printer.value(&value, || {
        let mut text = format!("{}\nsha256 {}\n", library.path(), library.sha256());
        for plugin in &plugins {
            let get = |key: &str| plugin[key].as_str().unwrap_or_default();
            text.push_str(&format!(
                "\n{} {} ({})\n  {}\n{}",
                get("name"),
                get("version"),
                get("kind"),
                get("description"),
                schema(get("config_schema"))
            ));
        }
        text
    })
}

/// The settings of a JSON Schema as a table.
fn schema(text: &str) -> String {
    let Ok(schema) = serde_json::from_str::<serde_json::Value>(text) else {
        return String::new();
    };
    let Some(properties) = schema["properties"].as_object() else {
        return String::new();
    };
    let rows = properties.iter().map(|(key, property)| {
        let default = match &property["default"] {
            serde_json::Value::Null => String::new(),
            value => value.to_string(),
        };
        vec![
            format!("  {key}"),
            default,
            property["description"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        String::new()
    } else {
        table(&["  setting", "default", ""], rows) + "\n"
    }
}
