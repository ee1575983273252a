//! Settings of the host's block devices.

use super::*;

impl LiveHost {
    pub(super) fn apply_to_devices(
        &self,
        observation: &Observation,
        action: &JointAction,
        execution: &mut Execution,
    ) {
        for (row, name) in observation.device_ids.iter().enumerate() {
            let (old, new) = (
                observation.current.devices.row(row),
                action.devices.row(row),
            );
            let Some(level) = new.first().filter(|_| old != new) else {
                continue;
            };
            let value = SCHEDULERS.get(usize::from(*level));
            let change = DeviceChange {
                knob: DeviceKnob::Scheduler,
                value: value.copied().unwrap_or_default().to_owned(),
            };
            match self.tuner.apply_to_device(&self.inventory, name, &change) {
                Ok(applied) => {
                    execution.executed.devices[[row, 0]] = *level;
                    execution.applied.push((name.clone(), applied));
                }
                Err(error) => execution.failed.push((vec![name.clone()], error)),
            }
        }
    }

    /// Makes one change to one block device, by kernel name.
    ///
    /// # Errors
    /// `Disconnected`, and those of [`Tuner::apply_to_device`].
    pub fn apply_to_device(&mut self, name: &str, change: &DeviceChange) -> HostResult<Applied> {
        self.read_guests()?;
        self.tuner.apply_to_device(&self.inventory, name, change)
    }

    /// As [`LiveHost::apply_to_device`], but changes nothing: the value that it would change.
    ///
    /// # Errors
    /// As [`LiveHost::apply_to_device`].
    pub fn check_device(&self, name: &str, change: &DeviceChange) -> HostResult<String> {
        self.tuner.check_device(&self.inventory, name, change)
    }

    /// Restores the settings of a block device, by kernel name.
    ///
    /// # Errors
    /// `Unsupported` when there is no such device; as [`LiveHost::rollback`].
    pub fn rollback_device(&mut self, name: &str) -> HostResult<Vec<Outcome>> {
        let device = self.devices.device(name)?;
        self.rollback(&Scope::Device(device.id))
    }

    /// The block devices on which something may be changed, or is.
    ///
    /// # Errors
    /// `Io`, `Journal`.
    pub fn devices(&self) -> HostResult<Vec<DeviceState>> {
        state::read(&self.inventory, &self.tuner)
    }

    /// Lets a frozen setting of a block device, by kernel name, be changed again, and returns the value
    /// in force, which is its original now.
    ///
    /// # Errors
    /// Those of [`Tuner::unfreeze_device`].
    pub fn unfreeze_device(&mut self, name: &str, knob: DeviceKnob) -> HostResult<String> {
        self.tuner.unfreeze_device(&self.inventory, name, knob)
    }
}
