//! Environments held for clients, each under a lease.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::sim::{Generator, Scenario, SimHost, presets};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    Autoreset, EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Step,
};
use tonic::Code;

use crate::handle::HostHandle;
use crate::hosted::HostedEnvironment;
use crate::names::{environment_name, host_name};
use crate::status::Failure;

/// Largest scenario that is taken as text, bytes.
const LONGEST_SCENARIO: usize = 1 << 20;

/// What an environment is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What it is.
    pub kind: Kind,
    /// Seed of the first episode if `reset` gives none.
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
        /// Why the guard is passed by; `None` if it is not.
        force_reason: Option<String>,
    },
}

impl Recipe {
    /// Makes the environment. `hosts` are those that can be attached.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with everything that is wrong with a scenario; for a host, `NOT_FOUND` and
    /// `HOST_ATTACHED`.
    pub async fn make(
        &self,
        hosts: &BTreeMap<String, HostHandle>,
    ) -> Result<Box<dyn Environment + Send>, Failure> {
        match self.understand()? {
            Understood::Made(env) => Ok(env),
            Understood::Host(name, force_reason) => {
                let host = find_host(hosts, name)?.clone();
                let host = HostedEnvironment::attach(host, force_reason.cloned()).await?;
                Ok(Box::new(AutoresetEnv::new(host, self.autoreset)))
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

    fn understand(&self) -> Result<Understood<'_>, Failure> {
        let mode = self.autoreset;
        let field = "environment.sim_host";
        let host = match &self.kind {
            Kind::CartPole => {
                let env = AutoresetEnv::new(CartPole::new(self.seed), mode);
                return Ok(Understood::Made(Box::new(env)));
            }
            Kind::Host { name, force_reason } => {
                return Ok(Understood::Host(name, force_reason.as_ref()));
            }
            Kind::Preset(name) => {
                let scenario = presets::by_name(name).ok_or_else(|| {
                    let known = presets::NAMES.join(", ");
                    Failure::field(
                        format!("{field}.preset"),
                        format!("\"{name}\" is not one of {known}"),
                    )
                })?;
                SimHost::fixed(scenario)
            }
            Kind::Scenario(text) => SimHost::fixed(parse(&format!("{field}.scenario_toml"), text)?),
            Kind::Generated(generator) => SimHost::generated(generator.clone()),
        };
        let env = AutoresetEnv::new(host.map_err(EnvError::from)?, mode);
        Ok(Understood::Made(Box::new(env)))
    }
}

/// What an environment is, once its recipe has been understood.
enum Understood<'a> {
    /// It needs nothing else.
    Made(Box<dyn Environment + Send>),
    /// A host is to be taken over, by name, and why the guard is passed by.
    Host(&'a str, Option<&'a String>),
}

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

/// An environment held for a client.
pub struct Held {
    /// Last segment of its name.
    pub id: String,
    /// What it was made from.
    pub recipe: Recipe,
    /// What can be seen and done there.
    pub spec: EnvSpec,
    /// When it was made.
    pub created: SystemTime,
    /// Order in which environments were made.
    sequence: u64,
    expires: Mutex<Instant>,
    // Fair: steps run in the order in which they came.
    state: Arc<tokio::sync::Mutex<Running>>,
}

struct Running {
    env: Box<dyn Environment + Send>,
    /// The seed of the first episode, until it has been started.
    first_seed: Option<u64>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Starts an episode.
    ///
    /// # Errors
    /// As the environment.
    pub async fn reset(
        &self,
        seed: Option<u64>,
        options: ResetOptions,
    ) -> Result<Observation, Failure> {
        self.run(move |running| {
            let seed = seed.or(running.first_seed);
            let observation = running.env.reset(seed, &options)?;
            running.first_seed = None;
            Ok(observation)
        })
        .await
    }

    /// Applies an action for one interval.
    ///
    /// # Errors
    /// As the environment.
    pub async fn step(&self, action: JointAction) -> Result<Step, Failure> {
        self.run(move |running| running.env.step(&action)).await
    }

    /// Runs on a thread that may be kept busy: a step of a large host takes milliseconds.
    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Running) -> Result<T, EnvError> + Send + 'static,
    ) -> Result<T, Failure> {
        let mut running = Arc::clone(&self.state).lock_owned().await;
        let done = tokio::task::spawn_blocking(move || act(&mut running)).await;
        let done = done.map_err(|_| {
            let message = format!(
                "{} panicked, which is our bug: delete it",
                environment_name(&self.id)
            );
            Failure::new(Code::Internal, "ENVIRONMENT_PANICKED", message)
        })?;
        Ok(done?)
    }

    fn expires(&self) -> MutexGuard<'_, Instant> {
        self.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it is deleted unless it is called before.
    #[must_use]
    pub fn expires_at(&self) -> Instant {
        *self.expires()
    }
}

/// All environments held.
#[derive(Debug)]
pub struct Environments {
    most: usize,
    /// Those that can be attached, by name.
    pub(crate) hosts: BTreeMap<String, HostHandle>,
    held: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    by_id: BTreeMap<String, Arc<Held>>,
    made: u64,
}

impl Environments {
    /// Holds at most `most` environments at once; `hosts` can be attached.
    #[must_use]
    pub fn new(most: usize, hosts: impl IntoIterator<Item = HostHandle>) -> Self {
        let by_name = |host: HostHandle| (host.info.name.clone(), host);
        Self {
            most,
            hosts: hosts.into_iter().map(by_name).collect(),
            held: Mutex::default(),
        }
    }

    /// Makes an environment and holds it.
    ///
    /// # Errors
    /// As [`Recipe::make`]; `ALREADY_EXISTS`; `TOO_MANY_ENVIRONMENTS`.
    pub async fn create(
        &self,
        id: String,
        recipe: Recipe,
        now: Instant,
    ) -> Result<Arc<Held>, Failure> {
        // Before a host is taken over; and again behind, for somebody may have been quicker.
        self.admit(&self.sweep(now), &id)?;
        let env = recipe.make(&self.hosts).await?;
        let mut registry = self.sweep(now);
        self.admit(&registry, &id)?;
        registry.made += 1;
        let held = Arc::new(Held {
            spec: env.spec().clone(),
            created: SystemTime::now(),
            sequence: registry.made,
            expires: Mutex::new(now + recipe.lease),
            state: Arc::new(tokio::sync::Mutex::new(Running {
                env,
                first_seed: Some(recipe.seed),
            })),
            recipe,
            id: id.clone(),
        });
        registry.by_id.insert(id, Arc::clone(&held));
        Ok(held)
    }

    fn admit(&self, registry: &Registry, id: &str) -> Result<(), Failure> {
        if registry.by_id.contains_key(id) {
            let message = format!("{} exists already: choose another id", environment_name(id));
            return Err(Failure::new(Code::AlreadyExists, "ALREADY_EXISTS", message));
        }
        if registry.by_id.len() >= self.most {
            let message = format!(
                "{} environments are held, which is the limit: delete one, or raise service.max_environments",
                self.most
            );
            return Err(
                Failure::new(Code::ResourceExhausted, "TOO_MANY_ENVIRONMENTS", message)
                    .with("limit", self.most),
            );
        }
        Ok(())
    }

    /// An environment; its lease starts anew.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn get(&self, id: &str, now: Instant) -> Result<Arc<Held>, Failure> {
        let registry = self.sweep(now);
        let held = registry.by_id.get(id).ok_or_else(|| unknown(id))?;
        *held.expires() = now + held.recipe.lease;
        Ok(Arc::clone(held))
    }

    /// All environments, oldest first; their leases go on.
    #[must_use]
    pub fn list(&self, now: Instant) -> Vec<Arc<Held>> {
        let mut held: Vec<_> = self.sweep(now).by_id.values().cloned().collect();
        held.sort_by_key(|held| held.sequence);
        held
    }

    /// Deletes an environment.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn delete(&self, id: &str, now: Instant) -> Result<(), Failure> {
        self.sweep(now)
            .by_id
            .remove(id)
            .map(drop)
            .ok_or_else(|| unknown(id))
    }

    /// Drops what nobody called for the length of its lease; also done by every other call.
    pub fn expire(&self, now: Instant) {
        drop(self.sweep(now));
    }

    fn sweep(&self, now: Instant) -> MutexGuard<'_, Registry> {
        let mut registry = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        registry.by_id.retain(|_, held| held.expires_at() > now);
        registry
    }
}

fn unknown(id: &str) -> Failure {
    Failure::not_found(
        &environment_name(id),
        "it was deleted, or its lease ran out; CreateEnvironment makes one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            kind: Kind::CartPole,
            seed: 1,
            autoreset: Autoreset::Disabled,
            lease: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn a_lease_runs_out_unless_it_is_renewed() {
        let (held, start) = (Environments::new(2, []), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        held.create("a".into(), recipe(), at(0)).await.unwrap();
        held.create("b".into(), recipe(), at(0)).await.unwrap();
        held.get("a", at(50)).unwrap();
        assert_eq!(held.list(at(70)).len(), 1);
        assert!(held.get("b", at(70)).is_err());
        held.get("a", at(109)).unwrap();
    }

    #[tokio::test]
    async fn a_lease_runs_out_without_another_call() {
        let (held, start) = (Environments::new(2, []), Instant::now());
        let made = held.create("a".into(), recipe(), start).await;
        let made = Arc::downgrade(&made.unwrap());
        held.expire(start + Duration::from_secs(59));
        assert!(made.upgrade().is_some());
        held.expire(start + Duration::from_secs(60));
        assert!(made.upgrade().is_none());
    }

    #[tokio::test]
    async fn no_more_are_held_than_allowed_and_no_id_twice() {
        let (held, now) = (Environments::new(2, []), Instant::now());
        held.create("a".into(), recipe(), now).await.unwrap();
        let twice = held.create("a".into(), recipe(), now).await.unwrap_err();
        assert_eq!(twice.reason(), "ALREADY_EXISTS");
        held.create("b".into(), recipe(), now).await.unwrap();
        let third = held.create("c".into(), recipe(), now).await.unwrap_err();
        assert_eq!(third.reason(), "TOO_MANY_ENVIRONMENTS");
        held.delete("a", now).unwrap();
        held.create("c".into(), recipe(), now).await.unwrap();
    }

    #[test]
    fn everything_wrong_with_a_scenario_is_named() {
        let generator = Generator {
            disks: (3, 1),
            noise: 9.0,
            ..Generator::default()
        };
        let bad = Recipe {
            kind: Kind::Generated(generator),
            ..recipe()
        };
        let failure = bad.check(&BTreeMap::new()).unwrap_err();
        assert!(failure.message().contains("disks") && failure.message().contains("noise"));
    }
}
