//! Learners from a decision log as a run sees them.

use std::sync::atomic::AtomicBool;

use blkpilot_learn::{Offline, OfflineReport};
use blkpilot_models::Checkpoint;

use super::{Learner, LearnerState, Update};
use crate::LabError;
use crate::config::{Config, OfflineTraining};
use crate::environments;
use crate::offline::{self, LearntFrom, ReadLog};
use crate::remote::RemoteFigures;

pub(super) struct OfflineRun {
    learner: Offline,
    /// Of the log, beside what the learner holds of it.
    log: LearntFrom,
    training: OfflineTraining,
    planned: u64,
}

impl OfflineRun {
    pub(super) fn begin(
        config: &Config,
        training: OfflineTraining,
        seed: u64,
    ) -> Result<Self, LabError> {
        let spec = environments::spec(&config.environment)?;
        Self::new(config, training, |data| {
            Offline::new(&spec, config.architecture, training.offline, data, seed)
        })
    }

    pub(super) fn resume(
        config: &Config,
        training: OfflineTraining,
        checkpoint: &Checkpoint,
    ) -> Result<Self, LabError> {
        Self::new(config, training, |data| {
            Offline::resume(checkpoint, training.offline, data)
        })
    }

    fn new(
        config: &Config,
        training: OfflineTraining,
        learner: impl FnOnce(
            blkpilot_learn::offline::Dataset,
        ) -> Result<Offline, blkpilot_learn::LearnError>,
    ) -> Result<Self, LabError> {
        let dir = config.data.as_ref().map(|data| data.log.as_path());
        let dir =
            dir.expect("a config of a learner from a log names one: checked when it was read");
        let ReadLog {
            dir,
            data,
            behaviour,
        } = offline::read(dir, &environments::spec(&config.environment)?)?;
        let log = LearntFrom::new(dir, &data, behaviour, training.offline.gamma);
        Ok(Self {
            learner: learner(data)?,
            log,
            training,
            planned: config.training.env_steps,
        })
    }
}

impl Learner for OfflineRun {
    /// Nothing is played: its gradient steps.
    fn env_steps(&self) -> u64 {
        self.learner.steps()
    }

    fn updates(&self) -> u64 {
        self.learner.steps()
    }

    /// Soon done: nobody needs to stop it midway.
    fn update(&mut self, _: &AtomicBool) -> Result<Option<Update>, LabError> {
        let made = self.learner.steps();
        let steps = self.training.report_every.min(self.planned - made);
        let progress = made as f64 / self.planned as f64;
        let report = self.learner.learn(steps, progress)?;
        Ok(Some(Update {
            episodes: vec![],
            note: note(&report),
            scalars: scalars(&report),
        }))
    }

    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError> {
        Ok(self.learner.checkpoint(document)?)
    }

    fn state(&self) -> LearnerState {
        LearnerState::default()
    }

    fn close(self: Box<Self>) -> Option<RemoteFigures> {
        None
    }

    fn learnt_from(&self) -> Result<Option<LearntFrom>, LabError> {
        Ok(Some(LearntFrom {
            own_estimate: self.learner.own_estimate()?,
            ..self.log.clone()
        }))
    }
}

fn note(report: &OfflineReport) -> String {
    let of = |(name, value): &(&str, f64)| format!("{} {value:.4}", name.replace('_', " "));
    let figures: Vec<String> = report.figures.iter().take(3).map(of).collect();
    figures.join("  ")
}

/// As CleanRL names them.
fn scalars(report: &OfflineReport) -> Vec<(String, f64)> {
    let figures = report.figures.iter();
    let mut scalars: Vec<(String, f64)> = figures
        .map(|(name, value)| (format!("losses/{name}"), *value))
        .collect();
    scalars.push(("charts/learning_rate".to_owned(), report.learning_rate));
    scalars
}
