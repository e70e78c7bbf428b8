//! Router plugin `pickllm`: settles on the one model that is best in accuracy, cost and
//! latency together (PickLLM, arXiv 2412.12170). The mathematics and their tests are in
//! `llmpick-bandit`.

#[path = "../../bridge.rs"]
mod bridge;

use bridge::NumberOr;
use llmpick_bandit::pickllm::{Method, PickLlm, PickLlmConfig, RewardConfig};
use llmpick_bandit::{Learner, chance};
use llmpick_plugin_sdk::{
    Choice, Error, Feedback, Host, Result, RouterPlugin, SelectRequest, export_plugins, from_json,
    to_json,
};
use serde::Deserialize;

export_plugins!(router Router);

struct Router(PickLlm);

impl RouterPlugin for Router {
    type Config = RawConfig;
    const NAME: &'static str = "pickllm";
    const DESCRIPTION: &'static str =
        "Settles on the one model best in accuracy, cost and latency together (PickLLM)";
    const CONFIG_SCHEMA: &'static str = include_str!("config.schema.json");
    const STATE_VERSION: u32 = 1;

    fn create(raw: RawConfig, _: Host) -> Result<Self> {
        PickLlm::new(raw.checked()?)
            .map(Router)
            .map_err(bridge::refuse)
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        let mut rng = chance::seeded(request.seed);
        let (mode, chosen) = bridge::ask(request, 1, None, |question| {
            self.0.select(question, &mut rng)
        })?;
        bridge::tell(mode, &chosen, choice);
        Ok(())
    }

    fn feedback(&mut self, feedback: &Feedback<'_>) -> Result<()> {
        bridge::observe(&mut self.0, feedback);
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        to_json(self.0.state())
    }

    fn restore(&mut self, _version: u32, state: &[u8]) -> Result<()> {
        let restored = self.0.restore(from_json(state)?);
        restored.map_err(|error| Error::state(error.to_string()))
    }
}

/// The settings as they are written; `config.schema.json` describes each.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    learner: Kind,
    weight_accuracy: f64,
    weight_cost: f64,
    weight_latency: f64,
    time_scaling: f64,
    reference_cost: NumberOr,
    contexts: bool,
    b: Option<f64>,
    warm_up: Option<u32>,
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
            learner: Kind::Automaton,
            weight_accuracy: reward.accuracy,
            weight_cost: reward.cost,
            weight_latency: reward.latency,
            time_scaling: reward.time_scaling,
            reference_cost: NumberOr::Word("largest".to_owned()),
            contexts: true,
            b: None,
            warm_up: None,
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
            method: self.method(),
            contexts: self.contexts,
        })
    }

    fn method(&self) -> Method {
        match self.learner {
            Kind::Automaton => Method::Automaton {
                step: self.b.unwrap_or(0.05),
            },
            Kind::Pursuit => Method::Pursuit {
                step: self.b.unwrap_or(0.05),
                warm_up: self.warm_up.unwrap_or(5),
            },
            Kind::Q => Method::QLearning {
                alpha: self.alpha.unwrap_or(0.1),
                epsilon: self.epsilon.unwrap_or(0.2),
                decay: self.epsilon_decay.unwrap_or(0.99),
                epsilon_min: self.epsilon_min.unwrap_or(0.01),
            },
        }
    }

    /// A setting that the chosen learner would never look at is a mistake, not a wish.
    fn refuse_idle_settings(&self) -> Result<()> {
        use Kind::{Automaton, Pursuit, Q};
        let settings: [(&str, bool, &[Kind]); 6] = [
            ("b", self.b.is_some(), &[Automaton, Pursuit]),
            ("warm_up", self.warm_up.is_some(), &[Pursuit]),
            ("alpha", self.alpha.is_some(), &[Q]),
            ("epsilon", self.epsilon.is_some(), &[Q]),
            ("epsilon_decay", self.epsilon_decay.is_some(), &[Q]),
            ("epsilon_min", self.epsilon_min.is_some(), &[Q]),
        ];
        for (key, given, learners) in settings {
            if given && !learners.contains(&self.learner) {
                let learner = format!("{:?}", self.learner).to_lowercase();
                return Err(Error::config(format!(
                    "`{key}` does nothing with the learner \"{learner}\""
                )));
            }
        }
        Ok(())
    }
}
