//! What another policy would have earned, from decisions that chance made: pure mathematics.
//!
//! A *trial* is one logged decision beside what the other policy would have done. Weighing each
//! outcome by how much likelier the other policy was to ask for it makes the mean unbiased
//! (inverse propensity scores, Horvitz and Thompson 1952). Dividing by the weights' own mean
//! trades a little bias for less variance (self-normalised, Swaminathan and Joachims 2015). A
//! model of the arms takes most of the variance away and is itself corrected by the weighed
//! residuals (doubly robust, Dudík, Langford and Li 2011); it is fitted on other folds than the
//! one it predicts, so that it never saw the outcome it stands in for.
//!
//! Sets of arms whose rewards add up are judged arm by arm with the marginals P(arm is in the
//! set): E Σ_{k∈S} X_k = E Σ_k e_k/m_k·1[k∈S]·X_k, which needs far less overlap than whole
//! sets do. A cascade and an all-in request are judged as whole sets.
//!
//! Intervals are normal, from the trials' own spread (of a ratio: linearised). They hold for
//! policies that learn, too, as long as each choice was made before its outcome was known.

use std::collections::HashMap;

use serde::Serialize;

use crate::{Estimate, Figure};

/// Outcomes are predicted by a model that has not seen a fifth of them, theirs included.
const FOLDS: usize = 5;

/// A context's own mean weighs as much as the arm's pooled one after so many outcomes.
const SHRINKAGE: f64 = 10.0;

/// How the rewards of a set combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// They add up; so does a single arm's.
    Sum,
    /// 1 − Π(1−x): one good answer is enough.
    AnyWin,
    /// Πx: every arm must succeed.
    AllIn,
}

impl Combine {
    fn of(self, values: impl Iterator<Item = f64>) -> f64 {
        match self {
            Combine::Sum => values.sum(),
            Combine::AnyWin => 1.0 - values.map(|x| 1.0 - x).product::<f64>(),
            Combine::AllIn => values.product(),
        }
    }
}

/// One arm that ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ran {
    /// Which, by its number in the whole log.
    pub arm: usize,
    /// e/m: how much likelier the other policy was to choose it.
    pub weight: f64,
    /// What came of it.
    pub outcome: Figure,
}

/// A set that is judged as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    /// The logged set, by the arms' numbers in the whole log.
    pub arms: Vec<usize>,
    /// 1/P(set) where the other policy chose the same set, else 0.
    pub weight: f64,
    /// What came of the request.
    pub outcome: Figure,
}

/// One logged decision beside the other policy's.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The context's number in the log.
    pub context: usize,
    /// How rewards combine.
    pub combine: Combine,
    /// The other policy: arm and P(arm is chosen); 1 for each arm of a whole set.
    pub target: Vec<(usize, f64)>,
    /// The arms that ran.
    pub ran: Vec<Ran>,
    /// The set, where it is judged as a whole.
    pub whole: Option<Whole>,
}

/// One quantity, estimated in three ways. Each with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OffPolicy {
    /// Inverse propensity scores.
    pub ips: Estimate,
    /// Self-normalised.
    pub snips: Estimate,
    /// Doubly robust.
    pub dr: Estimate,
}

/// What the trials say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// Mean reward of a request.
    pub reward: OffPolicy,
    /// Mean cost of a request, in dollars.
    pub cost: OffPolicy,
    /// (Σw)²/Σw²: as if so many requests had been decided by the other policy itself.
    pub effective: f64,
    /// The largest weight of one request.
    pub largest_weight: f64,
}

/// Estimates what the other policy would have earned and paid.
pub fn judge(trials: &[Trial]) -> Judgement {
    let weights: Vec<f64> = trials.iter().map(Trial::weight).collect();
    let sum: f64 = weights.iter().sum();
    let squares: f64 = weights.iter().map(|w| w * w).sum();
    Judgement {
        reward: estimate(trials, |figure| figure.reward, |trial| trial.combine),
        // Whatever the set is for, all that runs is paid.
        cost: estimate(trials, |figure| figure.cost, |_| Combine::Sum),
        effective: if squares > 0.0 {
            sum * sum / squares
        } else {
            0.0
        },
        largest_weight: weights.iter().copied().fold(0.0, f64::max),
    }
}

impl Trial {
    /// Σw of this decision; its mean is what the policies' sizes make it: 1 for single arms.
    fn weight(&self) -> f64 {
        match &self.whole {
            Some(whole) => whole.weight,
            None => self.ran.iter().map(|ran| ran.weight).sum(),
        }
    }

    /// How many arms the other policy means to choose; what the mean weight should be.
    fn size(&self) -> f64 {
        match self.whole {
            Some(_) => 1.0,
            None => self.target.iter().map(|(_, e)| e).sum(),
        }
    }
}

fn estimate(
    trials: &[Trial],
    of: impl Fn(&Figure) -> f64,
    combine: impl Fn(&Trial) -> Combine,
) -> OffPolicy {
    let model = Model::fit(trials, &of);
    let (mut weighed, mut corrected) = (Vec::new(), Vec::new());
    for (place, trial) in trials.iter().enumerate() {
        let predict = |arm: usize| model.predict(place % FOLDS, trial.context, arm);
        let combine = combine(trial);
        let (term, residual, base) = match &trial.whole {
            Some(whole) => {
                let logged = combine.of(whole.arms.iter().map(|arm| predict(*arm)));
                let base = combine.of(trial.target.iter().map(|(arm, _)| predict(*arm)));
                let outcome = of(&whole.outcome);
                (
                    whole.weight * outcome,
                    whole.weight * (outcome - logged),
                    base,
                )
            }
            None => {
                let base = trial.target.iter().map(|(arm, e)| e * predict(*arm));
                let term = |ran: &Ran| ran.weight * of(&ran.outcome);
                let residual = |ran: &Ran| ran.weight * (of(&ran.outcome) - predict(ran.arm));
                (
                    trial.ran.iter().map(term).sum(),
                    trial.ran.iter().map(residual).sum(),
                    base.sum(),
                )
            }
        };
        weighed.push(term);
        corrected.push(base + residual);
    }
    OffPolicy {
        ips: of_terms(&weighed),
        snips: ratio(trials, &weighed),
        dr: of_terms(&corrected),
    }
}

/// A mean with the interval of its own spread.
fn of_terms(terms: &[f64]) -> Estimate {
    Estimate::of(terms)
}

/// (Σ w·x / Σ w) times the mean size, linearised for its interval.
fn ratio(trials: &[Trial], weighed: &[f64]) -> Estimate {
    let n = trials.len() as f64;
    let mean = |of: &dyn Fn(usize) -> f64| (0..trials.len()).map(of).sum::<f64>() / n;
    let weight = mean(&|i| trials[i].weight());
    let size = mean(&|i| trials[i].size());
    let value = mean(&|i| weighed[i]) / weight;
    let influence = |i: usize| {
        let trial = &trials[i];
        let of_ratio = size / weight * (weighed[i] - value * trial.weight());
        value * size + of_ratio + value * (trial.size() - size)
    };
    let terms: Vec<f64> = (0..trials.len()).map(influence).collect();
    Estimate::of(&terms)
}

/// Mean outcomes by arm and context, apart for each fold.
struct Model {
    of_context: HashMap<(usize, usize), [Sum; FOLDS]>,
    of_arm: HashMap<usize, [Sum; FOLDS]>,
    all: [Sum; FOLDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    count: f64,
    total: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.total += value;
    }

    /// All folds but this one.
    fn without(sums: &[Sum; FOLDS], fold: usize) -> Sum {
        let others = sums.iter().enumerate().filter(|(k, _)| *k != fold);
        others.fold(Sum::default(), |sum, (_, other)| Sum {
            count: sum.count + other.count,
            total: sum.total + other.total,
        })
    }

    /// The mean, with a prior worth so many outcomes.
    fn shrunk(self, weight: f64, prior: f64) -> f64 {
        (self.total + weight * prior) / (self.count + weight)
    }
}

impl Model {
    fn fit(trials: &[Trial], of: impl Fn(&Figure) -> f64) -> Self {
        let mut model = Self {
            of_context: HashMap::new(),
            of_arm: HashMap::new(),
            all: Default::default(),
        };
        for (place, trial) in trials.iter().enumerate() {
            let fold = place % FOLDS;
            for ran in &trial.ran {
                let value = of(&ran.outcome);
                let key = (trial.context, ran.arm);
                model.of_context.entry(key).or_default()[fold].add(value);
                model.of_arm.entry(ran.arm).or_default()[fold].add(value);
                model.all[fold].add(value);
            }
        }
        model
    }

    /// The mean outcome of an arm in a context, by all folds but this one; the arm's pooled
    /// mean, and at last that of all arms, where there is too little.
    fn predict(&self, fold: usize, context: usize, arm: usize) -> f64 {
        let sum = |sums: Option<&[Sum; FOLDS]>| {
            sums.map_or(Sum::default(), |sums| Sum::without(sums, fold))
        };
        let all = Sum::without(&self.all, fold).shrunk(1e-9, 0.0);
        let pooled = sum(self.of_arm.get(&arm)).shrunk(1.0, all);
        sum(self.of_context.get(&(context, arm))).shrunk(SHRINKAGE, pooled)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use llmpick_bandit::chance::{coin, pick, seeded, unit};
    use llmpick_bandit::rounding;
    use rand::RngCore;

    use super::*;

    const TRIALS: usize = 800;

    /// Means of five arms in two contexts, the second of which comes three times in ten.
    const MEANS: [[f64; 5]; 2] = [[0.8, 0.5, 0.6, 0.3, 0.7], [0.2, 0.9, 0.5, 0.6, 0.4]];
    const SECOND: f64 = 0.3;

    fn costs(arm: usize) -> f64 {
        1e-4 * (1 + arm) as f64
    }

    fn context(rng: &mut dyn RngCore) -> usize {
        usize::from(coin(SECOND, rng))
    }

    fn outcome(context: usize, arm: usize, rng: &mut dyn RngCore) -> Figure {
        Figure {
            reward: f64::from(u8::from(coin(MEANS[context][arm], rng))),
            cost: costs(arm) * (0.5 + unit(rng)),
        }
    }

    /// E over contexts of a value.
    fn truth(value: impl Fn(usize) -> f64) -> f64 {
        (1.0 - SECOND) * value(0) + SECOND * value(1)
    }

    /// One arm each: logged by one table of probabilities, judged under another.
    fn single(rng: &mut dyn RngCore) -> Trial {
        let context = context(rng);
        let arm = pick(&LOGGED[context], rng).unwrap();
        Trial {
            context,
            combine: Combine::Sum,
            target: (0..5).map(|k| (k, WANTED[context][k])).collect(),
            ran: vec![Ran {
                arm,
                weight: WANTED[context][arm] / LOGGED[context][arm],
                outcome: outcome(context, arm, rng),
            }],
            whole: None,
        }
    }
    const LOGGED: [[f64; 5]; 2] = [[0.3, 0.3, 0.2, 0.1, 0.1], [0.1, 0.2, 0.2, 0.2, 0.3]];
    const WANTED: [[f64; 5]; 2] = [[0.6, 0.0, 0.1, 0.0, 0.3], [0.0, 0.8, 0.0, 0.2, 0.0]];

    /// Two arms of five by dependent rounding, rewards add up.
    fn pair(rng: &mut dyn RngCore) -> Trial {
        const LOGGED: [f64; 5] = [0.5, 0.4, 0.4, 0.4, 0.3];
        let context = context(rng);
        let set = rounding::round(&LOGGED, rng);
        assert_eq!(set.len(), 2);
        let wanted = |k: usize| 2.0 * WANTED[context][k].min(0.5);
        let ran = |&arm: &usize| Ran {
            arm,
            weight: wanted(arm) / LOGGED[arm],
            outcome: Figure::default(),
        };
        let mut ran: Vec<Ran> = set.iter().map(ran).collect();
        for ran in &mut ran {
            ran.outcome = outcome(context, ran.arm, rng);
        }
        Trial {
            context,
            combine: Combine::Sum,
            target: (0..5).map(|k| (k, wanted(k))).collect(),
            ran,
            whole: None,
        }
    }

    /// One of four sets of two arms as a cascade; the other policy always takes the third.
    fn cascade(rng: &mut dyn RngCore) -> Trial {
        const SETS: [[usize; 2]; 4] = [[0, 1], [1, 2], [0, 4], [3, 4]];
        const SHARES: [f64; 4] = [0.3, 0.2, 0.25, 0.25];
        let context = context(rng);
        let logged = pick(&SHARES, rng).unwrap();
        let mut ran = Vec::new();
        let mut whole = Figure::default();
        for arm in SETS[logged] {
            let outcome = outcome(context, arm, rng);
            ran.push(Ran {
                arm,
                weight: 0.0,
                outcome,
            });
            whole.cost += outcome.cost;
            whole.reward = whole.reward.max(outcome.reward);
            if outcome.reward > 0.5 {
                break;
            }
        }
        Trial {
            context,
            combine: Combine::AnyWin,
            target: SETS[2].map(|arm| (arm, 1.0)).to_vec(),
            ran,
            whole: Some(Whole {
                arms: SETS[logged].to_vec(),
                weight: if logged == 2 { 1.0 / SHARES[2] } else { 0.0 },
                outcome: whole,
            }),
        }
    }

    /// How many of a hundred seeds have the truth inside the interval, by estimator, for the
    /// reward and for the cost.
    fn covered(first: u64, trial: fn(&mut dyn RngCore) -> Trial, truth: Figure) -> [u32; 6] {
        let mut hits = [0; 6];
        for seed in first..first + 100 {
            let mut rng = seeded(seed);
            let trials: Vec<Trial> = (0..TRIALS).map(|_| trial(&mut rng)).collect();
            let found = judge(&trials);
            let of = |part: OffPolicy| [part.ips, part.snips, part.dr];
            let rewards = of(found.reward).map(|estimate| (estimate, truth.reward));
            let costs = of(found.cost).map(|estimate| (estimate, truth.cost));
            for ((estimate, truth), hit) in rewards.into_iter().chain(costs).zip(&mut hits) {
                let inside = estimate.low.unwrap() <= truth && truth <= estimate.high.unwrap();
                *hit += u32::from(inside);
            }
        }
        hits
    }

    /// 93 to 97 of 100 seeds must be covered. One hundred is too few to hold that against a
    /// right interval, whose count leaves 93..=97 one time in four; so ten hundreds are
    /// played and their mean is held to it (2.9 of its standard deviations either way), and
    /// no hundred may be 4.5 of its own standard deviations short.
    fn check(trial: fn(&mut dyn RngCore) -> Trial, truth: Figure) {
        let hundreds: Vec<[u32; 6]> = (0..10).map(|k| covered(100 * k, trial, truth)).collect();
        for estimator in 0..6 {
            let counts: Vec<u32> = hundreds.iter().map(|hits| hits[estimator]).collect();
            let mean = f64::from(counts.iter().sum::<u32>()) / 10.0;
            println!("estimator {estimator}: {mean} of 100 on average; {counts:?}");
            assert!((93.0..=97.0).contains(&mean), "{mean} {counts:?}");
            assert!(counts.iter().all(|count| *count >= 85), "{counts:?}");
        }
    }

    #[test]
    fn intervals_cover_the_truth_of_single_arms() {
        let sum = |of: &dyn Fn(usize, usize) -> f64| {
            truth(|x| (0..5).map(|k| WANTED[x][k] * of(x, k)).sum())
        };
        check(
            single,
            Figure {
                reward: sum(&|x, k| MEANS[x][k]),
                cost: sum(&|_, k| costs(k)),
            },
        );
    }

    #[test]
    fn intervals_cover_the_truth_of_sets_that_add_up() {
        let sum = |of: &dyn Fn(usize, usize) -> f64| {
            truth(|x| (0..5).map(|k| 2.0 * WANTED[x][k].min(0.5) * of(x, k)).sum())
        };
        check(
            pair,
            Figure {
                reward: sum(&|x, k| MEANS[x][k]),
                cost: sum(&|_, k| costs(k)),
            },
        );
    }

    #[test]
    fn intervals_cover_the_truth_of_cascades() {
        let miss = |x: usize, k: usize| 1.0 - MEANS[x][k];
        check(
            cascade,
            Figure {
                reward: truth(|x| 1.0 - miss(x, 0) * miss(x, 4)),
                cost: truth(|x| costs(0) + miss(x, 0) * costs(4)),
            },
        );
    }

    #[test]
    fn a_model_takes_variance_away_and_the_same_policy_is_its_own_mean() {
        let mut rng = seeded(7);
        let mut trials: Vec<Trial> = (0..TRIALS).map(|_| single(&mut rng)).collect();
        let found = judge(&trials).reward;
        let width = |estimate: Estimate| estimate.half_width().unwrap();
        assert!(width(found.dr) < 0.85 * width(found.ips), "{found:?}");
        for trial in &mut trials {
            trial.target = (0..5).map(|k| (k, LOGGED[trial.context][k])).collect();
            trial.ran[0].weight = 1.0;
        }
        let own = judge(&trials);
        let mean = trials.iter().map(|t| t.ran[0].outcome.reward).sum::<f64>() / TRIALS as f64;
        assert!((own.reward.ips.mean - mean).abs() < 1e-12);
        assert!((own.reward.snips.mean - mean).abs() < 1e-12);
        assert_eq!((own.effective, own.largest_weight), (TRIALS as f64, 1.0));
        let nothing = judge(&[]);
        assert_eq!((nothing.effective, nothing.largest_weight), (0.0, 0.0));
    }
}
