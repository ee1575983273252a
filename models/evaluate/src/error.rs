//! What keeps a log from being evaluated.

use std::fmt;

use blkpilot_log::LogError;
use blkpilot_models::PolicyError;
use blkpilot_models::ope::OpeError;
use serde::{Deserialize, Serialize};

/// Problems that are listed; more are counted.
pub const MOST_PROBLEMS: usize = 20;

/// Something wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The row: its segment and line, as in the columns of these names; `None` of what is no row.
    pub row: Option<(u64, u64)>,
    /// What is wrong with it, and what must hold.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            Some((segment, line)) => {
                write!(f, "segment {segment}, line {line}: {}", self.what)
            }
            None => f.write_str(&self.what),
        }
    }
}

/// All that is wrong: the first of them, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Problems {
    /// The first [`MOST_PROBLEMS`].
    pub first: Vec<Problem>,
    /// All of them.
    pub count: u64,
}

impl Problems {
    pub(crate) fn note(&mut self, row: Option<(u64, u64)>, what: impl Into<String>) {
        self.count += 1;
        if self.first.len() < MOST_PROBLEMS {
            let what = what.into();
            self.first.push(Problem { row, what });
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.first.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        match self.count - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// Why there is no evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// Whoever asked for it no longer wants it.
    #[error("it was stopped before it was done")]
    Stopped,
    /// The log cannot be found or opened.
    #[error("{source}")]
    Log {
        /// What is wrong with it.
        #[source]
        source: LogError,
    },
    /// Rows or files that cannot be evaluated. None is dropped: what is wrong has to be repaired, or moved away.
    #[error("{} of this log cannot be evaluated, and nothing is dropped in silence:\n{problems}", things(problems.count))]
    Problems {
        /// All of them.
        problems: Problems,
    },
    /// There is no decision of a policy in it.
    #[error(
        "the log has no decision of a policy that was applied ({rows} rows, {left_out} of them shadows and proposals): run a policy in mode auto or canary, or write a log of a simulated host"
    )]
    Empty {
        /// Rows that were read.
        rows: u64,
        /// Of them, what nobody applied.
        left_out: u64,
    },
    /// More than one policy, or one under several rewards, has written the log.
    #[error(
        "{what}: name a time or policy for which there is one, or admit it with --mixed: each row has its own propensity"
    )]
    Mixed {
        /// What there are several of.
        what: String,
    },
    /// The policy is for another environment.
    #[error(
        "the policy `{policy}` is for spec {wanted}, the log's rows are of {found}: evaluate a policy of that spec"
    )]
    Spec {
        /// Name of the policy.
        policy: String,
        /// Hash of its spec.
        wanted: String,
        /// Hash in the log.
        found: String,
    },
    /// The log is of another environment than what is to be learnt.
    #[error(
        "the log's rows are of spec {found}, and `{name}` is {wanted}: {difference}; learn for the environment that the log was written in, or log anew"
    )]
    ForeignLog {
        /// Name of the spec that was asked for.
        name: String,
        /// Its hash.
        wanted: String,
        /// Hash in the log.
        found: String,
        /// In what they differ.
        difference: String,
    },
    /// There is nothing to learn from: no decision has an outcome.
    #[error(
        "none of the log's {rows} rows has an outcome: what was decided in it is known, what came of it is not; log for longer than an interval, or take a log of which the service has written the outcomes"
    )]
    NoOutcomes {
        /// Rows that were read.
        rows: u64,
    },
    /// What is to be learnt is not one thing.
    #[error(
        "the reward was weighted in {ways} ways, such as `{first}` and `{second}`, and what is to be learnt must be one: keep a log for each weighting, or cut it by time"
    )]
    SeveralRewards {
        /// Weightings that were told apart.
        ways: usize,
        /// One of them.
        first: String,
        /// Another.
        second: String,
    },
    /// More rows than may be held.
    #[error(
        "the log has more than {most} rows, and all are held in memory: learn from a part of it, by time or host"
    )]
    TooLong {
        /// Rows that may be held.
        most: usize,
    },
    /// The policy cannot decide on a row that was decided.
    #[error("segment {}, line {}: the policy `{policy}` cannot decide: {source}", row.0, row.1)]
    Policy {
        /// The row, by segment and line.
        row: (u64, u64),
        /// Name of the policy.
        policy: String,
        /// Why not.
        #[source]
        source: Box<PolicyError>,
    },
    /// What the policy gave are no probabilities.
    #[error("segment {}, line {}: the policy `{policy}` gives {problem}", row.0, row.1)]
    Improper {
        /// The row, by segment and line.
        row: (u64, u64),
        /// Name of the policy.
        policy: String,
        /// What is wrong.
        problem: String,
    },
    /// A disk cannot be taken for itself.
    #[error("--exposure disk: {why}: use --exposure host")]
    Exposure {
        /// Why not.
        why: String,
    },
    /// An option out of its range.
    #[error("{what} = {value} {rule}")]
    Option {
        /// The option.
        what: &'static str,
        /// What it is.
        value: f64,
        /// What must hold.
        rule: &'static str,
    },
    /// A number that is none.
    #[error("{source}")]
    Estimate {
        /// What is wrong.
        #[source]
        source: OpeError,
    },
}

fn things(count: u64) -> String {
    if count == 1 {
        "1 thing".to_owned()
    } else {
        format!("{count} things")
    }
}

impl From<OpeError> for EvaluateError {
    fn from(source: OpeError) -> Self {
        Self::Estimate { source }
    }
}
