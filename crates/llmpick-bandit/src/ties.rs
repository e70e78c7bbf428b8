//! Probabilities over the shuffle that breaks ties.
//!
//! Learners shuffle the arms before they solve, so which of several equal arms is taken is
//! chance like any other, and a logged propensity must say so: arms nobody has tried yet are
//! all equal, and calling the one that came first certain would ruin off-policy evaluation.

use crate::lp::{LpError, Solution};
use crate::rounding;

/// Solves with the arms in order of their values, so that a tie between different sets, and
/// the last digit of a sum, depend on values alone; only equal arms are told apart by place.
pub(crate) fn by_value(
    means: &[f64],
    costs: &[f64],
    solve: impl FnOnce(&[f64], &[f64]) -> Result<Solution, LpError>,
) -> Result<Solution, LpError> {
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|&a, &b| {
        means[b]
            .total_cmp(&means[a])
            .then(costs[a].total_cmp(&costs[b]))
    });
    let sorted = |values: &[f64]| order.iter().map(|&k| values[k]).collect::<Vec<f64>>();
    let mut solution = solve(&sorted(means), &sorted(costs))?;
    let mut z = vec![0.0; means.len()];
    for (&k, &share) in order.iter().zip(&solution.z) {
        z[k] = share;
    }
    solution.z = z;
    Ok(solution)
}

/// Which arms the solver cannot tell apart: for each the first that equals it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Classes {
    first: Vec<usize>,
    /// No two are equal.
    distinct: bool,
}

impl Classes {
    /// By means and costs, in one pass: a table of places by hash, large enough that few meet.
    pub(crate) fn new(means: &[f64], costs: &[f64]) -> Self {
        const FREE: u32 = u32::MAX;
        let room = (4 * means.len().max(1)).next_power_of_two();
        let mut places = vec![FREE; room];
        let mut distinct = true;
        let mut first = Vec::with_capacity(means.len());
        for i in 0..means.len() {
            // −0 equals 0, and adding 0 makes it so.
            let bits = |x: f64| (x + 0.0).to_bits();
            let mixed = (bits(means[i]) ^ bits(costs[i]).rotate_left(32))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut at = (mixed >> 40) as usize & (room - 1);
            let class = loop {
                match places[at] {
                    FREE => {
                        places[at] = i as u32;
                        break i;
                    }
                    j if equal(means, costs, i, j as usize) => break j as usize,
                    _ => at = (at + 1) & (room - 1),
                }
            };
            distinct &= class == i;
            first.push(class);
        }
        Self { first, distinct }
    }

    /// True where any two arms are equal and this tells them apart.
    pub(crate) fn divided(&self, differ: impl Fn(usize, usize) -> bool) -> bool {
        let places = self.first.iter().enumerate();
        places.filter(|(i, j)| i != *j).any(|(i, &j)| differ(i, j))
    }

    /// Arms the solver cannot tell apart share their marginals.
    pub(crate) fn share(&self, z: &[f64]) -> Vec<f64> {
        if self.distinct {
            return z.to_vec();
        }
        let mut sums = vec![(0.0, 0.0); z.len()];
        for (&class, z) in self.first.iter().zip(z) {
            let (count, sum) = &mut sums[class];
            *count += 1.0;
            *sum += z;
        }
        let sums = self.first.iter().map(|&class| sums[class]);
        sums.map(|(count, sum)| sum / count).collect()
    }

    /// P(exactly this set), over the shuffle and these outcomes: sets that differ only by an
    /// exchange of equal arms are equally likely.
    pub(crate) fn probability(&self, outcomes: &[(Vec<bool>, f64)], set: &[usize]) -> f64 {
        let places = self.first.len();
        let mut drawn = vec![0usize; places];
        set.iter().for_each(|&i| drawn[self.first[i]] += 1);
        let mut counts = vec![0usize; places];
        let mut is_drawn = |inside: &[bool]| {
            counts.fill(0);
            for i in (0..places).filter(|&i| inside[i]) {
                counts[self.first[i]] += 1;
            }
            counts == drawn
        };
        let same = outcomes.iter().filter(|(inside, _)| is_drawn(inside));
        let probability: f64 = same.map(|(_, p)| p).sum();
        probability / self.ways(set)
    }

    /// How many sets an exchange of equal arms makes of this one.
    pub(crate) fn ways(&self, set: &[usize]) -> f64 {
        if self.distinct {
            return 1.0;
        }
        let mut drawn = vec![0usize; self.first.len()];
        set.iter().for_each(|&i| drawn[self.first[i]] += 1);
        let size = |class: usize| self.first.iter().filter(|&&c| c == class).count();
        let taken = drawn.iter().enumerate().filter(|(_, k)| **k > 0);
        taken.map(|(class, &k)| binomial(size(class), k)).product()
    }
}

/// Every set that the rounding of `z` may draw and its probability. `None` where more than two
/// entries are fractional, since the order of the rounding then matters.
pub(crate) fn outcomes(z: &[f64]) -> Option<Vec<(Vec<bool>, f64)>> {
    rounding::outcomes(z, 2)
}

/// n over k.
pub(crate) fn binomial(n: usize, k: usize) -> f64 {
    (0..k.min(n)).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64)
}

fn equal(means: &[f64], costs: &[f64], i: usize, j: usize) -> bool {
    means[i] == means[j] && costs[i] == costs[j]
}
