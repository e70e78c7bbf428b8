//! What can go wrong before a plugin runs, each in a sentence that says what to do.

use camino::Utf8PathBuf;
use llmpick_plugin_abi as abi;

use crate::{LockError, PluginKind};

/// Why a library was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("load plugin `{path}`")]
pub struct LoadError {
    /// The file.
    pub path: Utf8PathBuf,
    /// What was wrong with it.
    #[source]
    pub kind: LoadErrorKind,
}

/// What was wrong with a library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// It is not there.
    #[error("there is no such file: check the path, or build the plugin first")]
    Missing,
    /// It is a folder, a pipe, a device.
    #[error("it is not a regular file: name the shared library itself")]
    NotAFile,
    /// It cannot be a plugin.
    #[error("it has {bytes} bytes, more than any plugin needs: name the shared library itself")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The file system said no.
    #[error("it cannot be read: {0}")]
    Read(#[source] std::io::Error),
    /// Somebody else could have put it there.
    #[error("`{at}` {problem}: {remedy}")]
    Untrusted {
        /// The file or folder.
        at: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Not an ELF library of this machine.
    #[error("it is not a shared library for this machine ({found}): build it for {wanted}")]
    NotALibrary {
        /// What it looks like.
        found: String,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// The dynamic linker refused.
    #[error("the dynamic linker refused it: {0}")]
    Linker(String),
    /// No entry.
    #[error(
        "it exports no `llmpick_plugin_entry`, so it is no llmpick plugin: \
         use `export_plugins!` in Rust, or `LLMPICK_EXPORT` in C"
    )]
    NoEntry,
    /// The entry answered NULL.
    #[error(
        "it does not serve plugin ABI {}: rebuild it with the matching SDK",
        show_abi(abi::ABI)
    )]
    RefusesHost,
    /// The module does not begin as one does.
    #[error("its entry does not return an llmpick module: rebuild it with the matching header")]
    WrongMagic,
    /// Another major version.
    #[error(
        "it was built for ABI {}.x, this llmpick speaks {}: rebuild it with the matching SDK",
        abi::abi_parts(*built).0, show_abi(abi::ABI)
    )]
    OtherAbi {
        /// What it was built for.
        built: u32,
    },
    /// A newer minor version is needed.
    #[error(
        "it needs ABI {} or newer, this llmpick speaks {}: update llmpick, \
         or rebuild the plugin with an older SDK",
        show_abi(*needed), show_abi(abi::ABI)
    )]
    NeedsNewerHost {
        /// What it needs.
        needed: u32,
    },
    /// A structure that breaks the header's rules.
    #[error("{0}: rebuild it with the matching header")]
    Malformed(String),
    /// A name that cannot be used.
    #[error("a plugin in it is called `{name}`: names are 1 to 64 of a-z, 0-9, _ and -")]
    BadName {
        /// The name.
        name: String,
    },
    /// A required function is NULL.
    #[error("`{plugin}` has no function `{function}`: every {kind} must have one")]
    MissingFunction {
        /// The plugin.
        plugin: String,
        /// Its kind.
        kind: PluginKind,
        /// The function.
        function: &'static str,
    },
    /// Other bytes than those that were trusted.
    #[error(
        "it changed since it was trusted (SHA-256 {}… then, {}… now): if that is as it should \
         be, run `llmpick plugin trust {at}`",
        short(pinned),
        short(found)
    )]
    Changed {
        /// The file.
        at: Utf8PathBuf,
        /// What was trusted.
        pinned: String,
        /// What is there.
        found: String,
    },
    /// A process died of it.
    #[error(
        "llmpick died while it loaded this very file, so it is quarantined: if it is not to \
         blame, run `llmpick plugin trust {at}`"
    )]
    Suspect {
        /// The file.
        at: Utf8PathBuf,
        /// When that was found out, in seconds since 1970.
        since: u64,
    },
    /// The list of trusted plugins cannot be used.
    #[error("it cannot be held to what was trusted: {0}")]
    Lock(#[source] LockError),
    /// It did not survive its trial.
    #[error("it was tried out in a process of its own, and {0}: it is not loaded here")]
    Probe(String),
    /// What the child process said when it loaded it.
    #[error("{0}")]
    Reported(String),
    /// No process to try it out in.
    #[error("it is to run in a process of its own, and {0}")]
    NoChild(String),
    /// Nothing usable inside.
    #[error("it holds no router and no scorer that this llmpick knows")]
    Empty,
}

/// Enough of a hash to tell it from another.
fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

/// `1.0`.
fn show_abi(version: u32) -> String {
    let (major, minor) = abi::abi_parts(version);
    format!("{major}.{minor}")
}

/// Why an instance was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The library holds no such plugin.
    #[error("`{library}` holds no {kind} `{name}`; it holds {held}")]
    NoSuchPlugin {
        /// The file.
        library: Utf8PathBuf,
        /// What was wanted.
        kind: PluginKind,
        /// What was wanted.
        name: String,
        /// What there is.
        held: String,
    },
    /// The configuration is no JSON object.
    #[error("configure plugin `{name}`: {reason}")]
    Config {
        /// The plugin.
        name: String,
        /// What it did not like.
        reason: String,
    },
    /// Its constructor failed.
    #[error("start plugin `{name}`: {reason}")]
    Failed {
        /// The plugin.
        name: String,
        /// What happened.
        reason: String,
    },
    /// Its constructor did not come back.
    #[error("start plugin `{name}`: it did not answer within {waited:?}; do not use it")]
    TimedOut {
        /// The plugin.
        name: String,
        /// How long we waited.
        waited: std::time::Duration,
    },
    /// The library was loaded for processes of its own, and is asked for here.
    #[error("start plugin `{name}`: its library may run in a process of its own only")]
    Apart {
        /// The plugin.
        name: String,
    },
    /// Word of what runs cannot be left.
    #[error("start plugin `{name}`: {source}")]
    Lock {
        /// The plugin.
        name: String,
        /// Why not.
        #[source]
        source: LockError,
    },
    /// No thread for it.
    #[error("start a thread for plugin `{name}`")]
    Thread {
        /// The plugin.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A plugin that is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "find plugin `{name}`: looked in {}{}",
    places(looked),
    available(found)
)]
pub struct FindError {
    /// What was wanted.
    pub name: String,
    /// The files that are not there.
    pub looked: Vec<String>,
    /// The plugins that are.
    pub found: Vec<String>,
}

/// The folders of these files, each once, or the file itself where a path was asked for.
fn places(looked: &[String]) -> String {
    if let [file] = looked {
        return file.clone();
    }
    let folder = |file: &String| {
        file.rsplit_once('/')
            .map_or(String::new(), |(dir, _)| dir.to_owned())
    };
    let mut folders: Vec<String> = looked.iter().map(folder).collect();
    folders.dedup();
    folders.join(", ")
}

fn available(found: &[String]) -> String {
    match found {
        [] => "; there are no plugins in these folders, build them first".to_owned(),
        found => format!("; there are {}", found.join(", ")),
    }
}
