//! A router against a world with known means: the protocol of ALGORITHMS 1.8.
//!
//! X ~ Bernoulli(μ), y = min(cap, c·U(0.5, 1.5)); a cascade stops at its first success. What
//! counts as reward is r(S; μ) of the chosen set with the true means, which is free of the
//! noise of the draws. All routers meet the same draws: every arm's are made in every round,
//! whether or not somebody asks for them.

use llmpick_bandit::chance::{coin, seeded, unit};
use llmpick_bandit::{Mode as Model, aic, awc, suc};
use llmpick_core::{Mode, Router};
use serde::Serialize;

use crate::chance::{WORLD, derive, for_each_seed};
use crate::drive::{Drive, Entry, Fallbacks, Known, Rules, Truth};
use crate::watch::Pace;
use crate::{Environment, Estimate, PlayError, SimArm, Watch};

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimSettings {
    /// The reward model.
    pub mode: Mode,
    /// N, at least 1.
    pub max_arms: u32,
    /// ρ in dollars per round; infinite for none.
    pub budget: f64,
    /// T.
    pub rounds: u64,
    /// How many seeds.
    pub seeds: u32,
    /// The first of them.
    pub first_seed: u64,
    /// Tells routers each arm's mean cost beforehand. The paper's protocol withholds it.
    pub known_costs: bool,
}

/// One router's curves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimReport {
    /// The router and its settings.
    pub router: String,
    /// The world.
    pub environment: String,
    /// The reward model.
    pub mode: Mode,
    /// N.
    pub max_arms: u32,
    /// ρ; `null` in JSON for none.
    pub budget: f64,
    /// Seeds averaged over.
    pub seeds: u32,
    /// The relaxed optimum that regret is measured against.
    pub optimum: f64,
    /// Decisions that the built-in fallback had to make, over all seeds: anything but 0 means
    /// that the figures are not the router's own.
    pub fallbacks: u64,
    /// Why the first of them was needed.
    pub fallback_reason: Option<String>,
    /// The figures, in the order of rounds.
    pub checkpoints: Vec<Checkpoint>,
}

/// What was measured from round 1 to round `t`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Checkpoint {
    /// The round.
    pub t: u64,
    /// Mean r(S; μ) per round.
    pub reward: Estimate,
    /// Mean cost per round.
    pub cost: Estimate,
    /// V = [mean cost − ρ]⁺.
    pub violation: Estimate,
    /// h = mean [cost − ρ]⁺: what V hides, one round's saving paying for another's excess.
    pub hinge: Estimate,
    /// Σ (r* − r(S)) over the rounds. Below 0 where rounding a set, or spending too much,
    /// earns more than the relaxed optimum.
    pub regret: Estimate,
    /// Reward over max(V, 10⁻³).
    pub reward_per_violation: f64,
    /// Reward over h; `null` in JSON where h is 0.
    pub reward_per_hinge: Option<f64>,
}

/// Plays `start`'s routers, one for each seed.
///
/// # Errors
/// When a router does not start, cannot choose or will not learn, or when `watch` was told to
/// stop.
pub fn simulate(
    environment: &Environment,
    settings: &SimSettings,
    label: &str,
    start: &(dyn Fn() -> Result<Box<dyn Router>, PlayError> + Sync),
    watch: &Watch,
) -> Result<SimReport, PlayError> {
    let points = checkpoints(settings.rounds);
    let best = optimum(environment, settings);
    let (first, seeds) = (settings.first_seed, settings.seeds);
    let runs = for_each_seed(watch.threads(), first, seeds, |seed| {
        run(environment, settings, &points, seed, start()?, watch.pace())
    })?;
    let checkpoint = |(place, &t): (usize, &u64)| {
        let of = |value: &dyn Fn(&Sums) -> f64| {
            let values = runs.iter().filter_map(|run| run.sums.get(place)).map(value);
            Estimate::of(&values.collect::<Vec<f64>>())
        };
        let rounds = t as f64;
        let reward = of(&|sums| sums.reward / rounds);
        let violation = of(&|sums| (sums.cost / rounds - settings.budget).max(0.0));
        let hinge = of(&|sums| sums.hinge / rounds);
        Checkpoint {
            t,
            reward,
            cost: of(&|sums| sums.cost / rounds),
            violation,
            hinge,
            regret: of(&|sums| best * rounds - sums.reward),
            reward_per_violation: reward.mean / violation.mean.max(1e-3),
            reward_per_hinge: (hinge.mean > 0.0).then(|| reward.mean / hinge.mean),
        }
    };
    Ok(SimReport {
        router: label.to_owned(),
        environment: environment.name.clone(),
        mode: settings.mode,
        max_arms: settings.max_arms,
        budget: settings.budget,
        seeds: settings.seeds,
        optimum: best,
        fallbacks: runs.iter().map(|run| run.fallbacks.count).sum(),
        fallback_reason: runs.iter().find_map(|run| run.fallbacks.reason.clone()),
        checkpoints: points.iter().enumerate().map(checkpoint).collect(),
    })
}

/// Where figures are taken: 100, 250, 500, 1000, doubling from there, and the last round.
pub fn checkpoints(rounds: u64) -> Vec<u64> {
    let doubling = std::iter::successors(Some(1000u64), |t| t.checked_mul(2));
    let standard = [100, 250, 500].into_iter().chain(doubling);
    let mut points: Vec<u64> = standard.take_while(|t| *t < rounds).collect();
    points.extend((rounds > 0).then_some(rounds));
    points
}

/// The relaxed optimum r* for the true means and costs: what no router that keeps the budget
/// can earn on average (any-win: where the budget row charges the whole set, as the paper's).
pub fn optimum(environment: &Environment, settings: &SimSettings) -> f64 {
    let means: Vec<f64> = environment.arms.iter().map(|arm| arm.mean).collect();
    let costs = environment
        .arms
        .iter()
        .map(|arm| environment.mean_cost(arm));
    let costs: Vec<f64> = costs.collect();
    let (n, budget) = (settings.max_arms.max(1) as usize, settings.budget);
    let dot =
        |z: &[f64], weights: &[f64]| -> f64 { z.iter().zip(weights).map(|(z, w)| z * w).sum() };
    let value = match settings.mode {
        Mode::Single => suc::solve(&means, &costs, 1, budget).map(|s| dot(&s.z, &means)),
        Mode::SumUp => suc::solve(&means, &costs, n, budget).map(|s| dot(&s.z, &means)),
        Mode::AllIn => aic::solve(&means, &costs, n, budget)
            .map(|s| libm::exp(dot(&s.z, &aic::weights(&means)))),
        Mode::AnyWin => awc::solve(&means, &costs, n, budget, awc::Method::Auto, 20)
            .map(|s| awc::value(&means, &s.z)),
    };
    // Means and costs were checked with the environment; a budget that is no number is none.
    value.unwrap_or(f64::NAN)
}

/// Running sums at one checkpoint of one seed.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    reward: f64,
    cost: f64,
    hinge: f64,
}

struct Run {
    /// One for each checkpoint.
    sums: Vec<Sums>,
    fallbacks: Fallbacks,
}

fn run(
    environment: &Environment,
    settings: &SimSettings,
    points: &[u64],
    seed: u64,
    router: Box<dyn Router>,
    mut pace: Pace<'_>,
) -> Result<Run, PlayError> {
    let arms = &environment.arms;
    let entry = |arm: &SimArm| Entry {
        id: arm.id.clone(),
        cost_max: environment.cost_bound(arm),
        known: match settings.known_costs {
            true => Known::Mean(environment.mean_cost(arm)),
            false => Known::Nothing,
        },
    };
    let entries: Vec<Entry> = arms.iter().map(entry).collect();
    let rules = Rules {
        mode: settings.mode,
        max_arms: settings.max_arms,
        budget: settings.budget,
        seed,
    };
    let mut drive = Drive::new(router, &entries, rules);
    let mut world = seeded(derive(seed, WORLD));
    let model = model(settings.mode);
    let (mut scores, mut costs) = (vec![0.0; arms.len()], vec![0.0; arms.len()]);
    let (mut sums, mut taken) = (Sums::default(), Vec::with_capacity(points.len()));
    for t in 1..=settings.rounds {
        for ((arm, score), cost) in arms.iter().zip(&mut scores).zip(&mut costs) {
            *score = f64::from(u8::from(coin(arm.mean, &mut world)));
            *cost = environment.draw_cost(arm, unit(&mut world));
        }
        let played = drive.play(&Truth {
            context: "",
            scores: &scores,
            costs: &costs,
            latencies: None,
            tokens: None,
        })?;
        pace.step()?;
        let chosen = played.choices.iter().filter_map(|&k| arms.get(k as usize));
        sums.reward += model.reward(chosen.map(|arm| arm.mean));
        sums.cost += played.paid;
        sums.hinge += (played.paid - settings.budget).max(0.0);
        if points.get(taken.len()) == Some(&t) {
            taken.push(sums);
        }
    }
    Ok(Run {
        sums: taken,
        fallbacks: drive.fallbacks,
    })
}

fn model(mode: Mode) -> Model {
    match mode {
        Mode::Single => Model::Single,
        Mode::AnyWin => Model::AnyWin,
        Mode::SumUp => Model::SumUp,
        Mode::AllIn => Model::AllIn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_end_with_the_last_round() {
        assert_eq!(checkpoints(8000), [100, 250, 500, 1000, 2000, 4000, 8000]);
        assert_eq!(checkpoints(300), [100, 250, 300]);
        assert_eq!(checkpoints(20_000).last(), Some(&20_000));
        assert_eq!(checkpoints(50), [50]);
    }
}
