//! The order of an any-win cascade and what it costs.
//!
//! Exchanging two neighbours i, j changes the expected cost by c_i + (1−μ_i)c_j against
//! c_j + (1−μ_j)c_i, so ascending c/μ is the cheapest order, whatever the set.

/// What a cascade is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// Ascending c/μ: the cheapest in expectation.
    #[default]
    Ratio,
    /// Ascending c: the paper's simulations.
    Cost,
}

/// Sorts arms (indexes into `means` and `costs`) into their cascade. Equals keep their order,
/// so a caller that shuffled them first has random ties.
pub fn sort(arms: &mut [usize], means: &[f64], costs: &[f64], order: Order) {
    // A hopeless arm goes last among those that cost anything, and a free one first.
    let ratio = |k: usize| costs[k] / means[k].max(1e-9);
    arms.sort_by(|&a, &b| match order {
        Order::Ratio => ratio(a)
            .total_cmp(&ratio(b))
            .then(means[b].total_cmp(&means[a])),
        Order::Cost => costs[a].total_cmp(&costs[b]),
    });
}

/// Σ_j c_(j) Π_{i<j}(1−μ_(i)): what the cascade costs in expectation. At most the whole set's
/// cost, which is what the budget row of the relaxation charges.
pub fn expected_cost(order: &[usize], means: &[f64], costs: &[f64]) -> f64 {
    let mut reached = 1.0;
    let mut cost = 0.0;
    for &k in order {
        cost += reached * costs[k];
        reached *= 1.0 - means[k];
    }
    cost
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chance::{seeded, unit};

    #[test]
    fn no_order_is_cheaper() {
        let mut rng = seeded(11);
        for _ in 0..200 {
            let means: Vec<f64> = (0..4).map(|_| unit(&mut rng)).collect();
            let costs: Vec<f64> = (0..4).map(|_| unit(&mut rng)).collect();
            let mut order = [0, 1, 2, 3];
            sort(&mut order, &means, &costs, Order::Ratio);
            let best = expected_cost(&order, &means, &costs);
            for other in permutations() {
                assert!(best <= expected_cost(&other, &means, &costs) + 1e-12);
            }
            assert!(best <= costs.iter().sum::<f64>());
        }
    }

    fn permutations() -> Vec<[usize; 4]> {
        let all = (0..256).map(|code: usize| [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6]);
        all.filter(|p| (0..4).all(|k| p.contains(&k))).collect()
    }

    #[test]
    fn free_and_hopeless_arms_have_a_place() {
        let mut order = [0, 1, 2];
        sort(&mut order, &[0.0, 0.5, 0.9], &[1.0, 1.0, 0.0], Order::Ratio);
        assert_eq!(order, [2, 1, 0]);
        let mut order = [0, 1];
        sort(&mut order, &[0.1, 0.9], &[0.0, 0.0], Order::Ratio);
        assert_eq!(order, [1, 0]);
        sort(&mut order, &[0.1, 0.9], &[1.0, 2.0], Order::Cost);
        assert_eq!(order, [0, 1]);
    }
}
