//! Assignment accuracy: the share of decisions that were correct.
//!
//! A decision is one active disk's head choices in one interval. It is correct if changing it alone
//! would gain at most the tolerance, a share of the range of the state (best minus random value of the
//! phase vector); change cost counts as it does for the oracle. States whose range is below ε are left
//! out and counted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::OracleError;
use super::planner::Planner;
use super::record::{Record, Records};
use super::regret::Estimate;
use super::study::{Progress, StudyError, StudyOptions, go_on};
use crate::bootstrap::ci95_of;

/// Decisions of one policy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Share of correct decisions; `None` if none was judged.
    pub correct: Option<Estimate>,
    /// Decisions judged.
    pub judged: usize,
    /// Decisions left out because their state's range is below ε.
    pub left_out: usize,
}

/// Correct, judged and left-out decisions of one episode.
pub(super) type Tally = [usize; 3];

/// Tallies per episode, by policy.
pub(super) fn judge_all(
    planner: &mut Planner,
    records: &Records,
    options: &StudyOptions,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<BTreeMap<String, Vec<Tally>>, StudyError> {
    let mut by_policy = BTreeMap::new();
    for (done, (name, episodes)) in records.iter().enumerate() {
        let mut tallies = Vec::with_capacity(episodes.len());
        for record in episodes {
            tallies.push(judge(planner, record, options)?);
            go_on(watch(Progress::Judged(done, records.len())))?;
        }
        by_policy.insert(name.clone(), tallies);
    }
    Ok(by_policy)
}

fn judge(
    planner: &mut Planner,
    record: &Record,
    options: &StudyOptions,
) -> Result<Tally, OracleError> {
    let mut tally = [0; 3];
    for (moment, chosen) in &record.decided {
        let disks = planner.values().active_disks(&moment.phases);
        if disks.is_empty() {
            continue;
        }
        let known = planner.know(&moment.phases)?;
        let range = known.best() - known.random;
        if range < options.epsilon {
            tally[2] += disks.len();
            continue;
        }
        for disk in disks {
            if !planner.has_choice(disk) {
                continue;
            }
            let gain = planner.gain_alone(moment, chosen, disk)?;
            tally[0] += usize::from(gain <= options.tolerance * range);
            tally[1] += 1;
        }
    }
    Ok(tally)
}

pub(super) fn accuracy(tallies: &[Tally]) -> Accuracy {
    let sum = |column: usize| tallies.iter().map(|tally| tally[column]).sum::<usize>();
    let share = |drawn: &[usize]| {
        let of = |column: usize| drawn.iter().map(|i| tallies[*i][column]).sum::<usize>() as f64;
        of(0) / of(1).max(1.0)
    };
    let all: Vec<usize> = (0..tallies.len()).collect();
    Accuracy {
        correct: (sum(1) > 0).then(|| Estimate {
            value: share(&all),
            ci95: ci95_of(&[tallies.len()], |drawn| share(&drawn[0])),
        }),
        judged: sum(1),
        left_out: sum(2),
    }
}
