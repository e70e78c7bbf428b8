//! `llmpick reload`: the running daemon reads its settings again and makes its pool anew.

use std::time::Duration;

use llmpick_daemon::Settings;
use llmpick_daemon::client::{Client, ClientError};
use serde_json::Value;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::printer::Printer;

/// How long a command waits for the daemon to take up what it did.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the daemon; an error where none runs, or where the settings are wrong.
pub async fn run(global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let socket = &settings.server.socket;
    let Some(client) = Client::connect(socket).await else {
        return Err(
            CliError::new(ExitCode::Failed, format!("no daemon answers on `{socket}`"))
                .hint("without a daemon every command reads the settings by itself"),
        );
    };
    let reloaded = client.reload_arms().await.map_err(|error| {
        let told = open::client_error(&error);
        match error {
            ClientError::Refused { status: 409, .. } => CliError {
                code: ExitCode::Settings,
                ..told
            },
            _ => told,
        }
    })?;
    printer.value(&reloaded, || in_words(&reloaded))
}

/// Lets a daemon that runs take up models that were pulled or removed. Nobody needs one.
pub async fn tell_daemon(settings: &Settings) {
    let Some(client) = Client::connect(&settings.server.socket).await else {
        return;
    };
    let told = tokio::time::timeout(PATIENCE, client.reload_arms()).await;
    if let Ok(Err(error)) = told {
        let printer = Printer::new(false);
        printer.note(&format!("the running daemon did not take it up: {error}"));
    }
}

fn in_words(reloaded: &Value) -> String {
    let list = |key: &str| {
        let items = reloaded[key].as_array().into_iter().flatten();
        let items: Vec<&str> = items.filter_map(Value::as_str).collect();
        items.join(", ")
    };
    let rows = [
        ("arms", "arms"),
        ("added", "added"),
        ("removed", "removed"),
        ("repriced", "other price"),
        ("changed", "changed"),
        ("needs_restart", "only after a restart"),
    ];
    let lines = rows.iter().map(|(key, label)| (label, list(key)));
    let lines = lines.filter(|(_, items)| !items.is_empty());
    let lines: Vec<String> = lines
        .map(|(label, items)| format!("{label}: {items}"))
        .collect();
    lines.join("\n")
}
