//! `llmpick route`: why an answer came from where it came, and how the arms fare.

use clap::{Args, Subcommand};
use llmpick_core::{ContextKey, DecisionSource, RouteId};
use llmpick_daemon::ledger::{
    ArmStats, CandidateRecord, Ledger, RouteRecord, ShadowStats, StatsFilter,
};

use crate::cli::Global;
use crate::error::{CliError, ExitCode, Result};
use crate::open;
use crate::printer::{Printer, dollars, milliseconds, table};

/// Options of `route`.
#[derive(Args, Debug)]
pub struct RouteArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Explain the newest route
    Last,
    /// Explain one route
    Show {
        /// Its id, for example r17
        route: RouteId,
    },
    /// How each arm fares: pulls, score, cost, latency, share
    Stats(StatsArgs),
    /// How the second router of `router.shadow` compares with the one that serves
    Shadow,
}

#[derive(Args, Debug)]
struct StatsArgs {
    /// Only routes of this context, for example eval/arc_easy/1
    #[arg(long)]
    context: Option<String>,
    /// Only routes of this router
    #[arg(long)]
    router: Option<String>,
    /// How many of the newest routes `recent share` looks at
    #[arg(long, value_name = "N", default_value_t = 50)]
    recent: u32,
}

/// Prints what the ledger knows.
pub fn run(args: RouteArgs, global: &Global, printer: Printer) -> Result<()> {
    let settings = open::settings(global, Vec::new())?;
    let ledger = open::ledger(&settings)?;
    match args.what {
        What::Last => match ledger
            .last_route()
            .map_err(|error| open::ledger_error(&error))?
        {
            Some(route) => printer.value(&route, || explain(&route)),
            None => Err(CliError::new(ExitCode::Failed, "nothing was routed yet")
                .hint("ask something: llmpick chat \"Why is the sky blue?\"")),
        },
        What::Show { route } => {
            let record = find(&ledger, route)?;
            printer.value(&record, || explain(&record))
        }
        What::Stats(args) => stats(&ledger, args, printer),
        What::Shadow => {
            let stats = ledger
                .shadow_stats()
                .map_err(|error| open::ledger_error(&error))?;
            printer.value(&stats, || match stats.is_empty() {
                true => "no second router was asked yet; `router.shadow` names one".to_owned(),
                false => shadow_table(&stats),
            })
        }
    }
}

/// One route of the ledger.
pub fn find(ledger: &Ledger, route: RouteId) -> Result<RouteRecord> {
    let record = ledger
        .route(route)
        .map_err(|error| open::ledger_error(&error))?;
    record.ok_or_else(|| {
        CliError::new(ExitCode::Failed, format!("there is no route {route}"))
            .hint("llmpick route last shows the newest one")
    })
}

fn stats(ledger: &Ledger, args: StatsArgs, printer: Printer) -> Result<()> {
    let filter = StatsFilter {
        context: args.context.map(ContextKey),
        router: args.router,
        recent: args.recent,
        ..StatsFilter::default()
    };
    let stats = ledger
        .stats(&filter)
        .map_err(|error| open::ledger_error(&error))?;
    printer.value(&stats, || match stats.is_empty() {
        true => "nothing was routed yet".to_owned(),
        false => stats_table(&stats, args.recent),
    })
}

fn stats_table(stats: &[ArmStats], recent: u32) -> String {
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.3}"));
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let rows = stats.iter().map(|arm| {
        let bounds = match (arm.score_low, arm.score_high) {
            (Some(low), Some(high)) => format!("[{low:.3}, {high:.3}]"),
            _ => "–".to_owned(),
        };
        vec![
            arm.arm.to_string(),
            arm.pulls.to_string(),
            number(arm.mean_score),
            bounds,
            dollars(arm.mean_cost.unwrap_or(f64::NAN)),
            milliseconds(arm.mean_latency_ms.unwrap_or(f64::NAN)),
            arm.errors.to_string(),
            percent(arm.share),
            percent(arm.recent_share),
        ]
    });
    let last = format!("last {recent}>");
    let header = [
        "arm",
        "pulls>",
        "mean score>",
        "95 % bounds",
        "mean cost>",
        "latency>",
        "errors>",
        "share>",
        &last,
    ];
    table(&header, rows)
}

fn shadow_table(stats: &[ShadowStats]) -> String {
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.3}"));
    let rows = stats.iter().map(|line| {
        vec![
            line.router.clone(),
            line.asked.to_string(),
            line.decided.to_string(),
            number(line.same_first),
            line.weighed.to_string(),
            number(line.served_score),
            number(line.estimated_score),
        ]
    });
    let header = [
        "router",
        "asked>",
        "decided>",
        "same first arm>",
        "weighed>",
        "served score>",
        "its score, estimated>",
    ];
    table(&header, rows)
}

/// What a second router would have done, in a line.
fn shadow(route: &RouteRecord) -> Option<String> {
    let shadow = route.shadow.as_ref()?;
    let name = |index: &u32| {
        let candidate = route.candidates.get(*index as usize);
        candidate.map_or("?".to_owned(), |known| known.candidate.id.to_string())
    };
    Some(match &shadow.error {
        Some(error) => format!("Beside it {} did not decide: {error}", shadow.router),
        None => {
            let arms: Vec<String> = shadow.choices.iter().map(name).collect();
            let why = match shadow.reason.is_empty() {
                true => String::new(),
                false => format!(": {}", shadow.reason),
            };
            format!(
                "Beside it {} would have chosen {}{why}",
                shadow.router,
                arms.join(", ")
            )
        }
    })
}

/// A route in words and tables: the plan, what was known of each arm, what each call came to.
pub fn explain(route: &RouteRecord) -> String {
    let mut text = format!("{}  {}", route.id, plan(route));
    let mut facts = vec![format!("router {}, seed {}", route.router, route.seed)];
    if !route.context.0.is_empty() {
        facts.push(format!("context {}", route.context));
    }
    if route.limits.cost_budget.is_finite() {
        facts.push(format!(
            "budget {} a request",
            dollars(route.limits.cost_budget)
        ));
    }
    facts.push(format!(
        "prompt {}…",
        route.prompt_hash.chars().take(12).collect::<String>()
    ));
    text.push_str(&format!(
        "\n    {}\n\nWhat was known of each arm:\n",
        facts.join(", ")
    ));
    text.push_str(&candidates(route));
    if let Some(shadow) = shadow(route) {
        text.push_str(&format!("\n\n{shadow}"));
    }
    if !route.parts.is_empty() {
        text.push_str("\n\nThe parts:\n");
        text.push_str(&parts(route));
    }
    if !route.calls.is_empty() {
        text.push_str("\n\nWhat ran:\n");
        text.push_str(&calls(route));
    }
    text
}

fn plan(route: &RouteRecord) -> String {
    let Some(decision) = &route.decision else {
        return format!("{:?}, no plan was made", route.status).to_lowercase();
    };
    let name = |index: &u32| {
        let candidate = route.candidates.get(*index as usize);
        candidate.map_or("?".to_owned(), |candidate| {
            candidate.candidate.id.to_string()
        })
    };
    // Parts go to all of them at the same time, a cascade to one after the other.
    let between = if route.parts.is_empty() {
        " → "
    } else {
        ", "
    };
    let arms = decision
        .choices
        .iter()
        .map(name)
        .collect::<Vec<_>>()
        .join(between);
    let why = match &decision.source {
        DecisionSource::Router if decision.reason.is_empty() => String::new(),
        DecisionSource::Router => format!(": {}", decision.reason),
        DecisionSource::Fallback(why) => format!(": the built-in fallback chose, since {why}"),
        DecisionSource::Pinned => ": you named the model".to_owned(),
    };
    let mode = serde_json::to_value(decision.mode).ok();
    let mode = mode
        .as_ref()
        .and_then(|mode| mode.as_str())
        .unwrap_or_default()
        .to_owned();
    format!("{mode} {arms}{why}")
}

fn candidates(route: &RouteRecord) -> String {
    let optional = |value: f64| {
        if value.is_finite() {
            format!("{value:.3}")
        } else {
            "–".to_owned()
        }
    };
    let row = |record: &CandidateRecord| {
        let arm = &record.candidate;
        let state = match &record.unfit {
            Some(why) => format!("not eligible: {why}"),
            None if arm.warm => "warm".to_owned(),
            None => "cold".to_owned(),
        };
        vec![
            arm.id.to_string(),
            record
                .marginal
                .map_or("–".to_owned(), |marginal| format!("{marginal:.3}")),
            optional(arm.score),
            dollars(arm.est_cost),
            milliseconds(arm.latency_ms),
            arm.n_ok.to_string(),
            arm.n_err.to_string(),
            state,
        ]
    };
    let header = [
        "arm",
        "P(chosen)>",
        "score>",
        "est. cost>",
        "latency>",
        "ok>",
        "errors>",
        "state",
    ];
    table(&header, route.candidates.iter().map(row))
}

/// Each part with who answered it, and what all its calls came to.
fn parts(route: &RouteRecord) -> String {
    let rows = route.parts.iter().enumerate().map(|(place, part)| {
        let calls = || (route.calls.iter()).filter(|call| call.part == Some(place as u32));
        let answer = calls().find(|call| Some(call.id) == part.answered);
        let cost: f64 = calls().map(|call| call.cost.usd()).sum();
        let state = match (answer, part.accepted) {
            (None, None) => "not ended",
            (None, Some(_)) => "failed",
            (Some(_), Some(true)) => "accepted",
            (Some(_), Some(false)) => "below the threshold",
            (Some(_), None) => "answered",
        };
        vec![
            part.name.clone(),
            answer.map_or("–".to_owned(), |call| call.arm.to_string()),
            answer
                .and_then(|call| call.score)
                .map_or("–".to_owned(), |score| score.to_string()),
            dollars(cost),
            calls().count().to_string(),
            state.to_owned(),
        ]
    });
    let header = ["part", "answered by", "score>", "cost>", "calls>", "state"];
    table(&header, rows)
}

fn calls(route: &RouteRecord) -> String {
    let answers = |call| route.parts.iter().any(|part| part.answered == Some(call));
    let rows = route.calls.iter().map(|call| {
        let part = call.part.and_then(|part| route.parts.get(part as usize));
        let of = part.map_or(String::new(), |part| format!(" ({})", part.name));
        let released = if route.answered == Some(call.id) || answers(call.id) {
            "*"
        } else {
            ""
        };
        let score = match (call.user_score, call.score, &call.scorer) {
            (Some(score), ..) => format!("{score} (you)"),
            (None, Some(score), Some(scorer)) => format!("{score} ({scorer})"),
            _ => "–".to_owned(),
        };
        let outcome = match (&call.outcome, &call.error) {
            (_, Some(error)) => error.clone(),
            (Some(outcome), None) => format!("{outcome:?}").to_lowercase(),
            (None, None) => "running".to_owned(),
        };
        vec![
            format!("{}{released}{of}", call.arm),
            format!(
                "{} → {}",
                call.usage.prompt_tokens, call.usage.completion_tokens
            ),
            milliseconds(call.ttft_ms.unwrap_or(f64::NAN)),
            milliseconds(call.latency_ms.unwrap_or(f64::NAN)),
            dollars(call.cost.usd()),
            score,
            outcome,
        ]
    });
    table(
        &[
            "arm (* answered)",
            "tokens>",
            "first token>",
            "latency>",
            "cost>",
            "score",
            "outcome",
        ],
        rows,
    )
}
