//! Attention of new positions to a cache that grows in place.
//!
//! Scores are worked on 64 positions at a time with a running maximum
//! (online softmax), so a long prompt needs no matrix of them. Blocks begin at
//! multiples of 64 whatever the query, and what a query must not see adds an exact
//! zero: the order of its sums does not depend on its neighbours.

#![allow(
    clippy::needless_range_loop,
    reason = "rows and lanes are counted, as in the formulas"
)]

use std::{cell::Cell, ops::Range};

use crate::{
    KvCache, Pool,
    cache::{LANES, STEP, Store, Stored},
    lanes::{Kernel, Lanes, Level, exp, run},
};

/// Most queries that share a pass over keys and values, in any form.
const QUERIES: usize = 8;

/// The same in the form `L`: two sums for each query must fit into the registers.
const fn most_queries<L: Lanes>() -> usize {
    if L::ROWS > 8 { QUERIES } else { QUERIES / 2 }
}

/// [`most_queries`] of a form.
struct MostQueries;

impl Kernel for MostQueries {
    type Output = usize;
    #[inline(always)]
    unsafe fn call<L: Lanes>(self) -> usize {
        most_queries::<L>()
    }
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
        start + m <= cache.len(),
        "keys must be written before they are read"
    );
    assert!(
        m == 0 || first_seen(spec, start) >= cache.held().start,
        "a ring must hold what is seen"
    );
    let group = spec.heads / cache.kv_heads;
    // All queries of a key head, position by position, are cut into tasks. With few
    // of them the tasks are made smaller, or some threads would have none.
    let per_head = m * group;
    let share = (per_head * cache.kv_heads)
        .div_ceil(3 * pool.threads())
        .clamp(1, run(level, MostQueries));
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
                    key_scales: head_of(&$pair.key_scales, kv_head, cache.kv_heads),
                    value_scales: head_of(&$pair.value_scales, kv_head, cache.kv_heads),
                    capacity: cache.capacity,
                    acc: &mut room.acc,
                }),)+
                other => unreachable!("a group has 1 to {QUERIES} queries, not {other}"),
            }
        };
    }
    match &cache.store {
        Store::Int8(pair) => go!(pair, 1 2 3 4 5 6 7 8),
        Store::F16(pair) => go!(pair, 1 2 3 4 5 6 7 8),
        Store::F32(pair) => go!(pair, 1 2 3 4 5 6 7 8),
    }
}

fn head_of<T>(all: &[T], head: usize, heads: usize) -> &[T] {
    let size = all.len() / heads;
    &all[head * size..(head + 1) * size]
}

/// The first position that `position` sees.
fn first_seen(spec: &AttentionSpec, position: usize) -> usize {
    match spec.window {
        Some(window) => (position + 1).saturating_sub(window.max(1)),
        None => 0,
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
    /// Of each slot, for numbers that are scaled.
    key_scales: &'a [f32],
    value_scales: &'a [f32],
    /// Slots. Positions beyond them begin again at the first.
    capacity: usize,
    acc: &'a mut [f32],
}

/// Scores of a step, later weights.
type Scores<const R: usize> = [[f32; STEP]; R];

impl<T: Stored, const R: usize> Kernel for Group<'_, T, R> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(mut self) {
        // Groups are never larger; this keeps the compiler from making the code.
        if R > most_queries::<L>() {
            return;
        }
        let (head_dim, value_dim) = self.dims;
        assert!(R <= QUERIES && value_dim.is_multiple_of(LANES));
        assert!(self.q.len() >= R * head_dim && self.acc.len() >= R * value_dim);
        let last = self.positions[R - 1];
        // Slots are counted in steps, so a step that has begun is there as a whole.
        let room = self.capacity;
        assert!(room > 0 && room.is_multiple_of(STEP));
        assert!(self.keys.len() >= room * head_dim && self.values.len() >= room * value_dim);
        if T::SCALED {
            assert!(self.key_scales.len() >= room && self.value_scales.len() >= room);
        }

        let mut max = [f32::NEG_INFINITY; R];
        let mut total = [0f32; R];
        let mut scores: Scores<R> = [[0.0; STEP]; R];
        let first = first_seen(self.spec, self.positions[0]);
        for base in (first / STEP * STEP..=last).step_by(STEP) {
            let end = (last + 1).min(base + STEP);
            let slot = base % room;
            // SAFETY: the lengths were compared above, and `slot` begins a step of the
            // `room` slots there are.
            unsafe {
                score::<L, T, R>(self.q, self.keys, head_dim, slot, end - base, &mut scores);
                if T::SCALED {
                    for scores in &mut scores {
                        rescale::<L>(scores, &self.key_scales[slot..slot + STEP]);
                    }
                }
                for r in 0..R {
                    let sees = first_seen(self.spec, self.positions[r])..self.positions[r] + 1;
                    mask(self.spec, base, sees, &mut scores[r]);
                    let acc = &mut self.acc[r * value_dim..(r + 1) * value_dim];
                    weigh::<L>(&mut scores[r], &mut max[r], &mut total[r], acc);
                }
                if T::SCALED {
                    for scores in &mut scores {
                        rescale::<L>(scores, &self.value_scales[slot..slot + STEP]);
                    }
                }
                let from = first.max(base);
                self.add_values::<L>(&scores, slot, from - base..end - base);
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

/// `q · k` for `count` positions whose keys begin at `slot`, and for those that fill up
/// two blocks of keys with them.
#[inline(always)]
unsafe fn score<L: Lanes, T: Stored, const R: usize>(
    q: &[f32],
    keys: &[T],
    head_dim: usize,
    slot: usize,
    count: usize,
    scores: &mut Scores<R>,
) {
    for at in (0..count).step_by(2 * LANES) {
        // SAFETY: `slot` is a multiple of the step, and the caller vouches for room
        // for whole steps of keys and for `R` queries.
        unsafe {
            let one = keys.as_ptr().add((slot + at) * head_dim);
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

/// Multiplies the scores or weights of a step by the scales of their positions.
///
/// A weight of zero stays zero whatever the scale: what a query does not see may be
/// what an earlier lap of the ring left.
#[inline(always)]
unsafe fn rescale<L: Lanes>(scores: &mut [f32; STEP], scales: &[f32]) {
    assert!(scales.len() >= STEP);
    // SAFETY: both hold a step of numbers.
    unsafe {
        for at in (0..STEP).step_by(LANES) {
            let p = scores.as_mut_ptr().add(at);
            L::store(p, L::mul(L::load(p), L::load(scales.as_ptr().add(at))));
        }
    }
}

/// Scales the scores of a step, and makes those outside of `sees` −∞.
#[inline(always)]
fn mask(spec: &AttentionSpec, base: usize, sees: std::ops::Range<usize>, scores: &mut [f32; STEP]) {
    let from = sees.start.saturating_sub(base).min(STEP);
    let to = sees.end.saturating_sub(base).clamp(from, STEP);
    // All of them: a loop of known length. What is not seen is thrown away below.
    for score in scores.iter_mut() {
        *score *= spec.scale;
    }
    if let Some(cap) = spec.softcap {
        for score in &mut scores[from..to] {
            *score = cap * (*score / cap).tanh();
        }
    }
    if from > 0 {
        scores[..from].fill(f32::NEG_INFINITY);
    }
    if to < STEP {
        scores[to..].fill(f32::NEG_INFINITY);
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
        let step_max = L::largest(L::max(L::max(s[0], s[1]), L::max(s[2], s[3])));
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
        *total += L::sum(L::add(L::add(w[0], w[1]), L::add(w[2], w[3])));
    }
}

impl<T: Stored, const R: usize> Group<'_, T, R> {
    /// Adds the weighted values of some positions of the step that begins at `slot`.
    #[inline(always)]
    unsafe fn add_values<L: Lanes>(
        &mut self,
        scores: &Scores<R>,
        slot: usize,
        range: Range<usize>,
    ) {
        let lanes = self.dims.1 / LANES;
        let mut i = 0;
        // SAFETY: rows of values are `lanes` times sixteen numbers, and so are the sums.
        unsafe {
            while R <= 4 && i + 4 <= lanes {
                self.add_columns::<L, 4>(scores, slot, range.clone(), i * LANES);
                i += 4;
            }
            while R > 4 && i + 2 <= lanes {
                self.add_columns::<L, 2>(scores, slot, range.clone(), i * LANES);
                i += 2;
            }
            while i < lanes {
                self.add_columns::<L, 1>(scores, slot, range.clone(), i * LANES);
                i += 1;
            }
        }
    }

    /// [`Self::add_values`] for `N` times sixteen numbers from column `column` on.
    #[inline(always)]
    unsafe fn add_columns<L: Lanes, const N: usize>(
        &mut self,
        scores: &Scores<R>,
        slot: usize,
        range: Range<usize>,
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
            for at in range {
                let value = self.values.as_ptr().add((slot + at) * value_dim + column);
                let mut v = [L::splat(0.0); N];
                for n in 0..N {
                    v[n] = T::load::<L>(value.add(n * LANES));
                }
                for r in 0..R {
                    let weight = L::splat(scores[r][at]);
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
    use crate::{KvType, testing::Random};

    #[test]
    fn all_forms_give_the_same_bits() {
        let pool = Pool::new(2);
        for (head_dim, kind) in [
            (64, KvType::F32),
            (20, KvType::F32),
            (128, KvType::F16),
            (80, KvType::Int8),
        ] {
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
                for level in Level::all_here() {
                    assert_eq!(at(level), at(Level::Plain), "{level:?} {head_dim} {kind:?}");
                }
            }
        }
    }
}
