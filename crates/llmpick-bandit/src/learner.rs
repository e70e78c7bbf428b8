//! The words all learners share: what they are asked, what they answer, what they see.

use rand::RngCore;

/// The reward model of one request: how the chosen arms work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One arm.
    Single,
    /// AWC, r(S) = 1 − Π(1−μ): a cascade that stops at the first success.
    AnyWin,
    /// SUC, r(S) = Σμ: each arm does a part, parts add up.
    SumUp,
    /// AIC, r(S) = Πμ: every part must succeed.
    AllIn,
}

impl Mode {
    /// The mode a router should use among those the host will run: one arm where only one may
    /// run, else the richest on offer. `None` if nothing is allowed.
    pub fn preferred(max_arms: usize, allowed: impl Fn(Mode) -> bool) -> Option<Mode> {
        let order = if max_arms <= 1 {
            [Mode::Single, Mode::AnyWin, Mode::SumUp, Mode::AllIn]
        } else {
            [Mode::AnyWin, Mode::SumUp, Mode::AllIn, Mode::Single]
        };
        order.into_iter().find(|mode| allowed(*mode))
    }

    /// r(S; μ) of the arms with these mean rewards (C2MAB-V, section 3).
    pub fn reward(self, means: impl IntoIterator<Item = f64>) -> f64 {
        let mut means = means.into_iter();
        match self {
            Mode::Single => means.next().unwrap_or(0.0),
            Mode::AnyWin => 1.0 - means.map(|mean| 1.0 - mean).product::<f64>(),
            Mode::SumUp => means.sum(),
            Mode::AllIn => means.product(),
        }
    }
}

/// What a learner is told of one arm, for one request. Money is in the caller's unit, the
/// same one everywhere; NaN means unknown.
#[derive(Clone, Copy, Debug)]
pub struct ArmView<'a> {
    /// Stable name, the key of everything learnt.
    pub id: &'a str,
    /// May be chosen.
    pub eligible: bool,
    /// Expected cost of this request; NaN where unknown.
    pub est_cost: f64,
    /// Upper bound of the cost of this request; NaN where unknown.
    pub cost_max: f64,
    /// Price of 10⁶ prompt tokens; NaN where unknown.
    pub price_in: f64,
    /// Price of 10⁶ completion tokens; NaN where unknown.
    pub price_out: f64,
    /// Calls running or queued now, whose costs nobody knows yet.
    pub inflight: u32,
}

impl<'a> ArmView<'a> {
    /// An eligible arm of which nothing else is known.
    pub fn stranger(id: &'a str) -> Self {
        Self {
            id,
            eligible: true,
            est_cost: f64::NAN,
            cost_max: f64::NAN,
            price_in: f64::NAN,
            price_out: f64::NAN,
            inflight: 0,
        }
    }
}

/// One request for a decision.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// All arms, eligible or not.
    pub arms: &'a [ArmView<'a>],
    /// How the chosen ones will work together.
    pub mode: Mode,
    /// N, the most arms that may be chosen; 0 counts as 1.
    pub max_arms: usize,
    /// ρ, the long-term budget per request; NaN or infinite for none.
    pub budget: f64,
    /// Context tag, may be empty.
    pub context: &'a str,
    /// Features of the request, may be empty.
    pub features: &'a [f32],
}

impl Question<'_> {
    /// Indexes of the arms that may be chosen.
    pub(crate) fn eligible(&self) -> Result<Vec<usize>, NoArm> {
        // A filter does not know how much it will let through.
        let mut eligible = Vec::with_capacity(self.arms.len());
        eligible.extend((0..self.arms.len()).filter(|&k| self.arms[k].eligible));
        if eligible.is_empty() {
            return Err(NoArm);
        }
        Ok(eligible)
    }

    /// N for so many eligible arms: at least 1, and 1 where one arm is the mode.
    pub(crate) fn size(&self, eligible: usize) -> usize {
        match self.mode {
            Mode::Single => 1,
            _ => self.max_arms.clamp(1, eligible.max(1)),
        }
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Indexes into the arms of the question, in the order they should run; at least one.
    pub order: Vec<usize>,
    /// P(arm is chosen) for each arm of the question; NaN where unknown.
    pub marginals: Vec<f64>,
    /// P(exactly this set is chosen); NaN where unknown.
    pub propensity: f64,
    /// Why, for people.
    pub reason: String,
}

/// How an arm's call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It answered.
    Answered,
    /// It failed or took too long: a score of 0, whatever was given.
    Failed,
    /// Somebody stopped it: it teaches nothing.
    Cancelled,
}

/// What one arm that ran gave back. May be late or out of order.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// The arm.
    pub arm: &'a str,
    /// Its place in the plan.
    pub position: u32,
    /// How its call ended.
    pub ending: Ending,
    /// What it cost; NaN for a later score of a call already observed.
    pub cost: f64,
    /// Whole response in ms; NaN where unknown.
    pub latency_ms: f64,
    /// The grade in 0..=1; `None` when nothing scored it.
    pub score: Option<f64>,
    /// Context tag, may be empty.
    pub context: &'a str,
    /// Features the request had, may be empty.
    pub features: &'a [f32],
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
}

impl Default for Observation<'_> {
    /// An answer of nobody, of unknown cost, latency and score.
    fn default() -> Self {
        Self {
            arm: "",
            position: 0,
            ending: Ending::Answered,
            cost: f64::NAN,
            latency_ms: f64::NAN,
            score: None,
            context: "",
            features: &[],
            prompt_tokens: 0,
            completion_tokens: 0,
        }
    }
}

impl Observation<'_> {
    /// The reward X, if this observation has one.
    pub(crate) fn reward(&self) -> Option<f64> {
        match self.ending {
            Ending::Cancelled => None,
            Ending::Failed => Some(0.0),
            Ending::Answered => self.score.filter(|x| (0.0..=1.0).contains(x)),
        }
    }

    /// The cost y, if this observation has one.
    pub(crate) fn paid(&self) -> Option<f64> {
        let known = self.ending != Ending::Cancelled && self.cost.is_finite() && self.cost >= 0.0;
        known.then_some(self.cost)
    }

    /// True for the one observation that completes a round: the plan's first arm, with its
    /// cost. A late score has none, so no round is ever counted twice.
    pub(crate) fn completes_round(&self) -> bool {
        self.position == 0 && self.paid().is_some()
    }
}

/// Chooses arms and learns from what comes back.
pub trait Learner {
    /// Chooses. Takes `&self`: a decision never changes what was learnt.
    fn select(
        &self,
        question: &Question<'_>,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Choice, NoArm>;

    /// Learns from one arm that ran.
    fn observe(&mut self, observation: &Observation<'_>);
}

/// No arm of the question may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no arm is eligible")]
pub struct NoArm;

/// Learnt state with numbers that no observations lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the learnt state holds impossible numbers")]
pub struct UnsoundState;

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{key}` must be {expected}, not {given}")]
pub struct ConfigError {
    /// The setting.
    pub key: &'static str,
    /// What would have been right, completing "must be …".
    pub expected: &'static str,
    /// What was given.
    pub given: f64,
}

impl ConfigError {
    /// Fails unless `given` lies in the range.
    pub(crate) fn check(
        key: &'static str,
        given: f64,
        range: impl std::ops::RangeBounds<f64>,
        expected: &'static str,
    ) -> Result<(), ConfigError> {
        if given.is_finite() && range.contains(&given) {
            return Ok(());
        }
        Err(ConfigError {
            key,
            expected,
            given,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_arm_or_the_richest_mode_on_offer() {
        let chat = |mode| matches!(mode, Mode::Single | Mode::AnyWin);
        assert_eq!(Mode::preferred(1, chat), Some(Mode::Single));
        assert_eq!(Mode::preferred(3, chat), Some(Mode::AnyWin));
        assert_eq!(
            Mode::preferred(1, |mode| mode == Mode::SumUp),
            Some(Mode::SumUp)
        );
        assert_eq!(
            Mode::preferred(4, |mode| mode == Mode::Single),
            Some(Mode::Single)
        );
        assert_eq!(Mode::preferred(4, |_| false), None);
    }
}
