//! From a request to a plan with money behind it.

use std::collections::HashSet;
use std::sync::Arc;

use llmpick_core::{
    Backend, Candidate, ContextKey, Decision, DecisionSource, Mode, NanoDollars, Prompt, RouteId,
    ScheduleRequest, ScheduledArm, Scheduler, SelectRequest,
};
use llmpick_ledger::{
    LedgerError, NewPart, NewRoute, Reserved, RouteLimits, RouteStatus, prompt_hash,
};
use sha2::{Digest, Sha256};

use crate::candidates::{Candidature, Estimate, Purse, Unfit, candidatures, for_share};
use crate::grade::Jury;
use crate::open::OpenRoute;
use crate::{
    ContextFrom, Dispatch, DispatchError, MOST_FEATURES, Part, RouteRequest, Target, fallback,
};

/// Most parts of one request: each has its own calls in the ledger and its own money.
pub(crate) const MAX_PARTS: usize = 256;

/// A decided route.
pub(crate) struct Plan {
    pub(crate) open: OpenRoute,
    pub(crate) seed: u64,
    pub(crate) pool: Vec<Candidature>,
    pub(crate) decision: Decision,
    /// The arms to run, in order, as indexes into the pool: the decision's, less those at its
    /// end that the money does not reach.
    pub(crate) order: Vec<usize>,
    pub(crate) estimate: Estimate,
    pub(crate) jury: Jury,
    pub(crate) pinned: bool,
    /// The parts of the request and who gets each; empty for a plain request.
    pub(crate) parts: Vec<PlannedPart>,
}

/// A part with what it may cost and who gets it.
pub(crate) struct PlannedPart {
    pub(crate) estimate: Estimate,
    pub(crate) jury: Jury,
    /// The most it can cost on each arm of the pool.
    pub(crate) bounds: Vec<Bound>,
    /// The arm it is dealt to, as an index into the pool.
    pub(crate) arm: usize,
}

/// The most that a call can cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bound {
    pub(crate) amount: NanoDollars,
    /// False where the arm was never measured and the amount is only assumed.
    pub(crate) known: bool,
}

impl Plan {
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        self.pool.iter().map(|c| c.candidate.clone()).collect()
    }
}

/// The pool with the number that names its set and order of arms.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(crate) arms: Arc<Vec<Arc<dyn Backend>>>,
    pub(crate) epoch: u64,
}

impl Pool {
    /// Refuses two arms of one name: what is learnt is kept by name.
    pub(crate) fn new(arms: Vec<Arc<dyn Backend>>) -> Result<Self, DispatchError> {
        let mut names = HashSet::new();
        let mut digest = Sha256::new();
        for backend in &arms {
            let id = &backend.arm().id;
            if !names.insert(id.clone()) {
                return Err(DispatchError::InvalidRequest(format!(
                    "two arms of the pool are named `{id}`"
                )));
            }
            digest.update(id.as_str());
            digest.update([0]);
        }
        let digest = digest.finalize();
        let epoch = digest
            .first_chunk::<8>()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok(Self {
            arms: Arc::new(arms),
            epoch,
        })
    }
}

/// Decides a request and records it. Blocks for the ledger and the router.
pub(crate) fn plan(
    dispatch: &Arc<Dispatch>,
    request: &RouteRequest,
) -> Result<Plan, DispatchError> {
    let modes = modes(dispatch, request)?;
    let jury = Jury::new(
        &dispatch.scorers,
        request
            .scorer
            .as_deref()
            .or(dispatch.settings.scorer.as_deref()),
    )?;
    let (pool, pinned) = pool(dispatch, request)?;
    let purse = purse(dispatch, request)?;
    let measured = dispatch.ledger.measured()?;
    let describe =
        |estimate| candidatures(&pool.arms, &measured, estimate, &purse, &dispatch.settings);
    let parts = parts(dispatch, request, describe)?;
    let estimate = Estimate::longest(parts.iter().map(|(part, _)| part.estimate))
        .unwrap_or_else(|| Estimate::of(&request.generate));
    let described = match parts.is_empty() {
        true => describe(estimate),
        false => {
            let each: Vec<_> = parts.iter().map(|(_, pool)| pool.clone()).collect();
            for_share(&each, max_arms(dispatch, request, &modes))
        }
    };
    let parts = parts.into_iter().map(|(part, _)| part).collect();
    let limits = limits(dispatch, request, &modes, &pool, estimate, &described)?;

    let context = context(dispatch, request);

    // Learning goes on in the ledger's order, and so does deciding: one request at a time.
    let mut learner = dispatch.learner.lock();
    learner.catch_up(&dispatch.ledger)?;
    let (id, seed) = dispatch.ledger.begin_route(&NewRoute {
        at_ms: dispatch.clock.unix_ms(),
        prompt_hash: prompt_hash(&request.text()),
        prompt: dispatch.settings.keep_prompts.then(|| request.text()),
        context: context.clone(),
        session: request.session.clone(),
        target: target(&request.target),
        router: learner.name().to_owned(),
        seed: request.seed,
        base_seed: dispatch.base_seed(),
        learn: request.learn && !dispatch.settings.frozen,
        limits: limits.clone(),
    })?;
    let open = OpenRoute::new(Arc::clone(dispatch), id);
    if !request.parts.is_empty() {
        open.parts(&new_parts(dispatch, request))?;
    }
    let candidates: Vec<Candidate> = described.iter().map(|c| c.candidate.clone()).collect();
    let shows_prompt = !pinned && learner.needs().prompt;
    let prompt = shows_prompt.then(|| request.text());
    let select = SelectRequest {
        route_id: id,
        seed,
        arms_epoch: limits.arms_epoch,
        time_budget: dispatch.settings.select_budget,
        candidates: &candidates,
        allowed_modes: &limits.allowed_modes,
        task: &context.0,
        session: &request.session,
        prompt: prompt.as_deref(),
        // Shown on to routers that need them.
        features: Some(limits.features.as_slice()).filter(|features| !features.is_empty()),
        prompt_tokens: limits.prompt_tokens,
        max_new_tokens: limits.max_new_tokens,
        max_cost: limits.max_cost,
        max_latency_ms: limits.max_latency_ms,
        min_score: limits.min_score,
        cost_budget: limits.cost_budget,
        max_arms: limits.max_arms,
    };
    let chosen = (!pinned).then(|| choose(&mut learner, &select)).flatten();
    let learnt = learner.learnt();
    // Others may decide while a scheduler on another machine is asked.
    drop(learner);
    if let Some(shadow) = dispatch.shadow.lock().as_ref().filter(|_| !pinned) {
        let prompt = shadow.needs_prompt().then(|| request.text());
        shadow.ask(&select, prompt, learnt);
    }
    let decision = match pinned {
        true => pin(&described, &modes),
        false => chosen.and_then(|decision| settled(dispatch, decision, &select)),
    };

    record(&open, &described, decision.as_ref())?;
    let Some(decision) = decision else {
        let refusal = refusal(open.id, &described);
        open.finish(RouteStatus::Refused, None, None, Vec::new())?;
        return Err(refusal);
    };
    let plan = Plan {
        order: Vec::new(),
        decision,
        open,
        seed,
        pool: described,
        estimate,
        jury,
        pinned,
        parts,
    };
    match plan.parts.is_empty() {
        true => reserve(plan, request.max_cost),
        false => deal(plan, request.max_cost),
    }
}

/// Asks the router; whatever it does wrong, an eligible arm is found if there is one.
fn choose(learner: &mut crate::learner::Learner, select: &SelectRequest<'_>) -> Option<Decision> {
    if !select.candidates.iter().any(|c| c.eligible) {
        return None;
    }
    match learner.select(select) {
        Ok(decision) => Some(decision),
        Err(error) => instead(select, error.to_string()),
    }
}

/// The decision with its set, held to the contract. A set that the router left open is drawn.
fn settled(
    dispatch: &Dispatch,
    decision: Decision,
    select: &SelectRequest<'_>,
) -> Option<Decision> {
    let is_open = decision.choices.is_empty()
        && !decision.marginals.is_empty()
        && decision.marginals.len() == select.candidates.len();
    let scheduler = dispatch.scheduler.lock().clone();
    let drawn = match scheduler.filter(|_| is_open) {
        None => Ok(decision),
        Some(scheduler) => schedule(scheduler.as_ref(), decision, select),
    };
    let checked = drawn.and_then(|decision| {
        fallback::check(
            &decision,
            select.candidates,
            select.allowed_modes,
            select.max_arms,
        )
        .map(|()| decision)
    });
    match checked {
        Ok(decision) => Some(decision),
        Err(why) => instead(select, why),
    }
}

/// Draws the set from the router's marginals. What was drawn from is what is logged.
fn schedule(
    scheduler: &dyn Scheduler,
    decision: Decision,
    select: &SelectRequest<'_>,
) -> Result<Decision, String> {
    let arms: Vec<ScheduledArm> = select
        .candidates
        .iter()
        .zip(&decision.marginals)
        .map(|(candidate, &marginal)| ScheduledArm {
            id: candidate.id.clone(),
            eligible: candidate.eligible,
            // An arm that cannot be chosen may have been left unknown.
            marginal: match candidate.eligible {
                true => marginal,
                false => 0.0,
            },
        })
        .collect();
    // Marginals of other tasks are other marginals.
    let stream = format!("{:?}/{}/{}", decision.mode, select.max_arms, select.task);
    let schedule = scheduler
        .schedule(&ScheduleRequest {
            route_id: select.route_id,
            seed: select.seed,
            stream: &stream,
            arms: &arms,
            mode: decision.mode,
            max_arms: select.max_arms,
            time_budget: select.time_budget,
        })
        .map_err(|error| error.to_string())?;
    let reason = match (decision.reason.is_empty(), schedule.note.is_empty()) {
        (_, true) => decision.reason,
        (true, false) => schedule.note,
        (false, false) => format!("{}; {}", decision.reason, schedule.note),
    };
    Ok(Decision {
        choices: schedule.choices,
        marginals: schedule.marginals,
        reason,
        ..decision
    })
}

/// An eligible arm that nobody chose, and why it had to be so.
fn instead(select: &SelectRequest<'_>, why: String) -> Option<Decision> {
    tracing::warn!(route = %select.route_id, why, "router did not decide");
    fallback::plan(select.candidates, select.allowed_modes, why)
}

/// The user's own choice. Limits of money hold for it, estimates of length do not: the backend
/// counts for itself.
fn pin(pool: &[Candidature], modes: &[Mode]) -> Option<Decision> {
    let only = pool.first()?;
    let forbidden = matches!(
        only.unfit,
        Some(Unfit::MaxCost { .. } | Unfit::Budget { .. })
    );
    (!forbidden).then(|| Decision {
        choices: vec![0],
        mode: modes.first().copied().unwrap_or(Mode::Single),
        propensity: 1.0,
        marginals: vec![1.0],
        reason: "named by the user".into(),
        source: DecisionSource::Pinned,
    })
}

/// Records what the router was told, and the decision if there was one.
fn record(
    open: &OpenRoute,
    pool: &[Candidature],
    decision: Option<&Decision>,
) -> Result<(), LedgerError> {
    let marginal = |index: usize| decision?.marginals.get(index).copied();
    let records: Vec<_> = pool
        .iter()
        .enumerate()
        .map(|(index, c)| c.record(marginal(index)))
        .collect();
    open.decided(&records, decision)
}

/// Why nobody may take a request.
fn refusal(route_id: RouteId, pool: &[Candidature]) -> DispatchError {
    let budget = |c: &Candidature| match &c.unfit {
        Some(Unfit::Budget { bound, key, left }) => Some((*bound, key.clone(), *left)),
        _ => None,
    };
    // Where money alone is in the way, say so in its own error.
    if let Some(all) = pool.iter().map(budget).collect::<Option<Vec<_>>>()
        && let Some((needed, key, left)) = all.into_iter().min()
    {
        return DispatchError::Budget { key, needed, left };
    }
    let reasons: Vec<String> = pool
        .iter()
        .map(|c| match &c.unfit {
            Some(unfit) => format!("{}: {unfit}", c.candidate.id),
            None => format!("{}: the router abstained", c.candidate.id),
        })
        .collect();
    DispatchError::NoEligibleArm {
        route_id,
        reasons: reasons.join("; "),
    }
}

/// Sets the money aside. A cascade is shortened from its end until its bound fits the request's
/// limit and the budgets.
fn reserve(mut plan: Plan, max_cost: Option<NanoDollars>) -> Result<Plan, DispatchError> {
    let mut order: Vec<usize> = plan.decision.choices.iter().map(|c| *c as usize).collect();
    if plan.decision.mode == Mode::Single {
        order.truncate(1);
    }
    loop {
        let bounds: Vec<NanoDollars> = order
            .iter()
            .filter_map(|index| plan.pool.get(*index))
            .map(|c| c.bound)
            .collect();
        let needed: NanoDollars = bounds.iter().copied().sum();
        let too_dear = max_cost.is_some_and(|limit| needed > limit);
        if too_dear && order.len() > 1 {
            order.pop();
            continue;
        }
        match plan.open.reserve(&bounds)? {
            Reserved::Granted => {
                plan.order = order;
                return Ok(plan);
            }
            Reserved::Short { .. } if order.len() > 1 => {
                order.pop();
            }
            Reserved::Short { key, left } => {
                plan.open
                    .finish(RouteStatus::Refused, None, None, Vec::new())?;
                return Err(DispatchError::Budget { key, needed, left });
            }
        }
    }
}

/// Deals the parts over the arms of the plan, one after the other in turn, and sets the money of
/// all of them aside. The plan is shortened from its end until it fits the request's limit and
/// the budgets: fewer arms then get more parts each.
fn deal(mut plan: Plan, max_cost: Option<NanoDollars>) -> Result<Plan, DispatchError> {
    let mut order: Vec<usize> = plan.decision.choices.iter().map(|c| *c as usize).collect();
    order.truncate(plan.parts.len());
    loop {
        for (part, arm) in plan.parts.iter_mut().zip(order.iter().cycle()) {
            part.arm = *arm;
        }
        let bounds: Vec<Bound> = plan.parts.iter().filter_map(PlannedPart::bound).collect();
        let amounts: Vec<NanoDollars> = bounds.iter().map(|bound| bound.amount).collect();
        let needed: NanoDollars = amounts.iter().copied().sum();
        // An assumed bound is far too high for most, and shuts nobody out of a request.
        let known = bounds.iter().all(|bound| bound.known);
        let short = match max_cost.filter(|limit| needed > *limit && (known || order.len() > 1)) {
            Some(left) => Some(("max_cost".to_owned(), left)),
            None => match plan.open.reserve(&amounts)? {
                Reserved::Granted => None,
                Reserved::Short { key, left } => Some((key, left)),
            },
        };
        match short {
            None => {
                plan.order = order;
                return Ok(plan);
            }
            Some(_) if order.len() > 1 => {
                order.pop();
            }
            Some((key, left)) => {
                plan.open
                    .finish(RouteStatus::Refused, None, None, Vec::new())?;
                return Err(DispatchError::Budget { key, needed, left });
            }
        }
    }
}

impl PlannedPart {
    /// The most it can cost where it was dealt to.
    fn bound(&self) -> Option<Bound> {
        self.bounds.get(self.arm).copied()
    }
}

/// Each part with the arms as they are for it.
fn parts(
    dispatch: &Dispatch,
    request: &RouteRequest,
    describe: impl Fn(Estimate) -> Vec<Candidature>,
) -> Result<Vec<(PlannedPart, Vec<Candidature>)>, DispatchError> {
    check_parts(request)?;
    let part = |part: &Part| {
        let named = part.scorer.as_deref().or(request.scorer.as_deref());
        let named = named.or(dispatch.settings.scorer.as_deref());
        let estimate = Estimate::of(&request.generate_part(part));
        let pool = describe(estimate);
        let bound = |c: &Candidature| Bound {
            amount: c.bound,
            known: !c.candidate.cost_max.is_nan(),
        };
        let planned = PlannedPart {
            estimate,
            jury: Jury::new(&dispatch.scorers, named)?,
            bounds: pool.iter().map(bound).collect(),
            arm: 0,
        };
        Ok((planned, pool))
    };
    request.parts.iter().map(part).collect()
}

/// Refuses parts that could not be told apart or asked.
fn check_parts(request: &RouteRequest) -> Result<(), DispatchError> {
    let refuse = |why: String| Err(DispatchError::InvalidRequest(why));
    if request.parts.is_empty() {
        return Ok(());
    }
    if request.parts.len() > MAX_PARTS {
        return refuse(format!(
            "a request has at most {MAX_PARTS} parts, and this one has {}",
            request.parts.len()
        ));
    }
    if matches!(request.generate.prompt, Prompt::Text(_)) {
        return refuse("parts are conversations, and go with no plain text before them".into());
    }
    let mut names = HashSet::new();
    for (place, part) in request.parts.iter().enumerate() {
        if part.name.is_empty() {
            return refuse(format!("part {} has no name", place + 1));
        }
        if !names.insert(&part.name) {
            return refuse(format!("two parts are named `{}`", part.name));
        }
        if part
            .messages
            .iter()
            .all(|message| message.content.trim().is_empty())
        {
            return refuse(format!("the part `{}` asks nothing", part.name));
        }
    }
    Ok(())
}

fn new_parts(dispatch: &Dispatch, request: &RouteRequest) -> Vec<NewPart> {
    let part = |part: &Part| {
        let text = Prompt::Chat(part.messages.clone()).text();
        NewPart {
            name: part.name.clone(),
            prompt_hash: prompt_hash(&text),
            prompt: dispatch.settings.keep_prompts.then_some(text),
        }
    };
    request.parts.iter().map(part).collect()
}

/// Modes this request may run in.
fn modes(dispatch: &Dispatch, request: &RouteRequest) -> Result<Vec<Mode>, DispatchError> {
    let deals = |mode: &Mode| matches!(mode, Mode::SumUp | Mode::AllIn);
    match (request.mode, request.parts.is_empty()) {
        (None, true) => Ok(dispatch.settings.modes.clone()),
        (None, false) => Ok(vec![Mode::SumUp]),
        (Some(mode), true) => runnable(mode).map(|()| vec![mode]),
        (Some(mode), false) if deals(&mode) => Ok(vec![mode]),
        (Some(_), false) => Err(DispatchError::InvalidRequest(
            "a request with `parts` runs as sum_up or all_in".into(),
        )),
    }
}

/// Refuses modes that deal `parts` over arms.
pub(crate) fn runnable(mode: Mode) -> Result<(), DispatchError> {
    let name = match mode {
        Mode::Single | Mode::AnyWin => return Ok(()),
        Mode::SumUp => "sum_up",
        Mode::AllIn => "all_in",
    };
    Err(DispatchError::InvalidRequest(format!(
        "the mode {name} needs a request with `parts`, as `llmpick task` makes; \
         use single or any_win"
    )))
}

/// The arms that come into question, and whether the user named the one.
fn pool(dispatch: &Dispatch, request: &RouteRequest) -> Result<(Pool, bool), DispatchError> {
    let pool = dispatch.pool.lock().clone();
    let one = match &request.target {
        Target::Auto if pool.arms.is_empty() => return Err(DispatchError::NoArms),
        Target::Auto => return Ok((pool, false)),
        Target::Outside(backend) => Arc::clone(backend),
        Target::Pinned(name) => {
            let found = pool.arms.iter().find(|backend| backend.arm().id == *name);
            Arc::clone(found.ok_or_else(|| unknown_arm(name, &pool))?)
        }
    };
    Ok((Pool::new(vec![one])?, true))
}

fn unknown_arm(name: &llmpick_core::ArmId, pool: &Pool) -> DispatchError {
    let known: Vec<String> = pool
        .arms
        .iter()
        .map(|backend| format!("`{}`", backend.arm().id))
        .collect();
    DispatchError::UnknownArm {
        name: name.clone(),
        known: match known.is_empty() {
            true => "none".into(),
            false => known.join(", "),
        },
    }
}

fn target(target: &Target) -> String {
    match target {
        Target::Auto => "auto".into(),
        Target::Pinned(name) => name.to_string(),
        Target::Outside(backend) => backend.arm().id.to_string(),
    }
}

/// What this request may spend: its own limit, and the tightest budget.
fn purse(dispatch: &Dispatch, request: &RouteRequest) -> Result<Purse, DispatchError> {
    let now = dispatch.clock.unix_ms();
    let mut budget: Option<(String, NanoDollars)> = None;
    for key in &dispatch.settings.budgets {
        let left = dispatch.ledger.budget(key, now)?.left();
        if let Some(left) = left
            && budget.as_ref().is_none_or(|(_, least)| left < *least)
        {
            budget = Some((key.clone(), left));
        }
    }
    Ok(Purse {
        max_cost: request.max_cost,
        budget,
    })
}

/// Under which context the request's statistics are kept.
fn context(dispatch: &Dispatch, request: &RouteRequest) -> ContextKey {
    match dispatch.settings.context {
        ContextFrom::Session if !request.session.is_empty() => ContextKey(request.session.clone()),
        _ => request.context.clone(),
    }
}

/// The request's features, held to their bounds.
fn features(request: &RouteRequest) -> Result<Vec<f32>, DispatchError> {
    let bad = |what: String| Err(DispatchError::InvalidRequest(what));
    let features = &request.features;
    if features.len() > MOST_FEATURES {
        return bad(format!(
            "a request has at most {MOST_FEATURES} features, not {}",
            features.len()
        ));
    }
    match features.iter().find(|feature| !feature.is_finite()) {
        Some(odd) => bad(format!("features are finite numbers, and {odd} is none")),
        None => Ok(features.clone()),
    }
}

fn limits(
    dispatch: &Dispatch,
    request: &RouteRequest,
    modes: &[Mode],
    pool: &Pool,
    estimate: Estimate,
    described: &[Candidature],
) -> Result<RouteLimits, DispatchError> {
    let cost_budget = request.cost_budget.or(dispatch.settings.cost_budget);
    if let Some(bad) = cost_budget.filter(|rho| !rho.is_finite() || *rho < 0.0) {
        return Err(DispatchError::InvalidRequest(format!(
            "the cost budget is an amount of dollars from 0 on, not {bad}"
        )));
    }
    if request.max_arms == Some(0) {
        return Err(DispatchError::InvalidRequest(
            "max_arms is at least 1, not 0".into(),
        ));
    }
    let features = features(request)?;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    Ok(RouteLimits {
        arms_epoch: pool.epoch,
        allowed_modes: modes.to_vec(),
        prompt_tokens: estimate.prompt,
        max_new_tokens: estimate.new_max_over(described),
        max_cost: request.max_cost.map_or(f64::NAN, NanoDollars::usd),
        max_latency_ms: request.max_latency.map_or(f64::NAN, ms),
        min_score: request.min_score.map_or(f64::NAN, f64::from),
        cost_budget: cost_budget.unwrap_or(f64::NAN),
        max_arms: max_arms(dispatch, request, modes),
        features,
    })
}

/// Most arms in the plan.
fn max_arms(dispatch: &Dispatch, request: &RouteRequest, modes: &[Mode]) -> u32 {
    let most = request.max_arms.unwrap_or(dispatch.settings.max_arms);
    match modes {
        // Where only the first arm will run, the router need not spread its budget over more.
        [Mode::Single] => 1,
        // Nor over more arms than there are parts.
        _ if !request.parts.is_empty() => most.min(request.parts.len() as u32),
        _ => most,
    }
}
