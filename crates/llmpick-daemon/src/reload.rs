//! The router's library anew, while the daemon serves: what was learnt is handed over.
//!
//! Read, hashed, held to the lock, loaded beside the old code, made, and only then swapped in;
//! whatever goes wrong before leaves the old one serving.

use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use camino::Utf8PathBuf;
use llmpick_dispatch::{Dispatch, Handover};
use llmpick_plugin_host::Library;
use serde::Serialize;
use tracing::{info, warn};

use crate::app::sentence;
use crate::plugins;
use crate::{AppError, Settings};

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The router's name.
    pub router: String,
    /// Its file.
    pub path: Utf8PathBuf,
    /// SHA-256 of what serves now, in hexadecimal.
    pub sha256: String,
    /// The same of what served before; `None` where only the fallback did.
    pub before: Option<String>,
    /// True where the new one took the learnt state over as it was; otherwise `reason` says
    /// what it did instead: mostly, it learnt what the ledger holds, from the start.
    pub kept: bool,
    /// Rows of the ledger that it was told from the start.
    pub replayed: u64,
    /// Why it could not take the state over.
    pub reason: Option<String>,
}

/// The library that serves, and who may change that.
#[derive(Debug, Default)]
pub(crate) struct Reloading {
    /// Held for as long as a reload takes.
    turn: Mutex<()>,
    /// Held for a moment.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sha256: Option<String>,
    /// Why the chosen router does not serve.
    fault: Option<String>,
}

impl Reloading {
    /// After the start: with a library, or with the reason why there is none.
    pub(crate) fn new(started: Result<&Library, String>) -> Self {
        let state = match started {
            Ok(library) => State {
                sha256: Some(library.sha256().to_owned()),
                fault: None,
            },
            Err(fault) => State {
                sha256: None,
                fault: Some(fault),
            },
        };
        Self {
            turn: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// SHA-256 of the library that serves.
    pub(crate) fn sha256(&self) -> Option<String> {
        self.lock().sha256.clone()
    }

    /// One reload at a time. Blocks.
    pub(crate) fn reload(
        &self,
        settings: &Settings,
        dispatch: &Dispatch,
    ) -> Result<Reloaded, AppError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.sha256();
        let (router, library) = plugins::load_router(settings)?;
        let name = router.name().to_owned();
        // The fallback, or another plugin's router, has no state for this one.
        let handover = match before.is_some() && dispatch.router_name() == name {
            true => dispatch.reload_router(router)?,
            false => {
                dispatch.set_router(router)?;
                Handover::Replayed {
                    rows: 0,
                    reason: "what served had no state for it, so it took up its own".to_owned(),
                }
            }
        };
        let (kept, replayed, reason) = match handover {
            Handover::Kept => (true, 0, None),
            Handover::Replayed { rows, reason } => (false, rows, Some(reason)),
        };
        let reloaded = Reloaded {
            router: name,
            path: library.path().to_owned(),
            sha256: library.sha256().to_owned(),
            before,
            kept,
            replayed,
            reason,
        };
        *self.lock() = State {
            sha256: Some(reloaded.sha256.clone()),
            fault: None,
        };
        info!(
            router = reloaded.router,
            sha256 = reloaded.sha256,
            kept,
            replayed,
            "router reloaded"
        );
        Ok(reloaded)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices that the router's file is another one. Asked every second or so.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    /// As the file was when we last looked.
    last: Option<Signature>,
    /// As it was when we last acted on it.
    settled: Option<Signature>,
}

/// What changes when a file does.
pub(crate) type Signature = (u64, u64, i64, i64, u64);

/// The file as it is now; `None` where it is not there.
pub(crate) fn signature(path: &std::path::Path) -> Option<Signature> {
    let file = std::fs::metadata(path).ok()?;
    let written = (file.mtime(), file.mtime_nsec());
    Some((file.dev(), file.ino(), written.0, written.1, file.len()))
}

impl Watcher {
    /// True when the file has changed since the last time this was true and is still: a file
    /// that is being written is left alone until the next look. Blocks.
    pub(crate) fn has_changed(&mut self, settings: &Settings) -> bool {
        let path = plugins::path(settings).ok();
        let now = path.and_then(|path| signature(path.as_std_path()));
        let still = now == self.last;
        self.last = now;
        let changed = now.is_some() && still && now != self.settled;
        if changed {
            self.settled = now;
        }
        changed
    }
}

/// Reloads where the content is not what serves. Blocks.
pub(crate) fn reload_if_other(app: &crate::App) {
    match plugins::digest(app.settings()) {
        Ok(found) if app.router_sha256().as_ref() == Some(&found) => {}
        Ok(_) => reload_and_log(app),
        Err(error) => warn!(error = sentence(&error), "the router's file cannot be read"),
    }
}

/// The arms as the settings want them now, or the reason why not in the log. Blocks.
pub(crate) fn reload_arms_and_log(app: &crate::App) {
    if let Err(error) = app.reload_arms() {
        warn!(
            error = sentence(&error),
            "the arms were not reloaded, the old ones go on"
        );
    }
}

/// Reloads, and tells the log of a failure. Blocks.
pub(crate) fn reload_and_log(app: &crate::App) {
    if let Err(error) = app.reload_router() {
        warn!(
            error = sentence(&error),
            "the router was not reloaded, the old one goes on"
        );
    }
}
