//! A level that did harm stays closed for a while, and for longer each time it does harm again.
//!
//! Without it a policy that always chooses the worst would be let try again after every dwell, for ever.
//! With it a level of a disk that is undone for the n-th time is closed for `retry · 2^(n−1)`, at most
//! `longest_retry`; each `longest_retry` that it has been open without another undo takes one from n.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::spec::Level;

/// Doublings beyond which a pause is the longest one whatever its start.
const MOST_DOUBLINGS: u32 = 31;

/// For how long a level that did harm stays closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// After the first time.
    pub retry: Duration,
    /// At most.
    pub longest_retry: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(600),
            longest_retry: Duration::from_secs(24 * 3600),
        }
    }
}

impl BackoffConfig {
    /// For how long a level is closed when it is undone for the `count`-th time, ≥ 1.
    #[must_use]
    pub fn pause(&self, count: u32) -> Duration {
        let doublings = count.saturating_sub(1).min(MOST_DOUBLINGS);
        self.retry
            .saturating_mul(1 << doublings)
            .min(self.longest_retry)
    }
}

#[derive(Debug, Clone, Copy)]
struct Closure {
    /// How often it was undone, less what was forgiven.
    count: u32,
    until: Duration,
}

/// The levels of one host that did harm, by disk and head.
#[derive(Debug)]
pub struct LevelBackoff {
    config: BackoffConfig,
    closures: BTreeMap<String, BTreeMap<(usize, Level), Closure>>,
}

impl LevelBackoff {
    /// Nothing has done harm yet.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        Self {
            config,
            closures: BTreeMap::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set_config(&mut self, config: BackoffConfig) {
        self.config = config;
    }

    /// The levels of a disk that are closed, as head and level.
    pub fn closed(&self, now: Duration, disk: &str) -> impl Iterator<Item = (usize, Level)> {
        let closures = self.closures.get(disk).into_iter().flatten();
        closures
            .filter(move |(_, closure)| now < closure.until)
            .map(|(cell, _)| *cell)
    }

    /// Notes that a level was undone. What has been forgiven altogether is forgotten.
    pub fn note_undone(&mut self, now: Duration, disk: &str, head: usize, level: Level) {
        let config = self.config;
        let count = |closure: &Closure| forgiven(&config, now, closure);
        for closures in self.closures.values_mut() {
            closures.retain(|_, closure| count(closure) > 0);
        }
        self.closures.retain(|_, closures| !closures.is_empty());
        let closures = self.closures.entry(disk.to_owned()).or_default();
        let count = closures.get(&(head, level)).map_or(0, count) + 1;
        let until = now.saturating_add(config.pause(count));
        closures.insert((head, level), Closure { count, until });
    }
}

/// The count of a closure after what the time since has forgiven.
fn forgiven(config: &BackoffConfig, now: Duration, closure: &Closure) -> u32 {
    let open_s = now.saturating_sub(closure.until).as_secs_f64();
    let times = open_s / config.longest_retry.as_secs_f64().max(1e-9);
    // Saturates, and a count is small.
    closure.count.saturating_sub(times as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn backoff() -> LevelBackoff {
        LevelBackoff::new(BackoffConfig {
            retry: s(10),
            longest_retry: s(35),
        })
    }

    fn is_closed(backoff: &LevelBackoff, at: u64) -> bool {
        backoff.closed(s(at), "a/vda").any(|cell| cell == (0, 3))
    }

    #[test]
    fn each_time_it_stays_closed_for_twice_as_long_up_to_a_limit() {
        let mut backoff = backoff();
        let mut at = 0;
        for pause in [10, 20, 35, 35] {
            backoff.note_undone(s(at), "a/vda", 0, 3);
            assert!(is_closed(&backoff, at + pause - 1), "{pause}");
            at += pause;
            assert!(!is_closed(&backoff, at), "{pause}");
        }
        assert_eq!(backoff.closed(s(at - 1), "a/vda").count(), 1);
        assert_eq!(backoff.closed(s(at - 1), "b/vda").count(), 0);
    }

    #[test]
    fn the_longest_pause_without_another_forgives_one() {
        let mut backoff = backoff();
        for at in [0, 10, 30] {
            backoff.note_undone(s(at), "a/vda", 0, 3);
        }
        // Open since 65; after another 2 × 35 one of three is left, so that this is the second.
        backoff.note_undone(s(65 + 70), "a/vda", 0, 3);
        assert!(is_closed(&backoff, 135 + 19));
        assert!(!is_closed(&backoff, 135 + 20));
    }

    #[test]
    fn what_is_forgiven_altogether_is_forgotten() {
        let mut backoff = backoff();
        backoff.note_undone(s(0), "a/vda", 0, 3);
        backoff.note_undone(s(1000), "b/vda", 0, 3);
        assert_eq!(backoff.closures.len(), 1);
    }
}
