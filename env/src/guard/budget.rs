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

    /// Whether a head was changed too recently to be changed again.
    #[must_use]
    pub fn dwells(&self, now: Duration, disk: &str, head: usize) -> bool {
        let changed_at = self.changed_at.get(&(disk.to_owned(), head));
        changed_at.is_some_and(|at| now.saturating_sub(*at) < self.dwell)
    }

    /// Whether as many disks were changed in the last minute as may be.
    #[must_use]
    pub fn is_spent(&self, now: Duration) -> bool {
        self.recent.len() == self.changes_per_minute
            && self
                .recent
                .front()
                .is_some_and(|oldest| now.saturating_sub(*oldest) < MINUTE)
    }

    /// Notes a change of some heads of one disk.
    pub fn note(&mut self, now: Duration, disk: &str, heads: &[usize]) {
        let dwell = self.dwell;
        self.changed_at
            .retain(|_, at| now.saturating_sub(*at) < dwell);
        for head in heads {
            self.changed_at.insert((disk.to_owned(), *head), now);
        }
        if self.recent.len() == self.changes_per_minute {
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
                prop_assert_eq!(budget.is_spent(now), in_last_minute >= most as usize);
                if !budget.is_spent(now) {
                    budget.note(now, "a/vda", &[0]);
                    made.push(now);
                }
            }
        }
    }
}
