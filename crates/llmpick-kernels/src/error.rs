//! What can be wrong with the weights handed to this crate.

use candle_core::quantized::GgmlDType;

/// Weights that these kernels cannot take.
///
/// Each message finishes the sentence "failed to …" when put after "read the
/// weights: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The tensor has a type no kernel here reads.
    #[error("weights of type {0:?} are not supported")]
    UnsupportedType(GgmlDType),
    /// The length of a row is not a whole number of blocks.
    #[error("a row of {cols} weights is not a multiple of the {block} in a block of {dtype:?}")]
    Columns {
        /// Weights in a row.
        cols: usize,
        /// Weights in a block.
        block: usize,
        /// The tensor's type.
        dtype: GgmlDType,
    },
    /// The bytes are not as many as the shape needs.
    #[error("{rows} × {cols} weights of {dtype:?} need {wanted} bytes, not {given}")]
    Size {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// The tensor's type.
        dtype: GgmlDType,
        /// Bytes the shape needs.
        wanted: usize,
        /// Bytes handed in.
        given: usize,
    },
    /// The shape is empty or so large that its size overflows.
    #[error("{rows} × {cols} is not a usable shape")]
    Shape {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A weight, or the scale of a block, is NaN or infinite.
    #[error("row {row} holds a number that is not finite")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// A row that the table does not have was asked for.
    #[error("row {row} is outside of a table of {rows}")]
    Row {
        /// The row asked for.
        row: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// The byte range lies outside of the file.
    #[error("bytes {start}..{end} lie outside of a file of {len}")]
    Range {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Bytes in the file.
        len: usize,
    },
    /// The system refused the memory.
    #[error("the system has no {bytes} bytes of memory to give")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
    },
}
