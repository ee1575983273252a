//! Records follow what they are about: settings that go on with a restored guest, block nodes that a
//! snapshot has put below another, disks that were unplugged.

use super::*;
use crate::disk_setting::DiskSetting;

impl Tuner {
    /// Brings the journal after the guests, as an inventory that was just read has them. Where a guest
    /// was saved and restored, libvirt has set what it had saved of our settings again: those records go
    /// on with it. Records of a guest that was started anew, or of a disk that was unplugged, are
    /// dropped, and returned as moot. A guest that does not run may still be restored, so its records
    /// stay; what cannot be read or written now follows the next time, and bars no other.
    ///
    /// # Errors
    /// `Journal`, when the records cannot be read at all.
    pub fn follow(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        scope: &Scope,
    ) -> HostResult<Vec<Outcome>> {
        let mut moot = Vec::new();
        for record in self.journal.records()? {
            let Some(last) = record.life.guest().filter(|_| scope.holds(&record)) else {
                continue;
            };
            let Some(running) = inventory.guests.get(&last.uuid) else {
                continue;
            };
            let goes_on = match &running.life {
                Some(life) if life == last => !is_unplugged(running, &record.knob),
                Some(life) if inventory.has_ended(last) => self
                    .follow_life(hypervisor, running, life, &record)
                    .unwrap_or(true),
                _ => true,
            };
            if !goes_on && self.drop_record(&record.life, &record.knob).is_ok() {
                moot.push(outcome(&record, Settlement::Moot));
            }
        }
        Ok(moot)
    }

    /// Hands a record on to the next life of its guest; whether it goes on.
    fn follow_life(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        life: &GuestLife,
        record: &Record,
    ) -> HostResult<bool> {
        if !is_handed_on(running, &record.knob) {
            return Ok(false);
        }
        let io = running.knobs_to(Purpose::Restore, hypervisor);
        let current = io.read(&record.knob)?;
        let is_frozen = record.state == RecordState::Frozen;
        let goes_on =
            is_ours(record, &current) || is_frozen && record.found.as_deref() == Some(&*current);
        if goes_on {
            let next = Life::Guest(life.clone());
            self.journal.hand_on(&record.life, &record.knob, &next)?;
        }
        Ok(goes_on)
    }

    /// Hands a knob's record on to this life of its guest where that could not be done before: a change
    /// without it would take what we have set for the original.
    ///
    /// # Errors
    /// `Journal`; as [`Settable::read`].
    pub(super) fn catch_up(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        knob: &Knob,
    ) -> HostResult<()> {
        let Some(life) = running
            .life
            .as_ref()
            .filter(|_| is_handed_on(running, knob))
        else {
            return Ok(());
        };
        for record in self.records()?.iter().filter(|record| record.knob == *knob) {
            let last = record.life.guest();
            let lags = last.is_some_and(|last| last.uuid == life.uuid && last != life);
            if lags && !self.follow_life(hypervisor, running, life, record)? {
                self.drop_record(&record.life, knob)?;
            }
        }
        Ok(())
    }

    /// Whether a record is still about what is in use; it is dropped where it is not.
    pub(super) fn follow_node(&self, io: &dyn Settable, record: &Record) -> HostResult<bool> {
        let is_in_use = io.is_in_use(record)?;
        if !is_in_use {
            self.drop_record(&record.life, &record.knob)?;
        }
        Ok(is_in_use)
    }
}

/// Whether a setting of a life that is over may be in force in the next: libvirt saves it with a guest,
/// and the next life began with what was saved, or cannot be seen now.
pub(super) fn may_be_handed_on(inventory: &Inventory, last: &GuestLife, knob: &Knob) -> bool {
    match inventory.guests.get(&last.uuid) {
        Some(next) => is_handed_on(next, knob),
        None => is_saved(knob) && inventory.qemus.iter().any(|(uuid, _)| *uuid == last.uuid),
    }
}

/// Whether libvirt saves the setting with a guest, and this life began with what was saved.
fn is_handed_on(running: &RunningGuest, knob: &Knob) -> bool {
    running.is_resumed && is_saved(knob)
}

fn is_saved(knob: &Knob) -> bool {
    match knob {
        Knob::Channel { .. } | Knob::Polling { .. } => true,
        // `<iotune>` is in the XML that it saves.
        Knob::Disk { setting, .. } => *setting == DiskSetting::Throttle,
        Knob::Cache { .. } | Knob::Histogram { .. } | Knob::Device(_) => false,
    }
}

fn is_unplugged(running: &RunningGuest, knob: &Knob) -> bool {
    match knob {
        Knob::Cache { target } | Knob::Histogram { target } | Knob::Disk { target, .. } => {
            running.guest.disk(target).is_none()
        }
        Knob::Channel { .. } | Knob::Polling { .. } | Knob::Device(_) => false,
    }
}
