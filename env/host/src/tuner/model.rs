//! Journal and tuner against a reference: whatever happens to guests, hypervisor, journal and process,
//! and between whichever two steps, what is in force and not anybody else's is journalled with its true
//! original, and all of it goes back.
//!
//! The reference knows nothing of records. It keeps per knob the value that was last set by anybody but
//! us, and what we may be believed to have set: a change by somebody else to such a value cannot be told
//! from ours, so that none is made.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;
use crate::fake::Fault;
use crate::knob::FOREIGN;
use crate::undo_script::undo_script;
use daemon::Daemon;
use event::{Event, Extent, Mishap, OURS, TAKEN, THEIRS, What, event};
use script::run_script;
use world::{GUESTS, Sight, UUIDS, World, change, knobs};

mod crash;
mod daemon;
mod event;
mod script;
mod world;

/// What a bystander knows of a knob.
#[derive(Debug, Clone)]
struct Known {
    /// The value that was last set by anybody but us, or that the guest started with.
    theirs: String,
    /// The same when we first changed it; `None` while we have not.
    original: Option<String>,
    /// What we may be believed to have set.
    tried: BTreeSet<String>,
}

/// What there was before an event.
struct Before {
    records: Vec<Record>,
    values: BTreeMap<(usize, Knob), String>,
}

struct Trial {
    world: World,
    daemon: Daemon,
    known: BTreeMap<(usize, Knob), Known>,
}

impl Trial {
    fn new() -> Self {
        let daemon = Daemon::new();
        let mut trial = Self {
            world: World::new(daemon.lifeline.clone()),
            daemon,
            known: BTreeMap::new(),
        };
        (0..GUESTS).for_each(|guest| trial.meet(guest));
        trial
    }

    /// A guest begins a life.
    fn meet(&mut self, guest: usize) {
        self.meet_knobs(guest, |_| true);
    }

    fn meet_knobs(&mut self, guest: usize, is_met: impl Fn(&Knob) -> bool) {
        for knob in knobs().into_iter().filter(is_met) {
            let theirs = self.world.value(guest, &knob);
            let known = Known {
                theirs,
                original: None,
                tried: BTreeSet::new(),
            };
            self.known.insert((guest, knob), known);
        }
    }

    fn happen(&mut self, event: &Event) {
        let before = self.before();
        match event.mishap {
            // Somebody else's binding that is a part of ours looks like a cpuset's answer to ours, and is
            // reverted: see `is_cut_short`.
            Mishap::Write(Fault::AppliedThenTaken) if event.what.binds_to_all() => {}
            Mishap::None => {}
            Mishap::Write(fault) => self
                .world
                .guests
                .iter()
                .for_each(|host| host.fault.set(fault)),
            Mishap::Unreachable => self
                .world
                .guests
                .iter()
                .for_each(|host| host.lost.set(true)),
            Mishap::NoRoom(commits) => self.daemon.room.set(Some(commits)),
            Mishap::Dies(effects) => self.daemon.lifeline.set(Some(effects)),
        }
        self.act(&event.what);
        self.note_taken();
        let written = self.judge_writes(&event.what);
        for host in &self.world.guests {
            host.fault.set(Fault::None);
            host.lost.set(false);
        }
        self.daemon.room.set(None);
        if matches!(event.mishap, Mishap::Dies(_)) {
            self.daemon.start_anew();
        }
        self.judge_records(&event.what, &before, &written);
        if matches!(event.mishap, Mishap::Dies(_)) {
            self.happen(&Event {
                what: What::Reconcile,
                mishap: Mishap::None,
            });
        }
    }

    fn before(&self) -> Before {
        let value = |key: &(usize, Knob)| (key.clone(), self.world.value(key.0, &key.1));
        Before {
            records: self.daemon.records(),
            values: self.known.keys().map(value).collect(),
        }
    }

    fn act(&mut self, what: &What) {
        let inventory = self.world.inventory();
        match *what {
            What::Apply(guest, knob, value) => self.apply(guest, &knobs()[knob], OURS[knob][value]),
            What::SomebodyElse(guest, knob, value) => {
                self.somebody_else_sets(guest, &knobs()[knob], THEIRS[knob][value]);
            }
            What::Watch(old) => self.watch(old, &inventory),
            What::Reconcile => drop(
                self.daemon
                    .tuner
                    .reconcile(&self.world, &inventory)
                    .unwrap(),
            ),
            What::Rollback(extent) => {
                let rolled_back =
                    self.daemon
                        .tuner
                        .rollback(&self.world, &inventory, &scope(extent));
                drop(rolled_back.unwrap());
            }
            What::Unfreeze(guest, knob) if self.world.sights[guest] != Sight::Off => {
                let running = self.world.running(guest);
                let _ = self
                    .daemon
                    .tuner
                    .unfreeze(&self.world, &running, &knobs()[knob]);
            }
            What::Look(guest, sight) if self.world.sights[guest] != Sight::Off => {
                self.world.sights[guest] = sight;
            }
            What::OptOut(guest, true) => self.world.guests[guest].opt_out(),
            What::OptOut(guest, false) => self.world.guests[guest].opt_in(),
            What::Job(guest, runs) => self.world.guests[guest].job.set(runs),
            What::RestoreGuest(guest) if !self.can_be_restored(guest) => {}
            What::RestartGuest(guest) => {
                self.world.boot_guest(guest);
                self.meet(guest);
            }
            What::RestoreGuest(guest) => {
                self.world.restore_guest(guest);
                self.meet_knobs(guest, |knob| !is_saved(knob));
                let (inventory, scope) = (self.world.inventory(), Scope::Host);
                let followed = self.daemon.tuner.follow(&self.world, &inventory, &scope);
                drop(followed.unwrap());
            }
            What::Overtaken(guest, value) => self.overtake(guest, THEIRS[0][value], &inventory),
            What::RestartHost => {
                self.world.boot_host();
                self.daemon.start_anew();
                (0..GUESTS).for_each(|guest| self.meet(guest));
            }
            What::Unfreeze(..) | What::Look(..) => {}
        }
    }

    fn apply(&mut self, guest: usize, knob: &Knob, value: &str) {
        if matches!(self.world.sights[guest], Sight::Off | Sight::Unlisted) {
            return;
        }
        let known = self.known.get_mut(&(guest, knob.clone())).unwrap();
        known.tried.insert(value.to_owned());
        let running = self.world.running(guest);
        let done = self
            .daemon
            .tuner
            .apply(&self.world, &running, &change(knob, value));
        if let Ok(applied) = done {
            assert_eq!(applied.value, self.world.value(guest, knob));
            assert!(self.world.sights[guest] != Sight::Hangs);
        }
    }

    fn somebody_else_sets(&mut self, guest: usize, knob: &Knob, value: &str) {
        let known = self.known.get_mut(&(guest, knob.clone())).unwrap();
        if self.world.sights[guest] == Sight::Off || known.tried.contains(value) {
            return;
        }
        value.clone_into(&mut known.theirs);
        self.world.set(guest, knob, value);
    }

    /// Records of a guest that is saved for longer than a moment end with a rollback or a start of the
    /// service (docs/operations.md), and those of one that is started anew, saved and restored before the
    /// service has looked cannot be told from those of one that is only restored: neither is tried.
    fn can_be_restored(&self, guest: usize) -> bool {
        let life = self.world.life(guest);
        let is_current = |record: &Record| {
            let last = record.life.guest();
            last.is_none_or(|last| last.uuid != life.uuid || *last == life)
        };
        self.world.sights[guest] != Sight::Off && self.daemon.records().iter().all(is_current)
    }

    fn overtake(&mut self, guest: usize, value: &str, inventory: &Inventory) {
        let (knob, value) = (Knob::Channel { iothread: 1 }, value.to_owned());
        let known = &self.known[&(guest, knob.clone())];
        let is_ours = self.world.value(guest, &knob) != known.theirs;
        if self.world.sights[guest] != Sight::Seen || !is_ours || known.tried.contains(&value) {
            return;
        }
        self.world.tell(guest, &knob, &value);
        self.watch(None, inventory);
        // Where the way back to it has failed, what we have set stays ours.
        if self.world.value(guest, &knob) == value {
            let known = self.known.get_mut(&(guest, knob));
            known.unwrap().theirs = value;
        }
    }

    /// Somebody else has come between a write of ours and its reading back.
    fn note_taken(&mut self) {
        for ((guest, knob), known) in &mut self.known {
            if self.world.value(*guest, knob) == TAKEN {
                TAKEN.clone_into(&mut known.theirs);
            }
        }
    }

    fn watch(&self, old: Option<usize>, inventory: &Inventory) {
        let seen = |running: &RunningGuest, knob: &Knob| {
            let guest = UUIDS.iter().position(|uuid| *uuid == running.guest.uuid)?;
            let column = knobs().iter().position(|known| known == knob)?;
            Some(match old {
                Some(old) => OURS[column][old % OURS[column].len()].to_owned(),
                None => self.world.value(guest, knob),
            })
        };
        let watched = self.daemon.tuner.watch(&self.world, inventory, seen);
        drop(watched.unwrap());
    }

    /// Nobody's value is overwritten but ours, unless the knob was never ours to begin with; and the
    /// way back goes nowhere else. Returns what was written to.
    fn judge_writes(&mut self, what: &What) -> BTreeSet<(usize, Knob)> {
        let mut written = BTreeSet::new();
        for write in self.world.take_writes() {
            written.insert((write.guest, write.knob.clone()));
            let known = self
                .known
                .get_mut(&(write.guest, write.knob.clone()))
                .unwrap();
            if matches!(what, What::Overtaken(..)) {
                let is_theirs = write.after == known.theirs || write.after == TAKEN;
                assert!(is_theirs || write.after == write.before, "{write:?}");
                continue;
            }
            let is_ours = write.before != known.theirs;
            match what {
                What::Apply(..) => {
                    let is_free = known.original.as_ref().is_none_or(|o| *o == known.theirs);
                    assert!(is_ours || is_free, "{write:?} overwrites {known:?}");
                }
                What::Rollback(_) => {
                    assert!(is_ours, "{write:?} overwrites {known:?}");
                    assert!(
                        [&known.theirs, &write.before].contains(&&write.after),
                        "{write:?}"
                    );
                }
                other => panic!("{other:?} has written {write:?}"),
            }
            known.original.get_or_insert_with(|| known.theirs.clone());
            if write.after != TAKEN {
                known.tried.insert(write.after);
            }
        }
        written
    }

    fn judge_records(&mut self, what: &What, before: &Before, written: &BTreeSet<(usize, Knob)>) {
        let records = self.daemon.records();
        for guest in 0..GUESTS {
            // What was set of a guest that is off has gone with its QEMU.
            if self.world.sights[guest] == Sight::Off {
                continue;
            }
            let life = Life::Guest(self.world.life(guest));
            for knob in knobs() {
                let value = self.world.value(guest, &knob);
                let record = self.record_of(&records, guest, &knob);
                let old = self.record_of(&before.records, guest, &knob);
                let key = (guest, knob.clone());
                // Somebody else has bound it after it was found back, while another knob was written.
                let was_back = |original: &str| {
                    before.values[&key] == original && value == TAKEN && !written.contains(&key)
                };
                let known = self.known.get_mut(&key).unwrap();
                if value != known.theirs {
                    let record = record.unwrap_or_else(|| panic!("{knob}: {value}, {known:?}"));
                    assert_eq!(record.original, known.theirs, "{record:?}");
                    assert!(is_ours(record, &value), "{value}: {record:?}");
                }
                if record.is_none() {
                    // In the life that a guest was restored in, what is not ours is nobody's record.
                    if let Some(old) = old.filter(|old| old.life == life || value != known.theirs) {
                        let is_unfrozen =
                            matches!(what, What::Unfreeze(..)) && old.state == RecordState::Frozen;
                        assert!(
                            is_unfrozen || value == old.original || was_back(&old.original),
                            "{old:?} is lost at {value}"
                        );
                    }
                    known.original = None;
                    known.tried.clear();
                }
            }
        }
        self.judge_script(&records);
    }

    /// The record of a knob in a guest's life or, where it could not follow yet, in one before the guest
    /// was saved.
    fn record_of<'a>(
        &self,
        records: &'a [Record],
        guest: usize,
        knob: &Knob,
    ) -> Option<&'a Record> {
        let life = self.world.life(guest);
        let is_resumed = self.world.guests[guest].is_resumed.get() && is_saved(knob);
        let is_life = |record: &&Record| record.life == Life::Guest(life.clone());
        let is_before = |record: &&Record| {
            let before = record.life.guest();
            is_resumed && before.is_some_and(|before| before.uuid == life.uuid)
        };
        let mut all = records.iter().filter(|record| record.knob == *knob);
        all.clone().find(is_life).or_else(|| all.find(is_before))
    }

    /// Printed now and run, the script would leave what others have set, and nothing of ours.
    fn judge_script(&self, records: &[Record]) {
        let script = undo_script(records, None);
        let follows = |guest: usize, knob: &Knob| {
            let life = Life::Guest(self.world.life(guest));
            let record = self.record_of(records, guest, knob);
            record.is_none_or(|record| record.life == life)
        };
        let set = run_script(&script, &self.world, |guest, knob| {
            self.world.value(guest, knob)
        });
        for ((guest, knob), known) in &self.known {
            let is_foreign = self.world.value(*guest, knob) == FOREIGN;
            let is_off = self.world.sights[*guest] == Sight::Off;
            // A record that could not follow its guest is not known to be about this life.
            if is_off || is_foreign || !follows(*guest, knob) {
                continue;
            }
            let is_it = |(g, k, _): &&(usize, Knob, String)| g == guest && k == knob;
            let left = set.iter().find(is_it);
            let left = left.map_or_else(|| self.world.value(*guest, knob), |set| set.2.clone());
            assert_eq!(left, known.theirs, "guest {guest}, {knob}:\n{script}");
        }
    }

    /// Everybody can be reached, and all is rolled back.
    fn end(mut self) {
        self.world.calm();
        self.happen(&Event {
            what: What::Rollback(Extent::Host),
            mishap: Mishap::None,
        });
        let is_on = |(guest, _): &(usize, Knob)| self.world.sights[*guest] != Sight::Off;
        for ((guest, knob), known) in self.known.iter().filter(|(key, _)| is_on(key)) {
            assert_eq!(
                self.world.value(*guest, knob),
                known.theirs,
                "guest {guest}, {knob}"
            );
        }
        let records = self.daemon.records();
        let is_frozen = |record: &Record| record.state == RecordState::Frozen;
        assert!(records.iter().all(is_frozen), "{records:?}");
    }
}

/// Whether libvirt saves it with a guest.
fn is_saved(knob: &Knob) -> bool {
    !matches!(knob, Knob::Cache { .. } | Knob::Histogram { .. })
}

fn scope(extent: Extent) -> Scope {
    match extent {
        Extent::Host => Scope::Host,
        Extent::Settings => Scope::Settings,
        Extent::Guest(guest) => Scope::Guest(UUIDS[guest].to_owned()),
        Extent::Knob(guest, knob) => Scope::Knob(UUIDS[guest].to_owned(), knobs()[knob].clone()),
    }
}

fn is_full() -> bool {
    std::env::var_os("BLKPILOT_FULL").is_some()
}

fn try_out(events: &[Event]) {
    let mut trial = Trial::new();
    events.iter().for_each(|event| trial.happen(event));
    trial.end();
}

/// What is back already is not written to, and whoever binds it while the rest goes back is not undone.
#[test]
fn a_knob_that_is_back_is_free_while_others_go_back() {
    let event = |what, mishap| Event { what, mishap };
    let (channel, cache) = (0, 2);
    try_out(&[
        event(What::Apply(0, cache, 0), Mishap::None),
        // It is journalled as intended, and neither settled nor dropped.
        event(What::Apply(0, channel, 1), Mishap::NoRoom(1)),
        event(
            What::Rollback(Extent::Host),
            Mishap::Write(Fault::AppliedThenTaken),
        ),
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if is_full() { 20_000 } else { 192 },
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    /// `BLKPILOT_FULL=1` tries 20 000 sequences.
    #[test]
    fn what_is_ours_is_journalled_and_goes_back(events in prop::collection::vec(event(), 1..40)) {
        try_out(&events);
    }
}
