//! Which plugins are trusted: `plugins.lock`, a file beside the program's other state.
//!
//! Each plugin's file is held to the SHA-256 of its bytes: recorded at its first use, refused
//! when it changed until somebody says `llmpick plugin trust`. The bytes that are hashed are
//! the bytes that are loaded. Content that was being loaded when the process died is listed as
//! suspect and refused as well.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::sentinel::{self, Marker};
use crate::{LoadError, LoadErrorKind, library};

/// Version of the file. Raise it when a program that knows only the old number would misread
/// it, and keep a file of the old version in the tests.
const VERSION: u32 = 1;

/// A handle to `plugins.lock`; the file is read anew for every question, since other processes
/// write it too.
#[derive(Clone, Debug)]
pub struct PluginLock {
    folder: Utf8PathBuf,
    pin: bool,
    shipped: Vec<Utf8PathBuf>,
}

/// What is held of one plugin file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The file, with every link resolved.
    pub path: Utf8PathBuf,
    /// SHA-256 of its bytes in hexadecimal.
    pub sha256: String,
    /// When this content was first accepted, in seconds since 1970.
    pub first_seen: u64,
    /// Who said so.
    pub trusted_by: TrustedBy,
    /// Which build of the program accepted a file that lies beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// Who accepted a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustedBy {
    /// Nobody had seen the file before, and the settings name it.
    FirstUse,
    /// Somebody said `llmpick plugin trust`.
    User,
    /// The file lies beside the program, and came with another build of it.
    Program,
    /// The settings turn pins off (`plugins.pin = false`).
    Unpinned,
}

/// Content that a process died of while it loaded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspect {
    /// SHA-256 of the bytes in hexadecimal.
    pub sha256: String,
    /// Where the bytes came from.
    pub path: Utf8PathBuf,
    /// When it was found out, in seconds since 1970.
    pub since: u64,
}

/// What goes wrong with the file itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// It cannot be read or written.
    #[error("use `{path}`: {source}")]
    Io {
        /// The file or its folder.
        path: Utf8PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// It is not what we wrote. It is left as it is.
    #[error(
        "read `{path}`: it is damaged ({reason}): repair it, or move it away and trust your \
         plugins again"
    )]
    Damaged {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer llmpick wrote it.
    #[error("read `{path}`: it has version {version}, and this llmpick reads {VERSION}: update it")]
    Newer {
        /// The file.
        path: Utf8PathBuf,
        /// Its version.
        version: u32,
    },
}

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    plugins: Vec<Pin>,
    #[serde(default)]
    suspects: Vec<Suspect>,
}

/// What the lock says of a file that is to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// This very content was accepted before.
    Known,
    /// It may be loaded, should be tried out first, and is then to be recorded.
    New(TrustedBy),
}

impl PluginLock {
    /// The lock in this folder: `plugins.lock`, and `plugins.loading/` for what is being loaded.
    pub fn at(folder: impl Into<Utf8PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            pin: true,
            shipped: Vec::new(),
        }
    }

    /// With `false`, a changed file is accepted and recorded as such.
    pub fn pinning(self, pin: bool) -> Self {
        Self { pin, ..self }
    }

    /// Folders that belong to the program. Whoever can write them can write the program: a
    /// file in them may change whenever the program itself did, as in an update.
    pub fn shipped_in(self, folders: Vec<Utf8PathBuf>) -> Self {
        let real = |folder: Utf8PathBuf| folder.canonicalize_utf8().unwrap_or(folder);
        Self {
            shipped: folders.into_iter().map(real).collect(),
            ..self
        }
    }

    /// The file.
    pub fn path(&self) -> Utf8PathBuf {
        self.folder.join("plugins.lock")
    }

    /// Everything that is trusted, by path.
    ///
    /// # Errors
    /// A file that cannot be read, or is damaged. No file is an empty list.
    pub fn list(&self) -> Result<Vec<Pin>, LockError> {
        Ok(self.read()?.plugins)
    }

    /// What a process died of while loading it, here or at its next start.
    ///
    /// # Errors
    /// As for [`list`](Self::list).
    pub fn suspects(&self) -> Result<Vec<Suspect>, LockError> {
        self.collect_markers()?;
        Ok(self.read()?.suspects)
    }

    /// Accepts the file as it is now, whatever was pinned or suspected. Runs none of its code.
    ///
    /// # Errors
    /// What would keep the file from being loaded: it is missing, no library, or others may
    /// change it; or the lock itself.
    pub fn trust(&self, plugin: &Utf8Path) -> Result<Pin, LoadError> {
        let fail = |kind| LoadError {
            path: plugin.to_owned(),
            kind,
        };
        let (path, bytes) = library::read_checked(plugin, true).map_err(fail)?;
        let sha256 = library::digest(&bytes);
        self.collect_markers()
            .and_then(|()| self.record(&path, &sha256, TrustedBy::User, true))
            .map_err(|error| fail(error.into()))
    }

    /// Forgets a file: its next use is a first use. False when it was not known.
    ///
    /// # Errors
    /// As for [`list`](Self::list), or the file cannot be written.
    pub fn forget(&self, plugin: &Utf8Path) -> Result<bool, LockError> {
        let path = plugin
            .canonicalize_utf8()
            .unwrap_or_else(|_| plugin.to_owned());
        self.change(|content| {
            let before = content.plugins.len();
            content.plugins.retain(|pin| pin.path != path);
            content.plugins.len() != before
        })
    }

    /// Whether this content may be loaded from `path` (canonical).
    pub(crate) fn admit(&self, path: &Utf8Path, sha256: &str) -> Result<Admission, LoadErrorKind> {
        self.collect_markers()?;
        let content = self.read()?;
        if let Some(suspect) = content.suspects.iter().find(|s| s.sha256 == sha256) {
            return Err(LoadErrorKind::Suspect {
                at: path.to_owned(),
                since: suspect.since,
            });
        }
        let Some(pin) = content.plugins.iter().find(|pin| pin.path == path) else {
            return Ok(Admission::New(TrustedBy::FirstUse));
        };
        if pin.sha256 == sha256 {
            return Ok(Admission::Known);
        }
        if self.is_shipped(path) && pin.program.as_deref() != program_stamp() {
            return Ok(Admission::New(TrustedBy::Program));
        }
        if !self.pin {
            return Ok(Admission::New(TrustedBy::Unpinned));
        }
        Err(LoadErrorKind::Changed {
            at: path.to_owned(),
            pinned: pin.sha256.clone(),
            found: sha256.to_owned(),
        })
    }

    /// Notes that this content of `path` (canonical) is trusted. Only `lift` clears it of
    /// suspicion.
    pub(crate) fn record(
        &self,
        path: &Utf8Path,
        sha256: &str,
        trusted_by: TrustedBy,
        lift: bool,
    ) -> Result<Pin, LockError> {
        let program = self.is_shipped(path).then(program_stamp).flatten();
        let pin = Pin {
            path: path.to_owned(),
            sha256: sha256.to_owned(),
            first_seen: now(),
            trusted_by,
            program: program.map(str::to_owned),
        };
        self.change(|content| {
            content.plugins.retain(|known| known.path != path);
            content.plugins.push(pin.clone());
            content.plugins.sort_by(|a, b| a.path.cmp(&b.path));
            content
                .suspects
                .retain(|suspect| !lift || suspect.sha256 != sha256);
            pin.clone()
        })
    }

    /// Leaves word that this content is being loaded; the word goes with the value.
    pub(crate) fn mark(&self, path: &Utf8Path, sha256: &str) -> Result<Marker, LockError> {
        let folder = self.markers();
        sentinel::mark(&folder, path, sha256).map_err(|source| LockError::Io {
            path: folder,
            source,
        })
    }

    fn markers(&self) -> Utf8PathBuf {
        self.folder.join("plugins.loading")
    }

    /// Makes suspects of what dead processes left behind.
    fn collect_markers(&self) -> Result<(), LockError> {
        let left = sentinel::left_behind(&self.markers());
        if left.is_empty() {
            return Ok(());
        }
        self.change(|content| {
            for marker in &left {
                if !content.suspects.iter().any(|s| s.sha256 == marker.sha256) {
                    content.suspects.push(Suspect {
                        sha256: marker.sha256.clone(),
                        path: marker.path.clone(),
                        since: now(),
                    });
                }
            }
        })?;
        // Only now: had we died before the list was written, the next one would find them.
        for marker in left {
            tracing::warn!(plugin = %marker.path, "a process died while it loaded this plugin");
            marker.clear();
        }
        Ok(())
    }

    fn is_shipped(&self, path: &Utf8Path) -> bool {
        self.shipped
            .iter()
            .any(|folder| path.parent() == Some(folder))
    }

    fn read(&self) -> Result<Content, LockError> {
        let path = self.path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Content::default());
            }
            Err(source) => return Err(LockError::Io { path, source }),
        };
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |error: serde_json::Error| LockError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(damaged)?;
        if head.version > VERSION {
            let version = head.version;
            return Err(LockError::Newer { path, version });
        }
        let content: Content = serde_json::from_slice(&bytes).map_err(damaged)?;
        let mut seen = BTreeMap::new();
        for pin in &content.plugins {
            let is_hash =
                pin.sha256.len() == 64 && pin.sha256.bytes().all(|b| b.is_ascii_hexdigit());
            let reason = match (is_hash, seen.insert(&pin.path, ())) {
                (true, None) => continue,
                (false, _) => format!("`{}` has no SHA-256", pin.path),
                (_, Some(())) => format!("`{}` is in it twice", pin.path),
            };
            return Err(LockError::Damaged { path, reason });
        }
        Ok(content)
    }

    /// Reads, changes, writes: alone among all processes, and whole or not at all.
    fn change<R>(&self, change: impl FnOnce(&mut Content) -> R) -> Result<R, LockError> {
        let failed = |path: &Utf8Path| {
            let path = path.to_owned();
            move |source| LockError::Io { path, source }
        };
        private_folder(&self.folder).map_err(failed(&self.folder))?;
        // Not the file itself, which is replaced.
        let guard_path = self.folder.join(".plugins.lock.guard");
        let guard = private_file(&guard_path).map_err(failed(&guard_path))?;
        guard.lock().map_err(failed(&guard_path))?;
        let mut content = self.read()?;
        let result = change(&mut content);
        content.version = VERSION;
        let path = self.path();
        self.write(&content).map_err(failed(&path))?;
        Ok(result)
    }

    fn write(&self, content: &Content) -> std::io::Result<()> {
        let fresh = self.folder.join(".plugins.lock.new");
        let _ = std::fs::remove_file(&fresh);
        let mut file = private_file(&fresh)?;
        let mut text = serde_json::to_vec_pretty(content)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, self.path())
    }
}

impl From<LockError> for LoadErrorKind {
    fn from(error: LockError) -> Self {
        LoadErrorKind::Lock(error)
    }
}

/// A folder that only its owner can enter.
pub(crate) fn private_folder(folder: &Utf8Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Opens a file that only its owner can read, made if need be.
pub(crate) fn private_file(path: &Utf8Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Which build of the program runs: its file's length and time.
fn program_stamp() -> Option<&'static str> {
    static STAMP: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let metadata = std::fs::metadata("/proc/self/exe").ok()?;
        let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
        Some(format!("{}-{seconds}.{nanos:09}", metadata.len()))
    };
    STAMP.get_or_init(read).as_deref()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
