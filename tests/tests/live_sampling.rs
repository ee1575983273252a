//! What a sample of many guests costs: wall time, own CPU, libvirtd's and QEMU's, and how it grows;
//! beside it `virsh domstats` of the same guests in the same run.
//!
//! `BLKPILOT_SAMPLED_GUESTS` says how many guests there are in the end, `BLKPILOT_SAMPLES` how many samples
//! are taken at each number of guests; without, a few.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_host::{BootClock, Hypervisor, Libvirt, LiveHost, LiveHostConfig};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec};
use blkpilot_tests::live;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

const FEW_GUESTS: usize = 3;
const FEW_SAMPLES: u32 = 5;
/// The interval between samples, for which the shares of a core are given.
const INTERVAL: Duration = Duration::from_secs(1);

/// Every second guest is busy, as far as a machine that emulates them all can bear it.
fn guest(number: usize) -> GuestSpec {
    let workload = if number.is_multiple_of(2) {
        "idle"
    } else {
        "rw=randrw,bs=4k,rate_iops=20,size=8m"
    };
    let disk = DiskSpec {
        size_mib: 8,
        ..DiskSpec::direct(workload)
    };
    GuestSpec::new(&format!("sampled-{number}")).with_disk(disk)
}

fn from_env(name: &str, few: usize) -> usize {
    std::env::var(name).map_or(few, |n| n.parse().unwrap())
}

/// CPU time that the threads of a process have had, from the kernel's scheduler.
fn cpu_of(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // A thread may end while it is looked at.
    let times = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    let nanoseconds = times.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap());
    Duration::from_nanos(nanoseconds.sum())
}

/// CPU time of this process, or of the commands that it has waited for.
fn own_cpu(who: UsageWho) -> Duration {
    let usage = getrusage(who).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap())
}

/// CPU time of QEMU's main threads, which answer the monitor; the guests' own work is in others.
fn emulators_cpu(fixture: &Fixture) -> Duration {
    let of = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    fixture.guests().iter().map(|guest| of(guest.pid)).sum()
}

/// What so many repetitions took, each in the mean but for the wall time.
struct Cost {
    median_wall: Duration,
    worst_wall: Duration,
    own: Duration,
    libvirtd: Duration,
    emulators: Duration,
}

impl Cost {
    /// Of doing something once per interval. `who` does it.
    fn of(fixture: &Fixture, times: u32, who: UsageWho, mut act: impl FnMut()) -> Self {
        let pid = fs::read_to_string(fixture.run_dir().join("libvirtd.pid")).unwrap();
        let pid = pid.trim().parse().unwrap();
        let read = || (own_cpu(who), cpu_of(pid), emulators_cpu(fixture));
        let before = read();
        let mut walls = vec![];
        for _ in 0..times {
            let start = Instant::now();
            act();
            walls.push(start.elapsed());
            sleep(INTERVAL.saturating_sub(start.elapsed()));
        }
        let after = read();
        walls.sort();
        Self {
            median_wall: walls[walls.len() / 2],
            worst_wall: *walls.last().unwrap(),
            own: (after.0 - before.0) / times,
            libvirtd: (after.1 - before.1) / times,
            emulators: (after.2 - before.2) / times,
        }
    }

    fn print(&self, guests: usize, what: &str) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "{guests:>6}  {what:<14} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
            ms(self.median_wall),
            ms(self.worst_wall),
            ms(self.own),
            ms(self.libvirtd),
            ms(self.emulators)
        );
    }
}

fn open(fixture: &Fixture, dir: &Path) -> LiveHost {
    let uri = fixture.uri();
    let connector = move || Ok(Arc::new(Libvirt::connect(&uri)?) as Arc<dyn Hypervisor>);
    let config = LiveHostConfig::new(dir.join("journal.db"));
    LiveHost::open(config, Box::new(connector), Box::new(BootClock))
        .unwrap()
        .0
}

#[test]
fn a_sample_of_many_guests_is_whole_and_its_cost_is_known() {
    let guests = from_env("BLKPILOT_SAMPLED_GUESTS", FEW_GUESTS);
    let times = u32::try_from(from_env("BLKPILOT_SAMPLES", FEW_SAMPLES as usize)).unwrap();
    let Some(mut fixture) = live::fixture("live_sampling", vec![guest(1)]) else {
        return;
    };
    let steps = [1, 5, 10, 20, guests];
    let mut steps: Vec<usize> = steps.into_iter().filter(|step| *step <= guests).collect();
    steps.sort_unstable();
    steps.dedup();
    println!(
        "Milliseconds for each time, once a second, {times} times; the wall time is the median and the \
         worst"
    );
    println!("GUESTS  WHAT                WALL     WORST   OWN CPU  LIBVIRTD  EMULATORS");
    for step in steps {
        while fixture.guests().len() < step {
            let next = guest(fixture.guests().len() + 1);
            fixture.add_guest(next).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let mut host = open(&fixture, dir.path());
        let mut disks = vec![];
        let sampling = Cost::of(&fixture, times, UsageWho::RUSAGE_SELF, || {
            let sample = host.sample().unwrap();
            let is_whole = |disk: &&blkpilot_env::sample::DiskSample| disk.latency_counts.is_ok();
            disks.push((
                sample.disks.len(),
                sample.disks.iter().filter(is_whole).count(),
            ));
        });
        // With hosts and guests on one core, a guest now and then misses the time that it has.
        assert!(disks.iter().all(|(all, _)| *all == step), "{disks:?}");
        assert!(disks.iter().any(|(_, whole)| *whole == step), "{disks:?}");
        drop(host);
        let domstats = Cost::of(&fixture, times, UsageWho::RUSAGE_CHILDREN, || {
            fixture.virsh(&["domstats"]).unwrap();
        });
        let nothing = Cost::of(&fixture, times, UsageWho::RUSAGE_SELF, || ());
        sampling.print(step, "sample");
        domstats.print(step, "virsh domstats");
        nothing.print(step, "nothing");
    }
}
