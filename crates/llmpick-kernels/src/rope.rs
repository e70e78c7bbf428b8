//! Rotary position embedding.
//!
//! A pair of numbers at index `i` of a head is turned by `position · base^(−2i/d)`.
//! Angles are computed in `f64` and rounded once: in `f32` the angle alone is off
//! by 1e-3 at position 10,000.

/// Which numbers of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Neighbours, `(2i, 2i + 1)`: llama and mistral, as GGUF stores them.
    Norm,
    /// The two halves, `(i, i + d/2)`: qwen2, gemma, phi3.
    Neox,
}

/// Cosines and sines by position.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// Radians per position for each pair.
    frequencies: Vec<f64>,
    /// What the cosines and sines are multiplied by.
    magnitude: f64,
    /// For each position the cosines of all pairs, then their sines.
    turns: Vec<f32>,
}

impl RopeTable {
    /// A table for the first `rotary_dim` numbers of each head (the whole head in
    /// most models), with the base frequency `base` and no positions yet.
    pub fn new(rotary_dim: usize, base: f32) -> RopeTable {
        RopeTable::scaled(rotary_dim, base, 1.0, &[])
    }

    /// As [`RopeTable::new`], every angle multiplied by `position_scale` (linear
    /// scaling by a factor f is 1/f) and divided by its entry in `factors`, one
    /// per pair (`rope_freqs.weight`); no entries mean 1.
    pub fn scaled(rotary_dim: usize, base: f32, position_scale: f32, factors: &[f32]) -> RopeTable {
        let frequencies = (0..rotary_dim / 2).map(|i| {
            let factor = factors.get(i).map_or(1.0, |f| f64::from(*f));
            let exponent = -2.0 * i as f64 / rotary_dim as f64;
            f64::from(base).powf(exponent) * f64::from(position_scale) / factor
        });
        RopeTable::with_frequencies(frequencies.collect(), 1.0)
    }

    /// A table with the radians per position of each pair as given. Turned numbers are
    /// multiplied by `magnitude`: YaRN and LongRoPE sharpen attention that way.
    pub fn with_frequencies(frequencies: Vec<f64>, magnitude: f64) -> RopeTable {
        RopeTable {
            frequencies,
            magnitude,
            turns: Vec::new(),
        }
    }

    /// Positions that the table holds.
    pub fn positions(&self) -> usize {
        self.turns.len() / (2 * self.frequencies.len()).max(1)
    }

    /// Makes sure that positions below `positions` are in the table; it grows by at
    /// least half, so that one call per token is cheap.
    pub fn reserve(&mut self, positions: usize) {
        let have = self.positions();
        if positions <= have || self.frequencies.is_empty() {
            return;
        }
        for position in have..positions.max(have + have / 2).max(64) {
            self.turns.extend(self.turns_at(position));
        }
    }

    /// Cosines and sines at some positions, one row of pairs for each.
    pub fn cos_sin(&self, positions: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let pairs = self.frequencies.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            let turns = self.turns_at(position);
            cos.extend_from_slice(&turns[..pairs]);
            sin.extend_from_slice(&turns[pairs..]);
        }
        (cos, sin)
    }

    /// Cosines and sines at `position`, computed.
    fn turns_at(&self, position: usize) -> Vec<f32> {
        let angles = self
            .frequencies
            .iter()
            .map(|f| (f * position as f64).sin_cos());
        let size = self.magnitude;
        let (sines, mut turns): (Vec<f32>, Vec<f32>) = angles
            .map(|(sin, cos)| ((sin * size) as f32, (cos * size) as f32))
            .unzip();
        turns.extend(sines);
        turns
    }
}

/// Turns `x`, `heads × head_dim` numbers of one position, in place.
///
/// Positions that [`RopeTable::reserve`] has not reached give the same numbers,
/// slower. Numbers of a head past the table's rotary width stay as they are.
///
/// # Panics
/// If `x` is not `heads × head_dim` long or the rotary width exceeds `head_dim`.
pub fn rope(
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    position: usize,
    table: &RopeTable,
    kind: RopeKind,
) {
    let pairs = table.frequencies.len();
    assert_eq!(x.len(), heads * head_dim, "x must be heads × head_dim");
    assert!(2 * pairs <= head_dim, "a head must hold the rotary width");
    if pairs == 0 {
        return;
    }
    let at = position.saturating_mul(2 * pairs);
    let computed;
    let turns = match table.turns.get(at..at.saturating_add(2 * pairs)) {
        Some(turns) => turns,
        None => {
            computed = table.turns_at(position);
            &computed
        }
    };
    let (cos, sin) = turns.split_at(pairs);
    for head in x.chunks_exact_mut(head_dim) {
        match kind {
            RopeKind::Norm => {
                let (head, _) = head[..2 * pairs].as_chunks_mut::<2>();
                for ((pair, cos), sin) in head.iter_mut().zip(cos).zip(sin) {
                    *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
                }
            }
            RopeKind::Neox => {
                let (first, second) = head[..2 * pairs].split_at_mut(pairs);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
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
    fn matches_the_definition() {
        let (heads, head_dim, base) = (3, 8, 10_000.0f32);
        for rotary in [8, 4] {
            for kind in [RopeKind::Norm, RopeKind::Neox] {
                for position in [0usize, 1, 7, 100, 9_999] {
                    let x = Random::new(position as u64).vec(heads * head_dim);
                    let mut ours = x.clone();
                    let mut table = RopeTable::new(rotary, base);
                    rope(&mut ours, heads, head_dim, position, &table, kind);
                    let mut reserved = x.clone();
                    table.reserve(position + 1);
                    assert!(table.positions() > position);
                    rope(&mut reserved, heads, head_dim, position, &table, kind);
                    assert_eq!(ours, reserved);
                    for head in 0..heads {
                        let at = |i: usize| f64::from(x[head * head_dim + i]);
                        let mut expected: Vec<f64> = (0..head_dim).map(at).collect();
                        for i in 0..rotary / 2 {
                            let (a, b) = match kind {
                                RopeKind::Norm => (2 * i, 2 * i + 1),
                                RopeKind::Neox => (i, i + rotary / 2),
                            };
                            let f = f64::from(base).powf(-2.0 * i as f64 / rotary as f64);
                            let angle = position as f64 * f;
                            expected[a] = at(a) * angle.cos() - at(b) * angle.sin();
                            expected[b] = at(a) * angle.sin() + at(b) * angle.cos();
                        }
                        for (i, e) in expected.iter().enumerate() {
                            let o = f64::from(ours[head * head_dim + i]);
                            assert!((o - e).abs() < 1e-6, "{kind:?} {position} {i}: {o} {e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn scaling_divides_the_position() {
        let mut x = [1.0, 0.0, 1.0, 0.0];
        let mut y = x;
        let scaled = RopeTable::scaled(4, 100.0, 0.25, &[1.0, 2.0]);
        rope(&mut x, 1, 4, 8, &scaled, RopeKind::Norm);
        let plain = RopeTable::new(4, 100.0);
        rope(&mut y, 1, 4, 2, &plain, RopeKind::Norm);
        assert_eq!(x[..2], y[..2]);
        rope(&mut y, 1, 4, 0, &plain, RopeKind::Norm);
        let half = (0.1f64).cos() as f32; // 8 · ¼ · 100^(−½) / 2
        assert!((x[2] - half).abs() < 1e-6);
        let mut z = [1.0, 0.0, 1.0, 0.0];
        let grown = RopeTable::with_frequencies(vec![0.25, 0.0125], 1.5);
        rope(&mut z, 1, 4, 8, &grown, RopeKind::Norm);
        for (z, x) in z.iter().zip(x) {
            assert!((z - 1.5 * x).abs() < 1e-6);
        }
    }
}
