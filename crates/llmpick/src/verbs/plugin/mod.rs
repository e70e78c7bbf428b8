//! `llmpick plugin`: which plugins are here, what they say of themselves, whether they keep
//! the contract.

mod look;
mod new;
mod reload;
mod test;
mod trust;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use llmpick_daemon::plugin_host::find;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::Printer;

/// Options of `plugin`.
#[derive(Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// List the libraries in the plugin folders; nothing is loaded
    List,
    /// Load one and show what it holds: names, versions, settings
    Inspect {
        /// A plugin's name, such as c2mabv, or the path of a library
        plugin: String,
    },
    /// Write a project for a plugin, which builds and passes `plugin test` as it is
    New(new::NewArgs),
    /// Try a library out in a process of its own: what it holds, whether it starts
    Probe(trust::ProbeArgs),
    /// Accept a library as it is now, after it changed or was put in quarantine
    Trust(trust::TrustArgs),
    /// Let the running daemon load its router anew, with what was learnt
    Reload(reload::ReloadArgs),
    /// Hold a plugin to its contract, each test in a process of its own
    Test(test::TestArgs),
}

/// Does what was asked.
pub async fn run(args: PluginArgs, global: &Global, printer: Printer) -> Result<()> {
    match args.what {
        What::List => {
            let settings = open::settings(global, Vec::new())?;
            let folders = open::plugin_folders(&settings);
            look::list(&folders, &settings.router.plugin, printer)
        }
        What::Inspect { plugin } => {
            look::inspect(&open::settings(global, Vec::new())?, &plugin, printer)
        }
        What::New(args) => new::run(args, printer),
        What::Probe(args) => trust::probe(&args, global, printer),
        What::Trust(args) => trust::trust(&args, global, printer),
        What::Reload(args) => reload::run(args, global, printer).await,
        What::Test(args) => test::run(args, global, printer),
    }
}

/// Where plugins are looked for.
fn folders(global: &Global) -> Result<Vec<Utf8PathBuf>> {
    Ok(open::plugin_folders(&open::settings(global, Vec::new())?))
}

/// The library behind a plugin's name, or behind the path of a file. A path needs no settings.
fn library_of(plugin: &str, global: &Global) -> Result<Utf8PathBuf> {
    let is_path = plugin.contains('/') || plugin.ends_with(std::env::consts::DLL_SUFFIX);
    let folders = if is_path {
        Vec::new()
    } else {
        folders(global)?
    };
    find(&folders, plugin).map_err(|error| CliError::new(ExitCode::Plugin, chain(&error)))
}
