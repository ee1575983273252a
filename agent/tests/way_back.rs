//! The way back without a service, as a script sees it: what the journal holds, the undo script, and
//! who may write. (That guests really go back is tested on real ones.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use blkpilot_host::journal::{DeviceLife, GuestLife, Intent, Journal, Life};
use blkpilot_host::{DeviceKnob, Knob};
use serde_json::Value;
use support::{Settings, socket};
use tempfile::TempDir;

const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot");

fn blkpilot(args: &[&str], dir: &Path) -> Output {
    Command::new(BLKPILOT)
        .args(args)
        .env("BLKPILOT_SERVER", format!("unix:{}", socket(dir).display()))
        .current_dir(dir)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn journal_in(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir.join("data")).unwrap();
    dir.join("data/journal.db")
}

fn life() -> Life {
    Life::Guest(GuestLife {
        boot_id: "boot".into(),
        uuid: "uuid".into(),
        qemu_started_ticks: 7,
    })
}

/// A channel that was set and settled, then polling that somebody else took over.
fn fill(path: &Path) {
    let journal = Journal::open(path).unwrap();
    let (channel, polling) = (Knob::Channel { iothread: 1 }, Knob::Polling { iothread: 1 });
    for (knob, current, value) in [(&channel, "0-3", "1"), (&polling, "32768", "0")] {
        let (life, name, undo) = (&life(), "it's web", None);
        let intent = Intent {
            life,
            name,
            knob,
            current,
            value,
            undo,
        };
        journal.intend(&intent).unwrap();
    }
    journal.settle(&life(), &channel, "1").unwrap();
    journal.freeze(&life(), &polling, "5000").unwrap();
}

#[test]
fn the_journal_is_listed_newest_first_as_table_and_json() {
    let dir = TempDir::new().unwrap();
    let path = journal_in(dir.path());
    fill(&path);
    let listed = json(&blkpilot(
        &["journal", "--data-dir", "data", "--json"],
        dir.path(),
    ));
    let records = listed["records"].as_array().unwrap();
    assert_eq!(records.len(), 2);
    let keys: Vec<&String> = records[0].as_object().unwrap().keys().collect();
    let expected = [
        "boot_id",
        "device",
        "device_id",
        "found",
        "guest",
        "knob",
        "original",
        "previous",
        "qemu_started_ticks",
        "state",
        "time",
        "uuid",
        "value",
    ];
    assert_eq!(keys, expected);
    assert_eq!(records[0]["knob"], "iothread/1/poll_max_ns");
    assert_eq!(records[0]["state"], "frozen");
    assert_eq!(records[0]["found"], "5000");
    assert_eq!(records[1]["original"], "0-3");
    assert_eq!(
        (&records[1]["value"], &records[1]["state"]),
        (&"1".into(), &"settled".into())
    );
    assert_eq!(
        (&records[1]["found"], &records[1]["qemu_started_ticks"]),
        (&Value::Null, &7.into())
    );
    let table = stdout(&blkpilot(&["journal", "--data-dir", "data"], dir.path()));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[1].contains("it's web") && lines[1].contains("frozen"),
        "{table}"
    );
}

#[test]
fn a_devices_record_names_the_device_and_its_script_needs_no_libvirt() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(&journal_in(dir.path())).unwrap();
    let life = Life::Device(DeviceLife {
        boot_id: "boot".into(),
        id: "wwid:naa.5".into(),
    });
    let knob = Knob::Device(DeviceKnob::Scheduler);
    let intent = Intent {
        life: &life,
        name: "sda",
        knob: &knob,
        current: "none",
        value: "bfq",
        undo: Some("nr_requests:100:256"),
    };
    journal.intend(&intent).unwrap();
    journal.settle(&life, &knob, "bfq").unwrap();
    let args = ["journal", "--data-dir", "data", "--json"];
    let record = &json(&blkpilot(&args, dir.path()))["records"][0];
    assert_eq!(
        (&record["device"], &record["device_id"]),
        (&"sda".into(), &"wwid:naa.5".into())
    );
    assert_eq!(
        (&record["guest"], &record["uuid"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(record["knob"], "queue/scheduler");
    let args = ["rollback", "sda", "--script", "--data-dir", "data"];
    let script = stdout(&blkpilot(&args, dir.path()));
    let step = "device scheduler 'none' 'bfq' 'bfq' nr_requests '100' '256'";
    assert!(
        script.contains(step) && !script.contains("if ! v uri"),
        "{script}"
    );
}

#[test]
fn an_empty_missing_or_damaged_journal_is_told_apart() {
    let dir = TempDir::new().unwrap();
    let path = journal_in(dir.path());
    let args = ["journal", "--data-dir", "data"];
    let missing = blkpilot(&args, dir.path());
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("there is no journal"),
        "{}",
        stderr(&missing)
    );
    assert_eq!(stderr(&missing).lines().count(), 1);
    assert!(!path.exists());

    drop(Journal::open(&path).unwrap());
    let empty = blkpilot(&args, dir.path());
    assert!(empty.status.success());
    assert!(stdout(&empty).contains("nothing is changed"));
    let empty = json(&blkpilot(
        &["journal", "--data-dir", "data", "--json"],
        dir.path(),
    ));
    assert_eq!(empty["records"], Value::Array(vec![]));

    fs::write(&path, "this is no journal").unwrap();
    for args in [
        &args[..],
        &["rollback", "--all", "--script", "--data-dir", "data"],
    ] {
        let damaged = blkpilot(args, dir.path());
        assert_eq!(damaged.status.code(), Some(1));
        assert!(
            stderr(&damaged).contains("is damaged"),
            "{}",
            stderr(&damaged)
        );
    }
    assert_eq!(blkpilot(&["journal"], dir.path()).status.code(), Some(2));
}

#[test]
fn the_script_is_one_for_sh_and_about_the_guests_that_are_named() {
    let dir = TempDir::new().unwrap();
    fill(&journal_in(dir.path()));
    let script = |what: &str| {
        let args = [
            "rollback",
            what,
            "--script",
            "--data-dir",
            "data",
            "--libvirt",
            "test:///x",
        ];
        let output = blkpilot(&args, dir.path());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let all = script("--all");
    assert!(
        all.starts_with("#!/bin/sh\n") && all.contains("uri='test:///x'"),
        "{all}"
    );
    assert!(all.contains("pin 'uuid' 1 '0-3' '1' '1'"), "{all}");
    assert!(all.contains("frozen; cannot be undone here"), "{all}");
    let file = dir.path().join("undo.sh");
    fs::write(&file, &all).unwrap();
    let checked = Command::new("sh").arg("-n").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", stderr(&checked));
    assert_eq!(script("it's web"), all);
    assert!(!script("another").contains("pin 'uuid'"));
}

/// A daemon; killed when this is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_offline_rollback_never_writes_beside_a_service() {
    let dir = TempDir::new().unwrap();
    fill(&journal_in(dir.path()));
    let file = dir.path().join("blkpilot.toml");
    fs::write(&file, Settings::default().toml(dir.path())).unwrap();
    let serve = Command::new(BLKPILOT)
        .args(["serve", "--config"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut daemon = Daemon(serve.unwrap());
    let mut line = String::new();
    let lines = daemon.0.stdout.take().unwrap();
    BufReader::new(lines).read_line(&mut line).unwrap();
    assert!(line.contains("listening"), "{line}");

    let nowhere = "qemu+unix:///system?socket=/nonexistent";
    let args = [
        "rollback",
        "--all",
        "--offline",
        "--data-dir",
        "data",
        "--libvirt",
        nowhere,
    ];
    let refused = blkpilot(&args, dir.path());
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("uses this data directory"),
        "{}",
        stderr(&refused)
    );
    // Reading is allowed.
    assert!(
        blkpilot(&["journal", "--data-dir", "data"], dir.path())
            .status
            .success()
    );

    // A daemon that was killed holds nothing any more.
    drop(daemon);
    let unreachable = blkpilot(&args, dir.path());
    assert_eq!(
        unreachable.status.code(),
        Some(3),
        "{}",
        stderr(&unreachable)
    );
    let records = json(&blkpilot(
        &["journal", "--data-dir", "data", "--json"],
        dir.path(),
    ));
    assert_eq!(records["records"].as_array().unwrap().len(), 2);
    let online = blkpilot(&["rollback", "--all"], dir.path());
    assert_eq!(online.status.code(), Some(3));
    assert!(stderr(&online).contains("--offline"), "{}", stderr(&online));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let dir = TempDir::new().unwrap();
    fill(&journal_in(dir.path()));
    let simulated = dir.path().join("blkpilot.toml");
    fs::write(&simulated, Settings::default().toml(dir.path())).unwrap();
    for args in [
        &["rollback", "--all", "--offline"][..],
        &["rollback", "--all", "--script"],
        &["rollback", "--all", "--data-dir", "data"],
        &[
            "rollback",
            "--all",
            "--offline",
            "--script",
            "--data-dir",
            "data",
        ],
        &[
            "rollback",
            "--all",
            "--script",
            "--dry-run",
            "--data-dir",
            "data",
        ],
        &["rollback", "--all", "--offline", "--data-dir", "data"],
        &[
            "rollback",
            "--all",
            "--offline",
            "--config",
            "blkpilot.toml",
        ],
        &["journal", "--config", "nowhere.toml"],
        &["unfreeze", "web", "--knob", "colour"],
    ] {
        let output = blkpilot(args, dir.path());
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    let nothing = [
        "rollback",
        "--all",
        "--offline",
        "--data-dir",
        "nowhere",
        "--libvirt",
        "x",
    ];
    assert_eq!(blkpilot(&nothing, dir.path()).status.code(), Some(1));
    assert!(!dir.path().join("nowhere").exists());
}
