//! Opening a ledger, and the one way in which everything else uses it.

use std::fmt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::owner::OwnerLock;
use crate::{LedgerError, LedgerErrorKind, recover, schema};

/// The ledger. Cheap calls, each one transaction; share it behind an `Arc`.
pub struct Ledger {
    // Dropped before the lock below, so that nobody clears up after a ledger still in use.
    conn: Mutex<Connection>,
    path: Utf8PathBuf,
    id: LedgerId,
    base_seed: u64,
    owner: i64,
    in_memory: bool,
    _lock: Option<OwnerLock>,
}

/// A random name that a ledger got when it was created, 32 hexadecimal digits: what tells a
/// snapshot that it belongs here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LedgerId(pub String);

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How to open a ledger.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// How long to wait for another program that writes.
    pub busy_timeout: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// A file up to this size is checked page by page when it is opened: some 10 ms.
const CHECKED_BYTES: u64 = 8 << 20;

impl Ledger {
    /// Opens the ledger, or creates it, and clears up after programs that died with it open.
    ///
    /// # Errors
    /// See [`LedgerErrorKind`]. Whatever is wrong, the file is left as it is.
    pub fn open(path: &Utf8Path) -> Result<Self, LedgerError> {
        Self::open_with(path, OpenOptions::default())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Utf8Path, options: OpenOptions) -> Result<Self, LedgerError> {
        let opened = connect(path, options).and_then(|conn| Self::start(conn, path, false));
        let ledger = opened.map_err(|kind| LedgerError::new(path, kind))?;
        ledger.recover()?;
        Ok(ledger)
    }

    /// A ledger that is forgotten when it is dropped.
    ///
    /// # Errors
    /// Only when memory is short.
    pub fn open_in_memory() -> Result<Self, LedgerError> {
        let path = Utf8Path::new(":memory:");
        Connection::open_in_memory()
            .map_err(LedgerErrorKind::from)
            .and_then(|conn| Self::start(conn, path, true))
            .map_err(|kind| LedgerError::new(path, kind))
    }

    fn start(
        mut conn: Connection,
        path: &Utf8Path,
        in_memory: bool,
    ) -> Result<Self, LedgerErrorKind> {
        schema::migrate(&mut conn)?;
        // Statements of all modules together.
        conn.set_prepared_statement_cache_capacity(64);
        let meta = |key: &str| -> Result<String, LedgerErrorKind> {
            Ok(conn.query_row("SELECT value FROM meta WHERE key = ?", [key], |r| r.get(0))?)
        };
        let id = LedgerId(meta("identity")?);
        let base_seed = meta("base_seed")?;
        let base_seed = u64::from_str_radix(&base_seed, 16)
            .map_err(|_| LedgerErrorKind::Corrupt(format!("its base seed is `{base_seed}`")))?;
        let name: String =
            conn.query_row("SELECT 'owner-' || lower(hex(randomblob(8)))", [], |r| {
                r.get(0)
            })?;
        // The lock comes before the row: whoever sees the row finds the lock held.
        let lock = (!in_memory)
            .then(|| OwnerLock::take(path, &name))
            .transpose()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    LedgerErrorKind::ReadOnly
                }
                std::io::ErrorKind::StorageFull => LedgerErrorKind::DiskFull,
                _ => LedgerErrorKind::CannotOpen(error.to_string()),
            })?;
        conn.execute("INSERT INTO owners (lock) VALUES (?)", [&name])?;
        let owner = conn.last_insert_rowid();
        Ok(Self {
            conn: Mutex::new(conn),
            path: path.to_owned(),
            id,
            base_seed,
            owner,
            in_memory,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Its random name.
    pub fn id(&self) -> &LedgerId {
        &self.id
    }

    /// A random number that the ledger got when it was created, for seeds.
    pub fn base_seed(&self) -> u64 {
        self.base_seed
    }

    /// This opening's number.
    pub(crate) fn owner(&self) -> i64 {
        self.owner
    }

    /// Ends what programs that died left open. Runs at every opening.
    pub(crate) fn recover(&self) -> Result<(), LedgerError> {
        if self.in_memory {
            return Ok(());
        }
        let owners: Vec<(i64, String)> = self.read(|conn| {
            conn.prepare_cached("SELECT id, lock FROM owners WHERE id <> ?")?
                .query_map([self.owner], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<Result<_, _>>()
                .map_err(Into::into)
        })?;
        for (owner, lock) in owners {
            if crate::owner::is_gone(&self.path, &lock) {
                self.write(|tx| recover::close_owner(tx, owner))?;
            }
        }
        Ok(())
    }

    /// Reads.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, LedgerErrorKind>,
    ) -> Result<T, LedgerError> {
        work(&self.conn.lock()).map_err(|kind| LedgerError::new(&self.path, kind))
    }

    /// Reads and writes as one transaction that waits for other writers at its start: what was
    /// read is still true when it is acted on.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, LedgerErrorKind>,
    ) -> Result<T, LedgerError> {
        let mut conn = self.conn.lock();
        let run = || {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        run().map_err(|kind| LedgerError::new(&self.path, kind))
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("path", &self.path)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let conn = self.conn.lock();
        // Best effort: whoever opens the ledger next does the same.
        let open: rusqlite::Result<i64> = conn.query_row(
            "SELECT count(*) FROM routes WHERE owner = ? AND status IN ('deciding', 'running')",
            [self.owner],
            |r| r.get(0),
        );
        if open == Ok(0) {
            let _ = conn.execute("DELETE FROM owners WHERE id = ?", [self.owner]);
        }
    }
}

fn connect(path: &Utf8Path, options: OpenOptions) -> Result<Connection, LedgerErrorKind> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(options.busy_timeout)?;
    // Somebody else's database is looked at and refused before anything is changed in it.
    schema::check(&conn)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // With a write-ahead log, NORMAL survives the death of the program at any point; a power cut
    // may take back the last moments, whole transactions at a time, and never damages the file.
    // A request costs six transactions: FULL would put six waits for the disk into each. A
    // snapshot that a power cut leaves ahead of the ledger is found out by its cursor's nonce.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", false)?;
    if std::fs::metadata(path).is_ok_and(|file| file.len() <= CHECKED_BYTES) {
        let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
        if verdict != "ok" {
            return Err(LedgerErrorKind::Corrupt(verdict));
        }
    }
    Ok(conn)
}
