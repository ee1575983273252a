//! A log on a disk that fills up: nothing that was acknowledged is lost, the writer says so, leaves nothing
//! behind however often it is tried again, and goes on when there is room.
//!
//! The disk is a small tmpfs in a mount namespace of this test's own, which takes root: the test starts itself
//! again in it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use blkpilot_env::Validity;
use blkpilot_log::{Config, DecisionId, Event, LogError, OutcomeRow, Reader, Writer};

const NAME: &str = "a_full_disk_loses_nothing_that_was_acknowledged";
/// Where the disk is, in the process that has it.
const DISK: &str = "BLKPILOT_TEST_SMALL_DISK";
const DISK_KIB: u32 = 256;

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    if let Some(disk) = std::env::var_os(DISK) {
        return fill_and_go_on(Path::new(&disk));
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = format!(
        "mount -t tmpfs -o size={DISK_KIB}k none \"${DISK}\" || exit 77; exec \"$0\" \"$@\""
    );
    let again = Command::new("unshare")
        .args(["--mount", "sh", "-c", &mount])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(DISK, dir.path())
        .output();
    let output = match again {
        Ok(output) if output.status.code() != Some(77) => output,
        _ => return eprintln!("{NAME}: skipped: it takes root to mount a small disk"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare failed") {
        return eprintln!("{NAME}: skipped: it takes root to mount a small disk");
    }
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{said}");
    assert!(told.contains("1 passed"), "{told}{said}");
}

fn fill_and_go_on(disk: &Path) {
    let ballast = disk.join("ballast");
    let log = disk.join("log");
    let (mut writer, _) = Writer::open(
        &log,
        Config {
            segment_bytes: 40_000,
        },
    )
    .unwrap();
    for round in 0..3 {
        let mut acknowledged = numbers(&log);
        fill(&ballast);
        let full = loop {
            let next = acknowledged.last().map_or(1, |last| last + 1);
            match write(&mut writer, next) {
                Ok(()) => acknowledged.push(next),
                Err(error) => break error,
            }
        };
        assert!(is_full(&full), "{full:?}");
        assert!(writer.has_failed());
        assert!(matches!(write(&mut writer, 0), Err(LogError::Failed)));
        // Tried again and again, as the service does before each change.
        let before = lines(&log).len();
        for _ in 0..20 {
            let Err(error) = writer.recover() else {
                continue;
            };
            assert!(is_full(&error), "{error:?}");
        }
        // At most one that is ready for the next event.
        let after = lines(&log);
        assert!(after.len() <= before + 1, "round {round}: {after:?}");
        assert!(
            after.iter().all(|lines| *lines > 0),
            "round {round}: {after:?}"
        );
        assert!(without_events(&after) <= 1, "round {round}: {after:?}");
        let is_ours = |number: &u64| acknowledged.contains(number);
        let read = numbers(&log);
        let kept: Vec<u64> = read.iter().copied().filter(is_ours).collect();
        assert_eq!(kept, acknowledged, "round {round}");
        // At most what was being written when there was no more room.
        assert!(read.len() <= acknowledged.len() + 1);

        fs::remove_file(&ballast).unwrap();
        writer.recover().unwrap();
        assert!(!writer.has_failed());
        let next = read.last().unwrap() + 1;
        write(&mut writer, next).unwrap();
        assert_eq!(numbers(&log), [read, vec![next]].concat());
        let after = lines(&log);
        assert_eq!(without_events(&after), 0, "round {round}: {after:?}");
    }
    // Another process finds it so too.
    drop(writer);
    let found = numbers(&log);
    let (_writer, recovery) = Writer::open(&log, Config::default()).unwrap();
    assert_eq!((recovery.torn_bytes, recovery.damaged_lines), (0, 0));
    assert_eq!(numbers(&log), found);
}

/// Fills the disk to the last page.
fn fill(ballast: &Path) {
    let mut file = fs::File::create(ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

fn write(writer: &mut Writer, number: u64) -> Result<(), LogError> {
    writer.append(&event(number))?;
    writer.commit()
}

fn is_full(error: &LogError) -> bool {
    matches!(error, LogError::Io { source, .. } if source.kind() == ErrorKind::StorageFull)
}

/// Lines of each segment, the header among them, oldest segment first.
fn lines(log: &Path) -> Vec<usize> {
    let entries = fs::read_dir(log).unwrap().map(Result::unwrap);
    let segments = entries.filter(|entry| entry.file_name() != "lock");
    let mut paths: Vec<PathBuf> = segments.map(|entry| entry.path()).collect();
    paths.sort();
    let count = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count();
    paths.iter().map(count).collect()
}

fn without_events(lines: &[usize]) -> usize {
    lines.iter().filter(|lines| **lines <= 1).count()
}

fn numbers(log: &Path) -> Vec<u64> {
    if !log.is_dir() {
        return vec![];
    }
    let events = Reader::open(log).unwrap();
    let number = |event: Event| match event {
        Event::Outcome(outcome) => u64::try_from(outcome.decision_id.0).unwrap(),
        other => panic!("{other:?}"),
    };
    events.map(|entry| number(entry.unwrap().event)).collect()
}

fn event(number: u64) -> Event {
    Event::Outcome(OutcomeRow {
        decision_id: DecisionId(u128::from(number)),
        at_us: 0,
        interval_s: 10.0,
        reward_total: -0.1,
        reward_own: -0.1,
        reward_terms: BTreeMap::from([("contention".to_owned(), -0.1)]),
        counted: true,
        validity: Validity::Valid,
        terminated: false,
        truncated: false,
    })
}
