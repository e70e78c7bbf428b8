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

/// Arms the solver cannot tell apart share their marginals.
pub(crate) fn share(z: &[f64], means: &[f64], costs: &[f64]) -> Vec<f64> {
    (0..z.len())
        .map(|i| {
            let ties = (0..z.len()).filter(|&j| equal(means, costs, i, j));
            let (count, sum) = ties.fold((0.0, 0.0), |(n, sum), j| (n + 1.0, sum + z[j]));
            sum / count
        })
        .collect()
}

/// Every set that the rounding of `z` may draw and its probability. `None` where more than two
/// entries are fractional, since the order of the rounding then matters.
pub(crate) fn outcomes(z: &[f64]) -> Option<Vec<(Vec<bool>, f64)>> {
    rounding::outcomes(z, 2)
}

/// P(exactly this set), over the shuffle and these outcomes: sets that differ only by an
/// exchange of equal arms are equally likely.
pub(crate) fn probability(
    outcomes: &[(Vec<bool>, f64)],
    means: &[f64],
    costs: &[f64],
    set: &[usize],
) -> f64 {
    let class: Vec<usize> = (0..means.len())
        .map(|i| (0..i).find(|&j| equal(means, costs, i, j)).unwrap_or(i))
        .collect();
    let kind = |member: &dyn Fn(usize) -> bool| {
        let mut counts = vec![0usize; class.len()];
        for i in (0..class.len()).filter(|&i| member(i)) {
            counts[class[i]] += 1;
        }
        counts
    };
    let drawn = kind(&|i| set.contains(&i));
    let total = kind(&|_| true);
    let same = outcomes.iter().filter(|(s, _)| kind(&|i| s[i]) == drawn);
    let probability: f64 = same.map(|(_, p)| p).sum();
    let counts = total.iter().zip(&drawn);
    let ways: f64 = counts.map(|(&n, &k)| binomial(n, k)).product();
    probability / ways
}

/// n over k.
pub(crate) fn binomial(n: usize, k: usize) -> f64 {
    (0..k.min(n)).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64)
}

pub(crate) fn equal(means: &[f64], costs: &[f64], i: usize, j: usize) -> bool {
    means[i] == means[j] && costs[i] == costs[j]
}
