//! Settings of a guest's disk that are no heads.

use super::{Tuner, check_answering, is_ours, life_of, taken};
use crate::disk_setting::{DiskBounds, DiskChange};
use crate::error::HostResult;
use crate::hypervisor::Hypervisor;
use crate::inventory::RunningGuest;
use crate::knob::{Change, Knob};
use crate::settable::Settable as _;
use crate::tuner::Applied;

/// A disk of a running guest, and what it may be set to.
#[derive(Clone, Copy)]
pub struct DiskAccess<'a> {
    /// Where the guest runs.
    pub hypervisor: &'a dyn Hypervisor,
    /// The guest.
    pub running: &'a RunningGuest,
    /// Target of the disk.
    pub target: &'a str,
    /// What no guest may be set beyond.
    pub bounds: &'a DiskBounds,
}

impl Tuner {
    /// Applies a change to a setting of a disk. When it fails, the value before is restored.
    ///
    /// # Errors
    /// As [`Tuner::apply`]; `Unsupported` beyond the bounds.
    pub fn apply_to_disk(&self, disk: &DiskAccess<'_>, change: &DiskChange) -> HostResult<Applied> {
        let (_, value) = self.resolve(disk, change)?;
        let change = Change::Disk {
            target: disk.target.to_owned(),
            setting: change.setting,
            value,
        };
        self.apply(disk.hypervisor, disk.running, &change)
    }

    /// Checks a change as [`Tuner::apply_to_disk`] would, and returns the value in force and the one that
    /// it would be set to. Nothing is written, not even to the journal.
    ///
    /// # Errors
    /// As [`Tuner::apply_to_disk`]; what QEMU alone knows is not found.
    pub fn check_disk(
        &self,
        disk: &DiskAccess<'_>,
        change: &DiskChange,
    ) -> HostResult<(String, String)> {
        let (current, value) = self.resolve(disk, change)?;
        let knob = knob(disk, change);
        let io = disk.running.knobs(disk.hypervisor);
        io.check_change(&knob, &current, &value)?;
        let record = self.record(&life_of(disk.running)?, &knob)?;
        match record {
            Some(record) if !is_ours(&record, &current) => Err(taken(&record, &current)),
            _ => Ok((current, value)),
        }
    }

    fn resolve(&self, disk: &DiskAccess<'_>, change: &DiskChange) -> HostResult<(String, String)> {
        check_answering(disk.running)?;
        let io = disk.running.knobs(disk.hypervisor);
        let knob = knob(disk, change);
        io.check_allowed(&knob)?;
        let current = self.value(&io, &life_of(disk.running)?, &knob)?;
        let value = io.resolve(disk.target, change, &current, disk.bounds)?;
        Ok((current, value))
    }
}

fn knob(disk: &DiskAccess<'_>, change: &DiskChange) -> Knob {
    Knob::Disk {
        target: disk.target.to_owned(),
        setting: change.setting,
    }
}
