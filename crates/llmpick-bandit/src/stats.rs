//! What is known of each arm, and how sure we are (C2MAB-V, equations of section 4.1).
//!
//! Rewards and costs are counted apart: a thumbs-down an hour later is a second look at the
//! answer but not at the bill. Counts are real numbers because a discount γ < 1 shrinks
//! them, so that an arm that changed is believed again (ALGORITHMS 1.9).

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::budget::{Spend, known};
use crate::cluster::{ClusterConfig, Clusters};
use crate::names::{Key, Named};
use crate::{ArmView, ConfigError, Observation, UnsoundState, exact};

/// Contexts an arm keeps statistics for; later ones are answered from the pool, so that a
/// client that invents tags cannot grow the state without bound.
const MAX_CONTEXTS: usize = 256;

/// How sure a bound is: the δ of the confidence radius.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Delta {
    /// The same δ for ever, in (0, 1].
    Fixed(f64),
    /// δ = 1/T for a known horizon of T rounds: the theory's choice.
    Horizon(u64),
    /// δ_t = 1/t, where no horizon is known.
    #[default]
    Anytime,
}

impl Delta {
    /// δ in round `t` ≥ 1.
    pub fn at(self, t: f64) -> f64 {
        match self {
            Delta::Fixed(delta) => delta,
            Delta::Horizon(rounds) => 1.0 / (rounds.max(1) as f64),
            Delta::Anytime => 1.0 / t.max(1.0),
        }
    }

    /// Refuses a fixed δ outside (0, 1].
    pub(crate) fn check(self) -> Result<(), ConfigError> {
        match self {
            Delta::Fixed(delta) => ConfigError::check(
                "delta",
                delta,
                f64::MIN_POSITIVE..=1.0,
                "above 0 and at most 1",
            ),
            Delta::Horizon(_) | Delta::Anytime => Ok(()),
        }
    }
}

/// The confidence radius rad(n) = √( ln(2π²K t³ / (3δ)) / (2n) ) of `n` observations among
/// `arms` = K arms in round `t`; infinite before the first observation.
pub fn radius(n: f64, arms: usize, t: f64, delta: f64) -> f64 {
    Radius::new(arms, t, delta).of(n)
}

/// The [`radius`] of one round: its logarithm is the same for all arms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Radius {
    log: f64,
}

impl Radius {
    pub(crate) fn new(arms: usize, t: f64, delta: f64) -> Self {
        let k = arms.max(1) as f64;
        let t = t.max(1.0);
        // The logarithm of the product as a sum: t³/δ may leave the range of f64.
        let log = libm::log(2.0 * PI * PI * k / 3.0) + 3.0 * libm::log(t) - libm::log(delta);
        Self { log }
    }

    /// rad(n).
    #[inline]
    pub(crate) fn of(self, n: f64) -> f64 {
        if n <= 0.0 {
            return f64::INFINITY;
        }
        (self.log / (2.0 * n)).sqrt()
    }
}

/// μ̄ = min(μ̂ + α_μ·rad, 1); 1 before the first pull.
#[inline]
pub fn optimistic_reward(mean: Option<f64>, width: f64) -> f64 {
    mean.map_or(1.0, |mean| (mean + width).min(1.0))
}

/// c̲ = max(ĉ − α_c·b_k·rad, 0); 0 before the first pull. Price is estimated from below on
/// purpose: optimism is what earns an arm we have barely tried its second look.
#[inline]
pub fn lower_cost(mean: Option<f64>, width: f64) -> f64 {
    mean.map_or(0.0, |mean| (mean - width).max(0.0))
}

/// A count and a sum, both possibly discounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Observations, discounted.
    #[serde(rename = "n", with = "exact")]
    pub count: f64,
    /// Their sum, discounted.
    #[serde(with = "exact")]
    pub sum: f64,
}

impl Tally {
    /// Takes one more observation in.
    pub fn push(&mut self, x: f64) {
        self.count += 1.0;
        self.sum += x;
    }

    /// True for numbers that observations from 0 to `most` lead to, but for the last digits.
    pub(crate) fn is_sound(&self, most: f64) -> bool {
        let finite = self.count.is_finite() && self.sum.is_finite();
        finite
            && self.count >= 0.0
            && self.sum >= 0.0
            && self.sum <= most * self.count * (1.0 + 1e-6)
    }

    /// Forgets a share 1 − γ of everything.
    pub fn discount(&mut self, gamma: f64) {
        self.count *= gamma;
        self.sum *= gamma;
    }

    /// The mean; `None` before the first observation.
    #[inline]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// This context's tally, shrunk towards the rest of the pool: the others count as at most
    /// `strength` observations more (a power prior). One context alone is its own pool.
    #[inline]
    pub fn shrunk(&self, pool: &Tally, strength: f64) -> Tally {
        let others = Tally {
            count: (pool.count - self.count).max(0.0),
            sum: (pool.sum - self.sum).max(0.0),
        };
        if others.count <= 0.0 {
            return *self;
        }
        let weight = strength.min(others.count);
        Tally {
            count: self.count + weight,
            sum: self.sum + weight * (others.sum / others.count),
        }
    }
}

/// Statistics of one arm, in one context or over all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArmStats {
    /// Rewards.
    pub reward: Tally,
    /// Costs.
    pub cost: Tally,
    /// The largest cost of one call so far, never discounted.
    #[serde(with = "exact")]
    pub largest_cost: f64,
}

impl ArmStats {
    fn push(&mut self, reward: Option<f64>, cost: Option<f64>) {
        if let Some(reward) = reward {
            self.reward.push(reward);
        }
        if let Some(cost) = cost {
            self.cost.push(cost);
            self.largest_cost = self.largest_cost.max(cost);
        }
    }

    fn is_sound(&self) -> bool {
        let largest = self.largest_cost.is_finite() && self.largest_cost >= 0.0;
        largest && self.reward.is_sound(1.0) && self.cost.is_sound(self.largest_cost)
    }

    fn discount(&mut self, gamma: f64) {
        self.reward.discount(gamma);
        self.cost.discount(gamma);
    }
}

/// All that is known of one arm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    pool: ArmStats,
    #[serde(default, skip_serializing_if = "Tokens::is_none")]
    tokens: Tokens,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    contexts: Named<ArmStats>,
}

/// What the pool says of a context's mean counts as `shrinkage` observations; of how sure that
/// is, as this share of them. A context differs from the pool by what no observation of the
/// pool can tell, so it must be looked at for itself. With 1, one shuffle in ten of MMLU-Pro
/// never gave the best model a second look (.6292 against .69); .6 to .7 end alike.
const SURENESS: f64 = 0.7;

impl Record {
    /// The statistics, and how many observations the radius of the reward may count.
    #[inline]
    fn stats(&self, context: Key<'_>, config: &TableConfig) -> (ArmStats, f64) {
        let Some(strength) = config.shrinkage else {
            return (self.pool, self.pool.reward.count);
        };
        let own = self.contexts.find(context).copied().unwrap_or_default();
        let stats = ArmStats {
            reward: own.reward.shrunk(&self.pool.reward, strength),
            cost: own.cost.shrunk(&self.pool.cost, strength),
            largest_cost: self.pool.largest_cost,
        };
        let others = (self.pool.reward.count - own.reward.count).max(0.0);
        (stats, own.reward.count + others.min(SURENESS * strength))
    }
}

/// What calls of known length cost: what they would cost at another price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tokens {
    #[serde(with = "exact")]
    prompt: f64,
    #[serde(with = "exact")]
    completion: f64,
    /// What was paid for them.
    #[serde(with = "exact")]
    cost: f64,
}

/// Prices that explain the costs within this are the prices that were paid: a cost may hold
/// more than tokens, and what a local machine charges for one wavers.
const SAME_PRICE: f64 = 0.1;

impl Tokens {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn push(&mut self, observation: &Observation<'_>, cost: f64) {
        let prompt = f64::from(observation.prompt_tokens);
        let completion = f64::from(observation.completion_tokens);
        if prompt + completion > 0.0 {
            self.prompt += prompt;
            self.completion += completion;
            self.cost += cost;
        }
    }

    fn discount(&mut self, gamma: f64) {
        self.prompt *= gamma;
        self.completion *= gamma;
        self.cost *= gamma;
    }

    fn is_sound(&self) -> bool {
        let amounts = [self.prompt, self.completion, self.cost];
        amounts.iter().all(|x| x.is_finite() && *x >= 0.0)
    }

    /// What the same calls would cost at today's prices, in units of what they did cost; 1 where
    /// that is about the same, or unknown.
    #[inline]
    fn change(&self, arm: &ArmView<'_>) -> f64 {
        let Some((price_in, price_out)) = known(arm.price_in).zip(known(arm.price_out)) else {
            return 1.0;
        };
        let now = (price_in * self.prompt + price_out * self.completion) / 1e6;
        if now <= 0.0 || self.cost <= 0.0 || (now / self.cost - 1.0).abs() <= SAME_PRICE {
            return 1.0;
        }
        now / self.cost
    }
}

/// How a [`Table`] keeps its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableConfig {
    /// γ in (0, 1]: what is left of a count after one round; 1 forgets nothing.
    pub discount: f64,
    /// At most so many observations from other contexts support a context's own; `None`
    /// keeps one pool for all contexts.
    pub shrinkage: Option<f64>,
    /// Requests with a feature vector have its cluster for a context, rather than their tag.
    pub clusters: Option<ClusterConfig>,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            discount: 1.0,
            shrinkage: Some(50.0),
            clusters: None,
        }
    }
}

impl TableConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        ConfigError::check(
            "discount",
            self.discount,
            0.5..=1.0,
            "between 0.5 and 1 (1 forgets nothing)",
        )?;
        if let Some(clusters) = &self.clusters {
            clusters.check()?;
        }
        self.shrinkage.map_or(Ok(()), |shrinkage| {
            ConfigError::check("shrinkage", shrinkage, 0.0..=1e9, "a number from 0 to 1e9")
        })
    }
}

/// The statistics of all arms ever seen, keyed by name: arms come and go, what was learnt
/// of them stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    rounds: u64,
    /// Absent in states from before budgets were paced: they begin to count at nothing.
    #[serde(default)]
    spend: Spend,
    #[serde(default, skip_serializing_if = "Clusters::is_new")]
    clusters: Clusters,
    arms: Named<Record>,
}

impl Table {
    /// Rounds completed.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// What was spent.
    pub fn spend(&self) -> &Spend {
        &self.spend
    }

    /// Refuses numbers that no observations lead to, such as a snapshot somebody edited.
    pub fn check(self) -> Result<Self, UnsoundState> {
        let sound = |record: &Record| {
            let contexts = record.contexts.values().all(ArmStats::is_sound);
            record.pool.is_sound() && record.tokens.is_sound() && contexts
        };
        if self.spend.is_sound() && self.clusters.is_sound() && self.arms.values().all(sound) {
            Ok(self)
        } else {
            Err(UnsoundState)
        }
    }

    /// The running number t of the next round, capped at 1/(1−γ): a table that forgets must
    /// not grow its logarithm for ever (ALGORITHMS 1.9).
    pub fn round(&self, config: &TableConfig) -> f64 {
        let t = (self.rounds + 1) as f64;
        if config.discount < 1.0 {
            t.min(1.0 / (1.0 - config.discount)).max(1.0)
        } else {
            t
        }
    }

    /// The context of a request with this tag and these features.
    pub fn context<'a>(&'a self, tag: &'a str, features: &[f32], config: &TableConfig) -> &'a str {
        let cluster = config
            .clusters
            .and_then(|_| self.clusters.context(features));
        cluster.unwrap_or(tag)
    }

    /// Updates exactly the arm that was observed, μ̂ ← (T μ̂ + X)/(T + 1) and likewise ĉ;
    /// a completed round first discounts all.
    pub fn observe(&mut self, observation: &Observation<'_>, config: &TableConfig) {
        let (reward, cost) = (observation.reward(), observation.paid());
        if reward.is_none() && cost.is_none() {
            return;
        }
        self.spend.observe(observation);
        if observation.completes_round() {
            self.rounds += 1;
            if config.discount < 1.0 {
                self.discount(config.discount);
            }
        }
        if let Some(clusters) = &config.clusters
            && observation.completes_round()
        {
            self.clusters.observe(observation.features, clusters);
        }
        if !self.arms.contains_key(observation.arm) {
            self.arms.insert(observation.arm, Record::default());
        }
        let cluster = config
            .clusters
            .and_then(|_| self.clusters.context(observation.features));
        let context = cluster.unwrap_or(observation.context);
        let Some(record) = self.arms.get_mut(observation.arm) else {
            return;
        };
        record.pool.push(reward, cost);
        if let Some(cost) = cost {
            record.tokens.push(observation, cost);
        }
        if config.shrinkage.is_some() {
            if let Some(stats) = record.contexts.get_mut(context) {
                stats.push(reward, cost);
            } else if record.contexts.len() < MAX_CONTEXTS {
                let mut stats = ArmStats::default();
                stats.push(reward, cost);
                record.contexts.insert(context, stats);
            }
        }
    }

    /// What is known of an arm in a context; empty statistics for an arm never seen.
    pub fn arm(&self, id: &str, context: &str, config: &TableConfig) -> ArmStats {
        let record = self.arms.get(id);
        record.map_or_else(ArmStats::default, |record| {
            record.stats(Key::new(context), config).0
        })
    }

    /// What is known of an arm in a context, its costs at today's prices: when a price changes,
    /// what was learnt of the length of its answers stays.
    pub fn priced(&self, arm: &ArmView<'_>, context: &str, config: &TableConfig) -> ArmStats {
        self.priced_for(arm, Key::new(context), config).0
    }

    /// [`priced`](Self::priced) for many arms of one context, and the number of observations
    /// that a radius of the reward may count: fewer than the mean rests on, where it leans on
    /// the pool.
    #[inline]
    pub(crate) fn priced_for(
        &self,
        arm: &ArmView<'_>,
        context: Key<'_>,
        config: &TableConfig,
    ) -> (ArmStats, f64) {
        let Some(record) = self.arms.get(arm.id) else {
            return (ArmStats::default(), 0.0);
        };
        let (mut stats, sure) = record.stats(context, config);
        let change = record.tokens.change(arm);
        stats.cost.sum *= change;
        stats.largest_cost *= change;
        (stats, sure)
    }

    fn discount(&mut self, gamma: f64) {
        for record in self.arms.values_mut() {
            record.pool.discount(gamma);
            record.tokens.discount(gamma);
            for stats in record.contexts.values_mut() {
                stats.discount(gamma);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Ending;

    fn seen<'a>(arm: &'a str, position: u32, cost: f64, score: Option<f64>) -> Observation<'a> {
        Observation {
            arm,
            position,
            cost,
            latency_ms: 100.0,
            score,
            ..Observation::default()
        }
    }

    #[test]
    fn radius_equals_the_reference_vector() {
        assert!((radius(100.0, 9, 1000.0, 1e-3) - 0.39820).abs() < 5e-6);
        assert_eq!(radius(0.0, 9, 1000.0, 1e-3), f64::INFINITY);
    }

    #[test]
    fn an_arm_never_pulled_is_perfect_and_free() {
        assert_eq!(optimistic_reward(None, 0.0), 1.0);
        assert_eq!(lower_cost(None, 0.0), 0.0);
        assert_eq!(optimistic_reward(Some(0.5), 0.25), 0.75);
        assert_eq!(optimistic_reward(Some(0.9), 0.25), 1.0);
        assert_eq!(lower_cost(Some(0.5), 0.75), 0.0);
    }

    #[test]
    fn delta_follows_its_mode() {
        assert_eq!(Delta::Anytime.at(4.0), 0.25);
        assert_eq!(Delta::Horizon(10).at(4.0), 0.1);
        assert_eq!(Delta::Fixed(0.5).at(4.0), 0.5);
    }

    #[test]
    fn an_observation_touches_its_arm_alone() {
        let config = TableConfig::default();
        let mut table = Table::default();
        table.observe(&seen("a", 0, 2.0, Some(1.0)), &config);
        let before = table.arm("a", "", &config);
        table.observe(&seen("b", 1, 4.0, Some(0.25)), &config);
        assert_eq!(table.arm("a", "", &config), before);
        assert_eq!(table.arm("c", "", &config), ArmStats::default());
        let b = table.arm("b", "", &config);
        assert_eq!((b.reward.mean(), b.cost.mean()), (Some(0.25), Some(4.0)));
        // Position 1 belongs to the round of position 0.
        assert_eq!(table.rounds(), 1);
    }

    #[test]
    fn late_scores_cost_nothing_and_unscored_calls_teach_no_reward() {
        let config = TableConfig::default();
        let mut table = Table::default();
        table.observe(&seen("a", 0, 2.0, None), &config);
        table.observe(&seen("a", 0, f64::NAN, Some(0.5)), &config);
        let a = table.arm("a", "", &config);
        assert_eq!((a.reward.count, a.cost.count), (1.0, 1.0));
        assert_eq!((a.reward.mean(), a.cost.mean()), (Some(0.5), Some(2.0)));
        assert_eq!(table.rounds(), 1);
    }

    #[test]
    fn failures_score_zero_and_cancellations_teach_nothing() {
        let config = TableConfig::default();
        let mut table = Table::default();
        let mut failed = seen("a", 0, 0.0, Some(1.0));
        failed.ending = Ending::Failed;
        table.observe(&failed, &config);
        assert_eq!(table.arm("a", "", &config).reward.mean(), Some(0.0));
        let before = table.clone();
        failed.ending = Ending::Cancelled;
        table.observe(&failed, &config);
        assert_eq!(table, before);
    }

    #[test]
    fn nonsense_is_not_learnt() {
        let config = TableConfig::default();
        let mut table = Table::default();
        for (cost, score) in [
            (f64::INFINITY, Some(f64::NAN)),
            (-1.0, Some(2.0)),
            (f64::NAN, Some(-0.1)),
            (f64::NAN, None),
        ] {
            table.observe(&seen("a", 0, cost, score), &config);
        }
        assert_eq!(table, Table::default());
    }

    #[test]
    fn discounting_forgets_all_arms_and_caps_the_clock() {
        let config = TableConfig {
            discount: 0.5,
            ..TableConfig::default()
        };
        let mut table = Table::default();
        table.observe(&seen("a", 0, 1.0, Some(1.0)), &config);
        table.observe(&seen("b", 0, 1.0, Some(1.0)), &config);
        assert_eq!(table.arm("a", "", &config).reward.count, 0.5);
        assert_eq!(table.arm("b", "", &config).reward.count, 1.0);
        for _ in 0..10 {
            table.observe(&seen("b", 0, 1.0, Some(1.0)), &config);
        }
        assert_eq!(table.round(&config), 2.0);
    }

    #[test]
    fn a_new_price_scales_what_was_learnt_of_the_cost() {
        let config = TableConfig::default();
        let mut table = Table::default();
        let call = |cost| Observation {
            prompt_tokens: 1000,
            completion_tokens: 500,
            ..seen("a", 0, cost, Some(0.5))
        };
        // 1 and 4 dollars per million: 0.001 + 0.002.
        (0..100).for_each(|_| table.observe(&call(0.003), &config));
        let arm = |price_in, price_out| ArmView {
            price_in,
            price_out,
            ..ArmView::stranger("a")
        };
        let mean = |table: &Table, arm: ArmView<'_>| {
            let stats = table.priced(&arm, "", &config);
            (stats.cost.mean().unwrap() * 1e6).round() / 1e6
        };
        assert_eq!(mean(&table, arm(1.0, 4.0)), 0.003);
        assert_eq!(mean(&table, arm(0.5, 2.0)), 0.0015);
        assert_eq!(mean(&table, arm(1.0, 10.0)), 0.006);
        let largest = table.priced(&arm(0.5, 2.0), "", &config).largest_cost;
        assert!((largest - 0.0015).abs() < 1e-12, "{largest}");
        assert_eq!(
            table.priced(&arm(0.5, 2.0), "", &config).reward.count,
            100.0
        );
        // A little more than the tokens explain, or an unknown price: what was paid counts.
        assert_eq!(mean(&table, arm(0.95, 3.8)), 0.003);
        assert_eq!(mean(&table, arm(f64::NAN, 2.0)), 0.003);
        // At the new price for a while: still right.
        (0..50).for_each(|_| table.observe(&call(0.0015), &config));
        assert_eq!(mean(&table, arm(0.5, 2.0)), 0.0015);
        let text = serde_json::to_string(&table).unwrap();
        let again: Table = serde_json::from_str(&text).unwrap();
        assert_eq!(again.check().unwrap(), table);
    }

    #[test]
    fn a_context_leans_on_the_pool_until_it_knows_better() {
        let config = TableConfig {
            discount: 1.0,
            shrinkage: Some(10.0),
            clusters: None,
        };
        let mut table = Table::default();
        for _ in 0..1000 {
            table.observe(&seen("a", 0, 1.0, Some(1.0)), &config);
        }
        // Never seen there: the pool's mean, believed like ten observations.
        let fresh = table.arm("a", "law", &config).reward;
        assert_eq!((fresh.count, fresh.mean()), (10.0, Some(1.0)));
        // How sure that is counts for less, and one context alone leans on nobody.
        let (_, sure) = table.priced_for(&ArmView::stranger("a"), Key::new("law"), &config);
        assert_eq!(sure, SURENESS * 10.0);
        let (_, sure) = table.priced_for(&ArmView::stranger("a"), Key::new(""), &config);
        assert_eq!(sure, 1000.0);
        for _ in 0..30 {
            let observation = Observation {
                context: "law",
                ..seen("a", 0, 1.0, Some(0.0))
            };
            table.observe(&observation, &config);
        }
        let own = table.arm("a", "law", &config).reward;
        assert_eq!((own.count, own.mean()), (40.0, Some(0.25)));
        // One pool for all, if asked.
        let pooled = TableConfig {
            shrinkage: None,
            ..config
        };
        assert_eq!(table.arm("a", "law", &pooled).reward.count, 1030.0);
    }
}
