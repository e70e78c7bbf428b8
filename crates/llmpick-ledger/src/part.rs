//! The parts of a request that was dealt over several arms.

use llmpick_core::RouteId;
use rusqlite::{Connection, Transaction, params};
use serde::Serialize;

use crate::value::Bits;
use crate::{CallId, Ledger, LedgerError, LedgerErrorKind};

/// A part before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPart {
    /// Its name within the request.
    pub name: String,
    /// [`prompt_hash`](crate::prompt_hash) of its prompt.
    pub prompt_hash: String,
    /// The prompt's text, only if the settings say so.
    pub prompt: Option<String>,
}

/// How a part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartEnd {
    /// Which, from 0.
    pub part: u32,
    /// The call that answered it, if one did.
    pub answered: Option<CallId>,
    /// Whether it was answered well enough.
    pub accepted: bool,
}

/// A part as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartRecord {
    /// Its name within the request.
    pub name: String,
    /// [`prompt_hash`](crate::prompt_hash) of its prompt.
    pub prompt_hash: String,
    /// The prompt's text, if the settings said so.
    pub prompt: Option<String>,
    /// The call that answered it, if one did.
    pub answered: Option<CallId>,
    /// Whether it was answered well enough; `None` while it runs, or when nobody lived to say.
    pub accepted: Option<bool>,
}

impl Ledger {
    /// Records what a request is made of.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn record_parts(&self, route: RouteId, parts: &[NewPart]) -> Result<(), LedgerError> {
        self.write(|tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO parts (route, part, name, prompt_hash, prompt) VALUES (?, ?, ?, ?, ?)",
            )?;
            for (part, new) in parts.iter().enumerate() {
                insert.execute(params![
                    Bits(route.0),
                    part as i64,
                    new.name,
                    new.prompt_hash,
                    new.prompt
                ])?;
            }
            Ok(())
        })
    }
}

/// Records how parts ended.
pub(crate) fn end(
    tx: &Transaction<'_>,
    route: RouteId,
    parts: &[PartEnd],
) -> Result<(), LedgerErrorKind> {
    let mut update = tx.prepare_cached(
        "UPDATE parts SET answered = ?, accepted = ? WHERE route = ? AND part = ?",
    )?;
    for end in parts {
        update.execute(params![
            end.answered.map(|call| Bits(call.0)),
            end.accepted,
            Bits(route.0),
            end.part
        ])?;
    }
    Ok(())
}

/// Names the answers of parts whose program did not live to name them.
pub(crate) fn close(tx: &Transaction<'_>, route: i64) -> Result<(), LedgerErrorKind> {
    tx.prepare_cached(
        "UPDATE parts SET answered = (SELECT max(c.id) FROM calls c
           WHERE c.route = parts.route AND c.part = parts.part AND c.outcome = 'ok')
         WHERE route = ? AND answered IS NULL",
    )?
    .execute([route])?;
    Ok(())
}

pub(crate) fn of_route(
    conn: &Connection,
    route: RouteId,
) -> Result<Vec<PartRecord>, LedgerErrorKind> {
    conn.prepare_cached("SELECT * FROM parts WHERE route = ? ORDER BY part")?
        .query_map([Bits(route.0)], |row| {
            Ok(PartRecord {
                name: row.get("name")?,
                prompt_hash: row.get("prompt_hash")?,
                prompt: row.get("prompt")?,
                answered: row
                    .get::<_, Option<Bits>>("answered")?
                    .map(|id| CallId(id.0)),
                accepted: row.get("accepted")?,
            })
        })?
        .collect::<Result<_, _>>()
        .map_err(Into::into)
}
