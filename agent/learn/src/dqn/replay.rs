//! What a value learner remembers: transitions of disks, the oldest making room for the newest.

mod file;
mod sum_tree;

use std::sync::Arc;

use blkpilot_env::{Level, Rng};
use rand::RngExt as _;

use crate::seen::SeenTurn;
use sum_tree::SumTree;

pub(super) use file::Memory;

/// Added to the size of an error, so that nothing is never drawn again.
const LEAST_PRIORITY: f32 = 1e-6;

/// A disk's turn, what it took, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Transition {
    pub(super) turn: Arc<SeenTurn>,
    pub(super) levels: Arc<[Level]>,
    /// Σ γ^i r over the steps up to the next turn.
    pub(super) reward: f32,
    /// What the value of the next turn is multiplied by: γ to the number of these steps.
    pub(super) discount: f32,
    /// The same disk's turn after these steps; `None` if the episode terminated.
    pub(super) next: Option<Arc<SeenTurn>>,
}

/// Of transitions with a greater error more is learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prioritised {
    /// How much the size of the error counts, in [0, 1]; 0 is uniform (α).
    pub alpha: f64,
    /// How much of the bias that this brings is taken out at the beginning, in [0, 1]; at the end all of it is (β).
    pub beta: f64,
}

impl Prioritised {
    fn beta_at(self, progress: f64) -> f64 {
        self.beta + (1.0 - self.beta) * progress.clamp(0.0, 1.0)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Priorities {
    config: Prioritised,
    /// |error| + [`LEAST_PRIORITY`] by place; the tree holds these to the power of α. f32, as files hold them.
    raw: Vec<f32>,
    tree: SumTree,
    /// The greatest so far: that of what has not been learnt from yet.
    greatest: f32,
}

impl Priorities {
    fn new(config: Prioritised, capacity: usize) -> Self {
        Self {
            config,
            raw: Vec::new(),
            tree: SumTree::new(capacity),
            greatest: 1.0,
        }
    }

    fn set(&mut self, place: usize, priority: f32) {
        if place == self.raw.len() {
            self.raw.push(priority);
        } else {
            self.raw[place] = priority;
        }
        let weight = f64::from(priority).powf(self.config.alpha);
        self.tree.set(place, weight);
    }
}

/// Transitions that were drawn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drawn {
    pub(super) places: Vec<usize>,
    /// What the loss of each is multiplied by, at most 1.
    pub(super) weights: Vec<f32>,
}

/// A ring of transitions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Replay {
    capacity: usize,
    transitions: Vec<Transition>,
    /// Place of the oldest, once the ring is full.
    oldest: usize,
    priorities: Option<Priorities>,
}

impl Replay {
    /// An empty one for at most `capacity` transitions, at least 1.
    pub(super) fn new(capacity: usize, prioritised: Option<Prioritised>) -> Self {
        Self {
            capacity,
            transitions: Vec::new(),
            oldest: 0,
            priorities: prioritised.map(|config| Priorities::new(config, capacity)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.transitions.len()
    }

    pub(super) fn get(&self, place: usize) -> &Transition {
        &self.transitions[place]
    }

    /// Remembers a transition, in the place of the oldest if there is no room. What is new has the greatest priority.
    pub(super) fn push(&mut self, transition: Transition) {
        let place = if self.transitions.len() < self.capacity {
            self.transitions.push(transition);
            self.transitions.len() - 1
        } else {
            let place = self.oldest;
            self.transitions[place] = transition;
            self.oldest = (place + 1) % self.capacity;
            place
        };
        if let Some(priorities) = &mut self.priorities {
            priorities.set(place, priorities.greatest);
        }
    }

    /// Draws `count` of what there is, with replacement. `progress` in [0, 1] is the share of the training that is
    /// done.
    ///
    /// By priority: one from each of `count` equal parts of the sum of priorities, with the weights
    /// `(N·P(i))^−β / max over those drawn`. Source: Schaul et al. 2016, algorithm 1 and appendix B.2.1.
    pub(super) fn draw(&self, count: usize, progress: f64, rng: &mut Rng) -> Drawn {
        let Some(Priorities { config, tree, .. }) = &self.priorities else {
            return Drawn {
                places: (0..count)
                    .map(|_| rng.random_range(0..self.len()))
                    .collect(),
                weights: vec![1.0; count],
            };
        };
        let part = tree.total() / count as f64;
        let draw = |i: usize| tree.find(part * (i as f64 + rng.random::<f64>()));
        let places: Vec<usize> = (0..count).map(draw).collect();
        let beta = config.beta_at(progress);
        let share = |place: &usize| self.len() as f64 * tree.get(*place) / tree.total();
        let weights = places.iter().map(|place| share(place).powf(-beta));
        let weights: Vec<f64> = weights.collect();
        let most = weights.iter().copied().fold(0.0, f64::max);
        Drawn {
            weights: weights
                .iter()
                .map(|weight| (weight / most) as f32)
                .collect(),
            places,
        }
    }

    /// What was learnt from these has these errors now; without priorities, nothing changes.
    pub(super) fn set_errors(&mut self, places: &[usize], errors: &[f32]) {
        let Some(priorities) = &mut self.priorities else {
            return;
        };
        for (&place, error) in places.iter().zip(errors) {
            let priority = error.abs() + LEAST_PRIORITY;
            priorities.greatest = priorities.greatest.max(priority);
            priorities.set(place, priority);
        }
    }
}

#[cfg(test)]
mod tests;
