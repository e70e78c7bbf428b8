//! What can be typed: every verb and option with its help.
//!
//! An option is declared in the file of the verb that obeys it; here are only the global
//! ones and the list of verbs.

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand};

use crate::verbs;

/// A local LLM runner that learns which model to use.
#[derive(Parser, Debug)]
#[command(name = "llmpick", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Options every verb takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options every verb takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Read settings from this file, above the ones found by themselves
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<Utf8PathBuf>,
    /// Change one setting for this run, for example --set router.plugin=\"pickllm\"
    #[arg(
        long = "set",
        global = true,
        value_name = "KEY=VALUE",
        help_heading = "Settings"
    )]
    pub set: Vec<String>,
    /// Log what happens to stderr; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Printed below every long help; the numbers are a promise.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 model missing, 4 download failed, \
5 model file unusable, 6 request refused (too long, invalid), 7 plugin unusable, \
8 ledger unusable, 9 settings wrong, 10 provider failed, 11 a part of a task failed, \
130 interrupted.";

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Answer a prompt, or talk: without a prompt on a terminal, a conversation begins
    Chat(verbs::chat::ChatArgs),
    /// Deal the parts of a task over several models: `sum_up` or `all_in`
    Task(verbs::task::TaskArgs),
    /// Run the daemon: an OpenAI-compatible API on a unix socket and on loopback
    Serve(verbs::serve::ServeArgs),
    /// Let the running daemon read its settings again: models, remotes, prices
    Reload,
    /// Fetch models: a name, `default` or `starter`
    Pull(verbs::pull::PullArgs),
    /// List models: what is here, what can be had
    Ls(verbs::models::LsArgs),
    /// Show what is known of a model
    Show(verbs::models::ShowArgs),
    /// Remove a model's files
    Rm(verbs::models::RmArgs),
    /// Explain choices: the last one, any one, or how the arms fare
    Route(verbs::route::RouteArgs),
    /// Tell llmpick how good an answer was: 0 to 1
    Feedback(verbs::feedback::FeedbackArgs),
    /// Look at routing and scoring plugins
    Plugin(verbs::plugin::PluginArgs),
    /// Run a question file through the pool and the router, with scores, costs, latencies
    Eval(verbs::eval::EvalArgs),
    /// Let routers play against arms whose truth is known
    Sim(verbs::sim::SimArgs),
    /// Let routers play against a table of what models really answered
    Replay(verbs::replay::ReplayArgs),
    /// Measure
    Bench(verbs::bench::BenchArgs),
    /// Turn text into a model's tokens
    Tokenize(verbs::tokenize::TokenizeArgs),
    /// Perplexity of a model on a text
    Perplexity(verbs::perplexity::PerplexityArgs),
    /// Check this machine and set-up, with a remedy for each fault
    Doctor(verbs::doctor::DoctorArgs),
    /// Show the settings and where each came from
    Config(verbs::config::ConfigArgs),
    /// Print a completion script for a shell
    Completions(verbs::manual::CompletionsArgs),
    /// Print the manual page
    Man(verbs::manual::ManArgs),
}
