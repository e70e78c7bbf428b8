//! Choosing without the router: when it failed, and when the arms it chose did.

use llmpick_core::{ArmId, BackendError, Candidate, Decision, DecisionSource, Mode};

/// The best eligible arm outside `tried`: the best measured score, then warm ones, then the
/// cheapest, then the first. `None` when no arm is left.
pub(crate) fn best(candidates: &[Candidate], tried: &[usize]) -> Option<usize> {
    let known = |value: f64, otherwise: f64| if value.is_nan() { otherwise } else { value };
    let rank = |c: &Candidate| {
        (
            known(c.score, -1.0),
            f64::from(u8::from(c.warm)),
            -known(c.est_cost, f64::MAX),
        )
    };
    let mut best: Option<usize> = None;
    for (index, candidate) in candidates.iter().enumerate() {
        if !candidate.eligible || tried.contains(&index) {
            continue;
        }
        let better = best
            .and_then(|b| candidates.get(b))
            .is_none_or(|b| rank(candidate) > rank(b));
        if better {
            best = Some(index);
        }
    }
    best
}

/// Arms that need not be tried again after these failures: those that were, and those whose
/// context is known to be too small.
pub(crate) fn barred(
    candidates: &[Candidate],
    tried: &[usize],
    failures: &[(ArmId, BackendError)],
) -> Vec<usize> {
    let too_small = failures.iter().filter_map(|(_, error)| match error {
        BackendError::ContextExceeded { context_tokens, .. } => Some(*context_tokens),
        _ => None,
    });
    let too_small = too_small.max().unwrap_or(0);
    let places = candidates.iter().enumerate();
    places
        .filter(|(index, arm)| tried.contains(index) || arm.context_tokens <= too_small)
        .map(|(index, _)| index)
        .collect()
}

/// A plan of the one best arm. `None` when no arm is eligible.
pub(crate) fn plan(candidates: &[Candidate], modes: &[Mode], why: String) -> Option<Decision> {
    let choice = best(candidates, &[])?;
    Some(Decision {
        choices: vec![choice as u32],
        mode: modes.first().copied().unwrap_or(Mode::Single),
        propensity: f64::NAN,
        marginals: Vec::new(),
        reason: "best measured score, then warm, then cheapest".into(),
        source: DecisionSource::Fallback(why),
    })
}

/// Holds a router to its contract; the error says what it broke.
pub(crate) fn check(
    decision: &Decision,
    candidates: &[Candidate],
    modes: &[Mode],
    max_arms: u32,
) -> Result<(), String> {
    if decision.choices.is_empty() {
        return Err("the router chose no arm".into());
    }
    if decision.choices.len() > max_arms as usize {
        return Err(format!(
            "the router chose {} arms, and {max_arms} are allowed",
            decision.choices.len()
        ));
    }
    if !modes.contains(&decision.mode) {
        return Err(format!(
            "the router chose the mode {:?}, which is not allowed",
            decision.mode
        ));
    }
    if !decision.marginals.is_empty() && decision.marginals.len() != candidates.len() {
        return Err("the router gave marginals for other arms than there are".into());
    }
    for (place, choice) in decision.choices.iter().enumerate() {
        let candidate = candidates
            .get(*choice as usize)
            .ok_or_else(|| format!("the router chose arm number {choice}, which does not exist"))?;
        if !candidate.eligible {
            return Err(format!(
                "the router chose `{}`, which is not eligible",
                candidate.id
            ));
        }
        if decision.choices.iter().take(place).any(|c| c == choice) {
            return Err(format!("the router chose `{}` twice", candidate.id));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmpick_testkit::candidate;

    /// Three candidates after `change`, and who is best.
    fn check(change: impl Fn(&mut [Candidate])) -> Option<usize> {
        let mut candidates: Vec<Candidate> = (0..3).map(candidate).collect();
        for candidate in &mut candidates {
            candidate.score = f64::NAN;
            candidate.warm = false;
            candidate.est_cost = f64::NAN;
        }
        change(&mut candidates);
        best(&candidates, &[])
    }

    #[test]
    fn measured_score_goes_before_warmth_before_price_before_place() {
        assert_eq!(check(|_| {}), Some(0));
        assert_eq!(check(|c| c[2].est_cost = 1.0), Some(2));
        assert_eq!(
            check(|c| {
                c[2].est_cost = 1.0;
                c[1].warm = true;
            }),
            Some(1)
        );
        assert_eq!(
            check(|c| {
                c[1].warm = true;
                c[0].score = 0.1;
            }),
            Some(0)
        );
        assert_eq!(
            check(|c| c.iter_mut().for_each(|c| c.eligible = false)),
            None
        );
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        let candidates: Vec<Candidate> = (0..2).map(candidate).collect();
        assert_eq!(best(&candidates, &[0]), Some(1));
        assert_eq!(best(&candidates, &[1, 0]), None);
    }
}
