//! What a pull tells while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Hears what a pull does; the command draws a bar from it.
///
/// Called from worker threads, often; it must not block.
pub trait Progress: Send + Sync {
    /// One thing happened.
    fn event(&self, event: PullEvent);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _event: PullEvent) {}
}

/// One step of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEvent {
    /// Another process or task pulls the same model; this one waits for it.
    Waiting,
    /// A source is tried.
    Source {
        /// The source in words, for example `hub Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF`.
        source: String,
    },
    /// A source did not give the model; the next one follows.
    SourceFailed {
        /// The source in words.
        source: String,
        /// Why, a clause.
        reason: String,
    },
    /// One of several downloads begins.
    Part {
        /// From 1.
        index: usize,
        /// How many there are.
        count: usize,
        /// What is fetched.
        name: String,
    },
    /// How far it is. `done` never falls during one pull, even when a source fails half-way
    /// and the next one begins anew, and it is never above `total`.
    Bytes {
        /// Bytes of the model that are here.
        done: u64,
        /// Bytes of the whole model; another source may hold another size.
        total: u64,
    },
    /// Everything is here and is being hashed.
    Verifying,
    /// The model is installed.
    Done {
        /// Bytes on the disk.
        bytes: u64,
    },
}

/// Turns positions into events that never go backwards.
#[derive(Clone)]
pub(crate) struct Meter {
    progress: Arc<dyn Progress>,
    state: Arc<MeterState>,
}

struct MeterState {
    total: AtomicU64,
    done: AtomicU64,
}

/// Fewer, larger steps: a gigabyte is some thousand events.
const STEP: u64 = 256 * 1024;

impl Meter {
    pub(crate) fn new(progress: Arc<dyn Progress>, total: u64) -> Self {
        let state = MeterState {
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
        };
        Self {
            progress,
            state: Arc::new(state),
        }
    }

    pub(crate) fn event(&self, event: PullEvent) {
        self.progress.event(event);
    }

    /// The size of what the current source holds.
    pub(crate) fn set_total(&self, total: u64) {
        self.state.total.store(total, Ordering::Relaxed);
    }

    /// `done` bytes are here.
    pub(crate) fn at(&self, done: u64) {
        let total = self.state.total.load(Ordering::Relaxed);
        let done = done.min(total);
        let before = self.state.done.load(Ordering::Relaxed);
        if done < before + STEP && !(done == total && done > before) {
            return;
        }
        let before = self.state.done.fetch_max(done, Ordering::Relaxed);
        if done > before {
            self.event(PullEvent::Bytes { done, total });
        }
    }
}
