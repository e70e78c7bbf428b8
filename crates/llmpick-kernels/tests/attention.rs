//! Attention against the definition in `f64`, and against itself in pieces.
#![allow(clippy::unwrap_used)]

use llmpick_kernels::{AttentionSpec, KvCache, KvType, Pool, attention, testing::Random};
use proptest::prelude::*;

/// One layer's worth of random numbers.
struct Case {
    spec: AttentionSpec,
    kv_heads: usize,
    head_dim: usize,
    positions: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(kv_heads: usize, group: usize, head_dim: usize, positions: usize, seed: u64) -> Case {
        let mut random = Random::new(seed);
        let heads = kv_heads * group;
        let scale = 2.0 / (head_dim as f32).sqrt();
        Case {
            spec: AttentionSpec {
                heads,
                scale,
                window: None,
                softcap: None,
            },
            kv_heads,
            head_dim,
            positions,
            q: random.vec(positions * heads * head_dim),
            k: random.vec(positions * kv_heads * head_dim),
            v: random.vec(positions * kv_heads * head_dim),
        }
    }

    /// Feeds the positions in pieces of the given lengths, the last one repeated.
    fn run(&self, pool: &Pool, kind: KvType, pieces: &[usize]) -> Vec<f32> {
        let cache = KvCache::new(self.kv_heads, self.head_dim, kind);
        self.run_in(cache, pool, pieces)
    }

    /// As `run`, with room only for the window and the longest piece.
    fn run_ring(&self, pool: &Pool, kind: KvType, pieces: &[usize]) -> Vec<f32> {
        let most = pieces.iter().max().unwrap();
        let room = self.spec.window.unwrap() + most;
        let cache = KvCache::ring(self.kv_heads, self.head_dim, kind, room);
        self.run_in(cache, pool, pieces)
    }

    fn run_in(&self, mut cache: KvCache, pool: &Pool, pieces: &[usize]) -> Vec<f32> {
        let (wide, narrow) = (
            self.spec.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        );
        let mut out = vec![f32::NAN; self.q.len()];
        let (mut start, mut pieces) = (0, pieces.iter().copied());
        let mut piece = 1;
        while start < self.positions {
            piece = pieces.next().unwrap_or(piece);
            let end = (start + piece).min(self.positions);
            cache.write(
                start,
                &self.k[start * narrow..end * narrow],
                &self.v[start * narrow..end * narrow],
            );
            let out = &mut out[start * wide..end * wide];
            attention(
                pool,
                &self.spec,
                &self.q[start * wide..end * wide],
                start,
                &cache,
                out,
            );
            start = end;
        }
        assert_eq!(cache.len(), self.positions);
        out
    }

    /// The definition.
    fn exact(&self) -> Vec<f64> {
        let (heads, dim) = (self.spec.heads, self.head_dim);
        let group = heads / self.kv_heads;
        let mut out = vec![0.0; self.q.len()];
        for (row, out) in out.chunks_mut(dim).enumerate() {
            let (position, head) = (row / heads, row % heads);
            let at = |x: &[f32], j: usize, i: usize| {
                f64::from(x[(j * self.kv_heads + head / group) * dim + i])
            };
            let first = self
                .spec
                .window
                .map_or(0, |w| (position + 1).saturating_sub(w));
            let scores = (first..=position).map(|j| {
                let dot: f64 = (0..dim)
                    .map(|i| f64::from(self.q[row * dim + i]) * at(&self.k, j, i))
                    .sum();
                let score = dot * f64::from(self.spec.scale);
                self.spec.softcap.map_or(score, |cap| {
                    f64::from(cap) * (score / f64::from(cap)).tanh()
                })
            });
            let scores: Vec<f64> = scores.collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (j, score) in scores.iter().enumerate() {
                for (i, o) in out.iter_mut().enumerate() {
                    *o += (score - max).exp() / sum * at(&self.v, first + j, i);
                }
            }
        }
        out
    }

    fn check(&self, pool: &Pool, pieces: &[usize]) {
        let whole = self.run(pool, KvType::F32, &[self.positions]);
        for (o, e) in whole.iter().zip(self.exact()) {
            assert!((f64::from(*o) - e).abs() < 3e-6, "{o} instead of {e}");
        }
        let single = self.run(pool, KvType::F32, &[1]);
        assert_eq!(whole, single, "prefill and decode differ");
        assert_eq!(whole, self.run(pool, KvType::F32, pieces), "pieces differ");
        let half = self.run(pool, KvType::F16, &[self.positions]);
        assert_eq!(
            half,
            self.run(pool, KvType::F16, &[1]),
            "half: prefill and decode differ"
        );
        for (o, e) in half.iter().zip(self.exact()) {
            assert!((f64::from(*o) - e).abs() < 3e-3, "half: {o} instead of {e}");
        }
        let eight = self.run(pool, KvType::Int8, &[self.positions]);
        assert_eq!(
            eight,
            self.run(pool, KvType::Int8, pieces),
            "int8: pieces differ"
        );
        for (o, e) in eight.iter().zip(self.rounded().exact()) {
            assert!((f64::from(*o) - e).abs() < 5e-6, "int8: {o} instead of {e}");
        }
        if self.spec.window.is_some() {
            for (kind, wanted) in [
                (KvType::F32, &whole),
                (KvType::F16, &half),
                (KvType::Int8, &eight),
            ] {
                assert_eq!(
                    wanted,
                    &self.run_ring(pool, kind, pieces),
                    "{kind:?} in a ring"
                );
            }
        }
    }

    /// The case with keys and values as eight bits keep them.
    fn rounded(&self) -> Case {
        let round = |all: &[f32]| {
            let heads = all.chunks(self.head_dim).flat_map(|head| {
                let most = head.iter().fold(0f32, |m, x| m.max(x.abs()));
                let (scale, factor) = (most / 127.0, 127.0 / most);
                head.iter()
                    .map(move |x| (x * factor).round_ties_even() * scale)
            });
            heads.collect()
        };
        Case {
            spec: self.spec,
            q: self.q.clone(),
            k: round(&self.k),
            v: round(&self.v),
            ..*self
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn matches_the_definition(
        kv_heads in 1usize..4,
        group in 1usize..8,
        head_dim in prop::sample::select(vec![1usize, 8, 20, 32, 64, 80, 128, 256]),
        positions in 1usize..150,
        window in prop::option::of(1usize..100),
        softcap in prop::option::of(0.5f32..30.0),
        pieces in prop::collection::vec(1usize..40, 1..5),
        seed in any::<u64>(),
    ) {
        let mut case = Case::new(kv_heads, group, head_dim, positions, seed);
        case.spec.window = window;
        case.spec.softcap = softcap;
        case.check(&Pool::new(2), &pieces);
    }
}

#[test]
fn models_in_the_pool() {
    let pool = Pool::new(2);
    for (kv_heads, group, head_dim) in [(3, 3, 64), (1, 4, 256), (2, 7, 64), (2, 6, 128)] {
        let mut case = Case::new(kv_heads, group, head_dim, 300, 1);
        case.check(&pool, &[64, 1, 100]);
        case.spec.window = Some(128);
        case.check(&pool, &[200, 1]);
    }
}

#[test]
fn a_truncated_cache_forgets() {
    let pool = Pool::new(2);
    let case = Case::new(2, 2, 32, 70, 8);
    let expected = case.run(&pool, KvType::F32, &[70]);
    let mut cache = KvCache::new(2, 32, KvType::F32);
    let wrong = vec![5.0; 90 * 64];
    cache.write(0, &wrong, &wrong);
    cache.truncate(0);
    assert!(cache.is_empty());
    cache.write(0, &case.k, &case.v);
    let mut out = vec![0.0; case.q.len()];
    attention(&pool, &case.spec, &case.q, 0, &cache, &mut out);
    assert_eq!(out, expected);
    assert!(cache.size_bytes() >= 2 * 4 * 64 * 90);
}

#[test]
fn keys_made_on_the_way_give_the_same_bits() {
    let pool = Pool::new(3);
    let case = Case::new(2, 3, 20, 90, 8);
    let (narrow, wide) = (40, 120);
    for kind in [KvType::F32, KvType::F16, KvType::Int8] {
        for start in [0, 5, 16] {
            let mut plain = KvCache::new(2, 20, kind);
            let mut shared = plain.clone();
            for cache in [&mut plain, &mut shared] {
                cache.write(0, &case.k[..start * narrow], &case.v[..start * narrow]);
            }
            let (mut keys, mut queries) = (case.k[start * narrow..].to_vec(), case.q.clone());
            queries.drain(..start * wide);
            let turn = |first: usize, keys: &mut [f32], queries: &mut [f32]| {
                let rows = keys.chunks_mut(narrow).zip(queries.chunks_mut(wide));
                for (row, (key, query)) in (first..).zip(rows) {
                    key.iter_mut().for_each(|x| *x += row as f32);
                    query[0] = key[1];
                }
            };
            let (mut keys2, mut queries2) = (keys.clone(), queries.clone());
            turn(0, &mut keys, &mut queries);
            let values = &case.v[start * narrow..];
            plain.write(start, &keys, values);
            shared.write_ready(&pool, start, &mut keys2, values, &mut queries2, &turn);
            assert_eq!(queries, queries2);
            let read = |cache: &KvCache| {
                let mut out = vec![0.0; queries.len()];
                attention(&pool, &case.spec, &queries, start, cache, &mut out);
                out
            };
            assert_eq!(read(&plain), read(&shared), "{kind:?} {start}");
        }
    }
}

#[test]
fn large_scores_and_nan_do_not_crash() {
    let pool = Pool::new(2);
    let mut case = Case::new(1, 2, 64, 40, 4);
    case.q.iter_mut().for_each(|q| *q *= 1e4);
    let out = case.run(&pool, KvType::F32, &[40]);
    for (o, e) in out.iter().zip(case.exact()) {
        assert!((f64::from(*o) - e).abs() < 1e-3, "{o} instead of {e}");
    }
    case.q[3] = f32::NAN;
    case.k[64 * 20] = f32::INFINITY;
    case.v[64 * 5] = f32::NAN;
    case.run(&pool, KvType::F32, &[40]);
}
