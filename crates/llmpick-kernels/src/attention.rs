//! Attention of new positions to a cache that grows in place.

use half::f16;

use crate::{Pool, ops};

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
    len: usize,
    capacity: usize,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    F16 { keys: Vec<f16>, values: Vec<f16> },
    F32 { keys: Vec<f32>, values: Vec<f32> },
}

impl KvCache {
    /// An empty cache for `kv_heads` heads of `head_dim` numbers.
    ///
    /// # Panics
    /// If either is zero.
    pub fn new(kv_heads: usize, head_dim: usize, kind: KvType) -> KvCache {
        assert!(kv_heads > 0 && head_dim > 0, "a cache needs heads");
        let store = match kind {
            KvType::F16 => Store::F16 {
                keys: Vec::new(),
                values: Vec::new(),
            },
            KvType::F32 => Store::F32 {
                keys: Vec::new(),
                values: Vec::new(),
            },
        };
        KvCache {
            kv_heads,
            head_dim,
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
            Store::F16 { .. } => 2,
            Store::F32 { .. } => 4,
        };
        2 * each * self.kv_heads * self.head_dim * self.capacity
    }

    /// Makes room for `positions` positions.
    pub fn reserve(&mut self, positions: usize) {
        if positions <= self.capacity {
            return;
        }
        let capacity = positions.max(2 * self.capacity).next_multiple_of(GRAIN);
        let (heads, from, to) = (
            self.kv_heads,
            self.capacity * self.head_dim,
            capacity * self.head_dim,
        );
        match &mut self.store {
            Store::F16 { keys, values } => {
                *keys = restride(keys, heads, from, to);
                *values = restride(values, heads, from, to);
            }
            Store::F32 { keys, values } => {
                *keys = restride(keys, heads, from, to);
                *values = restride(values, heads, from, to);
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
        for (i, (k, v)) in keys
            .chunks_exact(width)
            .zip(values.chunks_exact(width))
            .enumerate()
        {
            for head in 0..self.kv_heads {
                let part = head * self.head_dim..(head + 1) * self.head_dim;
                let at = (head * self.capacity + start + i) * self.head_dim;
                match &mut self.store {
                    Store::F16 { keys, values } => {
                        for (j, from) in part.enumerate() {
                            keys[at + j] = f16::from_f32(k[from]);
                            values[at + j] = f16::from_f32(v[from]);
                        }
                    }
                    Store::F32 { keys, values } => {
                        keys[at..at + self.head_dim].copy_from_slice(&k[part.clone()]);
                        values[at..at + self.head_dim].copy_from_slice(&v[part]);
                    }
                }
            }
        }
        self.len = start + m;
    }

    fn row(&self, head: usize, position: usize, key: bool) -> impl Iterator<Item = f32> + '_ {
        let at = (head * self.capacity + position) * self.head_dim;
        (at..at + self.head_dim).map(move |i| match (&self.store, key) {
            (Store::F16 { keys, .. }, true) => keys[i].to_f32(),
            (Store::F16 { values, .. }, false) => values[i].to_f32(),
            (Store::F32 { keys, .. }, true) => keys[i],
            (Store::F32 { values, .. }, false) => values[i],
        })
    }
}

/// Room grows by whole multiples of this many positions.
const GRAIN: usize = 64;

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
    let (heads, head_dim) = (spec.heads, cache.head_dim);
    let width = heads * head_dim;
    assert_eq!(q.len(), out.len(), "q and out must have the same length");
    assert!(
        heads > 0 && heads.is_multiple_of(cache.kv_heads),
        "heads must share key heads evenly"
    );
    assert!(q.len().is_multiple_of(width), "q must be whole positions");
    assert!(
        start + q.len() / width <= cache.len,
        "keys must be written before they are read"
    );
    let group = heads / cache.kv_heads;
    let target = Output(out.as_mut_ptr());
    let target = &target;
    pool.run(q.len() / head_dim, &|task| {
        let (position, head) = (start + task / heads, task % heads);
        let q = &q[task * head_dim..][..head_dim];
        // SAFETY: `out` is as long as `q`, and each task has its own part of it.
        let out =
            unsafe { std::slice::from_raw_parts_mut(target.0.add(task * head_dim), head_dim) };
        one_head(spec, q, position, head / group, cache, out);
    });
}

/// The output of attention, written by several tasks at different places.
struct Output(*mut f32);
// SAFETY: the tasks write disjoint parts.
unsafe impl Sync for Output {}

/// One query of one head, by online softmax.
fn one_head(
    spec: &AttentionSpec,
    q: &[f32],
    position: usize,
    kv_head: usize,
    cache: &KvCache,
    out: &mut [f32],
) {
    let first = spec
        .window
        .map_or(0, |window| (position + 1).saturating_sub(window));
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0f32);
    out.fill(0.0);
    for j in first..=position {
        let mut score: f32 = q
            .iter()
            .zip(cache.row(kv_head, j, true))
            .map(|(q, k)| q * k)
            .sum::<f32>()
            * spec.scale;
        if let Some(cap) = spec.softcap {
            ops::softcap(std::slice::from_mut(&mut score), cap);
        }
        if score > max {
            let shrink = (max - score).exp();
            max = score;
            sum *= shrink;
            ops::scale(out, shrink);
        }
        let weight = (score - max).exp();
        sum += weight;
        for (o, v) in out.iter_mut().zip(cache.row(kv_head, j, false)) {
            *o += weight * v;
        }
    }
    ops::scale(out, 1.0 / sum);
}
