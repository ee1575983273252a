//! DQN as a run sees it.

use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_learn::dqn::{Learnt, RoundReport};
use blkpilot_learn::{Dqn, DqnConfig};
use blkpilot_models::Checkpoint;

use super::{Learner, LearnerState, Update, resume_collector};
use crate::LabError;
use crate::config::Config;
use crate::playing::{self, Playing, Ready};
use crate::remote::RemoteFigures;

/// Host-steps between two points of the curves at least: bouts of learning may follow each other within a few.
const REPORT_EVERY: u64 = 256;

pub(super) struct DqnRun {
    dqn: Dqn,
    collector: Playing,
    /// As [`playing::stops_midway`] has it.
    stops_midway: bool,
    planned: u64,
}

impl DqnRun {
    pub(super) fn begin(
        config: &Config,
        dqn: &DqnConfig,
        seed: u64,
        ready: Ready,
    ) -> Result<Self, LabError> {
        let (spec, envs) = (ready.spec(), config.training.envs);
        Ok(Self {
            dqn: Dqn::new(spec, envs, config.architecture, of_run(dqn, config), seed)?,
            collector: ready.begin(seed)?,
            stops_midway: playing::stops_midway(config),
            planned: config.training.env_steps,
        })
    }

    pub(super) fn resume(
        config: &Config,
        dqn: &DqnConfig,
        checkpoint: &Checkpoint,
        mut state: LearnerState,
    ) -> Result<Self, LabError> {
        let (memory, envs) = (state.memory.take(), config.training.envs);
        let mut learner = Dqn::resume(checkpoint, memory.as_deref(), envs, of_run(dqn, config))?;
        if playing::is_remote(config) {
            // New ones begin there.
            learner.leave_episodes();
        }
        Ok(Self {
            dqn: learner,
            collector: resume_collector(config, &mut state)?,
            stops_midway: playing::stops_midway(config),
            planned: config.training.env_steps,
        })
    }

    fn is_done(&self) -> bool {
        self.dqn.env_steps() >= self.planned
    }
}

/// Its schedules are shares of what the run plays, which a caller may have shortened.
fn of_run(dqn: &DqnConfig, config: &Config) -> DqnConfig {
    DqnConfig {
        env_steps: config.training.env_steps,
        ..dqn.clone()
    }
}

impl Learner for DqnRun {
    fn env_steps(&self) -> u64 {
        self.dqn.env_steps()
    }

    fn updates(&self) -> u64 {
        self.dqn.gradient_steps()
    }

    /// As many rounds as make a point of the curves; at a service fewer, if it is stopped.
    fn update(&mut self, stop: &AtomicBool) -> Result<Option<Update>, LabError> {
        let until = self.dqn.env_steps() + REPORT_EVERY;
        let (mut episodes, mut bouts) = (vec![], vec![]);
        let stops_midway = self.stops_midway;
        let go_on = || !(stops_midway && stop.load(Ordering::Relaxed));
        loop {
            let mut report = self.dqn.round_while(&mut self.collector, go_on)?;
            episodes.append(&mut report.episodes);
            bouts.extend(report.learnt);
            if self.dqn.env_steps() >= until || self.is_done() || !go_on() {
                let learnt = mean(&bouts);
                return Ok(Some(Update {
                    episodes,
                    scalars: scalars(&report, learnt, self.dqn.gradient_steps()),
                    note: note(&report, learnt),
                }));
            }
        }
    }

    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError> {
        Ok(self.dqn.checkpoint(document)?)
    }

    /// One that is done needs its memory no more.
    fn state(&self) -> LearnerState {
        LearnerState {
            collector: Some(self.collector.state()),
            memory: (!self.is_done()).then(|| self.dqn.memory()),
            ..LearnerState::default()
        }
    }

    fn close(self: Box<Self>) -> Option<RemoteFigures> {
        playing::close(self.collector)
    }
}

/// Of bouts with as many gradient steps each; `None` without a bout.
fn mean(bouts: &[Learnt]) -> Option<Learnt> {
    let mean = |of: fn(&Learnt) -> f64| bouts.iter().map(of).sum::<f64>() / bouts.len() as f64;
    (!bouts.is_empty()).then(|| Learnt {
        td_loss: mean(|bout| bout.td_loss),
        q_value: mean(|bout| bout.q_value),
        grad_norm: mean(|bout| bout.grad_norm),
    })
}

fn note(report: &RoundReport, learnt: Option<Learnt>) -> String {
    let epsilon = report.epsilon;
    match learnt {
        Some(Learnt {
            td_loss, q_value, ..
        }) => format!("epsilon {epsilon:.3}  TD loss {td_loss:.4}  Q {q_value:+.3}"),
        None => format!("epsilon {epsilon:.3}"),
    }
}

/// As CleanRL names them, and beside them as Stable-Baselines3 does.
fn scalars(
    report: &RoundReport,
    learnt: Option<Learnt>,
    gradient_steps: u64,
) -> Vec<(String, f64)> {
    let mut scalars = vec![
        ("charts/epsilon", report.epsilon),
        ("charts/learning_rate", report.learning_rate),
        ("charts/remembered", report.remembered as f64),
        ("rollout/exploration_rate", report.epsilon),
        ("train/learning_rate", report.learning_rate),
        ("train/n_updates", gradient_steps as f64),
    ];
    if let Some(learnt) = learnt {
        scalars.extend([
            ("losses/td_loss", learnt.td_loss),
            ("losses/q_values", learnt.q_value),
            ("losses/grad_norm", learnt.grad_norm),
            ("train/loss", learnt.td_loss),
        ]);
    }
    let named = scalars.into_iter();
    named.map(|(tag, value)| (tag.to_owned(), value)).collect()
}
