//! When to try again what a disk has refused.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::journal::GuestLife;

/// After the first attempt; doubled after each.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
struct Attempt {
    next_at: Duration,
    pause: Duration,
}

/// Attempts at one thing, by a disk of a guest's life.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<(GuestLife, String), Attempt>);

impl Attempts {
    /// Whether it is time for one, which counts as made then.
    pub(super) fn is_due(&mut self, now: Duration, life: &GuestLife, target: &str) -> bool {
        let key = (life.clone(), target.to_owned());
        let pause = match self.0.get(&key) {
            None => FIRST_PAUSE,
            Some(attempt) if now < attempt.next_at => return false,
            Some(attempt) => (attempt.pause * 2).min(LONGEST_PAUSE),
        };
        let next_at = now + pause;
        self.0.insert(key, Attempt { next_at, pause });
        true
    }

    /// The last one was enough.
    pub(super) fn succeeded(&mut self, life: &GuestLife, target: &str) {
        if let Some(attempt) = self.0.get_mut(&(life.clone(), target.to_owned())) {
            attempt.next_at = Duration::MAX;
        }
    }

    /// Forgets the disks that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&GuestLife, &str) -> bool) {
        self.0.retain(|(life, target), _| is_there(life, target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_twice_as_long_up_to_an_hour() {
        let life = GuestLife {
            boot_id: "b".to_owned(),
            uuid: "u".to_owned(),
            qemu_started_ticks: 7,
        };
        let mut attempts = Attempts::default();
        let is_due = |attempts: &mut Attempts, at: u64| {
            attempts.is_due(Duration::from_secs(at), &life, "vda")
        };
        let mut at = 0;
        for pause in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            assert!(is_due(&mut attempts, at), "{pause}");
            at += pause;
            assert!(!is_due(&mut attempts, at - 1), "{pause}");
        }
        attempts.succeeded(&life, "vda");
        assert!(!is_due(&mut attempts, u64::from(u32::MAX)));
        attempts.retain(|_, _| false);
        assert!(is_due(&mut attempts, at), "a new disk of that name");
    }
}
