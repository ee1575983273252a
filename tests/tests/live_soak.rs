//! The daemon in mode auto for long: as many files, threads and bytes at the end as at the beginning.
//!
//! `BLKPILOT_SOAK` says for how many decisions; without, for few.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use blkpilot_log::{DecisionRow, Horizon, Query, Scan};
use blkpilot_tests::fixture::{DiskSpec, GuestSpec, IoMode, OptIn};
use blkpilot_tests::live;
use blkpilot_tests::reading::Reading;
use blkpilot_tests::service::Blkpilot;

const FEW: u64 = 100;
/// Guests, a disk each.
const GUESTS: usize = 2;
/// Decisions by which the service's history of them, 10,000 rows in memory, is full.
const WARM_UP: usize = 10_000 / GUESTS;
const INTERVAL: Duration = Duration::from_millis(100);
/// Readings of the daemon's resources over the run.
const READINGS: u64 = 40;
/// Growth that is borne: caches of the allocator and of SQLite fill up.
const MORE_KIB: u64 = 4096;
const MORE_FILES: usize = 2;

fn busy(name: &str) -> GuestSpec {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randrw,bs=4k,iodepth=4,rate_iops=100,size=16m")
    };
    GuestSpec {
        opt_in: Some(OptIn::auto()),
        ..GuestSpec::new(name).with_disk(disk)
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kib: u64,
    files: usize,
    threads: usize,
}

impl Held {
    fn by(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.unwrap().trim().trim_end_matches(" kB");
        Self {
            resident_kib: resident.parse().unwrap(),
            files: count("fd"),
            threads: count("task"),
        }
    }
}

fn rows(log: &Path) -> impl Iterator<Item = DecisionRow> {
    let batches = Scan::open(log, Query::default(), Horizon::Final).unwrap();
    let rows = batches.flat_map(|batch| batch.unwrap().rows().unwrap());
    rows.map(|row| row.decision)
}

/// Joint decisions: one per interval, however many disks it has rows for.
fn decisions(log: &Path) -> u64 {
    rows(log).filter(|row| row.order == 0).count() as u64
}

/// Settings that a decision has changed.
fn changes(log: &Path) -> u64 {
    let heads = rows(log).flat_map(|row| row.heads);
    heads.filter(|head| head.executed != head.previous).count() as u64
}

#[test]
fn a_daemon_in_mode_auto_holds_no_more_after_many_decisions() {
    let guests = (1..=GUESTS).map(|n| busy(&format!("soaked-{n}"))).collect();
    let Some(fixture) = live::fixture("live_soak", guests) else {
        return;
    };
    let original = Reading::of(&fixture, "soaked-1").unwrap();
    let wanted = std::env::var("BLKPILOT_SOAK").map_or(FEW, |n| n.parse().unwrap());
    let host = format!("interval = \"{}ms\"", INTERVAL.as_millis());
    // A guard that lets a random policy change something nearly all the time.
    let tables = "[policy]
baseline = \"random\"
[guard]
dwell = \"100ms\"
changes_per_minute = 6000
stall_windows = 1000
tolerated_ratio = 100
# Parquet is made of it many times, not once at the end.
[log]
segment_mib = 4";
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let mut blkpilot = Blkpilot::new(binary, &fixture, &host, tables);
    let pid = blkpilot.serve();

    let mut held = vec![];
    let part = INTERVAL * u32::try_from(wanted.div_ceil(READINGS)).unwrap();
    for _ in 0..READINGS {
        sleep(part);
        held.push(Held::by(pid));
    }
    let log = blkpilot.dir().join("data/decisions");
    while decisions(&log) < wanted {
        sleep(part);
        held.push(Held::by(pid));
    }
    // In mode auto a service would go on from there.
    blkpilot.kill();
    let rolled_back = blkpilot.run(&[
        "rollback",
        "--all",
        "--offline",
        "--config",
        "blkpilot.toml",
    ]);
    assert!(rolled_back.status.success());
    assert_eq!(Reading::of(&fixture, "soaked-1").unwrap(), original);

    // Before, buffers fill up and pools of threads grow; of a short run half is looked at.
    let warm_up = (held.len() * WARM_UP).div_ceil(usize::try_from(wanted).unwrap());
    let first = held[if warm_up < held.len() {
        warm_up
    } else {
        held.len() / 2
    }];
    let last = *held.last().unwrap();
    let (decisions, changes) = (decisions(&log), changes(&log));
    println!(
        "{decisions} joint decisions, {changes} settings changed; warmed up {first:?}, at the \
         end {last:?}"
    );
    assert!(changes > wanted / 10, "the guard let {changes} through");
    assert!(
        last.resident_kib <= first.resident_kib + MORE_KIB,
        "{held:?}"
    );
    assert!(last.files <= first.files + MORE_FILES, "{held:?}");
    assert!(last.threads <= first.threads, "{held:?}");
}
