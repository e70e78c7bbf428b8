//! What is known of each arm, smoothed, for the candidates of the next decision.

use std::collections::HashMap;

use llmpick_core::{ArmId, OutcomeKind};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::value::{nan, real};
use crate::{CallEnd, Ledger, LedgerError, LedgerErrorKind};

/// Weight of the newest call.
const ALPHA: f64 = 0.2;

/// Exponentially weighted means over an arm's calls in ledger order, the newest weighing 0.2.
/// NaN before the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Calls that succeeded.
    pub n_ok: u64,
    /// Calls that failed or timed out.
    pub n_err: u64,
    /// Whole response in ms, without loading.
    pub latency_ms: f64,
    /// First token in ms, without loading.
    pub ttft_ms: f64,
    /// Score.
    pub score: f64,
    /// Device time per prompt token in ms.
    pub prefill_ms: f64,
    /// Device time per generated token in ms.
    pub decode_ms: f64,
    /// Tokens generated.
    pub completion_tokens: f64,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            n_ok: 0,
            n_err: 0,
            latency_ms: f64::NAN,
            ttft_ms: f64::NAN,
            score: f64::NAN,
            prefill_ms: f64::NAN,
            decode_ms: f64::NAN,
            completion_tokens: f64::NAN,
        }
    }
}

impl Measured {
    /// Takes one more call into account.
    fn fold(&mut self, end: &CallEnd) {
        match end.outcome {
            OutcomeKind::Ok => self.n_ok += 1,
            OutcomeKind::Error | OutcomeKind::Timeout => self.n_err += 1,
            OutcomeKind::Cancelled => return,
        }
        if end.outcome != OutcomeKind::Ok {
            return;
        }
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        smooth(
            &mut self.latency_ms,
            ms(end.latency.saturating_sub(end.load)),
        );
        if let Some(ttft) = end.ttft {
            smooth(&mut self.ttft_ms, ms(ttft.saturating_sub(end.load)));
        }
        let completion = f64::from(end.usage.completion_tokens);
        smooth(&mut self.completion_tokens, completion);
        let read = f64::from(
            end.usage
                .prompt_tokens
                .saturating_sub(end.usage.cached_tokens),
        );
        if !end.prefill.is_zero() && read > 0.0 {
            smooth(&mut self.prefill_ms, ms(end.prefill) / read);
        }
        let decode = end.busy.saturating_sub(end.prefill);
        if !end.prefill.is_zero() && !decode.is_zero() && completion > 0.0 {
            smooth(&mut self.decode_ms, ms(decode) / completion);
        }
    }
}

fn smooth(mean: &mut f64, value: f64) {
    if mean.is_nan() {
        *mean = value;
    } else if value.is_finite() {
        *mean += ALPHA * (value - *mean);
    }
}

impl Ledger {
    /// What is known of every arm that ever ran.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn measured(&self) -> Result<HashMap<ArmId, Measured>, LedgerError> {
        self.read(|conn| {
            conn.prepare_cached("SELECT * FROM measured")?
                .query_map([], |row| Ok((row.get::<_, String>("arm")?, from_row(row)?)))?
                .map(|row| {
                    let (arm, measured) = row?;
                    Ok((crate::route::arm_id(&arm)?, measured))
                })
                .collect()
        })
    }
}

/// Takes one more call into account.
pub(crate) fn fold_call(
    tx: &Transaction<'_>,
    arm: &str,
    end: &CallEnd,
) -> Result<(), LedgerErrorKind> {
    let mut measured = get(tx, arm)?;
    measured.fold(end);
    put(tx, arm, &measured)
}

/// Takes one more score into account.
pub(crate) fn fold_score(
    tx: &Transaction<'_>,
    arm: &str,
    score: f64,
) -> Result<(), LedgerErrorKind> {
    let mut measured = get(tx, arm)?;
    smooth(&mut measured.score, score);
    put(tx, arm, &measured)
}

fn get(conn: &Connection, arm: &str) -> Result<Measured, LedgerErrorKind> {
    Ok(conn
        .prepare_cached("SELECT * FROM measured WHERE arm = ?")?
        .query_row([arm], from_row)
        .optional()?
        .unwrap_or_default())
}

fn put(tx: &Transaction<'_>, arm: &str, m: &Measured) -> Result<(), LedgerErrorKind> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO measured (arm, n_ok, n_err, latency_ms, ttft_ms, score,
         prefill_ms, decode_ms, completion_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        arm,
        m.n_ok as i64,
        m.n_err as i64,
        real(m.latency_ms),
        real(m.ttft_ms),
        real(m.score),
        real(m.prefill_ms),
        real(m.decode_ms),
        real(m.completion_tokens)
    ])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Measured> {
    Ok(Measured {
        n_ok: row.get::<_, i64>("n_ok")? as u64,
        n_err: row.get::<_, i64>("n_err")? as u64,
        latency_ms: nan(row, "latency_ms")?,
        ttft_ms: nan(row, "ttft_ms")?,
        score: nan(row, "score")?,
        prefill_ms: nan(row, "prefill_ms")?,
        decode_ms: nan(row, "decode_ms")?,
        completion_tokens: nan(row, "completion_tokens")?,
    })
}
