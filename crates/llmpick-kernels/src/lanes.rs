//! Sixteen lanes of arithmetic, in the widest form the processor has.
//!
//! The kernels are written once over [`Lanes`] and compiled for every [`Level`];
//! [`run`] picks one when the program runs, so that one binary serves every machine.
//! All forms do the same operations with the same rounding (integer sums are exact,
//! products are fused everywhere), which makes their results equal bit for bit.
//!
//! `unsafe` here means one thing unless a method says more: the processor must
//! have the features of the form that is called. [`run`] looks, and nothing else
//! calls a kernel's body; pointers must be good for as many bytes as the name or
//! the comment says.
#![allow(
    clippy::missing_safety_doc,
    reason = "the module comment states the one condition"
)]

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// A form of the arithmetic. Every processor has some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Plain Rust, for any processor. Slow on x86-64 without fused multiply-add.
    Plain,
    /// AVX2 with fused multiply-add and half-precision loads.
    Avx2,
    /// AVX2 with the sums of four products that VNNI has, in 256 bits.
    AvxVnni,
    /// AVX-512 with VNNI.
    Avx512,
    /// NEON, which every 64-bit ARM processor has.
    Neon,
    /// NEON with sums of four products.
    NeonDot,
}

impl Level {
    /// Every form, on one kind of processor the better ones later.
    const ALL: [Level; 6] = [
        Level::Plain,
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512,
        Level::Neon,
        Level::NeonDot,
    ];

    /// The best form this processor has.
    pub fn best() -> Level {
        Level::ALL[7 - found().leading_zeros() as usize]
    }

    /// Whether this processor can run this form.
    pub fn is_here(self) -> bool {
        found() & self.bit() != 0
    }

    /// The forms this processor can run: the plain one first, the best one last.
    pub fn all_here() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.is_here())
    }

    /// Makes `self` the best form there is, if it is here at all; to measure it.
    pub(crate) fn make_best(self) {
        if self.is_here() {
            FOUND.store(Level::Plain.bit() | self.bit(), Relaxed);
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> u8 {
        let mut found = Level::Plain.bit();
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        if avx2 {
            found |= Level::Avx2.bit();
        }
        if avx2 && is_x86_feature_detected!("avxvnni") {
            found |= Level::AvxVnni.bit();
        }
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        if avx2 && avx512 {
            found |= Level::Avx512.bit();
        }
        found
    }

    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    fn detect() -> u8 {
        use std::arch::is_aarch64_feature_detected;
        let mut found = Level::Plain.bit();
        if is_aarch64_feature_detected!("neon") {
            found |= Level::Neon.bit();
            if is_aarch64_feature_detected!("dotprod") {
                found |= Level::NeonDot.bit();
            }
        }
        found
    }

    #[cfg(not(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    )))]
    fn detect() -> u8 {
        Level::Plain.bit()
    }
}

/// The bits of the forms that are here; zero until somebody looks.
static FOUND: AtomicU8 = AtomicU8::new(0);

#[inline]
fn found() -> u8 {
    match FOUND.load(Relaxed) {
        0 => {
            let found = Level::detect();
            FOUND.store(found, Relaxed);
            found
        }
        found => found,
    }
}

/// A loop written over [`Lanes`].
pub trait Kernel {
    /// What the loop returns.
    type Output;
    /// Runs it. Must be `#[inline(always)]`, or it is compiled without the features.
    unsafe fn call<L: Lanes>(self) -> Self::Output;
}

/// Runs `kernel` in the form `level`, or in the plain one where that is not here.
#[inline]
pub fn run<K: Kernel>(level: Level, kernel: K) -> K::Output {
    let level = if level.is_here() { level } else { Level::Plain };
    // SAFETY: the features of a form that is here have been found.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => in_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => in_avx_vnni(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => in_avx2(kernel),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Level::NeonDot => in_neon_dot(kernel),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Level::Neon => in_neon(kernel),
            _ => kernel.call::<Plain>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn in_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked for the features, and this function has them.
    unsafe { kernel.call::<x86::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn in_avx_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked for the features, and this function has them.
    unsafe { kernel.call::<x86::Avx2<true>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn in_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked for the features, and this function has them.
    unsafe { kernel.call::<x86::Avx2<false>>() }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[target_feature(enable = "neon,dotprod")]
unsafe fn in_neon_dot<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked for the features, and this function has them.
    unsafe { kernel.call::<neon::Neon<true>>() }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[target_feature(enable = "neon")]
unsafe fn in_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has checked for the features, and this function has them.
    unsafe { kernel.call::<neon::Neon<false>>() }
}

/// Most activation rows that share one pass over the weights in the form `level`.
pub fn most_rows(level: Level) -> usize {
    struct Rows;
    impl Kernel for Rows {
        type Output = usize;
        #[inline(always)]
        unsafe fn call<L: Lanes>(self) -> usize {
            L::ROWS
        }
    }
    run(level, Rows)
}

/// Sixteen `f32`, sixteen `i32` and sixty-four bytes at a time.
///
/// `max` and `min` return their second argument where either is NaN.
pub trait Lanes: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`.
    type I: Copy;
    /// Sixty-four bytes: four for each lane.
    type B: Copy;
    /// Most activation rows that share one pass over the weights.
    const ROWS: usize;
    /// Whether the registers hold a block of weights beside the sums. Where they do
    /// not, each register of weights meets all rows before the next is needed.
    const HOLDS_BLOCK: bool;
    /// What [`wide`](Lanes::wide) has taken off: 128 where eight-bit weights must be
    /// signed to be multiplied, else 0.
    const TAKEN_OFF: i32;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// Sixteen IEEE halves, widened.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Sixteen brain halves, widened.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Sixteen unsigned bytes as numbers.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// Sixteen signed bytes as numbers.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `x` where `a < b`, else `y`.
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// 2ⁿ from `1.5 · 2²³ + n`, for whole n in −126..=127.
    unsafe fn pow2(t: Self::F) -> Self::F;

    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// Nearest whole numbers, ties to even; for |x| < 2²².
    unsafe fn round(x: Self::F) -> Self::I;
    unsafe fn to_f(x: Self::I) -> Self::F;
    unsafe fn store_i(p: *mut i32, x: Self::I);

    unsafe fn load_b(p: *const u8) -> Self::B;
    unsafe fn store_b(p: *mut u8, x: Self::B);
    /// Bits 0–3 of each byte.
    unsafe fn low(x: Self::B) -> Self::B;
    /// Bits 4–7 of each byte.
    unsafe fn high(x: Self::B) -> Self::B;
    /// `x` plus 16 in the bytes whose bit is set in the 8 bytes at `bits`.
    unsafe fn with_fifth(x: Self::B, bits: *const u8) -> Self::B;
    /// `x` with bits 4–5 taken from bits 4–5, 6–7, 2–3 or 0–1 of `h` (`PART` 0–3).
    unsafe fn with_sixth<const PART: u8>(x: Self::B, h: Self::B) -> Self::B;
    /// Weights of eight bits as `dot` wants them; others need nothing.
    unsafe fn wide(x: Self::B) -> Self::B;
    /// `acc` plus, in each lane, the products of its four bytes with the four signed
    /// bytes at `a`, which are above −128. The weights are below 2^`BITS`, `BITS` being
    /// at most 6, or they come from [`wide`](Lanes::wide) and `BITS` is 8.
    unsafe fn dot<const BITS: u32>(acc: Self::I, x: Self::B, a: *const i8) -> Self::I;
    /// [`dot`](Lanes::dot) of four registers with `R` rows, added to a sum for each
    /// row. Register i meets the bytes of row r at `a` + 4 (i `R` + r).
    #[inline(always)]
    unsafe fn dots<const BITS: u32, const R: usize>(
        mut sums: [Self::I; R],
        w: [Self::B; 4],
        a: *const i8,
    ) -> [Self::I; R] {
        // Four loops, since the compiler would not unroll one around them.
        macro_rules! register {
            ($i:literal) => {
                for r in 0..R {
                    // SAFETY: the caller's pointer is good for 16 · `R` bytes.
                    sums[r] = unsafe { Self::dot::<BITS>(sums[r], w[$i], a.add(4 * ($i * R + r))) };
                }
            };
        }
        register!(0);
        register!(1);
        register!(2);
        register!(3);
        sums
    }

    /// The sum of the lanes, folded: lane i and i + 8, then i + 4, i + 2, i + 1.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: `lanes` holds sixteen numbers.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
    /// The largest of the lanes; NaN lanes may be passed over.
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: `lanes` holds sixteen numbers.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                let other = lanes[i + half];
                lanes[i] = if lanes[i] > other { lanes[i] } else { other };
            }
        }
        lanes[0]
    }
    /// Whether a lane of `a` is larger than the same of `b`.
    #[inline(always)]
    unsafe fn any_above(a: Self::F, b: Self::F) -> bool {
        // SAFETY: no pointers; the caller vouches for the features.
        unsafe {
            let above = Self::select_less(b, a, Self::splat(1.0), Self::splat(0.0));
            Self::largest(above) > 0.0
        }
    }
    /// The sum of the lanes; it must not overflow.
    #[inline(always)]
    unsafe fn sum_i(x: Self::I) -> i32 {
        let mut lanes = [0i32; 16];
        // SAFETY: `lanes` holds sixteen numbers.
        unsafe { Self::store_i(lanes.as_mut_ptr(), x) };
        lanes.iter().sum()
    }
    /// The low byte of each lane.
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: Self::I) {
        let mut lanes = [0i32; 16];
        // SAFETY: `lanes` holds sixteen numbers, and the caller's pointer is good for
        // sixteen bytes.
        unsafe {
            Self::store_i(lanes.as_mut_ptr(), x);
            p.cast::<[u8; 16]>().write(lanes.map(|x| x as u8));
        }
    }

    /// Asks for the cache line at `p`, which may lie anywhere.
    unsafe fn prefetch(p: *const u8);
}

/// Below this, eˣ is taken for 0.
const LOWEST: f32 = -87.3;

/// eˣ to within 2 units in the last place; 0 below −87.3, ∞ above 88.3, NaN for NaN.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    const HIGHEST: f32 = 88.3;
    // SAFETY: the caller vouches for the features; no pointers.
    unsafe {
        let y = exp_down::<L>(L::min(L::splat(HIGHEST), x));
        L::select_less(L::splat(HIGHEST), x, L::splat(f32::INFINITY), y)
    }
}

/// [`exp`] of what is at most 88.3, in fewer steps.
#[inline(always)]
pub unsafe fn exp_down<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller vouches for the features; no pointers.
    unsafe {
        let bounded = L::max(L::splat(LOWEST), x);
        // Adding 1.5 · 2²³ rounds to a whole number and leaves it in the low bits.
        let magic = L::splat(12_582_912.0);
        let shifted = L::fma(bounded, L::splat(std::f32::consts::LOG2_E), magic);
        let n = L::sub(shifted, magic);
        // ln 2 in two parts, the first short enough that n · first is exact.
        let r = L::fma(n, L::splat(-0.693_359_4), bounded);
        let r = L::fma(n, L::splat(2.121_944_4e-4), r);
        // The polynomial of the Cephes library for |r| ≤ ½ ln 2.
        let mut p = L::splat(1.987_569_1e-4);
        p = L::fma(p, r, L::splat(1.398_2e-3));
        p = L::fma(p, r, L::splat(8.333_452e-3));
        p = L::fma(p, r, L::splat(4.166_579_6e-2));
        p = L::fma(p, r, L::splat(1.666_666_5e-1));
        p = L::fma(p, r, L::splat(0.5));
        p = L::fma(L::mul(p, r), r, r);
        let y = L::mul(L::add(p, L::splat(1.0)), L::pow2(shifted));
        L::select_less(x, L::splat(LOWEST), L::splat(0.0), y)
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Plain;

/// Applies an expression to every lane.
macro_rules! each {
    ($n:literal, $i:ident => $e:expr) => {{
        let mut out = [Default::default(); $n];
        for $i in 0..$n {
            out[$i] = $e;
        }
        out
    }};
}

impl Lanes for Plain {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    const ROWS: usize = 4;
    const HOLDS_BLOCK: bool = false;
    const TAKEN_OFF: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: the caller's pointer is good for 32 bytes; every bit pattern is a half.
        let x = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        each!(16, i => half::f16::from_bits(x[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: the caller's pointer is good for 32 bytes.
        let x = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        each!(16, i => f32::from_bits(u32::from(x[i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: the caller's pointer is good for 16 bytes.
        let x = unsafe { p.cast::<[u8; 16]>().read() };
        each!(16, i => f32::from(x[i]))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: the caller's pointer is good for 16 bytes.
        let x = unsafe { p.cast::<[i8; 16]>().read() };
        each!(16, i => f32::from(x[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each!(16, i => a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each!(16, i => a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each!(16, i => a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each!(16, i => a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(16, i => a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each!(16, i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each!(16, i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        each!(16, i => a[i].abs())
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        each!(16, i => if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn pow2(t: Self::F) -> Self::F {
        each!(16, i => f32::from_bits((t[i].to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        each!(16, i => a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        each!(16, i => x[i].round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn to_f(x: Self::I) -> Self::F {
        each!(16, i => x[i] as f32)
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        unsafe { p.cast::<[i32; 16]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        // SAFETY: the caller's pointer is good for 64 bytes.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: Self::B) {
        // SAFETY: the caller's pointer is good for 64 bytes.
        unsafe { p.cast::<[u8; 64]>().write(x) }
    }
    #[inline(always)]
    unsafe fn low(x: Self::B) -> Self::B {
        x.map(|x| x & 15)
    }
    #[inline(always)]
    unsafe fn high(x: Self::B) -> Self::B {
        x.map(|x| x >> 4)
    }
    #[inline(always)]
    unsafe fn with_fifth(mut x: Self::B, bits: *const u8) -> Self::B {
        // SAFETY: the caller's pointer is good for 8 bytes.
        let bits = u64::from_le_bytes(unsafe { bits.cast::<[u8; 8]>().read() });
        for (i, x) in x.iter_mut().enumerate() {
            *x += ((bits >> i & 1) as u8) << 4;
        }
        x
    }
    #[inline(always)]
    unsafe fn with_sixth<const PART: u8>(mut x: Self::B, h: Self::B) -> Self::B {
        for (x, h) in x.iter_mut().zip(h) {
            *x |= match PART {
                0 => h,
                1 => h >> 2,
                2 => h << 2,
                _ => h << 4,
            } & 0x30;
        }
        x
    }
    #[inline(always)]
    unsafe fn wide(x: Self::B) -> Self::B {
        x
    }
    #[inline(always)]
    unsafe fn dot<const BITS: u32>(mut acc: Self::I, x: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller's pointer is good for 4 bytes.
        let a = unsafe { a.cast::<[i8; 4]>().read() };
        for (acc, x) in acc.iter_mut().zip(x.as_chunks::<4>().0) {
            for j in 0..4 {
                *acc += i32::from(x[j]) * i32::from(a[j]);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;
