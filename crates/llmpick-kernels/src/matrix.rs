//! Weights and their product with activations.

use std::{cell::Cell, ops::Range};

use candle_core::quantized::GgmlDType;

use crate::{
    Format, KernelError, Packer, Pool,
    activations::{Activations, Rounding},
    lanes::Level,
    product::{self, Scratch, Sums},
    rows::RowsOf,
    slab::Stretch,
    tiles,
};

/// A `rows × cols` matrix of weights, repacked for the kernels by a [`Packer`].
///
/// Quantised weights meet activations rounded to integers per block of 32, as
/// [`Rounding`] says; floating-point weights meet them as they are.
pub struct Matrix {
    format: Format,
    rounding: Rounding,
    rows: usize,
    cols: usize,
    tiles: Stretch,
}

impl Matrix {
    /// Reads a row-major `rows × cols` tensor of a GGUF file.
    ///
    /// # Errors
    /// If no kernel reads the type, the shape does not fit the type's blocks, the
    /// bytes do not fit the shape, or a weight or a scale is not finite.
    pub fn from_ggml(
        dtype: GgmlDType,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Matrix, KernelError> {
        Matrix::from_ggml_in(&Pool::new(1), dtype, rows, cols, bytes)
    }

    /// As [`Matrix::from_ggml`], the repacking shared out among the pool's threads.
    ///
    /// # Errors
    /// As [`Matrix::from_ggml`].
    pub fn from_ggml_in(
        pool: &Pool,
        dtype: GgmlDType,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Matrix, KernelError> {
        let mut packer = Packer::new();
        let matrix = packer.add(dtype, rows, cols, bytes)?;
        packer.run(pool, &|_| ()).map_err(|error| error.source)?;
        Ok(matrix)
    }

    /// A matrix whose tiles will be written to `tiles` before it is used.
    pub(crate) fn planned(format: Format, rows: usize, cols: usize, tiles: Stretch) -> Matrix {
        Matrix {
            format,
            rounding: Rounding::default(),
            rows,
            cols,
            tiles,
        }
    }

    /// The same weights, meeting activations that are rounded so.
    pub fn rounding(mut self, rounding: Rounding) -> Matrix {
        self.rounding = rounding;
        self
    }

    /// Rows: the width of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The format of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes that the weights take in memory.
    pub fn size_bytes(&self) -> usize {
        self.tiles.len()
    }

    /// The repacked weights: what one product with a single row reads.
    pub fn packed(&self) -> &[u8] {
        self.tiles.bytes()
    }

    /// `y = x Wᵀ`: `x` is `m × cols`, `y` is `m × rows`, both row-major.
    ///
    /// A row of `y` does not depend on `m`, on the other rows, or on the pool.
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn matmul(&self, pool: &Pool, x: &[f32], m: usize, y: &mut [f32]) {
        matmul_many(pool, x, m, &mut [(self, y)]);
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} × {} {:?})", self.rows, self.cols, self.format)
    }
}

/// Several products of the same `x`, `m × cols`, at once: the activations are
/// rounded once and the threads meet once. Query, key and value are such products,
/// gate and up are others.
///
/// The results are those of [`Matrix::matmul`], bit for bit.
///
/// # Panics
/// If a matrix has other columns or another rounding than the first, or `x` or a `y`
/// another length.
pub fn matmul_many(pool: &Pool, x: &[f32], m: usize, products: &mut [(&Matrix, &mut [f32])]) {
    matmul_at(Level::best(), pool, x, m, products);
}

/// [`matmul_many`] of rows that are made just before they are rounded, by the same
/// task: `ready` gets some rows of `x` to fill and the same rows of `beside`, which
/// has any width. A norm, a residual or a gate thus costs no meeting of the threads
/// and no second reading of the rows.
///
/// `ready` must do to each row what it would do to it alone; then the results are
/// those of calling it once for all rows and [`matmul_many`] after it, bit for bit.
///
/// # Panics
/// As [`matmul_many`], or if `beside` is not `m` whole rows.
pub fn matmul_ready(
    pool: &Pool,
    x: &mut [f32],
    beside: &mut [f32],
    m: usize,
    ready: &(dyn Fn(&mut [f32], &mut [f32]) + Sync),
    products: &mut [(&Matrix, &mut [f32])],
) {
    let level = Level::best();
    let Some((cols, rounding)) = check(x, m, products) else {
        return;
    };
    let mut activations = ACTIVATIONS.take();
    let most = product::group_rows(level, m);
    {
        let (rows, beside) = (RowsOf::new(x, m), RowsOf::new(beside, m));
        let part = |range: Range<usize>| -> &[f32] {
            // SAFETY: `fill`, or the loop below, asks once for every row, and nobody
            // else has the buffers while it does.
            let (x, beside) = unsafe { (rows.get(range.clone()), beside.get(range)) };
            ready(x, beside);
            x
        };
        if products.iter().any(|(matrix, _)| !matrix.format.is_float()) {
            activations.fill((level, rounding), pool, (m, cols), most, &part);
        } else {
            pool.run(m.div_ceil(most), &|task| {
                part(task * most..((task + 1) * most).min(m));
            });
        }
    }
    multiply(level, pool, x, &activations, products);
    ACTIVATIONS.set(activations);
}

/// [`matmul_many`] in the form `level`, so that tests can hold the forms together.
pub(crate) fn matmul_at(
    level: Level,
    pool: &Pool,
    x: &[f32],
    m: usize,
    products: &mut [(&Matrix, &mut [f32])],
) {
    let Some((cols, rounding)) = check(x, m, products) else {
        return;
    };
    let mut activations = ACTIVATIONS.take();
    if products.iter().any(|(matrix, _)| !matrix.format.is_float()) {
        let most = product::group_rows(level, m);
        activations.fill((level, rounding), pool, (m, cols), most, &|rows| {
            &x[rows.start * cols..rows.end * cols]
        });
    }
    multiply(level, pool, x, &activations, products);
    ACTIVATIONS.set(activations);
}

/// Columns and rounding of products whose lengths fit, or `None` if there is nothing to do.
fn check(x: &[f32], m: usize, products: &[(&Matrix, &mut [f32])]) -> Option<(usize, Rounding)> {
    let (cols, rounding) = products.first().map(|(m, _)| (m.cols, m.rounding))?;
    assert_eq!(x.len(), m * cols, "x must be m × cols");
    for (matrix, y) in products {
        assert_eq!(matrix.cols, cols, "the matrices must have the same columns");
        assert_eq!(matrix.rounding, rounding, "they must agree on the rounding");
        assert_eq!(y.len(), m * matrix.rows, "y must be m × rows");
    }
    (m > 0).then_some((cols, rounding))
}

/// All tiles of all products, by whichever thread is free.
fn multiply(
    level: Level,
    pool: &Pool,
    x: &[f32],
    activations: &Activations,
    products: &mut [(&Matrix, &mut [f32])],
) {
    let jobs: Vec<Job> = products
        .iter_mut()
        .map(|(matrix, y)| Job::new(pool, matrix, y))
        .collect();
    let tasks = jobs.iter().map(|job| job.tasks).sum();
    pool.run(tasks, &|mut task| {
        for job in &jobs {
            if task < job.tasks {
                let mut scratch = SCRATCH.take();
                job.run(level, task, x, activations, &mut scratch);
                SCRATCH.set(scratch);
                return;
            }
            task -= job.tasks;
        }
    });
}

thread_local! {
    /// The quantised rows of the caller's product. Taken out while in use, so that a
    /// product inside of a task of another only finds them empty.
    static ACTIVATIONS: Cell<Activations> = Cell::default();
    /// Each thread's panel and sums.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// One product, cut into tasks of some tiles each.
struct Job<'a> {
    matrix: &'a Matrix,
    y: Shared<f32>,
    tiles: usize,
    tasks: usize,
}

impl<'a> Job<'a> {
    fn new(pool: &Pool, matrix: &'a Matrix, y: &mut [f32]) -> Job<'a> {
        let tiles = matrix.rows.div_ceil(tiles::ROWS);
        // Enough tasks that a thread which lost its core for a while delays little,
        // and few enough that neighbouring tiles are mostly read by one thread.
        let tasks = tiles.min(8 * pool.threads());
        Job {
            matrix,
            y: Shared(y.as_mut_ptr()),
            tiles,
            tasks,
        }
    }

    fn run(
        &self,
        level: Level,
        task: usize,
        x: &[f32],
        activations: &Activations,
        scratch: &mut Scratch,
    ) {
        let Matrix {
            format,
            rows,
            cols,
            tiles: ref weights,
            ..
        } = *self.matrix;
        let tile_bytes = tiles::tile_bytes(format, cols);
        let weights = weights.bytes();
        for tile in self.tiles * task / self.tasks..self.tiles * (task + 1) / self.tasks {
            let weights = &weights[tile * tile_bytes..];
            let sums = product::tile(level, format, weights, x, cols, activations, scratch);
            let first = tile * tiles::ROWS;
            let width = tiles::ROWS.min(rows - first);
            for (r, sums) in sums.iter().enumerate() {
                // SAFETY: `y` is m × rows as checked by `matmul_at`, there are m sums,
                // `first + width ≤ rows`, and each tile belongs to one task.
                unsafe {
                    let to = self.y.0.add(r * rows + first);
                    // A copy of known length is a load and a store; others are calls.
                    match width {
                        tiles::ROWS => to.cast::<Sums>().write(*sums),
                        width => std::ptr::copy_nonoverlapping(sums.as_ptr(), to, width),
                    }
                }
            }
        }
    }
}

/// Memory that tasks write at different places.
struct Shared<T>(*mut T);
// SAFETY: whoever writes through the pointer says why nobody else writes there.
unsafe impl<T> Sync for Shared<T> {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::{Random, random_weights};

    #[test]
    fn rows_made_on_the_way_give_the_same_bits() {
        let pool = Pool::new(2);
        let (cols, other, rows) = (256, 24, 33);
        for format in Format::ALL {
            let bytes = random_weights(format, rows, cols, 5);
            let matrix = Matrix::from_ggml(format.ggml(), rows, cols, &bytes).unwrap();
            for m in [1, 4, 5, 31, 128] {
                let x = Random::new(6).vec(m * cols);
                let beside = Random::new(7).vec(m * other);
                let ready = |x: &mut [f32], beside: &mut [f32]| {
                    let rows = x.chunks_mut(cols).zip(beside.chunks_mut(other));
                    for (x, beside) in rows {
                        beside[0] += x[0];
                        x.iter_mut().for_each(|x| *x *= beside[0] + beside[1]);
                    }
                };
                let (mut x1, mut beside1) = (x.clone(), beside.clone());
                ready(&mut x1, &mut beside1);
                let mut wanted = vec![f32::NAN; m * rows];
                matrix.matmul(&pool, &x1, m, &mut wanted);
                let (mut x2, mut beside2) = (x.clone(), beside.clone());
                let mut y = vec![f32::NAN; m * rows];
                let products = &mut [(&matrix, &mut y[..])];
                matmul_ready(&pool, &mut x2, &mut beside2, m, &ready, products);
                assert_eq!((x1, beside1, wanted), (x2, beside2, y), "{format:?} {m}");
            }
            let mut y = vec![0.0; rows];
            let none = &|_: &mut [f32], beside: &mut [f32]| assert!(beside.is_empty());
            let (x, products) = (&mut vec![0.5; cols], &mut [(&matrix, &mut y[..])]);
            matmul_ready(&pool, x, &mut [], 1, none, products);
        }
    }

    #[test]
    fn all_forms_give_the_same_bits() {
        let pool = Pool::new(2);
        for format in Format::ALL {
            for (rows, cols, m) in [(33, 256, 1), (16, 1536, 3), (20, 1280, 31), (5, 256, 7)] {
                let bytes = random_weights(format, rows, cols, 5);
                let x = Random::new(6).vec(m * cols);
                for rounding in [Rounding::Int8, Rounding::Int16] {
                    let matrix = Matrix::from_ggml(format.ggml(), rows, cols, &bytes).unwrap();
                    let matrix = matrix.rounding(rounding);
                    let product = |level| {
                        let mut y = vec![f32::NAN; m * rows];
                        matmul_at(level, &pool, &x, m, &mut [(&matrix, &mut y)]);
                        y
                    };
                    let plain = product(Level::Plain);
                    for level in Level::all_here() {
                        assert_eq!(product(level), plain, "{format:?} {level:?} m={m}");
                    }
                }
            }
        }
    }
}
