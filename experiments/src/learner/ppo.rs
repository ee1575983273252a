//! PPO as a run sees it.

use blkpilot_learn::{Ppo, PpoConfig, UpdateReport};
use blkpilot_models::Checkpoint;

use super::{Learner, LearnerState, Playing, Update, collector, resume_collector};
use crate::LabError;
use crate::config::Config;

pub(super) struct PpoRun {
    ppo: Ppo,
    collector: Playing,
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
    pub(super) fn begin(config: &Config, ppo: &PpoConfig, seed: u64) -> Result<Self, LabError> {
        let collector = collector(config, seed)?;
        Ok(Self {
            ppo: Ppo::new(collector.spec(), config.architecture, ppo.clone(), seed)?,
            collector,
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
    fn update(&mut self) -> Result<Update, LabError> {
        let mut episodes = vec![];
        if self.ppo.env_steps() == 0 {
            let rollout = self.ppo.play(&mut self.collector)?;
            self.ppo.warm_up(&rollout);
            episodes = rollout.episodes;
        }
        let progress = self.ppo.env_steps() as f64 / self.planned as f64;
        let rollout = self.ppo.play(&mut self.collector)?;
        let report = self.ppo.update(&rollout, progress)?;
        episodes.extend(rollout.episodes);
        let note = format!(
            "policy loss {:+.4}  value loss {:.4}",
            report.policy_loss, report.value_loss
        );
        Ok(Update {
            episodes,
            scalars: scalars(&report, self.weights, progress),
            note,
        })
    }

    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError> {
        Ok(self.ppo.checkpoint(document)?)
    }

    fn state(&self) -> LearnerState {
        LearnerState {
            collector: Some(self.collector.state()),
            memory: None,
        }
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
