//! Learning from decision logs: a log's rows as a learner's data, and what the log says of the policy that wrote it.

mod report;

use std::path::{Path, PathBuf};

use blkpilot_env::EnvSpec;
use blkpilot_evaluate::{EvaluateError, History, HistoryRow, HistoryStep, MOST_HISTORY_ROWS};
use blkpilot_learn::LearnError;
use blkpilot_learn::offline::{Builder, Dataset, Joint, Logged};
use blkpilot_models::Statistics;

use crate::LabError;

pub use report::{Behaviour, Estimate, Evaluated, LearntFrom, evaluated};

/// A log that has been read.
#[derive(Debug)]
pub struct ReadLog {
    /// Where it is.
    pub dir: PathBuf,
    /// What a learner learns from.
    pub data: Dataset,
    /// What the policy that wrote it earned.
    pub behaviour: Behaviour,
}

/// Reads the log in `dir`, or in the data directory that `dir` is, which must be of this spec.
///
/// # Errors
/// `Logged` with what is wrong with the log, `Learn` if nothing can be learnt from it.
pub fn read(dir: &Path, spec: &EnvSpec) -> Result<ReadLog, LabError> {
    let dir = &blkpilot_log::locate(dir);
    let history = History::read(dir, spec, MOST_HISTORY_ROWS, &mut |_| ())
        .map_err(|source| unusable(dir, source))?;
    Ok(ReadLog {
        dir: dir.to_owned(),
        data: dataset(&history)?,
        behaviour: Behaviour::of(&history),
    })
}

fn unusable(dir: &Path, source: EvaluateError) -> LabError {
    LabError::Logged {
        dir: dir.to_owned(),
        source: Box::new(source),
    }
}

fn dataset(history: &History) -> Result<Dataset, LearnError> {
    let mut statistics = Statistics::new(history.spec());
    let rows = history.steps().flat_map(|step| step.rows());
    for row in rows {
        statistics.observe(&row.turn.view());
    }
    let mut builder = Builder::new(history.spec(), statistics)?;
    for step in history.steps() {
        push(&mut builder, &step);
    }
    builder.build(history.digest.clone())
}

fn push(builder: &mut Builder, step: &HistoryStep<'_>) {
    let rows: Vec<HistoryRow<'_>> = step.rows().collect();
    let joint = Joint {
        host: step.host,
        follows: step.follows,
        has_terminated: step.has_terminated,
    };
    let turns = rows.iter().map(|row| Logged {
        view: row.turn.view(),
        disk: row.subject,
        levels: &row.levels,
        propensities: &row.propensities,
        reward: row.outcome.map(|outcome| outcome.total as f32),
    });
    builder.push(joint, turns);
}
