//! The router that needs no plugin and cannot fail.

use std::cmp::Ordering;

use llmpick_core::{
    Candidate, Decision, DecisionSource, Feedback, Mode, Router, RouterError, SelectRequest,
    Snapshot,
};

/// Chooses the eligible arm with the best measured score; where nothing was measured, a
/// warm one; among equals, the cheapest. Learns nothing, takes no chances, never faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct FallbackRouter;

impl FallbackRouter {
    /// A decision made because of `why`.
    pub(crate) fn decide(
        request: &SelectRequest<'_>,
        source: DecisionSource,
    ) -> Result<Decision, RouterError> {
        let eligible = (0u32..).zip(request.candidates).filter(|(_, c)| c.eligible);
        let (index, best) = eligible
            .reduce(|best, next| match better(next.1, best.1) {
                Ordering::Greater => next,
                _ => best,
            })
            .ok_or(RouterError::NoEligibleArm)?;
        let reason = match (best.score.is_nan(), best.warm) {
            (false, _) => "best measured score",
            (true, true) => "nothing is measured yet, and it is warm",
            (true, false) => "nothing is measured yet, and it is the cheapest",
        };
        let mut marginals = vec![0.0; request.candidates.len()];
        if let Some(marginal) = marginals.get_mut(index as usize) {
            *marginal = 1.0;
        }
        Ok(Decision {
            choices: vec![index],
            mode: mode(request.allowed_modes),
            propensity: 1.0,
            marginals,
            reason: reason.to_owned(),
            source,
        })
    }
}

/// `Greater` when `a` is to be preferred. Unknown numbers lose.
fn better(a: &Candidate, b: &Candidate) -> Ordering {
    let high = |number: f64| {
        if number.is_nan() {
            f64::NEG_INFINITY
        } else {
            number
        }
    };
    let low = |number: f64| {
        if number.is_nan() {
            f64::INFINITY
        } else {
            number
        }
    };
    high(a.score)
        .total_cmp(&high(b.score))
        .then(a.warm.cmp(&b.warm))
        .then(low(b.est_cost).total_cmp(&low(a.est_cost)))
}

fn mode(allowed: &[Mode]) -> Mode {
    match allowed {
        [] => Mode::Single,
        allowed if allowed.contains(&Mode::Single) => Mode::Single,
        [first, ..] => *first,
    }
}

impl Router for FallbackRouter {
    fn name(&self) -> &str {
        "fallback"
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        Self::decide(request, DecisionSource::Router)
    }

    fn feedback(&mut self, _: &Feedback) -> Result<(), RouterError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        let state = Vec::new();
        Ok(Snapshot { version: 0, state })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RouterError> {
        match (snapshot.version, snapshot.state.is_empty()) {
            (0, true) => Ok(()),
            _ => Err(RouterError::State("the fallback keeps no state".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use llmpick_testkit::{candidate, router_suite, select_request};

    use super::*;

    #[test]
    fn it_keeps_the_promises_of_a_router() {
        router_suite(|| Box::new(FallbackRouter));
    }

    #[test]
    fn score_then_warmth_then_price() {
        let choose = |change: fn(&mut [Candidate])| {
            let mut arms: Vec<Candidate> = (0..4).map(candidate).collect();
            for arm in &mut arms {
                (arm.score, arm.warm) = (f64::NAN, false);
            }
            change(&mut arms);
            FallbackRouter
                .select(&select_request(&arms, 1))
                .map(|decision| decision.choices)
        };
        assert_eq!(choose(|_| ()), Ok(vec![0]), "the cheapest");
        assert_eq!(choose(|arms| arms[3].warm = true), Ok(vec![3]));
        let measured = |arms: &mut [Candidate]| {
            arms[0].warm = true;
            arms[1].score = 0.4;
            arms[2].score = 0.7;
        };
        assert_eq!(choose(measured), Ok(vec![2]));
        let out = |arms: &mut [Candidate]| {
            arms[2].score = 0.7;
            arms[2].eligible = false;
        };
        assert_eq!(choose(out), Ok(vec![0]));
    }
}
