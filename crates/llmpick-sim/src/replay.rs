//! A router against a table of what models really answered.
//!
//! Each shuffle of the queries is one run from nothing: the router chooses one model for each
//! query in turn, pays what that model cost and learns the score it had. One model per query;
//! cascades would need a grade of each answer before the next model runs.

use llmpick_bandit::chance::{seeded, shuffle};
use llmpick_core::{Mode, Router};
use serde::Serialize;

use crate::chance::{WORLD, derive, for_each_seed};
use crate::drive::{Drive, Entry, Fallbacks, Known, Rules, Truth};
use crate::references::{References, Share, references};
use crate::watch::Pace;
use crate::{Estimate, PlayError, Table, Watch, checkpoints};

/// What is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplaySettings {
    /// Dollars per query; infinite or NaN for none.
    pub budget: f64,
    /// How many orders of the queries.
    pub shuffles: u32,
    /// The seed of the first.
    pub first_seed: u64,
    /// Tells the router each query's context.
    pub by_context: bool,
    /// Tells the router what dispatch would: each arm's prices, where the table has them, and
    /// with them what a call should cost and can cost at most. Otherwise the most an arm costs
    /// in the table is all it is told.
    pub known_prices: bool,
}

/// One router's replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplayReport {
    /// The router and its settings.
    pub router: String,
    /// Queries in the table.
    pub rows: usize,
    /// Arms to choose from.
    pub arms: usize,
    /// Orders averaged over.
    pub shuffles: u32,
    /// Whether the router was told contexts.
    pub by_context: bool,
    /// Whether the router was told prices.
    pub known_prices: bool,
    /// Dollars per query; `null` in JSON for none.
    pub budget: f64,
    /// Mean score per query, over all of them, the first ones included.
    pub reward: Estimate,
    /// The same over the last quarter, when most is learnt.
    pub late_reward: Estimate,
    /// Mean cost per query in dollars.
    pub cost: Estimate,
    /// Mean cost over the budget; `None` without one.
    pub budget_use: Option<Estimate>,
    /// Mean latency in ms; `None`, and absent in JSON, where the table has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Estimate>,
    /// How often each arm was chosen, most often first.
    pub shares: Vec<Share>,
    /// The figures on the way.
    pub checkpoints: Vec<ReplayPoint>,
    /// Decisions that the built-in fallback had to make, over all shuffles.
    pub fallbacks: u64,
    /// Why the first of them was needed.
    pub fallback_reason: Option<String>,
    /// What to compare it with.
    #[serde(flatten)]
    pub references: References,
}

/// What was measured over the first queries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReplayPoint {
    /// How many.
    pub queries: u64,
    /// Mean score per query so far.
    pub reward: Estimate,
    /// Mean cost per query so far, in dollars.
    pub cost: Estimate,
    /// That over the budget; `None` without one.
    pub budget_use: Option<Estimate>,
}

/// Replays `start`'s routers, one for each shuffle.
///
/// # Errors
/// When a router does not start, cannot choose or will not learn, or when `watch` was told to
/// stop.
pub fn replay(
    table: &Table,
    settings: &ReplaySettings,
    label: &str,
    start: &(dyn Fn() -> Result<Box<dyn Router>, PlayError> + Sync),
    watch: &Watch,
) -> Result<ReplayReport, PlayError> {
    let (first, shuffles) = (settings.first_seed, settings.shuffles);
    let entries = entries(table, settings);
    let runs = for_each_seed(watch.threads(), first, shuffles, |seed| {
        run(table, settings, &entries, seed, start()?, watch.pace())
    })?;
    let of = |value: fn(&Run) -> f64| Estimate::of(&runs.iter().map(value).collect::<Vec<f64>>());
    let cost = of(|run| run.cost);
    let limited = settings.budget.is_finite() && settings.budget > 0.0;
    let of_budget = |cost: Estimate| {
        let per_budget = |x: f64| x / settings.budget;
        limited.then(|| Estimate {
            mean: per_budget(cost.mean),
            low: cost.low.map(per_budget),
            high: cost.high.map(per_budget),
        })
    };
    let point = |(place, &queries): (usize, &u64)| {
        let of = |value: fn(&(f64, f64)) -> f64| {
            let values = runs.iter().filter_map(|run| run.sums.get(place));
            let values = values.map(|sums| value(sums) / queries as f64);
            Estimate::of(&values.collect::<Vec<f64>>())
        };
        let cost = of(|sums| sums.1);
        ReplayPoint {
            queries,
            reward: of(|sums| sums.0),
            cost,
            budget_use: of_budget(cost),
        }
    };
    let points = checkpoints(table.rows() as u64);
    Ok(ReplayReport {
        router: label.to_owned(),
        rows: table.rows(),
        arms: table.arms().len(),
        shuffles: settings.shuffles,
        by_context: settings.by_context,
        known_prices: settings.known_prices && table.has_prices(),
        budget: settings.budget,
        reward: of(|run| run.reward),
        late_reward: of(|run| run.late_reward),
        cost,
        budget_use: of_budget(cost),
        checkpoints: points.iter().enumerate().map(point).collect(),
        latency_ms: table.has_latencies().then(|| of(|run| run.latency_ms)),
        shares: shares(table, &runs),
        fallbacks: runs.iter().map(|run| run.fallbacks.count).sum(),
        fallback_reason: runs.iter().find_map(|run| run.fallbacks.reason.clone()),
        references: references(table, settings.budget),
    })
}

/// Means over one shuffle.
struct Run {
    reward: f64,
    late_reward: f64,
    cost: f64,
    latency_ms: f64,
    /// Reward and cost up to each checkpoint.
    sums: Vec<(f64, f64)>,
    /// Of each arm.
    chosen: Vec<u64>,
    fallbacks: Fallbacks,
}

fn run(
    table: &Table,
    settings: &ReplaySettings,
    entries: &[Entry],
    seed: u64,
    router: Box<dyn Router>,
    mut pace: Pace<'_>,
) -> Result<Run, PlayError> {
    let mut order: Vec<usize> = (0..table.rows()).collect();
    shuffle(&mut order, &mut seeded(derive(seed, WORLD)));
    let rules = Rules {
        mode: Mode::Single,
        max_arms: 1,
        budget: settings.budget,
        seed,
    };
    let mut drive = Drive::new(router, entries, rules);
    let late = order.len() - order.len().div_ceil(4);
    let (mut reward, mut late_reward, mut cost, mut waited) = (0.0, 0.0, 0.0, 0.0);
    let mut chosen = vec![0; table.arms().len()];
    let (points, mut sums) = (checkpoints(table.rows() as u64), Vec::new());
    for (turn, &row) in order.iter().enumerate() {
        let (context, scores, costs) = table.row(row);
        let context = if settings.by_context { context } else { "" };
        let played = drive.play(&Truth {
            context,
            scores,
            costs,
            latencies: table.latencies(row),
            tokens: table.tokens(row).filter(|_| settings.known_prices),
        })?;
        pace.step()?;
        cost += played.paid;
        waited += played.waited_ms;
        for &choice in &played.choices {
            let score = scores.get(choice as usize).copied().unwrap_or_default();
            reward += score;
            late_reward += if turn >= late { score } else { 0.0 };
            if let Some(count) = chosen.get_mut(choice as usize) {
                *count += 1;
            }
        }
        if points.get(sums.len()) == Some(&(turn as u64 + 1)) {
            sums.push((reward, cost));
        }
    }
    let n = order.len() as f64;
    Ok(Run {
        reward: reward / n,
        late_reward: late_reward / (order.len() - late) as f64,
        cost: cost / n,
        latency_ms: waited / n,
        sums,
        chosen,
        fallbacks: drive.fallbacks,
    })
}

/// The arms, each with its dearest answer as the bound that price × limit is in life; where
/// prices are told, a bound for each query takes its place.
fn entries(table: &Table, settings: &ReplaySettings) -> Vec<Entry> {
    let entry = |(k, id): (usize, &llmpick_core::ArmId)| {
        let costs = (0..table.rows()).filter_map(|row| table.row(row).2.get(k).copied());
        Entry {
            id: id.clone(),
            cost_max: costs.fold(0.0, f64::max),
            known: match table.price(k).filter(|_| settings.known_prices) {
                Some(price) => Known::Price(price),
                None => Known::Nothing,
            },
        }
    };
    table.arms().iter().enumerate().map(entry).collect()
}

fn shares(table: &Table, runs: &[Run]) -> Vec<Share> {
    let all = (table.rows() * runs.len()) as f64;
    let share = |(k, arm): (usize, &llmpick_core::ArmId)| {
        let count: u64 = runs.iter().filter_map(|run| run.chosen.get(k)).sum();
        Share {
            arm: arm.clone(),
            share: count as f64 / all,
        }
    };
    let mut shares: Vec<Share> = table.arms().iter().enumerate().map(share).collect();
    shares.sort_by(|a, b| b.share.total_cmp(&a.share));
    shares
}
