//! The best whole set, without relaxation: far less overshoot in one round, but it cannot mix
//! two sets to use a budget up. For comparison with the relaxed problem.

use crate::Mode;
use crate::awc::MAX_MEAN;
use crate::lp::{self, LpError, Solution};
use crate::ties;

/// Sets are enumerated up to so many arms.
pub const MAX_ARMS: usize = 20;

/// argmax r(S; μ) over the sets with |S| = N (any-win: 1 ≤ |S| ≤ N) and Σ_S c ≤ ρ, for
/// K ≤ [`MAX_ARMS`]; beyond, the caller must relax. Where no set is affordable the cheapest
/// admissible one is returned and marked. Equal rewards go to the cheaper set.
pub fn solve(
    mode: Mode,
    means: &[f64],
    costs: &[f64],
    n: usize,
    budget: f64,
) -> Result<Solution, LpError> {
    lp::check(means, costs, budget)?;
    ties::by_value(means, costs, |means, costs| {
        Ok(enumerate(mode, means, costs, n, budget))
    })
}

fn enumerate(mode: Mode, means: &[f64], costs: &[f64], n: usize, budget: f64) -> Solution {
    let k = means.len();
    let most = if mode == Mode::Single { 1 } else { n.min(k) };
    let least = if mode == Mode::AnyWin {
        most.min(1)
    } else {
        most
    };
    let ceiling = if mode == Mode::AnyWin { MAX_MEAN } else { 1.0 };
    let mut search = Search {
        mode,
        means: means.iter().map(|m| m.clamp(0.0, ceiling)).collect(),
        costs,
        sizes: least..=most,
        budget,
        inside: vec![false; k],
        best: None,
    };
    let neutral = if mode == Mode::SumUp || mode == Mode::Single {
        0.0
    } else {
        1.0
    };
    search.descend(0, 0, 0.0, neutral);
    match search.best {
        Some((_, _, inside)) => lp::integral(&inside, true),
        None => {
            let cheapest = lp::top(k, least, |a, b| {
                costs[a]
                    .total_cmp(&costs[b])
                    .then(means[b].total_cmp(&means[a]))
            });
            lp::integral(&cheapest, false)
        }
    }
}

struct Search<'a> {
    mode: Mode,
    means: Vec<f64>,
    costs: &'a [f64],
    sizes: std::ops::RangeInclusive<usize>,
    budget: f64,
    inside: Vec<bool>,
    best: Option<(f64, f64, Vec<bool>)>,
}

impl Search<'_> {
    /// `total` is the sum, or the product of means (all-in) or of misses (any-win), so far.
    fn descend(&mut self, k: usize, size: usize, cost: f64, total: f64) {
        let left = self.means.len() - k;
        if size + left < *self.sizes.start() {
            return;
        }
        if left == 0 {
            self.consider(cost, total);
            return;
        }
        if size < *self.sizes.end() && cost + self.costs[k] <= self.budget {
            let mean = self.means[k];
            let total = match self.mode {
                Mode::Single | Mode::SumUp => total + mean,
                Mode::AnyWin => total * (1.0 - mean),
                Mode::AllIn => total * mean,
            };
            self.inside[k] = true;
            self.descend(k + 1, size + 1, cost + self.costs[k], total);
            self.inside[k] = false;
        }
        self.descend(k + 1, size, cost, total);
    }

    fn consider(&mut self, cost: f64, total: f64) {
        let reward = if self.mode == Mode::AnyWin {
            1.0 - total
        } else {
            total
        };
        let better = self.best.as_ref().is_none_or(|(known, paid, _)| {
            reward > known + 1e-12 || (reward >= known - 1e-12 && cost < *paid)
        });
        if better {
            self.best = Some((reward, cost, self.inside.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(mode: Mode, n: usize, budget: f64) -> Vec<usize> {
        let (means, costs) = ([0.9, 0.2, 0.5, 0.5], [3.0, 1.0, 2.0, 2.0]);
        let solution = solve(mode, &means, &costs, n, budget).unwrap();
        (0..4).filter(|&k| solution.z[k] == 1.0).collect()
    }

    #[test]
    fn each_mode_has_its_own_best_set() {
        assert_eq!(set(Mode::SumUp, 2, 4.0), [0, 1]);
        assert_eq!(set(Mode::AllIn, 2, 4.0), [2, 3]);
        assert_eq!(set(Mode::AnyWin, 2, 4.0), [0, 1]);
        assert_eq!(set(Mode::AnyWin, 3, 2.5), [2]);
        assert_eq!(set(Mode::Single, 3, 2.5), [2]);
    }

    #[test]
    fn nothing_affordable_is_the_cheapest_set_and_marked() {
        let solution = solve(Mode::SumUp, &[0.9, 0.1], &[2.0, 1.0], 1, 0.5).unwrap();
        assert_eq!((solution.z, solution.feasible), (vec![0.0, 1.0], false));
    }

    #[test]
    fn agrees_with_the_relaxation_where_that_is_integral() {
        let mut rng = crate::chance::seeded(5);
        for _ in 0..300 {
            let (w, c, n, budget) = lp::tests::instance(&mut rng);
            let relaxed = crate::suc::solve(&w, &c, n, budget).unwrap();
            let whole = solve(Mode::SumUp, &w, &c, n, budget).unwrap();
            assert_eq!(relaxed.feasible, whole.feasible);
            let value = |z: &[f64]| z.iter().zip(&w).map(|(z, w)| z * w).sum::<f64>();
            if relaxed.feasible {
                assert!(value(&relaxed.z) >= value(&whole.z) - 1e-9);
            }
            if relaxed.feasible && relaxed.z.iter().all(|z| *z == 0.0 || *z == 1.0) {
                assert!((value(&relaxed.z) - value(&whole.z)).abs() < 1e-9);
            }
        }
    }
}
