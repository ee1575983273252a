//! Trajectories over states and actions with numbers, and policies over them.

use std::ops::Range;

use super::fqe::Transition;
use super::{StepColumns, Steps, check_setting};
use crate::ope::error::{
    OpeError, Place, check_distribution, check_finite, check_length, check_propensity,
};

/// How many of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// States.
    pub states: usize,
    /// Actions in each.
    pub actions: usize,
    /// Steps until the end of time.
    pub horizon: usize,
}

/// Columns of a log, one row per step, in any order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Which trajectory.
    pub trajectory: Vec<i64>,
    /// Which step of it, from 0.
    pub step: Vec<i64>,
    /// State in which was decided.
    pub state: Vec<i64>,
    /// What was done.
    pub action: Vec<i64>,
    /// What it brought.
    pub reward: Vec<f64>,
    /// State that followed; −1 after termination.
    pub next_state: Vec<i64>,
    /// Whether the episode ended of itself.
    pub terminated: Vec<bool>,
    /// Whether it was cut off.
    pub truncated: Vec<bool>,
    /// Probability with which the action was drawn.
    pub pscore: Vec<f64>,
}

/// A policy: a distribution over actions per state.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    actions: usize,
    probabilities: Vec<f64>,
}

impl Policy {
    /// `probabilities` `[states × actions]`, rows of sum 1. `name` is for messages.
    ///
    /// # Errors
    /// `Length`; `Value` and `Sum` with the state.
    pub fn new(name: &str, probabilities: Vec<f64>, shape: &Shape) -> Result<Self, OpeError> {
        let field = format!("policy {name}");
        check_length(&field, probabilities.len(), shape.states * shape.actions)?;
        for (state, row) in probabilities.chunks(shape.actions).enumerate() {
            check_distribution(Place::State(state), &field, row, None)?;
        }
        Ok(Self {
            actions: shape.actions,
            probabilities,
        })
    }

    /// Probabilities of a state.
    #[must_use]
    pub fn at(&self, state: usize) -> &[f64] {
        &self.probabilities[state * self.actions..(state + 1) * self.actions]
    }
}

/// What a model expects of each action in each state, in reward units.
#[derive(Debug, Clone, PartialEq)]
pub struct QTable {
    actions: usize,
    values: Vec<f64>,
}

impl QTable {
    /// `values` `[states × actions]`. `name` is for messages.
    ///
    /// # Errors
    /// `Length`; `Value` with the state where one is not finite.
    pub fn new(name: &str, values: Vec<f64>, shape: &Shape) -> Result<Self, OpeError> {
        let field = format!("q_hat of {name}");
        check_length(&field, values.len(), shape.states * shape.actions)?;
        for (i, value) in values.iter().enumerate() {
            check_finite(Place::State(i / shape.actions), &field, *value)?;
        }
        let actions = shape.actions;
        Ok(Self { actions, values })
    }

    /// Values of a state.
    #[must_use]
    pub fn at(&self, state: usize) -> &[f64] {
        &self.values[state * self.actions..(state + 1) * self.actions]
    }

    /// `Σ_a policy(a) q(state, a)`.
    #[must_use]
    pub fn value(&self, policy: &Policy, state: usize) -> f64 {
        let terms = policy.at(state).iter().zip(self.at(state));
        terms.map(|(p, q)| p * q).sum()
    }
}

/// A checked log of trajectories, each from step 0 without gaps to termination or the horizon.
#[derive(Debug, Clone, PartialEq)]
pub struct TabularLog {
    pub(super) shape: Shape,
    pub(super) lengths: Vec<usize>,
    pub(super) state: Vec<usize>,
    pub(super) action: Vec<usize>,
    pub(super) reward: Vec<f64>,
    /// `None` after termination.
    pub(super) next_state: Vec<Option<usize>>,
    pub(super) pscore: Vec<f64>,
}

impl TabularLog {
    /// Takes a log in, rows of a trajectory in order of its steps, trajectories in order of their numbers.
    ///
    /// # Errors
    /// The first thing that is wrong, with its trajectory and step: `Empty`, `Length`; `Value` for a value out of
    /// range, a step that is missing or there twice, a next state that is not the state of the next step,
    /// steps after the end, a trajectory that neither terminates nor reaches the horizon.
    pub fn new(rows: &Rows, shape: Shape) -> Result<Self, OpeError> {
        check_setting(shape.horizon, 0.0)?;
        rows.check_lengths()?;
        let order = rows.order();
        let mut log = Self {
            shape,
            lengths: vec![],
            state: Vec::with_capacity(order.len()),
            action: Vec::with_capacity(order.len()),
            reward: Vec::with_capacity(order.len()),
            next_state: Vec::with_capacity(order.len()),
            pscore: Vec::with_capacity(order.len()),
        };
        for trajectory in order.chunk_by(|a, b| rows.trajectory[*a] == rows.trajectory[*b]) {
            rows.check_trajectory(trajectory, &shape)?;
            log.lengths.push(trajectory.len());
            for &row in trajectory {
                log.state.push(rows.state[row] as usize);
                log.action.push(rows.action[row] as usize);
                log.reward.push(rows.reward[row]);
                log.pscore.push(rows.pscore[row]);
                let next = (!rows.terminated[row]).then(|| rows.next_state[row] as usize);
                log.next_state.push(next);
            }
        }
        Ok(log)
    }

    /// How many of what.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Steps of all trajectories.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.state.len()
    }

    /// Number of steps of each trajectory.
    #[must_use]
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Smallest propensity.
    #[must_use]
    pub fn least_propensity(&self) -> f64 {
        self.pscore.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// States in which was decided, one per row.
    #[must_use]
    pub fn states(&self) -> &[usize] {
        &self.state
    }

    /// First state of each trajectory.
    pub fn first_states(&self) -> impl Iterator<Item = usize> {
        let mut begin = 0;
        self.lengths.iter().map(move |length| {
            let state = self.state[begin];
            begin += length;
            state
        })
    }

    /// Rows of each trajectory.
    pub(super) fn trajectories(&self) -> Vec<Range<usize>> {
        let mut begin = 0;
        let rows = |length: &usize| {
            let rows = begin..begin + length;
            begin = rows.end;
            rows
        };
        self.lengths.iter().map(rows).collect()
    }

    pub(super) fn transition(&self, row: usize) -> Transition {
        Transition {
            state: self.state[row],
            action: self.action[row],
            reward: self.reward[row],
            next_state: self.next_state[row],
        }
    }

    /// The columns that weights and a model of `policy` make.
    ///
    /// # Errors
    /// `Setting` for gamma; `Value` where a ratio is beyond f64.
    pub fn steps(&self, policy: &Policy, model: &QTable, gamma: f64) -> Result<Steps, OpeError> {
        let cells = self.state.iter().zip(&self.action);
        let q = cells.map(|(state, action)| model.at(*state)[*action]);
        let v = self.state.iter().map(|state| model.value(policy, *state));
        self.steps_with(policy, q.collect(), v.collect(), gamma)
    }

    /// As `steps`, with the model's values row by row.
    pub(super) fn steps_with(
        &self,
        policy: &Policy,
        q: Vec<f64>,
        v: Vec<f64>,
        gamma: f64,
    ) -> Result<Steps, OpeError> {
        let columns = StepColumns {
            ratio: self.ratios(policy).collect(),
            reward: self.reward.clone(),
            q,
            v,
        };
        Steps::new(&self.lengths, self.shape.horizon, gamma, columns)
    }

    pub(super) fn ratios(&self, policy: &Policy) -> impl Iterator<Item = f64> {
        let cells = self.state.iter().zip(&self.action).zip(&self.pscore);
        cells.map(|((state, action), pscore)| policy.at(*state)[*action] / pscore)
    }
}

impl Rows {
    fn check_lengths(&self) -> Result<(), OpeError> {
        let rows = self.trajectory.len();
        let columns = [
            ("step", self.step.len()),
            ("state", self.state.len()),
            ("action", self.action.len()),
            ("reward", self.reward.len()),
            ("next_state", self.next_state.len()),
            ("terminated", self.terminated.len()),
            ("truncated", self.truncated.len()),
            ("pscore", self.pscore.len()),
        ];
        for (field, found) in columns {
            check_length(field, found, rows)?;
        }
        if rows == 0 {
            return Err(OpeError::Empty {
                what: "the log of trajectories",
            });
        }
        Ok(())
    }

    /// Rows by trajectory and step.
    fn order(&self) -> Vec<usize> {
        let key = |row: &usize| (self.trajectory[*row], self.step[*row]);
        let mut order: Vec<usize> = (0..self.trajectory.len()).collect();
        if !order.is_sorted_by_key(key) {
            order.sort_by_key(key);
        }
        order
    }

    fn check_trajectory(&self, rows: &[usize], shape: &Shape) -> Result<(), OpeError> {
        for (t, &row) in rows.iter().enumerate() {
            self.check_step(row, t as i64)?;
            self.check_row(row, shape)?;
            let next = rows.get(t + 1).copied();
            match next {
                Some(next) if self.step[next] == self.step[row] => {
                    self.check_step(next, t as i64 + 1)?;
                }
                Some(next) => self.check_transition(row, next)?,
                None => self.check_end(row, rows.len(), shape)?,
            }
        }
        Ok(())
    }

    fn place(&self, row: usize) -> Place {
        Place::Step {
            trajectory: self.trajectory[row],
            step: self.step[row],
        }
    }

    fn check_step(&self, row: usize, expected: i64) -> Result<(), OpeError> {
        let step = self.step[row];
        if step == expected {
            return Ok(());
        }
        let rule = match () {
            () if step < expected && step >= 0 => "is there twice: a step has one row",
            () if step < 0 => "must not be negative",
            () => "comes where an earlier step is missing: steps count from 0 without gaps",
        };
        Err(OpeError::value(self.place(row), "step", step, rule))
    }

    fn check_row(&self, row: usize, shape: &Shape) -> Result<(), OpeError> {
        let place = self.place(row);
        let below = |field, value: i64, count: usize, rule| {
            let inside = usize::try_from(value).is_ok_and(|value| value < count);
            if inside {
                return Ok(());
            }
            Err(OpeError::value(place, field, value, rule))
        };
        below(
            "state",
            self.state[row],
            shape.states,
            "must be below the number of states",
        )?;
        below(
            "action",
            self.action[row],
            shape.actions,
            "must be below the number of actions",
        )?;
        check_finite(place, "reward", self.reward[row])?;
        check_propensity(place, "pscore", self.pscore[row])?;
        if self.terminated[row] {
            return Ok(());
        }
        let rule = "must be below the number of states: no termination, so another state follows";
        below("next_state", self.next_state[row], shape.states, rule)
    }

    fn check_transition(&self, row: usize, next: usize) -> Result<(), OpeError> {
        let place = self.place(row);
        if self.terminated[row] || self.truncated[row] {
            let rule = "must be false: more steps follow";
            let field = if self.terminated[row] {
                "terminated"
            } else {
                "truncated"
            };
            return Err(OpeError::value(place, field, true, rule));
        }
        if self.step[next] == self.step[row] + 1 && self.next_state[row] != self.state[next] {
            let rule = "must be the state of the next step";
            return Err(OpeError::value(
                place,
                "next_state",
                self.next_state[row],
                rule,
            ));
        }
        Ok(())
    }

    fn check_end(&self, row: usize, length: usize, shape: &Shape) -> Result<(), OpeError> {
        let place = Place::Trajectory(self.trajectory[row]);
        if length > shape.horizon {
            let rule = "must be at most the horizon: give the horizon of the longest";
            return Err(OpeError::value(place, "number of steps", length, rule));
        }
        if self.terminated[row] || length == shape.horizon {
            return Ok(());
        }
        let rule = "must reach the horizon, as the last step does not terminate: what would have followed is not known; lower the horizon, or leave the trajectory out";
        Err(OpeError::value(place, "number of steps", length, rule))
    }
}
