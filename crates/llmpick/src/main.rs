//! The command: reads what was typed, runs the verb, prints the result or one clear error.
//!
//! One file per verb in [`verbs`]; everything that is printed goes through [`printer`];
//! everything that is opened (settings, store, ledger, the assembled program) through [`open`].

mod cli;
mod error;
mod markdown;
mod open;
mod printer;
mod repl;
mod talk;
mod text;
mod verbs;

use clap::Parser;

use crate::cli::{Cli, Verb};
use crate::error::{CliError, ExitCode, Result};
use crate::printer::Printer;

fn main() -> std::process::ExitCode {
    llmpick_daemon::plugins::run_if_child();
    let cli = Cli::parse();
    log_to_stderr(cli.global.verbose);
    let printer = Printer::new(cli.global.json);
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(ExitCode::Failed, format!("start the runtime: {error}")))
        .and_then(|runtime| {
            let ended = runtime.block_on(run(cli, printer));
            // A blocking read or a model that loads must not hold the exit back.
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            printer.note(&error.to_string());
            std::process::ExitCode::from(error.code as u8)
        }
    }
}

async fn run(cli: Cli, printer: Printer) -> Result<()> {
    let global = &cli.global;
    match cli.verb {
        Verb::Chat(args) => verbs::chat::run(args, global, printer).await,
        Verb::Task(args) => verbs::task::run(args, global, printer).await,
        Verb::Serve(args) => verbs::serve::run(args, global, printer).await,
        Verb::Reload => verbs::reload::run(global, printer).await,
        Verb::Pull(args) => verbs::pull::run(args, global, printer).await,
        Verb::Ls(args) => verbs::models::ls(args, global, printer),
        Verb::Show(args) => verbs::models::show(args, global, printer),
        Verb::Rm(args) => verbs::models::rm(args, global, printer).await,
        Verb::Route(args) => verbs::route::run(args, global, printer),
        Verb::Feedback(args) => verbs::feedback::run(args, global, printer).await,
        Verb::Plugin(args) => verbs::plugin::run(args, global, printer).await,
        Verb::Eval(args) => verbs::eval::run(args, global, printer).await,
        Verb::Sim(args) => verbs::sim::run(args, global, printer),
        Verb::Replay(args) => verbs::replay::run(args, global, printer),
        Verb::Bench(args) => verbs::bench::run(args, global, printer).await,
        Verb::Tokenize(args) => verbs::tokenize::run(args, global, printer),
        Verb::Perplexity(args) => verbs::perplexity::run(args, global, printer),
        Verb::Doctor(args) => verbs::doctor::run(args, global, printer).await,
        Verb::Config(args) => verbs::config::run(args, global, printer),
        Verb::Completions(args) => verbs::manual::completions(args, printer),
        Verb::Man(args) => verbs::manual::man(args, printer),
    }
}

/// Warnings always; more with each `-v`, or whatever `LLMPICK_LOG` says.
fn log_to_stderr(verbose: u8) {
    let level = [
        "llmpick=warn,error",
        "llmpick=info,warn",
        "llmpick=debug,info",
    ];
    let level = level[usize::from(verbose).min(level.len() - 1)];
    let filter = tracing_subscriber::EnvFilter::try_from_env("LLMPICK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
