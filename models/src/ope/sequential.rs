//! Evaluation of sequences of decisions.
//!
//! [`Steps`] are checked columns of trajectories: a ratio, a reward and a model's values per step. On them
//! stand the estimators by weights. [`TabularLog`] are trajectories over states and actions with numbers,
//! which give [`Steps`] for a [`Policy`] and a model, and on which the estimators by model stand:
//! [`fqe`], [`marginal`], [`mrdr`]. [`linear`] is the model of features.

mod estimators;
pub mod fqe;
pub mod linear;
mod log;
pub mod magic;
pub mod marginal;
pub mod mrdr;
mod self_normalised;
mod stream;

pub use estimators::Cap;
pub use log::{Policy, QTable, Rows, Shape, TabularLog};
pub use magic::Magic;
pub use self_normalised::StepWeights;
pub use stream::PerDecisionStream;

use std::ops::Range;

use super::error::{OpeError, Place, check_finite, check_length};
use super::scaled::Scaled;

/// Columns of trajectories that follow one another, one row per step.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    offsets: Vec<usize>,
    horizon: usize,
    gamma: f64,
    /// Evaluation probability over propensity.
    ratio: Vec<f64>,
    reward: Vec<f64>,
    /// What the model expects of the logged action.
    q: Vec<f64>,
    /// What it expects of the evaluation policy.
    v: Vec<f64>,
}

/// The columns of [`Steps`], all in the order of the rows.
#[derive(Debug, Clone, PartialEq)]
pub struct StepColumns {
    /// Evaluation probability over propensity: finite, not negative.
    pub ratio: Vec<f64>,
    /// Reward.
    pub reward: Vec<f64>,
    /// q̂ of the logged action at its state (and step, if the model has them).
    pub q: Vec<f64>,
    /// `Σ_a pie(a) q̂(a)` at the same state.
    pub v: Vec<f64>,
}

impl Steps {
    /// Trajectories of these `lengths`, at least one step and at most `horizon` each: one that is shorter
    /// has terminated. `gamma` in [0, 1] discounts from the second reward on.
    ///
    /// # Errors
    /// `Empty`, `Length`, `Setting` for gamma or horizon, `Value` for a length or a value that is not
    /// finite, with its trajectory and step.
    pub fn new(
        lengths: &[usize],
        horizon: usize,
        gamma: f64,
        columns: StepColumns,
    ) -> Result<Self, OpeError> {
        check_setting(horizon, gamma)?;
        if lengths.is_empty() {
            return Err(OpeError::Empty {
                what: "the log of trajectories",
            });
        }
        let mut offsets = Vec::with_capacity(lengths.len() + 1);
        offsets.push(0);
        for (i, &length) in lengths.iter().enumerate() {
            if length == 0 || length > horizon {
                let rule = "must be at least 1 and at most the horizon";
                let place = Place::Trajectory(i as i64);
                return Err(OpeError::value(place, "number of steps", length, rule));
            }
            offsets.push(offsets[i] + length);
        }
        let StepColumns {
            ratio,
            reward,
            q,
            v,
        } = columns;
        let steps = Self {
            offsets,
            horizon,
            gamma,
            ratio,
            reward,
            q,
            v,
        };
        steps.check()?;
        Ok(steps)
    }

    fn check(&self) -> Result<(), OpeError> {
        let rows = self.offsets[self.trajectories()];
        let columns = [
            ("ratio", &self.ratio),
            ("reward", &self.reward),
            ("q_hat", &self.q),
            ("value", &self.v),
        ];
        for (field, column) in columns {
            check_length(field, column.len(), rows)?;
            if let Some(row) = column.iter().position(|x| !x.is_finite()) {
                check_finite(self.place(row), field, column[row])?;
            }
        }
        match self.ratio.iter().position(|x| *x < 0.0) {
            None => Ok(()),
            Some(row) => {
                let rule = "must not be negative";
                Err(OpeError::value(
                    self.place(row),
                    "ratio",
                    self.ratio[row],
                    rule,
                ))
            }
        }
    }

    fn place(&self, row: usize) -> Place {
        let trajectory = self.offsets.partition_point(|offset| *offset <= row) - 1;
        Place::Step {
            trajectory: trajectory as i64,
            step: (row - self.offsets[trajectory]) as i64,
        }
    }

    /// Trajectories.
    #[must_use]
    pub fn trajectories(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Steps until the end of time.
    #[must_use]
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// The discount factor.
    #[must_use]
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    fn rows_of(&self, trajectory: usize) -> Range<usize> {
        self.offsets[trajectory]..self.offsets[trajectory + 1]
    }

    /// Steps of a trajectory in turn, each with the weights before and after it.
    fn walk(&self, trajectory: usize) -> impl Iterator<Item = Step> {
        let mut before = Scaled::ONE;
        self.rows_of(trajectory).enumerate().map(move |(t, row)| {
            let now = before.times(self.ratio[row]);
            let step = Step {
                t,
                row,
                before,
                now,
            };
            before = now;
            step
        })
    }

    /// `gamma^t` for each step of the horizon.
    fn discounts(&self) -> Vec<f64> {
        discounts(self.gamma, self.horizon)
    }
}

/// A step on a walk.
#[derive(Debug, Clone, Copy)]
struct Step {
    t: usize,
    row: usize,
    /// Weight of the actions before this one.
    before: Scaled,
    /// Weight with this one.
    now: Scaled,
}

fn discounts(gamma: f64, horizon: usize) -> Vec<f64> {
    let next = |discount: &f64| Some(discount * gamma);
    std::iter::successors(Some(1.0), next)
        .take(horizon)
        .collect()
}

fn check_setting(horizon: usize, gamma: f64) -> Result<(), OpeError> {
    let refuse = |what, value, rule| Err(OpeError::Setting { what, value, rule });
    if horizon == 0 {
        return refuse("horizon", 0.0, "must be at least 1");
    }
    if !(0.0..=1.0).contains(&gamma) {
        return refuse("gamma", gamma, "must be in [0, 1]");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
