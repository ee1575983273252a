//! An environment held by a server, as an [`Environment`].

mod lease;
mod rollout;

use std::sync::Arc;
use std::time::{Duration, Instant};

use blkpilot_env::{EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Step};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use self::lease::{Silence, renew};
use self::rollout::Rollout;
use super::{ConnectError, Connection, Target};
use crate::environments::packed::{pack_action, reading};
use crate::wire;
use crate::wire::status::env_error;
pub use crate::wire::{WireError, observation_from_wire, step_from_wire};

/// Observations of the largest simulated host.
const LARGEST_MESSAGE_BYTES: usize = 64 << 20;
/// How long the server keeps the environment of a client that it hears nothing of, unless the client says
/// otherwise: so long do the guests of one that was killed keep its last settings.
const LEASE: Duration = Duration::from_secs(60);
/// How often the lease is renewed while it lasts.
const RENEWALS: u32 = 4;
/// How long a client waits for its environment to be deleted; a lease that runs out does the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// An environment held by a server; deleted there when this is dropped.
///
/// It is reset and stepped over one rollout, which spares each step what a call costs to begin and end. What the server
/// refuses ends that; the next call opens another.
///
/// Between two calls its lease is renewed, on a thread of its own, however long the client thinks; after ten
/// minutes of that it is not any more. Calls block, so this must not be used on a thread of an asynchronous
/// runtime.
#[derive(Debug)]
pub struct RemoteEnvironment {
    held: Held,
    spec: EnvSpec,
    /// Open from the first call on.
    rollout: Option<Rollout>,
}

/// What is held at the server, until this is dropped.
#[derive(Debug)]
struct Held {
    runtime: Runtime,
    client: EnvironmentServiceClient<Connection>,
    server: String,
    name: String,
    silence: Arc<Silence>,
    renewal: JoinHandle<()>,
}

/// Why there is no remote environment.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The runtime of our calls could not be made.
    #[error("cannot start a thread for remote calls: {0}")]
    Runtime(#[from] std::io::Error),
    /// No server answers.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused.
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(#[from] Box<Status>),
    /// The server's answer makes no sense: it is of another version.
    #[error("the server's answer: {0}: use a client of the server's version")]
    Answer(#[from] WireError),
}

impl RemoteEnvironment {
    /// Creates an environment on a server, such as `unix:PATH`. Without a lease of its own it has one
    /// of a minute.
    ///
    /// # Errors
    /// `Runtime`, `Connect`, `Refused`, `Answer`.
    pub fn create(
        server: impl Into<Target>,
        environment: v1::Environment,
    ) -> Result<Self, RemoteError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lease")
            .enable_all()
            .build()?;
        let target = server.into();
        let channel = runtime.block_on(target.connect())?;
        let mut client =
            EnvironmentServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES);
        let environment = v1::Environment {
            lease_duration: environment.lease_duration.or_else(|| LEASE.try_into().ok()),
            ..environment
        };
        let request = v1::CreateEnvironmentRequest {
            environment: Some(environment),
            ..v1::CreateEnvironmentRequest::default()
        };
        let made = runtime
            .block_on(client.create_environment(request))
            .map_err(Box::new)?
            .into_inner();
        let lease = made.lease_duration.and_then(|lease| lease.try_into().ok());
        let silence = Arc::new(Silence::default());
        let renewal = renew(
            client.clone(),
            made.name.clone(),
            lease.unwrap_or(LEASE) / RENEWALS,
            Arc::clone(&silence),
        );
        // From here on it is deleted, whatever fails.
        let mut held = Held {
            renewal: runtime.spawn(renewal),
            runtime,
            client,
            server: target.server,
            name: made.name,
            silence,
        };
        let name = held.name.clone();
        let request = held.client.get_spec(v1::GetSpecRequest { name });
        let spec = held.runtime.block_on(request).map_err(Box::new)?;
        Ok(Self {
            spec: wire::spec_from_wire(spec.into_inner())?,
            held,
            rollout: None,
        })
    }

    /// Its resource name, `environments/{environment}`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.held.name
    }

    /// The rollout, which is opened where there is none.
    fn open(&mut self) -> Result<Rollout, EnvError> {
        match self.rollout.take() {
            Some(rollout) => Ok(rollout),
            None => self
                .held
                .call(async |client, name| Rollout::open(client, name).await),
        }
    }

    /// Asks over a rollout, which ends with what is refused.
    fn ask(
        &mut self,
        mut rollout: Rollout,
        request: v1::rollout_request::Request,
    ) -> Result<(Rollout, v1::RolloutResponse), EnvError> {
        let asked = self.held.call(async |_, _| rollout.ask(request).await);
        asked.map(|answer| (rollout, answer))
    }
}

impl Held {
    fn call<T>(
        &mut self,
        ask: impl AsyncFnOnce(&mut EnvironmentServiceClient<Connection>, &str) -> Result<T, Status>,
    ) -> Result<T, EnvError> {
        self.silence.end();
        let answer = self.runtime.block_on(ask(&mut self.client, &self.name));
        self.silence.begin(Instant::now());
        answer.map_err(|status| self.explain(status))
    }

    /// What a status says, with the way out. What an environment refuses is what it would be here.
    fn explain(&self, status: Status) -> EnvError {
        let (server, name) = (&self.server, &self.name);
        let said = format!("{}: {}", status.code(), status.message());
        let message = match env_error(&status) {
            EnvError::Host { .. } if status.code() == Code::NotFound => format!(
                "{name} is not there any more at {server}: it was deleted, or its lease ran out, and a host was put \
                 back; create it anew"
            ),
            EnvError::Host { .. } if status.get_error_details().error_info().is_some() => said,
            EnvError::Host { .. } => format!(
                "the service at {server} does not answer any more ({said}): if it runs, it puts a host back when the \
                 lease of {name} runs out; if not, `blkpilot journal` says what is changed, and `blkpilot rollback \
                 --all --offline` puts it back"
            ),
            own => return own,
        };
        EnvError::Host {
            message,
            source: Some(Box::new(status)),
        }
    }
}

/// Whether a service says that its host cannot be reached now: it keeps trying, and so may the client.
#[must_use]
pub fn is_host_unavailable(error: &EnvError) -> bool {
    let EnvError::Host {
        source: Some(source),
        ..
    } = error
    else {
        return false;
    };
    let Some(status) = source.downcast_ref::<Status>() else {
        return false;
    };
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    status.code() == Code::Unavailable && reason == Some("HOST_FAILED")
}

fn foreign(error: WireError) -> EnvError {
    EnvError::Host {
        message: format!("the server's answer: {error}: use a client of the server's version"),
        source: Some(Box::new(error)),
    }
}

impl Environment for RemoteEnvironment {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let request = v1::rollout_request::Request::Reset(v1::RolloutReset {
            seed,
            options: options.clone(),
            ..v1::RolloutReset::default()
        });
        let rollout = self.open()?;
        let (mut rollout, answer) = self.ask(rollout, request)?;
        rollout.see(answer.layout).map_err(foreign)?;
        let seen = answer.observations.unwrap_or_default();
        let observation =
            reading::observation(&self.spec, rollout.rows(), &seen).map_err(foreign)?;
        self.rollout = Some(rollout);
        Ok(observation)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let rollout = self.open()?;
        // Packed, a wrong shape may have a right length.
        if let Err(misshapen) = rollout.check_shape(&self.spec, action) {
            self.rollout = Some(rollout);
            return Err(misshapen.into());
        }
        let request = v1::rollout_request::Request::Actions(pack_action(action));
        let (mut rollout, mut answer) = self.ask(rollout, request)?;
        let before = rollout.see(answer.layout.take()).map_err(foreign)?;
        let before = before.as_ref().unwrap_or(rollout.rows());
        let step = reading::step(&self.spec, before, rollout.rows(), &answer).map_err(foreign)?;
        self.rollout = Some(rollout);
        Ok(step)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
        let request = v1::DeleteEnvironmentRequest {
            name: self.name.clone(),
            allow_missing: true,
        };
        let deleted = self.client.delete_environment(request);
        // A server that has gone took the environment with it; else the lease runs out.
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, deleted).await });
    }
}
