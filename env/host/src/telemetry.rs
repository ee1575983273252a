//! From libvirt, QEMU's monitor, procfs and sysfs to one [`HostSample`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkpilot_env::observation::{MaskReason, Validity};
use blkpilot_env::sample::{
    Cache, ChannelSample, DeviceClass, DeviceReference, DeviceSample, DiskMasks, DiskSample,
    DiskSettings, HostGauges, HostSample, LastHits, OpCounters, Polling, Reading,
};

use crate::backing_device::BackingDevice;
use crate::block_stack::Resolver;
use crate::cache_mask::{BufferedLimits, CacheFacts, cache_mask, is_on_shared_storage};
use crate::cachestat::cached_bytes;
use crate::channel::{Channel, Channels};
use crate::cpuset::CpuSet;
use crate::dedicated::DedicatedCpus;
use crate::device::scheduler;
use crate::error::HostResult;
use crate::group_memory::taken_share;
use crate::guest::{BootCache, BootIo, GuestDisk, KnobKind};
use crate::hypervisor::Hypervisor;
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::GuestLife;
use crate::knob::{Knob, cache_obstacle, cache_of};
use crate::layer::Layer;
use crate::monitor_reader::{MonitorReader, MonitorReading};
use crate::mounts::Mounts;
use crate::process::{QemuProcess, QemuThreads, ThreadTimes};
use crate::procfs_host::{CpuTimes, DeviceCounters, cpu_times, device_counters, host_gauges};
use crate::qmp::LatencyHistogram;
use crate::stats::{DiskCounters, GuestStats, IoCounters};
use crate::tuner::Tuner;

/// How long one sample waits for the monitors of all guests together.
const MONITOR_BUDGET: Duration = Duration::from_millis(250);

/// Takes samples. Owns what has to be remembered between them.
#[derive(Debug)]
pub(crate) struct Telemetry {
    proc_root: PathBuf,
    sys_root: PathBuf,
    references: BTreeMap<String, DeviceReference>,
    readers: BTreeMap<GuestLife, MonitorReader>,
    /// Each disk at the last sample, by disk id.
    last: BTreeMap<String, Last>,
    /// Disks without a latency histogram, by their guest's life and target, as last seen.
    without_histogram: Vec<(GuestLife, String)>,
    /// When we last changed a disk, by disk id.
    changed_at: BTreeMap<String, Duration>,
    /// Guests that QEMU has paused because of an I/O error, in this life.
    paused_on_error: BTreeSet<GuestLife>,
    /// Guests that are migrating to another host, as last seen.
    migrating: Vec<GuestLife>,
}

/// A disk at the last sample.
#[derive(Debug)]
struct Last {
    at: Duration,
    /// What it had done.
    counters: DiskCounters,
    sample: DiskSample,
}

/// What one sample is made from.
pub(crate) struct Sources<'a> {
    pub(crate) hypervisor: &'a Arc<dyn Hypervisor>,
    pub(crate) inventory: &'a Inventory,
    pub(crate) stats: &'a [GuestStats],
    pub(crate) channels: &'a Channels,
    pub(crate) tuner: &'a Tuner,
    /// CPUs that no disk of another guest is bound to.
    pub(crate) dedicated: &'a DedicatedCpus,
    pub(crate) buffered: &'a BufferedLimits,
    pub(crate) now: Duration,
}

/// The disk's row is being built from these.
struct DiskSources<'a> {
    running: &'a RunningGuest,
    disk: &'a GuestDisk,
    counters: DiskCounters,
    guest_stats: &'a GuestStats,
    threads: &'a QemuThreads,
    monitor: Option<&'a MonitorReading>,
    /// It has not answered in time.
    hangs: bool,
    host: &'a HostGauges,
    /// How much of its group's memory the guest has taken, see [`taken_share`].
    group_memory: Option<f32>,
    is_shared: bool,
    has_write_errors: bool,
}

/// The reference latencies that a kind of device has unless the configuration says otherwise: those
/// of the simulator's presets.
#[must_use]
pub fn default_reference(class: DeviceClass) -> DeviceReference {
    let (read_us, write_us, bytes_per_sec) = match class {
        DeviceClass::Nvme => (78.0, 18.0, 6.5e9),
        DeviceClass::SataSsd => (110.0, 45.0, 5.3e8),
        DeviceClass::Hdd => (8_000.0, 4_000.0, 2.2e8),
    };
    DeviceReference {
        read_us,
        write_us,
        bytes_per_sec,
    }
}

impl Telemetry {
    /// `references`: by kernel name of the device, in place of [`default_reference`].
    pub(crate) fn new(
        proc_root: &Path,
        sys_root: &Path,
        references: BTreeMap<String, DeviceReference>,
    ) -> Self {
        Self {
            proc_root: proc_root.to_owned(),
            sys_root: sys_root.to_owned(),
            references,
            readers: BTreeMap::new(),
            last: BTreeMap::new(),
            without_histogram: Vec::new(),
            changed_at: BTreeMap::new(),
            paused_on_error: BTreeSet::new(),
            migrating: Vec::new(),
        }
    }

    /// Notes that we changed a disk.
    pub(crate) fn note_change(&mut self, disk_id: &str, now: Duration) {
        self.changed_at.insert(disk_id.to_owned(), now);
    }

    /// Forgets the readers: their connection is gone.
    pub(crate) fn forget_readers(&mut self) {
        self.readers.clear();
    }

    /// A sample of the guests that have opted in, and of the host.
    pub(crate) fn sample(&mut self, sources: &Sources<'_>) -> HostResult<HostSample> {
        let guests = managed_guests(sources);
        let monitors = self.read_monitors(sources, &guests);
        let cpus = cpu_times(&self.proc_root)?;
        let host = host_gauges(&self.proc_root, &cpus)?;
        let mounts = Mounts::read(&self.proc_root).unwrap_or_default();
        self.note_errors(&guests);
        self.note_migrations(&monitors);
        let resolver = Resolver::new(&self.sys_root, &self.proc_root);
        let mut devices = Vec::new();
        let mut groups = BTreeMap::new();
        let mut disks = Vec::new();
        let mut last = BTreeMap::new();
        for (running, guest_stats) in &guests {
            let threads = running
                .process
                .as_ref()
                .and_then(|process| process.threads().ok())
                .unwrap_or_default();
            let monitor = running.life.as_ref().and_then(|life| monitors.get(life));
            let process = running.process.as_ref();
            let group_memory =
                process.and_then(|process| taken_share(&self.proc_root, process.pid, &mounts));
            for disk in &running.guest.disks {
                let Some(counters) = self.counters(running, &disk.target, guest_stats) else {
                    continue;
                };
                let Some(stack) = disk.source.as_ref().map(|source| resolver.image(source)) else {
                    continue;
                };
                let Some(device) = device_row(&resolver, &stack, &mut devices) else {
                    continue;
                };
                let from = DiskSources {
                    running,
                    disk,
                    counters,
                    guest_stats,
                    threads: &threads,
                    monitor,
                    hangs: self.hangs(running),
                    host: &host,
                    group_memory,
                    is_shared: is_on_shared_storage(&stack),
                    has_write_errors: self.has_write_errors(sources, running, disk, monitor),
                };
                let mut sample = self.disk(sources, &from, device, &mut groups);
                sample.last_hits = self.last.get(&sample.id).and_then(|last| {
                    let span = sources.now.saturating_sub(last.at);
                    LastHits::between(&last.sample, &sample, span)
                });
                let own = Last {
                    at: sources.now,
                    counters,
                    sample: sample.clone(),
                };
                last.insert(sample.id.clone(), own);
                disks.push(sample);
            }
        }
        self.last = last;
        Ok(HostSample {
            at: sources.now,
            channels: channel_samples(sources, &cpus, &devices),
            devices: self.device_samples(sources, &devices)?,
            host,
            disks,
        })
    }

    fn read_monitors(
        &mut self,
        sources: &Sources<'_>,
        guests: &[(&RunningGuest, &GuestStats)],
    ) -> BTreeMap<GuestLife, MonitorReading> {
        let lives: Vec<&GuestLife> = guests
            .iter()
            .filter_map(|(running, _)| running.life.as_ref())
            .collect();
        self.readers.retain(|life, _| lives.contains(&life));
        for (running, stats) in guests {
            let Some(life) = &running.life else { continue };
            let idle = self.idle_targets(running, stats);
            let start = || MonitorReader::start(Arc::clone(sources.hypervisor));
            self.readers
                .entry(life.clone())
                .or_insert_with(start)
                .ask(&running.guest, idle);
        }
        let deadline = Instant::now() + MONITOR_BUDGET;
        let answers = self.readers.iter_mut().filter_map(|(life, reader)| {
            let reading = reader.answer(deadline)?;
            Some((life.clone(), reading.ok()?))
        });
        let answers = answers.collect();
        self.without_histogram = without_histogram(guests, &answers);
        answers
    }

    fn note_errors(&mut self, guests: &[(&RunningGuest, &GuestStats)]) {
        let lives = guests
            .iter()
            .filter_map(|(running, stats)| Some((running.life.as_ref()?, stats)));
        let known = &self.paused_on_error;
        let has_error =
            |life, stats: &GuestStats| stats.is_paused_on_error() || known.contains(life);
        let failed = lives.filter(|(life, stats)| has_error(*life, stats));
        self.paused_on_error = failed.map(|(life, _)| life.clone()).collect();
    }

    fn note_migrations(&mut self, monitors: &BTreeMap<GuestLife, MonitorReading>) {
        let migrating = monitors.iter().filter(|(_, reading)| reading.migrates);
        self.migrating = migrating.map(|(life, _)| life.clone()).collect();
    }

    /// Guests that were migrating to another host at the last sample.
    pub(crate) fn migrating(&self) -> &[GuestLife] {
        &self.migrating
    }

    /// Whether a write of a disk has failed in this life of its guest. Which disk a guest was paused for
    /// is not told, so it counts for all.
    fn has_write_errors(
        &self,
        sources: &Sources<'_>,
        running: &RunningGuest,
        disk: &GuestDisk,
        monitor: Option<&MonitorReading>,
    ) -> bool {
        let failed = monitor.and_then(|monitor| monitor.failed_writes.get(&disk.qom_path()));
        let is_paused = |life: &GuestLife| self.paused_on_error.contains(life);
        let image = disk.source.as_deref();
        failed.is_some_and(|count| *count > 0)
            || running.life.as_ref().is_some_and(is_paused)
            || image.is_some_and(|image| sources.tuner.has_failed_write_back(image))
    }

    /// Disks that completed nothing since the last sample: idle or stalled, which only their
    /// requests in flight can tell.
    fn idle_targets(&self, running: &RunningGuest, stats: &GuestStats) -> Vec<String> {
        let disks = stats.disks.iter().filter(|disk| {
            let last = self.last.get(&disk_id(running, &disk.target));
            last.zip(disk.counters)
                .is_some_and(|(last, now)| completed(&last.counters) == completed(&now))
        });
        disks.map(|disk| disk.target.clone()).collect()
    }

    /// What a disk has done; of a guest that hangs, what it had done when it was last seen.
    fn counters(
        &self,
        running: &RunningGuest,
        target: &str,
        stats: &GuestStats,
    ) -> Option<DiskCounters> {
        let disk = stats.disks.iter().find(|disk| disk.target == target);
        let last = || {
            let last = self.last.get(&disk_id(running, target));
            last.map(|last| last.counters)
        };
        disk.and_then(|disk| disk.counters).or_else(last)
    }

    /// Disks of guests that answer but have no latency histogram.
    pub(crate) fn take_without_histogram(&mut self) -> Vec<(GuestLife, String)> {
        std::mem::take(&mut self.without_histogram)
    }

    /// Whether a guest's monitor has left a question of an earlier sample unanswered.
    pub(crate) fn hangs(&self, running: &RunningGuest) -> bool {
        let reader = running
            .life
            .as_ref()
            .and_then(|life| self.readers.get(life));
        reader.is_some_and(MonitorReader::is_outstanding)
    }

    fn device_samples(
        &self,
        sources: &Sources<'_>,
        devices: &[BackingDevice],
    ) -> HostResult<Vec<DeviceSample>> {
        let counters = device_counters(&self.proc_root)?;
        let sample = |device: &BackingDevice| {
            let DeviceCounters {
                reads,
                writes,
                busy_ns,
            } = device.counters(&counters);
            let scheduler = scheduler::read(sources.inventory, sources.tuner, &device.name);
            DeviceSample {
                id: device.name.clone(),
                class: device.class,
                numa: device.numa,
                hw_queues: u16::try_from(device.queues.len()).unwrap_or(u16::MAX),
                reference: self
                    .references
                    .get(&device.name)
                    .copied()
                    .unwrap_or_else(|| default_reference(device.class)),
                reads,
                writes,
                busy_ns,
                scheduler: scheduler.current,
                default_scheduler: scheduler.default,
                scheduler_mask: scheduler.mask,
            }
        };
        Ok(devices.iter().map(sample).collect())
    }

    fn disk(
        &self,
        sources: &Sources<'_>,
        from: &DiskSources<'_>,
        device: usize,
        groups: &mut BTreeMap<(String, u32), usize>,
    ) -> DiskSample {
        let id = disk_id(from.running, &from.disk.target);
        let next = groups.len();
        let uuid = from.running.guest.uuid.clone();
        let group = from
            .disk
            .iothread
            .map(|iothread| *groups.entry((uuid, iothread)).or_insert(next));
        let times = iothread_times(from);
        let cache = from.disk.source.as_deref().map(cached_bytes);
        let cache = cache.and_then(HostResult::ok).ok_or(Validity::Unsupported);
        let settings = settings(sources.channels, from);
        let default = defaults(sources, from, settings);
        DiskSample {
            device,
            group,
            settings,
            default,
            masks: masks(sources, from, settings.cache, default.cache),
            reads: op_counters(from.counters.reads),
            writes: op_counters(from.counters.writes),
            flushes: from.counters.flushes,
            in_flight: in_flight(from),
            device_read_bytes: device_read_bytes(from),
            latency_counts: latency_counts(from),
            iothread_cpu_ns: times.map(|times| times.cpu_ns),
            iothread_wait_ns: times.map(|times| times.wait_ns),
            vcpu_share: vcpu_share(sources.channels, from.running),
            capacity_bytes: from.counters.capacity_bytes,
            cached_bytes: cache.map(|cache| cache.cached),
            dirty_bytes: cache.map(|cache| cache.dirty),
            since_change: sources
                .now
                .saturating_sub(self.changed_at.get(&id).copied().unwrap_or_default()),
            last_hits: None, // of two samples
            id,
        }
    }
}

/// The row of the device behind a disk, added when it is new. A disk without a local device
/// (network storage) is not managed. What lies
/// below its image in a backing chain is not looked for: headers are read on storage that may hang.
fn device_row(
    resolver: &Resolver,
    stack: &Layer,
    devices: &mut Vec<BackingDevice>,
) -> Option<usize> {
    let name = BackingDevice::name_of(stack)?;
    let known = devices.iter().position(|known| known.name == name);
    if known.is_some() {
        return known;
    }
    devices.push(BackingDevice::of_stack(resolver, stack)?);
    Some(devices.len() - 1)
}

/// `guest/target`.
pub(crate) fn disk_id(running: &RunningGuest, target: &str) -> String {
    format!("{}/{target}", running.guest.name)
}

fn completed(counters: &DiskCounters) -> u64 {
    counters.reads.requests + counters.writes.requests
}

fn without_histogram(
    guests: &[(&RunningGuest, &GuestStats)],
    answers: &BTreeMap<GuestLife, MonitorReading>,
) -> Vec<(GuestLife, String)> {
    let mut missing = Vec::new();
    for (running, _) in guests {
        let answer = running
            .life
            .as_ref()
            .and_then(|life| Some((life, answers.get(life)?)));
        let Some((life, answer)) = answer else {
            continue;
        };
        for disk in &running.guest.disks {
            if answer.histograms.get(&disk.qom_path()) == Some(&LatencyHistogram::Absent) {
                missing.push((life.clone(), disk.target.clone()));
            }
        }
    }
    missing
}

fn managed_guests<'a>(sources: &Sources<'a>) -> Vec<(&'a RunningGuest, &'a GuestStats)> {
    let stats_of = |uuid: &str| sources.stats.iter().find(|stats| stats.uuid == uuid);
    let guests = sources
        .inventory
        .guests
        .values()
        .filter(|running| running.guest.allows_monitor());
    let mut guests: Vec<_> = guests
        .filter_map(|running| Some((running, stats_of(&running.guest.uuid)?)))
        .collect();
    guests.sort_by(|(a, _), (b, _)| a.guest.name.cmp(&b.guest.name));
    guests
}

fn channel_samples(
    sources: &Sources<'_>,
    cpus: &[CpuTimes],
    devices: &[BackingDevice],
) -> Vec<ChannelSample> {
    let hw_queues = sources.channels.hw_queues(devices.iter());
    // Under QEMU's interpreter vCPUs are ordinary threads to the kernel.
    let has_interpreted = sources
        .inventory
        .guests
        .values()
        .any(|running| !running.guest.is_kvm);
    let interpreted_ns = interpreted_vcpu_ns(sources);
    let channel = |(row, (channel, hw_queues)): (usize, (&Channel, u16))| {
        let times = || channel.cpus.iter().filter_map(|cpu| cpus.get(cpu as usize));
        let guest_ns: u64 = times().map(|cpu| cpu.guest_ns).sum();
        ChannelSample {
            id: channel.id.clone(),
            cpus: channel.cpus.iter().collect(),
            numa: channel.numa,
            hw_queues,
            busy_ns: times().map(|cpu| cpu.busy_ns).sum(),
            vcpu_ns: Ok(if has_interpreted {
                interpreted_ns[row]
            } else {
                guest_ns
            }),
        }
    };
    sources
        .channels
        .list()
        .iter()
        .zip(hw_queues)
        .enumerate()
        .map(channel)
        .collect()
}

/// CPU time of all vCPUs by channel, each spread evenly over the CPUs on which it may run: the
/// kernel counts no guest time for QEMU's interpreter.
fn interpreted_vcpu_ns(sources: &Sources<'_>) -> Vec<u64> {
    let mut by_channel = vec![0.0; sources.channels.list().len()];
    for stats in sources.stats {
        let Some(running) = sources.inventory.guests.get(&stats.uuid) else {
            continue;
        };
        let guest = &running.guest;
        for (vcpu, time_ns) in &stats.vcpu_time_ns {
            let pin = guest.vcpu_pins.get(vcpu).or(guest.cpuset.as_ref());
            let shares = sources.channels.vcpu_share(&[pin]);
            for (sum, share) in by_channel.iter_mut().zip(shares) {
                *sum += *time_ns as f64 * f64::from(share);
            }
        }
    }
    by_channel.into_iter().map(|ns| ns as u64).collect()
}

fn op_counters(counters: IoCounters) -> OpCounters {
    OpCounters {
        requests: counters.requests,
        bytes: counters.bytes,
        time_ns: counters.time_ns,
    }
}

/// The thread that serves a disk: its IOThread, or QEMU's main loop.
fn serving_thread<'a>(from: &DiskSources<'a>) -> Option<(&'a QemuProcess, i32)> {
    let process = from.running.process.as_ref()?;
    let tid = match from.disk.iothread {
        Some(iothread) => *from.threads.iothreads.get(&iothread)?,
        None => process.pid,
    };
    Some((process, tid))
}

/// Its thread's times, shared evenly among the disks that it serves.
fn iothread_times(from: &DiskSources<'_>) -> Reading<ThreadTimes> {
    let (process, tid) = serving_thread(from).ok_or(Validity::Unsupported)?;
    let times = process
        .thread_times(tid)
        .map_err(|_| Validity::Unsupported)?;
    let sharers = from
        .running
        .guest
        .disks
        .iter()
        .filter(|disk| disk.iothread == from.disk.iothread)
        .count() as u64;
    Ok(ThreadTimes {
        cpu_ns: times.cpu_ns / sharers.max(1),
        wait_ns: times.wait_ns / sharers.max(1),
    })
}

/// Bytes of reads that reached the device. The kernel counts them per thread: exact for a guest
/// with one disk, and for a disk whose own IOThread submits its reads itself.
fn device_read_bytes(from: &DiskSources<'_>) -> Reading<u64> {
    let (process, tid) = serving_thread(from).ok_or(Validity::Unsupported)?;
    let guest = &from.running.guest;
    let submits_itself = matches!(from.disk.boot_io, BootIo::Native | BootIo::IoUring);
    let read = match from.disk.iothread {
        _ if guest.disks.len() == 1 => process.read_bytes(),
        Some(iothread) if submits_itself && guest.disks_on(iothread) == 1 => {
            process.thread_read_bytes(tid)
        }
        _ => return Err(Validity::Unsupported),
    };
    read.map_err(|_| Validity::Unsupported)
}

fn in_flight(from: &DiskSources<'_>) -> Reading<u32> {
    let known = from
        .monitor
        .and_then(|monitor| monitor.in_flight.get(&from.disk.target));
    known.copied().ok_or(Validity::Unsupported)
}

fn latency_counts(from: &DiskSources<'_>) -> Reading<[u64; blkpilot_env::sample::LATENCY_BUCKETS]> {
    let monitor = from.monitor.ok_or(Validity::Stale)?;
    match monitor.histograms.get(&from.disk.qom_path()) {
        Some(LatencyHistogram::Ours(counts)) => Ok(**counts),
        _ => Err(Validity::Unsupported),
    }
}

fn settings(channels: &Channels, from: &DiskSources<'_>) -> DiskSettings {
    let cpus = serving_thread(from).and_then(|(process, tid)| process.affinity(tid).ok());
    let is_direct = from.running.process.as_ref().zip(from.disk.source.as_ref());
    let is_direct = is_direct.and_then(|(process, source)| process.is_direct(source));
    let boot_direct = matches!(
        from.disk.boot_cache,
        BootCache::None | BootCache::DirectSync
    );
    let poll_max_ns = from
        .disk
        .iothread
        .and_then(|id| from.guest_stats.poll_max_ns.get(&id))
        .copied();
    DiskSettings {
        channel: cpus
            .filter(|_| from.disk.iothread.is_some())
            .map_or(0, |cpus| channels.level_of(&cpus)),
        cache: if is_direct.unwrap_or(boot_direct) {
            Cache::Direct
        } else {
            Cache::Buffered
        },
        polling: polling_of(poll_max_ns.unwrap_or(u64::MAX)),
    }
}

fn polling_of(poll_max_ns: u64) -> Polling {
    if poll_max_ns == 0 {
        Polling::Off
    } else {
        Polling::Adaptive
    }
}

/// What would be in force without us: the journalled originals, else what is in force.
fn defaults(sources: &Sources<'_>, from: &DiskSources<'_>, current: DiskSettings) -> DiskSettings {
    let original = |knob: &Knob| {
        sources
            .tuner
            .original(from.running.life.as_ref()?, knob)
            .ok()
            .flatten()
    };
    let mut defaults = current;
    if let Some(iothread) = from.disk.iothread {
        if let Some(Ok(cpus)) =
            original(&Knob::Channel { iothread }).map(|text| text.parse::<CpuSet>())
        {
            defaults.channel = sources.channels.level_of(&cpus);
        }
        if let Some(Ok(poll_max_ns)) =
            original(&Knob::Polling { iothread }).map(|text| text.parse())
        {
            defaults.polling = polling_of(poll_max_ns);
        }
    }
    if let Some(text) = original(&Knob::Cache {
        target: from.disk.target.clone(),
    }) {
        defaults.cache = cache_of(&text);
    }
    defaults
}

/// `current` is the cache strategy in force, `default` the one without us.
fn masks(
    sources: &Sources<'_>,
    from: &DiskSources<'_>,
    current: Cache,
    default: Cache,
) -> DiskMasks {
    let iothread = from.disk.iothread;
    let thread_mask = |kind, knob: Option<Knob>| match knob {
        None => MaskReason::NoIoThread,
        Some(knob) => knob_mask(sources, from, kind, &knob),
    };
    let channel = thread_mask(
        KnobKind::Channel,
        iothread.map(|iothread| Knob::Channel { iothread }),
    );
    let polling = thread_mask(
        KnobKind::Polling,
        iothread.map(|iothread| Knob::Polling { iothread }),
    );
    let cache = knob_mask(
        sources,
        from,
        KnobKind::Cache,
        &Knob::Cache {
            target: from.disk.target.clone(),
        },
    );
    let cache = if cache.is_allowed() {
        cache_mask(
            &cache_facts(sources, from, current, default),
            sources.buffered,
        )
    } else {
        [cache; 2]
    };
    DiskMasks {
        channel: channel_mask(sources, &from.running.guest.uuid, channel),
        cache,
        polling: [polling; 2],
    }
}

fn knob_mask(
    sources: &Sources<'_>,
    from: &DiskSources<'_>,
    kind: KnobKind,
    knob: &Knob,
) -> MaskReason {
    let Some(life) = &from.running.life else {
        return MaskReason::Unsupported;
    };
    if !from.running.guest.allows(kind) {
        MaskReason::NotEnabled
    } else if from.hangs {
        // A change might never return; what keeps it from answering may be over by the next sample.
        MaskReason::Unresponsive
    } else if sources.tuner.is_frozen(life, knob).unwrap_or(true) {
        // A journal that cannot be read allows nothing either.
        MaskReason::Frozen
    } else {
        MaskReason::Allowed
    }
}

/// Floating, then the channels. `all`: what holds for each of them.
fn channel_mask(sources: &Sources<'_>, uuid: &str, all: MaskReason) -> Vec<MaskReason> {
    let of_channel = |channel: &Channel| {
        if all.is_allowed() && sources.dedicated.are_of_others(&channel.cpus, uuid) {
            MaskReason::DedicatedCpu
        } else {
            all
        }
    };
    let channels = sources.channels.list().iter().map(of_channel);
    std::iter::once(all).chain(channels).collect()
}

fn cache_facts<'a>(
    sources: &Sources<'_>,
    from: &DiskSources<'a>,
    current: Cache,
    default: Cache,
) -> CacheFacts<'a> {
    let disk = from.disk;
    let jobs = from.monitor.map(|monitor| &monitor.jobs);
    let image = disk.source.as_deref();
    CacheFacts {
        is_barred: cache_obstacle(disk, false).is_some(),
        job_runs: jobs.and_then(|jobs| jobs.get(&disk.target)).copied(),
        has_nodes: !from.running.nodes.is_empty(),
        is_native: disk.boot_io == BootIo::Native,
        current,
        default,
        direct: image.map_or(MaskReason::Allowed, |image| {
            sources.tuner.direct_mask(image)
        }),
        is_shared: from.is_shared,
        has_write_errors: from.has_write_errors,
        group_memory: from.group_memory,
        host: from.host,
    }
}

fn vcpu_share(channels: &Channels, running: &RunningGuest) -> Vec<f32> {
    let guest = &running.guest;
    let vcpus = (0..guest.vcpus).map(|vcpu| guest.vcpu_pins.get(&vcpu).or(guest.cpuset.as_ref()));
    channels.vcpu_share(&vcpus.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
