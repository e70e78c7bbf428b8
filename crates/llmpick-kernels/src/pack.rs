//! Rows of a file, written as tiles.
//!
//! This is most of the time that loading a model takes, so it moves four weights at a
//! time as one word, two rows at a time as one store, and reads every byte once. A tile
//! is written some blocks at a time: their sixteen rows then stay in the nearest cache
//! until their lines are full.
//!
//! [`plain`] does the same weight by weight; the tests hold the two together.

use crate::{Format, tiles::ROWS, tiles::unit_bytes};

#[cfg(test)]
mod plain;

/// Bytes of a tile that are written before the next ones are begun.
const NEAR: usize = 8 << 10;

/// Writes up to sixteen rows of the file, `row_bytes` each, to `tile`, which holds zeros.
/// False if a weight, or the scale of a block, is no finite number; the tile is then of
/// no use.
pub fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) -> bool {
    match format {
        Format::Q4_0 => blocks(rows, row_bytes, tile, [0; 18], q4_0),
        Format::Q4_1 => blocks(rows, row_bytes, tile, [0; 20], q4_1),
        Format::Q5_0 => blocks(rows, row_bytes, tile, [0; 22], q5_0),
        Format::Q5_1 => blocks(rows, row_bytes, tile, [0; 24], q5_1),
        // What 0x80 becomes is zero.
        Format::Q8_0 => {
            let mut none = [0x80; 34];
            none[..2].fill(0);
            blocks(rows, row_bytes, tile, none, q8_0)
        }
        Format::Q4_K => blocks(rows, row_bytes, tile, [0; 144], q4_k),
        Format::Q5_K => blocks(rows, row_bytes, tile, [0; 176], q5_k),
        Format::Q6_K => blocks(rows, row_bytes, tile, [0; 210], q6_k),
        Format::F16 => blocks(rows, row_bytes, tile, [0; 2], f16),
        Format::BF16 => blocks(rows, row_bytes, tile, [0; 2], bf16),
        Format::F32 => blocks(rows, row_bytes, tile, [0; 4], f32),
    }
}

/// Calls `write` with the blocks of each two rows, the number of the two among eight, and
/// the unit of the tile they belong to. `none` stands for the blocks of a missing row.
#[inline(always)]
fn blocks<const BLOCK: usize, const UNIT: usize>(
    rows: &[u8],
    row_bytes: usize,
    tile: &mut [u8],
    none: [u8; BLOCK],
    write: impl Fn(&[u8; BLOCK], &[u8; BLOCK], usize, &mut [u8; UNIT]) -> bool,
) -> bool {
    let mut finite = true;
    let near = (NEAR / UNIT).max(1);
    for (part, units) in tile.as_chunks_mut::<UNIT>().0.chunks_mut(near).enumerate() {
        let skipped = part * near * BLOCK;
        for (pair, rows) in rows.chunks(2 * row_bytes).take(ROWS / 2).enumerate() {
            let (a, b) = rows.split_at(row_bytes);
            let a = a[skipped..].as_chunks::<BLOCK>().0;
            if b.is_empty() {
                for (a, unit) in a.iter().zip(&mut *units) {
                    finite &= write(a, &none, pair, unit);
                }
            } else {
                let b = b[skipped..].as_chunks::<BLOCK>().0;
                for ((a, b), unit) in a.iter().zip(b).zip(&mut *units) {
                    finite &= write(a, b, pair, unit);
                }
            }
        }
    }
    finite
}

/// The low nibble of each byte of a word.
const LOW: u32 = 0x0F0F_0F0F;

/// Four bytes of a block.
#[inline(always)]
fn word<const N: usize>(block: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// A number of half precision, as its bits.
#[inline(always)]
fn half<const N: usize>(block: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Writes the words of two rows side by side, to line `line` of the 64-byte lines at `at`.
#[inline(always)]
fn put<const U: usize>(unit: &mut [u8; U], at: usize, line: usize, pair: usize, a: u32, b: u32) {
    let at = at + line * 64 + (pair & 7) * 8;
    let both = u64::from(a) | u64::from(b) << 32;
    unit[at..at + 8].copy_from_slice(&both.to_le_bytes());
}

/// Writes a number of half precision for each of two rows; false if one is not finite.
#[inline(always)]
fn put_halves<const U: usize>(unit: &mut [u8; U], at: usize, pair: usize, a: u16, b: u16) -> bool {
    let at = at + (pair & 7) * 4;
    let both = u32::from(a) | u32::from(b) << 16;
    unit[at..at + 4].copy_from_slice(&both.to_le_bytes());
    (a & 0x7C00 != 0x7C00) & (b & 0x7C00 != 0x7C00)
}

/// Writes a byte for each of two rows.
#[inline(always)]
fn put_bytes<const U: usize>(unit: &mut [u8; U], at: usize, pair: usize, a: u8, b: u8) {
    let at = at + (pair & 7) * 2;
    unit[at..at + 2].copy_from_slice(&[a, b]);
}

/// 32 weights whose nibbles lie in 16 bytes at `from`: the low ones first.
#[inline(always)]
fn nibbles<const N: usize, const U: usize>(
    (a, b): (&[u8; N], &[u8; N]),
    from: usize,
    pair: usize,
    unit: &mut [u8; U],
    to: usize,
) {
    for i in 0..2 {
        let at = from + i * 8;
        let (a0, a1) = (word(a, at), word(a, at + 4));
        let (b0, b1) = (word(b, at), word(b, at + 4));
        put(unit, to, i, pair, low(a0, a1), low(b0, b1));
        put(unit, to, i + 2, pair, high(a0, a1), high(b0, b1));
    }
}

/// The low nibbles of two words in the low and the high halves of one.
#[inline(always)]
fn low(first: u32, second: u32) -> u32 {
    first & LOW | (second & LOW) << 4
}

/// The high nibbles of two words in the low and the high halves of one.
#[inline(always)]
fn high(first: u32, second: u32) -> u32 {
    first >> 4 & LOW | second & !LOW
}

fn q4_0(a: &[u8; 18], b: &[u8; 18], pair: usize, unit: &mut [u8; 288]) -> bool {
    nibbles((a, b), 2, pair, unit, 32);
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
}

fn q4_1(a: &[u8; 20], b: &[u8; 20], pair: usize, unit: &mut [u8; 320]) -> bool {
    nibbles((a, b), 4, pair, unit, 64);
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
        & put_halves(unit, 32, pair, half(a, 2), half(b, 2))
}

fn q5_0(a: &[u8; 22], b: &[u8; 22], pair: usize, unit: &mut [u8; 352]) -> bool {
    fifths(word(a, 2), word(b, 2), pair, unit, 32);
    nibbles((a, b), 6, pair, unit, 96);
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
}

fn q5_1(a: &[u8; 24], b: &[u8; 24], pair: usize, unit: &mut [u8; 384]) -> bool {
    fifths(word(a, 4), word(b, 4), pair, unit, 64);
    nibbles((a, b), 8, pair, unit, 128);
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
        & put_halves(unit, 32, pair, half(a, 2), half(b, 2))
}

/// The fifth bits of 32 weights: bit i is that of column i.
#[inline(always)]
fn fifths<const U: usize>(a: u32, b: u32, pair: usize, unit: &mut [u8; U], to: usize) {
    for i in 0..8 {
        let bits = a >> (4 * i) & 15 | (b >> (4 * i) & 15) << 4;
        unit[to + i * 8 + (pair & 7)] = bits as u8;
    }
}

fn q8_0(a: &[u8; 34], b: &[u8; 34], pair: usize, unit: &mut [u8; 544]) -> bool {
    // From signed to offset 128.
    const SIGN: u32 = 0x8080_8080;
    for i in 0..8 {
        let (a, b) = (word(a, 2 + i * 4), word(b, 2 + i * 4));
        put(unit, 32, i, pair, a ^ SIGN, b ^ SIGN);
    }
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
}

fn q4_k(a: &[u8; 144], b: &[u8; 144], pair: usize, unit: &mut [u8; 2368]) -> bool {
    for c in 0..4 {
        long_nibbles((a, b), 16 + c * 32, pair, unit, 320 + c * 512, 256);
    }
    long_scales((a, b), pair, unit)
}

fn q5_k(a: &[u8; 176], b: &[u8; 176], pair: usize, unit: &mut [u8; 2880]) -> bool {
    for c in 0..4 {
        long_nibbles((a, b), 48 + c * 32, pair, unit, 832 + c * 512, 256);
    }
    for i in 0..8 {
        let (a, b) = (word(a, 16 + i * 4), word(b, 16 + i * 4));
        for sub in 0..8 {
            let bits = four_bits(a >> sub) | four_bits(b >> sub) << 4;
            unit[320 + sub * 64 + i * 8 + (pair & 7)] = bits;
        }
    }
    long_scales((a, b), pair, unit)
}

/// The lowest bit of each byte of a word, as the bits of one number.
#[inline(always)]
fn four_bits(word: u32) -> u8 {
    // Bit 8j goes to bit 24 + j; the other products fall below or out.
    ((word & 0x0101_0101).wrapping_mul(0x0102_0408) >> 24) as u8 & 15
}

/// 64 weights whose nibbles lie in 32 bytes at `from`: the low ones make the 32 at `to`,
/// the high ones those `step` bytes further.
#[inline(always)]
fn long_nibbles<const N: usize, const U: usize>(
    (a, b): (&[u8; N], &[u8; N]),
    from: usize,
    pair: usize,
    unit: &mut [u8; U],
    to: usize,
    step: usize,
) {
    for i in 0..4 {
        let at = from + i * 8;
        let (a0, a1) = (word(a, at), word(a, at + 4));
        let (b0, b1) = (word(b, at), word(b, at + 4));
        put(unit, to, i, pair, low(a0, a1), low(b0, b1));
        put(unit, to + step, i, pair, high(a0, a1), high(b0, b1));
    }
}

/// Scales, minima, and what they are multiplied by, of Q4_K and Q5_K.
#[inline(always)]
fn long_scales<const N: usize, const U: usize>(
    (a, b): (&[u8; N], &[u8; N]),
    pair: usize,
    unit: &mut [u8; U],
) -> bool {
    let [(scales_a, mins_a), (scales_b, mins_b)] = [six_bits(a), six_bits(b)];
    for i in 0..8 {
        put_bytes(unit, 64 + i * 16, pair, scales_a[i], scales_b[i]);
        put_bytes(unit, 192 + i * 16, pair, mins_a[i], mins_b[i]);
    }
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
        & put_halves(unit, 32, pair, half(a, 2), half(b, 2))
}

/// The eight 6-bit scales and minima in the twelve bytes from the fourth on.
#[inline(always)]
fn six_bits<const N: usize>(block: &[u8; N]) -> ([u8; 8], [u8; 8]) {
    const SIX: u32 = 0x3F3F_3F3F;
    const TWO: u32 = 0x3030_3030;
    let [s, m, rest] = [word(block, 4), word(block, 8), word(block, 12)];
    let both = |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
    (
        both(s & SIX, rest & LOW | s >> 2 & TWO),
        both(m & SIX, rest >> 4 & LOW | m >> 2 & TWO),
    )
}

fn q6_k(a: &[u8; 210], b: &[u8; 210], pair: usize, unit: &mut [u8; 3360]) -> bool {
    for n in 0..2 {
        // Of the four 32s of each half, the first two have the low nibbles.
        for c in 0..2 {
            let to = 288 + (n * 4 + c) * 256;
            long_nibbles((a, b), n * 64 + c * 32, pair, unit, to, 512);
        }
        for h in 0..2 {
            let at = 128 + n * 32 + h * 16;
            let words = |block| [0, 4, 8, 12].map(|i| word(block, at + i));
            let (a, b) = (words(a), words(b));
            for sub in 0..4 {
                let to = 288 + 2048 + (n * 4 + sub) * 128;
                let shift = 2 * sub;
                put(unit, to, h, pair, sixths(a, shift), sixths(b, shift));
            }
        }
    }
    for i in 0..16 {
        put_bytes(unit, 32 + i * 16, pair, a[192 + i], b[192 + i]);
    }
    put_halves(unit, 0, pair, half(a, 208), half(b, 208))
}

/// Two bits, `shift` from below, of each byte of four words, in the order that costs the
/// kernels no masks.
#[inline(always)]
fn sixths(words: [u32; 4], shift: usize) -> u32 {
    let [x, y, z, w] = words.map(|word| word >> shift & 0x0303_0303);
    x << 4 | y << 6 | z << 2 | w
}

fn f16(a: &[u8; 2], b: &[u8; 2], pair: usize, unit: &mut [u8; 2 * ROWS]) -> bool {
    put_halves(unit, 0, pair, half(a, 0), half(b, 0))
}

fn bf16(a: &[u8; 2], b: &[u8; 2], pair: usize, unit: &mut [u8; 2 * ROWS]) -> bool {
    let finite = |bits: u16| bits & 0x7F80 != 0x7F80;
    let (a, b) = (half(a, 0), half(b, 0));
    put_halves(unit, 0, pair, a, b);
    finite(a) & finite(b)
}

fn f32(a: &[u8; 4], b: &[u8; 4], pair: usize, unit: &mut [u8; 4 * ROWS]) -> bool {
    let finite = |w: u32| w & 0x7F80_0000 != 0x7F80_0000;
    let (a, b) = (word(a, 0), word(b, 0));
    put(unit, 0, 0, pair, a, b);
    finite(a) & finite(b)
}

// The units that the functions above write are those that the kernels read.
const _: () = {
    assert!(unit_bytes(Format::Q4_0) == 288 && unit_bytes(Format::Q4_1) == 320);
    assert!(unit_bytes(Format::Q5_0) == 352 && unit_bytes(Format::Q5_1) == 384);
    assert!(unit_bytes(Format::Q8_0) == 544 && unit_bytes(Format::Q4_K) == 2368);
    assert!(unit_bytes(Format::Q5_K) == 2880 && unit_bytes(Format::Q6_K) == 3360);
    assert!(unit_bytes(Format::F16) == 2 * ROWS && unit_bytes(Format::F32) == 4 * ROWS);
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::{
        format::first_not_finite,
        testing::{Random, random_weights},
        tiles::tile_bytes,
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn same_tiles_as_weight_by_weight(
            seed in any::<u64>(),
            rows in 1usize..=ROWS,
            blocks in 1usize..60,
        ) {
            for format in Format::ALL {
                let cols = blocks * format.block_len();
                let bytes = random_weights(format, rows, cols, seed);
                let row_bytes = bytes.len() / rows;
                let mut wanted = vec![0; tile_bytes(format, cols)];
                plain::pack(format, &bytes, row_bytes, &mut wanted);
                let mut tile = vec![0; wanted.len()];
                let finite = pack(format, &bytes, row_bytes, &mut tile);
                prop_assert!(finite, "{:?}", format);
                prop_assert!(tile == wanted, "{:?}", format);
            }
        }

        #[test]
        fn what_is_not_finite_is_noticed(seed in any::<u64>(), rows in 1usize..=ROWS) {
            for format in Format::ALL {
                let cols = 2 * format.block_len();
                let mut bytes = random_weights(format, rows, cols, seed);
                let row_bytes = bytes.len() / rows;
                let mut random = Random::new(seed);
                let at = random.bits() as usize % (bytes.len() - 1);
                (bytes[at], bytes[at + 1]) = (random.bits() as u8 | 0x80, 0x7F);
                let mut tile = vec![0; tile_bytes(format, cols)];
                let finite = pack(format, &bytes, row_bytes, &mut tile);
                let found = first_not_finite(format, &bytes, row_bytes);
                prop_assert_eq!(finite, found.is_none(), "{:?} at {}", format, at);
            }
        }
    }
}
