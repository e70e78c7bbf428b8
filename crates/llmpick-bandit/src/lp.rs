//! The linear relaxation of one round, solved exactly without an LP library.
//!
//! max Σ w_k z_k over Σ c_k z_k ≤ ρ, 0 ≤ z ≤ 1, and Σ z = N or Σ z ≤ N. With one budget row
//! beside the cardinality the optimum is found by pivoting from the N best arms towards the
//! N cheapest, always over the exchange that gives up least reward per unit of cost saved
//! (ALGORITHMS 1.4). At most two entries are fractional.

/// How many arms a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// Σz = min(N, K): sum-up and all-in.
    Exactly(usize),
    /// Σz ≤ N: any-win.
    AtMost(usize),
}

/// The solution of a relaxed round.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// z̃_k in [0, 1] for each arm.
    pub z: Vec<f64>,
    /// False where even the cheapest admissible set passes the budget; then `z` is that set,
    /// and the long-term violation cannot vanish.
    pub feasible: bool,
}

/// An input no programme can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LpError {
    /// Weights and costs are not of one length.
    #[error("there must be one cost for each weight")]
    Length,
    /// A weight that is NaN or infinite.
    #[error("a weight is not a finite number")]
    Weight,
    /// A cost that is NaN, infinite or negative.
    #[error("a cost is not a finite number from 0")]
    Cost,
    /// The budget is NaN.
    #[error("the budget is not a number")]
    Budget,
}

/// Solves the programme. `budget` may be infinite.
pub fn solve(
    weights: &[f64],
    costs: &[f64],
    budget: f64,
    cardinality: Cardinality,
) -> Result<Solution, LpError> {
    check(weights, costs, budget)?;
    match cardinality {
        Cardinality::Exactly(n) => Ok(exactly(weights, costs, budget, n)),
        Cardinality::AtMost(n) => Ok(at_most(weights, costs, budget, n)),
    }
}

/// Refuses what no programme can be made of.
pub(crate) fn check(weights: &[f64], costs: &[f64], budget: f64) -> Result<(), LpError> {
    if weights.len() != costs.len() {
        return Err(LpError::Length);
    }
    if !weights.iter().all(|w| w.is_finite()) {
        return Err(LpError::Weight);
    }
    if !costs.iter().all(|c| c.is_finite() && *c >= 0.0) {
        return Err(LpError::Cost);
    }
    if budget.is_nan() {
        return Err(LpError::Budget);
    }
    Ok(())
}

/// Σz ≤ N through N dummies with w = 0 and c = 0. The empty set is always affordable unless
/// the budget is negative.
fn at_most(weights: &[f64], costs: &[f64], budget: f64, n: usize) -> Solution {
    let k = weights.len();
    let n = n.min(k);
    let mut padded_weights = weights.to_vec();
    let mut padded_costs = costs.to_vec();
    padded_weights.resize(k + n, 0.0);
    padded_costs.resize(k + n, 0.0);
    let mut solution = exactly(&padded_weights, &padded_costs, budget, n);
    solution.z.truncate(k);
    solution
}

fn exactly(weights: &[f64], costs: &[f64], budget: f64, n: usize) -> Solution {
    let k = weights.len();
    let n = n.min(k);
    let mut inside = top(k, n, |a, b| {
        weights[b]
            .total_cmp(&weights[a])
            .then(costs[a].total_cmp(&costs[b]))
    });
    if cost_of(&inside, costs) <= budget {
        return integral(&inside, true);
    }
    let cheapest = top(k, n, |a, b| {
        costs[a]
            .total_cmp(&costs[b])
            .then(weights[b].total_cmp(&weights[a]))
    });
    if cost_of(&cheapest, costs) > budget {
        return integral(&cheapest, false);
    }
    while let Some((out, into)) = exchange(&inside, weights, costs) {
        // Summed afresh each time, so that no error piles up over the swaps.
        let cost = cost_of(&inside, costs);
        let saved = costs[out] - costs[into];
        if cost - saved > budget {
            inside[out] = false;
            inside[into] = true;
            continue;
        }
        let theta = ((cost - budget) / saved).clamp(0.0, 1.0);
        let mut solution = integral(&inside, true);
        solution.z[out] = 1.0 - theta;
        solution.z[into] = theta;
        return solution;
    }
    // Nothing cheaper is left, so the set is the cheapest one, which the budget allows but
    // for the order of a floating-point sum.
    integral(&cheapest, true)
}

/// The exchange i ∈ S → j ∉ S, c_j < c_i, of least λ = (w_i − w_j)/(c_i − c_j). Ties go to the
/// larger saving, then to values, and only then to indexes, so that arms with equal numbers
/// are interchangeable whatever their order.
fn exchange(inside: &[bool], weights: &[f64], costs: &[f64]) -> Option<(usize, usize)> {
    let mut best: Option<([f64; 4], (usize, usize))> = None;
    for i in (0..inside.len()).filter(|&i| inside[i]) {
        for j in (0..inside.len()).filter(|&j| !inside[j] && costs[j] < costs[i]) {
            let saved = costs[i] - costs[j];
            let lambda = (weights[i] - weights[j]) / saved;
            let key = [lambda, -saved, -costs[i], weights[i]];
            let better = best.as_ref().is_none_or(|(known, _)| {
                // Nearly always the first decides.
                let rest = || {
                    let order = key.iter().zip(known).map(|(a, b)| a.total_cmp(b));
                    order.into_iter().find(|o| o.is_ne())
                };
                key[0] < known[0] || key[0] == known[0] && rest().is_some_and(|o| o.is_lt())
            });
            if better {
                best = Some((key, (i, j)));
            }
        }
    }
    best.map(|(_, pair)| pair)
}

/// Up to so many of the first are kept in order in one pass, rather than all sorted.
const FEW: usize = 8;

/// Membership of the first `n` of 0..k in the given order; ties by index.
pub(crate) fn top(
    k: usize,
    n: usize,
    mut order: impl FnMut(usize, usize) -> std::cmp::Ordering,
) -> Vec<bool> {
    let mut inside = vec![false; k];
    if n <= FEW {
        let mut first = [0; FEW];
        let mut len = 0;
        for i in 0..k {
            // Behind its equals: they came before it.
            let behind = (0..len).rev().find(|&place| order(first[place], i).is_le());
            let place = behind.map_or(0, |place| place + 1);
            if place < n {
                len = (len + 1).min(n);
                first.copy_within(place..len - 1, place + 1);
                first[place] = i;
            }
        }
        first[..len].iter().for_each(|&i| inside[i] = true);
        return inside;
    }
    let mut indexes: Vec<usize> = (0..k).collect();
    indexes.sort_by(|&a, &b| order(a, b));
    for &k in indexes.iter().take(n) {
        inside[k] = true;
    }
    inside
}

/// The cost of a set, summed in index order.
pub(crate) fn cost_of(inside: &[bool], costs: &[f64]) -> f64 {
    let members = inside.iter().zip(costs).filter(|(member, _)| **member);
    members.map(|(_, cost)| cost).sum()
}

pub(crate) fn integral(inside: &[bool], feasible: bool) -> Solution {
    Solution {
        z: inside
            .iter()
            .map(|&member| f64::from(u8::from(member)))
            .collect(),
        feasible,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chance::{below, coin, seeded, unit};
    use rand_pcg::Pcg64Mcg;

    /// A random instance: K ≤ 8, with ties and zero costs on purpose.
    pub(crate) fn instance(rng: &mut Pcg64Mcg) -> (Vec<f64>, Vec<f64>, usize, f64) {
        let k = 1 + below(8, rng);
        let coarse = coin(0.4, rng);
        let draw = |rng: &mut Pcg64Mcg| {
            if coarse {
                below(5, rng) as f64 / 4.0
            } else {
                unit(rng)
            }
        };
        let weights: Vec<f64> = (0..k).map(|_| draw(rng)).collect();
        let costs: Vec<f64> = (0..k)
            .map(|_| if coin(0.15, rng) { 0.0 } else { draw(rng) })
            .collect();
        let n = 1 + below(k + 2, rng); // N ≥ K now and then
        let budget = unit(rng) * 0.7 * n as f64;
        (weights, costs, n, budget)
    }

    /// The best objective over all basic solutions: at most two entries are free.
    fn brute_force(w: &[f64], c: &[f64], budget: f64, n: f64, exact: bool) -> Option<f64> {
        let k = w.len();
        let mut best: Option<f64> = None;
        let mut consider = |z: &[f64]| {
            let sum: f64 = z.iter().sum();
            let cost: f64 = z.iter().zip(c).map(|(z, c)| z * c).sum();
            let inside = z.iter().all(|z| (-1e-12..=1.0 + 1e-12).contains(z));
            let counted = if exact {
                (sum - n).abs() < 1e-9
            } else {
                sum <= n + 1e-9
            };
            if inside && counted && cost <= budget + 1e-12 {
                let value: f64 = z.iter().zip(w).map(|(z, w)| z * w).sum();
                best = Some(best.map_or(value, |b: f64| b.max(value)));
            }
        };
        for mask in 0u32..1 << k {
            let z: Vec<f64> = (0..k).map(|i| f64::from(mask >> i & 1)).collect();
            consider(&z);
            for i in (0..k).filter(|i| mask >> i & 1 == 0) {
                // One free entry, from either row.
                let cost: f64 = z.iter().zip(c).map(|(z, c)| z * c).sum();
                let sum: f64 = z.iter().sum();
                for value in [(budget - cost) / c[i], n - sum] {
                    let mut y = z.clone();
                    y[i] = value;
                    consider(&y);
                }
                // Two free entries: both rows tight.
                for j in (i + 1..k).filter(|j| mask >> j & 1 == 0) {
                    let (rest, left) = (n - sum, budget - cost);
                    let mut y = z.clone();
                    y[i] = (left - c[j] * rest) / (c[i] - c[j]);
                    y[j] = rest - y[i];
                    consider(&y);
                }
            }
        }
        best
    }

    #[test]
    fn equals_brute_force() {
        let mut rng = seeded(20_240_516);
        let (mut infeasible, mut fractional_seen) = (0, 0);
        for case in 0..800 {
            let (w, c, n, budget) = instance(&mut rng);
            let size = n.min(w.len()) as f64;
            for exact in [true, false] {
                let cardinality = if exact {
                    Cardinality::Exactly(n)
                } else {
                    Cardinality::AtMost(n)
                };
                let solution = solve(&w, &c, budget, cardinality).unwrap();
                let expected = brute_force(&w, &c, budget, size, exact);
                assert_eq!(solution.feasible, expected.is_some(), "case {case}");
                let sum: f64 = solution.z.iter().sum();
                let cost: f64 = solution.z.iter().zip(&c).map(|(z, c)| z * c).sum();
                let value: f64 = solution.z.iter().zip(&w).map(|(z, w)| z * w).sum();
                let fractional = solution.z.iter().filter(|z| **z > 0.0 && **z < 1.0).count();
                assert!(fractional <= 2, "case {case}: {:?}", solution.z);
                assert!(solution.z.iter().all(|z| (0.0..=1.0).contains(z)));
                if exact {
                    assert!((sum - size).abs() < 1e-9, "case {case}");
                } else {
                    assert!(sum <= size + 1e-9, "case {case}");
                }
                fractional_seen += fractional.min(1);
                match expected {
                    Some(best) => {
                        assert!(cost <= budget + 1e-9, "case {case}: {cost} > {budget}");
                        assert!(
                            (value - best).abs() < 1e-9,
                            "case {case}: {value} is not {best}; {w:?} {c:?} {n} {budget}"
                        );
                    }
                    None => infeasible += 1,
                }
            }
        }
        // The instances must exercise all branches, or the test proves little.
        assert!(
            infeasible > 20 && fractional_seen > 200,
            "{infeasible} {fractional_seen}"
        );
    }

    #[test]
    fn infeasible_exactly_when_the_cheapest_set_is_too_dear() {
        let (w, c) = ([0.9, 0.5, 0.1], [3.0, 2.0, 1.0]);
        let solution = solve(&w, &c, 2.999, Cardinality::Exactly(2)).unwrap();
        assert_eq!(solution.z, [0.0, 1.0, 1.0]);
        assert!(!solution.feasible);
        let solution = solve(&w, &c, 3.0, Cardinality::Exactly(2)).unwrap();
        assert_eq!(solution.z, [0.0, 1.0, 1.0]);
        assert!(solution.feasible);
    }

    #[test]
    fn the_reference_optima_of_sets_s_and_g() {
        let sets = [
            (crate::tests::SET_S, 0.5, 2.4216),
            (crate::tests::SET_G, 0.4, 3.0227),
        ];
        for (set, budget, optimum) in sets {
            let w: Vec<f64> = set.iter().map(|arm| arm.0).collect();
            let c: Vec<f64> = set
                .iter()
                .map(|arm| crate::tests::mean_cost(arm.1))
                .collect();
            let solution = solve(&w, &c, budget, Cardinality::Exactly(4)).unwrap();
            let value: f64 = solution.z.iter().zip(&w).map(|(z, w)| z * w).sum();
            assert!((value - optimum).abs() < 5e-5, "{value}");
        }
    }

    #[test]
    fn tiny_money_is_still_money() {
        // Costs of a few nano-dollars obey the budget as exactly as any.
        let (w, c) = ([0.9, 0.5], [4e-9, 1e-9]);
        let solution = solve(&w, &c, 2e-9, Cardinality::Exactly(1)).unwrap();
        assert!((solution.z[0] - 1.0 / 3.0).abs() < 1e-9, "{:?}", solution.z);
    }

    #[test]
    fn nonsense_is_refused() {
        let one = Cardinality::Exactly(1);
        assert_eq!(solve(&[1.0], &[], 1.0, one), Err(LpError::Length));
        assert_eq!(solve(&[f64::NAN], &[1.0], 1.0, one), Err(LpError::Weight));
        assert_eq!(solve(&[1.0], &[f64::NAN], 1.0, one), Err(LpError::Cost));
        assert_eq!(solve(&[1.0], &[-1.0], 1.0, one), Err(LpError::Cost));
        assert_eq!(solve(&[1.0], &[1.0], f64::NAN, one), Err(LpError::Budget));
        assert_eq!(solve(&[], &[], 1.0, one).unwrap().z, Vec::<f64>::new());
    }
}
