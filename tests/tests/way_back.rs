//! The way back when the service has died, and when somebody else changes what it has changed, on real
//! guests. What is checked is read by other means than the code under test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blkpilot_host::Knob;
use blkpilot_host::journal::Journal;
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode, OptIn};
use blkpilot_tests::live;
use blkpilot_tests::reading::{Reading, affinity, is_direct, poll_max_ns};
use blkpilot_tests::service::Blkpilot;
use serde_json::Value;

/// Longer than any wait of the service, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(1);
/// What the operator sets: no channel and no level of polling is it, but on two CPUs a floating IOThread.
const THEIR_CPUS: &str = "0-1";
const THEIR_POLL_MAX_NS: &str = "5000";

fn guest(name: &str, mode: &str) -> GuestSpec {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=4,rate_iops=500,size=16m")
    };
    let opt_in = OptIn {
        mode: mode.to_owned(),
        ..OptIn::auto()
    };
    GuestSpec {
        opt_in: Some(opt_in),
        ..GuestSpec::new(name).with_disk(disk)
    }
}

/// What is in force on a guest's first IOThread and disk.
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    knobs: Reading,
    has_histogram: bool,
}

impl Settings {
    fn of(fixture: &Fixture, guest: &str) -> Self {
        let query = r#"{"execute":"query-blockstats"}"#;
        let reply = fixture.virsh(&["qemu-monitor-command", guest, query]);
        let reply: Value = serde_json::from_str(&reply.unwrap()).unwrap();
        let mut blocks = reply["return"].as_array().unwrap().iter();
        Self {
            knobs: Reading::of(fixture, guest).unwrap(),
            has_histogram: blocks.any(|block| !block["stats"]["rd_latency_histogram"].is_null()),
        }
    }
}

fn iothread_cpus(fixture: &Fixture, guest: &str) -> String {
    affinity(fixture.guest(guest).pid, "IO iothread1")
}

/// The service and its commands, as an operator uses them.
struct Operated(Blkpilot);

impl Operated {
    fn new(fixture: &Fixture, policy: &str) -> Self {
        let host = format!("interval = \"{}ms\"", INTERVAL.as_millis());
        let tables = format!(
            "[policy]
baseline = \"{policy}\"
[guard]
dwell = \"1s\"
changes_per_minute = 1000
stall_windows = 1000
tolerated_ratio = 100"
        );
        let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
        Self(Blkpilot::new(binary, fixture, &host, &tables))
    }

    fn run(&self, args: &[&str]) -> Output {
        self.0.run(args)
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts the service and waits until it sees the guest.
    fn serve(&mut self, guest: &str) {
        self.0.serve();
        wait_until(|| {
            let listed = self.run(&["guests", "--json"]);
            let listed: Option<Value> = serde_json::from_slice(&listed.stdout).ok();
            listed.is_some_and(|listed| {
                let mut guests = listed["guests"].as_array().unwrap().iter();
                guests.any(|known| known["name"] == format!("hosts/local/guests/{guest}"))
            })
        });
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    /// Changes every knob of a guest.
    fn change_all(&self, guest: &str) {
        for level in ["channel=channel-0", "polling=off", "cache=buffered"] {
            self.0.set(&format!("{guest}/vda:{level}"));
        }
    }

    fn journal(&self) -> Vec<Value> {
        let listed = self.json(&["journal", "--config", "blkpilot.toml"]);
        listed["records"].as_array().unwrap().clone()
    }

    fn record(&self, knob: &str) -> Option<Value> {
        self.journal()
            .into_iter()
            .find(|record| record["knob"] == knob)
    }

    /// When the service froze a knob that somebody else changed at this time.
    fn frozen_at(&self, knob: &Knob, changed: SystemTime) -> SystemTime {
        let journal = Journal::open_to_read(&self.0.dir().join("data/journal.db")).unwrap();
        let records = journal.records().unwrap();
        let frozen = records.iter().find(|record| record.knob == *knob).unwrap();
        let at = UNIX_EPOCH + Duration::from_micros(frozen.at_us.unwrap().cast_unsigned());
        let took = at.duration_since(changed).unwrap_or_default();
        println!("{knob} was frozen {took:?} after the change, at an interval of {INTERVAL:?}");
        at
    }

    /// That the next sample froze it: before that, one decision may have been on its way.
    fn check_noticed(&self, knob: &Knob, changed: SystemTime) {
        let at = self.frozen_at(knob, changed);
        let listed = self.json(&["decisions", "--limit", "1000"]);
        let decisions = listed["decisions"].as_array().unwrap();
        let times = decisions.iter().map(|decision| {
            let time = decision["create_time"].as_str().unwrap();
            humantime::parse_rfc3339(time).unwrap()
        });
        let between = times.filter(|time| (changed..at).contains(time)).count();
        assert!(between <= 1, "{between} decisions before {knob} was frozen");
    }

    fn write_script(&self) {
        let args = ["rollback", "--all", "--script", "--config", "blkpilot.toml"];
        let script = self.run(&args);
        assert!(script.status.success(), "{}", stderr(&script));
        fs::write(self.0.dir().join("undo.sh"), script.stdout).unwrap();
    }

    fn run_script(&self) -> Output {
        let mut sh = Command::new("sh");
        sh.arg("undo.sh")
            .current_dir(self.0.dir())
            .output()
            .unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn wait_until(mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not so in {PATIENCE:?}");
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_killed_service_leaves_a_way_back_by_script_and_offline() {
    let name = "two words";
    let Some(mut fixture) = live::fixture("way_back", vec![guest(name, "advise")]) else {
        return;
    };
    let original = Settings::of(&fixture, name);
    let expected = Settings {
        knobs: Reading {
            cpus: "0".to_owned(),
            poll_max_ns: "0".to_owned(),
            cache: "buffered",
        },
        has_histogram: true,
    };
    assert!(
        original.knobs.cache == "direct" && !original.has_histogram,
        "{original:?}"
    );
    let mut blkpilot = Operated::new(&fixture, "keep_default");

    // By the script.
    blkpilot.serve(name);
    blkpilot.change_all(name);
    blkpilot.kill();
    assert_eq!(Settings::of(&fixture, name), expected);
    let knobs: Vec<Value> = blkpilot
        .journal()
        .iter()
        .map(|r| r["knob"].clone())
        .collect();
    let in_order = [
        "disk/vda/cache",
        "iothread/1/poll_max_ns",
        "iothread/1/cpus",
        "disk/vda/histogram",
    ];
    assert_eq!(knobs, in_order, "newest first");
    blkpilot.write_script();
    let undone = blkpilot.run_script();
    assert!(
        undone.status.success(),
        "{}{}",
        stdout(&undone),
        stderr(&undone)
    );
    assert_eq!(
        Settings::of(&fixture, name),
        original,
        "{}",
        stdout(&undone)
    );
    assert!(stdout(&undone).contains("4 undone, 0 ended with their guests, 0 not undone"));
    assert!(
        !stdout(&undone).contains("not seen in /proc"),
        "{}",
        stdout(&undone)
    );
    let again = blkpilot.run_script();
    assert!(again.status.success(), "{}", stderr(&again));

    // A service that starts then finds nothing of its own but what it counts itself.
    blkpilot.serve(name);
    wait_until(|| {
        let journal = blkpilot.journal();
        journal
            .iter()
            .all(|record| record["knob"] == "disk/vda/histogram")
    });
    assert_eq!(
        Settings {
            has_histogram: false,
            ..Settings::of(&fixture, name)
        },
        original
    );

    // Offline, but not beside the service.
    blkpilot.change_all(name);
    let offline = [
        "rollback",
        "--all",
        "--offline",
        "--config",
        "blkpilot.toml",
    ];
    let refused = blkpilot.run(&offline);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert_eq!(Settings::of(&fixture, name), expected);
    blkpilot.kill();
    let back = blkpilot.json(&offline);
    let back = back["outcomes"].as_array().unwrap();
    assert!(
        back.len() == 4 && back.iter().all(|o| o["result"] == "restored"),
        "{back:?}"
    );
    assert_eq!(Settings::of(&fixture, name), original);
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());

    // What somebody else has set stays in both, and is told.
    blkpilot.serve(name);
    blkpilot.change_all(name);
    blkpilot.kill();
    let set = [
        "iothreadset",
        name,
        "1",
        "--poll-max-ns",
        THEIR_POLL_MAX_NS,
        "--live",
    ];
    fixture.virsh(&set).unwrap();
    blkpilot.write_script();
    let partly = blkpilot.run_script();
    assert_eq!(partly.status.code(), Some(1), "{}", stdout(&partly));
    assert!(
        stderr(&partly).contains("somebody else set it to 5000"),
        "{}",
        stderr(&partly)
    );
    let mut theirs = original.clone();
    theirs.knobs.poll_max_ns = THEIR_POLL_MAX_NS.to_owned();
    assert_eq!(Settings::of(&fixture, name), theirs);
    let partly = blkpilot.run(&offline);
    assert_eq!(partly.status.code(), Some(1), "{}", stdout(&partly));
    assert!(
        stderr(&partly).contains("poll_max_ns"),
        "{}",
        stderr(&partly)
    );
    assert_eq!(blkpilot.journal().len(), 1);

    // A script of another life of the guest does nothing to this one.
    fixture.power_cycle(name).unwrap();
    let moot = blkpilot.run_script();
    assert!(moot.status.success(), "{}", stderr(&moot));
    assert!(
        stdout(&moot).contains("restarted since"),
        "{}",
        stdout(&moot)
    );
    assert_eq!(Settings::of(&fixture, name), original);
}

/// Decisions that have changed one of a disk's heads.
fn changes(blkpilot: &Operated, head: &str) -> usize {
    let decisions = blkpilot.json(&["decisions", "--limit", "1000"]);
    let decisions = decisions["decisions"].as_array().unwrap().clone();
    let heads = decisions.iter().flat_map(|decision| {
        let rows = decision["rows"].as_array().unwrap().iter();
        rows.flat_map(|row| row["heads"].as_array().unwrap())
    });
    heads
        .filter(|made| made["head"] == head && made["previous"] != made["executed"])
        .count()
}

fn is_frozen(blkpilot: &Operated, knob: &str) -> bool {
    blkpilot
        .record(knob)
        .is_some_and(|record| record["state"] == "frozen")
}

#[test]
fn in_mode_auto_a_change_by_somebody_else_freezes_that_knob_alone_within_an_interval() {
    // Its IOThread is bound from the start, so that no channel is what the operator will choose.
    let bound = GuestSpec {
        iothread_cpuset: Some("0".to_owned()),
        ..guest("tuned", "auto")
    };
    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let Some(fixture) = live::fixture("way_back_freeze", vec![bound]) else {
        return;
    };
    if !cpus.starts_with("0-") {
        return live::skip("way_back_freeze", "it needs two CPUs");
    }
    let mut blkpilot = Operated::new(&fixture, "random");
    blkpilot.serve("tuned");
    // Not frozen by its own changes, many of them.
    wait_until(|| {
        ["channel", "cache", "polling"]
            .iter()
            .all(|head| changes(&blkpilot, head) >= 3)
    });
    assert!(
        blkpilot
            .journal()
            .iter()
            .all(|record| record["state"] != "frozen")
    );
    wait_until(|| blkpilot.record("iothread/1/cpus").is_some());

    // Not while the service lets it float: on two CPUs that is what the operator sets, and a change to the
    // very value that is in force by its own cannot be told.
    let pin = ["iothreadpin", "tuned", "1", THEIR_CPUS, "--live"];
    let mut pinned = SystemTime::UNIX_EPOCH;
    wait_until(|| {
        let record = blkpilot.record("iothread/1/cpus").unwrap();
        let is_frozen = record["state"] == "frozen";
        let differs = record["value"] != THEIR_CPUS;
        if !is_frozen && differs && iothread_cpus(&fixture, "tuned") != THEIR_CPUS {
            fixture.virsh(&pin).unwrap();
            pinned = SystemTime::now();
        }
        is_frozen
    });
    blkpilot.check_noticed(&Knob::Channel { iothread: 1 }, pinned);

    // The journal knows of it in the middle of a look, the list of guests after it.
    let frozen = || blkpilot.json(&["guests"])["guests"][0]["frozen"].clone();
    wait_until(|| frozen() != Value::Array(vec![]));
    let frozen = frozen();
    assert_eq!(frozen.as_array().unwrap().len(), 1, "{frozen}");
    assert_eq!(
        (&frozen[0]["head"], &frozen[0]["found"]),
        (&"channel".into(), &THEIR_CPUS.into())
    );
    let table = stdout(&blkpilot.run(&["guests"]));
    assert!(
        table.contains("(frozen)") && table.contains("blkpilot unfreeze tuned --knob channel"),
        "{table}"
    );

    // The others go on, and this one is never written.
    let before = ["channel", "cache", "polling"].map(|head| changes(&blkpilot, head));
    let deadline = Instant::now() + PATIENCE;
    let go_on = || {
        assert_eq!(iothread_cpus(&fixture, "tuned"), THEIR_CPUS);
        changes(&blkpilot, "cache") >= before[1] + 3
            && changes(&blkpilot, "polling") >= before[2] + 3
    };
    while !go_on() {
        assert!(
            Instant::now() < deadline,
            "the others do not go on: {before:?} changes before, {:?} now; {:#}\n{}",
            ["channel", "cache", "polling"].map(|head| changes(&blkpilot, head)),
            blkpilot.json(&["guests"]),
            stdout(&blkpilot.run(&["decisions", "--limit", "5"])),
        );
        sleep(Duration::from_millis(100));
    }
    assert_eq!(changes(&blkpilot, "channel"), before[0]);

    // Nor does a guest's own rollback touch it.
    let rolled_back = blkpilot.run(&["rollback", "tuned"]);
    assert_eq!(
        rolled_back.status.code(),
        Some(1),
        "{}",
        stdout(&rolled_back)
    );
    assert_eq!(iothread_cpus(&fixture, "tuned"), THEIR_CPUS);

    let dry = blkpilot.run(&["unfreeze", "tuned/vda", "--knob", "channel", "--dry-run"]);
    assert!(
        stdout(&dry).contains("0-1, which somebody else set, would stay"),
        "{}",
        stdout(&dry)
    );
    assert!(is_frozen(&blkpilot, "iothread/1/cpus"));
    let done = blkpilot.json(&["unfreeze", "tuned", "--knob", "channel"]);
    assert_eq!(done["knobs"][0]["found"], THEIR_CPUS);
    wait_until(|| {
        let record = blkpilot.record("iothread/1/cpus");
        record.is_some_and(|record| record["original"] == THEIR_CPUS)
    });

    // libvirt's other way in, and QEMU's own.
    wait_until(|| blkpilot.record("iothread/1/poll_max_ns").is_some());
    let set = [
        "iothreadset",
        "tuned",
        "1",
        "--poll-max-ns",
        THEIR_POLL_MAX_NS,
        "--live",
    ];
    // libvirt has no event for this one and no compare-and-set: a change in the very milliseconds of one
    // of the service's own may be lost, which an operator sees, and repeats.
    let mut changed = SystemTime::UNIX_EPOCH;
    wait_until(|| {
        let is_frozen = is_frozen(&blkpilot, "iothread/1/poll_max_ns");
        if !is_frozen && poll_max_ns(&fixture, "tuned").unwrap() != THEIR_POLL_MAX_NS {
            fixture.virsh(&set).unwrap();
            changed = SystemTime::now();
        }
        is_frozen
    });
    blkpilot.check_noticed(&Knob::Polling { iothread: 1 }, changed);
    assert_eq!(poll_max_ns(&fixture, "tuned").unwrap(), THEIR_POLL_MAX_NS);
    assert!(!is_frozen(&blkpilot, "iothread/1/cpus"));
}

/// The command that reopens the guest's protocol node without or with O_DIRECT.
fn reopen(fixture: &Fixture, guest: &str, is_direct: bool) -> String {
    let line = fs::read(format!("/proc/{}/cmdline", fixture.guest(guest).pid)).unwrap();
    let mut words = line.split(|byte| *byte == 0);
    let nodes = words
        .by_ref()
        .filter_map(|word| serde_json::from_slice::<Value>(word).ok());
    let mut files = nodes.filter(|node| node["driver"] == "file");
    let mut node = files.next().unwrap();
    node["cache"]["direct"] = is_direct.into();
    serde_json::json!({ "execute": "blockdev-reopen", "arguments": { "options": [node] } })
        .to_string()
}

#[test]
fn a_reopen_by_somebody_else_freezes_the_cache_alone() {
    let Some(fixture) = live::fixture("way_back_reopen", vec![guest("tuned", "advise")]) else {
        return;
    };
    let mut blkpilot = Operated::new(&fixture, "keep_default");
    blkpilot.serve("tuned");
    blkpilot.change_all("tuned");
    let command = reopen(&fixture, "tuned", true);
    fixture
        .virsh(&["qemu-monitor-command", "tuned", &command])
        .unwrap();
    let reopened = SystemTime::now();
    assert!(is_direct(&fixture, "tuned").unwrap());
    wait_until(|| is_frozen(&blkpilot, "disk/vda/cache"));
    let target = "vda".to_owned();
    blkpilot.frozen_at(&Knob::Cache { target }, reopened);
    let frozen = blkpilot.journal();
    let frozen: Vec<&Value> = frozen.iter().filter(|r| r["state"] == "frozen").collect();
    assert_eq!(frozen.len(), 1);
    assert_eq!(frozen[0]["found"], "direct");
    wait_until(|| {
        let refused = blkpilot.run(&["apply", "--set", "tuned/vda:cache=buffered"]);
        assert!(!refused.status.success());
        stderr(&refused).contains("blkpilot unfreeze")
    });
    blkpilot.0.set("tuned/vda:polling=adaptive");
    assert!(is_direct(&fixture, "tuned").unwrap());
}
