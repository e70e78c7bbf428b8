//! C2MAB-V: which set of arms, under a long-term budget, for any-win, sum-up and all-in.
//!
//! One round (paper, section 4): optimistic rewards and lower costs → the relaxed problem of
//! the mode → marginals z̃ → dependent rounding → a set. Only z̃ would have to leave the
//! machine, see [`C2mabv::marginals`]. Feedback updates exactly the arms that ran.

use std::fmt::{self, Write as _};

use rand::RngCore;

use crate::budget::{self, BudgetMode};
use crate::cascade::{self, Order};
use crate::chance::{pick, shuffle};
use crate::lp::{LpError, Solution};
use crate::names::Key;
use crate::rounding;
use crate::stats::{self, ArmStats, Delta, Radius, Table, TableConfig};
use crate::ties::{self, Classes};
use crate::{
    ArmView, Choice, ConfigError, Learner, Mode, NoArm, Observation, Question, UnsoundState, aic,
    awc, direct, suc,
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

/// What the budget row of the any-win problem charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CostRow {
    /// The paper's: every arm of the set.
    #[default]
    Set,
    /// What the cascade pays in expectation, see [`cascade::mix`].
    Expected,
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
    /// How a finite budget is kept.
    pub budget_mode: BudgetMode,
    /// What an any-win set is charged, where the problem is relaxed.
    pub cost_row: CostRow,
}

impl Default for C2mabvConfig {
    /// The paper's best pair on real data, (0.3, 0.05), horizon-free. A budget is paced, since
    /// who names one expects it to be kept.
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
            budget_mode: BudgetMode::Paced,
            cost_row: CostRow::Set,
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
        let round = self.solve(question, Drawn::Elsewhere, rng)?;
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
        drawn: Drawn,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Round, NoArm> {
        let mut arms = question.eligible()?;
        // Ties go to the first arm of the solvers, so the order must be nobody's privilege.
        shuffle(&mut arms, rng);
        let known = self.known(question);
        let mut bounds: Vec<Bounds> = arms
            .iter()
            .map(|&k| self.bounds(&question.arms[k], &known))
            .collect();
        let purse = self.purse(question, drawn, &mut arms, &mut bounds);
        let n = question.size(arms.len());
        let clamp = if question.mode == Mode::AnyWin && n > 1 {
            awc::MAX_MEAN
        } else {
            1.0
        };
        let means: Vec<f64> = bounds.iter().map(|b| b.reward.min(clamp)).collect();
        // Without a budget cost is no criterion, and the noise in its measurement must not
        // become one by way of the ties.
        let unlimited = purse.budget == f64::INFINITY;
        let costs: Vec<f64> = bounds
            .iter()
            .map(|b| if unlimited { 0.0 } else { b.cost })
            .collect();
        let by_cascade = self.config.cost_row == CostRow::Expected
            && self.config.relaxation == Relaxation::Relaxed
            && question.mode == Mode::AnyWin
            && n > 1
            && !unlimited;
        let (solution, outcomes, relaxed_after_all) = if by_cascade {
            let (solution, outcomes) = cascades(&means, &costs, n, purse.budget);
            (solution, Some(outcomes), false)
        } else {
            let (mut solution, relaxed_after_all) =
                self.programme(question.mode, &means, &costs, n, purse.budget);
            complete(&mut solution.z, &means, &costs);
            (solution, None, relaxed_after_all)
        };
        let classes = Classes::new(&means, &costs);
        let most = match purse.left.is_finite() {
            true => bounds.iter().map(|b| b.most).collect(),
            false => Vec::new(),
        };
        let mut round = Round {
            marginals: classes.share(&solution.z),
            mixed: outcomes.is_some(),
            outcomes,
            most,
            may_shrink: matches!(question.mode, Mode::AnyWin | Mode::Single),
            arms,
            bounds,
            means,
            classes,
            solution,
            purse,
            relaxed_after_all,
        };
        round.foresee_fitting();
        Ok(round)
    }

    /// What the round may spend. Prices the arms anew where the budget is paced, and takes
    /// away those that a hard one rules out.
    fn purse(
        &self,
        question: &Question<'_>,
        drawn: Drawn,
        arms: &mut Vec<usize>,
        bounds: &mut Vec<Bounds>,
    ) -> Purse {
        let rho = question.budget;
        let open = |budget| Purse {
            budget,
            left: f64::INFINITY,
            fits: true,
        };
        if is_unlimited(rho) {
            return open(f64::INFINITY);
        }
        if self.config.budget_mode == BudgetMode::Average {
            return open(rho);
        }
        price(bounds);
        let spend = self.state.spend();
        let out = self.running(question);
        let calls = (out.calls / question.max_arms.max(1) as f64).ceil();
        let beyond = (out.expected - rho * calls).max(0.0);
        let mut purse = open(spend.allowance(rho, beyond));
        if self.config.budget_mode == BudgetMode::Hard {
            purse.left = spend.left(rho, out.most);
            let whole = match question.mode {
                Mode::SumUp | Mode::AllIn => question.size(arms.len()),
                Mode::AnyWin | Mode::Single => 1,
            };
            let most: Vec<f64> = bounds.iter().map(|b| b.most).collect();
            let (mut inside, fits) = budget::affordable(&most, whole, purse.left);
            if drawn == Drawn::Elsewhere {
                budget::all_affordable(&mut inside, &most, question.size(arms.len()), purse.left);
            }
            purse.fits = fits;
            let mut keep = inside.iter().copied();
            arms.retain(|_| keep.next().unwrap_or(true));
            let mut keep = inside.iter().copied();
            bounds.retain(|_| keep.next().unwrap_or(true));
        }
        purse
    }

    /// What the calls that are out may come to. An arm of which nothing is known counts as an
    /// average round.
    fn running(&self, question: &Question<'_>) -> Running {
        let mut running = Running::default();
        let context = self.context(question);
        for arm in question.arms.iter().filter(|arm| arm.inflight > 0) {
            let (stats, calls) = (
                self.state.priced(arm, context, &self.config.table),
                f64::from(arm.inflight),
            );
            let most = match budget::most(arm, stats.largest_cost) {
                most if most.is_finite() => most,
                _ => question.budget.max(0.0),
            };
            let expected = stats.cost.mean().or_else(|| budget::known(arm.est_cost));
            running.calls += calls;
            running.most += calls * most;
            running.expected += calls * expected.unwrap_or(most);
        }
        running
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

    /// The request's tag, or the cluster of its features.
    fn context<'a>(&'a self, question: &'a Question<'_>) -> &'a str {
        let table = &self.config.table;
        self.state
            .context(question.context, question.features, table)
    }

    /// What all arms of a question share.
    fn known<'a>(&'a self, question: &'a Question<'_>) -> Known<'a> {
        let t = self.state.round(&self.config.table);
        Known {
            context: Key::new(self.context(question)),
            radius: Radius::new(question.arms.len(), t, self.config.delta.at(t)),
            unlimited: is_unlimited(question.budget),
        }
    }

    /// μ̄ and c̲ of one arm.
    #[inline]
    fn bounds(&self, arm: &ArmView<'_>, known: &Known<'_>) -> Bounds {
        let config = &self.config;
        let (stats, sure) = self.state.priced_for(arm, known.context, &config.table);
        // 0 × ∞ of an arm never pulled would be NaN; the bounds do not use the width then.
        let width = |alpha: f64, count: f64| match alpha * known.radius.of(count) {
            width if width.is_finite() => width,
            _ => 0.0,
        };
        let reward_width = width(config.alpha_reward, sure);
        // Without a budget nobody asks for the bounds of a cost.
        let cost_width = match known.unlimited {
            true => 0.0,
            false => width(config.alpha_cost, stats.cost.count) * self.scale(arm, &stats),
        };
        Bounds {
            reward: stats::optimistic_reward(stats.reward.mean(), reward_width),
            cost: match known.unlimited {
                true => 0.0,
                false => stats::lower_cost(stats.cost.mean(), cost_width),
            },
            reward_width,
            cost_width,
            estimate: budget::known(arm.est_cost),
            most: budget::most(arm, stats.largest_cost),
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
        let mut text = String::with_capacity(REASON);
        // Writing to a `String` cannot fail.
        let _ = match bounds.stats.reward.mean() {
            None => write!(text, "never scored yet, so tried first"),
            Some(mean) => write!(
                text,
                "mean {mean:.2} ±{:.2} of {} scores, {}",
                bounds.reward_width,
                Count(bounds.stats.reward.count),
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
            let _ = write!(text, ", drawn with probability {share:.2}");
        }
        if !round.purse.fits {
            text.push_str("; nothing surely fits what is left of the budget, so the cheapest");
        } else if !round.solution.feasible && round.purse.budget < question.budget {
            text.push_str("; pays back what passes the budget, so the cheapest");
        } else if !round.solution.feasible {
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
        let round = self.solve(question, Drawn::Here, rng)?;
        // The order of the shuffle decides ties here as everywhere.
        let mut set = if round.mixed {
            round.drawn(rng)
        } else {
            rounding::round(&round.solution.z, rng)
        };
        if set.is_empty() {
            // Σz ≥ 1 but for the crumbs of a sum: the request must be answered all the same.
            let z = round.solution.z.iter().enumerate();
            set.extend(z.max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i));
        }
        if round.purse.left.is_finite() && round.purse.fits && !round.mixed {
            set = round.fitted(&set);
        }
        let propensity = round.probability(&set);
        match question.mode {
            _ if set.len() < 2 => {}
            Mode::AnyWin | Mode::Single => {
                let costs: Vec<f64> = round.bounds.iter().map(Bounds::expected_cost).collect();
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

/// Who draws the set: what is drawn elsewhere cannot be made to fit a hard budget afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drawn {
    Here,
    Elsewhere,
}

/// What is believed of one arm.
struct Bounds {
    /// μ̄.
    reward: f64,
    /// c̲.
    cost: f64,
    /// α_μ·rad, for people.
    reward_width: f64,
    /// α_c·b_k·rad.
    cost_width: f64,
    /// The host's estimate.
    estimate: Option<f64>,
    /// The most that one call can cost.
    most: f64,
    stats: ArmStats,
}

impl Bounds {
    /// ĉ, or the host's estimate before the first call: what orders a cascade.
    fn expected_cost(&self) -> f64 {
        self.stats.cost.mean().or(self.estimate).unwrap_or(0.0)
    }
}

/// What all arms of a question share.
struct Known<'a> {
    context: Key<'a>,
    radius: Radius,
    /// No budget: cost is no criterion.
    unlimited: bool,
}

/// A count without decimals. Whole ones, as all are where nothing is forgotten, are printed as
/// what they are: the general way takes longer than the choice.
struct Count(f64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as u64 {
            whole if whole as f64 == self.0 => whole.fmt(f),
            _ => write!(f, "{:.0}", self.0),
        }
    }
}

/// Room for the reason of most decisions.
const REASON: usize = 128;

fn is_unlimited(rho: f64) -> bool {
    rho.is_nan() || rho == f64::INFINITY
}

/// One solved round; all but `arms` is indexed by the place in `arms`.
struct Round {
    /// Places in the question, shuffled.
    arms: Vec<usize>,
    bounds: Vec<Bounds>,
    /// What the solver saw.
    means: Vec<f64>,
    /// Which of them it could not tell apart.
    classes: Classes,
    solution: Solution,
    /// The most that one call of each can cost; empty but for a hard budget.
    most: Vec<f64>,
    purse: Purse,
    /// A set that is too dear loses an arm, rather than exchanging it.
    may_shrink: bool,
    /// P(arm is chosen), over the shuffle, the rounding and a hard budget; NaN where unknown.
    marginals: Vec<f64>,
    /// What is drawn where it is a mix of cascades, or where a hard budget may change a draw:
    /// the sets and their probabilities, none where they are not known.
    outcomes: Option<Vec<(Vec<bool>, f64)>>,
    /// The outcomes are drawn from, rather than the solution rounded.
    mixed: bool,
    relaxed_after_all: bool,
}

/// What one round may spend.
struct Purse {
    /// Of the relaxed problem; infinite for none.
    budget: f64,
    /// What upper bounds may add up to; infinite but for a hard budget.
    left: f64,
    /// False where a hard budget has no room for any set.
    fits: bool,
}

/// The calls whose costs are not known yet.
#[derive(Default)]
struct Running {
    calls: f64,
    expected: f64,
    most: f64,
}

impl Round {
    /// Finds out how a hard budget changes the draws, where a set that may be drawn is too dear
    /// as a whole.
    fn foresee_fitting(&mut self) {
        if !self.purse.left.is_finite() || !self.purse.fits {
            return;
        }
        let support = (0..self.means.len()).filter(|&k| self.solution.z[k] > 0.0);
        if support.map(|k| self.most[k]).sum::<f64>() <= self.purse.left {
            return;
        }
        let untold = self.classes.divided(|i, j| self.most[i] != self.most[j]);
        let known = match &self.outcomes {
            Some(mixed) => Some(mixed.clone()),
            None => ties::outcomes(&self.solution.z),
        };
        let Some(mut outcomes) = known.filter(|_| !untold || self.mixed) else {
            self.marginals.fill(f64::NAN);
            self.outcomes = Some(Vec::new());
            return;
        };
        let mut drawn = vec![0.0; self.means.len()];
        for (set, p) in &mut outcomes {
            budget::fit(set, &self.most, self.purse.left, self.may_shrink);
            for (share, _) in drawn.iter_mut().zip(set.iter()).filter(|(_, s)| **s) {
                *share += *p;
            }
        }
        self.marginals = self.classes.share(&drawn);
        self.outcomes = Some(outcomes);
    }

    /// One of the outcomes.
    fn drawn(&self, rng: &mut (impl RngCore + ?Sized)) -> Vec<usize> {
        let outcomes = self.outcomes.as_deref().unwrap_or_default();
        let shares: Vec<f64> = outcomes.iter().map(|(_, p)| *p).collect();
        let drawn = pick(&shares, rng).and_then(|i| outcomes.get(i));
        let members = drawn
            .into_iter()
            .flat_map(|(set, _)| set.iter().enumerate());
        members.filter(|(_, s)| **s).map(|(i, _)| i).collect()
    }

    /// The set, made to fit.
    fn fitted(&self, set: &[usize]) -> Vec<usize> {
        let mut inside: Vec<bool> = (0..self.means.len()).map(|i| set.contains(&i)).collect();
        budget::fit(&mut inside, &self.most, self.purse.left, self.may_shrink);
        (0..inside.len()).filter(|&i| inside[i]).collect()
    }

    /// P(exactly this set), over the shuffle, the rounding and a hard budget.
    fn probability(&self, set: &[usize]) -> f64 {
        let drawn;
        let outcomes = match &self.outcomes {
            Some(known) => known,
            None if self.is_certain(set) => return 1.0 / self.classes.ways(set),
            None => match ties::outcomes(&self.solution.z) {
                Some(found) => {
                    drawn = found;
                    &drawn
                }
                None => return f64::NAN,
            },
        };
        if outcomes.is_empty() {
            return f64::NAN;
        }
        self.classes.probability(outcomes, set)
    }

    /// Nothing is left to chance but the shuffle: the usual case, and quickly told.
    fn is_certain(&self, set: &[usize]) -> bool {
        let z = &self.solution.z;
        let whole = z.iter().all(|&z| z == 0.0 || z == 1.0);
        whole
            && set.iter().all(|&i| z[i] == 1.0)
            && set.len() == z.iter().filter(|z| **z == 1.0).count()
    }

    /// Marginals by place in the question.
    fn spread(&self, arms: usize) -> Vec<f64> {
        let mut spread = vec![0.0; arms];
        for (&k, &z) in self.arms.iter().zip(&self.marginals) {
            spread[k] = z;
        }
        spread
    }
}

/// The mix of cascades as marginals and as what may be drawn.
fn cascades(
    means: &[f64],
    costs: &[f64],
    n: usize,
    budget: f64,
) -> (Solution, Vec<(Vec<bool>, f64)>) {
    let mix = cascade::mix(means, costs, n, budget);
    let mut z = vec![0.0; means.len()];
    let mut outcomes = Vec::with_capacity(mix.cascades.len());
    for (arms, share) in mix.cascades {
        let mut inside = vec![false; means.len()];
        for k in arms {
            inside[k] = true;
            z[k] += share;
        }
        outcomes.push((inside, share));
    }
    let feasible = mix.feasible;
    (Solution { z, feasible }, outcomes)
}

/// What a paced budget charges: nearly the mean; of an arm never called the host's estimate,
/// or as much of its upper bound as calls of the other arms came to of theirs, so that the
/// first pulls respect the budget. Nothing only where nothing at all is known.
fn price(bounds: &mut [Bounds]) {
    let called = bounds.iter().filter(|b| b.most.is_finite());
    let called = called.filter_map(|b| Some((b.stats.cost.mean()?, b.most)));
    let (cost, most) = called.fold((0.0, 0.0), |sum, b| (sum.0 + b.0, sum.1 + b.1));
    let share = if most > 0.0 {
        (cost / most).min(1.0)
    } else {
        1.0
    };
    for b in bounds {
        let stranger = || match b.most {
            most if most.is_finite() => share * most,
            _ => 0.0,
        };
        b.cost = match b.stats.cost.mean() {
            Some(mean) => budget::charged(mean, b.cost_width, b.stats.cost.count),
            None => b.estimate.unwrap_or_else(stranger),
        };
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
