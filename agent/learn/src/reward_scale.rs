//! Rewards brought to one scale: divided by the running deviation of the discounted return.
//!
//! As `VecNormalize` of stable-baselines3 does, step by step, over disks instead of environments: each disk has a
//! discounted return of its own, all of them one deviation. Nothing is subtracted, so that what is good stays good.
//! Only the learner sees scaled rewards; returns that are reported, and evaluations, are of the rewards as they were.
//!
//! Source: Huang et al. 2022, "The 37 implementation details of PPO", continuous domains, nos. 7 and 8.

use serde::{Deserialize, Serialize};

use crate::rollout::{HostStep, Rewards};

/// Scaled rewards are clipped to ± this.
const CLIP: f64 = 10.0;
/// Added to the variance.
const EPSILON: f64 = 1e-8;
/// Weight of the mean 0 and variance 1 that it begins with, in observations.
const PRIOR: f64 = 1e-4;

/// Mean and variance of the discounted returns, and where those stand. Part of a learner's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RewardScale {
    count: f64,
    mean: f64,
    variance: f64,
    /// Of each environment, per disk, since its episode began; those of the one before, until the next begins.
    returns: Vec<Vec<f64>>,
}

impl Default for RewardScale {
    fn default() -> Self {
        Self {
            count: PRIOR,
            mean: 0.0,
            variance: 1.0,
            returns: Vec::new(),
        }
    }
}

impl RewardScale {
    /// Scales the rewards of a rollout, which goes on where the one before it ended: per environment its host-steps
    /// in order; a step may have been left out of one. Each step is scaled by what was seen up to it. A disk that does not count in
    /// a step adds no observation there.
    pub(crate) fn apply(&mut self, tracks: &[Vec<HostStep>], gamma: f64, rewards: &mut [Rewards]) {
        self.returns.resize(tracks.len(), Vec::new());
        let steps = tracks.iter().map(Vec::len).max().unwrap_or(0);
        for t in 0..steps {
            let mut seen = Vec::new();
            for ((track, rewards), returns) in tracks.iter().zip(&*rewards).zip(&mut self.returns) {
                if let (Some(step), Some(rewards)) = (track.get(t), rewards.get(t)) {
                    seen.extend(advance(step, rewards, gamma, returns));
                }
            }
            self.observe(&seen);
            let scale = 1.0 / (self.variance + EPSILON).sqrt();
            let now = rewards.iter_mut().filter_map(|rewards| rewards.get_mut(t));
            for reward in now.flatten() {
                *reward = (f64::from(*reward) * scale).clamp(-CLIP, CLIP) as f32;
            }
        }
    }

    /// Chan, Golub and LeVeque 1979.
    fn observe(&mut self, seen: &[f64]) {
        if seen.is_empty() {
            return;
        }
        let count = seen.len() as f64;
        let mean = seen.iter().sum::<f64>() / count;
        let squares: f64 = seen.iter().map(|value| (value - mean).powi(2)).sum();
        let (all, delta) = (self.count + count, mean - self.mean);
        let between = delta * delta * self.count * count / all;
        self.mean += delta * count / all;
        self.variance = (self.variance * self.count + squares + between) / all;
        self.count = all;
    }
}

/// One step of the returns of one environment; those of the disks that count in it.
fn advance(step: &HostStep, rewards: &[f32], gamma: f64, returns: &mut Vec<f64>) -> Vec<f64> {
    if step.begins_episode {
        returns.clear();
    }
    returns.resize(rewards.len(), 0.0);
    for (sum, reward) in returns.iter_mut().zip(rewards) {
        *sum = *sum * gamma + f64::from(*reward);
    }
    let counted = returns.iter().zip(&step.counted);
    let seen = counted.filter(|(_, counts)| **counts).map(|(sum, _)| *sum);
    seen.collect()
}

#[cfg(test)]
mod tests;
