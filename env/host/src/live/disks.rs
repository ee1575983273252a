//! Settings of guests' disks that are no heads.

use super::*;
use crate::disk_setting::state::Sources as StateSources;
use crate::disk_setting::{DiskChange, DiskSetting, DiskState};
use crate::tuner::DiskAccess;

impl LiveHost {
    /// Makes one change to a disk of a guest, by name and target.
    ///
    /// # Errors
    /// `GuestGone`, `Disconnected`, and those of [`Tuner::apply_to_disk`].
    pub fn apply_to_disk(
        &mut self,
        guest: &str,
        target: &str,
        change: &DiskChange,
    ) -> HostResult<Applied> {
        self.follow_guests()?;
        let applied = self
            .tuner
            .apply_to_disk(&self.disk(guest, target)?, change)?;
        let now = self.clock.now();
        let id = format!("{guest}/{target}");
        self.telemetry.note_change(&id, now);
        Ok(applied)
    }

    /// As [`LiveHost::apply_to_disk`], but changes nothing: the value in force, and the one that it would
    /// be set to.
    ///
    /// # Errors
    /// As [`LiveHost::apply_to_disk`].
    pub fn check_disk(
        &self,
        guest: &str,
        target: &str,
        change: &DiskChange,
    ) -> HostResult<(String, String)> {
        self.tuner.check_disk(&self.disk(guest, target)?, change)
    }

    /// Restores the settings of a disk of a guest, by name and target.
    ///
    /// # Errors
    /// `GuestGone`; as [`LiveHost::rollback`].
    pub fn rollback_disk(&mut self, guest: &str, target: &str) -> HostResult<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for setting in DiskSetting::ALL {
            outcomes.extend(self.rollback_disk_setting(guest, target, setting)?);
        }
        Ok(outcomes)
    }

    /// Restores one setting of a disk of a guest, by name and target.
    ///
    /// # Errors
    /// As [`LiveHost::rollback_disk`].
    pub fn rollback_disk_setting(
        &mut self,
        guest: &str,
        target: &str,
        setting: DiskSetting,
    ) -> HostResult<Vec<Outcome>> {
        let uuid = self.disk(guest, target)?.running.guest.uuid.clone();
        let target = target.to_owned();
        self.rollback(&Scope::Knob(uuid, Knob::Disk { target, setting }))
    }

    /// The disks of which some setting may be changed, or is.
    ///
    /// # Errors
    /// `Journal`.
    pub fn disks(&self) -> HostResult<Vec<DiskState>> {
        let sources = StateSources {
            hypervisor: &*self.hypervisor,
            inventory: &self.inventory,
            tuner: &self.tuner,
            bounds: &self.config.disks,
        };
        sources.read()
    }

    fn disk<'a>(&'a self, guest: &str, target: &'a str) -> HostResult<DiskAccess<'a>> {
        let running = self.inventory.by_name(guest);
        let running = running.ok_or_else(|| HostError::GuestGone {
            guest: guest.to_owned(),
        })?;
        Ok(DiskAccess {
            hypervisor: &*self.hypervisor,
            running,
            target,
            bounds: &self.config.disks,
        })
    }
}
