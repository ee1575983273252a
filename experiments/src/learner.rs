//! Learners as a run sees them: what goes on by updates, says what each came to, and can be saved and gone on with.

mod dqn;
mod offline;
mod ppo;

use blkpilot_env::recorded::Recorded;
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, Rng};
use blkpilot_learn::{Collector, CollectorState, EpisodeEnd, Resumable};
use blkpilot_models::Checkpoint;
use rand::SeedableRng as _;

use crate::config::{Config, LearnerConfig};
use crate::environments::{self, AnyEnvironment, Purpose};
use crate::offline::LearntFrom;
use crate::{LabError, seeds};

/// A learner with all that it learns from.
pub(crate) trait Learner {
    /// Host-steps learnt from; gradient steps of one that plays none.
    fn env_steps(&self) -> u64;

    /// Updates made.
    fn updates(&self) -> u64;

    /// Goes on by one update.
    fn update(&mut self) -> Result<Update, LabError>;

    /// The policy as it stands, with the learner's own state. `document`: the config as it was written.
    fn checkpoint(&self, document: serde_json::Value) -> Result<Checkpoint, LabError>;

    /// Where it stands, but for what is in the checkpoint.
    fn state(&self) -> LearnerState;

    /// The log that it learns from, and what it expects of its policy; `None` of one that plays.
    fn learnt_from(&self) -> Result<Option<LearntFrom>, LabError> {
        Ok(None)
    }
}

/// Where a learner stands, but for what is in its checkpoint.
#[derive(Debug, Default)]
pub(crate) struct LearnerState {
    /// Where its environments stand; `None` if it plays none.
    pub(crate) collector: Option<CollectorState>,
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

/// A learner at the beginning of a run; everything random follows from `seed`.
pub(crate) fn begin(config: &Config, seed: u64) -> Result<Box<dyn Learner>, LabError> {
    Ok(match &config.training.learner {
        LearnerConfig::Ppo(ppo) => Box::new(ppo::PpoRun::begin(config, ppo, seed)?),
        LearnerConfig::Dqn(dqn) => Box::new(dqn::DqnRun::begin(config, dqn, seed)?),
        LearnerConfig::Offline(offline) => {
            Box::new(offline::OfflineRun::begin(config, *offline, seed)?)
        }
    })
}

/// The learner of a run that goes on.
pub(crate) fn resume(
    config: &Config,
    checkpoint: &Checkpoint,
    state: LearnerState,
) -> Result<Box<dyn Learner>, LabError> {
    Ok(match &config.training.learner {
        LearnerConfig::Ppo(ppo) => Box::new(ppo::PpoRun::resume(config, ppo, checkpoint, state)?),
        LearnerConfig::Dqn(dqn) => Box::new(dqn::DqnRun::resume(config, dqn, checkpoint, state)?),
        LearnerConfig::Offline(offline) => {
            Box::new(offline::OfflineRun::resume(config, *offline, checkpoint)?)
        }
    })
}

/// Environments of a run, under way.
type Playing = Collector<Resumable<AnyEnvironment>>;

/// Those of a run that begins.
fn collector(config: &Config, seed: u64) -> Result<Playing, LabError> {
    let mut envs = Vec::new();
    for index in 0..config.training.envs {
        let env = Recorded::new(environments::make(&config.environment, Purpose::Training)?);
        let env = AutoresetEnv::new(env, Autoreset::SameStep);
        envs.push((env, seeds::training(seed, index)));
    }
    // Its own stream of the run's seed: the learner has the first.
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(1);
    Ok(Collector::new(envs, rng)?)
}

/// Those of a run that goes on.
fn resume_collector(config: &Config, state: &mut LearnerState) -> Result<Playing, LabError> {
    let envs = (0..config.training.envs)
        .map(|_| environments::make(&config.environment, Purpose::Training));
    let envs = envs.collect::<Result<_, _>>()?;
    let missing = || blkpilot_learn::LearnError::NoState {
        problem: "its state does not say where its environments stood".to_owned(),
    };
    let state = state.collector.take().ok_or_else(missing)?;
    Ok(Collector::resume(envs, state)?)
}
