//! `llmpick bench`: measures, and says what was measured.

use clap::{Args, Subcommand};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, bytes, milliseconds, table};

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Speed and memory of a local model
    Engine(EngineArgs),
}

#[derive(Args, Debug)]
struct EngineArgs {
    /// The model, or a .gguf file
    #[arg(short, long)]
    model: String,
    /// Tokens of the prompt
    #[arg(long, value_name = "P", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to generate
    #[arg(long, value_name = "G", default_value_t = 128)]
    gen_tokens: usize,
    /// Counted runs, after one warm-up
    #[arg(long, value_name = "R", default_value_t = 5)]
    runs: usize,
    /// Sequences at one time
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
}

/// Runs the measurement.
pub fn run(args: BenchArgs, global: &Global, printer: Printer) -> Result<()> {
    let What::Engine(args) = args.what;
    let settings = open::settings(global, Vec::new())?;
    let mut model = open::model(&settings, &args.model)?;
    let plan = llmpick_daemon::engine::BenchPlan {
        prompt_tokens: args.prompt_tokens,
        gen_tokens: args.gen_tokens,
        runs: args.runs,
        batch: args.batch,
    };
    let report = model
        .bench(plan)
        .map_err(|error| CliError::new(ExitCode::Request, chain(&error)))?;
    printer.value(&report, || {
        let spread = |name: &str, tps: &llmpick_daemon::engine::Spread| {
            let cell = |value: f64| format!("{value:.1}");
            vec![
                name.to_owned(),
                cell(tps.median),
                cell(tps.min),
                cell(tps.max),
            ]
        };
        let rows = [
            spread("prompt tokens/s", &report.prompt_tps),
            spread("generated tokens/s", &report.gen_tps),
        ];
        format!(
            "{}\n\nfirst token {}, load {:.2} s, peak memory {}, {} threads",
            table(&["", "median>", "min>", "max>"], rows),
            milliseconds(report.ttft_ms),
            report.load_s,
            bytes(report.peak_rss_bytes),
            report.threads,
        )
    })
}
