//! Records follow what they are about.

use blkpilot_env::sample::Cache;

use super::tests::{Bench, bind, buffered};
use super::*;
use crate::fake::{FakeHypervisor, UUID};
use crate::qmp::reopened_node;

const LATER: u64 = 2;

/// Bound to CPU 1, buffered, and its latencies counted.
fn changed() -> Bench {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.apply(&buffered()).unwrap();
    let target = "vda".to_owned();
    bench.apply(&Change::Histogram { target }).unwrap();
    bench
}

fn direct() -> Change {
    Change::Cache {
        target: "vda".into(),
        cache: Cache::Direct,
    }
}

fn knobs(bench: &Bench) -> Vec<String> {
    let records = bench.tuner.records().unwrap();
    records.iter().map(|r| r.knob.to_string()).collect()
}

fn follow(bench: &Bench, started: u64) {
    let inventory = bench.host.inventory(started);
    follow_in(bench, &inventory);
}

fn follow_in(bench: &Bench, inventory: &Inventory) {
    let moot = bench.tuner.follow(&bench.host, inventory, &Scope::Host);
    moot.unwrap();
}

fn rollback(bench: &Bench, started: u64) -> Vec<Outcome> {
    let inventory = bench.host.inventory(started);
    let outcomes = bench.tuner.rollback(&bench.host, &inventory, &Scope::Host);
    outcomes.unwrap()
}

#[test]
fn what_libvirt_saves_with_a_guest_is_put_back_in_its_next_life() {
    let bench = changed();
    bench.host.is_resumed.set(true);
    follow(&bench, LATER);
    // QEMU has opened the image as the XML says, and counts nothing.
    assert_eq!(knobs(&bench), ["iothread/1/cpus"]);
    bench.apply_in(LATER, &bind("2")).unwrap();
    let original = "0-3".to_owned();
    let outcomes = rollback(&bench, LATER);
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].result, Settlement::Restored { original });
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
}

#[test]
fn a_rollback_alone_finds_a_restored_guest() {
    let bench = changed();
    bench.host.is_resumed.set(true);
    rollback(&bench, LATER);
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
    assert_eq!(knobs(&bench), [""; 0]);
}

#[test]
fn a_restored_guest_that_cannot_be_read_keeps_its_records() {
    let bench = changed();
    bench.host.is_resumed.set(true);
    bench.host.lost.set(true);
    let outcomes = rollback(&bench, LATER);
    let is_failed = |outcome: &Outcome| matches!(outcome.result, Settlement::Failed { .. });
    assert!(outcomes.iter().any(is_failed), "{outcomes:?}");
    assert_eq!(knobs(&bench), ["iothread/1/cpus"]);
    bench.host.lost.set(false);
    rollback(&bench, LATER);
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
}

#[test]
fn what_was_not_saved_is_not_put_back() {
    let bench = changed();
    bench.host.is_resumed.set(true);
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    follow(&bench, LATER);
    assert_eq!(knobs(&bench), [""; 0]);
}

#[test]
fn a_frozen_knob_stays_frozen_in_a_restored_guest() {
    let bench = changed();
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    assert!(bench.apply(&bind("2")).is_err());
    bench.host.is_resumed.set(true);
    follow(&bench, LATER);
    assert!(matches!(
        bench.apply_in(LATER, &bind("2")),
        Err(HostError::Frozen { .. })
    ));
}

#[test]
fn a_guest_that_was_started_anew_ends_its_records_and_one_that_is_off_does_not() {
    let bench = changed();
    let mut off = bench.host.inventory(1);
    off.guests.clear();
    off.qemus.clear();
    follow_in(&bench, &off);
    assert_eq!(knobs(&bench).len(), 3);
    follow(&bench, LATER);
    assert_eq!(knobs(&bench), [""; 0]);
}

#[test]
fn a_disk_that_was_unplugged_ends_its_records() {
    let bench = changed();
    let mut inventory = bench.host.inventory(1);
    let guest = &mut inventory.guests.get_mut(UUID).unwrap().guest;
    guest.disks.clear();
    follow_in(&bench, &inventory);
    assert_eq!(knobs(&bench), ["iothread/1/cpus"]);
}

#[test]
fn an_image_below_a_snapshot_is_put_back_and_the_new_one_can_be_changed() {
    let bench = changed();
    bench.host.overlay.set(true);
    bench.apply(&buffered()).unwrap();
    assert!(bench.host.direct.get(), "the image below is as it was");
    assert!(!bench.host.overlay_direct.get());
    rollback(&bench, 1);
    assert!(bench.host.direct.get() && bench.host.overlay_direct.get());
}

/// Runs `act` once for each moment at which a snapshot may be taken meanwhile: before its first monitor command, its
/// second, until none is left. Whatever is buffered then stands in the journal, nothing is taken for somebody else's,
/// and all goes back.
fn with_a_snapshot_at_any_moment(begin: fn() -> Bench, act: impl Fn(&Bench) -> String) {
    let mut moment = 0;
    loop {
        let bench = begin();
        let host = &bench.host;
        host.overlaid_after_commands.set(Some(moment));
        let said = act(&bench);
        let came = host.overlaid_after_commands.replace(None).is_none();
        let records = bench.tuner.records().unwrap();
        let about = format!("a snapshot before command {moment}; {said}; {records:#?}");
        let journalled = |node: &str| {
            let undo = records.iter().filter_map(|record| record.undo.as_deref());
            undo.filter_map(reopened_node).any(|named| named == node)
        };
        assert!(host.direct.get() || journalled("p"), "{about}");
        assert!(host.overlay_direct.get() || journalled("p2"), "{about}");
        let is_frozen = |record: &Record| record.state == RecordState::Frozen;
        assert!(!records.iter().any(is_frozen), "{about}");
        rollback(&bench, 1);
        assert!(host.direct.get() && host.overlay_direct.get(), "{about}");
        assert_eq!(knobs(&bench), [""; 0], "{about}");
        if !came {
            break;
        }
        moment += 1;
    }
    assert!(moment > 3, "{moment}");
}

#[test]
fn a_snapshot_during_a_change_leaves_nothing_changed_that_is_not_journalled() {
    let first: fn() -> Bench = || Bench::new(FakeHypervisor::default());
    let begun = [
        (first, buffered()),
        (changed, buffered()),
        (changed, direct()),
    ];
    for (begin, change) in begun {
        with_a_snapshot_at_any_moment(begin, |bench| format!("{:?}", bench.apply(&change)));
    }
}

#[test]
fn a_snapshot_during_a_look_or_a_way_back_leaves_nothing_changed_that_is_not_journalled() {
    with_a_snapshot_at_any_moment(changed, |bench| {
        let inventory = bench.host.inventory(1);
        // As if it could not be seen without asking the guest.
        let seen = |_: &RunningGuest, _: &Knob| Some("to be asked for".to_owned());
        format!("{:?}", bench.tuner.watch(&bench.host, &inventory, seen))
    });
    with_a_snapshot_at_any_moment(changed, |bench| format!("{:?}", rollback(bench, 1)));
}

#[test]
fn a_snapshot_is_no_change_by_somebody_else() {
    let bench = changed();
    bench.host.overlay.set(true);
    let inventory = bench.host.inventory(1);
    let seen = |_: &RunningGuest, knob: &Knob| match knob {
        Knob::Cache { .. } => Some("direct".to_owned()),
        _ => None,
    };
    let watch = || bench.tuner.watch(&bench.host, &inventory, seen).unwrap();
    // Not while a job may be about to make the image below the disk's own again.
    bench.host.job.set(true);
    assert_eq!(watch(), []);
    assert!(!bench.host.direct.get());
    bench.host.job.set(false);
    assert_eq!(watch(), []);
    assert!(bench.host.direct.get());
    assert_eq!(knobs(&bench), ["disk/vda/histogram", "iothread/1/cpus"]);
}

#[test]
fn an_overlay_that_a_commit_has_closed_ends_its_record() {
    let bench = Bench::new(FakeHypervisor::default());
    bench.host.overlay.set(true);
    bench.apply(&buffered()).unwrap();
    bench.host.overlay.set(false);
    assert_eq!(rollback(&bench, 1).len(), 1);
    assert_eq!(knobs(&bench), [""; 0]);
    assert!(bench.host.direct.get());
}
