//! Playing whole episodes with a policy.

use std::collections::BTreeMap;
use std::fmt;

use blkpilot_env::environment::Step;
use blkpilot_env::reward::{RewardTerm, mean_loss};
use blkpilot_env::{EnvError, Environment, Observation, ResetOptions, Rng};
use serde::Serialize;
use thiserror::Error;

use crate::bootstrap::mean;
use crate::policy::{Decision, Policy, PolicyError, decide};

/// Steps after which an episode counts as endless.
const MOST_STEPS: usize = 1_000_000;

/// What stands for an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Mean of the host mean of the own rewards, over its intervals in which a disk counts.
    RewardPerInterval,
    /// Sum of its rewards.
    Return,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RewardPerInterval => "host mean reward per interval",
            Self::Return => "return per episode",
        })
    }
}

/// What one episode came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Episode {
    /// `None` if nothing counted.
    pub reward: Option<f64>,
    /// Relative performance loss, mean over disks that count and intervals; `None` where the
    /// environment has no such terms.
    pub loss: Option<f64>,
}

/// Why an episode could not be played.
#[derive(Debug, Error)]
pub enum PlayError {
    /// A policy failed to decide.
    #[error("a policy failed")]
    Decide(#[from] PolicyError),
    /// An environment failed.
    #[error("the environment failed")]
    Environment(#[from] EnvError),
    /// An episode does not end.
    #[error("evaluation seed {seed}: the episode has not ended after {steps} steps")]
    Endless {
        /// Its seed.
        seed: u64,
        /// Steps played.
        steps: usize,
    },
}

/// One step of an episode, for those who watch it.
pub struct Played<'a, E> {
    /// The environment after the step.
    pub env: &'a E,
    /// What the policy saw.
    pub seen: &'a Observation,
    /// What it decided.
    pub decision: &'a Decision,
    /// What came of it.
    pub step: &'a Step,
}

/// Plays the episode of a seed. What the policy draws comes from `rng`, which must not be the
/// environment's stream, so that it does not shift the workload. `watch` is shown each step.
///
/// # Errors
/// If the policy or the environment fails, or if the episode does not end.
pub fn play<E: Environment>(
    env: &mut E,
    policy: &mut dyn Policy,
    (seed, mut rng): (u64, Rng),
    measure: Measure,
    mut watch: impl FnMut(&Played<'_, E>),
) -> Result<Episode, PlayError> {
    let spec = env.spec().clone();
    let has_loss = RewardTerm::ALL
        .iter()
        .map(|term| term.name())
        .eq(spec.reward_terms.iter());
    policy.reset();
    let mut obs = env.reset(Some(seed), &ResetOptions::new())?;
    let (mut rewards, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..MOST_STEPS {
        let decision = decide(policy, &spec, &obs, &mut rng)?;
        let step = env.step(&decision.action)?;
        rewards.extend(step.rewards.host_mean().map(f64::from));
        if has_loss {
            losses.extend(mean_loss(&step.rewards).map(f64::from));
        }
        watch(&Played {
            env,
            seen: &obs,
            decision: &decision,
            step: &step,
        });
        if step.is_last() {
            return Ok(Episode {
                reward: measure.of(&rewards),
                loss: (!losses.is_empty()).then(|| mean(&losses)),
            });
        }
        obs = step.observation;
    }
    Err(PlayError::Endless {
        seed,
        steps: MOST_STEPS,
    })
}

impl Measure {
    fn of(self, rewards: &[f64]) -> Option<f64> {
        (!rewards.is_empty()).then(|| match self {
            Self::Return => rewards.iter().sum(),
            Self::RewardPerInterval => mean(rewards),
        })
    }
}

/// Leaves out, for all policies, each seed on which nothing counted for one of them: a 0 there would
/// pass for a reward, and a better one than most. `episodes`: per policy, one per seed, all of one
/// length. Returns which seeds were kept.
pub fn leave_out_empty<T>(
    played: &mut BTreeMap<String, Vec<T>>,
    reward: impl Fn(&T) -> Option<f64>,
) -> Vec<bool> {
    let seeds = played.values().map(Vec::len).max().unwrap_or(0);
    let kept: Vec<bool> = (0..seeds)
        .map(|seed| played.values().all(|own| reward(&own[seed]).is_some()))
        .collect();
    for episodes in played.values_mut() {
        let mut kept = kept.iter();
        episodes.retain(|_| kept.next() == Some(&true));
    }
    kept
}
