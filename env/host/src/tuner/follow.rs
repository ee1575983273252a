//! Records follow what they are about: settings that go on with a restored guest, block nodes that a
//! snapshot has put below another, disks that were unplugged.

use super::*;

impl Tuner {
    /// Brings the journal after the guests, as an inventory that was just read has them. Where a guest
    /// was saved and restored, libvirt has set what it had saved of our settings again: those records go
    /// on with it. Records of a guest that was started anew, or of a disk that was unplugged, are
    /// dropped, and returned as moot. A guest that does not run may still be restored, so its records
    /// stay.
    ///
    /// # Errors
    /// `Journal`.
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
                Some(life) if inventory.has_ended(last) => {
                    self.follow_life(hypervisor, running, life, &record)?
                }
                _ => true,
            };
            if !goes_on {
                self.journal.drop_record(&record.life, &record.knob)?;
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
        // What cannot be read now is followed the next time.
        let Ok(current) = io.read(&record.knob) else {
            return Ok(true);
        };
        let is_frozen = record.state == RecordState::Frozen;
        let goes_on =
            is_ours(record, &current) || is_frozen && record.found.as_deref() == Some(&*current);
        if goes_on {
            let next = Life::Guest(life.clone());
            self.journal.hand_on(&record.life, &record.knob, &next)?;
        }
        Ok(goes_on)
    }

    /// Whether a record is still about what is in use; it is dropped where it is not.
    pub(super) fn follow_node(&self, io: &dyn Settable, record: &Record) -> HostResult<bool> {
        let is_in_use = io.is_in_use(record)?;
        if !is_in_use {
            self.journal.drop_record(&record.life, &record.knob)?;
        }
        Ok(is_in_use)
    }
}

/// Whether libvirt saves the setting with a guest, and this life began with what was saved.
pub(super) fn is_handed_on(running: &RunningGuest, knob: &Knob) -> bool {
    running.is_resumed && matches!(knob, Knob::Channel { .. } | Knob::Polling { .. })
}

fn is_unplugged(running: &RunningGuest, knob: &Knob) -> bool {
    match knob {
        Knob::Cache { target } | Knob::Histogram { target } => running.guest.disk(target).is_none(),
        Knob::Channel { .. } | Knob::Polling { .. } | Knob::Device(_) => false,
    }
}
