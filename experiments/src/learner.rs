//! Learners as a run sees them: what goes on by updates, says what each came to, and can be saved and gone on with.

mod distil;
mod dqn;
mod offline;
mod ppo;

use std::sync::atomic::AtomicBool;

use blkpilot_learn::{CollectorState, EpisodeEnd};
use blkpilot_models::Checkpoint;

use crate::LabError;
use crate::config::{Config, LearnerConfig};
use crate::offline::LearntFrom;
use crate::playing::{self, Playing, Ready};
use crate::remote::RemoteFigures;
use crate::start::Start;

/// A learner with all that it learns from.
pub(crate) trait Learner {
    /// Host-steps learnt from; gradient steps of one that plays none.
    fn env_steps(&self) -> u64;

    /// Updates made.
    fn updates(&self) -> u64;

    /// Goes on by one update. `None` if `stop` was set before there was enough to learn from: what was played since the
    /// last one is lost then.
    fn update(&mut self, stop: &AtomicBool) -> Result<Option<Update>, LabError>;

    /// The policy as it stands, with the learner's own state. `document`: the config as it was written.
    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError>;

    /// Where it stands, but for what is in the checkpoint.
    fn state(&self) -> LearnerState;

    /// The log that it learns from, and what it expects of its policy; `None` of one that plays.
    fn learnt_from(&self) -> Result<Option<LearntFrom>, LabError> {
        Ok(None)
    }

    /// Leaves its environments, and puts a live host back. What was done at a service, if anything was.
    fn close(self: Box<Self>) -> Option<RemoteFigures>;
}

/// Where a learner stands, but for what is in its checkpoint.
#[derive(Debug, Default)]
pub(crate) struct LearnerState {
    /// Where its environments stand; `None` if it plays none.
    pub(crate) collector: Option<CollectorState>,
    /// Seed of the run.
    pub(crate) seed: u64,
    /// What it remembers; `None` if it remembers nothing, or needs it no more.
    pub(crate) memory: Option<Vec<u8>>,
}

/// What one update came to.
#[derive(Debug)]
pub(crate) struct Update {
    /// Episodes that ended.
    pub(crate) episodes: Vec<EpisodeEnd>,
    /// Figures by the tags of their curves.
    pub(crate) scalars: Vec<(String, f64)>,
    /// The most telling of them, in a few words.
    pub(crate) note: String,
}

/// A learner at the beginning of a run, and the policy that it begins from, if it begins from one; everything random
/// follows from `seed`.
pub(crate) fn begin(config: &Config, seed: u64) -> Result<(Box<dyn Learner>, Origin), LabError> {
    Ok(match &config.training.learner {
        LearnerConfig::Ppo(ppo) => {
            let ready = Ready::make(config)?;
            let origin = origin(config, &ready)?;
            let start = origin.as_ref().map(|(_, policy)| policy);
            let run = ppo::PpoRun::begin(config, ppo, seed, ready, start)?;
            (Box::new(run), origin)
        }
        LearnerConfig::Dqn(dqn) => {
            let ready = Ready::make(config)?;
            (
                Box::new(dqn::DqnRun::begin(config, dqn, seed, ready)?),
                None,
            )
        }
        LearnerConfig::Distil(distil) => {
            let ready = Ready::make(config)?;
            let origin = origin(config, &ready)?;
            let start = origin.as_ref().map(|(_, policy)| policy);
            let run = distil::DistilRun::begin(config, distil, seed, ready, start)?;
            (Box::new(run), origin)
        }
        LearnerConfig::Offline(offline) => {
            let run = offline::OfflineRun::begin(config, *offline, seed)?;
            (Box::new(run), None)
        }
    })
}

/// Read before any of the environments is touched.
fn origin(config: &Config, ready: &Ready) -> Result<Origin, LabError> {
    let dir = config.training.start_from.as_deref();
    dir.map(|dir| Start::load(dir, ready.spec())).transpose()
}

/// The policy that a run begins from.
pub(crate) type Origin = Option<(Start, Checkpoint)>;

/// The learner of a run that goes on. The error, if there is one, is to be told with the run's directory.
pub(crate) fn resume(
    config: &Config,
    checkpoint: &Checkpoint,
    state: LearnerState,
) -> Result<Box<dyn Learner>, LabError> {
    Ok(match &config.training.learner {
        LearnerConfig::Ppo(ppo) => Box::new(ppo::PpoRun::resume(config, ppo, checkpoint, state)?),
        LearnerConfig::Dqn(dqn) => Box::new(dqn::DqnRun::resume(config, dqn, checkpoint, state)?),
        LearnerConfig::Distil(distil) => Box::new(distil::DistilRun::resume(
            config, distil, checkpoint, state,
        )?),
        LearnerConfig::Offline(offline) => {
            Box::new(offline::OfflineRun::resume(config, *offline, checkpoint)?)
        }
    })
}

/// Those of a run that goes on.
fn resume_collector(config: &Config, state: &mut LearnerState) -> Result<Playing, LabError> {
    let missing = || blkpilot_learn::LearnError::NoState {
        problem: "its state does not say where its environments stood".to_owned(),
    };
    let collector = state.collector.take().ok_or_else(missing)?;
    playing::resume(config, collector, state.seed)
}
