//! [`Lanes`] in AVX-512 VNNI, and in AVX2 with and without VNNI.
#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "every line is an instruction; the condition is that of the trait"
)]

use std::arch::x86_64::*;

use super::Lanes;

/// One register of 512 bits.
#[derive(Clone, Copy)]
pub struct Avx512;

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    // Twelve sums, eight registers of weights, and what a step needs: 32 registers.
    const ROWS: usize = 12;
    const HOLDS_BLOCK: bool = true;
    const TAKEN_OFF: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        _mm512_storeu_ps(p, x)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        _mm512_abs_ps(a)
    }
    #[inline(always)]
    unsafe fn select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x)
    }
    #[inline(always)]
    unsafe fn pow2(t: __m512) -> __m512 {
        let n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
        _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f80_0000)))
    }

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> __m512i {
        _mm512_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512i {
        _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }
    #[inline(always)]
    unsafe fn to_f(x: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(x)
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: __m512i) {
        _mm512_storeu_si512(p.cast(), x)
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: __m512i) {
        _mm512_storeu_si512(p.cast(), x)
    }
    #[inline(always)]
    unsafe fn low(x: __m512i) -> __m512i {
        _mm512_and_si512(x, _mm512_set1_epi8(15))
    }
    #[inline(always)]
    unsafe fn high(x: __m512i) -> __m512i {
        _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15))
    }
    #[inline(always)]
    unsafe fn with_fifth(x: __m512i, bits: *const u8) -> __m512i {
        let mask = bits.cast::<u64>().read_unaligned();
        _mm512_mask_add_epi8(x, mask, x, _mm512_set1_epi8(16))
    }
    #[inline(always)]
    unsafe fn with_sixth<const PART: u8>(x: __m512i, h: __m512i) -> __m512i {
        let moved = match PART {
            0 => h,
            1 => _mm512_srli_epi16(h, 2),
            2 => _mm512_slli_epi16(h, 2),
            _ => _mm512_slli_epi16(h, 4),
        };
        // x | (moved & 0x30)
        _mm512_ternarylogic_epi32::<0xF8>(x, moved, _mm512_set1_epi8(0x30))
    }
    #[inline(always)]
    unsafe fn wide(x: __m512i) -> __m512i {
        x
    }
    #[inline(always)]
    unsafe fn dot<const BITS: u32>(acc: __m512i, x: __m512i, a: *const i8) -> __m512i {
        _mm512_dpbusd_epi32(acc, x, _mm512_set1_epi32(a.cast::<i32>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        sum_256(_mm256_add_ps(
            _mm512_castps512_ps256(x),
            _mm512_extractf32x8_ps::<1>(x),
        ))
    }
    #[inline(always)]
    unsafe fn largest(x: __m512) -> f32 {
        largest_256(_mm256_max_ps(
            _mm512_castps512_ps256(x),
            _mm512_extractf32x8_ps::<1>(x),
        ))
    }
    #[inline(always)]
    unsafe fn any_above(a: __m512, b: __m512) -> bool {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0
    }
    #[inline(always)]
    unsafe fn sum_i(x: __m512i) -> i32 {
        _mm512_reduce_add_epi32(x)
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: __m512i) {
        _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x));
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    }
}

/// The rest of [`Lanes::sum`], from eight lanes on.
#[inline(always)]
unsafe fn sum_256(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// The rest of [`Lanes::largest`], from eight lanes on.
#[inline(always)]
unsafe fn largest_256(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

/// Two registers of 256 bits, with the sums of four products that VNNI has or without.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>;

/// Applies an instruction to both halves.
macro_rules! both {
    ($f:ident($($x:expr),+)) => {
        [$f($($x[0]),+), $f($($x[1]),+)]
    };
}

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    const ROWS: usize = 4;
    const HOLDS_BLOCK: bool = false;
    const TAKEN_OFF: i32 = if VNNI { 0 } else { 128 };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [_mm256_set1_ps(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        _mm256_storeu_ps(p, x[0]);
        _mm256_storeu_ps(p.add(8), x[1]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        [
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())),
        ]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
        [
            _mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)),
        ]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        [
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))),
        ]
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        [
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))),
        ]
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        let sign = _mm256_set1_ps(-0.0);
        [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
    }
    #[inline(always)]
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        [
            _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
        ]
    }
    #[inline(always)]
    unsafe fn pow2(t: Self::F) -> Self::F {
        let one = _mm256_set1_epi32(0x3f80_0000);
        let low = _mm256_slli_epi32(_mm256_castps_si256(t[0]), 23);
        let high = _mm256_slli_epi32(_mm256_castps_si256(t[1]), 23);
        [
            _mm256_castsi256_ps(_mm256_add_epi32(low, one)),
            _mm256_castsi256_ps(_mm256_add_epi32(high, one)),
        ]
    }

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [_mm256_set1_epi32(x); 2]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        // The rounding mode is "nearest even": Rust programs may not change it.
        both!(_mm256_cvtps_epi32(x))
    }
    #[inline(always)]
    unsafe fn to_f(x: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        _mm256_storeu_si256(p.cast(), x[0]);
        _mm256_storeu_si256(p.add(8).cast(), x[1]);
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        [
            _mm256_loadu_si256(p.cast()),
            _mm256_loadu_si256(p.add(32).cast()),
        ]
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: Self::B) {
        _mm256_storeu_si256(p.cast(), x[0]);
        _mm256_storeu_si256(p.add(32).cast(), x[1]);
    }
    #[inline(always)]
    unsafe fn low(x: Self::B) -> Self::B {
        let mask = _mm256_set1_epi8(15);
        [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
    }
    #[inline(always)]
    unsafe fn high(x: Self::B) -> Self::B {
        Self::low([_mm256_srli_epi16(x[0], 4), _mm256_srli_epi16(x[1], 4)])
    }
    #[inline(always)]
    unsafe fn with_fifth(x: Self::B, bits: *const u8) -> Self::B {
        let bits = bits.cast::<[i32; 2]>().read_unaligned();
        [
            _mm256_add_epi8(x[0], sixteen_where(bits[0])),
            _mm256_add_epi8(x[1], sixteen_where(bits[1])),
        ]
    }
    #[inline(always)]
    unsafe fn with_sixth<const PART: u8>(x: Self::B, h: Self::B) -> Self::B {
        let mask = _mm256_set1_epi8(0x30);
        let moved = match PART {
            0 => h,
            1 => [_mm256_srli_epi16(h[0], 2), _mm256_srli_epi16(h[1], 2)],
            2 => [_mm256_slli_epi16(h[0], 2), _mm256_slli_epi16(h[1], 2)],
            _ => [_mm256_slli_epi16(h[0], 4), _mm256_slli_epi16(h[1], 4)],
        };
        [
            _mm256_or_si256(x[0], _mm256_and_si256(moved[0], mask)),
            _mm256_or_si256(x[1], _mm256_and_si256(moved[1], mask)),
        ]
    }
    #[inline(always)]
    unsafe fn wide(x: Self::B) -> Self::B {
        if VNNI {
            return x;
        }
        let top = _mm256_set1_epi8(i8::MIN);
        [_mm256_xor_si256(x[0], top), _mm256_xor_si256(x[1], top)]
    }
    #[inline(always)]
    unsafe fn dot<const BITS: u32>(acc: Self::I, x: Self::B, a: *const i8) -> Self::I {
        let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
        if VNNI {
            return [
                _mm256_dpbusd_avx_epi32(acc[0], x[0], a),
                _mm256_dpbusd_avx_epi32(acc[1], x[1], a),
            ];
        }
        [
            add_pairs(acc[0], pairs::<BITS>(x[0], a)),
            add_pairs(acc[1], pairs::<BITS>(x[1], a)),
        ]
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        sum_256(_mm256_add_ps(x[0], x[1]))
    }
    #[inline(always)]
    unsafe fn largest(x: Self::F) -> f32 {
        largest_256(_mm256_max_ps(x[0], x[1]))
    }
    #[inline(always)]
    unsafe fn any_above(a: Self::F, b: Self::F) -> bool {
        let above = [
            _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]),
            _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]),
        ];
        _mm256_movemask_ps(_mm256_or_ps(above[0], above[1])) != 0
    }
    #[inline(always)]
    unsafe fn dots<const BITS: u32, const R: usize>(
        mut sums: [Self::I; R],
        w: [Self::B; 4],
        a: *const i8,
    ) -> [Self::I; R] {
        // Sums of pairs are added in 16 bits as often as the largest fit: four of 5-bit
        // weights (4 · 2 · 31 · 127 = 31,496), two of 6-bit ones (32,004).
        let mut pair = [[_mm256_setzero_si256(); 2]; R];
        macro_rules! register {
            ($i:literal) => {
                for r in 0..R {
                    let a = a.add(4 * ($i * R + r));
                    if VNNI || BITS > 6 {
                        sums[r] = Self::dot::<BITS>(sums[r], w[$i], a);
                        continue;
                    }
                    let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
                    let new = [pairs::<BITS>(w[$i][0], a), pairs::<BITS>(w[$i][1], a)];
                    pair[r] = match $i {
                        0 => new,
                        2 if BITS == 6 => new,
                        _ => both!(_mm256_add_epi16(pair[r], new)),
                    };
                    if $i == 3 || $i == 1 && BITS == 6 {
                        sums[r] = both!(add_pairs(sums[r], pair[r]));
                    }
                }
            };
        }
        register!(0);
        register!(1);
        register!(2);
        register!(3);
        sums
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    }
}

/// Sums of two products in 16 bits. They fit: weights below 64 stay within
/// 2 · 63 · 127, and signed weights of eight bits within 2 · 128 · 127 = 32,512. The
/// first factor must be unsigned: the weight gives its sign to the activation, which
/// is above −128 and so has a negative.
#[inline(always)]
unsafe fn pairs<const BITS: u32>(x: __m256i, a: __m256i) -> __m256i {
    if BITS > 6 {
        return _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(a, x));
    }
    _mm256_maddubs_epi16(x, a)
}

/// `acc` plus the sums of neighbouring pairs.
#[inline(always)]
unsafe fn add_pairs(acc: __m256i, pairs: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// 16 in the bytes whose bit is set.
#[inline(always)]
unsafe fn sixteen_where(bits: i32) -> __m256i {
    let spread = _mm256_set_epi64x(
        0x0303_0303_0303_0303,
        0x0202_0202_0202_0202,
        0x0101_0101_0101_0101,
        0,
    );
    let pick = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, pick), pick);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}
