//! What a run plays on: environments of its own, or one at a service.

use blkpilot_env::recorded::{EpisodeState, Recorded};
use blkpilot_env::sim::SimHost;
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    Autoreset, EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Rng, Step,
};
use blkpilot_learn::{Collector, CollectorState, Continued, LearnError, Planned, Resumable};
use rand::SeedableRng as _;

use crate::config::{Config, EnvironmentConfig};
use crate::environments::{self, AnyEnvironment, Purpose};
use crate::remote::{Remote, RemoteFigures};
use crate::{LabError, seeds};

/// Environments of a run, under way.
pub(crate) type Playing = Collector<Played>;

/// An environment that a run plays.
#[derive(Debug)]
pub(crate) enum Played {
    /// One of ours, which can be gone on with.
    Local(Box<Resumable<AnyEnvironment>>),
    /// One at a service.
    Remote(Box<AutoresetEnv<Remote>>),
}

/// Environments that have been made and not begun: nothing of them has been touched.
pub(crate) struct Ready(Vec<Played>);

impl Ready {
    /// Makes them.
    ///
    /// # Errors
    /// `Scenario`, `Remote`.
    pub(crate) fn make(config: &Config) -> Result<Self, LabError> {
        let envs = (0..config.training.envs).map(|_| played(&config.environment));
        envs.collect::<Result<_, _>>().map(Self)
    }

    /// What can be seen and done there.
    pub(crate) fn spec(&self) -> &EnvSpec {
        self.0[0].spec()
    }

    /// Begins an episode in each.
    ///
    /// # Errors
    /// `Learn`.
    pub(crate) fn begin(self, seed: u64) -> Result<Playing, LabError> {
        // Its own stream of the run's seed: the learner has the first.
        let mut rng = Rng::seed_from_u64(seed);
        rng.set_stream(1);
        Ok(self.begin_with(seed, rng)?)
    }

    fn begin_with(self, seed: u64, rng: Rng) -> Result<Playing, LearnError> {
        let envs = self.0.into_iter().enumerate();
        let seeded = envs.map(|(index, env)| (env, seeds::training(seed, index)));
        Collector::new(seeded.collect(), rng)
    }
}

fn played(config: &EnvironmentConfig) -> Result<Played, LabError> {
    let mode = Autoreset::SameStep;
    Ok(match config {
        EnvironmentConfig::Remote(remote) => Played::Remote(Box::new(AutoresetEnv::new(
            Remote::create(remote, Purpose::Training)?,
            mode,
        ))),
        config => {
            let env = Recorded::new(environments::make(config, Purpose::Training)?);
            Played::Local(Box::new(AutoresetEnv::new(env, mode)))
        }
    })
}

/// Whether they are at a service.
pub(crate) fn is_remote(config: &Config) -> bool {
    matches!(config.environment, EnvironmentConfig::Remote(_))
}

/// Whether nobody waits for an update to be complete, since steps last as long as a service's intervals do. Of ours the
/// next update is near, and only between two can a run be gone on with exactly.
pub(crate) fn stops_midway(config: &Config) -> bool {
    is_remote(config)
}

/// Goes on from where a run stood; at a service with a new episode.
///
/// # Errors
/// `Scenario`, `Remote`, `Learn`.
pub(crate) fn resume(
    config: &Config,
    state: CollectorState,
    seed: u64,
) -> Result<Playing, LabError> {
    if is_remote(config) {
        return Ok(Ready::make(config)?.begin_with(seed, state.rng)?);
    }
    let make = |_| environments::make(&config.environment, Purpose::Training);
    let envs = (0..config.training.envs).map(make);
    let collector = Collector::resume(envs.collect::<Result<_, _>>()?, state)?;
    Ok(collector.map(|env| Played::Local(Box::new(env))))
}

/// Leaves them; a host is put back first. What was done at a service, if anything was.
pub(crate) fn close(playing: Playing) -> Option<RemoteFigures> {
    let envs = playing.into_environments().into_iter();
    let figures = envs.filter_map(|env| match env {
        Played::Local(_) => None,
        Played::Remote(env) => Some(env.into_inner().close()),
    });
    figures.reduce(|all, one| all.plus(&one))
}

impl Environment for Played {
    fn spec(&self) -> &EnvSpec {
        match self {
            Self::Local(env) => env.spec(),
            Self::Remote(env) => env.spec(),
        }
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        match self {
            Self::Local(env) => env.reset(seed, options),
            Self::Remote(env) => env.reset(seed, options),
        }
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        match self {
            Self::Local(env) => env.step(action),
            Self::Remote(env) => env.step(action),
        }
    }
}

impl Planned for Played {
    fn host(&self) -> Option<&SimHost> {
        match self {
            Self::Local(env) => env.inner().inner().host(),
            Self::Remote(_) => None,
        }
    }
}

impl Continued for Played {
    fn episode(&self) -> Option<&EpisodeState> {
        match self {
            Self::Local(env) => env.episode(),
            Self::Remote(_) => None,
        }
    }
}
