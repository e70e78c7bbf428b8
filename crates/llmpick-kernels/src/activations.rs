//! Activations as integers, in the order the kernels read them.
//!
//! Each 32 numbers of a row become integers with one scale: in −127..=127, the scale
//! being the largest of them divided by 127, or in −16256..=16256 as 128 h + l, two
//! planes of eight bits. Rows are put together in groups, and a block of a group of n
//! rows is: 32 · n bytes of each plane, h before l, four columns of each row after the
//! other; then for each row the scale `d`, `d · Σ q`, and for each plane its sums over
//! the block's first half, over its second half, and over the whole.
//!
//! How rows are grouped changes nothing in their numbers.

use std::ops::Range;

use crate::{
    Pool,
    lanes::{Kernel, Lanes, Level, run},
    tiles::COLS,
};

/// How finely quantised weights meet activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// Eight bits for each of 32 numbers with one scale, as in llama.cpp: fastest.
    Int8,
    /// Fifteen bits: twice the products of integers, and no error to speak of.
    #[default]
    Int16,
}

impl Rounding {
    fn planes(self) -> usize {
        match self {
            Rounding::Int8 => 1,
            Rounding::Int16 => 2,
        }
    }
}

/// Bytes that a block takes for each row of its group, in so many planes.
pub const fn row_bytes(planes: usize) -> usize {
    COLS * planes + 4 * (2 + 3 * planes)
}

/// Quantised rows.
#[derive(Default)]
pub struct Activations {
    /// Groups one after the other, each group's blocks one after the other.
    data: Vec<u32>,
    rows: usize,
    blocks: usize,
    most: usize,
    rounding: Rounding,
}

impl Activations {
    /// Quantises `rows` rows of `cols` numbers each, in groups of at most `most`.
    ///
    /// `part` gives the numbers of a range of rows. It is asked once for each group,
    /// in the task that quantises it, and may make them first.
    ///
    /// The last columns of a row that are no whole block are left out.
    pub fn fill<'x>(
        &mut self,
        (level, rounding): (Level, Rounding),
        pool: &Pool,
        (rows, cols): (usize, usize),
        most: usize,
        part: &(dyn Fn(Range<usize>) -> &'x [f32] + Sync),
    ) {
        self.rows = rows;
        self.blocks = cols / COLS;
        self.most = most;
        self.rounding = rounding;
        let row_words = self.row_words();
        let words = self.rows * row_words;
        if self.data.len() < words {
            self.data.resize(words, 0);
        }
        let data = Target(self.data.as_mut_ptr());
        let data = &data;
        pool.run(self.groups(), &|group| {
            let rows = self.group(group);
            let at = rows.start * row_words;
            let len = rows.len() * row_words;
            let x = part(rows.clone());
            // SAFETY: groups follow each other, so each task has a part of its own,
            // and the parts together are the `words` made room for above.
            let to = unsafe { std::slice::from_raw_parts_mut(data.0.add(at), len) };
            let rows = rows.len();
            match rounding {
                Rounding::Int8 => run(level, Quantise::<1> { x, cols, rows, to }),
                Rounding::Int16 => run(level, Quantise::<2> { x, cols, rows, to }),
            }
        });
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(self.most)
    }

    /// The rows of a group: as even as can be, so that no group is nearly empty.
    pub fn group(&self, group: usize) -> Range<usize> {
        let groups = self.groups();
        self.rows * group / groups..self.rows * (group + 1) / groups
    }

    /// Blocks in a row.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Words of all blocks of a row.
    fn row_words(&self) -> usize {
        self.blocks * row_bytes(self.rounding.planes()) / 4
    }

    /// How the rows were rounded.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes of a group.
    pub fn bytes(&self, group: usize) -> &[u8] {
        let rows = self.group(group);
        let words = |row: usize| row * self.row_words();
        bytemuck::cast_slice(&self.data[words(rows.start)..words(rows.end)])
    }
}

/// Room that several tasks fill at different places.
struct Target(*mut u32);
// SAFETY: the tasks write disjoint parts.
unsafe impl Sync for Target {}

/// Rounds rows to `N` planes.
struct Quantise<'a, const N: usize> {
    x: &'a [f32],
    cols: usize,
    rows: usize,
    to: &'a mut [u32],
}

impl<const N: usize> Kernel for Quantise<'_, N> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        let Quantise { x, cols, rows, to } = self;
        let blocks = to.chunks_exact_mut(rows * row_bytes(N) / 4);
        for (b, to) in blocks.enumerate() {
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            for r in 0..rows {
                let Some(x) = x[r * cols + b * COLS..].first_chunk::<COLS>() else {
                    return;
                };
                let mut planes = [Plane::default(); N];
                // SAFETY: the caller vouches for the features.
                let d = unsafe { quantise::<L, N>(x, &mut planes) };
                for (p, plane) in planes.iter().enumerate() {
                    for (i, q) in plane.q.as_chunks::<4>().0.iter().enumerate() {
                        to[COLS * rows * p + (i * rows + r) * 4..][..4].copy_from_slice(q);
                    }
                }
                let mut put = |i: usize, word: u32| {
                    let at = COLS * N * rows + (i * rows + r) * 4;
                    to[at..at + 4].copy_from_slice(&word.to_ne_bytes());
                };
                let mut all = 0;
                for (p, Plane { first, second, .. }) in planes.iter().enumerate() {
                    // 128 h + l, where there are both.
                    all = all * 128 + first + second;
                    put(2 + 3 * p, *first as u32);
                    put(3 + 3 * p, *second as u32);
                    put(4 + 3 * p, (first + second) as u32);
                }
                put(0, d.to_bits());
                put(1, (d * all as f32).to_bits());
            }
        }
    }
}

/// A block's bytes in one plane, and their sums over both halves.
#[derive(Clone, Copy, Default)]
struct Plane {
    q: [u8; COLS],
    first: i32,
    second: i32,
}

impl Plane {
    #[inline(always)]
    unsafe fn new<L: Lanes>(a: L::I, b: L::I) -> Plane {
        let mut q = [0; COLS];
        // SAFETY: the array holds twice sixteen bytes.
        unsafe {
            L::store_bytes(q.as_mut_ptr(), a);
            L::store_bytes(q.as_mut_ptr().add(16), b);
            Plane {
                q,
                first: L::sum_i(a),
                second: L::sum_i(b),
            }
        }
    }
}

/// The integers of a block, whose planes hold zeros, and its scale.
///
/// A block with a NaN or an infinity has the scale NaN, so that the damage stays
/// visible; one whose numbers are all tiny (below 1e-30) counts as zero.
#[inline(always)]
unsafe fn quantise<L: Lanes, const N: usize>(x: &[f32; COLS], planes: &mut [Plane; N]) -> f32 {
    // SAFETY: the array holds twice sixteen numbers.
    unsafe {
        let (a, b) = (L::load(x.as_ptr()), L::load(x.as_ptr().add(16)));
        let zero = L::splat(0.0);
        // 0 · x is NaN for what is not finite.
        if L::sum(L::fma(a, zero, L::mul(b, zero))) != 0.0 {
            return f32::NAN;
        }
        let most = L::largest(L::max(L::abs(a), L::abs(b)));
        if most < 1e-30 {
            return 0.0;
        }
        let range = if N == 1 { 127.0 } else { 127.0 * 128.0 };
        let factor = L::splat(range / most);
        let (a, b) = (L::round(L::mul(a, factor)), L::round(L::mul(b, factor)));
        if N == 1 {
            planes[0] = Plane::new::<L>(a, b);
        } else {
            let (a, b) = (L::to_f(a), L::to_f(b));
            let part = L::splat(1.0 / 128.0);
            let (h, i) = (L::round(L::mul(a, part)), L::round(L::mul(b, part)));
            planes[0] = Plane::new::<L>(h, i);
            // All exact: a whole number below 2¹⁵ less 128 times another.
            let whole = L::splat(-128.0);
            let l = L::round(L::fma(L::to_f(h), whole, a));
            planes[N - 1] = Plane::new::<L>(l, L::round(L::fma(L::to_f(i), whole, b)));
        }
        most / range
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn rows(how: (Level, Rounding), x: &[f32], cols: usize, most: usize) -> Vec<Vec<u8>> {
        let mut activations = Activations::default();
        let shape = (x.len() / cols, cols);
        activations.fill(how, &Pool::new(2), shape, most, &|rows| {
            &x[rows.start * cols..rows.end * cols]
        });
        let mut rows = Vec::new();
        for group in 0..activations.groups() {
            let n = activations.group(group).len();
            let bytes = activations.bytes(group);
            for r in 0..n {
                let mut row = Vec::new();
                let bytes_of_row = row_bytes(how.1.planes());
                for block in bytes.chunks_exact(n * bytes_of_row) {
                    for word in 0..bytes_of_row / 4 {
                        row.extend(&block[(word * n + r) * 4..][..4]);
                    }
                }
                rows.push(row);
            }
        }
        rows
    }

    #[test]
    fn grouping_and_form_change_nothing() {
        let cols = 96;
        let mut x = Random::new(4).vec(29 * cols);
        x[40] = f32::NAN;
        x[200] = f32::NEG_INFINITY;
        x[3 * cols..3 * cols + 32].fill(0.0);
        x[4 * cols..4 * cols + 32].fill(1e-36);
        x[5 * cols] = f32::MAX;
        for rounding in [Rounding::Int8, Rounding::Int16] {
            let plain = rows((Level::Plain, rounding), &x, cols, 1);
            assert_eq!(plain.len(), 29);
            for level in Level::all_here() {
                for most in [1, 2, 4, 12] {
                    let got = rows((level, rounding), &x, cols, most);
                    assert_eq!(got, plain, "{level:?} {rounding:?} {most}");
                }
            }
        }
    }

    #[test]
    fn integers_stand_for_the_numbers() {
        let x = Random::new(8).vec(32);
        let mut block = [0.0; 32];
        block.copy_from_slice(&x);
        let half = |q: &[u8]| q.iter().map(|q| i32::from(*q as i8)).sum::<i32>();
        let sums = |plane: &Plane| (half(&plane.q[..16]), half(&plane.q[16..]));
        let byte = |plane: &Plane, i: usize| i32::from(plane.q[i] as i8);
        let mut one = [Plane::default()];
        let mut two = [Plane::default(); 2];
        // SAFETY: the plain form needs no features.
        let (d, e) = unsafe {
            (
                quantise::<crate::lanes::Plain, 1>(&block, &mut one),
                quantise::<crate::lanes::Plain, 2>(&block, &mut two),
            )
        };
        for plane in one.iter().chain(&two) {
            assert_eq!((plane.first, plane.second), sums(plane));
        }
        let mut most = (0, 0);
        for (i, x) in x.iter().enumerate() {
            let (q, fine) = (byte(&one[0], i), 128 * byte(&two[0], i) + byte(&two[1], i));
            assert!((x - d * q as f32).abs() <= d * 0.5001, "{x} {q}");
            assert!((x - e * fine as f32).abs() <= e * 0.502, "{x} {fine}");
            most = (most.0.max(q.abs()), most.1.max(fine.abs()));
        }
        assert_eq!(most, (127, 127 * 128));
    }
}
