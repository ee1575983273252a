//! No room for the journal: nothing new is changed, and what is changed goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tests::{Bench, bind, buffered};
use super::*;
use crate::fake::{FakeHypervisor, UUID};

/// A guest on CPU 1, and then a journal whose file takes no further knob.
fn full() -> Bench {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.tuner.journal.fill_up();
    let life = Life::Guest(GuestLife {
        uuid: "another".into(),
        ..bench.host.running(1).life.unwrap()
    });
    let fills = |name: &str| {
        let refusals = (0..1000).map(|iothread| {
            bench.tuner.journal.intend(&Intent {
                life: &life,
                name,
                knob: &Knob::Channel { iothread },
                current: "0-3",
                value: "1",
                undo: None,
            })
        });
        refusals.filter_map(Result::err).next()
    };
    // Last what fits where the others did not.
    assert!(fills(&"long".repeat(64)).is_some() && fills("").is_some());
    bench
}

/// A guest on CPU 1, buffered, and a journal that takes no commit, not even of what needs no room,
/// while the result is false: SQLite writes its log first, and that has no room either.
fn without_room() -> (Bench, Arc<AtomicBool>) {
    let bench = Bench::new(FakeHypervisor::default());
    bench.apply(&bind("1")).unwrap();
    bench.apply(&buffered()).unwrap();
    let has_room = Arc::new(AtomicBool::new(false));
    let ask = Arc::clone(&has_room);
    let journal = &bench.tuner.journal;
    journal.ask_before_commits(move || ask.load(Ordering::Relaxed));
    (bench, has_room)
}

fn roll_back(bench: &Bench) -> Vec<Settlement> {
    let inventory = bench.host.inventory(1);
    let scope = Scope::Guest(UUID.into());
    let outcomes = bench.tuner.rollback(&bench.host, &inventory, &scope);
    let outcomes = outcomes.unwrap().into_iter();
    outcomes.map(|outcome| outcome.result).collect()
}

#[test]
fn what_cannot_be_journalled_is_not_changed_and_the_refusal_says_the_way_out() {
    let bench = full();
    let refused = bench.apply(&buffered()).unwrap_err();
    assert!(
        matches!(refused, HostError::JournalFull { .. }),
        "{refused}"
    );
    let text = refused.to_string();
    for part in ["journal.db", "full", "make room", "rollback --all"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(bench.host.direct.get());
    let written = bench.host.monitor_commands.borrow();
    assert!(!written.iter().any(|command| command == "blockdev-reopen"));
}

#[test]
fn what_is_changed_goes_back_from_a_full_file() {
    let bench = full();
    let original = "0-3".to_owned();
    assert_eq!(roll_back(&bench), [Settlement::Restored { original }]);
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
}

#[test]
fn what_goes_back_without_room_is_not_taken_for_somebody_elses_change() {
    let (bench, has_room) = without_room();
    let results = roll_back(&bench);
    let is_unrecorded = |result: &Settlement| matches!(result, Settlement::Unrecorded { reason, .. } if reason.contains("journal.db"));
    assert!(
        results.len() == 2 && results.iter().all(is_unrecorded),
        "{results:?}"
    );
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
    assert!(bench.host.direct.get());
    assert_eq!(bench.tuner.records().unwrap().len(), 2);

    has_room.store(true, Ordering::Relaxed);
    let inventory = bench.host.inventory(1);
    let seen = |running: &RunningGuest, knob: &Knob| running.knobs(&bench.host).read(knob).ok();
    assert_eq!(
        bench.tuner.watch(&bench.host, &inventory, seen).unwrap(),
        []
    );
    assert_eq!(bench.tuner.records().unwrap(), []);
    bench.apply(&bind("2")).unwrap();
    let original = "0-3".to_owned();
    assert_eq!(roll_back(&bench), [Settlement::Restored { original }]);
}

#[test]
fn a_change_that_cannot_be_settled_is_taken_back() {
    let bench = Bench::new(FakeHypervisor::default());
    let mut commits = 0;
    bench.tuner.journal.ask_before_commits(move || {
        commits += 1;
        commits == 1
    });
    assert!(matches!(
        bench.apply(&bind("1")),
        Err(HostError::Journal { .. })
    ));
    assert_eq!(bench.host.cpus.borrow().to_string(), "0-3");
}

#[test]
fn somebody_elses_change_is_told_while_it_cannot_be_written_down() {
    let (bench, has_room) = without_room();
    *bench.host.cpus.borrow_mut() = "3".parse().unwrap();
    let inventory = bench.host.inventory(1);
    let seen = |running: &RunningGuest, knob: &Knob| running.knobs(&bench.host).read(knob).ok();
    let watch = || bench.tuner.watch(&bench.host, &inventory, seen).unwrap();
    let told = watch();
    assert!(
        matches!(
            &told[..],
            [Outcome {
                result: Settlement::Failed { .. },
                ..
            }]
        ),
        "{told:?}"
    );
    assert!(bench.apply(&bind("2")).is_err());
    assert_eq!(bench.host.cpus.borrow().to_string(), "3");
    has_room.store(true, Ordering::Relaxed);
    let (found, way) = ("3".to_owned(), Way::Unknown);
    assert_eq!(watch()[0].result, Settlement::Frozen { found, way });
}
