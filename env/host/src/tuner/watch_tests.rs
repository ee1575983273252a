//! What somebody else changes is noticed at the next sample.

use super::tests::{Bench, bind, buffered};
use super::*;
use crate::fake::{FakeHypervisor, Fault, UUID};

/// All three knobs are changed: CPU 1, polling off, buffered.
fn changed() -> Bench {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    let polling = Change::Polling {
        iothread: 1,
        poll_max_ns: 0,
    };
    bench.apply(&polling).unwrap();
    bench.apply(&buffered()).unwrap();
    bench.host.monitor_commands.borrow_mut().clear();
    bench
}

impl Bench {
    /// A sample that sees what is in force.
    pub(super) fn watch(&self) -> Vec<Outcome> {
        self.watch_as(|knob| self.host.running(1).knobs(&self.host).read(knob).ok())
    }

    fn watch_as(&self, seen: impl Fn(&Knob) -> Option<String>) -> Vec<Outcome> {
        let inventory = self.host.inventory(1);
        let seen = |_: &RunningGuest, knob: &Knob| seen(knob);
        self.tuner.watch(&self.host, &inventory, seen).unwrap()
    }
}

#[test]
fn each_knob_freezes_alone_and_once() {
    type Act = fn(&FakeHypervisor);
    let cases: [(Act, &str, &str); 3] = [
        (
            |host| *host.cpus.borrow_mut() = "2-3".parse().unwrap(),
            "iothread/1/cpus",
            "2-3",
        ),
        (
            |host| host.poll_max_ns.set(5_000),
            "iothread/1/poll_max_ns",
            "5000",
        ),
        (|host| host.direct.set(true), "disk/vda/cache", "direct"),
    ];
    for (somebody_else, knob, value) in cases {
        let bench = changed();
        assert_eq!(bench.watch(), []);
        somebody_else(&bench.host);
        let frozen = bench.watch();
        let (found, way) = (value.to_owned(), Way::Unknown);
        assert_eq!(frozen.len(), 1, "{frozen:?}");
        assert_eq!(frozen[0].knob.to_string(), knob);
        assert_eq!(frozen[0].result, Settlement::Frozen { found, way });
        assert_eq!(bench.watch(), [], "{knob} is told once");
        let records = bench.tuner.records().unwrap();
        let frozen = records.iter().filter(|r| r.state == RecordState::Frozen);
        let found: Vec<_> = frozen.map(|record| record.found.as_deref()).collect();
        assert_eq!(found, [Some(value)]);
    }
}

#[test]
fn back_at_the_original_is_a_change_by_somebody_else_too() {
    let bench = changed();
    *bench.host.cpus.borrow_mut() = "0-3".parse().unwrap();
    let (found, way) = ("0-3".to_owned(), Way::Unknown);
    assert_eq!(bench.watch()[0].result, Settlement::Frozen { found, way });
    // It stays so over a restart, until somebody unfreezes it or rolls back.
    let inventory = bench.host.inventory(1);
    bench.tuner.reconcile(&bench.host, &inventory).unwrap();
    let refused = bench.apply(&bind("2"));
    assert!(
        matches!(refused, Err(HostError::Frozen { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
}

#[test]
fn a_sample_from_before_our_own_change_freezes_nothing() {
    let bench = changed();
    let old = |knob: &Knob| match knob {
        Knob::Polling { .. } => Some("32768".to_owned()),
        Knob::Channel { .. } => Some("0-3".to_owned()),
        _ => Some("direct".to_owned()),
    };
    assert_eq!(bench.watch_as(old), []);
    assert_eq!(bench.watch_as(|_| None), []);
}

#[test]
fn a_guest_is_asked_only_where_something_differs() {
    let bench = changed();
    let as_set = |knob: &Knob| {
        let record = bench.tuner.records().unwrap();
        let record = record.into_iter().find(|record| record.knob == *knob);
        record.map(|record| record.value)
    };
    bench.watch_as(as_set);
    assert!(bench.host.monitor_commands.borrow().is_empty());
    bench.host.lost.set(true);
    // Nor does a connection that is lost just then freeze anything.
    assert_eq!(bench.watch_as(|_| Some("another".to_owned())), []);
}

#[test]
fn a_guest_that_hangs_or_has_restarted_is_left_alone() {
    let bench = changed();
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    let seen = |_: &RunningGuest, _: &Knob| Some("3".to_owned());
    let mut hangs = bench.host.inventory(1);
    hangs.guests.get_mut(UUID).unwrap().hangs = true;
    for inventory in [hangs, bench.host.inventory(2)] {
        let frozen = bench.tuner.watch(&bench.host, &inventory, seen).unwrap();
        assert_eq!(frozen, []);
    }
}

#[test]
fn a_change_that_ours_overwrote_in_the_same_moment_is_put_back_and_frozen() {
    let bench = changed();
    let told = |value: &str| {
        let told = crate::hypervisor::TunedByOthers {
            uuid: UUID.to_owned(),
            knob: Knob::Channel { iothread: 1 },
            value: value.to_owned(),
        };
        bench.host.tuned_by_others.borrow_mut().push(told);
    };
    // What was in force before our last change cannot be told from ours.
    told("0-3");
    assert_eq!(bench.watch(), []);
    told("2-3");
    let (found, way) = ("2-3".to_owned(), Way::Libvirt);
    assert_eq!(bench.watch()[0].result, Settlement::Frozen { found, way });
    assert_eq!(bench.host.cpus.borrow().to_string(), "2-3");
    let record = &bench.tuner.records().unwrap()[2];
    assert_eq!(
        (record.state, record.found.as_deref()),
        (RecordState::Frozen, Some("2-3"))
    );
    assert_eq!(bench.watch(), []);
}

#[test]
fn what_comes_between_the_journal_and_the_write_is_not_overwritten() {
    for knob_is_known in [false, true] {
        let bench = Bench::new(FakeHypervisor::default());
        if knob_is_known {
            bench.apply(&bind("0")).unwrap();
        }
        bench.host.binds_after_reads.set(Some((1, 3)));
        let refused = bench.apply(&bind("1"));
        assert!(
            matches!(refused, Err(HostError::Frozen { .. })),
            "{refused:?}"
        );
        assert_eq!(bench.host.cpus.borrow().to_string(), "3");
        assert_eq!(bench.tuner.records().unwrap()[0].state, RecordState::Frozen);
        // Nor what comes between the write and the reading back.
        let bench = Bench::new(FakeHypervisor::default());
        bench.host.fault.set(Fault::AppliedThenTaken);
        let refused = bench.apply(&bind("1"));
        assert!(
            matches!(refused, Err(HostError::Frozen { .. })),
            "{refused:?}"
        );
        assert_eq!(bench.host.cpus.borrow().to_string(), "3");
    }
}

#[test]
fn a_knob_that_we_have_set_to_its_original_is_still_watched() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.apply(&bind("0-3")).unwrap();
    // Nor does asking for what is in force end that.
    bench.apply(&bind("0-3")).unwrap();
    assert_eq!(bench.watch(), []);
    *bench.host.cpus.borrow_mut() = "2".parse().unwrap();
    let (found, way) = ("2".to_owned(), Way::Unknown);
    assert_eq!(bench.watch()[0].result, Settlement::Frozen { found, way });
    assert!(bench.apply(&bind("1")).is_err());
}
