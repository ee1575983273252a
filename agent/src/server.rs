//! The service as a whole: everything is checked before a socket is bound, and everything is put
//! down in order when it ends.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkpilot_env::EnvSpec;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_host::BootClock;
use blkpilot_log::LogError;
use blkpilot_proto::longrunning::operations_server::OperationsServer;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_server::EnvironmentServiceServer;
use blkpilot_proto::v1::operation_service_server::OperationServiceServer;
use blkpilot_proto::v1::policy_service_server::PolicyServiceServer;
use blkpilot_proto::v1::tuner_service_server::TunerServiceServer;
use thiserror::Error;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::server::HealthReporter;

use crate::admission::{Modes, Reach};
use crate::backend::live::LibvirtHost;
use crate::backend::simulated::{self, SimulatedHost};
use crate::backend::{BackendKind, Connect};
use crate::chain::{Chain, Loaded};
use crate::config::{Config, HostKind, Listen, OnExit, PolicyConfig};
use crate::database::DatabaseError;
use crate::deployment::{Deployment, follow_others};
use crate::environments::Environments;
use crate::gate::LoopbackChanges;
use crate::handle::{HostHandle, HostState, Origin, Production};
use crate::history::Recorder;
use crate::learner::Learner;
use crate::listen::{ListenError, Listener};
use crate::operations::Operations;
use crate::owner::{self, OwnerConfig};
use crate::policy::{self, LoadError, Served};
use crate::policy_store::{PolicyStore, StoreError, VersionName};
use crate::{environment_service, operation_service, policy_service, tuner_service};

/// How long calls under way may take to end when the service stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the owner of a host may take to put it back and end.
const STOP: Duration = Duration::from_secs(30);
/// How often environments are looked at whose lease may have run out.
const LEASE_CHECK: Duration = Duration::from_secs(2);
/// Share of an interval that a policy may take for a joint decision.
const PATIENCE: f64 = 0.25;
/// Calls of one connection that run at once.
const MOST_CALLS: usize = 128;

/// Why the service did not start, or ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The policy was refused.
    #[error(transparent)]
    Policy(#[from] LoadError),
    /// The data directory cannot be used.
    #[error("service.data_dir = {}: {source}: choose a directory that this user may write", dir.display())]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The policy store cannot be used.
    #[error("policy store: {0}")]
    Store(#[from] StoreError),
    /// The database of the service cannot be used.
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
    /// The decision log cannot be used.
    #[error("decision log: {0}")]
    Log(#[from] LogError),
    /// Nothing can listen there.
    #[error("service.listen = {0}")]
    Listen(#[from] ListenError),
    /// The owner of a host could not be started, or has ended by itself.
    #[error("host {host}: {problem}")]
    Owner {
        /// Name of the host.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The host was not put back when the service ended.
    #[error(
        "host {host} is not as it was: {problem}; the journal keeps what was changed: start the service again and roll back"
    )]
    NotPutBack {
        /// Name of the host.
        host: String,
        /// What was left behind, and why.
        problem: String,
    },
    /// Serving failed.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// Reflection could not be set up, which is our bug.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A service that listens.
#[derive(Debug)]
pub struct Server {
    environments: Arc<Environments>,
    listener: Listener,
    router: Router,
    host: HostHandle,
    owner: JoinHandle<()>,
    on_exit: OnExit,
    health: HealthReporter,
    deployment: Arc<Deployment>,
    operations: Operations,
}

impl Server {
    /// Loads the policy, opens the log, starts the owner of the host, and binds; in that order, so
    /// that nobody is answered before all of it is there.
    ///
    /// # Errors
    /// Whatever stands in the way; nothing is left behind then.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        let service = config.service.clone();
        let dir = service.data_dir.clone();
        std::fs::create_dir_all(&dir).map_err(|source| ServeError::DataDir {
            dir: dir.clone(),
            source,
        })?;
        let on_exit = match &config.host.kind {
            HostKind::Simulated { .. } => OnExit::Keep,
            HostKind::Libvirt(libvirt) => libvirt.on_exit,
        };
        let store = PolicyStore::open(&dir)?;
        let patience = patience(&config.host.kind);
        let (owner_config, promoted) = owner_config(config.clone())?;
        // Nobody else serves this directory now: what a crash has left is in nobody's way.
        let swept = store.sweep()?;
        if swept > 0 {
            tracing::info!(swept, "removed checkpoints whose upload was interrupted");
        }
        let name = owner_config.name.clone();
        let listener = Listener::bind(&service.listen).await?;
        let (host, owner) = owner::start(owner_config).map_err(|e| ServeError::Owner {
            host: name,
            problem: e.to_string(),
        })?;
        let operations = Operations::open(store.database().clone())?;
        let deployment = Deployment::new(store, host.clone(), config, patience, promoted);
        let deployment = Arc::new(deployment);
        let environments = Arc::new(Environments::new(service.max_environments, [host.clone()]));
        let changes = if service.loopback_may_change {
            LoopbackChanges::Taken
        } else {
            LoopbackChanges::Refused
        };
        let policies =
            policy_service::Service::new(Arc::clone(&deployment), operations.clone(), changes);
        let (health, router) = router(&host, Arc::clone(&environments), policies, changes)?;
        let watched = operation_service::Service::new(operations.clone(), changes);
        let router = router
            .add_service(OperationsServer::new(watched.clone()))
            .add_service(OperationServiceServer::new(watched));
        Ok(Self {
            environments,
            listener,
            router,
            host,
            owner,
            on_exit,
            health,
            deployment,
            operations,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Listen {
        self.listener.address()
    }

    /// Serves until `shutdown` is ready; then puts the host back if it shall be, and lets calls
    /// under way end.
    ///
    /// # Errors
    /// `Transport`; `Owner` if the host's owner has ended by itself or does not end; `NotPutBack`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self {
            environments,
            listener,
            router,
            host,
            owner,
            on_exit,
            health,
            deployment,
            operations,
        } = self;
        let watching = tokio::spawn(follow_health(host.clone(), health));
        let following = tokio::spawn(follow_others(deployment));
        let expiring = tokio::spawn(expire_leases(environments));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async move {
            // Both a message and a sender that has gone mean stop.
            let _ = stopped.await;
        };
        let serving = tokio::spawn(serve(router, listener, stopped));
        let mut owner_view = host.view.clone();
        let ended = async move { while owner_view.changed().await.is_ok() {} };
        let by_itself = tokio::select! {
            () = shutdown => false,
            () = ended => true,
        };
        tracing::info!(?on_exit, "stopping");
        let left = leave(&host, on_exit).await;
        // Its streams end with the owner.
        let info = Arc::clone(&host.info);
        drop(host);
        if tokio::time::timeout(DRAIN, operations.stop())
            .await
            .is_err()
        {
            tracing::warn!(
                "an operation did not end in {DRAIN:?}: the next start reports it as aborted"
            );
        }
        let _ = stop.send(());
        let drained = tokio::time::timeout(DRAIN, serving).await;
        watching.abort();
        following.abort();
        expiring.abort();
        let host = info.name.clone();
        let ended_well = join(owner).await;
        if by_itself || ended_well == Some(false) {
            return Err(ServeError::Owner {
                host,
                problem: "its owner ended by itself, which is our bug: restart the service"
                    .to_owned(),
            });
        }
        if let Err(problem) = left {
            tracing::error!(host, problem, "not put back");
            return Err(ServeError::NotPutBack { host, problem });
        }
        if ended_well.is_none() {
            let problem = format!("its owner did not end in {STOP:?}: a call to the host hangs");
            return Err(ServeError::Owner { host, problem });
        }
        match drained {
            Ok(Ok(served)) => Ok(served?),
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("calls were cut off: they did not end in {DRAIN:?}");
                Ok(())
            }
        }
    }
}

/// Ends the owner, and says what it left behind.
async fn leave(host: &HostHandle, on_exit: OnExit) -> Result<(), String> {
    let Ok(left) = tokio::time::timeout(STOP, host.stop(on_exit)).await else {
        return Err(format!(
            "no answer in {STOP:?}: a call to the host hangs, and on_exit may not have been done"
        ));
    };
    match (on_exit, left) {
        (OnExit::Keep, _) | (_, Ok(None)) => Ok(()),
        (OnExit::Revert, Ok(Some(decision))) => {
            tracing::info!(decision = %decision.id, error = decision.error, "put back");
            decision.error.clone().map_or(Ok(()), Err)
        }
        (OnExit::Revert, Err(failure)) => Err(failure.message().to_owned()),
    }
}

/// Whether the owner ended as it should; `None` if it has not. It is not waited for in a blocking
/// task, which would keep the process from ending.
async fn join(owner: JoinHandle<()>) -> Option<bool> {
    let ended = async {
        while !owner.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(STOP, ended).await.ok()?;
    Some(owner.join().is_ok())
}

async fn serve(
    router: Router,
    listener: Listener,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    match listener {
        Listener::Unix(listener, _file) => {
            let incoming = UnixListenerStream::new(listener);
            router.serve_with_incoming_shutdown(incoming, stopped).await
        }
        Listener::Loopback(listener, _) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, stopped).await
        }
    }
}

/// What the owner needs, and which version of the store decides in production, if one does.
fn owner_config(config: Config) -> Result<(OwnerConfig, Option<VersionName>), ServeError> {
    let spec = spec_of(&config.host.kind);
    let mut production = policy::production(&config, &spec)?;
    let promoted = production.version.take();
    let kept = kept(&config, &spec, promoted.as_ref())?;
    let candidate = candidate(&config, &spec)?;
    let log = config.service.data_dir.join("decisions");
    let recorder = Recorder::open(&log, &config.log)?;
    let modes = Modes {
        default: config.host.mode,
        guests: config.host.guests,
        candidate: match candidate {
            Some(_) => Reach::Canary,
            None => Reach::Nobody,
        },
    };
    let known = modes.clone();
    let data_dir = config.service.data_dir;
    let served_from = data_dir.clone();
    let patience = patience(&config.host.kind);
    let (kind, interval, seed, connect): (_, _, _, Connect) = match config.host.kind {
        HostKind::Simulated {
            scenario,
            seed,
            time_scale,
        } => {
            let interval_s = scenario.interval_s / time_scale;
            let connect = move || {
                let host = SimulatedHost::open((*scenario).clone(), seed, known.guests.clone())?;
                Ok(Box::new(host) as _)
            };
            let interval = Duration::from_secs_f64(interval_s);
            (BackendKind::Simulated, interval, seed, Box::new(connect))
        }
        HostKind::Libvirt(libvirt) => {
            let interval = libvirt.interval;
            let connect = move || {
                let host = LibvirtHost::open(&libvirt, &known, &data_dir)?;
                Ok(Box::new(host) as _)
            };
            // On a live host nothing is to be repeated, so each run draws anew.
            let seed = uuid::Uuid::new_v4().as_u128() as u64;
            (BackendKind::Libvirt, interval, seed, Box::new(connect))
        }
    };
    let learner = production.learner.take();
    let production = Production::of(production, &served_from, &spec, patience);
    let (kept, kept_learner) = apart(kept);
    let (candidate, candidate_learner) = apart(candidate);
    let learners = [learner, kept_learner, candidate_learner];
    let mut learners: Vec<Learner> = learners.into_iter().flatten().collect();
    for learner in &mut learners {
        learner.catch_up(&log, &config.host.name);
    }
    let owner_config = OwnerConfig {
        name: config.host.name,
        kind,
        interval,
        modes,
        production: production.chain,
        candidate: candidate.map(|candidate| Chain::alone(candidate, patience)),
        origin: match promoted {
            Some(_) => Origin::Store,
            None => Origin::Configuration,
        },
        configured: kept.map(|kept| Chain::with_fallbacks(kept, None, &spec, patience)),
        learners,
        proof: production.proof,
        clock: Box::new(BootClock),
        spec,
        seed,
        connect,
        recorder,
        guard: config.guard,
        neighbours: config.neighbours,
        reward: config.reward,
    };
    Ok((owner_config, promoted))
}

/// The configuration's policy while a promoted one decides, where it has to be kept: one that learns must miss
/// nothing.
fn kept(
    config: &Config,
    spec: &EnvSpec,
    promoted: Option<&VersionName>,
) -> Result<Option<Served>, LoadError> {
    let learns = matches!(config.policy, PolicyConfig::Bandit(_));
    let is_kept = learns && promoted.is_some();
    is_kept
        .then(|| policy::configured(config, spec))
        .transpose()
}

fn apart(served: Option<Served>) -> (Option<Loaded>, Option<Learner>) {
    served.map_or((None, None), |served| (Some(served.loaded), served.learner))
}

fn candidate(config: &Config, spec: &EnvSpec) -> Result<Option<Served>, LoadError> {
    let data_dir = &config.service.data_dir;
    let candidate = config.candidate.as_ref();
    candidate
        .map(|candidate| policy::load(candidate, "candidate", spec, data_dir))
        .transpose()
}

/// What a policy may take for a joint decision: a quarter of the interval. A simulated host's is that of
/// its own clock, however fast that runs: what it is to find out is whether a policy would be late on a
/// host like it.
fn patience(kind: &HostKind) -> Duration {
    match kind {
        HostKind::Simulated { scenario, .. } => Duration::from_secs_f64(scenario.interval_s),
        HostKind::Libvirt(libvirt) => libvirt.interval,
    }
    .mul_f64(PATIENCE)
}

/// Checks all that can be checked without binding or writing anything: the policies load and fit.
///
/// # Errors
/// `Policy`.
pub fn check(config: &Config) -> Result<(), ServeError> {
    let spec = spec_of(&config.host.kind);
    policy::production(config, &spec)?;
    candidate(config, &spec)?;
    Ok(())
}

/// What can be seen and done on a host, known before it is reached.
fn spec_of(kind: &HostKind) -> EnvSpec {
    match kind {
        HostKind::Simulated { scenario, .. } => {
            simulated::spec(scenario).unwrap_or_else(|| kvm_host_spec(&[]))
        }
        HostKind::Libvirt(libvirt) => blkpilot_host::live::spec(&libvirt.devices),
    }
}

fn router(
    host: &HostHandle,
    environments: Arc<Environments>,
    policies: policy_service::Service,
    changes: LoopbackChanges,
) -> Result<(HealthReporter, Router), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let environment_service = environment_service::Service::new(environments, changes);
    let tuner_service = tuner_service::Service::new([host.clone()], changes);
    let router = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(MOST_CALLS)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(EnvironmentServiceServer::new(environment_service))
        .add_service(TunerServiceServer::new(tuner_service))
        .add_service(PolicyServiceServer::new(policies));
    Ok((reporter, router))
}

/// A client that has gone must not keep a host to itself until somebody else calls.
async fn expire_leases(environments: Arc<Environments>) {
    let mut ticks = tokio::time::interval(LEASE_CHECK);
    loop {
        ticks.tick().await;
        environments.expire(Instant::now());
    }
}

/// Keeps `grpc.health.v1` true: environments, policies and operations always work, the tuner while its host can be
/// reached.
async fn follow_health(host: HostHandle, health: HealthReporter) {
    type Tuner = TunerServiceServer<tuner_service::Service>;
    health
        .set_serving::<EnvironmentServiceServer<environment_service::Service>>()
        .await;
    health
        .set_serving::<PolicyServiceServer<policy_service::Service>>()
        .await;
    health
        .set_serving::<OperationServiceServer<operation_service::Service>>()
        .await;
    let mut view = host.view.clone();
    drop(host);
    loop {
        let state = view.borrow_and_update().state.clone();
        if state == HostState::Ready {
            health.set_serving::<Tuner>().await;
        } else {
            health.set_not_serving::<Tuner>().await;
        }
        if view.changed().await.is_err() {
            return health.set_not_serving::<Tuner>().await;
        }
    }
}
