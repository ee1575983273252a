//! A log held in memory as it was read: what offline learners go over many times.
//!
//! Unlike a [`Sample`](crate::Sample) it is not cut into windows and knows no policy that is evaluated: it has every
//! joint decision that was applied, each row with what came of it.

use std::path::Path;

use blkpilot_env::{EnvSpec, Level};
use sha2::{Digest as _, Sha256};

use crate::error::EvaluateError;
use crate::facts::LogFacts;
use crate::features::Features;
use crate::options::{Mixed, Options};
use crate::read::{Sink, Step, walk};
use crate::step::{HostStep, Row};
use crate::target::LoggedTurn;

/// Rows of decisions that a history holds at most: of a host with four channels about 700 MB.
pub const MOST_HISTORY_ROWS: usize = 1_000_000;

/// The joint decisions of a log, in the order of each host.
#[derive(Debug)]
pub struct History {
    spec: EnvSpec,
    steps: Vec<Kept>,
    /// What the log holds.
    pub facts: LogFacts,
    /// SHA-256, in hex, of all that learning takes from the log: two logs that have the same say the same.
    pub digest: String,
}

#[derive(Debug)]
struct Kept {
    step: HostStep,
    follows: bool,
}

/// A joint decision.
#[derive(Debug, Clone, Copy)]
pub struct HistoryStep<'a> {
    step: &'a HostStep,
    spec: &'a EnvSpec,
    /// Number of its host, from 0.
    pub host: usize,
    /// Its episode.
    pub episode: u128,
    /// When it was decided, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// It follows the one before of this host within its episode and without a gap.
    pub follows: bool,
    /// Nothing follows it: the episode ended here in a terminal state.
    pub has_terminated: bool,
    /// Mean own reward over the disks that count; 0 where none does, `None` where no outcome is known.
    pub reward: Option<f64>,
    /// Disks that count.
    pub counted: u32,
}

/// A row of a joint decision.
#[derive(Debug)]
pub struct HistoryRow<'a> {
    /// What was seen; all of it finite: means stand for what was not.
    pub turn: LoggedTurn<'a>,
    /// Number of its disk or device on its host, the same in all its rows.
    pub subject: u32,
    /// The levels that were requested, one per head. What guard or host made of them is part of the environment.
    pub levels: Vec<Level>,
    /// With which probability each was drawn, in (0, 1]; 1 where it was forced.
    pub propensities: Vec<f64>,
    /// What came of it, where that is known.
    pub outcome: Option<RowOutcome>,
}

/// What came of a row of a disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowOutcome {
    /// Training reward: (1 − β)·own + β·mean of own over the host.
    pub total: f64,
    /// Own part.
    pub own: f64,
    /// Whether the disk counts: an idle one does not, and has reward 0.
    pub counted: bool,
}

impl History {
    /// Reads a log, which must be of this spec, whole. `progress` is told how many rows have been read.
    ///
    /// Several policies may have written it: each row has its own propensity, and learners from a log want variety.
    /// Several weightings of the reward may not.
    ///
    /// # Errors
    /// `ForeignLog`, `Problems`, `NoOutcomes`, `Empty`, `SeveralRewards`, `TooLong`, `Log`.
    pub fn read(
        log: &Path,
        spec: &EnvSpec,
        most_rows: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, EvaluateError> {
        let mut keeping = Keeping {
            features: Features::new(spec),
            steps: vec![],
            rows: 0,
            most_rows,
        };
        let options = Options {
            mixed: Mixed::Admitted,
            ..Options::default()
        };
        let mut told = |rows| {
            progress(rows);
            Ok(())
        };
        let mut facts = walk(log, &options, spec, &mut told, &mut keeping)?;
        check(spec, &mut facts, &keeping.steps)?;
        let Keeping {
            mut features,
            mut steps,
            ..
        } = keeping;
        features.settle();
        let mut hash = Sha256::new();
        hash.update(spec.hash());
        for kept in &mut steps {
            features.fill(&mut kept.step);
            digest(kept, &mut hash);
        }
        Ok(Self {
            spec: spec.clone(),
            steps,
            facts,
            digest: format!("{:x}", hash.finalize()),
        })
    }

    /// Of the log.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// The joint decisions; those of each host are in order, and those of several may lie between each other.
    pub fn steps(&self) -> impl Iterator<Item = HistoryStep<'_>> {
        self.steps.iter().map(|Kept { step, follows }| HistoryStep {
            step,
            spec: &self.spec,
            host: step.host,
            episode: step.episode,
            at_us: step.at_us,
            follows: *follows,
            has_terminated: step.has_terminated(),
            reward: step.reward(),
            counted: step.counted().0,
        })
    }
}

impl<'a> HistoryStep<'a> {
    /// Its rows, in turn.
    pub fn rows(&self) -> impl Iterator<Item = HistoryRow<'a>> + use<'a> {
        let (step, spec) = (self.step, self.spec);
        let rows = step.rows.iter().enumerate();
        rows.map(move |(number, row)| {
            let heads = step.heads_of(row);
            HistoryRow {
                turn: step.turn(number, spec),
                subject: row.subject,
                levels: heads.iter().map(|head| head.requested).collect(),
                propensities: heads.iter().map(|head| head.propensity).collect(),
                outcome: outcome(row),
            }
        })
    }
}

/// Of a disk; a device has no reward.
fn outcome(row: &Row) -> Option<RowOutcome> {
    let outcome = row.outcome.filter(|_| row.is_disk)?;
    let of = |value: f64| if outcome.counted { value } else { 0.0 };
    Some(RowOutcome {
        total: of(outcome.total),
        own: of(outcome.own),
        counted: outcome.counted,
    })
}

/// The pass over a log that keeps it.
struct Keeping {
    features: Features,
    steps: Vec<Kept>,
    rows: usize,
    most_rows: usize,
}

impl Sink for Keeping {
    fn take(&mut self, taken: &Step<'_>) -> Result<(), EvaluateError> {
        let (step, most) = (taken.step, self.most_rows);
        self.rows += step.rows.len();
        if self.rows > most {
            return Err(EvaluateError::TooLong { most });
        }
        // A row that is wrong has no heads, and the log is refused for it at the end.
        for row in step.rows.iter().filter(|row| row.heads.len() > 0) {
            self.features.note(step, row);
        }
        self.steps.push(Kept {
            step: step.only(0..step.rows.len()),
            follows: taken.follows,
        });
        Ok(())
    }
}

fn check(spec: &EnvSpec, facts: &mut LogFacts, steps: &[Kept]) -> Result<(), EvaluateError> {
    if let Some(found) = &facts.foreign_spec {
        let first = facts.problems.first.first();
        return Err(EvaluateError::ForeignLog {
            name: spec.name.clone(),
            wanted: spec.hash(),
            found: found.clone(),
            difference: first.map_or_else(
                || "heads, levels and numbers of features agree, so that a feature has another name, unit or scale".to_owned(),
                ToString::to_string,
            ),
        });
    }
    for row in steps.iter().flat_map(|kept| &kept.step.rows) {
        if outcome(row).is_some_and(|outcome| !outcome.total.is_finite()) {
            let what = "reward_total is missing or not finite: learning needs the training reward";
            facts.problem(row.place, what);
        }
    }
    if !facts.problems.is_empty() {
        let problems = facts.problems.clone();
        return Err(EvaluateError::Problems { problems });
    }
    if facts.steps == 0 {
        return Err(EvaluateError::Empty {
            rows: facts.rows,
            left_out: facts.not_applied(),
        });
    }
    if facts.rewards.1 == 0 {
        return Err(EvaluateError::NoOutcomes { rows: facts.rows });
    }
    if let [first, second, ..] = facts.reward_weights.as_slice() {
        return Err(EvaluateError::SeveralRewards {
            ways: facts.reward_weights.len(),
            first: first.clone(),
            second: second.clone(),
        });
    }
    Ok(())
}

/// Takes in all that learning looks at.
fn digest(kept: &Kept, hash: &mut Sha256) {
    let Kept { step, follows } = kept;
    hash.update((step.host as u64).to_le_bytes());
    hash.update(step.episode.to_le_bytes());
    hash.update(step.at_us.to_le_bytes());
    hash.update([u8::from(*follows), u8::from(step.has_terminated())]);
    for value in &step.values {
        hash.update(value.to_bits().to_le_bytes());
    }
    for (head, previous) in step.heads.iter().zip(&step.previous) {
        hash.update(head.requested.to_le_bytes());
        hash.update(previous.to_le_bytes());
        hash.update(head.propensity.to_bits().to_le_bytes());
    }
    for reason in &step.masks {
        hash.update([u8::from(reason.is_allowed())]);
    }
    for row in &step.rows {
        hash.update(row.subject.to_le_bytes());
        if let Some(outcome) = outcome(row) {
            hash.update(outcome.total.to_bits().to_le_bytes());
            hash.update(outcome.own.to_bits().to_le_bytes());
        }
        hash.update([u8::from(row.outcome.is_some())]);
    }
}
