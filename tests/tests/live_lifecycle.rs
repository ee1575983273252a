//! Guests that come, go, lose a disk and opt out are known by libvirt's events: long before the next look at
//! the host, which here is an hour away. What was lost with libvirtd is made up for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode};
use blkpilot_tests::live;
use blkpilot_tests::service::Blkpilot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const MOVES: &str = "moves";
const STAYS: &str = "stays";
/// For a machine that is busy; what is asserted is that no look came between.
const PATIENCE: Duration = Duration::from_secs(180);
const POLICY: &str = "[policy]\nbaseline = \"least_loaded\"";
const NAMESPACE: &str = "https://blkpilot.dev/xmlns/1";

fn guests() -> Vec<GuestSpec> {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=1,rate_iops=50,size=16m")
    };
    let idle = DiskSpec {
        workload: "idle".into(),
        ..disk.clone()
    };
    vec![
        GuestSpec::new(MOVES).with_disk(disk.clone()),
        GuestSpec::new(STAYS).with_disk(disk).with_disk(idle),
    ]
}

struct Watched {
    blkpilot: Blkpilot,
    /// When the only look was.
    looked: Value,
}

impl Watched {
    fn shown(&self) -> Value {
        let output = self.blkpilot.run(&["guests", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until a guest (or its absence) is shown so, and says how long that took.
    fn wait(&self, what: &str, guest: &str, is_so: impl Fn(Option<&Value>) -> bool) {
        let started = Instant::now();
        loop {
            let shown = self.shown();
            if !shown.is_null() {
                assert_eq!(shown["host"]["observe_time"], self.looked, "{what}");
                let mut all = shown["guests"].as_array().unwrap().iter();
                let name = format!("/{guest}");
                if is_so(all.find(|shown| shown["name"].as_str().unwrap().ends_with(&name))) {
                    println!("{what}: known after {} ms", started.elapsed().as_millis());
                    return;
                }
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {shown:#}");
            sleep(Duration::from_millis(20));
        }
    }
}

/// The XML of the second disk of a guest, as a file to plug it in with.
fn second_disk(fixture: &Fixture) -> String {
    let xml = fixture.virsh(&["dumpxml", STAYS]).unwrap();
    let second = xml.split("<disk ").nth(2).unwrap();
    let second = second.split("</disk>").next().unwrap();
    let is_kept = |line: &&str| !line.contains("<address") && !line.contains("<alias");
    let lines: Vec<&str> = second.lines().filter(is_kept).collect();
    let file = fixture.run_dir().join("second.xml");
    fs::write(&file, format!("<disk {}</disk>", lines.join("\n"))).unwrap();
    file.to_str().unwrap().to_owned()
}

fn disks(guest: Option<&Value>) -> usize {
    guest.map_or(0, |guest| guest["disks"].as_array().unwrap().len())
}

#[test]
fn what_happens_to_guests_is_known_before_the_next_look() {
    let Some(mut fixture) = live::fixture("live_lifecycle", guests()) else {
        return;
    };
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let mut blkpilot = Blkpilot::new(binary, &fixture, "interval = \"1h\"", POLICY);
    blkpilot.serve();
    let mut watched = Watched {
        blkpilot,
        looked: Value::Null,
    };
    let deadline = Instant::now() + PATIENCE;
    while watched.looked.is_null() {
        watched.looked = watched.shown()["host"]["observe_time"].clone();
        assert!(Instant::now() < deadline, "there was no first look");
    }

    fixture.virsh(&["destroy", MOVES]).unwrap();
    watched.wait("a guest was stopped", MOVES, |guest| guest.is_none());
    fixture.start_guest(MOVES).unwrap();
    watched.wait("a guest was started", MOVES, |guest| disks(guest) == 1);

    let second = second_disk(&fixture);
    fixture
        .virsh(&["detach-device", STAYS, &second, "--live"])
        .unwrap();
    watched.wait("a disk was unplugged", STAYS, |guest| disks(guest) == 1);
    fixture
        .virsh(&["attach-device", STAYS, &second, "--live"])
        .unwrap();
    watched.wait("a disk was plugged in", STAYS, |guest| disks(guest) == 2);

    fixture
        .virsh(&["metadata", STAYS, NAMESPACE, "--live", "--remove"])
        .unwrap();
    watched.wait("a guest opted out", STAYS, |guest| {
        guest.is_some_and(|guest| guest["opted_in"] != true)
    });

    // Nobody tells of what happens now.
    let pid = fixture.guest(MOVES).pid.cast_signed();
    fixture.kill_libvirtd();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    fixture.restart_libvirtd().unwrap();
    watched.wait("a guest ended without libvirtd", MOVES, |guest| {
        guest.is_none()
    });
}
