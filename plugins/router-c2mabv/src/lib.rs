//! Router plugin `c2mabv`: the set of arms that is worth its money, under a long-term budget,
//! for any-win, sum-up and all-in (C2MAB-V, arXiv 2405.16587); and `c2mabv-features`, the same
//! with contexts from feature vectors. What a plugin needs is fixed when it is loaded, so the
//! one that needs no features never sees any. The mathematics and their tests are in
//! `llmpick-bandit`.

#[path = "../../bridge.rs"]
mod bridge;

use std::marker::PhantomData;

use bridge::NumberOr;
use llmpick_bandit::awc::Method;
use llmpick_bandit::budget::BudgetMode;
use llmpick_bandit::c2mabv::{C2mabv, C2mabvConfig, CostRow, CostScale, Relaxation};
use llmpick_bandit::cascade::Order;
use llmpick_bandit::cluster::ClusterConfig;
use llmpick_bandit::stats::{Delta, TableConfig};
use llmpick_bandit::{Learner, chance};
use llmpick_plugin_sdk::{
    Choice, Error, Feedback, Host, Result, RouterPlugin, SelectRequest, caps, export_plugins,
    from_json, to_json,
};
use serde::Deserialize;

export_plugins!(router Router<Tags>, router Router<Features>);

/// Where contexts come from.
trait Variant: Send + 'static {
    const NAME: &'static str;
    const DESCRIPTION: &'static str;
    const CAPS: u64;
}

struct Tags;

impl Variant for Tags {
    const NAME: &'static str = "c2mabv";
    const DESCRIPTION: &'static str =
        "Learns which set of arms is worth its cost, under a budget (C2MAB-V)";
    const CAPS: u64 = caps::MULTI_SELECT;
}

struct Features;

impl Variant for Features {
    const NAME: &'static str = "c2mabv-features";
    const DESCRIPTION: &'static str = "c2mabv, learning apart what its feature vectors tell apart";
    const CAPS: u64 = caps::MULTI_SELECT | caps::NEEDS_FEATURES;
}

struct Router<V> {
    variant: PhantomData<V>,
    learner: C2mabv,
    budget: Option<f64>,
    rounding: Rounding,
}

impl<V: Variant> RouterPlugin for Router<V> {
    type Config = RawConfig;
    const NAME: &'static str = V::NAME;
    const DESCRIPTION: &'static str = V::DESCRIPTION;
    const CONFIG_SCHEMA: &'static str = include_str!("config.schema.json");
    const STATE_VERSION: u32 = 1;
    const CAPS: u64 = V::CAPS;

    fn create(raw: RawConfig, _: Host) -> Result<Self> {
        let needs_features = V::CAPS & caps::NEEDS_FEATURES != 0;
        Ok(Self {
            variant: PhantomData,
            budget: raw.checked_budget()?,
            rounding: raw.rounding,
            learner: C2mabv::new(raw.checked(needs_features)?).map_err(bridge::refuse)?,
        })
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        let mut rng = chance::seeded(request.seed);
        let (learner, budget) = (&self.learner, self.budget);
        match self.rounding {
            Rounding::Local => {
                let (mode, chosen) = bridge::ask(request, usize::MAX, budget, |question| {
                    learner.select(question, &mut rng)
                })?;
                bridge::tell(mode, &chosen, choice);
            }
            Rounding::Host => {
                let (mode, round) = bridge::ask(request, usize::MAX, budget, |question| {
                    learner.marginals(question, &mut rng)
                })?;
                choice.mode(mode).round_for_me().reason(round.reason);
                bridge::marginals(&round.z, choice);
            }
        }
        Ok(())
    }

    fn feedback(&mut self, feedback: &Feedback<'_>) -> Result<()> {
        bridge::observe(&mut self.learner, feedback);
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        to_json(self.learner.state())
    }

    fn restore(&mut self, _version: u32, state: &[u8]) -> Result<()> {
        let restored = self.learner.restore(from_json(state)?);
        restored.map_err(|error| Error::state(error.to_string()))
    }
}

/// The settings as they are written; `config.schema.json` describes each.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    alpha_mu: f64,
    alpha_c: f64,
    delta: Option<NumberOr>,
    horizon: Option<u64>,
    discount: f64,
    shrinkage: NumberOr,
    clusters: Option<u32>,
    cluster_radius: Option<f64>,
    cost_scale: NumberOr,
    awc: Awc,
    greedy_steps: u32,
    relaxation: Relax,
    order: CascadeOrder,
    budget: Option<f64>,
    budget_mode: KeepBudget,
    cost_row: Row,
    rounding: Rounding,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Awc {
    Auto,
    Exact,
    Greedy,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Relax {
    Relaxed,
    Direct,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CascadeOrder {
    Ratio,
    Cost,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KeepBudget {
    Average,
    Paced,
    Hard,
}

/// What the budget row of any-win charges.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Row {
    Set,
    Expected,
}

/// Who draws the set.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rounding {
    Local,
    Host,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            alpha_mu: 0.3,
            alpha_c: 0.05,
            delta: None,
            horizon: None,
            discount: 1.0,
            shrinkage: NumberOr::Number(50.0),
            clusters: None,
            cluster_radius: None,
            cost_scale: NumberOr::Word("own".to_owned()),
            awc: Awc::Auto,
            greedy_steps: 10,
            relaxation: Relax::Relaxed,
            order: CascadeOrder::Ratio,
            budget: None,
            budget_mode: KeepBudget::Paced,
            cost_row: Row::Set,
            rounding: Rounding::Local,
        }
    }
}

impl RawConfig {
    fn checked(&self, needs_features: bool) -> Result<C2mabvConfig> {
        if self.cost_row == Row::Expected {
            self.check_expected_row()?;
        }
        Ok(C2mabvConfig {
            cost_row: match self.cost_row {
                Row::Set => CostRow::Set,
                Row::Expected => CostRow::Expected,
            },
            alpha_reward: self.alpha_mu,
            alpha_cost: self.alpha_c,
            delta: self.checked_delta()?,
            table: TableConfig {
                discount: self.discount,
                shrinkage: self.shrinkage.or_word("shrinkage", "pooled")?,
                clusters: self.clusters(needs_features)?,
            },
            cost_scale: self.checked_cost_scale()?,
            awc: match self.awc {
                Awc::Auto => Method::Auto,
                Awc::Exact => Method::Exact,
                Awc::Greedy => Method::Greedy,
            },
            greedy_steps: self.greedy_steps,
            relaxation: match self.relaxation {
                Relax::Relaxed => Relaxation::Relaxed,
                Relax::Direct => Relaxation::Direct,
            },
            order: match self.order {
                CascadeOrder::Ratio => Order::Ratio,
                CascadeOrder::Cost => Order::Cost,
            },
            budget_mode: match self.budget_mode {
                KeepBudget::Average => BudgetMode::Average,
                KeepBudget::Paced => BudgetMode::Paced,
                KeepBudget::Hard => BudgetMode::Hard,
            },
        })
    }

    /// The clusters of a plugin that sees features.
    fn clusters(&self, needs_features: bool) -> Result<Option<ClusterConfig>> {
        let given = self.clusters.is_some() || self.cluster_radius.is_some();
        if given && !needs_features {
            return Err(Error::config(
                "`clusters` and `cluster_radius` are for the router c2mabv-features",
            ));
        }
        let default = ClusterConfig::default();
        Ok(needs_features.then_some(ClusterConfig {
            most: self.clusters.unwrap_or(default.most),
            radius: self.cluster_radius.unwrap_or(default.radius),
        }))
    }

    /// A mix of cascades is no matter of marginals, nor of one best set.
    fn check_expected_row(&self) -> Result<()> {
        let refuse = |with: &str| {
            let text = format!("`cost_row = \"expected\"` cannot be had with `{with}`");
            Err(Error::config(text))
        };
        match (self.rounding, self.relaxation) {
            (Rounding::Host, _) => refuse("rounding = \"host\""),
            (_, Relax::Direct) => refuse("relaxation = \"direct\""),
            _ => Ok(()),
        }
    }

    fn checked_delta(&self) -> Result<Delta> {
        match (&self.delta, self.horizon) {
            (Some(_), Some(_)) => Err(Error::config(
                "`delta` and `horizon` both set the confidence; give one of them",
            )),
            (None, Some(0)) => Err(Error::config("`horizon` must be at least 1 round")),
            (None, Some(rounds)) => Ok(Delta::Horizon(rounds)),
            (Some(delta), None) => Ok(delta
                .or_word("delta", "anytime")?
                .map_or(Delta::Anytime, Delta::Fixed)),
            (None, None) => Ok(Delta::Anytime),
        }
    }

    fn checked_cost_scale(&self) -> Result<CostScale> {
        match &self.cost_scale {
            NumberOr::Number(scale) => Ok(CostScale::Fixed(*scale)),
            NumberOr::Word(word) if word == "own" => Ok(CostScale::Own),
            NumberOr::Word(word) if word == "seen" => Ok(CostScale::Seen),
            NumberOr::Word(word) => Err(Error::config(format!(
                "`cost_scale` must be a number, \"own\" or \"seen\", not \"{word}\""
            ))),
        }
    }

    fn checked_budget(&self) -> Result<Option<f64>> {
        match self.budget {
            Some(budget) if !(budget.is_finite() && budget >= 0.0) => Err(Error::config(format!(
                "`budget` must be an amount from 0 per request, not {budget}"
            ))),
            budget => Ok(budget),
        }
    }
}
