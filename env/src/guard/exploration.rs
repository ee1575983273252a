//! How much a guest may be explored, and when it may not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::stall::is_silent;
use crate::window::{DiskRow, HostWindow};

const HOUR: Duration = Duration::from_secs(3600);

/// Greatest budget: one change per second.
pub const MOST_CHANGES_PER_HOUR: u32 = 3600;

/// How much a guest is explored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exploration {
    /// Probability with which a head's level is drawn from all that are allowed instead of by the
    /// policy, in [0, 1]. 0 is no exploration.
    pub epsilon: f64,
    /// Most changes that explored draws may make in any hour, at most [`MOST_CHANGES_PER_HOUR`]. A
    /// change is that of one disk, or of all on its IOThread, in one decision.
    pub changes_per_hour: u32,
}

impl Exploration {
    /// What is wrong with the values, if anything is: the key, and what it must be.
    ///
    /// # Errors
    /// The key and its range.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(0.0..=1.0).contains(&self.epsilon) {
            let problem = format!("= {} must be in [0, 1]", self.epsilon);
            return Err(("epsilon", problem));
        }
        if self.changes_per_hour > MOST_CHANGES_PER_HOUR {
            let problem = format!(
                "= {} must be in [0, {MOST_CHANGES_PER_HOUR}]",
                self.changes_per_hour
            );
            return Err(("changes_per_hour", problem));
        }
        Ok(())
    }
}

/// A text that says no exploration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{text}\": {problem}: write it as epsilon=0.05 changes_per_hour=6")]
pub struct NotExploration {
    text: String,
    problem: String,
}

/// As it stands in a guest's metadata: `epsilon=0.05 changes_per_hour=6`.
impl FromStr for Exploration {
    type Err = NotExploration;

    fn from_str(text: &str) -> Result<Self, NotExploration> {
        let wrong = |problem: String| NotExploration {
            text: text.to_owned(),
            problem,
        };
        let (mut epsilon, mut changes) = (None, None);
        for word in text.split_whitespace() {
            let is_new = match word.split_once('=') {
                Some(("epsilon", value)) => {
                    let value = value.parse().map_err(|_| wrong(format!("`{word}`")))?;
                    epsilon.replace(value).is_none()
                }
                Some(("changes_per_hour", value)) => {
                    let value = value.parse().map_err(|_| wrong(format!("`{word}`")))?;
                    changes.replace(value).is_none()
                }
                _ => return Err(wrong(format!("`{word}`"))),
            };
            if !is_new {
                return Err(wrong(format!("`{word}` comes second")));
            }
        }
        let exploration = Self {
            epsilon: epsilon.ok_or_else(|| wrong("epsilon is missing".to_owned()))?,
            changes_per_hour: changes
                .ok_or_else(|| wrong("changes_per_hour is missing".to_owned()))?,
        };
        exploration
            .check()
            .map_err(|(key, problem)| wrong(format!("{key} {problem}")))?;
        Ok(exploration)
    }
}

/// The changes that explored draws have made, guest by guest, over the last hour.
#[derive(Debug, Default)]
pub struct ExplorationBudget {
    made: BTreeMap<String, VecDeque<Duration>>,
}

impl ExplorationBudget {
    /// Changes that explored draws may still make on a guest.
    #[must_use]
    pub fn left(&self, now: Duration, guest: &str, exploration: &Exploration) -> u32 {
        let made = self.made.get(guest).into_iter().flatten();
        let recent = made.filter(|at| now.saturating_sub(**at) < HOUR).count();
        let recent = u32::try_from(recent).unwrap_or(u32::MAX);
        exploration.changes_per_hour.saturating_sub(recent)
    }

    /// Notes a change. Those older than an hour are forgotten.
    pub fn note(&mut self, now: Duration, guest: &str) {
        for made in self.made.values_mut() {
            made.retain(|at| now.saturating_sub(*at) < HOUR);
        }
        self.made.retain(|_, made| !made.is_empty());
        self.made
            .entry(guest.to_owned())
            .or_default()
            .push_back(now);
    }
}

/// Why a disk is not explored now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrest {
    /// Changes are stopped.
    BreakerOpen,
    /// Its last change is still being judged.
    OnTrial,
    /// Its p99 was above the objective in the last window, or could not be measured there.
    Objective,
    /// Requests were in flight in the last window and none completed.
    Stalled,
    /// The last window did not show it.
    Unseen,
}

impl fmt::Display for Unrest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BreakerOpen => "too many changes went wrong, so changes are stopped for a while",
            Self::OnTrial => "its last change is still being judged",
            Self::Objective => "its p99 is not known to be within its objective",
            Self::Stalled => "requests are in flight and none completes",
            Self::Unseen => "the last window did not show it",
        })
    }
}

/// What the last window showed of each disk.
#[derive(Debug)]
pub(super) struct Calm {
    p99_objective_us: Option<f64>,
    seen: BTreeSet<String>,
    missed: BTreeSet<String>,
    silent: BTreeSet<String>,
}

impl Calm {
    pub(super) fn new(p99_objective_us: Option<f64>) -> Self {
        Self {
            p99_objective_us,
            seen: BTreeSet::new(),
            missed: BTreeSet::new(),
            silent: BTreeSet::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set(&mut self, p99_objective_us: Option<f64>) {
        if self.p99_objective_us != p99_objective_us {
            self.missed.clear();
        }
        self.p99_objective_us = p99_objective_us;
    }

    pub(super) fn observe(&mut self, window: &HostWindow) {
        let ids = |is_it: &dyn Fn(&DiskRow) -> bool| -> BTreeSet<String> {
            let rows = window.disks.iter().filter(|row| is_it(row));
            rows.map(|row| row.id.clone()).collect()
        };
        self.seen = ids(&|_| true);
        self.missed = ids(&|row| self.misses_objective(row));
        self.silent = ids(&is_silent);
    }

    /// An idle disk misses nothing.
    fn misses_objective(&self, row: &DiskRow) -> bool {
        let Some(objective_us) = self.p99_objective_us else {
            return false;
        };
        let is_idle = row.did.iops == Ok(0.0) && !is_silent(row);
        let is_met = row.did.latency_us_p99.is_ok_and(|us| us <= objective_us);
        !is_idle && !is_met
    }

    pub(super) fn unrest(&self, disk: &str) -> Option<Unrest> {
        if !self.seen.contains(disk) {
            Some(Unrest::Unseen)
        } else if self.silent.contains(disk) {
            Some(Unrest::Stalled)
        } else if self.missed.contains(disk) {
            Some(Unrest::Objective)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIX: Exploration = Exploration {
        epsilon: 0.05,
        changes_per_hour: 6,
    };

    #[test]
    fn it_is_read_as_it_stands_in_metadata_and_nothing_else_is() {
        assert_eq!("epsilon=0.05 changes_per_hour=6".parse(), Ok(SIX));
        assert_eq!(" changes_per_hour=6  epsilon=0.05".parse(), Ok(SIX));
        for (wrong, named) in [
            ("", "epsilon is missing"),
            ("0.05", "`0.05`"),
            ("epsilon=0.1", "changes_per_hour is missing"),
            ("epsilon=1.1 changes_per_hour=6", "in [0, 1]"),
            ("epsilon=NaN changes_per_hour=6", "in [0, 1]"),
            ("epsilon=0.1 changes_per_hour=-1", "`changes_per_hour=-1`"),
            ("epsilon=0.1 changes_per_hour=9999", "in [0, 3600]"),
            ("epsilon=0.1 epsilon=0.2 changes_per_hour=6", "second"),
            ("epsilon=0.1 changes_per_hour=6 more=1", "`more=1`"),
        ] {
            let refused = wrong.parse::<Exploration>().unwrap_err().to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }

    #[test]
    fn a_budget_is_a_guests_own_and_comes_back_an_hour_after_each_change() {
        let mut budget = ExplorationBudget::default();
        let at = |minutes: u64| Duration::from_secs(60 * minutes);
        for minutes in 0..6 {
            assert_eq!(budget.left(at(minutes), "a", &SIX), 6 - minutes as u32);
            budget.note(at(minutes), "a");
        }
        assert_eq!(budget.left(at(59), "a", &SIX), 0);
        assert_eq!(budget.left(at(59), "b", &SIX), 6);
        assert_eq!(budget.left(at(60), "a", &SIX), 1);
        assert_eq!(budget.left(at(62), "a", &SIX), 3);
        budget.note(at(200), "b");
        assert_eq!(budget.made.len(), 1, "what is over is forgotten");
    }
}
