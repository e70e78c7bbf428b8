//! A router that never ran, judged by our own ledger.
//!
//! The router is taken through the logged requests in their order, each with the candidates
//! and limits of its time. It learns as a shadow would: from every feedback row that the ledger
//! had by then, whoever chose. So its choice depends on the past alone, and the estimates are
//! of what those choices would have earned. Or it learns from the first part of the log only,
//! and is judged, frozen, on the rest.
//!
//! A decision counts if chance made it with known probabilities, and if its outcome was graded:
//! decisions of the fallback or the user, and answers without a score, are left out and counted.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use llmpick_core::{
    ArmId, Candidate, Decision, DecisionSource, Mode, OutcomeKind, Router, SelectRequest,
};
use llmpick_ledger::{
    CallRecord, FeedbackRecord, Ledger, LedgerError, RouteFilter, RouteRecord, RouteStatus,
};
use serde::Serialize;

use crate::chance::derive;
use crate::offpolicy::{Combine, Judgement, Ran, Trial, Whole, judge};
use crate::{Estimate, Figure, PlayError, Watch};

/// The least effective number of requests below which nobody should believe the estimates.
const FEW: f64 = 50.0;

/// The share of the other policy's choices that the log never tried from which it is said.
const UNTRIED: f64 = 0.01;

/// How a ledger is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSettings {
    /// Where the router's draws start. They are never those of the log.
    pub seed: u64,
    /// `None`: the router learns along the way. Else it learns from the first such share of
    /// the requests, in 0..1, and is judged on the others.
    pub learn_first: Option<f64>,
}

/// The requests of a ledger, oldest first, and what was learnt from them.
#[derive(Debug)]
pub struct Log {
    routes: Vec<RouteRecord>,
    feedback: Vec<FeedbackRecord>,
}

/// Requests that say nothing about another router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Nobody chose by known probabilities: the fallback, the user, or a router that keeps
    /// them to itself.
    pub without_propensity: u64,
    /// No grade of what the plan's arms answered.
    pub ungraded: u64,
    /// Refused, planned only, cancelled, lost, or still running.
    pub unfinished: u64,
}

/// What a ledger says of a router.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogReport {
    /// The router and its settings.
    pub router: String,
    /// Requests in the ledger.
    pub routes: usize,
    /// Requests that were judged.
    pub judged: usize,
    /// The others, but for those that were only learnt from.
    pub left_out: LeftOut,
    /// What the judged requests earned and cost as they were decided.
    pub logged_reward: Estimate,
    /// Dollars per request.
    pub logged_cost: Estimate,
    /// What the router would have earned and paid.
    #[serde(flatten)]
    pub judgement: Judgement,
    /// Share of the router's choices that the log could not have made: the weighed estimates
    /// know nothing of them.
    pub untried: f64,
    /// Why not to believe the estimates, where there is a reason.
    pub warning: Option<String>,
    /// Decisions that the built-in fallback made instead.
    pub fallbacks: u64,
    /// Why the first of them was needed.
    pub fallback_reason: Option<String>,
}

impl Log {
    /// Reads all requests.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn read(ledger: &Ledger) -> Result<Self, LedgerError> {
        let everything = RouteFilter {
            limit: u32::MAX,
            ..RouteFilter::default()
        };
        let mut routes = Vec::new();
        for summary in ledger.routes(&everything)?.iter().rev() {
            routes.extend(ledger.route(summary.id)?);
        }
        let rows = routes.iter().flat_map(|route| route.feedback.iter());
        let mut feedback: Vec<FeedbackRecord> = rows.cloned().collect();
        feedback.sort_by_key(|row| row.cursor.id);
        Ok(Self { routes, feedback })
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Takes a fresh router through the log.
    ///
    /// # Errors
    /// When the router cannot choose or will not learn, or when `watch` was told to stop.
    pub fn judge(
        &self,
        mut router: Box<dyn Router>,
        label: &str,
        settings: &LogSettings,
        watch: &Watch,
    ) -> Result<LogReport, PlayError> {
        let from = match settings.learn_first {
            Some(share) => (share * self.routes.len() as f64) as usize,
            None => 0,
        };
        let name = router.name().to_owned();
        let mut teacher = Teacher::of(&self.feedback, name);
        let (mut numbers, mut pace) = (Numbers::default(), watch.pace());
        let mut out = Judged::default();
        for (place, route) in self.routes.iter().enumerate() {
            pace.step()?;
            if settings.learn_first.is_none() || place <= from {
                teacher.teach_until(route, router.as_mut())?;
            }
            if place < from {
                continue;
            }
            match evidence(route) {
                Err(why) => *why(&mut out.left_out) += 1,
                Ok(evidence) => {
                    let seed = derive(settings.seed, route.id.0);
                    let decision = ask(router.as_mut(), route, evidence.mode, seed)?;
                    out.add(route, &evidence, &decision, &mut numbers);
                }
            }
        }
        Ok(out.report(label, self.routes.len()))
    }
}

/// Hands feedback over when its time has come.
struct Teacher<'a> {
    rows: &'a [FeedbackRecord],
    next: usize,
    name: String,
}

impl<'a> Teacher<'a> {
    fn of(rows: &'a [FeedbackRecord], name: String) -> Self {
        Self {
            rows,
            next: 0,
            name,
        }
    }

    /// Every row that was there when this request came, in ledger order.
    fn teach_until(
        &mut self,
        route: &RouteRecord,
        router: &mut dyn Router,
    ) -> Result<(), PlayError> {
        while let Some(row) = self.rows.get(self.next) {
            if row.at_ms > route.at_ms || row.feedback.route_id.0 >= route.id.0 {
                break;
            }
            self.next += 1;
            let learnt = router.feedback(&row.for_router(&self.name));
            let round = route.id.0;
            learnt.map_err(|source| PlayError::Feedback { round, source })?;
        }
        Ok(())
    }
}

/// What can be judged of one request.
struct Evidence {
    mode: Mode,
    /// Places in the candidates, with what came of each arm; of a whole set all that ran.
    ran: Vec<(usize, Figure)>,
    /// A set that is judged as a whole: its places, 1/P(set), what came of the request.
    whole: Option<(Vec<usize>, f64, Figure)>,
}

/// The counter of the reason why a request is left out.
type Why = fn(&mut LeftOut) -> &mut u64;

fn evidence(route: &RouteRecord) -> Result<Evidence, Why> {
    let decision = match (&route.decision, route.status) {
        (Some(decision), RouteStatus::Done | RouteStatus::Failed) => decision,
        _ => return Err(|out| &mut out.unfinished),
    };
    if decision.source != DecisionSource::Router {
        return Err(|out| &mut out.without_propensity);
    }
    let mut plan: Vec<usize> = decision.choices.iter().map(|&k| k as usize).collect();
    match decision.mode {
        Mode::Single => {
            plan.truncate(1);
            additive(route, decision, &plan)
        }
        Mode::SumUp => additive(route, decision, &plan),
        Mode::AnyWin | Mode::AllIn => whole(route, decision, plan),
    }
}

fn additive(route: &RouteRecord, decision: &Decision, plan: &[usize]) -> Result<Evidence, Why> {
    let known = |&k: &usize| decision.marginals.get(k).is_some_and(|m| *m > 0.0);
    if !plan.iter().all(known) {
        return Err(|out| &mut out.without_propensity);
    }
    let ran = plan.iter().map(|&k| Some((k, outcome(route, k)?)));
    let ran: Option<Vec<_>> = ran.collect();
    Ok(Evidence {
        mode: decision.mode,
        ran: ran.ok_or::<Why>(|out| &mut out.ungraded)?,
        whole: None,
    })
}

fn whole(route: &RouteRecord, decision: &Decision, plan: Vec<usize>) -> Result<Evidence, Why> {
    if decision.propensity.is_nan() || decision.propensity <= 0.0 {
        return Err(|out| &mut out.without_propensity);
    }
    let ungraded: Why = |out| &mut out.ungraded;
    let outcomes = plan.iter().map(|&k| (k, outcome(route, k)));
    let ran: Vec<_> = outcomes
        .filter_map(|(k, figure)| Some((k, figure?)))
        .collect();
    let reward = match decision.mode {
        Mode::AllIn if ran.len() < plan.len() => return Err(ungraded),
        Mode::AllIn => ran.iter().map(|(_, figure)| figure.reward).product(),
        _ => {
            let answered = route
                .calls
                .iter()
                .find(|call| Some(call.id) == route.answered);
            let reward = match answered {
                Some(call) => grade(call),
                None => (route.status == RouteStatus::Failed).then_some(0.0),
            };
            reward.ok_or(ungraded)?
        }
    };
    let cost = route.calls.iter().map(|call| call.cost.usd()).sum();
    Ok(Evidence {
        mode: decision.mode,
        ran,
        whole: Some((plan, 1.0 / decision.propensity, Figure { reward, cost })),
    })
}

/// What came of one arm of the plan: the mean grade and the whole cost of its calls. `None`
/// where it did not run, or a call of its has no grade.
fn outcome(route: &RouteRecord, place: usize) -> Option<Figure> {
    let arm = &route.candidates.get(place)?.candidate.id;
    let calls = || route.calls.iter().filter(|call| call.arm == *arm);
    let grades = calls().map(grade).collect::<Option<Vec<f64>>>()?;
    if grades.is_empty() {
        return None;
    }
    Some(Figure {
        reward: grades.iter().sum::<f64>() / grades.len() as f64,
        cost: calls().map(|call| call.cost.usd()).sum(),
    })
}

/// The user's grade before the scorer's; a failure is 0.
fn grade(call: &CallRecord) -> Option<f64> {
    match call.outcome? {
        OutcomeKind::Cancelled => None,
        OutcomeKind::Error | OutcomeKind::Timeout => Some(0.0),
        OutcomeKind::Ok => call.user_score.or(call.score).map(f64::from),
    }
}

/// Asks as the router would have been asked then.
fn ask(
    router: &mut dyn Router,
    route: &RouteRecord,
    mode: Mode,
    seed: u64,
) -> Result<Decision, PlayError> {
    let candidates: Vec<Candidate> = (route.candidates.iter())
        .map(|record| record.candidate.clone())
        .collect();
    let limits = &route.limits;
    let request = SelectRequest {
        route_id: route.id,
        seed,
        arms_epoch: limits.arms_epoch,
        time_budget: Duration::ZERO,
        candidates: &candidates,
        // What is compared is whom to ask, not how answers are put together.
        allowed_modes: &[mode],
        task: &route.context.0,
        session: &route.session,
        prompt: route.prompt.as_deref().filter(|_| router.needs().prompt),
        features: Some(limits.features.as_slice())
            .filter(|features| !features.is_empty() && router.needs().features),
        prompt_tokens: limits.prompt_tokens,
        max_new_tokens: limits.max_new_tokens,
        max_cost: limits.max_cost,
        max_latency_ms: limits.max_latency_ms,
        min_score: limits.min_score,
        cost_budget: limits.cost_budget,
        max_arms: limits.max_arms,
    };
    let round = route.id.0;
    let mut decision = router
        .select(&request)
        .map_err(|source| PlayError::Select { round, source })?;
    if mode == Mode::Single {
        decision.choices.truncate(1);
    }
    Ok(decision)
}

/// Numbers for names, in the order in which they appear.
#[derive(Default)]
struct Numbers {
    arms: HashMap<ArmId, usize>,
    contexts: HashMap<String, usize>,
}

fn number<K: Eq + Hash + Clone>(names: &mut HashMap<K, usize>, name: &K) -> usize {
    let next = names.len();
    *names.entry(name.clone()).or_insert(next)
}

/// All trials so far.
#[derive(Default)]
struct Judged {
    trials: Vec<Trial>,
    logged: Vec<Figure>,
    left_out: LeftOut,
    /// Σ over trials of what the log could not have chosen, and of all that was to be chosen.
    untried: (f64, f64),
    fallbacks: u64,
    fallback_reason: Option<String>,
}

impl Judged {
    fn add(
        &mut self,
        route: &RouteRecord,
        evidence: &Evidence,
        decision: &Decision,
        numbers: &mut Numbers,
    ) {
        if let DecisionSource::Fallback(why) = &decision.source {
            self.fallbacks += 1;
            self.fallback_reason.get_or_insert_with(|| why.clone());
        }
        let wanted = |k: usize| wanted(decision, k);
        let logged = |k: usize| {
            let decision = route.decision.as_ref();
            let marginal = decision.and_then(|decision| decision.marginals.get(k));
            marginal.copied().filter(|m| *m > 0.0)
        };
        let mut arm = |k: usize| number(&mut numbers.arms, &route.candidates[k].candidate.id);
        let (ran, whole, target) = match &evidence.whole {
            None => {
                let target: Vec<(usize, f64)> = (0..route.candidates.len())
                    .filter(|&k| wanted(k) > 0.0)
                    .map(|k| (k, wanted(k)))
                    .collect();
                for &(k, e) in &target {
                    self.untried.0 += if logged(k).is_none() { e } else { 0.0 };
                    self.untried.1 += e;
                }
                let ran = evidence.ran.iter().map(|&(k, outcome)| Ran {
                    arm: arm(k),
                    weight: wanted(k) / logged(k).unwrap_or(f64::INFINITY),
                    outcome,
                });
                (ran.collect::<Vec<_>>(), None, target)
            }
            Some((places, weight, outcome)) => {
                let chosen: Vec<usize> = decision.choices.iter().map(|&k| k as usize).collect();
                let same = places.len() == chosen.len()
                    && match evidence.mode {
                        // In a cascade the order is part of the choice.
                        Mode::AnyWin => *places == chosen,
                        _ => places.iter().all(|k| chosen.contains(k)),
                    };
                let ran = evidence.ran.iter().map(|&(k, outcome)| Ran {
                    arm: arm(k),
                    weight: 0.0,
                    outcome,
                });
                let ran = ran.collect();
                let whole = Whole {
                    arms: places.iter().map(|&k| arm(k)).collect(),
                    weight: if same { *weight } else { 0.0 },
                    outcome: *outcome,
                };
                let target = chosen.iter().map(|&k| (k, 1.0)).collect();
                (ran, Some(whole), target)
            }
        };
        self.logged.push(match &whole {
            Some(whole) => whole.outcome,
            None => ran.iter().fold(Figure::default(), |sum, ran| Figure {
                reward: sum.reward + ran.outcome.reward,
                cost: sum.cost + ran.outcome.cost,
            }),
        });
        let target = target.into_iter().map(|(k, e)| (arm(k), e)).collect();
        self.trials.push(Trial {
            context: number(&mut numbers.contexts, &route.context.0),
            combine: match evidence.mode {
                Mode::Single | Mode::SumUp => Combine::Sum,
                Mode::AnyWin => Combine::AnyWin,
                Mode::AllIn => Combine::AllIn,
            },
            target,
            ran,
            whole,
        });
    }

    fn report(self, label: &str, routes: usize) -> LogReport {
        let of = |value: fn(&Figure) -> f64| {
            Estimate::of(&self.logged.iter().map(value).collect::<Vec<f64>>())
        };
        let judgement = judge(&self.trials);
        let untried = match self.untried.1 {
            0.0 => 0.0,
            all => self.untried.0 / all,
        };
        LogReport {
            router: label.to_owned(),
            routes,
            judged: self.trials.len(),
            left_out: self.left_out,
            logged_reward: of(|figure| figure.reward),
            logged_cost: of(|figure| figure.cost),
            judgement,
            untried,
            warning: warning(judgement.effective, untried),
            fallbacks: self.fallbacks,
            fallback_reason: self.fallback_reason,
        }
    }
}

/// P(the router chooses this candidate); without marginals, whether it did: its draw knows
/// nothing of the logged one, so that is as unbiased.
fn wanted(decision: &Decision, place: usize) -> f64 {
    let chosen = || f64::from(u8::from(decision.choices.contains(&(place as u32))));
    match decision.marginals.get(place) {
        Some(marginal) if marginal.is_finite() => *marginal,
        _ => chosen(),
    }
}

fn warning(effective: f64, untried: f64) -> Option<String> {
    let mut said = Vec::new();
    if effective < FEW {
        said.push(format!(
            "the log chose like this router in effect {effective:.0} times only"
        ));
    }
    if untried > UNTRIED {
        said.push(format!(
            "{:.0} % of its choices are arms that the log never had a chance to try then: ips \
             and snips count them as nothing, and dr guesses them",
            100.0 * untried
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}
