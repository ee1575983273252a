//! Every write to the host goes through here: journal, apply, read back, settle; and back again.

use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::hypervisor::Hypervisor;
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::{GuestLife, Intent, Journal, Record, RecordState};
use crate::knob::{BUFFERED, Change, DIRECT, FOREIGN, Knob, KnobIo, Purpose};

mod follow;

/// Applies changes and takes them back.
#[derive(Debug)]
pub struct Tuner {
    journal: Journal,
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
    /// Name of the guest.
    pub guest: String,
    /// The knob.
    pub knob: Knob,
    /// What was done.
    pub result: Settlement,
}

/// What was done about one journalled knob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The original value is in force again, read back, and the record is dropped.
    Restored {
        /// The original value.
        original: String,
    },
    /// The guest's life is over, and the value with it; the record is dropped.
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

impl Tuner {
    /// A tuner with this journal.
    #[must_use]
    pub fn new(journal: Journal) -> Self {
        Self { journal }
    }

    /// All journalled knobs, those first changed last first.
    ///
    /// # Errors
    /// `Journal`.
    pub fn records(&self) -> HostResult<Vec<Record>> {
        self.journal.records()
    }

    /// The value that a knob had before we changed it; `None` if we have not.
    ///
    /// # Errors
    /// `Journal`.
    pub fn original(&self, life: &GuestLife, knob: &Knob) -> HostResult<Option<String>> {
        Ok(self
            .journal
            .record(life, knob)?
            .map(|record| record.original))
    }

    /// Whether a knob is frozen because somebody else changed it.
    ///
    /// # Errors
    /// `Journal`.
    pub fn is_frozen(&self, life: &GuestLife, knob: &Knob) -> HostResult<bool> {
        Ok(self
            .journal
            .record(life, knob)?
            .is_some_and(|record| record.state == RecordState::Frozen))
    }

    /// Applies a change. When it fails, the value before is restored.
    ///
    /// # Errors
    /// `NotOptedIn` and `Unsupported` before anything is written; `Frozen` when somebody else
    /// changed the knob; `ReadBack` when it did not take; whatever the hypervisor says.
    pub fn apply(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        change: &Change,
    ) -> HostResult<Applied> {
        let (knob, value) = change.knob_and_value();
        let (io, life) = (running.knobs(hypervisor), life_of(running)?);
        check_answering(running)?;
        // Before anything is read: a guest without opt-in gets no monitor command at all.
        io.check_allowed(&knob)?;
        let mut record = self.journal.record(life, &knob)?;
        if let Some(known) = &record
            && !self.follow_node(&io, known)?
        {
            record = None;
        }
        let current = io.read(&knob)?;
        check_ours(running, &knob, &current)?;
        if let Some(known) = &record {
            self.check_untouched(known, &current)?;
            if self.is_original(known, &current)? {
                record = None;
            }
        }
        let applied = Applied {
            knob,
            previous: current,
            value,
        };
        if applied.previous == applied.value {
            return Ok(applied);
        }
        let original = record.as_ref().map_or(&applied.previous, |r| &r.original);
        let undo = io.undo_command(&applied.knob, original)?;
        self.journal.intend(&Intent {
            life,
            guest: &running.guest.name,
            knob: &applied.knob,
            current: &applied.previous,
            value: &applied.value,
            undo: undo.as_deref(),
        })?;
        let made = self.check_still(&io, life, &applied);
        let made = made.and_then(|()| write_and_check(&io, &applied.knob, &applied.value));
        match made {
            Ok(()) => {
                self.journal.settle(life, &applied.knob, &applied.value)?;
                Ok(applied)
            }
            Err(error) => Err(self
                .revert(&io, life, &applied, record.is_none())
                .err()
                .unwrap_or(error)),
        }
    }

    /// Restores original values, the latest change first. One that fails does not stop the others.
    /// A guest that has opted out since is put back too: what is undone is our own change.
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
        outcomes
            .extend(self.for_each(scope, |record| self.restore(hypervisor, inventory, record))?);
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

    /// Lets a frozen knob be tuned again. The value in force, which is returned, becomes its
    /// original: what somebody else has chosen is not undone by a rollback.
    ///
    /// # Errors
    /// `Journal`; `Unsupported` when it is not frozen.
    pub fn unfreeze(
        &self,
        hypervisor: &dyn Hypervisor,
        running: &RunningGuest,
        knob: &Knob,
    ) -> HostResult<String> {
        let life = life_of(running)?;
        let record = self.journal.record(life, knob)?;
        let record = record.filter(|record| record.state == RecordState::Frozen);
        let record = record.ok_or_else(|| HostError::Unsupported {
            what: format!("guest {}: unfreezing {knob}", running.guest.name),
            reason: "it is not frozen".into(),
        })?;
        let now = check_answering(running).and_then(|()| running.knobs(hypervisor).read(knob));
        self.journal.drop_record(life, knob)?;
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
    ) -> HostResult<Settlement> {
        let Some(running) = self.find(inventory, record)? else {
            return Ok(Settlement::Moot);
        };
        let io = running.knobs_to(Purpose::Restore, hypervisor);
        let original = record.original.clone();
        if !self.follow_node(&io, record)? {
            return Ok(Settlement::Restored { original });
        }
        let current = io.read(&record.knob)?;
        if !self.is_original(record, &current)? {
            if self.is_taken(record, &current)? {
                return Ok(Settlement::Frozen {
                    found: current,
                    way: Way::Unknown,
                });
            }
            // So that our own way back is not taken for somebody else's change if it ends half-way.
            // A journal that cannot be written now does not bar it: the original stands there.
            let _ = self.journal.intend(&Intent {
                life: &record.life,
                guest: &record.guest,
                knob: &record.knob,
                current: &current,
                value: &record.original,
                undo: record.undo.as_deref(),
            });
            write_and_check(&io, &record.knob, &record.original)?;
            self.journal.drop_record(&record.life, &record.knob)?;
        }
        Ok(Settlement::Restored { original })
    }

    fn compare(
        &self,
        hypervisor: &dyn Hypervisor,
        inventory: &Inventory,
        record: &Record,
    ) -> HostResult<Settlement> {
        let Some(running) = self.find(inventory, record)? else {
            return Ok(Settlement::Moot);
        };
        let io = running.knobs(hypervisor);
        if !self.follow_node(&io, record)? {
            let original = record.original.clone();
            return Ok(Settlement::Restored { original });
        }
        let current = io.read(&record.knob)?;
        if record.state != RecordState::Frozen && self.is_original(record, &current)? {
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

    /// The guest of a record in the same life; `None`, and the record dropped, when that is over.
    fn find<'a>(
        &self,
        inventory: &'a Inventory,
        record: &Record,
    ) -> HostResult<Option<&'a RunningGuest>> {
        let next = inventory.guests.get(&record.life.uuid);
        if inventory.has_ended(&record.life)
            && !next.is_some_and(|next| follow::is_handed_on(next, &record.knob))
        {
            self.journal.drop_record(&record.life, &record.knob)?;
            return Ok(None);
        }
        let running = inventory.guests.get(&record.life.uuid);
        match running.filter(|guest| guest.life.as_ref() == Some(&record.life)) {
            Some(running) => check_answering(running).map(|()| Some(running)),
            None => Err(HostError::Unsupported {
                what: format!("guest {}", record.guest),
                reason: "its QEMU may still run, but cannot be found or read through libvirt: see that libvirt lists it, and try again".into(),
            }),
        }
    }

    /// Whether a knob has its original value, whoever set it: then its record is dropped.
    fn is_original(&self, record: &Record, current: &str) -> HostResult<bool> {
        let is_original = current == record.original;
        if is_original {
            self.journal.drop_record(&record.life, &record.knob)?;
        }
        Ok(is_original)
    }

    /// Freezes a knob whose value is not ours.
    fn check_untouched(&self, record: &Record, current: &str) -> HostResult<()> {
        if is_ours(record, current) {
            return Ok(());
        }
        if record.state != RecordState::Frozen {
            self.journal.freeze(&record.life, &record.knob, current)?;
        }
        Err(HostError::Frozen {
            guest: record.guest.clone(),
            knob: record.knob.to_string(),
            ours: record.value.clone(),
            theirs: current.to_owned(),
        })
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
    fn check_still(&self, io: &KnobIo<'_>, life: &GuestLife, change: &Applied) -> HostResult<()> {
        let found = io.read(&change.knob)?;
        let record = self.journal.record(life, &change.knob)?;
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
        io: &KnobIo<'_>,
        life: &GuestLife,
        change: &Applied,
        is_first: bool,
    ) -> HostResult<()> {
        let Ok(found) = io.read(&change.knob) else {
            return Ok(());
        };
        if !is_cut_short(change, &found)
            && let Ok(Some(record)) = self.journal.record(life, &change.knob)
        {
            self.check_untouched(&record, &found)?;
        }
        if found != change.previous && write_and_check(io, &change.knob, &change.previous).is_err()
        {
            return Ok(());
        }
        // The journal has its own error path: an intent that stays open is compared later.
        let _ = if is_first {
            self.journal.drop_record(life, &change.knob)
        } else {
            self.journal.settle(life, &change.knob, &change.previous)
        };
        Ok(())
    }
}

impl Scope {
    fn holds(&self, record: &Record) -> bool {
        let is_setting = !matches!(record.knob, Knob::Histogram { .. });
        match self {
            Self::Host => true,
            Self::Settings => is_setting,
            Self::Guest(uuid) => record.life.uuid == *uuid,
            Self::GuestSettings(uuid) => record.life.uuid == *uuid && is_setting,
            Self::Knob(uuid, knob) => record.life.uuid == *uuid && record.knob == *knob,
        }
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

/// Whether a binding is what we asked for but for CPUs that the kernel did not give: a cpuset may leave
/// some out.
fn is_cut_short(change: &Applied, found: &str) -> bool {
    let cpus = |text: &str| text.parse::<CpuSet>().ok();
    let (Knob::Channel { .. }, Some(found), Some(wanted)) =
        (&change.knob, cpus(found), cpus(&change.value))
    else {
        return false;
    };
    found.iter().all(|cpu| wanted.contains(cpu))
}

fn outcome(record: &Record, result: Settlement) -> Outcome {
    Outcome {
        guest: record.guest.clone(),
        knob: record.knob.clone(),
        result,
    }
}

fn life_of(running: &RunningGuest) -> HostResult<&GuestLife> {
    running.life.as_ref().ok_or_else(|| HostError::Unsupported {
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

fn check_ours(running: &RunningGuest, knob: &Knob, current: &str) -> HostResult<()> {
    if !matches!(knob, Knob::Histogram { .. }) || current != FOREIGN {
        return Ok(());
    }
    Err(HostError::Unsupported {
        what: format!("guest {}: {knob}", running.guest.name),
        reason: "somebody else counts latencies in other buckets; it is left alone".into(),
    })
}

fn write_and_check(io: &KnobIo<'_>, knob: &Knob, value: &str) -> HostResult<()> {
    io.write(knob, value)?;
    let found = io.read(knob)?;
    if found == value {
        return Ok(());
    }
    Err(HostError::ReadBack {
        guest: io.guest.name.clone(),
        knob: knob.to_string(),
        wanted: value.to_owned(),
        found,
    })
}

mod watch;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod follow_tests;

#[cfg(test)]
mod properties;

#[cfg(test)]
mod watch_tests;
