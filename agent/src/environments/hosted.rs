//! A managed host as an environment: reset and step go to its owner.

use std::sync::Arc;

use blkpilot_env::{EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Step};
use tokio::sync::oneshot;

use crate::owner::handle::{Command, HostHandle, Lease};
use crate::wire::status::Failure;

/// A managed host as an environment. Calls block for an interval or two, so they want a thread that
/// may; when this is dropped the owner puts the guests back.
#[derive(Debug)]
pub struct HostedEnvironment {
    host: HostHandle,
    _lease: Arc<Lease>,
}

impl HostedEnvironment {
    /// Takes the host over: until this is dropped its owner does not decide by itself, and refuses
    /// changes other than a rollback. With a reason the guard neither holds back nor undoes what it does.
    ///
    /// # Errors
    /// `HOST_ATTACHED` if somebody else has it; those of a call.
    pub async fn attach(host: HostHandle, force_reason: Option<String>) -> Result<Self, Failure> {
        let attach = |reply| Command::Attach(force_reason, reply);
        let lease = host.ask(attach).await??;
        Ok(Self {
            host,
            _lease: lease,
        })
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, EnvError>>) -> Command,
    ) -> Result<T, EnvError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.host.send(command(reply));
        let answered = sent.and_then(|()| answer.blocking_recv().map_err(|_| self.host.stopped()));
        answered.map_err(|failure| EnvError::Host {
            message: failure.message().to_owned(),
            source: None,
        })?
    }
}

impl Environment for HostedEnvironment {
    fn spec(&self) -> &EnvSpec {
        &self.host.info.spec
    }

    fn reset(&mut self, _: Option<u64>, options: &ResetOptions) -> Result<Observation, EnvError> {
        if let Some((name, value)) = options.iter().next() {
            return Err(EnvError::Option {
                name: name.clone(),
                value: value.clone(),
                problem: "a managed host has no options".to_owned(),
            });
        }
        self.ask(Command::Reset)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        self.ask(|reply| Command::Step(action.clone(), reply))
    }
}
