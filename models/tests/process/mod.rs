//! A decision process whose values are known, and logs of it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several tests, which say when they cannot go on"
)]

use blkpilot_env::Rng;
use blkpilot_models::ope::sequential::{Policy, Rows, Shape, TabularLog};
use rand::{RngExt as _, SeedableRng as _};

pub(crate) const SHAPE: Shape = Shape {
    states: 6,
    actions: 3,
    horizon: 10,
};
pub(crate) const GAMMA: f64 = 0.95;
pub(crate) const TRAJECTORIES: usize = 300;
/// Distance of the policy that is evaluated from the one that logs: its share of one drawn by itself.
const AWAY: f64 = 0.3;

/// A decision process with six states and three actions, drawn once. An action moves to one of the states
/// by a distribution of its own, ends the episode with probability 0.02, and brings its mean reward and
/// uniform noise of half-width 0.5.
pub(crate) struct Process {
    /// `[states × actions × states]`, sums 0.98.
    next: Vec<f64>,
    /// `[states × actions]`.
    reward: Vec<f64>,
    pub(crate) behaviour: Policy,
    pub(crate) target: Policy,
}

const GO_ON: f64 = 0.98;

impl Process {
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut rng = Rng::seed_from_u64(seed);
        let pairs = SHAPE.states * SHAPE.actions;
        let next = (0..pairs)
            .flat_map(|_| simplex(SHAPE.states, &mut rng).map(|p| GO_ON * p))
            .collect();
        let reward = (0..pairs).map(|_| rng.random::<f64>()).collect();
        let rows = |rng: &mut Rng| -> Vec<f64> {
            let rows = (0..SHAPE.states).flat_map(|_| simplex(SHAPE.actions, rng));
            rows.collect()
        };
        let mut policy = || rows(&mut rng);
        let (behaviour, other) = (policy(), policy());
        // No action is all but excluded: every log shows each.
        let behaviour: Vec<f64> = behaviour.iter().map(|p| 0.7 * p + 0.1).collect();
        let blend = behaviour.iter().zip(&other);
        let target = blend.map(|(b, o)| (1.0 - AWAY) * b + AWAY * o).collect();
        Self {
            next,
            reward,
            behaviour: Policy::new("behaviour", behaviour, &SHAPE).unwrap(),
            target: Policy::new("target", target, &SHAPE).unwrap(),
        }
    }

    /// By backward induction; episodes start in each state alike.
    pub(crate) fn value(&self) -> f64 {
        let mut value = vec![0.0; SHAPE.states];
        for _ in 0..SHAPE.horizon {
            let of_state = |state: usize| {
                let probabilities = self.target.at(state).iter().enumerate();
                let of_action = |(action, p): (usize, &f64)| {
                    let pair = state * SHAPE.actions + action;
                    let next = &self.next[pair * SHAPE.states..(pair + 1) * SHAPE.states];
                    let follows: f64 = next.iter().zip(&value).map(|(p, v)| p * v).sum();
                    p * (self.reward[pair] + GAMMA * follows)
                };
                probabilities.map(of_action).sum()
            };
            value = (0..SHAPE.states).map(of_state).collect();
        }
        value.iter().sum::<f64>() / SHAPE.states as f64
    }

    pub(crate) fn log(&self, seed: u64) -> TabularLog {
        TabularLog::new(&self.rows(seed), SHAPE).unwrap()
    }

    pub(crate) fn rows(&self, seed: u64) -> Rows {
        let mut rng = Rng::seed_from_u64(seed);
        let mut rows = Rows::default();
        for trajectory in 0..TRAJECTORIES {
            let mut state = rng.random_range(0..SHAPE.states);
            for step in 0..SHAPE.horizon {
                let probabilities = self.behaviour.at(state);
                let action = pick(probabilities, &mut rng).unwrap_or(SHAPE.actions - 1);
                let pair = state * SHAPE.actions + action;
                let next = pick(
                    &self.next[pair * SHAPE.states..(pair + 1) * SHAPE.states],
                    &mut rng,
                );
                rows.trajectory.push(trajectory as i64);
                rows.step.push(step as i64);
                rows.state.push(state as i64);
                rows.action.push(action as i64);
                rows.reward
                    .push(self.reward[pair] + rng.random::<f64>() - 0.5);
                rows.next_state.push(next.map_or(-1, |next| next as i64));
                rows.terminated.push(next.is_none());
                rows.truncated
                    .push(next.is_some() && step + 1 == SHAPE.horizon);
                rows.pscore.push(probabilities[action]);
                match next {
                    Some(next) => state = next,
                    None => break,
                }
            }
        }
        rows
    }
}

fn simplex(n: usize, rng: &mut Rng) -> impl Iterator<Item = f64> + use<> {
    let draws: Vec<f64> = (0..n).map(|_| -(1.0 - rng.random::<f64>()).ln()).collect();
    let sum: f64 = draws.iter().sum();
    draws.into_iter().map(move |draw| draw / sum)
}

/// `None` for what is left to 1.
fn pick(probabilities: &[f64], rng: &mut Rng) -> Option<usize> {
    let mut draw: f64 = rng.random();
    probabilities.iter().position(|p| {
        draw -= p;
        draw < 0.0
    })
}
