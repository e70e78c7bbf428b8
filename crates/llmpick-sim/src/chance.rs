//! Which seed each part of a simulation draws from, and running the seeds side by side.

use std::num::NonZeroUsize;
use std::thread;

/// A seed for stream `stream` of `seed`, unlike those of its neighbours (SplitMix64's
/// finaliser): the world's draws and each request's own must not be one stream.
pub(crate) fn derive(seed: u64, stream: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream of the world's draws; requests use their own numbers, from 1.
pub(crate) const WORLD: u64 = 0;

/// Runs `play` once for each of `seeds` seeds from `first` on, on so many threads; the results
/// come in the order of the seeds, whatever finished first. Of several errors the first seed's.
pub(crate) fn for_each_seed<T: Send, E: Send>(
    threads: NonZeroUsize,
    first: u64,
    seeds: u32,
    play: impl Fn(u64) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let workers = threads.get().min(seeds as usize).max(1);
    let mut results: Vec<Option<Result<T, E>>> = Vec::new();
    results.resize_with(seeds as usize, || None);
    let share = results.len().div_ceil(workers).max(1);
    let play = &play;
    thread::scope(|scope| {
        for (worker, slots) in results.chunks_mut(share).enumerate() {
            let start = first.wrapping_add((worker * share) as u64);
            scope.spawn(move || {
                for (offset, slot) in (0u64..).zip(slots) {
                    *slot = Some(play(start.wrapping_add(offset)));
                }
            });
        }
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn seeds_come_back_in_order_and_the_first_error_wins() {
        for threads in [1, 2, 5, 50].map(|n| NonZeroUsize::new(n).unwrap()) {
            let doubled = for_each_seed(threads, 5, 7, |seed| Ok::<_, ()>(2 * seed));
            assert_eq!(doubled, Ok(vec![10, 12, 14, 16, 18, 20, 22]));
            let odd = |seed| if seed < 3 { Ok(()) } else { Err(seed) };
            assert_eq!(for_each_seed(threads, 0, 9, odd), Err(3));
        }
    }

    #[test]
    fn neighbouring_streams_share_no_seed() {
        let mut seen: Vec<u64> = (0..50)
            .flat_map(|seed| (0..50).map(move |stream| derive(seed, stream)))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 2500);
    }
}
