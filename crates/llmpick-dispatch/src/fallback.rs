//! Choosing without the router: when it failed, and when the arms it chose did.

use llmpick_core::{Candidate, Decision, DecisionSource, Mode};

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
