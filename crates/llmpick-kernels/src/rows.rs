//! Rows of a buffer that several tasks work on, each row in one task.
//!
//! Norms, rotations and sums touch each row by itself. Cut by rows they are shared out
//! among the threads, and since no task sees another's rows, how they are cut changes
//! no number.

use std::{marker::PhantomData, ops::Range, slice};

use crate::Pool;

/// A mutable buffer of rows of one width that may be taken apart by tasks.
pub(crate) struct RowsOf<'a> {
    data: *mut f32,
    width: usize,
    rows: usize,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: the buffer is only reached by `get`, whose callers keep tasks apart.
unsafe impl Sync for RowsOf<'_> {}

impl<'a> RowsOf<'a> {
    /// A buffer of so many rows, which may be of no width.
    ///
    /// # Panics
    /// If it is not as many whole rows.
    pub fn new(data: &'a mut [f32], rows: usize) -> RowsOf<'a> {
        let width = data.len().checked_div(rows).unwrap_or(0);
        assert_eq!(data.len(), rows * width, "a buffer must be whole rows");
        RowsOf {
            rows,
            data: data.as_mut_ptr(),
            width,
            buffer: PhantomData,
        }
    }

    /// The numbers of some rows.
    ///
    /// # Safety
    /// While the slice lives, nobody else may hold one with a row of it.
    ///
    /// # Panics
    /// If there are no such rows.
    #[allow(clippy::mut_from_ref, reason = "the callers keep the parts disjoint")]
    pub unsafe fn get(&self, rows: Range<usize>) -> &mut [f32] {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        // SAFETY: the rows lie in the buffer, as just compared, and the caller vouches
        // that they are not reached twice.
        unsafe {
            slice::from_raw_parts_mut(
                self.data.add(rows.start * self.width),
                rows.len() * self.width,
            )
        }
    }
}

/// Work on some rows of two buffers, the first of which has the number given.
pub type RowWork<'a> = &'a (dyn Fn(usize, &mut [f32], &mut [f32]) + Sync);

/// Calls `work` with the rows of two buffers, at most `part` rows at a time: the number
/// of the first row, and the rows of both. Every row is handed out once; up to `part`
/// rows stay on the calling thread.
///
/// # Panics
/// If a buffer is not `rows` whole rows, of whatever width.
pub fn by_rows(
    pool: &Pool,
    part: usize,
    rows: usize,
    a: &mut [f32],
    b: &mut [f32],
    work: RowWork<'_>,
) {
    let (a, b) = (RowsOf::new(a, rows), RowsOf::new(b, rows));
    let part = part.max(1);
    pool.run(rows.div_ceil(part), &|task| {
        let rows = task * part..((task + 1) * part).min(rows);
        // SAFETY: tasks have ranges of their own, and each task runs once.
        let (a, b) = unsafe { (a.get(rows.clone()), b.get(rows.clone())) };
        work(rows.start, a, b);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_seen_once() {
        let pool = Pool::new(3);
        for (rows, part) in [(0, 4), (1, 4), (9, 4), (64, 1), (5, 100)] {
            let (mut a, mut b) = (vec![0.0; rows * 3], vec![1.0; rows * 2]);
            by_rows(&pool, part, rows, &mut a, &mut b, &|first, a, b| {
                for (i, (a, b)) in a.chunks_mut(3).zip(b.chunks_mut(2)).enumerate() {
                    a.fill((first + i) as f32);
                    b[0] += 1.0;
                }
            });
            let wanted: Vec<f32> = (0..rows * 3).map(|i| (i / 3) as f32).collect();
            assert_eq!(a, wanted);
            assert_eq!(b, [2.0, 1.0].repeat(rows));
        }
    }
}
