//! Settings of block devices: changed, journalled, put back, with what the kernel changes beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::device::fake::FakeDevices;
use crate::device::{DeviceChange, DeviceKnob as D, SideEffects};
use crate::fake::{FakeHypervisor, Fault};

struct Bench {
    host: FakeDevices,
    tuner: Tuner,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            host: FakeDevices::new(),
            tuner: Tuner::new(Journal::open(&dir.path().join("journal.db")).unwrap()),
            _dir: dir,
        }
    }

    fn apply(&self, knob: D, value: &str) -> HostResult<Applied> {
        let value = value.to_owned();
        let change = DeviceChange { knob, value };
        self.tuner
            .apply_to_device(&self.host.inventory(), "loop3", &change)
    }

    fn rollback_in(&self, inventory: &Inventory) -> Vec<Settlement> {
        let hypervisor = FakeHypervisor::default();
        let outcomes = self.tuner.rollback(&hypervisor, inventory, &Scope::Host);
        let outcomes = outcomes.unwrap().into_iter();
        outcomes.map(|outcome| outcome.result).collect()
    }

    fn rollback(&self) -> Vec<Settlement> {
        self.rollback_in(&self.host.inventory())
    }

    fn reconcile(&self) -> Vec<Settlement> {
        let hypervisor = FakeHypervisor::default();
        let outcomes = self.tuner.reconcile(&hypervisor, &self.host.inventory());
        let outcomes = outcomes.unwrap().into_iter();
        outcomes.map(|outcome| outcome.result).collect()
    }

    fn watch(&self) -> Vec<Outcome> {
        let hypervisor = FakeHypervisor::default();
        let seen = |_: &RunningGuest, _: &Knob| None;
        self.tuner
            .watch(&hypervisor, &self.host.inventory(), seen)
            .unwrap()
    }

    fn fail_next(&self, fault: Fault) {
        *self.host.fault.lock().unwrap() = fault;
    }

    /// Everything that is in force.
    fn values(&self) -> [String; 5] {
        D::ALL.map(|knob| self.host.value(knob))
    }
}

const ORIGINAL: [&str; 5] = ["none", "100", "128", "2000", "1"];

#[test]
fn a_scheduler_goes_back_with_what_the_kernel_has_changed_along_with_it() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "bfq").unwrap();
    assert_eq!(bench.values(), ["bfq", "256", "128", "0", "1"]);
    let undo = bench.tuner.records().unwrap()[0].undo.clone();
    assert_eq!(
        undo.as_deref(),
        Some("nr_requests:100:256 wbt_lat_usec:2000:0")
    );
    bench.apply(D::Scheduler, "kyber").unwrap();
    assert_eq!(bench.watch(), []);
    assert!(matches!(
        bench.rollback()[..],
        [Settlement::Restored { .. }]
    ));
    assert_eq!(bench.values(), ORIGINAL);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn going_back_by_a_change_is_as_going_back_by_a_rollback() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "bfq").unwrap();
    bench.apply(D::Scheduler, "none").unwrap();
    assert_eq!(bench.values(), ORIGINAL);
}

#[test]
fn every_setting_goes_back_and_what_was_set_under_a_scheduler_bars_another() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "mq-deadline").unwrap();
    for (knob, value) in [
        (D::NrRequests, "512"),
        (D::ReadAhead, "64"),
        (D::Wbt, "5000"),
        (D::RqAffinity, "2"),
    ] {
        bench.apply(knob, value).unwrap();
    }
    assert_eq!(bench.values(), ["mq-deadline", "512", "64", "5000", "2"]);
    let refused = bench.apply(D::Scheduler, "bfq").unwrap_err().to_string();
    assert!(refused.contains("would reset nr_requests"), "{refused}");
    assert_eq!(bench.rollback().len(), 5);
    assert_eq!(bench.values(), ORIGINAL);
}

#[test]
fn all_of_a_device_goes_back_while_the_journal_cannot_be_written() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "mq-deadline").unwrap();
    bench.apply(D::NrRequests, "512").unwrap();
    let has_room = Arc::new(AtomicBool::new(false));
    let ask = Arc::clone(&has_room);
    let journal = &bench.tuner.journal;
    journal.ask_before_commits(move || ask.load(Ordering::Relaxed));
    let results = bench.rollback();
    let is_unrecorded = |result: &Settlement| matches!(result, Settlement::Unrecorded { .. });
    assert!(
        results.len() == 2 && results.iter().all(is_unrecorded),
        "{results:?}"
    );
    assert_eq!(bench.values(), ORIGINAL);
    has_room.store(true, Ordering::Relaxed);
    assert_eq!(bench.watch(), []);
    bench.rollback();
    assert_eq!(bench.values(), ORIGINAL);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn what_somebody_else_sets_beside_a_scheduler_stays() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "bfq").unwrap();
    bench.host.set(D::NrRequests, "90");
    bench.host.set(D::Wbt, "777");
    bench.rollback();
    assert_eq!(bench.values(), ["none", "90", "128", "777", "1"]);
    // Unless the scheduler that comes back cannot hold it.
    let bench = Bench::new();
    bench.apply(D::Scheduler, "bfq").unwrap();
    bench.host.set(D::NrRequests, "1000");
    assert!(matches!(
        bench.rollback()[..],
        [Settlement::Restored { .. }]
    ));
    assert_eq!(bench.host.value(D::NrRequests), "128");
}

#[test]
fn a_foreign_change_freezes_that_setting_until_it_is_unfrozen() {
    let bench = Bench::new();
    bench.apply(D::ReadAhead, "64").unwrap();
    bench.apply(D::RqAffinity, "2").unwrap();
    bench.host.set(D::ReadAhead, "256");
    let frozen = bench.watch();
    assert_eq!(frozen.len(), 1);
    assert_eq!(
        (frozen[0].owner(), frozen[0].knob.to_string()),
        ("device loop3".into(), "queue/read_ahead_kb".into())
    );
    assert_eq!(bench.watch(), [], "it is told once");
    let refused = bench.apply(D::ReadAhead, "32").unwrap_err();
    assert!(matches!(refused, HostError::Frozen { .. }), "{refused}");
    bench.apply(D::RqAffinity, "0").unwrap();
    let unfrozen = bench
        .tuner
        .unfreeze_device(&bench.host.inventory(), "loop3", D::ReadAhead);
    assert_eq!(unfrozen.unwrap(), "256");
    bench.apply(D::ReadAhead, "32").unwrap();
    bench.rollback();
    assert_eq!(bench.values(), ["none", "100", "256", "2000", "1"]);
}

#[test]
fn a_renamed_device_is_found_by_its_id_and_another_of_its_name_is_not_it() {
    let bench = Bench::new();
    bench.apply(D::ReadAhead, "64").unwrap();
    bench.host.rename("loop3", "loop5");
    bench.host.add("loop3", "/images/another.img");
    bench.host.set(D::ReadAhead, "64");
    assert!(matches!(
        bench.rollback()[..],
        [Settlement::Restored { .. }]
    ));
    assert_eq!(bench.host.value(D::ReadAhead), "64", "that one is not ours");
    bench.host.rename("loop3", "loop4");
    bench.host.rename("loop5", "loop3");
    assert_eq!(bench.host.value(D::ReadAhead), "128");
}

#[test]
fn records_of_another_boot_or_of_a_device_that_has_gone_are_moot() {
    let bench = Bench::new();
    bench.apply(D::ReadAhead, "64").unwrap();
    let rebooted = bench.host.inventory_with("another", &[]);
    assert_eq!(bench.rollback_in(&rebooted), [Settlement::Moot]);
    assert_eq!(bench.host.value(D::ReadAhead), "64");
    bench.apply(D::RqAffinity, "2").unwrap();
    bench.host.rename("loop3", "loop9");
    bench.host.add("loop9", "/images/9.img");
    assert_eq!(bench.rollback(), [Settlement::Moot]);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn what_was_changed_goes_back_after_its_rule_has_gone() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "bfq").unwrap();
    let without = bench.host.inventory_with("boot", &[]);
    let value = "kyber".to_owned();
    let change = DeviceChange {
        knob: D::Scheduler,
        value,
    };
    let refused = bench.tuner.apply_to_device(&without, "loop3", &change);
    assert!(
        matches!(refused, Err(HostError::DeviceNotEnabled { .. })),
        "{refused:?}"
    );
    assert!(matches!(
        bench.rollback_in(&without)[..],
        [Settlement::Restored { .. }]
    ));
    assert_eq!(bench.values(), ORIGINAL);
}

#[test]
fn a_failed_change_leaves_settings_and_journal_as_before() {
    for fault in [Fault::Refused, Fault::Ignored, Fault::AppliedThenLost] {
        let bench = Bench::new();
        bench.fail_next(fault);
        assert!(bench.apply(D::Scheduler, "bfq").is_err());
        assert_eq!(bench.values(), ORIGINAL);
        assert_eq!(bench.tuner.records().unwrap(), []);
    }
    let bench = Bench::new();
    for (knob, value) in [
        (D::Scheduler, "cfq"),
        (D::NrRequests, "129"),
        (D::NrRequests, "2"),
        (D::ReadAhead, "1"),
    ] {
        assert!(bench.apply(knob, value).is_err(), "{knob} = {value}");
    }
    assert_eq!(bench.values(), ORIGINAL);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

/// One setting is refused for as long as the kernel refuses it, whatever it says; the others are set, read and
/// watched all the while, and it works again by itself.
#[test]
fn a_setting_that_the_kernel_refuses_keeps_no_other_and_comes_back_by_itself() {
    use nix::libc::{EACCES, EBUSY, EINVAL, EIO, ENODEV, ENOENT};
    for errno in [EINVAL, EBUSY, EACCES, ENOENT, ENODEV, EIO] {
        let bench = Bench::new();
        let inventory = |refuses: bool| {
            let mut inventory = bench.host.inventory();
            let writer = crate::device::Writer::new(move |path: &std::path::Path, value: &str| {
                if refuses && path.ends_with("queue/rq_affinity") {
                    return Err(std::io::Error::from_raw_os_error(errno));
                }
                std::fs::write(path, value)
            });
            inventory.devices = inventory.devices.written_by(writer);
            inventory
        };
        let set = |knob: D, value: &str, inventory: &Inventory| {
            let value = value.to_owned();
            let change = DeviceChange { knob, value };
            bench.tuner.apply_to_device(inventory, "loop3", &change)
        };
        let refusing = inventory(true);
        let refusal = set(D::RqAffinity, "2", &refusing).unwrap_err().to_string();
        let kernel = std::io::Error::from_raw_os_error(errno).to_string();
        for part in ["loop3", "rq_affinity = 2", &kernel] {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert_eq!(bench.tuner.records().unwrap(), [], "{kernel}");
        set(D::ReadAhead, "64", &refusing).unwrap();
        assert_eq!(bench.watch(), []);
        set(D::RqAffinity, "2", &inventory(false)).unwrap();
        assert!(bench.rollback_in(&inventory(false)).len() == 2);
        assert_eq!(bench.values(), ORIGINAL);
    }
}

/// A file that cannot be read now freezes nothing and drops no record: it is looked at again.
#[test]
fn a_setting_that_cannot_be_read_is_left_as_it_is_until_it_can() {
    let bench = Bench::new();
    bench.apply(D::ReadAhead, "64").unwrap();
    bench.apply(D::RqAffinity, "2").unwrap();
    let file = bench.host.root().join("block/loop3/queue/read_ahead_kb");
    // Gone between two readings, and then there but not to be read (EISDIR, whoever runs this).
    std::fs::remove_file(&file).unwrap();
    for unreadable in [false, true] {
        if unreadable {
            std::fs::create_dir(&file).unwrap();
        }
        assert_eq!(bench.watch(), []);
        let settled = bench.rollback();
        let failed = |settlement: &&Settlement| matches!(settlement, Settlement::Failed { .. });
        assert_eq!(settled.iter().filter(failed).count(), 1, "{settled:?}");
        assert_eq!(bench.host.value(D::RqAffinity), "1");
        assert_eq!(bench.tuner.records().unwrap().len(), 1);
    }
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "64\n").unwrap();
    let original = "128".to_owned();
    assert_eq!(bench.rollback(), [Settlement::Restored { original }]);
}

/// The host dies after the scheduler has gone back, before what went with it has.
#[test]
fn a_way_back_that_a_crash_cut_short_is_brought_to_its_end() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "bfq").unwrap();
    let record = bench.tuner.records().unwrap().remove(0);
    let intent = Intent {
        life: &record.life,
        name: "loop3",
        knob: &record.knob,
        current: "bfq",
        value: "none",
        undo: record.undo.as_deref(),
    };
    bench.tuner.journal.intend(&intent).unwrap();
    bench.host.set(D::Scheduler, "none");
    assert_eq!(bench.host.value(D::NrRequests), "128");
    assert!(matches!(
        bench.reconcile()[..],
        [Settlement::Restored { .. }]
    ));
    assert_eq!(bench.values(), ORIGINAL);
}

/// As the undo script does it while no service runs.
#[test]
fn what_was_put_back_by_other_means_is_forgotten_whatever_it_was_set_under() {
    let bench = Bench::new();
    bench.apply(D::Scheduler, "mq-deadline").unwrap();
    bench.apply(D::NrRequests, "64").unwrap();
    let steps = [
        (D::NrRequests, "256"),
        (D::Scheduler, "none"),
        (D::NrRequests, "100"),
    ];
    for (knob, value) in steps {
        bench.host.set(knob, value);
    }
    bench.reconcile();
    assert_eq!(bench.tuner.records().unwrap(), []);
    assert_eq!(bench.values(), ORIGINAL);
}

#[test]
fn side_effects_are_read_back_as_they_were_written() {
    for text in [
        "nr_requests:100:256 wbt_lat_usec:2000:",
        "nr_requests:4:4",
        "",
    ] {
        assert_eq!(SideEffects::of(Some(text)).to_string(), text);
    }
    assert_eq!(
        SideEffects::of(Some("size:1:2 nr_requests")),
        SideEffects::default()
    );
}

#[derive(Debug, Clone)]
enum Event {
    Apply(D, usize, Fault),
    SomebodyElse(D, usize),
    Rollback(Fault),
    Reconcile,
    Watch,
}

fn values(knob: D) -> [&'static str; 3] {
    match knob {
        D::Scheduler => ["none", "mq-deadline", "bfq"],
        D::NrRequests => ["64", "100", "120"],
        D::ReadAhead => ["0", "64", "128"],
        D::Wbt => ["0", "2000", "5000"],
        D::RqAffinity => ["0", "1", "2"],
    }
}

fn event() -> impl Strategy<Value = Event> {
    let fault = || {
        prop_oneof![
            4 => Just(Fault::None),
            1 => Just(Fault::Refused),
            1 => Just(Fault::Ignored),
            1 => Just(Fault::AppliedThenLost),
        ]
    };
    let knob = || prop::sample::select(D::ALL.to_vec());
    prop_oneof![
        6 => (knob(), 0_usize..3, fault()).prop_map(|(knob, i, fault)| Event::Apply(knob, i, fault)),
        1 => (knob(), 0_usize..3).prop_map(|(knob, i)| Event::SomebodyElse(knob, i)),
        2 => fault().prop_map(Event::Rollback),
        1 => Just(Event::Reconcile),
        2 => Just(Event::Watch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against the simplest model there is: what nobody else has touched is as it was, and of what the
    /// kernel changes with nothing else, each setting for itself.
    #[test]
    fn a_rollback_ends_at_the_originals_unless_somebody_else_has_come(
        events in prop::collection::vec(event(), 1..14),
    ) {
        let bench = Bench::new();
        let mut is_touched = false;
        // What a setting was before we first changed it, as far as anybody can tell.
        let mut original = ORIGINAL.map(str::to_owned);
        let journalled = |knob: D| {
            let records = bench.tuner.records().unwrap();
            records.iter().any(|record| record.knob == Knob::Device(knob))
        };
        for event in events {
            match event {
                Event::Apply(knob, i, fault) => {
                    bench.fail_next(fault);
                    let _ = bench.apply(knob, values(knob)[i]);
                }
                Event::SomebodyElse(knob, i) => {
                    is_touched = true;
                    bench.host.set(knob, values(knob)[i]);
                    if !journalled(knob) {
                        original[D::ALL.iter().position(|known| *known == knob).unwrap()] = values(knob)[i].to_owned();
                    }
                }
                Event::Rollback(fault) => {
                    bench.fail_next(fault);
                    bench.rollback();
                }
                Event::Reconcile => drop(bench.reconcile()),
                Event::Watch => drop(bench.watch()),
            }
            bench.fail_next(Fault::None);
            let is_frozen = |record: &Record| record.state == RecordState::Frozen;
            prop_assert!(is_touched || !bench.tuner.records().unwrap().iter().any(is_frozen), "our own change froze it");
        }
        bench.rollback();
        let left = bench.tuner.records().unwrap();
        if !is_touched {
            prop_assert_eq!(bench.values(), ORIGINAL);
            prop_assert!(left.is_empty(), "{:?}", left);
        }
        for (i, knob) in [(2, D::ReadAhead), (4, D::RqAffinity)] {
            prop_assert!(journalled(knob) || bench.host.value(knob) == original[i], "{} is {}", knob, bench.host.value(knob));
        }
        // What is left is what somebody else has, which is as it was found.
        for record in left {
            let Knob::Device(knob) = record.knob else { unreachable!("there is only a device") };
            prop_assert_eq!(record.state, RecordState::Frozen);
            prop_assert_ne!(bench.host.value(knob), record.original);
        }
    }
}
