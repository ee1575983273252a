//! The host as somebody's environment.
//!
//! While it is attached the owner goes on looking once per interval but decides nothing by itself. A
//! step applies its action and answers with the window that begins then; a reset puts everything
//! back, lets one window pass for caches and queues to settle, and answers with the next.

use std::sync::{Arc, Weak};
use std::time::Instant;

use blkpilot_env::decision::check_action;
use blkpilot_env::{EnvError, JointAction, Observation, Rewards, Step};
use ndarray::{Array1, Array2};
use tokio::sync::oneshot;
use tonic::Code;

use super::Owner;
use super::change::{Change, Undone};
use crate::admission::Purpose;
use crate::backend::BackendKind;
use crate::decision::Source;
use crate::handle::{ChangeCall, Lease, Request};
use crate::status::Failure;

/// Windows that pass after a reset before one counts.
const DISCARDED_WINDOWS: u32 = 1;

/// Who has the host as an environment.
pub(super) struct Attached {
    /// Dead when the environment has gone.
    lease: Weak<Lease>,
    /// Disks of the last observation that was handed out; `None` before the first reset.
    disk_ids: Option<Vec<String>>,
    waiting: Option<Waiting>,
    /// Why the guard is passed by; `None` if it is not.
    force_reason: Option<String>,
}

/// A call that is answered at the end of a window.
enum Waiting {
    Reset {
        discard: u32,
        reply: oneshot::Sender<Result<Observation, EnvError>>,
    },
    Step {
        executed: JointAction,
        reply: oneshot::Sender<Result<Step, EnvError>>,
    },
}

impl Owner {
    pub(super) fn attach(&mut self, force_reason: Option<String>) -> Result<Arc<Lease>, Failure> {
        self.refuse_if_attached()?;
        // The one before may have gone since the last look.
        self.detach_if_gone();
        if let Some(reason) = &force_reason {
            self.note(&format!("an environment past the guard: {reason}"))?;
        }
        // Nobody minds them while somebody else decides.
        self.leave_neighbours();
        let lease = Arc::new(Lease);
        self.attached = Some(Attached {
            lease: Arc::downgrade(&lease),
            disk_ids: None,
            waiting: None,
            force_reason,
        });
        Ok(lease)
    }

    /// Somebody's environment is nobody else's to change.
    pub(super) fn refuse_if_attached(&self) -> Result<(), Failure> {
        let is_held = |attached: &Attached| attached.lease.strong_count() > 0;
        if !self.attached.as_ref().is_some_and(is_held) {
            return Ok(());
        }
        let message = format!(
            "host {} is in use as an environment: delete that environment first (ListEnvironments names it)",
            self.config.name
        );
        Err(Failure::new(
            Code::FailedPrecondition,
            "HOST_ATTACHED",
            message,
        ))
    }

    /// Whether the guard answers for what somebody's environment does: not on a simulated host, which is
    /// there to be tried out, nor where somebody has said why not.
    pub(super) fn is_guarded_environment(&self) -> bool {
        let is_guarded = |attached: &Attached| attached.force_reason.is_none();
        self.config.kind == BackendKind::Libvirt && self.attached.as_ref().is_some_and(is_guarded)
    }

    /// What an environment may choose.
    fn offered(&self) -> Result<Observation, Failure> {
        let observation = self.restricted(self.seen()?, Purpose::Advice);
        Ok(if self.is_guarded_environment() {
            self.guarded(observation)
        } else {
            observation
        })
    }

    /// Puts everything back when the environment has gone; what fails is tried again at each look.
    pub(super) fn detach_if_gone(&mut self) {
        let is_gone = |attached: &Attached| attached.lease.strong_count() == 0;
        if self.attached.as_ref().is_some_and(is_gone) {
            self.attached = None;
            self.restore_due = true;
            // The guard may not have looked meanwhile.
            self.watch.forget();
        }
        if !self.restore_due {
            return;
        }
        if let Err(failure) = self.put_back() {
            tracing::error!(
                host = self.config.name,
                error = failure.message(),
                "settings of an environment that has gone stay in force: trying again"
            );
        }
    }

    fn put_back(&mut self) -> Result<(), Failure> {
        let call = ChangeCall {
            request: Request::Rollback(None),
            validate_only: false,
            request_id: None,
            force_reason: None,
        };
        let done = self.change(&call)?;
        if let Some(error) = &done.error {
            tracing::warn!(host = self.config.name, error, "not all was put back");
        }
        self.restore_due = false;
        Ok(())
    }

    pub(super) fn reset(&mut self, reply: oneshot::Sender<Result<Observation, EnvError>>) {
        let begun = self.put_back().and_then(|()| self.begin_window());
        match (begun, &mut self.attached) {
            (Ok(()), Some(attached)) => {
                attached.waiting = Some(Waiting::Reset {
                    discard: DISCARDED_WINDOWS,
                    reply,
                });
            }
            // A caller that has gone does not want the answer; so below.
            (Ok(()), None) => drop(reply.send(Err(EnvError::StepBeforeReset))),
            (Err(failure), _) => drop(reply.send(Err(host_error(failure.message())))),
        }
    }

    pub(super) fn step(
        &mut self,
        action: JointAction,
        reply: oneshot::Sender<Result<Step, EnvError>>,
    ) {
        let tried = self.try_step(action);
        self.show();
        match tried {
            Ok(executed) => {
                if let Some(attached) = &mut self.attached {
                    attached.waiting = Some(Waiting::Step { executed, reply });
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn try_step(&mut self, action: JointAction) -> Result<JointAction, EnvError> {
        let handed_out = self.attached.as_ref().and_then(|a| a.disk_ids.clone());
        let handed_out = handed_out.ok_or(EnvError::StepBeforeReset)?;
        let seen = self
            .seen()
            .map_err(|failure| host_error(failure.message()))?;
        if handed_out != seen.observation.disk_ids {
            return Err(host_error(
                "guests came or went since the last observation: call reset",
            ));
        }
        let observation = self
            .offered()
            .map_err(|failure| host_error(failure.message()))?;
        check_action(&self.config.spec, &observation, &action)?;
        let begun = self.begin_window();
        begun.map_err(|failure| host_error(failure.message()))?;
        let made = self.script(&observation, action, Source::Explicit);
        let mut made = made.map_err(|failure| host_error(failure.message()))?;
        let force_reason = self.attached.as_ref().and_then(|a| a.force_reason.as_ref());
        if let Some(reason) = force_reason {
            made.explain(reason);
        }
        match self.carry_out(&observation, made, &Change::Action) {
            Ok(_) => {}
            Err(Undone::Failure(failure)) => return Err(host_error(failure.message())),
            Err(Undone::Host(error)) => {
                self.lose(&error);
                return Err(host_error(&error.to_string()));
            }
        }
        let seen = self
            .seen()
            .map_err(|failure| host_error(failure.message()))?;
        Ok(seen.observation.current.clone())
    }

    /// Lets a window begin now and end after one interval.
    fn begin_window(&mut self) -> Result<(), Failure> {
        let Some(backend) = &mut self.backend else {
            return Err(self.unavailable());
        };
        if let Err(error) = backend.restart_window() {
            self.lose(&error);
            return Err(self.unavailable());
        }
        self.next_look = Instant::now() + self.config.interval;
        Ok(())
    }

    /// Answers whoever waits for the window that has just ended. `rewards` are those of the disks
    /// before.
    pub(super) fn answer_waiting(&mut self, rewards: Option<Rewards>, disks_before: usize) {
        // Who has the answer shall not see an older window elsewhere.
        self.show();
        let Some(waiting) = self.attached.as_mut().and_then(|a| a.waiting.take()) else {
            return;
        };
        let Ok(observation) = self.offered() else {
            return;
        };
        let terms = self.config.spec.reward_terms.len();
        let Some(attached) = &mut self.attached else {
            return;
        };
        match waiting {
            Waiting::Reset { discard: 0, reply } => {
                attached.disk_ids = Some(observation.disk_ids.clone());
                drop(reply.send(Ok(observation)));
            }
            Waiting::Reset { discard, reply } => {
                let discard = discard - 1;
                attached.waiting = Some(Waiting::Reset { discard, reply });
            }
            Waiting::Step { executed, reply } => {
                attached.disk_ids = Some(observation.disk_ids.clone());
                drop(reply.send(Ok(Step {
                    observation,
                    rewards: rewards.unwrap_or_else(|| nothing_earned(disks_before, terms)),
                    executed,
                    terminated: false,
                    truncated: false,
                    final_observation: None,
                })));
            }
        }
    }

    /// Tells whoever waits that the host was lost.
    pub(super) fn fail_waiting(&mut self, reason: &str) {
        let Some(waiting) = self.attached.as_mut().and_then(|a| a.waiting.take()) else {
            return;
        };
        match waiting {
            Waiting::Reset { reply, .. } => drop(reply.send(Err(host_error(reason)))),
            Waiting::Step { reply, .. } => drop(reply.send(Err(host_error(reason)))),
        }
    }
}

fn host_error(message: &str) -> EnvError {
    EnvError::Host {
        message: message.to_owned(),
        source: None,
    }
}

fn nothing_earned(disks: usize, terms: usize) -> Rewards {
    Rewards {
        total: Array1::zeros(disks),
        own: Array1::zeros(disks),
        terms: Array2::zeros((disks, terms)),
        counted: vec![false; disks],
    }
}
