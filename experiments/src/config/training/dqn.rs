//! `[training]` of DQN.

use blkpilot_learn::DqnConfig;
use blkpilot_learn::dqn::{Bootstrap, Exploration, Follow, Prioritised};
use serde::Deserialize;
use toml::Table;

use super::{LearnerConfig, Play, RawPlay, RawSchedule, Training};
use crate::config::check::{Check, Section};

/// Most transitions that are remembered: each is held in memory.
pub const MOST_REMEMBERED: usize = 1 << 22;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    algorithm: Option<String>,
    env_steps: Option<u64>,
    envs: Option<usize>,
    checkpoint_every: Option<u64>,
    train_frequency: Option<u64>,
    gradient_steps: Option<usize>,
    learning_starts: Option<u64>,
    minibatch: Option<usize>,
    replay_capacity: Option<usize>,
    priority_alpha: Option<f64>,
    priority_beta: Option<f64>,
    gamma: Option<f64>,
    n_steps: Option<usize>,
    double: Option<bool>,
    target_update_interval: Option<u64>,
    tau: Option<f64>,
    exploration_initial: Option<f64>,
    exploration_final: Option<f64>,
    exploration_fraction: Option<f64>,
    learning_rate: Option<f64>,
    learning_rate_schedule: Option<RawSchedule>,
    max_grad_norm: Option<f64>,
}

pub(super) fn training(table: Table, check: &mut Check) -> Option<Training> {
    let raw: Raw = check.read("training", table);
    let mut at = Section {
        name: "training",
        check,
    };
    let play = RawPlay {
        env_steps: raw.env_steps,
        envs: raw.envs,
        checkpoint_every: raw.checkpoint_every,
    };
    let starts = raw.learning_starts.unwrap_or(0);
    let least = starts.saturating_add(raw.train_frequency.unwrap_or(1));
    let wanted = format!(
        "must be at least {least}: learning_starts, and train_frequency for the first gradient steps"
    );
    let play = play.check(&mut at, least, &wanted);
    let learner = learner(&raw, play.as_ref(), &mut at);
    Some(play?.with(LearnerConfig::Dqn(learner?)))
}

fn is_share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

fn learner(raw: &Raw, play: Option<&Play>, at: &mut Section<'_>) -> Option<DqnConfig> {
    let is_bout = |n: u64| (1..=65_536).contains(&n);
    let wanted = "must be in [1, 65536]";
    let frequency = at.need("train_frequency", raw.train_frequency, is_bout, wanted);
    let is_count = |n: usize| (1..=65_536).contains(&n);
    let steps = at.need("gradient_steps", raw.gradient_steps, is_count, wanted);
    let minibatch = at.need("minibatch", raw.minibatch, is_count, wanted);
    let starts = raw.learning_starts;
    let starts = at.need("learning_starts", starts, |_| true, "must be at least 0");
    let wanted = format!("must be in [1, {MOST_REMEMBERED}]: all are held in memory");
    let is_held = |n: usize| (1..=MOST_REMEMBERED).contains(&n);
    let capacity = at.need("replay_capacity", raw.replay_capacity, is_held, &wanted);
    let gamma = at.need("gamma", raw.gamma, is_share, "must be in [0, 1]");
    let wanted = "must be in [1, 1000]";
    let n_steps = at.may("n_steps", raw.n_steps, |n| (1..=1000).contains(&n), wanted);
    let is_rate = |v: f64| v > 0.0 && v <= 1.0;
    let wanted = "must be in (0, 1]";
    let rate = at.need("learning_rate", raw.learning_rate, is_rate, wanted);
    let norm = at.may(
        "max_grad_norm",
        raw.max_grad_norm,
        |v| v > 0.0,
        "must be > 0",
    );
    let bootstrap = match raw.double {
        Some(false) => Bootstrap::Max,
        Some(true) | None => Bootstrap::Double,
    };
    let prioritised = prioritised(raw, at);
    let follow = follow(raw, at);
    let exploration = exploration(raw, at);
    Some(DqnConfig {
        env_steps: play?.env_steps,
        train_frequency: frequency?,
        gradient_steps: steps?,
        learning_starts: starts?,
        batch: minibatch?,
        capacity: capacity?,
        prioritised,
        gamma: gamma?,
        n_steps: n_steps.unwrap_or(1),
        bootstrap,
        follow: follow?,
        exploration: exploration?,
        learning_rate: RawSchedule::of(raw.learning_rate_schedule, rate?),
        max_grad_norm: norm.unwrap_or(10.0),
    })
}

fn prioritised(raw: &Raw, at: &mut Section<'_>) -> Option<Prioritised> {
    let wanted = "must be in [0, 1]; leave it out for a uniform replay";
    let alpha = at.may("priority_alpha", raw.priority_alpha, is_share, wanted);
    let beta = at.may(
        "priority_beta",
        raw.priority_beta,
        is_share,
        "must be in [0, 1]",
    );
    if alpha.is_none() && beta.is_some() {
        let text =
            "is only for a replay with priorities: add training.priority_alpha, or remove it";
        at.check.problem("training.priority_beta", text);
    }
    alpha.map(|alpha| Prioritised {
        alpha,
        beta: beta.unwrap_or(0.4),
    })
}

fn follow(raw: &Raw, at: &mut Section<'_>) -> Option<Follow> {
    match (raw.target_update_interval, raw.tau) {
        (Some(_), Some(_)) => {
            let text = "stands beside training.target_update_interval: keep one of them";
            at.check.problem("training.tau", text);
            None
        }
        (None, Some(tau)) => {
            at.may("tau", raw.tau, |v| v > 0.0 && v <= 1.0, "must be in (0, 1]");
            Some(Follow::Polyak { tau })
        }
        (every, None) => {
            let wanted = "must be at least 1, or give tau";
            let every = at.need("target_update_interval", every, |n| n >= 1, wanted);
            every.map(|every| Follow::Copy { every })
        }
    }
}

fn exploration(raw: &Raw, at: &mut Section<'_>) -> Option<Exploration> {
    let wanted = "must be in [0, 1]";
    let from = at.may(
        "exploration_initial",
        raw.exploration_initial,
        is_share,
        wanted,
    );
    let to = at.need("exploration_final", raw.exploration_final, is_share, wanted);
    let fraction = raw.exploration_fraction;
    let fraction = at.need("exploration_fraction", fraction, is_share, wanted);
    Some(Exploration {
        from: from.unwrap_or(1.0),
        to: to?,
        fraction: fraction?,
    })
}
