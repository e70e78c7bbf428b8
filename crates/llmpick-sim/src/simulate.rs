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
    /// K.
    pub arms: usize,
    /// The relaxed optimum that regret is measured against.
    pub optimum: f64,
    /// o*, the least probability that an arm of a set is seen: 1 but for cascades.
    pub least_seen: f64,
    /// Decisions that the built-in fallback had to make, over all seeds: anything but 0 means
    /// that the figures are not the router's own.
    pub fallbacks: u64,
    /// Why the first of them was needed.
    pub fallback_reason: Option<String>,
    /// The figures, in the order of rounds.
    pub checkpoints: Vec<Checkpoint>,
    /// Before and after the world's shock; absent in JSON without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shock: Option<ShockReport>,
}

impl SimReport {
    /// The paper's bound of V after t rounds, if it is told the horizon t (ALGORITHMS 1.6).
    pub fn violation_bound(&self, t: f64) -> f64 {
        let share = (self.width() / t).sqrt();
        share * (2.0 * (2.0 * self.logarithm(t)).sqrt() + share)
    }

    /// The paper's bound of the regret after t rounds, if it is told the horizon t. L = 1 for
    /// the three reward models, and each arm of a set is seen but for a cascade's, whose last
    /// is seen when all before it fail: o*.
    pub fn regret_bound(&self, t: f64) -> f64 {
        let arms = self.arms as f64 + 1.0;
        2.0 / self.least_seen * (2.0 * self.width() * t * self.logarithm(t)).sqrt()
            + arms * self.optimum
    }

    /// N·K.
    fn width(&self) -> f64 {
        f64::from(self.max_arms) * self.arms as f64
    }

    /// ln(2π²K·t⁴/3).
    fn logarithm(&self, t: f64) -> f64 {
        let square = std::f64::consts::PI * std::f64::consts::PI;
        (2.0 * square * self.arms as f64 / 3.0).ln() + 4.0 * t.ln()
    }
}

/// What a shock did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ShockReport {
    /// The last round before it.
    pub at: u64,
    /// Mean r(S; μ) per round up to it.
    pub before: Estimate,
    /// From there to the last round.
    pub after: Estimate,
    /// The relaxed optimum from there on.
    pub optimum_after: f64,
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
    let shock = environment.shock.as_ref();
    let shock = shock.filter(|shock| shock.at < settings.rounds && shock.at > 0);
    let best_after = relaxed(environment, settings, &environment.means_at(u64::MAX));
    // What the best mix earns in the first t rounds.
    let earned = |t: u64| {
        let after = shock.map_or(0, |shock| t.saturating_sub(shock.at));
        best * (t - after) as f64 + best_after * after as f64
    };
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
            regret: of(&|sums| earned(t) - sums.reward),
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
        arms: environment.arms.len(),
        optimum: best,
        least_seen: least_seen(environment, settings),
        fallbacks: runs.iter().map(|run| run.fallbacks.count).sum(),
        fallback_reason: runs.iter().find_map(|run| run.fallbacks.reason.clone()),
        checkpoints: points.iter().enumerate().map(checkpoint).collect(),
        shock: shock.map(|shock| {
            let of = |value: &dyn Fn(&Run) -> f64| {
                Estimate::of(&runs.iter().map(value).collect::<Vec<f64>>())
            };
            let before = shock.at as f64;
            let after = settings.rounds as f64 - before;
            let whole = |run: &Run| run.sums.last().map_or(f64::NAN, |sums| sums.reward);
            ShockReport {
                at: shock.at,
                before: of(&|run| run.before_shock / before),
                after: of(&|run| (whole(run) - run.before_shock) / after),
                optimum_after: best_after,
            }
        }),
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

/// The relaxed optimum r* for the true means (before a shock) and costs: what no router that keeps the budget
/// can earn on average (any-win: where the budget row charges the whole set, as the paper's).
pub fn optimum(environment: &Environment, settings: &SimSettings) -> f64 {
    relaxed(environment, settings, &environment.means_at(1))
}

fn relaxed(environment: &Environment, settings: &SimSettings, means: &[f64]) -> f64 {
    let costs = environment
        .arms
        .iter()
        .map(|arm| environment.mean_cost(arm));
    let costs: Vec<f64> = costs.collect();
    let (n, budget) = (settings.max_arms.max(1) as usize, settings.budget);
    let dot =
        |z: &[f64], weights: &[f64]| -> f64 { z.iter().zip(weights).map(|(z, w)| z * w).sum() };
    let value = match settings.mode {
        Mode::Single => suc::solve(means, &costs, 1, budget).map(|s| dot(&s.z, means)),
        Mode::SumUp => suc::solve(means, &costs, n, budget).map(|s| dot(&s.z, means)),
        Mode::AllIn => {
            aic::solve(means, &costs, n, budget).map(|s| libm::exp(dot(&s.z, &aic::weights(means))))
        }
        Mode::AnyWin => awc::solve(means, &costs, n, budget, awc::Method::Auto, 20)
            .map(|s| awc::value(means, &s.z)),
    };
    // Means and costs were checked with the environment; a budget that is no number is none.
    value.unwrap_or(f64::NAN)
}

/// The last arm of a cascade runs when the N−1 before it fail; the best ones fail least.
fn least_seen(environment: &Environment, settings: &SimSettings) -> f64 {
    if settings.mode != Mode::AnyWin {
        return 1.0;
    }
    let mut misses: Vec<f64> = environment.arms.iter().map(|arm| 1.0 - arm.mean).collect();
    misses.sort_by(f64::total_cmp);
    let before = (settings.max_arms.max(1) as usize).min(misses.len()) - 1;
    misses.iter().take(before).product()
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
    /// Reward up to the shock.
    before_shock: f64,
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
    let (mut means, mut before_shock) = (environment.means_at(1), 0.0);
    let shock_at = environment.shock.as_ref().map(|shock| shock.at);
    for t in 1..=settings.rounds {
        if shock_at.is_some_and(|at| t == at + 1) {
            before_shock = sums.reward;
            means = environment.means_at(t);
        }
        let draws = scores.iter_mut().zip(&mut costs);
        for ((arm, mean), (score, cost)) in arms.iter().zip(&means).zip(draws) {
            *score = f64::from(u8::from(coin(*mean, &mut world)));
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
        let chosen = played.choices.iter();
        let chosen = chosen.filter_map(|&k| means.get(k as usize));
        sums.reward += model.reward(chosen.copied());
        sums.cost += played.paid;
        sums.hinge += (played.paid - settings.budget).max(0.0);
        if points.get(taken.len()) == Some(&t) {
            taken.push(sums);
        }
    }
    Ok(Run {
        sums: taken,
        before_shock,
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
