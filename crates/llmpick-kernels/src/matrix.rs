//! Weights and their product with activations.

use candle_core::quantized::GgmlDType;

use crate::{Format, KernelError, Pool, format::dequantise};

/// A `rows × cols` matrix of weights.
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Matrix {
    /// Reads a row-major `rows × cols` tensor of a GGUF file.
    ///
    /// # Errors
    /// If no kernel reads the type, the shape does not fit the type's blocks, or
    /// the bytes do not fit the shape.
    pub fn from_ggml(
        dtype: GgmlDType,
        rows: usize,
        cols: usize,
        bytes: &[u8],
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
        Ok(Matrix {
            format,
            rows,
            cols,
            bytes: bytes.to_vec(),
        })
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
        self.bytes.len()
    }

    /// `y = x Wᵀ`: `x` is `m × cols`, `y` is `m × rows`, both row-major.
    ///
    /// A row of `y` does not depend on `m`, on the other rows, or on the pool.
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn matmul(&self, pool: &Pool, x: &[f32], m: usize, y: &mut [f32]) {
        assert_eq!(x.len(), m * self.cols, "x must be m × cols");
        assert_eq!(y.len(), m * self.rows, "y must be m × rows");
        let stride = self.cols / self.format.block_len() * self.format.block_bytes();
        let out = Output(y.as_mut_ptr());
        let out = &out;
        const ROWS: usize = 16;
        pool.run(self.rows.div_ceil(ROWS), &|task| {
            let mut weights = vec![0.0; self.cols];
            for row in task * ROWS..((task + 1) * ROWS).min(self.rows) {
                dequantise(
                    self.format,
                    &self.bytes[row * stride..][..stride],
                    &mut weights,
                );
                for (i, x) in x.chunks_exact(self.cols).enumerate() {
                    let sum = dot(x, &weights);
                    // SAFETY: i < m and row < rows, so the place is inside of `y`,
                    // and each row belongs to one task.
                    unsafe { *out.0.add(i * self.rows + row) = sum };
                }
            }
        });
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} × {} {:?})", self.rows, self.cols, self.format)
    }
}

/// The output of a product, written by several tasks at different places.
struct Output(*mut f32);
// SAFETY: the tasks of a product write disjoint rows.
unsafe impl Sync for Output {}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (x, x_rest) = x.as_chunks::<16>();
    let (y, y_rest) = y.as_chunks::<16>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}
