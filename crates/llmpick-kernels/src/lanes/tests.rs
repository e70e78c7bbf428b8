//! Every form gives the same bits, and `exp` is eˣ.

use super::*;
use crate::testing::Random;

pub const LEVELS: [Level; 3] = [Level::Plain, Level::Avx2, Level::Avx512];

/// Runs every method on the same bytes and collects the bits of what comes out.
struct Everything<'a>(&'a [u8; 256]);

impl Kernel for Everything<'_> {
    type Output = Vec<u32>;
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) -> Vec<u32> {
        let p = self.0.as_ptr();
        let mut bits = Vec::new();
        let mut floats = [0f32; 16];
        let mut ints = [0i32; 16];
        let mut bytes = [0u8; 64];
        // SAFETY: `p` is good for 256 bytes and the buffers for what is stored.
        unsafe {
            let mut f = |x: L::F| {
                L::store(floats.as_mut_ptr(), x);
                bits.extend(floats.map(f32::to_bits));
            };
            let (a, b, c) = (L::load_i8(p), L::load_u8(p.add(16)), L::load_i8(p.add(32)));
            let x = L::mul(a, L::splat(0.013));
            for y in [
                a,
                b,
                c,
                x,
                L::add(a, b),
                L::sub(a, x),
                L::div(a, b),
                L::fma(x, b, c),
            ] {
                f(y);
            }
            for y in [
                L::max(a, c),
                L::min(a, c),
                L::abs(a),
                L::select_less(a, c, x, b),
            ] {
                f(y);
            }
            for y in [exp::<L>(a), exp::<L>(x), L::load_bf16(p)] {
                f(y);
            }
            bits.extend([L::sum(x), L::largest(x)].map(f32::to_bits));
            let mut i = |x: L::I| {
                L::store_i(ints.as_mut_ptr(), x);
                bits.extend(ints.map(|x| x as u32));
            };
            let (v, w) = (L::load_b(p.add(64)), L::load_b(p.add(128)));
            let (low, high) = (L::low(v), L::high(v));
            let activation = [-127i8, 127, 5, p.add(40).read().max(1) as i8 / 2];
            let a8 = activation.as_ptr();
            for y in [low, high, L::with_fifth(low, p), L::with_sixth::<0>(low, w)] {
                i(L::dot::<false>(L::splat_i(-7), y, a8));
            }
            let sixth = [L::with_sixth::<1>(low, w), L::with_sixth::<2>(low, w)];
            for y in [sixth[0], sixth[1], L::with_sixth::<3>(high, w)] {
                i(L::dot::<false>(L::splat_i(0), y, a8));
            }
            i(L::dot::<true>(L::splat_i(100), v, a8));
            i(L::add_i(L::round(L::mul(x, L::splat(9.5))), L::splat_i(3)));
            L::store_b(bytes.as_mut_ptr(), v);
            bits.extend(bytes.map(u32::from));
        }
        bits
    }
}

#[test]
fn forms_agree() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut bytes = [0u8; 256];
        bytes.fill_with(|| (random.bits() >> 40) as u8);
        // Halves that are NaN have no single widening; keep the exponent small.
        for byte in bytes[..32].iter_mut().skip(1).step_by(2) {
            *byte &= 0xBF;
        }
        let plain = run(Level::Plain, Everything(&bytes));
        for level in LEVELS.into_iter().filter(|level| level.is_here()) {
            assert_eq!(run(level, Everything(&bytes)), plain, "{level:?}");
        }
    }
}

/// Widens all halves.
struct Halves;

impl Kernel for Halves {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        for start in (0..=u16::MAX).step_by(16) {
            let bits: [u16; 16] = std::array::from_fn(|i| start + i as u16);
            let mut out = [0f32; 16];
            // SAFETY: both arrays have sixteen entries.
            unsafe { L::store(out.as_mut_ptr(), L::load_f16(bits.as_ptr().cast())) };
            for (bits, out) in bits.into_iter().zip(out) {
                let exact = half::f16::from_bits(bits).to_f32();
                assert!(
                    out == exact || out.is_nan() && exact.is_nan(),
                    "{bits:x} {out}"
                );
            }
        }
    }
}

#[test]
fn halves_widen_exactly() {
    for level in LEVELS.into_iter().filter(|level| level.is_here()) {
        run(level, Halves);
    }
}

/// Compares `exp` with `f64`.
struct Exponentials;

impl Kernel for Exponentials {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        // SAFETY: the array has sixteen entries.
        let at = |x: f32| unsafe {
            let mut out = [0f32; 16];
            L::store(out.as_mut_ptr(), exp::<L>(L::splat(x)));
            out[3]
        };
        for i in -8720..8820 {
            let x = i as f32 / 100.0;
            let (ours, exact) = (f64::from(at(x)), f64::from(x).exp());
            assert!(
                (ours / exact - 1.0).abs() < 2.5e-7,
                "exp({x}) = {ours}, not {exact}"
            );
        }
        assert_eq!(at(0.0), 1.0);
        assert_eq!(at(f32::NEG_INFINITY), 0.0);
        assert_eq!(at(-100.0), 0.0);
        assert_eq!(at(f32::INFINITY), f32::INFINITY);
        assert!(at(f32::NAN).is_nan());
    }
}

#[test]
fn exp_is_exp() {
    for level in LEVELS.into_iter().filter(|level| level.is_here()) {
        run(level, Exponentials);
    }
}
