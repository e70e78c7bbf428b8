//! Every form gives the same bits, and `exp` is eˣ.

use super::*;
use crate::testing::Random;

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
            f(exp_down::<L>(L::sub(a, L::abs(b))));
            let nan = L::splat(f32::NAN);
            for (a, b) in [(a, a), (a, c), (L::min(a, c), c), (nan, a), (a, nan)] {
                bits.push(u32::from(L::any_above(a, b)));
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
            for y in [low, high, L::with_fifth(low, p)] {
                i(L::dot::<5>(L::splat_i(-7), y, a8));
            }
            for y in [
                L::with_sixth::<0>(low, w),
                L::with_sixth::<1>(low, w),
                L::with_sixth::<2>(low, w),
                L::with_sixth::<3>(high, w),
            ] {
                i(L::dot::<6>(L::splat_i(0), y, a8));
            }
            let taken_off = L::TAKEN_OFF * activation.iter().map(|a| i32::from(*a)).sum::<i32>();
            i(L::dot::<8>(L::splat_i(100 + taken_off), L::wide(v), a8));
            i(L::add_i(L::round(L::mul(x, L::splat(9.5))), L::splat_i(3)));
            let whole = L::round(L::mul(c, L::splat(0.9)));
            bits.push(L::sum_i(whole) as u32);
            L::store_bytes(bytes.as_mut_ptr(), whole);
            bits.extend(bytes[..16].iter().copied().map(u32::from));
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
        for level in Level::all_here() {
            assert_eq!(run(level, Everything(&bytes)), plain, "{level:?}");
        }
    }
}

/// Half a block with three rows, one register at a time and all at once: equal, and
/// what the definition says.
struct HalfBlock {
    weights: [u8; 256],
    activations: [i8; 48],
}

impl Kernel for HalfBlock {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        const R: usize = 3;
        // SAFETY: four registers of weights, and 16 · `R` activations.
        unsafe {
            let p = self.weights.as_ptr();
            let w = [0, 64, 128, 192].map(|at| L::load_b(p.add(at)));
            let a = self.activations.as_ptr();
            let most = self.weights.iter().max().copied().unwrap_or(0);
            let (sums, taken_off) = match most {
                0..32 => (L::dots::<5, R>([L::splat_i(9); R], w, a), 0),
                32..64 => (L::dots::<6, R>([L::splat_i(9); R], w, a), 0),
                _ => {
                    let w = w.map(|w| L::wide(w));
                    (L::dots::<8, R>([L::splat_i(9); R], w, a), L::TAKEN_OFF)
                }
            };
            for (r, sums) in sums.into_iter().enumerate() {
                let mut ours = [0; 16];
                L::store_i(ours.as_mut_ptr(), sums);
                for (lane, ours) in ours.into_iter().enumerate() {
                    let product = |k: usize| {
                        let w = i32::from(self.weights[k / 4 * 64 + lane * 4 + k % 4]);
                        let a = i32::from(self.activations[4 * (k / 4 * R + r) + k % 4]);
                        (w - taken_off) * a
                    };
                    let exact = 9 + (0..16).map(product).sum::<i32>();
                    assert_eq!(ours, exact, "row {r}, lane {lane}, weights to {most}");
                }
            }
        }
    }
}

#[test]
fn sums_of_products_are_exact_up_to_the_largest() {
    for level in Level::all_here() {
        for most in [15u8, 31, 63, 255] {
            let mut random = Random::new(u64::from(most));
            // The largest of both signs first: what would overflow does it there.
            for (w, a) in [(most, 127), (most, -127), (0, -127)] {
                let half = HalfBlock {
                    weights: [w; 256],
                    activations: [a; 48],
                };
                run(level, half);
            }
            for _ in 0..100 {
                let half = HalfBlock {
                    weights: std::array::from_fn(|_| (random.bits() >> 40) as u8 & most),
                    activations: std::array::from_fn(|_| ((random.bits() >> 40) as i8).max(-127)),
                };
                run(level, half);
            }
        }
    }
}

#[test]
fn forms_are_found() {
    let here: Vec<Level> = Level::all_here().collect();
    println!("forms here: {here:?}");
    assert_eq!(here.first(), Some(&Level::Plain));
    assert_eq!(here.last(), Some(&Level::best()));
    #[cfg(target_arch = "x86_64")]
    {
        assert!(!here.contains(&Level::Neon));
        assert_eq!(
            here.contains(&Level::AvxVnni),
            here.contains(&Level::Avx2) && is_x86_feature_detected!("avxvnni")
        );
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    assert!(here.contains(&Level::Neon));
    for level in here {
        assert!(level.is_here() && most_rows(level) >= 4, "{level:?}");
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
    for level in Level::all_here() {
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
        for i in -10_000..=0 {
            let x = i as f32 / 100.0;
            // SAFETY: the array has sixteen entries.
            let down = unsafe {
                let mut out = [0f32; 16];
                L::store(out.as_mut_ptr(), exp_down::<L>(L::splat(x)));
                out[3]
            };
            assert_eq!(down.to_bits(), at(x).to_bits(), "{x}");
        }
        // SAFETY: no pointers.
        let above = |a, b| unsafe { L::any_above(L::splat(a), L::splat(b)) };
        assert!(above(1.0, 0.5) && above(0.0, f32::NEG_INFINITY));
        assert!(!above(0.5, 0.5) && !above(-1.0, 0.5) && !above(f32::NAN, 0.5));
        assert_eq!(at(0.0), 1.0);
        assert_eq!(at(f32::NEG_INFINITY), 0.0);
        assert_eq!(at(-100.0), 0.0);
        assert_eq!(at(f32::INFINITY), f32::INFINITY);
        assert!(at(f32::NAN).is_nan());
    }
}

#[test]
fn exp_is_exp() {
    for level in Level::all_here() {
        run(level, Exponentials);
    }
}
