//! Activations as eight-bit integers, in the order the kernels read them.
//!
//! Each 32 numbers of a row become integers in −127..=127 with one scale, the
//! largest of them divided by 127. Rows are put together in groups, and a block of
//! a group of n rows is: 32 · n integers, four columns of each row after the other;
//! then for each row the scale `d`, `d · Σ q`, `Σ q` over the block's first half,
//! the same over its second half, and over the whole.
//!
//! How rows are grouped changes nothing in their numbers.

use std::ops::Range;

use crate::{
    Pool,
    lanes::{Kernel, Lanes, Level, run},
    tiles::COLS,
};

/// Bytes that a block takes for each row of its group.
pub const ROW_BYTES: usize = COLS + 5 * 4;

/// Quantised rows.
#[derive(Default)]
pub struct Activations {
    /// Groups one after the other, each group's blocks one after the other.
    data: Vec<u32>,
    rows: usize,
    blocks: usize,
    most: usize,
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
        level: Level,
        pool: &Pool,
        (rows, cols): (usize, usize),
        most: usize,
        part: &(dyn Fn(Range<usize>) -> &'x [f32] + Sync),
    ) {
        self.rows = rows;
        self.blocks = cols / COLS;
        self.most = most;
        let words = self.rows * self.blocks * ROW_BYTES / 4;
        if self.data.len() < words {
            self.data.resize(words, 0);
        }
        let data = Target(self.data.as_mut_ptr());
        let data = &data;
        pool.run(self.groups(), &|group| {
            let rows = self.group(group);
            let at = rows.start * self.blocks * ROW_BYTES / 4;
            let len = rows.len() * self.blocks * ROW_BYTES / 4;
            let x = part(rows.clone());
            // SAFETY: groups follow each other, so each task has a part of its own,
            // and the parts together are the `words` made room for above.
            let to = unsafe { std::slice::from_raw_parts_mut(data.0.add(at), len) };
            run(
                level,
                Quantise {
                    x,
                    cols,
                    rows: rows.len(),
                    to,
                },
            );
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

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes of a group.
    pub fn bytes(&self, group: usize) -> &[u8] {
        let rows = self.group(group);
        let words = |row: usize| row * self.blocks * ROW_BYTES / 4;
        bytemuck::cast_slice(&self.data[words(rows.start)..words(rows.end)])
    }
}

/// Room that several tasks fill at different places.
struct Target(*mut u32);
// SAFETY: the tasks write disjoint parts.
unsafe impl Sync for Target {}

struct Quantise<'a> {
    x: &'a [f32],
    cols: usize,
    rows: usize,
    to: &'a mut [u32],
}

impl Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) {
        let Quantise { x, cols, rows, to } = self;
        let blocks = to.chunks_exact_mut(rows * ROW_BYTES / 4);
        for (b, to) in blocks.enumerate() {
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            for r in 0..rows {
                let Some(x) = x[r * cols + b * COLS..].first_chunk::<COLS>() else {
                    return;
                };
                let mut q = [0u8; COLS];
                // SAFETY: the caller vouches for the features.
                let (d, first, second) = unsafe { quantise::<L>(x, &mut q) };
                for (i, q) in q.as_chunks::<4>().0.iter().enumerate() {
                    to[(i * rows + r) * 4..][..4].copy_from_slice(q);
                }
                let all = first + second;
                let words = [
                    d.to_bits(),
                    (d * all as f32).to_bits(),
                    first as u32,
                    second as u32,
                    all as u32,
                ];
                for (i, word) in words.into_iter().enumerate() {
                    let at = COLS * rows + (i * rows + r) * 4;
                    to[at..at + 4].copy_from_slice(&word.to_ne_bytes());
                }
            }
        }
    }
}

/// The integers of a block as bytes, its scale, and the sums of both halves.
///
/// A block with a NaN or an infinity has the scale NaN, so that the damage stays
/// visible; one whose numbers are all tiny (below 1e-30) counts as zero.
#[inline(always)]
unsafe fn quantise<L: Lanes>(x: &[f32; COLS], q: &mut [u8; COLS]) -> (f32, i32, i32) {
    // SAFETY: both arrays hold twice sixteen numbers.
    unsafe {
        let (a, b) = (L::load(x.as_ptr()), L::load(x.as_ptr().add(16)));
        let zero = L::splat(0.0);
        // 0 · x is NaN for what is not finite.
        if L::sum(L::fma(a, zero, L::mul(b, zero))) != 0.0 {
            return (f32::NAN, 0, 0);
        }
        let most = L::largest(L::max(L::abs(a), L::abs(b)));
        if most < 1e-30 {
            return (0.0, 0, 0);
        }
        let factor = L::splat(127.0 / most);
        let (a, b) = (L::round(L::mul(a, factor)), L::round(L::mul(b, factor)));
        L::store_bytes(q.as_mut_ptr(), a);
        L::store_bytes(q.as_mut_ptr().add(16), b);
        (most / 127.0, L::sum_i(a), L::sum_i(b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn rows(level: Level, x: &[f32], cols: usize, most: usize) -> Vec<Vec<u8>> {
        let mut activations = Activations::default();
        let shape = (x.len() / cols, cols);
        activations.fill(level, &Pool::new(2), shape, most, &|rows| {
            &x[rows.start * cols..rows.end * cols]
        });
        let mut rows = Vec::new();
        for group in 0..activations.groups() {
            let n = activations.group(group).len();
            let bytes = activations.bytes(group);
            for r in 0..n {
                let mut row = Vec::new();
                for block in bytes.chunks_exact(n * ROW_BYTES) {
                    for word in 0..ROW_BYTES / 4 {
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
        let plain = rows(Level::Plain, &x, cols, 1);
        assert_eq!(plain.len(), 29);
        for level in Level::all_here() {
            for most in [1, 2, 4, 12] {
                assert_eq!(rows(level, &x, cols, most), plain, "{level:?} {most}");
            }
        }
    }

    #[test]
    fn integers_stand_for_the_numbers() {
        let x = Random::new(8).vec(32);
        let mut q = [0u8; 32];
        let mut block = [0.0; 32];
        block.copy_from_slice(&x);
        // SAFETY: the plain form needs no features.
        let (d, first, second) = unsafe { quantise::<crate::lanes::Plain>(&block, &mut q) };
        let q = q.map(|q| i32::from(q as i8));
        let half = |q: &[i32]| q.iter().sum::<i32>();
        assert_eq!((first, second), (half(&q[..16]), half(&q[16..])));
        for (x, q) in x.iter().zip(q) {
            assert!((x - d * q as f32).abs() <= d * 0.5001, "{x} {q}");
        }
        assert_eq!(q.iter().map(|q| q.abs()).max(), Some(127));
    }
}
