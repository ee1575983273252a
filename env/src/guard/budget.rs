//! How soon and how often settings may be changed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Dwell per disk and head, and a rate over the host: at most so many changes in any minute.
#[derive(Debug)]
pub struct ChangeBudget {
    dwell: Duration,
    changes_per_minute: usize,
    /// When each head of each disk was last changed.
    changed_at: BTreeMap<(String, usize), Duration>,
    /// When the last changes were made, oldest first; at most `changes_per_minute` of them.
    recent: VecDeque<Duration>,
}

impl ChangeBudget {
    /// `changes_per_minute` ≥ 1.
    #[must_use]
    pub fn new(dwell: Duration, changes_per_minute: u32) -> Self {
        let changes_per_minute = changes_per_minute.max(1) as usize;
        Self {
            dwell,
            changes_per_minute,
            changed_at: BTreeMap::new(),
            recent: VecDeque::with_capacity(changes_per_minute),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set(&mut self, dwell: Duration, changes_per_minute: u32) {
        self.dwell = dwell;
        self.changes_per_minute = changes_per_minute.max(1) as usize;
    }

    /// Whether a head was changed too recently to be changed again.
    #[must_use]
    pub fn dwells(&self, now: Duration, disk: &str, head: usize) -> bool {
        !self.dwell_left(now, disk, head).is_zero()
    }

    /// For how long still a head may not be changed.
    #[must_use]
    pub fn dwell_left(&self, now: Duration, disk: &str, head: usize) -> Duration {
        let changed_at = self.changed_at.get(&(disk.to_owned(), head));
        changed_at.map_or(Duration::ZERO, |at| (*at + self.dwell).saturating_sub(now))
    }

    /// Most disks that may be changed in a minute.
    #[must_use]
    pub fn most(&self) -> usize {
        self.changes_per_minute
    }

    /// How many disks may be changed now.
    #[must_use]
    pub fn left(&self, now: Duration) -> usize {
        let is_recent = |at: &&Duration| now.saturating_sub(**at) < MINUTE;
        // There may be more, from before a reload that allows fewer.
        let count = self.recent.iter().filter(is_recent).count();
        self.changes_per_minute.saturating_sub(count)
    }

    /// Whether as many disks were changed in the last minute as may be.
    #[must_use]
    pub fn is_spent(&self, now: Duration) -> bool {
        self.left(now) == 0
    }

    /// Time until `disks` more may be changed: as many as may be at most.
    #[must_use]
    pub fn wait(&self, now: Duration, disks: usize) -> Duration {
        let missing = disks.min(self.changes_per_minute) as i64 - self.left(now) as i64;
        let Ok(missing @ 1..) = usize::try_from(missing) else {
            return Duration::ZERO;
        };
        let is_recent = |at: &&Duration| now.saturating_sub(**at) < MINUTE;
        let recent = self.recent.iter().filter(is_recent).nth(missing - 1);
        recent.map_or(Duration::ZERO, |at| (*at + MINUTE).saturating_sub(now))
    }

    /// Notes a change of some heads of one disk.
    pub fn note(&mut self, now: Duration, disk: &str, heads: &[usize]) {
        let dwell = self.dwell;
        self.changed_at
            .retain(|_, at| now.saturating_sub(*at) < dwell);
        for head in heads {
            self.changed_at.insert((disk.to_owned(), *head), now);
        }
        while self.recent.len() >= self.changes_per_minute {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_dwells_and_no_other_does() {
        let mut budget = ChangeBudget::new(Duration::from_secs(30), 10);
        budget.note(Duration::from_secs(5), "a/vda", &[1]);
        let dwells = |at, disk, head| budget.dwells(Duration::from_secs(at), disk, head);
        assert!(dwells(34, "a/vda", 1));
        assert!(!dwells(35, "a/vda", 1));
        assert!(!dwells(6, "a/vda", 0));
        assert!(!dwells(6, "b/vda", 1));
    }

    #[test]
    fn a_rate_that_is_set_anew_counts_what_was_changed_before() {
        let s = Duration::from_secs;
        let mut budget = ChangeBudget::new(s(30), 10);
        (0..5).for_each(|at| budget.note(s(at), "a/vda", &[0]));
        budget.set(s(30), 3);
        assert!(budget.is_spent(s(5)));
        // Those of 0 to 3 s are a minute old.
        assert_eq!(budget.left(s(63)), 2);
        budget.set(s(1), 10);
        assert_eq!(budget.left(s(5)), 5);
        assert!(!budget.dwells(s(5), "a/vda", 0));
    }

    proptest! {
        /// Whoever asks before each change never makes more in any minute than may be, and is let
        /// again as soon as a minute has passed since the change that is one too many.
        #[test]
        fn no_minute_has_more_changes_than_may_be(
            most in 1_u32..6,
            gaps_ms in proptest::collection::vec(0_u64..40_000, 1..80),
        ) {
            let mut budget = ChangeBudget::new(Duration::ZERO, most);
            let (mut now, mut made) = (Duration::ZERO, Vec::<Duration>::new());
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                let in_last_minute = made.iter().filter(|at| now - **at < MINUTE).count();
                prop_assert_eq!(budget.left(now), (most as usize).saturating_sub(in_last_minute));
                prop_assert_eq!(budget.is_spent(now), in_last_minute >= most as usize);
                // It says when it lets again, neither sooner nor later.
                let wait = budget.wait(now, 1);
                prop_assert!(!budget.is_spent(now + wait));
                prop_assert!(wait.is_zero() || budget.is_spent(now + wait - Duration::from_nanos(1)));
                if !budget.is_spent(now) {
                    budget.note(now, "a/vda", &[0]);
                    made.push(now);
                }
            }
        }
    }
}
