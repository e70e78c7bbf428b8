//! `llmpick replay`: a router over a table of what many models answered to the same queries.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use llmpick_sim::{
    Costs, Figure, Mix, ReplayReport, ReplaySettings, Share, Table, TableErrorKind, TableFiles,
    replay,
};

use super::sim::{note_fallbacks, parse_budget, play_error, plus_minus, router};
use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result, chain};
use crate::open;
use crate::printer::{Printer, dollars, table};

/// Options of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// CSV: the query's id, then a column of scores (0 to 1, blank for none) for each model
    #[arg(long, value_name = "FILE")]
    scores: Utf8PathBuf,
    /// CSV of the same shape: what each answer cost, in dollars
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    costs: Option<Utf8PathBuf>,
    /// Compute costs and contexts from the files beside the scores
    #[arg(long, value_enum)]
    recipe: Option<Recipe>,
    /// CSV with the query's id and its context
    #[arg(long, value_name = "FILE")]
    contexts: Option<Utf8PathBuf>,
    /// Tell the router each query's context
    #[arg(long)]
    by_context: bool,
    /// Leave out models that answered less than this share of the queries
    #[arg(long, value_name = "SHARE", default_value_t = 0.99, value_parser = parse_share)]
    min_answered: f64,
    /// A router plugin: LIBRARY[:PLUGIN][,KEY=VALUE]...; repeat to compare
    #[arg(long = "router", value_name = "PLUGIN", default_value = "c2mabv")]
    routers: Vec<String>,
    /// A setting of every router named (--set is for llmpick's); repeat for more
    #[arg(long = "with", value_name = "KEY=VALUE")]
    with: Vec<String>,
    /// Dollars per query, or `none`
    #[arg(long, value_name = "RHO", default_value = "none", value_parser = parse_budget, allow_negative_numbers = true)]
    budget: f64,
    /// How many orders of the queries
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    shuffles: u32,
    /// The seed of the first order; the others follow it
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Recipe {
    /// output_chars.csv, questions_meta.csv and models.csv: characters / 4 × price
    MmluPro,
}

fn parse_share(text: &str) -> std::result::Result<f64, String> {
    let share = text
        .parse::<f64>()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a number from 0 to 1 was expected".to_owned())
}

/// Replays and prints; with `--json` an object for one router, an array for several.
pub fn run(args: ReplayArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let folders = open::plugin_folders(&settings);
    let routers = args
        .routers
        .iter()
        .map(|text| router(&folders, text, &args.with));
    let routers = routers.collect::<Result<Vec<_>>>()?;
    let queries = args.read(printer)?;
    let settings = ReplaySettings {
        budget: args.budget,
        shuffles: args.shuffles,
        first_seed: args.seed,
        by_context: args.by_context,
    };
    let mut reports = Vec::new();
    for router in &routers {
        let report = replay(&queries, &settings, router.label(), &|| router.start());
        let report = report.map_err(|error| play_error(&error))?;
        let reason = report.fallback_reason.as_deref();
        note_fallbacks(printer, &report.router, report.fallbacks, reason);
        reports.push(report);
    }
    match &reports[..] {
        [report] => printer.value(report, || text(&reports)),
        _ => printer.value(&reports, || text(&reports)),
    }
}

impl ReplayArgs {
    fn read(&self, printer: Printer) -> Result<Table> {
        let costs = match (&self.costs, self.recipe) {
            (Some(path), _) => Costs::File(path.clone()),
            (None, Some(Recipe::MmluPro)) => Costs::MmluPro,
            (None, None) => Costs::Unknown,
        };
        let files = TableFiles {
            scores: self.scores.clone(),
            costs,
            contexts: self.contexts.clone(),
            min_answered: self.min_answered,
        };
        let found = Table::read(&files).map_err(|error| {
            let code = match error.kind {
                TableErrorKind::Read(_) => ExitCode::Usage,
                _ => ExitCode::Failed,
            };
            CliError::new(code, chain(&error))
        })?;
        let refuse = |text: &str, hint: &str| Err(CliError::new(ExitCode::Usage, text).hint(hint));
        if self.budget.is_finite() && !found.has_costs() {
            return refuse(
                "a budget needs costs",
                "give --costs FILE or --recipe mmlu-pro",
            );
        }
        if self.by_context && !found.has_contexts() {
            return refuse("no query has a context", "give --contexts FILE");
        }
        for (model, answered) in &found.left_out_arms {
            printer.note(&format!(
                "{model} is left out: it answered {answered} queries only"
            ));
        }
        if found.left_out_rows > 0 {
            printer.note(&format!(
                "{} incomplete queries are left out",
                found.left_out_rows
            ));
        }
        Ok(found)
    }
}

fn text(reports: &[ReplayReport]) -> String {
    let Some(first) = reports.first() else {
        return String::new();
    };
    let budget = match first.budget {
        budget if budget.is_finite() => format!("budget {} per query", dollars(budget)),
        _ => "no budget".to_owned(),
    };
    let told = if first.by_context { "told" } else { "not told" };
    let heading = format!(
        "{} queries, {} models, {} shuffles, {budget}, contexts {told}",
        first.rows, first.arms, first.shuffles
    );
    let header = [
        "",
        "reward>",
        "last quarter>",
        "cost>",
        "use of budget>",
        "chosen",
    ];
    let rows = reports.iter().map(router_row).chain(reference_rows(first));
    format!("{heading}\n\n{}", table(&header, rows))
}

fn router_row(report: &ReplayReport) -> Vec<String> {
    let budget_use = report
        .budget_use
        .as_ref()
        .map_or("–".to_owned(), |part| plus_minus(part, 3));
    vec![
        report.router.clone(),
        plus_minus(&report.reward, 4),
        plus_minus(&report.late_reward, 4),
        dollars(report.cost.mean),
        budget_use,
        shares(&report.shares),
    ]
}

fn reference_rows(report: &ReplayReport) -> Vec<Vec<String>> {
    let row = |name: &str, figure: &Figure, chosen: String| {
        let budget_use = match report.budget {
            budget if budget.is_finite() && budget > 0.0 => format!("{:.3}", figure.cost / budget),
            _ => "–".to_owned(),
        };
        vec![
            name.to_owned(),
            format!("{:.4}", figure.reward),
            String::new(),
            dollars(figure.cost),
            budget_use,
            chosen,
        ]
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
