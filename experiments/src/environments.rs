//! Environments as a config names them.

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::reward::Weighting;
use blkpilot_env::sim::SimHost;
use blkpilot_env::{
    EnvError, EnvSpec, Environment, JointAction, Observation, Repeatable, ResetOptions, Rng, Step,
};

use crate::LabError;
use crate::config::{EnvironmentConfig, HostSource};

/// An environment of our own, of one of the kinds that a config can name.
#[derive(Debug)]
pub enum AnyEnvironment {
    /// CartPole-v1.
    CartPole(Box<CartPole>),
    /// A simulated host.
    SimHost(Box<SimHost>),
}

/// What an environment is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To learn: where the config has ranges of reward weights, each episode has its own.
    Training,
    /// To compare: the weights are the config's, so that all are paid alike.
    Evaluation,
}

/// Makes an environment; autoreset is disabled.
///
/// # Errors
/// `Scenario` if the scenario or the generator does not hold together, `NotHere` if it is at a service.
pub fn make(config: &EnvironmentConfig, purpose: Purpose) -> Result<AnyEnvironment, LabError> {
    Ok(match config {
        EnvironmentConfig::CartPole => AnyEnvironment::CartPole(Box::new(CartPole::new(0))),
        EnvironmentConfig::SimHost {
            source,
            reward,
            ranges,
        } => {
            let host = match source {
                HostSource::Scenario(scenario) => SimHost::fixed((**scenario).clone())?,
                HostSource::Generated(generator) => SimHost::generated(generator.clone())?,
            };
            let weighting = match (purpose, ranges) {
                (Purpose::Training, Some(ranges)) => Weighting::Drawn(**ranges),
                _ => Weighting::Fixed(*reward),
            };
            AnyEnvironment::SimHost(Box::new(host.with_reward(weighting)))
        }
        EnvironmentConfig::Remote(remote) => {
            return Err(LabError::NotHere {
                address: remote.address.clone(),
            });
        }
    })
}

/// What the environments of a config show and offer.
///
/// # Errors
/// As [`make`].
pub fn spec(config: &EnvironmentConfig) -> Result<EnvSpec, LabError> {
    Ok(make(config, Purpose::Training)?.spec().clone())
}

impl AnyEnvironment {
    /// The simulated host, if it is one.
    #[must_use]
    pub fn host(&self) -> Option<&SimHost> {
        match self {
            Self::CartPole(_) => None,
            Self::SimHost(host) => Some(host),
        }
    }
}

impl Environment for AnyEnvironment {
    fn spec(&self) -> &EnvSpec {
        match self {
            Self::CartPole(cart) => cart.spec(),
            Self::SimHost(host) => host.spec(),
        }
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        match self {
            Self::CartPole(cart) => cart.reset(seed, options),
            Self::SimHost(host) => host.reset(seed, options),
        }
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        match self {
            Self::CartPole(cart) => cart.step(action),
            Self::SimHost(host) => host.step(action),
        }
    }
}

impl Repeatable for AnyEnvironment {
    fn rng(&self) -> &Rng {
        match self {
            Self::CartPole(cart) => cart.rng(),
            Self::SimHost(host) => host.rng(),
        }
    }

    fn set_rng(&mut self, rng: Rng) {
        match self {
            Self::CartPole(cart) => cart.set_rng(rng),
            Self::SimHost(host) => host.set_rng(rng),
        }
    }
}
