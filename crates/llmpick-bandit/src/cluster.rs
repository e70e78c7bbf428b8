//! Contexts out of feature vectors: online leader clustering (Hartigan 1975), bounded.
//!
//! A vector far from every centre founds a cluster, while there is room; any other moves the
//! centre of the nearest one by 1/n. "Far" is a share of the spread of all vectors so far, so
//! that features need no particular scale. Clusters change in `observe` alone, in the order of
//! the observations, hence replaying them rebuilds the same ones.

use serde::{Deserialize, Serialize};

use crate::{ConfigError, exact};

/// How vectors become contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Most clusters, from 1.
    pub most: u32,
    /// A vector farther than this share of the root mean square distance from the mean of all
    /// founds a cluster.
    pub radius: f64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            most: 16,
            radius: 0.7,
        }
    }
}

impl ClusterConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let (most, range) = (f64::from(self.most), "a whole number from 1 to 256");
        ConfigError::check("clusters", most, 1.0..=256.0, range)?;
        let range = "a number from 0 to 100";
        ConfigError::check("cluster_radius", self.radius, 0.0..=100.0, range)
    }
}

/// So many vectors tell the spread before the first cluster is founded.
const WARM_UP: u64 = 20;

/// What was learnt of the vectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clusters {
    /// Of all vectors.
    all: Centre,
    /// Σ of the squared distances from the running mean, by Welford's update.
    #[serde(with = "exact")]
    spread: f64,
    found: Vec<Cluster>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Centre {
    count: u64,
    mean: Vec<Exact>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Cluster {
    /// Names the context.
    name: String,
    #[serde(flatten)]
    centre: Centre,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Exact(#[serde(with = "exact")] f64);

impl Clusters {
    /// The context of a vector, if it has one: the nearest cluster's name.
    pub fn context(&self, features: &[f32]) -> Option<&str> {
        let (place, _) = self.nearest(features)?;
        self.found.get(place).map(|cluster| cluster.name.as_str())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// True before the first.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn is_new(&self) -> bool {
        self.all.count == 0
    }

    /// Takes a vector in. One of another length than the first is let pass.
    pub fn observe(&mut self, features: &[f32], config: &ClusterConfig) {
        let fits = self.all.count == 0 || features.len() == self.all.mean.len();
        if features.is_empty() || !fits || !features.iter().all(|x| x.is_finite()) {
            return;
        }
        self.spread += self.all.push(features);
        if self.all.count < WARM_UP {
            return;
        }
        let far = config.radius * config.radius * self.spread / self.all.count as f64;
        match self.nearest(features) {
            Some((place, distance))
                if distance <= far || self.found.len() >= config.most as usize =>
            {
                if let Some(cluster) = self.found.get_mut(place) {
                    cluster.centre.push(features);
                }
            }
            _ => {
                let mut centre = Centre::default();
                centre.push(features);
                let name = format!("cluster {}", self.found.len() + 1);
                self.found.push(Cluster { name, centre });
            }
        }
    }

    /// The nearest cluster, of equals the first, and its squared distance.
    fn nearest(&self, features: &[f32]) -> Option<(usize, f64)> {
        if features.len() != self.all.mean.len() {
            return None;
        }
        let distances = self
            .found
            .iter()
            .map(|cluster| cluster.centre.distance(features));
        distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))
    }

    pub(crate) fn is_sound(&self) -> bool {
        let finite = |centre: &Centre| {
            centre.mean.len() == self.all.mean.len() && centre.mean.iter().all(|x| x.0.is_finite())
        };
        let found = self.found.iter().all(|cluster| finite(&cluster.centre));
        finite(&self.all) && found && self.spread.is_finite() && self.spread >= 0.0
    }
}

impl Centre {
    /// Moves by 1/n; answers the product of the distances before and after, whose sum is the
    /// spread.
    fn push(&mut self, features: &[f32]) -> f64 {
        if self.mean.is_empty() {
            self.mean.extend(features.iter().map(|_| Exact(0.0)));
        }
        self.count += 1;
        let mut spread = 0.0;
        for (mean, &x) in self.mean.iter_mut().zip(features) {
            let off = f64::from(x) - mean.0;
            mean.0 += off / self.count as f64;
            spread += off * (f64::from(x) - mean.0);
        }
        spread
    }

    fn distance(&self, features: &[f32]) -> f64 {
        let pairs = self.mean.iter().zip(features);
        pairs
            .map(|(mean, &x)| (f64::from(x) - mean.0) * (f64::from(x) - mean.0))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chance::{below, normal, seeded};

    #[test]
    fn groups_are_found_whatever_their_scale_and_never_too_many() {
        for scale in [1e-3f32, 1.0, 1e4] {
            let mut rng = seeded(3);
            let mut clusters = Clusters::default();
            let groups: Vec<Vec<f32>> = (0..4)
                .map(|_| (0..8).map(|_| scale * normal(&mut rng) as f32).collect())
                .collect();
            let mut draw = |group: usize| -> Vec<f32> {
                let noise = |x: &f32| x + 0.15 * scale * normal(&mut rng) as f32;
                groups[group].iter().map(noise).collect()
            };
            let config = ClusterConfig::default();
            for i in 0..400 {
                clusters.observe(&draw(i % 4), &config);
            }
            assert_eq!(clusters.len(), 4, "{scale}");
            let names: Vec<String> = (0..4)
                .map(|group| clusters.context(&draw(group)).unwrap().to_owned())
                .collect();
            for (group, name) in names.iter().enumerate() {
                for _ in 0..50 {
                    assert_eq!(clusters.context(&draw(group)).unwrap(), name);
                }
            }
            let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
            assert_eq!(distinct.len(), 4);
        }
        // Noise alone: as many as allowed at the most.
        let mut clusters = Clusters::default();
        let config = ClusterConfig {
            most: 5,
            radius: 0.1,
        };
        let mut rng = seeded(4);
        for _ in 0..500 {
            clusters.observe(
                &[below(100, &mut rng) as f32, normal(&mut rng) as f32],
                &config,
            );
        }
        assert_eq!(clusters.len(), 5);
    }

    #[test]
    fn vectors_that_do_not_fit_are_let_pass_and_states_come_back() {
        let mut clusters = Clusters::default();
        let config = ClusterConfig::default();
        assert_eq!(clusters.context(&[1.0]), None);
        for i in 0..100 {
            clusters.observe(&[(i % 2) as f32, 0.1], &config);
        }
        let before = clusters.clone();
        clusters.observe(&[1.0], &config);
        clusters.observe(&[], &config);
        clusters.observe(&[f32::NAN, 0.0], &config);
        assert_eq!(clusters, before);
        assert_eq!(clusters.context(&[1.0, 2.0, 3.0]), None);
        let text = serde_json::to_string(&clusters).unwrap();
        let again: Clusters = serde_json::from_str(&text).unwrap();
        assert_eq!(again, clusters);
        assert!(again.is_sound() && !again.is_new() && !again.is_empty());
    }
}
