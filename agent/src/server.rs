//! The service as a whole: everything is checked before a socket is bound, and everything is put
//! down in order when it ends.

pub mod accept;
pub mod listen;
pub mod reload;
pub mod supervisor;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use blkpilot_env::EnvSpec;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_host::BootClock;
use blkpilot_log::LogError;
use blkpilot_proto::longrunning::operations_server::{self, OperationsServer};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_server::{self, EnvironmentServiceServer};
use blkpilot_proto::v1::evaluation_service_server::{self, EvaluationServiceServer};
use blkpilot_proto::v1::operation_service_server::{self, OperationServiceServer};
use blkpilot_proto::v1::policy_service_server::{self, PolicyServiceServer};
use blkpilot_proto::v1::training_service_server::{self, TrainingServiceServer};
use blkpilot_proto::v1::tuner_service_server::{self, TunerServiceServer};
use thiserror::Error;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::pb as reflection_pb;
use tower_layer::{Identity, Stack};

use self::accept::Spoken;
use self::listen::{ListenError, Listener};
use crate::access::audit::Audit;
use crate::access::layer::AccessLayer;
use crate::access::tls::{Refreshed, TlsKeeper, TlsProblem};
use crate::access::tokens::{TokenError, TokenFile, TokenKeeper};
use crate::access::{Access, Limits};
use crate::api::gate::Intake;
use crate::api::{
    environment_service, evaluation_service, operation_service, policy_service, training_service,
    tuner_service,
};
use crate::backend::live::LibvirtHost;
use crate::backend::modes::{Modes, Reach};
use crate::backend::simulated::{self, SimulatedHost};
use crate::backend::{BackendKind, Connect};
use crate::config::{AccessConfig, Config, HostKind, Listen, OnExit, PolicyConfig};
use crate::database::DatabaseError;
use crate::decision::PolicyRef;
use crate::decision::chain::{Chain, Loaded};
use crate::decision::history::Recorder;
use crate::decision::learner::Learner;
use crate::environments::Environments;
use crate::operations::Operations;
use crate::owner::handle::{HostHandle, HostState, Origin, Production};
use crate::owner::{self, OwnerConfig};
use crate::policies::deployment::{Deployment, follow_harm, follow_others};
use crate::policies::loading::{self, LoadError, Served};
use crate::policies::store::{PolicyStore, StoreError, VersionName};
use crate::training::{self, Trainer, Training};

/// How long calls under way may take to end when the service stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the owner of a host may take to put it back and end.
const STOP: Duration = Duration::from_secs(30);
/// How often environments are looked at whose lease may have run out.
const LEASE_CHECK: Duration = Duration::from_secs(2);
/// Share of an interval that a policy may take for a joint decision.
const PATIENCE: f64 = 0.25;
/// What health is told of, beside the service as a whole.
const SERVICES: [&str; 8] = [
    "",
    environment_service_server::SERVICE_NAME,
    evaluation_service_server::SERVICE_NAME,
    operation_service_server::SERVICE_NAME,
    operations_server::SERVICE_NAME,
    policy_service_server::SERVICE_NAME,
    training_service_server::SERVICE_NAME,
    tuner_service_server::SERVICE_NAME,
];
/// Calls of one connection that run at once.
const MOST_CALLS: usize = 128;
/// Bytes that a client may have on the way to us, in one stream and in all of a connection: streams that are not read
/// on, as a rollout is not whose answers are not taken, leave room for the other calls.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often certificate, key and client CA are looked at.
const TLS_CHECK: Duration = Duration::from_secs(5);
/// A connection on which nothing was heard for so long is asked whether anybody is there,
const KEEPALIVE: Duration = Duration::from_secs(60);
/// and closed when no answer comes for so long.
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(20);

/// Everything that is served, behind who may call it.
type Guarded = Router<Stack<AccessLayer, Identity>>;

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
    /// The tokens cannot be read.
    #[error("tokens: {0}")]
    Tokens(#[from] TokenError),
    /// What the service proves itself by has changed since the configuration was read, and is no good now.
    #[error("{}", tls_lines(.0))]
    Tls(Vec<TlsProblem>),
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

impl From<training::OpenError> for ServeError {
    fn from(error: training::OpenError) -> Self {
        match error {
            training::OpenError::Dir { dir, source } => Self::DataDir { dir, source },
            training::OpenError::Database(error) => Self::Database(error),
        }
    }
}

fn tls_lines(problems: &[TlsProblem]) -> String {
    let line = |problem: &TlsProblem| format!("service.tls.{} {problem}", problem.key);
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A service that listens.
#[derive(Debug)]
pub struct Server {
    environments: Arc<Environments>,
    listener: Listener,
    tls: Option<Arc<TlsKeeper>>,
    limits: Limits,
    router: Guarded,
    host: HostHandle,
    owner: JoinHandle<()>,
    on_exit: OnExit,
    health: HealthReporter,
    deployment: Arc<Deployment>,
    operations: Operations,
    training: Option<Arc<Training>>,
    trainings: training_service::Service,
    intake: Intake,
    drain: Duration,
}

impl Server {
    /// Loads the policy, opens the log, starts the owner of the host, and binds; in that order, so
    /// that nobody is answered before all of it is there.
    ///
    /// # Errors
    /// Whatever stands in the way; nothing is left behind then.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        Self::start_with(config, None).await
    }

    /// As [`Server::start`], with what trains policies; without it `TrainingService` refuses every call.
    ///
    /// # Errors
    /// Those of [`Server::start`].
    pub async fn start_with(config: Config, trainer: Option<Trainer>) -> Result<Self, ServeError> {
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
        let tls = tls(&service.access)?;
        let access = Arc::new(access(&service.access, &dir)?);
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
        let training = trainer.map(|trainer| Training::open(trainer, &config, &store));
        let training = training.transpose()?.map(Arc::new);
        let deployment = Deployment::new(store, host.clone(), config, patience, promoted);
        let deployment = Arc::new(deployment);
        let trainings = training_service::Service::new(training.clone(), Arc::clone(&deployment));
        let environments = Arc::new(Environments::new(service.max_environments, [host.clone()]));
        let limits = service.access.limits;
        let intake = Intake::default();
        let services = Services {
            environments: environment_service::Service::new(Arc::clone(&environments)),
            tuner: tuner_service::Service::new([host.clone()]),
            policies: policy_service::Service::new(Arc::clone(&deployment), operations.clone()),
            evaluations: evaluation_service::Service::new(
                Arc::clone(&deployment),
                operations.clone(),
            ),
            operations: operation_service::Service::new(operations.clone()),
            trainings: trainings.clone(),
        };
        let (health, router) = router(services, access, limits, &intake)?;
        Ok(Self {
            environments,
            listener,
            tls,
            limits,
            router,
            host,
            owner,
            on_exit,
            health,
            deployment,
            operations,
            training,
            trainings,
            intake,
            drain: DRAIN,
        })
    }

    /// The host that it looks after.
    #[must_use]
    pub fn host(&self) -> &HostHandle {
        &self.host
    }

    /// How long calls under way may take to end when it stops, in place of 10 s.
    #[must_use]
    pub fn drain_within(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Listen {
        self.listener.address()
    }

    /// What new connections are taken with, where TLS is spoken: to take what its files hold now at once.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<TlsKeeper>> {
        self.tls.clone()
    }

    /// Serves until `shutdown` is ready; then says so in its health, takes no more calls, puts the host
    /// back if it shall be, and lets calls under way end.
    ///
    /// # Errors
    /// `Transport`; `Owner` if the host's owner has ended by itself or does not end; `NotPutBack`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        self.run_until(shutdown, std::future::pending()).await
    }

    /// As [`Server::run`]; once `hurry` is ready too, calls under way are cut off. Putting the host back is
    /// not.
    ///
    /// # Errors
    /// Those of [`Server::run`].
    pub async fn run_until(
        self,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let Self {
            environments,
            listener,
            tls,
            limits,
            router,
            host,
            owner,
            on_exit,
            health,
            deployment,
            operations,
            training,
            trainings,
            intake,
            drain,
        } = self;
        let renewing = tls.clone().map(|keeper| tokio::spawn(follow_tls(keeper)));
        let watching = tokio::spawn(follow_health(host.clone(), health.clone()));
        let following = tokio::spawn(follow_others(Arc::clone(&deployment)));
        let withdrawing = tokio::spawn(follow_harm(deployment));
        let expiring = tokio::spawn(expire_leases(environments));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async move {
            // Both a message and a sender that has gone mean stop.
            let _ = stopped.await;
        };
        let mut serving = tokio::spawn(serve(router, listener, tls, limits, stopped));
        let mut owner_view = host.view.clone();
        let ended = async move { while owner_view.changed().await.is_ok() {} };
        let by_itself = tokio::select! {
            () = shutdown => false,
            () = ended => true,
        };
        tracing::info!(?on_exit, "stopping");
        following.abort();
        withdrawing.abort();
        watching.abort();
        // Ended or aborted: nothing says any more that it serves.
        let _ = watching.await;
        stop_serving(&health).await;
        intake.close();
        trainings.stop();
        // Processes save where they stand while the host is put back.
        let saving = tokio::spawn(save(training));
        let left = leave(&host, on_exit).await;
        // Its streams end with the owner.
        let info = Arc::clone(&host.info);
        drop(host);
        let _ = stop.send(());
        // Whoever waits for an operation or watches it is answered when that ends.
        let draining = async { tokio::join!(operations.stop(), &mut serving).1 };
        let drained = drained(draining, saving, drain, hurry).await;
        if drained.is_none() {
            serving.abort();
            // With it goes the socket.
            let _ = serving.await;
        }
        expiring.abort();
        if let Some(renewing) = renewing {
            renewing.abort();
        }
        let ended = Ended {
            by_itself,
            well: join(owner).await,
            left,
        };
        ended.check(&info.name)?;
        match drained {
            Some(Ok(served)) => Ok(served?),
            Some(Err(_)) | None => {
                tracing::warn!(
                    "calls or operations were cut off: they did not end in {drain:?}, or it had to be quick; the next start reports such operations as aborted"
                );
                Ok(())
            }
        }
    }
}

async fn save(training: Option<Arc<Training>>) {
    if let Some(training) = training {
        training.stop().await;
    }
}

/// What came of calls under way, which may end for so long, unless it has to be quick; `None` if they did not. Training
/// processes are waited for as long as they take, which has a bound of its own.
async fn drained<T>(
    draining: impl Future<Output = T>,
    saving: tokio::task::JoinHandle<()>,
    drain: Duration,
    hurry: impl Future<Output = ()>,
) -> Option<T> {
    let ending = async {
        let drained = tokio::time::timeout(drain, draining).await;
        // Nobody aborts it.
        let _ = saving.await;
        drained.ok()
    };
    tokio::select! {
        drained = ending => drained,
        () = hurry => None,
    }
}

/// How the owner of a host has ended.
struct Ended {
    by_itself: bool,
    /// `None` if it has not.
    well: Option<bool>,
    /// What it left behind.
    left: Result<(), String>,
}

impl Ended {
    fn check(self, host: &str) -> Result<(), ServeError> {
        let owner = |problem: String| ServeError::Owner {
            host: host.to_owned(),
            problem,
        };
        if self.by_itself || self.well == Some(false) {
            let problem = "its owner ended by itself, which is our bug: restart the service";
            return Err(owner(problem.to_owned()));
        }
        if let Err(problem) = self.left {
            tracing::error!(host, problem, "not put back");
            let host = host.to_owned();
            return Err(ServeError::NotPutBack { host, problem });
        }
        match self.well {
            Some(_) => Ok(()),
            None => Err(owner(format!(
                "its owner did not end in {STOP:?}: a call to the host hangs"
            ))),
        }
    }
}

/// Whoever balances load by health goes elsewhere before anything is refused.
async fn stop_serving(health: &HealthReporter) {
    for service in SERVICES {
        health
            .set_service_status(service, ServingStatus::NotServing)
            .await;
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
    router: Guarded,
    listener: Listener,
    tls: Option<Arc<TlsKeeper>>,
    limits: Limits,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let most = limits.connections;
    match listener {
        Listener::Unix(listener, _file) => {
            let incoming = accept::from_unix(listener, most);
            router.serve_with_incoming_shutdown(incoming, stopped).await
        }
        Listener::Tcp(listener, _) => {
            let spoken = tls.map_or(Spoken::Plain, Spoken::Tls);
            let incoming = accept::from_tcp(listener, spoken, most);
            router.serve_with_incoming_shutdown(incoming, stopped).await
        }
    }
}

fn tls(config: &AccessConfig) -> Result<Option<Arc<TlsKeeper>>, ServeError> {
    let open = |files| TlsKeeper::open(files, SystemTime::now()).map(Arc::new);
    let opened = config.tls.clone().map(open).transpose();
    opened.map_err(ServeError::Tls)
}

fn access(config: &AccessConfig, data_dir: &Path) -> Result<Access, ServeError> {
    let tokens = TokenKeeper::open(TokenFile::in_dir(data_dir))?;
    let audit = Audit::open(data_dir, config.audit).map_err(|source| ServeError::DataDir {
        dir: data_dir.to_owned(),
        source,
    })?;
    let rules = config.rules.clone();
    Ok(Access::new(rules, tokens, config.limits, audit))
}

/// What the owner needs, and which version of the store decides in production, if one does.
fn owner_config(config: Config) -> Result<(OwnerConfig, Option<VersionName>), ServeError> {
    let spec = spec_of(&config.host.kind);
    let mut production = loading::production(&config, &spec)?;
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
            let connect = move |modes: &Modes| {
                let host = SimulatedHost::open((*scenario).clone(), seed, modes.guests.clone())?;
                Ok(Box::new(host) as _)
            };
            let interval = Duration::from_secs_f64(interval_s);
            (BackendKind::Simulated, interval, seed, Box::new(connect))
        }
        HostKind::Libvirt(libvirt) => {
            let interval = libvirt.interval;
            let connect = move |modes: &Modes| {
                let host = LibvirtHost::open(&libvirt, modes, &data_dir)?;
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
        .then(|| loading::configured(config, spec))
        .transpose()
}

fn apart(served: Option<Served>) -> (Option<Loaded>, Option<Learner>) {
    served.map_or((None, None), |served| (Some(served.loaded), served.learner))
}

fn candidate(config: &Config, spec: &EnvSpec) -> Result<Option<Served>, LoadError> {
    let data_dir = &config.service.data_dir;
    let candidate = config.candidate.as_ref();
    candidate
        .map(|candidate| loading::load(candidate, "candidate", spec, data_dir))
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
    policies(config).map(drop)
}

/// A policy that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The table of the configuration that it stands for, `policy` or `candidate`.
    pub table: &'static str,
    /// Which it is.
    pub policy: PolicyRef,
}

/// The policies of a configuration, loaded and found to fit.
///
/// # Errors
/// `Policy`.
pub fn policies(config: &Config) -> Result<Vec<Named>, ServeError> {
    let spec = spec_of(&config.host.kind);
    let production = loading::production(config, &spec)?;
    let candidate = candidate(config, &spec)?;
    let tables = [("policy", Some(production)), ("candidate", candidate)];
    let named = tables.into_iter().filter_map(|(table, served)| {
        let policy = served?.loaded.reference;
        Some(Named { table, policy })
    });
    Ok(named.collect())
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

/// What is served, but for health and reflection.
struct Services {
    environments: environment_service::Service,
    tuner: tuner_service::Service,
    policies: policy_service::Service,
    evaluations: evaluation_service::Service,
    operations: operation_service::Service,
    trainings: training_service::Service,
}

fn router(
    services: Services,
    access: Arc<Access>,
    limits: Limits,
    intake: &Intake,
) -> Result<(HealthReporter, Guarded), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Each version lists the other one too.
            .register_encoded_file_descriptor_set(reflection_pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(reflection_pb::v1alpha::FILE_DESCRIPTOR_SET)
            .include_reflection_service(false)
    };
    let most_bytes = (limits.message_mib as usize) << 20;
    let (reflection, older) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let router = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(MOST_CALLS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .layer(AccessLayer(access))
        .add_service(health.max_decoding_message_size(most_bytes))
        .add_service(reflection.max_decoding_message_size(most_bytes))
        .add_service(older.max_decoding_message_size(most_bytes));
    Ok((reporter, services.add_to(router, most_bytes, intake)))
}

impl Services {
    fn add_to(self, router: Guarded, most_bytes: usize, intake: &Intake) -> Guarded {
        let environments = EnvironmentServiceServer::new(self.environments);
        let tuner = TunerServiceServer::new(self.tuner);
        let policies = PolicyServiceServer::new(self.policies);
        let evaluations = EvaluationServiceServer::new(self.evaluations);
        let watched = OperationServiceServer::new(self.operations.clone());
        let operations = OperationsServer::new(self.operations);
        let trainings = TrainingServiceServer::new(self.trainings);
        let intake = || intake.clone();
        router
            .add_service(InterceptedService::new(
                environments.max_decoding_message_size(most_bytes),
                intake(),
            ))
            .add_service(InterceptedService::new(
                tuner.max_decoding_message_size(most_bytes),
                intake(),
            ))
            .add_service(InterceptedService::new(
                policies.max_decoding_message_size(most_bytes),
                intake(),
            ))
            .add_service(InterceptedService::new(
                evaluations.max_decoding_message_size(most_bytes),
                intake(),
            ))
            .add_service(InterceptedService::new(
                watched.max_decoding_message_size(most_bytes),
                intake(),
            ))
            .add_service(InterceptedService::new(
                operations.max_decoding_message_size(most_bytes),
                intake(),
            ))
            .add_service(InterceptedService::new(
                trainings.max_decoding_message_size(most_bytes),
                intake(),
            ))
    }
}

/// Takes new files as they come. Whoever puts them there need not tell the service.
async fn follow_tls(keeper: Arc<TlsKeeper>) {
    let mut ticks = tokio::time::interval(TLS_CHECK);
    loop {
        ticks.tick().await;
        look_at_tls(&keeper);
    }
}

/// Takes what the files of TLS hold now, if it is new and good, and says what came of it.
pub fn look_at_tls(keeper: &TlsKeeper) {
    match keeper.refresh(SystemTime::now()) {
        Refreshed::Unchanged => {}
        Refreshed::Taken => tracing::info!("new connections get the new certificate"),
        Refreshed::Refused(problems) => {
            let problems = tls_lines(&problems);
            tracing::error!("the certificate in force stays: {problems}");
        }
    }
}

/// A client that has gone must not keep a host to itself until somebody else calls.
async fn expire_leases(environments: Arc<Environments>) {
    let mut ticks = tokio::time::interval(LEASE_CHECK);
    loop {
        ticks.tick().await;
        environments.expire(Instant::now());
    }
}

/// Keeps `grpc.health.v1` true: environments, policies, evaluations, operations and training always work, the tuner
/// while its host can be
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
        .set_serving::<EvaluationServiceServer<evaluation_service::Service>>()
        .await;
    health
        .set_serving::<OperationServiceServer<operation_service::Service>>()
        .await;
    health
        .set_serving::<OperationsServer<operation_service::Service>>()
        .await;
    // Where nothing trains, it says so in time.
    health
        .set_serving::<TrainingServiceServer<training_service::Service>>()
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
