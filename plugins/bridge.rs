//! From a learner of `llmpick-bandit` to a router plugin and back.
//!
//! The routers of this folder include this file (`#[path]`), so that each plugin is its
//! settings and nothing else. Unknown numbers are `None` on the plugin's side and NaN on the
//! learner's.

use llmpick_bandit::{
    ArmView, Choice as Chosen, ConfigError, Ending, Learner, Mode as Model, NoArm, Observation,
    Question,
};
use llmpick_plugin_sdk::{Choice, Error, Feedback, Mode, Outcome, Result, SelectRequest};
use serde::de::{Deserialize, Deserializer, Visitor};

/// Asks the question of a request: at most `max_arms` arms, ρ from the settings where the
/// request names none. Abstains where no arm may run or the host allows no mode we know.
pub fn ask<T>(
    request: &SelectRequest<'_>,
    max_arms: usize,
    budget: Option<f64>,
    answer: impl FnOnce(&Question<'_>) -> std::result::Result<T, NoArm>,
) -> Result<(Mode, T)> {
    let max_arms = request.max_arms.min(max_arms).max(1);
    let allowed = |model| request.allows(mode(model));
    let model = Model::preferred(max_arms, allowed).ok_or_else(Error::abstain)?;
    let views = request.candidates.iter().map(|candidate| ArmView {
        id: candidate.id,
        eligible: candidate.eligible,
        est_cost: candidate.est_cost.unwrap_or(f64::NAN),
        cost_max: candidate.cost_max.unwrap_or(f64::NAN),
        price_in: candidate.price_in.unwrap_or(f64::NAN),
        price_out: candidate.price_out.unwrap_or(f64::NAN),
        inflight: candidate.inflight,
    });
    let arms: Vec<ArmView<'_>> = views.collect();
    let question = Question {
        arms: &arms,
        mode: model,
        max_arms,
        budget: request.cost_budget.or(budget).unwrap_or(f64::NAN),
        context: request.task,
        features: request.features,
    };
    let answer = answer(&question).map_err(|NoArm| Error::abstain())?;
    Ok((mode(model), answer))
}

/// Hands a decision to the host.
pub fn tell(mode: Mode, chosen: &Chosen, choice: &mut Choice<'_>) {
    choice
        .mode(mode)
        .order(chosen.order.iter().copied())
        .reason(&chosen.reason);
    marginals(&chosen.marginals, choice);
    if !chosen.propensity.is_nan() {
        choice.propensity(chosen.propensity);
    }
}

/// Hands the marginals to the host, if they are known.
pub fn marginals(marginals: &[f64], choice: &mut Choice<'_>) {
    for (k, &p) in marginals.iter().enumerate().filter(|(_, p)| !p.is_nan()) {
        choice.marginal(k, p);
    }
}

/// Lets a learner see what came back.
pub fn observe(learner: &mut impl Learner, feedback: &Feedback<'_>) {
    let ending = match feedback.outcome {
        Outcome::Ok => Ending::Answered,
        Outcome::Error | Outcome::Timeout => Ending::Failed,
        // An ending from a newer host is no evidence against the arm.
        _ => Ending::Cancelled,
    };
    learner.observe(&Observation {
        arm: feedback.candidate_id,
        position: feedback.position,
        ending,
        cost: feedback.cost.unwrap_or(f64::NAN),
        latency_ms: feedback.latency_ms.unwrap_or(f64::NAN),
        score: feedback.score,
        context: feedback.task,
        features: feedback.features,
        prompt_tokens: feedback.prompt_tokens,
        completion_tokens: feedback.completion_tokens,
    });
}

/// A setting outside its range, as the host hears of it.
pub fn refuse(error: ConfigError) -> Error {
    Error::config(error.to_string())
}

/// A setting that is a number or one word, such as `"anytime"`.
#[derive(Clone, Debug, PartialEq)]
pub enum NumberOr {
    /// A number.
    Number(f64),
    /// A word.
    Word(String),
}

impl NumberOr {
    /// The number, or `None` for the one word that is allowed.
    pub fn or_word(&self, key: &str, word: &str) -> Result<Option<f64>> {
        match self {
            NumberOr::Number(number) => Ok(Some(*number)),
            NumberOr::Word(given) if given == word => Ok(None),
            NumberOr::Word(given) => Err(Error::config(format!(
                "`{key}` must be a number or \"{word}\", not \"{given}\""
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for NumberOr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = NumberOr;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number or a word")
            }
            fn visit_f64<E>(self, x: f64) -> std::result::Result<NumberOr, E> {
                Ok(NumberOr::Number(x))
            }
            fn visit_u64<E>(self, x: u64) -> std::result::Result<NumberOr, E> {
                Ok(NumberOr::Number(x as f64))
            }
            fn visit_i64<E>(self, x: i64) -> std::result::Result<NumberOr, E> {
                Ok(NumberOr::Number(x as f64))
            }
            fn visit_str<E>(self, word: &str) -> std::result::Result<NumberOr, E> {
                Ok(NumberOr::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn mode(model: Model) -> Mode {
    match model {
        Model::Single => Mode::Single,
        Model::AnyWin => Mode::AnyWin,
        Model::SumUp => Mode::SumUp,
        Model::AllIn => Mode::AllIn,
    }
}
