//! The GGML block formats, decoded one block at a time in plain Rust.
//!
//! Everything else in the crate is held against this file: the tests compare it
//! with candle's own decoder, and the fast paths with it. Layouts follow
//! `ggml-quants.c` of llama.cpp; all numbers are little endian.

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use crate::KernelError;

/// A weight format these kernels read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    non_camel_case_types,
    reason = "the names of the format everywhere else"
)]
pub enum Format {
    /// 32 weights, 4 bits, `d · (q − 8)`.
    Q4_0,
    /// 32 weights, 4 bits, `d · q + m`.
    Q4_1,
    /// 32 weights, 5 bits, `d · (q − 16)`.
    Q5_0,
    /// 32 weights, 5 bits, `d · q + m`.
    Q5_1,
    /// 32 weights, 8 bits, `d · q`.
    Q8_0,
    /// 256 weights, 4 bits, eight 6-bit scales and minima.
    Q4_K,
    /// 256 weights, 5 bits, eight 6-bit scales and minima.
    Q5_K,
    /// 256 weights, 6 bits, sixteen 8-bit scales.
    Q6_K,
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// Single precision.
    F32,
}

impl Format {
    /// Every format, for tests and measurements.
    pub const ALL: [Format; 11] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::F16,
        Format::BF16,
        Format::F32,
    ];

    /// The format of a GGML type.
    ///
    /// # Errors
    /// [`KernelError::UnsupportedType`] for the types not listed above.
    pub fn from_ggml(dtype: GgmlDType) -> Result<Format, KernelError> {
        Ok(match dtype {
            GgmlDType::Q4_0 => Format::Q4_0,
            GgmlDType::Q4_1 => Format::Q4_1,
            GgmlDType::Q5_0 => Format::Q5_0,
            GgmlDType::Q5_1 => Format::Q5_1,
            GgmlDType::Q8_0 => Format::Q8_0,
            GgmlDType::Q4K => Format::Q4_K,
            GgmlDType::Q5K => Format::Q5_K,
            GgmlDType::Q6K => Format::Q6_K,
            GgmlDType::F16 => Format::F16,
            GgmlDType::BF16 => Format::BF16,
            GgmlDType::F32 => Format::F32,
            other => return Err(KernelError::UnsupportedType(other)),
        })
    }

    /// The GGML type of this format.
    pub fn ggml(self) -> GgmlDType {
        match self {
            Format::Q4_0 => GgmlDType::Q4_0,
            Format::Q4_1 => GgmlDType::Q4_1,
            Format::Q5_0 => GgmlDType::Q5_0,
            Format::Q5_1 => GgmlDType::Q5_1,
            Format::Q8_0 => GgmlDType::Q8_0,
            Format::Q4_K => GgmlDType::Q4K,
            Format::Q5_K => GgmlDType::Q5K,
            Format::Q6_K => GgmlDType::Q6K,
            Format::F16 => GgmlDType::F16,
            Format::BF16 => GgmlDType::BF16,
            Format::F32 => GgmlDType::F32,
        }
    }

    /// Weights in one block.
    pub fn block_len(self) -> usize {
        match self {
            Format::F16 | Format::BF16 | Format::F32 => 1,
            Format::Q4_K | Format::Q5_K | Format::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of one block in the file.
    pub fn block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::F16 | Format::BF16 => 2,
            Format::F32 => 4,
        }
    }

    /// Whether the weights are plain floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Format::F16 | Format::BF16 | Format::F32)
    }

    /// Bytes of a `rows × cols` matrix in the file, the shape checked.
    pub(crate) fn checked_size(self, rows: usize, cols: usize) -> Result<usize, KernelError> {
        if rows == 0 || cols == 0 {
            return Err(KernelError::Shape { rows, cols });
        }
        if !cols.is_multiple_of(self.block_len()) {
            return Err(KernelError::Columns {
                cols,
                block: self.block_len(),
                dtype: self.ggml(),
            });
        }
        (cols / self.block_len())
            .checked_mul(self.block_bytes())
            .and_then(|row| row.checked_mul(rows))
            // The tiles and the f32 form must be addressable too.
            .filter(|_| {
                let padded = rows.checked_add(16).and_then(|rows| rows.checked_mul(cols));
                padded.is_some_and(|count| count < isize::MAX as usize / 8)
            })
            .ok_or(KernelError::Shape { rows, cols })
    }
}

/// Writes the weights that `bytes` hold to `out`.
///
/// `bytes` is a whole number of blocks and `out` is as long as they are.
///
/// # Panics
/// If the two lengths do not belong together: the callers check shapes.
pub(crate) fn dequantise(format: Format, bytes: &[u8], out: &mut [f32]) {
    let (len, size) = (format.block_len(), format.block_bytes());
    assert_eq!(
        bytes.len() / size,
        out.len() / len,
        "blocks and weights must match"
    );
    match format {
        Format::F32 => {
            for (w, o) in bytes.as_chunks::<4>().0.iter().zip(out) {
                *o = f32::from_le_bytes(*w);
            }
        }
        Format::F16 => {
            for (w, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *o = f16::from_le_bytes(*w).to_f32();
            }
        }
        Format::BF16 => {
            for (w, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *o = bf16::from_le_bytes(*w).to_f32();
            }
        }
        _ => {
            let mut block = Block::default();
            for (w, o) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(len)) {
                block.read(format, w);
                block.dequantise(format, o);
            }
        }
    }
}

/// The first row with a weight, or the scale of a block, that is no finite number.
///
/// `bytes` are whole rows of `row_bytes` each.
pub(crate) fn first_not_finite(format: Format, bytes: &[u8], row_bytes: usize) -> Option<usize> {
    /// Whether the half at `at` is finite.
    fn half(bytes: &[u8], at: usize) -> bool {
        bytes[at + 1] & 0x7C != 0x7C
    }
    let finite: fn(&[u8]) -> bool = match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::F16 => |w| half(w, 0),
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => |w| half(w, 0) & half(w, 2),
        Format::Q6_K => |w| half(w, 208),
        Format::BF16 => |w| w[1] & 0x7F != 0x7F || w[0] & 0x80 == 0,
        Format::F32 => |w| w[3] & 0x7F != 0x7F || w[2] & 0x80 == 0,
    };
    bytes
        .chunks_exact(row_bytes)
        .position(|row| !row.chunks_exact(format.block_bytes()).all(finite))
}

/// One quantised block taken apart, everything still an integer but `d` and `m`.
///
/// The weights are unsigned; formats without a minimum have an offset instead
/// (see [`offset`]).
pub(crate) struct Block {
    /// Unsigned weights; the first 32 for the short formats.
    pub q: [u8; 256],
    /// Scale of the block.
    pub d: f16,
    /// Minimum of the block, or the scale of the minima.
    pub m: f16,
    /// Scale per 32 weights (Q4_K, Q5_K), or per 16 (Q6_K).
    pub scales: [i8; 16],
    /// Minimum per 32 weights (Q4_K, Q5_K).
    pub mins: [u8; 8],
}

impl Default for Block {
    fn default() -> Block {
        Block {
            q: [0; 256],
            d: f16::ZERO,
            m: f16::ZERO,
            scales: [0; 16],
            mins: [0; 8],
        }
    }
}

/// What is subtracted from the unsigned weights of `format`.
pub(crate) const fn offset(format: Format) -> i32 {
    match format {
        Format::Q4_0 => 8,
        Format::Q5_0 => 16,
        Format::Q6_K => 32,
        Format::Q8_0 => 128,
        _ => 0,
    }
}

impl Block {
    /// Reads one block; `w` has `format.block_bytes()` bytes.
    pub fn read(&mut self, format: Format, w: &[u8]) {
        let half = |at: usize| f16::from_le_bytes([w[at], w[at + 1]]);
        match format {
            Format::Q4_0 => {
                self.d = half(0);
                self.nibbles(&w[2..18]);
            }
            Format::Q4_1 => {
                (self.d, self.m) = (half(0), half(2));
                self.nibbles(&w[4..20]);
            }
            Format::Q5_0 => {
                self.d = half(0);
                self.nibbles(&w[6..22]);
                self.fifth_bits([w[2], w[3], w[4], w[5]]);
            }
            Format::Q5_1 => {
                (self.d, self.m) = (half(0), half(2));
                self.nibbles(&w[8..24]);
                self.fifth_bits([w[4], w[5], w[6], w[7]]);
            }
            Format::Q8_0 => {
                self.d = half(0);
                for (q, w) in self.q.iter_mut().zip(&w[2..34]) {
                    *q = w ^ 0x80; // i8 to u8 with offset 128
                }
            }
            Format::Q4_K => {
                (self.d, self.m) = (half(0), half(2));
                self.six_bit_scales(&w[4..16]);
                for (pair, w) in self.q.chunks_exact_mut(64).zip(w[16..144].chunks_exact(32)) {
                    for (i, byte) in w.iter().enumerate() {
                        pair[i] = byte & 15;
                        pair[i + 32] = byte >> 4;
                    }
                }
            }
            Format::Q5_K => {
                (self.d, self.m) = (half(0), half(2));
                self.six_bit_scales(&w[4..16]);
                let (high, low) = (&w[16..48], &w[48..176]);
                for (j, pair) in self.q.chunks_exact_mut(64).enumerate() {
                    for i in 0..32 {
                        let byte = low[j * 32 + i];
                        pair[i] = byte & 15 | (high[i] >> (2 * j) & 1) << 4;
                        pair[i + 32] = byte >> 4 | (high[i] >> (2 * j + 1) & 1) << 4;
                    }
                }
            }
            Format::Q6_K => self.read_q6_k(w),
            Format::F16 | Format::BF16 | Format::F32 => unreachable!("not a block format"),
        }
    }

    fn read_q6_k(&mut self, w: &[u8]) {
        let (low, high, scales) = (&w[..128], &w[128..192], &w[192..208]);
        self.d = f16::from_le_bytes([w[208], w[209]]);
        for (to, from) in self.scales.iter_mut().zip(scales) {
            *to = *from as i8;
        }
        for (n, half) in self.q.chunks_exact_mut(128).enumerate() {
            let (low, high) = (&low[n * 64..n * 64 + 64], &high[n * 32..n * 32 + 32]);
            for i in 0..32 {
                half[i] = low[i] & 15 | (high[i] & 3) << 4;
                half[i + 32] = low[i + 32] & 15 | (high[i] >> 2 & 3) << 4;
                half[i + 64] = low[i] >> 4 | (high[i] >> 4 & 3) << 4;
                half[i + 96] = low[i + 32] >> 4 | (high[i] >> 6) << 4;
            }
        }
    }

    fn nibbles(&mut self, w: &[u8]) {
        for (i, byte) in w.iter().enumerate() {
            self.q[i] = byte & 15;
            self.q[i + 16] = byte >> 4;
        }
    }

    fn fifth_bits(&mut self, bits: [u8; 4]) {
        let bits = u32::from_le_bytes(bits);
        for (i, q) in self.q[..32].iter_mut().enumerate() {
            *q |= ((bits >> i & 1) as u8) << 4;
        }
    }

    /// The twelve bytes that hold eight 6-bit scales and eight 6-bit minima.
    fn six_bit_scales(&mut self, w: &[u8]) {
        for j in 0..4 {
            self.scales[j] = (w[j] & 63) as i8;
            self.mins[j] = w[j + 4] & 63;
            self.scales[j + 4] = (w[j + 8] & 15 | (w[j] >> 6) << 4) as i8;
            self.mins[j + 4] = w[j + 8] >> 4 | (w[j + 4] >> 6) << 4;
        }
    }

    /// The block's weights as `f32`; `out` is one block long.
    pub fn dequantise(&self, format: Format, out: &mut [f32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let signed = |q: u8| (i32::from(q) - offset(format)) as f32;
        match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => {
                for (o, q) in out.iter_mut().zip(self.q) {
                    *o = d * signed(q);
                }
            }
            Format::Q4_1 | Format::Q5_1 => {
                for (o, q) in out.iter_mut().zip(self.q) {
                    *o = d * f32::from(q) + m;
                }
            }
            Format::Q4_K | Format::Q5_K => {
                for (i, (o, q)) in out.iter_mut().zip(self.q).enumerate() {
                    let (scale, min) = (self.scales[i / 32], self.mins[i / 32]);
                    *o = d * f32::from(scale) * f32::from(q) - m * f32::from(min);
                }
            }
            Format::Q6_K => {
                for (i, (o, q)) in out.iter_mut().zip(self.q).enumerate() {
                    *o = d * f32::from(self.scales[i / 16]) * signed(q);
                }
            }
            Format::F16 | Format::BF16 | Format::F32 => unreachable!("not a block format"),
        }
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
