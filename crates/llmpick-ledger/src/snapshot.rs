//! Learnt state in files: a shortcut to what replaying the ledger would give.
//!
//! A snapshot is written to a file of its own, synced, and moved into place; the one before it
//! is kept. Reading checks everything, and whatever is wrong with a file, the answer is the one
//! before it, and then a replay from the ledger's start. Nothing here stops a program.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use llmpick_core::Snapshot;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Cursor, Ledger};

/// Version of the file's frame, not of what a router writes into it.
///
/// Raise it when a program that knows only the old number would misread the frame; add a file of
/// the old version to the fixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotVersion(pub u32);

const CURRENT: SnapshotVersion = SnapshotVersion(1);
const MAGIC: &[u8; 8] = b"llmpsnap";
/// A header is some 200 bytes; more is damage.
const MAX_HEADER: usize = 64 << 10;

/// Where the snapshots of one ledger's routers lie.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    dir: PathBuf,
}

/// What was found for a router.
#[derive(Clone, Debug, Default)]
pub struct LoadedSnapshot {
    /// How far the state that was accepted has come; `None` means: replay from the start.
    pub cursor: Option<Cursor>,
    /// What was wrong with files that were passed over, for the log.
    pub problems: Vec<String>,
}

/// A snapshot that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write the snapshot `{}`", path.display())]
pub struct SnapshotError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Header {
    router: String,
    state_version: u32,
    ledger: String,
    cursor: Cursor,
    state_bytes: u64,
}

impl SnapshotStore {
    /// Snapshots in this folder, which is created when the first one is written.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Writes a router's state; the one before it is kept.
    ///
    /// # Errors
    /// When the folder or file cannot be written; what was there is still there then.
    pub fn save(
        &self,
        router: &str,
        ledger: &Ledger,
        snapshot: &Snapshot,
        cursor: Cursor,
    ) -> Result<(), SnapshotError> {
        let path = self.path(router, ledger);
        let bytes = encode(router, ledger, snapshot, cursor);
        replace(&path, &bytes).map_err(|source| SnapshotError { path, source })
    }

    /// Hands the newest good state of a router that belongs to this ledger to `accept`, and the
    /// one before it if that is refused. A bad file is moved aside (`.bad`), so that it never
    /// takes the place of a good older one.
    pub fn load(
        &self,
        router: &str,
        ledger: &Ledger,
        mut accept: impl FnMut(&Snapshot) -> Result<(), String>,
    ) -> LoadedSnapshot {
        let newest = self.path(router, ledger);
        let mut problems = Vec::new();
        for path in [newest.clone(), previous(&newest)] {
            let taken = read(&path, router, ledger).and_then(|found| match found {
                Some((snapshot, cursor)) => accept(&snapshot).map(|()| Some(cursor)),
                None => Ok(None),
            });
            match taken {
                Ok(None) => {}
                Ok(cursor) => return LoadedSnapshot { cursor, problems },
                Err(problem) => {
                    problems.push(format!("{}: {problem}", path.display()));
                    let _ = fs::rename(&path, with_suffix(&path, ".bad"));
                }
            }
        }
        LoadedSnapshot {
            cursor: None,
            problems,
        }
    }

    /// The file of a router.
    pub fn path(&self, router: &str, ledger: &Ledger) -> PathBuf {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let name: String = match router.chars().all(plain) && !router.is_empty() {
            true => router.to_owned(),
            false => format!("router-{}", hex(&Sha256::digest(router.as_bytes())[..8])),
        };
        let ledger = ledger.id().0.get(..8).unwrap_or_default();
        self.dir.join(format!("{name}-{ledger}.snapshot"))
    }
}

fn encode(router: &str, ledger: &Ledger, snapshot: &Snapshot, cursor: Cursor) -> Vec<u8> {
    let header = Header {
        router: router.to_owned(),
        state_version: snapshot.version,
        ledger: ledger.id().0.clone(),
        cursor,
        state_bytes: snapshot.state.len() as u64,
    };
    // A struct of strings and integers always has a JSON form.
    let header = serde_json::to_vec(&header).unwrap_or_default();
    let mut bytes = MAGIC.to_vec();
    bytes.extend(CURRENT.0.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(&header);
    bytes.extend(&snapshot.state);
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

fn decode(bytes: &[u8]) -> Result<(Header, &[u8]), String> {
    let (body, digest) = bytes
        .split_last_chunk::<32>()
        .ok_or("it is shorter than its digest")?;
    if Sha256::digest(body).as_slice() != digest {
        return Err("its digest does not match".into());
    }
    let rest = body.strip_prefix(MAGIC).ok_or("it is not a snapshot")?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or("it ends too early")?;
    let version = u32::from_le_bytes(*version);
    if version != CURRENT.0 {
        return Err(format!(
            "it has format {version}, and this program reads format {}",
            CURRENT.0
        ));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("it ends too early")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (header, state) = rest
        .split_at_checked(length)
        .filter(|_| length <= MAX_HEADER)
        .ok_or("its header has an impossible length")?;
    let header: Header = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    match header.state_bytes == state.len() as u64 {
        true => Ok((header, state)),
        false => Err("its state has another length than its header says".into()),
    }
}

/// `None` when there is no file.
fn read(path: &Path, router: &str, ledger: &Ledger) -> Result<Option<(Snapshot, Cursor)>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let (header, state) = decode(&bytes)?;
    if header.router != router {
        return Err(format!("it is of the router `{}`", header.router));
    }
    if header.ledger != ledger.id().0 {
        return Err("it belongs to another ledger".into());
    }
    match ledger.knows(header.cursor) {
        Ok(true) => {}
        Ok(false) => return Err("the ledger does not hold the last thing it learnt".into()),
        Err(error) => return Err(error.to_string()),
    }
    let snapshot = Snapshot {
        version: header.state_version,
        state: state.to_vec(),
    };
    Ok(Some((snapshot, header.cursor)))
}

/// Writes beside, syncs, keeps the old one, moves into place.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let fresh = with_suffix(path, &format!(".{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    // Between the two renames only the previous file is there, and reading falls back to it.
    match fs::rename(path, previous(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(&fresh, path)?;
    // The renames last once the folder is synced; a file system that cannot is let off.
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
    Ok(())
}

fn previous(path: &Path) -> PathBuf {
    with_suffix(path, ".previous")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
