//! Sum-up (SUC): r(S; μ) = Σ_{k∈S} μ_k with |S| = N. Linear, so the relaxation is the
//! [linear programme](crate::lp) with the means as weights.

use crate::lp::{self, Cardinality, LpError, Solution};

/// max Σ μ̄_k z_k over Σz = N, Σ c̲z ≤ ρ.
pub fn solve(means: &[f64], costs: &[f64], n: usize, budget: f64) -> Result<Solution, LpError> {
    lp::solve(means, costs, budget, Cardinality::Exactly(n))
}
