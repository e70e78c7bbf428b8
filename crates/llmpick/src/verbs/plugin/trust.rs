//! `llmpick plugin probe` and `trust`: what a library does when it is tried out, and which
//! content of it may be loaded.

use camino::Utf8Path;
use clap::Args;
use llmpick_daemon::plugin_host::{
    Library, LoadError, LoadErrorKind, LoadOptions, PluginLock, ProbeReport,
};
use llmpick_daemon::plugins;
use serde_json::{Value, json};

use super::library_of;
use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::Printer;

/// Options of `plugin probe`.
#[derive(Args, Debug)]
pub(super) struct ProbeArgs {
    /// The library, or the name of a plugin in the plugin folders
    file: String,
}

/// Options of `plugin trust`.
#[derive(Args, Debug)]
pub(super) struct TrustArgs {
    /// The library, or the name of a plugin in the plugin folders
    file: String,
    /// Forget the file instead: its next use is a first use
    #[arg(long)]
    forget: bool,
}

fn failed(error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::new(ExitCode::Plugin, chain(error))
}

/// Loads the library in a process of its own, makes one of each plugin, and tells.
pub(super) fn probe(args: &ProbeArgs, global: &Global, printer: Printer) -> Result<()> {
    let file = library_of(&args.file, global)?;
    let lock = plugins::lock(&open::settings(global, Vec::new())?);
    let (report, refusal) = try_out(&file).map_err(|error| failed(&error))?;
    let standing = match refusal {
        Some(why) => format!("would be refused: {why}"),
        None => standing(&lock, &report)?,
    };
    let (major, minor) = report.abi;
    let plugins: Vec<Value> = report
        .plugins
        .iter()
        .map(|(info, refused)| {
            json!({
                "name": info.name, "kind": info.kind, "version": info.version,
                "description": info.description, "caps": info.caps,
                "state_version": info.state_version, "needs_settings": refused,
            })
        })
        .collect();
    let value = json!({
        "path": report.path, "sha256": report.sha256, "abi": format!("{major}.{minor}"),
        "built_with": report.built_with, "standing": standing, "plugins": plugins,
    });
    printer.value(&value, || {
        let mut text = format!(
            "{}\nsha256 {}\nABI {major}.{minor}, built with {}\n{standing}\n",
            report.path,
            report.sha256,
            match report.built_with.as_str() {
                "" => "tools that it does not name",
                with => with,
            }
        );
        for (info, refused) in &report.plugins {
            let started = match refused {
                None => "starts with its defaults".to_owned(),
                Some(why) => format!("does not start with its defaults: {why}"),
            };
            text.push_str(&format!(
                "\n{} {} {}: {started}\n  {}\n",
                info.kind, info.name, info.version, info.description
            ));
        }
        text
    })
}

/// The report, and why the library would not be loaded although it works: whoever may change
/// its file is no reason not to try it out in a process of its own.
fn try_out(file: &Utf8Path) -> Result<(ProbeReport, Option<String>), LoadError> {
    match Library::probe(file, &LoadOptions::default()) {
        Ok(report) => Ok((report, None)),
        Err(error) if matches!(error.kind, LoadErrorKind::Untrusted { .. }) => {
            let report = Library::probe(file, &LoadOptions::ANYWHERE)?;
            Ok((report, Some(error.kind.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// What the lock says of this content, in words.
fn standing(lock: &PluginLock, report: &ProbeReport) -> Result<String> {
    let suspects = lock.suspects().map_err(|error| failed(&error))?;
    if suspects.iter().any(|one| one.sha256 == report.sha256) {
        return Ok(
            "in quarantine: llmpick died while it loaded it; `llmpick plugin trust` \
                   gives it another chance"
                .to_owned(),
        );
    }
    let pins = lock.list().map_err(|error| failed(&error))?;
    Ok(match pins.iter().find(|pin| pin.path == report.path) {
        None => "new: its first use records it".to_owned(),
        Some(pin) if pin.sha256 == report.sha256 => "trusted".to_owned(),
        Some(pin) => format!(
            "changed: trusted is sha256 {}; `llmpick plugin trust` accepts it as it is now",
            pin.sha256
        ),
    })
}

/// Accepts the file as it is now, or forgets it.
pub(super) fn trust(args: &TrustArgs, global: &Global, printer: Printer) -> Result<()> {
    let file = library_of(&args.file, global)?;
    let lock = plugins::lock(&open::settings(global, Vec::new())?);
    let real = file.canonicalize_utf8().unwrap_or_else(|_| file.clone());
    if args.forget {
        let known = lock.forget(&file).map_err(|error| failed(&error))?;
        let value = json!({"path": real, "forgotten": known});
        return printer.value(&value, || match known {
            true => format!("forgot {real}; its next use is a first use"),
            false => format!("{real} was not known"),
        });
    }
    let pins = lock.list().map_err(|error| failed(&error))?;
    let before = pins.into_iter().find(|pin| pin.path == real);
    let pin = lock.trust(&file).map_err(|error| failed(&error))?;
    let old = before.map(|pin| pin.sha256);
    let value = json!({"path": pin.path, "old": old, "new": pin.sha256});
    printer.value(&value, || {
        let old = match &old {
            None => "not known before".to_owned(),
            Some(old) if *old == pin.sha256 => "the same as before".to_owned(),
            Some(old) => format!("before: sha256 {old}"),
        };
        format!("trusted {}\nnow: sha256 {}\n{old}", pin.path, pin.sha256)
    })
}
