//! [`Lanes`] in NEON, with and without its sums of four products.
#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "every line is an instruction; the condition is that of the trait"
)]

use std::arch::{aarch64::*, asm};

use super::Lanes;

/// Four registers of 128 bits, with the instruction that sums four products or without.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool>;

/// Applies an instruction to all four registers.
macro_rules! four {
    ($f:ident($($x:expr),+)) => {
        [
            $f($($x[0]),+),
            $f($($x[1]),+),
            $f($($x[2]),+),
            $f($($x[3]),+),
        ]
    };
}

impl<const DOT: bool> Lanes for Neon<DOT> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    const ROWS: usize = 4;
    const HOLDS_BLOCK: bool = false;
    // Both signs or none: no instruction of the baseline multiplies u8 by i8.
    const TAKEN_OFF: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [vdupq_n_f32(x); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        [0, 4, 8, 12].map(|i| vld1q_f32(p.add(i)))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        vst1q_f32(p, x[0]);
        vst1q_f32(p.add(4), x[1]);
        vst1q_f32(p.add(8), x[2]);
        vst1q_f32(p.add(12), x[3]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // Loaded as bytes, which need no alignment.
        let low = vreinterpretq_f16_u8(vld1q_u8(p));
        let high = vreinterpretq_f16_u8(vld1q_u8(p.add(16)));
        [
            vcvt_f32_f16(vget_low_f16(low)),
            vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)),
            vcvt_high_f32_f16(high),
        ]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        let low = vreinterpretq_u16_u8(vld1q_u8(p));
        let high = vreinterpretq_u16_u8(vld1q_u8(p.add(16)));
        four!(vreinterpretq_f32_u32([
            vshll_n_u16::<16>(vget_low_u16(low)),
            vshll_high_n_u16::<16>(low),
            vshll_n_u16::<16>(vget_low_u16(high)),
            vshll_high_n_u16::<16>(high),
        ]))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        let x = vld1q_u8(p);
        let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
        four!(vcvtq_f32_u32([
            vmovl_u16(vget_low_u16(low)),
            vmovl_high_u16(low),
            vmovl_u16(vget_low_u16(high)),
            vmovl_high_u16(high),
        ]))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        let x = vreinterpretq_s8_u8(vld1q_u8(p));
        let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
        four!(vcvtq_f32_s32([
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        four!(vaddq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        four!(vsubq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        four!(vmulq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        four!(vdivq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        four!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // `fmax` would give NaN; here the second argument is wanted.
        four!(vbslq_f32(four!(vcgtq_f32(a, b)), a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        four!(vbslq_f32(four!(vcltq_f32(a, b)), a, b))
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        four!(vabsq_f32(a))
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        four!(vbslq_f32(four!(vcltq_f32(a, b)), x, y))
    }
    #[inline(always)]
    unsafe fn pow2(t: Self::F) -> Self::F {
        let one = vdupq_n_s32(0x3f80_0000);
        t.map(|t| {
            let n = vshlq_n_s32::<23>(vreinterpretq_s32_f32(t));
            vreinterpretq_f32_s32(vaddq_s32(n, one))
        })
    }

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [vdupq_n_s32(x); 4]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        four!(vaddq_s32(a, b))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        four!(vcvtnq_s32_f32(x))
    }
    #[inline(always)]
    unsafe fn to_f(x: Self::I) -> Self::F {
        four!(vcvtq_f32_s32(x))
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        vst1q_s32(p, x[0]);
        vst1q_s32(p.add(4), x[1]);
        vst1q_s32(p.add(8), x[2]);
        vst1q_s32(p.add(12), x[3]);
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        [0, 16, 32, 48].map(|i| vld1q_u8(p.add(i)))
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: Self::B) {
        vst1q_u8(p, x[0]);
        vst1q_u8(p.add(16), x[1]);
        vst1q_u8(p.add(32), x[2]);
        vst1q_u8(p.add(48), x[3]);
    }
    #[inline(always)]
    unsafe fn low(x: Self::B) -> Self::B {
        let mask = vdupq_n_u8(15);
        x.map(|x| vandq_u8(x, mask))
    }
    #[inline(always)]
    unsafe fn high(x: Self::B) -> Self::B {
        x.map(|x| vshrq_n_u8::<4>(x))
    }
    #[inline(always)]
    unsafe fn with_fifth(x: Self::B, bits: *const u8) -> Self::B {
        let bits = vcombine_u8(vld1_u8(bits), vdup_n_u8(0));
        let pick = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let sixteen = vdupq_n_u8(16);
        // Each register takes two of the eight bytes, each of them eight times.
        let first = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
        let take = [0, 2, 4, 6].map(|i| vqtbl1q_u8(bits, vaddq_u8(first, vdupq_n_u8(i))));
        let add = take.map(|bits| vandq_u8(vtstq_u8(bits, pick), sixteen));
        four!(vorrq_u8(x, add))
    }
    #[inline(always)]
    unsafe fn with_sixth<const PART: u8>(x: Self::B, h: Self::B) -> Self::B {
        let mask = vdupq_n_u8(0x30);
        let moved = h.map(|h| match PART {
            0 => h,
            1 => vshrq_n_u8::<2>(h),
            2 => vshlq_n_u8::<2>(h),
            _ => vshlq_n_u8::<4>(h),
        });
        let high = moved.map(|h| vandq_u8(h, mask));
        four!(vorrq_u8(x, high))
    }
    #[inline(always)]
    unsafe fn wide(x: Self::B) -> Self::B {
        let top = vdupq_n_u8(128);
        x.map(|x| veorq_u8(x, top))
    }
    #[inline(always)]
    unsafe fn dot<const BITS: u32>(acc: Self::I, x: Self::B, a: *const i8) -> Self::I {
        let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
        // Weights below 128 are the same with a sign, and `wide` has made others signed.
        let x = four!(vreinterpretq_s8_u8(x));
        let a = [a; 4];
        match DOT {
            true => four!(sum_of_four(acc, x, a)),
            false => four!(sum_of_pairs(acc, x, a)),
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // The intrinsic is not in stable Rust. The instruction never faults.
        asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nomem, nostack, preserves_flags));
    }
}

/// `acc` plus four products in each lane, by one instruction of the extension "dotprod".
#[inline(always)]
unsafe fn sum_of_four(acc: int32x4_t, x: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // The intrinsic is not in stable Rust. Where this is inlined, the extension is on:
    // in `in_neon_dot` and nowhere else.
    asm!(
        "sdot {sum:v}.4s, {x:v}.16b, {a:v}.16b",
        sum = inout(vreg) sum,
        x = in(vreg) x,
        a = in(vreg) a,
        options(pure, nomem, nostack, preserves_flags),
    );
    sum
}

/// The same by multiplying and adding twice. Neighbours are first added in 16 bits:
/// 2 · 128 · 127 fits.
#[inline(always)]
unsafe fn sum_of_pairs(acc: int32x4_t, x: int8x16_t, a: int8x16_t) -> int32x4_t {
    let low = vmull_s8(vget_low_s8(x), vget_low_s8(a));
    let high = vmull_high_s8(x, a);
    vpadalq_s16(acc, vpaddq_s16(low, high))
}
