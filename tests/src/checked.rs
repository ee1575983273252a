//! A workload that notices when a block is not what was written, and whether anything went wrong with it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fixture::{DiskSpec, Fixture, IoMode};

/// How long a guest may take to read its first block back, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A disk on which random blocks are written and each read back a tenth of a second later, until a checksum does
/// not fit.
#[must_use]
pub fn disk() -> DiskSpec {
    disk_at(2_000)
}

/// The same with at most so many writes per second.
#[must_use]
pub fn disk_at(writes_per_second: u32) -> DiskSpec {
    let backlog = writes_per_second / 10;
    let workload = format!(
        "rw=randwrite,bs=4k,iodepth=4,size=32m,norandommap=0,verify=crc32c,verify_backlog={backlog},\
         verify_fatal=1,rate_iops={writes_per_second}"
    );
    DiskSpec {
        io: IoMode::IoUring,
        size_mib: 64,
        ..DiskSpec::direct(&workload)
    }
}

/// Checks that neither QEMU, the guest's kernel nor its workload has seen an error, and that blocks have
/// been read back.
///
/// # Panics
/// When one has.
pub fn check(fixture: &Fixture, guest: &str) {
    let console = fixture.console(guest).expect("a guest has a console");
    let is_bad = |line: &&str| line.contains("fio failed") || line.contains("I/O error");
    let bad: Vec<&str> = console.lines().filter(is_bad).collect();
    assert!(bad.is_empty(), "{guest}: {bad:?}");
    let virsh = |args: &[&str]| fixture.virsh(args).expect("the guest runs");
    let errors = virsh(&["domblkerror", guest]);
    assert!(errors.contains("No errors found"), "{guest}: {errors}");
    let reads = || -> u64 {
        let stats = virsh(&["domblkstat", guest, "vda"]);
        let read = stats.lines().find(|line| line.contains("rd_req"));
        let read = read.and_then(|line| line.split_whitespace().last());
        read.and_then(|count| count.parse().ok())
            .expect("a disk has counters")
    };
    // They begin anew with a QEMU that was just started.
    let deadline = Instant::now() + PATIENCE;
    while reads() == 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(100));
    }
    let read = reads();
    assert!(read > 0, "{guest}: what was written has been read back");
}
