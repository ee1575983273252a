//! Settings of block devices: what a change of one means for the others.

use super::{Tuner, Whose, is_ours, taken};
use crate::device::{DeviceChange, DeviceKnob, SideEffects};
use crate::error::{HostError, HostResult};
use crate::inventory::Inventory;
use crate::journal::{Life, Record, RecordState};
use crate::knob::{Knob, Purpose};
use crate::settable::Settable;
use crate::tuner::Applied;

impl Tuner {
    /// Applies a change to a block device, by its kernel name. When it fails, the value before is
    /// restored.
    ///
    /// # Errors
    /// `DeviceNotEnabled` and `Unsupported` before anything is written; `Frozen`, `ReadBack`,
    /// `DeviceRefused`.
    pub fn apply_to_device(
        &self,
        inventory: &Inventory,
        name: &str,
        change: &DeviceChange,
    ) -> HostResult<Applied> {
        let device = inventory.devices.device(name)?;
        let life = inventory.life_of(&device);
        self.check_dependents(&life, name, change)?;
        let whose = Whose {
            io: &inventory.devices.queue(&device, Purpose::Tune),
            life: &life,
            name,
        };
        self.turn(&whose, Knob::Device(change.knob), change.value.clone())
    }

    /// Checks a change of a block device as [`Tuner::apply_to_device`] would, and returns the value that
    /// it would change. Nothing is written, not even to the journal.
    ///
    /// # Errors
    /// As [`Tuner::apply_to_device`]; what the kernel alone knows is not found.
    pub fn check_device(
        &self,
        inventory: &Inventory,
        name: &str,
        change: &DeviceChange,
    ) -> HostResult<String> {
        let device = inventory.devices.device(name)?;
        let life = inventory.life_of(&device);
        self.check_dependents(&life, name, change)?;
        let (io, knob) = (
            inventory.devices.queue(&device, Purpose::Tune),
            Knob::Device(change.knob),
        );
        io.check_allowed(&knob)?;
        let current = io.read(&knob)?;
        io.check_change(&knob, &current, &change.value)?;
        match self.record(&life, &knob)? {
            Some(record) if !is_ours(&record, &current) => Err(taken(&record, &current)),
            _ => Ok(current),
        }
    }

    /// As [`Tuner::unfreeze`], of a block device by its kernel name.
    ///
    /// # Errors
    /// As [`Tuner::unfreeze`], and those of [`crate::device::Devices::device`].
    pub fn unfreeze_device(
        &self,
        inventory: &Inventory,
        name: &str,
        knob: DeviceKnob,
    ) -> HostResult<String> {
        let device = inventory.devices.device(name)?;
        let read = || inventory.devices.queue(&device, Purpose::Tune).value(knob);
        self.thaw(&inventory.life_of(&device), name, &Knob::Device(knob), read)
    }

    /// The kernel resets these with the scheduler: what we have set of them would be gone, and the way
    /// back from it would no longer fit.
    fn check_dependents(&self, life: &Life, device: &str, change: &DeviceChange) -> HostResult<()> {
        if change.knob != DeviceKnob::Scheduler {
            return Ok(());
        }
        match self.changed_dependent(life)? {
            None => Ok(()),
            Some(dependent) => Err(HostError::Unsupported {
                what: format!("device {device}: a change of the scheduler"),
                reason: format!(
                    "the kernel would reset {dependent}, which blkpilot has changed: roll the device back (or unfreeze it), then set the scheduler first"
                ),
            }),
        }
    }

    fn changed_dependent(&self, life: &Life) -> HostResult<Option<DeviceKnob>> {
        for dependent in DeviceKnob::OF_SCHEDULER {
            if self.record(life, &Knob::Device(dependent))?.is_some() {
                return Ok(Some(dependent));
            }
        }
        Ok(None)
    }

    /// What was set under a scheduler goes back before it; it would have, had it not failed just now.
    pub(super) fn check_order(&self, io: &dyn Settable, record: &Record) -> HostResult<()> {
        if record.knob != Knob::Device(DeviceKnob::Scheduler) {
            return Ok(());
        }
        for dependent in DeviceKnob::OF_SCHEDULER {
            let knob = Knob::Device(dependent);
            let known = self.record(&record.life, &knob)?;
            let Some(known) = known.filter(|known| known.state != RecordState::Frozen) else {
                continue;
            };
            if io.read(&knob)? != known.original {
                return Err(HostError::Unsupported {
                    what: format!("{}: putting back the scheduler", record.owner()),
                    reason: format!("{dependent} has to go back first, and has not: try again"),
                });
            }
            // It is back, but its way back was cut short, or the journal cannot be written, which bars
            // nothing.
            let _ = self.drop_record(&record.life, &knob);
        }
        Ok(())
    }

    /// Whether a setting stands as it did before its device's scheduler was first changed, and that is
    /// back too: the original of what was set in between is the kernel's own value under a scheduler
    /// that has gone.
    pub(super) fn went_with_scheduler(
        &self,
        io: &dyn Settable,
        record: &Record,
        current: &str,
    ) -> HostResult<bool> {
        let Knob::Device(knob) = record.knob else {
            return Ok(false);
        };
        let scheduler = Knob::Device(DeviceKnob::Scheduler);
        let changed = self.record(&record.life, &scheduler)?;
        let Some(changed) = changed.filter(|_| DeviceKnob::OF_SCHEDULER.contains(&knob)) else {
            return Ok(false);
        };
        let before = SideEffects::of(changed.undo.as_deref()).0.into_iter();
        let mut before = before.filter(|effect| effect.knob == knob);
        Ok(before.any(|effect| effect.before == current)
            && io.read(&scheduler)? == changed.original)
    }
}
