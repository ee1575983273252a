//! Limits and qcow2 caches of virtual disks on real guests: what is set, every way back from it, and the
//! guard's limit on a heavy neighbour. What is checked is read with virsh and from QEMU's process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_host::disk_setting::{DiskBounds, DiskChange};
use blkpilot_host::hypervisor::Hypervisor as _;
use blkpilot_host::inventory::GuestRules;
use blkpilot_host::journal::Journal;
use blkpilot_host::tuner::DiskAccess;
use blkpilot_host::{Devices, Inventory, Libvirt, Scope, Tuner};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, ImageFormat, IoMode, OptIn};
use blkpilot_tests::live;
use blkpilot_tests::reading::is_direct;
use blkpilot_tests::service::Blkpilot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
const OFFLINE: [&str; 5] = [
    "rollback",
    "--all",
    "--offline",
    "--config",
    "blkpilot.toml",
];
/// Changes of each setting that are measured.
const MEASURED: usize = 21;
const MIB: u64 = 1 << 20;
/// What virsh has set before, and the same as virsh shows it.
const GOLD: [&str; 10] = [
    "--read-iops-sec",
    "500",
    "--read-iops-sec-max",
    "900",
    "--read-iops-sec-max-length",
    "3",
    "--size-iops-sec",
    "8192",
    "--group-name",
    "gold",
];
const GOLD_READ: [(&str, &str); 5] = [
    ("group_name", "gold"),
    ("read_iops_sec", "500"),
    ("read_iops_sec_max", "900"),
    ("read_iops_sec_max_length", "3"),
    ("size_iops_sec", "8192"),
];

fn disk(workload: &str) -> DiskSpec {
    DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct(workload)
    }
}

fn guest(name: &str, mode: &str, knobs: &str) -> GuestSpec {
    let (mode, knobs) = (mode.to_owned(), knobs.to_owned());
    GuestSpec {
        opt_in: Some(OptIn { mode, knobs }),
        ..GuestSpec::new(name)
    }
}

/// The limits of a disk that are none, as virsh shows them.
fn limits(fixture: &Fixture, guest: &str, target: &str) -> BTreeMap<String, String> {
    let shown = fixture
        .virsh(&["blkdeviotune", guest, target, "--live"])
        .unwrap();
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
        let says_nothing = ["", "0"].contains(&&*value) || value.starts_with("/machine/");
        (!says_nothing).then_some((name, value))
    };
    shown.lines().filter_map(pair).collect()
}

fn read(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(own).collect()
}

/// Requests that a disk has completed.
fn requests(fixture: &Fixture, guest: &str, index: usize) -> u64 {
    let stats = fixture.virsh(&["domstats", "--block", guest]).unwrap();
    let of = |what: &str| {
        let name = format!("block.{index}.{what}.reqs=");
        let found = stats
            .lines()
            .find_map(|line| line.trim().strip_prefix(&name));
        found.unwrap().parse::<u64>().unwrap()
    };
    of("rd") + of("wr")
}

/// Requests per second of each disk, of guests by name and index, over some seconds.
fn iops(fixture: &Fixture, disks: &[(&str, usize)]) -> Vec<f64> {
    let count = || {
        disks
            .iter()
            .map(|(guest, index)| requests(fixture, guest, *index))
    };
    let (start, before) = (Instant::now(), count().collect::<Vec<_>>());
    sleep(Duration::from_secs(4));
    let after: Vec<u64> = count().collect();
    let seconds = start.elapsed().as_secs_f64();
    let rates = after.iter().zip(before);
    rates
        .map(|(after, before)| (after - before) as f64 / seconds)
        .collect()
}

/// Memory of a guest's QEMU in large private mappings, bytes: its caches are part of that from the moment
/// that they are opened, and stacks of its threads are not.
fn memory(fixture: &Fixture, guest: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/maps", fixture.guest(guest).pid)).unwrap();
    let size = |line: &str| {
        let mut words = line.split_whitespace();
        let (range, mode) = (words.next()?, words.next()?);
        let is_anonymous = words.nth(2) == Some("0") && words.next().is_none();
        let (start, end) = range.split_once('-')?;
        let at = |text: &str| u64::from_str_radix(text, 16).ok();
        let size = at(end)? - at(start)?;
        (is_anonymous && mode == "rw-p" && size >= 16 * MIB).then_some(size)
    };
    maps.lines().filter_map(size).sum()
}

struct Operated(Blkpilot);

impl Operated {
    fn new(fixture: &Fixture, tables: &str) -> Self {
        let tables = format!("{tables}\n[policy]\nbaseline = \"keep_default\"");
        let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
        Self(Blkpilot::new(binary, fixture, "interval = \"1s\"", &tables))
    }

    /// Starts the service and waits for its first window.
    fn serve(&mut self) -> u32 {
        let pid = self.0.serve();
        wait_until(|| self.0.run(&["disk", "list"]).status.success());
        pid
    }

    /// Again where a guest did not answer in time, which happens on a machine that is busy enough.
    fn done(&self, args: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.0.run(args);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            let problem = stderr(&output);
            let is_late = problem.contains("in time") && Instant::now() < deadline;
            assert!(is_late, "{args:?}: {problem}");
            sleep(Duration::from_millis(200));
        }
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.0.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        stderr(&output)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[args, &["--json"]].concat())).unwrap()
    }

    /// A setting of a disk as the service lists it.
    fn setting(&self, disk: &str, setting: &str) -> Value {
        let listed = self.json(&["disk", "list"]);
        let (guest, target) = disk.split_once('/').unwrap();
        let name = format!("hosts/local/guests/{guest}/disks/{target}");
        let disks = listed["disks"].as_array().unwrap();
        let disk = disks.iter().find(|disk| disk["name"] == name);
        let settings = disk.unwrap()["settings"].as_array().unwrap();
        settings
            .iter()
            .find(|known| known["setting"] == setting)
            .unwrap()
            .clone()
    }

    /// Journalled settings of disks.
    fn journal(&self) -> Vec<Value> {
        let listed = self.json(&["journal", "--config", "blkpilot.toml"]);
        let records = listed["records"].as_array().unwrap().iter();
        let is_setting = |record: &&Value| {
            let knob = record["knob"].as_str().unwrap();
            knob.ends_with("/throttle") || knob.ends_with("/qcow2-cache")
        };
        records.filter(is_setting).cloned().collect()
    }

    fn run_script(&self) -> Output {
        let script = self.done(&["rollback", "--all", "--script", "--config", "blkpilot.toml"]);
        fs::write(self.0.dir().join("undo.sh"), script).unwrap();
        let mut sh = Command::new("sh");
        sh.arg("undo.sh")
            .current_dir(self.0.dir())
            .output()
            .unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn wait_until(mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not so in {PATIENCE:?}");
        sleep(Duration::from_millis(200));
    }
}

/// What one journalled change costs, with all that is read for it.
fn measure(fixture: &Fixture, guest: &str) {
    let libvirt = Libvirt::connect(&fixture.uri()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tuner = Tuner::new(Journal::open(&dir.path().join("journal.db")).unwrap());
    let stats = libvirt.guest_stats().unwrap();
    let devices = Devices::default();
    let inventory = Inventory::read(
        &libvirt,
        "/proc".as_ref(),
        &stats,
        &GuestRules::default(),
        &devices,
    );
    let inventory = inventory.unwrap();
    let access = DiskAccess {
        hypervisor: &libvirt,
        running: inventory.by_name(guest).unwrap(),
        target: "vda",
        bounds: &DiskBounds::default(),
    };
    let cases = [
        ("total_iops_sec", ["5000", "6000"]),
        ("refcount-cache-size", ["1MiB", "2MiB"]),
    ];
    for (name, values) in cases {
        let mut times = vec![];
        for value in values.into_iter().cycle().take(MEASURED) {
            let named = [(name.to_owned(), value.to_owned())];
            let change = DiskChange::of(&named).unwrap().remove(0);
            let start = Instant::now();
            tuner.apply_to_disk(&access, &change).unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "{name}: changed in {:?}, journal and reading included (median of {MEASURED})",
            times[MEASURED / 2]
        );
    }
    let mut reads = vec![];
    for _ in 0..MEASURED {
        let start = Instant::now();
        libvirt.throttle(&access.running.guest.uuid, "vda").unwrap();
        reads.push(start.elapsed());
    }
    reads.sort();
    println!(
        "limits of a disk: read in {:?} (median of {MEASURED})",
        reads[MEASURED / 2]
    );
    tuner.rollback(&libvirt, &inventory, &Scope::Host).unwrap();
    assert_eq!(tuner.records().unwrap(), []);
}

#[test]
fn limits_and_caches_of_a_disk_are_changed_and_every_way_back_leads_home() {
    let workload = "rw=randread,bs=4k,iodepth=4,rate_iops=2000,size=16m";
    let qcow2 = DiskSpec {
        format: ImageFormat::Qcow2,
        ..disk(workload)
    };
    let web = guest("web", "advise", "cache throttle qcow2-cache");
    let web = web.with_disk(qcow2).with_disk(disk("idle"));
    let Some(fixture) = live::fixture("live_throttle", vec![web]) else {
        return;
    };
    fixture
        .virsh(&[&["blkdeviotune", "web", "vdb"], &GOLD[..], &["--live"]].concat())
        .unwrap();
    let gold = read(&GOLD_READ);
    assert_eq!(limits(&fixture, "web", "vdb"), gold);
    let nothing = BTreeMap::new();

    // Without consent nothing is written, nor beyond the bounds.
    let mut closed = Operated::new(&fixture, "[[guest]]\nname = \"web\"\nknobs = [\"cache\"]");
    closed.serve();
    let refused = closed.refused(&["disk", "set", "web/vda", "total_iops_sec=200"]);
    assert!(
        refused.contains("has not opted in to disk/vda/throttle"),
        "{refused}"
    );
    closed.0.kill();

    let bounds = "[host.throttle]\nleast_iops = 50\n[host.qcow2_cache]\nmost_mib = 48";
    let mut blkpilot = Operated::new(&fixture, bounds);
    blkpilot.serve();
    for (set, problem) in [
        ("total_iops_sec=49", "least_iops"),
        ("total_iops_sec_max=90", "needs total_iops_sec"),
        ("refcount-cache-size=49MiB", "most_mib"),
        ("l2-cache-size=64KiB", "[131072, 131072]"),
        ("cache=direct", "must be throttle or one of its limits"),
    ] {
        let refused = blkpilot.refused(&["disk", "set", "web/vda", set]);
        assert!(refused.contains(problem), "{set}: {refused}");
    }
    let raw = blkpilot.refused(&["disk", "set", "web/vdb", "l2-cache-size=128KiB"]);
    assert!(raw.contains("its image is raw"), "{raw}");
    let dry = blkpilot.json(&["disk", "set", "web/vdb", "read_iops_sec=300", "--dry-run"]);
    let planned = &dry["disks"][0]["settings"][0]["planned"];
    assert_eq!(
        planned,
        "read_iops_sec=300 size_iops_sec=8192 group_name=gold"
    );
    assert_eq!(limits(&fixture, "web", "vda"), nothing);
    assert_eq!(limits(&fixture, "web", "vdb"), gold);
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());

    // What is set is in force, as virsh and the requests have it.
    let free = iops(&fixture, &[("web", 0)])[0];
    blkpilot.done(&["disk", "set", "web/vda", "total_iops_sec=100"]);
    assert_eq!(
        limits(&fixture, "web", "vda"),
        read(&[("total_iops_sec", "100")])
    );
    let limited = iops(&fixture, &[("web", 0)])[0];
    println!("vda: {free:.0} requests per second, limited to 100: {limited:.0}");
    assert!(limited < 150.0 && free > limited, "{limited} of {free}");
    blkpilot.done(&["disk", "set", "web/vdb", "total_iops_sec=300"]);
    let ours = read(&[
        ("group_name", "gold"),
        ("size_iops_sec", "8192"),
        ("total_iops_sec", "300"),
    ]);
    assert_eq!(limits(&fixture, "web", "vdb"), ours);

    // Caches: QEMU's memory tells, and the cache strategy is another node's.
    let before = memory(&fixture, "web");
    let caches = [
        "refcount-cache-size=40MiB",
        "l2-cache-size=128KiB",
        "cache-clean-interval=600",
    ];
    blkpilot.done(&[&["disk", "set", "web/vda"], &caches[..]].concat());
    let with_caches = memory(&fixture, "web");
    println!(
        "qcow2 caches of 40 MiB: {} KiB more of QEMU's memory",
        with_caches.saturating_sub(before) >> 10
    );
    assert!(with_caches > before + 30 * MIB, "{before} to {with_caches}");
    assert!(is_direct(&fixture, "web").unwrap());
    blkpilot.0.set("web/vda:cache=buffered");
    assert!(!is_direct(&fixture, "web").unwrap());
    assert!(
        memory(&fixture, "web") > before + 30 * MIB,
        "the caches stay"
    );
    blkpilot.done(&["disk", "set", "web/vda", "cache-clean-interval=0"]);
    assert!(
        !is_direct(&fixture, "web").unwrap(),
        "and so does the cache strategy"
    );
    let cache = blkpilot.setting("web/vda", "qcow2-cache");
    assert_eq!(
        (&cache["current"], &cache["original"]),
        (
            &"l2-cache-size=131072 refcount-cache-size=41943040 cache-clean-interval=0".into(),
            &"as-booted".into()
        )
    );

    // `held`: just before.
    let is_freed = |held: u64, way: &str| {
        let now = memory(&fixture, "web");
        assert!(now + 24 * MIB < held, "{way}: {now} of {held}");
    };
    let home = |way: &str| {
        assert_eq!(limits(&fixture, "web", "vda"), nothing, "{way}");
        assert_eq!(limits(&fixture, "web", "vdb"), gold, "{way}");
    };
    let change_all = |blkpilot: &Operated| {
        blkpilot.done(
            &[
                &["disk", "set", "web/vda", "total_iops_sec=100"],
                &caches[..],
            ]
            .concat(),
        );
        blkpilot.done(&["disk", "set", "web/vdb", "total_iops_sec=300"]);
        assert_eq!(limits(&fixture, "web", "vdb"), ours);
    };
    // By the service, of one disk and of all.
    let held = memory(&fixture, "web");
    blkpilot.done(&["disk", "rollback", "web/vda"]);
    is_freed(held, "disk rollback");
    assert_eq!(limits(&fixture, "web", "vdb"), ours);
    blkpilot.done(&["rollback", "--all"]);
    home("rollback --all");
    assert!(is_direct(&fixture, "web").unwrap());
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());

    // Killed: by the script, then offline; and a start takes over what it finds.
    change_all(&blkpilot);
    blkpilot.0.kill();
    assert_eq!(blkpilot.journal().len(), 3);
    let held = memory(&fixture, "web");
    let undone = blkpilot.run_script();
    is_freed(held, "the script");
    assert!(undone.status.success(), "{}", stderr(&undone));
    home("the script");
    blkpilot.serve();
    blkpilot.done(&["rollback", "--all"]);
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());
    change_all(&blkpilot);
    blkpilot.0.kill();
    blkpilot.serve();
    assert_eq!(limits(&fixture, "web", "vdb"), ours);
    assert_eq!(blkpilot.journal().len(), 3);
    blkpilot.0.kill();
    let held = memory(&fixture, "web");
    blkpilot.done(&OFFLINE);
    is_freed(held, "offline");
    home("offline");

    // Somebody else.
    blkpilot.serve();
    change_all(&blkpilot);
    fixture
        .virsh(&[
            "blkdeviotune",
            "web",
            "vda",
            "--write-iops-sec",
            "700",
            "--live",
        ])
        .unwrap();
    let changed = Instant::now();
    wait_until(|| blkpilot.setting("web/vda", "throttle")["frozen"] == true);
    println!(
        "frozen {:?} after virsh blkdeviotune, at an interval of 1 s",
        changed.elapsed()
    );
    let refused = blkpilot.refused(&["disk", "set", "web/vda", "total_iops_sec=60"]);
    assert!(
        refused.contains("somebody else set write_iops_sec=700"),
        "{refused}"
    );
    blkpilot.refused(&["rollback", "--all"]);
    let theirs = read(&[("write_iops_sec", "700")]);
    assert_eq!(limits(&fixture, "web", "vda"), theirs);
    assert_eq!(limits(&fixture, "web", "vdb"), gold);
    blkpilot.done(&["unfreeze", "web/vda", "--knob", "throttle"]);
    blkpilot.done(&["disk", "set", "web/vda", "throttle=none"]);
    assert_eq!(limits(&fixture, "web", "vda"), nothing);
    blkpilot.done(&["disk", "rollback", "web/vda"]);
    assert_eq!(
        limits(&fixture, "web", "vda"),
        theirs,
        "what they chose is the original now"
    );
    blkpilot.0.kill();
    let lift = [
        "blkdeviotune",
        "web",
        "vda",
        "--write-iops-sec",
        "0",
        "--live",
    ];
    fixture.virsh(&lift).unwrap();
    measure(&fixture, "web");
}

#[test]
fn the_guard_limits_a_heavy_neighbour_with_a_reason_and_never_leaves_a_limit_behind() {
    let victim = guest("victim", "advise", "cache");
    let victim = victim.with_disk(disk("rw=randread,bs=4k,iodepth=1,size=16m"));
    let heavy = guest("heavy", "auto", "throttle");
    let heavy = heavy.with_disk(disk("rw=randread,bs=4k,iodepth=16,size=16m"));
    let Some(fixture) = live::fixture("live_neighbour", vec![victim, heavy]) else {
        return;
    };
    let nothing = BTreeMap::new();

    // What an operator's limit brings.
    let mut blkpilot = Operated::new(&fixture, "");
    blkpilot.serve();
    let disks = [("victim", 0), ("heavy", 0)];
    let free = iops(&fixture, &disks);
    blkpilot.done(&["disk", "set", "heavy/vda", "total_iops_sec=300"]);
    let limited = iops(&fixture, &disks);
    println!(
        "neighbour {:.0} to {:.0} requests per second, victim {:.0} to {:.0}: ×{:.2}",
        free[1],
        limited[1],
        free[0],
        limited[0],
        limited[0] / free[0]
    );
    assert!(
        limited[1] < 450.0 && limited[0] > free[0] * 0.8,
        "{free:?} to {limited:?}"
    );
    blkpilot.done(&["rollback", "--all"]);
    blkpilot.0.kill();

    // An objective that is always missed.
    let tables = "[[guest]]
name = \"victim\"
p99_objective_us = 1
[host.throttle]
least_iops = 200
[guard.neighbour]
windows = 3
step = 0.9
dominant_share = 0.1
pause = \"5s\"";
    let mut blkpilot = Operated::new(&fixture, tables);
    blkpilot.serve();
    let began = Instant::now();
    let deadline = began + PATIENCE;
    while limits(&fixture, "heavy", "vda") == nothing {
        assert!(Instant::now() < deadline, "{}", blkpilot.done(&["guests"]));
        sleep(Duration::from_millis(200));
    }
    println!(
        "limited after {:?} to {:?}",
        began.elapsed(),
        limits(&fixture, "heavy", "vda")
    );
    let mut shown = Value::Null;
    wait_until(|| {
        shown = blkpilot.setting("heavy/vda", "throttle");
        shown["guard_reason"] != ""
    });
    let reason = shown["guard_reason"].as_str().unwrap();
    println!("{reason}");
    assert!(
        reason.contains("victim/vda has missed its p99 of 1 µs"),
        "{reason}"
    );
    let listed = blkpilot.done(&["disk", "list"]);
    assert!(listed.contains("(by the guard)"), "{listed}");
    assert_eq!(limits(&fixture, "victim", "vda"), nothing);

    // Killed: nobody watches the limit, and the next service lifts it first of all.
    blkpilot.0.kill();
    assert_ne!(limits(&fixture, "heavy", "vda"), nothing);
    assert_eq!(blkpilot.journal().len(), 1);
    let pid = blkpilot.0.serve();
    wait_until(|| blkpilot.journal().is_empty());
    // It limits again by itself; stopped in an orderly way it leaves none, although it keeps settings.
    wait_until(|| limits(&fixture, "heavy", "vda") != nothing);
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    wait_until(|| !blkpilot.0.is_running());
    assert_eq!(limits(&fixture, "heavy", "vda"), nothing);
    assert_eq!(blkpilot.journal(), Vec::<Value>::new());
}
