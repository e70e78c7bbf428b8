//! What every router must do, native or loaded from a shared library.

use std::time::Duration;

use llmpick_core::{
    ArmId, Candidate, Decision, Feedback, Locality, Mode, OutcomeKind, RouteId, Router,
    RouterError, Score, SelectRequest, Snapshot,
};

/// The result of one check: its name, and a sentence where it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// Why it failed, if so.
    pub failure: Option<String>,
}

/// Runs every check on routers from `make`, each on a fresh one.
///
/// # Panics
/// Naming every promise of [`Router`] that does not hold.
pub fn router_suite(make: impl Fn() -> Box<dyn Router>) {
    let failed: Vec<String> = router_checks(make)
        .into_iter()
        .filter_map(|check| Some(format!("{}: {}", check.name, check.failure?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The same, as data.
pub fn router_checks(make: impl Fn() -> Box<dyn Router>) -> Vec<Check> {
    type Run = fn(&dyn Fn() -> Box<dyn Router>) -> Result<(), String>;
    let all: [(&'static str, Run); 9] = [
        ("1 to 64 candidates", any_number_of_candidates),
        ("only eligible arms are chosen", only_eligible),
        ("no eligible arm is an answer of its own", none_eligible),
        ("same seed and state, same decision", deterministic),
        ("select does not learn", select_does_not_learn),
        ("a snapshot carries everything over", snapshot_restores),
        ("a bad state is refused and changes nothing", garbage_state),
        ("unknown numbers are survived", unknown_numbers),
        ("late and unknown feedback is survived", odd_feedback),
    ];
    all.into_iter()
        .map(|(name, run)| Check {
            name,
            failure: run(&make).err(),
        })
        .collect()
}

/// An eligible, measured candidate; arms with a higher number cost and know more.
///
/// # Panics
/// Never: the name is a valid one.
pub fn candidate(number: u32) -> Candidate {
    let id = match ArmId::new(format!("arm-{number}")) {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    };
    let cost = 1e-4 * f64::from(number + 1);
    Candidate {
        id,
        locality: Locality::Local,
        warm: true,
        eligible: true,
        context_tokens: 4096,
        price_in: cost * 1e3,
        price_out: cost * 2e3,
        est_cost: cost,
        cost_max: cost * 2.0,
        latency_ms: 100.0 * f64::from(number + 1),
        ttft_ms: 10.0 * f64::from(number + 1),
        score: 0.5,
        n_ok: 10,
        n_err: 0,
        inflight: 0,
    }
}

/// A request over `candidates` that allows single and any-win, two arms, and asks for no limits.
pub fn select_request(candidates: &[Candidate], seed: u64) -> SelectRequest<'_> {
    SelectRequest {
        route_id: RouteId(seed),
        seed,
        arms_epoch: 1,
        time_budget: Duration::from_secs(2),
        candidates,
        allowed_modes: &[Mode::Single, Mode::AnyWin],
        task: "",
        session: "",
        prompt: None,
        features: None,
        prompt_tokens: 100,
        max_new_tokens: 100,
        max_cost: f64::NAN,
        max_latency_ms: f64::NAN,
        min_score: f64::NAN,
        cost_budget: f64::NAN,
        max_arms: 2,
    }
}

fn pool(size: u32) -> Vec<Candidate> {
    (0..size).map(candidate).collect()
}

/// Asks, and holds the answer to the contract.
fn ask(router: &mut dyn Router, request: &SelectRequest<'_>) -> Result<Decision, String> {
    let decision = router
        .select(request)
        .map_err(|e| format!("select failed: {e}"))?;
    let choices = &decision.choices;
    let complain = |what: &str| Err(format!("{what}: {decision:?}"));
    if choices.is_empty() {
        return complain("no arm was chosen");
    }
    if choices.len() > request.max_arms as usize {
        return complain("more arms were chosen than may run");
    }
    for (place, &index) in choices.iter().enumerate() {
        match request.candidates.get(index as usize) {
            None => return complain("a choice is out of range"),
            Some(arm) if !arm.eligible => return complain("an ineligible arm was chosen"),
            Some(_) if choices[..place].contains(&index) => return complain("an arm came twice"),
            Some(_) => {}
        }
    }
    if !request.allowed_modes.contains(&decision.mode) {
        return complain("the mode is not allowed");
    }
    let probability = |p: f64| p.is_nan() || (0.0..=1.0).contains(&p);
    if !probability(decision.propensity) || !decision.marginals.iter().copied().all(probability) {
        return complain("a probability is none");
    }
    if !decision.marginals.is_empty() && decision.marginals.len() != request.candidates.len() {
        return complain("there must be one marginal per candidate");
    }
    Ok(decision)
}

/// One arm ran: the score depends on the arm and the round only.
fn outcome(arm: &Candidate, round: u64, position: u32) -> Feedback {
    let score = f64::from(u8::try_from((round * 7 + arm.n_ok) % 5).unwrap_or(0)) / 4.0;
    Feedback {
        route_id: RouteId(round),
        arm: arm.id.clone(),
        position,
        outcome: OutcomeKind::Ok,
        task: String::new(),
        features: Vec::new(),
        fallback: false,
        cold: false,
        prompt_tokens: 100,
        completion_tokens: 50,
        latency_ms: arm.latency_ms,
        ttft_ms: arm.ttft_ms,
        cost: arm.est_cost,
        score: Score::new(score).ok(),
    }
}

/// Runs rounds `from..to` and reports every outcome; answers the decisions.
fn live(
    router: &mut dyn Router,
    candidates: &[Candidate],
    rounds: std::ops::Range<u64>,
) -> Result<Vec<Decision>, String> {
    let mut decisions = Vec::new();
    for round in rounds {
        let decision = ask(router, &select_request(candidates, round))?;
        for (position, &index) in decision.choices.iter().enumerate() {
            let outcome = outcome(&candidates[index as usize], round, position as u32);
            router
                .feedback(&outcome)
                .map_err(|e| format!("feedback failed: {e}"))?;
        }
        decisions.push(decision);
    }
    Ok(decisions)
}

type Make<'a> = &'a dyn Fn() -> Box<dyn Router>;

fn any_number_of_candidates(make: Make<'_>) -> Result<(), String> {
    let mut router = make();
    for size in 1..=64 {
        let candidates = pool(size);
        ask(&mut *router, &select_request(&candidates, u64::from(size)))
            .map_err(|e| format!("with {size} candidates, {e}"))?;
    }
    Ok(())
}

fn only_eligible(make: Make<'_>) -> Result<(), String> {
    let mut router = make();
    for round in 0..200u64 {
        let mut candidates = pool(6);
        for (place, arm) in candidates.iter_mut().enumerate() {
            // Every pattern but "none" comes up.
            arm.eligible = (round % 63 + 1) >> place & 1 == 1;
        }
        live(&mut *router, &candidates, round..round + 1)?;
    }
    Ok(())
}

fn none_eligible(make: Make<'_>) -> Result<(), String> {
    let mut router = make();
    let mut candidates = pool(3);
    candidates.iter_mut().for_each(|arm| arm.eligible = false);
    for candidates in [&candidates[..], &[]] {
        match router.select(&select_request(candidates, 1)) {
            Err(RouterError::Abstained | RouterError::NoEligibleArm) => {}
            other => return Err(format!("answered {other:?}")),
        }
    }
    ask(&mut *router, &select_request(&pool(3), 2)).map(drop)
}

fn deterministic(make: Make<'_>) -> Result<(), String> {
    let candidates = pool(5);
    let first = live(&mut *make(), &candidates, 0..100)?;
    let second = live(&mut *make(), &candidates, 0..100)?;
    same(&first, &second)
}

fn select_does_not_learn(make: Make<'_>) -> Result<(), String> {
    let candidates = pool(5);
    let (mut asked, mut calm) = (make(), make());
    live(&mut *asked, &candidates, 0..50)?;
    live(&mut *calm, &candidates, 0..50)?;
    for seed in 1_000..1_050 {
        ask(&mut *asked, &select_request(&candidates, seed))?;
    }
    let state = |router: &mut dyn Router| router.snapshot().map_err(|e| e.to_string());
    if state(&mut *asked)? != state(&mut *calm)? {
        return Err("asking changed the learnt state".to_owned());
    }
    same(
        &live(&mut *asked, &candidates, 50..80)?,
        &live(&mut *calm, &candidates, 50..80)?,
    )
}

fn snapshot_restores(make: Make<'_>) -> Result<(), String> {
    let candidates = pool(5);
    let mut old = make();
    live(&mut *old, &candidates, 0..101)?;
    let snapshot = old.snapshot().map_err(|e| e.to_string())?;
    let mut new = make();
    new.restore(&snapshot).map_err(|e| e.to_string())?;
    if new.snapshot().map_err(|e| e.to_string())? != snapshot {
        return Err("the restored router writes another snapshot".to_owned());
    }
    same(
        &live(&mut *old, &candidates, 101..201)?,
        &live(&mut *new, &candidates, 101..201)?,
    )
}

fn garbage_state(make: Make<'_>) -> Result<(), String> {
    let candidates = pool(4);
    let (mut router, mut twin) = (make(), make());
    live(&mut *router, &candidates, 0..20)?;
    live(&mut *twin, &candidates, 0..20)?;
    let good = router.snapshot().map_err(|e| e.to_string())?;
    let mut bad = vec![
        Snapshot {
            version: good.version,
            state: b"\xff\x00 no state of anyone".to_vec(),
        },
        Snapshot {
            version: good.version.wrapping_add(1_000),
            ..good.clone()
        },
    ];
    if good.state.len() > 1 {
        bad.push(Snapshot {
            version: good.version,
            state: good.state[..good.state.len() / 2].to_vec(),
        });
    }
    for snapshot in bad {
        match router.restore(&snapshot) {
            Err(RouterError::State(why)) if !why.trim().is_empty() => {}
            other => return Err(format!("{snapshot:?} was answered with {other:?}")),
        }
    }
    same(
        &live(&mut *router, &candidates, 20..40)?,
        &live(&mut *twin, &candidates, 20..40)?,
    )
}

fn unknown_numbers(make: Make<'_>) -> Result<(), String> {
    let mut router = make();
    let mut candidates = pool(4);
    for arm in &mut candidates {
        let numbers = [
            &mut arm.price_in,
            &mut arm.price_out,
            &mut arm.est_cost,
            &mut arm.cost_max,
            &mut arm.latency_ms,
            &mut arm.ttft_ms,
            &mut arm.score,
        ];
        numbers.into_iter().for_each(|number| *number = f64::NAN);
        arm.n_ok = 0;
    }
    for round in 0..50 {
        let decision = ask(&mut *router, &select_request(&candidates, round))?;
        let ran = &candidates[decision.choices[0] as usize];
        let unknown = Feedback {
            ttft_ms: f64::NAN,
            latency_ms: f64::NAN,
            score: None,
            ..outcome(ran, round, 0)
        };
        router.feedback(&unknown).map_err(|e| e.to_string())?;
    }
    live(&mut *router, &pool(4), 50..100).map(drop)
}

fn odd_feedback(make: Make<'_>) -> Result<(), String> {
    let mut router = make();
    let candidates = pool(3);
    live(&mut *router, &candidates, 0..10)?;
    let stranger = outcome(&candidate(999), 3, 0);
    let late = outcome(&candidates[0], 2, 7);
    let failed = Feedback {
        outcome: OutcomeKind::Error,
        score: None,
        cost: f64::NAN,
        fallback: true,
        cold: true,
        ..outcome(&candidates[1], u64::MAX, 1)
    };
    for odd in [&stranger, &late, &late, &failed] {
        // It may say that it does not know the arm; it must not break.
        if let Err(RouterError::Fault(why)) = router.feedback(odd) {
            return Err(format!("{odd:?} broke it: {why}"));
        }
    }
    live(&mut *router, &candidates, 10..40).map(drop)
}

/// Compares by what was decided; NaN marginals are equal to themselves here.
fn same(left: &[Decision], right: &[Decision]) -> Result<(), String> {
    for (round, (l, r)) in left.iter().zip(right).enumerate() {
        if format!("{l:?}") != format!("{r:?}") {
            return Err(format!("round {round} differs: {l:?} against {r:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use llmpick_core::DecisionSource;

    use super::*;

    /// A router that can break one promise.
    #[derive(Default)]
    struct Fixture {
        pulls: u64,
        fault: &'static str,
    }

    impl Router for Fixture {
        fn name(&self) -> &str {
            "fixture"
        }

        fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
            let eligible: Vec<u32> = (0u32..)
                .zip(request.candidates)
                .filter_map(|(index, arm)| arm.eligible.then_some(index))
                .collect();
            if self.fault == "learns in select" {
                self.pulls += 1;
            }
            let mut pick = (self.pulls + request.seed) as usize;
            if self.fault == "has its own chance" {
                static CALLS: std::sync::atomic::AtomicUsize =
                    std::sync::atomic::AtomicUsize::new(0);
                pick += CALLS.fetch_add(1, std::sync::atomic::Ordering::SeqCst) / 7;
            }
            if self.fault == "ignores eligibility" {
                pick %= request.candidates.len().max(1);
            }
            let choice = match (self.fault, eligible.len()) {
                (_, 0) => return Err(RouterError::NoEligibleArm),
                ("ignores eligibility", _) => pick as u32,
                (_, n) => eligible[pick % n],
            };
            let mode = match self.fault {
                "picks a mode that is not allowed" => Mode::AllIn,
                _ => Mode::Single,
            };
            Ok(Decision {
                choices: vec![choice],
                mode,
                propensity: f64::NAN,
                marginals: vec![],
                reason: String::new(),
                source: DecisionSource::Router,
            })
        }

        fn feedback(&mut self, _: &Feedback) -> Result<(), RouterError> {
            self.pulls += 1;
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
            let pulls = match self.fault {
                "forgets" => 0,
                _ => self.pulls,
            };
            Ok(Snapshot {
                version: 1,
                state: pulls.to_le_bytes().to_vec(),
            })
        }

        fn restore(&mut self, snapshot: &Snapshot) -> Result<(), RouterError> {
            let bytes = <[u8; 8]>::try_from(&snapshot.state[..]);
            match (bytes, snapshot.version, self.fault) {
                (Ok(bytes), 1, _) => self.pulls = u64::from_le_bytes(bytes),
                (_, _, "takes any state") => self.pulls = 0,
                _ => return Err(RouterError::State("not mine".to_owned())),
            }
            Ok(())
        }
    }

    fn failures(fault: &'static str) -> Vec<&'static str> {
        let make = || Box::new(Fixture { pulls: 0, fault }) as Box<dyn Router>;
        router_checks(make)
            .into_iter()
            .filter_map(|check| check.failure.map(|_| check.name))
            .collect()
    }

    #[test]
    fn a_good_router_passes_and_each_broken_promise_is_found() {
        assert_eq!(failures(""), <[&str; 0]>::default());
        let found = [
            ("ignores eligibility", "only eligible arms are chosen"),
            ("has its own chance", "same seed and state, same decision"),
            ("learns in select", "select does not learn"),
            ("forgets", "a snapshot carries everything over"),
            (
                "takes any state",
                "a bad state is refused and changes nothing",
            ),
            ("picks a mode that is not allowed", "1 to 64 candidates"),
        ];
        for (fault, check) in found {
            assert!(failures(fault).contains(&check), "{fault}");
        }
    }
}
