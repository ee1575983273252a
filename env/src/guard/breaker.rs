//! Stops all changes for a while after too many went wrong, in three named phases.

use std::collections::VecDeque;
use std::time::Duration;

/// When changes stop, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures within `within` that stop changes, ≥ 1.
    pub failures: u32,
    /// The time in which they count.
    pub within: Duration,
    /// How long changes stop; doubled when the first change afterwards fails too.
    pub pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 3,
            within: Duration::from_secs(600),
            pause: Duration::from_secs(300),
            longest_pause: Duration::from_secs(3600),
        }
    }
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Changes are made.
    Closed,
    /// No changes are made before `until`.
    Open {
        /// Time at which changes are tried again.
        until: Duration,
    },
    /// Changes are made again, but the next failure opens it at once.
    HalfOpen,
}

/// A circuit breaker over the changes of one host.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    failures: VecDeque<Duration>,
    /// Set while it is not simply closed.
    opened: Option<Opened>,
}

#[derive(Debug, Clone, Copy)]
struct Opened {
    until: Duration,
    pause: Duration,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            failures: VecDeque::new(),
            opened: None,
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set_config(&mut self, config: BreakerConfig) {
        self.config = config;
    }

    /// Where it stands. Half open it closes by itself when `within` has passed without a failure.
    #[must_use]
    pub fn phase(&self, now: Duration) -> Phase {
        match self.opened {
            Some(Opened { until, .. }) if now < until => Phase::Open { until },
            Some(Opened { until, .. }) if now - until < self.config.within => Phase::HalfOpen,
            _ => Phase::Closed,
        }
    }

    /// Whether no changes may be made.
    #[must_use]
    pub fn is_open(&self, now: Duration) -> bool {
        matches!(self.phase(now), Phase::Open { .. })
    }

    /// Notes a change that failed, or did harm.
    pub fn note_failure(&mut self, now: Duration) {
        match (self.phase(now), self.opened) {
            // What was under way when it opened is no news.
            (Phase::Open { .. }, _) => {}
            (Phase::HalfOpen, Some(opened)) => {
                let pause = (opened.pause * 2).min(self.config.longest_pause);
                self.open(now, pause);
            }
            _ => {
                self.opened = None;
                let within = self.config.within;
                self.failures.retain(|at| now.saturating_sub(*at) < within);
                self.failures.push_back(now);
                if self.failures.len() >= self.config.failures.max(1) as usize {
                    self.open(now, self.config.pause);
                }
            }
        }
    }

    fn open(&mut self, now: Duration, pause: Duration) {
        self.failures.clear();
        self.opened = Some(Opened {
            until: now + pause,
            pause,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn breaker() -> Breaker {
        Breaker::new(BreakerConfig {
            failures: 2,
            within: s(100),
            pause: s(10),
            longest_pause: s(35),
        })
    }

    #[test]
    fn failures_far_apart_never_open_it() {
        let mut breaker = breaker();
        for at in [0, 100, 200, 300] {
            breaker.note_failure(s(at));
            assert_eq!(breaker.phase(s(at)), Phase::Closed);
        }
    }

    #[test]
    fn it_opens_tries_again_and_pauses_longer_when_that_fails() {
        let mut breaker = breaker();
        breaker.note_failure(s(0));
        breaker.note_failure(s(1));
        assert_eq!(breaker.phase(s(1)), Phase::Open { until: s(11) });
        breaker.note_failure(s(2));
        assert_eq!(breaker.phase(s(10)), Phase::Open { until: s(11) });
        assert_eq!(breaker.phase(s(11)), Phase::HalfOpen);
        breaker.note_failure(s(12));
        assert_eq!(breaker.phase(s(12)), Phase::Open { until: s(32) });
        breaker.note_failure(s(33));
        assert_eq!(
            breaker.phase(s(33)),
            Phase::Open { until: s(68) },
            "35 s at most"
        );
    }

    #[test]
    fn it_closes_when_nothing_fails_for_a_while() {
        let mut breaker = breaker();
        breaker.note_failure(s(0));
        breaker.note_failure(s(0));
        assert_eq!(breaker.phase(s(109)), Phase::HalfOpen);
        assert_eq!(breaker.phase(s(110)), Phase::Closed);
        breaker.note_failure(s(111));
        assert_eq!(
            breaker.phase(s(111)),
            Phase::Closed,
            "one failure is not two"
        );
    }
}
