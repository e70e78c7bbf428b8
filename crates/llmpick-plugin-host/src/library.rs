//! Loads a shared library and checks everything it says about itself.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use llmpick_plugin_abi as abi;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::lock::Admission;
use crate::sentinel::Marker;
use crate::{LoadError, LoadErrorKind, LockError, PluginLock, child, trust};

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Refuse a file that somebody else could have written: it, and every folder above it,
    /// must belong to root or to us, without write permission for others.
    pub check_permissions: bool,
    /// Hold the file to what was trusted before. Content that is new to the lock is tried out
    /// in a process of its own first, where this program can start one
    /// ([`run_if_child`](crate::run_if_child)); what a process dies of while it loads it is
    /// not loaded again. Without a lock nothing is remembered and nothing tried out.
    pub lock: Option<PluginLock>,
    /// Longest time for trying it out.
    pub probe_deadline: Duration,
}

impl LoadOptions {
    /// Any file, whoever may write it: for tests, and for files that were just built.
    pub const ANYWHERE: LoadOptions = LoadOptions {
        check_permissions: false,
        lock: None,
        probe_deadline: Duration::from_secs(10),
    };
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            check_permissions: true,
            ..Self::ANYWHERE
        }
    }
}

/// What a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginKind {
    /// Chooses arms.
    Router,
    /// Grades answers.
    Scorer,
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PluginKind::Router => "router",
            PluginKind::Scorer => "scorer",
        })
    }
}

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// Router or scorer.
    pub kind: PluginKind,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// A line for people.
    pub description: String,
    /// JSON Schema of its settings, may be empty.
    pub config_schema: String,
    /// `CAP_*` bits of the header.
    pub caps: u64,
    /// Version of the state it writes; 0 for none.
    pub state_version: u32,
    /// Oldest version of the state it reads.
    pub state_version_min: u32,
}

impl PluginInfo {
    /// True when the plugin declared this `CAP_*` bit.
    pub fn has(&self, cap: u64) -> bool {
        self.caps & cap != 0
    }
}

/// A library that was checked, and whose code runs here or, after
/// [`load_apart`](Self::load_apart), only in processes of its own. Code that was loaded here
/// stays loaded until the process ends.
#[derive(Debug)]
pub struct Library {
    path: Utf8PathBuf,
    /// Where the file really is.
    real: Utf8PathBuf,
    facts: Arc<Facts>,
    image: Arc<Image>,
    /// Functions, one table for each plugin; `None` where the code is not to run here.
    tables: Option<Arc<Loaded>>,
    lock: Option<PluginLock>,
}

/// What a library says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub sha256: String,
    pub abi: u32,
    pub built_with: String,
    pub plugins: Vec<PluginInfo>,
}

/// Code that runs in this process.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub facts: Arc<Facts>,
    pub tables: Vec<Table>,
    image: Arc<Image>,
}

/// A library's bytes in a private file in memory, so that what was hashed is what runs, and so
/// that replacing the file on disk neither crashes us nor brings the old code back.
#[derive(Debug)]
pub(crate) struct Image(File);

impl Image {
    fn new(bytes: &[u8]) -> Result<Self, LoadErrorKind> {
        private_copy(bytes).map(Self).map_err(LoadErrorKind::Read)
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.0.metadata()?.size() as usize];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// A plugin's functions, the required ones checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Table {
    Router(RouterTable),
    Scorer(ScorerTable),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RouterTable {
    pub create: abi::CreateFn,
    pub destroy: abi::DestroyFn,
    pub select: abi::SelectFn,
    pub feedback: Option<abi::FeedbackFn>,
    pub snapshot: Option<abi::SnapshotFn>,
    pub restore: Option<abi::RestoreFn>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ScorerTable {
    pub create: abi::CreateFn,
    pub destroy: abi::DestroyFn,
    pub score: abi::ScoreFn,
}

/// The most bytes a library may have.
const MAX_BYTES: u64 = 512 << 20;
/// The most plugins a library may hold.
const MAX_PLUGINS: u32 = 64;
/// The most bytes of a text.
const MAX_TEXT: usize = 1 << 20;

impl Library {
    /// Loads the library at `path`: the very bytes that are hashed. Loading the same bytes
    /// again answers what is there already; other bytes under the same path are loaded
    /// beside the old ones.
    ///
    /// Loading runs code of the library. Load only what the configuration names.
    pub fn load(path: &Utf8Path, options: &LoadOptions) -> Result<Arc<Library>, LoadError> {
        let load = || {
            let checked = Checked::read(path, options)?;
            if checked.is_new() && child::program().is_some() {
                checked.try_out(options)?;
            }
            let loaded = {
                let _marker = checked.mark()?;
                load_bytes(&checked.bytes, &checked.sha256)?
            };
            checked.accept()?;
            Ok(Arc::new(Library {
                path: path.to_owned(),
                real: checked.real,
                facts: Arc::clone(&loaded.facts),
                image: Arc::clone(&loaded.image),
                tables: Some(loaded),
                lock: options.lock.clone(),
            }))
        };
        load().map_err(|kind| LoadError {
            path: path.to_owned(),
            kind,
        })
    }

    /// Checks the library at `path` without running any of its code in this process: what it
    /// says of itself is asked of a child process. Its plugins run under
    /// [`Isolation::Process`](crate::Isolation::Process) only.
    pub fn load_apart(path: &Utf8Path, options: &LoadOptions) -> Result<Arc<Library>, LoadError> {
        let load = || {
            let checked = Checked::read(path, options)?;
            let facts = match checked.is_new() {
                true => checked.try_out(options)?.0,
                false => child::facts(&checked.bytes, options.probe_deadline)?,
            };
            let image = Image::new(&checked.bytes)?;
            checked.accept()?;
            Ok(Arc::new(Library {
                path: path.to_owned(),
                real: checked.real,
                facts: Arc::new(facts),
                image: Arc::new(image),
                tables: None,
                lock: options.lock.clone(),
            }))
        };
        load().map_err(|kind| LoadError {
            path: path.to_owned(),
            kind,
        })
    }

    /// Tries the library out in a child process: loads it, makes one of each of its plugins
    /// with an empty configuration, and takes it away again. Holds it to no lock.
    ///
    /// # Errors
    /// What [`load`](Self::load) would refuse it for, and a library that crashes, hangs or
    /// ends its process.
    pub fn probe(path: &Utf8Path, options: &LoadOptions) -> Result<ProbeReport, LoadError> {
        let fail = |kind| LoadError {
            path: path.to_owned(),
            kind,
        };
        let (real, bytes) = read_checked(path, options.check_permissions).map_err(fail)?;
        let (facts, made) = child::try_out(&bytes, options.probe_deadline).map_err(fail)?;
        Ok(ProbeReport {
            path: real,
            abi: abi::abi_parts(facts.abi),
            sha256: facts.sha256,
            built_with: facts.built_with,
            plugins: facts.plugins.into_iter().zip(made).collect(),
        })
    }

    /// Where it came from.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// SHA-256 of the bytes that were loaded, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.facts.sha256
    }

    /// The plugins in it.
    pub fn plugins(&self) -> &[PluginInfo] {
        &self.facts.plugins
    }

    /// The ABI it was built for, as (major, minor).
    pub fn abi(&self) -> (u32, u32) {
        abi::abi_parts(self.facts.abi)
    }

    /// The tool chain it names, for people.
    pub fn built_with(&self) -> &str {
        &self.facts.built_with
    }

    /// True when its code runs in processes of its own only.
    pub fn is_apart(&self) -> bool {
        self.tables.is_none()
    }

    /// The plugin of this kind and name, with its functions where they may be called here.
    pub(crate) fn plugin(
        &self,
        kind: PluginKind,
        name: &str,
    ) -> Option<(&PluginInfo, Option<Table>)> {
        let wanted = |info: &PluginInfo| info.kind == kind && info.name == name;
        let index = self.plugins().iter().position(wanted)?;
        let tables = self.tables.as_ref();
        let table = tables.and_then(|loaded| loaded.tables.get(index).copied());
        Some((&self.facts.plugins[index], table))
    }

    /// Its bytes, for a child process.
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Leaves word that code of this library runs for the first time; see [`PluginLock`].
    pub(crate) fn mark(&self) -> Result<Option<Marker>, LockError> {
        let lock = self.lock.as_ref();
        lock.map(|lock| lock.mark(&self.real, self.sha256()))
            .transpose()
    }

    /// The plugins in words, for an error.
    pub(crate) fn held(&self) -> String {
        let words: Vec<String> = self
            .plugins()
            .iter()
            .map(|info| format!("{} `{}`", info.kind, info.name))
            .collect();
        words.join(", ")
    }
}

/// What a library said and did when it was tried out in a child process.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// Where the file really is.
    pub path: Utf8PathBuf,
    /// SHA-256 of its bytes in hexadecimal.
    pub sha256: String,
    /// The ABI it was built for, as (major, minor).
    pub abi: (u32, u32),
    /// The tool chain it names.
    pub built_with: String,
    /// Each plugin, and in which words it refused an empty configuration, if it did: it may
    /// have settings that it cannot do without.
    pub plugins: Vec<(PluginInfo, Option<String>)>,
}

/// A file that may be loaded.
struct Checked<'a> {
    real: Utf8PathBuf,
    bytes: Vec<u8>,
    sha256: String,
    admission: Option<(&'a PluginLock, Admission)>,
}

impl<'a> Checked<'a> {
    fn read(path: &Utf8Path, options: &'a LoadOptions) -> Result<Self, LoadErrorKind> {
        let (real, bytes) = read_checked(path, options.check_permissions)?;
        let sha256 = digest(&bytes);
        let admission = match &options.lock {
            Some(lock) => Some((lock, lock.admit(&real, &sha256)?)),
            None => None,
        };
        Ok(Self {
            real,
            bytes,
            sha256,
            admission,
        })
    }

    fn is_new(&self) -> bool {
        matches!(self.admission, Some((_, Admission::New(_))))
    }

    fn try_out(
        &self,
        options: &LoadOptions,
    ) -> Result<(Facts, Vec<Option<String>>), LoadErrorKind> {
        child::try_out(&self.bytes, options.probe_deadline)
    }

    fn mark(&self) -> Result<Option<Marker>, LoadErrorKind> {
        let lock = self.admission.map(|(lock, _)| lock);
        Ok(lock
            .map(|lock| lock.mark(&self.real, &self.sha256))
            .transpose()?)
    }

    /// Records what was new.
    fn accept(&self) -> Result<(), LoadErrorKind> {
        if let Some((lock, Admission::New(trusted_by))) = self.admission {
            lock.record(&self.real, &self.sha256, trusted_by, false)?;
        }
        Ok(())
    }
}

/// SHA-256 of a library as it is on disk, in hexadecimal. Runs none of it.
///
/// # Errors
/// A file that is missing, cannot be read, or is no library.
pub fn digest_file(path: &Utf8Path) -> Result<String, LoadError> {
    let read = read_checked(path, false).map_err(|kind| LoadError {
        path: path.to_owned(),
        kind,
    });
    read.map(|(_, bytes)| digest(&bytes))
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the file really is, and its bytes, once everything that can be checked without running
/// them is.
pub(crate) fn read_checked(
    path: &Utf8Path,
    check_permissions: bool,
) -> Result<(Utf8PathBuf, Vec<u8>), LoadErrorKind> {
    let missing = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadErrorKind::Missing,
        _ => LoadErrorKind::Read(error),
    };
    let canonical = path.canonicalize_utf8().map_err(missing)?;
    // Asked before opening: opening a pipe would wait for its other end.
    if !canonical.is_file() {
        return Err(LoadErrorKind::NotAFile);
    }
    if check_permissions {
        trust::check(&canonical)?;
    }
    let mut file = File::open(&canonical).map_err(missing)?;
    let metadata = file.metadata().map_err(LoadErrorKind::Read)?;
    if !metadata.is_file() {
        return Err(LoadErrorKind::NotAFile);
    }
    if metadata.size() > MAX_BYTES {
        let bytes = metadata.size();
        return Err(LoadErrorKind::TooLarge { bytes });
    }
    let mut bytes = Vec::with_capacity(metadata.size() as usize);
    file.read_to_end(&mut bytes).map_err(LoadErrorKind::Read)?;
    check_elf(&bytes)?;
    Ok((canonical, bytes))
}

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (62, "64-bit x86 Linux");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (183, "64-bit ARM Linux");

/// The few header bytes that tell a library of this machine from anything else, so that
/// the dynamic linker's own words are needed rarely.
fn check_elf(bytes: &[u8]) -> Result<(), LoadErrorKind> {
    let (machine, wanted) = MACHINE;
    let refuse = |found: &str| {
        Err(LoadErrorKind::NotALibrary {
            found: found.to_owned(),
            wanted,
        })
    };
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if bytes.get(..4) != Some(b"\x7fELF") {
        return refuse("it is no ELF file");
    }
    match (bytes.get(4), half(16), half(18)) {
        (Some(2), Some(3), Some(found)) if found == machine => match is_whole(bytes) {
            Some(true) => Ok(()),
            _ => refuse("it is cut short"),
        },
        (Some(1), _, _) => refuse("it is a 32-bit ELF file"),
        (Some(2), Some(3), Some(_)) => refuse("it is for another processor"),
        (Some(2), Some(_), Some(_)) => refuse("it is an ELF file, but no shared library"),
        _ => refuse("it is cut short"),
    }
}

/// True when every segment lies inside the file. The dynamic linker maps segments without
/// asking, and reading a part that is not there ends the process with SIGBUS.
fn is_whole(bytes: &[u8]) -> Option<bool> {
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let first = usize::try_from(long(32)?).ok()?;
    let (each, count) = (usize::from(half(54)?), usize::from(half(56)?));
    for index in 0..count {
        let header = first.checked_add(index * each)?;
        let end = header.checked_add(56)?;
        bytes.get(header..end)?;
        let (offset, length) = (long(header + 8)?, long(header + 32)?);
        if offset.checked_add(length)? > bytes.len() as u64 {
            return Some(false);
        }
    }
    Some(count > 0)
}

/// Libraries by the hash of their bytes. They are never unloaded, so neither is this.
static LOADED: Mutex<Option<HashMap<String, Arc<Loaded>>>> = Mutex::new(None);

pub(crate) fn load_bytes(bytes: &[u8], sha256: &str) -> Result<Arc<Loaded>, LoadErrorKind> {
    let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if let Some(loaded) = all.get(sha256) {
        return Ok(Arc::clone(loaded));
    }
    let loaded = Arc::new(open(bytes, sha256)?);
    all.insert(sha256.to_owned(), Arc::clone(&loaded));
    Ok(loaded)
}

fn open(bytes: &[u8], sha256: &str) -> Result<Loaded, LoadErrorKind> {
    let image = Arc::new(Image::new(bytes)?);
    let entry = link(&image)?;
    // SAFETY: the symbol has the type that the header gives it, or the library lies about
    // being a plugin, against which only a process of its own would help.
    let module = unsafe { entry(abi::ABI) };
    // SAFETY: the header promises a pointer to a static module, or NULL.
    unsafe { read_module(module, sha256, image) }
}

fn link(image: &Arc<Image>) -> Result<abi::EntryFn, LoadErrorKind> {
    let path = format!("/proc/self/fd/{}", image.0.as_raw_fd());
    let flags = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: loading runs the library's initialisers; that the caller wants this library
    // is what `load` documents.
    let handle = unsafe { Handle::open(Some(&path), flags) };
    let handle = handle.map_err(|error| LoadErrorKind::Linker(linker_words(&error)))?;
    // The linker knows libraries by path: were the descriptor closed and its number given
    // to the next library, the linker would answer with this one again.
    std::mem::forget(Arc::clone(image));
    // SAFETY: the type is the header's; the pointer stays valid since the library does.
    let entry = unsafe { handle.get::<abi::EntryFn>(abi::ENTRY_SYMBOL) };
    let entry = *entry.map_err(|_| LoadErrorKind::NoEntry)?;
    std::mem::forget(handle);
    Ok(entry)
}

fn private_copy(bytes: &[u8]) -> std::io::Result<File> {
    // Since Linux 6.3 a system may forbid running such files unless asked; older kernels
    // do not know the question.
    const MFD_EXEC: libc::c_uint = 0x10;
    let create = |flags: libc::c_uint| {
        // SAFETY: the name is NUL-terminated, and the result is checked.
        unsafe { libc::memfd_create(c"llmpick-plugin".as_ptr(), flags) }
    };
    let mut descriptor = create(libc::MFD_CLOEXEC | MFD_EXEC);
    if descriptor < 0 {
        descriptor = create(libc::MFD_CLOEXEC);
    }
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    Ok(file)
}

/// The linker's message without the path, which means nothing to anyone.
fn linker_words(error: &libloading::Error) -> String {
    let mut words = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        words = source.to_string();
    }
    let words = match words.split_once("/proc/self/fd/") {
        Some((_, rest)) => rest.split_once(": ").map_or(rest, |(_, rest)| rest),
        None => words.as_str(),
    };
    if let Some(symbol) = words.strip_prefix("undefined symbol: ") {
        return format!("nothing defines the symbol `{symbol}`; link it into the plugin");
    }
    if let Some((library, _)) = words.split_once(": cannot open shared object file") {
        return format!("it needs `{library}`, which is not installed");
    }
    words.to_owned()
}

/// # Safety
/// `module` is NULL or points to a static module, as the header says.
unsafe fn read_module(
    module: *const abi::Module,
    sha256: &str,
    image: Arc<Image>,
) -> Result<Loaded, LoadErrorKind> {
    if module.is_null() {
        return Err(LoadErrorKind::RefusesHost);
    }
    // The first 20 bytes mean the same in every version: look at no more before they agree.
    // SAFETY: the header promises them.
    let head: abi::Module = unsafe { abi::read_prefix(module, 20) };
    if head.magic != abi::MAGIC {
        return Err(LoadErrorKind::WrongMagic);
    }
    if abi::abi_parts(head.abi).0 != abi::ABI_MAJOR {
        return Err(LoadErrorKind::OtherAbi { built: head.abi });
    }
    if head.abi_min > abi::ABI {
        return Err(LoadErrorKind::NeedsNewerHost {
            needed: head.abi_min,
        });
    }
    // SAFETY: the module says that it has `size` bytes.
    let module: abi::Module = unsafe { abi::read_prefix(module, head.size as usize) };
    if module.n_plugins > MAX_PLUGINS || module.n_plugins > 0 && module.plugins.is_null() {
        let count = module.n_plugins;
        return Err(malformed(format!("it says that it holds {count} plugins")));
    }
    let (mut plugins, mut tables) = (Vec::<PluginInfo>::new(), Vec::new());
    for index in 0..module.n_plugins as usize {
        // SAFETY: the module says that the array has `n_plugins` pointers.
        let Some((info, table)) = (unsafe { read_plugin(*module.plugins.add(index)) })? else {
            continue;
        };
        if plugins
            .iter()
            .any(|p| p.kind == info.kind && p.name == info.name)
        {
            let (kind, name) = (info.kind, info.name);
            return Err(malformed(format!("it holds two of {kind} `{name}`")));
        }
        plugins.push(info);
        tables.push(table);
    }
    if plugins.is_empty() {
        return Err(LoadErrorKind::Empty);
    }
    let facts = Facts {
        sha256: sha256.to_owned(),
        abi: module.abi,
        // SAFETY: the module's own static text.
        built_with: unsafe { text(module.built_with, "built_with") }?,
        plugins,
    };
    Ok(Loaded {
        facts: Arc::new(facts),
        tables,
        image,
    })
}

/// One plugin, or `None` for a kind that a newer header has.
///
/// # Safety
/// `plugin` is NULL or points to a static plugin, as the header says.
unsafe fn read_plugin(
    plugin: *const abi::Plugin,
) -> Result<Option<(PluginInfo, Table)>, LoadErrorKind> {
    if plugin.is_null() {
        return Err(malformed("one of its plugins is NULL".to_owned()));
    }
    // SAFETY: not NULL, and a struct that says its own size.
    let raw = unsafe { abi::read_sized(plugin) };
    let kind = match raw.kind {
        abi::KIND_ROUTER => PluginKind::Router,
        abi::KIND_SCORER => PluginKind::Scorer,
        _ => return Ok(None),
    };
    // SAFETY: the plugin's own static texts.
    let info = unsafe {
        PluginInfo {
            kind,
            name: text(raw.name, "name")?,
            version: text(raw.version, "version")?,
            description: text(raw.description, "description")?,
            config_schema: text(raw.config_schema, "config_schema")?,
            caps: raw.caps,
            state_version: raw.state_version,
            state_version_min: raw.state_version_min,
        }
    };
    if !abi::is_plugin_name(&info.name) {
        return Err(LoadErrorKind::BadName {
            name: info.name.chars().take(80).collect(),
        });
    }
    if raw.vtbl.is_null() {
        let name = info.name;
        return Err(malformed(format!("`{name}` has no table of functions")));
    }
    // SAFETY: the plugin says that its table is the one of its kind.
    let table = unsafe { read_table(&info, raw.vtbl) }?;
    Ok(Some((info, table)))
}

/// # Safety
/// `table` points to the functions of the plugin's kind.
unsafe fn read_table(
    info: &PluginInfo,
    table: *const std::ffi::c_void,
) -> Result<Table, LoadErrorKind> {
    let missing = |function| LoadErrorKind::MissingFunction {
        plugin: info.name.clone(),
        kind: info.kind,
        function,
    };
    Ok(match info.kind {
        PluginKind::Router => {
            // SAFETY: as the caller promises.
            let raw: abi::RouterVtbl = unsafe { abi::read_sized(table.cast()) };
            Table::Router(RouterTable {
                create: raw.create.ok_or_else(|| missing("create"))?,
                destroy: raw.destroy.ok_or_else(|| missing("destroy"))?,
                select: raw.select.ok_or_else(|| missing("select"))?,
                feedback: raw.feedback,
                snapshot: raw.snapshot,
                restore: raw.restore,
            })
        }
        PluginKind::Scorer => {
            // SAFETY: as the caller promises.
            let raw: abi::ScorerVtbl = unsafe { abi::read_sized(table.cast()) };
            Table::Scorer(ScorerTable {
                create: raw.create.ok_or_else(|| missing("create"))?,
                destroy: raw.destroy.ok_or_else(|| missing("destroy"))?,
                score: raw.score.ok_or_else(|| missing("score"))?,
            })
        }
    })
}

/// # Safety
/// As for [`abi::Str::text`].
unsafe fn text(raw: abi::Str, what: &str) -> Result<String, LoadErrorKind> {
    if raw.len > MAX_TEXT {
        return Err(malformed(format!("its {what} is {} bytes long", raw.len)));
    }
    // SAFETY: the caller's promise is passed on.
    let text = unsafe { raw.text() };
    text.map(str::to_owned)
        .ok_or_else(|| malformed(format!("its {what} is no UTF-8 text")))
}

fn malformed(what: String) -> LoadErrorKind {
    LoadErrorKind::Malformed(what)
}
