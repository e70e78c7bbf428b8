//! Ending what a program that died left open.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::value::{Bits, Word};
use crate::{LedgerErrorKind, RouteStatus, budget, call, feedback, part};

/// Ends an owner's open routes: running calls are charged what was reserved for them (see
/// [`call::charge_open`]), other reservations are let go, calls that had ended are reported to
/// the learner, and the owner is forgotten. Doing it twice does nothing the second time.
pub(crate) fn close_owner(tx: &Transaction<'_>, owner: i64) -> Result<(), LedgerErrorKind> {
    let routes: Vec<(i64, Bits)> = tx
        .prepare_cached(
            "SELECT id, at_ms FROM routes
             WHERE owner = ? AND status IN ('deciding', 'running') ORDER BY id",
        )?
        .query_map([owner], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (route, at_ms) in &routes {
        close_route(tx, *route, at_ms.0)?;
    }
    tx.execute("DELETE FROM owners WHERE id = ?", [owner])?;
    if !routes.is_empty() {
        tracing::warn!(
            routes = routes.len(),
            "routes of a dead program were closed"
        );
    }
    Ok(())
}

fn close_route(tx: &Transaction<'_>, route: i64, at_ms: u64) -> Result<(), LedgerErrorKind> {
    call::charge_open(tx, route)?;
    feedback::append_for_calls(tx, route, at_ms)?;
    budget::release(tx, route)?;
    part::close(tx, route)?;
    // The last call that answered is what the client most likely saw; a later score belongs to
    // it. A request with parts has many answers.
    let answered: Option<i64> = tx
        .prepare_cached(
            "SELECT id FROM calls WHERE route = ? AND outcome = 'ok' AND part IS NULL
             ORDER BY position DESC LIMIT 1",
        )?
        .query_row([route], |r| r.get(0))
        .optional()?;
    tx.prepare_cached("UPDATE routes SET status = ?, answered = ? WHERE id = ?")?
        .execute(params![Word(RouteStatus::Lost), answered, route])?;
    Ok(())
}
