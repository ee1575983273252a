//! The guard at work: what it closes before the policy chooses, and what it puts back afterwards.

use std::time::Duration;

use blkpilot_env::guard::exploration::Unrest;
use blkpilot_env::guard::{Guard, GuardConfig, Harm, Held, Intervention};
use blkpilot_env::observation::head_slice;
use blkpilot_env::sample::HostSample;
use blkpilot_env::window::HostWindow;
use blkpilot_env::{HeadScope, JointAction, MaskReason, Observation};

use super::change::{Change, Undone};
use super::{Owner, Seen};
use crate::backend::BackendError;
use crate::decision::Source;
use crate::wire::names::guest_of;

/// The guard of a host, and what it compares a window with.
pub(super) struct Watch {
    guard: Guard,
    before: Option<HostSample>,
    /// Time of the last sample.
    now: Duration,
}

impl Watch {
    pub(super) fn new(config: &GuardConfig) -> Self {
        Self {
            guard: Guard::new(config),
            before: None,
            now: Duration::ZERO,
        }
    }

    /// What the guard knows stays.
    pub(super) fn set_config(&mut self, config: &GuardConfig) {
        self.guard.set_config(config);
    }

    /// The window that ends with a sample; `None` for the first one.
    fn window(&mut self, sample: &HostSample) -> Option<HostWindow> {
        self.now = sample.at;
        let before = self.before.replace(sample.clone())?;
        Some(HostWindow::between(&before, sample))
    }

    /// Time of the last sample.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// Why a disk must not be explored now.
    pub(super) fn unrest(&self, disk: &str) -> Option<Unrest> {
        self.guard.unrest(self.now, disk)
    }

    /// The host was lost: what it does when it is back is compared with nothing from before.
    pub(super) fn forget(&mut self) {
        self.before = None;
    }

    pub(super) fn note_rollback(&mut self, observation: &Observation, executed: &JointAction) {
        self.guard.rolled_back(self.now, observation, executed);
    }

    pub(super) fn note_change(&mut self, observation: &Observation, executed: &JointAction) {
        self.guard.changed(self.now, observation, executed);
    }

    /// Ends the trial of a disk's last change: what is in force stays.
    pub(super) fn settle(&mut self, disk: &str) {
        self.guard.settle(disk);
    }

    pub(super) fn admit(&self, count: usize) -> Result<(), Held> {
        self.guard.admit(self.now, count)
    }

    pub(super) fn admit_device(&self, device: &str, setting: usize) -> Result<(), Held> {
        self.guard.admit_device(self.now, device, setting)
    }

    pub(super) fn is_device_on_trial(&self, device: &str) -> bool {
        self.guard.is_device_on_trial(device)
    }

    pub(super) fn note_device_change(&mut self, device: &str, setting: usize) {
        self.guard.device_changed(self.now, device, setting);
    }

    pub(super) fn note_device_went_back(&mut self, device: &str, setting: usize) {
        self.guard.device_went_back(self.now, device, setting);
    }

    pub(super) fn note_device_rollback(&mut self, device: &str) {
        self.guard.device_rolled_back(device);
    }

    pub(super) fn note_failure(&mut self) {
        self.guard.failed(self.now);
    }
}

impl Owner {
    /// Closes what may not be changed now without anybody looking at it.
    pub(super) fn guarded(&self, mut observation: Observation) -> Observation {
        let now = self.watch.now;
        self.watch
            .guard
            .restrict(now, &self.config.spec, &mut observation);
        observation
    }

    /// Judges the window that has just ended, and puts back what the last change has hurt, on the
    /// guests that the policy may change by itself. On others somebody asked for the change, so it is
    /// only said.
    pub(super) fn guard_window(&mut self) -> Result<(), BackendError> {
        let Some(backend) = &self.backend else {
            return Ok(());
        };
        let Some(window) = self.watch.window(backend.sample()) else {
            return Ok(());
        };
        let devices = self.watch.guard.observe_devices(&window);
        for intervention in self.watch.guard.observe(&window) {
            self.intervene(&intervention)?;
        }
        self.guard_devices(&devices)?;
        self.mind_neighbours(&window);
        Ok(())
    }

    fn intervene(&mut self, intervention: &Intervention) -> Result<(), BackendError> {
        let Intervention { disk, harm, .. } = intervention;
        let Some(seen) = &self.window else {
            return Ok(());
        };
        if !self.is_guarded_environment() && !self.is_automatic(seen, disk) {
            tracing::warn!(host = self.config.name, disk, %harm, "the last change seems to do harm; it was asked for, so it stays");
            self.watch.guard.settle(disk);
            // Whoever asks for harm again and again is stopped too, if it is known to be theirs.
            if !matches!(harm, Harm::Unexplained { .. }) {
                self.watch.note_failure();
            }
            return Ok(());
        }
        let Some((observation, action)) = self.way_back(seen, intervention) else {
            return Ok(());
        };
        tracing::warn!(host = self.config.name, disk, %harm, "to be put back");
        let wanted = action.clone();
        let author = self.harm.author_of(disk);
        let what = format!("{disk}: {harm}");
        let made = match self.script(&observation, action, Source::Guard) {
            Ok(mut made) => {
                made.explain(&what);
                made
            }
            Err(failure) => {
                self.policy_error = Some(failure.message().to_owned());
                return Ok(());
            }
        };
        let done = self.carry_out(&observation, made, &Change::Action);
        if let Some(executed) = self.in_force(disk, &wanted) {
            let now = self.watch.now;
            self.watch
                .guard
                .went_back(now, &observation, &executed, disk);
            let limits = &self.config.guard.harm;
            self.harm.note_put_back(author, now, limits, &what);
        } else {
            // Its trial goes on, so that it is tried again after the next window.
            self.watch.note_failure();
        }
        match done {
            Ok(_) => Ok(()),
            Err(Undone::Host(error)) => Err(error),
            Err(Undone::Failure(failure)) => {
                tracing::error!(
                    host = self.config.name,
                    disk,
                    error = failure.message(),
                    "putting it back"
                );
                Ok(())
            }
        }
    }

    pub(super) fn is_automatic(&self, seen: &Seen, disk: &str) -> bool {
        let guest = seen.guests.iter().find(|g| g.name == guest_of(disk));
        guest.is_some_and(|guest| self.config.modes.of(guest).is_automatic())
    }

    /// What is in force, as far as the last change has told, if a disk has the levels of an action.
    fn in_force(&self, disk: &str, action: &JointAction) -> Option<JointAction> {
        let observation = &self.window.as_ref()?.observation;
        let row = observation.disk_ids.iter().position(|id| id == disk)?;
        let is_in_force = observation.current.disks.row(row) == action.disks.row(row);
        is_in_force.then(|| observation.current.clone())
    }

    /// Whether somebody else has taken a head of a disk: then it is not the last change that counts.
    fn is_frozen(&self, observation: &Observation, row: usize, head: usize) -> bool {
        let spec = &self.config.spec;
        let masks = observation.masks.disks.row(row);
        let masks = masks.to_slice().unwrap_or_default();
        head_slice(&spec.disk_heads, observation.channel_count(), masks, head)
            .contains(&MaskReason::Frozen)
    }

    /// The disk's levels from before its change, with those on its IOThread that are tied to it, but for
    /// what somebody else has set since. No mask bars the way back; what the host cannot do it refuses by
    /// itself.
    fn way_back(
        &self,
        seen: &Seen,
        intervention: &Intervention,
    ) -> Option<(Observation, JointAction)> {
        let observation = self.open(&seen.observation);
        let row = observation
            .disk_ids
            .iter()
            .position(|id| *id == intervention.disk)?;
        let mut action = observation.current.clone();
        for (head, level) in intervention.levels.iter().enumerate() {
            if self.is_frozen(&seen.observation, row, head) {
                continue;
            }
            let is_tied = self.config.spec.disk_heads[head].scope == HeadScope::IoThread;
            for other in 0..observation.disk_count() {
                let shares_thread = observation.disk_group[row].is_some()
                    && observation.disk_group[other] == observation.disk_group[row];
                if other == row || (is_tied && shares_thread) {
                    action.disks[[other, head]] = *level;
                }
            }
        }
        Some((observation, action))
    }
}
