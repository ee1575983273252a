//! Settings of a real block device, a loop device of the fixture's own: what the service changes, and
//! every way back from it. What is checked is read straight from sysfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_host::journal::Journal;
use blkpilot_host::{
    DeviceChange, DeviceKnob, DeviceRules, Devices, Inventory, Libvirt, Scope, Tuner,
};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode};
use blkpilot_tests::live;
use blkpilot_tests::service::Blkpilot;
use serde_json::Value;

const GUEST: &str = "on-loop";
const PATIENCE: Duration = Duration::from_secs(60);
const ALL: &str = r#"["scheduler", "nr_requests", "read_ahead_kb", "wbt_lat_usec", "rq_affinity"]"#;
const OFFLINE: [&str; 5] = [
    "rollback",
    "--all",
    "--offline",
    "--config",
    "blkpilot.toml",
];
/// Changes of each setting that are measured.
const MEASURED: usize = 21;

fn guest() -> GuestSpec {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=4,rate_iops=200,size=16m").capped(2_000)
    };
    GuestSpec::new(GUEST).with_disk(disk)
}

/// The loop device, as sysfs shows it; left as it was found.
struct Loop {
    name: String,
    found: [String; 5],
}

impl Loop {
    fn of(fixture: &Fixture) -> Self {
        let image = &fixture.guest(GUEST).images[0];
        let name = image.file_name().unwrap().to_str().unwrap().to_owned();
        let mut device = Self {
            name,
            found: Default::default(),
        };
        device.found = device.settings();
        device
    }

    fn path(&self, knob: DeviceKnob) -> PathBuf {
        PathBuf::from(format!("/sys/block/{}/queue/{knob}", self.name))
    }

    fn setting(&self, knob: DeviceKnob) -> String {
        let text = fs::read_to_string(self.path(knob)).unwrap();
        let marked = text
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        marked.map_or(text.trim(), |(name, _)| name).to_owned()
    }

    /// As somebody else does it.
    fn set(&self, knob: DeviceKnob, value: &str) {
        fs::write(self.path(knob), value).unwrap();
    }

    fn settings(&self) -> [String; 5] {
        DeviceKnob::ALL.map(|knob| self.setting(knob))
    }

    fn schedulers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path(DeviceKnob::Scheduler)).unwrap();
        let names = text.split_whitespace();
        names
            .map(|name| name.trim_matches(['[', ']']).to_owned())
            .collect()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // What the test is about may have failed: the kernel keeps the settings of a loop device that
        // is detached.
        for (knob, value) in DeviceKnob::ALL.into_iter().zip(&self.found) {
            if self.setting(knob) != *value {
                let _ = fs::write(self.path(knob), value);
            }
        }
    }
}

/// The service and its commands, as an operator uses them.
struct Operated(Blkpilot);

impl Operated {
    fn new(fixture: &Fixture, rule: &str) -> Self {
        // A guard that neither holds changes back nor undoes them: they come one after the other.
        let tables = format!(
            "{rule}
[policy]
baseline = \"keep_default\"
[guard]
dwell = \"100ms\"
changes_per_minute = 6000
stall_windows = 1000
tolerated_ratio = 100"
        );
        let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
        Self(Blkpilot::new(
            binary,
            fixture,
            "interval = \"500ms\"",
            &tables,
        ))
    }

    /// Starts the service and waits for its first window.
    fn serve(&mut self) {
        self.0.serve();
        wait_until(|| self.0.run(&["device", "list"]).status.success());
    }

    /// Waits for a window in which a level may be chosen.
    fn wait_for(&self, level: &str) {
        wait_until(|| {
            let dry = self.0.run(&["apply", "--set", level, "--dry-run"]);
            dry.status.success()
        });
    }

    fn done(&self, args: &[&str]) -> String {
        let output = self.0.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.0.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        stderr(&output)
    }

    /// Chooses a scheduler, however soon after another.
    fn choose(&self, level: &str) {
        self.done(&["apply", "--set", level, "--force", "each is tried"]);
    }

    /// Changes every setting of the device.
    fn change_all(&self, device: &Loop, scheduler: &str) {
        let name = &device.name;
        self.choose(&format!("{name}:scheduler={scheduler}"));
        for setting in [
            "nr_requests=64",
            "read_ahead_kb=64",
            "wbt_lat_usec=5000",
            "rq_affinity=2",
        ] {
            self.done(&["device", "set", name, setting, "--force", "each is tried"]);
        }
        assert_eq!(device.settings(), [scheduler, "64", "64", "5000", "2"]);
    }

    /// Journalled settings of devices.
    fn journal(&self) -> Vec<Value> {
        let listed = self.done(&["journal", "--config", "blkpilot.toml", "--json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let records = listed["records"].as_array().unwrap().iter();
        records
            .filter(|record| !record["device"].is_null())
            .cloned()
            .collect()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_until(so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not so in {PATIENCE:?}");
        sleep(Duration::from_millis(100));
    }
}

fn median_us(mut times: Vec<Duration>) -> u128 {
    times.sort();
    times[times.len() / 2].as_micros()
}

/// What a change costs: the kernel's write alone, and the journalled change that is read back.
fn measure(fixture: &Fixture, device: &Loop, scheduler: &str) {
    let libvirt = Libvirt::connect(&fixture.uri()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tuner = Tuner::new(Journal::open(&dir.path().join("journal.db")).unwrap());
    let rules = DeviceRules::from([(device.name.clone(), DeviceKnob::ALL.into())]);
    let mut inventory = Inventory::default();
    inventory.devices = Devices::new("/sys".as_ref(), rules);
    let first = device.setting(DeviceKnob::Scheduler);
    let cases = [
        (DeviceKnob::Scheduler, [scheduler, &first]),
        (DeviceKnob::NrRequests, ["64", "96"]),
        (DeviceKnob::ReadAhead, ["64", "256"]),
        (DeviceKnob::Wbt, ["5000", "6000"]),
        (DeviceKnob::RqAffinity, ["2", "0"]),
    ];
    for (knob, values) in cases {
        let before = device.settings();
        let (mut written, mut changed) = (vec![], vec![]);
        for value in values.into_iter().cycle().take(MEASURED) {
            let start = Instant::now();
            device.set(knob, value);
            written.push(start.elapsed());
        }
        for (knob, value) in DeviceKnob::ALL.into_iter().zip(&before) {
            device.set(knob, value);
        }
        for value in values.into_iter().cycle().take(MEASURED) {
            let value = value.to_owned();
            let change = DeviceChange { knob, value };
            let start = Instant::now();
            tuner
                .apply_to_device(&inventory, &device.name, &change)
                .unwrap();
            changed.push(start.elapsed());
        }
        println!(
            "{knob}: written in {} µs, changed in {} µs with journal and read-back (medians of {MEASURED})",
            median_us(written),
            median_us(changed)
        );
        let scope = Scope::Device(inventory.devices.device(&device.name).unwrap().id);
        tuner.rollback(&libvirt, &inventory, &scope).unwrap();
        assert_eq!(device.settings(), before);
        assert_eq!(tuner.records().unwrap(), []);
    }
}

#[test]
fn settings_of_a_device_are_changed_and_every_way_back_leads_home() {
    let Some(fixture) = live::fixture("live_device", vec![guest()]) else {
        return;
    };
    let device = Loop::of(&fixture);
    let name = device.name.clone();
    let schedulers = device.schedulers();
    let is_new = |name: &&String| **name != device.setting(DeviceKnob::Scheduler);
    let offered: Vec<&String> = schedulers.iter().filter(is_new).collect();
    println!("{name} offers {schedulers:?}");
    let Some(scheduler) = offered.last() else {
        return live::skip("live_device", "the kernel offers one scheduler alone");
    };
    // What an operator has set before, which the kernel forgets with the scheduler.
    device.set(DeviceKnob::NrRequests, "100");
    let original = device.settings();

    // Without a rule nothing is written.
    let mut closed = Operated::new(&fixture, "");
    closed.serve();
    assert!(
        closed
            .done(&["device", "list"])
            .contains("no [[host.device]]")
    );
    let level = format!("{name}:scheduler={scheduler}");
    closed.refused(&["apply", "--set", &level]);
    let refused = closed.refused(&["device", "set", &name, "read_ahead_kb=64"]);
    assert!(refused.contains("[[host.device]]"), "{refused}");
    assert_eq!(device.settings(), original);
    closed.0.kill();

    let rule = format!("[[host.device]]\nmatch = \"{name}\"\nknobs = {ALL}");
    let mut blkpilot = Operated::new(&fixture, &rule);
    blkpilot.serve();
    blkpilot.wait_for(&level);
    blkpilot.done(&["device", "set", &name, "read_ahead_kb=64", "--dry-run"]);
    for (setting, problem) in [
        ("nr_requests=3", "[4, 10240]"),
        (
            "nr_requests=10000",
            "the kernel refused nr_requests = 10000",
        ),
        ("scheduler=none", "blkpilot apply --set"),
        ("write_cache=1", "must be one of"),
    ] {
        let refused = blkpilot.refused(&["device", "set", &name, setting]);
        assert!(refused.contains(problem), "{setting}: {refused}");
    }
    assert_eq!(device.settings(), original);
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());

    // Each scheduler that there is, and back.
    for scheduler in &offered {
        blkpilot.choose(&format!("{name}:scheduler={scheduler}"));
        println!("under {scheduler}: {:?}", device.settings());
        assert_eq!(device.setting(DeviceKnob::Scheduler), **scheduler);
    }
    blkpilot.done(&["rollback", "--all"]);
    assert_eq!(device.settings(), original);

    // Killed: by the script, then offline.
    blkpilot.change_all(&device, scheduler);
    blkpilot.0.kill();
    assert_eq!(blkpilot.journal().len(), 5);
    let script = blkpilot.done(&["rollback", "--all", "--script", "--config", "blkpilot.toml"]);
    fs::write(blkpilot.0.dir().join("undo.sh"), script).unwrap();
    let mut sh = Command::new("sh");
    let undone = sh
        .arg("undo.sh")
        .current_dir(blkpilot.0.dir())
        .output()
        .unwrap();
    assert!(undone.status.success(), "{}", stderr(&undone));
    assert_eq!(device.settings(), original);
    blkpilot.serve();
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());
    blkpilot.wait_for(&level);
    blkpilot.change_all(&device, scheduler);
    blkpilot.0.kill();
    blkpilot.done(&OFFLINE);
    assert_eq!(device.settings(), original);

    // Somebody else.
    blkpilot.serve();
    blkpilot.wait_for(&level);
    blkpilot.change_all(&device, scheduler);
    device.set(DeviceKnob::ReadAhead, "512");
    wait_until(|| {
        let journal = blkpilot.journal();
        let frozen: Vec<&Value> = journal.iter().filter(|r| r["state"] == "frozen").collect();
        frozen.len() == 1
            && frozen[0]["knob"] == "queue/read_ahead_kb"
            && frozen[0]["found"] == "512"
    });
    assert!(blkpilot.done(&["device", "list"]).contains("512 (frozen)"));
    let taken = ["device", "set", &name, "read_ahead_kb=32", "--force", "no"];
    let refused = blkpilot.refused(&taken);
    assert!(refused.contains("somebody else set 512"), "{refused}");
    let left = blkpilot.refused(&["device", "rollback", &name]);
    assert!(left.contains("queue/read_ahead_kb"), "{left}");
    let mut theirs = original.clone();
    theirs[2] = "512".to_owned();
    assert_eq!(device.settings(), theirs);
    blkpilot.done(&["device", "unfreeze", &name]);
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());
    blkpilot.done(&[
        "device",
        "set",
        &name,
        "read_ahead_kb=32",
        "--force",
        "freed",
    ]);
    blkpilot.done(&["device", "rollback", &name]);
    assert_eq!(
        device.settings(),
        theirs,
        "what they chose is the original now"
    );
    blkpilot.0.kill();
    measure(&fixture, &device, scheduler);
}
