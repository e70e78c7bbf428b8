//! Chance, from a seed.
//!
//! The draws are written out here rather than taken from `rand`'s distributions, whose
//! streams may change between releases: a decision in an old ledger must replay for ever.

use rand::RngCore;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

/// The generator for a seed out of a request.
pub fn seeded(seed: u64) -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(seed)
}

/// Uniform on [0, 1), 53 bits.
pub fn unit(rng: &mut (impl RngCore + ?Sized)) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 53) as f64;
    (rng.next_u64() >> 11) as f64 * STEP
}

/// True with probability `p`; never for p ≤ 0, always for p ≥ 1.
pub fn coin(p: f64, rng: &mut (impl RngCore + ?Sized)) -> bool {
    unit(rng) < p
}

/// Uniform on 0..n (0 for n ≤ 1), without bias: Lemire's multiplication with rejection.
pub fn below(n: usize, rng: &mut (impl RngCore + ?Sized)) -> usize {
    let n = n as u64;
    if n <= 1 {
        return 0;
    }
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        // The threshold is below n: the division is needed for one draw in 2⁶⁴/n.
        let low = product as u64;
        if low >= n || low >= n.wrapping_neg() % n {
            return (product >> 64) as usize;
        }
    }
}

/// Every order equally likely (Fisher–Yates).
pub fn shuffle<T>(items: &mut [T], rng: &mut (impl RngCore + ?Sized)) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(i + 1, rng));
    }
}

/// An index drawn with the given non-negative weights, which need not sum to 1. `None` where
/// no weight is positive.
pub fn pick(weights: &[f64], rng: &mut (impl RngCore + ?Sized)) -> Option<usize> {
    let total: f64 = weights.iter().filter(|w| **w > 0.0).sum();
    let mut left = unit(rng) * total;
    let mut last = None;
    for (i, &weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        if left < weight {
            return Some(i);
        }
        left -= weight;
        // Rounding may leave a crumb after the last positive weight.
        last = Some(i);
    }
    last
}

/// Standard normal, by Marsaglia's polar method.
pub fn normal(rng: &mut (impl RngCore + ?Sized)) -> f64 {
    loop {
        let x = 2.0 * unit(rng) - 1.0;
        let y = 2.0 * unit(rng) - 1.0;
        let s = x * x + y * y;
        if s > 0.0 && s < 1.0 {
            return x * (-2.0 * libm::log(s) / s).sqrt();
        }
    }
}

/// Beta(a, b) for a, b ≥ 1, as a ratio of gammas.
pub fn beta(a: f64, b: f64, rng: &mut (impl RngCore + ?Sized)) -> f64 {
    let x = gamma(a, rng);
    let y = gamma(b, rng);
    x / (x + y)
}

/// Gamma(shape, 1) for shape ≥ 1 (Marsaglia and Tsang 2000); smaller shapes count as 1.
fn gamma(shape: f64, rng: &mut (impl RngCore + ?Sized)) -> f64 {
    let d = shape.max(1.0) - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        let u = 1.0 - unit(rng);
        if libm::log(u) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_stream_of_a_seed_is_frozen() {
        // Golden numbers: if this fails, no ledger written before replays any more.
        let mut rng = seeded(42);
        let draws: Vec<usize> = (0..8).map(|_| below(100, &mut rng)).collect();
        assert_eq!(draws, GOLDEN_BELOW);
        assert_eq!(unit(&mut rng).to_bits(), GOLDEN_UNIT);
        assert_eq!(beta(3.5, 2.0, &mut rng).to_bits(), GOLDEN_BETA);
    }
    const GOLDEN_BELOW: [usize; 8] = [57, 13, 35, 22, 11, 35, 18, 86];
    const GOLDEN_UNIT: u64 = 4599818623159481112;
    const GOLDEN_BETA: u64 = 4601521807908982088;

    #[test]
    fn moments_are_right() {
        let mut rng = seeded(1);
        let n = 40_000;
        let mean = |f: &mut dyn FnMut() -> f64| (0..n).map(|_| f()).sum::<f64>() / f64::from(n);
        let m = mean(&mut || beta(3.0, 6.0, &mut rng));
        // sd of Beta(3,6) is 0.149; 4.5 standard errors.
        assert!(
            (m - 1.0 / 3.0).abs() < 4.5 * 0.149 / f64::from(n).sqrt(),
            "{m}"
        );
        let m = mean(&mut || normal(&mut rng));
        assert!(m.abs() < 4.5 / f64::from(n).sqrt(), "{m}");
        let m = mean(&mut || below(7, &mut rng) as f64);
        assert!((m - 3.0).abs() < 4.5 * 2.0 / f64::from(n).sqrt(), "{m}");
    }

    #[test]
    fn pick_never_takes_a_zero_weight() {
        let mut rng = seeded(3);
        for _ in 0..1000 {
            assert_eq!(pick(&[0.0, 0.3, 0.0], &mut rng), Some(1));
        }
        assert_eq!(pick(&[0.0, 0.0], &mut rng), None);
        assert_eq!(pick(&[], &mut rng), None);
    }
}
