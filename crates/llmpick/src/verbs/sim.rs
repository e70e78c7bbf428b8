//! `llmpick sim`: what a router is worth in a world whose truth is known.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use llmpick_core::Mode;
use llmpick_sim::{
    Checkpoint, ConvergeReport, ConvergeSettings, Environment, EnvironmentErrorKind, Estimate,
    PlayError, RouterSource, ShockReport, SimReport, SimSettings, SourceError, Watch, checkpoints,
    converge, simulate, svg,
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
    /// Play several routers in the same world; print one table of their figures
    Compare(CompareArgs),
    /// Let routers that settle on one arm settle; print which they settle on, and how soon
    Pickllm(PickllmArgs),
}

/// What `--env` reads, below the options.
const FILES: &str = "\
A world of your own is a .csv with the columns arm, mean and cost (a call scores 1 with probability \
mean, else 0, and costs cost x U(0.5, 1.5) dollars), or a .toml:

  budget = 0.2        # dollars per round, unless --budget says otherwise
  cost_cap = 1.0      # no call costs more
  shock_at = 1500     # after this round arms have their mean_after

  [[arm]]
  id = \"small\"
  mean = 0.45
  cost = 0.03
  mean_after = 0.30   # where it changes";

#[derive(Args, Debug)]
struct PickllmArgs {
    /// Router plugins with their settings. With none, pickllm's learners as in the reference
    /// table; a Q-learner plays 500 steps
    #[arg(value_name = "PLUGIN")]
    routers: Vec<String>,
    /// Mean score of each arm
    #[arg(long, value_name = "MEANS", value_delimiter = ',', default_value = "0.8,0.65,0.55,0.4", value_parser = parse_share)]
    means: Vec<f64>,
    /// Standard deviation of a score, which is cut to 0..=1
    #[arg(long, value_name = "SD", default_value_t = 0.15, value_parser = parse_share)]
    sd: f64,
    /// Most steps of a seed
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// How many seeds
    #[arg(long, value_name = "K", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    seeds: u32,
    /// The first seed; the others follow it
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    settings: RouterSettings,
    /// Threads to play on; without it one for each core. It changes no figure
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// The learners of the reference table (ALGORITHMS 2.3), on scores alone.
const LEARNERS: [&str; 12] = [
    "automaton,b=0.02",
    "automaton,b=0.05",
    "automaton,b=0.1",
    "automaton,b=0.2",
    "automaton,b=0.3",
    "automaton,b=0.5",
    "pursuit,b=0.05",
    "pursuit,b=0.1",
    "q,alpha=0.1,q_start=0,epsilon_min=0.02,lock=false",
    "q,alpha=0.1,q_start=1,epsilon_min=0.02,lock=false",
    "q,alpha=0.3,q_start=0,epsilon_min=0.02,lock=false",
    "q,alpha=0.3,q_start=1,epsilon_min=0.02,lock=false",
];

/// A number from 0 to 1.
pub fn parse_share(text: &str) -> std::result::Result<f64, String> {
    let share = text.parse::<f64>().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1 was expected".to_owned())
}

#[derive(Args, Debug)]
#[command(after_long_help = FILES)]
struct RunArgs {
    /// A router plugin: LIBRARY[:PLUGIN][,KEY=VALUE]..., for example baselines:cucb
    #[arg(value_name = "PLUGIN", conflicts_with = "router")]
    positional: Option<String>,
    /// The same as an option; c2mabv if neither is given
    #[arg(long, value_name = "PLUGIN")]
    router: Option<String>,
    #[command(flatten)]
    settings: RouterSettings,
    #[command(flatten)]
    world: WorldArgs,
}

#[derive(Args, Debug)]
#[command(after_long_help = FILES)]
struct CompareArgs {
    /// Router plugins with their settings, for example c2mabv,alpha_c=0.01. With none, the
    /// line-up of the reference figures: c2mabv with four pairs of alphas, and every baseline
    #[arg(value_name = "PLUGIN")]
    positional: Vec<String>,
    /// One of them as an option; repeat for more
    #[arg(long = "router", value_name = "PLUGIN")]
    routers: Vec<String>,
    /// Print the figures of this round, one of 100, 250, 500, 1000, 2000 and so on; without it
    /// the last
    #[arg(long, value_name = "T")]
    at: Option<u64>,
    #[command(flatten)]
    settings: RouterSettings,
    #[command(flatten)]
    world: WorldArgs,
}

/// Settings for every router of the command line.
#[derive(Args, Debug)]
pub struct RouterSettings {
    /// A setting of every router named, for example --set alpha_c=0.01; a key with a dot in it
    /// is one of llmpick's own. Repeat for more
    // Read through `Global`, whose option of that name this one explains anew.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The same, whatever the key looks like
    #[arg(long = "with", value_name = "KEY=VALUE")]
    with: Vec<String>,
}

impl RouterSettings {
    /// Settings of llmpick, and those of the routers.
    pub fn split(&self, global: &Global) -> (Global, Vec<String>) {
        let is_ours = |pair: &&String| pair.split('=').next().is_some_and(|key| key.contains('.'));
        let (ours, routers): (Vec<_>, Vec<_>) = self.set.iter().partition(is_ours);
        let mut global = global.clone();
        global.set = ours.into_iter().cloned().collect();
        let routers = routers.into_iter().chain(&self.with).cloned();
        (global, routers.collect())
    }
}

#[derive(Args, Debug)]
struct WorldArgs {
    /// S (nine made-up arms), G (nine models on GPQA), drift (S, five of whose arms change
    /// after round 1500), or a file: .toml or .csv, see below
    #[arg(long, value_name = "S|G|drift|FILE", default_value = "S")]
    env: String,
    /// Let the change of a world that changes come after this round
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..))]
    shock_at: Option<u64>,
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
    /// Tell routers each arm's mean cost, as dispatch does from prices; the paper's protocol
    /// lets them find it out
    #[arg(long, overrides_with = "unknown_prices")]
    known_prices: bool,
    /// Let routers find out costs (the default)
    #[arg(long)]
    unknown_prices: bool,
    /// Draw reward, violation, hinge and regret into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<Utf8PathBuf>,
    /// Threads to play on; without it one for each core. It changes no figure
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
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
    match args.what {
        What::Run(args) => {
            let name = args.positional.or(args.router);
            let name = name.unwrap_or_else(|| "c2mabv".to_owned());
            let reports = args.world.play(&[name], &args.settings, global, printer)?;
            match &reports[..] {
                [report] => printer.value(report, || curve(report)),
                _ => Ok(()),
            }
        }
        What::Compare(args) => {
            let named = args.positional.iter().chain(&args.routers).cloned();
            let mut names: Vec<String> = named.collect();
            if names.is_empty() {
                names = line_up(&args.world.environment()?, args.world.rounds);
            }
            args.world.check(args.at)?;
            let mut reports = args.world.play(&names, &args.settings, global, printer)?;
            if let Some(at) = args.at {
                for report in &mut reports {
                    report.checkpoints.retain(|point| point.t <= at);
                }
            }
            printer.value(&reports, || comparison(&reports))
        }
        What::Pickllm(args) => pickllm(&args, global, printer),
    }
}

/// Lets learners settle and prints a table.
fn pickllm(args: &PickllmArgs, global: &Global, printer: Printer) -> Result<()> {
    let (global, with) = args.settings.split(global);
    let folders = open::plugin_folders(&open::settings(&global, Vec::new())?);
    let mut names = args.routers.clone();
    if names.is_empty() {
        let named =
            |learner: &&str| format!("pickllm,learner={learner},weight_cost=0,weight_latency=0");
        names = LEARNERS.iter().map(named).collect();
    }
    let routers = names.iter().map(|text| router(&folders, text, &with));
    let routers = routers.collect::<Result<Vec<_>>>()?;
    let reference = ConvergeSettings::reference();
    let settings = |router: &RouterSource| {
        let is_q = router.label().contains("learner=q,");
        ConvergeSettings {
            means: args.means.clone(),
            deviation: args.sd,
            steps: args
                .steps
                .unwrap_or(if is_q { 500 } else { reference.steps }),
            seeds: args.seeds,
            first_seed: args.seed,
        }
    };
    // How long each takes is what is to be found out: the bar counts what it can.
    let reports = look_on(0, args.threads, |watch| {
        let play = |router: &RouterSource| {
            let start = || router.start();
            let report = converge(&settings(router), router.label(), &start, watch);
            report.map_err(|error| play_error(&error))
        };
        routers.iter().map(play).collect::<Result<Vec<_>>>()
    })?;
    for report in &reports {
        let reason = report.fallback_reason.as_deref();
        note_fallbacks(printer, &report.router, report.fallbacks, reason);
    }
    printer.value(&reports, || settled(args, &reports))
}

fn settled(args: &PickllmArgs, reports: &[ConvergeReport]) -> String {
    let means: Vec<String> = args.means.iter().map(f64::to_string).collect();
    let heading = format!(
        "arms of mean score {}, deviation {}, {} seeds",
        means.join(", "),
        args.sd,
        args.seeds
    );
    let row = |report: &ConvergeReport| {
        let steps = report
            .median_steps
            .map_or("–".to_owned(), |steps| steps.to_string());
        vec![
            report.router.clone(),
            plus_minus(&report.best, 3),
            format!("{:.3}", report.settled),
            steps,
        ]
    };
    let header = ["router", "ends with the best>", "settled>", "median steps>"];
    format!("{heading}\n\n{}", table(&header, reports.iter().map(row)))
}

/// The routers of the reference figures (ALGORITHMS 1.8) for T rounds of this world.
fn line_up(environment: &Environment, rounds: u64) -> Vec<String> {
    let figures =
        format!("horizon={rounds},cost_scale=1,awc=greedy,order=cost,budget_mode=average");
    let ours = [
        ("0.3", "0.05"),
        ("1", "0.05"),
        ("0.3", "0.01"),
        ("1", "0.01"),
    ]
    .map(|(mu, c)| format!("c2mabv,alpha_mu={mu},alpha_c={c},{figures}"));
    let others = [
        "baselines:epsilon-greedy,budgeted=true",
        "baselines:epsilon-greedy,budgeted=false",
        "baselines:cucb",
        "baselines:thompson",
        "baselines:fixed,by=cheapest",
    ]
    .map(str::to_owned);
    // Always one LLM: its set is that one arm, whatever N is.
    let mut arms: Vec<_> = environment.arms.iter().collect();
    arms.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    let ends = arms.last().into_iter().chain(arms.first());
    let always = ends.map(|arm| format!("baselines:fixed,arms=[\"{}\"]", arm.id));
    ours.into_iter().chain(others).chain(always).collect()
}

/// Does `work` on this thread, with a bar on stderr; Ctrl-C ends it at its next round.
pub fn look_on<T>(
    total: u64,
    threads: Option<NonZeroUsize>,
    work: impl FnOnce(&Watch) -> Result<T>,
) -> Result<T> {
    let watch = Arc::new(Watch::new(threads));
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:32} {human_pos}/{human_len} rounds, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (looked_on, shown) = (Arc::clone(&watch), bar.clone());
    let looker = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut asked = pin!(tokio::signal::ctrl_c());
        loop {
            tokio::select! {
                Ok(()) = &mut asked => return looked_on.stop(),
                _ = tick.tick() => shown.set_position(looked_on.rounds()),
            }
        }
    });
    let done = work(&watch);
    looker.abort();
    bar.finish_and_clear();
    done
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
    match error {
        PlayError::Stopped => CliError::new(ExitCode::Interrupted, "stopped"),
        _ => CliError::new(ExitCode::Plugin, chain(error)),
    }
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
    fn environment(&self) -> Result<Environment> {
        let mut world = Environment::open(&self.env).map_err(|error| {
            let code = match error.kind {
                EnvironmentErrorKind::Read(_) => ExitCode::Usage,
                _ => ExitCode::Failed,
            };
            CliError::new(code, chain(&error))
        })?;
        match (&mut world.shock, self.shock_at) {
            (_, None) => {}
            (Some(shock), Some(at)) => shock.at = at,
            (None, Some(_)) => {
                let text = format!("nothing changes in the environment {}", world.name);
                return Err(CliError::new(ExitCode::Usage, text)
                    .hint("--env drift changes; a .toml does with shock_at and mean_after"));
            }
        }
        Ok(world)
    }

    /// Refuses a round at which no figures are taken.
    fn check(&self, at: Option<u64>) -> Result<()> {
        let points = checkpoints(self.rounds);
        match at {
            Some(at) if !points.contains(&at) => {
                let points: Vec<String> = points.iter().map(u64::to_string).collect();
                let text = format!("no figures are taken at round {at}");
                let hint = format!("--at takes one of {}", points.join(", "));
                Err(CliError::new(ExitCode::Usage, text).hint(hint))
            }
            _ => Ok(()),
        }
    }

    fn settings(&self, environment: &Environment) -> SimSettings {
        SimSettings {
            mode: self.mode.into(),
            max_arms: self.max_arms,
            budget: self.budget.or(environment.budget).unwrap_or(f64::INFINITY),
            rounds: self.rounds,
            seeds: self.seeds,
            first_seed: self.seed,
            known_costs: self.known_prices,
        }
    }

    /// One report for each router, and the plot if one is wanted.
    fn play(
        &self,
        names: &[String],
        settings: &RouterSettings,
        global: &Global,
        printer: Printer,
    ) -> Result<Vec<SimReport>> {
        let environment = self.environment()?;
        let (global, with) = settings.split(global);
        let folders = open::plugin_folders(&open::settings(&global, Vec::new())?);
        let routers = names.iter().map(|text| router(&folders, text, &with));
        let routers = routers.collect::<Result<Vec<_>>>()?;
        let settings = self.settings(&environment);
        let rounds = self.rounds * u64::from(self.seeds) * routers.len() as u64;
        let reports = look_on(rounds, self.threads, |watch| {
            let play = |router: &RouterSource| {
                let start = || router.start();
                let report = simulate(&environment, &settings, router.label(), &start, watch);
                report.map_err(|error| play_error(&error))
            };
            routers.iter().map(play).collect::<Result<Vec<_>>>()
        })?;
        for report in &reports {
            let reason = report.fallback_reason.as_deref();
            note_fallbacks(printer, &report.router, report.fallbacks, reason);
        }
        if let Some(path) = &self.plot {
            write_plot(path, &svg(&reports))?;
        }
        Ok(reports)
    }
}

/// Writes a picture.
pub fn write_plot(path: &Utf8PathBuf, svg: &str) -> Result<()> {
    std::fs::write(path, svg).map_err(|error| {
        let text = format!("write the plot `{path}`: {error}");
        CliError::new(ExitCode::Failed, text)
    })
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
        "{}\n{}\n\n{}{}",
        report.router,
        heading(report),
        table(&header, rows),
        shocks(std::slice::from_ref(report))
    )
}

/// Rewards before and after a world's change, where it changes.
fn shocks(reports: &[SimReport]) -> String {
    let shock = |report: &SimReport| report.shock.map(|shock| (report.router.clone(), shock));
    let shocks: Vec<_> = reports.iter().filter_map(shock).collect();
    let Some((_, first)) = shocks.first() else {
        return String::new();
    };
    let optimum = reports.first().map_or(f64::NAN, |report| report.optimum);
    let optimum = vec![
        "relaxed optimum".to_owned(),
        format!("{optimum:.4}"),
        format!("{:.4}", first.optimum_after),
    ];
    let row = |(router, shock): &(String, ShockReport)| {
        vec![
            router.clone(),
            plus_minus(&shock.before, 4),
            plus_minus(&shock.after, 4),
        ]
    };
    let at = format!("reward, change after round {}", first.at);
    let header = [at.as_str(), "before>", "after>"];
    let rows = shocks.iter().map(row).chain([optimum]);
    format!("\n\n{}", table(&header, rows))
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
        "{}\n\n{}{}",
        title.unwrap_or_default(),
        table(&header, reports.iter().map(row)),
        shocks(reports)
    )
}
