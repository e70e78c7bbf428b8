//! Looking on while routers play: how far they are, on how many threads, and the wish to stop.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::PlayError;

/// So many rounds pass between two looks at the wish to stop.
const STRIDE: u32 = 64;

/// Shared by whoever plays and whoever looks on. Neither it nor the number of threads changes
/// any figure.
#[derive(Debug)]
pub struct Watch {
    rounds: AtomicU64,
    stopped: AtomicBool,
    threads: NonZeroUsize,
}

impl Watch {
    /// Runs go on so many threads at once; `None` takes the machine's cores.
    pub fn new(threads: Option<NonZeroUsize>) -> Self {
        let cores = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            rounds: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            threads: threads.unwrap_or_else(cores),
        }
    }

    /// Rounds played so far, over all runs (to the nearest few).
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Asks every run to end with [`PlayError::Stopped`].
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    pub(crate) fn pace(&self) -> Pace<'_> {
        Pace {
            watch: self,
            unreported: 0,
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new(None)
    }
}

/// One run's link to the watch.
pub(crate) struct Pace<'a> {
    watch: &'a Watch,
    unreported: u32,
}

impl Pace<'_> {
    /// One more round.
    pub(crate) fn step(&mut self) -> Result<(), PlayError> {
        self.unreported += 1;
        if self.unreported < STRIDE {
            return Ok(());
        }
        self.report();
        match self.watch.stopped.load(Ordering::Relaxed) {
            true => Err(PlayError::Stopped),
            false => Ok(()),
        }
    }

    fn report(&mut self) {
        let rounds = u64::from(std::mem::take(&mut self.unreported));
        self.watch.rounds.fetch_add(rounds, Ordering::Relaxed);
    }
}

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        self.report();
    }
}
