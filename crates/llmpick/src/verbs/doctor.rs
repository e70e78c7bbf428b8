//! `llmpick doctor`: is everything here that an answer needs, and if not, what to do.

use clap::Args;
use serde::Serialize;

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, bytes, table};

/// Options of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    ok: bool,
    finding: String,
}

impl Check {
    fn new(what: &'static str, result: Result<String, String>) -> Self {
        let ok = result.is_ok();
        Self {
            what,
            ok,
            finding: result.unwrap_or_else(|fault| fault),
        }
    }
}

/// Looks at everything; fails if anything is wrong.
pub async fn run(_args: DoctorArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = match open::settings(global, Vec::new()) {
        Ok(settings) => settings,
        Err(error) => return Err(error.hint("every other check needs the settings first")),
    };
    let checks = vec![
        Check::new("processor", Ok(processor())),
        Check::new("memory", memory()),
        Check::new(
            "settings",
            Ok(format!(
                "{} files",
                settings.files().iter().filter(|file| file.read).count()
            )),
        ),
        Check::new("models", models(&settings)),
        Check::new("model files", model_files(&settings)),
        Check::new("router plugin", plugin(&settings)),
        Check::new("ledger", ledger(&settings)),
        Check::new("python with pip", python(&settings)),
        Check::new("daemon", Ok(daemon(&settings).await)),
    ];
    let cells = |check: &Check| {
        vec![
            if check.ok { "ok" } else { "FAULT" }.to_owned(),
            check.what.to_owned(),
            check.finding.clone(),
        ]
    };
    printer.value(&checks, || table(&["", "", ""], checks.iter().map(cells)))?;
    let faults = checks.iter().filter(|check| !check.ok).count();
    if faults > 0 {
        return Err(CliError::new(
            ExitCode::Failed,
            format!("{faults} faults; each line says what to do"),
        ));
    }
    Ok(())
}

fn processor() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let name = model.map_or("unknown", |(_, name)| name);
    format!("{name}, {threads} threads")
}

fn memory() -> Result<String, String> {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |key: &str| -> Option<u64> {
        let rest = info.lines().find_map(|line| line.strip_prefix(key))?;
        Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    match (line("MemAvailable:"), line("MemTotal:")) {
        (Some(free), Some(total)) if free < 500_000_000 => Err(format!(
            "only {} of {} are free: the smallest models need about 300 MB",
            bytes(free),
            bytes(total)
        )),
        (Some(free), Some(total)) => Ok(format!("{} of {} free", bytes(free), bytes(total))),
        _ => Ok("unknown on this system".to_owned()),
    }
}

fn models(settings: &llmpick_daemon::Settings) -> Result<String, String> {
    let store = open::store(settings).map_err(|error| error.message)?;
    let missing: Vec<&str> = settings
        .pool
        .iter()
        .filter(|name| store.resolve(name).is_err())
        .map(String::as_str)
        .collect();
    match missing.is_empty() {
        true => Ok(format!("the pool is here: {}", settings.pool.join(", "))),
        false => Err(format!("run `llmpick pull {}`", missing.join(" "))),
    }
}

fn model_files(settings: &llmpick_daemon::Settings) -> Result<String, String> {
    let store = open::store(settings).map_err(|error| error.message)?;
    let mut read = 0;
    for name in &settings.pool {
        if let Ok(model) = store.resolve(name) {
            llmpick_daemon::engine::read_info(model.path.as_ref())
                .map_err(|error| format!("{}: remove it and pull it again", chain(&error)))?;
            read += 1;
        }
    }
    Ok(format!("{read} readable"))
}

fn plugin(settings: &llmpick_daemon::Settings) -> Result<String, String> {
    let library = llmpick_daemon::plugins::open(settings, &settings.router.plugin);
    library
        .map(|library| library.path().to_string())
        .map_err(|error| chain(&error))
}

fn ledger(settings: &llmpick_daemon::Settings) -> Result<String, String> {
    let ledger = open::ledger(settings).map_err(|error| error.message)?;
    let last = ledger.last_route().map_err(|error| chain(&error))?;
    let last = last.map_or("no routes yet".to_owned(), |route| {
        format!("newest route {}", route.id)
    });
    Ok(format!("{}, {last}", settings.ledger.path))
}

fn python(settings: &llmpick_daemon::Settings) -> Result<String, String> {
    let python = settings.store.python.as_deref().unwrap_or("python3");
    let output = std::process::Command::new(python)
        .args(["-m", "pip", "--version"])
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout)
            .split(" from ")
            .next()
            .unwrap_or_default()
            .to_owned()),
        _ => Err(format!(
            "`{python} -m pip` does not run: without it models come from the hub only"
        )),
    }
}

async fn daemon(settings: &llmpick_daemon::Settings) -> String {
    match llmpick_daemon::client::Client::connect(&settings.server.socket).await {
        Some(_) => format!("answers on {}", settings.server.socket),
        None => "not running; commands answer by themselves".to_owned(),
    }
}
