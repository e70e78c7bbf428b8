//! Attention of new positions to a cache that grows in place.
//!
//! Keys are kept in blocks of sixteen positions, one number of all sixteen after the
//! other, so that sixteen scores are one sum without any shuffling; values are kept
//! row by row. Scores are worked on 64 positions at a time with a running maximum
//! (online softmax), so a long prompt needs no matrix of them. Blocks begin at
//! multiples of 64 whatever the query, and what a query must not see adds an exact
//! zero: the order of its sums does not depend on its neighbours.

#![allow(
    clippy::needless_range_loop,
    reason = "rows and lanes are counted, as in the formulas"
)]

use std::cell::Cell;

use half::{f16, slice::HalfFloatSliceExt};

use crate::{
    Pool,
    lanes::{Kernel, Lanes, Level, exp, largest, run, sum},
};

/// Positions that share a block of keys.
const LANES: usize = 16;
/// Positions between two looks at the maximum, and what a cache's room is counted in.
const STEP: usize = 64;
/// Most queries that share a pass over keys and values.
const QUERIES: usize = 4;

/// How the cache keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision: half the memory and half the traffic.
    F16,
    /// Single precision.
    #[default]
    F32,
}

/// Keys and values of one layer and one sequence.
///
/// Both are kept by head, then by position, so that a head reads one stretch of
/// memory. Writing a position a second time replaces it; room grows by doubling.
#[derive(Debug, Clone)]
pub struct KvCache {
    kv_heads: usize,
    head_dim: usize,
    /// `head_dim`, rounded up to whole lanes: the length of a row of values.
    value_dim: usize,
    len: usize,
    capacity: usize,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    F16(Pair<f16>),
    F32(Pair<f32>),
}

/// `[head][position / 16][number][position % 16]` and `[head][position][number]`.
#[derive(Debug, Clone, Default)]
struct Pair<T> {
    keys: Vec<T>,
    values: Vec<T>,
}

impl KvCache {
    /// An empty cache for `kv_heads` heads of `head_dim` numbers.
    ///
    /// # Panics
    /// If either is zero.
    pub fn new(kv_heads: usize, head_dim: usize, kind: KvType) -> KvCache {
        assert!(kv_heads > 0 && head_dim > 0, "a cache needs heads");
        let store = match kind {
            KvType::F16 => Store::F16(Pair::default()),
            KvType::F32 => Store::F32(Pair::default()),
        };
        let value_dim = head_dim.next_multiple_of(LANES);
        KvCache {
            kv_heads,
            head_dim,
            value_dim,
            len: 0,
            capacity: 0,
            store,
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the positions from `len` on; the room stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Bytes taken.
    pub fn size_bytes(&self) -> usize {
        let each = match self.store {
            Store::F16(_) => 2,
            Store::F32(_) => 4,
        };
        each * self.kv_heads * (self.head_dim + self.value_dim) * self.capacity
    }

    /// Makes room for `positions` positions.
    pub fn reserve(&mut self, positions: usize) {
        if positions <= self.capacity {
            return;
        }
        let capacity = positions.max(2 * self.capacity).next_multiple_of(STEP);
        match &mut self.store {
            Store::F16(pair) => {
                pair.grow(
                    self.kv_heads,
                    self.head_dim,
                    self.value_dim,
                    self.capacity,
                    capacity,
                );
            }
            Store::F32(pair) => {
                pair.grow(
                    self.kv_heads,
                    self.head_dim,
                    self.value_dim,
                    self.capacity,
                    capacity,
                );
            }
        }
        self.capacity = capacity;
    }

    /// Writes the keys and values of the positions from `start` on: each
    /// `m × kv_heads × head_dim`, row-major. The cache then ends with the last of
    /// them.
    ///
    /// # Panics
    /// If the two lengths differ or are not whole positions, or if `start` leaves a
    /// gap after the positions held.
    pub fn write(&mut self, start: usize, keys: &[f32], values: &[f32]) {
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
        let places = Places {
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            capacity: self.capacity,
            start,
        };
        match &mut self.store {
            Store::F16(pair) => {
                let mut half = vec![f16::ZERO; 2 * keys.len()];
                let (half_keys, half_values) = half.split_at_mut(keys.len());
                half_keys.convert_from_f32_slice(keys);
                half_values.convert_from_f32_slice(values);
                pair.write(&places, half_keys, half_values, width);
            }
            Store::F32(pair) => pair.write(&places, keys, values, width),
        }
        self.len = start + m;
    }
}

/// Where numbers lie in a [`Pair`].
struct Places {
    head_dim: usize,
    value_dim: usize,
    capacity: usize,
    start: usize,
}

impl<T: Copy + Default> Pair<T> {
    fn grow(&mut self, heads: usize, key_dim: usize, value_dim: usize, from: usize, to: usize) {
        self.keys = restride(&self.keys, heads, from * key_dim, to * key_dim);
        self.values = restride(&self.values, heads, from * value_dim, to * value_dim);
    }

    fn write(&mut self, places: &Places, keys: &[T], values: &[T], width: usize) {
        let &Places {
            head_dim,
            value_dim,
            capacity,
            start,
        } = places;
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (position, (keys, values)) in rows.enumerate() {
            let position = start + position;
            let heads = keys
                .chunks_exact(head_dim)
                .zip(values.chunks_exact(head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let at = (head * capacity + position / LANES * LANES) * head_dim;
                let block = &mut self.keys[at..at + LANES * head_dim];
                for (to, from) in block.chunks_exact_mut(LANES).zip(key) {
                    to[position % LANES] = *from;
                }
                let at = (head * capacity + position) * value_dim;
                self.values[at..at + head_dim].copy_from_slice(value);
            }
        }
    }
}

/// Gives each head `to` numbers of room instead of `from`.
fn restride<T: Copy + Default>(old: &[T], heads: usize, from: usize, to: usize) -> Vec<T> {
    let mut new = vec![T::default(); heads * to];
    for head in 0..heads {
        new[head * to..head * to + from].copy_from_slice(&old[head * from..(head + 1) * from]);
    }
    new
}

/// What attention needs to know of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads, a multiple of the cache's; neighbours share a key head.
    pub heads: usize,
    /// What scores are multiplied by, usually `1 / √head_dim`.
    pub scale: f32,
    /// A position sees itself and the `window − 1` before it; none: all before it.
    pub window: Option<usize>,
    /// Scores are bounded by `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Causal attention of the positions from `start` on.
///
/// `q` and `out` are `m × heads × head_dim`; row i is position `start + i`, whose
/// key and value must already be in the cache.
///
/// # Panics
/// If the lengths do not fit, the heads are not a multiple of the cache's, or the
/// cache ends before the last position.
pub fn attention(
    pool: &Pool,
    spec: &AttentionSpec,
    q: &[f32],
    start: usize,
    cache: &KvCache,
    out: &mut [f32],
) {
    attention_at(Level::best(), pool, spec, q, start, cache, out);
}

/// [`attention`] in the form `level`, so that tests can hold the forms together.
fn attention_at(
    level: Level,
    pool: &Pool,
    spec: &AttentionSpec,
    q: &[f32],
    start: usize,
    cache: &KvCache,
    out: &mut [f32],
) {
    let width = spec.heads * cache.head_dim;
    assert_eq!(q.len(), out.len(), "q and out must have the same length");
    assert!(
        spec.heads > 0 && spec.heads.is_multiple_of(cache.kv_heads),
        "heads must share key heads evenly"
    );
    assert!(q.len().is_multiple_of(width), "q must be whole positions");
    let m = q.len() / width;
    assert!(
        start + m <= cache.len,
        "keys must be written before they are read"
    );
    let group = spec.heads / cache.kv_heads;
    // All queries of a key head, position by position, are cut into tasks. With few
    // of them the tasks are made smaller, or some threads would have none.
    let per_head = m * group;
    let share = (per_head * cache.kv_heads)
        .div_ceil(3 * pool.threads())
        .clamp(1, QUERIES);
    let tasks = per_head.div_ceil(share);
    let target = Output(out.as_mut_ptr());
    let target = &target;
    pool.run(tasks * cache.kv_heads, &|task| {
        // The last positions see the most: they come first, so that no thread is
        // left alone with them.
        let (kv_head, task) = (task % cache.kv_heads, tasks - 1 - task / cache.kv_heads);
        let rows = task * share..((task + 1) * share).min(per_head);
        let mut room = ROOM.take();
        let mut places = [(0, 0); QUERIES];
        for (place, row) in places.iter_mut().zip(rows.clone()) {
            let head = kv_head * group + row % group;
            *place = (
                start + row / group,
                (row / group * spec.heads + head) * cache.head_dim,
            );
        }
        let places = &places[..rows.len()];
        group_of(level, spec, q, places, kv_head, cache, &mut room);
        for ((_, at), from) in places.iter().zip(room.acc.chunks_exact(cache.value_dim)) {
            // SAFETY: `at` is the offset of a head of a position, at least `head_dim`
            // before the end of `out`, which is as long as `q`; each belongs to one task.
            unsafe {
                let to = target.0.add(*at);
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, cache.head_dim);
            }
        }
        ROOM.set(room);
    });
}

/// The output of attention, written by several tasks at different places.
struct Output(*mut f32);
// SAFETY: the tasks write disjoint parts.
unsafe impl Sync for Output {}

/// What a thread keeps between tasks.
#[derive(Default)]
struct Room {
    /// Queries, one after the other.
    q: Vec<f32>,
    /// Sums of weighted values, `value_dim` for each query.
    acc: Vec<f32>,
}

thread_local! {
    static ROOM: Cell<Room> = Cell::default();
}

/// Runs up to [`QUERIES`] queries of one key head, given as position and offset in
/// `q`; the results are left in `room.acc`.
fn group_of(
    level: Level,
    spec: &AttentionSpec,
    q: &[f32],
    places: &[(usize, usize)],
    kv_head: usize,
    cache: &KvCache,
    room: &mut Room,
) {
    room.q.clear();
    for (_, at) in places {
        room.q.extend_from_slice(&q[*at..*at + cache.head_dim]);
    }
    room.acc.clear();
    room.acc.resize(places.len() * cache.value_dim, 0.0);
    let mut positions = [0; QUERIES];
    for (to, (position, _)) in positions.iter_mut().zip(places) {
        *to = *position;
    }
    macro_rules! go {
        ($pair:ident, $($n:literal)+) => {
            match places.len() {
                $($n => run(level, Group::<_, $n> {
                    spec,
                    dims: (cache.head_dim, cache.value_dim),
                    q: &room.q,
                    positions: &positions,
                    keys: head_of(&$pair.keys, kv_head, cache.kv_heads),
                    values: head_of(&$pair.values, kv_head, cache.kv_heads),
                    acc: &mut room.acc,
                }),)+
                other => unreachable!("a group has 1 to {QUERIES} queries, not {other}"),
            }
        };
    }
    match &cache.store {
        Store::F16(pair) => go!(pair, 1 2 3 4),
        Store::F32(pair) => go!(pair, 1 2 3 4),
    }
}

fn head_of<T>(all: &[T], head: usize, heads: usize) -> &[T] {
    let size = all.len() / heads;
    &all[head * size..(head + 1) * size]
}

/// A number as the cache keeps it.
trait Stored {
    /// Sixteen of them.
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F;
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f16) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen halves.
        unsafe { L::load_f16(p.cast()) }
    }
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> L::F {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        unsafe { L::load(p) }
    }
}

/// `R` queries over the keys and values of one head.
struct Group<'a, T, const R: usize> {
    spec: &'a AttentionSpec,
    /// Numbers in a key, and in a row of values with its padding.
    dims: (usize, usize),
    q: &'a [f32],
    /// Of each query; they do not fall.
    positions: &'a [usize; QUERIES],
    keys: &'a [T],
    values: &'a [T],
    acc: &'a mut [f32],
}

/// Scores of a step, later weights.
type Scores<const R: usize> = [[f32; STEP]; R];

impl<T: Stored, const R: usize> Kernel for Group<'_, T, R> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(mut self) {
        let (head_dim, value_dim) = self.dims;
        assert!(R <= QUERIES && value_dim.is_multiple_of(LANES));
        assert!(self.q.len() >= R * head_dim && self.acc.len() >= R * value_dim);
        let last = self.positions[R - 1];
        // Room is counted in steps, so a step that has begun is there as a whole.
        let room = (last / STEP + 1) * STEP;
        assert!(self.keys.len() >= room * head_dim && self.values.len() >= room * value_dim);

        let first_of = |position: usize| match self.spec.window {
            Some(window) => (position + 1).saturating_sub(window.max(1)),
            None => 0,
        };
        let mut max = [f32::NEG_INFINITY; R];
        let mut total = [0f32; R];
        let mut scores: Scores<R> = [[0.0; STEP]; R];
        let first = first_of(self.positions[0]);
        for base in (first / STEP * STEP..=last).step_by(STEP) {
            let end = (last + 1).min(base + STEP);
            // SAFETY: the lengths were compared above; positions up to `room` exist.
            unsafe {
                score::<L, T, R>(self.q, self.keys, head_dim, base, end, &mut scores);
                for r in 0..R {
                    let sees = first_of(self.positions[r])..self.positions[r] + 1;
                    mask(self.spec, base, sees, &mut scores[r]);
                    let acc = &mut self.acc[r * value_dim..(r + 1) * value_dim];
                    weigh::<L>(&mut scores[r], &mut max[r], &mut total[r], acc);
                }
                let from = first.max(base);
                self.add_values::<L>(&scores, from, end);
            }
        }
        for r in 0..R {
            let factor = 1.0 / total[r];
            for x in &mut self.acc[r * value_dim..(r + 1) * value_dim] {
                *x *= factor;
            }
        }
    }
}

/// `q · k` for the positions from `base` to `end`, and for those that fill up two
/// blocks of keys with them.
#[inline(always)]
unsafe fn score<L: Lanes, T: Stored, const R: usize>(
    q: &[f32],
    keys: &[T],
    head_dim: usize,
    base: usize,
    end: usize,
    scores: &mut Scores<R>,
) {
    for at in (0..end - base).step_by(2 * LANES) {
        // SAFETY: `base` is a multiple of the step, and the caller vouches for room
        // for whole steps of keys and for `R` queries.
        unsafe {
            let one = keys.as_ptr().add((base + at) * head_dim);
            let two = one.add(LANES * head_dim);
            let mut acc = [[L::splat(0.0); 2]; R];
            for i in 0..head_dim {
                let (k, l) = (
                    T::load::<L>(one.add(i * LANES)),
                    T::load::<L>(two.add(i * LANES)),
                );
                for r in 0..R {
                    let q = L::splat(*q.as_ptr().add(r * head_dim + i));
                    let [a, b] = acc[r];
                    acc[r] = [L::fma(q, k, a), L::fma(q, l, b)];
                }
            }
            for r in 0..R {
                let to = scores[r].as_mut_ptr().add(at);
                L::store(to, acc[r][0]);
                L::store(to.add(LANES), acc[r][1]);
            }
        }
    }
}

/// Scales the scores of a step, and makes those outside of `sees` −∞.
#[inline(always)]
fn mask(spec: &AttentionSpec, base: usize, sees: std::ops::Range<usize>, scores: &mut [f32; STEP]) {
    let from = sees.start.saturating_sub(base).min(STEP);
    let to = sees.end.saturating_sub(base).clamp(from, STEP);
    scores[..from].fill(f32::NEG_INFINITY);
    scores[to..].fill(f32::NEG_INFINITY);
    for score in &mut scores[from..to] {
        *score *= spec.scale;
        if let Some(cap) = spec.softcap {
            *score = cap * (*score / cap).tanh();
        }
    }
}

/// Turns scores into weights relative to the new maximum, and shrinks what was summed
/// relative to the old one.
#[inline(always)]
unsafe fn weigh<L: Lanes>(
    scores: &mut [f32; STEP],
    max: &mut f32,
    total: &mut f32,
    acc: &mut [f32],
) {
    // SAFETY: a step is four times sixteen numbers, and `acc` whole lanes.
    unsafe {
        let p = scores.as_mut_ptr();
        let s = [
            L::load(p),
            L::load(p.add(LANES)),
            L::load(p.add(2 * LANES)),
            L::load(p.add(3 * LANES)),
        ];
        let step_max = largest::<L>(L::max(L::max(s[0], s[1]), L::max(s[2], s[3])));
        let new = if *max > step_max { *max } else { step_max };
        if new == f32::NEG_INFINITY {
            // Nothing to see in this step: as if it had not been looked at.
            scores.fill(0.0);
            return;
        }
        if new != *max {
            let mut shrink = [0f32; LANES];
            L::store(shrink.as_mut_ptr(), exp::<L>(L::splat(*max - new)));
            *total *= shrink[0];
            for x in acc.as_chunks_mut::<LANES>().0 {
                L::store(
                    x.as_mut_ptr(),
                    L::mul(L::load(x.as_ptr()), L::splat(shrink[0])),
                );
            }
            *max = new;
        }
        let new = L::splat(new);
        let w = [
            exp::<L>(L::sub(s[0], new)),
            exp::<L>(L::sub(s[1], new)),
            exp::<L>(L::sub(s[2], new)),
            exp::<L>(L::sub(s[3], new)),
        ];
        L::store(p, w[0]);
        L::store(p.add(LANES), w[1]);
        L::store(p.add(2 * LANES), w[2]);
        L::store(p.add(3 * LANES), w[3]);
        *total += sum::<L>(L::add(L::add(w[0], w[1]), L::add(w[2], w[3])));
    }
}

impl<T: Stored, const R: usize> Group<'_, T, R> {
    /// Adds the weighted values of the positions from `from` to `end`, which lie in
    /// one step.
    #[inline(always)]
    unsafe fn add_values<L: Lanes>(&mut self, scores: &Scores<R>, from: usize, end: usize) {
        let lanes = self.dims.1 / LANES;
        let mut i = 0;
        // SAFETY: rows of values are `lanes` times sixteen numbers, and so are the sums.
        unsafe {
            while i + 4 <= lanes {
                self.add_columns::<L, 4>(scores, from, end, i * LANES);
                i += 4;
            }
            while i < lanes {
                self.add_columns::<L, 1>(scores, from, end, i * LANES);
                i += 1;
            }
        }
    }

    /// [`Self::add_values`] for `N` times sixteen numbers from column `column` on.
    #[inline(always)]
    unsafe fn add_columns<L: Lanes, const N: usize>(
        &mut self,
        scores: &Scores<R>,
        from: usize,
        end: usize,
        column: usize,
    ) {
        let value_dim = self.dims.1;
        // SAFETY: the caller vouches for the columns, and `call` has compared lengths.
        unsafe {
            let sums = self.acc.as_mut_ptr().add(column);
            let mut acc = [[L::splat(0.0); N]; R];
            for r in 0..R {
                for n in 0..N {
                    acc[r][n] = L::load(sums.add(r * value_dim + n * LANES));
                }
            }
            for position in from..end {
                let value = self.values.as_ptr().add(position * value_dim + column);
                let mut v = [L::splat(0.0); N];
                for n in 0..N {
                    v[n] = T::load::<L>(value.add(n * LANES));
                }
                for r in 0..R {
                    let weight = L::splat(scores[r][position % STEP]);
                    for n in 0..N {
                        acc[r][n] = L::fma(weight, v[n], acc[r][n]);
                    }
                }
            }
            for r in 0..R {
                for n in 0..N {
                    L::store(sums.add(r * value_dim + n * LANES), acc[r][n]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn all_forms_give_the_same_bits() {
        let pool = Pool::new(2);
        for (head_dim, kind) in [(64, KvType::F32), (20, KvType::F32), (128, KvType::F16)] {
            for window in [None, Some(50)] {
                let mut random = Random::new(head_dim as u64);
                let (positions, heads) = (130, 4);
                let mut cache = KvCache::new(2, head_dim, kind);
                let (k, v) = (
                    random.vec(positions * 2 * head_dim),
                    random.vec(positions * 2 * head_dim),
                );
                cache.write(0, &k, &v);
                let q = random.vec(positions * heads * head_dim);
                let spec = AttentionSpec {
                    heads,
                    scale: 0.3,
                    window,
                    softcap: None,
                };
                let at = |level| {
                    let mut out = vec![f32::NAN; q.len()];
                    attention_at(level, &pool, &spec, &q, 0, &cache, &mut out);
                    out
                };
                for level in [Level::Avx2, Level::Avx512] {
                    assert_eq!(at(level), at(Level::Plain), "{level:?} {head_dim} {kind:?}");
                }
            }
        }
    }
}
