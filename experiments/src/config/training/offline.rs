//! `[training]` of the learners from a log: bc, cql and iql.

use blkpilot_learn::OfflineConfig;
use blkpilot_learn::offline::{Algorithm, CqlConfig, IqlConfig, TdLoss};
use serde::Deserialize;
use toml::Table;

use super::{LearnerConfig, RawSchedule, Training};
use crate::config::check::{Check, Section};

/// How to learn from a log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfflineTraining {
    /// The learner.
    pub offline: OfflineConfig,
    /// Gradient steps between two reports, which are what a run is made of: it is interrupted between two of them.
    pub report_every: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    algorithm: Option<String>,
    grad_steps: Option<u64>,
    report_every: Option<u64>,
    checkpoint_every: Option<u64>,
    minibatch: Option<usize>,
    gamma: Option<f64>,
    learning_rate: Option<f64>,
    learning_rate_schedule: Option<RawSchedule>,
    max_grad_norm: Option<f64>,
    alpha: Option<f64>,
    td_loss: Option<RawTdLoss>,
    target_every: Option<u64>,
    expectile: Option<f64>,
    beta: Option<f64>,
    most_weight: Option<f64>,
    polyak: Option<f64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawTdLoss {
    Huber,
    Squared,
}

impl Raw {
    /// Keys that one algorithm has and others have not, each with the algorithm and whether it is given.
    fn own_keys(&self) -> [(&'static str, &'static str, bool); 7] {
        [
            ("alpha", "cql", self.alpha.is_some()),
            ("td_loss", "cql", self.td_loss.is_some()),
            ("target_every", "cql", self.target_every.is_some()),
            ("expectile", "iql", self.expectile.is_some()),
            ("beta", "iql", self.beta.is_some()),
            ("most_weight", "iql", self.most_weight.is_some()),
            ("polyak", "iql", self.polyak.is_some()),
        ]
    }
}

/// `name` is one of theirs.
pub(super) fn training(name: &str, table: Table, check: &mut Check) -> Option<Training> {
    let raw: Raw = check.read("training", table);
    for (key, owner, is_given) in raw.own_keys() {
        if is_given && owner != name {
            let text = format!("is only for algorithm = \"{owner}\": remove it");
            check.problem(format!("training.{key}"), text);
        }
    }
    let mut at = Section {
        name: "training",
        check,
    };
    let count = |n: u64| n >= 1;
    let wanted = "must be at least 1";
    let grad_steps = at.need("grad_steps", raw.grad_steps, count, wanted);
    let report_every = at.may("report_every", raw.report_every, count, wanted);
    let every = at.may("checkpoint_every", raw.checkpoint_every, count, wanted);
    let offline = offline(name, &raw, &mut at);
    let grad_steps = grad_steps?;
    Some(Training {
        env_steps: grad_steps,
        envs: 0,
        checkpoint_every: every.unwrap_or(grad_steps.div_ceil(10)),
        start_from: None,
        learner: LearnerConfig::Offline(OfflineTraining {
            offline: offline?,
            report_every: report_every.unwrap_or(100),
        }),
    })
}

fn offline(name: &str, raw: &Raw, at: &mut Section<'_>) -> Option<OfflineConfig> {
    let share = |v: f64| (0.0..=1.0).contains(&v);
    let is_rate = |v: f64| v > 0.0 && v <= 1.0;
    let is_size = |n: usize| (1..=65_536).contains(&n);
    let size = at.need("minibatch", raw.minibatch, is_size, "must be in [1, 65536]");
    let gamma = at.need("gamma", raw.gamma, share, "must be in [0, 1]");
    let wanted = "must be in (0, 1]";
    let rate = at.need("learning_rate", raw.learning_rate, is_rate, wanted);
    let wanted = "must be > 0; leave it out for no limit";
    let most = at.may("max_grad_norm", raw.max_grad_norm, |v| v > 0.0, wanted);
    let algorithm = match name {
        "cql" => cql(raw, at).map(Algorithm::Cql),
        "iql" => iql(raw, at).map(Algorithm::Iql),
        _ => Some(Algorithm::Bc),
    };
    Some(OfflineConfig {
        algorithm: algorithm?,
        minibatch: size?,
        gamma: gamma?,
        learning_rate: RawSchedule::of(raw.learning_rate_schedule, rate?),
        max_grad_norm: most,
    })
}

fn cql(raw: &Raw, at: &mut Section<'_>) -> Option<CqlConfig> {
    let alpha = at.need("alpha", raw.alpha, |v| v >= 0.0, "must be at least 0");
    let wanted = "must be at least 1";
    let every = at.need("target_every", raw.target_every, |n| n >= 1, wanted);
    Some(CqlConfig {
        alpha: alpha?,
        td_loss: match raw.td_loss {
            None | Some(RawTdLoss::Huber) => TdLoss::Huber,
            Some(RawTdLoss::Squared) => TdLoss::Squared,
        },
        target_every: every?,
    })
}

fn iql(raw: &Raw, at: &mut Section<'_>) -> Option<IqlConfig> {
    let is_inner = |v: f64| v > 0.0 && v < 1.0;
    let expectile = at.need("expectile", raw.expectile, is_inner, "must be in (0, 1)");
    let beta = at.need("beta", raw.beta, |v| v >= 0.0, "must be at least 0");
    let most = at.may("most_weight", raw.most_weight, |v| v > 0.0, "must be > 0");
    let is_share = |v: f64| v > 0.0 && v <= 1.0;
    let polyak = at.may("polyak", raw.polyak, is_share, "must be in (0, 1]");
    Some(IqlConfig {
        expectile: expectile?,
        beta: beta?,
        most_weight: most.unwrap_or(100.0),
        polyak: polyak.unwrap_or(0.005),
    })
}
