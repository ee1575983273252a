//! What somebody else changes is noticed at each sample.

use super::{Outcome, Settlement, Tuner, Way, is_ours, outcome};
use crate::error::{HostError, HostResult};
use crate::hypervisor::{Hypervisor, TunedByOthers};
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::{DeviceLife, Life, Record, RecordState};
use crate::knob::{Knob, Purpose};
use crate::settable::Settable as _;

impl Tuner {
    /// Compares the journal with what is in force, and freezes what somebody else has changed since
    /// the last time. `seen` tells what is in force as far as it is known without asking anybody;
    /// only where that differs, or libvirt has told of somebody else's change, is the guest itself
    /// asked. A change that ours has overwritten in the same moment is put back. Returns what has
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
            let life = match &record.life {
                Life::Guest(life) => life,
                Life::Device(life) => {
                    let settlement = self.look(inventory, life, &record)?;
                    frozen.extend(settlement.map(|found| outcome(&record, found)));
                    continue;
                }
            };
            let running = inventory.guests.get(&life.uuid);
            let running = running.filter(|guest| guest.life.as_ref() == Some(life));
            let Some(running) = running.filter(|guest| !guest.hangs) else {
                continue;
            };
            let told = last_told(&told, &record);
            let differs = |seen: String| !is_ours(&record, &seen);
            if told.is_none() && !seen(running, &record.knob).is_some_and(differs) {
                continue;
            }
            if let Some(settlement) = self.ask(hypervisor, running, &record, told)? {
                frozen.push(outcome(&record, settlement));
            }
        }
        Ok(frozen)
    }

    /// A setting of a device is read from sysfs; what cannot be read now is seen again at the next
    /// sample.
    fn look(
        &self,
        inventory: &Inventory,
        life: &DeviceLife,
        record: &Record,
    ) -> HostResult<Option<Settlement>> {
        let devices = &inventory.devices;
        let Ok(Some(device)) = devices.find(life, &record.name, &inventory.boot_id) else {
            return Ok(None);
        };
        let queue = devices.queue(&device, Purpose::Restore);
        let Ok(found) = queue.read(&record.knob) else {
            return Ok(None);
        };
        let (is_taken, way) = (self.is_taken(record, &found)?, Way::Unknown);
        Ok(is_taken.then_some(Settlement::Frozen { found, way }))
    }

    /// What was seen may be older than our last change, so that only a read now counts; what cannot
    /// be read now is seen again at the next sample.
    fn ask(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        record: &Record,
        told: Option<&str>,
    ) -> HostResult<Option<Settlement>> {
        let io = running.knobs(hypervisor);
        // A new image is no change by somebody else.
        match self.follow_node(&io, record) {
            Ok(true) => {}
            Err(error @ HostError::Journal { .. }) => return Err(error),
            Ok(false) | Err(_) => return Ok(None),
        }
        let Ok(found) = io.read(&record.knob) else {
            return Ok(None);
        };
        let way = told.map_or(Way::Unknown, |_| Way::Libvirt);
        if self.is_taken(record, &found)? {
            return Ok(Some(Settlement::Frozen { found, way }));
        }
        let Some(theirs) = told else {
            return Ok(None);
        };
        self.journal.freeze(&record.life, &record.knob, theirs)?;
        // It is frozen whether or not this takes: from now on it is theirs.
        let _ = io.write(&record.knob, theirs);
        let found = theirs.to_owned();
        Ok(Some(Settlement::Frozen { found, way }))
    }
}

/// The last value that libvirt says somebody else gave a knob. One that was ours just before cannot be
/// told from ours.
fn last_told<'a>(told: &'a [TunedByOthers], record: &Record) -> Option<&'a str> {
    let is_about = |told: &&TunedByOthers| {
        let life = record.life.guest();
        life.is_some_and(|life| life.uuid == told.uuid) && told.knob == record.knob
    };
    let last = told.iter().rfind(is_about)?;
    let is_theirs = last.value != record.value && last.value != record.previous;
    is_theirs.then_some(&last.value)
}
