//! `[training]` of distillation.

use std::path::Path;

use blkpilot_learn::DistilConfig;
use serde::Deserialize;
use toml::Table;

use super::{LearnerConfig, MOST_REMEMBERED, MOST_ROLLOUT_STEPS, RawPlay, RawSchedule, Training};
use crate::config::check::{Check, Section};

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
    replay_capacity: Option<usize>,
    temperature: Option<f64>,
    priced_per_step: Option<f64>,
    threads: Option<usize>,
    learning_rate: Option<f64>,
    learning_rate_schedule: Option<RawSchedule>,
    max_grad_norm: Option<f64>,
    start_from: Option<String>,
}

pub(super) fn training(table: Table, base: &Path, check: &mut Check) -> Option<Training> {
    let raw: Raw = check.read("training", table);
    let mut at = Section {
        name: "training",
        check,
    };
    let update = raw.envs.unwrap_or(1).saturating_mul(raw.steps.unwrap_or(1));
    if update > MOST_ROLLOUT_STEPS {
        let text = format!(
            "= {update} host-steps, all held in memory: must be at most {MOST_ROLLOUT_STEPS}"
        );
        at.check.problem("training.envs × training.steps", text);
    }
    let play = RawPlay {
        env_steps: raw.env_steps,
        envs: raw.envs,
        checkpoint_every: raw.checkpoint_every,
    };
    let least = update as u64;
    let wanted = format!("must be at least {least}: envs × steps of one update");
    let play = play.check(&mut at, least, &wanted);
    let learner = learner(&raw, &mut at);
    let start_from = raw.start_from.map(|dir| base.join(dir));
    Some(Training {
        start_from,
        ..play?.with(LearnerConfig::Distil(learner?))
    })
}

fn learner(raw: &Raw, at: &mut Section<'_>) -> Option<DistilConfig> {
    let wanted = "must be in [1, 65536]";
    let is_count = |n: usize| (1..=65_536).contains(&n);
    let steps = at.need("steps", raw.steps, is_count, wanted);
    let minibatch = at.need("minibatch", raw.minibatch, is_count, wanted);
    let wanted = "must be in [1, 1000]";
    let epochs = at.need("epochs", raw.epochs, |n| (1..=1000).contains(&n), wanted);
    let wanted = format!("must be in [1, {MOST_REMEMBERED}]: all are held in memory");
    let is_held = |n: usize| (1..=MOST_REMEMBERED).contains(&n);
    let capacity = at.may("replay_capacity", raw.replay_capacity, is_held, &wanted);
    let wanted = "must be in (0, 1]";
    let is_share = |v: f64| v > 0.0 && v <= 1.0;
    let temperature = at.may("temperature", raw.temperature, is_share, wanted);
    let rate = at.need("learning_rate", raw.learning_rate, is_share, wanted);
    let priced = raw.priced_per_step;
    let priced = at.may("priced_per_step", priced, |v| v > 0.0, "must be > 0");
    let wanted = "must be in [1, 1024]";
    let threads = at.may("threads", raw.threads, |n| (1..=1024).contains(&n), wanted);
    let norm = raw.max_grad_norm;
    let norm = at.may("max_grad_norm", norm, |v| v > 0.0, "must be > 0");
    Some(DistilConfig {
        steps: steps?,
        epochs: epochs?,
        minibatch: minibatch?,
        replay_capacity: capacity.unwrap_or(100_000),
        temperature: temperature.unwrap_or(0.02),
        priced_per_step: priced.unwrap_or(1.0),
        threads: threads.unwrap_or(1),
        learning_rate: RawSchedule::of(raw.learning_rate_schedule, rate?),
        max_grad_norm: norm.unwrap_or(10.0),
    })
}
