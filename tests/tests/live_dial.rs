//! The dial on real guests: one in mode shadow, one in canary, one in auto, beside each other under one
//! service with two policies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_log::schema::Source;
use blkpilot_log::{DecisionRow, Event, Reader, Subject};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode, OptIn};
use blkpilot_tests::live;
use blkpilot_tests::reading::Reading;
use blkpilot_tests::service::Blkpilot;

const INTERVAL: Duration = Duration::from_secs(1);
/// How long the three may take to be decided on.
const PATIENCE: Duration = Duration::from_secs(90);
/// Shadow decisions that are waited for.
const SHADOWS: usize = 8;

/// A guest in a mode that is called as the mode.
fn in_mode(mode: &str) -> GuestSpec {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=2,rate_iops=300,size=16m")
    };
    GuestSpec {
        opt_in: Some(OptIn {
            mode: mode.to_owned(),
            ..OptIn::auto()
        }),
        ..GuestSpec::new(mode)
    }
    .with_disk(disk)
}

/// The rows of the log that were decided for a guest by itself.
fn rows(log: &Path, of: &str) -> Vec<DecisionRow> {
    let is_its = |subject: &Subject| matches!(subject, Subject::Disk { guest, .. } if guest == of);
    let events = Reader::open(log).unwrap().filter_map(Result::ok);
    let rows = events.filter_map(|entry| match entry.event {
        Event::Decision(row) if is_its(&row.subject) => Some(*row),
        _ => None,
    });
    rows.collect()
}

fn is_changed(row: &DecisionRow) -> bool {
    row.heads.iter().any(|head| head.executed != head.previous)
}

fn readings(fixture: &Fixture) -> [Reading; 3] {
    ["shadow", "canary", "auto"].map(|guest| Reading::of(fixture, guest).unwrap())
}

#[test]
fn a_shadow_stays_as_it_is_beside_a_canary_and_a_guest_in_auto() {
    let guests = vec![in_mode("shadow"), in_mode("canary"), in_mode("auto")];
    let Some(fixture) = live::fixture("live_dial", guests) else {
        return;
    };
    let before = readings(&fixture);
    let host = format!("interval = \"{}ms\"", INTERVAL.as_millis());
    // What the guard does about harm is for its own tests.
    let tables = "[policy]\nbaseline = \"round_robin\"\n[candidate]\nbaseline = \"least_loaded\"\n[guard]\ntolerated_ratio = 100";
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let mut blkpilot = Blkpilot::new(binary, &fixture, &host, tables);
    blkpilot.serve();

    let log = blkpilot.dir().join("data/decisions");
    let deadline = Instant::now() + PATIENCE;
    let is_source = |row: &&DecisionRow, source| row.source == source;
    loop {
        sleep(INTERVAL);
        let shadows = rows(&log, "shadow");
        let shadows = shadows.iter().filter(|row| is_source(row, Source::Shadow));
        let changed = ["canary", "auto"].map(|guest| rows(&log, guest).iter().any(is_changed));
        if shadows.count() >= SHADOWS && changed == [true, true] {
            break;
        }
        assert!(Instant::now() < deadline, "{changed:?}");
    }
    let listed = blkpilot.run(&["guests"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    println!("{listed}");
    assert!(listed.contains("candidate: least_loaded"), "{listed}");
    let decisions = blkpilot.run(&["decisions", "--limit", "4"]);
    println!("{}", String::from_utf8(decisions.stdout).unwrap());

    let after = readings(&fixture);
    assert_eq!(after[0], before[0], "nothing changes in the shadow");
    for (guest, (after, before)) in ["canary", "auto"]
        .iter()
        .zip(after.iter().zip(&before).skip(1))
    {
        assert_ne!(after.cpus, before.cpus, "{guest} is bound to a channel");
    }
    let would_bind = |row: &DecisionRow| row.heads[0].requested != row.heads[0].executed;
    let shadow = rows(&log, "shadow");
    let shadow: Vec<_> = shadow
        .iter()
        .filter(|row| is_source(row, Source::Shadow))
        .collect();
    assert!(
        shadow
            .iter()
            .all(|row| &*row.policy == "least_loaded" && !is_changed(row))
    );
    assert!(shadow.iter().any(|row| would_bind(row)));
    for (guest, source, policy) in [
        ("canary", Source::Canary, "least_loaded"),
        ("auto", Source::Auto, "round_robin"),
    ] {
        let changed = rows(&log, guest);
        let changed = changed.iter().find(|row| is_changed(row)).unwrap();
        assert_eq!((changed.source, &*changed.policy), (source, policy));
    }
    for row in rows(&log, "shadow") {
        assert!(!is_changed(&row), "{row:?}");
    }

    // The dial first, or both policies would go on: what was changed goes back without a service.
    blkpilot.kill();
    let back = blkpilot.run(&[
        "rollback",
        "--all",
        "--offline",
        "--config",
        "blkpilot.toml",
    ]);
    let said = String::from_utf8_lossy(&back.stderr);
    assert!(back.status.success(), "{said}");
    assert_eq!(readings(&fixture), before);
}
