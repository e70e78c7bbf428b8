//! One arm's work for one route.

use std::time::Duration;

use llmpick_core::{ArmId, NanoDollars, OutcomeKind, RouteId, Score, Usage};
use rusqlite::{Connection, Row, Transaction, params};
use serde::Serialize;

use crate::route::{arm_id, score};
use crate::value::{Bits, Word};
use crate::{Ledger, LedgerError, LedgerErrorKind, ScoredCall, budget, measured};

/// The number of one call in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct CallId(pub u64);

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub struct CallEnd {
    /// How.
    pub outcome: OutcomeKind,
    /// Whether the learner hears of it. False where the arm is not to blame, such as a prompt
    /// longer than its context.
    pub learn: bool,
    /// Tokens read and written, as far as known.
    pub usage: Usage,
    /// From the call's start to its end.
    pub latency: Duration,
    /// From the call's start to its first content.
    pub ttft: Option<Duration>,
    /// Time the device worked.
    pub busy: Duration,
    /// The part of `busy` that read the prompt; zero where unknown.
    pub prefill: Duration,
    /// Time spent loading.
    pub load: Duration,
    /// What it cost.
    pub cost: NanoDollars,
    /// What went wrong, for people.
    pub error: Option<String>,
}

/// A call as the ledger has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallRecord {
    /// Its number.
    pub id: CallId,
    /// Its place among the attempts of its route, from 0.
    pub position: u32,
    /// The part of the request that it worked on; `None` for a request without parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// Its arm's place in the plan, for a call that worked on a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<u32>,
    /// Who.
    pub arm: ArmId,
    /// When it started.
    pub started_ms: u64,
    /// Set aside for it.
    pub reserved: NanoDollars,
    /// How it ended; `None` while it runs.
    pub outcome: Option<OutcomeKind>,
    /// Tokens.
    pub usage: Usage,
    /// From its start to its end, in ms.
    pub latency_ms: Option<f64>,
    /// From its start to its first content, in ms.
    pub ttft_ms: Option<f64>,
    /// Time the device worked, in ms.
    pub busy_ms: Option<f64>,
    /// Time spent loading, in ms.
    pub load_ms: Option<f64>,
    /// Latency includes loading.
    pub cold: bool,
    /// What it cost.
    pub cost: NanoDollars,
    /// The scorer's grade.
    pub score: Option<Score>,
    /// Who graded.
    pub scorer: Option<String>,
    /// The user's grade.
    pub user_score: Option<Score>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Where a call that works on one part of a request belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartCall {
    /// The part, from 0.
    pub part: u32,
    /// The arm's place in the plan; arms that only took over stand behind the plan's. All calls
    /// of one place are one report to the learner.
    pub place: u32,
}

impl Ledger {
    /// Records that an arm starts, so that a crash in mid-call is known and paid for.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn start_call(
        &self,
        route: RouteId,
        position: u32,
        arm: &ArmId,
        reserved: NanoDollars,
        now_ms: u64,
    ) -> Result<CallId, LedgerError> {
        self.insert_call(route, position, None, arm, reserved, now_ms)
    }

    /// The same for a call that works on one part of a request.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn start_part_call(
        &self,
        route: RouteId,
        position: u32,
        of: PartCall,
        arm: &ArmId,
        reserved: NanoDollars,
        now_ms: u64,
    ) -> Result<CallId, LedgerError> {
        self.insert_call(route, position, Some(of), arm, reserved, now_ms)
    }

    fn insert_call(
        &self,
        route: RouteId,
        position: u32,
        of: Option<PartCall>,
        arm: &ArmId,
        reserved: NanoDollars,
        now_ms: u64,
    ) -> Result<CallId, LedgerError> {
        self.write(|tx| {
            tx.prepare_cached(
                "INSERT INTO calls (route, position, part, place, arm, started_ms, reserved)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                Bits(route.0),
                position,
                of.map(|of| of.part),
                of.map(|of| of.place),
                arm.as_str(),
                Bits(now_ms),
                Bits(reserved.0)
            ])?;
            Ok(CallId(tx.last_insert_rowid() as u64))
        })
    }

    /// Records how an arm ended, and settles its reservation.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn end_call(&self, call: CallId, end: &CallEnd) -> Result<(), LedgerError> {
        self.write(|tx| end_call(tx, call, end))
    }
}

impl Ledger {
    /// When the last `calls` calls of an arm all failed through the arm's own fault: the time at
    /// which the newest of them ended. `None` where any of them succeeded, or there are fewer.
    /// Calls that their client broke off say nothing either way.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn failing_since(&self, arm: &ArmId, calls: u32) -> Result<Option<u64>, LedgerError> {
        self.read(|conn| {
            let ends: Vec<(bool, f64)> = conn
                .prepare_cached(
                    "SELECT outcome = 'ok', started_ms + coalesce(latency_ms, 0) FROM calls
                     WHERE arm = ? AND learn AND outcome IN ('ok', 'error', 'timeout')
                     ORDER BY id DESC LIMIT ?",
                )?
                .query_map(params![arm.as_str(), calls], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let failed = ends.len() == calls as usize && ends.iter().all(|(ok, _)| !ok);
            Ok(ends
                .first()
                .filter(|_| failed)
                .map(|(_, ended)| *ended as u64))
        })
    }
}

fn end_call(tx: &Transaction<'_>, call: CallId, end: &CallEnd) -> Result<(), LedgerErrorKind> {
    let (route, position, arm): (i64, u32, String) = tx
        .prepare_cached("SELECT route, position, arm FROM calls WHERE id = ? AND outcome IS NULL")?
        .query_row([Bits(call.0)], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .map_err(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => {
                LedgerErrorKind::Inconsistent(format!("no call {} is running", call.0))
            }
            other => other.into(),
        })?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    tx.prepare_cached(
        "UPDATE calls SET outcome = ?, learn = ?, prompt_tokens = ?, cached_tokens = ?,
           completion_tokens = ?, latency_ms = ?, ttft_ms = ?, busy_ms = ?, load_ms = ?, cold = ?,
           cost = ?, error = ? WHERE id = ?",
    )?
    .execute(params![
        Word(end.outcome),
        end.learn,
        end.usage.prompt_tokens,
        end.usage.cached_tokens,
        end.usage.completion_tokens,
        ms(end.latency),
        end.ttft.map(ms),
        ms(end.busy),
        ms(end.load),
        !end.load.is_zero(),
        Bits(end.cost.0),
        end.error,
        Bits(call.0)
    ])?;
    budget::settle(tx, route, position, end.cost)?;
    measured::fold_call(tx, &arm, end)
}

/// Ends calls that nobody will end any more.
pub(crate) fn cancel_open(tx: &Transaction<'_>, route: i64) -> Result<(), LedgerErrorKind> {
    tx.prepare_cached("UPDATE calls SET outcome = ? WHERE route = ? AND outcome IS NULL")?
        .execute(params![Word(OutcomeKind::Cancelled), route])?;
    Ok(())
}

/// Ends calls that their program did not live to end. What they cost is unknown, and a provider
/// may have billed it: the reservation is charged in full, so that a limit stays a limit.
pub(crate) fn charge_open(tx: &Transaction<'_>, route: i64) -> Result<(), LedgerErrorKind> {
    let open: Vec<(u32, Bits)> = tx
        .prepare_cached("SELECT position, reserved FROM calls WHERE route = ? AND outcome IS NULL")?
        .query_map([route], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (position, reserved) in open {
        budget::settle(tx, route, position, NanoDollars(reserved.0))?;
    }
    tx.prepare_cached(
        "UPDATE calls SET outcome = ?, cost = reserved, error = ?
         WHERE route = ? AND outcome IS NULL",
    )?
    .execute(params![
        Word(OutcomeKind::Error),
        "the program ended while this ran",
        route
    ])?;
    Ok(())
}

/// Records a scorer's grade, and says of which arm.
pub(crate) fn set_score(
    tx: &Transaction<'_>,
    scored: &ScoredCall,
) -> Result<String, LedgerErrorKind> {
    tx.prepare_cached("UPDATE calls SET score = ?, scorer = ? WHERE id = ? RETURNING arm")?
        .query_row(
            params![scored.score.get(), scored.scorer, Bits(scored.call.0)],
            |r| r.get(0),
        )
        .map_err(Into::into)
}

pub(crate) fn of_route(
    conn: &Connection,
    route: RouteId,
) -> Result<Vec<CallRecord>, LedgerErrorKind> {
    conn.prepare_cached("SELECT * FROM calls WHERE route = ? ORDER BY position")?
        .query_map([Bits(route.0)], from_row)?
        .collect::<Result<_, _>>()
        .map_err(Into::into)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<CallRecord> {
    Ok(CallRecord {
        id: CallId(row.get::<_, Bits>("id")?.0),
        position: row.get("position")?,
        part: row.get("part")?,
        place: row.get("place")?,
        arm: arm_id(&row.get::<_, String>("arm")?)?,
        started_ms: row.get::<_, Bits>("started_ms")?.0,
        reserved: NanoDollars(row.get::<_, Bits>("reserved")?.0),
        outcome: row.get::<_, Option<Word<_>>>("outcome")?.map(|w| w.0),
        usage: Usage {
            prompt_tokens: row.get("prompt_tokens")?,
            cached_tokens: row.get("cached_tokens")?,
            completion_tokens: row.get("completion_tokens")?,
        },
        latency_ms: row.get("latency_ms")?,
        ttft_ms: row.get("ttft_ms")?,
        busy_ms: row.get("busy_ms")?,
        load_ms: row.get("load_ms")?,
        cold: row.get("cold")?,
        cost: NanoDollars(row.get::<_, Bits>("cost")?.0),
        score: score(row, "score")?,
        scorer: row.get("scorer")?,
        user_score: score(row, "user_score")?,
        error: row.get("error")?,
    })
}
