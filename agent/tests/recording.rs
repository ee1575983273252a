//! The binary as a recorder: what Ctrl-C leaves, and what it refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use blkpilot_log::recording::{Recording, Tally, Windows};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot");

fn blkpilot(args: &[&str], recording: &Path) -> Output {
    Command::new(BLKPILOT)
        .args(args)
        .arg("--record")
        .arg(recording)
        .output()
        .unwrap()
}

fn tally(recording: &Path) -> Tally {
    let mut windows = Windows::of(Recording::open(recording).unwrap());
    windows.by_ref().for_each(|window| drop(window.unwrap()));
    windows.tally().clone()
}

#[test]
fn ctrl_c_loses_no_sample_and_the_next_run_appends() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host.rec");
    let mut child = Command::new(BLKPILOT)
        .args([
            "observe",
            "--simulated",
            "mixed",
            "--interval",
            "0.02",
            "--json",
            "--record",
        ])
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..5 {
        lines.next().unwrap().unwrap();
    }
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).unwrap();
    let shown = 5 + lines.map_while(Result::ok).count() as u64;
    assert!(child.wait().unwrap().success());
    let after = tally(&file);
    // One sample before the first window, one at the end of each.
    assert_eq!((after.samples, after.used), (shown + 1, shown));
    assert_eq!((after.torn_bytes, after.damaged_lines), (0, 0));

    let more = [
        "observe",
        "--simulated",
        "mixed",
        "--interval",
        "0.01",
        "--count",
        "3",
    ];
    assert!(blkpilot(&more, &file).status.success());
    let appended = tally(&file);
    assert_eq!(
        (appended.sessions, appended.samples),
        (2, after.samples + 4)
    );
    assert_eq!(appended.used, after.used + 3);
}

#[test]
fn a_sweep_records_every_setting_of_a_simulated_host() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host.rec");
    let sweep = [
        "sweep",
        "--simulated",
        "capped_device",
        "--rounds",
        "1",
        "--settle",
        "0",
        "--json",
    ];
    let output = blkpilot(&sweep, &file);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["settings"], 39);
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
    assert_eq!(report["samples"].as_u64().unwrap(), tally(&file).samples);
}

#[test]
fn a_foreign_file_and_a_live_sweep_without_a_journal_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes.txt");
    std::fs::write(&notes, "do not touch\n").unwrap();
    let observe = ["observe", "--simulated", "mixed", "--count", "1"];
    let refused = blkpilot(&observe, &notes);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(
        text.contains("notes.txt") && text.contains("not a recording"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "do not touch\n");

    let file = dir.path().join("host.rec");
    let refused = blkpilot(&["sweep", "--libvirt", "qemu:///system"], &file);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
}
