//! Tiles written one weight at a time: what the fast loops are held against.

use half::f16;

use crate::{Format, format::Block, tiles};

/// Writes up to sixteen rows of the file, `rows` of `row_bytes` each, to `tile`,
/// which holds zeros.
pub fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let unit = tiles::unit_bytes(format);
    let mut block = Block::default();
    for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
        let blocks = bytes.chunks_exact(format.block_bytes());
        for (bytes, unit) in blocks.zip(tile.chunks_exact_mut(unit)) {
            if format.is_float() {
                let size = bytes.len();
                unit[row * size..][..size].copy_from_slice(bytes);
            } else {
                block.read(format, bytes);
                pack_unit(format, &block, row, unit);
            }
        }
    }
}

fn pack_unit(format: Format, block: &Block, row: usize, unit: &mut [u8]) {
    let mut half = |at: usize, x: f16| {
        unit[at + 2 * row..at + 2 * row + 2].copy_from_slice(&x.to_le_bytes());
    };
    half(0, block.d);
    if !matches!(
        format,
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Q6_K
    ) {
        half(32, block.m);
    }
    let short: &[u8; 32] = block.q.first_chunk().unwrap_or(&[0; 32]);
    match format {
        Format::Q4_0 => pack_low(short, row, &mut unit[32..]),
        Format::Q4_1 => pack_low(short, row, &mut unit[64..]),
        Format::Q5_0 => {
            pack_fifth(short, row, &mut unit[32..]);
            pack_low(short, row, &mut unit[96..]);
        }
        Format::Q5_1 => {
            pack_fifth(short, row, &mut unit[64..]);
            pack_low(short, row, &mut unit[128..]);
        }
        Format::Q8_0 => {
            for (i, q) in short.as_chunks::<4>().0.iter().enumerate() {
                unit[32 + i * 64 + row * 4..][..4].copy_from_slice(q);
            }
        }
        Format::Q4_K | Format::Q5_K => {
            let five = format == Format::Q5_K;
            let low = if five { 320 + 512 } else { 320 };
            for (i, q) in block.q.as_chunks::<32>().0.iter().enumerate() {
                unit[64 + i * 16 + row] = block.scales[i] as u8;
                unit[192 + i * 16 + row] = block.mins[i];
                if five {
                    pack_fifth(q, row, &mut unit[320 + i * 64..]);
                }
                pack_low(q, row, &mut unit[low + i * 256..]);
            }
        }
        Format::Q6_K => {
            for (i, scale) in block.scales.iter().enumerate() {
                unit[32 + i * 16 + row] = *scale as u8;
            }
            for (i, q) in block.q.as_chunks::<32>().0.iter().enumerate() {
                pack_low(q, row, &mut unit[288 + i * 256..]);
                pack_sixth(q, row, &mut unit[288 + 2048 + i * 128..]);
            }
        }
        Format::F16 | Format::BF16 | Format::F32 => {}
    }
}

/// The low four bits of 32 weights.
fn pack_low(q: &[u8; 32], row: usize, to: &mut [u8]) {
    for (i, q) in q.as_chunks::<8>().0.iter().enumerate() {
        for j in 0..4 {
            to[i * 64 + row * 4 + j] = q[j] & 15 | q[j + 4] << 4;
        }
    }
}

/// The fifth bits of 32 weights.
fn pack_fifth(q: &[u8; 32], row: usize, to: &mut [u8]) {
    for (i, q) in q.as_chunks::<4>().0.iter().enumerate() {
        let bits = (0..4).fold(0, |bits, j| bits | (q[j] >> 4 & 1) << j);
        to[i * 8 + row / 2] |= bits << (row % 2 * 4);
    }
}

/// Bits 4 and 5 of 32 weights: columns 0–3, 4–7, 8–11, 12–15 of a half in bits
/// 4–5, 6–7, 2–3 and 0–1 of a byte, the order that costs the kernels no masks.
fn pack_sixth(q: &[u8; 32], row: usize, to: &mut [u8]) {
    for (i, q) in q.as_chunks::<16>().0.iter().enumerate() {
        for j in 0..4 {
            let high = |part: usize| q[part * 4 + j] >> 4 & 3;
            to[i * 64 + row * 4 + j] = high(0) << 4 | high(1) << 6 | high(2) << 2 | high(3);
        }
    }
}
