//! Attention of new positions to a cache that grows in place.
//!
//! Scores are worked on 64 positions at a time with a running maximum
//! (online softmax), so a long prompt needs no matrix of them. Blocks begin at
//! multiples of 64 whatever the query, and what a query must not see adds an exact
//! zero: the order of its sums does not depend on its neighbours.
//!
//! A task takes several groups of queries through each step, so that its keys and values
//! are read from far once for all of them and then lie in the first-level cache.

#![allow(
    clippy::needless_range_loop,
    reason = "rows and lanes are counted, as in the formulas"
)]

use std::{cell::Cell, ops::Range};

use crate::{
    KvCache, Pool,
    cache::{LANES, Pair, STEP, Store, Stored},
    lanes::{Kernel, Lanes, Level, exp, exp_down, run},
    lines::Lines,
};

/// Most queries whose sums are in registers together, in any form.
const QUERIES: usize = 8;
/// Most groups of queries in a task.
const GROUPS: usize = 8;

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
    // All queries of a key head, position by position, are cut into tasks of whole groups.
    // With few of them the tasks are made smaller, or some threads would have none.
    let per_head = m * group;
    let at_once = run(level, MostQueries);
    let mut share = (per_head * cache.kv_heads)
        .div_ceil(3 * pool.threads())
        .clamp(1, GROUPS * at_once);
    if share > at_once {
        share -= share % at_once;
    }
    let tasks = per_head.div_ceil(share);
    let target = Output(out.as_mut_ptr());
    let target = &target;
    pool.run(tasks * cache.kv_heads, &|task| {
        // The last positions see the most: they come first, so that no thread is
        // left alone with them.
        let (kv_head, task) = (task % cache.kv_heads, tasks - 1 - task / cache.kv_heads);
        let rows = task * share..((task + 1) * share).min(per_head);
        let mut room = ROOM.take();
        let mut places = [(0, 0); GROUPS * QUERIES];
        for (place, row) in places.iter_mut().zip(rows.clone()) {
            let head = kv_head * group + row % group;
            *place = (
                start + row / group,
                (row / group * spec.heads + head) * cache.head_dim,
            );
        }
        let places = &places[..rows.len()];
        queries(level, spec, q, places, kv_head, cache, &mut room);
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

/// What a thread keeps between tasks, of each of its queries.
#[derive(Default)]
struct Room {
    q: Vec<f32>,
    /// They do not fall.
    positions: Vec<usize>,
    /// Sums of weighted values, `value_dim` for each query.
    acc: Lines<f32>,
    /// The largest score so far.
    max: Vec<f32>,
    /// The sum of weights, relative to `max`, in sixteen parts.
    total: Lines<f32>,
}

thread_local! {
    static ROOM: Cell<Room> = Cell::default();
}

/// Runs the queries of a task, all of one key head, given as position and offset in
/// `q`; the results are left in `room.acc`.
fn queries(
    level: Level,
    spec: &AttentionSpec,
    q: &[f32],
    places: &[(usize, usize)],
    kv_head: usize,
    cache: &KvCache,
    room: &mut Room,
) {
    room.q.clear();
    room.positions.clear();
    for (position, at) in places {
        let q = &q[*at..*at + cache.head_dim];
        room.q.extend(q.iter().map(|x| x * spec.scale));
        room.positions.push(*position);
    }
    room.acc.reset(places.len() * cache.value_dim);
    room.max.clear();
    room.max.resize(places.len(), f32::NEG_INFINITY);
    room.total.reset(places.len() * LANES);
    match &cache.store {
        Store::Int8(pair) => steps(level, spec, cache, pair, kv_head, room),
        Store::F16(pair) => steps(level, spec, cache, pair, kv_head, room),
        Store::F32(pair) => steps(level, spec, cache, pair, kv_head, room),
    }
    let totals = room.total.chunks_exact(LANES);
    for (acc, total) in room.acc.chunks_exact_mut(cache.value_dim).zip(totals) {
        let factor = 1.0 / total.iter().sum::<f32>();
        acc.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Takes the queries through all steps that any of them sees, group by group.
fn steps<T: Stored>(
    level: Level,
    spec: &AttentionSpec,
    cache: &KvCache,
    pair: &Pair<T>,
    kv_head: usize,
    room: &mut Room,
) {
    let at_once = run(level, MostQueries);
    let (head_dim, value_dim) = (cache.head_dim, cache.value_dim);
    let Room {
        q,
        positions,
        acc,
        max,
        total,
    } = room;
    let (Some(first), Some(last)) = (positions.first(), positions.last()) else {
        return;
    };
    for base in (first_seen(spec, *first) / STEP * STEP..=*last).step_by(STEP) {
        for begin in (0..positions.len()).step_by(at_once) {
            let rows = begin..(begin + at_once).min(positions.len());
            let positions = &positions[rows.clone()];
            let seen = first_seen(spec, positions[0])..positions[positions.len() - 1] + 1;
            if seen.end <= base || base + STEP <= seen.start {
                continue;
            }
            macro_rules! go {
                ($($n:literal)+) => {
                    match positions.len() {
                        $($n => run(level, Step::<_, $n> {
                            spec,
                            dims: (head_dim, value_dim),
                            q: &q[rows.start * head_dim..rows.end * head_dim],
                            positions,
                            seen,
                            base,
                            keys: head_of(&pair.keys, kv_head, cache.kv_heads),
                            values: head_of(&pair.values, kv_head, cache.kv_heads),
                            key_scales: head_of(&pair.key_scales, kv_head, cache.kv_heads),
                            value_scales: head_of(&pair.value_scales, kv_head, cache.kv_heads),
                            capacity: cache.capacity,
                            acc: &mut acc[rows.start * value_dim..rows.end * value_dim],
                            max: &mut max[rows.clone()],
                            total: &mut total[rows.start * LANES..rows.end * LANES],
                        }),)+
                        other => unreachable!("a group has 1 to {QUERIES} queries, not {other}"),
                    }
                };
            }
            go!(1 2 3 4 5 6 7 8);
        }
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

/// `R` queries and one step of the keys and values of a head.
struct Step<'a, T, const R: usize> {
    spec: &'a AttentionSpec,
    /// Numbers in a key, and in a row of values with its padding.
    dims: (usize, usize),
    q: &'a [f32],
    /// Of each query; they do not fall.
    positions: &'a [usize],
    /// Positions that any of the queries sees, some of which are in the step.
    seen: Range<usize>,
    /// The first position of the step.
    base: usize,
    keys: &'a [T],
    values: &'a [T],
    /// Of each slot, for numbers that are scaled.
    key_scales: &'a [f32],
    value_scales: &'a [f32],
    /// Slots. Positions beyond them begin again at the first.
    capacity: usize,
    /// See [`Room`].
    acc: &'a mut [f32],
    max: &'a mut [f32],
    total: &'a mut [f32],
}

/// Scores of a step, later weights.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Scores([f32; STEP]);

impl<T: Stored, const R: usize> Kernel for Step<'_, T, R> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<L: Lanes>(mut self) {
        // Groups are never larger; this keeps the compiler from making the code.
        if R > most_queries::<L>() {
            return;
        }
        let (head_dim, value_dim) = self.dims;
        assert!(self.positions.len() == R && self.max.len() == R);
        assert!(self.total.len() == R * LANES);
        assert!(R <= QUERIES && value_dim.is_multiple_of(LANES));
        assert!(self.q.len() >= R * head_dim && self.acc.len() >= R * value_dim);
        // Slots are counted in steps, so a step that has begun is there as a whole.
        let (room, base) = (self.capacity, self.base);
        assert!(room > 0 && room.is_multiple_of(STEP) && base.is_multiple_of(STEP));
        assert!(self.keys.len() >= room * head_dim && self.values.len() >= room * value_dim);
        if T::SCALED {
            assert!(self.key_scales.len() >= room && self.value_scales.len() >= room);
        }
        assert!(self.seen.start < base + STEP && base < self.seen.end);
        let (from, to) = (self.seen.start.max(base), self.seen.end.min(base + STEP));
        let slot = base % room;
        let mut scores = [Scores([0.0; STEP]); R];
        // SAFETY: the lengths were compared above, and `slot` begins a step of the
        // `room` slots there are.
        unsafe {
            score::<L, T, R>(self.q, self.keys, head_dim, slot, to - base, &mut scores);
            if T::SCALED {
                for scores in &mut scores {
                    rescale::<L>(&mut scores.0, &self.key_scales[slot..slot + STEP]);
                }
            }
            for r in 0..R {
                let sees = first_seen(self.spec, self.positions[r])..self.positions[r] + 1;
                mask(self.spec, base, sees, &mut scores[r].0);
                let acc = &mut self.acc[r * value_dim..(r + 1) * value_dim];
                let total = &mut self.total[r * LANES..(r + 1) * LANES];
                weigh::<L>(&mut scores[r].0, &mut self.max[r], total, acc);
            }
            if T::SCALED {
                for scores in &mut scores {
                    rescale::<L>(&mut scores.0, &self.value_scales[slot..slot + STEP]);
                }
            }
            self.add_values::<L>(&scores, slot, from - base..to - base);
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
    scores: &mut [Scores; R],
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
                let to = scores[r].0.as_mut_ptr().add(at);
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

/// Caps the scores of a step, and makes those outside of `sees` −∞.
#[inline(always)]
fn mask(spec: &AttentionSpec, base: usize, sees: std::ops::Range<usize>, scores: &mut [f32; STEP]) {
    let from = sees.start.saturating_sub(base).min(STEP);
    let to = sees.end.saturating_sub(base).clamp(from, STEP);
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

/// Turns scores into weights relative to the maximum so far, and shrinks what was summed
/// where that rises.
#[inline(always)]
unsafe fn weigh<L: Lanes>(
    scores: &mut [f32; STEP],
    max: &mut f32,
    total: &mut [f32],
    acc: &mut [f32],
) {
    assert!(total.len() == LANES);
    // SAFETY: a step is four times sixteen numbers, `total` sixteen, and `acc` whole lanes.
    unsafe {
        let p = scores.as_mut_ptr();
        let s = [
            L::load(p),
            L::load(p.add(LANES)),
            L::load(p.add(2 * LANES)),
            L::load(p.add(3 * LANES)),
        ];
        let top = L::max(L::max(s[0], s[1]), L::max(s[2], s[3]));
        // After the first steps the maximum hardly ever rises.
        if *max == f32::NEG_INFINITY || L::any_above(top, L::splat(*max)) {
            let step_max = L::largest(top);
            let new = if *max > step_max { *max } else { step_max };
            if new == f32::NEG_INFINITY {
                // Nothing to see in this step: as if it had not been looked at.
                scores.fill(0.0);
                return;
            }
            let shrink = exp::<L>(L::splat(*max - new));
            for x in acc.as_chunks_mut::<LANES>().0 {
                L::store(x.as_mut_ptr(), L::mul(L::load(x.as_ptr()), shrink));
            }
            L::store(total.as_mut_ptr(), L::mul(L::load(total.as_ptr()), shrink));
            *max = new;
        }
        let max = L::splat(*max);
        let w = [
            exp_down::<L>(L::sub(s[0], max)),
            exp_down::<L>(L::sub(s[1], max)),
            exp_down::<L>(L::sub(s[2], max)),
            exp_down::<L>(L::sub(s[3], max)),
        ];
        L::store(p, w[0]);
        L::store(p.add(LANES), w[1]);
        L::store(p.add(2 * LANES), w[2]);
        L::store(p.add(3 * LANES), w[3]);
        let sum = L::add(L::add(w[0], w[1]), L::add(w[2], w[3]));
        L::store(total.as_mut_ptr(), L::add(L::load(total.as_ptr()), sum));
    }
}

impl<T: Stored, const R: usize> Step<'_, T, R> {
    /// Adds the weighted values of some positions of the step that begins at `slot`.
    #[inline(always)]
    unsafe fn add_values<L: Lanes>(
        &mut self,
        scores: &[Scores; R],
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
        scores: &[Scores; R],
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
                    let weight = L::splat(scores[r].0[at]);
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
