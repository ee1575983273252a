//! What the owner of a host needs from it, live or simulated.

pub mod live;
pub mod modes;
pub mod simulated;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use blkpilot_env::guard::exploration::Exploration;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sample::HostSample;
use blkpilot_env::{EnvSpec, JointAction, Observation, Rewards};
use blkpilot_host::device::DeviceState;
use blkpilot_host::{
    DeviceChange, DeviceKnob, DiskChange, DiskSetting, DiskState, Ring, TuningDaemon,
};
use thiserror::Error;

use self::modes::Modes;
use crate::config::mode::{Knob, Mode};

/// A host with its guests. Calls may block, but never on one guest, and are made by one thread.
///
/// What has a body here is what only a live host does: one whose guests neither come nor go, and which has no
/// settings beside those in its [`EnvSpec`], leaves it as it is.
pub trait HostBackend: Send {
    /// What stands behind it.
    fn kind(&self) -> BackendKind;

    /// What can be seen and done here.
    fn spec(&self) -> &EnvSpec;

    /// How long to wait after it was opened before the first window is looked at.
    fn first_window(&self) -> Duration;

    /// Lets the window begin now instead of when the last one ended.
    ///
    /// # Errors
    /// `Unavailable`.
    fn restart_window(&mut self) -> Result<(), BackendError>;

    /// The window that ends now. Called once per interval.
    ///
    /// # Errors
    /// `Unavailable`.
    fn observe(&mut self) -> Result<Window, BackendError>;

    /// The counters at the end of the last window.
    fn sample(&self) -> &HostSample;

    /// The guests that ran at the end of the last window, by name.
    fn guests(&self) -> Vec<GuestStatus>;

    /// Lets `ring` be called, from any thread, whenever guests may be others than before, as far as the
    /// host can tell. [`HostBackend::refresh`] then does.
    fn watch_guests(&mut self, _ring: Ring) {}

    /// Finds out which guests run now, for [`HostBackend::guests`]; the window goes on.
    ///
    /// # Errors
    /// `Unavailable`.
    fn refresh(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// What the configuration says of guests, from the next look at them on.
    fn set_modes(&mut self, modes: &Modes);

    /// Weights of the reward from the next observation on, which shows them. Nothing is changed on the host.
    fn set_reward(&mut self, reward: RewardConfig);

    /// The weights that the last observation shows, by which what is decided on it is paid.
    fn reward(&self) -> RewardConfig;

    /// Other daemons that tune this host, as last looked for.
    fn tuning_daemons(&self) -> Vec<DaemonStatus> {
        vec![]
    }

    /// Applies an action that was checked against the masks of `observation`, as far as it can be:
    /// what fails keeps its value and is named.
    ///
    /// # Errors
    /// `Unavailable`; nothing has been changed then.
    fn apply(
        &mut self,
        observation: &Observation,
        action: &JointAction,
    ) -> Result<Execution, BackendError>;

    /// Puts a guest, by name, or with `None` all of them, back to what it had without us, as far as
    /// it can be: what somebody else has changed since stays and is named.
    ///
    /// # Errors
    /// `Unavailable`.
    fn rollback(
        &mut self,
        observation: &Observation,
        guest: Option<&str>,
    ) -> Result<Execution, BackendError>;

    /// Lets a frozen knob of a guest, by its [`FrozenKnob::knob`], be tuned again, and returns the
    /// value in force, which is its original now.
    ///
    /// # Errors
    /// `Unavailable`; the knob may be frozen still.
    fn unfreeze(&mut self, guest: &str, knob: &str) -> Result<String, BackendError>;

    /// The block devices on which something may be changed, or is.
    ///
    /// # Errors
    /// `Unavailable`.
    fn devices(&self) -> Result<Vec<DeviceState>, BackendError> {
        Ok(vec![])
    }

    /// Keeps a note with the journal; a host without one drops it.
    ///
    /// # Errors
    /// `Unavailable`.
    fn note(&mut self, _text: &str) -> Result<(), BackendError> {
        Ok(())
    }

    /// Changes settings of a block device, by kernel name.
    ///
    /// # Errors
    /// `Unavailable`, with what refused it and the way out.
    fn change_device(&mut self, device: &str, _action: &DeviceAction) -> Result<(), BackendError> {
        let problem = format!("device {device}: it has no settings that can be changed here");
        Err(BackendError::Unavailable(problem))
    }

    /// The virtual disks of which some setting beyond the heads may be changed, or is.
    ///
    /// # Errors
    /// `Unavailable`.
    fn disks(&self) -> Result<Vec<DiskState>, BackendError> {
        Ok(vec![])
    }

    /// Changes such settings of a disk. Returns what they would be set to, of a check.
    ///
    /// # Errors
    /// `Unavailable`, with what refused it and the way out.
    fn change_disk(
        &mut self,
        disk: &DiskName,
        _action: &DiskAction,
    ) -> Result<Vec<Planned>, BackendError> {
        let problem = format!("disk {disk}: it has no settings that can be changed here");
        Err(BackendError::Unavailable(problem))
    }

    /// What the guard may limit, and does, as far as it is known without asking a guest.
    fn limits(&self) -> GuardLimits {
        GuardLimits::default()
    }
}

/// A virtual disk of a guest; written `guest/target`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskName {
    /// The guest.
    pub guest: String,
    /// The target, such as `vda`.
    pub target: String,
}

impl DiskName {
    /// Of `guest/target`.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let (guest, target) = id.rsplit_once('/').unwrap_or((id, id));
        Self {
            guest: guest.to_owned(),
            target: target.to_owned(),
        }
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.guest, self.target)
    }
}

/// What to do with settings of a virtual disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskAction {
    /// Check changes, without making them.
    Check(Vec<DiskChange>),
    /// Make changes that somebody has asked for.
    Set(Vec<DiskChange>),
    /// Limit it, for the guard: a limit that is lifted when nobody minds it any more.
    Limit {
        /// The limits.
        change: DiskChange,
        /// Why.
        reason: String,
    },
    /// Put its limits back to what they were without us.
    Lift,
    /// Put all back to what they were without us.
    PutBack,
}

/// What a setting would be set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The setting.
    pub setting: DiskSetting,
    /// Its value in canonical form.
    pub value: String,
}

/// What the guard may limit, and does. Disks are named `guest/target`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardLimits {
    /// Disks whose guests have opted in, and on which nobody else has set limits.
    pub may_limit: BTreeSet<String>,
    /// Disks on which a limit of the guard's is in force, and why.
    pub limited: BTreeMap<String, String>,
}

/// What to do with settings of a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAction {
    /// Check a change, without making it.
    Check(DeviceChange),
    /// Set one.
    Set(DeviceChange),
    /// Put all back to what they were without us.
    PutBack,
    /// Let these be changed again, which somebody else has changed: what is in force stays.
    Unfreeze(Vec<DeviceKnob>),
}

/// What stands behind a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// Simulated in this process.
    Simulated,
    /// Live, through libvirt.
    Libvirt,
}

/// One interval, seen from its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// What is seen. Its masks do not know modes.
    pub observation: Observation,
    /// What the disks of the observation before earned; `None` where there was none before.
    pub rewards: Option<Rewards>,
}

/// A guest as the backend sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestStatus {
    /// Its name.
    pub name: String,
    /// Whether it has agreed to be changed.
    pub opted_in: bool,
    /// What may happen to it, by its own word within the configuration's; `None` if it says nothing.
    pub mode: Option<Mode>,
    /// Targets of its disks, observed or not.
    pub targets: Vec<String>,
    /// Why it is not observed although it runs; `None` if it is.
    pub problem: Option<String>,
    /// Its knobs that somebody else has changed.
    pub frozen: Vec<FrozenKnob>,
    /// How much it may be explored, by its own word or the configuration's; `None` if neither says.
    pub exploration: Option<Exploration>,
}

/// Another daemon that tunes the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonStatus {
    /// The daemon.
    pub daemon: TuningDaemon,
    /// What it changes that this service may change too, and what says so: `nvme0n1: scheduler ([disk]
    /// elevator=none)`, `web: channel (numad)`.
    pub conflicts: Vec<String>,
}

/// A knob that somebody else changed after us, so that it is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenKnob {
    /// As the journal calls it, such as `iothread/1/cpus`.
    pub knob: String,
    /// As its head is called; `None` for what is no tuning knob.
    pub head: Option<Knob>,
    /// Targets of the disks that it is about.
    pub targets: Vec<String>,
    /// Its value before we ever changed it.
    pub original: String,
    /// The value that we set last.
    pub set: String,
    /// The value that was found.
    pub found: String,
    /// When that was noticed, microseconds since 1970 UTC; `None` if that is not known.
    pub at_us: Option<i64>,
}

/// What became of an action.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    /// The levels in force now, for the rows of the observation it was chosen on.
    pub executed: JointAction,
    /// What did not take effect: whose, and why.
    pub failures: Vec<String>,
    /// Whether one of them is more than an ordinary event, such as a guest that has gone or a job that
    /// runs.
    pub went_wrong: bool,
}

/// Why a host did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BackendError {
    /// It cannot be reached, or not be worked with, now; try again later.
    #[error("{0}")]
    Unavailable(String),
}

/// Makes a backend, at the start and again after it was lost.
pub type Connect = Box<dyn FnMut(&Modes) -> Result<Box<dyn HostBackend>, BackendError> + Send>;
