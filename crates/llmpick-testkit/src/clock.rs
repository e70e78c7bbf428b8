//! Time that moves only when a test says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock that stands still until [`advance`](Self::advance). Share it in an `Arc`.
#[derive(Debug, Default)]
pub struct ManualClock {
    nanos: AtomicU64,
    unix_start_ms: u64,
}

impl ManualClock {
    /// A clock at zero, on 2026-01-01 UTC.
    pub fn new() -> Self {
        Self::starting_at(1_767_225_600_000)
    }

    /// A clock at zero, at this many milliseconds since 1970-01-01 UTC.
    pub fn starting_at(unix_ms: u64) -> Self {
        Self {
            nanos: AtomicU64::new(0),
            unix_start_ms: unix_ms,
        }
    }

    /// Moves time on.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub fn unix_ms(&self) -> u64 {
        self.unix_start_ms + self.now().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_only_when_told() {
        let clock = ManualClock::starting_at(1_000);
        assert_eq!((clock.now(), clock.unix_ms()), (Duration::ZERO, 1_000));
        clock.advance(Duration::from_millis(1_500));
        assert_eq!(clock.unix_ms(), 2_500);
        assert_eq!(clock.now(), Duration::from_millis(1_500));
    }
}
