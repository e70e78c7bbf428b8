//! What the host offers to a plugin: a log and a clock.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llmpick_plugin_abi as abi;

use crate::{Error, Result};

/// How much a log line matters.
///
/// ```
/// use llmpick_plugin_sdk::Level;
///
/// assert!(Level::Error < Level::Trace);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error = abi::LOG_ERROR as isize,
    /// Something looks wrong.
    Warn = abi::LOG_WARN as isize,
    /// Worth knowing.
    Info = abi::LOG_INFO as isize,
    /// For people who look for a fault.
    Debug = abi::LOG_DEBUG as isize,
    /// Everything.
    Trace = abi::LOG_TRACE as isize,
}

/// A handle to the host. Cheap to clone, may be used from any thread; after the plugin
/// instance was destroyed it does nothing.
///
/// ```
/// use llmpick_plugin_sdk::{Host, Level};
///
/// let host = Host::detached(); // In a plugin: the one that `create` is given.
/// host.info("an arm appeared");
/// host.log(Level::Debug, format_args!("{} arms", 3));
/// ```
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    raw: abi::Host,
    alive: AtomicBool,
}

// SAFETY: rule R3 of the header: host callbacks may be called from any thread until
// `destroy` returns, which is what `alive` watches.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Host {
    /// A host that hears nothing and whose clock stands still, for unit tests.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::Host;
    /// assert!(Host::detached().now().is_zero());
    /// ```
    pub fn detached() -> Self {
        Self(Arc::new(Inner {
            raw: abi::zeroed(),
            alive: AtomicBool::new(false),
        }))
    }

    /// # Safety
    /// `raw` is NULL or points to the host's struct, valid until the instance is destroyed.
    pub(crate) unsafe fn from_raw(raw: *const abi::Host) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid("the host passed no host struct"));
        }
        Ok(Self(Arc::new(Inner {
            // SAFETY: not NULL, and a struct that says its own size.
            raw: unsafe { abi::read_sized(raw) },
            alive: AtomicBool::new(true),
        })))
    }

    /// Cuts the connection: called when the instance is destroyed.
    pub(crate) fn retire(&self) {
        self.0.alive.store(false, Ordering::Release);
    }

    fn raw(&self) -> Option<&abi::Host> {
        self.0.alive.load(Ordering::Acquire).then_some(&self.0.raw)
    }

    /// True when a line of this level would be written.
    ///
    /// ```
    /// # use llmpick_plugin_sdk::{Host, Level};
    /// assert!(!Host::detached().enabled(Level::Error), "nobody listens");
    /// ```
    pub fn enabled(&self, level: Level) -> bool {
        let Some(raw) = self.raw() else { return false };
        // SAFETY: the host is alive, so its callbacks may be called with its `ctx`.
        raw.log.is_some()
            && raw
                .max_log_level
                .is_none_or(|max| level as u32 <= unsafe { max(raw.ctx) })
    }

    /// Writes a line to the host's log; formats it only if somebody reads it.
    pub fn log(&self, level: Level, message: impl Display) {
        if !self.enabled(level) {
            return;
        }
        if let Some((raw, log)) = self.raw().and_then(|raw| Some((raw, raw.log?))) {
            let message = message.to_string();
            // SAFETY: the host is alive, and `message` outlives the call.
            unsafe { log(raw.ctx, level as u32, abi::Str::new(&message)) };
        }
    }

    /// [`log`](Self::log) at [`Level::Warn`].
    pub fn warn(&self, message: impl Display) {
        self.log(Level::Warn, message);
    }

    /// [`log`](Self::log) at [`Level::Info`].
    pub fn info(&self, message: impl Display) {
        self.log(Level::Info, message);
    }

    /// [`log`](Self::log) at [`Level::Debug`].
    pub fn debug(&self, message: impl Display) {
        self.log(Level::Debug, message);
    }

    /// Monotonic time since an arbitrary start. Not for decisions: those must replay.
    pub fn now(&self) -> Duration {
        self.raw()
            .and_then(|raw| {
                // SAFETY: the host is alive, so its callbacks may be called with its `ctx`.
                raw.now_ns
                    .map(|now| Duration::from_nanos(unsafe { now(raw.ctx) }))
            })
            .unwrap_or_default()
    }
}
