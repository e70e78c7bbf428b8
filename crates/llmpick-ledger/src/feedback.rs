//! What routers learn from, in the order in which they learn it.
//!
//! Row ids rise with the order of commits, and a router's whole learnt state is the fold of the
//! rows in id order. A [`Cursor`] says how far a router has come.

use llmpick_core::{ArmId, Feedback, OutcomeKind, RouteId, Score};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};
use serde::{Deserialize, Serialize};

use crate::route::{arm_id, score};
use crate::value::{Bits, Floats, Word, nan, real};
use crate::{CallId, Ledger, LedgerError, LedgerErrorKind, measured};

/// How far a learner has come: the last row it has applied, with that row's random nonce.
///
/// The nonce tells a ledger that was set back (a power cut, a restored backup) and has gone
/// another way since from the one that the learner saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Id of the row; 0 before the first.
    pub id: u64,
    /// Its nonce; 0 before the first.
    pub nonce: u64,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeedbackRecord {
    /// Its place.
    pub cursor: Cursor,
    /// When it was written.
    pub at_ms: u64,
    /// `run` for the one report of a call, otherwise who scored later, for example `user`.
    pub origin: String,
    /// The router that was asked for the route.
    pub router: String,
    /// The report. Its `fallback` is as true for the router that was asked; see
    /// [`for_router`](Self::for_router).
    pub feedback: Feedback,
}

impl FeedbackRecord {
    /// The report as the router named `router` is told it: what another router chose was, to
    /// this one, somebody else's choice.
    pub fn for_router(&self, router: &str) -> Feedback {
        let mut feedback = self.feedback.clone();
        feedback.fallback |= self.router != router;
        feedback
    }
}

/// A grade that comes after the route's end.
#[derive(Clone, Debug, PartialEq)]
pub struct LateScore {
    /// The route.
    pub route: RouteId,
    /// The call; `None` means the one whose answer was released.
    pub call: Option<CallId>,
    /// The grade.
    pub score: Score,
    /// Who graded; `user` is kept apart from scorers, and goes before them in statistics.
    pub origin: String,
    /// When.
    pub at_ms: u64,
}

/// The origin of a person's grade.
const USER: &str = "user";

impl Ledger {
    /// Rows after the cursor in id order, at most `limit`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn feedback_after(
        &self,
        after: u64,
        limit: u32,
    ) -> Result<Vec<FeedbackRecord>, LedgerError> {
        self.read(|conn| {
            conn.prepare_cached(
                "SELECT f.*, r.features FROM feedback f JOIN routes r ON r.id = f.route
                 WHERE f.id > ? ORDER BY f.id LIMIT ?",
            )?
            .query_map(params![Bits(after), limit], from_row)?
            .collect::<Result<_, _>>()
            .map_err(Into::into)
        })
    }

    /// True when the ledger holds exactly the row that the cursor names.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn knows(&self, cursor: Cursor) -> Result<bool, LedgerError> {
        if cursor == Cursor::default() {
            return Ok(true);
        }
        self.read(|conn| {
            let nonce: Option<Bits> = conn
                .prepare_cached("SELECT nonce FROM feedback WHERE id = ?")?
                .query_row([Bits(cursor.id)], |r| r.get(0))
                .optional()?;
            Ok(nonce == Some(Bits(cursor.nonce)))
        })
    }

    /// Records a later grade, and lets routers learn from it if the route is one to learn from.
    /// False when there is no such route, or nothing that could be graded.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn late_score(&self, late: &LateScore) -> Result<bool, LedgerError> {
        self.write(|tx| add_late(tx, late))
    }
}

/// Appends the one report of each arm of a route that ran and has none yet.
///
/// A request without parts has one call for each arm. Where an arm worked on several parts, they
/// are one report: costs and tokens are summed, the latency is the longest, the score is the mean
/// over its parts. A part that it failed counts as 0 there, one that was cancelled or that nobody
/// could grade does not count.
pub(crate) fn append_for_calls(
    tx: &Transaction<'_>,
    route: i64,
    at_ms: u64,
) -> Result<(), LedgerErrorKind> {
    // Costs are stored as whole nano-dollars; one division gives the same double everywhere.
    tx.prepare_cached(
        "INSERT INTO feedback (nonce, at_ms, origin, router, route, arm, position, outcome, task,
           fallback, cold, prompt_tokens, completion_tokens, latency_ms, ttft_ms, cost, score)
         SELECT random(), :at_ms, 'run', r.router, r.id, c.arm, coalesce(c.place, c.position),
           CASE WHEN max(c.outcome = 'ok') THEN 'ok' WHEN max(c.outcome = 'error') THEN 'error'
             WHEN max(c.outcome = 'timeout') THEN 'timeout' ELSE 'cancelled' END, r.context,
           coalesce(r.source, '') <> 'router', max(c.cold), sum(c.prompt_tokens),
           sum(c.completion_tokens), max(c.latency_ms), min(c.ttft_ms), sum(c.cost) / 1e9,
           CASE WHEN count(c.score) > 0 THEN
             total(c.score) / count(CASE WHEN c.outcome IN ('error', 'timeout') THEN 0
               ELSE c.score END) END
         FROM calls c JOIN routes r ON r.id = c.route
         WHERE c.route = :route AND c.learn AND r.learn AND c.outcome IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM feedback f
             WHERE f.route = c.route AND f.position = coalesce(c.place, c.position)
               AND f.origin = 'run')
         GROUP BY coalesce(c.place, c.position) ORDER BY coalesce(c.place, c.position)",
    )?
    .execute(named_params! { ":at_ms": Bits(at_ms), ":route": route })?;
    Ok(())
}

fn add_late(tx: &Transaction<'_>, late: &LateScore) -> Result<bool, LedgerErrorKind> {
    let call: Option<(Bits, String, bool)> = tx
        .prepare_cached(
            "SELECT c.id, c.arm, r.learn FROM routes r
             JOIN calls c ON c.route = r.id AND c.id = coalesce(:call, r.answered)
             WHERE r.id = :route AND c.outcome IS NOT NULL",
        )?
        .query_row(
            named_params! {
                ":route": Bits(late.route.0),
                ":call": late.call.map(|call| Bits(call.0)),
            },
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
        .optional()?;
    let Some((call, arm, learn)) = call else {
        return Ok(false);
    };
    let update = match late.origin.as_str() {
        USER => "UPDATE calls SET user_score = ?1 WHERE id = ?2 AND ?3 IS NOT NULL",
        _ => "UPDATE calls SET score = ?1, scorer = ?3 WHERE id = ?2",
    };
    tx.prepare_cached(update)?
        .execute(params![late.score.get(), call, late.origin])?;
    measured::fold_score(tx, &arm, late.score.get())?;
    if learn {
        append_late(tx, late, call)?;
    }
    Ok(true)
}

fn append_late(tx: &Transaction<'_>, late: &LateScore, call: Bits) -> Result<(), LedgerErrorKind> {
    tx.prepare_cached(
        "INSERT INTO feedback (nonce, at_ms, origin, router, route, arm, position, outcome, task,
           fallback, cold, prompt_tokens, completion_tokens, latency_ms, ttft_ms, cost, score)
         SELECT random(), :at_ms, :origin, r.router, r.id, c.arm, coalesce(c.place, c.position),
           c.outcome, r.context,
           coalesce(r.source, '') <> 'router', c.cold, c.prompt_tokens, c.completion_tokens,
           NULL, NULL, NULL, :score
         FROM calls c JOIN routes r ON r.id = c.route WHERE c.id = :call",
    )?
    .execute(named_params! {
        ":at_ms": Bits(late.at_ms),
        ":origin": late.origin,
        ":score": real(late.score.get()),
        ":call": call,
    })?;
    Ok(())
}

pub(crate) fn of_route(
    conn: &Connection,
    route: RouteId,
) -> Result<Vec<FeedbackRecord>, LedgerErrorKind> {
    conn.prepare_cached(
        "SELECT f.*, r.features FROM feedback f JOIN routes r ON r.id = f.route
         WHERE f.route = ? ORDER BY f.id",
    )?
    .query_map([Bits(route.0)], from_row)?
    .collect::<Result<_, _>>()
    .map_err(Into::into)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<FeedbackRecord> {
    let arm: ArmId = arm_id(&row.get::<_, String>("arm")?)?;
    Ok(FeedbackRecord {
        cursor: Cursor {
            id: row.get::<_, Bits>("id")?.0,
            nonce: row.get::<_, Bits>("nonce")?.0,
        },
        at_ms: row.get::<_, Bits>("at_ms")?.0,
        origin: row.get("origin")?,
        router: row.get("router")?,
        feedback: Feedback {
            route_id: RouteId(row.get::<_, Bits>("route")?.0),
            arm,
            position: row.get("position")?,
            outcome: row.get::<_, Word<OutcomeKind>>("outcome")?.0,
            task: row.get("task")?,
            features: row.get::<_, Floats>("features")?.0,
            fallback: row.get("fallback")?,
            cold: row.get("cold")?,
            prompt_tokens: row.get("prompt_tokens")?,
            completion_tokens: row.get("completion_tokens")?,
            latency_ms: nan(row, "latency_ms")?,
            ttft_ms: nan(row, "ttft_ms")?,
            cost: nan(row, "cost")?,
            score: score(row, "score")?,
        },
    })
}
