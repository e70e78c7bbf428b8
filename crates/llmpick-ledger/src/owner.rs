//! Who has the ledger open, so that what a dead program left behind can be cleared up.
//!
//! Each open ledger holds a lock on a small file beside it. The kernel lets go of the lock when
//! the program dies, however it dies, and the next program that can take the lock knows. A
//! process id would not do: ids are used again, and containers that share a ledger do not see
//! each other's.

use std::fs::{self, File, TryLockError};

use camino::{Utf8Path, Utf8PathBuf};

/// A held lock; letting go removes the file.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    path: Utf8PathBuf,
    _file: File,
}

impl OwnerLock {
    /// Creates the lock file `name` beside the ledger and locks it.
    pub(crate) fn take(ledger: &Utf8Path, name: &str) -> std::io::Result<Self> {
        let path = beside(ledger, name);
        let file = File::create_new(&path)?;
        file.lock()?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // The lock goes with the file handle; a file left behind is only untidy.
        let _ = fs::remove_file(&self.path);
    }
}

/// True when nobody holds the lock `name` any more. Removes its file then.
pub(crate) fn is_gone(ledger: &Utf8Path, name: &str) -> bool {
    let path = beside(ledger, name);
    let Ok(file) = File::open(&path) else {
        // A missing file was removed by its owner's end; one that cannot be opened for another
        // reason (permissions) belongs to somebody who may well live.
        return !path.exists();
    };
    match file.try_lock() {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            true
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

fn beside(ledger: &Utf8Path, name: &str) -> Utf8PathBuf {
    let file = ledger.file_name().unwrap_or("ledger");
    ledger.with_file_name(format!("{file}-{name}"))
}
