//! CartPole-v1: whether the learner learns what it is known to be able to.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::LabError;
use crate::compare::TRAINED;
use crate::config::Config;
use crate::train::{Event, Existing, Run, refuse_used, train};

/// Mean return, over the evaluation episodes of a run, that counts as solved.
pub const THRESHOLD: f64 = 475.0;

/// The config it runs.
const CARTPOLE: &str = include_str!("../configs/cartpole.toml");
const CARTPOLE_FILE: &str = "experiments/configs/cartpole.toml";

/// What the runs came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sanity {
    /// Whether enough seeds reached the threshold.
    pub passed: bool,
    /// [`THRESHOLD`].
    pub threshold: f64,
    /// Seeds that must reach it.
    pub needed: usize,
    /// All seeds, in order.
    pub runs: Vec<SanityRun>,
}

/// One seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SanityRun {
    /// The seed.
    pub seed: u64,
    /// Mean return of the trained policy, greedy, last checkpoint.
    pub trained: f64,
    /// Mean return of random play on the same episodes.
    pub random: f64,
    /// Steps trained.
    pub env_steps: u64,
    /// Seconds of training.
    pub wall_s: f64,
}

/// Its config.
///
/// # Errors
/// Never, unless the config that comes with blkpilot is broken.
pub fn config() -> Result<Config, LabError> {
    Ok(Config::parse(Path::new(CARTPOLE_FILE), CARTPOLE)?)
}

/// Trains seeds 1 to `seeds`, each into a directory of its own under `out`; one seed in five may
/// miss the threshold.
///
/// # Errors
/// As [`train`], `OutExists` for any of the directories before the first seed is trained;
/// `Interrupted`.
pub fn sanity(
    config: &Config,
    seeds: u64,
    out: &Path,
    existing: Existing,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(u64, Event<'_>),
) -> Result<Sanity, LabError> {
    let dir = |seed: u64| out.join(format!("seed-{seed}"));
    if existing == Existing::Refuse {
        (1..=seeds).try_for_each(|seed| refuse_used(&dir(seed)))?;
    }
    let mut runs = Vec::new();
    for seed in 1..=seeds {
        let out = dir(seed);
        let run = Run {
            config,
            seed,
            out: &out,
            existing,
        };
        let summary = train(&run, stop, &mut |event| watch(seed, event))?;
        if summary.interrupted {
            return Err(LabError::Interrupted);
        }
        let reward = |policy: &str| summary.comparison.policies[policy].reward_mean;
        runs.push(SanityRun {
            seed,
            trained: reward(TRAINED),
            random: reward("random"),
            env_steps: summary.env_steps,
            wall_s: summary.wall_s,
        });
    }
    let needed = runs.len() - runs.len() / 5;
    let reached = runs.iter().filter(|run| run.trained >= THRESHOLD).count();
    Ok(Sanity {
        passed: reached >= needed,
        threshold: THRESHOLD,
        needed,
        runs,
    })
}
