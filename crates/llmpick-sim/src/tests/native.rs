//! The learners of `llmpick-bandit` as routers, without a plugin between: what a loaded plugin
//! must agree with.

use llmpick_bandit::chance::seeded;
use llmpick_bandit::{ArmView, Ending, Learner, Mode as Model, Observation, Question};
use llmpick_core::{
    Decision, DecisionSource, Feedback, Mode, Router, RouterError, SelectRequest, Snapshot,
};

use crate::PlayError;

pub struct Native<L>(pub L);

/// As many routers of a learner as there are seeds.
pub fn native<L: Learner + Clone + Send + Sync + 'static>(
    learner: L,
) -> impl Fn() -> Result<Box<dyn Router>, PlayError> + Sync {
    move || Ok(Box::new(Native(learner.clone())))
}

impl<L: Learner + Send> Router for Native<L> {
    fn name(&self) -> &str {
        "native"
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        let view = request.candidates.iter().map(|candidate| ArmView {
            id: candidate.id.as_str(),
            eligible: candidate.eligible,
            est_cost: candidate.est_cost,
            cost_max: candidate.cost_max,
            price_in: candidate.price_in,
            price_out: candidate.price_out,
            inflight: candidate.inflight,
        });
        let arms: Vec<ArmView<'_>> = view.collect();
        let mode = request.allowed_modes[0];
        let question = Question {
            arms: &arms,
            mode: match mode {
                Mode::Single => Model::Single,
                Mode::AnyWin => Model::AnyWin,
                Mode::SumUp => Model::SumUp,
                Mode::AllIn => Model::AllIn,
            },
            max_arms: request.max_arms as usize,
            budget: request.cost_budget,
            context: request.task,
            features: request.features.unwrap_or_default(),
        };
        let choice = self.0.select(&question, &mut seeded(request.seed));
        let choice = choice.map_err(|_| RouterError::NoEligibleArm)?;
        Ok(Decision {
            choices: choice.order.iter().map(|&k| k as u32).collect(),
            mode,
            propensity: choice.propensity,
            marginals: choice.marginals,
            reason: choice.reason,
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        self.0.observe(&Observation {
            arm: feedback.arm.as_str(),
            position: feedback.position,
            ending: Ending::Answered,
            cost: feedback.cost,
            latency_ms: feedback.latency_ms,
            score: feedback.score.map(|score| score.get()),
            context: &feedback.task,
            features: &feedback.features,
            prompt_tokens: feedback.prompt_tokens,
            completion_tokens: feedback.completion_tokens,
        });
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        Err(RouterError::State("not in these tests".to_owned()))
    }

    fn restore(&mut self, _: &Snapshot) -> Result<(), RouterError> {
        Err(RouterError::State("not in these tests".to_owned()))
    }
}
