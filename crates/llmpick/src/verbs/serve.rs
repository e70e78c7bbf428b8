//! `llmpick serve`: the daemon, in the foreground.

use clap::Args;

use crate::cli::Global;
use crate::error::Result;
use crate::open;
use crate::printer::Printer;

/// Options of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Listen on this address instead of the settings'; "" opens no TCP port
    #[arg(long, value_name = "ADDR:PORT")]
    tcp: Option<String>,
    /// The unix socket instead of the settings'
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Also draw sets for other llmpicks whose `router.scheduler` names this one
    #[arg(long)]
    scheduler: bool,
}

/// Serves until it is told to stop.
pub async fn run(args: ServeArgs, global: &Global, printer: Printer) -> Result<()> {
    let mut overrides = Vec::new();
    if let Some(tcp) = args.tcp {
        overrides.push(("server.tcp".to_owned(), open::toml_string(&tcp)));
    }
    if let Some(socket) = args.socket {
        overrides.push(("server.socket".to_owned(), open::toml_string(&socket)));
    }
    if args.scheduler {
        overrides.push(("scheduler.enabled".to_owned(), "true".to_owned()));
    }
    let app = open::app_for_serve(global, overrides).await?;
    let server = &app.settings().server;
    let tcp = server
        .tcp
        .map(|address| format!(" and http://{address}/v1"))
        .unwrap_or_default();
    let drawing = match app.settings().scheduler.enabled {
        true => " and draws sets for others",
        false => "",
    };
    printer.note(&format!(
        "llmpick listens on {}{tcp}{drawing}; Ctrl-C stops it",
        server.socket
    ));
    llmpick_daemon::serve(app)
        .await
        .map_err(|error| open::serve_error(&error))
}
