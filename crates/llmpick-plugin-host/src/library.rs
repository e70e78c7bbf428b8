//! Loads a shared library and checks everything it says about itself.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use llmpick_plugin_abi as abi;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{LoadError, LoadErrorKind, trust};

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Refuse a file that somebody else could have written: it, and every folder above it,
    /// must belong to root or to us, without write permission for others.
    pub check_permissions: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            check_permissions: true,
        }
    }
}

/// What a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// A loaded library. It stays loaded until the process ends.
#[derive(Debug)]
pub struct Library {
    path: Utf8PathBuf,
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    sha256: String,
    abi: u32,
    built_with: String,
    plugins: Vec<PluginInfo>,
    tables: Vec<Table>,
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
        let fail = |kind| LoadError {
            path: path.to_owned(),
            kind,
        };
        let bytes = read_checked(path, options).map_err(fail)?;
        let loaded = load_bytes(&bytes).map_err(fail)?;
        Ok(Arc::new(Library {
            path: path.to_owned(),
            loaded,
        }))
    }

    /// Where it came from.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// SHA-256 of the bytes that were loaded, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.loaded.sha256
    }

    /// The plugins in it.
    pub fn plugins(&self) -> &[PluginInfo] {
        &self.loaded.plugins
    }

    /// The ABI it was built for, as (major, minor).
    pub fn abi(&self) -> (u32, u32) {
        abi::abi_parts(self.loaded.abi)
    }

    /// The tool chain it names, for people.
    pub fn built_with(&self) -> &str {
        &self.loaded.built_with
    }

    /// The plugin of this kind and name.
    pub(crate) fn plugin(&self, kind: PluginKind, name: &str) -> Option<(&PluginInfo, Table)> {
        let loaded = &self.loaded;
        loaded
            .plugins
            .iter()
            .zip(&loaded.tables)
            .find(|(info, _)| info.kind == kind && info.name == name)
            .map(|(info, table)| (info, *table))
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

/// The file's bytes, once everything that can be checked without running them is.
fn read_checked(path: &Utf8Path, options: &LoadOptions) -> Result<Vec<u8>, LoadErrorKind> {
    let missing = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadErrorKind::Missing,
        _ => LoadErrorKind::Read(error),
    };
    let canonical = path.canonicalize_utf8().map_err(missing)?;
    // Asked before opening: opening a pipe would wait for its other end.
    if !canonical.is_file() {
        return Err(LoadErrorKind::NotAFile);
    }
    if options.check_permissions {
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
    Ok(bytes)
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

fn load_bytes(bytes: &[u8]) -> Result<Arc<Loaded>, LoadErrorKind> {
    let sha256: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if let Some(loaded) = all.get(&sha256) {
        return Ok(Arc::clone(loaded));
    }
    let loaded = Arc::new(open(bytes, sha256.clone())?);
    all.insert(sha256, Arc::clone(&loaded));
    Ok(loaded)
}

fn open(bytes: &[u8], sha256: String) -> Result<Loaded, LoadErrorKind> {
    let entry = link(bytes)?;
    // SAFETY: the symbol has the type that the header gives it, or the library lies about
    // being a plugin, against which only a process of its own would help.
    let module = unsafe { entry(abi::ABI) };
    // SAFETY: the header promises a pointer to a static module, or NULL.
    unsafe { read_module(module, sha256) }
}

/// Loads the bytes from a private file in memory, so that what was hashed is what runs, and
/// so that replacing the file on disk neither crashes us nor brings the old code back.
fn link(bytes: &[u8]) -> Result<abi::EntryFn, LoadErrorKind> {
    let file = private_copy(bytes).map_err(LoadErrorKind::Read)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: loading runs the library's initialisers; that the caller wants this library
    // is what `load` documents.
    let handle = unsafe { Handle::open(Some(&path), flags) };
    let handle = handle.map_err(|error| LoadErrorKind::Linker(linker_words(&error)))?;
    // The linker knows libraries by path: were the descriptor closed and its number given
    // to the next library, the linker would answer with this one again.
    std::mem::forget(file);
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
unsafe fn read_module(module: *const abi::Module, sha256: String) -> Result<Loaded, LoadErrorKind> {
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
    Ok(Loaded {
        sha256,
        abi: module.abi,
        // SAFETY: the module's own static text.
        built_with: unsafe { text(module.built_with, "built_with") }?,
        plugins,
        tables,
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
