//! Time as an argument: the core never reads a clock, whoever drives it passes one in.

use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A monotonic clock that can also wait.
pub trait Clock: Send {
    /// Time since a fixed, arbitrary origin (the boot of the host on a live host).
    fn now(&self) -> Duration;
    /// Returns when `now()` is at least `deadline`.
    fn wait_until(&self, deadline: Duration);
}

/// A clock that moves only when it is told to, or when somebody waits on it.
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    now: Arc<Mutex<Duration>>,
}

impl ManualClock {
    /// Moves the clock forward by `span`.
    pub fn advance(&self, span: Duration) {
        *self.lock() += span;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.now
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.lock()
    }

    fn wait_until(&self, deadline: Duration) {
        let mut now = self.lock();
        *now = (*now).max(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_moves_a_manual_clock_forward_and_never_back() {
        let clock = ManualClock::default();
        clock.wait_until(Duration::from_secs(2));
        clock.wait_until(Duration::from_secs(1));
        assert_eq!(clock.now(), Duration::from_secs(2));
        clock.advance(Duration::from_millis(5));
        assert_eq!(clock.now(), Duration::from_millis(2005));
    }
}
