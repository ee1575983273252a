//! What somebody else changes is noticed at each sample.

use super::{Outcome, Settlement, Tuner, Way, is_ours, outcome};
use crate::disk_setting::DiskSetting;
use crate::error::{HostError, HostResult};
use crate::hypervisor::{Hypervisor, TunedByOthers};
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::{DeviceLife, Life, Record, RecordState};
use crate::knob::{Knob, Purpose};
use crate::settable::{Settable, write_and_check};
use crate::throttle::{Params, Throttle};

impl Tuner {
    /// Compares the journal with what is in force, and freezes what somebody else has changed since
    /// the last time. `seen` tells what is in force as far as it is known without asking anybody;
    /// only where that differs, or libvirt has told of somebody else's change, is the guest itself
    /// asked. A change that ours has overwritten in the same moment is put back. Returns what has
    /// been frozen, and what could not be, with the reason.
    ///
    /// # Errors
    /// `Journal`, when the records cannot be read at all.
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
                    let settlement = self.look(inventory, life, &record);
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
            let told = told.as_deref();
            let differs = |seen: String| !is_ours(&record, &seen);
            if told.is_none() && !seen(running, &record.knob).is_some_and(differs) {
                continue;
            }
            let settlement = self.ask(hypervisor, running, &record, told);
            frozen.extend(settlement.map(|found| outcome(&record, found)));
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
    ) -> Option<Settlement> {
        let devices = &inventory.devices;
        let device = devices.find(life, &record.name, &inventory.boot_id);
        let queue = devices.queue(&device.ok()??, Purpose::Restore);
        let found = queue.read(&record.knob).ok()?;
        self.taking(&queue, record, found, Way::Unknown)
    }

    /// That somebody else has a knob, which is frozen then; `None` if nobody has.
    fn taking(
        &self,
        io: &dyn Settable,
        record: &Record,
        found: String,
        way: Way,
    ) -> Option<Settlement> {
        if self.was_put_back(io, record, &found) {
            // Where the journal still cannot be written, the next time.
            let _ = self.drop_record(&record.life, &record.knob);
            return None;
        }
        match self.is_taken(record, &found) {
            Ok(false) => None,
            Ok(true) => Some(Settlement::Frozen { found, way }),
            Err(error) => Some(unfrozen(&found, &error)),
        }
    }

    /// What was seen may be older than our last change, so that only a read now counts; what cannot
    /// be read now is seen again at the next sample.
    fn ask(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        record: &Record,
        told: Option<&str>,
    ) -> Option<Settlement> {
        let io = running.knobs(hypervisor);
        // A new image is no change by somebody else; a record of the old one that cannot be dropped now
        // is dropped the next time.
        if !self.follow_node(&io, record).ok()? {
            return None;
        }
        let undo = record.undo.as_deref();
        let found = io.read_of(&record.knob, undo).ok()?;
        let way = told.map_or(Way::Unknown, |_| Way::Libvirt);
        let taking = self.taking(&io, record, found, way);
        let Some(theirs) = told.filter(|_| taking.is_none()) else {
            return taking;
        };
        // First in force, or what we have set would be taken for theirs where that fails, and would never
        // go back. Where it cannot be noted, it is found in force the next time.
        let put_back = write_and_check(&io, &record.knob, theirs, undo);
        let noted = put_back.and_then(|()| self.journal.freeze(&record.life, &record.knob, theirs));
        Some(match noted {
            Ok(()) => Settlement::Frozen {
                found: theirs.to_owned(),
                way,
            },
            Err(error) => unfrozen(theirs, &error),
        })
    }
}

/// It cannot be frozen now: the journal cannot be written, so that nothing can be changed either, or what
/// somebody else has set could not be put back in force.
fn unfrozen(found: &str, error: &HostError) -> Settlement {
    Settlement::Failed {
        reason: format!("somebody else set it to {found}, and {error}"),
    }
}

/// The last value that libvirt says somebody else gave a knob. One that was ours just before cannot be
/// told from ours.
fn last_told(told: &[TunedByOthers], record: &Record) -> Option<String> {
    let is_about = |told: &&TunedByOthers| {
        let life = record.life.guest();
        life.is_some_and(|life| life.uuid == told.uuid) && told.knob == record.knob
    };
    let last = told.iter().rfind(is_about)?;
    let value = whole(record, &last.value);
    let is_theirs = value != record.value && value != record.previous;
    is_theirs.then_some(value)
}

/// What somebody has told of a knob as a whole: of a throttle libvirt names what was set, the rest stays.
fn whole(record: &Record, told: &str) -> String {
    let is_throttle = matches!(
        record.knob,
        Knob::Disk {
            setting: DiskSetting::Throttle,
            ..
        }
    );
    let throttle = record.value.parse::<Throttle>().ok();
    let named = told.parse::<Params>().ok();
    match throttle.zip(named).filter(|_| is_throttle) {
        Some((throttle, named)) => throttle.after(&named).to_string(),
        None => told.to_owned(),
    }
}
