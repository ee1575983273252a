//! The host as somebody's environment.
//!
//! While it is attached the owner goes on looking once per interval but decides nothing by itself. A
//! step applies its action and answers with the window that begins then; a reset puts everything
//! back, lets one window pass for caches and queues to settle, and answers with the next.
//!
//! An action is judged by the observation that it was chosen on, however long the client took. What has been
//! closed since is not done, and the executed action says so. When disks, channels or devices come or go the
//! episode is truncated: what was learnt of one table says nothing of another.

use std::sync::{Arc, Weak};
use std::time::Instant;

use blkpilot_env::decision::check_action;
use blkpilot_env::observation::head_slice;
use blkpilot_env::{
    EnvError, EnvSpec, Head, HeadScope, JointAction, Level, MaskReason, Observation, Rewards, Step,
};
use ndarray::{Array1, Array2};
use tokio::sync::oneshot;
use tonic::Code;

use super::Owner;
use super::change::{Change, Undone};
use super::handle::{ChangeCall, Lease, Request};
use crate::admission::Purpose;
use crate::backend::BackendKind;
use crate::decision::Source;
use crate::wire::status::Failure;

/// Windows that pass after a reset before one counts.
const DISCARDED_WINDOWS: u32 = 1;

/// Who has the host as an environment.
pub(super) struct Attached {
    /// Dead when the environment has gone.
    lease: Weak<Lease>,
    /// The last observation that was handed out; `None` before the first reset.
    handed_out: Option<Observation>,
    /// Whether the episode was truncated: a reset comes next.
    is_over: bool,
    waiting: Option<Waiting>,
    /// Why the guard is passed by; `None` if it is not.
    force_reason: Option<String>,
}

/// What became of a step.
enum Begun {
    /// A window has begun, under these levels.
    Window(JointAction),
    /// The episode is over, and nothing was changed.
    Over(Box<Step>),
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

impl Attached {
    /// Ends the episode; what was handed out last.
    fn end(&mut self) -> Option<Observation> {
        self.is_over = true;
        self.handed_out.clone()
    }
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
            handed_out: None,
            is_over: false,
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
            Ok(Begun::Window(executed)) => {
                if let Some(attached) = &mut self.attached {
                    attached.waiting = Some(Waiting::Step { executed, reply });
                }
            }
            Ok(Begun::Over(step)) => drop(reply.send(Ok(*step))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn try_step(&mut self, action: JointAction) -> Result<Begun, EnvError> {
        let attached = self.attached.as_ref();
        let handed_out = attached.and_then(|attached| attached.handed_out.as_ref());
        let handed_out = handed_out.ok_or(EnvError::StepBeforeReset)?;
        if attached.is_some_and(|attached| attached.is_over) {
            return Err(EnvError::EpisodeOver);
        }
        check_action(&self.config.spec, handed_out, &action)?;
        let offered = self
            .offered()
            .map_err(|failure| host_error(failure.message()))?;
        if !has_same_rows(handed_out, &offered) {
            return Ok(self.truncate(offered));
        }
        let action = as_far_as_open(&self.config.spec, &offered, action);
        let begun = self.begin_window();
        begun.map_err(|failure| host_error(failure.message()))?;
        let made = self.script(&offered, action, Source::Explicit);
        let mut made = made.map_err(|failure| host_error(failure.message()))?;
        let force_reason = self.attached.as_ref().and_then(|a| a.force_reason.as_ref());
        if let Some(reason) = force_reason {
            made.explain(reason);
        }
        match self.carry_out(&offered, made, &Change::Action) {
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
        Ok(Begun::Window(seen.observation.current.clone()))
    }

    /// Ends the episode before its next window: guests came or went since the last observation.
    fn truncate(&mut self, offered: Observation) -> Begun {
        let terms = self.config.spec.reward_terms.len();
        let (disks, executed) = match self.attached.as_mut().and_then(Attached::end) {
            Some(before) => (before.disk_count(), before.current),
            None => (0, JointAction::default()),
        };
        Begun::Over(Box::new(Step {
            observation: offered,
            rewards: nothing_earned(disks, terms),
            executed,
            terminated: false,
            truncated: true,
            final_observation: None,
        }))
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
    pub(super) fn answer_waiting(&mut self, rewards: Option<Rewards>) {
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
                attached.handed_out = Some(observation.clone());
                attached.is_over = false;
                drop(reply.send(Ok(observation)));
            }
            Waiting::Reset { discard, reply } => {
                let discard = discard - 1;
                attached.waiting = Some(Waiting::Reset { discard, reply });
            }
            Waiting::Step { executed, reply } => {
                let before = attached.handed_out.replace(observation.clone());
                let is_over = before.is_some_and(|before| !has_same_rows(&before, &observation));
                attached.is_over = is_over;
                let disks = executed.disks.nrows();
                drop(
                    reply.send(Ok(Step {
                        observation,
                        rewards: rewards
                            .filter(|rewards| rewards.counted.len() == disks)
                            .unwrap_or_else(|| nothing_earned(disks, terms)),
                        executed,
                        terminated: false,
                        truncated: is_over,
                        final_observation: None,
                    })),
                );
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

/// Whether two observations are of the same disks, channels and devices.
fn has_same_rows(a: &Observation, b: &Observation) -> bool {
    a.disk_ids == b.disk_ids && a.channel_ids == b.channel_ids && a.device_ids == b.device_ids
}

/// An action without what may not be chosen any more, in place of which what is in force stays; for all disks on
/// an IOThread, where the choice is the IOThread's.
fn as_far_as_open(spec: &EnvSpec, offered: &Observation, mut action: JointAction) -> JointAction {
    let channels = offered.channel_count();
    let current = &offered.current;
    let is_closed = |heads: &[Head], masks: &Array2<MaskReason>, row, head, level: Level| {
        let masks = masks.row(row);
        let masks = masks.to_slice().unwrap_or_default();
        !head_slice(heads, channels, masks, head)[usize::from(level)].is_allowed()
    };
    let wanted = action.clone();
    for ((row, head), &level) in wanted.disks.indexed_iter() {
        let in_force = current.disks[[row, head]];
        if level == in_force || !is_closed(&spec.disk_heads, &offered.masks.disks, row, head, level)
        {
            continue;
        }
        let group = offered.disk_group[row];
        let is_tied = spec.disk_heads[head].scope == HeadScope::IoThread && group.is_some();
        for other in 0..offered.disk_count() {
            if other == row || (is_tied && offered.disk_group[other] == group) {
                action.disks[[other, head]] = current.disks[[other, head]];
            }
        }
    }
    for ((row, head), &level) in wanted.devices.indexed_iter() {
        let in_force = current.devices[[row, head]];
        let (heads, masks) = (&spec.device_heads, &offered.masks.devices);
        if level != in_force && is_closed(heads, masks, row, head, level) {
            action.devices[[row, head]] = in_force;
        }
    }
    // Disks may have come to share an IOThread since: to change nothing is always allowed.
    match check_action(spec, offered, &action) {
        Ok(()) => action,
        Err(_) => current.clone(),
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::features::{CACHE_HEAD, CHANNEL_HEAD};
    use blkpilot_env::observation::head_columns;
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions};

    use super::*;

    fn shown() -> (EnvSpec, Observation) {
        let mut host = SimHost::fixed(presets::by_name("mixed").unwrap()).unwrap();
        let seen = host.reset(Some(1), &ResetOptions::new()).unwrap();
        (host.spec().clone(), seen)
    }

    /// Closes all of a head of a disk but what is in force.
    fn close(spec: &EnvSpec, seen: &mut Observation, row: usize, head: usize) {
        let channels = seen.channel_count();
        let in_force = usize::from(seen.current.disks[[row, head]]);
        let columns = head_columns(&spec.disk_heads, channels, head).enumerate();
        for (_, column) in columns.filter(|(level, _)| *level != in_force) {
            seen.masks.disks[[row, column]] = MaskReason::Dwell;
        }
    }

    #[test]
    fn what_was_closed_since_stays_as_it_is_and_the_rest_is_done() {
        let (spec, mut seen) = shown();
        seen.disk_group = vec![None; seen.disk_count()];
        let mut action = seen.current.clone();
        action.disks.column_mut(CHANNEL_HEAD).fill(1);
        action.disks[[0, CACHE_HEAD]] = 1 - seen.current.disks[[0, CACHE_HEAD]];
        close(&spec, &mut seen, 0, CACHE_HEAD);
        close(&spec, &mut seen, 1, CHANNEL_HEAD);
        let done = as_far_as_open(&spec, &seen, action.clone());
        let mut wanted = action;
        for (row, head) in [(0, CACHE_HEAD), (1, CHANNEL_HEAD)] {
            wanted.disks[[row, head]] = seen.current.disks[[row, head]];
        }
        assert_eq!(done, wanted);
        check_action(&spec, &seen, &done).unwrap();
    }

    #[test]
    fn disks_on_one_iothread_stay_together() {
        let (spec, mut seen) = shown();
        seen.disk_group = vec![None; seen.disk_count()];
        seen.disk_group[0] = Some(7);
        seen.disk_group[1] = Some(7);
        let in_force = seen.current.disks[[0, CHANNEL_HEAD]];
        seen.current.disks[[1, CHANNEL_HEAD]] = in_force;
        let mut action = seen.current.clone();
        let wanted = if in_force == 1 { 2 } else { 1 };
        action.disks[[0, CHANNEL_HEAD]] = wanted;
        action.disks[[1, CHANNEL_HEAD]] = wanted;
        close(&spec, &mut seen, 1, CHANNEL_HEAD);
        let done = as_far_as_open(&spec, &seen, action);
        assert_eq!(done, seen.current);
    }

    #[test]
    fn who_has_come_to_share_an_iothread_is_left_alone() {
        let (spec, mut seen) = shown();
        seen.disk_group = vec![None; seen.disk_count()];
        let mut action = seen.current.clone();
        let channel = seen.current.disks[[1, CHANNEL_HEAD]];
        seen.current.disks[[0, CHANNEL_HEAD]] = channel;
        action.disks[[0, CHANNEL_HEAD]] = if channel == 1 { 2 } else { 1 };
        action.disks[[1, CHANNEL_HEAD]] = channel;
        seen.disk_group[0] = Some(7);
        seen.disk_group[1] = Some(7);
        assert_eq!(as_far_as_open(&spec, &seen, action), seen.current);
    }
}
