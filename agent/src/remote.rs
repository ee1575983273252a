//! An environment held by a server, as an [`Environment`].

use std::future::Future;

use blkpilot_env::{EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Step};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::client::{ConnectError, connect};
use crate::status::env_error;
use crate::wire::{self, WireError};

/// Observations of the largest simulated host.
const LARGEST_MESSAGE_BYTES: usize = 64 << 20;

/// An environment held by a server; deleted there when this is dropped.
///
/// Calls block on a runtime of their own, so this must not be used on a thread of an asynchronous
/// runtime.
#[derive(Debug)]
pub struct RemoteEnvironment {
    runtime: Runtime,
    client: EnvironmentServiceClient<Channel>,
    name: String,
    spec: EnvSpec,
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
    /// Creates an environment on a server, `unix:PATH` or `http://ADDRESS`.
    ///
    /// # Errors
    /// `Runtime`, `Connect`, `Refused`, `Answer`.
    pub fn create(server: &str, environment: v1::Environment) -> Result<Self, RemoteError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(connect(server))?;
        let mut client =
            EnvironmentServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES);
        let request = v1::CreateEnvironmentRequest {
            environment: Some(environment),
            ..v1::CreateEnvironmentRequest::default()
        };
        let made = runtime
            .block_on(client.create_environment(request))
            .map_err(Box::new)?;
        let name = made.into_inner().name;
        let spec = v1::GetSpecRequest { name: name.clone() };
        let spec = runtime.block_on(client.get_spec(spec)).map_err(Box::new)?;
        Ok(Self {
            spec: wire::spec_from_wire(spec.into_inner())?,
            runtime,
            client,
            name,
        })
    }

    /// Its resource name, `environments/{environment}`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn call<T>(
        runtime: &Runtime,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, EnvError> {
        let answer = runtime
            .block_on(answer)
            .map_err(|status| env_error(&status))?;
        Ok(answer.into_inner())
    }
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
        let request = v1::ResetRequest {
            name: self.name.clone(),
            seed,
            options: options.clone().into_iter().collect(),
        };
        let answer = Self::call(&self.runtime, self.client.reset(request))?;
        wire::observation_from_wire(answer.observation.unwrap_or_default()).map_err(foreign)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let request = v1::StepRequest {
            name: self.name.clone(),
            action: Some(wire::action_to_wire(action)),
        };
        let answer = Self::call(&self.runtime, self.client.step(request))?;
        wire::step_from_wire(answer).map_err(foreign)
    }
}

impl Drop for RemoteEnvironment {
    fn drop(&mut self) {
        let request = v1::DeleteEnvironmentRequest {
            name: self.name.clone(),
            allow_missing: true,
        };
        // A server that has gone took the environment with it; else the lease runs out.
        let _ = self
            .runtime
            .block_on(self.client.delete_environment(request));
    }
}
