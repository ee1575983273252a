//! A host as the rest of the service sees it: what its owner shows, and how to ask it for something.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::exploration::Exploration;
use blkpilot_env::guard::neighbour::NeighbourConfig;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::{EnvError, EnvSpec, JointAction, Observation, Step};
use tokio::sync::{broadcast, oneshot, watch};
use tonic::Code;
use uuid::Uuid;

use super::last_good::Proof;
use super::pulse::Pulse;
use crate::admission::Choice;
use crate::backend::modes::Reach;
use crate::backend::{BackendKind, DaemonStatus, DiskName, FrozenKnob, GuestStatus, Planned};
use crate::config::mode::{Knob, Mode};
use crate::config::{GuestConfig, OnExit};
use crate::decision::chain::{Chain, Counts};
use crate::decision::history::{History, LogConfig};
use crate::decision::{Decision, PolicyRef, now_us};
use crate::wire::status::Failure;
use blkpilot_host::device::DeviceState;
use blkpilot_host::{DeviceKnob, DiskState};

/// Calls that may wait for the owner.
pub(crate) const MOST_WAITING: usize = 64;

/// What an owner shows.
#[derive(Debug, Clone)]
pub struct HostView {
    /// Whether the host can be reached.
    pub state: HostState,
    /// The last window; `None` until there is one, and while the host cannot be reached.
    pub window: Option<Arc<ShownWindow>>,
    /// What decides in production.
    pub policy: PolicyRef,
    /// What decides for guests in mode shadow and canary.
    pub candidate: Option<PolicyRef>,
    /// Why the production policy did not decide by itself in the last interval; `None` if it did.
    pub policy_error: Option<String>,
    /// What has stood in for the production policy.
    pub fallbacks: Counts,
    /// Why the candidate did not decide in the last interval; `None` if it did.
    pub candidate_error: Option<String>,
    /// What has stood in for the candidate.
    pub candidate_fallbacks: Counts,
    /// Why the production policy is to be taken out of use: what the guard has put back of its changes. `None` if it
    /// is not.
    pub production_harm: Option<String>,
    /// The same of the candidate, on guests in mode canary.
    pub candidate_harm: Option<String>,
    /// Other daemons that tune the host.
    pub tuning_daemons: Vec<DaemonStatus>,
    /// What is paid for.
    pub reward: RewardConfig,
    /// Mode of guests that have none of their own.
    pub default_mode: Mode,
}

impl HostView {
    /// What has been proposed for the last window and can still be applied.
    pub(crate) fn proposal(&self) -> Option<Arc<Decision>> {
        let proposal = self.window.as_ref()?.proposal().clone()?;
        let is_live = proposal.expires_us.is_some_and(|end| end > now_us());
        is_live.then_some(proposal)
    }

    /// Shows a proposal for the last window to all who ask.
    pub(crate) fn offer(&self, proposal: &Arc<Decision>) {
        if let Some(window) = &self.window {
            *window.proposal() = Some(Arc::clone(proposal));
        }
    }
}

/// Whether a host can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostState {
    /// Not tried yet, or waiting for the first window.
    Starting,
    /// The last window was seen.
    Ready,
    /// The last attempt failed, with the reason.
    Unavailable(String),
}

/// A window with what may be done to the guests.
#[derive(Debug)]
pub struct ShownWindow {
    /// What is seen and in force; masks are those for advice.
    pub observation: Observation,
    /// The guests.
    pub guests: Vec<ShownGuest>,
    /// When it ended, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// What the policy proposes for it, once somebody has asked: the same for all who ask.
    pub(crate) proposal: Mutex<Option<Arc<Decision>>>,
}

impl ShownWindow {
    fn proposal(&self) -> MutexGuard<'_, Option<Arc<Decision>>> {
        self.proposal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest and what may happen to it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownGuest {
    /// As the backend sees it.
    pub status: GuestStatus,
    /// What may happen to it.
    pub mode: Mode,
    /// What of its settings does not hold, and the way out.
    pub notice: Option<String>,
    /// How it is explored; `None` if it is not to be.
    pub exploration: Option<ShownExploration>,
}

/// How a guest is explored.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownExploration {
    /// How much it may be.
    pub limits: Exploration,
    /// Changes that explored draws may still make within the hour.
    pub changes_left: u32,
    /// Why it is not explored now; `None` if it is.
    pub pause: Option<String>,
}

/// What to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A proposal.
    Proposal(Uuid),
    /// Levels by name.
    Levels(Vec<Choice>),
    /// What a guest, or with `None` every guest, had without us.
    Rollback(Option<String>),
}

/// A call that changes the host, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeCall {
    /// What to apply.
    pub request: Request,
    /// Check everything, change nothing.
    pub validate_only: bool,
    /// Makes a repeated call return the first one's answer.
    pub request_id: Option<Uuid>,
    /// Why the guard's rate and breaker shall not hold it back; `None` if they may.
    pub force_reason: Option<String>,
}

/// Which frozen knobs shall be tuned again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfreezeCall {
    /// The guest.
    pub guest: String,
    /// Only what this disk of it is about, by target.
    pub target: Option<String>,
    /// Only this knob.
    pub knob: Option<Knob>,
    /// Say what it would be, change nothing.
    pub validate_only: bool,
}

/// Which weights of the reward shall be others.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardCall {
    /// Those that are given.
    pub change: RewardChange,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// What an owner takes of a configuration that was read again.
#[derive(Debug, Clone, PartialEq)]
pub struct Reloadable {
    /// Modes and settings of guests. Whether there is a candidate stays.
    pub default_mode: Mode,
    /// What the configuration says of single guests.
    pub guests: BTreeMap<String, GuestConfig>,
    /// How careful the guard is.
    pub guard: GuardConfig,
    /// When it limits heavy neighbours.
    pub neighbours: Option<NeighbourConfig>,
    /// How much of the decision log is kept.
    pub log: LogConfig,
    /// What is paid for, if that has changed in the file.
    pub reward: Option<RewardConfig>,
}

/// What an owner has done with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// What was not taken, and the way out.
    pub left: Vec<String>,
}

/// Weights as `RewardConfig` has them; what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RewardChange {
    /// Of CPU per request.
    pub cpu: Option<f64>,
    /// Of page cache.
    pub page_cache: Option<f64>,
    /// Of write-back that is owed.
    pub writeback: Option<f64>,
    /// Of a changed setting.
    pub change: Option<f64>,
    /// Of a missed objective.
    pub slo: Option<f64>,
    /// The objective for the p99, microseconds; 0 for none.
    pub slo_p99_us: Option<f64>,
}

impl RewardChange {
    pub(crate) fn apply(&self, to: RewardConfig) -> RewardConfig {
        RewardConfig {
            beta: to.beta,
            cpu: self.cpu.unwrap_or(to.cpu),
            page_cache: self.page_cache.unwrap_or(to.page_cache),
            writeback: self.writeback.unwrap_or(to.writeback),
            change: self.change.unwrap_or(to.change),
            slo: self.slo.unwrap_or(to.slo),
            slo_p99_us: match self.slo_p99_us {
                None => to.slo_p99_us,
                Some(0.0) => None,
                objective => objective,
            },
        }
    }
}

/// Settings of a block device that shall be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCall {
    /// The device, by kernel name.
    pub device: String,
    /// What to do.
    pub action: DeviceRequest,
    /// Check everything, change nothing.
    pub validate_only: bool,
    /// As [`ChangeCall::force_reason`].
    pub force_reason: Option<String>,
}

/// What to do with settings of a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRequest {
    /// Set one; not the scheduler, which is a head.
    Set {
        /// The setting.
        knob: DeviceKnob,
        /// Its value.
        value: String,
    },
    /// Put all back to what they were without us.
    PutBack,
    /// Let one, or all, be changed again where somebody else changed them.
    Unfreeze(Option<DeviceKnob>),
}

/// Settings of a virtual disk that shall be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCall {
    /// The disk.
    pub disk: DiskName,
    /// What to do.
    pub action: DiskRequest,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// What to do with settings of a virtual disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskRequest {
    /// Set some: `NAME` and `VALUE`.
    Set(Vec<(String, String)>),
    /// Put all back to what they were without us.
    PutBack,
}

/// How a disk stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownDisk {
    /// Its settings.
    pub state: DiskState,
    /// Why the guard limits it; `None` if it does not.
    pub guard_reason: Option<String>,
    /// What settings would be set to, where that was only checked.
    pub planned: Vec<Planned>,
}

/// Where a policy that takes another's place comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The configuration names it.
    Configuration,
    /// It was promoted.
    Store,
}

/// What decides in production.
pub struct Production {
    /// The policy, and what stands in for it.
    pub chain: Chain,
    /// Keeps it as the last good one, once it has proved itself.
    pub proof: Option<Proof>,
}

/// Another policy in the place of one that decides.
pub enum Succession {
    /// The configuration's production policy, which the owner has kept since another took its place.
    Configured,
    /// Another production policy, and where it comes from.
    Production(Box<Production>, Origin),
    /// Another candidate, in the place of the configuration's or another.
    Candidate(Box<Chain>, Reach),
    /// The configuration's candidate, or none if it has none.
    ConfiguredCandidate,
}

impl fmt::Debug for Succession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("Configured"),
            Self::Production(production, origin) => f
                .debug_tuple("Production")
                .field(production.chain.reference())
                .field(origin)
                .finish(),
            Self::Candidate(chain, reach) => f
                .debug_tuple("Candidate")
                .field(chain.reference())
                .field(reach)
                .finish(),
            Self::ConfiguredCandidate => f.write_str("ConfiguredCandidate"),
        }
    }
}

/// What an owner answers.
pub type Answer = Result<Arc<Decision>, Failure>;

/// What an owner is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Propose(oneshot::Sender<Answer>),
    Change(ChangeCall, oneshot::Sender<Answer>),
    Find(Uuid, oneshot::Sender<Answer>),
    Unfreeze(
        UnfreezeCall,
        oneshot::Sender<Result<Vec<FrozenKnob>, Failure>>,
    ),
    Reload(Box<Reloadable>, oneshot::Sender<Reloaded>),
    SetReward(RewardCall, oneshot::Sender<Result<RewardConfig, Failure>>),
    Devices(oneshot::Sender<Result<Vec<DeviceState>, Failure>>),
    ChangeDevice(DeviceCall, oneshot::Sender<Result<DeviceState, Failure>>),
    Disks(oneshot::Sender<Result<Vec<ShownDisk>, Failure>>),
    ChangeDisk(DiskCall, oneshot::Sender<Result<ShownDisk, Failure>>),
    Seat(Succession, oneshot::Sender<Result<(), Failure>>),
    /// With why the guard is to be passed by, if it is.
    Attach(Option<String>, oneshot::Sender<Result<Arc<Lease>, Failure>>),
    Reset(oneshot::Sender<Result<Observation, EnvError>>),
    Step(JointAction, oneshot::Sender<Result<Step, EnvError>>),
    /// There is a stop to take (see [`Stop`]), or the guests may have changed.
    Wake,
}

/// That the owner shall end. Not in the queue, for it must not be lost when that is full.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) on_exit: OnExit,
    pub(crate) reply: oneshot::Sender<Result<Option<Arc<Decision>>, Failure>>,
}

/// Where a stop is left for the owner.
pub(crate) type StopSlot = Arc<Mutex<Option<Stop>>>;

/// Held by whoever has the host as an environment; the owner sees when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease;

/// Sends commands to an owner and sees what it shows.
#[derive(Debug, Clone)]
pub struct HostHandle {
    /// What does not change.
    pub info: Arc<HostInfo>,
    /// What the owner shows.
    pub view: watch::Receiver<HostView>,
    /// What has been recorded.
    pub history: History,
    /// Whether the owner comes round.
    pub pulse: Arc<Pulse>,
    pub(crate) commands: Arc<SyncSender<Command>>,
    pub(crate) stop: StopSlot,
    /// Weak, so that watchers see the end when the owner has gone.
    pub(crate) decisions: broadcast::WeakSender<Arc<Decision>>,
}

/// What does not change about a host.
#[derive(Debug, Clone)]
pub struct HostInfo {
    /// Name of the host.
    pub name: String,
    /// What stands behind it.
    pub kind: BackendKind,
    /// What can be seen and done there.
    pub spec: EnvSpec,
    /// Length of one decision interval on the wall clock.
    pub interval: Duration,
}

impl HostHandle {
    /// A joint decision of the policy on the last window; nothing is changed. The owner is asked once a window:
    /// whoever comes later is answered from what it shows.
    ///
    /// # Errors
    /// As `TunerService.Propose`.
    pub async fn propose(&self) -> Answer {
        // An owner that has ended still shows what it showed last.
        if self.view.has_changed().is_ok()
            && let Some(proposal) = self.view.borrow().proposal()
        {
            return Ok(proposal);
        }
        self.ask(Command::Propose).await?
    }

    /// Applies something, or says what would happen.
    ///
    /// # Errors
    /// As `TunerService.Apply` and `Rollback`.
    pub async fn change(&self, call: ChangeCall) -> Answer {
        self.ask(|reply| Command::Change(call, reply)).await?
    }

    /// Lets frozen knobs be tuned again and returns them, each with the value in force as what was
    /// found: it is the original now.
    ///
    /// # Errors
    /// As `TunerService.Unfreeze`.
    pub async fn unfreeze(&self, call: UnfreezeCall) -> Result<Vec<FrozenKnob>, Failure> {
        self.ask(|reply| Command::Unfreeze(call, reply)).await?
    }

    /// Sets weights of the reward from the next observation on, and returns all that hold then.
    ///
    /// # Errors
    /// As `TunerService.SetRewardWeights`.
    pub async fn set_reward(&self, call: RewardCall) -> Result<RewardConfig, Failure> {
        self.ask(|reply| Command::SetReward(call, reply)).await?
    }

    /// Takes what can be taken of a configuration that was read again, between two looks at the host.
    ///
    /// # Errors
    /// `HOST_BUSY`, `HOST_STOPPED`.
    pub async fn reload(&self, settings: Reloadable) -> Result<Reloaded, Failure> {
        self.ask(|reply| Command::Reload(Box::new(settings), reply))
            .await
    }

    /// The block devices on which something may be changed, or is.
    ///
    /// # Errors
    /// As `TunerService.ListDevices`.
    pub async fn devices(&self) -> Result<Vec<DeviceState>, Failure> {
        self.ask(Command::Devices).await?
    }

    /// Changes settings of a block device, and returns how it stands then.
    ///
    /// # Errors
    /// As `TunerService.ChangeDevice`.
    pub async fn change_device(&self, call: DeviceCall) -> Result<DeviceState, Failure> {
        self.ask(|reply| Command::ChangeDevice(call, reply)).await?
    }

    /// The virtual disks of which some setting beyond the heads may be changed, or is.
    ///
    /// # Errors
    /// As `TunerService.ListDiskSettings`.
    pub async fn disks(&self) -> Result<Vec<ShownDisk>, Failure> {
        self.ask(Command::Disks).await?
    }

    /// Changes such settings of a disk, and returns how it stands then.
    ///
    /// # Errors
    /// As `TunerService.ChangeDiskSettings`.
    pub async fn change_disk(&self, call: DiskCall) -> Result<ShownDisk, Failure> {
        self.ask(|reply| Command::ChangeDisk(call, reply)).await?
    }

    /// Lets another policy take the place of one that decides, between two intervals: from the next on it
    /// decides, and what was decided before stands.
    ///
    /// # Errors
    /// `NOT_LOADED` for the configuration's policy where the owner has never had it; those of a call.
    pub async fn seat(&self, succession: Succession) -> Result<(), Failure> {
        self.ask(|reply| Command::Seat(succession, reply)).await?
    }

    /// A recorded decision, or a proposal that can still be applied.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn find(&self, id: Uuid) -> Answer {
        match self.history.find(id) {
            Some(decision) => Ok(decision),
            None => self.ask(|reply| Command::Find(id, reply)).await?,
        }
    }

    /// Decisions that are recorded from now on.
    ///
    /// # Errors
    /// `HOST_STOPPED`.
    pub fn watch(&self) -> Result<broadcast::Receiver<Arc<Decision>>, Failure> {
        let decisions = self.decisions.upgrade().ok_or_else(|| self.stopped())?;
        Ok(decisions.subscribe())
    }

    /// Ends the owner, before the calls that wait; with `Revert`, everything is put back first, which
    /// is the decision that is returned: `None` when nothing had been seen that it could name.
    ///
    /// # Errors
    /// `HOST_STOPPED`; with `Revert` why nothing was put back.
    pub async fn stop(&self, on_exit: OnExit) -> Result<Option<Arc<Decision>>, Failure> {
        let (reply, answer) = oneshot::channel();
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stop { on_exit, reply });
        // An owner whose queue is full is awake, and looks at the slot before its next call.
        match self.commands.try_send(Command::Wake) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return Err(self.stopped()),
        }
        answer.await.map_err(|_| self.stopped())?
    }

    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| self.stopped())
    }

    pub(crate) fn send(&self, command: Command) -> Result<(), Failure> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                TrySendError::Full(_) => Failure::new(
                    Code::ResourceExhausted,
                    "HOST_BUSY",
                    format!(
                        "host {} has {MOST_WAITING} calls waiting: try again",
                        self.info.name
                    ),
                ),
                TrySendError::Disconnected(_) => self.stopped(),
            })
    }

    pub(crate) fn stopped(&self) -> Failure {
        let name = &self.info.name;
        let message = format!("host {name} is being stopped: try again when the service runs");
        Failure::new(Code::Unavailable, "HOST_STOPPED", message)
    }
}

/// Why a host cannot be worked with now.
#[must_use]
pub fn unavailable(host: &str, state: &HostState) -> Failure {
    let message = match state {
        HostState::Unavailable(reason) => {
            format!("host {host} cannot be reached: {reason} (the service keeps trying)")
        }
        HostState::Starting | HostState::Ready => {
            format!("host {host} has not been observed yet: try again in a moment")
        }
    };
    Failure::new(Code::Unavailable, "HOST_UNAVAILABLE", message).with("host", host)
}
