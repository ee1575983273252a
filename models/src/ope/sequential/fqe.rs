//! Fitted Q evaluation over a table: a model of the values of a policy, from logged transitions.
//!
//! The fit of a table to its targets is their mean per state and action, so a log is reduced once to counts,
//! mean rewards and transition frequencies. Truncation bootstraps from the state that followed, termination
//! does not.
//!
//! Source: Le, Voloshin and Yue 2019, "Batch Policy Learning under Constraints", algorithm 3; the value of
//! the next state is `Σ_a pie(a) Q(s', a)`, without sampling.

use super::{Policy, QTable, Shape, Steps, TabularLog};
use crate::ope::Bootstrap;
use crate::ope::error::OpeError;
use crate::ope::least_squares::solve;

/// What a log says of each state and action.
#[derive(Debug, Clone, PartialEq)]
pub struct Transitions {
    shape: Shape,
    count: Vec<f64>,
    reward: Vec<f64>,
    /// `[states × actions × states]`: how often which state followed.
    next: Vec<f64>,
}

/// One transition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transition {
    /// State in which was decided.
    pub state: usize,
    /// What was done.
    pub action: usize,
    /// What it brought.
    pub reward: f64,
    /// State that followed, also where the episode was cut off there; `None` after termination.
    pub next_state: Option<usize>,
}

/// Values of a policy over a finite horizon.
#[derive(Debug, Clone, PartialEq)]
pub struct FiniteHorizon {
    /// Mean value of the first states, in reward units.
    pub estimate: f64,
    /// Q at the first step.
    pub q: QTable,
    /// Pairs of state and action of which there is no row: their Q is 0, and the estimate is worth the
    /// less the more the policy plays them.
    pub unvisited: usize,
}

impl Transitions {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let pairs = shape.states * shape.actions;
        Self {
            shape,
            count: vec![0.0; pairs],
            reward: vec![0.0; pairs],
            next: vec![0.0; pairs * shape.states],
        }
    }

    /// Of all rows of a log, whatever their step.
    #[must_use]
    pub fn of(log: &TabularLog) -> Self {
        let mut transitions = Self::new(log.shape);
        for row in 0..log.rows() {
            transitions.push(log.transition(row));
        }
        transitions
    }

    /// Adds one.
    ///
    /// # Panics
    /// When a state or action is not below its number.
    pub fn push(&mut self, transition: Transition) {
        assert!(transition.action < self.shape.actions, "no such action");
        let pair = transition.state * self.shape.actions + transition.action;
        self.count[pair] += 1.0;
        self.reward[pair] += transition.reward;
        if let Some(next) = transition.next_state {
            assert!(next < self.shape.states, "no such state");
            self.next[pair * self.shape.states + next] += 1.0;
        }
    }

    /// Pairs of state and action never seen.
    #[must_use]
    pub fn unvisited(&self) -> usize {
        self.count.iter().filter(|count| **count == 0.0).count()
    }

    /// `r̄ + γ Σ P̂(s') V(s')` of each pair, 0 of one never seen.
    fn backup(&self, values: &[f64], gamma: f64) -> Vec<f64> {
        let next = self.next.chunks(self.shape.states);
        let pairs = self.count.iter().zip(&self.reward).zip(next);
        pairs
            .map(|((count, reward), next)| {
                let follows: f64 = next.iter().zip(values).map(|(n, v)| n * v).sum();
                if *count > 0.0 {
                    (reward + gamma * follows) / count
                } else {
                    0.0
                }
            })
            .collect()
    }

    fn values_of(&self, policy: &Policy, q: &[f64]) -> Vec<f64> {
        let rows = q.chunks(self.shape.actions).enumerate();
        rows.map(|(state, q)| policy.at(state).iter().zip(q).map(|(p, q)| p * q).sum())
            .collect()
    }

    /// Q of a policy with as many steps to go as the horizon has, by that many sweeps from V = 0.
    ///
    /// # Errors
    /// `Setting` for gamma outside [0, 1].
    pub fn finite_horizon(&self, policy: &Policy, gamma: f64) -> Result<QTable, OpeError> {
        let mut tables = self.by_steps_to_go(policy, gamma)?;
        let last = tables.pop();
        Ok(last.expect("the horizon has at least one step: it has been checked"))
    }

    /// Q of a policy with 1, 2, … steps to go, up to the horizon.
    ///
    /// # Errors
    /// As `finite_horizon`.
    pub fn by_steps_to_go(&self, policy: &Policy, gamma: f64) -> Result<Vec<QTable>, OpeError> {
        super::check_setting(self.shape.horizon, gamma)?;
        let mut q = vec![0.0; self.count.len()];
        let sweep = |_| {
            q = self.backup(&self.values_of(policy, &q), gamma);
            QTable::new("finite-horizon FQE", q.clone(), &self.shape)
        };
        (0..self.shape.horizon).map(sweep).collect()
    }

    /// Q of a policy without end: the fixed point, by one linear system over states.
    ///
    /// # Errors
    /// `Setting` for gamma outside [0, 1]; `Singular` where gamma is 1 and the policy can go on for ever.
    pub fn infinite_horizon(&self, policy: &Policy, gamma: f64) -> Result<QTable, OpeError> {
        super::check_setting(self.shape.horizon, gamma)?;
        let states = self.shape.states;
        let reward = self.values_of(policy, &self.backup(&vec![0.0; states], 0.0));
        let mut system = vec![0.0; states * states];
        for state in 0..states {
            for (action, p) in policy.at(state).iter().enumerate() {
                let pair = state * self.shape.actions + action;
                let count = self.count[pair].max(1.0);
                let next = &self.next[pair * states..(pair + 1) * states];
                let row = &mut system[state * states..(state + 1) * states];
                row.iter_mut()
                    .zip(next)
                    .for_each(|(x, n)| *x -= gamma * p * n / count);
            }
            system[state * states + state] += 1.0;
        }
        let hint = "with gamma = 1 every state must lead to termination";
        let values = solve(&system, &reward, "infinite-horizon FQE", hint)?;
        QTable::new(
            "infinite-horizon FQE",
            self.backup(&values, gamma),
            &self.shape,
        )
    }
}

/// Value of a policy over the horizon of a log.
///
/// # Errors
/// `Setting` for gamma outside [0, 1].
pub fn finite_horizon(
    log: &TabularLog,
    policy: &Policy,
    gamma: f64,
) -> Result<FiniteHorizon, OpeError> {
    let transitions = Transitions::of(log);
    let q = transitions.finite_horizon(policy, gamma)?;
    Ok(FiniteHorizon {
        estimate: mean_first_value(log, policy, &q),
        unvisited: transitions.unvisited(),
        q,
    })
}

/// The replicates of [`finite_horizon`] by resampling trajectories: the model is fitted anew to each draw,
/// and the first states are those drawn. Not of an interval of a model that is held fixed: most of the
/// error is in the fit.
///
/// # Errors
/// `Setting` for gamma, `Setting` for fewer than two replicates.
pub fn replicates(
    log: &TabularLog,
    policy: &Policy,
    gamma: f64,
    bootstrap: &Bootstrap,
) -> Result<Vec<f64>, OpeError> {
    let trajectories = log.trajectories();
    let mut first_states: Vec<usize> = vec![];
    bootstrap.replicate_by(trajectories.len(), |drawn| {
        let mut transitions = Transitions::new(log.shape);
        first_states.clear();
        for rows in drawn.iter().map(|i| trajectories[*i].clone()) {
            first_states.push(log.state[rows.start]);
            rows.for_each(|row| transitions.push(log.transition(row)));
        }
        let q = transitions.finite_horizon(policy, gamma)?;
        let values = first_states.iter().map(|state| q.value(policy, *state));
        Ok(values.sum::<f64>() / first_states.len() as f64)
    })
}

/// One model per fold, each fitted to the trajectories of the others, and the columns in which every
/// trajectory has the values of the model that has not seen it: what a doubly robust estimate of the same
/// log needs, or the rows that made the model would pass for fresh ones.
///
/// Source: Chernozhukov et al. 2018, "Double/debiased machine learning for treatment and structural
/// parameters", definition 3.2; Kallus and Uehara 2020, "Double reinforcement learning", section 4.2.
///
/// # Errors
/// `Setting` for gamma, or for fewer than two folds or more than trajectories.
pub fn cross_fitted(
    log: &TabularLog,
    policy: &Policy,
    gamma: f64,
    folds: usize,
) -> Result<Steps, OpeError> {
    let trajectories = log.trajectories();
    if !(2..=trajectories.len()).contains(&folds) {
        return Err(OpeError::Setting {
            what: "the number of folds",
            value: folds as f64,
            rule: "must be at least 2 and at most the number of trajectories",
        });
    }
    let (mut q, mut v) = (vec![0.0; log.rows()], vec![0.0; log.rows()]);
    for fold in 0..folds {
        let is_own = |i: &usize| i % folds == fold;
        let mut transitions = Transitions::new(log.shape);
        for i in (0..trajectories.len()).filter(|i| !is_own(i)) {
            trajectories[i]
                .clone()
                .for_each(|row| transitions.push(log.transition(row)));
        }
        let models = transitions.by_steps_to_go(policy, gamma)?;
        for i in (0..trajectories.len()).filter(is_own) {
            for (t, row) in trajectories[i].clone().enumerate() {
                let model = &models[log.shape.horizon - 1 - t];
                q[row] = model.at(log.state[row])[log.action[row]];
                v[row] = model.value(policy, log.state[row]);
            }
        }
    }
    log.steps_with(policy, q, v, gamma)
}

/// Value of a policy without end, from the first states of a log.
///
/// # Errors
/// As [`Transitions::infinite_horizon`].
pub fn infinite_horizon(log: &TabularLog, policy: &Policy, gamma: f64) -> Result<f64, OpeError> {
    let q = Transitions::of(log).infinite_horizon(policy, gamma)?;
    Ok(mean_first_value(log, policy, &q))
}

fn mean_first_value(log: &TabularLog, policy: &Policy, q: &QTable) -> f64 {
    let sum: f64 = log.first_states().map(|state| q.value(policy, state)).sum();
    sum / log.lengths.len() as f64
}
