//! `blkpilot doctor` beside a real libvirt: what it says of that, its guests and its events, and what where
//! there is none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;

use blkpilot_tests::fixture::{DiskSpec, GuestSpec};
use blkpilot_tests::live;
use blkpilot_tests::service::Blkpilot;
use serde_json::Value;

const POLICY: &str = "[policy]\nbaseline = \"least_loaded\"";

fn guests() -> Vec<GuestSpec> {
    let idle = |name| GuestSpec::new(name).with_disk(DiskSpec::direct("idle"));
    ["first", "second"].map(idle).to_vec()
}

/// What it says; the exit status is the one that its help gives the level.
fn examined(blkpilot: &Blkpilot) -> Value {
    let output = blkpilot.run(&["doctor", "--config", "blkpilot.toml", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let status = match said["level"].as_str().unwrap() {
        "ok" => 0,
        "warning" => 1,
        "failed" => 2,
        other => panic!("no level: {other}"),
    };
    assert_eq!(output.status.code(), Some(status), "{said:#}");
    said
}

fn of<'said>(said: &'said Value, check: &str) -> Option<&'said Value> {
    let mut findings = said["findings"].as_array().unwrap().iter();
    findings.find(|finding| finding["check"] == check)
}

#[test]
fn libvirt_is_told_of_with_its_guests_and_events_and_a_missing_one_with_its_repair() {
    let Some(fixture) = live::fixture("live_doctor", guests()) else {
        return;
    };
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let blkpilot = Blkpilot::new(binary, &fixture, "", POLICY);
    let said = examined(&blkpilot);
    for (check, found) in [
        ("libvirt", "2 guests run"),
        ("qemu", "version "),
        ("events", "are known at once"),
    ] {
        let finding = of(&said, check).unwrap();
        assert_eq!(finding["level"], "ok", "{finding:#}");
        assert_eq!(finding["repair"], Value::Null, "{finding:#}");
        let text = finding["found"].as_str().unwrap();
        assert!(text.contains(found), "{text}");
        println!("{check}: {text}");
    }

    fixture.virsh(&["destroy", "second"]).unwrap();
    let said = examined(&blkpilot);
    let text = of(&said, "libvirt").unwrap()["found"].as_str().unwrap();
    assert!(text.contains(", 1 guest"), "{text}");

    let missing = fixture.run_dir().join("nobody/libvirt-sock");
    let missing = format!("qemu+unix:///system?socket={}", missing.display());
    let file = blkpilot.dir().join("blkpilot.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace(&fixture.uri(), &missing)).unwrap();
    let said = examined(&blkpilot);
    assert_eq!(said["level"], "failed");
    let finding = of(&said, "libvirt").unwrap();
    assert_eq!(finding["level"], "failed", "{finding:#}");
    let found = finding["found"].as_str().unwrap();
    assert!(found.contains(&missing), "{found}");
    let repair = finding["repair"].as_str().unwrap();
    assert!(repair.contains("start libvirt"), "{repair}");
    assert!(repair.contains("correct host.uri"), "{repair}");
    for check in ["qemu", "events"] {
        assert_eq!(of(&said, check), None, "nobody could be asked");
    }
    println!("without libvirt: {repair}");
}
