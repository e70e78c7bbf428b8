//! What can go wrong with a ledger, and what the person who reads it can do.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use rusqlite::ErrorCode;

/// A failure to use a ledger; the source says why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("use the ledger `{path}`")]
pub struct LedgerError {
    path: Utf8PathBuf,
    #[source]
    kind: LedgerErrorKind,
}

/// Why a ledger cannot be used. No variant is ever answered by deleting anything.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerErrorKind {
    /// The file is something else.
    #[error(
        "the file is not a ledger of llmpick; nothing was changed: move it away, or name another \
         file for the ledger"
    )]
    NotALedger,
    /// The file is damaged.
    #[error(
        "the file is damaged ({0}); nothing was deleted: move it and its `-wal` and `-shm` files \
         away to start afresh, or recover it with `sqlite3 FILE .recover`"
    )]
    Corrupt(String),
    /// Somebody else has had it locked for too long.
    #[error(
        "another program keeps the file locked; wait until it has finished, or end it, and try \
         again"
    )]
    Locked,
    /// The file or its folder cannot be written.
    #[error(
        "the file or its folder cannot be written; check the permissions and that the disk is not \
         mounted read-only, or name another place for the ledger"
    )]
    ReadOnly,
    /// The file cannot be opened or created at all.
    #[error("the file cannot be opened: {0}; check that its folder exists and may be used")]
    CannotOpen(String),
    /// A later program wrote it.
    #[error(
        "the file has format {found}, and this program knows formats up to {known}: use the newer \
         llmpick that wrote it, or name another file for the ledger"
    )]
    Newer {
        /// The file's format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The disk is full.
    #[error("the disk is full; free some space and try again")]
    DiskFull,
    /// A row that this program could not have written.
    #[error("{0}")]
    Inconsistent(String),
    /// Anything else that SQLite reports.
    #[error("{0}")]
    Sqlite(Arc<rusqlite::Error>),
}

impl LedgerError {
    pub(crate) fn new(path: &Utf8Path, kind: LedgerErrorKind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
        }
    }

    /// Why, for callers that act on it.
    pub fn kind(&self) -> &LedgerErrorKind {
        &self.kind
    }

    /// Which file.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }
}

impl From<rusqlite::Error> for LedgerErrorKind {
    fn from(error: rusqlite::Error) -> Self {
        let Some(code) = error.sqlite_error_code() else {
            return match error {
                rusqlite::Error::FromSqlConversionFailure(_, _, reason) => {
                    Self::Corrupt(reason.to_string())
                }
                other => Self::Sqlite(Arc::new(other)),
            };
        };
        match code {
            ErrorCode::NotADatabase => Self::NotALedger,
            ErrorCode::DatabaseCorrupt => Self::Corrupt(error.to_string()),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Locked,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Self::ReadOnly,
            ErrorCode::CannotOpen => Self::CannotOpen(error.to_string()),
            ErrorCode::DiskFull => Self::DiskFull,
            _ => Self::Sqlite(Arc::new(error)),
        }
    }
}
