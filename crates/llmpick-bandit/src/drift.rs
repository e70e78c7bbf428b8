//! Has an arm become worse? Page–Hinkley's test (Page 1954) on its rewards.
//!
//! m_t = Σ (x_i − x̄_{i−1})/s + δ climbs by δ a step while nothing changes; its fall from its
//! highest point so far beyond λ is drift. Deviations are counted in standard deviations, so
//! that one pair (δ, λ) suits scores of 0 or 1 and smooth ones alike. Only a fall is looked for:
//! who has settled on one arm sees nothing of the others.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, exact};

/// When to speak of drift.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriftConfig {
    /// δ in standard deviations: slower falls are let pass.
    pub tolerance: f64,
    /// λ in standard deviations: more is slower and surer. A false alarm within n rewards has
    /// a probability of about n·δ²·e^(−2δλ).
    pub threshold: f64,
}

impl Default for DriftConfig {
    /// A fall by two standard deviations is seen after about 15 rewards.
    fn default() -> Self {
        Self {
            tolerance: 0.25,
            threshold: 25.0,
        }
    }
}

impl DriftConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let range = "a number from 0 to 10";
        ConfigError::check("drift_tolerance", self.tolerance, 0.0..=10.0, range)?;
        let range = "a number from 1 to 1000";
        ConfigError::check("drift_threshold", self.threshold, 1.0..=1000.0, range)
    }
}

/// So many rewards make a mean to fall from.
const WARM_UP: f64 = 20.0;

/// The deviation to begin with, worth so many rewards as the warm-up has: twenty scores of 1
/// in a row do not prove that there is none.
const PRIOR_DEVIATION: f64 = 0.35;

/// The test's running numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    #[serde(with = "exact")]
    count: f64,
    #[serde(with = "exact")]
    mean: f64,
    /// Σ (x − x̄)², by Welford's update.
    #[serde(with = "exact")]
    squares: f64,
    /// m_t.
    #[serde(with = "exact")]
    sum: f64,
    /// The largest m so far.
    #[serde(with = "exact")]
    top: f64,
}

impl Watch {
    /// Takes a reward in; true where it has fallen for good.
    pub fn push(&mut self, x: f64, config: &DriftConfig) -> bool {
        if self.count >= WARM_UP {
            let prior = WARM_UP * PRIOR_DEVIATION * PRIOR_DEVIATION;
            let deviation = ((self.squares + prior) / (self.count + WARM_UP)).sqrt();
            self.sum += (x - self.mean) / deviation + config.tolerance;
            self.top = self.top.max(self.sum);
        }
        self.count += 1.0;
        let off = x - self.mean;
        self.mean += off / self.count;
        self.squares += off * (x - self.mean);
        self.top - self.sum > config.threshold
    }

    pub(crate) fn is_new(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn is_sound(&self) -> bool {
        let numbers = [self.count, self.mean, self.squares, self.sum, self.top];
        let finite = numbers.iter().all(|x| x.is_finite());
        finite && self.count >= 0.0 && self.squares >= -1e-9 && self.top >= self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::{coin, normal, seeded};
    use rand_pcg::Pcg64Mcg;

    /// The first alarm within `limit` rewards.
    fn alarm(
        limit: u32,
        seed: u64,
        mut draw: impl FnMut(u32, &mut Pcg64Mcg) -> f64,
    ) -> Option<u32> {
        let (mut watch, mut rng) = (Watch::default(), seeded(seed));
        (0..limit).find(|&t| watch.push(draw(t, &mut rng), &DriftConfig::default()))
    }

    #[test]
    fn a_fall_is_seen_soon_and_noise_is_not() {
        let smooth = |mean: f64, rng: &mut Pcg64Mcg| (mean + 0.15 * normal(rng)).clamp(0.0, 1.0);
        let binary = |mean: f64, rng: &mut Pcg64Mcg| f64::from(u8::from(coin(mean, rng)));
        let seeds = 200;
        let count = |limit, draw: &dyn Fn(u32, &mut Pcg64Mcg) -> f64| {
            let alarms = (0..seeds).filter_map(|seed| alarm(limit, seed, draw));
            let mut alarms: Vec<u32> = alarms.collect();
            alarms.sort_unstable();
            alarms
        };
        // Ten thousand rewards without a change: at most one session in twenty is woken.
        for draw in [smooth, binary] {
            let false_alarms = count(10_000, &|_, rng| draw(0.8, rng)).len();
            println!("{false_alarms} false alarms");
            assert!(false_alarms <= seeds as usize / 20, "{false_alarms}");
        }
        // From .8 to .4 after 300: always seen, within 40 and 80 rewards in half of the sessions.
        for (draw, within) in [(smooth as fn(f64, &mut Pcg64Mcg) -> f64, 40), (binary, 80)] {
            let fall = |t, rng: &mut Pcg64Mcg| draw(if t < 300 { 0.8 } else { 0.4 }, rng);
            let seen = count(2000, &fall);
            let median = seen[seen.len() / 2];
            println!("{} seen, median {median}", seen.len());
            assert!(seen.len() >= seeds as usize * 98 / 100, "{}", seen.len());
            assert!((300..=300 + within).contains(&median), "{median}");
        }
        // Always the same, then always nothing.
        assert!(alarm(100, 1, |t, _| if t < 50 { 0.5 } else { 0.0 }).is_some());
        assert_eq!(alarm(1000, 1, |_, _| 0.5), None);
    }
}
