//! What each arm did so far, as a table.

use llmpick_core::{ArmId, ContextKey, RouteId};
use rusqlite::{Row, named_params};
use serde::Serialize;

use crate::route::arm_id;
use crate::value::Bits;
use crate::{Ledger, LedgerError};

/// Which routes count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsFilter {
    /// Only this context.
    pub context: Option<ContextKey>,
    /// Only routes of this router.
    pub router: Option<String>,
    /// Only routes after this one, for example those of one evaluation.
    pub after: Option<RouteId>,
    /// Length of the tail for `recent_share`, in routes.
    pub recent: u32,
}

impl Default for StatsFilter {
    fn default() -> Self {
        Self {
            context: None,
            router: None,
            after: None,
            recent: 50,
        }
    }
}

/// One arm's line. Means are over calls where the value is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmStats {
    /// Who.
    pub arm: ArmId,
    /// Calls that have ended, whatever their outcome.
    pub pulls: u64,
    /// Calls with a score.
    pub scored: u64,
    /// Mean score, the user's before the scorer's.
    pub mean_score: Option<f64>,
    /// Lower end of the mean's 95 % interval (Wilson's: right for scores of 0 and 1, wider than
    /// needed for grades between).
    pub score_low: Option<f64>,
    /// Upper end.
    pub score_high: Option<f64>,
    /// Mean cost of a call in dollars.
    pub mean_cost: Option<f64>,
    /// Cost of all calls in dollars.
    pub total_cost: f64,
    /// Mean time of an answer in ms, loading included.
    pub mean_latency_ms: Option<f64>,
    /// Mean time to the first token in ms, loading included.
    pub mean_ttft_ms: Option<f64>,
    /// Calls that failed or timed out.
    pub errors: u64,
    /// Its part of all calls that a router (or the fallback for it) chose.
    pub share: f64,
    /// Its part of such calls in the last routes.
    pub recent_share: f64,
}

impl Ledger {
    /// One line per arm, by name.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn stats(&self, filter: &StatsFilter) -> Result<Vec<ArmStats>, LedgerError> {
        let mut stats = self.read(|conn| {
            conn.prepare_cached(STATS)?
                .query_map(
                    named_params! {
                        ":context": filter.context.as_ref().map(|c| &c.0),
                        ":router": filter.router,
                        ":after": filter.after.map_or(0, |id| id.0 as i64),
                        ":recent": filter.recent,
                    },
                    from_row,
                )?
                .collect::<Result<Vec<_>, _>>()
                .map_err(Into::into)
        })?;
        // Counts until here; parts of the whole from here on.
        let total = |of: fn(&ArmStats) -> f64| stats.iter().map(of).sum::<f64>().max(1.0);
        let (all, recent) = (total(|s| s.share), total(|s| s.recent_share));
        for line in &mut stats {
            line.share /= all;
            line.recent_share /= recent;
        }
        Ok(stats)
    }
}

const STATS: &str = "
WITH picked AS (
  SELECT id, coalesce(source, '') <> 'pinned' AS routed FROM routes
  WHERE id > :after
    AND (:context IS NULL OR context = :context)
    AND (:router IS NULL OR router = :router)
), tail AS (SELECT id FROM picked WHERE routed ORDER BY id DESC LIMIT :recent)
SELECT c.arm AS arm,
  count(*) AS pulls,
  count(coalesce(c.user_score, c.score)) AS scored,
  avg(coalesce(c.user_score, c.score)) AS mean_score,
  avg(c.cost) / 1e9 AS mean_cost,
  total(c.cost) / 1e9 AS total_cost,
  avg(c.latency_ms) FILTER (WHERE c.outcome = 'ok') AS mean_latency_ms,
  avg(c.ttft_ms) FILTER (WHERE c.outcome = 'ok') AS mean_ttft_ms,
  count(*) FILTER (WHERE c.outcome IN ('error', 'timeout')) AS errors,
  total(p.routed) AS routed,
  total(p.routed AND c.route IN (SELECT id FROM tail)) AS recent
FROM calls c JOIN picked p ON p.id = c.route
WHERE c.outcome IS NOT NULL
GROUP BY c.arm ORDER BY c.arm";

fn from_row(row: &Row<'_>) -> rusqlite::Result<ArmStats> {
    let scored = row.get::<_, Bits>("scored")?.0;
    let mean_score: Option<f64> = row.get("mean_score")?;
    let interval = mean_score.map(|mean| wilson(mean, scored as f64));
    Ok(ArmStats {
        arm: arm_id(&row.get::<_, String>("arm")?)?,
        pulls: row.get::<_, Bits>("pulls")?.0,
        scored,
        mean_score,
        score_low: interval.map(|(low, _)| low),
        score_high: interval.map(|(_, high)| high),
        mean_cost: row.get("mean_cost")?,
        total_cost: row.get("total_cost")?,
        mean_latency_ms: row.get("mean_latency_ms")?,
        mean_ttft_ms: row.get("mean_ttft_ms")?,
        errors: row.get::<_, Bits>("errors")?.0,
        share: row.get("routed")?,
        recent_share: row.get("recent")?,
    })
}

/// Wilson's 95 % interval of a proportion `mean` out of `n`.
fn wilson(mean: f64, n: f64) -> (f64, f64) {
    let z = 1.959_963_984_540_054_f64;
    let scale = 1.0 + z * z / n;
    let centre = (mean + z * z / (2.0 * n)) / scale;
    let half = z / scale
        * (mean * (1.0 - mean) / n + z * z / (4.0 * n * n))
            .max(0.0)
            .sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // 81 of 263: a worked example of Newcombe (1998), table I.
        let (low, high) = wilson(81.0 / 263.0, 263.0);
        assert!((low - 0.2553).abs() < 5e-5, "{low}");
        assert!((high - 0.3662).abs() < 5e-5, "{high}");
        let (low, high) = wilson(1.0, 3.0);
        assert!(low > 0.4 && low < 0.5 && high == 1.0, "{low} {high}");
    }
}
