//! The inner loops of a product: a tile of weights with some rows of activations.
//!
//! One block adds to one output number, in this order and in `f32`:
//! `acc = fma(Σ q·a, scale · d, acc)`, then for formats with a minimum
//! `acc = fma(min, d · Σ a, acc)`. The sums are integers, hence exact, so it does
//! not matter how weights were unpacked, and any number of rows may share the work.
//! Activations of fifteen bits are two of eight, `a = 128 h + l`: both sums are exact,
//! and `fma(Σ q·h, 128, Σ q·l)` is their whole, rounded once.

#![allow(
    clippy::needless_range_loop,
    reason = "rows are counted, as in the formulas"
)]

use std::marker::PhantomData;

use crate::{
    Format,
    activations::{Activations, Rounding, row_bytes},
    lanes::{Kernel, Lanes, Level, most_rows, run},
    lines::Lines,
    tiles::{self, Kind, PANEL_BYTES, Panel, ROWS, Source},
};

/// Up to this many activation rows go straight through the compact weights; more
/// share an unpacked panel.
const DIRECT: usize = 4;

/// Blocks unpacked at a time: their 20 kB stay in the first-level cache while the
/// activations stream by.
const STRETCH: usize = 32;

/// How far ahead of the loads compact weights are asked for, in bytes.
const AHEAD: usize = 4096;

/// Sums of sixteen output numbers of one row.
pub type Sums = [f32; ROWS];

/// Most rows in a group of activations when there are `rows` in all.
pub fn group_rows(level: Level, rows: usize) -> usize {
    match rows <= DIRECT {
        true => DIRECT,
        false => most_rows(level),
    }
}

/// Room that a thread keeps between tiles.
#[derive(Default)]
pub struct Scratch {
    panel: Lines<u8>,
    sums: Vec<Sums>,
}

/// Calls `$call` with `R` set to `$rows`, which is one of those listed.
macro_rules! with_rows {
    ($rows:expr, 1..=4, $R:ident => $call:expr) => {
        with_rows!(@ $rows, $R => $call, 1 2 3 4)
    };
    ($rows:expr, 1..=12, $R:ident => $call:expr) => {
        with_rows!(@ $rows, $R => $call, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $rows:expr, $R:ident => $call:expr, $($n:literal)+) => {
        match $rows {
            $($n => { const $R: usize = $n; $call })+
            other => unreachable!("a group does not have {other} rows"),
        }
    };
}

/// Repeats a statement for each row below `$R`, which is at most 12. A loop would do
/// the same, were it not for the compiler: it gives up unrolling one this large, and
/// the sums then live in memory at a tenth of the speed.
macro_rules! unrolled {
    ($r:ident < $R:ident => $body:expr) => {
        unrolled!(@ $r $R $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $r:ident $R:ident $body:expr, $($n:literal)+) => {
        $(if $n < $R {
            let $r: usize = $n;
            $body;
        })+
    };
}

/// The sums of a tile with every row: one entry per row of `activations`, or, for
/// floating-point weights, per row of `x`.
pub fn tile<'a>(
    level: Level,
    format: Format,
    weights: &[u8],
    x: &[f32],
    cols: usize,
    activations: &Activations,
    scratch: &'a mut Scratch,
) -> &'a [Sums] {
    use tiles::{Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    let a = activations;
    match format {
        Format::Q4_0 => quantised::<Q4_0, Q4_0>(level, weights, a, scratch),
        Format::Q5_0 => quantised::<Q5_0, Q5_0>(level, weights, a, scratch),
        Format::Q8_0 => quantised::<Q8_0, Q8_0>(level, weights, a, scratch),
        Format::Q6_K => quantised::<Q6_K, Q6_K>(level, weights, a, scratch),
        // Unpacked, all formats with a minimum are alike.
        Format::Q4_1 => quantised::<Q4_1, Q4_1>(level, weights, a, scratch),
        Format::Q5_1 => quantised::<Q5_1, Q4_1>(level, weights, a, scratch),
        Format::Q4_K => quantised::<Q4_K, Q4_1>(level, weights, a, scratch),
        Format::Q5_K => quantised::<Q5_K, Q4_1>(level, weights, a, scratch),
        Format::F16 => floating::<Half>(level, weights, x, cols, scratch),
        Format::BF16 => floating::<Brain>(level, weights, x, cols, scratch),
        Format::F32 => floating::<Single>(level, weights, x, cols, scratch),
    }
}

/// A tile of `S`, whose unpacked form is that of `P`.
fn quantised<'a, S: Source, P: Source>(
    level: Level,
    weights: &[u8],
    activations: &Activations,
    scratch: &'a mut Scratch,
) -> &'a [Sums] {
    match activations.rounding() {
        Rounding::Int8 => in_planes::<S, P, 1>(level, weights, activations, scratch),
        Rounding::Int16 => in_planes::<S, P, 2>(level, weights, activations, scratch),
    }
}

/// [`quantised`] with activations of `N` planes of eight bits.
fn in_planes<'a, S: Source, P: Source, const N: usize>(
    level: Level,
    weights: &[u8],
    activations: &Activations,
    scratch: &'a mut Scratch,
) -> &'a [Sums] {
    let (rows, blocks) = (activations.rows(), activations.blocks());
    scratch.sums.clear();
    scratch.sums.resize(rows, [0.0; ROWS]);
    if rows <= DIRECT {
        let (a, sums) = (activations.bytes(0), &mut scratch.sums[..]);
        with_rows!(rows, 1..=4, R => run(level, Step::<S, R, N>::new(weights, 0..blocks, a, sums)));
        return &scratch.sums;
    }
    let panel = scratch.panel.room(STRETCH * PANEL_BYTES);
    for start in (0..blocks).step_by(STRETCH) {
        let count = STRETCH.min(blocks - start);
        run(
            level,
            Unpack::<S> {
                weights,
                start,
                count,
                panel,
                source: PhantomData,
            },
        );
        for group in 0..activations.groups() {
            let part = activations.group(group);
            let n = part.len();
            let a = &activations.bytes(group)[start * n * row_bytes(N)..];
            let sums = &mut scratch.sums[part];
            with_rows!(n, 1..=12, R => {
                run(level, Step::<Panel<P>, R, N>::new(panel, 0..count, a, sums))
            });
        }
    }
    &scratch.sums
}

/// Writes blocks of compact weights to a panel.
struct Unpack<'a, S> {
    weights: &'a [u8],
    start: usize,
    count: usize,
    panel: &'a mut [u8],
    source: PhantomData<S>,
}

impl<S: Source> Kernel for Unpack<'_, S> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        assert!(self.weights.len() >= (self.start + self.count) * S::BYTES);
        assert!(self.panel.len() >= self.count * PANEL_BYTES);
        for b in 0..self.count {
            // SAFETY: both lengths were compared above.
            unsafe {
                ask_ahead::<L, S>(self.weights.as_ptr(), self.start + b);
                let block = S::block::<L>(self.weights.as_ptr(), self.start + b);
                tiles::store::<L>(&block, self.panel.as_mut_ptr().add(b * PANEL_BYTES));
            }
        }
    }
}

/// Adds the products of some blocks with a group of `R` rows of `N` planes to the sums.
struct Step<'a, S, const R: usize, const N: usize> {
    weights: &'a [u8],
    blocks: usize,
    a: &'a [u8],
    sums: &'a mut [Sums; R],
    source: PhantomData<S>,
}

impl<'a, S: Source, const R: usize, const N: usize> Step<'a, S, R, N> {
    fn new(
        weights: &'a [u8],
        blocks: std::ops::Range<usize>,
        a: &'a [u8],
        sums: &'a mut [Sums],
    ) -> Self {
        let blocks = blocks.len();
        let Some(sums) = sums.first_chunk_mut() else {
            unreachable!("a group of {R} rows")
        };
        assert!(weights.len() >= blocks * S::BYTES);
        assert!(a.len() >= blocks * R * row_bytes(N));
        Step {
            weights,
            blocks,
            a,
            sums,
            source: PhantomData,
        }
    }
}

impl<S: Source, const R: usize, const N: usize> Kernel for Step<'_, S, R, N> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        // Groups are never larger; this keeps the compiler from making the code.
        if R > L::ROWS {
            return;
        }
        // SAFETY: `new` has compared the lengths with what `blocks` blocks take, and
        // the sums are `R` times sixteen numbers.
        unsafe {
            let mut acc = [L::splat(0.0); R];
            unrolled!(r < R => acc[r] = L::load(self.sums[r].as_ptr()));
            let weights = self.weights.as_ptr();
            let mut a = self.a.as_ptr();
            for b in 0..self.blocks {
                ask_ahead::<L, S>(weights, b);
                let block = S::block::<L>(weights, b);
                if L::HOLDS_BLOCK {
                    unrolled!(r < R => acc[r] = add_block::<L, S, R, N>(acc[r], &block, a, r));
                } else {
                    acc = add_block_to_all::<L, S, R, N>(acc, &block, a);
                }
                a = a.add(R * row_bytes(N));
            }
            unrolled!(r < R => L::store(self.sums[r].as_mut_ptr(), acc[r]));
        }
    }
}

/// Asks for the cache lines of a block some way after block `b`.
#[inline(always)]
unsafe fn ask_ahead<L: Lanes, S: Source>(weights: *const u8, b: usize) {
    if S::FAR {
        let next = weights.wrapping_add(b * S::BYTES + AHEAD);
        for line in 0..S::BYTES.div_ceil(64) {
            // SAFETY: any address may be asked for.
            unsafe { L::prefetch(next.wrapping_add(line * 64)) };
        }
    }
}

/// One block with row `r` of a group of `R`, whose block begins at `a`.
#[inline(always)]
unsafe fn add_block<L: Lanes, S: Source, const R: usize, const N: usize>(
    acc: L::F,
    block: &tiles::Unpacked<L>,
    a: *const u8,
    r: usize,
) -> L::F {
    // SAFETY: a block of `R` rows has `R` times `row_bytes(N)` bytes at `a`, and r < R.
    unsafe {
        let word = |i: usize| a.add(32 * N * R + (i * R + r) * 4);
        let number = |i: usize| word(i).cast::<f32>().read_unaligned();
        let whole = |i: usize| word(i).cast::<i32>().read_unaligned();
        // What weights are too large by, times the sums of a plane: −Σ offset · a.
        let starts = |plane: usize| match S::KIND {
            Kind::Offset => (-(S::OFFSET - taken_off::<L, S>()) * whole(4 + 3 * plane), 0),
            Kind::Min => (0, 0),
            Kind::Halves => (
                -S::OFFSET * whole(2 + 3 * plane),
                -S::OFFSET * whole(3 + 3 * plane),
            ),
        };
        let (i0, i1) = half_sums::<L, S, R>(starts(0), block, a, r);
        let (half0, half1) = match N {
            1 => (L::to_f(i0), L::to_f(i1)),
            _ => {
                let (l0, l1) = half_sums::<L, S, R>(starts(1), block, a.add(32 * R), r);
                (joined::<L>(i0, l0), joined::<L>(i1, l1))
            }
        };
        let d = L::splat(number(0));
        match S::KIND {
            Kind::Offset => L::fma(half1, L::mul(block.s, d), acc),
            Kind::Min => {
                let acc = L::fma(half1, L::mul(block.s, d), acc);
                L::fma(block.t, L::splat(number(1)), acc)
            }
            Kind::Halves => {
                let acc = L::fma(half0, L::mul(block.s, d), acc);
                L::fma(half1, L::mul(block.t, d), acc)
            }
        }
    }
}

/// Sums of both halves of a block with the bytes of a plane at `a`, row `r` of `R`, on top
/// of two given ones; where halves have no scales of their own, the second is of the whole.
#[inline(always)]
unsafe fn half_sums<L: Lanes, S: Source, const R: usize>(
    (first, second): (i32, i32),
    block: &tiles::Unpacked<L>,
    a: *const u8,
    r: usize,
) -> (L::I, L::I) {
    // SAFETY: a plane of `R` rows has 32 · `R` bytes at `a`, and r < R.
    unsafe {
        let q = |i: usize| a.add((i * R + r) * 4).cast::<i8>();
        let halves = matches!(S::KIND, Kind::Halves);
        let mut i0 = L::splat_i(first);
        let mut i1 = L::splat_i(second);
        i0 = dot::<L, S>(i0, block.w[0], q(0));
        i0 = dot::<L, S>(i0, block.w[1], q(1));
        i0 = dot::<L, S>(i0, block.w[2], q(2));
        i0 = dot::<L, S>(i0, block.w[3], q(3));
        // With few rows a second sum hides the latency of the instruction; with many
        // the rows hide each other's, and one sum saves an addition.
        let one = !halves && R > DIRECT;
        if one {
            i1 = i0;
        }
        i1 = dot::<L, S>(i1, block.w[4], q(4));
        i1 = dot::<L, S>(i1, block.w[5], q(5));
        i1 = dot::<L, S>(i1, block.w[6], q(6));
        i1 = dot::<L, S>(i1, block.w[7], q(7));
        if !halves && !one {
            i1 = L::add_i(i0, i1);
        }
        (i0, i1)
    }
}

/// `128 · high + low`, rounded once: both are below 2²⁴, so that they are exact in `f32`.
#[inline(always)]
unsafe fn joined<L: Lanes>(high: L::I, low: L::I) -> L::F {
    // SAFETY: the caller vouches for the features.
    unsafe { L::fma(L::to_f(high), L::splat(128.0), L::to_f(low)) }
}

/// [`add_block`] with all rows of a group, whose block begins at `a`. Each register of
/// weights meets all rows in turn; the sums are the same.
#[inline(always)]
unsafe fn add_block_to_all<L: Lanes, S: Source, const R: usize, const N: usize>(
    mut acc: [L::F; R],
    block: &tiles::Unpacked<L>,
    a: *const u8,
) -> [L::F; R] {
    // SAFETY: a block of `R` rows has `R` times `row_bytes(N)` bytes at `a`, and r < R.
    unsafe {
        let word = |i: usize, r: usize| a.add(32 * N * R + (i * R + r) * 4);
        let number = |i: usize, r: usize| word(i, r).cast::<f32>().read_unaligned();
        let whole = |i: usize, r: usize| word(i, r).cast::<i32>().read_unaligned();
        let [w0, w1, w2, w3, w4, w5, w6, w7] = block.w;
        let halves = matches!(S::KIND, Kind::Halves);
        let start = |first: usize, plane: usize, r: usize| match S::KIND {
            Kind::Offset if first == 0 => {
                -(S::OFFSET - taken_off::<L, S>()) * whole(4 + 3 * plane, r)
            }
            Kind::Halves => -S::OFFSET * whole(2 + first + 3 * plane, r),
            _ => 0,
        };
        let mut sums = [[L::splat_i(0); R]; N];
        for plane in 0..N {
            let a = a.add(32 * R * plane);
            for r in 0..R {
                sums[plane][r] = L::splat_i(start(0, plane, r));
            }
            sums[plane] = dots::<L, S, R>(sums[plane], [w0, w1, w2, w3], a.cast());
        }
        if halves {
            for r in 0..R {
                let scale = L::mul(block.s, L::splat(number(0, r)));
                acc[r] = L::fma(whole_of::<L, R, N>(&sums, r), scale, acc[r]);
                for plane in 0..N {
                    sums[plane][r] = L::splat_i(start(1, plane, r));
                }
            }
        }
        for plane in 0..N {
            let a = a.add(32 * R * plane + 16 * R);
            sums[plane] = dots::<L, S, R>(sums[plane], [w4, w5, w6, w7], a.cast());
        }
        for r in 0..R {
            let scale = if halves { block.t } else { block.s };
            let scale = L::mul(scale, L::splat(number(0, r)));
            acc[r] = L::fma(whole_of::<L, R, N>(&sums, r), scale, acc[r]);
            if matches!(S::KIND, Kind::Min) {
                acc[r] = L::fma(block.t, L::splat(number(1, r)), acc[r]);
            }
        }
        acc
    }
}

/// The number that the sums of a row's planes are.
#[inline(always)]
unsafe fn whole_of<L: Lanes, const R: usize, const N: usize>(
    sums: &[[L::I; R]; N],
    r: usize,
) -> L::F {
    // SAFETY: the caller vouches for the features.
    unsafe {
        match N {
            1 => L::to_f(sums[0][r]),
            _ => joined::<L>(sums[0][r], sums[N - 1][r]),
        }
    }
}

/// What the form has already taken off the weights.
#[inline(always)]
const fn taken_off<L: Lanes, S: Source>() -> i32 {
    if S::BITS > 6 { L::TAKEN_OFF } else { 0 }
}

/// Four products in each lane, in the form that the width of the weights asks for.
#[inline(always)]
unsafe fn dot<L: Lanes, S: Source>(acc: L::I, w: L::B, a: *const i8) -> L::I {
    // SAFETY: the caller's pointer is good for four bytes.
    unsafe {
        match S::BITS {
            5 => L::dot::<5>(acc, w, a),
            6 => L::dot::<6>(acc, w, a),
            _ => L::dot::<8>(acc, w, a),
        }
    }
}

/// [`dot`] of half a block with `R` rows.
#[inline(always)]
unsafe fn dots<L: Lanes, S: Source, const R: usize>(
    sums: [L::I; R],
    w: [L::B; 4],
    a: *const i8,
) -> [L::I; R] {
    // SAFETY: the caller's pointer is good for 16 · `R` bytes.
    unsafe {
        match S::BITS {
            5 => L::dots::<5, R>(sums, w, a),
            6 => L::dots::<6, R>(sums, w, a),
            _ => L::dots::<8, R>(sums, w, a),
        }
    }
}

/// A floating-point format.
trait Float {
    const BYTES: usize;
    /// Sixteen weights.
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F;
}

struct Half;
struct Brain;
struct Single;

impl Float for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen weights.
        unsafe { L::load_f16(p) }
    }
}

impl Float for Brain {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen weights.
        unsafe { L::load_bf16(p) }
    }
}

impl Float for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen weights, and the loads
        // of `f32` take any alignment.
        unsafe { L::load(p.cast()) }
    }
}

/// A tile of floating-point weights: even and odd columns are summed apart.
fn floating<'a, T: Float>(
    level: Level,
    weights: &[u8],
    x: &[f32],
    cols: usize,
    scratch: &'a mut Scratch,
) -> &'a [Sums] {
    let rows = x.len() / cols;
    scratch.sums.clear();
    scratch.sums.resize(rows, [0.0; ROWS]);
    let groups = x
        .chunks(FLOAT_ROWS * cols)
        .zip(scratch.sums.chunks_mut(FLOAT_ROWS));
    for (x, sums) in groups {
        macro_rules! step {
            ($r:literal) => {{
                let Some(sums) = sums.first_chunk_mut() else {
                    unreachable!("a group of rows")
                };
                let format = PhantomData::<T>;
                run(
                    level,
                    FloatStep::<T, $r> {
                        weights,
                        x,
                        cols,
                        sums,
                        format,
                    },
                )
            }};
        }
        match sums.len() {
            1 => step!(1),
            2 => step!(2),
            3 => step!(3),
            _ => step!(4),
        }
    }
    &scratch.sums
}

/// Rows that share a pass over floating-point weights.
const FLOAT_ROWS: usize = 4;

struct FloatStep<'a, T, const R: usize> {
    weights: &'a [u8],
    x: &'a [f32],
    cols: usize,
    sums: &'a mut [Sums; R],
    format: PhantomData<T>,
}

impl<T: Float, const R: usize> Kernel for FloatStep<'_, T, R> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        let step = T::BYTES * ROWS;
        assert!(self.weights.len() >= self.cols * step);
        assert!(self.x.len() >= self.cols * R);
        // SAFETY: a tile has `step` bytes per column and `x` has `R` rows of `cols`,
        // as just compared.
        unsafe {
            let mut acc = [[L::splat(0.0); 2]; R];
            let (weights, x) = (self.weights.as_ptr(), self.x.as_ptr());
            for k in 0..self.cols {
                L::prefetch(weights.wrapping_add(k * step + AHEAD));
                let w = T::load::<L>(weights.add(k * step));
                for r in 0..R {
                    let x = L::splat(x.add(r * self.cols + k).read());
                    // Written out: an index of k % 2 would put the sums into memory.
                    let [even, odd] = acc[r];
                    acc[r] = [odd, L::fma(w, x, even)];
                }
            }
            for r in 0..R {
                let [a, b] = acc[r];
                L::store(self.sums[r].as_mut_ptr(), L::add(a, b));
            }
        }
    }
}
