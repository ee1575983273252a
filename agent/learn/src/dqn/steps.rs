//! From host-steps to transitions over several of them.

use std::collections::VecDeque;
use std::sync::Arc;

use blkpilot_env::Level;

use super::replay::Transition;
use crate::seen::SeenTurn;

/// One host-step of one environment, by disk.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HostStep {
    pub(super) turns: Vec<Arc<SeenTurn>>,
    pub(super) levels: Vec<Arc<[Level]>>,
    /// What each disk's turn is credited with.
    pub(super) rewards: Vec<f32>,
}

/// What comes after a host-step.
#[derive(Debug)]
pub(super) enum Then {
    /// The next one.
    Next,
    /// Nothing: the episode terminated.
    Terminated,
    /// The episode was cut; each disk's turn would have been this.
    Cut(Vec<Arc<SeenTurn>>),
    /// Disks came or went in it: what it earned is not what came of its levels. The episode ends before it, where its
    /// own turns follow.
    LeftOut,
}

/// How far transitions reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reach {
    /// Host-steps (n), at least 1.
    pub(super) steps: usize,
    /// Discount per host-step.
    pub(super) gamma: f64,
}

/// The last host-steps of one environment, whose transitions reach beyond what has been played.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Waiting {
    pub(super) steps: VecDeque<HostStep>,
}

impl Waiting {
    /// Adds a host-step; what is complete now goes to `out`. A transition is over n host-steps, or over those that are
    /// left of its episode, and what follows is worth γ to their number.
    ///
    /// Source: Sutton and Barto 2018, eq. 7.1, without a correction for what the behaviour did between (as in Hessel et
    /// al. 2018, "Rainbow").
    pub(super) fn push(
        &mut self,
        step: HostStep,
        then: &Then,
        reach: Reach,
        out: &mut Vec<Transition>,
    ) {
        if matches!(then, Then::LeftOut) {
            return self.complete_all(Some(&step.turns), reach.gamma, out);
        }
        if self.steps.len() == reach.steps {
            self.complete(Some(&step.turns), reach.gamma, out);
        }
        self.steps.push_back(step);
        match then {
            Then::Next | Then::LeftOut => {}
            Then::Terminated => self.complete_all(None, reach.gamma, out),
            Then::Cut(turns) => self.complete_all(Some(turns), reach.gamma, out),
        }
    }

    fn complete_all(
        &mut self,
        next: Option<&Vec<Arc<SeenTurn>>>,
        gamma: f64,
        out: &mut Vec<Transition>,
    ) {
        while !self.steps.is_empty() {
            self.complete(next, gamma, out);
        }
    }

    /// Takes the oldest host-step out, followed by `next` after all that waits.
    fn complete(
        &mut self,
        next: Option<&Vec<Arc<SeenTurn>>>,
        gamma: f64,
        out: &mut Vec<Transition>,
    ) {
        let returns = |disk: usize| {
            let later = self.steps.iter().rev();
            later.fold(0.0, |sum, step| f64::from(step.rewards[disk]) + gamma * sum)
        };
        let Some(first) = self.steps.front() else {
            return;
        };
        let discount = gamma.powi(i32::try_from(self.steps.len()).unwrap_or(i32::MAX));
        for (disk, (turn, levels)) in first.turns.iter().zip(&first.levels).enumerate() {
            out.push(Transition {
                turn: turn.clone(),
                levels: levels.clone(),
                reward: returns(disk) as f32,
                discount: discount as f32,
                next: next.map(|turns| turns[disk].clone()),
            });
        }
        self.steps.pop_front();
    }
}

#[cfg(test)]
mod tests;
