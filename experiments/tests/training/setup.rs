//! Services that train, in this process and as one of their own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blkpilot_agent::client::connect;
use blkpilot_agent::config::Config;
use blkpilot_agent::server::{ServeError, Server};
use blkpilot_lab::trainer::trainer;
use blkpilot_proto::v1;
use blkpilot_proto::v1::training_run::State;
use blkpilot_proto::v1::training_service_client::TrainingServiceClient;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};
use tonic_types::StatusExt as _;

/// Longer than anything here takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(300);

/// The window of HTTP/2 that a client has that asks for none.
const NARROW_BYTES: u32 = 65_535;

/// A cart, as long as it is asked for: 64 steps an update.
pub(crate) fn cart(env_steps: u32) -> String {
    format!(
        "version = 1
[environment]
kind = \"cartpole\"
[network]
hidden = 8
[training]
env_steps = {env_steps}
envs = 4
steps = 16
epochs = 1
minibatch = 32
gamma = 0.98
gae_lambda = 0.8
learning_rate = 1e-3
clip = 0.2
checkpoint_every = 2048
[evaluation]
episodes = 2
"
    )
}

/// A few updates on the host that the service is for.
pub(crate) fn host() -> String {
    learns(
        "env_steps = 64
envs = 2
steps = 16
epochs = 1
minibatch = 32
gae_lambda = 0.9
clip = 0.2",
    )
}

/// A few steps of conservative Q-learning from what the service has recorded.
pub(crate) fn recorded() -> String {
    learns(
        "algorithm = \"cql\"
grad_steps = 20
minibatch = 8
alpha = 0.1
target_every = 10",
    )
}

fn learns(how: &str) -> String {
    format!(
        "version = 1
[environment]
kind = \"sim_host\"
scenario = \"mixed\"
[network]
hidden = 8
[training]
{how}
gamma = 0.5
learning_rate = 1e-3
[evaluation]
episodes = 0
"
    )
}

pub(crate) fn lab() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_blkpilot-lab"))
}

/// A host that nobody tunes, and one that is tuned without aim.
const QUIET: &str = "[policy]\nbaseline = \"least_loaded\"\n";
const RESTLESS: &str = "mode = \"auto\"\ntime_scale = 20\n[policy]\nbaseline = \"random\"\n[guard]\ndwell = \"0s\"\nchanges_per_minute = 10000\n";

fn service(how: &str) -> String {
    format!(
        "version = 1
[service]
listen = \"unix:s\"
data_dir = \"data\"
[host]
kind = \"simulated\"
scenario = \"mixed\"
{how}"
    )
}

fn write_config(dir: &Path) -> PathBuf {
    let file = dir.join("blkpilot.toml");
    std::fs::write(&file, service(QUIET)).unwrap();
    file
}

/// A service in this process.
pub(crate) struct Service {
    dir: TempDir,
    address: String,
    pub(crate) client: Client,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    pub(crate) async fn start_in(dir: TempDir) -> Self {
        let config = write_config(dir.path());
        Self::start_of(dir, &config).await
    }

    /// One that decides by itself, after it has recorded so many decisions.
    pub(crate) async fn start_recorded(decisions: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("restless.toml");
        std::fs::write(&config, service(RESTLESS)).unwrap();
        let this = Self::start_of(dir, &config).await;
        let mut tuner = TunerServiceClient::new(connect(&this.address).await.unwrap());
        let request = v1::WatchDecisionsRequest {
            parent: "hosts/local".to_owned(),
        };
        let watched = tuner.watch_decisions(request).await.unwrap();
        let mut watched = watched.into_inner();
        // One message says that the stream has begun.
        for _ in 0..=decisions {
            let message = tokio::time::timeout(PATIENCE, watched.message()).await;
            assert!(message.unwrap().unwrap().is_some());
        }
        this
    }

    async fn start_of(dir: TempDir, config: &Path) -> Self {
        let config = Config::load(config).unwrap();
        let server = Server::start_with(config, Some(trainer(lab()))).await;
        let server = server.unwrap();
        let address = server.address().to_string();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            dir,
            client: Client::of(&address).await,
            address,
            stop,
            serving,
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A client that takes little before it has read it.
    pub(crate) async fn narrow(&self) -> Client {
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(NARROW_BYTES)
            .initial_connection_window_size(NARROW_BYTES);
        Client(TrainingServiceClient::new(
            endpoint.connect().await.unwrap(),
        ))
    }

    /// Ends it in order, and hands back its directory.
    pub(crate) async fn stop(self) -> TempDir {
        drop(self.stop);
        self.serving.await.unwrap().unwrap();
        self.dir
    }
}

/// `blkpilot-lab serve`.
pub(crate) struct Process {
    child: Child,
    pub(crate) client: Client,
}

impl Process {
    pub(crate) async fn start(dir: &Path) -> Self {
        let mut child = Command::new(lab())
            .arg("serve")
            .arg("--config")
            .arg(write_config(dir))
            .env("BLKPILOT_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.strip_prefix("listening on ").unwrap();
        let client = Client::of(address).await;
        Self { child, client }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that fails leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a test asks.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) TrainingServiceClient<Channel>);

impl Client {
    async fn of(address: &str) -> Self {
        Self(TrainingServiceClient::new(connect(address).await.unwrap()))
    }

    /// Queues a run with seed 3.
    pub(crate) async fn create(&mut self, id: &str, config: &str) -> v1::TrainingRun {
        self.try_create(request(id, config)).await.unwrap()
    }

    pub(crate) async fn try_create(
        &mut self,
        request: v1::CreateTrainingRunRequest,
    ) -> Result<v1::TrainingRun, Status> {
        Ok(self.0.create_training_run(request).await?.into_inner())
    }

    pub(crate) async fn get(&mut self, name: &str) -> Result<v1::TrainingRun, Status> {
        let name = name.to_owned();
        let request = v1::GetTrainingRunRequest { name };
        Ok(self.0.get_training_run(request).await?.into_inner())
    }

    pub(crate) async fn pause(&mut self, name: &str) -> Result<v1::TrainingRun, Status> {
        let request = v1::PauseTrainingRunRequest {
            name: name.to_owned(),
            ..v1::PauseTrainingRunRequest::default()
        };
        Ok(self.0.pause_training_run(request).await?.into_inner())
    }

    pub(crate) async fn resume(&mut self, name: &str) -> Result<v1::TrainingRun, Status> {
        let request = v1::ResumeTrainingRunRequest {
            name: name.to_owned(),
            ..v1::ResumeTrainingRunRequest::default()
        };
        Ok(self.0.resume_training_run(request).await?.into_inner())
    }

    pub(crate) async fn cancel(&mut self, name: &str) -> Result<v1::TrainingRun, Status> {
        let request = v1::CancelTrainingRunRequest {
            name: name.to_owned(),
            ..v1::CancelTrainingRunRequest::default()
        };
        Ok(self.0.cancel_training_run(request).await?.into_inner())
    }

    pub(crate) async fn delete(&mut self, name: &str) -> Result<(), Status> {
        let request = v1::DeleteTrainingRunRequest {
            name: name.to_owned(),
            ..v1::DeleteTrainingRunRequest::default()
        };
        self.0.delete_training_run(request).await?;
        Ok(())
    }

    pub(crate) async fn publish(
        &mut self,
        name: &str,
        policy: &str,
    ) -> Result<v1::PolicyVersion, Status> {
        let request = v1::PublishTrainingRunRequest {
            name: name.to_owned(),
            parent: format!("policies/{policy}"),
            ..v1::PublishTrainingRunRequest::default()
        };
        let published = self.0.publish_training_run(request).await;
        published.map(Response::into_inner)
    }

    pub(crate) async fn list(&mut self, filter: &str) -> Vec<String> {
        let request = v1::ListTrainingRunsRequest {
            filter: filter.to_owned(),
            ..v1::ListTrainingRunsRequest::default()
        };
        let listed = self.0.list_training_runs(request).await.unwrap();
        let runs = listed.into_inner().training_runs.into_iter();
        runs.map(|run| run.name).collect()
    }

    pub(crate) async fn watch(
        &mut self,
        name: &str,
        token: &str,
    ) -> Streaming<v1::WatchTrainingRunResponse> {
        let request = v1::WatchTrainingRunRequest {
            name: name.to_owned(),
            resume_token: token.to_owned(),
        };
        self.0
            .watch_training_run(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// The run as soon as it is as wanted.
    pub(crate) async fn until(
        &mut self,
        name: &str,
        is_so: impl Fn(&v1::TrainingRun) -> bool,
    ) -> v1::TrainingRun {
        let mut messages = self.watch(name, "").await;
        let wanted = async {
            loop {
                let run = next(&mut messages).await.training_run.unwrap();
                if is_so(&run) {
                    return run;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wanted).await.unwrap()
    }

    pub(crate) async fn until_state(&mut self, name: &str, state: State) -> v1::TrainingRun {
        self.until(name, |run| run.state() == state).await
    }

    /// The run once it has a checkpoint, and more to do.
    pub(crate) async fn until_saved(&mut self, name: &str) -> v1::TrainingRun {
        let is_saved = |progress: &v1::TrainingProgress| progress.checkpoint_time.is_some();
        self.until(name, |run| run.progress.as_ref().is_some_and(is_saved))
            .await
    }
}

pub(crate) async fn next(
    messages: &mut Streaming<v1::WatchTrainingRunResponse>,
) -> v1::WatchTrainingRunResponse {
    let message = tokio::time::timeout(PATIENCE, messages.message()).await;
    message.unwrap().unwrap().unwrap()
}

pub(crate) fn request(id: &str, config: &str) -> v1::CreateTrainingRunRequest {
    let source = v1::TrainingSource {
        config: config.to_owned(),
        ..v1::TrainingSource::default()
    };
    v1::CreateTrainingRunRequest {
        training_run: Some(v1::TrainingRun {
            source: Some(source),
            seed: Some(3),
            ..v1::TrainingRun::default()
        }),
        training_run_id: id.to_owned(),
        ..v1::CreateTrainingRunRequest::default()
    }
}

/// The stable reason of a failure.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().reason.clone()
}

/// The fields that a failure complains of.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = &details.bad_request().unwrap().field_violations;
    violations.iter().map(|own| own.field.clone()).collect()
}
