//! Budgets: reserved before a call, settled after it, never passed by a burst.
//!
//! A reservation is refused when what is spent, what others have reserved, and what is asked
//! for together pass the limit. All of it is one transaction under SQLite's write lock, so it
//! holds between threads and between programs. A call that costs more than was reserved for it
//! (a local model may run longer than estimated) is still charged in full.

use std::time::Duration;

use llmpick_core::{NanoDollars, RouteId};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;

use crate::value::Bits;
use crate::{Ledger, LedgerError, LedgerErrorKind};

/// A limit on spending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Its name.
    pub key: String,
    /// How long one limit lasts.
    pub window: Window,
    /// Most that may be spent in a window.
    pub limit: NanoDollars,
}

/// How long one limit lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// One limit for ever.
    Forever,
    /// A new limit every so often, counted from 1970-01-01 UTC: a day is a UTC day.
    Every(Duration),
}

impl Window {
    fn ms(self) -> u64 {
        match self {
            Window::Forever => 0,
            Window::Every(length) => u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1),
        }
    }

    fn from_ms(ms: u64) -> Self {
        match ms {
            0 => Window::Forever,
            _ => Window::Every(Duration::from_millis(ms)),
        }
    }

    /// Start of the window that `now_ms` lies in.
    fn start(self, now_ms: u64) -> u64 {
        match self.ms() {
            0 => 0,
            length => now_ms - now_ms % length,
        }
    }
}

/// A budget as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetState {
    /// Its name.
    pub key: String,
    /// How long one limit lasts.
    pub window: Window,
    /// Most that may be spent; `None` where spending is counted and not limited.
    pub limit: Option<NanoDollars>,
    /// Spent in this window.
    pub spent: NanoDollars,
    /// Reserved by calls that run.
    pub reserved: NanoDollars,
}

impl BudgetState {
    /// What is neither spent nor reserved; `None` without a limit.
    pub fn left(&self) -> Option<NanoDollars> {
        let used = self.spent + self.reserved;
        self.limit.map(|limit| limit.saturating_sub(used))
    }
}

/// What to set aside for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The call's place among the attempts of its route.
    pub position: u32,
    /// The most it can cost.
    pub amount: NanoDollars,
}

/// Whether the money was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// It was.
    Granted,
    /// It was not, nothing at all: the first budget that does not allow it.
    Short {
        /// Its name.
        key: String,
        /// What it has left.
        left: NanoDollars,
    },
}

impl Ledger {
    /// Sets or changes a limit. What is spent stays spent.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn set_budget(&self, budget: &Budget) -> Result<(), LedgerError> {
        self.write(|tx| {
            tx.prepare_cached(
                "INSERT INTO budgets (key, window_ms, spend_limit) VALUES (?1, ?2, ?3)
                 ON CONFLICT (key) DO UPDATE SET window_ms = ?2, spend_limit = ?3",
            )?
            .execute(params![
                budget.key,
                Bits(budget.window.ms()),
                Bits(budget.limit.0)
            ])?;
            Ok(())
        })
    }

    /// Takes a limit away. True if there was one.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn remove_budget(&self, key: &str) -> Result<bool, LedgerError> {
        self.write(|tx| Ok(tx.execute("DELETE FROM budgets WHERE key = ?", [key])? > 0))
    }

    /// One budget as it stands in the window of `now_ms`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn budget(&self, key: &str, now_ms: u64) -> Result<BudgetState, LedgerError> {
        self.read(|conn| state(conn, key, now_ms))
    }

    /// All budgets that have a limit, by name.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn budgets(&self, now_ms: u64) -> Result<Vec<BudgetState>, LedgerError> {
        self.read(|conn| {
            let keys: Vec<String> = conn
                .prepare_cached("SELECT key FROM budgets ORDER BY key")?
                .query_map([], |r| r.get(0))?
                .collect::<Result<_, _>>()?;
            keys.iter().map(|key| state(conn, key, now_ms)).collect()
        })
    }

    /// Sets money aside for calls of a route in each of the budgets, all of it or none.
    ///
    /// # Errors
    /// When the ledger cannot be written. A budget that does not allow it is no error.
    pub fn reserve(
        &self,
        route: RouteId,
        reservations: &[Reservation],
        keys: &[String],
        now_ms: u64,
    ) -> Result<Reserved, LedgerError> {
        if keys.is_empty() {
            return Ok(Reserved::Granted);
        }
        let attempt = || self.write(|tx| reserve(tx, route, reservations, keys, now_ms));
        match attempt()? {
            Reserved::Granted => Ok(Reserved::Granted),
            // Perhaps a program that died holds the rest.
            Reserved::Short { .. } => {
                self.recover()?;
                attempt()
            }
        }
    }
}

fn reserve(
    tx: &Transaction<'_>,
    route: RouteId,
    reservations: &[Reservation],
    keys: &[String],
    now_ms: u64,
) -> Result<Reserved, LedgerErrorKind> {
    let total: NanoDollars = reservations.iter().map(|r| r.amount).sum();
    for key in keys {
        let state = state(tx, key, now_ms)?;
        if let Some(left) = state.left().filter(|left| *left < total) {
            let key = key.clone();
            return Ok(Reserved::Short { key, left });
        }
        let mut insert = tx.prepare_cached(
            "INSERT INTO reservations (route, position, key, window_start, amount)
             VALUES (?, ?, ?, ?, ?)",
        )?;
        for reservation in reservations {
            insert.execute(params![
                Bits(route.0),
                reservation.position,
                key,
                Bits(state.window.start(now_ms)),
                Bits(reservation.amount.0)
            ])?;
        }
    }
    Ok(Reserved::Granted)
}

/// Ends the reservation of one call and charges what it cost.
pub(crate) fn settle(
    tx: &Transaction<'_>,
    route: i64,
    position: u32,
    cost: NanoDollars,
) -> Result<(), LedgerErrorKind> {
    tx.prepare_cached(
        "INSERT INTO spend (key, window_start, spent)
         SELECT key, window_start, ?3 FROM reservations WHERE route = ?1 AND position = ?2
         ON CONFLICT (key, window_start) DO UPDATE SET spent = spent + excluded.spent",
    )?
    .execute(params![route, position, Bits(cost.0)])?;
    tx.prepare_cached("DELETE FROM reservations WHERE route = ? AND position = ?")?
        .execute(params![route, position])?;
    Ok(())
}

/// Lets go of what a route still has reserved.
pub(crate) fn release(tx: &Transaction<'_>, route: i64) -> Result<(), LedgerErrorKind> {
    tx.prepare_cached("DELETE FROM reservations WHERE route = ?")?
        .execute([route])?;
    Ok(())
}

fn state(conn: &Connection, key: &str, now_ms: u64) -> Result<BudgetState, LedgerErrorKind> {
    let limit: Option<(Bits, Bits)> = conn
        .prepare_cached("SELECT window_ms, spend_limit FROM budgets WHERE key = ?")?
        .query_row([key], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let window = limit.map_or(Window::Forever, |(ms, _)| Window::from_ms(ms.0));
    let start = Bits(window.start(now_ms));
    let sum = |sql: &str| -> Result<NanoDollars, LedgerErrorKind> {
        let sum: Bits = conn
            .prepare_cached(sql)?
            .query_row(params![key, start], |r| r.get(0))?;
        Ok(NanoDollars(sum.0))
    };
    Ok(BudgetState {
        key: key.to_owned(),
        window,
        limit: limit.map(|(_, limit)| NanoDollars(limit.0)),
        spent: sum("SELECT coalesce(sum(spent), 0) FROM spend WHERE key = ? AND window_start = ?")?,
        reserved: sum(
            "SELECT coalesce(sum(amount), 0) FROM reservations WHERE key = ? AND window_start = ?",
        )?,
    })
}
