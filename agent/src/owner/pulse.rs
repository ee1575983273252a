//! Whether the owner of a host still comes round: it says when it will again, and whoever feeds a watchdog
//! looks whether it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Beaten by the owner each time that it comes round.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    beats: AtomicU64,
    /// Milliseconds from `start` on.
    due_ms: AtomicU64,
}

impl Pulse {
    pub(crate) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            start: now,
            beats: AtomicU64::new(0),
            due_ms: AtomicU64::new(0),
        })
    }

    /// The owner is awake, and means to be again by `due`.
    pub(crate) fn beat(&self, due: Instant) {
        let due = due.saturating_duration_since(self.start);
        self.due_ms.store(due.as_millis() as u64, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Release);
    }
}

/// Judges a pulse from one look at it to the next.
#[derive(Debug)]
pub struct PulseWatch {
    pulse: Arc<Pulse>,
    seen: u64,
}

impl PulseWatch {
    /// Of an owner, from now on.
    #[must_use]
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self { pulse, seen: 0 }
    }

    /// Whether the owner has come round since the last look, or is not due yet. One that is late each time
    /// but goes on is alive.
    pub fn is_alive(&mut self, now: Instant) -> bool {
        let beats = self.pulse.beats.load(Ordering::Acquire);
        let has_beaten = std::mem::replace(&mut self.seen, beats) != beats;
        let due = Duration::from_millis(self.pulse.due_ms.load(Ordering::Relaxed));
        has_beaten || now <= self.pulse.start + due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn an_owner_is_alive_while_it_beats_or_is_not_due() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        let mut watch = PulseWatch::new(Arc::clone(&pulse));
        pulse.beat(start + 2 * S);
        assert!(watch.is_alive(start));
        assert!(watch.is_alive(start + 2 * S), "it sleeps until it is due");
        assert!(!watch.is_alive(start + 3 * S), "it has not come back");
        assert!(!watch.is_alive(start + 4 * S));
        // Later than it said, but it goes on.
        pulse.beat(start + 5 * S);
        assert!(watch.is_alive(start + 9 * S));
        assert!(!watch.is_alive(start + 10 * S));
    }

    #[test]
    fn an_owner_that_never_began_is_not_alive() {
        let start = Instant::now();
        let mut watch = PulseWatch::new(Pulse::new(start));
        assert!(!watch.is_alive(start + S));
    }
}
