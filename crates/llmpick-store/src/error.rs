//! What can go wrong, each one sentence for the person who reads it.

use std::io;
use std::path::{Path, PathBuf};

/// A name that is not in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownModel {
    /// What was asked for.
    pub name: String,
    /// The nearest name there is, if one is near.
    pub suggestion: Option<String>,
}

impl std::fmt::Display for UnknownModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no model is named `{}`", self.name)?;
        match &self.suggestion {
            Some(near) => write!(f, "; did you mean `{near}`?"),
            None => write!(f, "; `llmpick ls` shows the names there are"),
        }
    }
}

impl std::error::Error for UnknownModel {}

/// A model card that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("read the model card `{origin}`: {reason}")]
pub struct CatalogueError {
    /// The file, or the built-in name.
    pub origin: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Opening the store or changing what it holds.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A model card, built in or the user's own, is wrong.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The name is not in the catalogue and nothing of that name is on the disk.
    #[error(transparent)]
    Unknown(#[from] UnknownModel),
    /// The model is known, and not on this machine.
    #[error("`{name}` is not installed")]
    NotInstalled {
        /// The model.
        name: String,
    },
    /// Another process is pulling or removing the model.
    #[error("`{name}` is being pulled by another process; wait for it or stop it")]
    Busy {
        /// The model.
        name: String,
    },
    /// The cache could not be read or changed.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A pull that did not end with an installed model. The cause is in `source()`.
#[derive(Debug, thiserror::Error)]
#[error("pull `{name}`")]
pub struct PullError {
    /// The model asked for.
    pub name: String,
    /// What went wrong.
    #[source]
    pub kind: PullErrorKind,
}

/// What went wrong with a pull.
#[derive(Debug, thiserror::Error)]
pub enum PullErrorKind {
    /// No such model.
    #[error(transparent)]
    Unknown(#[from] UnknownModel),
    /// Downloads are switched off and nothing on this machine has the file.
    #[error(
        "offline mode is on and no file on this machine is this model; pull it once without offline mode"
    )]
    Offline,
    /// Every source was tried.
    #[error("no source gave it: {}", list(attempts))]
    NoSource {
        /// Source and reason, in the order tried.
        attempts: Vec<(String, String)>,
    },
    /// The model does not fit on the disk.
    #[error(
        "the disk of `{}` is full: {} are needed there and {} are free",
        dir.display(), size(*needed), size(*free)
    )]
    DiskFull {
        /// Where it was to be written.
        dir: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The model cache cannot be written.
    #[error("the model cache `{}` cannot be written; change `models_dir` or its permissions", path.display())]
    CacheNotWritable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the cache failed under us.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A bug or a task that was shut down with its runtime.
    #[error("a worker stopped before it was done")]
    Interrupted,
}

/// Why one source did not give the model.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not to be tried now.
    #[error("skipped: {0}")]
    Skipped(String),
    /// Nothing of this model is there.
    #[error("not there")]
    Absent,
    /// The hub did not answer.
    #[error("`{endpoint}` cannot be reached ({reason})")]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The hub answered, and not with the file.
    #[error("{0}")]
    Hub(String),
    /// No interpreter could be started.
    #[error(
        "no Python was found (tried {tried}); install Python 3 with pip, or name it in the settings"
    )]
    NoPython {
        /// What was tried.
        tried: String,
    },
    /// Python is there without pip.
    #[error("`{python}` has no pip; install it (for example the package python3-pip)")]
    NoPip {
        /// The interpreter.
        python: String,
    },
    /// pip failed.
    #[error("pip could not download `{package}`: {line}")]
    Pip {
        /// `NAME==VERSION`.
        package: String,
        /// The last line it said.
        line: String,
    },
    /// A wheel does not hold what the card says.
    #[error("the wheel of `{package}` is not as expected: {reason}")]
    Wheel {
        /// `NAME==VERSION`.
        package: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not the published ones.
    #[error(
        "`{file}` has the wrong sha256: expected {expected}, got {got}; it was thrown away, so pull again, and if it happens again this source holds another file"
    )]
    WrongHash {
        /// The file.
        file: String,
        /// What the card or the hub says.
        expected: String,
        /// What the bytes gave.
        got: String,
    },
    /// The length is not the published one.
    #[error("`{file}` has {got} bytes instead of {expected}; it was thrown away")]
    WrongSize {
        /// The file.
        file: String,
        /// What the card says.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// Not this source's fault: trying the next one would not help.
    #[error(transparent)]
    Fatal(Box<PullErrorKind>),
}

impl From<PullErrorKind> for SourceError {
    fn from(kind: PullErrorKind) -> Self {
        SourceError::Fatal(Box::new(kind))
    }
}

impl PullErrorKind {
    /// A failed file operation, with a full disk told apart: `needed` more bytes were to come.
    pub(crate) fn io(action: &'static str, path: &Path, needed: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let dir = path.parent().unwrap_or(path).to_path_buf();
                let free = fs4::available_space(&dir).unwrap_or(0);
                PullErrorKind::DiskFull { dir, needed, free }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                PullErrorKind::CacheNotWritable {
                    path: path.to_path_buf(),
                    source,
                }
            }
            _ => PullErrorKind::Io {
                action,
                path: path.to_path_buf(),
                source,
            },
        }
    }
}

/// Finding the file behind a name or a path.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// In the catalogue, not on this machine.
    #[error("`{name}` is not pulled yet: run `llmpick pull {name}`")]
    NotPulled {
        /// The model.
        name: String,
    },
    /// On this machine, and not what was published.
    #[error(
        "the files of `{name}` are damaged ({reason}): run `llmpick pull {name}` to fetch them again"
    )]
    Damaged {
        /// The model.
        name: String,
        /// How.
        reason: String,
    },
    /// Neither a name nor a file.
    #[error(transparent)]
    Unknown(#[from] UnknownModel),
    /// It reads like a path, and there is no such file.
    #[error("there is no file `{}`", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// The file's name cannot name an arm.
    #[error("`{}` cannot be used as a model: {reason}", path.display())]
    BadFile {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Bytes as people write them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn list(attempts: &[(String, String)]) -> String {
    attempts
        .iter()
        .map(|(source, reason)| format!("{source}: {reason}"))
        .collect::<Vec<_>>()
        .join("; ")
}
