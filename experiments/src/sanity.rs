//! CartPole-v1: whether the learners learn what they are known to be able to.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::LabError;
use crate::compare::TRAINED;
use crate::config::Config;
use crate::train::{Event, Existing, Run, refuse_used, train};

/// A learner, and what is asked of it.
#[derive(Debug, Clone)]
pub struct Check {
    /// How it learns.
    pub config: Config,
    /// Mean return, over the evaluation episodes of a run, that counts as solved.
    pub threshold: f64,
    /// One seed in so many may miss it; `None` if none may.
    pub one_in: Option<usize>,
}

impl Check {
    fn parse(
        file: &str,
        text: &str,
        threshold: f64,
        one_in: Option<usize>,
    ) -> Result<Self, LabError> {
        Ok(Self {
            config: Config::parse(Path::new(file), text)?,
            threshold,
            one_in,
        })
    }

    fn name(&self) -> &'static str {
        self.config.training.learner.name()
    }

    fn needed(&self, seeds: usize) -> usize {
        seeds - self.one_in.map_or(0, |one_in| seeds / one_in)
    }
}

/// What is asked of each learner: of PPO all that there is to earn on every seed, of DQN the threshold of CartPole-v1 on
/// four in five.
///
/// # Errors
/// Never, unless a config that comes with blkpilot is broken.
pub fn checks() -> Result<[Check; 2], LabError> {
    Ok([
        Check::parse(
            "experiments/configs/cartpole.toml",
            include_str!("../configs/cartpole.toml"),
            500.0,
            None,
        )?,
        Check::parse(
            "experiments/configs/cartpole_dqn.toml",
            include_str!("../configs/cartpole_dqn.toml"),
            475.0,
            Some(5),
        )?,
    ])
}

/// What the runs came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sanity {
    /// Whether each learner passed.
    pub passed: bool,
    /// The learners, in the order of their checks.
    pub learners: Vec<Checked>,
}

/// What the runs of one learner came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// Name of the learner.
    pub algorithm: &'static str,
    /// Whether enough seeds reached the threshold.
    pub passed: bool,
    /// Mean return that counts as solved.
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

/// Trains seeds 1 to `seeds` with each learner, each into a directory of its own under `out`.
///
/// # Errors
/// As [`train`], `OutExists` for any of the directories before the first seed is trained;
/// `Interrupted`.
pub fn sanity(
    checks: &[Check],
    seeds: u64,
    out: &Path,
    existing: Existing,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(u64, Event<'_>),
) -> Result<Sanity, LabError> {
    if existing == Existing::Refuse {
        for check in checks {
            (1..=seeds).try_for_each(|seed| refuse_used(&dir(out, check, seed)))?;
        }
    }
    let mut learners = Vec::new();
    for check in checks {
        let mut runs = Vec::new();
        for seed in 1..=seeds {
            let out = dir(out, check, seed);
            let run = Run {
                config: &check.config,
                seed,
                out: &out,
                existing,
            };
            runs.push(trained(&run, stop, &mut |event| watch(seed, event))?);
        }
        let needed = check.needed(runs.len());
        let reached = runs.iter().filter(|run| run.trained >= check.threshold);
        learners.push(Checked {
            algorithm: check.name(),
            passed: reached.count() >= needed,
            threshold: check.threshold,
            needed,
            runs,
        });
    }
    Ok(Sanity {
        passed: learners.iter().all(|learner| learner.passed),
        learners,
    })
}

fn dir(out: &Path, check: &Check, seed: u64) -> PathBuf {
    out.join(check.name()).join(format!("seed-{seed}"))
}

fn trained(
    run: &Run<'_>,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<SanityRun, LabError> {
    let summary = train(run, stop, watch)?;
    if summary.interrupted {
        return Err(LabError::Interrupted);
    }
    let reward = |policy: &str| summary.comparison.policies[policy].reward_mean;
    Ok(SanityRun {
        seed: run.seed,
        trained: reward(TRAINED),
        random: reward("random"),
        env_steps: summary.env_steps,
        wall_s: summary.wall_s,
    })
}
