//! How to learn: `[training]`. The key `algorithm` says by which learner; each has keys of its own.

mod distil;
mod dqn;
mod offline;
mod ppo;

use std::path::{Path, PathBuf};

use blkpilot_learn::{DistilConfig, DqnConfig, PpoConfig, Schedule};
use serde::Deserialize;
use toml::{Table, Value};

use super::check::{Check, Section};

pub use dqn::MOST_REMEMBERED;
pub use offline::OfflineTraining;
pub use ppo::MOST_ROLLOUT_STEPS;

/// How to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Host-steps to play, over all environments; of a learner from a log, which plays none, gradient steps.
    pub env_steps: u64,
    /// Environments played together.
    pub envs: usize,
    /// Steps of the same kind between two checkpoints.
    pub checkpoint_every: u64,
    /// Directory of the policy to begin from; `None` begins from nothing.
    pub start_from: Option<PathBuf>,
    /// The learner.
    pub learner: LearnerConfig,
}

/// A learner and what it needs to know.
#[derive(Debug, Clone, PartialEq)]
pub enum LearnerConfig {
    /// Proximal policy optimisation.
    Ppo(PpoConfig),
    /// Deep Q-learning.
    Dqn(DqnConfig),
    /// Distillation of a planner.
    Distil(DistilConfig),
    /// One of those that learn from a log.
    Offline(OfflineTraining),
}

impl LearnerConfig {
    /// Names of the learners, as `training.algorithm` has them.
    pub const NAMES: [&str; 6] = ["ppo", "dqn", "distil", "bc", "cql", "iql"];
    /// Those that learn from a log.
    pub const FROM_LOGS: [&str; 3] = ["bc", "cql", "iql"];

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ppo(_) => "ppo",
            Self::Dqn(_) => "dqn",
            Self::Distil(_) => "distil",
            Self::Offline(training) => training.offline.algorithm.name(),
        }
    }
}

/// `base`: the directory at which relative paths start.
pub(super) fn training(table: Table, base: &Path, check: &mut Check) -> Option<Training> {
    let name = table.get("algorithm").cloned();
    let name = name.unwrap_or_else(|| Value::String("ppo".to_owned()));
    match name.as_str() {
        Some("ppo") => ppo::training(table, base, check),
        Some("dqn") => dqn::training(table, check),
        Some("distil") => distil::training(table, base, check),
        Some(name) if LearnerConfig::FROM_LOGS.contains(&name) => {
            offline::training(name, table, check)
        }
        _ => {
            let known = LearnerConfig::NAMES.join(", ");
            let text = format!("= {name} must be one of {known}");
            check.problem("training.algorithm", text);
            None
        }
    }
}

/// How much a learner that plays is to play, as it was written.
struct RawPlay {
    env_steps: Option<u64>,
    envs: Option<usize>,
    checkpoint_every: Option<u64>,
}

/// How much a learner plays.
struct Play {
    env_steps: u64,
    envs: usize,
    checkpoint_every: u64,
}

impl RawPlay {
    /// `least`: host-steps that the learner needs in any case; `wanted` says so in words.
    fn check(self, at: &mut Section<'_>, least: u64, wanted: &str) -> Option<Play> {
        let is_count = |n: usize| (1..=4096).contains(&n);
        let envs = at.need("envs", self.envs, is_count, "must be in [1, 4096]");
        let every = self.checkpoint_every;
        let every = at.may("checkpoint_every", every, |n| n >= 1, "must be at least 1");
        let env_steps = at.need("env_steps", self.env_steps, |n| n >= least, wanted);
        let (env_steps, envs) = (env_steps?, envs?);
        Some(Play {
            env_steps,
            envs,
            checkpoint_every: every.unwrap_or(env_steps.div_ceil(10)),
        })
    }
}

impl Play {
    fn with(self, learner: LearnerConfig) -> Training {
        Training {
            env_steps: self.env_steps,
            envs: self.envs,
            checkpoint_every: self.checkpoint_every,
            start_from: None,
            learner,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawSchedule {
    #[default]
    Constant,
    LinearToZero,
}

impl RawSchedule {
    fn of(this: Option<Self>, start: f64) -> Schedule {
        match this.unwrap_or_default() {
            Self::Constant => Schedule::Constant(start),
            Self::LinearToZero => Schedule::LinearToZero(start),
        }
    }
}
