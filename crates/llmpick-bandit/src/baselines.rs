//! What C2MAB-V and PickLLM are measured against: ε-greedy (with and without the budget), CUCB,
//! Thompson sampling, round-robin, and a fixed choice.

use rand::RngCore;

use crate::c2mabv::complete;
use crate::cascade::{self, Order};
use crate::chance::{beta, coin, shuffle};
use crate::names::Key;
use crate::stats::{ArmStats, Table, TableConfig};
use crate::ties::{self, Classes, binomial};
use crate::{
    Choice, ConfigError, Learner, Mode, NoArm, Observation, Question, UnsoundState, aic, awc,
    rounding, suc,
};

/// Which baseline.
#[derive(Clone, Debug, PartialEq)]
pub enum Baseline {
    /// With probability ε a random set, else the N best means.
    EpsilonGreedy {
        /// ε in [0, 1].
        epsilon: f64,
        /// The greedy set obeys the budget, through the relaxed problem on the means.
        budgeted: bool,
    },
    /// The N largest min(μ̂ + √(c·ln t / T_k), 1) (Chen, Wang, Yuan 2013); no budget.
    Cucb {
        /// c ≥ 0, 1.5 in the literature.
        exploration: f64,
    },
    /// The N largest draws of Beta(1 + Σx, 1 + n − Σx); no budget.
    Thompson,
    /// The next N arms in order of name.
    RoundRobin,
    /// Always the same.
    Fixed(Fixed),
}

/// What a fixed choice is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// These arms, in this order, as far as they may run.
    Arms(Vec<String>),
    /// The N cheapest by mean cost, or by estimate before the first call.
    Cheapest,
    /// The N dearest.
    Dearest,
}

/// A baseline and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct BaselineLearner {
    baseline: Baseline,
    table: TableConfig,
    state: Table,
}

impl BaselineLearner {
    /// A learner that knows nothing yet.
    pub fn new(baseline: Baseline, table: TableConfig) -> Result<Self, ConfigError> {
        match baseline {
            Baseline::EpsilonGreedy { epsilon, .. } => {
                ConfigError::check("epsilon", epsilon, 0.0..=1.0, "between 0 and 1")?;
            }
            Baseline::Cucb { exploration } => {
                let range = "a number from 0 to 100";
                ConfigError::check("exploration", exploration, 0.0..=100.0, range)?;
            }
            Baseline::Thompson | Baseline::RoundRobin | Baseline::Fixed(_) => {}
        }
        table.check()?;
        Ok(Self {
            baseline,
            table,
            state: Table::default(),
        })
    }

    /// All that was learnt.
    pub fn state(&self) -> &Table {
        &self.state
    }

    /// Goes on from what was learnt before; on an error nothing has changed.
    pub fn restore(&mut self, state: Table) -> Result<(), UnsoundState> {
        self.state = state.check()?;
        Ok(())
    }
}

impl Learner for BaselineLearner {
    fn select(
        &self,
        question: &Question<'_>,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Choice, NoArm> {
        let mut arms = question.eligible()?;
        if self.baseline == Baseline::RoundRobin {
            return Ok(self.round_robin(question, arms));
        }
        shuffle(&mut arms, rng);
        let view = View::new(self, question, arms);
        match &self.baseline {
            Baseline::EpsilonGreedy { epsilon, budgeted } => {
                Ok(view.epsilon_greedy(*epsilon, *budgeted, rng))
            }
            Baseline::Cucb { exploration } => {
                let log = libm::log(self.state.round(&self.table));
                let bound = |i: usize| {
                    let stats = &view.stats[i].reward;
                    stats.mean().map_or(1.0, |mean| {
                        (mean + (exploration * log / stats.count).sqrt()).min(1.0)
                    })
                };
                let bounds: Vec<f64> = (0..view.arms.len()).map(bound).collect();
                Ok(view.certain(&bounds, "largest upper bound"))
            }
            Baseline::Thompson => {
                let draw = |stats: &ArmStats| {
                    let Some(mean) = stats.reward.mean() else {
                        return beta(1.0, 1.0, rng);
                    };
                    let (n, wins) = (stats.reward.count, mean * stats.reward.count);
                    beta(1.0 + wins, 1.0 + (n - wins).max(0.0), rng)
                };
                let draws: Vec<f64> = view.stats.iter().map(draw).collect();
                Ok(view.drawn(&draws))
            }
            Baseline::Fixed(fixed) => view.fixed(fixed),
            Baseline::RoundRobin => Err(NoArm), // answered above
        }
    }

    fn observe(&mut self, observation: &Observation<'_>) {
        self.state.observe(observation, &self.table);
    }
}

impl BaselineLearner {
    /// The rounds completed tell whose turn it is, so a decision is a function of the state.
    fn round_robin(&self, question: &Question<'_>, mut arms: Vec<usize>) -> Choice {
        arms.sort_by_key(|&k| question.arms[k].id);
        let n = question.size(arms.len());
        let turn = (self.state.rounds() % arms.len() as u64) as usize;
        arms.rotate_left(turn);
        arms.truncate(n);
        let mut marginals = vec![0.0; question.arms.len()];
        arms.iter().for_each(|&k| marginals[k] = 1.0);
        Choice {
            order: arms,
            marginals,
            propensity: 1.0,
            reason: "its turn".to_owned(),
        }
    }
}

/// The eligible arms of one question in shuffled order, and what is known of them.
struct View<'a> {
    question: &'a Question<'a>,
    arms: Vec<usize>,
    stats: Vec<ArmStats>,
    n: usize,
}

impl<'a> View<'a> {
    fn new(learner: &BaselineLearner, question: &'a Question<'a>, arms: Vec<usize>) -> Self {
        let (tag, features) = (question.context, question.features);
        let context = Key::new(learner.state.context(tag, features, &learner.table));
        let stats = arms
            .iter()
            .map(|&k| {
                let arm = &question.arms[k];
                learner.state.priced_for(arm, context, &learner.table).0
            })
            .collect();
        let n = question.size(arms.len());
        Self {
            question,
            arms,
            stats,
            n,
        }
    }

    /// Expected cost: measured, else estimated, else `unknown`.
    fn costs(&self, unknown: f64) -> Vec<f64> {
        let estimate = |k: usize| {
            let cost = self.question.arms[k].est_cost;
            let known = cost.is_finite() && cost >= 0.0;
            if known { cost } else { unknown }
        };
        let arms = self.arms.iter().zip(&self.stats);
        arms.map(|(&k, stats)| stats.cost.mean().unwrap_or(estimate(k)))
            .collect()
    }

    /// Mean rewards; an arm never scored counts as perfect, so each gets its first try.
    fn means(&self) -> Vec<f64> {
        let means = self.stats.iter().map(|stats| stats.reward.mean());
        means.map(|mean| mean.unwrap_or(1.0)).collect()
    }

    /// The N largest values, ties by the shuffle.
    fn largest(&self, values: &[f64]) -> Vec<usize> {
        let mut places: Vec<usize> = (0..values.len()).collect();
        places.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        places.truncate(self.n);
        places
    }

    /// P(each is among the N largest), over the shuffle: equals share what is left for them.
    fn shares(&self, values: &[f64]) -> Vec<f64> {
        let share = |&x: &f64| {
            let above = values.iter().filter(|y| **y > x).count();
            let equal = values.iter().filter(|y| **y == x).count();
            (self.n.saturating_sub(above) as f64 / equal as f64).min(1.0)
        };
        values.iter().map(share).collect()
    }

    /// P(this set of the N largest), over the shuffle.
    fn chance(&self, values: &[f64]) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let Some(&last) = sorted.get(self.n.saturating_sub(1)) else {
            return 1.0;
        };
        let above = values.iter().filter(|x| **x > last).count();
        let equal = values.iter().filter(|x| **x == last).count();
        1.0 / binomial(equal, self.n - above)
    }

    /// The N largest, with certainty but for ties.
    fn certain(&self, values: &[f64], why: &str) -> Choice {
        let set = self.largest(values);
        self.choice(set, self.shares(values), self.chance(values), why)
    }

    /// The N largest of random draws, whose probabilities have no closed form.
    fn drawn(&self, draws: &[f64]) -> Choice {
        let set = self.largest(draws);
        let (unknown, propensity) = if self.n == self.arms.len() {
            (1.0, 1.0)
        } else {
            (f64::NAN, f64::NAN)
        };
        self.choice(
            set,
            vec![unknown; draws.len()],
            propensity,
            "largest posterior draw",
        )
    }

    /// The relaxed problem of the mode on the means, always with an arm to answer.
    fn programme(&self, means: &[f64], costs: &[f64]) -> Vec<f64> {
        let (n, budget) = (self.n, self.question.budget);
        let solved = match self.question.mode {
            Mode::AnyWin if n > 1 => awc::solve(means, costs, n, budget, awc::Method::Auto, 10),
            Mode::AllIn => aic::solve(means, costs, n, budget),
            Mode::AnyWin | Mode::Single | Mode::SumUp => suc::solve(means, costs, n, budget),
        };
        // Means and costs are finite and costs not negative, so there is a solution.
        let mut z = solved.map_or_else(|_| vec![0.0; means.len()], |solution| solution.z);
        complete(&mut z, means, costs);
        z
    }

    fn epsilon_greedy(
        &self,
        epsilon: f64,
        budgeted: bool,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Choice {
        let k = self.arms.len();
        let explore = coin(epsilon, rng);
        let mut means = self.means();
        let limited = budgeted && self.question.budget.is_finite();
        if limited && self.question.mode == Mode::AnyWin && self.n > 1 {
            means
                .iter_mut()
                .for_each(|mean| *mean = mean.min(awc::MAX_MEAN));
        }
        let (shares, greedy, costs, z) = if limited {
            let costs = self.costs(0.0);
            let z = self.programme(&means, &costs);
            let set = rounding::round(&z, rng);
            (Classes::new(&means, &costs).share(&z), set, costs, z)
        } else {
            let set = self.largest(&means);
            let z = (0..k).map(|i| f64::from(u8::from(set.contains(&i))));
            let z = z.collect();
            (self.shares(&means), set, vec![0.0; k], z)
        };
        // The arms are shuffled, so the first N are a random set.
        let (set, why) = if explore || greedy.is_empty() {
            ((0..self.n).collect(), "exploring")
        } else {
            (greedy, "best mean so far")
        };
        let uniform = self.n as f64 / k as f64;
        let mixed = shares
            .iter()
            .map(|z| epsilon * uniform + (1.0 - epsilon) * z);
        // An explored set may also be one the greedy rule could have drawn.
        let as_greedy = ties::outcomes(&z).map_or(f64::NAN, |outcomes| {
            Classes::new(&means, &costs).probability(&outcomes, &set)
        });
        let propensity = epsilon / binomial(k, self.n) + (1.0 - epsilon) * as_greedy;
        self.choice(set, mixed.collect(), propensity, why)
    }

    fn fixed(&self, fixed: &Fixed) -> Result<Choice, NoArm> {
        match fixed {
            Fixed::Arms(ids) => {
                let place = |id: &String| {
                    let mut places = 0..self.arms.len();
                    places.find(|&i| self.question.arms[self.arms[i]].id == id)
                };
                let mut set: Vec<usize> = ids.iter().filter_map(place).collect();
                set.truncate(self.n);
                if set.is_empty() {
                    return Err(NoArm);
                }
                let chosen = |i| f64::from(u8::from(set.contains(&i)));
                let shares: Vec<f64> = (0..self.arms.len()).map(chosen).collect();
                let mut choice = self.choice(set.clone(), shares, 1.0, "fixed by the settings");
                // The settings' order is the order, whatever the mode.
                choice.order = set.iter().map(|&i| self.arms[i]).collect();
                Ok(choice)
            }
            // An arm of unknown cost gets the benefit of the doubt, once.
            Fixed::Cheapest => {
                let values: Vec<f64> = self.costs(0.0).iter().map(|c| -c).collect();
                Ok(self.certain(&values, "always the cheapest"))
            }
            Fixed::Dearest => Ok(self.certain(&self.costs(f64::INFINITY), "always the dearest")),
        }
    }

    /// A set in its order: a cascade by ascending cost, else as it is.
    fn choice(&self, mut set: Vec<usize>, shares: Vec<f64>, propensity: f64, why: &str) -> Choice {
        if self.question.mode == Mode::AnyWin {
            cascade::sort(&mut set, &self.means(), &self.costs(0.0), Order::Cost);
        }
        let mut marginals = vec![0.0; self.question.arms.len()];
        for (&k, share) in self.arms.iter().zip(shares) {
            marginals[k] = share;
        }
        let known = set.first().and_then(|&i| {
            let reward = &self.stats[i].reward;
            Some((reward.mean()?, reward.count))
        });
        let reason = match known {
            Some((mean, count)) => format!("{why}: mean {mean:.2} of {count:.0} scores"),
            None => format!("{why}: never scored yet"),
        };
        Choice {
            order: set.iter().map(|&i| self.arms[i]).collect(),
            marginals,
            propensity,
            reason,
        }
    }
}
