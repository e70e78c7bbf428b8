//! An embedding table that stays in the file: rows are read when a token needs them.
//!
//! Expanding the table to `f32` costs a gigabyte for a vocabulary of 262,144;
//! read on demand it costs only the pages that the tokens at hand touch.

use std::{ops::Range, sync::Arc};

use candle_core::quantized::GgmlDType;

use crate::{
    Format, KernelError,
    format::{dequantise, first_not_finite},
    map::Pages,
};

/// A `rows × cols` table in a GGML format, kept in the bytes it came in.
#[derive(Clone)]
pub struct Embedding {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Arc<dyn Pages>,
    range: Range<usize>,
}

impl Embedding {
    /// A table over `bytes[range]`, which may be a memory map.
    ///
    /// # Errors
    /// If the type is unknown, the range lies outside of the bytes, or its length
    /// is not that of the shape.
    pub fn from_ggml(
        dtype: GgmlDType,
        rows: usize,
        cols: usize,
        bytes: Arc<dyn Pages>,
        range: Range<usize>,
    ) -> Result<Embedding, KernelError> {
        let format = Format::from_ggml(dtype)?;
        let wanted = format.checked_size(rows, cols)?;
        let len = (*bytes).as_ref().len();
        let Some(part) = (*bytes).as_ref().get(range.clone()) else {
            return Err(KernelError::Range {
                start: range.start,
                end: range.end,
                len,
            });
        };
        if part.len() != wanted {
            return Err(KernelError::Size {
                rows,
                cols,
                dtype,
                wanted,
                given: part.len(),
            });
        }
        Ok(Embedding {
            format,
            rows,
            cols,
            bytes,
            range,
        })
    }

    /// Rows of the table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Gives the memory of the rows that were read back to the system. With each row it
    /// brings its neighbours into memory, up to a hundred times as much.
    pub fn release(&self) {
        self.bytes.release(self.range.clone());
    }

    /// Writes row `row` to `out`, which is [`Embedding::cols`] long.
    ///
    /// # Errors
    /// [`KernelError::Row`] if there is no such row, [`KernelError::NotFinite`] if it
    /// holds a number that is not finite.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        assert_eq!(out.len(), self.cols, "out must hold one row");
        let missing = KernelError::Row {
            row,
            rows: self.rows,
        };
        if row >= self.rows {
            return Err(missing);
        }
        let stride = self.cols / self.format.block_len() * self.format.block_bytes();
        let start = self.range.start + row * stride;
        let bytes = (*self.bytes)
            .as_ref()
            .get(start..start + stride)
            .ok_or(missing)?;
        if first_not_finite(self.format, bytes, stride).is_some() {
            return Err(KernelError::NotFinite { row });
        }
        dequantise(self.format, bytes, out);
        Ok(())
    }
}

impl std::fmt::Debug for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Embedding({} × {} {:?})",
            self.rows, self.cols, self.format
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::random_weights;

    #[test]
    fn rows_are_those_of_the_whole_table() {
        for format in Format::ALL {
            let (rows, cols) = (5, 512);
            let table = random_weights(format, rows, cols, 3);
            let mut whole = vec![0.0; rows * cols];
            dequantise(format, &table, &mut whole);
            let mut file = vec![7u8; 13];
            file.extend(&table);
            file.extend([9u8; 5]);
            let range = 13..13 + table.len();
            let file: Arc<dyn Pages> = Arc::new(file);
            let embedding =
                Embedding::from_ggml(format.ggml(), rows, cols, file.clone(), range).unwrap();
            let mut out = vec![0.0; cols];
            for row in 0..rows {
                embedding.row(row, &mut out).unwrap();
                embedding.release();
                assert_eq!(out, whole[row * cols..][..cols]);
            }
            assert_eq!(
                embedding.row(rows, &mut out),
                Err(KernelError::Row { row: rows, rows })
            );
            let damaged: Arc<dyn Pages> = Arc::new(vec![0xFF; table.len()]);
            let whole = 0..table.len();
            let damaged = Embedding::from_ggml(format.ggml(), rows, cols, damaged, whole).unwrap();
            let refused = damaged.row(2, &mut out);
            assert_eq!(refused, Err(KernelError::NotFinite { row: 2 }));
            let short = Embedding::from_ggml(format.ggml(), rows, cols, file.clone(), 13..20);
            assert!(matches!(short, Err(KernelError::Size { given: 7, .. })));
            let far = Embedding::from_ggml(format.ggml(), rows, cols, file, 0..usize::MAX);
            assert!(matches!(far, Err(KernelError::Range { .. })));
        }
    }
}
