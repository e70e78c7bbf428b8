//! `llmpick plugin reload`: the running daemon loads its router anew, with what was learnt.

use clap::Args;
use llmpick_daemon::client::Client;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::printer::Printer;

/// Options of `plugin reload`.
#[derive(Args, Debug)]
pub(super) struct ReloadArgs {
    /// The plugin that is meant: reload only if the daemon routes with it
    name: Option<String>,
}

/// Asks the daemon; an error where none runs.
pub(super) async fn run(args: ReloadArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let socket = &settings.server.socket;
    let Some(client) = Client::connect(socket).await else {
        return Err(
            CliError::new(ExitCode::Failed, format!("no daemon answers on `{socket}`"))
                .hint("without a daemon every command loads plugins anew by itself"),
        );
    };
    if let Some(name) = &args.name {
        let serving = client.plugins().await.map_err(|e| open::client_error(&e))?;
        let (plugin, router) = (&serving["plugin"], &serving["router"]);
        if plugin != name && router != name {
            return Err(CliError::new(
                ExitCode::Plugin,
                format!("the daemon does not route with `{name}`, but with {plugin}"),
            ));
        }
    }
    let reloaded = client.reload_plugin().await.map_err(|error| {
        let told = open::client_error(&error);
        CliError {
            code: ExitCode::Plugin,
            ..told
        }
        .hint("the old one goes on serving; `llmpick plugin probe` tries a library out")
    })?;
    printer.value(&reloaded, || {
        let text = |key: &str| reloaded[key].as_str().unwrap_or_default().to_owned();
        let learnt = match reloaded["kept"].as_bool() {
            Some(true) => "what was learnt is kept".to_owned(),
            _ => format!(
                "it did not take the old state over ({}); it learnt {} rows of the ledger",
                text("reason"),
                reloaded["replayed"]
            ),
        };
        let same = match reloaded["before"] == reloaded["sha256"] {
            true => " (the same bytes as before)",
            false => "",
        };
        format!(
            "{} serves from {}\nsha256 {}{same}\n{learnt}",
            text("router"),
            text("path"),
            text("sha256")
        )
    })
}
