//! Where the cache strategy is dangerous, measured on guests: reads that miss the page cache under each kind
//! of `aio`, beside an innocent disk on the same IOThread; and how long a disk stands still that goes over to
//! direct with dirty pages, with and without write-back from outside.
//!
//! `BLKPILOT_CACHE_FULL=1` measures with full windows and up to 2 GiB; without, it is small.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use blkpilot_env::observation::MaskReason;
use blkpilot_env::sample::{Cache, DiskSample, HostSample};
use blkpilot_env::window::DiskWindow;
use blkpilot_host::cachestat::cached_bytes;
use blkpilot_host::qmp::node_options;
use blkpilot_host::{
    BootClock, Change, HostError, Hypervisor, Libvirt, LiveHost, LiveHostConfig, Scope, Settlement,
    WriteBackLimits,
};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode, IoThreads};
use blkpilot_tests::live;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::json;

const GUEST: &str = "cached";
const MIB: u64 = 1 << 20;
/// An innocent disk whose p99 rises by as much must not be served beside a buffered one.
const DANGEROUS: f64 = 3.0;

fn is_full() -> bool {
    std::env::var_os("BLKPILOT_CACHE_FULL").is_some_and(|value| value == "1")
}

fn by_size<T>(small: T, full: T) -> T {
    if is_full() { full } else { small }
}

fn open(fixture: &Fixture, journal: &Path, write_back: WriteBackLimits) -> LiveHost {
    let uri = fixture.uri();
    let connector = move || Ok(Arc::new(Libvirt::connect(&uri)?) as Arc<dyn Hypervisor>);
    let config = LiveHostConfig {
        write_back,
        ..LiveHostConfig::new(journal.to_owned())
    };
    LiveHost::open(config, Box::new(connector), Box::new(BootClock))
        .unwrap()
        .0
}

fn to(cache: Cache) -> Change {
    Change::Cache {
        target: "vda".into(),
        cache,
    }
}

/// The options of the node that opens the first disk's image, as QEMU was started with.
fn reopen_command(fixture: &Fixture, is_direct: bool) -> String {
    let guest = fixture.guest(GUEST);
    let command_line = fs::read(format!("/proc/{}/cmdline", guest.pid)).unwrap();
    let image = guest.images[0].display().to_string();
    let mut nodes = node_options(&command_line).into_values();
    let mut options = nodes.find(|node| node["filename"] == image).unwrap();
    options["cache"] = json!({ "direct": is_direct, "no-flush": false });
    json!({ "execute": "blockdev-reopen", "arguments": { "options": [options] } }).to_string()
}

/// Reopens the first disk past blkpilot, and says how long that took.
fn reopen(fixture: &Fixture, libvirt: &Libvirt, is_direct: bool) -> Duration {
    let command = reopen_command(fixture, is_direct);
    let start = Instant::now();
    let reply = libvirt.monitor(&fixture.guest(GUEST).uuid, &command);
    assert!(reply.unwrap().contains("return"));
    start.elapsed()
}

// Misses.

fn disk<'a>(sample: &'a HostSample, target: &str) -> &'a DiskSample {
    let id = format!("{GUEST}/{target}");
    sample.disks.iter().find(|disk| disk.id == id).unwrap()
}

/// As [`open`], with latencies counted: a guest that was too slow to begin with that when the host was opened,
/// as it may be while it boots on a busy machine, is not asked again.
fn open_counting(
    fixture: &Fixture,
    journal: &Path,
    write_back: WriteBackLimits,
    disks: usize,
) -> LiveHost {
    for _ in 0..12 {
        let mut host = open(fixture, journal, write_back);
        for _ in 0..50 {
            if counted(&host.sample().unwrap()) == disks {
                return host;
            }
            sleep(Duration::from_millis(100));
        }
    }
    panic!("the guest does not answer");
}

fn counted(sample: &HostSample) -> usize {
    let counts = |disk: &&DiskSample| disk.latency_counts.is_ok();
    sample.disks.iter().filter(counts).count()
}

/// A sample in which the guest, which is slow to answer on a busy machine, has told of all its disks.
fn sample(host: &mut LiveHost, disks: usize) -> HostSample {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let sample = host.sample().unwrap();
        if counted(&sample) == disks {
            return sample;
        }
        assert!(Instant::now() < deadline, "the guest does not answer");
        sleep(Duration::from_millis(50));
    }
}

/// The disk and its innocent neighbour.
fn windows(host: &mut LiveHost, length: Duration) -> [DiskWindow; 2] {
    let before = sample(host, 2);
    sleep(length);
    let after = sample(host, 2);
    let span_s = (after.at - before.at).as_secs_f64();
    ["vda", "vdb"]
        .map(|target| DiskWindow::between(disk(&before, target), disk(&after, target), span_s))
}

/// Drops what the page cache has of the first disk.
fn drop_cached(fixture: &Fixture) {
    let file = fs::File::open(&fixture.guest(GUEST).images[0]).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn p99_us(window: &DiskWindow) -> f64 {
    window.latency_us_p99.unwrap_or(f64::NAN)
}

#[test]
fn misses_hold_nobody_up_where_buffered_is_open() {
    let (size_mib, iops) = by_size((128, 500), (512, 1000));
    let length = by_size(Duration::from_secs(3), Duration::from_secs(10));
    println!(
        "Random reads of 4 KiB at QD 16 that miss the page cache, device limited to {iops} IOPS; on the same\nIOThread an innocent disk, 50 reads/s, direct on a file.\n"
    );
    println!(
        "{:<9} {:<9} {:>7} {:>9} {:>10} {:>11}  buffered is",
        "aio", "cache", "IOPS", "p99, µs", "innocent", "its p99, µs"
    );
    for io in [IoMode::Native, IoMode::Threads, IoMode::IoUring] {
        let guest = GuestSpec {
            iothreads: IoThreads::Shared,
            ..GuestSpec::new(GUEST)
        };
        let busy = DiskSpec {
            size_mib,
            io,
            ..DiskSpec::direct("rw=randread,bs=4k,iodepth=16").capped(iops)
        };
        let innocent = DiskSpec {
            io,
            ..DiskSpec::direct("rw=randread,bs=4k,rate_iops=50")
        };
        let guest = guest.with_disk(busy).with_disk(innocent);
        let Some(fixture) = live::fixture("live_cache_misses", vec![guest]) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal.db");
        let mut host = open_counting(&fixture, &journal, WriteBackLimits::default(), 2);
        let libvirt = Libvirt::connect(&fixture.uri()).unwrap();
        windows(
            &mut host,
            by_size(Duration::from_secs(1), Duration::from_secs(5)),
        );
        let mask = disk(&sample(&mut host, 2), "vda").masks.cache[1];
        let mut innocent_p99 = Vec::new();
        for is_direct in [true, false] {
            if !is_direct {
                reopen(&fixture, &libvirt, false);
            }
            drop_cached(&fixture);
            let [busy, innocent] = windows(&mut host, length);
            let reads = busy.iops.unwrap();
            // The limit lets a burst pass; what comes from the page cache is far above it.
            assert!(
                reads > 0.0 && reads < 2.0 * f64::from(iops),
                "{io:?}: {reads} reads per second are no misses of a device limited to {iops}"
            );
            innocent_p99.push(p99_us(&innocent));
            println!(
                "{:<9} {:<9} {reads:>7.0} {:>9.0} {:>10.1} {:>11.0}  {mask:?}",
                format!("{io:?}").to_lowercase(),
                if is_direct { "direct" } else { "buffered" },
                p99_us(&busy),
                innocent.iops.unwrap(),
                p99_us(&innocent),
            );
        }
        assert_eq!(mask == MaskReason::AioNative, io == IoMode::Native);
        let rise = innocent_p99[1] / innocent_p99[0];
        // In small windows a handful of reads are the p99 of a disk that does 50 per second.
        assert!(
            !is_full() || !mask.is_allowed() || rise < DANGEROUS,
            "{io:?}: the innocent disk's p99 rises {rise:.1} times, and buffered is open"
        );
    }
}

// The stall.

/// Completed requests of the first disk, read every few milliseconds until it is ended.
struct Watch {
    is_over: Arc<AtomicBool>,
    readings: thread::JoinHandle<Vec<(Instant, u64)>>,
}

impl Watch {
    fn begin(fixture: &Fixture) -> Self {
        let libvirt = Libvirt::connect(&fixture.uri()).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_over);
        let read = move || {
            let mut readings = Vec::new();
            while !theirs.load(Ordering::Relaxed) {
                let stats = libvirt.guest_stats().unwrap_or_default();
                let disk = stats.first().and_then(|guest| guest.disks.first());
                if let Some(counters) = disk.and_then(|disk| disk.counters) {
                    let done = counters.reads.requests + counters.writes.requests;
                    readings.push((Instant::now(), done));
                }
                sleep(Duration::from_millis(5));
            }
            readings
        };
        let readings = thread::spawn(read);
        Self { is_over, readings }
    }

    /// The longest time between two completions that were seen from `since` on, and how many there were in
    /// all. While a reopen flushes nobody is told anything: completions in that time would be seen at once
    /// after it.
    fn end(self, since: Instant) -> (Duration, u64) {
        self.is_over.store(true, Ordering::Relaxed);
        let mut readings = self.readings.join().unwrap();
        let before = readings.partition_point(|(at, _)| *at < since);
        readings.drain(..before.saturating_sub(1));
        let mut longest = Duration::ZERO;
        let mut last = readings[0];
        for reading in &readings {
            if reading.1 > last.1 {
                longest = longest.max(reading.0 - last.0);
                last = *reading;
            }
        }
        (longest, last.1 - readings[0].1)
    }
}

/// Waits until the guest has done its boot and works at its pace: before that its QEMU is busy with
/// translating code, and slow to answer.
fn settle(fixture: &Fixture) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (watch, start) = (Watch::begin(fixture), Instant::now());
        sleep(Duration::from_secs(2));
        let (gap, completions) = watch.end(start);
        if completions > 1000 && gap < Duration::from_millis(250) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{completions} requests in 2 s, a gap of {gap:?}"
        );
    }
}

/// Makes so much of the disk dirty that the guest does not use, and says how much is.
fn make_dirty(fixture: &Fixture, bytes: u64) -> u64 {
    let image = &fixture.guest(GUEST).images[0];
    let file = OpenOptions::new().write(true).open(image).unwrap();
    let block = vec![7; MIB as usize];
    for offset in 0..bytes / MIB {
        file.write_all_at(&block, (16 + offset) * MIB).unwrap();
    }
    // Kernels before 6.5 do not tell.
    cached_bytes(image).map_or(bytes, |counts| counts.dirty) / MIB
}

/// Reads what the guest reads, so that it is in the page cache.
fn warm(fixture: &Fixture) {
    let file = fs::File::open(&fixture.guest(GUEST).images[0]).unwrap();
    let mut block = vec![0; 8 * MIB as usize];
    file.read_exact_at(&mut block, 0).unwrap();
}

struct Going {
    /// When it was asked for, as the kernel tells; the kernel begins to write back by itself.
    dirty_mib: u64,
    /// Of the call that reopened.
    reopen: Duration,
    /// From the first request on.
    total: Duration,
    longest_gap: Duration,
    completions: u64,
}

/// Goes over to direct at once, as QEMU does it by itself.
fn go_at_once(fixture: &Fixture, dirty: u64) -> Going {
    let libvirt = Libvirt::connect(&fixture.uri()).unwrap();
    reopen(fixture, &libvirt, false);
    warm(fixture);
    let watch = Watch::begin(fixture);
    let dirty_mib = make_dirty(fixture, dirty);
    let start = Instant::now();
    let reopen = reopen(fixture, &libvirt, true);
    sleep(Duration::from_millis(300));
    let (longest_gap, completions) = watch.end(start);
    Going {
        dirty_mib,
        reopen,
        total: reopen,
        longest_gap,
        completions,
    }
}

/// Goes over to direct as blkpilot does.
fn go_written_back(fixture: &Fixture, host: &mut LiveHost, dirty: u64) -> Going {
    let uuid = fixture.guest(GUEST).uuid.clone();
    host.apply_change(&uuid, &to(Cache::Buffered)).unwrap();
    warm(fixture);
    let watch = Watch::begin(fixture);
    let dirty_mib = make_dirty(fixture, dirty);
    let start = Instant::now();
    let reopen = loop {
        let began = Instant::now();
        match host.apply_change(&uuid, &to(Cache::Direct)) {
            Ok(_) => break began.elapsed(),
            Err(HostError::WritingBack { .. }) => sleep(Duration::from_millis(100)),
            Err(error) => panic!("{error}"),
        }
    };
    let total = start.elapsed();
    sleep(Duration::from_millis(300));
    let (longest_gap, completions) = watch.end(start);
    host.rollback(&Scope::GuestSettings(uuid)).unwrap();
    Going {
        dirty_mib,
        reopen,
        total,
        longest_gap,
        completions,
    }
}

#[test]
fn a_disk_with_dirty_pages_is_served_while_they_are_written_back() {
    let (dirty_mib, iops) = by_size((vec![0, 128], 8_000), (vec![0, 256, 2048], 20_000));
    let most = *dirty_mib.last().unwrap();
    let guest = GuestSpec::new(GUEST).with_disk(DiskSpec {
        size_mib: 16 + most as u32,
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randrw,rwmixread=90,bs=4k,iodepth=4,rate_iops=1000,size=8m")
            .capped(iops)
    });
    let Some(fixture) = live::fixture("live_cache_stall", vec![guest]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    println!(
        "Going from buffered to direct with dirty pages, device limited to {iops} IOPS (of 4 KiB: {} MiB/s),\nwhile the guest does 900 reads and 100 writes of 4 KiB per second in 8 MiB. Call: the one that reopens; of\nblkpilot with journal and read-back.\n",
        iops / 256
    );
    println!(
        "{:<12} {:<7} {:<13} {:>11} {:>15} {:>16} {:>13}",
        "written, MiB",
        "dirty",
        "written back",
        "call, ms",
        "to direct, ms",
        "longest gap, ms",
        "completions"
    );
    settle(&fixture);
    let mut reopens = BTreeMap::new();
    for dirty in dirty_mib {
        for is_written_back in [false, true] {
            let going = if is_written_back {
                let journal = dir.path().join("journal.db");
                let mut host = open(&fixture, &journal, WriteBackLimits::default());
                go_written_back(&fixture, &mut host, dirty * MIB)
            } else {
                go_at_once(&fixture, dirty * MIB)
            };
            println!(
                "{dirty:<12} {:<7} {:<13} {:>11} {:>15} {:>16} {:>13}",
                going.dirty_mib,
                if is_written_back {
                    "by blkpilot"
                } else {
                    "by QEMU"
                },
                going.reopen.as_millis(),
                going.total.as_millis(),
                going.longest_gap.as_millis(),
                going.completions,
            );
            reopens.insert((dirty, is_written_back), going);
        }
    }
    let (alone, ours) = (&reopens[&(most, false)], &reopens[&(most, true)]);
    assert!(
        2 * ours.longest_gap < alone.longest_gap,
        "a gap of {:?}, and of {:?} when QEMU writes back by itself",
        ours.longest_gap,
        alone.longest_gap
    );
    // What is written back the device takes no faster than without.
    assert!(ours.completions > alone.completions);
    println!();
}

#[test]
fn a_guest_that_writes_as_fast_as_its_device_stays_buffered_and_is_rolled_back_all_the_same() {
    let guest = GuestSpec::new(GUEST).with_disk(DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randwrite,bs=4k,iodepth=8,size=1m").capped(60)
    });
    let Some(fixture) = live::fixture("live_cache_heavy", vec![guest]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let limits = WriteBackLimits {
        patience: Duration::from_secs(4),
        way_back: Duration::from_secs(1),
        ..WriteBackLimits::default()
    };
    let mut host = open_counting(&fixture, &dir.path().join("journal.db"), limits, 1);
    let uuid = fixture.guest(GUEST).uuid.clone();
    host.apply_change(&uuid, &to(Cache::Buffered)).unwrap();
    let mask_of = |host: &mut LiveHost| disk(&sample(host, 1), "vda").masks.cache;
    let refused = host.apply_change(&uuid, &to(Cache::Direct)).unwrap_err();
    assert!(
        matches!(refused, HostError::WritingBack { .. }),
        "{refused}"
    );
    assert_eq!(
        mask_of(&mut host),
        [MaskReason::WritingBack, MaskReason::Allowed]
    );
    let given_up = loop {
        match host.apply_change(&uuid, &to(Cache::Direct)).unwrap_err() {
            HostError::WritingBack { .. } => sleep(Duration::from_millis(100)),
            other => break other,
        }
    };
    assert!(
        matches!(given_up, HostError::WritesTooFast { .. }),
        "{given_up}"
    );
    println!("given up: {given_up}");
    let seen = sample(&mut host, 1);
    assert_eq!(disk(&seen, "vda").settings.cache, Cache::Buffered);
    assert_eq!(disk(&seen, "vda").masks.cache[0], MaskReason::WritesTooFast);
    host.take_notes();
    let outcomes = host.rollback(&Scope::GuestSettings(uuid)).unwrap();
    let is_back = |result: &Settlement| matches!(result, Settlement::Restored { .. });
    assert!(
        outcomes.iter().all(|outcome| is_back(&outcome.result)),
        "{outcomes:?}"
    );
    let notes = host.take_notes();
    assert!(
        notes.iter().any(|note| note.contains("stands still")),
        "{notes:?}"
    );
    println!("rolled back: {}\n", notes.join("; "));
    assert!(blkpilot_tests::reading::is_direct(&fixture, GUEST).unwrap());
}
