//! What a log holds, counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Problems;

/// Places that are listed of what is counted.
const MOST_PLACES: usize = 5;

/// A policy that has written rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Behaviour {
    /// Its name.
    pub policy: String,
    /// Its version.
    pub version: String,
    /// Rows that it chose.
    pub rows: u64,
    /// Least and greatest ε with which it explored.
    pub epsilon: (f64, f64),
}

/// Something counted, with the first rows of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// Segment and line of the first five.
    pub first: Vec<(u64, u64)>,
}

impl Counted {
    pub(crate) fn note(&mut self, place: (u64, u64)) {
        self.count += 1;
        if self.first.len() < MOST_PLACES {
            self.first.push(place);
        }
    }
}

/// What a log holds, and what each estimate made of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogFacts {
    /// Rows that were read.
    pub rows: u64,
    /// Segments with lines that cannot be read, and how many: their decisions and outcomes are missing, and what
    /// that leaves is a gap, a row without an outcome, or a joint decision that is refused.
    pub damaged: Vec<String>,
    /// Rows by `source`. Those of `simulator`, `auto` and `canary` are weighted by what was requested; those of
    /// `explicit`, `rollback` and `guard` are interventions, part of the environment; those of `shadow` and
    /// `proposal` were applied by nobody and are left out.
    pub rows_by_source: BTreeMap<String, u64>,
    /// Rows of policies by `stage`: those of another than `policy` are of what stood in, with its propensity.
    pub rows_by_stage: BTreeMap<String, u64>,
    /// Rows of policies without an outcome, by `outcome_missing`. Their choices count in the weight, their
    /// reward in no mean.
    pub rows_without_outcome: BTreeMap<String, u64>,
    /// Of those, rows whose reward is that of an intervention within their interval.
    pub rewards_of_interventions: Counted,
    /// Heads that had a choice.
    pub choices: u64,
    /// Heads that were forced: they weigh 1.
    pub forced: u64,
    /// Heads that guard or host altered after the draw: weighted by what was drawn.
    pub altered: Counted,
    /// Values of features that were not finite; a model of rewards takes their mean.
    pub values_not_finite: u64,
    /// Rewards that count but were not measured in their interval, as `reward_validity` says.
    pub rewards_not_valid: Counted,
    /// Hosts.
    pub hosts: u64,
    /// Episodes.
    pub episodes: u64,
    /// Joint decisions.
    pub steps: u64,
    /// Joint decisions without any outcome: a window ends before them.
    pub steps_without_reward: Counted,
    /// Joint decisions in whose interval no disk counted: their reward is 0.
    pub steps_idle: u64,
    /// Joint decisions that do not follow within an interval of the one before: a window ends there.
    pub gaps: Counted,
    /// When the first was decided, in microseconds since 1970 UTC.
    pub from_us: Option<i64>,
    /// When the last was decided.
    pub until_us: Option<i64>,
    /// Mean length of an interval in seconds.
    pub interval_s: f64,
    /// Policies that decided, those that stood in left out.
    pub behaviours: Vec<Behaviour>,
    /// Weightings of the reward, as text; the first 16.
    pub reward_weights: Vec<String>,
    /// Mean reward of a joint decision: the behaviour's, undiscounted.
    pub reward_mean: f64,
    #[serde(skip)]
    pub(crate) problems: Problems,
    #[serde(skip)]
    pub(crate) interval_sum_s: f64,
    #[serde(skip)]
    pub(crate) rewards: (f64, u64),
    #[serde(skip)]
    pub(crate) foreign_spec: Option<String>,
}

impl LogFacts {
    /// Rows of policies.
    #[must_use]
    pub fn policy_rows(&self) -> u64 {
        self.rows_by_stage.values().sum()
    }

    pub(crate) fn rows_of(&self, sources: &[&str]) -> u64 {
        let count = |source: &&str| self.rows_by_source.get(*source).copied().unwrap_or(0);
        sources.iter().map(count).sum()
    }

    /// Rows of interventions.
    #[must_use]
    pub fn interventions(&self) -> u64 {
        self.rows_of(&["explicit", "rollback", "guard"])
    }

    /// Rows that nobody applied.
    #[must_use]
    pub fn not_applied(&self) -> u64 {
        self.rows_of(&["shadow", "proposal"])
    }

    pub(crate) fn problem(&mut self, place: (u64, u64), what: impl Into<String>) {
        self.problems.note(Some(place), what);
    }

    pub(crate) fn count(map: &mut BTreeMap<String, u64>, key: &str) {
        match map.get_mut(key) {
            Some(count) => *count += 1,
            None => {
                map.insert(key.to_owned(), 1);
            }
        }
    }
}
