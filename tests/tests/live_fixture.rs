//! The live fixture does what it says: limits a device, survives libvirtd, leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec};
use blkpilot_tests::live;

const CAP_IOPS: u32 = 1_000;
const WINDOW: Duration = Duration::from_secs(2);

fn reads(fixture: &Fixture, guest: &str) -> u64 {
    let stats = fixture.virsh(&["domblkstat", guest, "vda"]).unwrap();
    let line = stats.lines().find(|line| line.contains("rd_req")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

fn read_iops(fixture: &Fixture, guest: &str) -> f64 {
    let (before, start) = (reads(fixture, guest), Instant::now());
    sleep(WINDOW);
    (reads(fixture, guest) - before) as f64 / start.elapsed().as_secs_f64()
}

#[test]
fn a_capped_guest_keeps_its_cap_and_libvirtd_may_crash_below_it() {
    let spec = GuestSpec::new("capped")
        .with_disk(DiskSpec::direct("rw=randread,bs=4k,iodepth=4,size=32m").capped(CAP_IOPS));
    let Some(mut fixture) = live::fixture("capped_guest", vec![spec]) else {
        return;
    };

    let iops = read_iops(&fixture, "capped");
    let cap = f64::from(CAP_IOPS);
    assert!(
        iops > 0.5 * cap && iops < 1.3 * cap,
        "{iops} IOPS on a device limited to {cap}"
    );

    fixture.kill_libvirtd();
    assert!(
        fixture.virsh(&["list"]).is_err(),
        "libvirtd answers after it was killed"
    );
    fixture.restart_libvirtd().unwrap();
    assert!(
        fixture
            .virsh(&["domstate", "capped"])
            .unwrap()
            .contains("running")
    );
    let pid = fixture.guest("capped").pid;
    assert!(Path::new(&format!("/proc/{pid}/task")).exists());

    let run_dir = fixture.run_dir().to_owned();
    let device = fixture.guest("capped").images[0].clone();
    drop(fixture);
    assert!(!run_dir.exists(), "{} is left", run_dir.display());
    let backing = Path::new("/sys/block")
        .join(device.file_name().unwrap())
        .join("loop/backing_file");
    assert!(!backing.exists(), "{} is still attached", device.display());
    let tasks = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(tasks.is_empty(), "QEMU still runs: {tasks}");
}
