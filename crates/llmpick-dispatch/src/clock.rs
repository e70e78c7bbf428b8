//! Time, handed in: a test, the simulator and a replay all see the same world.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where dispatch gets the time from.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970-01-01 UTC, for the ledger and for budget windows.
    fn unix_ms(&self) -> u64;

    /// Time since some fixed moment, never going back, for measuring.
    fn monotonic(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
