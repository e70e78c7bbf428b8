//! Three ways to keep a budget of ρ per round.
//!
//! *Average* is the paper's: each round's relaxed problem charges lower bounds of the costs
//! against ρ, so the long-term average comes down to ρ as the bounds tighten, and what was
//! overspent while learning is never paid back. *Paced* feeds the error back: the allowance of
//! a round is ρ and a share of what has been saved so far, or less a share of the debt (a
//! proportional controller, the primal counterpart of pacing by a dual variable: a debt raises
//! the price of money as λ ← λ + η(y − ρ) does). *Hard* is paced, and besides chooses no set
//! whose upper bounds add up to more than what is left.
//!
//! What was really spent is learnt from feedback alone. Calls that are out count as their
//! upper bounds until then.

use serde::{Deserialize, Serialize};

use crate::{ArmView, Observation, exact};

/// How a finite budget is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BudgetMode {
    /// The paper's long-term average, from lower bounds of the costs.
    Average,
    /// What was really spent corrects the allowance of each round.
    #[default]
    Paced,
    /// Paced, and the total never passes ρ times the rounds, as far as upper bounds hold.
    Hard,
}

/// A debt is paid back, or savings are spent, over so many rounds. Measured on the MMLU-Pro
/// replay: 30 follows the noise of single calls and earns .007 less, 300 earns the same and
/// lets a debt of the first rounds stand longer.
const WINDOW: f64 = 100.0;

/// Under a paced budget at most this share of a mean cost is taken for uncertain. With the
/// paper's lower bound an arm costs nothing until it was called often, and everything so spent
/// must be paid back; without any optimism an arm whose first call was dear is never called
/// again.
const MOST_OPTIMISM: f64 = 0.2;

/// What was spent, and in how many rounds; never discounted. Part of the learnt state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spend {
    rounds: u64,
    #[serde(with = "exact")]
    total: f64,
}

impl Spend {
    /// Takes a call in; its round is complete with the plan's first arm.
    pub fn observe(&mut self, observation: &Observation<'_>) {
        if let Some(cost) = observation.paid() {
            self.total += cost;
            self.rounds += u64::from(observation.completes_round());
        }
    }

    /// ρ times the rounds so far, less what was spent in them.
    pub fn saved(&self, rho: f64) -> f64 {
        rho * self.rounds as f64 - self.total
    }

    /// What the next round may cost on average, while calls worth `out` beyond their own
    /// rounds' ρ are running: at least nothing, at most twice ρ, so that what a long quiet time
    /// has saved is not spent in one burst.
    pub fn allowance(&self, rho: f64, out: f64) -> f64 {
        let allowance = rho + (self.saved(rho) - out) / WINDOW;
        allowance.min(2.0 * rho).max(0.0)
    }

    /// What the next round may cost at the most without passing ρ times the rounds, while calls
    /// are running that may cost `out`.
    pub fn left(&self, rho: f64, out: f64) -> f64 {
        rho + self.saved(rho) - out
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.total.is_finite() && self.total >= 0.0
    }
}

/// The most that a call of the arm can cost: the host's bound; without one the larger of its
/// estimate and the largest cost seen; infinite for a stranger.
#[inline]
pub(crate) fn most(arm: &ArmView<'_>, largest_seen: f64) -> f64 {
    match (known(arm.cost_max), known(arm.est_cost)) {
        (Some(bound), _) => bound,
        (None, Some(estimate)) => estimate.max(largest_seen),
        (None, None) if largest_seen > 0.0 => largest_seen,
        (None, None) => f64::INFINITY,
    }
}

/// An amount of money the host knows.
#[inline]
pub(crate) fn known(x: f64) -> Option<f64> {
    (x.is_finite() && x >= 0.0).then_some(x)
}

/// What a paced budget charges for an arm with this mean cost of `count` calls, of which the
/// radius says that `width` is uncertain. Costs of one arm differ by about their mean, so 1/√n
/// of it bounds the doubt as well.
#[inline]
pub(crate) fn charged(mean: f64, width: f64, count: f64) -> f64 {
    let doubt = (1.0 / count.max(1.0).sqrt()).min(MOST_OPTIMISM);
    mean - width.min(doubt * mean)
}

/// Which arms a hard budget leaves to choose from: those in some set of `whole` arms whose
/// upper bounds add up to at most `left`. Where there is no such set, the `whole` arms of the
/// least bounds, and false.
pub(crate) fn affordable(most: &[f64], whole: usize, left: f64) -> (Vec<bool>, bool) {
    let mut order: Vec<usize> = (0..most.len()).collect();
    order.sort_by(|&a, &b| most[a].total_cmp(&most[b]));
    let (least, others) = order.split_at(whole.clamp(1, most.len().max(1)).min(order.len()));
    let sum: f64 = least.iter().map(|&k| most[k]).sum();
    let mut inside = vec![false; most.len()];
    least.iter().for_each(|&k| inside[k] = true);
    if sum > left {
        return (inside, false);
    }
    let largest = least.last().map_or(0.0, |&k| most[k]);
    for &k in others {
        inside[k] = sum - largest + most[k] <= left;
    }
    (inside, true)
}

/// Leaves of these arms so many of the cheapest that any `n` of them fit, but one at least.
pub(crate) fn all_affordable(inside: &mut [bool], most: &[f64], n: usize, left: f64) {
    let mut order: Vec<usize> = (0..most.len()).filter(|&k| inside[k]).collect();
    order.sort_by(|&a, &b| most[a].total_cmp(&most[b]));
    while order.len() > 1 {
        let dearest = order.iter().rev().take(n.max(1));
        if dearest.map(|&k| most[k]).sum::<f64>() <= left {
            return;
        }
        if let Some(out) = order.pop() {
            inside[out] = false;
        }
    }
}

/// Makes a drawn set fit into what is left: while its bounds add up to more, its dearest arm
/// leaves (`may_shrink`), or changes places with the cheapest outside.
pub(crate) fn fit(inside: &mut [bool], most: &[f64], left: f64, may_shrink: bool) {
    // One step for each arm at the most: who has left does not come back.
    for _ in 0..inside.len() {
        let members = || (0..inside.len()).filter(|&k| inside[k]);
        let dearest = members().max_by(|&a, &b| most[a].total_cmp(&most[b]));
        let sum: f64 = members().map(|k| most[k]).sum();
        let Some(out) = dearest.filter(|_| sum > left && (!may_shrink || members().count() > 1))
        else {
            return;
        };
        let outside = (0..inside.len()).filter(|&k| !inside[k] && most[k] < most[out]);
        let into = outside.min_by(|&a, &b| most[a].total_cmp(&most[b]));
        match into {
            Some(k) if !may_shrink => inside[k] = true,
            None if !may_shrink => return,
            _ => {}
        }
        inside[out] = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chance::{coin, seeded, unit};

    fn call(position: u32, cost: f64) -> Observation<'static> {
        Observation {
            position,
            cost,
            ..Observation::default()
        }
    }

    #[test]
    fn savings_and_debts_move_the_allowance() {
        let mut spend = Spend::default();
        assert_eq!(
            (spend.allowance(2.0, 0.0), spend.left(2.0, 0.0)),
            (2.0, 2.0)
        );
        spend.observe(&call(0, 5.0));
        spend.observe(&call(1, 7.0)); // the same round
        assert_eq!(spend.saved(2.0), -10.0);
        assert_eq!(spend.allowance(2.0, 0.0), 2.0 - 10.0 / WINDOW);
        assert_eq!(spend.left(20.0, 3.0), 20.0 + 8.0 - 3.0);
        // A late score is no call, nor is a call of unknown cost.
        spend.observe(&call(0, f64::NAN));
        assert_eq!(spend.saved(2.0), -10.0);
        for (rho, expected) in [(0.0, 0.0), (-1.0, 0.0), (1e6, 1e6 + 999_988.0 / WINDOW)] {
            assert_eq!(spend.allowance(rho, 0.0), expected);
        }
        assert_eq!(Spend::default().allowance(1.0, -1e9), 2.0);
    }

    #[test]
    fn a_bound_is_the_hosts_or_what_was_seen() {
        let arm = |est_cost, cost_max| ArmView {
            est_cost,
            cost_max,
            ..ArmView::stranger("a")
        };
        assert_eq!(most(&arm(1.0, 5.0), 9.0), 5.0);
        assert_eq!(most(&arm(1.0, f64::NAN), 3.0), 3.0);
        assert_eq!(most(&arm(f64::NAN, f64::NAN), 3.0), 3.0);
        assert_eq!(most(&arm(f64::NAN, f64::NAN), 0.0), f64::INFINITY);
    }

    #[test]
    fn what_a_hard_budget_allows_is_what_brute_force_finds() {
        let mut rng = seeded(41);
        for case in 0..500 {
            let k = 1 + case % 6;
            let most: Vec<f64> = (0..k).map(|_| unit(&mut rng)).collect();
            let left = unit(&mut rng) * 2.0;
            for whole in 1..=k {
                let sets = (0u32..1 << k).filter(|set| set.count_ones() as usize == whole);
                let sum = |set: u32| -> f64 {
                    (0..k).filter(|i| set >> i & 1 == 1).map(|i| most[i]).sum()
                };
                let fitting: Vec<u32> = sets.filter(|set| sum(*set) <= left).collect();
                let (inside, any) = affordable(&most, whole, left);
                assert_eq!(any, !fitting.is_empty());
                if any {
                    for (i, inside) in inside.iter().enumerate() {
                        let in_some = fitting.iter().any(|set| set >> i & 1 == 1);
                        assert_eq!(*inside, in_some, "{most:?} {whole} {left}");
                    }
                }
                let mut kept = inside.clone();
                all_affordable(&mut kept, &most, whole, left);
                let some = |set: u32| (0..k).all(|i| set >> i & 1 == 0 || kept[i]);
                let worst = (0u32..1 << k).filter(|set| set.count_ones() as usize <= whole);
                let worst = worst.filter(|set| some(*set)).map(sum).fold(0.0, f64::max);
                let count = kept.iter().filter(|kept| **kept).count();
                assert!(count == 1 || worst <= left, "{most:?} {kept:?} {left}");
                // Any draw can be made to fit.
                let mut drawn: Vec<bool> = (0..k).map(|_| coin(0.5, &mut rng)).collect();
                let size = drawn.iter().filter(|d| **d).count();
                let total = |drawn: &[bool]| -> f64 {
                    drawn
                        .iter()
                        .zip(&most)
                        .filter(|(d, _)| **d)
                        .map(|(_, m)| m)
                        .sum()
                };
                let mut swapped = drawn.clone();
                fit(&mut swapped, &most, left, false);
                assert_eq!(swapped.iter().filter(|d| **d).count(), size);
                if size == whole && any {
                    assert!(total(&swapped) <= left, "{most:?} {drawn:?} {left}");
                }
                fit(&mut drawn, &most, left, true);
                let size = drawn.iter().filter(|d| **d).count();
                assert!(size <= 1 || total(&drawn) <= left);
            }
        }
    }
}
