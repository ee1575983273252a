//! When the guests are looked for between two looks at the host: at once when the host says that they have
//! changed, but never for more than a small share of the time, however much happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::handle::Command;

/// What comes in one go is looked at in one go: a guest that starts makes several events.
const SETTLING: Duration = Duration::from_millis(50);
/// The shortest pause after one.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
/// The pause after one is at least this many times as long as it took.
const PAUSE_FACTOR: u32 = 10;
/// Pauses after one that failed, from the first on, doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Rung from any thread when guests may have changed; wakes the owner once, until the owner has seen it.
#[derive(Debug)]
pub(super) struct Bell {
    rung: AtomicBool,
    /// Weak, or an owner whose handles have all gone would wait for this one.
    owner: Weak<SyncSender<Command>>,
}

impl Bell {
    pub(super) fn new(owner: &Arc<SyncSender<Command>>) -> Arc<Self> {
        Arc::new(Self {
            rung: AtomicBool::new(false),
            owner: Arc::downgrade(owner),
        })
    }

    pub(super) fn ring(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(owner) = self.owner.upgrade() {
            // An owner whose queue is full is awake, and asks after each call.
            let _ = owner.try_send(Command::Wake);
        }
    }

    /// Whether it was rung since this was last asked.
    pub(super) fn take(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }
}

/// When the next one is due.
#[derive(Debug)]
pub(super) struct Refresh {
    due: Option<Instant>,
    not_before: Instant,
    retry: Duration,
}

impl Refresh {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            due: None,
            not_before: now,
            retry: FIRST_RETRY,
        }
    }

    /// Something has happened.
    pub(super) fn ask(&mut self, now: Instant) {
        let soon = (now + SETTLING).max(self.not_before);
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// How long until the next one; `None` if none is due.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// One has succeeded, which took that long.
    pub(super) fn done(&mut self, now: Instant, took: Duration) {
        self.due = None;
        self.not_before = now + (took * PAUSE_FACTOR).max(LEAST_PAUSE);
        self.retry = FIRST_RETRY;
    }

    /// One has failed, and is tried again: what it was about is not known yet.
    pub(super) fn failed(&mut self, now: Instant, took: Duration) {
        self.not_before = now + (took * PAUSE_FACTOR).max(self.retry);
        self.due = Some(self.not_before);
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
    }

    /// There is nobody to ask: a new connection begins with all that there is.
    pub(super) fn forget(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, sync_channel};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_storm_of_events_takes_a_small_share_of_the_time_and_the_last_is_not_lost() {
        let start = Instant::now();
        let (mut refresh, mut runs, mut busy) = (Refresh::new(start), 0, Duration::ZERO);
        let took = 200 * MS;
        let mut now = start;
        // An event each millisecond for a minute, of which those while one runs are seen after it.
        while now < start + Duration::from_secs(60) {
            refresh.ask(now);
            now += MS;
            if refresh.wait(now) == Some(Duration::ZERO) {
                now += took;
                refresh.done(now, took);
                (runs, busy) = (runs + 1, busy + took);
            }
        }
        assert!((20..=30).contains(&runs), "{runs}");
        assert!(busy * 10 <= Duration::from_secs(60) + took * 10, "{busy:?}");
        refresh.ask(now);
        assert!(refresh.wait(now).is_some());
        assert_eq!(
            refresh.wait(now + 3 * took * PAUSE_FACTOR),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn one_event_is_seen_to_at_once_and_once() {
        let now = Instant::now();
        let mut refresh = Refresh::new(now);
        assert_eq!(refresh.wait(now), None);
        refresh.ask(now);
        refresh.ask(now + 20 * MS);
        assert_eq!(refresh.wait(now + SETTLING), Some(Duration::ZERO));
        refresh.done(now + SETTLING, MS);
        assert_eq!(refresh.wait(now + SETTLING), None);
        refresh.ask(now + SETTLING);
        assert_eq!(refresh.wait(now + SETTLING), Some(LEAST_PAUSE));
    }

    #[test]
    fn what_fails_is_tried_again_less_and_less_often() {
        let now = Instant::now();
        let mut refresh = Refresh::new(now);
        refresh.ask(now);
        let pauses: Vec<u64> = (0..7)
            .map(|_| {
                refresh.failed(now, MS);
                // An event meanwhile does not hurry it.
                refresh.ask(now);
                refresh.wait(now).unwrap().as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        refresh.done(now, MS);
        assert_eq!(refresh.wait(now), None);
        refresh.failed(now, MS);
        assert_eq!(refresh.wait(now), Some(FIRST_RETRY));
    }

    #[test]
    fn the_owner_is_woken_once_and_its_end_is_not_kept_off() {
        let (commands, inbox) = sync_channel(4);
        let commands = Arc::new(commands);
        let bell = Bell::new(&commands);
        bell.ring();
        bell.ring();
        assert!(matches!(inbox.try_recv(), Ok(Command::Wake)));
        assert!(matches!(inbox.try_recv(), Err(TryRecvError::Empty)));
        assert!(bell.take() && !bell.take());
        bell.ring();
        assert!(matches!(inbox.try_recv(), Ok(Command::Wake)));
        drop(commands);
        bell.take();
        bell.ring();
        assert!(matches!(inbox.try_recv(), Err(TryRecvError::Disconnected)));
    }
}
