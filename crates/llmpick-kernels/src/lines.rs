//! Numbers that begin with a line of the processor's cache.
//!
//! A register of sixteen `f32` is as long as a line. Where numbers begin between two lines
//! every load touches both: begun 16 bytes late, attention of one query takes 1.4 to 1.7
//! times as long over keys and values in `f32` and as long as ever in `f16`, which has two
//! registers to a line; with many queries the loads are few beside the arithmetic.

use std::ops::{Deref, DerefMut};

/// Bytes of a line.
const LINE: usize = 64;

/// A vector of numbers whose first begins a line.
///
/// Allocators give large zeroed memory without touching it, but only for common
/// alignments; so this takes a line more than it needs and begins where one does.
#[derive(Debug, Default)]
pub struct Lines<T> {
    all: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Lines<T> {
    /// So many zeros.
    pub fn zeros(len: usize) -> Lines<T> {
        let all = vec![T::default(); len + LINE / size_of::<T>().max(1)];
        let start = all.as_ptr().align_offset(LINE);
        assert!(start + len <= all.len(), "numbers divide a line");
        Lines { all, start, len }
    }

    /// Makes it so many zeros, in the memory there is if that is enough.
    pub fn reset(&mut self, len: usize) {
        if self.start + len > self.all.len() {
            *self = Lines::zeros(len);
        }
        self.len = len;
        self.fill(T::default());
    }

    /// So many numbers to be written before they are read: whatever they were before.
    pub fn room(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            *self = Lines::zeros(len);
        }
        &mut self[..len]
    }
}

impl<T: Copy + Default> Clone for Lines<T> {
    fn clone(&self) -> Lines<T> {
        let mut copy = Lines::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.all[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins_a_line<T>(lines: &Lines<T>) -> bool {
        lines.as_ptr().addr().is_multiple_of(LINE)
    }

    #[test]
    fn they_begin_a_line_and_keep_what_is_written() {
        for len in [0, 1, 15, 64, 5000, 300_000] {
            let mut lines = Lines::<f32>::zeros(len);
            assert!(begins_a_line(&lines) && lines.len() == len);
            assert!(lines.iter().all(|x| *x == 0.0));
            lines.fill(2.0);
            let copy = lines.clone();
            assert!(begins_a_line(&copy) && *copy == *lines);
            for len in [len / 2, len * 3] {
                lines.reset(len);
                assert!(begins_a_line(&lines) && lines.len() == len);
                assert!(lines.iter().all(|x| *x == 0.0));
            }
            assert!(begins_a_line(&Lines::<i8>::zeros(len)));
            assert!(begins_a_line(&Lines::<half::f16>::zeros(len)));
        }
        let mut lines = Lines::<u8>::zeros(3);
        lines.fill(7);
        assert_eq!(lines.room(2), [7, 7]);
        assert_eq!(lines.room(100), [0; 100]);
        assert!(begins_a_line(&lines));
        let mut none = Lines::<f32>::default();
        assert!(none.is_empty());
        none.reset(20);
        assert!(begins_a_line(&none) && none.len() == 20);
    }
}
