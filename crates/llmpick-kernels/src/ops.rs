//! The small loops between two matrix products.
//!
//! Sums run over sixteen lanes that are folded in a fixed order, so that a
//! result is the same on every machine and for every number of rows.

use crate::lanes::{Kernel, Lanes, Level, exp, run};

/// Root-mean-square norm: `out = x / sqrt(mean(x²) + eps) · weight`, row by row.
///
/// `x` and `out` hold any number of rows of `weight.len()` numbers each.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "x and out must have the same length");
    assert!(
        x.len().is_multiple_of(weight.len().max(1)),
        "x must be whole rows"
    );
    let width = weight.len().max(1);
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let factor = 1.0 / (sum_of_squares(x) / width as f32 + eps).sqrt();
        for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
            *o = x * factor * w;
        }
    }
}

/// [`rms_norm`] in place.
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    assert!(
        x.len().is_multiple_of(weight.len().max(1)),
        "x must be whole rows"
    );
    let width = weight.len().max(1);
    for x in x.chunks_exact_mut(width) {
        let factor = 1.0 / (sum_of_squares(x) / width as f32 + eps).sqrt();
        for (x, w) in x.iter_mut().zip(weight) {
            *x = *x * factor * w;
        }
    }
}

/// `gate = silu(gate) · up`, with `silu(x) = x / (1 + e⁻ˣ)`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(
        gate.len(),
        up.len(),
        "gate and up must have the same length"
    );
    run(Level::best(), Gate::<false> { gate, up });
}

/// `gate = gelu(gate) · up`, with the tanh form of gelu that gemma uses.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(
        gate.len(),
        up.len(),
        "gate and up must have the same length"
    );
    run(Level::best(), Gate::<true> { gate, up });
}

/// `gate = gate / (1 + e⁻ᵗ) · up`, with t = gate, or for gelu, as
/// ½(1 + tanh s) = 1 / (1 + e⁻²ˢ), t = 2 √(2/π) (gate + 0.044715 gate³).
struct Gate<'a, const GELU: bool> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl<const GELU: bool> Kernel for Gate<'_, GELU> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        let (whole, rest) = self.gate.as_chunks_mut::<16>();
        let (whole_up, rest_up) = self.up.as_chunks::<16>();
        for (gate, up) in whole.iter_mut().zip(whole_up) {
            // SAFETY: the caller vouches for the features.
            unsafe { gate_lanes::<L, GELU>(gate, up) };
        }
        let (mut gate, mut up) = ([0.0; 16], [0.0; 16]);
        gate[..rest.len()].copy_from_slice(rest);
        up[..rest.len()].copy_from_slice(rest_up);
        // SAFETY: the caller vouches for the features.
        unsafe { gate_lanes::<L, GELU>(&mut gate, &up) };
        rest.copy_from_slice(&gate[..rest.len()]);
    }
}

#[inline(always)]
unsafe fn gate_lanes<L: Lanes, const GELU: bool>(gate: &mut [f32; 16], up: &[f32; 16]) {
    // SAFETY: both arrays hold sixteen numbers.
    unsafe {
        let x = L::load(gate.as_ptr());
        let mut minus = L::sub(L::splat(0.0), x);
        if GELU {
            let square = L::mul(x, x);
            let factor = L::fma(L::splat(0.044_715), square, L::splat(1.0));
            minus = L::mul(L::mul(minus, factor), L::splat(2.0 * 0.797_884_6));
        }
        let below = L::add(L::splat(1.0), exp::<L>(minus));
        L::store(
            gate.as_mut_ptr(),
            L::mul(L::div(x, below), L::load(up.as_ptr())),
        );
    }
}

/// `x += y`, where `y` is repeated over the rows of `x`: a residual, or a bias
/// with one entry per column.
///
/// # Panics
/// If `x` is not a whole number of rows of `y.len()`.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert!(
        x.len().is_multiple_of(y.len().max(1)),
        "x must be whole rows of y"
    );
    for x in x.chunks_exact_mut(y.len().max(1)) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `x = cap · tanh(x / cap)`, as gemma 2 bounds its logits.
pub fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}

/// `ln Σ eˣ`; −∞ for an empty slice, NaN if `x` holds one.
pub fn logsumexp(x: &[f32]) -> f32 {
    if x.iter().any(|x| x.is_nan()) {
        return f32::NAN;
    }
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max.is_infinite() {
        return max;
    }
    let sum: f64 = x.iter().map(|x| f64::from((x - max).exp())).sum();
    max + sum.ln() as f32
}

/// Logits to log-probabilities: `x -= ln Σ eˣ`.
pub fn log_softmax(x: &mut [f32]) {
    let total = logsumexp(x);
    for x in x {
        *x -= total;
    }
}

/// `Σ x²` over sixteen lanes, folded by halves.
fn sum_of_squares(x: &[f32]) -> f32 {
    run(Level::best(), Squares(x))
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f32;
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) -> f32 {
        let (whole, rest) = self.0.as_chunks::<16>();
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: each chunk holds sixteen numbers.
        unsafe {
            let mut acc = L::splat(0.0);
            for chunk in whole {
                let x = L::load(chunk.as_ptr());
                acc = L::fma(x, x, acc);
            }
            let x = L::load(last.as_ptr());
            L::sum(L::fma(x, x, acc))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn close(ours: f32, exact: f64, what: &str) {
        let error = (f64::from(ours) - exact).abs() / exact.abs().max(1e-3);
        assert!(error < 2e-6, "{what}: {ours} instead of {exact}");
    }

    #[test]
    fn norm_matches_f64() {
        for width in [1, 15, 16, 576, 640, 897] {
            let mut random = Random::new(width as u64);
            let (x, weight) = (random.vec(width * 3), random.vec(width));
            let mut out = vec![0.0; x.len()];
            rms_norm(&x, &weight, 1e-6, &mut out);
            let mut again = x.clone();
            rms_norm_in_place(&mut again, &weight, 1e-6);
            assert_eq!(out, again);
            for (row, out) in x.chunks(width).zip(out.chunks(width)) {
                let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                let root = (square / width as f64 + 1e-6).sqrt();
                for ((x, w), o) in row.iter().zip(&weight).zip(out) {
                    close(*o, f64::from(*x) / root * f64::from(*w), "rms_norm");
                }
            }
        }
    }

    #[test]
    fn activations_match_f64() {
        let mut random = Random::new(5);
        let x: Vec<f32> = random.vec(1000).iter().map(|x| x * 12.0).collect();
        let up = random.vec(1000);
        let (mut silu, mut gelu) = (x.clone(), x.clone());
        silu_mul(&mut silu, &up);
        gelu_tanh_mul(&mut gelu, &up);
        for i in 0..x.len() {
            let (x, u) = (f64::from(x[i]), f64::from(up[i]));
            close(silu[i], x / (1.0 + (-x).exp()) * u, "silu");
            let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            close(gelu[i], 0.5 * x * (1.0 + t.tanh()) * u, "gelu");
        }
        let mut far = [-1e30f32, 1e30, -200.0, 200.0, 0.0];
        silu_mul(&mut far, &[1.0; 5]);
        assert_eq!(far, [0.0, 1e30, 0.0, 200.0, 0.0]);
        let mut far = [-1e10f32, 1e10, -200.0, 200.0, 0.0];
        gelu_tanh_mul(&mut far, &[1.0; 5]);
        assert_eq!(far, [0.0, 1e10, 0.0, 200.0, 0.0]);
    }

    #[test]
    fn forms_agree() {
        let mut random = Random::new(11);
        let x: Vec<f32> = random.vec(101).iter().map(|x| x * 20.0).collect();
        let up = random.vec(101);
        let at = |level| {
            let (mut silu, mut gelu) = (x.clone(), x.clone());
            run(
                level,
                Gate::<false> {
                    gate: &mut silu,
                    up: &up,
                },
            );
            run(
                level,
                Gate::<true> {
                    gate: &mut gelu,
                    up: &up,
                },
            );
            silu.extend(gelu);
            silu.push(run(level, Squares(&x)));
            silu
        };
        for level in Level::all_here() {
            assert_eq!(at(level), at(Level::Plain), "{level:?}");
        }
    }

    #[test]
    fn probabilities_sum_to_one() {
        let mut random = Random::new(9);
        let mut x: Vec<f32> = random
            .vec(50_000)
            .iter()
            .map(|x| x * 30.0 + 100.0)
            .collect();
        log_softmax(&mut x);
        let sum: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert_eq!(logsumexp(&[]), f32::NEG_INFINITY);
        assert_eq!(logsumexp(&[f32::NEG_INFINITY, 2.0]), 2.0);
        assert!(logsumexp(&[f32::NAN, 2.0]).is_nan());
    }

    #[test]
    fn caps_bias_and_scale() {
        let mut x = [0.0, 10.0, -1e9];
        softcap(&mut x, 30.0);
        assert_eq!(x, [0.0, 30.0 * (10.0f32 / 30.0).tanh(), -30.0]);
        let mut x = [1.0, 2.0, 3.0, 4.0];
        add_assign(&mut x, &[10.0, 20.0]);
        scale(&mut x, 2.0);
        assert_eq!(x, [22.0, 44.0, 26.0, 48.0]);
    }
}
