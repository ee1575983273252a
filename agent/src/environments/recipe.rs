//! What an environment is made from.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use blkpilot_env::cartpole::CartPoleBatch;
use blkpilot_env::sim::{Generator, Scenario, ScenarioErrors, SimBatch, presets};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, EnvError};

use super::hosted::HostedEnvironment;
use super::vector::{Hosted, Vector};
use crate::owner::handle::HostHandle;
use crate::wire::names::host_name;
use crate::wire::status::Failure;

/// Largest scenario that is taken as text, bytes.
const LONGEST_SCENARIO: usize = 1 << 20;
/// Disks from which on a step is worth more than one thread.
const DISKS_FOR_THREADS: usize = 2048;

/// What an environment is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What it is.
    pub kind: Kind,
    /// How many of it are stepped together.
    pub count: NonZeroUsize,
    /// Seed of the first episode if `reset` gives none; environment i has the seed plus i.
    pub seed: u64,
    /// What `step` does after the end of an episode.
    pub autoreset: Autoreset,
    /// How long it is kept without a call.
    pub lease: Duration,
}

/// What an environment is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A simulated host with a built-in scenario.
    Preset(String),
    /// A simulated host with this scenario, as TOML.
    Scenario(String),
    /// A simulated host drawn anew for each episode.
    Generated(Generator),
    /// The cart and its pole.
    CartPole,
    /// A managed host.
    Host {
        /// Its name.
        name: String,
        /// What may be done with it.
        access: Access,
    },
}

/// What a client may do with a managed host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Act on it, alone.
    Exclusive {
        /// Why the guard is passed by; `None` if it is not.
        force_reason: Option<String>,
    },
    /// See what the one who acts sees.
    Observer,
}

impl Recipe {
    /// Makes the environments. `hosts` are those that can be attached.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with everything that is wrong with a scenario; for a host, `NOT_FOUND` and
    /// `HOST_ATTACHED`.
    pub async fn make(&self, hosts: &BTreeMap<String, HostHandle>) -> Result<Vector, Failure> {
        match self.understand()? {
            Understood::Made(vector) => Ok(vector),
            Understood::Host(name, access) => {
                let host = find_host(hosts, name)?.clone();
                let Access::Exclusive { force_reason } = access else {
                    return Ok(Vector::Observer(Box::new(host.info.spec.clone())));
                };
                let host = HostedEnvironment::attach(host, force_reason.clone()).await?;
                let host = Hosted::new(AutoresetEnv::new(host, self.autoreset));
                Ok(Vector::Host(Box::new(host)))
            }
        }
    }

    /// Checks what [`Recipe::make`] checks, without taking a host over.
    ///
    /// # Errors
    /// As [`Recipe::make`].
    pub fn check(&self, hosts: &BTreeMap<String, HostHandle>) -> Result<(), Failure> {
        match self.understand()? {
            Understood::Made(_) => Ok(()),
            Understood::Host(name, _) => find_host(hosts, name).map(drop),
        }
    }

    /// The host that it acts on, or would.
    #[must_use]
    pub fn held_host(&self) -> Option<&str> {
        match &self.kind {
            Kind::Host {
                name,
                access: Access::Exclusive { .. },
            } => Some(name),
            _ => None,
        }
    }

    /// The host that it only observes.
    #[must_use]
    pub fn observed_host(&self) -> Option<&str> {
        match &self.kind {
            Kind::Host {
                name,
                access: Access::Observer,
            } => Some(name),
            _ => None,
        }
    }

    fn understand(&self) -> Result<Understood<'_>, Failure> {
        let field = "environment.sim_host";
        match &self.kind {
            Kind::CartPole => {
                let carts = CartPoleBatch::new(self.count.get(), self.seed, self.autoreset);
                Ok(Understood::Made(Vector::carts(carts)))
            }
            Kind::Host { name, access } => Ok(Understood::Host(name, access)),
            Kind::Preset(name) => {
                let scenario = presets::by_name(name).ok_or_else(|| {
                    let known = presets::NAMES.join(", ");
                    Failure::field(
                        format!("{field}.preset"),
                        format!("\"{name}\" is not one of {known}"),
                    )
                })?;
                self.fixed(scenario)
            }
            Kind::Scenario(text) => self.fixed(parse(&format!("{field}.scenario_toml"), text)?),
            Kind::Generated(generator) => {
                let disks = generator.disks.1;
                self.simulated(
                    SimBatch::generated(generator.clone(), self.count.get()),
                    disks,
                )
            }
        }
    }

    fn fixed(&self, scenario: Scenario) -> Result<Understood<'_>, Failure> {
        let disks = scenario.disks.len();
        self.simulated(SimBatch::fixed(scenario, self.count.get()), disks)
    }

    fn simulated(
        &self,
        batch: Result<SimBatch, ScenarioErrors>,
        disks: usize,
    ) -> Result<Understood<'_>, Failure> {
        let mut batch = batch
            .map_err(EnvError::from)?
            .with_autoreset(self.autoreset);
        if disks.saturating_mul(self.count.get()) >= DISKS_FOR_THREADS {
            let threads = std::thread::available_parallelism();
            batch = batch.with_threads(threads.unwrap_or(NonZeroUsize::MIN));
        }
        Ok(Understood::Made(Vector::Sim(Box::new(batch))))
    }
}

/// What an environment is, once its recipe has been understood.
enum Understood<'a> {
    /// It needs nothing else.
    Made(Vector),
    /// A host is wanted, by name.
    Host(&'a str, &'a Access),
}

/// A host that can be attached.
fn find_host<'a>(
    hosts: &'a BTreeMap<String, HostHandle>,
    name: &str,
) -> Result<&'a HostHandle, Failure> {
    hosts
        .get(name)
        .ok_or_else(|| Failure::not_found(&host_name(name), "ListHosts names those there are"))
}

fn parse(field: &str, text: &str) -> Result<Scenario, Failure> {
    if text.len() > LONGEST_SCENARIO {
        let problem = format!(
            "has {} bytes, at most {LONGEST_SCENARIO} are taken",
            text.len()
        );
        return Err(Failure::field(field, problem));
    }
    toml::from_str(text).map_err(|error| Failure::field(field, error.to_string()))
}
