//! All-in (AIC): r(S; μ) = Π_{k∈S} μ_k with |S| = N. Its relaxation Π μ̄_k^{z_k} is linear
//! after a logarithm.

use crate::lp::{self, Cardinality, LpError, Solution};

/// Below this a mean counts as this: ln 0 would make every set with the arm equally bad.
const LEAST_MEAN: f64 = 1e-6;

/// The weights of the linear programme, ln max(μ̄, 10⁻⁶).
pub fn weights(means: &[f64]) -> Vec<f64> {
    means.iter().map(|m| libm::log(m.max(LEAST_MEAN))).collect()
}

/// max Σ z_k ln μ̄_k over Σz = N, Σ c̲z ≤ ρ.
pub fn solve(means: &[f64], costs: &[f64], n: usize, budget: f64) -> Result<Solution, LpError> {
    if means.iter().any(|mean| !mean.is_finite()) {
        return Err(LpError::Weight); // max() above would hide it
    }
    lp::solve(&weights(means), costs, budget, Cardinality::Exactly(n))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_hopeless_arm_is_a_number_not_a_nan() {
        let solution = solve(&[0.0, 0.0, 0.9, 0.5], &[0.1; 4], 2, 1.0).unwrap();
        assert_eq!(solution.z, [0.0, 0.0, 1.0, 1.0]);
        // Even where nothing else is left.
        let solution = solve(&[0.0, 0.0, 0.9], &[0.1, 0.2, 0.3], 3, 1.0).unwrap();
        assert_eq!(solution.z, [1.0; 3]);
        let solution = solve(&[0.0, 0.9], &[0.0, 0.8], 1, 0.4).unwrap();
        assert!((solution.z[1] - 0.5).abs() < 1e-12, "{:?}", solution.z);
        assert_eq!(solve(&[f64::NAN], &[0.0], 1, 1.0), Err(LpError::Weight));
    }

    #[test]
    fn maximises_the_product_not_the_sum() {
        // {.9, .2} and {.5, .5} cost the same; .25 > .18 although 1.0 < 1.1.
        let solution = solve(&[0.9, 0.2, 0.5, 0.5], &[3.0, 1.0, 2.0, 2.0], 2, 4.0).unwrap();
        let product = |z: &[f64]| {
            let terms = z.iter().zip([0.9f64, 0.2, 0.5, 0.5]);
            terms.map(|(z, m)| m.powf(*z)).product::<f64>()
        };
        assert!(product(&solution.z) >= 0.25 - 1e-12, "{:?}", solution.z);
    }
}
