//! Distillation as a run sees it.

use std::sync::atomic::AtomicBool;

use blkpilot_learn::{Distil, DistilConfig, DistilReport};
use blkpilot_models::Checkpoint;

use super::{Learner, LearnerState, Update, resume_collector};
use crate::LabError;
use crate::config::Config;
use crate::playing::{self, Playing, Ready};
use crate::remote::RemoteFigures;

pub(super) struct DistilRun {
    distil: Distil,
    collector: Playing,
    planned: u64,
}

impl DistilRun {
    pub(super) fn begin(
        config: &Config,
        distil: &DistilConfig,
        seed: u64,
        ready: Ready,
        start: Option<&Checkpoint>,
    ) -> Result<Self, LabError> {
        let learner = match start {
            Some(policy) => Distil::start_from(policy, ready.spec(), distil.clone(), seed)?,
            None => Distil::new(ready.spec(), config.architecture, distil.clone(), seed)?,
        };
        Ok(Self {
            distil: learner,
            collector: ready.begin(seed)?,
            planned: config.training.env_steps,
        })
    }

    pub(super) fn resume(
        config: &Config,
        distil: &DistilConfig,
        checkpoint: &Checkpoint,
        mut state: LearnerState,
    ) -> Result<Self, LabError> {
        let memory = state.memory.take();
        Ok(Self {
            distil: Distil::resume(checkpoint, memory.as_deref(), distil.clone())?,
            collector: resume_collector(config, &mut state)?,
            planned: config.training.env_steps,
        })
    }
}

impl Learner for DistilRun {
    fn env_steps(&self) -> u64 {
        self.distil.env_steps()
    }

    fn updates(&self) -> u64 {
        self.distil.updates()
    }

    fn update(&mut self, _: &AtomicBool) -> Result<Option<Update>, LabError> {
        let progress = self.distil.env_steps() as f64 / self.planned as f64;
        let (report, episodes) = self.distil.update(&mut self.collector, progress)?;
        Ok(Some(Update {
            episodes,
            note: note(&report),
            scalars: scalars(&report),
        }))
    }

    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError> {
        Ok(self.distil.checkpoint(document)?)
    }

    fn state(&self) -> LearnerState {
        let is_done = self.distil.env_steps() >= self.planned;
        LearnerState {
            memory: (!is_done).then(|| self.distil.memory()),
            collector: Some(self.collector.state()),
            ..LearnerState::default()
        }
    }

    fn close(self: Box<Self>) -> Option<RemoteFigures> {
        playing::close(self.collector)
    }
}

fn note(report: &DistilReport) -> String {
    let DistilReport {
        loss, greedy_cost, ..
    } = report;
    format!("loss {loss:.3}  cost of the best-scored {greedy_cost:.4}")
}

fn scalars(report: &DistilReport) -> Vec<(String, f64)> {
    let named = [
        ("losses/distil_loss", report.loss),
        ("losses/grad_norm", report.grad_norm),
        ("charts/cost", report.cost),
        ("charts/greedy_cost", report.greedy_cost),
        ("charts/turns", report.turns as f64),
        ("charts/remembered", report.remembered as f64),
        ("charts/learning_rate", report.learning_rate),
        ("train/learning_rate", report.learning_rate),
        ("train/loss", report.loss),
    ];
    named.map(|(tag, value)| (tag.to_owned(), value)).into()
}
