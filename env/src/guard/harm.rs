//! What had to be put back of one policy's changes: too much of it, and the policy itself is what is wrong.

use std::collections::VecDeque;
use std::time::Duration;

/// How much of a policy's changes may have to be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HarmLimits {
    /// Changes within `within` that are too many, ≥ 1.
    pub changes: u32,
    /// The time in which they count.
    pub within: Duration,
}

impl Default for HarmLimits {
    /// Three within an hour: with the other defaults one disk alone reaches them, though a level that was undone is
    /// closed for 10 minutes and then for 20.
    fn default() -> Self {
        Self {
            changes: 3,
            within: Duration::from_secs(3600),
        }
    }
}

/// What was put back of one policy's changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HarmRecord {
    /// When, as far as it counts.
    at: VecDeque<Duration>,
    verdict: Option<String>,
}

impl HarmRecord {
    /// Notes that a change was put back; `what` says of which disk, and why.
    pub fn note(&mut self, now: Duration, limits: &HarmLimits, what: &str) {
        self.at.push_back(now);
        let is_old = |at: &Duration| now.saturating_sub(*at) > limits.within;
        while self.at.front().is_some_and(is_old) {
            self.at.pop_front();
        }
        if self.at.len() >= limits.changes as usize {
            let (count, within) = (self.at.len(), limits.within.as_secs_f64());
            self.verdict = Some(format!(
                "the guard put back {count} of its changes within {within} s, the last on {what}"
            ));
            self.at.clear();
        }
    }

    /// Why it was too much; `None` while it was not.
    #[must_use]
    pub fn verdict(&self) -> Option<&str> {
        self.verdict.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_within_the_time_are_too_much_and_older_ones_do_not_count() {
        let limits = HarmLimits {
            changes: 2,
            within: Duration::from_secs(10),
        };
        let mut record = HarmRecord::default();
        let mut put_back = |at| {
            record.note(Duration::from_secs(at), &limits, "vm/vda: slower");
            record.verdict().map(str::to_owned)
        };
        assert_eq!((put_back(0), put_back(20)), (None, None));
        let verdict = put_back(29).unwrap();
        assert!(
            verdict.contains("2 of its changes within 10 s"),
            "{verdict}"
        );
        assert!(verdict.ends_with("vm/vda: slower"), "{verdict}");
    }
}
