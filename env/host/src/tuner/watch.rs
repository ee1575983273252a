//! What somebody else changes is noticed at each sample.

use super::{Outcome, Settlement, Tuner, Way, is_ours, outcome};
use crate::error::HostResult;
use crate::hypervisor::{Hypervisor, TunedByOthers};
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::{Life, Record, RecordState};
use crate::knob::{Knob, Purpose};
use crate::settable::Settable as _;

impl Tuner {
    /// Compares the journal with what is in force, and freezes what somebody else has changed since
    /// the last time. `seen` tells what is in force as far as it is known without asking anybody;
    /// only where that differs, or libvirt has told of somebody else's change, is the guest itself
    /// asked; a device always is. A change that ours has overwritten in the same moment is put back. Returns what has
    /// been frozen.
    ///
    /// # Errors
    /// `Journal`.
    pub fn watch(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        seen: impl Fn(&RunningGuest, &Knob) -> Option<String>,
    ) -> HostResult<Vec<Outcome>> {
        let told = hypervisor.tuned_by_others();
        let mut frozen = Vec::new();
        for record in self.records()? {
            if record.state == RecordState::Frozen {
                continue;
            }
            let theirs = last_told(&told, &record);
            // What was seen may be older than our last change, so that only a read now counts; what
            // cannot be read now is seen again at the next sample.
            let suspects = |running: &RunningGuest| {
                let differs = |seen: String| !is_ours(&record, &seen);
                theirs.is_some() || seen(running, &record.knob).is_some_and(differs)
            };
            let Some(found) = found(hypervisor, inventory, &record, suspects) else {
                continue;
            };
            let way = theirs.map_or(Way::Unknown, |_| Way::Libvirt);
            if self.is_taken(&record, &found)? {
                frozen.push(outcome(&record, Settlement::Frozen { found, way }));
            } else if let Some(theirs) = theirs {
                self.give_way(hypervisor, inventory, &record, theirs)?;
                let found = theirs.to_owned();
                frozen.push(outcome(&record, Settlement::Frozen { found, way }));
            }
        }
        Ok(frozen)
    }

    /// Puts somebody else's value, which ours has overwritten, back in force.
    fn give_way(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        record: &Record,
        theirs: &str,
    ) -> HostResult<()> {
        self.journal.freeze(&record.life, &record.knob, theirs)?;
        // It is frozen whether or not this takes: from now on it is theirs.
        if let Ok(Some(io)) = self.access(hypervisor, inventory, record, Purpose::Tune) {
            let _ = io.write(&record.knob, theirs);
        }
        Ok(())
    }
}

/// The value in force of a guest that is suspected, or of a device; `None` where it cannot be told now.
fn found(
    hypervisor: &dyn Hypervisor,
    inventory: &Inventory,
    record: &Record,
    suspects: impl FnOnce(&RunningGuest) -> bool,
) -> Option<String> {
    match &record.life {
        Life::Guest(life) => {
            let running = inventory.guests.get(&life.uuid)?;
            if running.life.as_ref() != Some(life) || running.hangs || !suspects(running) {
                return None;
            }
            running.knobs(hypervisor).read(&record.knob).ok()
        }
        Life::Device(life) => {
            let devices = &inventory.devices;
            let device = devices
                .find(life, &record.name, &inventory.boot_id)
                .ok()??;
            let queue = devices.queue(&device, Purpose::Restore);
            queue.read(&record.knob).ok()
        }
    }
}

/// The last value that libvirt says somebody else gave a knob. One that was ours just before cannot be
/// told from ours.
fn last_told<'a>(told: &'a [TunedByOthers], record: &Record) -> Option<&'a str> {
    let uuid = &record.life.guest()?.uuid;
    let is_about = |told: &&TunedByOthers| told.uuid == *uuid && told.knob == record.knob;
    let last = told.iter().rfind(is_about)?;
    let is_theirs = last.value != record.value && last.value != record.previous;
    is_theirs.then_some(&last.value)
}
