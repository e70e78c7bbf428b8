//! From the tensors of a file to matrices: all of them in one go.
//!
//! A model's tensors differ a hundredfold in size, so threads that take a tensor or a
//! layer each end at different times, and the largest tensor keeps one thread alone.
//! Here the tensors are collected first, and then the threads share their tiles.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::quantized::GgmlDType;

use crate::{
    Format, KernelError, Matrix, Pool,
    format::first_not_finite,
    pack::pack,
    slab::{Slab, Stretch},
    tiles::{ROWS, tile_bytes},
};

/// Bytes of a file that a task reads, about. What a task has read can be given back
/// to the system, so this is also what stays in memory twice.
const PIECE: usize = 1 << 20;

/// What tiles of all matrices are aligned to: a line of the cache.
const LINE: usize = 64;

/// Tensors that are to become matrices.
#[derive(Default)]
pub struct Packer<'a> {
    tensors: Vec<Tensor<'a>>,
    /// Bytes of all tiles.
    size: usize,
    slab: Arc<OnceLock<Slab>>,
}

/// Why the packing failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pack tensor {tensor}")]
pub struct PackError {
    /// Which tensor, counted from 0 in the order of [`Packer::add`].
    pub tensor: usize,
    /// What is wrong with it.
    pub source: KernelError,
}

struct Tensor<'a> {
    format: Format,
    bytes: &'a [u8],
    row_bytes: usize,
    tile_bytes: usize,
    /// Where its tiles begin in the slab.
    start: usize,
    /// Tiles of one task.
    tiles: usize,
}

impl Tensor<'_> {
    fn tasks(&self) -> usize {
        (self.bytes.len() / self.row_bytes).div_ceil(ROWS * self.tiles)
    }
}

impl<'a> Packer<'a> {
    /// No tensors yet.
    pub fn new() -> Packer<'a> {
        Packer::default()
    }

    /// Plans a row-major `rows × cols` tensor. The matrix must not be used before
    /// [`run`](Packer::run) has succeeded: products with it panic.
    ///
    /// # Errors
    /// If no kernel reads the type, the shape does not fit the type's blocks, or the
    /// bytes do not fit the shape.
    pub fn add(
        &mut self,
        dtype: GgmlDType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Matrix, KernelError> {
        let format = Format::from_ggml(dtype)?;
        let wanted = format.checked_size(rows, cols)?;
        if bytes.len() != wanted {
            return Err(KernelError::Size {
                rows,
                cols,
                dtype,
                wanted,
                given: bytes.len(),
            });
        }
        let (row_bytes, tile_bytes) = (wanted / rows, tile_bytes(format, cols));
        let start = self.size;
        let size = rows.div_ceil(ROWS).checked_mul(tile_bytes);
        let end = size.and_then(|size| start.checked_add(size));
        let end = end.filter(|end| *end < isize::MAX as usize - LINE);
        let end = end.ok_or(KernelError::Shape { rows, cols })?;
        self.size = end.next_multiple_of(LINE);
        self.tensors.push(Tensor {
            format,
            bytes,
            row_bytes,
            tile_bytes,
            start,
            tiles: (PIECE / (ROWS * row_bytes)).max(1),
        });
        let stretch = Stretch {
            slab: Arc::clone(&self.slab),
            range: start..end,
        };
        Ok(Matrix::planned(format, rows, cols, stretch))
    }

    /// Bytes that the planned matrices will take.
    pub fn size_bytes(&self) -> usize {
        self.size
    }

    /// Packs all tensors. `read` hears of each part of their bytes that will not be read
    /// again, about a megabyte at a time, from whichever thread is done with it.
    ///
    /// # Errors
    /// If the system refuses the memory, or a weight or a scale is not finite: the first
    /// tensor that holds one, and its first such row.
    pub fn run(self, pool: &Pool, read: &(dyn Fn(&[u8]) + Sync)) -> Result<(), PackError> {
        let mut slab = Slab::new(self.size).map_err(|source| PackError { tensor: 0, source })?;
        let target = Target(slab.start());
        let target = &target;
        let mut firsts = Vec::with_capacity(self.tensors.len());
        let mut tasks = 0;
        for tensor in &self.tensors {
            firsts.push(tasks);
            tasks += tensor.tasks();
        }
        let failure: Mutex<Option<(usize, usize)>> = Mutex::new(None);
        pool.run(tasks, &|task| {
            let index = firsts.partition_point(|first| *first <= task) - 1;
            let tensor = &self.tensors[index];
            let tile = (task - firsts[index]) * tensor.tiles;
            let piece = tensor.tiles * ROWS * tensor.row_bytes;
            let from = tile * ROWS * tensor.row_bytes;
            let bytes = &tensor.bytes[from..tensor.bytes.len().min(from + piece)];
            let mut finite = true;
            for (i, rows) in bytes.chunks(ROWS * tensor.row_bytes).enumerate() {
                let at = tensor.start + (tile + i) * tensor.tile_bytes;
                // SAFETY: tensors have disjoint stretches of the slab, each tile of a
                // tensor is one task's, and `add` counted `tile_bytes` for every
                // sixteen rows begun.
                let tile =
                    unsafe { std::slice::from_raw_parts_mut(target.0.add(at), tensor.tile_bytes) };
                finite &= pack(tensor.format, rows, tensor.row_bytes, tile);
            }
            if !finite {
                let row = first_not_finite(tensor.format, bytes, tensor.row_bytes);
                let found = (index, tile * ROWS + row.unwrap_or_default());
                let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                *first = Some(first.map_or(found, |first| first.min(found)));
            }
            read(bytes);
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((tensor, row)) = failure {
            let source = KernelError::NotFinite { row };
            return Err(PackError { tensor, source });
        }
        // Nobody else sets it: `run` takes the packer.
        let _ = self.slab.set(slab);
        Ok(())
    }
}

/// The slab's memory, which tasks write at different places.
struct Target(*mut u8);
// SAFETY: whoever writes through the pointer says why nobody else writes there.
unsafe impl Sync for Target {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::random_weights;

    /// Two tensors of each format, one of them of several pieces.
    fn tensors() -> Vec<(Format, usize, usize, Vec<u8>)> {
        let shapes = |format| [(format, 37, 512), (format, 2000, 1024)];
        let shapes = Format::ALL.into_iter().flat_map(shapes);
        let tensor = |(format, rows, cols)| {
            let bytes = random_weights(format, rows, cols, 9);
            (format, rows, cols, bytes)
        };
        shapes.map(tensor).collect()
    }

    #[test]
    fn packed_together_or_alone_they_are_the_same() {
        let tensors = tensors();
        for threads in [1, 3] {
            let mut packer = Packer::new();
            let mut matrices = Vec::new();
            for (format, rows, cols, bytes) in &tensors {
                matrices.push(packer.add(format.ggml(), *rows, *cols, bytes).unwrap());
            }
            let read = Mutex::new(0);
            let pool = Pool::new(threads);
            let size = packer.size_bytes();
            let hear = |part: &[u8]| *read.lock().unwrap() += part.len();
            packer.run(&pool, &hear).unwrap();
            let all: usize = tensors.iter().map(|(.., bytes)| bytes.len()).sum();
            assert_eq!(read.into_inner().unwrap(), all);
            assert!(matrices.iter().map(Matrix::size_bytes).sum::<usize>() <= size);
            for ((format, rows, cols, bytes), matrix) in tensors.iter().zip(&matrices) {
                let alone = Matrix::from_ggml(format.ggml(), *rows, *cols, bytes).unwrap();
                assert!(
                    alone.packed() == matrix.packed(),
                    "{format:?} {rows} × {cols}"
                );
            }
        }
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let mut tensors = tensors();
        let bad = |tensor: &mut (Format, usize, usize, Vec<u8>), row: usize| {
            let (_, rows, _, bytes) = tensor;
            let at = bytes.len() / *rows * row;
            bytes[at..at + 4].fill(0xFF);
        };
        // Both the scale and the minimum of a block of Q4_1.
        bad(&mut tensors[3], 1990);
        bad(&mut tensors[3], 1700);
        bad(&mut tensors[6], 0);
        for threads in [1, 2] {
            let mut packer = Packer::new();
            for (format, rows, cols, bytes) in &tensors {
                packer.add(format.ggml(), *rows, *cols, bytes).unwrap();
            }
            let error = packer.run(&Pool::new(threads), &|_| ()).unwrap_err();
            let source = KernelError::NotFinite { row: 1700 };
            assert_eq!(error, PackError { tensor: 3, source });
        }
    }

    #[test]
    #[should_panic(expected = "before they are packed")]
    fn a_matrix_is_not_used_before_it_is_packed() {
        let bytes = random_weights(Format::Q8_0, 16, 32, 1);
        let mut packer = Packer::new();
        let matrix = packer.add(Format::Q8_0.ggml(), 16, 32, &bytes).unwrap();
        matrix.matmul(&Pool::new(1), &[0.0; 32], 1, &mut [0.0; 16]);
    }
}
