//! Fitted Q evaluation over a table: a model of the values of a policy, from logged transitions.
//!
//! The fit of a table to its targets is their mean per state and action, so a log is reduced once to counts,
//! mean rewards and transition frequencies. Truncation bootstraps from the state that followed, termination
//! does not.
//!
//! Source: Le, Voloshin and Yue 2019, "Batch Policy Learning under Constraints", algorithm 3; the value of
//! the next state is `Σ_a pie(a) Q(s', a)`, without sampling.

use super::{Policy, QTable, Shape, TabularLog};
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
            transitions.push(Transition {
                state: log.state[row],
                action: log.action[row],
                reward: log.reward[row],
                next_state: log.next_state[row],
            });
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
        super::check_setting(self.shape.horizon, gamma)?;
        let mut q = vec![0.0; self.count.len()];
        for _ in 0..self.shape.horizon {
            q = self.backup(&self.values_of(policy, &q), gamma);
        }
        QTable::new("finite-horizon FQE", q, &self.shape)
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
