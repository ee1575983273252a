//! `[training]` of PPO.

use std::path::Path;

use blkpilot_learn::{Discount, PpoConfig};
use serde::Deserialize;
use toml::Table;

use super::{LearnerConfig, RawPlay, RawSchedule, Training};
use crate::config::check::{Check, Section};

/// Most host-steps of one rollout, over all environments: every turn of it is held in memory.
pub const MOST_ROLLOUT_STEPS: usize = 1 << 18;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    algorithm: Option<String>,
    env_steps: Option<u64>,
    envs: Option<usize>,
    checkpoint_every: Option<u64>,
    steps: Option<usize>,
    epochs: Option<usize>,
    minibatch: Option<usize>,
    gamma: Option<f64>,
    gae_lambda: Option<f64>,
    normalise_reward: Option<bool>,
    learning_rate: Option<f64>,
    learning_rate_schedule: Option<RawSchedule>,
    clip: Option<f64>,
    clip_schedule: Option<RawSchedule>,
    entropy: Option<f64>,
    entropy_schedule: Option<RawSchedule>,
    value_coefficient: Option<f64>,
    value_clip: Option<f64>,
    max_grad_norm: Option<f64>,
    target_kl: Option<f64>,
    start_from: Option<String>,
}

pub(super) fn training(table: Table, base: &Path, check: &mut Check) -> Option<Training> {
    let raw: Raw = check.read("training", table);
    let mut at = Section {
        name: "training",
        check,
    };
    let rollout = rollout(&raw, &mut at);
    let play = RawPlay {
        env_steps: raw.env_steps,
        envs: raw.envs,
        checkpoint_every: raw.checkpoint_every,
    };
    let (rollouts, what) = match raw.start_from {
        None => (2, "to warm up and one to learn from"),
        Some(_) => (1, "to learn from"),
    };
    let least = rollouts * rollout as u64;
    let wanted = format!("must be at least {least}: one rollout of envs × steps {what}");
    let play = play.check(&mut at, least, &wanted);
    let learner = learner(&raw, &mut at);
    let start_from = raw.start_from.map(|dir| base.join(dir));
    Some(Training {
        start_from,
        ..play?.with(LearnerConfig::Ppo(learner?))
    })
}

/// Host-steps of one rollout, at most as many as there may be.
fn rollout(raw: &Raw, at: &mut Section<'_>) -> usize {
    let rollout = raw.envs.unwrap_or(1).saturating_mul(raw.steps.unwrap_or(1));
    if rollout > MOST_ROLLOUT_STEPS {
        let text = format!(
            "= {rollout} host-steps, all held in memory: must be at most {MOST_ROLLOUT_STEPS}"
        );
        at.check.problem("training.envs × training.steps", text);
    }
    rollout.min(MOST_ROLLOUT_STEPS)
}

fn learner(raw: &Raw, at: &mut Section<'_>) -> Option<PpoConfig> {
    let share = |v: f64| (0.0..=1.0).contains(&v);
    let is_rate = |v: f64| v > 0.0 && v <= 1.0;
    let wanted = "must be in [1, 65536]";
    let steps = at.need("steps", raw.steps, |n| (1..=65_536).contains(&n), wanted);
    let wanted = "must be in [1, 1000]";
    let epochs = at.need("epochs", raw.epochs, |n| (1..=1000).contains(&n), wanted);
    let wanted = "must be at least 1";
    let minibatch = at.need("minibatch", raw.minibatch, |n| n >= 1, wanted);
    let gamma = at.need("gamma", raw.gamma, share, "must be in [0, 1]");
    let lambda = at.need("gae_lambda", raw.gae_lambda, share, "must be in [0, 1]");
    let rate = at.need(
        "learning_rate",
        raw.learning_rate,
        is_rate,
        "must be in (0, 1]",
    );
    let clip = at.need("clip", raw.clip, |v| v > 0.0, "must be > 0");
    let entropy = at.may("entropy", raw.entropy, |v| v >= 0.0, "must be at least 0");
    let value = raw.value_coefficient;
    let value = at.may(
        "value_coefficient",
        value,
        |v| v >= 0.0,
        "must be at least 0",
    );
    let wanted = "must be > 0; leave it out for no clip";
    let value_clip = at.may("value_clip", raw.value_clip, |v| v > 0.0, wanted);
    let most = at.may(
        "max_grad_norm",
        raw.max_grad_norm,
        |v| v > 0.0,
        "must be > 0",
    );
    let wanted = "must be > 0; leave it out for no target";
    let target_kl = at.may("target_kl", raw.target_kl, |v| v > 0.0, wanted);
    Some(PpoConfig {
        steps: steps?,
        epochs: epochs?,
        minibatch: minibatch?,
        discount: Discount {
            gamma: gamma? as f32,
            lambda: lambda? as f32,
        },
        normalise_reward: raw.normalise_reward.unwrap_or(false),
        learning_rate: RawSchedule::of(raw.learning_rate_schedule, rate?),
        clip: RawSchedule::of(raw.clip_schedule, clip?),
        entropy_coefficient: RawSchedule::of(raw.entropy_schedule, entropy.unwrap_or(0.0)),
        value_clip,
        value_coefficient: value.unwrap_or(0.5),
        max_grad_norm: most.unwrap_or(0.5),
        target_kl,
    })
}
