//! Router plugins `epsilon-greedy`, `cucb`, `thompson`, `round-robin` and `fixed`: what the
//! learning routers are measured against. The mathematics are in `llmpick-bandit`.

#[path = "../../bridge.rs"]
mod bridge;

use std::marker::PhantomData;

use bridge::NumberOr;
use llmpick_bandit::baselines::{Baseline, BaselineLearner, Fixed};
use llmpick_bandit::stats::TableConfig;
use llmpick_bandit::{Learner, chance};
use llmpick_plugin_sdk::{
    Choice, Error, Feedback, Host, Result, RouterPlugin, SelectRequest, caps, export_plugins,
    from_json, to_json,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

export_plugins!(
    router Router<EpsilonGreedy>,
    router Router<Cucb>,
    router Router<Thompson>,
    router Router<RoundRobin>,
    router Router<FixedChoice>,
);

/// One baseline as a plugin.
trait Kind: Send + 'static {
    type Config: DeserializeOwned + Default;
    const NAME: &'static str;
    const DESCRIPTION: &'static str;
    const CONFIG_SCHEMA: &'static str;
    fn checked(raw: Self::Config) -> Result<(Baseline, TableConfig)>;
}

struct Router<K> {
    learner: BaselineLearner,
    kind: PhantomData<K>,
}

impl<K: Kind> RouterPlugin for Router<K> {
    type Config = K::Config;
    const NAME: &'static str = K::NAME;
    const DESCRIPTION: &'static str = K::DESCRIPTION;
    const CONFIG_SCHEMA: &'static str = K::CONFIG_SCHEMA;
    const STATE_VERSION: u32 = 1;
    const CAPS: u64 = caps::MULTI_SELECT;

    fn create(raw: K::Config, _: Host) -> Result<Self> {
        let (baseline, table) = K::checked(raw)?;
        Ok(Self {
            learner: BaselineLearner::new(baseline, table).map_err(bridge::refuse)?,
            kind: PhantomData,
        })
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        let mut rng = chance::seeded(request.seed);
        let (mode, chosen) = bridge::ask(request, usize::MAX, None, |question| {
            self.learner.select(question, &mut rng)
        })?;
        bridge::tell(mode, &chosen, choice);
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

/// The settings of what is learnt, the same in every schema below.
fn table(discount: f64, shrinkage: &NumberOr) -> Result<TableConfig> {
    Ok(TableConfig {
        discount,
        shrinkage: shrinkage.or_word("shrinkage", "pooled")?,
        clusters: None,
    })
}

struct EpsilonGreedy;

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EpsilonGreedyConfig {
    epsilon: f64,
    budgeted: bool,
    discount: f64,
    shrinkage: NumberOr,
}

impl Default for EpsilonGreedyConfig {
    fn default() -> Self {
        Self {
            epsilon: 0.1,
            budgeted: true,
            discount: 1.0,
            shrinkage: NumberOr::Number(50.0),
        }
    }
}

impl Kind for EpsilonGreedy {
    type Config = EpsilonGreedyConfig;
    const NAME: &'static str = "epsilon-greedy";
    const DESCRIPTION: &'static str = "The best means so far, and now and then any arms";
    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","additionalProperties":false,"properties":{
"epsilon":{"type":"number","minimum":0,"maximum":1,"default":0.1,"description":"Share of random choices."},
"budgeted":{"type":"boolean","default":true,"description":"The greedy choice obeys the budget, through the relaxed problem on the means."},
"discount":{"type":"number","minimum":0.5,"maximum":1,"default":1,"description":"What is left of an observation after one more round; 1 forgets nothing."},
"shrinkage":{"oneOf":[{"const":"pooled"},{"type":"number","minimum":0,"maximum":1e9}],"default":50,"description":"Support of a task tag by at most so many observations from others; \"pooled\" keeps one statistic for all."}}}"#;

    fn checked(raw: Self::Config) -> Result<(Baseline, TableConfig)> {
        let baseline = Baseline::EpsilonGreedy {
            epsilon: raw.epsilon,
            budgeted: raw.budgeted,
        };
        Ok((baseline, table(raw.discount, &raw.shrinkage)?))
    }
}

struct Cucb;

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CucbConfig {
    exploration: f64,
    discount: f64,
    shrinkage: NumberOr,
}

impl Default for CucbConfig {
    fn default() -> Self {
        Self {
            exploration: 1.5,
            discount: 1.0,
            shrinkage: NumberOr::Number(50.0),
        }
    }
}

impl Kind for Cucb {
    type Config = CucbConfig;
    const NAME: &'static str = "cucb";
    const DESCRIPTION: &'static str = "The largest upper confidence bounds; knows no budget";
    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","additionalProperties":false,"properties":{
"exploration":{"type":"number","minimum":0,"maximum":100,"default":1.5,"description":"c in mean + sqrt(c ln t / n), which stops at 1."},
"discount":{"type":"number","minimum":0.5,"maximum":1,"default":1,"description":"What is left of an observation after one more round; 1 forgets nothing."},
"shrinkage":{"oneOf":[{"const":"pooled"},{"type":"number","minimum":0,"maximum":1e9}],"default":50,"description":"Support of a task tag by at most so many observations from others; \"pooled\" keeps one statistic for all."}}}"#;

    fn checked(raw: Self::Config) -> Result<(Baseline, TableConfig)> {
        let baseline = Baseline::Cucb {
            exploration: raw.exploration,
        };
        Ok((baseline, table(raw.discount, &raw.shrinkage)?))
    }
}

struct Thompson;

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ThompsonConfig {
    discount: f64,
    shrinkage: NumberOr,
}

impl Default for ThompsonConfig {
    fn default() -> Self {
        Self {
            discount: 1.0,
            shrinkage: NumberOr::Number(50.0),
        }
    }
}

impl Kind for Thompson {
    type Config = ThompsonConfig;
    const NAME: &'static str = "thompson";
    const DESCRIPTION: &'static str = "Thompson sampling from Beta posteriors; knows no budget";
    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","additionalProperties":false,"properties":{
"discount":{"type":"number","minimum":0.5,"maximum":1,"default":1,"description":"What is left of an observation after one more round; 1 forgets nothing."},
"shrinkage":{"oneOf":[{"const":"pooled"},{"type":"number","minimum":0,"maximum":1e9}],"default":50,"description":"Support of a task tag by at most so many observations from others; \"pooled\" keeps one statistic for all."}}}"#;

    fn checked(raw: Self::Config) -> Result<(Baseline, TableConfig)> {
        Ok((Baseline::Thompson, table(raw.discount, &raw.shrinkage)?))
    }
}

struct RoundRobin;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NoConfig {}

impl Kind for RoundRobin {
    type Config = NoConfig;
    const NAME: &'static str = "round-robin";
    const DESCRIPTION: &'static str = "Each arm in turn, in order of name";
    const CONFIG_SCHEMA: &'static str =
        r#"{"type":"object","additionalProperties":false,"properties":{}}"#;

    fn checked(_: NoConfig) -> Result<(Baseline, TableConfig)> {
        Ok((Baseline::RoundRobin, TableConfig::default()))
    }
}

struct FixedChoice;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FixedConfig {
    arms: Vec<String>,
    by: Option<By>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Cheapest,
    Dearest,
}

impl Kind for FixedChoice {
    type Config = FixedConfig;
    const NAME: &'static str = "fixed";
    const DESCRIPTION: &'static str = "Always the same arms, the cheapest, or the dearest";
    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","additionalProperties":false,"properties":{
"arms":{"type":"array","items":{"type":"string"},"default":[],"description":"These arms in this order; the host decides where none of them may run."},
"by":{"enum":["cheapest","dearest"],"default":"cheapest","description":"Without arms: by mean cost, or by the host's estimate before the first call."}}}"#;

    fn checked(raw: Self::Config) -> Result<(Baseline, TableConfig)> {
        let fixed = match (raw.arms.is_empty(), raw.by) {
            (false, Some(_)) => {
                return Err(Error::config("give `arms` or `by`, not both"));
            }
            (false, None) => Fixed::Arms(raw.arms),
            (true, Some(By::Dearest)) => Fixed::Dearest,
            (true, Some(By::Cheapest) | None) => Fixed::Cheapest,
        };
        Ok((Baseline::Fixed(fixed), TableConfig::default()))
    }
}
