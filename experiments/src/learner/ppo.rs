//! PPO as a run sees it.

use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_learn::{Ppo, PpoConfig, UpdateReport};
use blkpilot_models::Checkpoint;

use super::{Learner, LearnerState, Update, resume_collector};
use crate::LabError;
use crate::config::Config;
use crate::playing::{self, Playing, Ready};
use crate::remote::RemoteFigures;

pub(super) struct PpoRun {
    ppo: Ppo,
    collector: Playing,
    /// As [`playing::stops_midway`] has it.
    stops_midway: bool,
    planned: u64,
    weights: LossWeights,
}

/// What the parts of the loss are multiplied by.
#[derive(Debug, Clone, Copy)]
struct LossWeights {
    value: f64,
    entropy: blkpilot_learn::Schedule,
}

impl LossWeights {
    fn of(config: &PpoConfig) -> Self {
        Self {
            value: config.value_coefficient,
            entropy: config.entropy_coefficient,
        }
    }
}

impl PpoRun {
    pub(super) fn begin(
        config: &Config,
        ppo: &PpoConfig,
        seed: u64,
        ready: Ready,
        start: Option<&Checkpoint>,
    ) -> Result<Self, LabError> {
        let learner = match start {
            Some(policy) => Ppo::start_from(policy, ready.spec(), ppo.clone(), seed)?,
            None => Ppo::new(ready.spec(), config.architecture, ppo.clone(), seed)?,
        };
        Ok(Self {
            ppo: learner,
            collector: ready.begin(seed)?,
            stops_midway: playing::stops_midway(config),
            planned: config.training.env_steps,
            weights: LossWeights::of(ppo),
        })
    }

    pub(super) fn resume(
        config: &Config,
        ppo: &PpoConfig,
        checkpoint: &Checkpoint,
        mut state: LearnerState,
    ) -> Result<Self, LabError> {
        Ok(Self {
            ppo: Ppo::resume(checkpoint, ppo.clone())?,
            collector: resume_collector(config, &mut state)?,
            stops_midway: playing::stops_midway(config),
            planned: config.training.env_steps,
            weights: LossWeights::of(ppo),
        })
    }
}

impl Learner for PpoRun {
    fn env_steps(&self) -> u64 {
        self.ppo.env_steps()
    }

    fn updates(&self) -> u64 {
        self.ppo.updates()
    }

    /// One rollout, and what is learnt from it; before the first, one to warm up.
    fn update(&mut self, stop: &AtomicBool) -> Result<Option<Update>, LabError> {
        let mut episodes = vec![];
        let stops_midway = self.stops_midway;
        let go_on = || !(stops_midway && stop.load(Ordering::Relaxed));
        if self.ppo.wants_warm_up() {
            let Some(rollout) = self.ppo.play_while(&mut self.collector, go_on)? else {
                return Ok(None);
            };
            self.ppo.warm_up(&rollout);
            episodes = rollout.episodes;
        }
        let progress = self.ppo.env_steps() as f64 / self.planned as f64;
        let Some(rollout) = self.ppo.play_while(&mut self.collector, go_on)? else {
            return Ok(None);
        };
        let report = self.ppo.update(&rollout, progress)?;
        episodes.extend(rollout.episodes);
        let note = format!(
            "policy loss {:+.4}  value loss {:.4}",
            report.policy_loss, report.value_loss
        );
        Ok(Some(Update {
            episodes,
            scalars: scalars(&report, self.weights, progress),
            note,
        }))
    }

    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError> {
        Ok(self.ppo.checkpoint(document)?)
    }

    fn state(&self) -> LearnerState {
        LearnerState {
            collector: Some(self.collector.state()),
            ..LearnerState::default()
        }
    }

    fn close(self: Box<Self>) -> Option<RemoteFigures> {
        playing::close(self.collector)
    }
}

/// As CleanRL names them, and beside them as Stable-Baselines3 does. Its value loss is the mean squared error, and not
/// half of it; its entropy loss is the entropy, negated.
fn scalars(report: &UpdateReport, weights: LossWeights, progress: f64) -> Vec<(String, f64)> {
    let loss = report.policy_loss + weights.value * report.value_loss
        - weights.entropy.at(progress) * report.entropy;
    let own = [
        ("charts/learning_rate", report.learning_rate),
        ("losses/approx_kl", report.approx_kl),
        ("losses/policy_loss", report.policy_loss),
        ("losses/value_loss", report.value_loss),
        ("losses/entropy", report.entropy),
        ("losses/clipfrac", report.clip_fraction),
        ("losses/explained_variance", report.explained_variance),
        ("losses/grad_norm", report.grad_norm),
        ("train/learning_rate", report.learning_rate),
        ("train/loss", loss),
        ("train/approx_kl", report.approx_kl),
        ("train/policy_gradient_loss", report.policy_loss),
        ("train/value_loss", 2.0 * report.value_loss),
        ("train/entropy_loss", -report.entropy),
        ("train/clip_fraction", report.clip_fraction),
        ("train/explained_variance", report.explained_variance),
    ];
    let heads = report.head_entropy.iter();
    let heads = heads.map(|(head, value)| (format!("losses/entropy_{head}"), *value));
    let own = own.map(|(tag, value)| (tag.to_owned(), value));
    own.into_iter().chain(heads).collect()
}
