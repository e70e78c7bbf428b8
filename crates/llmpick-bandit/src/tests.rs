//! Whole learners against the reference numbers of ALGORITHMS 1.8, 1.9 and 2.3.
#![allow(clippy::unwrap_used)]

/// E[min(1, c·U(0.5, 1.5))], the true mean of a simulated cost: the dearest arm is cut off at 1.
pub(crate) fn mean_cost(c: f64) -> f64 {
    let (low, high) = (0.5 * c, 1.5 * c);
    if high <= 1.0 {
        return c;
    }
    ((1.0 - low * low) / 2.0 + (high - 1.0)) / (high - low)
}

/// Set S: (μ, c) of nine arms, ρ = 0.5.
pub(crate) const SET_S: [(f64, f64); 9] = [
    (0.45, 0.03),
    (0.60, 0.05),
    (0.58, 0.09),
    (0.64, 0.18),
    (0.55, 0.10),
    (0.40, 0.02),
    (0.48, 0.04),
    (0.59, 0.12),
    (0.732, 1.0),
];

/// Set G: nine real models on GPQA, ρ = 0.4.
pub(crate) const SET_G: [(f64, f64); 9] = [
    (0.586, 0.0042),
    (0.596, 0.0108),
    (0.763, 0.0151),
    (0.732, 0.038),
    (0.657, 0.0488),
    (0.803, 0.146),
    (0.687, 0.160),
    (0.8485, 0.479),
    (0.8485, 1.0),
];
