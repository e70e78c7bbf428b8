//! Promises of a router: what it chooses, what it learns, what it keeps.

use llmpick_plugin_abi as abi;

use super::Test;
use super::child::step;
use super::inputs::{Arm, Ask, Feedback, arm, share};
use super::subject::{Answer, Plugin, Subject, said};
use crate::call::CallError;
use crate::library::Table;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "1 to 64 candidates",
        run: any_number,
    },
    Test {
        name: "no eligible arm: it abstains",
        run: none_eligible,
    },
    Test {
        name: "only eligible arms are chosen",
        run: only_eligible,
    },
    Test {
        name: "only an allowed mode, and no more arms than may run",
        run: modes,
    },
    Test {
        name: "same seed and state, same decision",
        run: deterministic,
    },
    Test {
        name: "select learns nothing",
        run: select_learns_nothing,
    },
    Test {
        name: "snapshot, restore, and the same next 100 decisions",
        run: restores,
    },
    Test {
        name: "a bad state is refused and changes nothing",
        run: bad_state,
    },
    Test {
        name: "unknown numbers (NaN) everywhere",
        run: unknown_numbers,
    },
    Test {
        name: "late, repeated and unknown feedback",
        run: odd_feedback,
    },
];

/// A decision that keeps the contract; two are compared by [`same`].
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub mode: u32,
    /// Empty where the host shall draw the set.
    pub choices: Vec<u32>,
    pub propensity: f64,
    pub marginals: Vec<f64>,
    pub reason: String,
}

/// Asks, and holds the answer to the header.
pub(super) fn ask(subject: &mut Subject, plugin: &Plugin, ask: &Ask) -> Result<Decision, String> {
    match subject.select(ask) {
        Ok(answer) => check(answer, ask, plugin.info.caps),
        Err(error) if error.status == abi::E_ABSTAIN => Err(format!(
            "it abstained where {} arms were eligible",
            ask.arms.iter().filter(|arm| arm.eligible()).count()
        )),
        Err(error) => Err(format!("select failed: {}", said(&error))),
    }
}

/// How far a sum of probabilities may be off.
const TOLERANCE: f64 = 1e-6;

pub(super) fn check(answer: Answer, ask: &Ask, caps: u64) -> Result<Decision, String> {
    let count = ask.arms.len();
    if answer.choices_len > answer.choices_cap {
        return Err(format!(
            "it says that it chose {} arms where {} may run",
            answer.choices_len, answer.choices_cap
        ));
    }
    if !answer.mode.is_power_of_two() || answer.mode > abi::MODE_ALL_IN {
        let mode = answer.mode;
        return Err(format!("it chose mode {mode:#x}, which is not one mode"));
    }
    if answer.mode & ask.raw.allowed_modes == 0 {
        let (mode, allowed) = (answer.mode, ask.raw.allowed_modes);
        return Err(format!(
            "it chose mode {mode:#x}, and allowed were {allowed:#x}"
        ));
    }
    if answer.choices.len() > 1 && caps & abi::CAP_MULTI_SELECT == 0 {
        return Err("it chose several arms without the capability MULTI_SELECT".to_owned());
    }
    for (place, &index) in answer.choices.iter().enumerate() {
        match ask.arms.get(index as usize) {
            None => return Err(format!("it chose arm {index} of {count}")),
            Some(arm) if !arm.eligible() => {
                return Err(format!("it chose `{}`, which is not eligible", arm.id));
            }
            Some(arm) if answer.choices[..place].contains(&index) => {
                return Err(format!("it chose `{}` twice", arm.id));
            }
            Some(_) => {}
        }
    }
    if !is_probability(answer.propensity) {
        return Err(format!(
            "its propensity is {}, which is no probability",
            answer.propensity
        ));
    }
    if let Some(odd) = answer.marginals.iter().find(|&&p| !is_probability(p)) {
        return Err(format!(
            "one of its marginals is {odd}, which is no probability"
        ));
    }
    if answer.choices.is_empty() {
        can_be_drawn(&answer, ask)?;
    }
    let room = 256;
    if answer.reason_len > room {
        return Err(format!(
            "it says that its reason has {} bytes where there is room for {room}",
            answer.reason_len
        ));
    }
    let reason =
        String::from_utf8(answer.reason).map_err(|_| "its reason is no UTF-8 text".to_owned())?;
    Ok(Decision {
        mode: answer.mode,
        choices: answer.choices,
        propensity: answer.propensity,
        marginals: answer.marginals,
        reason,
    })
}

/// A probability, forgiven a rounding error, or NaN for one that is not known.
fn is_probability(p: f64) -> bool {
    p.is_nan() || (-TOLERANCE..=1.0 + TOLERANCE).contains(&p)
}

/// "Round for me" needs marginals to draw by.
fn can_be_drawn(answer: &Answer, ask: &Ask) -> Result<(), String> {
    for (arm, &marginal) in ask.arms.iter().zip(&answer.marginals) {
        let fits = !marginal.is_nan() && (arm.eligible() || marginal == 0.0);
        if !fits && (arm.eligible() || !marginal.is_nan()) {
            return Err(format!(
                "it chose no arm, and {marginal} is no marginal to draw `{}` by",
                arm.id
            ));
        }
    }
    let total: f64 = answer.marginals.iter().filter(|p| !p.is_nan()).sum();
    let most = f64::from(answer.choices_cap);
    if total < TOLERANCE || total > most + TOLERANCE {
        return Err(format!(
            "it chose no arm, and its marginals add up to {total} where 0 to {most} arms may run"
        ));
    }
    Ok(())
}

/// The arms that run by this decision. Where the host shall draw, one is drawn here, by the
/// marginals.
pub(super) fn runs(decision: &Decision, ask: &Ask) -> Vec<u32> {
    if !decision.choices.is_empty() {
        return decision.choices.clone();
    }
    let known = |p: &f64| if p.is_nan() { 0.0 } else { *p };
    let total: f64 = decision.marginals.iter().map(known).sum();
    let mut left = share(ask.raw.seed ^ 0xd1ce) * total;
    let mut last = 0;
    for (index, p) in (0u32..).zip(decision.marginals.iter().map(known)) {
        if p > 0.0 {
            last = index;
            left -= p;
            if left <= 0.0 {
                break;
            }
        }
    }
    vec![last]
}

/// Runs these rounds over `arms` and reports every outcome.
pub(super) fn live(
    subject: &mut Subject,
    plugin: &Plugin,
    arms: &[Arm],
    rounds: std::ops::Range<u64>,
) -> Result<Vec<Decision>, String> {
    let mut decisions = Vec::new();
    for round in rounds {
        let asked = Ask::over(arms.to_vec(), round);
        decisions.push(one_round(subject, plugin, &asked)?);
    }
    Ok(decisions)
}

/// Asks, runs, reports.
pub(super) fn one_round(
    subject: &mut Subject,
    plugin: &Plugin,
    asked: &Ask,
) -> Result<Decision, String> {
    let decision = ask(subject, plugin, asked)?;
    for (position, index) in (0..).zip(runs(&decision, asked)) {
        let ran = &asked.arms[index as usize];
        told(subject.feedback(&Feedback::new(asked, ran, position)))?;
    }
    Ok(decision)
}

/// Feedback about an arm of the request must be taken.
pub(super) fn told(result: Result<(), CallError>) -> Result<(), String> {
    result.map_err(|error| format!("feedback failed: {}", said(&error)))
}

pub(super) fn pool(count: u32) -> Vec<Arm> {
    (0..count).map(arm).collect()
}

/// Compares decision by decision; NaN is equal to itself here.
pub(super) fn same(left: &[Decision], right: &[Decision]) -> Result<(), String> {
    for (round, (l, r)) in left.iter().zip(right).enumerate() {
        if format!("{l:?}") != format!("{r:?}") {
            return Err(format!("decision {} differs: {}", round + 1, differ(l, r)));
        }
    }
    Ok(())
}

/// What is different between two decisions, in words.
fn differ(l: &Decision, r: &Decision) -> String {
    if l.choices != r.choices {
        return format!("arms {:?} against {:?}", l.choices, r.choices);
    }
    if l.mode != r.mode {
        return format!("mode {:#x} against {:#x}", l.mode, r.mode);
    }
    if l.reason != r.reason {
        return format!("reason `{}` against `{}`", l.reason, r.reason);
    }
    format!(
        "propensity {} against {}, marginals {:?} against {:?}",
        l.propensity, r.propensity, l.marginals, r.marginals
    )
}

/// What it has learnt, as bytes.
pub(super) fn state(subject: &mut Subject) -> Result<Vec<u8>, String> {
    let state = subject.snapshot();
    state.map_err(|error| format!("snapshot failed: {}", said(&error)))
}

fn any_number(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    for count in 1..=64 {
        step(format!("choosing among {count} candidates"));
        ask(&mut subject, plugin, &Ask::new(count, u64::from(count)))
            .map_err(|why| format!("with {count} candidates, {why}"))?;
    }
    Ok(String::new())
}

fn none_eligible(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let mut nobody = Ask::new(3, 1);
    nobody
        .arms
        .iter_mut()
        .for_each(|arm| arm.set_eligible(false));
    for asked in [nobody, Ask::new(0, 2)] {
        let count = asked.arms.len();
        step(format!("choosing among {count} candidates, none eligible"));
        match subject.select(&asked) {
            Err(error) if error.status == abi::E_ABSTAIN => {}
            Err(error) => {
                return Err(format!(
                    "with {count} candidates, none eligible, it answered status {} where \
                     LLMPICK_E_ABSTAIN (-1) is meant: {}",
                    error.status,
                    said(&error)
                ));
            }
            Ok(answer) => {
                return Err(format!(
                    "with {count} candidates, none eligible, it chose {:?}",
                    answer.choices
                ));
            }
        }
    }
    step("choosing once there are eligible arms again");
    ask(&mut subject, plugin, &Ask::new(3, 3)).map(|_| String::new())
}

fn only_eligible(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    step("choosing where only some arms are eligible");
    for round in 0..256u64 {
        let mut arms = pool(6);
        for (place, arm) in arms.iter_mut().enumerate() {
            // Every pattern but "none" comes up.
            arm.set_eligible((round % 63 + 1) >> place & 1 == 1);
        }
        live(&mut subject, plugin, &arms, round..round + 1)?;
    }
    Ok(String::new())
}

/// Abstaining is an answer here: a router need not know every mode.
fn modes(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let mut abstained = 0;
    for modes in 1..16 {
        for max_arms in 1..=6 {
            step(format!(
                "choosing at most {max_arms} arms in modes {modes:#x}"
            ));
            let mut asked = Ask::new(5, u64::from(modes * 6 + max_arms));
            asked.raw.allowed_modes = modes;
            asked.raw.max_arms = max_arms;
            match subject.select(&asked) {
                Ok(answer) => drop(check(answer, &asked, plugin.info.caps)?),
                Err(error) if error.status == abi::E_ABSTAIN => abstained += 1,
                Err(error) => return Err(format!("select failed: {}", said(&error))),
            }
        }
    }
    Ok(match abstained {
        0 => String::new(),
        count => format!("it abstained in {count} of 90 cases"),
    })
}

fn deterministic(plugin: &Plugin) -> Result<String, String> {
    let arms = pool(5);
    let mut first = Subject::new(plugin)?;
    let mut second = Subject::new(plugin)?;
    step("two instances saw the same");
    let one = live(&mut first, plugin, &arms, 0..150)?;
    let other = live(&mut second, plugin, &arms, 0..150)?;
    same(&one, &other).map_err(|why| format!("of two equal instances, {why}"))?;
    step("one request was asked again and again");
    for round in 200..250 {
        let asked = Ask::over(arms.clone(), round);
        let answers = [
            ask(&mut first, plugin, &asked)?,
            ask(&mut first, plugin, &asked)?,
        ];
        same(&answers[..1], &answers[1..])
            .map_err(|why| format!("asked the same twice in a row, {why}"))?;
    }
    let learnt = [state(&mut first)?, state(&mut second)?];
    if learnt[0] != learnt[1] {
        return Err("two instances that saw the same write different snapshots".to_owned());
    }
    Ok(String::new())
}

fn select_learns_nothing(plugin: &Plugin) -> Result<String, String> {
    let arms = pool(5);
    let (mut asked, mut calm) = (Subject::new(plugin)?, Subject::new(plugin)?);
    step("asking without feedback");
    live(&mut asked, plugin, &arms, 0..50)?;
    live(&mut calm, plugin, &arms, 0..50)?;
    for round in 1_000..1_100 {
        ask(&mut asked, plugin, &Ask::over(arms.clone(), round))?;
    }
    if state(&mut asked)? != state(&mut calm)? {
        return Err("select changed what snapshot writes; only feedback may".to_owned());
    }
    same(
        &live(&mut asked, plugin, &arms, 50..150)?,
        &live(&mut calm, plugin, &arms, 50..150)?,
    )
    .map_err(|why| format!("after 100 selects without feedback, {why}"))?;
    Ok(String::new())
}

fn restores(plugin: &Plugin) -> Result<String, String> {
    let arms = pool(5);
    let mut old = Subject::new(plugin)?;
    live(&mut old, plugin, &arms, 0..101)?;
    step("writing a snapshot");
    let learnt = state(&mut old)?;
    let mut new = Subject::new(plugin)?;
    step("restoring its own snapshot");
    match new.restore(plugin.info.state_version, &learnt) {
        Some(restored) => restored
            .map_err(|error| format!("it did not take its own snapshot: {}", said(&error)))?,
        None if learnt.is_empty() => {}
        None => return Err("it writes snapshots and has no `restore`".to_owned()),
    }
    if state(&mut new)? != learnt {
        return Err("the restored instance writes another snapshot".to_owned());
    }
    step("choosing after a restore");
    same(
        &live(&mut old, plugin, &arms, 101..201)?,
        &live(&mut new, plugin, &arms, 101..201)?,
    )
    .map_err(|why| format!("after a restore, {why}"))?;
    Ok(match learnt.len() {
        0 => "it keeps no state".to_owned(),
        bytes => format!("{bytes} bytes of state"),
    })
}

fn bad_state(plugin: &Plugin) -> Result<String, String> {
    if matches!(plugin.table, Table::Router(table) if table.restore.is_none()) {
        return Ok("it keeps no state".to_owned());
    }
    let arms = pool(4);
    let (mut subject, mut twin) = (Subject::new(plugin)?, Subject::new(plugin)?);
    live(&mut subject, plugin, &arms, 0..20)?;
    live(&mut twin, plugin, &arms, 0..20)?;
    let good = state(&mut subject)?;
    let version = plugin.info.state_version;
    let mut bad: Vec<(&str, u32, Vec<u8>)> = vec![
        (
            "that is garbage",
            version,
            b"\xff\x00 no state of anyone".to_vec(),
        ),
        ("of a newer version", version + 1_000, good.clone()),
    ];
    if let Some(older) = plugin.info.state_version_min.checked_sub(1) {
        bad.push(("of an older version than it reads", older, good.clone()));
    }
    if good.len() > 1 {
        bad.push((
            "that is cut in half",
            version,
            good[..good.len() / 2].to_vec(),
        ));
        bad.push((
            "that lacks its last byte",
            version,
            good[..good.len() - 1].to_vec(),
        ));
    }
    for (what, version, bytes) in &bad {
        step(format!("restoring a state {what}"));
        match subject.restore(*version, bytes) {
            None | Some(Ok(())) => return Err(format!("it took a state {what}")),
            Some(Err(error)) if error.status != abi::E_STATE => {
                return Err(format!(
                    "it answered a state {what} with status {} where LLMPICK_E_STATE (-4) is \
                     meant: {}",
                    error.status,
                    said(&error)
                ));
            }
            Some(Err(error)) if error.message == "it does not understand the state" => {
                return Err(format!(
                    "it refused a state {what} without a sentence in `err`"
                ));
            }
            Some(Err(_)) => {}
        }
        if state(&mut subject)? != good {
            return Err(format!(
                "it refused a state {what}, and had changed its own"
            ));
        }
    }
    step("choosing after bad states were refused");
    same(
        &live(&mut subject, plugin, &arms, 20..120)?,
        &live(&mut twin, plugin, &arms, 20..120)?,
    )
    .map_err(|why| format!("after refusing bad states, {why}"))?;
    Ok(format!("{} bad states", bad.len()))
}

fn unknown_numbers(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let mut arms = pool(4);
    arms.iter_mut().for_each(Arm::forget);
    step("choosing where nothing is known of any arm");
    for round in 0..100 {
        let asked = Ask::over(arms.clone(), round);
        let decision = ask(&mut subject, plugin, &asked)?;
        let ran = &asked.arms[runs(&decision, &asked)[0] as usize];
        let mut nothing = Feedback::new(&asked, ran, 0);
        nothing.raw.latency_ms = f64::NAN;
        nothing.raw.ttft_ms = f64::NAN;
        nothing.raw.score = f64::NAN;
        if round % 2 == 0 {
            nothing.raw.cost = f64::NAN;
        }
        told(subject.feedback(&nothing))?;
    }
    step("choosing where everything is known again");
    live(&mut subject, plugin, &pool(4), 100..200)?;
    step("choosing where something is known of every other arm");
    let mut mixed = pool(4);
    mixed.iter_mut().step_by(2).for_each(Arm::forget);
    live(&mut subject, plugin, &mixed, 200..300)?;
    Ok(String::new())
}

fn odd_feedback(plugin: &Plugin) -> Result<String, String> {
    let mut subject = Subject::new(plugin)?;
    let arms = pool(3);
    live(&mut subject, plugin, &arms, 0..10)?;
    let at = |round| Ask::over(arms.clone(), round);
    let stranger = Feedback::new(&at(3), &arm(999), 0);
    let late = Feedback::new(&at(2), &arms[0], 7);
    let mut failed = Feedback::new(&at(u64::MAX), &arms[1], u32::MAX);
    failed.raw.outcome = abi::OUTCOME_ERROR;
    failed.raw.flags = abi::FB_FALLBACK | abi::FB_COLD | 1 << 31;
    failed.raw.score = f64::NAN;
    failed.raw.cost = f64::NAN;
    let mut newer = Feedback::new(&at(5), &arms[2], 0);
    newer.raw.outcome = 99;
    newer.raw.completion_tokens = u32::MAX;
    let mut elsewhere = late.clone();
    elsewhere.task = "a tag that was never asked about".to_owned();
    let cases = [
        ("about an arm that it was never asked about", stranger),
        ("that is late", late.clone()),
        ("that comes twice", late),
        ("of a failure, chosen by the fallback", failed),
        ("with an outcome of a newer header", newer),
        ("with another task", elsewhere),
    ];
    for (what, feedback) in cases {
        step(format!("taking feedback {what}"));
        // It may say that it does not know what is meant; it must not break.
        match subject.feedback(&feedback) {
            Err(error) if ![abi::E_INVALID, abi::E_ABSTAIN].contains(&error.status) => {
                return Err(format!("feedback {what} broke it: {}", said(&error)));
            }
            _ => {}
        }
    }
    step("choosing after odd feedback");
    live(&mut subject, plugin, &arms, 10..60)?;
    Ok(String::new())
}
