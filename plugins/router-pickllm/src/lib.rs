//! Router plugins `pickllm`, `pursuit` and `q-learning`: settle on the one model that is best in
//! accuracy, cost and latency together (PickLLM, arXiv 2412.12170). The latter two are `pickllm`
//! with that learner, by a name of their own. The mathematics and their tests are in
//! `llmpick-bandit`.

#[path = "../../bridge.rs"]
mod bridge;

use std::marker::PhantomData;

use bridge::NumberOr;
use llmpick_bandit::drift::DriftConfig;
use llmpick_bandit::pickllm::{Manner, Method, PickLlm, PickLlmConfig, RewardConfig};
use llmpick_bandit::{Learner, chance};
use llmpick_plugin_sdk::{
    Choice, Error, Feedback, Host, Result, RouterPlugin, SelectRequest, export_plugins, from_json,
    to_json,
};
use serde::Deserialize;

export_plugins!(
    router Router<Any>,
    router Router<Pursuit>,
    router Router<QLearning>,
);

/// A name for some of the learners.
trait Variant: Send + 'static {
    const NAME: &'static str;
    const DESCRIPTION: &'static str;
    /// The one learner of that name; `None` for the one in the settings.
    const LEARNER: Option<Kind>;
}

struct Any;

impl Variant for Any {
    const NAME: &'static str = "pickllm";
    const DESCRIPTION: &'static str =
        "Settles on the one model best in accuracy, cost and latency together (PickLLM)";
    const LEARNER: Option<Kind> = None;
}

struct Pursuit;

impl Variant for Pursuit {
    const NAME: &'static str = "pursuit";
    const DESCRIPTION: &'static str = "pickllm with the pursuit automaton, which settles soonest";
    const LEARNER: Option<Kind> = Some(Kind::Pursuit);
}

struct QLearning;

impl Variant for QLearning {
    const NAME: &'static str = "q-learning";
    const DESCRIPTION: &'static str = "pickllm with stateless Q-learning";
    const LEARNER: Option<Kind> = Some(Kind::Q);
}

struct Router<V> {
    learner: PickLlm,
    variant: PhantomData<V>,
}

impl<V: Variant> RouterPlugin for Router<V> {
    type Config = RawConfig;
    const NAME: &'static str = V::NAME;
    const DESCRIPTION: &'static str = V::DESCRIPTION;
    const CONFIG_SCHEMA: &'static str = include_str!("config.schema.json");
    const STATE_VERSION: u32 = 1;

    fn create(mut raw: RawConfig, _: Host) -> Result<Self> {
        raw.learner = match (V::LEARNER, raw.learner) {
            (Some(own), Some(given)) if own != given => {
                let text = format!(
                    "`learner` is settled by the name `{}`: leave it out",
                    V::NAME
                );
                return Err(Error::config(text));
            }
            (own, given) => own.or(given),
        };
        PickLlm::new(raw.checked()?)
            .map(|learner| Self {
                learner,
                variant: PhantomData,
            })
            .map_err(bridge::refuse)
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        let mut rng = chance::seeded(request.seed);
        let (mode, chosen) = bridge::ask(request, 1, None, |question| {
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

/// The settings as they are written; `config.schema.json` describes each.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    learner: Option<Kind>,
    weight_accuracy: f64,
    weight_cost: f64,
    weight_latency: f64,
    time_scaling: f64,
    reference_cost: NumberOr,
    contexts: bool,
    lock: bool,
    drift_threshold: Option<NumberOr>,
    drift_tolerance: Option<f64>,
    b: Option<f64>,
    warm_up: Option<u32>,
    q_start: Option<f64>,
    alpha: Option<f64>,
    epsilon: Option<f64>,
    epsilon_decay: Option<f64>,
    epsilon_min: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Automaton,
    Pursuit,
    Q,
}

impl Default for RawConfig {
    fn default() -> Self {
        let reward = RewardConfig::default();
        Self {
            learner: None,
            weight_accuracy: reward.accuracy,
            weight_cost: reward.cost,
            weight_latency: reward.latency,
            time_scaling: reward.time_scaling,
            reference_cost: NumberOr::Word("largest".to_owned()),
            contexts: true,
            lock: true,
            drift_threshold: None,
            drift_tolerance: None,
            b: None,
            warm_up: None,
            q_start: None,
            alpha: None,
            epsilon: None,
            epsilon_decay: None,
            epsilon_min: None,
        }
    }
}

impl RawConfig {
    fn checked(&self) -> Result<PickLlmConfig> {
        self.refuse_idle_settings()?;
        Ok(PickLlmConfig {
            reward: RewardConfig {
                accuracy: self.weight_accuracy,
                cost: self.weight_cost,
                latency: self.weight_latency,
                time_scaling: self.time_scaling,
                reference_cost: self.reference_cost.or_word("reference_cost", "largest")?,
            },
            manner: Manner {
                method: self.method(),
                lock: self.lock,
                drift: self.drift()?,
            },
            contexts: self.contexts,
        })
    }

    fn kind(&self) -> Kind {
        self.learner.unwrap_or(Kind::Automaton)
    }

    fn method(&self) -> Method {
        match self.kind() {
            Kind::Automaton => Method::Automaton {
                step: self.b.unwrap_or(0.05),
            },
            Kind::Pursuit => Method::Pursuit {
                step: self.b.unwrap_or(0.05),
                warm_up: self.warm_up.unwrap_or(5),
            },
            Kind::Q => Method::QLearning {
                start: self.q_start.unwrap_or(1.0),
                alpha: self.alpha.unwrap_or(0.1),
                epsilon: self.epsilon.unwrap_or(0.25),
                decay: self.epsilon_decay.unwrap_or(0.99),
                epsilon_min: self.epsilon_min.unwrap_or(0.01),
            },
        }
    }

    /// What unlocks a settled learner.
    fn drift(&self) -> Result<Option<DriftConfig>> {
        let default = DriftConfig::default();
        let threshold = match &self.drift_threshold {
            Some(threshold) => threshold.or_word("drift_threshold", "off")?,
            None => Some(default.threshold),
        };
        let idle = |key: &str, why: &str| Err(Error::config(format!("`{key}` does nothing {why}")));
        match (self.lock, threshold, self.drift_tolerance) {
            (false, _, Some(_)) => idle("drift_tolerance", "without `lock`"),
            (false, _, None) if self.drift_threshold.is_some() => {
                idle("drift_threshold", "without `lock`")
            }
            (_, None, Some(_)) => idle("drift_tolerance", "with drift_threshold = \"off\""),
            (_, threshold, tolerance) => Ok(threshold.map(|threshold| DriftConfig {
                threshold,
                tolerance: tolerance.unwrap_or(default.tolerance),
            })),
        }
    }

    /// A setting that the chosen learner would never look at is a mistake, not a wish.
    fn refuse_idle_settings(&self) -> Result<()> {
        use Kind::{Automaton, Pursuit, Q};
        let settings: [(&str, bool, &[Kind]); 7] = [
            ("b", self.b.is_some(), &[Automaton, Pursuit]),
            ("warm_up", self.warm_up.is_some(), &[Pursuit]),
            ("q_start", self.q_start.is_some(), &[Q]),
            ("alpha", self.alpha.is_some(), &[Q]),
            ("epsilon", self.epsilon.is_some(), &[Q]),
            ("epsilon_decay", self.epsilon_decay.is_some(), &[Q]),
            ("epsilon_min", self.epsilon_min.is_some(), &[Q]),
        ];
        for (key, given, learners) in settings {
            if given && !learners.contains(&self.kind()) {
                let learner = format!("{:?}", self.kind()).to_lowercase();
                return Err(Error::config(format!(
                    "`{key}` does nothing with the learner \"{learner}\""
                )));
            }
        }
        Ok(())
    }
}
