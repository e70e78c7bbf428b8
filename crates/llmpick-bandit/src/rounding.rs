//! From marginals to a set: dependent (pairwise) rounding (ALGORITHMS 1.5).
//!
//! While two entries are fractional, one of them is pushed to 0 or 1 and the other takes up
//! the difference, with probabilities that keep both means. So E[1_k] = z_k, |S| = N exactly
//! where Σz = N, and entries are negatively correlated, hence E r_AWC(S) ≥ F(z),
//! E r_AIC(S) ≥ Π μ^z and E cost(S) = c·z.

use rand::RngCore;

use crate::chance::coin;

/// Entries this close to 0 or 1 are 0 or 1.
const SNAP: f64 = 1e-9;

/// Draws a set with these marginals: the indexes of its members, ascending. Entries are
/// clamped to [0, 1] and NaN counts as 0. This is all that a remote scheduler needs to know.
pub fn round(marginals: &[f64], rng: &mut (impl RngCore + ?Sized)) -> Vec<usize> {
    let mut z: Vec<f64> = marginals.iter().map(|z| snap(*z)).collect();
    let mut open = None;
    for k in 0..z.len() {
        if is_whole(z[k]) {
            continue;
        }
        open = match open {
            None => Some(k),
            Some(i) => {
                let pair = Pair::new(z[i], z[k]);
                let (zi, zk) = pair.result(coin(pair.up, rng));
                (z[i], z[k]) = (zi, zk);
                [i, k].into_iter().find(|&j| !is_whole(z[j]))
            }
        };
    }
    if let Some(i) = open {
        z[i] = f64::from(u8::from(coin(z[i], rng)));
    }
    (0..z.len()).filter(|&k| z[k] == 1.0).collect()
}

/// Marginals without the arms that are not `free`: their mass is dealt over the others.
///
/// Arms that are not free go to 0. Σz is kept where it can be: the free arms with z > 0 are
/// scaled up by one factor, those that reach 1 stay there and the rest goes on to the others.
/// An arm with z = 0 stays out, whatever happens: whoever solved for z may have had a reason
/// that is not known here. So Σz falls only where all that is left is at 1, and
/// E[1_k] = the new z_k after [`round`]. With every arm free nothing changes, to the bit.
pub fn redeal(marginals: &[f64], free: &[bool]) -> Vec<f64> {
    let is_free = |k: usize| free.get(k).copied().unwrap_or(false);
    let mut z: Vec<f64> = (0..marginals.len())
        .map(|k| if is_free(k) { marginals[k] } else { 0.0 })
        .collect();
    let mut missing: f64 = marginals.iter().sum::<f64>() - z.iter().sum::<f64>();
    // Each turn fills an arm up to 1 or deals the rest out.
    while missing > SNAP {
        let open = |z: f64| z > 0.0 && z < 1.0;
        let sum: f64 = z.iter().filter(|z| open(**z)).sum();
        if sum <= 0.0 {
            break;
        }
        let factor = 1.0 + missing / sum;
        for z in z.iter_mut().filter(|z| open(**z)) {
            let raised = (*z * factor).min(1.0);
            missing -= raised - *z;
            *z = raised;
        }
    }
    z
}

/// Every set that [`round`] may draw and its probability, for up to `limit` fractional
/// entries; `None` beyond, for there are 2^limit of them.
pub fn outcomes(marginals: &[f64], limit: usize) -> Option<Vec<(Vec<bool>, f64)>> {
    let z: Vec<f64> = marginals.iter().map(|z| snap(*z)).collect();
    if z.iter().filter(|z| !is_whole(**z)).count() > limit {
        return None;
    }
    let mut found = Vec::new();
    branch(z, 1.0, &mut found);
    Some(found)
}

fn branch(z: Vec<f64>, probability: f64, found: &mut Vec<(Vec<bool>, f64)>) {
    let mut open = (0..z.len()).filter(|&k| !is_whole(z[k]));
    let ways: Vec<(Vec<f64>, f64)> = match (open.next(), open.next()) {
        (None, _) => {
            let set: Vec<bool> = z.iter().map(|z| *z == 1.0).collect();
            match found.iter_mut().find(|(known, _)| *known == set) {
                Some((_, sum)) => *sum += probability,
                None => found.push((set, probability)),
            }
            return;
        }
        (Some(i), None) => {
            let to = |value: f64| {
                let mut y = z.clone();
                y[i] = value;
                y
            };
            vec![(to(1.0), z[i]), (to(0.0), 1.0 - z[i])]
        }
        (Some(i), Some(j)) => {
            let pair = Pair::new(z[i], z[j]);
            let to = |up: bool| {
                let mut y = z.clone();
                (y[i], y[j]) = pair.result(up);
                y
            };
            vec![(to(true), pair.up), (to(false), 1.0 - pair.up)]
        }
    };
    for (z, share) in ways {
        branch(z, probability * share, found);
    }
}

/// One step on two fractional entries: with probability `up` = b/(a+b) i gains a and j loses
/// it, else i loses b and j gains it; a = min(1−z_i, z_j), b = min(z_i, 1−z_j).
struct Pair {
    zi: f64,
    zj: f64,
    a: f64,
    b: f64,
    up: f64,
}

impl Pair {
    fn new(zi: f64, zj: f64) -> Self {
        let a = (1.0 - zi).min(zj);
        let b = zi.min(1.0 - zj);
        let up = b / (a + b);
        Self { zi, zj, a, b, up }
    }

    fn result(&self, up: bool) -> (f64, f64) {
        if up {
            (snap(self.zi + self.a), snap(self.zj - self.a))
        } else {
            (snap(self.zi - self.b), snap(self.zj + self.b))
        }
    }
}

#[inline]
fn is_whole(z: f64) -> bool {
    z == 0.0 || z == 1.0
}

#[inline]
fn snap(z: f64) -> f64 {
    if z.is_nan() || z < SNAP {
        0.0
    } else if z > 1.0 - SNAP {
        1.0
    } else {
        z
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chance::seeded;

    /// Draws often and holds frequencies, sizes and pair frequencies against z.
    fn check(z: &[f64], seed: u64) {
        let draws = 40_000;
        let n = f64::from(draws);
        let k = z.len();
        let (sum, mut rng) = (z.iter().sum::<f64>(), seeded(seed));
        let mut single = vec![0u32; k];
        let mut pairs = vec![0u32; k * k];
        for _ in 0..draws {
            let set = round(z, &mut rng);
            let size = set.len() as f64;
            assert!(
                size >= (sum - 1e-6).floor() && size <= (sum + 1e-6).ceil(),
                "{set:?}"
            );
            for &i in &set {
                single[i] += 1;
                for &j in &set {
                    pairs[i * k + j] += 1;
                }
            }
        }
        for i in 0..k {
            let frequency = f64::from(single[i]) / n;
            let tolerance = 4.5 * (z[i] * (1.0 - z[i]) / n).sqrt();
            assert!(
                (frequency - z[i]).abs() <= tolerance,
                "{frequency} for {}",
                z[i]
            );
            for j in (0..k).filter(|&j| j != i) {
                let product = z[i] * z[j];
                let sigma = (product * (1.0 - product) / n).sqrt();
                let together = f64::from(pairs[i * k + j]) / n;
                assert!(together <= product + 4.0 * sigma, "{i} and {j}: {together}");
            }
        }
    }

    #[test]
    fn keeps_marginals_sizes_and_negative_correlation() {
        check(&[0.0, 1.0, 0.3, 0.7], 1);
        check(&[0.2, 0.5, 0.6, 0.7, 1.0], 2);
        check(&[0.5; 6], 3);
        check(&[0.1, 0.9, 0.25, 0.75, 0.4, 0.6, 0.0], 4);
        check(&[0.3, 0.2, 0.1], 5); // Σz < 1: the empty set may be drawn
        check(&[0.9, 0.95, 0.4], 6);
    }

    #[test]
    fn crumbs_are_snapped_and_nonsense_is_out() {
        let mut rng = seeded(1);
        let z = [1.0 - 1e-12, 1e-12, f64::NAN, 7.0, -3.0];
        for _ in 0..100 {
            assert_eq!(round(&z, &mut rng), [0, 3]);
        }
        assert_eq!(round(&[], &mut rng), [0usize; 0]);
    }

    #[test]
    fn what_a_missing_arm_leaves_is_dealt_over_the_others() {
        let close = |got: Vec<f64>, want: &[f64]| {
            let near = got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(near && got.len() == want.len(), "{got:?} is not {want:?}");
        };
        let z = [0.4, 0.7, 0.6, 0.3];
        assert_eq!(redeal(&z, &[true; 4]), z);
        // 0.4 goes over 1.6: every share grows by a quarter.
        close(
            redeal(&z, &[false, true, true, true]),
            &[0.0, 0.875, 0.75, 0.375],
        );
        // 0.9 is raised to 1 and the rest goes to the other; 0 stays out.
        close(
            redeal(&[0.9, 0.5, 0.0, 0.6], &[true, true, true, false]),
            &[1.0, 1.0, 0.0, 0.0],
        );
        close(
            redeal(&[0.9, 0.3, 0.2, 0.0], &[true, true, false, true]),
            &[1.0, 0.4, 0.0, 0.0],
        );
        // Nobody can take it up.
        close(
            redeal(&[1.0, 1.0, 0.0], &[true, false, true]),
            &[1.0, 0.0, 0.0],
        );
        close(redeal(&z, &[false; 4]), &[0.0; 4]);
    }

    #[test]
    fn the_outcomes_are_what_is_drawn() {
        for z in [&[0.2, 0.5, 0.6, 0.7, 1.0][..], &[0.3, 0.2, 0.0], &[0.5; 4]] {
            let outcomes = outcomes(z, 8).unwrap();
            let total: f64 = outcomes.iter().map(|(_, p)| p).sum();
            assert!((total - 1.0).abs() < 1e-12);
            for (k, z) in z.iter().enumerate() {
                let marginal: f64 = outcomes.iter().filter(|(s, _)| s[k]).map(|(_, p)| p).sum();
                assert!((marginal - z).abs() < 1e-9, "{marginal} is not {z}");
            }
            let (draws, mut rng) = (20_000, seeded(8));
            let mut counts = vec![0u32; outcomes.len()];
            for _ in 0..draws {
                let set = round(z, &mut rng);
                let drawn: Vec<bool> = (0..z.len()).map(|k| set.contains(&k)).collect();
                counts[outcomes.iter().position(|(s, _)| *s == drawn).unwrap()] += 1;
            }
            for ((_, p), count) in outcomes.iter().zip(counts) {
                let frequency = f64::from(count) / f64::from(draws);
                let tolerance = 4.5 * (p * (1.0 - p) / f64::from(draws)).sqrt();
                assert!((frequency - p).abs() <= tolerance, "{frequency} is not {p}");
            }
        }
        assert_eq!(outcomes(&[0.5; 9], 8), None);
    }
}
