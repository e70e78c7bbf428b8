//! `llmpick plugin test`: the conformance kit, from the command line.

use std::process::Command;
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use llmpick_daemon::plugin_host::PluginKind;
use llmpick_daemon::plugin_host::kit::{Kit, Task, TestResult, run_task};

use super::library_of;
use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::printer::Printer;

/// Options of `plugin test`.
#[derive(Args, Debug)]
pub(super) struct TestArgs {
    /// The library, or the name of a plugin in the plugin folders
    file: String,
    /// Only this plugin of the library
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Create it with these settings, a JSON object, instead of its defaults
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Only tests whose name holds this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Seconds after which a test that does not come back has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,
    /// Run one test in this process; the kit starts itself with this
    #[arg(long, hide = true)]
    run_one: Option<String>,
    /// What the plugin of that test is
    #[arg(long, hide = true, requires = "run_one")]
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Router,
    Scorer,
}

/// Runs the kit; one line per test as it ends.
pub(super) fn run(args: TestArgs, global: &Global, printer: Printer) -> Result<()> {
    if let Some(test) = &args.run_one {
        run_task(&task(&args, test));
        return Ok(());
    }
    let failed =
        |error: &(dyn std::error::Error + 'static)| CliError::new(ExitCode::Plugin, chain(error));
    let file = library_of(&args.file, global)?;
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let child = |task: &Task| {
        let mut command = Command::new(&program);
        command.args(["plugin", "test", task.file.as_str()]);
        command.arg(format!("--run-one={}", task.test));
        command.arg(format!("--settings={}", task.settings));
        if let Some((kind, name)) = &task.plugin {
            command.arg(format!("--plugin={name}"));
            command.arg(format!("--kind={kind}"));
        }
        command
    };
    let kit = Kit {
        file: &file,
        plugin: args.plugin.as_deref(),
        settings: &args.settings,
        only: args.only.as_deref(),
        time_limit: Duration::from_secs(args.time_limit),
        child: &child,
    };
    let mut shown = Ok(());
    let mut titled = String::new();
    let summary = kit.run(|result| {
        if shown.is_ok() {
            shown = show(result, &mut titled, printer);
        }
    });
    shown?;
    let summary = summary.map_err(|error| failed(&error))?;
    if printer.is_json() {
        printer.json_line(&summary)?;
    } else {
        printer.line(&format!(
            "\n{} passed, {} failed",
            summary.passed, summary.failed
        ))?;
    }
    match summary.failed {
        0 => Ok(()),
        failed => {
            let promises = if failed == 1 { "promise" } else { "promises" };
            Err(CliError::new(
                ExitCode::Plugin,
                format!(
                    "`{}` breaks {failed} {promises} of the plugin contract",
                    args.file
                ),
            ))
        }
    }
}

fn task(args: &TestArgs, test: &str) -> Task {
    let kind = args.kind.map(|kind| match kind {
        Kind::Router => PluginKind::Router,
        Kind::Scorer => PluginKind::Scorer,
    });
    Task {
        file: Utf8PathBuf::from(&args.file),
        plugin: kind.zip(args.plugin.clone()),
        test: test.to_owned(),
        settings: args.settings.clone(),
    }
}

/// `✓ what was tested — what was seen`, below a heading for each plugin.
fn show(result: &TestResult, titled: &mut String, printer: Printer) -> Result<()> {
    if printer.is_json() {
        return printer.json_line(result);
    }
    if let Some(kind) = result.kind
        && *titled != result.plugin
    {
        titled.clone_from(&result.plugin);
        printer.line(&format!("\n{kind} {}", result.plugin))?;
    }
    let mark = if result.passed { "✓" } else { "✗" };
    let note = match (result.passed, result.note.as_str()) {
        (_, "") => String::new(),
        (true, note) => format!("  ({note})"),
        (false, note) => format!("\n    {note}"),
    };
    printer.line(&format!("{mark} {}{note}", result.test))
}
