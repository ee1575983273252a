//! What keeps a log from being evaluated, and an estimate from being made.

use std::fmt::{self, Display, Formatter};

/// Where in a log something is wrong. All counts begin at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A row of a log or table, without its header.
    Row(usize),
    /// A whole trajectory.
    Trajectory(i64),
    /// A step of a trajectory.
    Step {
        /// Its trajectory.
        trajectory: i64,
        /// Its step.
        step: i64,
    },
    /// A state of a table of a policy.
    State(usize),
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row) => write!(f, "row {row}"),
            Self::Trajectory(trajectory) => write!(f, "trajectory {trajectory}"),
            Self::Step { trajectory, step } => write!(f, "trajectory {trajectory}, step {step}"),
            Self::State(state) => write!(f, "state {state}"),
        }
    }
}

/// Why there is no estimate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpeError {
    /// There is nothing to evaluate.
    #[error("{what}: no rows; an evaluation needs at least one")]
    Empty {
        /// The log.
        what: &'static str,
    },
    /// Columns of one log differ in length.
    #[error("row {}: {field} has {found} values where the log has {expected} rows", found.min(expected))]
    Length {
        /// The column.
        field: String,
        /// Values it has.
        found: usize,
        /// Rows of the log.
        expected: usize,
    },
    /// A value that cannot be.
    #[error("{place}: {field} = {value} {rule}")]
    Value {
        /// Where.
        place: Place,
        /// The column.
        field: String,
        /// What stands there.
        value: String,
        /// What must hold, and the way out.
        rule: &'static str,
    },
    /// Probabilities of one row that do not sum to 1.
    #[error("{place}: {field} sums to {sum}, not to 1 within {tolerance:e}: give the probabilities under the mask", tolerance = super::SUM_TOLERANCE)]
    Sum {
        /// Where.
        place: Place,
        /// The distribution.
        field: String,
        /// Its sum.
        sum: f64,
    },
    /// Too few units for what was asked.
    #[error("{what} needs at least {needed} units, and there are {found}")]
    TooFew {
        /// What was asked.
        what: &'static str,
        /// Units it needs.
        needed: usize,
        /// Units there are.
        found: usize,
    },
    /// The evaluation policy plays no logged action.
    #[error(
        "undefined: no overlap: {what} sums weights that are all 0; log with more exploration, or estimate by a model (dm, fqe)"
    )]
    NoOverlap {
        /// The estimator.
        what: &'static str,
    },
    /// A weight that f64 does not hold.
    #[error(
        "overflow: trajectory {trajectory}: {what} is about 1e{log10:.0}, beyond f64; use a self-normalised estimator, or a shorter horizon"
    )]
    Overflow {
        /// The trajectory, from 0.
        trajectory: usize,
        /// What overflows.
        what: &'static str,
        /// Its decimal logarithm.
        log10: f64,
    },
    /// An option of an estimator or interval out of its range.
    #[error("{what} = {value} {rule}")]
    Setting {
        /// The option.
        what: &'static str,
        /// What it is.
        value: f64,
        /// What must hold.
        rule: &'static str,
    },
    /// A system of equations without one solution.
    #[error("{what} has no unique solution: {hint}")]
    Singular {
        /// The system.
        what: &'static str,
        /// The way out.
        hint: &'static str,
    },
}

impl OpeError {
    /// A value that breaks a rule.
    pub(super) fn value(
        place: Place,
        field: impl Into<String>,
        value: impl Display,
        rule: &'static str,
    ) -> Self {
        Self::Value {
            place,
            field: field.into(),
            value: value.to_string(),
            rule,
        }
    }
}

/// Checks that a column has as many values as the log has rows.
pub(super) fn check_length(field: &str, found: usize, expected: usize) -> Result<(), OpeError> {
    if found == expected {
        return Ok(());
    }
    let field = field.to_owned();
    Err(OpeError::Length {
        field,
        found,
        expected,
    })
}

/// Checks one propensity.
#[inline]
pub(super) fn check_propensity(place: Place, field: &str, value: f64) -> Result<(), OpeError> {
    if value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    Err(OpeError::value(
        place,
        field,
        value,
        "must be in (0, 1]: the probability, not its logarithm or a density, with which the logged action was drawn",
    ))
}

/// Checks that a number is one.
#[inline]
pub(super) fn check_finite(place: Place, field: &str, value: f64) -> Result<(), OpeError> {
    if value.is_finite() {
        return Ok(());
    }
    Err(OpeError::value(
        place,
        field,
        value,
        "must be a finite number: a row without one cannot be evaluated",
    ))
}

/// Checks one distribution: probabilities that sum to 1, and none where the mask forbids.
#[inline]
pub(super) fn check_distribution(
    place: Place,
    field: &str,
    probabilities: &[f64],
    mask: Option<&[bool]>,
) -> Result<(), OpeError> {
    let mut sum = 0.0;
    let mut all_inside = true;
    for &p in probabilities {
        sum += p;
        all_inside &= (0.0..=1.0).contains(&p);
    }
    if !all_inside {
        return Err(outside(place, field, probabilities));
    }
    if (sum - 1.0).abs() > super::SUM_TOLERANCE {
        let field = field.to_owned();
        return Err(OpeError::Sum { place, field, sum });
    }
    let Some(mask) = mask else { return Ok(()) };
    let forbidden = |(level, &p): (usize, &f64)| (p > 0.0 && !mask[level]).then_some(level);
    match probabilities.iter().enumerate().find_map(forbidden) {
        None => Ok(()),
        Some(level) => Err(OpeError::value(
            place,
            format!("{field}[{level}]"),
            probabilities[level],
            "must be 0: the mask forbids this action",
        )),
    }
}

#[cold]
fn outside(place: Place, field: &str, probabilities: &[f64]) -> OpeError {
    let wrong = probabilities
        .iter()
        .position(|p| !(0.0..=1.0).contains(p))
        .expect("one was found outside");
    let field = format!("{field}[{wrong}]");
    OpeError::value(place, field, probabilities[wrong], "must be in [0, 1]")
}
