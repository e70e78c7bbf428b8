//! The router, and how it comes to know what the ledger knows.
//!
//! Its state is a fold over the ledger's feedback rows in id order, nothing else. A snapshot is
//! only a shortcut: it says up to which row it has been folded, and the rest is read from there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use llmpick_core::{ContextKey, Decision, Router, RouterError, RouterNeeds, SelectRequest};
use llmpick_ledger::{Cursor, Ledger, LedgerError, SnapshotStore};
use tracing::{info, warn};

use crate::DispatchError;

/// Rows read at once.
const BATCH: u32 = 1_000;

/// A router with its place in the ledger.
pub(crate) struct Learner {
    router: Box<dyn Router>,
    name: String,
    needs: RouterNeeds,
    cursor: Cursor,
    snapshots: Option<SnapshotStore>,
    /// Only rows of this context are learnt.
    only: Option<ContextKey>,
    /// Rows applied since the last snapshot.
    fresh: u32,
    every: u32,
}

impl Learner {
    /// Restores the newest good snapshot, then applies the rest of the ledger.
    pub(crate) fn open(
        mut router: Box<dyn Router>,
        ledger: &Ledger,
        snapshots: Option<SnapshotStore>,
        every: u32,
    ) -> Result<Self, LedgerError> {
        let name = router.name().to_owned();
        let mut cursor = Cursor::default();
        if let Some(store) = &snapshots {
            let loaded = store.load(&name, ledger, |snapshot| {
                guarded(|| router.restore(snapshot)).map_err(|error| error.to_string())
            });
            for problem in &loaded.problems {
                warn!(router = %name, %problem, "snapshot was passed over");
            }
            cursor = loaded.cursor.unwrap_or_default();
        }
        let mut learner = Self {
            needs: router.needs(),
            router,
            name,
            cursor,
            snapshots,
            only: None,
            fresh: 0,
            every: every.max(1),
        };
        let replayed = learner.catch_up(ledger)?;
        info!(router = %learner.name, from = cursor.id, replayed, "router state restored");
        Ok(learner)
    }

    /// A router that starts from nothing and learns what the ledger holds of one context. It
    /// neither reads nor writes snapshots: the rows of its context are its whole memory.
    pub(crate) fn isolated(
        router: Box<dyn Router>,
        ledger: &Ledger,
        only: ContextKey,
    ) -> Result<Self, LedgerError> {
        let mut learner = Self {
            needs: router.needs(),
            name: router.name().to_owned(),
            router,
            cursor: Cursor::default(),
            snapshots: None,
            only: Some(only),
            fresh: 0,
            every: 1,
        };
        learner.catch_up(ledger)?;
        Ok(learner)
    }

    /// Hands over to a new build of the same router: its learnt state if the new one takes it,
    /// or else what the ledger holds, told from the start. On an error nothing changed.
    pub(crate) fn hand_over(
        &mut self,
        mut next: Box<dyn Router>,
        ledger: &Ledger,
    ) -> Result<Handover, DispatchError> {
        self.catch_up(ledger)?;
        let reason = match guarded(|| self.router.snapshot()) {
            Ok(snapshot) if snapshot.state.is_empty() => "it keeps no state of its own".to_owned(),
            Ok(snapshot) => match guarded(|| next.restore(&snapshot)) {
                Ok(()) => {
                    self.needs = next.needs();
                    self.router = next;
                    self.fresh = self.fresh.max(1);
                    self.save(ledger, true);
                    return Ok(Handover::Kept);
                }
                // A state of another version is no failure; a router that breaks over it is.
                Err(RouterError::State(why)) => format!("it does not take the old state: {why}"),
                Err(error) => return Err(DispatchError::Handover(error.to_string())),
            },
            Err(error) => format!("the old one gave no state: {error}"),
        };
        let mut learner = Self {
            needs: next.needs(),
            name: next.name().to_owned(),
            router: next,
            cursor: Cursor::default(),
            snapshots: self.snapshots.clone(),
            only: self.only.clone(),
            fresh: 1,
            every: self.every,
        };
        let rows = learner.catch_up(ledger)?;
        learner.save(ledger, true);
        *self = learner;
        Ok(Handover::Replayed { rows, reason })
    }

    /// A router that starts from nothing and has learnt nothing yet, for
    /// [`catch_up_to`](Self::catch_up_to). It neither reads nor writes snapshots.
    pub(crate) fn fresh(router: Box<dyn Router>) -> Self {
        Self {
            needs: router.needs(),
            name: router.name().to_owned(),
            router,
            cursor: Cursor::default(),
            snapshots: None,
            only: None,
            fresh: 0,
            every: 1,
        }
    }

    /// The last row that was applied; 0 before the first.
    pub(crate) fn learnt(&self) -> u64 {
        self.cursor.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn needs(&self) -> RouterNeeds {
        self.needs
    }

    /// Applies the ledger's newer rows in id order, and says how many there were.
    pub(crate) fn catch_up(&mut self, ledger: &Ledger) -> Result<u64, LedgerError> {
        self.catch_up_to(ledger, u64::MAX)
    }

    /// The same, up to this row.
    pub(crate) fn catch_up_to(&mut self, ledger: &Ledger, last: u64) -> Result<u64, LedgerError> {
        let mut applied = 0;
        loop {
            let rows = ledger.feedback_after(self.cursor.id, BATCH)?;
            for row in &rows {
                if row.cursor.id > last {
                    return Ok(applied);
                }
                self.cursor = row.cursor;
                let mut feedback = row.for_router(&self.name);
                if !self.needs.features {
                    feedback.features.clear();
                }
                if self
                    .only
                    .as_ref()
                    .is_some_and(|only| only.0 != feedback.task)
                {
                    continue;
                }
                // A row the router cannot digest would be as indigestible the next time.
                if let Err(error) = guarded(|| self.router.feedback(&feedback)) {
                    warn!(router = %self.name, row = row.cursor.id, %error, "feedback was refused");
                }
                self.fresh = self.fresh.saturating_add(1);
                applied += 1;
            }
            if rows.len() < BATCH as usize {
                return Ok(applied);
            }
        }
    }

    /// Asks the router. A native router that panics is a fault like any other.
    pub(crate) fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        let request = SelectRequest {
            features: request.features.filter(|_| self.needs.features),
            ..request.clone()
        };
        guarded(|| self.router.select(&request))
    }

    /// Writes a snapshot if enough has been learnt since the last, or, `now`, if anything has.
    pub(crate) fn save(&mut self, ledger: &Ledger, now: bool) {
        let due = self.fresh >= self.every || (now && self.fresh > 0);
        let Some(store) = self.snapshots.as_ref().filter(|_| due) else {
            return;
        };
        // A snapshot that cannot be had or written costs a longer replay, nothing else.
        let saved = guarded(|| self.router.snapshot())
            .map_err(|error| error.to_string())
            .and_then(|snapshot| {
                store
                    .save(&self.name, ledger, &snapshot, self.cursor)
                    .map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error)))
            });
        match saved {
            Ok(()) => self.fresh = 0,
            Err(error) => warn!(router = %self.name, %error, "snapshot was not written"),
        }
    }
}

/// How a router came to know what the one before it knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handover {
    /// It took the learnt state over as it was.
    Kept,
    /// It was told what the ledger holds, from the start.
    Replayed {
        /// How many rows.
        rows: u64,
        /// Why it could not take the state.
        reason: String,
    },
}

/// Runs router code; a panic in it costs one decision's quality, never an answer.
fn guarded<T>(work: impl FnOnce() -> Result<T, RouterError>) -> Result<T, RouterError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        // The payload's own drop may panic: it is leaked on purpose.
        std::mem::forget(payload);
        Err(RouterError::Fault("the router panicked".into()))
    })
}
