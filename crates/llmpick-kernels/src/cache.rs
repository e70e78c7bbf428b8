//! Keys and values of one layer, kept where attention reads them.
//!
//! Keys are kept in blocks of sixteen positions, one number of all sixteen after the
//! other, so that sixteen scores are one sum without any shuffling; values are kept
//! row by row. Both are kept by head, then by position, so that a head reads one
//! stretch of memory.
//!
//! Room follows the positions in use: it grows by a quarter. A layer with a window
//! keeps only the last positions, in a ring: position p has slot p mod room. A block
//! never lies across the ring's end, since room is counted in steps of 64.

use std::{marker::PhantomData, ops::Range};

use half::{f16, slice::HalfFloatSliceExt};

use crate::{Pool, lanes::Lanes, lines::Lines, rows::RowsOf};

/// Positions that share a block of keys.
pub(crate) const LANES: usize = 16;
/// Positions between two looks at the maximum, and what a cache's room is counted in.
pub(crate) const STEP: usize = 64;
/// What a cache grows by at least, in positions.
const GROWTH: usize = 256;

/// How the cache keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Eight-bit integers with a scale for each position and head: a quarter of the
    /// memory, and an error of up to 0.4 % of the largest number of a head.
    Int8,
    /// Half precision: half the memory and half the traffic.
    F16,
    /// Single precision.
    #[default]
    F32,
}

impl KvType {
    /// Bytes of the keys and values of one position with `kv_heads` heads of
    /// `head_dim` numbers.
    pub fn position_bytes(self, kv_heads: usize, head_dim: usize) -> usize {
        let numbers = head_dim + head_dim.next_multiple_of(LANES);
        kv_heads
            * match self {
                // Two scales.
                KvType::Int8 => numbers + 8,
                KvType::F16 => numbers * 2,
                KvType::F32 => numbers * 4,
            }
    }
}

/// Keys and values of one layer and one sequence.
///
/// Writing a position a second time replaces it.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// `head_dim`, rounded up to whole lanes: the length of a row of values.
    pub(crate) value_dim: usize,
    len: usize,
    /// The first position that later ones have not overwritten.
    oldest: usize,
    /// Positions there is room for.
    pub(crate) capacity: usize,
    /// Room of the ring, if it is one.
    ring: Option<usize>,
    pub(crate) store: Store,
}

#[derive(Debug, Clone)]
pub(crate) enum Store {
    Int8(Pair<i8>),
    F16(Pair<f16>),
    F32(Pair<f32>),
}

/// `[head][position / 16][number][position % 16]` and `[head][position][number]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pair<T: Copy + Default> {
    pub keys: Lines<T>,
    pub values: Lines<T>,
    /// `[head][position]`, what the keys are to be multiplied by; empty for numbers
    /// that stand for themselves.
    pub key_scales: Lines<f32>,
    /// The same of the values.
    pub value_scales: Lines<f32>,
}

/// Calls `$body` with `$pair` bound to the numbers, whatever their type.
macro_rules! with_pair {
    ($store:expr, $pair:ident => $body:expr) => {
        match $store {
            Store::Int8($pair) => $body,
            Store::F16($pair) => $body,
            Store::F32($pair) => $body,
        }
    };
}

/// Makes keys what they are to be before they are kept: gets the first position's
/// number among those written, its and the following keys, and as many rows beside.
pub type KeyWork<'a> = &'a (dyn Fn(usize, &mut [f32], &mut [f32]) + Sync);

impl KvCache {
    /// An empty cache for `kv_heads` heads of `head_dim` numbers.
    ///
    /// # Panics
    /// If either is zero.
    pub fn new(kv_heads: usize, head_dim: usize, kind: KvType) -> KvCache {
        assert!(kv_heads > 0 && head_dim > 0, "a cache needs heads");
        let store = match kind {
            KvType::Int8 => Store::Int8(Pair::default()),
            KvType::F16 => Store::F16(Pair::default()),
            KvType::F32 => Store::F32(Pair::default()),
        };
        KvCache {
            kv_heads,
            head_dim,
            value_dim: head_dim.next_multiple_of(LANES),
            len: 0,
            oldest: 0,
            capacity: 0,
            ring: None,
            store,
        }
    }

    /// A cache that keeps the last `positions` positions and perhaps some more. For a
    /// window of w read by up to m positions at a time, w + m of them are enough.
    pub fn ring(kv_heads: usize, head_dim: usize, kind: KvType, positions: usize) -> KvCache {
        KvCache {
            ring: Some(positions.max(1).next_multiple_of(STEP)),
            ..KvCache::new(kv_heads, head_dim, kind)
        }
    }

    /// How the numbers are kept.
    pub fn kind(&self) -> KvType {
        match self.store {
            Store::Int8(_) => KvType::Int8,
            Store::F16(_) => KvType::F16,
            Store::F32(_) => KvType::F32,
        }
    }

    /// Positions written, those that a ring has dropped included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The positions that can be read.
    pub fn held(&self) -> Range<usize> {
        self.oldest.min(self.len)..self.len
    }

    /// Forgets the positions from `len` on; the room stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if self.len == 0 {
            self.oldest = 0;
        }
    }

    /// Whether the sequence can go on from position `at`, each position seeing `window`
    /// positions, itself included (all before it without a window): not where a ring
    /// has dropped what they would see.
    pub fn resumes_at(&self, at: usize, window: Option<usize>) -> bool {
        let sees = window.map_or(0, |w| (at + 1).saturating_sub(w.max(1)));
        at == 0 || at <= self.len && sees.min(at) >= self.oldest
    }

    /// Bytes taken.
    pub fn size_bytes(&self) -> usize {
        self.capacity * self.kind().position_bytes(self.kv_heads, self.head_dim)
    }

    /// Bytes that [`reserve`](Self::reserve) with so many positions would take.
    pub fn bytes_for(&self, positions: usize) -> usize {
        self.room_for(positions) * self.kind().position_bytes(self.kv_heads, self.head_dim)
    }

    /// Makes room for `positions` positions, as far as a ring keeps them.
    pub fn reserve(&mut self, positions: usize) {
        let to = self.room_for(positions);
        let from = self.capacity;
        if to <= from {
            return;
        }
        let (heads, key, value) = (self.kv_heads, self.head_dim, self.value_dim);
        // A ring grows only before it is full: nothing has wrapped around yet.
        with_pair!(&mut self.store, pair => pair.grow(heads, key, value, from, to));
        self.capacity = to;
    }

    fn room_for(&self, positions: usize) -> usize {
        if positions <= self.capacity {
            return self.capacity;
        }
        let grown = self.capacity + (self.capacity / 4).max(GROWTH);
        // What is asked for first is made room for as it is: a short question takes
        // little.
        let wanted = match self.capacity {
            0 => positions,
            _ => positions.max(grown),
        };
        let most = self.ring.unwrap_or(usize::MAX);
        wanted.next_multiple_of(STEP).min(most)
    }

    /// Writes the keys and values of the positions from `start` on: each
    /// `m × kv_heads × head_dim`, row-major. The cache then ends with the last of
    /// them.
    ///
    /// # Panics
    /// If the two lengths differ or are not whole positions, if `start` leaves a gap
    /// after the positions held, or if there are more positions than a ring keeps.
    pub fn write(&mut self, start: usize, keys: &[f32], values: &[f32]) {
        let mut keys = keys.to_vec();
        let pool = Pool::new(1);
        self.write_ready(&pool, start, &mut keys, values, &mut [], &|_, _, _| {});
    }

    /// [`write`](Self::write), the positions shared out among the pool's threads.
    /// `ready` makes keys, and the same rows of `beside` (queries, say), what they are
    /// to be: it must do to each row what it would do to it alone.
    ///
    /// # Panics
    /// As [`write`](Self::write), or if `beside` is not as many whole rows.
    pub fn write_ready(
        &mut self,
        pool: &Pool,
        start: usize,
        keys: &mut [f32],
        values: &[f32],
        beside: &mut [f32],
        ready: KeyWork<'_>,
    ) {
        let width = self.kv_heads * self.head_dim;
        assert_eq!(
            keys.len(),
            values.len(),
            "keys and values must have the same length"
        );
        assert!(
            keys.len().is_multiple_of(width),
            "keys must be whole positions"
        );
        assert!(start <= self.len, "positions must be written without gaps");
        let m = keys.len() / width;
        self.reserve(start + m);
        assert!(
            m <= self.capacity,
            "a ring must hold what is written at once"
        );
        let places = Places {
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            capacity: self.capacity,
        };
        let keys = RowsOf::new(keys, m);
        let beside = RowsOf::new(beside, m);
        let first_block = start / LANES;
        // A block of keys is one task's, or two threads would write one line of memory.
        // One block's worth of positions is no work to share.
        let blocks = match m <= LANES {
            true => m.min(1),
            false => (start + m).div_ceil(LANES) - first_block,
        };
        with_pair!(&mut self.store, pair => {
            let target = pair.target(&places);
            pool.run(blocks, &|task| {
                let rows = match blocks {
                    1 => 0..m,
                    _ => {
                        let at = |block: usize| {
                            (block * LANES).clamp(start, start + m) - start
                        };
                        at(first_block + task)..at(first_block + task + 1)
                    }
                };
                // SAFETY: blocks begin where the one before ends, and each is one task.
                let (keys, beside) = unsafe { (keys.get(rows.clone()), beside.get(rows.clone())) };
                ready(rows.start, keys, beside);
                let values = &values[rows.start * width..rows.end * width];
                // SAFETY: as above, and at most `capacity` positions are written, so that
                // each has a slot, and with it numbers, of its own.
                unsafe { target.write(start + rows.start, keys, values) };
            });
        });
        self.len = start + m;
        if start <= self.oldest {
            // Nothing before it can be read any more.
            self.oldest = start;
        }
        self.oldest = self.oldest.max(self.len.saturating_sub(self.capacity));
    }
}

/// Where numbers lie in a [`Pair`].
#[derive(Clone, Copy)]
struct Places {
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    capacity: usize,
}

impl<T: Stored> Pair<T> {
    fn grow(&mut self, heads: usize, key_dim: usize, value_dim: usize, from: usize, to: usize) {
        restride(&mut self.keys, heads, from * key_dim, to * key_dim);
        restride(&mut self.values, heads, from * value_dim, to * value_dim);
        if T::SCALED {
            restride(&mut self.key_scales, heads, from, to);
            restride(&mut self.value_scales, heads, from, to);
        }
    }

    fn target(&mut self, places: &Places) -> Target<'_, T> {
        let &Places {
            kv_heads,
            head_dim,
            value_dim,
            capacity,
        } = places;
        assert!(self.keys.len() >= kv_heads * head_dim * capacity);
        assert!(self.values.len() >= kv_heads * value_dim * capacity);
        let scales = if T::SCALED { kv_heads * capacity } else { 0 };
        assert!(self.key_scales.len() >= scales && self.value_scales.len() >= scales);
        Target {
            keys: self.keys.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            key_scales: self.key_scales.as_mut_ptr(),
            value_scales: self.value_scales.as_mut_ptr(),
            places: *places,
            pair: PhantomData,
        }
    }
}

/// Gives each head `to` numbers of room instead of `from`.
fn restride<T: Copy + Default>(all: &mut Lines<T>, heads: usize, from: usize, to: usize) {
    let mut new = Lines::zeros(heads * to);
    for head in 0..heads {
        new[head * to..head * to + from].copy_from_slice(&all[head * from..(head + 1) * from]);
    }
    *all = new;
}

/// A [`Pair`] written by several tasks at different positions.
struct Target<'a, T> {
    keys: *mut T,
    values: *mut T,
    key_scales: *mut f32,
    value_scales: *mut f32,
    places: Places,
    pair: PhantomData<&'a mut T>,
}

// SAFETY: whoever writes says why nobody else writes there.
unsafe impl<T> Sync for Target<'_, T> {}

impl<T: Stored> Target<'_, T> {
    /// Writes whole positions from `start` on.
    ///
    /// # Safety
    /// Nobody else may read or write these positions' slots meanwhile.
    unsafe fn write(&self, start: usize, keys: &[f32], values: &[f32]) {
        let Places {
            kv_heads,
            head_dim,
            value_dim,
            capacity,
        } = self.places;
        let width = kv_heads * head_dim;
        let mut stored = vec![T::default(); head_dim];
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (position, (keys, values)) in (start..).zip(rows) {
            let slot = position % capacity;
            let heads = keys
                .chunks_exact(head_dim)
                .zip(values.chunks_exact(head_dim));
            for (head, (key, value)) in heads.enumerate() {
                // SAFETY: `target` has compared the lengths with what `capacity`
                // positions of all heads take; `slot` is below `capacity`, so its block
                // of sixteen is inside too, as `capacity` is a multiple of them.
                unsafe {
                    let scale = T::keep(key, &mut stored);
                    let at = (head * capacity + slot / LANES * LANES) * head_dim + slot % LANES;
                    for (i, x) in stored.iter().enumerate() {
                        self.keys.add(at + i * LANES).write(*x);
                    }
                    if T::SCALED {
                        self.key_scales.add(head * capacity + slot).write(scale);
                    }
                    let scale = T::keep(value, &mut stored);
                    let at = (head * capacity + slot) * value_dim;
                    let to = self.values.add(at);
                    std::ptr::copy_nonoverlapping(stored.as_ptr(), to, head_dim);
                    if T::SCALED {
                        self.value_scales.add(head * capacity + slot).write(scale);
                    }
                }
            }
        }
    }
}

/// A number as the cache keeps it.
pub(crate) trait Stored: Copy + Default {
    /// Whether the numbers of a position and head share a scale.
    const SCALED: bool;
    /// Turns `from` into `to`; gives the scale, 1 if there is none.
    fn keep(from: &[f32], to: &mut [Self]) -> f32;
    /// Sixteen of them.
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F;
}

impl Stored for i8 {
    const SCALED: bool = true;

    /// What is not finite makes the scale NaN, so that the damage stays visible.
    fn keep(from: &[f32], to: &mut [i8]) -> f32 {
        let most = from.iter().fold(0f32, |most, x| {
            // `max` would pass over a NaN.
            if x.abs() <= most { most } else { x.abs() }
        });
        if !most.is_finite() || from.iter().any(|x| x.is_nan()) {
            to.fill(0);
            return f32::NAN;
        }
        if most < 1e-30 {
            to.fill(0);
            return 0.0;
        }
        let factor = 127.0 / most;
        for (to, from) in to.iter_mut().zip(from) {
            *to = (from * factor).round_ties_even() as i8;
        }
        most / 127.0
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const i8) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen bytes.
        unsafe { L::load_i8(p.cast()) }
    }
}

impl Stored for f16 {
    const SCALED: bool = false;

    fn keep(from: &[f32], to: &mut [f16]) -> f32 {
        to.convert_from_f32_slice(from);
        1.0
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f16) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen halves.
        unsafe { L::load_f16(p.cast()) }
    }
}

impl Stored for f32 {
    const SCALED: bool = false;

    fn keep(from: &[f32], to: &mut [f32]) -> f32 {
        to.copy_from_slice(from);
        1.0
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        unsafe { L::load(p) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_follows_the_positions() {
        let mut cache = KvCache::new(2, 20, KvType::Int8);
        assert_eq!(cache.size_bytes(), 0);
        let row = vec![1.0; 40];
        cache.write(0, &row, &row);
        assert_eq!(cache.size_bytes(), 64 * 2 * (20 + 32 + 8));
        assert_eq!(cache.size_bytes(), cache.bytes_for(64));
        assert_eq!(cache.capacity, 64);
        let announced = cache.bytes_for(65);
        cache.reserve(65);
        assert_eq!((cache.capacity, cache.size_bytes()), (320, announced));
        cache.reserve(5000);
        assert_eq!(cache.capacity, 5056);
        cache.reserve(5057);
        assert_eq!(cache.capacity, 5056 / 4 * 5 / 64 * 64 + 64);
    }

    #[test]
    fn a_ring_keeps_the_last_positions_and_knows_which() {
        let mut cache = KvCache::ring(1, 16, KvType::F32, 100);
        let row = vec![1.0; 16];
        for position in 0..300 {
            assert!(cache.resumes_at(position, Some(100)));
            cache.write(position, &row, &row);
            assert!(cache.capacity <= 128);
        }
        assert_eq!((cache.len(), cache.held()), (300, 172..300));
        // Position 240 with a window of 69 sees 172 and on.
        assert!(cache.resumes_at(240, Some(69)) && !cache.resumes_at(239, Some(69)));
        assert!(cache.resumes_at(0, Some(69)) && !cache.resumes_at(301, Some(69)));
        assert!(!cache.resumes_at(300, None));
        cache.truncate(240);
        assert_eq!(cache.held(), 172..240);
        cache.write(0, &row, &row);
        assert_eq!(cache.held(), 0..1);
        cache.truncate(0);
        assert_eq!(cache.held(), 0..0);
    }

    #[test]
    fn eight_bits_stand_for_the_numbers() {
        let from: Vec<f32> = (0..40).map(|i| (i as f32 - 17.0) * 0.37).collect();
        let mut to = [0i8; 40];
        let scale = i8::keep(&from, &mut to);
        for (from, to) in from.iter().zip(to) {
            assert!((from - scale * f32::from(to)).abs() <= scale * 0.5001);
        }
        assert_eq!(i8::keep(&[0.0; 3], &mut to[..3]), 0.0);
        assert!(i8::keep(&[0.0, f32::NAN, 1.0], &mut to[..3]).is_nan());
        assert!(i8::keep(&[0.0, f32::INFINITY], &mut to[..2]).is_nan());
    }
}
