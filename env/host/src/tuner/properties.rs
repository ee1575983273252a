//! Random changes, faults, crashes and interference: whatever happens, a rollback ends with the
//! original value unless somebody else has taken the knob, and nobody takes it but somebody else.

use proptest::prelude::*;

use super::*;
use crate::fake::{FakeHypervisor, Fault};

#[derive(Debug, Clone)]
enum Event {
    Bind(u32, Fault),
    Reconcile,
    SomebodyElseBinds(u32),
    Rollback(Fault),
    /// A sample that saw the knob on this CPU: perhaps before our last change.
    Watch(u32),
    Unfreeze,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Refused),
        1 => Just(Fault::Ignored),
        1 => Just(Fault::AppliedThenLost),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u32..4, fault()).prop_map(|(cpu, fault)| Event::Bind(cpu, fault)),
        2 => Just(Event::Reconcile),
        1 => (0_u32..4).prop_map(Event::SomebodyElseBinds),
        2 => fault().prop_map(Event::Rollback),
        3 => (0_u32..4).prop_map(Event::Watch),
        1 => Just(Event::Unfreeze),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rollback_ends_at_the_original_or_finds_the_knob_taken(events in prop::collection::vec(event(), 1..16)) {
        let dir = tempfile::tempdir().unwrap();
        let tuner = Tuner::new(Journal::open(&dir.path().join("journal.db")).unwrap());
        let (host, running) = (FakeHypervisor::default(), FakeHypervisor::default().running(1));
        // What the knob was before we first changed it, as far as anybody can tell.
        let mut original = host.cpus.borrow().clone();
        let (mut is_touched, knob) = (false, Knob::Channel { iothread: 1 });
        for event in events {
            host.lost.set(false);
            match event {
                Event::Bind(cpu, fault) => {
                    host.fault.set(fault);
                    let change = Change::Channel { iothread: 1, cpus: [cpu].into_iter().collect() };
                    let _ = tuner.apply(&host, &running, &change);
                    host.fault.set(Fault::None);
                }
                Event::Reconcile => drop(tuner.reconcile(&host, &host.inventory(1)).unwrap()),
                Event::SomebodyElseBinds(cpu) => {
                    is_touched = true;
                    *host.cpus.borrow_mut() = [cpu].into_iter().collect();
                    if tuner.records().unwrap().is_empty() {
                        original = host.cpus.borrow().clone();
                    }
                }
                Event::Rollback(fault) => {
                    host.fault.set(fault);
                    tuner.rollback(&host, &host.inventory(1), &Scope::Host).unwrap();
                    host.fault.set(Fault::None);
                }
                Event::Watch(cpu) => {
                    let seen = |_: &RunningGuest, _: &Knob| Some(cpu.to_string());
                    tuner.watch(&host, &host.inventory(1), seen).unwrap();
                }
                Event::Unfreeze => {
                    if let Ok(kept) = tuner.unfreeze(&host, &running, &knob) {
                        original = kept.parse().unwrap();
                    }
                }
            }
            let is_frozen = |record: &Record| record.state == RecordState::Frozen;
            prop_assert!(is_touched || !tuner.records().unwrap().iter().any(is_frozen), "our own change froze it");
        }
        host.lost.set(false);
        let before = host.cpus.borrow().clone();
        tuner.rollback(&host, &host.inventory(1), &Scope::Host).unwrap();
        let is_frozen = !tuner.records().unwrap().is_empty();
        let expected = if is_frozen { before } else { original };
        prop_assert_eq!(host.cpus.borrow().clone(), expected);
    }
}
