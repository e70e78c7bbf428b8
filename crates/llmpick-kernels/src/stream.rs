//! A plain read of memory by all threads: the rate that no decoder can pass.
//!
//! One generated token reads every weight once and does little with it, so a decoder's
//! speed is best told as a share of what this loop reads, in the same minutes and from the
//! same memory.

use crate::{
    Level, Pool,
    lanes::{Kernel, Lanes, run},
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that one task reads: long enough that handing tasks out costs nothing, short
/// enough that all threads end together.
const PIECE: usize = 256 << 10;

/// Reads all of `parts` once with all threads and gives the sum of their whole
/// little-endian 64-bit words, wrapping; a rest of a piece that is no word is read
/// and left out. The sum is there so that the reads are needed.
pub fn stream_read(pool: &Pool, parts: &[&[u8]]) -> u64 {
    let pieces: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks(PIECE)).collect();
    let total = AtomicU64::new(0);
    pool.run(pieces.len(), &|task| {
        total.fetch_add(run(Level::best(), Sum(pieces[task])), Relaxed);
    });
    total.into_inner()
}

struct Sum<'a>(&'a [u8]);

impl Kernel for Sum<'_> {
    type Output = u64;

    #[inline(always)]
    unsafe fn call<L: Lanes>(self) -> u64 {
        /// As far ahead as the products ask for their weights.
        const AHEAD: usize = 4096;
        /// Independent sums, so that an addition waits for none before it.
        const SUMS: usize = 4;
        let mut sums = [[0u64; 8]; SUMS];
        let (lines, rest) = self.0.as_chunks::<{ 64 * SUMS }>();
        for line in lines {
            for (part, sum) in line.as_chunks::<64>().0.iter().zip(&mut sums) {
                // SAFETY: a prefetch may name any address; the features are the caller's.
                unsafe { L::prefetch(part.as_ptr().wrapping_add(AHEAD)) };
                for (word, sum) in part.as_chunks::<8>().0.iter().zip(sum) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
        }
        let words = rest.as_chunks::<8>().0.iter();
        words
            .map(|word| u64::from_le_bytes(*word))
            .chain(sums.into_iter().flatten())
            .fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        let bytes: Vec<u8> = (0..3 * PIECE as u64 + 5001)
            .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
            .collect();
        let plain = |part: &[u8]| {
            let words = part.chunks(PIECE).flat_map(|piece| piece.chunks_exact(8));
            words.fold(0u64, |sum, word| {
                let word = word.iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
                sum.wrapping_add(word)
            })
        };
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            for part in [&bytes[..], &bytes[1..777], &bytes[..7], &[]] {
                assert_eq!(stream_read(&pool, &[part]), plain(part));
            }
            let parts = [&bytes[..1000], &bytes[3..PIECE + 300]];
            let wanted = plain(parts[0]).wrapping_add(plain(parts[1]));
            assert_eq!(stream_read(&pool, &parts), wanted);
        }
    }
}
