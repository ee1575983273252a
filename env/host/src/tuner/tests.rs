//! Changes, failures, and the ways back.

use blkpilot_env::sample::Cache;

use super::*;
use crate::fake::{FakeHypervisor, Fault, UUID};

pub(super) struct Bench {
    pub(super) host: FakeHypervisor,
    pub(super) tuner: Tuner,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new(host: FakeHypervisor) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tuner = Tuner::new(Journal::open(&dir.path().join("journal.db")).unwrap());
        Self {
            host,
            tuner,
            _dir: dir,
        }
    }

    pub(super) fn apply(&self, change: &Change) -> HostResult<Applied> {
        self.apply_in(1, change)
    }

    pub(super) fn apply_in(&self, started: u64, change: &Change) -> HostResult<Applied> {
        let running = self.host.running(started);
        self.tuner.apply(&self.host, &running, change)
    }

    pub(super) fn rollback(&self, started: u64) -> Vec<Settlement> {
        let outcomes = self
            .tuner
            .rollback(&self.host, &self.host.inventory(started), &Scope::Host)
            .unwrap();
        outcomes.into_iter().map(|outcome| outcome.result).collect()
    }
}

pub(super) fn bind(cpus: &str) -> Change {
    Change::Channel {
        iothread: 1,
        cpus: cpus.parse().unwrap(),
    }
}

pub(super) fn buffered() -> Change {
    Change::Cache {
        target: "vda".into(),
        cache: Cache::Buffered,
    }
}

#[test]
fn every_knob_is_applied_and_rolled_back_to_its_original() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.apply(&bind("2")).unwrap();
    bench.apply(&buffered()).unwrap();
    bench
        .apply(&Change::Polling {
            iothread: 1,
            poll_max_ns: 0,
        })
        .unwrap();
    bench
        .apply(&Change::Histogram {
            target: "vda".into(),
        })
        .unwrap();
    assert_eq!(bench.host.cpus.borrow().to_string(), "2");
    assert!(!bench.host.direct.get() && bench.host.poll_max_ns.get() == 0);
    assert_eq!(bench.rollback(1).len(), 4);
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
    assert!(bench.host.direct.get() && bench.host.poll_max_ns.get() == 32_768);
    assert_eq!(*bench.host.histogram.borrow(), None);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn a_failed_apply_leaves_value_and_journal_as_before() {
    for fault in [Fault::Refused, Fault::Ignored] {
        let bench = Bench::new(FakeHypervisor::default());
        bench.host.fault.set(fault);
        assert!(bench.apply(&buffered()).is_err());
        assert!(bench.host.direct.get());
        assert_eq!(bench.tuner.records().unwrap(), []);
    }
}

#[test]
fn an_intent_left_by_a_crash_is_settled_with_what_is_found() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.host.fault.set(Fault::AppliedThenLost);
    assert!(matches!(
        bench.apply(&bind("1")),
        Err(HostError::Disconnected { .. })
    ));
    assert_eq!(
        bench.tuner.records().unwrap()[0].state,
        RecordState::Intended
    );
    bench.host.lost.set(false);
    let outcomes = bench
        .tuner
        .reconcile(&bench.host, &bench.host.inventory(1))
        .unwrap();
    assert_eq!(outcomes[0].result, Settlement::Kept { value: "1".into() });
    assert_eq!(
        bench.rollback(1),
        [Settlement::Restored {
            original: "0-3".into()
        }]
    );
}

#[test]
fn a_value_that_somebody_else_set_freezes_the_knob_until_it_is_unfrozen() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    assert!(matches!(
        bench.apply(&bind("2")),
        Err(HostError::Frozen { .. })
    ));
    assert_eq!(
        bench.rollback(1),
        [Settlement::Frozen {
            found: "3".into(),
            way: Way::Unknown
        }]
    );
    assert_eq!(bench.host.cpus.borrow().to_string(), "3");
    let running = bench.host.running(1);
    let knob = Knob::Channel { iothread: 1 };
    let unfreeze = || bench.tuner.unfreeze(&bench.host, &running, &knob);
    assert_eq!(unfreeze().unwrap(), "3");
    assert!(unfreeze().unwrap_err().to_string().contains("not frozen"));
    bench.apply(&bind("2")).unwrap();
    // What they chose is the original now.
    let original = "3".to_owned();
    assert_eq!(bench.rollback(1), [Settlement::Restored { original }]);
    assert_eq!(bench.host.cpus.borrow().to_string(), "3");
}

#[test]
fn a_guest_that_hangs_can_be_unfrozen_with_what_was_found() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    assert!(bench.apply(&bind("2")).is_err());
    let hangs = RunningGuest {
        hangs: true,
        ..bench.host.running(1)
    };
    let knob = Knob::Channel { iothread: 1 };
    assert_eq!(
        bench.tuner.unfreeze(&bench.host, &hangs, &knob).unwrap(),
        "3"
    );
}

#[test]
fn records_of_a_restarted_guest_are_moot_and_change_nothing() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    assert_eq!(bench.rollback(2), [Settlement::Moot]);
    assert_eq!(bench.host.cpus.borrow().to_string(), "1");
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn a_lost_connection_keeps_the_records() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.host.lost.set(true);
    assert!(matches!(bench.rollback(1)[..], [Settlement::Failed { .. }]));
    assert_eq!(bench.tuner.records().unwrap().len(), 1);
}

#[test]
fn a_guest_without_opt_in_gets_no_command_at_all() {
    let bench = Bench::new(FakeHypervisor::without_opt_in());
    for change in [
        bind("1"),
        buffered(),
        Change::Histogram {
            target: "vda".into(),
        },
    ] {
        assert!(matches!(
            bench.apply(&change),
            Err(HostError::NotOptedIn { .. })
        ));
    }
    assert!(bench.host.monitor_commands.borrow().is_empty());
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn a_guests_settings_go_back_without_its_histograms() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    let target = "vda".to_owned();
    bench.apply(&Change::Histogram { target }).unwrap();
    let scope = Scope::GuestSettings(UUID.into());
    bench
        .tuner
        .rollback(&bench.host, &bench.host.inventory(1), &scope)
        .unwrap();
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
    assert!(bench.host.histogram.borrow().is_some());
}

#[test]
fn a_frozen_knob_that_is_back_at_its_original_is_free_again() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    let frozen = bench.apply(&bind("2")).unwrap_err().to_string();
    assert!(frozen.contains("blkpilot unfreeze"), "{frozen}");
    *bench.host.cpus.borrow_mut() = "0-3".parse().unwrap();
    let original = "0-3".to_owned();
    assert_eq!(bench.rollback(1), [Settlement::Restored { original }]);
    assert_eq!(bench.tuner.records().unwrap(), []);
    bench.apply(&bind("2")).unwrap();
}

#[test]
fn a_record_is_kept_until_its_qemu_has_surely_ended() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    let roll_back = |inventory: &Inventory| {
        let outcomes = bench
            .tuner
            .rollback(&bench.host, inventory, &Scope::Host)
            .unwrap();
        outcomes.into_iter().next().unwrap().result
    };
    // libvirt does not list it, lists it without a process, cannot read it: it may still run.
    let mut unlisted = bench.host.inventory(1);
    unlisted.guests.clear();
    let mut unseen = bench.host.inventory(1);
    unseen.qemus.clear();
    unseen.guests.get_mut(UUID).unwrap().life = None;
    let mut unreadable = unlisted.clone();
    unreadable.qemus.clear();
    unreadable.unreadable.insert(UUID.into(), "?".into());
    for inventory in [&unlisted, &unseen, &unreadable] {
        let result = roll_back(inventory);
        assert!(matches!(result, Settlement::Failed { .. }), "{result:?}");
    }
    // A QEMU of it that runs may have been restored with what we have set.
    let mut rebooted = Inventory {
        boot_id: "another".into(),
        ..unlisted
    };
    let result = roll_back(&rebooted);
    assert!(matches!(result, Settlement::Failed { .. }), "{result:?}");
    rebooted.qemus.clear();
    assert_eq!(roll_back(&rebooted), Settlement::Moot);
}

#[test]
fn a_histogram_of_somebody_else_is_left_alone() {
    let bench = Bench::new(FakeHypervisor::default());
    *bench.host.histogram.borrow_mut() = Some(vec![1, 2]);
    let target = "vda".to_owned();
    assert!(matches!(
        bench.apply(&Change::Histogram { target }),
        Err(HostError::Unsupported { .. })
    ));
    assert_eq!(*bench.host.histogram.borrow(), Some(vec![1, 2]));
}

#[test]
fn what_was_changed_goes_back_after_an_opt_out() {
    for opted_out in ["mode=\"off\"", "mode=\"auto\" knobs=\"\""] {
        let mut bench = Bench::new(FakeHypervisor::default());
        bench.apply(&bind("1")).unwrap();
        bench.apply(&buffered()).unwrap();
        bench.host.xml = bench.host.xml.replace("mode=\"auto\"", opted_out);
        assert!(matches!(
            bench.apply(&bind("2")),
            Err(HostError::NotOptedIn { .. })
        ));
        let settlements = bench.rollback(1);
        let is_restored = |s: &Settlement| matches!(s, Settlement::Restored { .. });
        assert!(
            settlements.len() == 2 && settlements.iter().all(is_restored),
            "{settlements:?}"
        );
        assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
        assert!(bench.host.direct.get());
        // Nothing is ours any more, so nothing more is done.
        bench.host.monitor_commands.borrow_mut().clear();
        assert_eq!(bench.rollback(1), []);
        assert!(bench.host.monitor_commands.borrow().is_empty());
    }
}

#[test]
fn the_cache_is_not_touched_while_a_job_runs_or_under_native_aio() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.host.job.set(true);
    assert!(matches!(
        bench.apply(&buffered()),
        Err(HostError::JobRuns { .. })
    ));
    let mut host = FakeHypervisor::default();
    host.xml = host.xml.replace("io_uring", "native");
    let bench = Bench::new(host);
    assert!(
        bench
            .apply(&buffered())
            .unwrap_err()
            .to_string()
            .contains("aio=native")
    );
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn a_change_to_the_value_in_force_writes_nothing() {
    let bench = Bench::new(FakeHypervisor::default());
    let applied = bench.apply(&bind("0-3")).unwrap();
    assert_eq!(applied.previous, applied.value);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn one_guest_or_one_knob_can_be_rolled_back_alone() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.apply(&buffered()).unwrap();
    let scope = Scope::Knob(
        UUID.into(),
        Knob::Cache {
            target: "vda".into(),
        },
    );
    assert_eq!(
        bench
            .tuner
            .rollback(&bench.host, &bench.host.inventory(1), &scope)
            .unwrap()
            .len(),
        1
    );
    assert!(bench.host.direct.get());
    assert_eq!(bench.host.cpus.borrow().to_string(), "1");
    assert!(
        bench
            .tuner
            .rollback(
                &bench.host,
                &bench.host.inventory(1),
                &Scope::Guest("x".into())
            )
            .unwrap()
            .is_empty()
    );
}
