//! The process of one test.
//!
//! Standard output is the channel to the kit; the plugin does not get at it by accident, its
//! own `printf`s go to standard error. A line of the protocol begins with [`MARK`].

use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::subject::Plugin;
use super::{Task, memory, tests};
use crate::{Library, LoadOptions, PluginInfo, PluginKind};

/// Begins every line of the protocol.
pub(super) const MARK: &str = "llmpick-kit ";

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// It begins a part of the test; the words finish the sentence "it crashed while …".
    Step(String),
    /// It is about to crash, for this reason.
    Fault(String),
    /// The library loads and holds these.
    Holds(Vec<(PluginKind, String)>, String),
    /// The promise was kept.
    Passed(String),
    /// It was not.
    Failed(String),
}

static CHANNEL: Mutex<Option<std::fs::File>> = Mutex::new(None);

/// Runs one test in this process and reports to the kit that started it. To be called by a
/// process that [`super::Kit::child`] made, which then ends.
pub fn run_task(task: &Task) {
    end_with_the_kit();
    if open_channel().is_err() {
        // Without a channel there is nobody to tell; the kit says that no result came.
        return;
    }
    let line = match work(task) {
        Ok(line) => line,
        Err(why) => Line::Failed(why),
    };
    tell(&line);
}

/// Says what is being done, for the case that it never ends.
pub(super) fn step(what: impl Into<String>) {
    tell(&Line::Step(what.into()));
}

fn work(task: &Task) -> Result<Line, String> {
    step("loading the library");
    // Who else could change the file is the daemon's question, not the author's.
    let library = Library::load(&task.file, &LoadOptions::ANYWHERE)
        .map_err(|error| error.kind.to_string())?;
    let Some((kind, name)) = &task.plugin else {
        let (major, minor) = library.abi();
        let held = |info: &PluginInfo| (info.kind, info.name.clone());
        let built = match library.built_with() {
            "" => String::new(),
            with => format!(", built with {with}"),
        };
        let note = format!("{}; ABI {major}.{minor}{built}", library.held());
        return Ok(Line::Holds(
            library.plugins().iter().map(held).collect(),
            note,
        ));
    };
    let (info, table) = library
        .plugin(*kind, name)
        .and_then(|(info, table)| Some((info, table?)))
        .ok_or_else(|| format!("the library holds no {kind} `{name}`"))?;
    let settings: Value = serde_json::from_str(&task.settings).map_err(|e| e.to_string())?;
    let test = tests(*kind)
        .into_iter()
        .find(|test| test.name == task.test)
        .ok_or_else(|| format!("there is no test `{}`", task.test))?;
    let plugin = Plugin {
        info: info.clone(),
        table,
        settings,
    };
    (test.run)(&plugin).map(Line::Passed)
}

fn tell(line: &Line) {
    let Ok(json) = serde_json::to_string(line) else {
        return;
    };
    let mut channel = CHANNEL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(channel) = channel.as_mut() {
        // A kit that is gone needs no answer. The line break before it ends whatever else
        // was written there without one.
        let _ = channel.write_all(format!("\n{MARK}{json}\n").as_bytes());
    }
}

/// Takes standard output for the protocol, and gives the plugin standard error in its place.
fn open_channel() -> std::io::Result<()> {
    // SAFETY: plain system calls on descriptors; the results are checked.
    let channel = unsafe {
        let descriptor = libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 3);
        if descriptor < 0 || libc::dup2(2, 1) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(descriptor)
    };
    memory::watch_faults(channel.as_raw_fd());
    *CHANNEL.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel.into());
    Ok(())
}

/// A kit that is ended leaves no test behind that runs forever.
fn end_with_the_kit() {
    // SAFETY: sets a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}
