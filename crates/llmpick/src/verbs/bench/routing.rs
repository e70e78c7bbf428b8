//! `llmpick bench routing`: what a decision costs.

use clap::{Args, ValueEnum};
use llmpick_core::Mode;
use llmpick_sim::{BenchSettings, RouterSource, RoutingBench};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, table};

/// Options of `bench routing`.
#[derive(Args, Debug)]
pub struct RoutingArgs {
    /// The router, as in `sim`: NAME or LIBRARY:NAME, with ,KEY=VALUE for its settings; may be
    /// given several times
    #[arg(long, value_name = "ROUTER", default_values = ["baselines:round-robin", "c2mabv"])]
    router: Vec<String>,
    /// Arms of the pool; may be given several times
    #[arg(long, value_name = "K", default_value = "32", value_parser = clap::value_parser!(u32).range(1..=4096))]
    arms: Vec<u32>,
    /// Timed decisions of each way
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// How the chosen arms work together
    #[arg(long, value_enum, default_value = "single")]
    mode: BenchMode,
    /// Most arms of a plan
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_arms: u32,
    /// Long-term budget per request in dollars; the arms cost up to 0.001
    #[arg(long, value_name = "USD")]
    budget: Option<f64>,
    /// One seed, one sequence of decisions
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum BenchMode {
    Single,
    AnyWin,
    SumUp,
    AllIn,
}

/// Measures and prints.
pub fn run(args: &RoutingArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let folders = open::plugin_folders(&settings);
    let mut measured = Vec::new();
    for name in &args.router {
        let source = RouterSource::open(&folders, name, &[])
            .map_err(|error| CliError::new(ExitCode::Plugin, chain(&error)))?;
        for arms in &args.arms {
            let wanted = BenchSettings {
                arms: *arms as usize,
                calls: args.calls as usize,
                mode: match args.mode {
                    BenchMode::Single => Mode::Single,
                    BenchMode::AnyWin => Mode::AnyWin,
                    BenchMode::SumUp => Mode::SumUp,
                    BenchMode::AllIn => Mode::AllIn,
                },
                max_arms: match args.mode {
                    BenchMode::Single => 1,
                    _ => args.max_arms,
                },
                budget: args.budget.unwrap_or(f64::NAN),
                seed: args.seed,
                ..BenchSettings::default()
            };
            let bench = llmpick_sim::bench(&source, &wanted)
                .map_err(|error| CliError::new(ExitCode::Plugin, chain(&error)))?;
            if printer.is_json() {
                printer.json_line(&bench)?;
            }
            measured.push(bench);
        }
    }
    if printer.is_json() {
        return Ok(());
    }
    printer.line(&routing_table(&measured))?;
    for bench in measured.iter().filter(|bench| !bench.same_decisions) {
        printer.note(&format!(
            "{}: the ways did not decide the same, so their times are not of one thing",
            bench.router
        ));
    }
    Ok(())
}

fn routing_table(measured: &[RoutingBench]) -> String {
    let us = |value: f64| format!("{value:.2}");
    let rows = measured.iter().flat_map(|bench| {
        bench.timings.iter().map(move |timing| {
            vec![
                bench.router.clone(),
                timing.arms.to_string(),
                timing.way.clone(),
                us(timing.p50_us),
                us(timing.p90_us),
                us(timing.p99_us),
                us(timing.max_us),
                timing
                    .ratio
                    .map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
                timing.fallbacks.to_string(),
            ]
        })
    });
    let header = [
        "router",
        "arms>",
        "way",
        "p50 µs>",
        "p90 µs>",
        "p99 µs>",
        "max µs>",
        "× plain>",
        "fallbacks>",
    ];
    table(&header, rows)
}
