//! `llmpick bench`: measures, and says what was measured.

mod engine;
mod routing;

use clap::{Args, Subcommand};

use crate::cli::Global;
use crate::error::Result;
use crate::printer::Printer;

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Speed and memory of a local model, alone or in turn with llama.cpp
    Engine(engine::EngineArgs),
    /// Time of one routing decision: on the router's thread, on ours, in a process, and without a plugin
    Routing(routing::RoutingArgs),
}

/// Runs the measurement.
pub async fn run(args: BenchArgs, global: &Global, printer: Printer) -> Result<()> {
    match args.what {
        What::Engine(args) => engine::run(args, global, printer).await,
        What::Routing(args) => routing::run(&args, global, printer),
    }
}
