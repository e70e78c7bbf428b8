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

/// A mix of at most two cascades, by their shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Each cascade's arms in their order, and its share; the shares sum to 1.
    pub cascades: Vec<(Vec<usize>, f64)>,
    /// False where even the cheapest arm passes the budget; then it is that arm.
    pub feasible: bool,
}

/// The best mix of cascades of 1 to `n` arms whose *expected* cost keeps the budget:
/// max E r(S) over E C(S) ≤ ρ with r(S) = 1 − Π(1−μ) and C(S) = [`expected_cost`].
///
/// The paper's budget row charges every arm of the set, although a cascade pays only for those
/// it reaches. Charging what is paid makes the cost of a set no longer a sum over its arms, but
/// with one constraint the optimum over all distributions of sets lies on an edge of the upper
/// hull of the points (C(S), r(S)): two sets. For a price λ of money the best cascade is exact
/// by dynamic programming over the arms in ascending c/μ,
/// V_k(m) = max(V_{k+1}(m), μ_k − λc_k + (1−μ_k)·V_{k+1}(m−1)), and the edge is found by asking
/// at the slope of the two sets known to straddle ρ until nothing lies above. No limit on K.
///
/// `means` in [0, 1), `costs` finite and from 0, `budget` finite, at least one arm.
pub fn mix(means: &[f64], costs: &[f64], n: usize, budget: f64) -> Mix {
    let mut search = Hull::new(means, costs, n);
    let mut cheap = search.cheapest();
    let mut dear = search.best(0.0);
    let whole = |point: Point, feasible| Mix {
        cascades: vec![(point.arms, 1.0)],
        feasible,
    };
    if dear.cost <= budget {
        return whole(dear, true);
    }
    if cheap.cost > budget {
        return whole(cheap, false);
    }
    // Each step replaces one end by a set above the line between them, of which there are few.
    while dear.cost > cheap.cost {
        let lambda = (dear.reward - cheap.reward) / (dear.cost - cheap.cost);
        let between = search.best(lambda);
        let gain = (between.reward - dear.reward) - lambda * (between.cost - dear.cost);
        if gain <= 1e-12 {
            break;
        }
        if between.cost <= budget {
            cheap = between;
        } else {
            dear = between;
        }
    }
    let share = (budget - cheap.cost) / (dear.cost - cheap.cost);
    if share <= 0.0 {
        return whole(cheap, true);
    }
    Mix {
        cascades: vec![(cheap.arms, 1.0 - share), (dear.arms, share)],
        feasible: true,
    }
}

/// One cascade on the plane of cost and reward.
struct Point {
    arms: Vec<usize>,
    cost: f64,
    reward: f64,
}

struct Hull<'a> {
    means: &'a [f64],
    costs: &'a [f64],
    n: usize,
    /// The arms in ascending c/μ.
    order: Vec<usize>,
    /// V_k(m), row by row of k; one row more for "no arms left".
    values: Vec<f64>,
}

impl<'a> Hull<'a> {
    fn new(means: &'a [f64], costs: &'a [f64], n: usize) -> Self {
        let mut order: Vec<usize> = (0..means.len()).collect();
        sort(&mut order, means, costs, Order::Ratio);
        let n = n.clamp(1, means.len().max(1));
        Self {
            means,
            costs,
            n,
            values: vec![0.0; (order.len() + 1) * (n + 1)],
            order,
        }
    }

    fn point(&self, arms: Vec<usize>) -> Point {
        let miss: f64 = arms.iter().map(|&k| 1.0 - self.means[k]).product();
        Point {
            cost: expected_cost(&arms, self.means, self.costs),
            reward: 1.0 - miss,
            arms,
        }
    }

    /// The cheapest arm, of equals the best.
    fn cheapest(&self) -> Point {
        let key = |a: &usize, b: &usize| {
            let cost = self.costs[*a].total_cmp(&self.costs[*b]);
            cost.then(self.means[*b].total_cmp(&self.means[*a]))
        };
        let cheapest = self.order.iter().copied().min_by(key);
        self.point(cheapest.into_iter().collect())
    }

    /// The cascade of the largest reward − λ·cost, of 1 to n arms.
    fn best(&mut self, lambda: f64) -> Point {
        let (k, width) = (self.order.len(), self.n + 1);
        for place in (0..k).rev() {
            for left in 1..width {
                let skip = self.values[(place + 1) * width + left];
                let take = self.take(place, left, lambda);
                self.values[place * width + left] = skip.max(take);
            }
        }
        // At least one arm answers, even where none is worth its price.
        let worth = |place: usize| self.take(place, self.n, lambda);
        let first = (0..k).max_by(|&a, &b| worth(a).total_cmp(&worth(b)).then(b.cmp(&a)));
        let (mut arms, mut left) = (Vec::new(), self.n);
        let mut place = first.unwrap_or(0);
        while place < k && left > 0 {
            let skip = self.values[(place + 1) * width + left];
            if arms.is_empty() || self.take(place, left, lambda) > skip {
                arms.push(self.order[place]);
                left -= 1;
            }
            place += 1;
        }
        self.point(arms)
    }

    /// What is gained by running the arm at this place now, and the best of the later ones.
    fn take(&self, place: usize, left: usize, lambda: f64) -> f64 {
        let arm = self.order[place];
        let later = self.values[(place + 1) * (self.n + 1) + left - 1];
        self.means[arm] - lambda * self.costs[arm] + (1.0 - self.means[arm]) * later
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chance::{below, seeded, unit};

    /// The best mix of any two sets, by trying all pairs.
    fn brute_force(means: &[f64], costs: &[f64], n: usize, budget: f64) -> Option<f64> {
        let k = means.len();
        let sets = (1u32..1 << k).filter(|set| set.count_ones() as usize <= n);
        let points: Vec<(f64, f64)> = sets
            .map(|set| {
                let mut arms: Vec<usize> = (0..k).filter(|i| set >> i & 1 == 1).collect();
                sort(&mut arms, means, costs, Order::Ratio);
                let miss: f64 = arms.iter().map(|&i| 1.0 - means[i]).product();
                (expected_cost(&arms, means, costs), 1.0 - miss)
            })
            .collect();
        let mut best: Option<f64> = None;
        for &(c1, r1) in points.iter().filter(|p| p.0 <= budget) {
            best = Some(best.map_or(r1, |b: f64| b.max(r1)));
            for &(c2, r2) in points.iter().filter(|p| p.0 > budget) {
                let share = (budget - c1) / (c2 - c1);
                let mixed = r1 + share * (r2 - r1);
                best = best.map(|b| b.max(mixed));
            }
        }
        best
    }

    #[test]
    fn the_best_mix_of_cascades_is_what_brute_force_finds() {
        let mut rng = seeded(23);
        let (mut two, mut gained) = (0, 0);
        for case in 0..600 {
            let k = 1 + below(6, &mut rng);
            let coarse = case % 3 == 0;
            let mut draw = |most: f64| match coarse {
                true => most * below(5, &mut rng) as f64 / 4.0,
                false => most * unit(&mut rng),
            };
            let means: Vec<f64> = (0..k).map(|_| draw(0.999)).collect();
            let costs: Vec<f64> = (0..k).map(|_| draw(1.0)).collect();
            let (n, budget) = (1 + case % 4, draw(1.0));
            let found = mix(&means, &costs, n, budget);
            let expected = brute_force(&means, &costs, n, budget);
            assert_eq!(found.feasible, expected.is_some(), "case {case}");
            let sum = |of: &dyn Fn(&[usize]) -> f64| -> f64 {
                found.cascades.iter().map(|(arms, p)| p * of(arms)).sum()
            };
            assert!((sum(&|_| 1.0) - 1.0).abs() < 1e-12);
            for (arms, share) in &found.cascades {
                assert!(!arms.is_empty() && arms.len() <= n && *share > 0.0);
            }
            two += usize::from(found.cascades.len() == 2);
            let Some(expected) = expected else { continue };
            let cost = sum(&|arms| expected_cost(arms, &means, &costs));
            assert!(cost <= budget + 1e-9, "case {case}: {cost} > {budget}");
            let reward = sum(&|arms| 1.0 - arms.iter().map(|&i| 1.0 - means[i]).product::<f64>());
            assert!(
                (reward - expected).abs() < 1e-9,
                "case {case}: {reward}, not {expected}"
            );
            // At least what the paper's row earns, which charges more.
            let method = crate::awc::Method::Exact;
            let whole = crate::awc::solve(&means, &costs, n, budget, method, 1).unwrap();
            let relaxed = crate::awc::value(&means, &whole.z);
            gained += usize::from(reward > relaxed + 0.01);
        }
        assert!(two > 100 && gained > 100, "{two} {gained}");
    }

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
