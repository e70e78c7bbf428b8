//! `llmpick pull`: fetches models, with a bar for each.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use llmpick_store::{InstalledModel, Progress, PullEvent, Store};
use serde_json::json;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::printer::{Printer, bytes};
use crate::verbs::reload::tell_daemon;

/// Options of `pull`.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// Names of models, or a pool: `default` (two small models), `starter` (all five)
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Pulls each, in order.
pub async fn run(args: PullArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let store = open::store(&settings)?;
    let names = open::expand_pools(&args.names);
    // A wrong name is told before an hour of downloads, not after it.
    for name in &names {
        store
            .card(name)
            .map_err(|error| CliError::from_error(ExitCode::ModelMissing, &error))?;
    }
    let mut pulled = Vec::new();
    for name in &names {
        pulled.push(pull_one(&store, name).await?);
    }
    tell_daemon(&settings).await;
    let value: Vec<_> = pulled
        .iter()
        .map(|model| json!({"name": model.name, "path": model.path, "bytes": model.bytes}))
        .collect();
    let line = |model: &InstalledModel| format!("{}  {}", model.name, bytes(model.bytes));
    printer.value(&value, || {
        pulled.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// Pulls one model; Ctrl-C keeps what was downloaded for the next try.
pub async fn pull_one(store: &Store, name: &str) -> Result<InstalledModel> {
    let bar = Arc::new(Bar::new(name));
    tokio::select! {
        pulled = store.pull(name, bar.clone()) => {
            bar.bar.finish_and_clear();
            pulled.map_err(|error| open::pull_error(&error))
        }
        _ = tokio::signal::ctrl_c() => {
            bar.bar.abandon();
            Err(CliError::new(ExitCode::Interrupted, format!("stopped pulling {name}"))
                .hint("the same command goes on where this one stopped"))
        }
    }
}

/// Draws what a pull tells.
pub struct Bar {
    name: String,
    bar: ProgressBar,
}

impl Bar {
    /// A bar on stderr; it draws nothing where nobody looks.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template(
            "{prefix}  {bar:28} {bytes}/{total_bytes}  {bytes_per_sec}  {wide_msg}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            name: name.to_owned(),
            bar,
        }
    }

    /// A line above the bar, also where no bar is drawn.
    fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            Printer::new(false).note(&format!("{}: {text}", self.name));
        } else {
            self.bar.println(format!("{}: {text}", self.name));
        }
    }
}

impl Progress for Bar {
    fn event(&self, event: PullEvent) {
        match event {
            PullEvent::Waiting => self.say("another process is pulling it; waiting"),
            PullEvent::Source { source } if self.bar.is_hidden() => {
                self.say(&format!("from {source}"))
            }
            PullEvent::Source { source } => self.bar.set_message(source),
            PullEvent::SourceFailed { source, reason } => self.say(&format!("{source}: {reason}")),
            PullEvent::Part { index, count, name } => {
                self.bar
                    .set_message(format!("part {index} of {count}: {name}"));
            }
            PullEvent::Bytes { done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
            }
            PullEvent::Verifying => self.bar.set_message("verifying"),
            PullEvent::Done { .. } => {}
        }
    }
}
