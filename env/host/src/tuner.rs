//! Every write to the host goes through here: journal, apply, read back, settle; and back again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Instant;

use crate::cpuset::CpuSet;
use crate::device::DeviceKnob;
use crate::error::{HostError, HostResult};
use crate::hypervisor::Hypervisor;
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::{GuestLife, Intent, Journal, Life, Record, RecordState, owner};
use crate::knob::{Change, Knob, Purpose};
use crate::settable::{Settable, write_and_check};
use crate::write_back::{WriteBackLimits, WriteBacks};

mod device;
mod disk;
mod flush;
mod follow;

pub use disk::DiskAccess;

/// Applies changes and takes them back.
#[derive(Debug)]
pub struct Tuner {
    journal: Journal,
    /// Knobs that are on their way back while the journal cannot be written, so that it knows nothing
    /// of that.
    put_back: RefCell<BTreeSet<(Life, Knob)>>,
    write_backs: WriteBacks,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The knob.
    pub knob: Knob,
    /// Its value before.
    pub previous: String,
    /// Its value now, read back.
    pub value: String,
}

/// What became of one journalled knob in a rollback or reconciliation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Name of the guest, or kernel name of the device.
    pub name: String,
    /// The knob.
    pub knob: Knob,
    /// What was done.
    pub result: Settlement,
}

impl Outcome {
    /// Whose knob it is, in words: `guest web`, `device nvme0n1`.
    #[must_use]
    pub fn owner(&self) -> String {
        owner(&self.knob, &self.name)
    }
}

/// What was done about one journalled knob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The original value is in force again, read back, and the record is dropped.
    Restored {
        /// The original value.
        original: String,
    },
    /// The original value is in force again, read back, but the journal cannot be written: the record
    /// stays, and goes when it can.
    Unrecorded {
        /// The original value.
        original: String,
        /// Why it cannot.
        reason: String,
    },
    /// The guest's or device's life is over, and the value with it; the record is dropped.
    Moot,
    /// The value stands as journalled.
    Kept {
        /// The value in force.
        value: String,
    },
    /// Somebody else changed the knob; it is left alone.
    Frozen {
        /// What was found.
        found: String,
        /// Which way it was changed.
        way: Way,
    },
    /// It could not be done now; the record stays.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Which way somebody else changed a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through libvirt, whose event said so: a client such as `virsh` or an orchestrator.
    Libvirt,
    /// Unknown: libvirt has no event for this knob, or it was done past libvirt.
    Unknown,
}

/// Whose changes to roll back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everything.
    Host,
    /// Everything but the latency histograms, which change nothing for the guest.
    Settings,
    /// One guest, by UUID.
    Guest(String),
    /// One guest, by UUID, but for its latency histograms.
    GuestSettings(String),
    /// One knob of one guest.
    Knob(String, Knob),
    /// One block device, by its stable id.
    Device(String),
}

impl Tuner {
    /// A tuner with this journal.
    #[must_use]
    pub fn new(journal: Journal) -> Self {
        Self::with_limits(journal, WriteBackLimits::default())
    }

    /// A tuner with this journal that writes dirty pages back as far as this.
    #[must_use]
    pub fn with_limits(journal: Journal, limits: WriteBackLimits) -> Self {
        Self {
            journal,
            put_back: RefCell::default(),
            write_backs: WriteBacks::new(limits),
        }
    }

    /// All journalled knobs, those first changed last first.
    ///
    /// # Errors
    /// `Journal`.
    pub fn records(&self) -> HostResult<Vec<Record>> {
        self.journal.records()
    }

    /// Adds a note to the journal.
    ///
    /// # Errors
    /// `Journal`.
    pub fn note(&self, text: &str) -> HostResult<()> {
        self.journal.note(text)
    }

    /// The record of a knob; `None` if we have not changed it.
    ///
    /// # Errors
    /// `Journal`.
    pub fn record(&self, life: &Life, knob: &Knob) -> HostResult<Option<Record>> {
        self.journal.record(life, knob)
    }

    /// The value that a knob of a guest had before we changed it; `None` if we have not.
    ///
    /// # Errors
    /// `Journal`.
    pub fn original(&self, life: &GuestLife, knob: &Knob) -> HostResult<Option<String>> {
        let record = self.record(&life.clone().into(), knob)?;
        Ok(record.map(|record| record.original))
    }

    /// Whether a knob of a guest is frozen because somebody else changed it.
    ///
    /// # Errors
    /// `Journal`.
    pub fn is_frozen(&self, life: &GuestLife, knob: &Knob) -> HostResult<bool> {
        let record = self.record(&life.clone().into(), knob)?;
        Ok(record.is_some_and(|record| record.state == RecordState::Frozen))
    }

    /// Applies a change to a guest. When it fails, or cannot be settled in the journal, the value before
    /// is restored.
    ///
    /// # Errors
    /// `NotOptedIn` and `Unsupported` before anything is written; `Frozen` when somebody else
    /// changed the knob; `WritingBack`, `WriteBackQueued` and `WritesTooFast` while a disk has too many
    /// dirty pages to go over to direct; `ReadBack` when it did not take; whatever the hypervisor says.
    pub fn apply(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        change: &Change,
    ) -> HostResult<Applied> {
        let (knob, value) = change.knob_and_value();
        let life = life_of(running)?;
        check_answering(running)?;
        self.catch_up(hypervisor, running, &knob)?;
        let whose = Whose {
            io: &running.knobs(hypervisor),
            life: &life,
            name: &running.guest.name,
        };
        self.turn(&whose, knob, value)
    }

    fn turn(&self, whose: &Whose<'_>, knob: Knob, value: String) -> HostResult<Applied> {
        let Whose { io, life, name } = *whose;
        // Before anything is read: a guest without opt-in gets no monitor command at all.
        io.check_allowed(&knob)?;
        let mut record = self.journal.record(life, &knob)?;
        if let Some(known) = &record
            && !self.follow_node(io, known)?
        {
            record = None;
        }
        let current = self.value(io, life, &knob)?;
        io.check_change(&knob, &current, &value)?;
        if let Some(known) = &record {
            if self.was_put_back(io, known, &current) {
                self.drop_record(life, &knob)?;
                record = None;
            } else {
                self.check_untouched(known, &current)?;
                // What the kernel had changed beside a device's setting goes back with it. The record of
                // a guest that we have put back to its original stays: what somebody else sets then is
                // noticed.
                if known.life.device().is_some() && self.is_original(io, known, &current)? {
                    record = None;
                }
            }
        }
        let applied = Applied {
            knob,
            previous: current,
            value,
        };
        // What an interrupted change has left of a knob that is not reported is not known.
        let is_open = |record: &Record| record.state == RecordState::Intended;
        let is_known = applied.knob.is_reported() || !record.as_ref().is_some_and(is_open);
        if applied.previous == applied.value && is_known {
            return Ok(applied);
        }
        self.check_written_back(io, &applied)?;
        let original = record.as_ref().map_or(&applied.previous, |r| &r.original);
        let undo = io.undo(&applied.knob, original, record.as_ref())?;
        let before = io.side_effects(&applied.knob);
        self.journal.intend(&Intent {
            life,
            name,
            knob: &applied.knob,
            current: &applied.previous,
            value: &applied.value,
            undo: undo.as_deref(),
        })?;
        let made = self.check_still(whose, &applied);
        let made = made.and_then(|()| match &record {
            Some(record) if record.original == applied.value => {
                io.go_back(&applied.knob, &applied.value, record.undo.as_deref())
            }
            _ => write_and_check(io, &applied.knob, &applied.value, undo.as_deref()),
        });
        let made = made.and_then(|()| {
            if let (Some(undo), Some(_)) = (&undo, &before) {
                let undo = io.undo_once_made(undo);
                self.journal.note_undo(life, &applied.knob, &undo)?;
            }
            self.journal.settle(life, &applied.knob, &applied.value)
        });
        if let Err(error) = made {
            return Err(self
                .revert(whose, &applied, before.as_deref(), record.is_none())
                .err()
                .unwrap_or(error));
        }
        self.end_write_back(io, &applied);
        Ok(applied)
    }

    /// Restores original values, the latest change first. One that fails does not stop the others.
    /// A guest that has opted out since is put back too: what is undone is our own change. Disks that go
    /// back to direct are written back first, all together for no longer than
    /// [`WriteBackLimits::way_back`].
    ///
    /// # Errors
    /// `Journal`, when the records cannot be read at all.
    pub fn rollback(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        scope: &Scope,
    ) -> HostResult<Vec<Outcome>> {
        let mut outcomes = self.follow(hypervisor, inventory, scope)?;
        let deadline = self.begin_ways_back(scope)?;
        let restore = |record: &Record| self.restore(hypervisor, inventory, record, deadline);
        outcomes.extend(self.for_each(scope, restore)?);
        Ok(outcomes)
    }

    /// Compares the journal with the host after a start: drops what is moot, settles intents that a
    /// crash left open, freezes what somebody else changed.
    ///
    /// # Errors
    /// `Journal`, when the records cannot be read at all.
    pub fn reconcile(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
    ) -> HostResult<Vec<Outcome>> {
        let mut outcomes = self.follow(hypervisor, inventory, &Scope::Host)?;
        outcomes.extend(self.for_each(&Scope::Host, |record| {
            self.compare(hypervisor, inventory, record)
        })?);
        Ok(outcomes)
    }

    /// Lets a frozen knob of a guest be tuned again. The value in force, which is returned, becomes
    /// its original: what somebody else has chosen is not undone by a rollback.
    ///
    /// # Errors
    /// `Journal`; `Unsupported` when it is not frozen.
    pub fn unfreeze(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        knob: &Knob,
    ) -> HostResult<String> {
        let read = || check_answering(running).and_then(|()| running.knobs(hypervisor).read(knob));
        self.thaw(&life_of(running)?, &running.guest.name, knob, read)
    }

    fn thaw(
        &self,
        life: &Life,
        name: &str,
        knob: &Knob,
        read: impl FnOnce() -> HostResult<String>,
    ) -> HostResult<String> {
        let record = self.journal.record(life, knob)?;
        let record = record.filter(|record| record.state == RecordState::Frozen);
        let record = record.ok_or_else(|| HostError::Unsupported {
            what: format!("{}: unfreezing {knob}", owner(knob, name)),
            reason: "it is not frozen".into(),
        })?;
        let now = read();
        self.drop_record(life, knob)?;
        // A guest that does not answer now does not need to: nothing is written to it.
        Ok(now.unwrap_or_else(|_| record.found.unwrap_or(record.value)))
    }

    fn for_each(
        &self,
        scope: &Scope,
        act: impl Fn(&Record) -> HostResult<Settlement>,
    ) -> HostResult<Vec<Outcome>> {
        let records = self.journal.records()?;
        let done = |record: &Record| {
            let reason = |error: HostError| Settlement::Failed {
                reason: error.to_string(),
            };
            outcome(record, act(record).unwrap_or_else(reason))
        };
        let held = records.iter().filter(|record| scope.holds(record));
        Ok(held.map(done).collect())
    }

    fn restore(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        record: &Record,
        deadline: Instant,
    ) -> HostResult<Settlement> {
        let Some(io) = self.access(hypervisor, inventory, record, Purpose::Restore)? else {
            return Ok(Settlement::Moot);
        };
        let original = record.original.clone();
        if !self.follow_node(&*io, record)? {
            return Ok(Settlement::Restored { original });
        }
        let mut current = self.value(&*io, &record.life, &record.knob)?;
        if self.wait_for_write_back(&*io, record, &current, deadline) {
            current = self.value(&*io, &record.life, &record.knob)?;
        }
        if self.is_back(&*io, record, &current)? {
            return Ok(self.put_back(record, current));
        }
        if self.is_taken(record, &current)? {
            return Ok(Settlement::Frozen {
                found: current,
                way: Way::Unknown,
            });
        }
        self.check_order(&*io, record)?;
        self.intend_way_back(record, &current);
        io.go_back(&record.knob, &record.original, record.undo.as_deref())?;
        Ok(self.put_back(record, original))
    }

    /// So that our own way back is not taken for somebody else's change if it ends half-way. A journal
    /// that cannot be written now does not bar it: the original stands there.
    fn intend_way_back(&self, record: &Record, current: &str) {
        let intent = Intent {
            life: &record.life,
            name: &record.name,
            knob: &record.knob,
            current,
            value: &record.original,
            undo: record.undo.as_deref(),
        };
        if self.journal.intend(&intent).is_err() {
            let key = (record.life.clone(), record.knob.clone());
            self.put_back.borrow_mut().insert(key);
        }
    }

    /// What became of a record whose original, or what stands for it now, is in force again.
    fn put_back(&self, record: &Record, original: String) -> Settlement {
        match self.drop_record(&record.life, &record.knob) {
            Ok(()) => Settlement::Restored { original },
            Err(error) => Settlement::Unrecorded {
                original,
                reason: error.to_string(),
            },
        }
    }

    fn compare(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        record: &Record,
    ) -> HostResult<Settlement> {
        let Some(io) = self.access(hypervisor, inventory, record, Purpose::Tune)? else {
            return Ok(Settlement::Moot);
        };
        if !self.follow_node(&*io, record)? {
            let original = record.original.clone();
            return Ok(Settlement::Restored { original });
        }
        if record.state == RecordState::Intended && !record.knob.is_reported() {
            // Nothing that is not reported has dirty pages to wait for.
            return self.restore(hypervisor, inventory, record, Instant::now());
        }
        let current = self.value(&*io, &record.life, &record.knob)?;
        if record.state != RecordState::Frozen && self.is_original(&*io, record, &current)? {
            return Ok(Settlement::Restored { original: current });
        }
        if self.is_taken(record, &current)? {
            return Ok(Settlement::Frozen {
                found: current,
                way: Way::Unknown,
            });
        }
        if record.state == RecordState::Intended {
            self.journal.settle(&record.life, &record.knob, &current)?;
        }
        Ok(Settlement::Kept { value: current })
    }

    /// Access to what a record is about, in the same life; `None`, and the record dropped, when that is
    /// over. What is journalled of a device is ours, so that it needs no rule.
    fn access<'a>(
        &self,
        hypervisor: &'a dyn Hypervisor,
        inventory: &'a Inventory,
        record: &Record,
        purpose: Purpose,
    ) -> HostResult<Option<Box<dyn Settable + 'a>>> {
        let found: Option<Box<dyn Settable + 'a>> = match &record.life {
            Life::Guest(life) => find(inventory, record, life)?
                .map(|running| Box::new(running.knobs_to(purpose, hypervisor)) as _),
            Life::Device(life) => inventory
                .devices
                .find(life, &record.name, &inventory.boot_id)?
                .map(|device| Box::new(inventory.devices.queue(&device, Purpose::Restore)) as _),
        };
        if found.is_none() {
            self.drop_record(&record.life, &record.knob)?;
        }
        Ok(found)
    }

    /// Whether a knob has its original value, whoever set it, with what turning it had changed.
    fn is_back(&self, io: &dyn Settable, record: &Record, current: &str) -> HostResult<bool> {
        let is_back =
            current == record.original || self.went_with_scheduler(io, record, current)?;
        if is_back {
            io.complete(record)?;
        }
        Ok(is_back)
    }

    /// As [`Self::is_back`]; then its record is dropped.
    fn is_original(&self, io: &dyn Settable, record: &Record, current: &str) -> HostResult<bool> {
        let is_original = self.is_back(io, record, current)?;
        if is_original {
            self.drop_record(&record.life, &record.knob)?;
        }
        Ok(is_original)
    }

    /// The value of a knob in force; of one that is not reported what was accepted last, or what the guest
    /// was started with.
    fn value(&self, io: &dyn Settable, life: &Life, knob: &Knob) -> HostResult<String> {
        let known = self.journal.record(life, knob)?;
        let undo = known.as_ref().and_then(|record| record.undo.as_deref());
        let read = io.read_of(knob, undo)?;
        if knob.is_reported() {
            return Ok(read);
        }
        // A way back that was cut short may have changed nothing.
        let last = |record: Record| match record.state {
            RecordState::Intended if record.value == record.original => record.previous,
            _ => record.value,
        };
        Ok(known.map_or(read, last))
    }

    fn drop_record(&self, life: &Life, knob: &Knob) -> HostResult<()> {
        self.journal.drop_record(life, knob)?;
        self.put_back
            .borrow_mut()
            .remove(&(life.clone(), knob.clone()));
        Ok(())
    }

    /// Freezes a knob whose value is not ours.
    fn check_untouched(&self, record: &Record, current: &str) -> HostResult<()> {
        if is_ours(record, current) {
            return Ok(());
        }
        if record.state != RecordState::Frozen {
            self.journal.freeze(&record.life, &record.knob, current)?;
        }
        Err(taken(record, current))
    }

    /// Whether a value is the original that we have put back without the journal's knowledge.
    fn was_put_back(&self, io: &dyn Settable, record: &Record, current: &str) -> bool {
        let key = (record.life.clone(), record.knob.clone());
        record.state != RecordState::Frozen
            && self.put_back.borrow().contains(&key)
            && self.is_back(io, record, current).unwrap_or(false)
    }

    /// Whether somebody else has the knob; it is frozen then.
    fn is_taken(&self, record: &Record, current: &str) -> HostResult<bool> {
        match self.check_untouched(record, current) {
            Ok(()) => Ok(false),
            Err(HostError::Frozen { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// A change that was journalled is made on the value that was journalled: to put it on stable
    /// storage takes long enough for somebody else to come between.
    fn check_still(&self, whose: &Whose<'_>, change: &Applied) -> HostResult<()> {
        let found = self.value(whose.io, whose.life, &change.knob)?;
        let record = self.journal.record(whose.life, &change.knob)?;
        record.map_or(Ok(()), |record| self.check_untouched(&record, &found))
    }

    /// After a failed change: back to the value before. What cannot be restored or read stays
    /// journalled as an open intent, for the next reconciliation; what somebody else has set
    /// meanwhile stays in force.
    ///
    /// # Errors
    /// `Frozen`, where somebody else has set it.
    fn revert(
        &self,
        whose: &Whose<'_>,
        change: &Applied,
        before: Option<&str>,
        is_first: bool,
    ) -> HostResult<()> {
        let Whose { io, life, .. } = *whose;
        let (Ok(record), Ok(found)) = (
            self.journal.record(life, &change.knob),
            self.value(io, life, &change.knob),
        ) else {
            return Ok(());
        };
        if !is_cut_short(change, &found)
            && let Some(record) = &record
        {
            self.check_untouched(record, &found)?;
        }
        let undo = before.or_else(|| record.as_ref()?.undo.as_deref());
        if found != change.previous && io.go_back(&change.knob, &change.previous, undo).is_err() {
            return Ok(());
        }
        // The journal has its own error path: an intent that stays open is compared later.
        let _ = if is_first {
            self.drop_record(life, &change.knob)
        } else {
            self.journal.settle(life, &change.knob, &change.previous)
        };
        Ok(())
    }
}

/// Whose knob is turned.
struct Whose<'a> {
    io: &'a dyn Settable,
    life: &'a Life,
    name: &'a str,
}

impl Scope {
    fn holds(&self, record: &Record) -> bool {
        let is_setting = !matches!(record.knob, Knob::Histogram { .. });
        let is_of = |uuid: &str| record.life.guest().is_some_and(|life| life.uuid == uuid);
        match self {
            Self::Host => true,
            Self::Settings => is_setting,
            Self::Guest(uuid) => is_of(uuid),
            Self::GuestSettings(uuid) => is_of(uuid) && is_setting,
            Self::Knob(uuid, knob) => is_of(uuid) && record.knob == *knob,
            Self::Device(id) => record.life.device().is_some_and(|life| life.id == *id),
        }
    }
}

fn taken(record: &Record, found: &str) -> HostError {
    HostError::Frozen {
        owner: record.owner(),
        knob: record.knob.to_string(),
        ours: record.value.clone(),
        theirs: found.to_owned(),
    }
}

/// Whether a value is the one that we set last or, in an open intent, the one before.
fn is_ours(record: &Record, value: &str) -> bool {
    match record.state {
        RecordState::Frozen => false,
        RecordState::Settled => value == record.value,
        RecordState::Intended => value == record.value || value == record.previous,
    }
}

/// Whether what is found is the kernel's answer to our own change: a binding without CPUs that a cpuset
/// leaves out, or no scheduler where a switch has failed.
fn is_cut_short(change: &Applied, found: &str) -> bool {
    let cpus = |text: &str| text.parse::<CpuSet>().ok();
    match (&change.knob, cpus(found), cpus(&change.value)) {
        (Knob::Channel { .. }, Some(found), Some(wanted)) => {
            found.iter().all(|cpu| wanted.contains(cpu))
        }
        (Knob::Device(DeviceKnob::Scheduler), ..) => found == "none",
        _ => false,
    }
}

/// The guest of a record in the same life, or in the one that it was restored in; `None` when that is
/// over.
fn find<'a>(
    inventory: &'a Inventory,
    record: &Record,
    life: &GuestLife,
) -> HostResult<Option<&'a RunningGuest>> {
    let next = inventory.guests.get(&life.uuid);
    let has_ended = inventory.has_ended(life);
    if has_ended && !follow::may_be_handed_on(inventory, life, &record.knob) {
        return Ok(None);
    }
    let is_it = |guest: &&RunningGuest| has_ended || guest.life.as_ref() == Some(life);
    match next.filter(is_it) {
        Some(running) => check_answering(running).map(|()| Some(running)),
        None => Err(HostError::Unsupported {
            what: record.owner(),
            reason: "its QEMU may still run, but cannot be found or read through libvirt: see that libvirt lists it, and try again".into(),
        }),
    }
}

fn outcome(record: &Record, result: Settlement) -> Outcome {
    Outcome {
        name: record.name.clone(),
        knob: record.knob.clone(),
        result,
    }
}

fn life_of(running: &RunningGuest) -> HostResult<Life> {
    let life = running.life.clone().map(Life::Guest);
    life.ok_or_else(|| HostError::Unsupported {
        what: format!("guest {}: changing it", running.guest.name),
        reason: "its QEMU process was not found, so its changes could not be journalled".into(),
    })
}

fn check_answering(running: &RunningGuest) -> HostResult<()> {
    if running.hangs {
        let what = format!("guest {}: its monitor", running.guest.name);
        return Err(HostError::Late { what });
    }
    Ok(())
}

mod watch;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod follow_tests;

#[cfg(test)]
mod full_disk;

#[cfg(test)]
mod model;

#[cfg(test)]
mod device_tests;

#[cfg(test)]
mod disk_tests;

#[cfg(test)]
mod watch_tests;
