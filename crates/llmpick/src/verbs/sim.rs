//! `llmpick sim`: what a router is worth in a world whose truth is known.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};
use llmpick_core::Mode;
use llmpick_sim::{
    Checkpoint, Environment, EnvironmentErrorKind, Estimate, PlayError, RouterSource, SimReport,
    SimSettings, SourceError, simulate, svg,
};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, table};

/// Options of `sim`.
#[derive(Args, Debug)]
pub struct SimArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Play one router; print its figures at rounds 100, 250, 500, 1000, 2000 and so on
    Run(RunArgs),
    /// Play several routers in the same world; print one table of their last figures
    Compare(CompareArgs),
}

#[derive(Args, Debug)]
struct RunArgs {
    /// A router plugin: LIBRARY[:PLUGIN][,KEY=VALUE]..., for example baselines:cucb
    #[arg(long, value_name = "PLUGIN", default_value = "c2mabv")]
    router: String,
    /// One of the router's own settings (--set is for llmpick's); repeat for more
    #[arg(long = "with", value_name = "KEY=VALUE")]
    with: Vec<String>,
    #[command(flatten)]
    world: WorldArgs,
}

#[derive(Args, Debug)]
struct CompareArgs {
    /// A router plugin with its settings, for example c2mabv,alpha_c=0.01; repeat for more
    #[arg(long = "router", value_name = "PLUGIN", required = true)]
    routers: Vec<String>,
    #[command(flatten)]
    world: WorldArgs,
}

#[derive(Args, Debug)]
struct WorldArgs {
    /// S (nine made-up arms), G (nine models on GPQA), or a file: .toml or .csv (arm,mean,cost)
    #[arg(long, value_name = "S|G|FILE", default_value = "S")]
    env: String,
    /// How the chosen arms work together
    #[arg(long, value_enum, default_value = "sum_up")]
    mode: ModeArg,
    /// Most arms of a round
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_arms: u32,
    /// Dollars per round, `none` for no limit; without it the environment's own
    #[arg(long, value_name = "RHO", value_parser = parse_budget, allow_negative_numbers = true)]
    budget: Option<f64>,
    /// Rounds of each seed
    #[arg(long, value_name = "T", default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// How many seeds
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    seeds: u32,
    /// The first seed; the others follow it
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Draw reward, violation, hinge and regret into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<Utf8PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum ModeArg {
    /// One arm
    Single,
    /// A cascade that stops at the first success
    AnyWin,
    /// Parts that add up
    SumUp,
    /// Parts that must all succeed
    AllIn,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Single => Mode::Single,
            ModeArg::AnyWin => Mode::AnyWin,
            ModeArg::SumUp => Mode::SumUp,
            ModeArg::AllIn => Mode::AllIn,
        }
    }
}

/// An amount from 0, or `none`.
pub fn parse_budget(text: &str) -> std::result::Result<f64, String> {
    if text == "none" {
        return Ok(f64::INFINITY);
    }
    let amount = text.parse::<f64>().ok();
    let amount = amount.filter(|amount| amount.is_finite() && *amount >= 0.0);
    amount.ok_or_else(|| "an amount from 0 was expected, or `none`".to_owned())
}

/// Plays and prints.
pub fn run(args: SimArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let folders = open::plugin_folders(&settings);
    match args.what {
        What::Run(args) => {
            let router = router(&folders, &args.router, &args.with)?;
            let report = args.world.play(&[router], printer)?.remove(0);
            printer.value(&report, || curve(&report))
        }
        What::Compare(args) => {
            let routers = args.routers.iter().map(|text| router(&folders, text, &[]));
            let reports = args
                .world
                .play(&routers.collect::<Result<Vec<_>>>()?, printer)?;
            printer.value(&reports, || comparison(&reports))
        }
    }
}

/// A router plugin, loaded, with its settings.
pub fn router(folders: &[Utf8PathBuf], text: &str, with: &[String]) -> Result<RouterSource> {
    RouterSource::open(folders, text, with).map_err(|error| match &error {
        SourceError::Setting(_) => CliError::new(ExitCode::Usage, chain(&error)),
        _ => CliError::new(ExitCode::Plugin, chain(&error))
            .hint("`llmpick plugin list` shows what there is, `plugin inspect` its settings"),
    })
}

/// A run that came to an early end.
pub fn play_error(error: &PlayError) -> CliError {
    CliError::new(ExitCode::Plugin, chain(error))
}

/// Says that a router was not itself.
pub fn note_fallbacks(printer: Printer, router: &str, count: u64, reason: Option<&str>) {
    if count > 0 {
        let why = reason.unwrap_or("no reason was given");
        printer.note(&format!(
            "{router}: {count} decisions were the built-in fallback's; first: {why}"
        ));
    }
}

/// A mean and half the width of its interval.
pub fn plus_minus(estimate: &Estimate, digits: usize) -> String {
    match estimate.half_width() {
        Some(half) => format!("{:.digits$} ±{half:.digits$}", estimate.mean),
        None => format!("{:.digits$}", estimate.mean),
    }
}

impl WorldArgs {
    /// One report for each router, and the plot if one is wanted.
    fn play(&self, routers: &[RouterSource], printer: Printer) -> Result<Vec<SimReport>> {
        let environment = Environment::open(&self.env).map_err(|error| {
            let code = match error.kind {
                EnvironmentErrorKind::Read(_) => ExitCode::Usage,
                _ => ExitCode::Failed,
            };
            CliError::new(code, chain(&error))
        })?;
        let settings = SimSettings {
            mode: self.mode.into(),
            max_arms: self.max_arms,
            budget: self.budget.or(environment.budget).unwrap_or(f64::INFINITY),
            rounds: self.rounds,
            seeds: self.seeds,
            first_seed: self.seed,
        };
        let mut reports = Vec::new();
        for router in routers {
            let report = simulate(&environment, &settings, router.label(), &|| router.start());
            let report = report.map_err(|error| play_error(&error))?;
            let reason = report.fallback_reason.as_deref();
            note_fallbacks(printer, &report.router, report.fallbacks, reason);
            reports.push(report);
        }
        if let Some(path) = &self.plot {
            std::fs::write(path, svg(&reports)).map_err(|error| {
                CliError::new(
                    ExitCode::Failed,
                    format!("write the plot `{path}`: {error}"),
                )
            })?;
        }
        Ok(reports)
    }
}

/// The world in a line.
fn heading(report: &SimReport) -> String {
    let budget = match report.budget {
        budget if budget.is_finite() => format!("budget {budget}"),
        _ => "no budget".to_owned(),
    };
    let mode = match report.mode {
        Mode::Single => "single",
        Mode::AnyWin => "any_win",
        Mode::SumUp => "sum_up",
        Mode::AllIn => "all_in",
    };
    format!(
        "environment {}, {mode}, at most {} arms, {budget}, {} seeds; relaxed optimum {:.4}",
        report.environment, report.max_arms, report.seeds, report.optimum
    )
}

const COLUMNS: [&str; 7] = [
    "reward>",
    "cost>",
    "violation>",
    "hinge>",
    "regret>",
    "r/max(V,.001)>",
    "r/h>",
];

fn cells(point: &Checkpoint) -> Vec<String> {
    let per_hinge = point
        .reward_per_hinge
        .map_or("–".to_owned(), |ratio| format!("{ratio:.1}"));
    vec![
        plus_minus(&point.reward, 4),
        plus_minus(&point.cost, 4),
        plus_minus(&point.violation, 4),
        plus_minus(&point.hinge, 4),
        plus_minus(&point.regret, 1),
        format!("{:.1}", point.reward_per_violation),
        per_hinge,
    ]
}

fn curve(report: &SimReport) -> String {
    let header: Vec<&str> = ["t>"].into_iter().chain(COLUMNS).collect();
    let row = |point: &Checkpoint| {
        let mut row = vec![point.t.to_string()];
        row.extend(cells(point));
        row
    };
    let rows = report.checkpoints.iter().map(row);
    format!(
        "{}\n{}\n\n{}",
        report.router,
        heading(report),
        table(&header, rows)
    )
}

fn comparison(reports: &[SimReport]) -> String {
    let header: Vec<&str> = ["router"].into_iter().chain(COLUMNS).collect();
    let row = |report: &SimReport| {
        let mut row = vec![report.router.clone()];
        row.extend(report.checkpoints.last().map(cells).unwrap_or_default());
        row
    };
    let last = reports
        .first()
        .and_then(|report| Some((report, report.checkpoints.last()?.t)));
    let title = last.map(|(report, t)| format!("{}, after {t} rounds", heading(report)));
    format!(
        "{}\n\n{}",
        title.unwrap_or_default(),
        table(&header, reports.iter().map(row))
    )
}
