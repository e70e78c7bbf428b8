//! What a second router would have decided, beside what was decided.

use llmpick_core::{Mode, RouteId};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::value::{Bits, Json, Word, nan, real};
use crate::{Ledger, LedgerError, LedgerErrorKind};

/// A decision without effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowRecord {
    /// Who was asked.
    pub router: String,
    /// Indexes into the route's candidates, in order; empty where it did not decide.
    pub choices: Vec<u32>,
    /// How the arms would have worked together; `None` where it did not decide.
    pub mode: Option<Mode>,
    /// P(this set was chosen); NaN where unknown.
    pub propensity: f64,
    /// P(arm is in the plan), one per candidate, NaN where unknown; empty if none are known.
    pub marginals: Vec<f64>,
    /// Its note for people.
    pub reason: String,
    /// Why it did not decide.
    pub error: Option<String>,
}

/// How a second router compares with the one that served.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowStats {
    /// Who was asked beside.
    pub router: String,
    /// Decisions it was asked for.
    pub asked: u64,
    /// Decisions it made.
    pub decided: u64,
    /// Share of those in which it would have begun with the same arm.
    pub same_first: Option<f64>,
    /// Routes that its score can be estimated from: one arm ran, was graded, and both routers'
    /// probabilities of it are known.
    pub weighed: u64,
    /// Mean score of what served, over those routes.
    pub served_score: Option<f64>,
    /// What the second router's would have been: the same scores, each weighed by its
    /// probability of the arm over that of the router that served (self-normalised inverse
    /// propensity).
    pub estimated_score: Option<f64>,
}

impl Ledger {
    /// Records what a second router would have decided for a route.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn record_shadow(&self, route: RouteId, shadow: &ShadowRecord) -> Result<(), LedgerError> {
        let known: Vec<Option<f64>> = shadow.marginals.iter().map(|p| real(*p)).collect();
        self.write(|tx| {
            tx.prepare_cached(
                "INSERT OR REPLACE INTO shadows
                   (route, router, choices, mode, propensity, marginals, reason, error)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                Bits(route.0),
                shadow.router,
                Json(&shadow.choices),
                shadow.mode.map(Word),
                real(shadow.propensity),
                Json(&known),
                shadow.reason,
                shadow.error,
            ])?;
            Ok(())
        })
    }

    /// One line for each router that ran as a shadow.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn shadow_stats(&self) -> Result<Vec<ShadowStats>, LedgerError> {
        self.read(|conn| {
            conn.prepare_cached(STATS)?
                .query_map([], |row| {
                    Ok(ShadowStats {
                        router: row.get("router")?,
                        asked: row.get::<_, Bits>("asked")?.0,
                        decided: row.get::<_, Bits>("decided")?.0,
                        same_first: row.get("same_first")?,
                        weighed: row.get::<_, Bits>("weighed")?.0,
                        served_score: row.get("served_score")?,
                        estimated_score: row.get("estimated_score")?,
                    })
                })?
                .collect::<Result<_, _>>()
                .map_err(Into::into)
        })
    }
}

/// A pinned route says nothing of either router; neither does the fallback's choice of how the
/// router that served would have weighed its arms.
const STATS: &str = "
WITH beside AS (
  SELECT s.router, s.error IS NULL AS decided,
    s.error IS NULL AND json_extract(s.choices, '$[0]') = json_extract(r.choices, '$[0]')
      AS same,
    CASE WHEN r.source = 'router' AND json_array_length(r.choices) = 1
      THEN coalesce(c.user_score, c.score) END AS score,
    json_extract(s.marginals, '$[' || a.place || ']') / nullif(a.marginal, 0) AS weight
  FROM shadows s JOIN routes r ON r.id = s.route
  LEFT JOIN calls c ON c.id = r.answered
  LEFT JOIN route_arms a ON a.route = r.id AND a.arm = c.arm
  WHERE coalesce(r.source, '') <> 'pinned'
)
SELECT router, count(*) AS asked, sum(decided) AS decided,
  avg(same) FILTER (WHERE decided) AS same_first,
  count(score * weight) AS weighed,
  avg(score) FILTER (WHERE weight IS NOT NULL) AS served_score,
  sum(score * weight) / nullif(sum(weight) FILTER (WHERE score IS NOT NULL), 0)
    AS estimated_score
FROM beside GROUP BY router ORDER BY router";

pub(crate) fn of_route(
    conn: &Connection,
    route: RouteId,
) -> Result<Option<ShadowRecord>, LedgerErrorKind> {
    conn.prepare_cached("SELECT * FROM shadows WHERE route = ?")?
        .query_row([Bits(route.0)], |row| {
            let marginals = row.get::<_, Json<Vec<Option<f64>>>>("marginals")?.0;
            Ok(ShadowRecord {
                router: row.get("router")?,
                choices: row.get::<_, Json<Vec<u32>>>("choices")?.0,
                mode: row.get::<_, Option<Word<Mode>>>("mode")?.map(|word| word.0),
                propensity: nan(row, "propensity")?,
                marginals: marginals
                    .into_iter()
                    .map(|p| p.unwrap_or(f64::NAN))
                    .collect(),
                reason: row.get("reason")?,
                error: row.get("error")?,
            })
        })
        .optional()
        .map_err(Into::into)
}
