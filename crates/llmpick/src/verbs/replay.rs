//! `llmpick replay`: a router over a table of what many models answered to the same queries.

use std::num::NonZeroUsize;

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use llmpick_daemon::Settings;
use llmpick_daemon::ledger::Ledger;
use llmpick_sim::{
    Costs, Estimate, Figure, LeftOut, Log, LogReport, LogSettings, Mix, ReplayReport,
    ReplaySettings, RouterSource, Share, Table, TableErrorKind, TableFiles, replay, replay_svg,
};

use super::sim::{
    RouterSettings, look_on, note_fallbacks, parse_budget, parse_share, play_error, plus_minus,
    router, write_plot,
};
use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, dollars, milliseconds, table};

/// Options of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// A table of scores, or a folder with correct.csv or scores.csv (and costs.csv,
    /// latencies.csv, contexts.csv where there are such)
    #[arg(
        value_name = "PATH",
        conflicts_with_all = ["scores", "ledger"],
        required_unless_present_any = ["scores", "ledger"]
    )]
    path: Option<Utf8PathBuf>,
    /// CSV: the query's id, then a column of scores (0 to 1, blank for none) for each model
    #[arg(long, value_name = "FILE")]
    scores: Option<Utf8PathBuf>,
    /// Judge routers that never ran by what a ledger holds; without a file, your own. Each is
    /// taken through the requests in order and learns from all feedback there was by then, as
    /// a shadow would; what it would have earned is estimated from the logged probabilities
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["scores", "costs", "recipe", "latencies", "contexts", "budgets"])]
    ledger: Option<Option<Utf8PathBuf>>,
    /// With --ledger: let routers learn from the first such share of the requests, and judge
    /// them, frozen, on the others
    #[arg(long, value_name = "SHARE", requires = "ledger", value_parser = parse_share)]
    learn_first: Option<f64>,
    /// CSV of the same shape: what each answer cost, in dollars
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    costs: Option<Utf8PathBuf>,
    /// Compute costs and contexts from the files beside the scores; without it, that is done
    /// where those files are there and no costs are named
    #[arg(long, value_enum)]
    recipe: Option<Recipe>,
    /// CSV of the same shape: how long each answer took, in ms. Without it every answer takes
    /// one second for routers that look at latency
    #[arg(long, value_name = "FILE")]
    latencies: Option<Utf8PathBuf>,
    /// CSV with the query's id and its context
    #[arg(long, value_name = "FILE")]
    contexts: Option<Utf8PathBuf>,
    /// Tell the router each query's context (the default where contexts are known)
    #[arg(long, overrides_with = "no_context")]
    by_context: bool,
    /// Do not tell the router contexts
    #[arg(long)]
    no_context: bool,
    /// Tell the router prices, as dispatch does (the default where the recipe knows them)
    #[arg(long, overrides_with = "unknown_prices")]
    known_prices: bool,
    /// Tell the router only the most that each model costs, and let it find out the rest
    #[arg(long)]
    unknown_prices: bool,
    /// Leave out models that answered less than this share of the queries
    #[arg(long, value_name = "SHARE", default_value_t = 0.99, value_parser = parse_share)]
    min_answered: f64,
    /// A router plugin: LIBRARY[:PLUGIN][,KEY=VALUE]...; repeat to compare
    #[arg(long = "router", value_name = "PLUGIN", default_value = "c2mabv")]
    routers: Vec<String>,
    #[command(flatten)]
    settings: RouterSettings,
    /// Dollars per query, or `none`; several with commas. Without it none, but for the recipe
    /// 1e-4,3e-4,none
    #[arg(long = "budget", value_name = "RHO", value_delimiter = ',', value_parser = parse_budget, allow_negative_numbers = true)]
    budgets: Vec<f64>,
    /// Draw reward and use of the budget against queries into this file; of several budgets
    /// the first
    #[arg(long, value_name = "FILE.svg", conflicts_with = "ledger")]
    plot: Option<Utf8PathBuf>,
    /// How many orders of the queries
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    shuffles: u32,
    /// The seed of the first order; the others follow it
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Threads to play on; without it one for each core. It changes no figure
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// What `mmlu-pro-replay` is usually asked for.
const RECIPE_BUDGETS: [f64; 3] = [1e-4, 3e-4, f64::INFINITY];

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Recipe {
    /// output_chars.csv, questions_meta.csv and models.csv: characters / 4 × price
    MmluPro,
}

/// Replays and prints; with `--json` an object for one router under one budget, an array for
/// more.
pub fn run(args: ReplayArgs, global: &Global, printer: Printer) -> Result<()> {
    let (global, with) = args.settings.split(global);
    let settings = open::settings(&global, Vec::new())?;
    let folders = open::plugin_folders(&settings);
    let routers = args
        .routers
        .iter()
        .map(|text| router(&folders, text, &with));
    let routers = routers.collect::<Result<Vec<_>>>()?;
    if let Some(file) = &args.ledger {
        return judge(&args, file.as_ref(), &routers, &settings, printer);
    }
    let files = args.files();
    let queries = args.read(&files, printer)?;
    let settings = args.settings_for(&files, &queries);
    let plays = (settings.len() * routers.len()) as u64;
    let rounds = plays * queries.rows() as u64 * u64::from(args.shuffles);
    let reports = look_on(rounds, args.threads, |watch| {
        let pairs = settings
            .iter()
            .flat_map(|s| routers.iter().map(move |r| (s, r)));
        let play = |(settings, router): (&ReplaySettings, &RouterSource)| {
            let start = || router.start();
            let report = replay(&queries, settings, router.label(), &start, watch);
            report.map_err(|error| play_error(&error))
        };
        pairs.map(play).collect::<Result<Vec<_>>>()
    })?;
    for report in &reports {
        let reason = report.fallback_reason.as_deref();
        note_fallbacks(printer, &report.router, report.fallbacks, reason);
    }
    if let (Some(path), Some(first)) = (&args.plot, reports.chunks(routers.len()).next()) {
        write_plot(path, &replay_svg(first))?;
    }
    match &reports[..] {
        [report] => printer.value(report, || text(&reports, routers.len())),
        _ => printer.value(&reports, || text(&reports, routers.len())),
    }
}

/// Judges routers by a ledger and prints.
fn judge(
    args: &ReplayArgs,
    file: Option<&Utf8PathBuf>,
    routers: &[RouterSource],
    settings: &Settings,
    printer: Printer,
) -> Result<()> {
    let ledger = match file {
        // Opening would create it.
        Some(file) if !file.is_file() => {
            let text = format!("there is no ledger `{file}`");
            return Err(CliError::new(ExitCode::Usage, text));
        }
        Some(file) => Ledger::open(file).map_err(|error| open::ledger_error(&error))?,
        None => open::ledger(settings)?,
    };
    let log = Log::read(&ledger).map_err(|error| open::ledger_error(&error))?;
    if log.is_empty() {
        let text = format!("the ledger `{}` holds no requests yet", ledger.path());
        return Err(CliError::new(ExitCode::Failed, text));
    }
    let settings = LogSettings {
        seed: args.seed,
        learn_first: args.learn_first,
    };
    let rounds = (log.len() * routers.len()) as u64;
    let reports = look_on(rounds, args.threads, |watch| {
        let judge = |source: &RouterSource| {
            let router = source.start().map_err(|error| play_error(&error))?;
            let report = log.judge(router, source.label(), &settings, watch);
            report.map_err(|error| play_error(&error))
        };
        routers.iter().map(judge).collect::<Result<Vec<_>>>()
    })?;
    for report in &reports {
        let reason = report.fallback_reason.as_deref();
        note_fallbacks(printer, &report.router, report.fallbacks, reason);
        if let Some(warning) = &report.warning {
            printer.note(&format!("{}: {warning}", report.router));
        }
    }
    match &reports[..] {
        [report] => printer.value(report, || ledger_text(&reports)),
        _ => printer.value(&reports, || ledger_text(&reports)),
    }
}

fn ledger_text(reports: &[LogReport]) -> String {
    let Some(first) = reports.first() else {
        return String::new();
    };
    let LeftOut {
        without_propensity,
        ungraded,
        unfinished,
    } = first.left_out;
    let heading = format!(
        "{} requests, {} judged; left out: {without_propensity} chosen without known \
         probabilities, {ungraded} without a grade, {unfinished} without an answer",
        first.routes, first.judged
    );
    let money = |estimate: &Estimate| match estimate.half_width() {
        Some(half) => format!("{} ±{}", dollars(estimate.mean), dollars(half)),
        None => dollars(estimate.mean),
    };
    let header = ["", "estimate", "reward>", "cost>", "in effect>", "untried>"];
    let mut rows = vec![vec![
        "as it was decided".to_owned(),
        "mean".to_owned(),
        plus_minus(&first.logged_reward, 4),
        money(&first.logged_cost),
    ]];
    for report in reports {
        let (reward, cost) = (&report.judgement.reward, &report.judgement.cost);
        let mut estimates = vec![
            ("doubly robust", &reward.dr, &cost.dr),
            ("self-normalised", &reward.snips, &cost.snips),
            ("inverse propensity", &reward.ips, &cost.ips),
        ]
        .into_iter()
        .map(|(name, reward, cost)| {
            vec![
                String::new(),
                name.to_owned(),
                plus_minus(reward, 4),
                money(cost),
            ]
        });
        if let Some(mut row) = estimates.next() {
            row[0].clone_from(&report.router);
            row.push(format!("{:.0}", report.judgement.effective));
            row.push(format!("{:.1} %", 100.0 * report.untried));
            rows.push(row);
        }
        rows.extend(estimates);
    }
    format!("{heading}\n\n{}", table(&header, rows))
}

impl ReplayArgs {
    /// What is named, and what lies around it.
    fn files(&self) -> TableFiles {
        let path = self.path.clone().or(self.scores.clone());
        let mut files = TableFiles::around(&path.unwrap_or_default());
        match (&self.costs, self.recipe) {
            (Some(path), _) => files.costs = Costs::File(path.clone()),
            (None, Some(Recipe::MmluPro)) => files.costs = Costs::MmluPro,
            (None, None) => {}
        }
        files.contexts = self.contexts.clone().or(files.contexts);
        files.latencies = self.latencies.clone().or(files.latencies);
        files.min_answered = self.min_answered;
        files
    }

    fn read(&self, files: &TableFiles, printer: Printer) -> Result<Table> {
        let found = Table::read(files).map_err(|error| {
            let code = match error.kind {
                TableErrorKind::Read(_) => ExitCode::Usage,
                _ => ExitCode::Failed,
            };
            CliError::new(code, chain(&error))
        })?;
        let refuse = |text: &str, hint: &str| Err(CliError::new(ExitCode::Usage, text).hint(hint));
        if self.budgets.iter().any(|budget| budget.is_finite()) && !found.has_costs() {
            return refuse(
                "a budget needs costs",
                "give --costs FILE, or put the files of a recipe beside the scores",
            );
        }
        if self.by_context && !found.has_contexts() {
            return refuse("no query has a context", "give --contexts FILE");
        }
        if self.known_prices && !found.has_prices() {
            return refuse(
                "this table has costs without prices",
                "prices come with --recipe mmlu-pro",
            );
        }
        self.note(files, &found, printer);
        Ok(found)
    }

    /// Says what was taken as it was found, and what was left out.
    fn note(&self, files: &TableFiles, found: &Table, printer: Printer) {
        let mut taken = Vec::new();
        match &files.costs {
            Costs::MmluPro if self.recipe.is_none() => {
                taken.push("costs by the recipe mmlu-pro".to_owned());
            }
            Costs::File(path) if self.costs.is_none() => taken.push(format!("costs from {path}")),
            _ => {}
        }
        if found.has_prices() {
            taken.push(match self.unknown_prices {
                true => "prices not told to routers".to_owned(),
                false => "prices told to routers (--unknown-prices withholds them)".to_owned(),
            });
        }
        if found.has_contexts() {
            taken.push(match self.no_context {
                true => "contexts not told to routers".to_owned(),
                false => "contexts told to routers (--no-context withholds them)".to_owned(),
            });
        }
        if !found.has_latencies() {
            taken.push("no latencies: each answer takes a second".to_owned());
        }
        printer.note(&format!("{}: {}", files.scores, taken.join("; ")));
        for (model, answered) in &found.left_out_arms {
            printer.note(&format!(
                "{model} is left out: it answered {answered} queries only"
            ));
        }
        if found.left_out_rows > 0 {
            let rows = found.left_out_rows;
            printer.note(&format!("{rows} incomplete queries are left out"));
        }
    }

    /// One for each budget.
    fn settings_for(&self, files: &TableFiles, table: &Table) -> Vec<ReplaySettings> {
        let budgets = match &self.budgets[..] {
            [] if files.costs == Costs::MmluPro => &RECIPE_BUDGETS[..],
            [] => &[f64::INFINITY],
            named => named,
        };
        let settings = |&budget: &f64| ReplaySettings {
            budget,
            shuffles: self.shuffles,
            first_seed: self.seed,
            by_context: !self.no_context && table.has_contexts(),
            known_prices: !self.unknown_prices && table.has_prices(),
        };
        budgets.iter().map(settings).collect()
    }
}

/// One table for each budget; each has so many routers.
fn text(reports: &[ReplayReport], routers: usize) -> String {
    let Some(first) = reports.first() else {
        return String::new();
    };
    let told = |told, what| format!("{what} {}told", if told { "" } else { "not " });
    let mut out = format!(
        "{} queries, {} models, {} shuffles, {}, {}\n",
        first.rows,
        first.arms,
        first.shuffles,
        told(first.by_context, "contexts"),
        told(first.known_prices, "prices")
    );
    for reports in reports.chunks(routers.max(1)) {
        out.push('\n');
        out.push_str(&budget_table(reports));
        out.push('\n');
    }
    out
}

fn budget_table(reports: &[ReplayReport]) -> String {
    let Some(first) = reports.first() else {
        return String::new();
    };
    let budget = match first.budget {
        budget if budget.is_finite() => format!("budget {} per query", dollars(budget)),
        _ => "no budget".to_owned(),
    };
    let mut header = vec![
        budget.as_str(),
        "reward>",
        "last quarter>",
        "cost>",
        "use of budget>",
    ];
    if first.latency_ms.is_some() {
        header.push("latency>");
    }
    header.push("chosen");
    let rows = reports.iter().map(router_row).chain(reference_rows(first));
    table(&header, rows)
}

fn router_row(report: &ReplayReport) -> Vec<String> {
    let budget_use = report
        .budget_use
        .as_ref()
        .map_or("–".to_owned(), |part| plus_minus(part, 3));
    let mut row = vec![
        report.router.clone(),
        plus_minus(&report.reward, 4),
        plus_minus(&report.late_reward, 4),
        dollars(report.cost.mean),
        budget_use,
    ];
    row.extend(report.latency_ms.map(|part| milliseconds(part.mean)));
    row.push(shares(&report.shares));
    row
}

fn reference_rows(report: &ReplayReport) -> Vec<Vec<String>> {
    let row = |name: &str, figure: &Figure, chosen: String| {
        let budget_use = match report.budget {
            budget if budget.is_finite() && budget > 0.0 => format!("{:.3}", figure.cost / budget),
            _ => "–".to_owned(),
        };
        let mut row = vec![
            name.to_owned(),
            format!("{:.4}", figure.reward),
            String::new(),
            dollars(figure.cost),
            budget_use,
        ];
        row.extend(report.latency_ms.map(|_| String::new()));
        row.push(chosen);
        row
    };
    let found = &report.references;
    let Mix {
        arms,
        figure,
        feasible,
    } = &found.static_mix;
    let mix = if *feasible {
        shares(arms)
    } else {
        format!("{} (over the budget)", shares(arms))
    };
    let mut rows = vec![
        row("any model, equally likely", &found.random, String::new()),
        row("best static mix in budget", figure, mix),
        row(
            "best single model",
            &found.best_single.figure,
            found.best_single.arm.to_string(),
        ),
    ];
    if let Some(figure) = &found.best_per_context {
        rows.push(row("best model of each context", figure, String::new()));
    }
    rows.push(row("oracle", &found.oracle, String::new()));
    rows
}

/// The three most frequent arms.
fn shares(shares: &[Share]) -> String {
    let mut named: Vec<&Share> = shares.iter().filter(|share| share.share > 0.0).collect();
    named.sort_by(|a, b| b.share.total_cmp(&a.share));
    let text = |share: &&Share| format!("{} {:.0} %", share.arm, 100.0 * share.share);
    named
        .iter()
        .take(3)
        .map(text)
        .collect::<Vec<_>>()
        .join(", ")
}
