//! Environments held for clients, each under a lease.

pub mod hosted;
pub(crate) mod packed;
pub mod recipe;
pub mod resetting;
mod running;
pub(crate) mod stage;
pub mod vector;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use blkpilot_env::{EnvSpec, JointAction};
use blkpilot_proto::v1;
use tokio::sync::watch;
use tonic::Code;

pub use self::recipe::{Access, Kind, Recipe};
use self::resetting::Resetting;
pub(crate) use self::running::Running;
use self::stage::{Scene, Stage};
use self::vector::Vector;
use crate::owner::handle::HostHandle;
use crate::requests::repeat::Repeat;
use crate::wire::names::{environment_name, host_name};
use crate::wire::status::Failure;

/// An environment, or many of a kind, held for a client.
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
    /// Whether a call takes less than handing it to another thread.
    is_quick: bool,
    // Fair: steps run in the order in which they came.
    state: Arc<tokio::sync::Mutex<Running>>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Starts episodes; a call that repeats one has its answer.
    ///
    /// # Errors
    /// As the environments.
    pub(crate) async fn reset(
        &self,
        resetting: Resetting,
        repeat: Option<Repeat>,
    ) -> Result<v1::ResetResponse, Failure> {
        self.run(move |running| running.answer_reset(&resetting, repeat))
            .await?
    }

    /// Applies a joint action per environment for one interval; a call that repeats one has its answer.
    ///
    /// # Errors
    /// As the environments.
    pub(crate) async fn step(
        &self,
        actions: Vec<JointAction>,
        repeat: Option<Repeat>,
    ) -> Result<v1::StepResponse, Failure> {
        self.run(move |running| running.answer_step(&actions, repeat))
            .await?
    }

    /// Runs on a thread that may be kept busy, for a step of a large host takes milliseconds; carts, of which a
    /// thousand take microseconds, where it is called.
    ///
    /// # Errors
    /// `ENVIRONMENT_PANICKED`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Running) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let mut running = Arc::clone(&self.state).lock_owned().await;
        let done = if self.is_quick {
            catch_unwind(AssertUnwindSafe(|| act(&mut running))).ok()
        } else {
            let working = tokio::task::spawn_blocking(move || act(&mut running));
            working.await.ok()
        };
        done.ok_or_else(|| {
            let message = format!(
                "{} panicked, which is our bug: delete it",
                environment_name(&self.id)
            );
            Failure::new(Code::Internal, "ENVIRONMENT_PANICKED", message)
        })
    }

    fn expires(&self) -> MutexGuard<'_, Instant> {
        self.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it is deleted unless it is called before.
    #[must_use]
    pub fn expires_at(&self) -> Instant {
        *self.expires()
    }

    /// When its lease ends, by the clock on the wall.
    #[must_use]
    pub fn lease_end(&self) -> SystemTime {
        SystemTime::now() + self.expires_at().saturating_duration_since(Instant::now())
    }
}

/// What a stream has of an environment while it waits: not the environment, which ends when it is deleted or its lease
/// runs out, whoever listens still.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    id: String,
    held: Weak<Held>,
}

impl Claim {
    pub(crate) fn of(held: &Arc<Held>) -> Self {
        Self {
            id: held.id.clone(),
            held: Arc::downgrade(held),
        }
    }
}

/// All environments held.
#[derive(Debug)]
pub struct Environments {
    most: usize,
    /// Those that can be attached, by name.
    pub(crate) hosts: BTreeMap<String, HostHandle>,
    /// What their holders are shown.
    scenes: BTreeMap<String, watch::Sender<Scene>>,
    held: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    by_id: BTreeMap<String, Arc<Held>>,
    made: u64,
}

impl Registry {
    fn holder(&self, host: &str) -> Option<&Arc<Held>> {
        let mut held = self.by_id.values();
        held.find(|held| held.recipe.held_host() == Some(host))
    }
}

impl Environments {
    /// Holds at most `most` environments at once; `hosts` can be attached.
    #[must_use]
    pub fn new(most: usize, hosts: impl IntoIterator<Item = HostHandle>) -> Self {
        let by_name = |host: HostHandle| (host.info.name.clone(), host);
        let hosts: BTreeMap<_, _> = hosts.into_iter().map(by_name).collect();
        let scene = |name: &String| (name.clone(), watch::Sender::default());
        Self {
            most,
            scenes: hosts.keys().map(scene).collect(),
            hosts,
            held: Mutex::default(),
        }
    }

    /// Checks what [`Environments::create`] checks, and takes nothing over.
    ///
    /// # Errors
    /// As [`Environments::create`].
    pub fn check(&self, id: &str, recipe: &Recipe, now: Instant) -> Result<(), Failure> {
        recipe.check(&self.hosts)?;
        self.check_place(id, recipe, now)
    }

    fn check_place(&self, id: &str, recipe: &Recipe, now: Instant) -> Result<(), Failure> {
        let registry = self.sweep(now);
        self.admit(&registry, id)?;
        refuse_second_holder(&registry, recipe)
    }

    /// Makes an environment and holds it.
    ///
    /// # Errors
    /// As [`Recipe::make`]; `ALREADY_EXISTS`; `TOO_MANY_ENVIRONMENTS`; `HOST_ATTACHED`.
    pub async fn create(
        &self,
        id: String,
        recipe: Recipe,
        now: Instant,
    ) -> Result<Arc<Held>, Failure> {
        // Before a host is taken over; and again behind, for somebody may have been quicker.
        self.check_place(&id, &recipe, now)?;
        let vector = recipe.make(&self.hosts).await?;
        let stage = recipe.held_host().and_then(|host| {
            let scene = self.scenes.get(host)?.clone();
            Some(Stage::new(environment_name(&id), scene))
        });
        let running = Running::new(vector, recipe.seed, stage);
        self.hold(id, recipe, running, now)
    }

    /// Holds the same environments again, in the state in which they are.
    ///
    /// # Errors
    /// `CANNOT_FORK` of a managed host; `ALREADY_EXISTS`; `TOO_MANY_ENVIRONMENTS`.
    pub async fn fork(
        &self,
        original: &Held,
        id: String,
        lease: Duration,
        now: Instant,
    ) -> Result<Arc<Held>, Failure> {
        self.check_fork(original, &id, now)?;
        let forked = original.run(|running| running.fork()).await?;
        let running = forked.ok_or_else(|| cannot_fork(original))?;
        let recipe = Recipe {
            lease,
            ..original.recipe.clone()
        };
        self.hold(id, recipe, running, now)
    }

    /// Checks what [`Environments::fork`] checks, and makes nothing.
    ///
    /// # Errors
    /// As [`Environments::fork`].
    pub fn check_fork(&self, original: &Held, id: &str, now: Instant) -> Result<(), Failure> {
        if matches!(original.recipe.kind, Kind::Host { .. }) {
            return Err(cannot_fork(original));
        }
        self.admit(&self.sweep(now), id)
    }

    fn hold(
        &self,
        id: String,
        recipe: Recipe,
        running: Running,
        now: Instant,
    ) -> Result<Arc<Held>, Failure> {
        let mut registry = self.sweep(now);
        self.admit(&registry, &id)?;
        registry.made += 1;
        let held = Arc::new(Held {
            spec: running.vector().spec().clone(),
            created: SystemTime::now(),
            sequence: registry.made,
            is_quick: matches!(running.vector(), Vector::Carts { .. }),
            expires: Mutex::new(now + recipe.lease),
            state: Arc::new(tokio::sync::Mutex::new(running)),
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

    /// An environment to act on; its lease starts anew.
    ///
    /// # Errors
    /// `NOT_FOUND`; `OBSERVER_ONLY`, with the one who may act, for one that only observes.
    pub fn get_acting(&self, id: &str, now: Instant) -> Result<Arc<Held>, Failure> {
        let held = self.get(id, now)?;
        let Some(host) = held.recipe.observed_host() else {
            return Ok(held);
        };
        let registry = self.sweep(now);
        Err(observer_only(id, host, registry.holder(host)))
    }

    /// What a stream has claimed, to be worked on; its lease starts anew.
    ///
    /// # Errors
    /// `NOT_FOUND` if it was deleted, also where another one has its name now.
    pub(crate) fn claimed(&self, claim: &Claim, now: Instant) -> Result<Arc<Held>, Failure> {
        let held = self.get(&claim.id, now)?;
        if Weak::ptr_eq(&Arc::downgrade(&held), &claim.held) {
            return Ok(held);
        }
        Err(unknown(&claim.id))
    }

    /// What the holder of a host is shown; `None` of a host that is not known.
    pub(crate) fn scene(&self, host: &str) -> Option<watch::Receiver<Scene>> {
        self.scenes.get(host).map(watch::Sender::subscribe)
    }

    /// Ends when the service stops; never without a host.
    pub(crate) async fn stopped(&self) {
        let mut views = self.hosts.values().map(|host| host.view.clone());
        let Some(mut view) = views.next() else {
            return std::future::pending().await;
        };
        while view.changed().await.is_ok() {}
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

fn cannot_fork(original: &Held) -> Failure {
    let message = format!(
        "{} is a managed host, of which there is but one: fork simulated hosts and carts",
        environment_name(&original.id)
    );
    Failure::new(Code::FailedPrecondition, "CANNOT_FORK", message)
}

fn refuse_second_holder(registry: &Registry, recipe: &Recipe) -> Result<(), Failure> {
    let Some((host, holder)) = recipe
        .held_host()
        .and_then(|host| Some((host, registry.holder(host)?)))
    else {
        return Ok(());
    };
    let message = format!(
        "{} is in use as {}: delete that, or observe (access = HOST_ACCESS_OBSERVER)",
        host_name(host),
        held_until(holder)
    );
    let failure = Failure::new(Code::FailedPrecondition, "HOST_ATTACHED", message);
    Err(with_holder(failure, holder))
}

fn observer_only(id: &str, host: &str, holder: Option<&Arc<Held>>) -> Failure {
    let name = environment_name(id);
    let host = host_name(host);
    let refuse = |message| Failure::new(Code::FailedPrecondition, "OBSERVER_ONLY", message);
    let Some(holder) = holder else {
        return refuse(format!(
            "{name} only observes {host}, which nobody holds: create an environment with exclusive access"
        ));
    };
    let message = format!(
        "{name} only observes {host}, held as {}",
        held_until(holder)
    );
    with_holder(refuse(message), holder)
}

fn held_until(holder: &Held) -> String {
    format!(
        "{}, whose lease ends at {} unless it is renewed",
        environment_name(&holder.id),
        humantime::format_rfc3339_seconds(holder.lease_end())
    )
}

fn with_holder(failure: Failure, holder: &Held) -> Failure {
    let end = humantime::format_rfc3339_seconds(holder.lease_end());
    failure
        .with("holder", environment_name(&holder.id))
        .with("lease_end", end)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use blkpilot_env::Autoreset;
    use blkpilot_env::sim::Generator;

    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            kind: Kind::CartPole,
            count: NonZeroUsize::MIN,
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
