//! Settings of block devices on trial: what goes back when a disk on the device got worse.

use blkpilot_env::guard::device::DeviceIntervention;
use blkpilot_env::{JointAction, Observation};
use blkpilot_host::DeviceKnob;
use blkpilot_host::device::DeviceChange;

use super::Owner;
use super::change::{Change, Undone};
use super::held::{changed_devices, number_of};
use crate::backend::{BackendError, DeviceAction};
use crate::decision::Source;

/// A setting that is being judged, and what it was before.
#[derive(Debug, Clone)]
pub(super) struct Before {
    knob: DeviceKnob,
    value: String,
}

impl Owner {
    /// A setting of a device was changed.
    pub(super) fn begin_device_trial(&mut self, device: &str, knob: DeviceKnob, before: String) {
        self.watch.note_device_change(device, number_of(knob));
        if self.watch.is_device_on_trial(device) {
            let changes = self.device_trials.entry(device.to_owned()).or_default();
            changes.push(Before {
                knob,
                value: before,
            });
        }
    }

    /// The same of the schedulers that an action has changed.
    pub(super) fn begin_scheduler_trials(&mut self, before: &Observation, executed: &JointAction) {
        for device in changed_devices(before, executed) {
            let row = before.device_ids.iter().position(|id| *id == device);
            let head = self.config.spec.device_heads.first();
            let Some((row, head)) = row.zip(head) else {
                continue;
            };
            let was = head.level_name(before.current.devices[[row, 0]]);
            self.begin_device_trial(&device, DeviceKnob::Scheduler, was);
        }
    }

    /// Somebody has put devices back: one, or all.
    pub(super) fn end_device_trials(&mut self, device: Option<&str>) {
        let is_meant = |known: &&String| device.is_none_or(|wanted| wanted == *known);
        let ended: Vec<String> = self
            .device_trials
            .keys()
            .filter(is_meant)
            .cloned()
            .collect();
        for device in ended {
            self.device_trials.remove(&device);
            self.watch.note_device_rollback(&device);
        }
    }

    /// Puts back what a disk of the device has suffered from, whoever asked for it; what fails is tried
    /// again after the next window. What was kept is no longer remembered.
    pub(super) fn guard_devices(
        &mut self,
        interventions: &[DeviceIntervention],
    ) -> Result<(), BackendError> {
        let watch = &self.watch;
        self.device_trials
            .retain(|device, _| watch.is_device_on_trial(device));
        for DeviceIntervention { device, disk, harm } in interventions {
            let reason = format!("{device}: {disk}: {harm}");
            tracing::warn!(host = self.config.name, device, reason, "to be put back");
            let changes = self.device_trials.get(device).cloned().unwrap_or_default();
            let mut is_back = true;
            for change in changes.iter().rev() {
                is_back &= self.put_setting_back(device, change, &reason)?;
            }
            if is_back {
                let setting = changes.last().map_or(0, |change| number_of(change.knob));
                self.watch.note_device_went_back(device, setting);
                self.device_trials.remove(device);
            } else {
                self.watch.note_failure();
            }
        }
        Ok(())
    }

    /// Whether it has its value from before.
    fn put_setting_back(
        &mut self,
        device: &str,
        before: &Before,
        reason: &str,
    ) -> Result<bool, BackendError> {
        if before.knob == DeviceKnob::Scheduler {
            return self.put_scheduler_back(device, &before.value, reason);
        }
        let Some(backend) = &mut self.backend else {
            return Ok(false);
        };
        let change = DeviceChange {
            knob: before.knob,
            value: before.value.clone(),
        };
        let done = backend.change_device(device, &DeviceAction::Set(change));
        if let Err(error) = &done {
            tracing::error!(host = self.config.name, device, %error, "putting it back");
        }
        Ok(done.is_ok())
    }

    /// It is a head, so that this is a decision.
    fn put_scheduler_back(
        &mut self,
        device: &str,
        value: &str,
        reason: &str,
    ) -> Result<bool, BackendError> {
        let Some(seen) = &self.window else {
            return Ok(false);
        };
        let observation = self.open(&seen.observation);
        let row = observation.device_ids.iter().position(|id| id == device);
        let head = self.config.spec.device_heads.first();
        let level = head.and_then(|head| {
            let mut levels = 0..head.len(observation.channel_count());
            levels.find(|level| head.level_name(*level as _) == value)
        });
        // A device that has gone has nothing to go back to.
        let Some((row, level)) = row.zip(level) else {
            return Ok(true);
        };
        let mut action = observation.current.clone();
        action.devices[[row, 0]] = level as _;
        let wanted = action.devices.row(row).to_vec();
        let made = match self.script(&observation, action, Source::Guard) {
            Ok(mut made) => {
                made.explain(reason);
                made
            }
            Err(failure) => {
                self.policy_error = Some(failure.message().to_owned());
                return Ok(false);
            }
        };
        match self.carry_out(&observation, made, &Change::Action) {
            Err(Undone::Host(error)) => return Err(error),
            Err(Undone::Failure(failure)) => {
                let error = failure.message();
                tracing::error!(host = self.config.name, device, error, "putting it back");
            }
            Ok(_) => {}
        }
        Ok(self
            .window
            .as_ref()
            .is_some_and(|seen| seen.observation.current.devices.row(row).to_vec() == wanted))
    }
}
