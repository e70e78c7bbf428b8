//! Which arm a router that settles on one settles on, and how soon: the table of ALGORITHMS
//! 2.3 for PickLLM's learners.
//!
//! A router first meets each arm by a report without cost or grade, so that the automaton begins
//! at P = 1/K as the reference does; in use it gives an arm it never heard of an equal share of
//! the draws until it has. Each round's score is the arm's mean plus normal noise, cut to 0..=1. A seed has settled
//! when one arm has had at least 99 % of the router's choices for twenty rounds in a row (less
//! would take the turns of a warm-up for a choice), and ends then or after the last step; what
//! counts is whether the arm most likely at its end is the best one.

use llmpick_bandit::chance::{normal, seeded};
use llmpick_core::{ArmId, Mode, Router};
use serde::Serialize;

use crate::chance::{WORLD, derive, for_each_seed};
use crate::drive::{Drive, Entry, Fallbacks, Known, Rules, Truth};
use crate::watch::Pace;
use crate::{Estimate, PlayError, Watch};

/// A router has settled on an arm with this share of its choices.
const SETTLED: f64 = 0.99;

/// For so many rounds in a row.
const STEADY: u64 = 20;

/// A world of arms that only differ in their scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvergeSettings {
    /// Mean score of each arm, in 0..=1; not empty.
    pub means: Vec<f64>,
    /// Standard deviation of a score before it is cut to 0..=1.
    pub deviation: f64,
    /// Most rounds of a seed.
    pub steps: u64,
    /// How many seeds.
    pub seeds: u32,
    /// The first of them.
    pub first_seed: u64,
}

impl ConvergeSettings {
    /// The four arms of the reference figures, 300 seeds.
    pub fn reference() -> Self {
        Self {
            means: vec![0.80, 0.65, 0.55, 0.40],
            deviation: 0.15,
            steps: 20_000,
            seeds: 300,
            first_seed: 1,
        }
    }
}

/// How one router settled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConvergeReport {
    /// The router and its settings.
    pub router: String,
    /// Share of seeds that ended with the best arm.
    pub best: Estimate,
    /// Share of seeds that settled.
    pub settled: f64,
    /// Median of the steps that those took; `None` if there are none.
    pub median_steps: Option<u64>,
    /// Most rounds of a seed.
    pub steps: u64,
    /// How many seeds.
    pub seeds: u32,
    /// Decisions that the built-in fallback had to make, over all seeds.
    pub fallbacks: u64,
    /// Why the first of them was needed.
    pub fallback_reason: Option<String>,
}

/// Plays `start`'s routers, one for each seed.
///
/// # Errors
/// When a router does not start, cannot choose or will not learn, or when `watch` was told to
/// stop.
pub fn converge(
    settings: &ConvergeSettings,
    label: &str,
    start: &(dyn Fn() -> Result<Box<dyn Router>, PlayError> + Sync),
    watch: &Watch,
) -> Result<ConvergeReport, PlayError> {
    let best = largest(&settings.means);
    let (first, seeds) = (settings.first_seed, settings.seeds);
    let runs = for_each_seed(watch.threads(), first, seeds, |seed| {
        run(settings, seed, start()?, watch.pace())
    })?;
    let mut steps: Vec<u64> = runs.iter().filter_map(|run| run.settled_after).collect();
    steps.sort_unstable();
    let right = |run: &Run| f64::from(u8::from(run.arm == best));
    Ok(ConvergeReport {
        router: label.to_owned(),
        best: Estimate::of(&runs.iter().map(right).collect::<Vec<f64>>()),
        settled: steps.len() as f64 / runs.len() as f64,
        median_steps: steps.get(steps.len() / 2).copied(),
        steps: settings.steps,
        seeds,
        fallbacks: runs.iter().map(|run| run.fallbacks.count).sum(),
        fallback_reason: runs.iter().find_map(|run| run.fallbacks.reason.clone()),
    })
}

struct Run {
    arm: usize,
    settled_after: Option<u64>,
    fallbacks: Fallbacks,
}

fn run(
    settings: &ConvergeSettings,
    seed: u64,
    router: Box<dyn Router>,
    mut pace: Pace<'_>,
) -> Result<Run, PlayError> {
    let entry = |k: usize| Entry {
        id: ArmId::new(format!("arm{}", k + 1)).expect("the name is printable"),
        cost_max: 1.0,
        known: Known::Nothing,
    };
    let entries: Vec<Entry> = (0..settings.means.len()).map(entry).collect();
    let rules = Rules {
        mode: Mode::Single,
        max_arms: 1,
        budget: f64::INFINITY,
        seed,
    };
    let mut drive = Drive::new(router, &entries, rules);
    drive.introduce()?;
    let mut world = seeded(derive(seed, WORLD));
    let costs = vec![0.0; entries.len()];
    let mut scores = costs.clone();
    let (mut arm, mut since) = (0, None);
    for step in 0..settings.steps {
        for (score, mean) in scores.iter_mut().zip(&settings.means) {
            *score = (mean + settings.deviation * normal(&mut world)).clamp(0.0, 1.0);
        }
        let played = drive.play(&Truth {
            context: "",
            scores: &scores,
            costs: &costs,
            latencies: None,
            tokens: None,
        })?;
        pace.step()?;
        let before = arm;
        arm = match played.marginals.is_empty() {
            false => largest(&played.marginals),
            true => played.choices.first().map_or(0, |&k| k as usize),
        };
        let share = played.marginals.get(arm).copied().unwrap_or(0.0);
        since = match since {
            _ if share < SETTLED => None,
            Some(since) if arm == before => Some(since),
            _ => Some(step),
        };
        if let Some(since) = since.filter(|since| step + 1 - since >= STEADY) {
            return Ok(Run {
                arm,
                settled_after: Some(since),
                fallbacks: drive.fallbacks,
            });
        }
    }
    Ok(Run {
        arm,
        settled_after: None,
        fallbacks: drive.fallbacks,
    })
}

/// The first of the largest.
fn largest(values: &[f64]) -> usize {
    let places = values.iter().enumerate();
    let first = places.fold((0, f64::NEG_INFINITY), |best, (k, &value)| {
        if value > best.1 { (k, value) } else { best }
    });
    first.0
}
