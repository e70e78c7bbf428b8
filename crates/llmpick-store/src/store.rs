//! What is known, what is installed, and which file a name means.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use llmpick_core::ArmId;

use crate::card::is_model_name;
use crate::catalogue::Catalogue;
use crate::hub::Hub;
use crate::sidecar::{Sidecar, SidecarFile, stamp};
use crate::verify::{Cancel, sha256_of};
use crate::{ModelCard, ResolveError, StoreError, UnknownModel};

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where models are kept; made on the first pull.
    pub models_dir: PathBuf,
    /// Use only what this machine has.
    pub offline: bool,
    /// The hub's address; `HF_ENDPOINT` or the public hub without it.
    pub hub_endpoint: Option<String>,
    /// The hub's token; `HF_TOKEN` or the token file of the Hugging Face tools without it.
    pub hub_token: Option<String>,
    /// The Python that runs pip; `python3`, then `python`, without it.
    pub python: Option<String>,
    /// A folder of the user's own cards, which need not exist.
    pub extra_catalogue: Option<PathBuf>,
}

/// The catalogue and the cache. Cheap to clone; clones share what they learnt.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: StoreOptions,
    pub(crate) catalogue: Catalogue,
    pub(crate) hub: Hub,
    /// Files hashed by this process, so that a cache we may not write is hashed only once.
    hashed: Mutex<HashMap<String, Hashed>>,
}

/// Length and modification time of each file, and what their hashes said.
type Hashed = (Vec<(u64, u64)>, Result<(), String>);

/// A model on this machine, its bytes verified.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InstalledModel {
    /// Its name.
    pub name: String,
    /// The weights' file, or the folder of a model of several files.
    pub path: PathBuf,
    /// The length of its files together.
    pub bytes: u64,
    /// Where it came from, in words.
    pub source: String,
}

/// The file behind a name or a path.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedModel {
    /// A name that is a valid [`ArmId`].
    pub arm_name: String,
    /// The weights' file, or the folder of a model of several files.
    pub path: PathBuf,
    /// Its card, if it is in the catalogue.
    pub card: Option<ModelCard>,
}

impl Store {
    /// Reads the catalogue. Nothing is written and nothing is asked of the network.
    pub fn open(options: StoreOptions) -> Result<Self, StoreError> {
        Self::open_with(options, &|key| std::env::var(key).ok())
    }

    /// As [`Store::open`], with the environment (`HF_HOME`, `HF_ENDPOINT`, …) handed in.
    pub fn open_with(
        options: StoreOptions,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, StoreError> {
        let catalogue = Catalogue::load(options.extra_catalogue.as_deref())?;
        let hub = Hub::new(&options, env);
        let inner = Inner {
            options,
            catalogue,
            hub,
            hashed: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Every card, by name.
    pub fn catalogue(&self) -> impl Iterator<Item = &ModelCard> {
        self.inner.catalogue.iter()
    }

    /// The card of a name, or the nearest name there is.
    pub fn card(&self, name: &str) -> Result<&ModelCard, UnknownModel> {
        self.inner.catalogue.card(name)
    }

    /// The model, if its verified files are here.
    ///
    /// Costs a look at lengths and times. Files without a sidecar, or changed since it was
    /// written, are hashed once (about a second for each gigabyte).
    pub fn installed(&self, name: &str) -> Option<InstalledModel> {
        match self.inner.state(name) {
            State::Installed(model) => Some(model),
            State::Absent => None,
            State::Damaged(reason) => {
                tracing::warn!(model = name, %reason, "model files are damaged");
                None
            }
        }
    }

    /// Every installed model, by name, those of an older catalogue too.
    pub fn list_installed(&self) -> Result<Vec<InstalledModel>, StoreError> {
        let dir = &self.inner.options.models_dir;
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read the folder", dir, error)),
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(|error| io_error("read the folder", dir, error))?;
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names
            .iter()
            .filter_map(|name| self.installed(name))
            .collect())
    }

    /// Deletes a model and what is left of its downloads; returns the bytes freed.
    ///
    /// A file that is shared with the Hugging Face cache stays there, and counts as 0.
    pub fn remove(&self, name: &str) -> Result<u64, StoreError> {
        let dir = self.inner.dir(name);
        if !is_model_name(name) || !dir.is_dir() {
            self.card(name)?;
            return Err(StoreError::NotInstalled { name: name.into() });
        }
        let locks = self.inner.locks_dir();
        fs::create_dir_all(&locks).map_err(|error| io_error("make the folder", &locks, error))?;
        let lock_path = self.inner.lock_path(name);
        let lock = fs::File::create(&lock_path)
            .map_err(|error| io_error("open the lock", &lock_path, error))?;
        if lock.try_lock().is_err() {
            return Err(StoreError::Busy { name: name.into() });
        }
        let freed = own_bytes(&dir);
        fs::remove_dir_all(&dir).map_err(|error| io_error("remove", &dir, error))?;
        Ok(freed)
    }

    /// The file that a catalogue name or a path means.
    pub fn resolve(&self, name_or_path: &str) -> Result<ResolvedModel, ResolveError> {
        let card = self.inner.catalogue.find(name_or_path);
        let name = || name_or_path.to_string();
        match self.inner.state(name_or_path) {
            State::Installed(model) => Ok(ResolvedModel {
                arm_name: model.name,
                path: model.path,
                card: card.cloned(),
            }),
            State::Damaged(reason) => Err(ResolveError::Damaged {
                name: name(),
                reason,
            }),
            State::Absent => match (resolve_path(Path::new(name_or_path))?, card) {
                (Some(file), _) => Ok(file),
                (None, Some(_)) => Err(ResolveError::NotPulled { name: name() }),
                (None, None) if looks_like_path(name_or_path) => Err(ResolveError::NoFile {
                    path: name_or_path.into(),
                }),
                (None, None) => match self.card(name_or_path) {
                    Ok(_) => Err(ResolveError::NotPulled { name: name() }),
                    Err(unknown) => Err(unknown.into()),
                },
            },
        }
    }
}

/// What is on the disk under a name.
pub(crate) enum State {
    Absent,
    Installed(InstalledModel),
    Damaged(String),
}

impl Inner {
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.options.models_dir.join(name)
    }

    pub(crate) fn locks_dir(&self) -> PathBuf {
        self.options.models_dir.join(".locks")
    }

    pub(crate) fn lock_path(&self, name: &str) -> PathBuf {
        self.locks_dir().join(format!("{name}.lock"))
    }

    pub(crate) fn state(&self, name: &str) -> State {
        if !is_model_name(name) {
            return State::Absent;
        }
        let dir = self.dir(name);
        let sidecar = Sidecar::read(&dir, name);
        if let Some(sidecar) = sidecar.as_ref().filter(|sidecar| sidecar.matches(&dir)) {
            return State::Installed(installed(name, &dir, sidecar));
        }
        match self.catalogue.find(name) {
            Some(card) => self.verify_present(card, &dir, sidecar.as_ref()),
            None => State::Absent,
        }
    }

    /// Judges files that no sidecar vouches for.
    fn verify_present(&self, card: &ModelCard, dir: &Path, old: Option<&Sidecar>) -> State {
        if stamp(&dir.join(&card.file.file)).is_none() {
            return State::Absent;
        }
        let stamps: Option<Vec<_>> = card.files().map(|f| stamp(&dir.join(&f.file))).collect();
        let Some(stamps) = stamps else {
            return State::Damaged("a file of it is missing".into());
        };
        let known = lock(&self.hashed).get(&card.name).cloned();
        let (sidecar, verdict) = match known.filter(|(seen, _)| *seen == stamps) {
            Some((_, verdict)) => (vouch(card, old, &stamps, source_of(old)), verdict),
            None => {
                let verdict = check_digests(card, dir, old, &stamps);
                let sidecar = vouch(card, old, &stamps, source_of(old));
                if verdict.is_ok()
                    && let Err(error) = sidecar.write(dir, &card.name)
                {
                    tracing::debug!(model = card.name, %error, "sidecar not written");
                }
                lock(&self.hashed).insert(card.name.clone(), (stamps, verdict.clone()));
                (sidecar, verdict)
            }
        };
        match verdict {
            Ok(()) => State::Installed(installed(&card.name, dir, &sidecar)),
            Err(reason) => State::Damaged(reason),
        }
    }
}

/// Length and hash of every file against the card, or against what an earlier sidecar
/// vouched for: the hub's build of a model has other bytes than the card's.
fn check_digests(
    card: &ModelCard,
    dir: &Path,
    old: Option<&Sidecar>,
    stamps: &[(u64, u64)],
) -> Result<(), String> {
    for (file, (bytes, _)) in card.files().zip(stamps) {
        let expected = expected_digests(file, old);
        if !expected.iter().any(|(length, _)| length == bytes) {
            return Err(format!(
                "`{}` has {bytes} bytes instead of {}",
                file.file, file.bytes
            ));
        }
        let got = sha256_of(&dir.join(&file.file), &Cancel::default())
            .map_err(|error| format!("`{}` cannot be read: {error}", file.file))?;
        if !expected.iter().any(|(_, sha256)| *sha256 == got) {
            return Err(format!(
                "`{}` has the sha256 {got} instead of {}",
                file.file, file.sha256
            ));
        }
    }
    Ok(())
}

fn expected_digests(file: &crate::FileCard, old: Option<&Sidecar>) -> Vec<(u64, String)> {
    let before = old
        .and_then(|sidecar| sidecar.files.iter().find(|f| f.file == file.file))
        .map(|f| (f.bytes, f.sha256.clone()));
    std::iter::once((file.bytes, file.sha256.clone()))
        .chain(before)
        .collect()
}

/// The sidecar that says these files, of these stamps, were found right.
fn vouch(
    card: &ModelCard,
    old: Option<&Sidecar>,
    stamps: &[(u64, u64)],
    source: String,
) -> Sidecar {
    let files = card
        .files()
        .zip(stamps)
        .map(|(file, (bytes, modified_ns))| {
            let sha256 = expected_digests(file, old)
                .into_iter()
                .find(|(length, _)| length == bytes)
                .map_or_else(|| file.sha256.clone(), |(_, sha256)| sha256);
            SidecarFile {
                file: file.file.clone(),
                bytes: *bytes,
                sha256,
                modified_ns: *modified_ns,
            }
        });
    Sidecar::new(&source, files.collect())
}

fn source_of(old: Option<&Sidecar>) -> String {
    old.map_or_else(|| "a file that was here".into(), |s| s.source.clone())
}

pub(crate) fn installed(name: &str, dir: &Path, sidecar: &Sidecar) -> InstalledModel {
    let path = match sidecar.files.as_slice() {
        [only] => dir.join(&only.file),
        _ => dir.to_path_buf(),
    };
    InstalledModel {
        name: name.into(),
        path,
        bytes: sidecar.bytes(),
        source: sidecar.source.clone(),
    }
}

/// True for what cannot be the name of a model in the catalogue: a path.
pub fn looks_like_path(text: &str) -> bool {
    text.contains('/') || names_weights(text)
}

/// True for the name of a file of weights: a GGUF file, a safetensors file, or the index of
/// several of those.
pub fn names_weights(text: &str) -> bool {
    [".gguf", ".safetensors", ".safetensors.index.json"]
        .iter()
        .any(|end| text.ends_with(end))
}

/// What the arm of a model at `path` is called: a GGUF file's own name, and for a hub model
/// that of its folder.
pub fn arm_name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = match names_weights(&file) && !file.ends_with(".gguf") {
        true => path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty()),
        false => Some(path).filter(|path| path.is_dir()),
    };
    let stem = match folder {
        // It may be written as `.`.
        Some(folder) => fs::canonicalize(folder)
            .unwrap_or_else(|_| folder.to_path_buf())
            .file_name()
            .map(ToOwned::to_owned),
        None => path.file_stem().map(ToOwned::to_owned),
    };
    let replace = |c: char| match c.is_whitespace() || c.is_control() {
        true => '-',
        false => c,
    };
    let stem = stem.unwrap_or_default();
    stem.to_string_lossy().chars().map(replace).collect()
}

/// A file or a hub folder on this machine as a model.
fn resolve_path(path: &Path) -> Result<Option<ResolvedModel>, ResolveError> {
    let bad = |reason: String| ResolveError::BadFile {
        path: path.to_path_buf(),
        reason,
    };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(bad("it may not be read".into()));
        }
        Err(_) => return Ok(None),
    };
    if metadata.is_dir() {
        // A folder that happens to have the name of a model is no answer to that name.
        if !looks_like_path(&path.to_string_lossy()) {
            return Ok(None);
        }
        if !path.join("config.json").is_file() {
            return Err(bad("it is a folder without a `config.json`".into()));
        }
    }
    let arm = ArmId::new(arm_name_of(path)).map_err(|error| bad(error.to_string()))?;
    Ok(Some(ResolvedModel {
        arm_name: arm.as_str().into(),
        path: path.to_path_buf(),
        card: None,
    }))
}

/// Bytes that deleting a folder gives back: not those that another link keeps.
fn own_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => own_bytes(&entry.path()),
            Ok(metadata) if metadata.is_file() && metadata.nlink() == 1 => metadata.len(),
            _ => 0,
        })
        .sum()
}

fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}

/// A map that a panicking thread left is still a map of finished hashes.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
