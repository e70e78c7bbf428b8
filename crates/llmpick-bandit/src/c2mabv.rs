//! C2MAB-V: which set of arms, under a long-term budget, for any-win, sum-up and all-in.
//!
//! One round (paper, section 4): optimistic rewards and lower costs → the relaxed problem of
//! the mode → marginals z̃ → dependent rounding → a set. Only z̃ would have to leave the
//! machine, see [`C2mabv::marginals`]. Feedback updates exactly the arms that ran.

use rand::RngCore;

use crate::cascade::{self, Order};
use crate::chance::shuffle;
use crate::lp::{LpError, Solution};
use crate::rounding;
use crate::stats::{self, ArmStats, Delta, Table, TableConfig};
use crate::{
    ArmView, Choice, ConfigError, Learner, Mode, NoArm, Observation, Question, UnsoundState, aic,
    awc, direct, suc, ties,
};

/// b_k, by which an arm's cost radius is multiplied. Prices differ by a factor of 500, and one
/// scale for all drowns the cheap arms in the radius of the dear ones (ALGORITHMS 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum CostScale {
    /// The arm's upper bound of a call, or the largest cost seen where there is none.
    #[default]
    Own,
    /// The largest cost seen, always: tighter where answers are far shorter than allowed.
    Seen,
    /// One number for all arms: the paper's figures, with 1.
    Fixed(f64),
}

/// Relax and round, or take the best whole set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Relaxation {
    /// The paper's: solve the relaxed problem, then round.
    #[default]
    Relaxed,
    /// The best integral set, by enumeration, for at most [`direct::MAX_ARMS`] arms; more are
    /// relaxed, and the reason says so.
    Direct,
}

/// Settings of the learner.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct C2mabvConfig {
    /// α_μ ≥ 0, the share of the radius added to a mean reward.
    pub alpha_reward: f64,
    /// α_c ≥ 0, the share of the radius taken from a mean cost.
    pub alpha_cost: f64,
    /// δ of the radius.
    pub delta: Delta,
    /// Forgetting and contexts.
    pub table: TableConfig,
    /// b_k of the cost radius.
    pub cost_scale: CostScale,
    /// How the any-win relaxation is solved.
    pub awc: awc::Method,
    /// M, the steps of continuous greedy, at least 1.
    pub greedy_steps: u32,
    /// Relax or enumerate sets.
    pub relaxation: Relaxation,
    /// The order of a cascade.
    pub order: Order,
}

impl Default for C2mabvConfig {
    /// The paper's best pair on real data, (0.3, 0.05), horizon-free.
    fn default() -> Self {
        Self {
            alpha_reward: 0.3,
            alpha_cost: 0.05,
            delta: Delta::Anytime,
            table: TableConfig::default(),
            cost_scale: CostScale::Own,
            awc: awc::Method::Auto,
            greedy_steps: 10,
            relaxation: Relaxation::Relaxed,
            order: Order::Ratio,
        }
    }
}

impl C2mabvConfig {
    /// Refuses settings outside their ranges, with a sentence.
    pub fn check(self) -> Result<Self, ConfigError> {
        let width = "a number from 0 to 100";
        ConfigError::check("alpha_mu", self.alpha_reward, 0.0..=100.0, width)?;
        ConfigError::check("alpha_c", self.alpha_cost, 0.0..=100.0, width)?;
        if let CostScale::Fixed(scale) = self.cost_scale {
            ConfigError::check("cost_scale", scale, 0.0..=1e9, "a number from 0 to 1e9")?;
        }
        ConfigError::check(
            "greedy_steps",
            f64::from(self.greedy_steps),
            1.0..=1000.0,
            "a whole number from 1 to 1000",
        )?;
        self.delta.check()?;
        self.table.check()?;
        Ok(self)
    }
}

/// What has been learnt.
pub type State = Table;

/// The learner.
#[derive(Clone, Debug, PartialEq)]
pub struct C2mabv {
    config: C2mabvConfig,
    state: State,
}

/// z̃ of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Marginals {
    /// P(arm is chosen) for each arm of the question; 0 for those that may not be.
    pub z: Vec<f64>,
    /// False where even the cheapest set passes the budget.
    pub feasible: bool,
    /// Why, for people.
    pub reason: String,
}

impl C2mabv {
    /// A learner that knows nothing yet.
    pub fn new(config: C2mabvConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            config: config.check()?,
            state: State::default(),
        })
    }

    /// All that was learnt.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Goes on from what was learnt before; on an error nothing has changed.
    pub fn restore(&mut self, state: State) -> Result<(), UnsoundState> {
        self.state = state.check()?;
        Ok(())
    }

    /// The local half of a round: z̃ alone, for a host or a remote scheduler that draws the set
    /// with [`rounding::round`]. Nothing in it tells of a prompt or of feedback.
    pub fn marginals(
        &self,
        question: &Question<'_>,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Marginals, NoArm> {
        let round = self.solve(question, rng)?;
        let best = round.marginals.iter().enumerate();
        let likeliest = best.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        Ok(Marginals {
            z: round.spread(question.arms.len()),
            feasible: round.solution.feasible,
            reason: self.reason(question, &round, likeliest),
        })
    }

    /// Estimates, bounds, relaxation, for the eligible arms in shuffled order.
    fn solve(
        &self,
        question: &Question<'_>,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Round, NoArm> {
        let mut arms = question.eligible()?;
        // Ties go to the first arm of the solvers, so the order must be nobody's privilege.
        shuffle(&mut arms, rng);
        let n = question.size(arms.len());
        let unlimited = question.budget.is_nan() || question.budget == f64::INFINITY;
        let budget = if unlimited {
            f64::INFINITY
        } else {
            question.budget
        };
        let bounds: Vec<Bounds> = arms
            .iter()
            .map(|&k| self.bounds(&question.arms[k], question))
            .collect();
        let clamp = if question.mode == Mode::AnyWin && n > 1 {
            awc::MAX_MEAN
        } else {
            1.0
        };
        let means: Vec<f64> = bounds.iter().map(|b| b.reward.min(clamp)).collect();
        // Without a budget cost is no criterion, and the noise in its measurement must not
        // become one by way of the ties.
        let costs: Vec<f64> = bounds
            .iter()
            .map(|b| if unlimited { 0.0 } else { b.cost })
            .collect();
        let (mut solution, relaxed_after_all) =
            self.programme(question.mode, &means, &costs, n, budget);
        complete(&mut solution.z, &means, &costs);
        let marginals = ties::share(&solution.z, &means, &costs);
        Ok(Round {
            arms,
            bounds,
            means,
            costs,
            solution,
            marginals,
            relaxed_after_all,
        })
    }

    /// The relaxed (or direct) problem of the mode; the flag tells that direct was asked for
    /// and too large.
    fn programme(
        &self,
        mode: Mode,
        means: &[f64],
        costs: &[f64],
        n: usize,
        budget: f64,
    ) -> (Solution, bool) {
        let direct = self.config.relaxation == Relaxation::Direct;
        let too_many = means.len() > direct::MAX_ARMS;
        let solved = if direct && !too_many {
            direct::solve(mode, means, costs, n, budget)
        } else {
            match mode {
                // One arm that must answer is sum-up with N = 1.
                Mode::Single | Mode::SumUp => suc::solve(means, costs, n, budget),
                Mode::AnyWin if n == 1 => suc::solve(means, costs, n, budget),
                Mode::AllIn => aic::solve(means, costs, n, budget),
                Mode::AnyWin => {
                    let (method, steps) = (self.config.awc, self.config.greedy_steps);
                    awc::solve(means, costs, n, budget, method, steps)
                }
            }
        };
        // The bounds are finite by construction and the costs not negative. Should that ever
        // fail, an empty solution is completed with the cheapest arm below: it still answers.
        let solution = solved.unwrap_or_else(|_: LpError| Solution {
            z: vec![0.0; means.len()],
            feasible: false,
        });
        (solution, direct && too_many)
    }

    /// μ̄ and c̲ of one arm.
    fn bounds(&self, arm: &ArmView<'_>, question: &Question<'_>) -> Bounds {
        let config = &self.config;
        let stats = self.state.arm(arm.id, question.context, &config.table);
        let t = self.state.round(&config.table);
        let delta = config.delta.at(t);
        // 0 × ∞ of an arm never pulled would be NaN; the bounds do not use the width then.
        let width = |alpha: f64, count: f64| match alpha
            * stats::radius(count, question.arms.len(), t, delta)
        {
            width if width.is_finite() => width,
            _ => 0.0,
        };
        let reward_width = width(config.alpha_reward, stats.reward.count);
        let cost_width = width(config.alpha_cost, stats.cost.count) * self.scale(arm, &stats);
        Bounds {
            reward: stats::optimistic_reward(stats.reward.mean(), reward_width),
            cost: stats::lower_cost(stats.cost.mean(), cost_width),
            reward_width,
            expected_cost: stats.cost.mean().unwrap_or(
                if arm.est_cost >= 0.0 && arm.est_cost.is_finite() {
                    arm.est_cost
                } else {
                    0.0
                },
            ),
            stats,
        }
    }

    fn scale(&self, arm: &ArmView<'_>, stats: &ArmStats) -> f64 {
        let bound = arm.cost_max;
        match self.config.cost_scale {
            CostScale::Fixed(scale) => scale,
            CostScale::Own if bound.is_finite() && bound > 0.0 => bound,
            CostScale::Own | CostScale::Seen => stats.largest_cost,
        }
    }

    fn reason(&self, question: &Question<'_>, round: &Round, first: usize) -> String {
        let bounds = &round.bounds[first];
        let mut text = match bounds.stats.reward.mean() {
            None => "never scored yet, so tried first".to_owned(),
            Some(mean) => format!(
                "mean {mean:.2} ±{:.2} of {:.0} scores, {}",
                bounds.reward_width,
                bounds.stats.reward.count,
                if question.mode == Mode::AnyWin && question.max_arms > 1 {
                    "cheapest per expected success"
                } else if question.budget.is_finite() {
                    "best bound the budget allows"
                } else {
                    "best bound"
                }
            ),
        };
        let share = round.marginals[first];
        if share < 1.0 - 1e-9 {
            text.push_str(&format!(", drawn with probability {share:.2}"));
        }
        if !round.solution.feasible {
            text.push_str("; even the cheapest choice passes the budget");
        }
        if round.relaxed_after_all {
            text.push_str("; too many arms for direct, relaxed instead");
        }
        text
    }
}

impl Learner for C2mabv {
    fn select(
        &self,
        question: &Question<'_>,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Choice, NoArm> {
        let round = self.solve(question, rng)?;
        // The order of the shuffle decides ties here as everywhere.
        let mut set = rounding::round(&round.solution.z, rng);
        if set.is_empty() {
            // Σz ≥ 1 but for the crumbs of a sum: the request must be answered all the same.
            let z = round.solution.z.iter().enumerate();
            set.extend(z.max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i));
        }
        let propensity = ties::probability(&round.solution.z, &round.means, &round.costs, &set);
        match question.mode {
            Mode::AnyWin | Mode::Single => {
                let costs: Vec<f64> = round.bounds.iter().map(|b| b.expected_cost).collect();
                cascade::sort(&mut set, &round.means, &costs, self.config.order);
            }
            Mode::SumUp | Mode::AllIn => {
                set.sort_by(|&a, &b| round.means[b].total_cmp(&round.means[a]));
            }
        }
        let first = set.first().copied().ok_or(NoArm)?;
        Ok(Choice {
            order: set.iter().map(|&i| round.arms[i]).collect(),
            marginals: round.spread(question.arms.len()),
            propensity,
            reason: self.reason(question, &round, first),
        })
    }

    fn observe(&mut self, observation: &Observation<'_>) {
        self.state.observe(observation, &self.config.table);
    }
}

/// What is believed of one arm.
struct Bounds {
    /// μ̄.
    reward: f64,
    /// c̲.
    cost: f64,
    /// α_μ·rad, for people.
    reward_width: f64,
    /// ĉ, or the host's estimate before the first call: what orders a cascade.
    expected_cost: f64,
    stats: ArmStats,
}

/// One solved round; all but `arms` is indexed by the place in `arms`.
struct Round {
    /// Places in the question, shuffled.
    arms: Vec<usize>,
    bounds: Vec<Bounds>,
    /// What the solver saw.
    means: Vec<f64>,
    costs: Vec<f64>,
    solution: Solution,
    /// P(arm is chosen), over the shuffle and the rounding.
    marginals: Vec<f64>,
    relaxed_after_all: bool,
}

impl Round {
    /// Marginals by place in the question.
    fn spread(&self, arms: usize) -> Vec<f64> {
        let mut spread = vec![0.0; arms];
        for (&k, &z) in self.arms.iter().zip(&self.marginals) {
            spread[k] = z;
        }
        spread
    }
}

/// A request must be answered, so Σz ≥ 1: what is lacking goes to the cheapest arm, of equals
/// the best.
pub(crate) fn complete(z: &mut [f64], means: &[f64], costs: &[f64]) {
    let lacking = 1.0 - z.iter().sum::<f64>();
    if lacking <= 0.0 {
        return;
    }
    let cheapest = (0..z.len()).min_by(|&a, &b| {
        costs[a]
            .total_cmp(&costs[b])
            .then(means[b].total_cmp(&means[a]))
    });
    if let Some(k) = cheapest {
        z[k] = (z[k] + lacking).min(1.0);
    }
}
