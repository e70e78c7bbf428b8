//! Whether what a router wrote is a decision.

use llmpick_core::{Decision, DecisionSource, Mode, SelectRequest};

use crate::Rounding;
use crate::instance::{RawDecision, mode_bit};
use crate::schedule::{TOLERANCE, draw};

/// The decision, or a sentence about what is wrong with it. Probabilities that are none
/// become unknown: they are for the record only, and the choice stands without them.
pub(crate) fn check(
    raw: RawDecision,
    request: &SelectRequest<'_>,
    multi_select: bool,
    rounding: Rounding,
) -> Result<Decision, String> {
    if raw.choices_len > raw.choices_cap {
        return Err(format!(
            "it says that it chose {} arms where {} may run",
            raw.choices_len, raw.choices_cap
        ));
    }
    let mode = mode(raw.mode, request.allowed_modes)?;
    if raw.choices_len == 0 {
        return marginals_only(raw, mode, request, rounding);
    }
    if raw.choices.len() > 1 && !multi_select {
        return Err("it chose several arms without declaring that it may".to_owned());
    }
    for (place, &index) in raw.choices.iter().enumerate() {
        match request.candidates.get(index as usize) {
            None => {
                let count = request.candidates.len();
                return Err(format!("it chose arm {index} of {count}"));
            }
            Some(arm) if !arm.eligible => {
                return Err(format!("it chose `{}`, which is not eligible", arm.id));
            }
            Some(arm) if raw.choices[..place].contains(&index) => {
                return Err(format!("it chose `{}` twice", arm.id));
            }
            Some(_) => {}
        }
    }
    Ok(Decision {
        choices: raw.choices,
        mode,
        propensity: probability(raw.propensity),
        marginals: known(raw.marginals),
        reason: raw.reason,
        source: DecisionSource::Router,
    })
}

fn mode(bits: u32, allowed: &[Mode]) -> Result<Mode, String> {
    let all = [Mode::Single, Mode::AnyWin, Mode::SumUp, Mode::AllIn];
    let mode = all.into_iter().find(|&mode| mode_bit(mode) == bits);
    let mode = mode.ok_or_else(|| format!("it chose mode {bits:#x}, which is not one mode"))?;
    match allowed.contains(&mode) {
        true => Ok(mode),
        false => Err(format!("it chose mode {mode:?}, which is not allowed here")),
    }
}

/// "Round for me": the set is drawn here from the marginals and the request's seed, or by the
/// caller's scheduler.
fn marginals_only(
    raw: RawDecision,
    mode: Mode,
    request: &SelectRequest<'_>,
    rounding: Rounding,
) -> Result<Decision, String> {
    for (arm, &marginal) in request.candidates.iter().zip(&raw.marginals) {
        let fits = (0.0..=1.0).contains(&marginal) && (arm.eligible || marginal == 0.0);
        // An ineligible arm may as well be left unknown.
        if !fits && (arm.eligible || !marginal.is_nan()) {
            return Err(format!(
                "it chose no arm, and {marginal} is no marginal to draw `{}` by",
                arm.id
            ));
        }
    }
    let marginals: Vec<f64> = raw.marginals.iter().map(|m| m.max(0.0)).collect();
    let total: f64 = marginals.iter().sum();
    let most = f64::from(raw.choices_cap);
    if total < TOLERANCE || total > most + TOLERANCE {
        return Err(format!(
            "it chose no arm, and its marginals add up to {total} where 0 to {most} arms may run"
        ));
    }
    Ok(Decision {
        choices: match rounding {
            Rounding::Host => draw(&marginals, request.seed, raw.choices_cap),
            Rounding::Caller => Vec::new(),
        },
        mode,
        propensity: f64::NAN,
        marginals,
        reason: raw.reason,
        source: DecisionSource::Router,
    })
}

/// All marginals, or none if none is known.
fn known(marginals: Vec<f64>) -> Vec<f64> {
    let marginals: Vec<f64> = marginals.into_iter().map(probability).collect();
    match marginals.iter().all(|marginal| marginal.is_nan()) {
        true => Vec::new(),
        false => marginals,
    }
}

/// A probability, forgiven a rounding error, or NaN.
fn probability(raw: f64) -> f64 {
    if (-TOLERANCE..=1.0 + TOLERANCE).contains(&raw) {
        raw.clamp(0.0, 1.0)
    } else {
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use llmpick_core::Candidate;
    use llmpick_testkit::{candidate, select_request};

    use super::*;

    fn raw(choices: &[u32]) -> RawDecision {
        RawDecision {
            mode: mode_bit(Mode::AnyWin),
            choices_len: choices.len() as u32,
            choices_cap: 2,
            choices: choices.to_vec(),
            propensity: 0.5,
            marginals: vec![f64::NAN; 4],
            reason: "why".to_owned(),
        }
    }

    /// Four arms, of which number 3 is not eligible; two may run.
    fn judge(raw: RawDecision) -> Result<Decision, String> {
        let mut arms: Vec<Candidate> = (0..4).map(candidate).collect();
        arms[3].eligible = false;
        check(raw, &select_request(&arms, 1), true, Rounding::Host)
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let why = |raw| judge(raw).map(|d| d.choices);
        let err = |text: &str| Err(text.to_owned());
        assert_eq!(why(raw(&[2, 0])), Ok(vec![2, 0]));
        assert_eq!(why(raw(&[4])), err("it chose arm 4 of 4"));
        assert_eq!(why(raw(&[1, 1])), err("it chose `arm-1` twice"));
        assert_eq!(
            why(raw(&[3])),
            err("it chose `arm-3`, which is not eligible")
        );
        let long = RawDecision {
            choices_len: 1_000_000,
            ..raw(&[0, 1])
        };
        assert_eq!(
            why(long),
            err("it says that it chose 1000000 arms where 2 may run")
        );
        for (mode, text) in [
            (0, "it chose mode 0x0, which is not one mode"),
            (3, "it chose mode 0x3, which is not one mode"),
            (8, "it chose mode AllIn, which is not allowed here"),
        ] {
            assert_eq!(why(RawDecision { mode, ..raw(&[0]) }), err(text));
        }
        let mut arms = [candidate(0), candidate(1)];
        arms.iter_mut().for_each(|arm| arm.eligible = true);
        let single = check(
            raw(&[0, 1]),
            &select_request(&arms, 1),
            false,
            Rounding::Host,
        );
        assert_eq!(
            single,
            Err("it chose several arms without declaring that it may".to_owned())
        );
    }

    #[test]
    fn a_probability_that_is_none_becomes_unknown() {
        let odd = RawDecision {
            propensity: 1.5,
            marginals: vec![0.25, -1.0, f64::INFINITY, 1.0 + 1e-9],
            ..raw(&[0])
        };
        let Ok(decision) = judge(odd) else {
            panic!("the choice itself was good");
        };
        assert!(decision.propensity.is_nan());
        assert_eq!(format!("{:?}", decision.marginals), "[0.25, NaN, NaN, 1.0]");
        let none = judge(raw(&[0])).map(|d| d.marginals);
        assert_eq!(none, Ok(vec![]));
    }

    #[test]
    fn the_host_rounds_what_it_is_asked_to_round() {
        let ask = |marginals: [f64; 4]| RawDecision {
            marginals: marginals.to_vec(),
            ..raw(&[])
        };
        let Ok(decision) = judge(ask([1.0, 0.4, 0.6, f64::NAN])) else {
            panic!("these can be rounded");
        };
        assert_eq!(decision.choices.len(), 2);
        assert_eq!(decision.choices[0], 0, "a certain arm comes first");
        assert_eq!(
            judge(ask([0.0, 0.01, 0.0, 0.0])).map(|d| d.choices),
            Ok(vec![1])
        );
        for bad in [
            [0.5, f64::NAN, 0.5, 0.0],
            [0.5, 0.5, 0.5, 0.5],
            [1.0, 1.0, 1.0, 0.0],
            [0.0; 4],
            [2.0, 0.0, 0.0, 0.0],
        ] {
            assert!(judge(ask(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_scheduler_draws_what_the_host_would_have_drawn() {
        use llmpick_core::{ScheduleRequest, ScheduledArm, Scheduler};
        let arms: Vec<Candidate> = (0..4).map(candidate).collect();
        for seed in 0..500 {
            let ask = || RawDecision {
                marginals: vec![0.9, 0.3, 0.5, 0.3],
                ..raw(&[])
            };
            let request = select_request(&arms, seed);
            let Ok(here) = check(ask(), &request, true, Rounding::Host) else {
                panic!("these can be rounded");
            };
            let Ok(open) = check(ask(), &request, true, Rounding::Caller) else {
                panic!("these can be handed on");
            };
            assert!(open.choices.is_empty() && open.marginals == here.marginals);
            let scheduled: Vec<ScheduledArm> = arms
                .iter()
                .zip(&open.marginals)
                .map(|(arm, &marginal)| ScheduledArm {
                    id: arm.id.clone(),
                    eligible: arm.eligible,
                    marginal,
                })
                .collect();
            let drawn = crate::LocalScheduler.schedule(&ScheduleRequest {
                route_id: request.route_id,
                seed,
                stream: "",
                arms: &scheduled,
                mode: open.mode,
                max_arms: 2,
                time_budget: request.time_budget,
            });
            assert_eq!(drawn.map(|s| s.choices), Ok(here.choices));
        }
    }

    #[test]
    fn rounding_keeps_the_marginals() {
        let arms: Vec<Candidate> = (0..4).map(candidate).collect();
        let marginals = [0.9, 0.3, 0.5, 0.3];
        let mut runs = [0.0; 4];
        let rounds = 20_000;
        for seed in 0..rounds {
            let ask = RawDecision {
                marginals: marginals.to_vec(),
                ..raw(&[])
            };
            let decision = check(ask, &select_request(&arms, seed), true, Rounding::Host);
            for index in decision.map(|d| d.choices).unwrap_or_default() {
                runs[index as usize] += 1.0 / rounds as f64;
            }
        }
        for (share, marginal) in runs.into_iter().zip(marginals) {
            assert!((share - marginal).abs() < 0.015, "{runs:?}");
        }
    }
}
