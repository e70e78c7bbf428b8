//! One routed request: what was asked, what was known, what was decided, how it went.

use llmpick_core::{ArmId, Candidate, ContextKey, Decision, DecisionSource, Mode, RouteId, Score};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::value::{Bits, Floats, Json, Word, nan, real};
use crate::{
    CallId, CallRecord, FeedbackRecord, Ledger, LedgerError, LedgerErrorKind, PartEnd, PartRecord,
    ShadowRecord, budget, call, feedback, measured, part, shadow,
};

/// A request before it is decided.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRoute {
    /// When it came.
    pub at_ms: u64,
    /// [`prompt_hash`] of the prompt.
    pub prompt_hash: String,
    /// The prompt's text, only if the settings say so.
    pub prompt: Option<String>,
    /// Under which context statistics are kept.
    pub context: ContextKey,
    /// Opaque session.
    pub session: String,
    /// `auto`, or the arm that the user named.
    pub target: String,
    /// The router that is asked.
    pub router: String,
    /// Seed of the decision; `None` derives it from `base_seed` and the route's number.
    pub seed: Option<u64>,
    /// Start of derived seeds.
    pub base_seed: u64,
    /// Whether its feedback is learnt.
    pub learn: bool,
    /// The rest of what the router is told.
    pub limits: RouteLimits,
}

/// What a router is told about a request beside the arms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteLimits {
    /// Version of the set and order of arms.
    pub arms_epoch: u64,
    /// Modes that could be run.
    pub allowed_modes: Vec<Mode>,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens to generate.
    pub max_new_tokens: u32,
    /// Most dollars for this request; NaN for none.
    pub max_cost: f64,
    /// Most ms for this request; NaN for none.
    pub max_latency_ms: f64,
    /// The least score the user accepts; NaN for none.
    pub min_score: f64,
    /// Long-term budget per request in dollars; NaN for none.
    pub cost_budget: f64,
    /// Most arms in the plan.
    pub max_arms: u32,
    /// Features of the request, all finite; empty for none. Recorded whether or not the router
    /// needs them, so that another one can learn from them later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<f32>,
}

/// What a router was told about one arm, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateRecord {
    /// What the router was told.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Why it could not be chosen, if so.
    pub unfit: Option<String>,
    /// Resident bytes of weights and cache.
    pub resident_bytes: u64,
    /// P(arm is in the plan); `None` where unknown.
    pub marginal: Option<f64>,
}

/// How far a route came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteStatus {
    /// The router is being asked.
    Deciding,
    /// Arms run.
    Running,
    /// Decided only, as asked.
    Planned,
    /// No arm was eligible, or a budget did not allow it.
    Refused,
    /// Answered.
    Done,
    /// No arm answered, or the answer was cut.
    Failed,
    /// The client went away.
    Cancelled,
    /// The program died meanwhile.
    Lost,
}

/// The end of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteEnd {
    /// The route.
    pub route: RouteId,
    /// When.
    pub at_ms: u64,
    /// How it ended.
    pub status: RouteStatus,
    /// The call whose answer was released.
    pub answered: Option<CallId>,
    /// In a cascade, whether the answer reached the threshold.
    pub accepted: Option<bool>,
    /// Grades of calls.
    pub scores: Vec<ScoredCall>,
}

/// A grade of one call.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredCall {
    /// The call.
    pub call: CallId,
    /// The grade.
    pub score: Score,
    /// Who graded.
    pub scorer: String,
}

/// Everything the ledger knows about one route.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteRecord {
    /// Its number.
    pub id: RouteId,
    /// When the request came.
    pub at_ms: u64,
    /// [`prompt_hash`] of the prompt.
    pub prompt_hash: String,
    /// The prompt's text, if the settings said so.
    pub prompt: Option<String>,
    /// Its context.
    pub context: ContextKey,
    /// Its session.
    pub session: String,
    /// `auto`, or the arm that the user named.
    pub target: String,
    /// The router that was asked.
    pub router: String,
    /// Seed of the decision.
    pub seed: u64,
    /// Whether its feedback is learnt.
    pub learn: bool,
    /// What the router was told beside the arms.
    pub limits: RouteLimits,
    /// What the router was told about the arms, in its order.
    pub candidates: Vec<CandidateRecord>,
    /// The plan; `None` when none was made.
    pub decision: Option<Decision>,
    /// How far it came.
    pub status: RouteStatus,
    /// The call whose answer was released.
    pub answered: Option<CallId>,
    /// In a cascade, whether the answer reached the threshold.
    pub accepted: Option<bool>,
    /// The parts of the request, in order; empty for a request without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartRecord>,
    /// What a second router would have decided, where one ran beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowRecord>,
    /// The arms that ran, in order.
    pub calls: Vec<CallRecord>,
    /// What was learnt from it, in order.
    pub feedback: Vec<FeedbackRecord>,
}

/// One line of a list of routes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteSummaryRecord {
    /// Its number.
    pub id: RouteId,
    /// When the request came.
    pub at_ms: u64,
    /// Its context.
    pub context: ContextKey,
    /// How arms worked together; `None` when no plan was made.
    pub mode: Option<Mode>,
    /// How far it came.
    pub status: RouteStatus,
    /// Whose answer was released.
    pub arm: Option<ArmId>,
    /// What all its calls cost.
    pub cost: llmpick_core::NanoDollars,
    /// Grade of the released answer, the user's before the scorer's.
    pub score: Option<Score>,
}

/// Which routes to list, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteFilter {
    /// Only this context.
    pub context: Option<ContextKey>,
    /// Only this router's.
    pub router: Option<String>,
    /// Only routes older than this one.
    pub before: Option<RouteId>,
    /// At most so many.
    pub limit: u32,
}

impl Default for RouteFilter {
    fn default() -> Self {
        Self {
            context: None,
            router: None,
            before: None,
            limit: 20,
        }
    }
}

/// SHA-256 of a prompt's text in hexadecimal: tells equal prompts without keeping them.
pub fn prompt_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Ledger {
    /// Gives a request its number and its seed.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn begin_route(&self, new: &NewRoute) -> Result<(RouteId, u64), LedgerError> {
        self.write(|tx| begin(tx, self.owner(), new))
    }

    /// Records what the router was told and what it decided.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn record_decision(
        &self,
        route: RouteId,
        candidates: &[CandidateRecord],
        decision: Option<&Decision>,
    ) -> Result<(), LedgerError> {
        self.write(|tx| {
            insert_candidates(tx, route, candidates)?;
            match decision {
                Some(decision) => update_decision(tx, route, decision),
                None => Ok(()),
            }
        })
    }

    /// Ends a route: grades, one feedback for each arm that ran, and whatever is still reserved
    /// is let go. A call that is still open is recorded as cancelled at no cost.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn finish_route(&self, end: &RouteEnd) -> Result<(), LedgerError> {
        self.finish_parts(end, &[])
    }

    /// The same for a request with parts, whose ends it takes too.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn finish_parts(&self, end: &RouteEnd, parts: &[PartEnd]) -> Result<(), LedgerError> {
        self.write(|tx| {
            part::end(tx, end.route, parts)?;
            finish(tx, end)
        })
    }

    /// Everything about one route; `None` when there is no such route.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn route(&self, route: RouteId) -> Result<Option<RouteRecord>, LedgerError> {
        self.read(|conn| read(conn, route))
    }

    /// Everything about the newest route.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_route(&self) -> Result<Option<RouteRecord>, LedgerError> {
        self.read(|conn| {
            let last: Option<Bits> =
                conn.query_row("SELECT max(id) FROM routes", [], |r| r.get(0))?;
            match last {
                Some(id) => read(conn, RouteId(id.0)),
                None => Ok(None),
            }
        })
    }

    /// Routes, newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn routes(&self, filter: &RouteFilter) -> Result<Vec<RouteSummaryRecord>, LedgerError> {
        self.read(|conn| {
            let before = filter.before.map_or(i64::MAX, |id| id.0 as i64);
            conn.prepare_cached(
                "SELECT r.id, r.at_ms, r.context, r.mode, r.status, c.arm AS arm,
                   coalesce(c.user_score, c.score) AS score,
                   (SELECT coalesce(sum(cost), 0) FROM calls WHERE route = r.id) AS cost
                 FROM routes r LEFT JOIN calls c ON c.id = r.answered
                 WHERE r.id < :before
                   AND (:context IS NULL OR r.context = :context)
                   AND (:router IS NULL OR r.router = :router)
                 ORDER BY r.id DESC LIMIT :limit",
            )?
            .query_map(
                named_params! {
                    ":before": before,
                    ":context": filter.context.as_ref().map(|c| &c.0),
                    ":router": filter.router,
                    ":limit": filter.limit,
                },
                |row| {
                    let arm: Option<String> = row.get("arm")?;
                    Ok(RouteSummaryRecord {
                        id: RouteId(row.get::<_, Bits>("id")?.0),
                        at_ms: row.get::<_, Bits>("at_ms")?.0,
                        context: ContextKey(row.get("context")?),
                        mode: row.get::<_, Option<Word<Mode>>>("mode")?.map(|w| w.0),
                        status: row.get::<_, Word<RouteStatus>>("status")?.0,
                        arm: arm.map(|arm| arm_id(&arm)).transpose()?,
                        cost: llmpick_core::NanoDollars(row.get::<_, Bits>("cost")?.0),
                        score: score(row, "score")?,
                    })
                },
            )?
            .collect::<Result<_, _>>()
            .map_err(Into::into)
        })
    }

    /// How many routes there are.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn count_routes(&self) -> Result<u64, LedgerError> {
        self.read(|conn| {
            let count: Bits = conn.query_row("SELECT count(*) FROM routes", [], |r| r.get(0))?;
            Ok(count.0)
        })
    }
}

fn begin(
    tx: &Transaction<'_>,
    owner: i64,
    new: &NewRoute,
) -> Result<(RouteId, u64), LedgerErrorKind> {
    let limits = &new.limits;
    tx.prepare_cached(
        "INSERT INTO routes (owner, at_ms, prompt_hash, prompt, context, session, target, router,
           seed, arms_epoch, allowed_modes, prompt_tokens, max_new_tokens, max_cost,
           max_latency_ms, min_score, cost_budget, max_arms, features, learn, status)
         VALUES (:owner, :at_ms, :prompt_hash, :prompt, :context, :session, :target, :router,
           0, :arms_epoch, :allowed_modes, :prompt_tokens, :max_new_tokens, :max_cost,
           :max_latency_ms, :min_score, :cost_budget, :max_arms, :features, :learn, :status)",
    )?
    .execute(named_params! {
        ":owner": owner,
        ":at_ms": Bits(new.at_ms),
        ":prompt_hash": new.prompt_hash,
        ":prompt": new.prompt,
        ":context": new.context.0,
        ":session": new.session,
        ":target": new.target,
        ":router": new.router,
        ":arms_epoch": Bits(limits.arms_epoch),
        ":allowed_modes": Json(&limits.allowed_modes),
        ":prompt_tokens": limits.prompt_tokens,
        ":max_new_tokens": limits.max_new_tokens,
        ":max_cost": real(limits.max_cost),
        ":max_latency_ms": real(limits.max_latency_ms),
        ":min_score": real(limits.min_score),
        ":cost_budget": real(limits.cost_budget),
        ":max_arms": limits.max_arms,
        ":features": Floats(limits.features.clone()),
        ":learn": new.learn,
        ":status": Word(RouteStatus::Deciding),
    })?;
    let id = tx.last_insert_rowid();
    let seed = new.seed.unwrap_or_else(|| mix(new.base_seed, id as u64));
    tx.prepare_cached("UPDATE routes SET seed = ? WHERE id = ?")?
        .execute(params![Bits(seed), id])?;
    Ok((RouteId(id as u64), seed))
}

/// SplitMix64 of a seed and a number: neighbours share nothing.
fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn insert_candidates(
    tx: &Transaction<'_>,
    route: RouteId,
    candidates: &[CandidateRecord],
) -> Result<(), LedgerErrorKind> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO route_arms (route, place, arm, locality, warm, eligible, unfit,
           context_tokens, price_in, price_out, est_cost, cost_max, latency_ms, ttft_ms, score,
           n_ok, n_err, inflight, resident_bytes, marginal)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for (place, record) in candidates.iter().enumerate() {
        let c = &record.candidate;
        insert.execute(params![
            Bits(route.0),
            place as i64,
            c.id.as_str(),
            Word(c.locality),
            c.warm,
            c.eligible,
            record.unfit,
            c.context_tokens,
            real(c.price_in),
            real(c.price_out),
            real(c.est_cost),
            real(c.cost_max),
            real(c.latency_ms),
            real(c.ttft_ms),
            real(c.score),
            Bits(c.n_ok),
            Bits(c.n_err),
            c.inflight,
            Bits(record.resident_bytes),
            record.marginal.and_then(real),
        ])?;
    }
    Ok(())
}

fn update_decision(
    tx: &Transaction<'_>,
    route: RouteId,
    decision: &Decision,
) -> Result<(), LedgerErrorKind> {
    let (source, why) = match &decision.source {
        DecisionSource::Router => ("router", None),
        DecisionSource::Fallback(why) => ("fallback", Some(why)),
        DecisionSource::Pinned => ("pinned", None),
    };
    tx.prepare_cached(
        "UPDATE routes SET mode = ?, source = ?, source_reason = ?, reason = ?, propensity = ?,
           choices = ?, status = ? WHERE id = ?",
    )?
    .execute(params![
        Word(decision.mode),
        source,
        why,
        decision.reason,
        real(decision.propensity),
        Json(&decision.choices),
        Word(RouteStatus::Running),
        Bits(route.0)
    ])?;
    Ok(())
}

fn finish(tx: &Transaction<'_>, end: &RouteEnd) -> Result<(), LedgerErrorKind> {
    let route = end.route.0 as i64;
    call::cancel_open(tx, route)?;
    for scored in &end.scores {
        let arm = call::set_score(tx, scored)?;
        measured::fold_score(tx, &arm, scored.score.get())?;
    }
    feedback::append_for_calls(tx, route, end.at_ms)?;
    budget::release(tx, route)?;
    tx.prepare_cached("UPDATE routes SET status = ?, answered = ?, accepted = ? WHERE id = ?")?
        .execute(params![
            Word(end.status),
            end.answered.map(|call| Bits(call.0)),
            end.accepted,
            route
        ])?;
    Ok(())
}

fn read(conn: &Connection, route: RouteId) -> Result<Option<RouteRecord>, LedgerErrorKind> {
    let candidates = read_candidates(conn, route)?;
    let record = conn
        .prepare_cached("SELECT * FROM routes WHERE id = ?")?
        .query_row([Bits(route.0)], |row| from_row(row, candidates))
        .optional()?;
    let Some(mut record) = record else {
        return Ok(None);
    };
    record.parts = part::of_route(conn, route)?;
    record.shadow = shadow::of_route(conn, route)?;
    record.calls = call::of_route(conn, route)?;
    record.feedback = feedback::of_route(conn, route)?;
    Ok(Some(record))
}

fn from_row(row: &Row<'_>, candidates: Vec<CandidateRecord>) -> rusqlite::Result<RouteRecord> {
    Ok(RouteRecord {
        id: RouteId(row.get::<_, Bits>("id")?.0),
        at_ms: row.get::<_, Bits>("at_ms")?.0,
        prompt_hash: row.get("prompt_hash")?,
        prompt: row.get("prompt")?,
        context: ContextKey(row.get("context")?),
        session: row.get("session")?,
        target: row.get("target")?,
        router: row.get("router")?,
        seed: row.get::<_, Bits>("seed")?.0,
        learn: row.get("learn")?,
        limits: RouteLimits {
            arms_epoch: row.get::<_, Bits>("arms_epoch")?.0,
            allowed_modes: row.get::<_, Json<Vec<Mode>>>("allowed_modes")?.0,
            prompt_tokens: row.get("prompt_tokens")?,
            max_new_tokens: row.get("max_new_tokens")?,
            max_cost: nan(row, "max_cost")?,
            max_latency_ms: nan(row, "max_latency_ms")?,
            min_score: nan(row, "min_score")?,
            cost_budget: nan(row, "cost_budget")?,
            max_arms: row.get("max_arms")?,
            features: row.get::<_, Floats>("features")?.0,
        },
        decision: decision(row, &candidates)?,
        candidates,
        status: row.get::<_, Word<RouteStatus>>("status")?.0,
        answered: row
            .get::<_, Option<Bits>>("answered")?
            .map(|id| CallId(id.0)),
        accepted: row.get("accepted")?,
        parts: Vec::new(),
        shadow: None,
        calls: Vec::new(),
        feedback: Vec::new(),
    })
}

fn decision(row: &Row<'_>, candidates: &[CandidateRecord]) -> rusqlite::Result<Option<Decision>> {
    let Some(mode) = row.get::<_, Option<Word<Mode>>>("mode")? else {
        return Ok(None);
    };
    let source: String = row.get("source")?;
    let why: Option<String> = row.get("source_reason")?;
    let marginals: Vec<f64> = candidates
        .iter()
        .map(|c| c.marginal.unwrap_or(f64::NAN))
        .collect();
    Ok(Some(Decision {
        choices: row.get::<_, Json<Vec<u32>>>("choices")?.0,
        mode: mode.0,
        propensity: nan(row, "propensity")?,
        marginals: match marginals.iter().all(|m| m.is_nan()) {
            true => Vec::new(),
            false => marginals,
        },
        reason: row.get("reason")?,
        source: match source.as_str() {
            "router" => DecisionSource::Router,
            "pinned" => DecisionSource::Pinned,
            _ => DecisionSource::Fallback(why.unwrap_or_default()),
        },
    }))
}

fn read_candidates(
    conn: &Connection,
    route: RouteId,
) -> Result<Vec<CandidateRecord>, LedgerErrorKind> {
    conn.prepare_cached("SELECT * FROM route_arms WHERE route = ? ORDER BY place")?
        .query_map([Bits(route.0)], |row| {
            Ok(CandidateRecord {
                candidate: Candidate {
                    id: arm_id(&row.get::<_, String>("arm")?)?,
                    locality: row.get::<_, Word<_>>("locality")?.0,
                    warm: row.get("warm")?,
                    eligible: row.get("eligible")?,
                    context_tokens: row.get("context_tokens")?,
                    price_in: nan(row, "price_in")?,
                    price_out: nan(row, "price_out")?,
                    est_cost: nan(row, "est_cost")?,
                    cost_max: nan(row, "cost_max")?,
                    latency_ms: nan(row, "latency_ms")?,
                    ttft_ms: nan(row, "ttft_ms")?,
                    score: nan(row, "score")?,
                    n_ok: row.get::<_, Bits>("n_ok")?.0,
                    n_err: row.get::<_, Bits>("n_err")?.0,
                    inflight: row.get("inflight")?,
                },
                unfit: row.get("unfit")?,
                resident_bytes: row.get::<_, Bits>("resident_bytes")?.0,
                marginal: row.get("marginal")?,
            })
        })?
        .collect::<Result<_, _>>()
        .map_err(Into::into)
}

/// Reads an arm's name.
pub(crate) fn arm_id(text: &str) -> rusqlite::Result<ArmId> {
    ArmId::new(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// Reads a grade that may be NULL.
pub(crate) fn score(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Score>> {
    row.get::<_, Option<f64>>(column)?
        .map(Score::new)
        .transpose()
        .map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(
                0,
                rusqlite::types::Type::Real,
                Box::new(error),
            )
        })
}
