//! What stands in a summary beside a policy that was learnt from a log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blkpilot_evaluate::{
    Block, EvaluateError, Evaluation, History, HistoryStep, Mixed, NetworkTarget, Options,
    VerdictRule, evaluate, verdict,
};
use blkpilot_learn::offline::{Dataset, Facts};
use blkpilot_models::bootstrap::{ci95, mean};
use blkpilot_models::{Checkpoint, Selection};
use serde::Serialize;

/// Episodes from which on they are what is resampled; a log with fewer is cut by time.
const LEAST_EPISODES: usize = 20;
/// Length of the blocks that are resampled else.
const BLOCK_S: f64 = 600.0;
/// Steps of the windows in which a policy is evaluated, unless the log's runs are shorter.
const HORIZON: usize = 10;

/// What the policy that wrote a log earned: on its own episodes, so that nothing has to be estimated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Behaviour {
    /// Names of the policies that decided.
    pub policies: Vec<String>,
    /// Mean host mean reward per interval in which a disk counts, as the comparison has it: mean over blocks.
    pub reward_mean: f64,
    /// Its 95 % interval; `None` of a single block.
    pub reward_ci95: Option<[f64; 2]>,
    /// What is resampled for the interval.
    pub resampled: &'static str,
    /// How many there are.
    pub blocks: usize,
}

impl Behaviour {
    /// Of a log.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let by_episode = by(history, |step| (step.host, step.episode));
        let (resampled, blocks) = if by_episode.len() >= LEAST_EPISODES {
            ("host x episode", by_episode)
        } else {
            let block_us = (BLOCK_S * 1e6) as i64;
            let by_time = by(history, |step| {
                (step.host, step.at_us.div_euclid(block_us) as u128)
            });
            ("host x 600 s", by_time)
        };
        let policies = history.facts.behaviours.iter();
        Self {
            policies: policies.map(|known| known.policy.clone()).collect(),
            reward_mean: mean(&blocks),
            reward_ci95: (blocks.len() > 1).then(|| ci95(&blocks)),
            resampled,
            blocks: blocks.len(),
        }
    }
}

/// Mean reward of each block over the joint decisions in which a disk counts.
fn by(history: &History, block: impl Fn(&HistoryStep<'_>) -> (usize, u128)) -> Vec<f64> {
    let mut sums: BTreeMap<(usize, u128), (f64, f64)> = BTreeMap::new();
    for step in history.steps().filter(|step| step.counted > 0) {
        if let Some(reward) = step.reward {
            let (sum, count) = sums.entry(block(&step)).or_default();
            *sum += reward;
            *count += 1.0;
        }
    }
    sums.into_values().map(|(sum, count)| sum / count).collect()
}

/// What a policy was learnt from, and what is expected of it: what the log's policy earned, what the learner expects, and
/// what an evaluation on the same log says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearntFrom {
    /// The log.
    pub log: PathBuf,
    /// SHA-256 of what was read of it.
    pub log_sha256: String,
    /// Disks' turns in it.
    pub turns: usize,
    /// Those with a choice.
    pub choices: usize,
    /// Those of which values are learnt.
    pub transitions: usize,
    /// Those whose successor was not logged; no value is learnt from them.
    pub cut: usize,
    /// What the policy that wrote it earned.
    pub behaviour: Behaviour,
    /// Discount of the two that follow.
    pub gamma: f64,
    /// Discounted sum of the training rewards of a disk from the beginning of its course on, mean over courses: as it was;
    /// `None` without transitions.
    pub behaviour_return: Option<f64>,
    /// The same, as the learner expects it of its own policy; `None` of one without values. Nothing checks it.
    pub own_estimate: Option<f64>,
    /// The policy evaluated on the log that it was learnt from; `None` until training has ended.
    pub evaluation: Option<Evaluated>,
}

impl LearntFrom {
    /// Before anything is known of the policy.
    #[must_use]
    pub fn new(log: PathBuf, data: &Dataset, behaviour: Behaviour, gamma: f64) -> Self {
        let Facts {
            turns,
            choices,
            transitions,
            cut,
            ..
        } = data.facts;
        Self {
            log,
            log_sha256: data.digest.clone(),
            turns,
            choices,
            transitions,
            cut,
            behaviour,
            gamma,
            behaviour_return: (transitions > 0).then(|| mean(&data.returns(gamma))),
            own_estimate: None,
            evaluation: None,
        }
    }

    /// For people: a line each.
    #[must_use]
    pub fn text(&self) -> String {
        let interval = |[low, high]: [f64; 2]| format!(" ({low:.4} to {high:.4})");
        let Behaviour {
            policies,
            reward_mean,
            reward_ci95,
            resampled,
            blocks,
        } = &self.behaviour;
        let mut text = format!(
            "learnt from {}: {} turns, {} of them with reward and successor\n{} in the log: {reward_mean:.4}{}, over {blocks} of {resampled}\n",
            self.log.display(),
            self.turns,
            self.transitions,
            policies.join(", "),
            reward_ci95.map_or_else(String::new, interval)
        );
        if let (Some(own), Some(was)) = (self.own_estimate, self.behaviour_return) {
            text += &format!(
                "discounted by {}: the learner expects {own:.4} of its policy, which nothing checks; the log has {was:.4}\n",
                self.gamma
            );
        }
        if let Some(evaluation) = &self.evaluation {
            for Estimate {
                estimator,
                reward_mean,
                reward_ci95,
            } in &evaluation.estimates
            {
                let value =
                    reward_mean.map_or_else(|| "undefined".to_owned(), |v| format!("{v:.4}"));
                let interval = reward_ci95.map_or_else(String::new, interval);
                text += &format!("by {estimator} on the same log: {value}{interval}\n");
            }
            text += &format!("{}\n", evaluation.verdict.trim_end());
        }
        text
    }
}

/// What `blkpilot evaluate` says of the policy. It was learnt from the same rows, which makes it look better than it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluated {
    /// What is estimated, in words.
    pub estimand: String,
    /// What the behaviour earned by the same measure, with its interval.
    pub behaviour: Option<(f64, [f64; 2])>,
    /// By estimator.
    pub estimates: Vec<Estimate>,
    /// The verdict, with its reasons; or why there is none.
    pub verdict: String,
}

/// By one estimator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Its name.
    pub estimator: &'static str,
    /// What the policy would have brought; `None` where that is undefined.
    pub reward_mean: Option<f64>,
    /// Its interval.
    pub reward_ci95: Option<[f64; 2]>,
}

/// Evaluates a policy on a log.
///
/// # Errors
/// What is wrong with the checkpoint. What keeps the log from being evaluated is the verdict.
pub fn evaluated(
    log: &Path,
    checkpoint: &Checkpoint,
    selection: Selection,
    gamma: f64,
) -> Result<Evaluated, crate::LabError> {
    let policy = NetworkTarget::new("trained", checkpoint, selection, 0.0)?;
    let mut options = Options {
        gamma,
        horizon: HORIZON,
        block: Block::Episode,
        mixed: Mixed::Admitted,
        ..Options::default()
    };
    loop {
        match evaluate(log, &policy, None, &options) {
            // Runs in the log may be shorter than a window.
            Err(EvaluateError::Option {
                what: "horizon", ..
            }) if options.horizon > 1 => options.horizon /= 2,
            Err(error) => return Ok(Evaluated::none(&error)),
            Ok(found) => return Ok(Evaluated::of(&found)),
        }
    }
}

impl Evaluated {
    fn none(error: &EvaluateError) -> Self {
        Self {
            estimand: String::new(),
            behaviour: None,
            estimates: vec![],
            verdict: format!("none: {error}"),
        }
    }

    fn of(found: &Evaluation) -> Self {
        let estimates = found.estimates.iter().map(|estimate| Estimate {
            estimator: estimate.estimator.name(),
            reward_mean: estimate.value.map(|value| value.estimate),
            reward_ci95: estimate.value.map(|value| value.interval),
        });
        Self {
            estimand: found.estimand.clone(),
            behaviour: found
                .behaviour
                .map(|value| (value.estimate, value.interval)),
            estimates: estimates.collect(),
            verdict: verdict(found, &VerdictRule::default()).text,
        }
    }
}
