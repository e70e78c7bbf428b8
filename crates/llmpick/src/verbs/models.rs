//! `llmpick ls`, `show`, `rm`: what is here, what can be had, and what is known of it.

use clap::Args;
use llmpick_store::ModelCard;
use serde_json::json;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, bytes, table};
use crate::verbs::reload::tell_daemon;

/// Options of `ls`.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Only what is on this machine
    #[arg(long)]
    installed: bool,
}

/// Options of `show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// A model's name, a .gguf file, or a model's folder
    model: String,
}

/// Options of `rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Names of models
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Lists the catalogue and what is installed.
pub fn ls(args: LsArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let store = open::store(&settings)?;
    let here = |card: &ModelCard| store.installed(&card.name);
    let mut rows = Vec::new();
    for card in store.catalogue() {
        let installed = here(card);
        if args.installed && installed.is_none() {
            continue;
        }
        let size = installed
            .as_ref()
            .map_or(card.file.bytes, |model| model.bytes);
        rows.push(json!({
            "name": card.name, "installed": installed.is_some(), "bytes": size,
            "parameters": card.parameters, "architecture": card.architecture,
            "context_tokens": card.context_tokens, "licence": card.licence,
            "description": card.description,
        }));
    }
    let text =
        |key: &str, row: &serde_json::Value| row[key].as_str().unwrap_or_default().to_owned();
    let cells = |row: &serde_json::Value| {
        let state = if row["installed"].as_bool() == Some(true) {
            "here"
        } else {
            "to pull"
        };
        vec![
            text("name", row),
            state.to_owned(),
            bytes(row["bytes"].as_u64().unwrap_or_default()),
            row["context_tokens"].to_string(),
            text("licence", row),
            text("description", row),
        ]
    };
    printer.value(&rows, || {
        table(
            &["name", "", "size>", "context>", "licence", ""],
            rows.iter().map(cells),
        )
    })
}

/// Shows a card and what the file itself says.
pub fn show(args: ShowArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let store = open::store(&settings)?;
    let resolved = match store.resolve(&args.model) {
        Ok(resolved) => resolved,
        // A model that can be pulled can be shown.
        Err(error) => match store.card(&args.model) {
            Ok(card) => return show_card(card, printer),
            Err(_) => return Err(open::resolve_error(&error)),
        },
    };
    let embeds = resolved
        .card
        .as_ref()
        .is_some_and(|card| card.architecture == "bert");
    if let (true, Some(card)) = (embeds, &resolved.card) {
        return show_card(card, printer);
    }
    let info = llmpick_daemon::engine::read_info(resolved.path.as_ref())
        .map_err(|error| CliError::new(ExitCode::ModelFile, chain(&error)))?;
    let value = json!({"path": resolved.path, "card": resolved.card, "file": info});
    printer.value(&value, || pairs(&value))
}

fn show_card(card: &ModelCard, printer: Printer) -> Result<()> {
    let value = json!({"card": card});
    printer.value(&value, || {
        format!(
            "{}\n\nrun `llmpick pull {}` to have it",
            pairs(&value),
            card.name
        )
    })
}

/// Nested JSON as two columns.
fn pairs(value: &serde_json::Value) -> String {
    let mut rows = Vec::new();
    flatten("", value, &mut rows);
    table(&["", ""], rows)
}

fn flatten(prefix: &str, value: &serde_json::Value, rows: &mut Vec<Vec<String>>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                let name = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&name, value, rows);
            }
        }
        serde_json::Value::Null => {}
        serde_json::Value::String(text) => rows.push(vec![prefix.to_owned(), text.clone()]),
        other => rows.push(vec![prefix.to_owned(), other.to_string()]),
    }
}

/// Removes the files of each.
pub async fn rm(args: RmArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let store = open::store(&settings)?;
    let mut removed = Vec::new();
    for name in &args.names {
        let freed = store
            .remove(name)
            .map_err(|error| CliError::from_error(ExitCode::ModelMissing, &error))?;
        removed.push(json!({"name": name, "bytes": freed}));
    }
    tell_daemon(&settings).await;
    let line = |row: &serde_json::Value| {
        let size = bytes(row["bytes"].as_u64().unwrap_or_default());
        format!(
            "removed {}, {size} freed",
            row["name"].as_str().unwrap_or_default()
        )
    };
    printer.value(&removed, || {
        removed.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}
