//! Word left on disk while a library is loaded, so that the next process knows what this one
//! died of.
//!
//! Each marker is a file that its writer holds locked. The kernel takes the lock away with the
//! process, whatever ends it: a marker whose lock is free belongs to the dead.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::lock::{private_file, private_folder};

/// Held while a library is loaded or an instance is made; dropping it takes the word back.
#[derive(Debug)]
pub(crate) struct Marker {
    path: Utf8PathBuf,
    /// Its lock lives as long as it is open.
    _file: File,
}

impl Drop for Marker {
    fn drop(&mut self) {
        // Before the lock goes with the file: nobody may take the marker for a dead one's.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A marker of a process that is no more.
#[derive(Debug)]
pub(crate) struct Left {
    pub path: Utf8PathBuf,
    pub sha256: String,
    marker: Utf8PathBuf,
    /// Keeps other processes from finding it as well.
    _file: File,
}

impl Left {
    /// Takes it off the disk, once it is recorded elsewhere.
    pub(crate) fn clear(self) {
        let _ = std::fs::remove_file(&self.marker);
    }
}

#[derive(Serialize, Deserialize)]
struct Word {
    path: Utf8PathBuf,
    sha256: String,
}

/// Leaves a marker in `folder`.
pub(crate) fn mark(folder: &Utf8Path, path: &Utf8Path, sha256: &str) -> std::io::Result<Marker> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    private_folder(folder)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!(
        "{}-{}-{number}",
        &sha256[..16.min(sha256.len())],
        std::process::id()
    );
    let (hidden, marker) = (folder.join(format!(".{name}")), folder.join(name));
    let _ = std::fs::remove_file(&hidden);
    let mut file = private_file(&hidden)?;
    // Locked before it can be found.
    file.lock()?;
    let word = Word {
        path: path.to_owned(),
        sha256: sha256.to_owned(),
    };
    file.write_all(&serde_json::to_vec(&word)?)?;
    file.sync_data()?;
    std::fs::rename(&hidden, &marker)?;
    Ok(Marker {
        path: marker,
        _file: file,
    })
}

/// The markers in `folder` whose processes are dead.
pub(crate) fn left_behind(folder: &Utf8Path) -> Vec<Left> {
    let entries = folder.read_dir_utf8().into_iter().flatten().flatten();
    entries
        .map(|entry| entry.into_path())
        .filter(|path| path.file_name().is_some_and(|name| !name.starts_with('.')))
        .filter_map(dead)
        .collect()
}

fn dead(marker: Utf8PathBuf) -> Option<Left> {
    let file = File::open(&marker).ok()?;
    file.try_lock().ok()?;
    // Its writer may have taken it back between our opening and our locking.
    let (opened, there) = (file.metadata().ok()?, std::fs::metadata(&marker).ok()?);
    if (opened.dev(), opened.ino()) != (there.dev(), there.ino()) {
        return None;
    }
    let word: Option<Word> = std::fs::read(&marker)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match word {
        Some(Word { path, sha256 }) => Some(Left {
            path,
            sha256,
            marker,
            _file: file,
        }),
        None => {
            // No marker of ours says nothing of any plugin.
            let _ = std::fs::remove_file(&marker);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says where it failed")]
    use super::*;

    #[test]
    fn the_living_are_left_alone_and_the_dead_are_found_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(dir.path().join("loading")).unwrap();
        let hash = "ab".repeat(32);
        let marker = mark(&folder, "/p.so".into(), &hash).unwrap();
        assert!(left_behind(&folder).is_empty(), "its process lives");
        // What a kill leaves: the file, and no lock on it.
        let copy = folder.join("left");
        std::fs::copy(&marker.path, &copy).unwrap();
        drop(marker);
        let found = left_behind(&folder);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].path.as_str(), &found[0].sha256), ("/p.so", &hash));
        assert!(left_behind(&folder).is_empty(), "somebody is at it already");
        found.into_iter().for_each(Left::clear);
        assert!(left_behind(&folder).is_empty());
        assert_eq!(folder.read_dir_utf8().unwrap().count(), 0);
    }
}
