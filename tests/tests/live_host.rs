//! The live host on real guests: what it reads, what each knob does, and that all of it goes back.
//! What is checked is read by other means than the code under test uses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_env::conformance::{self, Demands};
use blkpilot_env::observation::{MaskReason, Validity};
use blkpilot_env::sample::{Cache, DiskSample, HostSample};
use blkpilot_env::window::DiskWindow;
use blkpilot_host::{
    BootClock, Change, HostError, Hypervisor, Knob, Libvirt, LiveHost, LiveHostConfig, Outcome,
    Scope, Settlement, Way,
};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode, preset};
use blkpilot_tests::live;
use blkpilot_tests::reading::{affinity, is_direct, poll_max_ns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const WINDOW: Duration = Duration::from_secs(2);
const CAP_IOPS: u32 = 1_000;

/// A guest with a disk for each knob: vda can be buffered, vdb runs under native AIO.
fn tunable() -> GuestSpec {
    let capped = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=4,size=16m").capped(CAP_IOPS)
    };
    GuestSpec::new("tunable")
        .with_disk(capped)
        .with_disk(DiskSpec::direct(
            "rw=randwrite,bs=4k,rate_iops=100,size=16m",
        ))
}

fn open(fixture: &Fixture, dir: &Path) -> (LiveHost, Vec<Outcome>) {
    let uri = fixture.uri();
    let connector = move || Ok(Arc::new(Libvirt::connect(&uri)?) as Arc<dyn Hypervisor>);
    let config = LiveHostConfig {
        interval: Duration::from_millis(400),
        ..LiveHostConfig::new(dir.join("journal.db"))
    };
    LiveHost::open(config, Box::new(connector), Box::new(BootClock)).unwrap()
}

fn disk<'a>(sample: &'a HostSample, id: &str) -> &'a DiskSample {
    sample.disks.iter().find(|disk| disk.id == id).unwrap()
}

fn window(host: &mut LiveHost, id: &str) -> DiskWindow {
    let before = host.sample().unwrap();
    sleep(WINDOW);
    let after = host.sample().unwrap();
    let span_s = (after.at - before.at).as_secs_f64();
    DiskWindow::between(disk(&before, id), disk(&after, id), span_s)
}

/// Whether libvirt noted that somebody used the guest's monitor.
fn is_tainted(fixture: &Fixture, guest: &str) -> bool {
    let log = fs::read_to_string(fixture.run_dir().join(format!("log/qemu/{guest}.log"))).unwrap();
    log.contains("tainted: custom-monitor")
}

fn all_cpus() -> String {
    fs::read_to_string("/sys/devices/system/cpu/online")
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn knobs_turn_on_a_real_guest_survive_libvirtd_and_go_back() {
    let guests = vec![tunable(), preset("bystander").unwrap()];
    let Some(mut fixture) = live::fixture("live_host_knobs", guests) else {
        return;
    };
    let bystander_xml = fixture.virsh(&["dumpxml", "bystander"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut host, outcomes) = open(&fixture, dir.path());
    assert_eq!(
        outcomes
            .into_iter()
            .filter(|o| !matches!(o.result, Settlement::Kept { .. }))
            .count(),
        0
    );

    // What it reads.
    let sample = host.sample().unwrap();
    let ids: Vec<&str> = sample.disks.iter().map(|disk| disk.id.as_str()).collect();
    assert_eq!(
        ids,
        ["tunable/vda", "tunable/vdb"],
        "only guests that opted in are managed"
    );
    assert_eq!(
        disk(&sample, "tunable/vda").settings,
        disk(&sample, "tunable/vda").default
    );
    let direct = window(&mut host, "tunable/vda");
    let cap = f64::from(CAP_IOPS);
    let iops = direct.iops.unwrap();
    assert!(iops > 0.5 * cap && iops < 1.3 * cap, "{direct:?}");
    let (p99, mean) = (
        direct.latency_us_p99.unwrap(),
        direct.latency_us_mean.unwrap(),
    );
    assert!(p99 > 0.5 * mean, "p99 {p99} µs against a mean of {mean} µs");
    assert!(direct.iothread_cores.unwrap() > 0.0 && direct.run_delay.is_ok());

    // Each knob, checked by other means.
    let (uuid, pid) = (
        fixture.guest("tunable").uuid.clone(),
        fixture.guest("tunable").pid,
    );
    let last_core = host.channels().list().last().unwrap().cpus.clone();
    host.apply_change(
        &uuid,
        &Change::Channel {
            iothread: 1,
            cpus: last_core.clone(),
        },
    )
    .unwrap();
    assert_eq!(affinity(pid, "IO iothread1"), last_core.to_string());
    host.apply_change(
        &uuid,
        &Change::Polling {
            iothread: 1,
            poll_max_ns: 0,
        },
    )
    .unwrap();
    assert_eq!(poll_max_ns(&fixture, "tunable").unwrap(), "0");
    assert!(is_direct(&fixture, "tunable").unwrap());
    host.apply_change(
        &uuid,
        &Change::Cache {
            target: "vda".into(),
            cache: Cache::Buffered,
        },
    )
    .unwrap();
    assert!(!is_direct(&fixture, "tunable").unwrap());
    let native = Change::Cache {
        target: "vdb".into(),
        cache: Cache::Buffered,
    };
    assert!(
        host.apply_change(&uuid, &native)
            .unwrap_err()
            .to_string()
            .contains("aio=native")
    );

    // What it brings: a working set that fits in the page cache no longer waits for the device.
    let mut best = 0.0_f64;
    for _ in 0..5 {
        best = best.max(window(&mut host, "tunable/vda").iops.unwrap());
    }
    assert!(
        best > 2.0 * cap,
        "buffered {best} IOPS on a device limited to {cap}"
    );
    let sample = host.sample().unwrap();
    assert_eq!(disk(&sample, "tunable/vda").settings.levels()[1..], [1, 0]);
    assert!(
        disk(&sample, "tunable/vda")
            .cached_bytes
            .is_ok_and(|bytes| bytes > 8 << 20)
    );

    // The guest that did not opt in is as it was. (Later libvirtd itself drops an alias from it.)
    assert_eq!(
        fixture.virsh(&["dumpxml", "bystander"]).unwrap(),
        bystander_xml
    );

    // A crash of ours and of libvirtd between change and rollback.
    drop(host);
    fixture.kill_libvirtd();
    fixture.restart_libvirtd().unwrap();
    let (mut host, outcomes) = open(&fixture, dir.path());
    let kept = outcomes
        .iter()
        .filter(|outcome| matches!(outcome.result, Settlement::Kept { .. }))
        .count();
    // Three knobs, and perhaps histograms.
    assert!(kept >= 3 && kept == outcomes.len(), "{outcomes:?}");
    let outcomes = host.rollback(&Scope::Host).unwrap();
    assert!(
        outcomes.len() >= 3
            && outcomes
                .iter()
                .all(|o| matches!(o.result, Settlement::Restored { .. })),
        "{outcomes:?}"
    );
    assert_eq!(affinity(pid, "IO iothread1"), all_cpus());
    assert_eq!(poll_max_ns(&fixture, "tunable").unwrap(), "32768");
    assert!(is_direct(&fixture, "tunable").unwrap());
    assert_eq!(host.records().unwrap(), []);

    // Nobody used the monitor of the guest that did not opt in, and nobody can.
    assert!(is_tainted(&fixture, "tunable") && !is_tainted(&fixture, "bystander"));
    let refused = Change::Channel {
        iothread: 1,
        cpus: last_core,
    };
    let bystander = fixture.guest("bystander").uuid.clone();
    assert!(
        host.apply_change(&bystander, &refused)
            .unwrap_err()
            .to_string()
            .contains("opted in")
    );

    // A CPU that the other guest has for itself is closed to this one. Its XML is read now and then.
    let cpu = host.channels().list().last().unwrap().cpus.iter().next();
    let cpu = cpu.unwrap().to_string();
    fixture.virsh(&["vcpupin", "bystander", "0", &cpu]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let sample = host.sample().unwrap();
        let channels = &disk(&sample, "tunable/vda").masks.channel;
        if channels.last() == Some(&MaskReason::DedicatedCpu) {
            assert_eq!(channels[0], MaskReason::Allowed);
            break;
        }
        assert!(Instant::now() < deadline, "{channels:?}");
        sleep(Duration::from_millis(500));
    }
}

#[test]
fn changes_by_others_freeze_a_knob_and_a_restarted_guest_starts_afresh() {
    let Some(mut fixture) = live::fixture("live_host_freeze", vec![tunable()]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (mut host, _) = open(&fixture, dir.path());
    let uuid = fixture.guest("tunable").uuid.clone();
    let cores: Vec<_> = host
        .channels()
        .list()
        .iter()
        .map(|channel| channel.cpus.clone())
        .collect();
    host.apply_change(
        &uuid,
        &Change::Channel {
            iothread: 1,
            cpus: cores[0].clone(),
        },
    )
    .unwrap();

    let theirs = cores.last().unwrap().to_string();
    fixture
        .virsh(&["iothreadpin", "tunable", "1", &theirs])
        .unwrap();
    if cores.len() > 1 {
        let outcomes = host
            .rollback(&Scope::Knob(uuid.clone(), Knob::Channel { iothread: 1 }))
            .unwrap();
        assert_eq!(
            outcomes[0].result,
            Settlement::Frozen {
                found: theirs.clone(),
                way: Way::Unknown,
            }
        );
        assert_eq!(
            affinity(fixture.guest("tunable").pid, "IO iothread1"),
            theirs
        );
    }

    fixture.power_cycle("tunable").unwrap();
    let outcomes = host.rollback(&Scope::Host).unwrap();
    let moot = outcomes
        .iter()
        .filter(|outcome| outcome.result == Settlement::Moot)
        .count();
    assert!(moot >= 1, "{outcomes:?}");
    assert_eq!(
        affinity(fixture.guest("tunable").pid, "IO iothread1"),
        all_cpus()
    );

    fixture.stop_guest("tunable").unwrap();
    assert!(
        host.sample().unwrap().disks.is_empty(),
        "a guest that is gone is no longer shown"
    );
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

#[test]
fn a_guest_that_hangs_delays_nobody_and_comes_back() {
    let stuck = GuestSpec::new("stuck")
        .with_disk(DiskSpec::direct("rw=randread,bs=4k,rate_iops=200,size=16m"));
    let Some(fixture) = live::fixture("live_host_hang", vec![tunable(), stuck]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (mut host, _) = open(&fixture, dir.path());
    let (uuid, pid) = (
        fixture.guest("stuck").uuid.clone(),
        fixture.guest("stuck").pid,
    );
    let polling = |poll_max_ns| Change::Polling {
        iothread: 1,
        poll_max_ns,
    };
    // On a busy machine its first answer may come late too.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = host.apply_change(&uuid, &polling(0)) {
        let is_late = matches!(error, HostError::Late { .. }) && Instant::now() < deadline;
        assert!(is_late, "{error}");
        host.sample().unwrap();
    }
    host.sample().unwrap();

    signal(pid, Signal::SIGSTOP);
    let mut reads = 0;
    for _ in 0..4 {
        let start = Instant::now();
        let sample = host.sample().unwrap();
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(3),
            "a sample took {took:?} beside a guest that hangs"
        );
        assert_eq!(
            disk(&sample, "stuck/vda").latency_counts,
            Err(Validity::Stale)
        );
        let now = disk(&sample, "tunable/vda").reads.requests;
        assert!(now > reads, "the other guest is still seen to work");
        reads = now;
        sleep(Duration::from_millis(200));
    }
    let refused = host.apply_change(&uuid, &polling(4096)).unwrap_err();
    assert!(matches!(refused, HostError::Late { .. }), "{refused}");

    signal(pid, Signal::SIGCONT);
    let deadline = Instant::now() + Duration::from_secs(20);
    while disk(&host.sample().unwrap(), "stuck/vda")
        .latency_counts
        .is_err()
    {
        assert!(Instant::now() < deadline, "the guest did not come back");
        sleep(Duration::from_millis(200));
    }
    let outcomes = host.rollback(&Scope::Guest(uuid)).unwrap();
    assert!(
        !outcomes.is_empty()
            && outcomes
                .iter()
                .all(|o| matches!(o.result, Settlement::Restored { .. })),
        "{outcomes:?}"
    );
    assert_eq!(poll_max_ns(&fixture, "stuck").unwrap(), "32768");
}

#[test]
fn the_live_host_conforms_to_the_contract() {
    let guests = vec![tunable(), preset("shared-iothread").unwrap()];
    let Some(fixture) = live::fixture("live_host_conformance", guests) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut journals = 0;
    let make = || {
        journals += 1;
        let journal = dir.path().join(journals.to_string());
        fs::create_dir(&journal).unwrap();
        open(&fixture, &journal).0
    };
    conformance::check(
        make,
        Demands {
            is_deterministic: false,
            steps: 8,
        },
    )
    .unwrap();
}
