//! From two samples of a host to an observation: the one place where features are computed, for
//! live and simulated hosts alike.

use std::time::Duration;

use ndarray::{Array2, Array3};

use crate::decision::JointAction;
use crate::observation::{MaskReason, Masks, Observation, Table, Validity};
use crate::reward::{RewardTerm, reference_us};
use crate::sample::{Cache, DeviceClass, DeviceWindow, DiskWindow, HostSample, Polling, Reading};
use crate::spec::{Autoreset, EnvSpec, Feature, Head, HeadScope, Levels, Projection, Scale, Unit};

/// Index of the `channel` head among the disk heads of a KVM host.
pub const CHANNEL_HEAD: usize = 0;
/// Index of the `cache` head.
pub const CACHE_HEAD: usize = 1;
/// Index of the `polling` head.
pub const POLLING_HEAD: usize = 2;

type Column = (&'static str, Unit, f32, f32, Scale, &'static str);

use Scale::{Linear, Log};

const DISK: [Column; 21] = [
    (
        "queue_depth",
        Unit::Count,
        0.0,
        4096.0,
        Log,
        "Average requests in flight in the window (Little's law).",
    ),
    (
        "cpu_load",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Busy share of the CPUs its IOThread may run on.",
    ),
    (
        "hit_rate",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of read bytes served by the host page cache.",
    ),
    (
        "iops",
        Unit::PerSecond,
        0.0,
        1e7,
        Log,
        "Reads and writes completed.",
    ),
    (
        "latency_us_mean",
        Unit::Microseconds,
        0.0,
        1e7,
        Log,
        "Mean latency of reads and writes.",
    ),
    (
        "latency_us_p99",
        Unit::Microseconds,
        0.0,
        1e7,
        Log,
        "99th percentile of the latency.",
    ),
    (
        "slowdown",
        Unit::Ratio,
        0.0,
        1e4,
        Log,
        "Mean latency over the reference latency of the same requests.",
    ),
    (
        "read_share",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of reads among the requests.",
    ),
    (
        "request_kib",
        Unit::Kibibytes,
        0.0,
        16384.0,
        Log,
        "Mean size of a request.",
    ),
    (
        "flush_share",
        Unit::Ratio,
        0.0,
        10.0,
        Linear,
        "Flushes per request.",
    ),
    (
        "iothread_cores",
        Unit::Cores,
        0.0,
        1.0,
        Linear,
        "CPU of its IOThread, shared evenly among its disks.",
    ),
    (
        "run_delay",
        Unit::Share,
        0.0,
        8.0,
        Linear,
        "Share of the time its IOThread waited for a CPU.",
    ),
    (
        "is_buffered",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 if it runs through the host page cache.",
    ),
    (
        "is_polling",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 if its IOThread polls.",
    ),
    (
        "is_bound",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 if its IOThread is bound to a channel.",
    ),
    (
        "has_iothread",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 if it has an IOThread.",
    ),
    (
        "group_size",
        Unit::Count,
        0.0,
        64.0,
        Log,
        "Disks on its IOThread, itself included.",
    ),
    (
        "intervals_since_change",
        Unit::Intervals,
        0.0,
        1000.0,
        Log,
        "Intervals since one of its settings was changed.",
    ),
    (
        "capacity_gib",
        Unit::Gibibytes,
        0.0,
        65536.0,
        Log,
        "Size of its image.",
    ),
    (
        "cached_share",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of the host's memory that caches it.",
    ),
    (
        "room",
        Unit::Ratio,
        0.0,
        1e4,
        Log,
        "Available host memory over the size of its image.",
    ),
];

const CHANNEL: [Column; 5] = [
    (
        "cpu_load",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Busy share of its CPUs.",
    ),
    (
        "vcpu_load",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of its CPU time spent in vCPUs.",
    ),
    (
        "bound_disks",
        Unit::Count,
        0.0,
        256.0,
        Log,
        "Disks bound to it, earlier choices included.",
    ),
    (
        "bound_cores",
        Unit::Cores,
        0.0,
        64.0,
        Linear,
        "IOThread CPU of the disks bound to it, earlier choices included.",
    ),
    ("cpus", Unit::Count, 0.0, 1024.0, Log, "Its CPUs."),
];

const PAIR: [Column; 3] = [
    (
        "is_current",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 if the disk is bound to the channel now.",
    ),
    (
        "vcpu_share",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of the guest's vCPUs that may run there.",
    ),
    (
        "is_numa_local",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 if channel and backing device share a NUMA node.",
    ),
];

const DEVICE: [Column; 11] = [
    (
        "utilisation",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of the time with a request in flight.",
    ),
    (
        "iops",
        Unit::PerSecond,
        0.0,
        1e7,
        Log,
        "Requests completed.",
    ),
    (
        "mib_per_sec",
        Unit::MebibytesPerSecond,
        0.0,
        65536.0,
        Log,
        "Bytes moved.",
    ),
    (
        "await_us",
        Unit::Microseconds,
        0.0,
        1e7,
        Log,
        "Mean time of a request in the device, queueing included.",
    ),
    (
        "queue_depth",
        Unit::Count,
        0.0,
        4096.0,
        Log,
        "Average requests in flight.",
    ),
    (
        "write_share",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of writes among the requests.",
    ),
    (
        "reference_us",
        Unit::Microseconds,
        0.0,
        1e6,
        Log,
        "Latency of a small read on an idle device.",
    ),
    (
        "is_rotational",
        Unit::Flag,
        0.0,
        1.0,
        Linear,
        "1 for a rotating disk.",
    ),
    (
        "buffered_disks",
        Unit::Count,
        0.0,
        256.0,
        Log,
        "Its disks that run through the page cache, earlier choices included.",
    ),
    (
        "disks",
        Unit::Count,
        0.0,
        256.0,
        Log,
        "Managed disks that it backs.",
    ),
    (
        "scheduler",
        Unit::Count,
        0.0,
        8.0,
        Linear,
        "Level of its scheduler.",
    ),
];

const HOST: [Column; 7] = [
    (
        "cpu_load",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Busy share of all CPUs.",
    ),
    (
        "mem_available",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Share of the memory that is available.",
    ),
    (
        "dirty_share",
        Unit::Ratio,
        0.0,
        4.0,
        Linear,
        "Dirty page cache over the limit at which writers are throttled.",
    ),
    (
        "psi_cpu",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Pressure stall (some, 10 s) on CPU.",
    ),
    (
        "psi_io",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Pressure stall (some, 10 s) on I/O.",
    ),
    (
        "psi_memory",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Pressure stall (some, 10 s) on memory.",
    ),
    ("cpus", Unit::Count, 1.0, 4096.0, Log, "CPUs online."),
];

/// The spec of a KVM host. `schedulers` are the levels of the device head; empty leaves it out.
#[must_use]
pub fn kvm_host_spec(schedulers: &[String]) -> EnvSpec {
    let named = |names: &[&str]| Levels::Named(names.iter().map(|n| (*n).to_owned()).collect());
    let head = |name: &str, levels, scope| Head {
        name: name.to_owned(),
        levels,
        scope,
    };
    let device_heads = if schedulers.is_empty() {
        vec![]
    } else {
        vec![head(
            "scheduler",
            Levels::Named(schedulers.to_vec()),
            HeadScope::Device,
        )]
    };
    EnvSpec {
        name: "kvm_host".to_owned(),
        disk_features: features(&DISK),
        channel_features: features(&CHANNEL),
        pair_features: features(&PAIR),
        device_features: features(&DEVICE),
        host_features: features(&HOST),
        disk_heads: vec![
            head(
                "channel",
                Levels::Channels {
                    zero: "float".to_owned(),
                },
                HeadScope::IoThread,
            ),
            head("cache", named(&["direct", "buffered"]), HeadScope::Disk),
            head("polling", named(&["off", "adaptive"]), HeadScope::IoThread),
        ],
        device_heads,
        projections: vec![
            Projection::ChannelCount {
                feature: column(&CHANNEL, "bound_disks"),
            },
            Projection::ChannelSum {
                feature: column(&CHANNEL, "bound_cores"),
                disk_feature: column(&DISK, "iothread_cores"),
            },
            Projection::DeviceCount {
                feature: column(&DEVICE, "buffered_disks"),
                head: CACHE_HEAD,
                level: Cache::Buffered as u16,
            },
        ],
        reward_terms: RewardTerm::ALL
            .iter()
            .map(|term| term.name().to_owned())
            .collect(),
        reward_range: RewardTerm::RANGE,
        autoreset: Autoreset::Disabled,
    }
}

fn features(columns: &[Column]) -> Vec<Feature> {
    columns
        .iter()
        .map(|&(name, unit, low, high, scale, doc)| Feature {
            name: name.to_owned(),
            unit,
            low,
            high,
            scale,
            doc: doc.to_owned(),
        })
        .collect()
}

fn column(columns: &[Column], name: &str) -> usize {
    columns
        .iter()
        .position(|c| c.0 == name)
        .expect("a projection names a column of its table")
}

/// What is seen at `after`, over the window since `before`.
///
/// The two samples need not list the same disks: one that has just appeared is shown without rates
/// (`CounterReset`), one that is gone is not shown. Everything is matched by its name.
/// `interval` is the length of one decision interval.
#[must_use]
pub fn observe(
    spec: &EnvSpec,
    before: &HostSample,
    after: &HostSample,
    interval: Duration,
) -> Observation {
    let span_s = (after.at.saturating_sub(before.at)).as_secs_f64().max(1e-9);
    let current = settings(spec, after, |d| d.settings.levels(), |d| d.scheduler);
    let default = settings(spec, after, |d| d.default.levels(), |d| d.default_scheduler);
    Observation {
        disk_ids: after.disks.iter().map(|d| d.id.clone()).collect(),
        device_ids: after.devices.iter().map(|d| d.id.clone()).collect(),
        channel_ids: after.channels.iter().map(|c| c.id.clone()).collect(),
        disks: disk_table(before, after, span_s, interval),
        channels: channel_table(before, after, span_s),
        pairs: pair_table(after),
        devices: device_table(before, after, span_s),
        host: host_table(before, after, span_s),
        disk_device: after.disks.iter().map(|d| d.device).collect(),
        disk_group: after.disks.iter().map(|d| d.group).collect(),
        current,
        default,
        masks: masks(spec, after),
    }
}

/// Writes readings into a row of a table, clipped to the columns' ranges.
struct RowWriter<'a> {
    table: &'a mut Table,
    columns: &'static [Column],
    row: usize,
    next: usize,
}

impl RowWriter<'_> {
    fn put(&mut self, reading: Reading<f64>) {
        let (_, _, low, high, ..) = self.columns[self.next];
        let cell = [self.row, self.next];
        match reading {
            Ok(value) => self.table.values[cell] = (value as f32).clamp(low, high),
            Err(why) => self.table.validity[cell] = why,
        }
        self.next += 1;
    }

    fn flag(&mut self, set: bool) {
        self.put(Ok(f64::from(u8::from(set))));
    }
}

impl Drop for RowWriter<'_> {
    fn drop(&mut self) {
        debug_assert_eq!(
            self.next,
            self.columns.len(),
            "each column of a row is written once"
        );
    }
}

fn disk_table(before: &HostSample, after: &HostSample, span_s: f64, interval: Duration) -> Table {
    let mut table = Table::zeros(after.disks.len(), DISK.len());
    let host = &after.host;
    for (row, disk) in after.disks.iter().enumerate() {
        let window =
            find(&before.disks, row, &disk.id).map(|b| DiskWindow::between(b, disk, span_s));
        let get = |f: fn(&DiskWindow) -> Reading<f64>| {
            window.as_ref().map_or(Err(Validity::CounterReset), f)
        };
        let reference = get(|w| w.read_share)
            .and_then(|share| get(|w| w.request_bytes).map(|bytes| (share, bytes)))
            .map(|(share, bytes)| {
                reference_us(&after.devices[disk.device].reference, share, bytes)
            });
        let group = disk.group.map_or(1, |g| {
            after.disks.iter().filter(|d| d.group == Some(g)).count()
        });
        let mut w = RowWriter {
            table: &mut table,
            columns: &DISK,
            row,
            next: 0,
        };
        w.put(get(|w| w.queue_depth));
        w.put(Ok(lane_load(
            before,
            after,
            disk.settings.channel.into(),
            span_s,
        )));
        w.put(get(|w| w.hit_rate));
        w.put(get(|w| w.iops));
        w.put(get(|w| w.latency_us_mean));
        w.put(get(|w| w.latency_us_p99));
        w.put(
            reference.and_then(|reference| get(|w| w.latency_us_mean).map(|mean| mean / reference)),
        );
        w.put(get(|w| w.read_share));
        w.put(get(|w| w.request_bytes).map(|bytes| bytes / 1024.0));
        w.put(get(|w| w.flush_share));
        w.put(get(|w| w.iothread_cores));
        w.put(get(|w| w.run_delay));
        w.flag(disk.settings.cache == Cache::Buffered);
        w.flag(disk.settings.polling == Polling::Adaptive);
        w.flag(disk.settings.channel != 0);
        w.flag(disk.group.is_some());
        w.put(Ok(group as f64));
        w.put(Ok(
            disk.since_change.as_secs_f64() / interval.as_secs_f64().max(1e-9)
        ));
        w.put(Ok(disk.capacity_bytes as f64 / GIB));
        w.put(
            disk.cached_bytes
                .map(|bytes| bytes as f64 / host.mem_total_bytes as f64),
        );
        w.put(Ok(
            host.mem_available_bytes as f64 / (disk.capacity_bytes as f64).max(1.0)
        ));
    }
    table
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// The sample of the same thing: at the same row where nothing came or went.
pub(crate) fn find<'a, T: Named>(before: &'a [T], row: usize, id: &str) -> Option<&'a T> {
    before
        .get(row)
        .filter(|b| b.id() == id)
        .or_else(|| before.iter().find(|b| b.id() == id))
}

pub(crate) trait Named {
    fn id(&self) -> &str;
}

impl Named for crate::sample::DeviceSample {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Named for crate::sample::ChannelSample {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Named for crate::sample::DiskSample {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Busy share of the CPUs behind a channel level; all CPUs for `float`.
fn lane_load(before: &HostSample, after: &HostSample, level: usize, span_s: f64) -> f64 {
    let channel = level.checked_sub(1).and_then(|row| {
        let now = after.channels.get(row)?;
        Some((find(&before.channels, row, &now.id)?, now))
    });
    match channel {
        Some((b, a)) => share_of_cpus(b.busy_ns, a.busy_ns, a.cpus.len() as f64, span_s),
        None => share_of_cpus(
            before.host.cpu_busy_ns,
            after.host.cpu_busy_ns,
            f64::from(after.host.cpus),
            span_s,
        ),
    }
}

fn share_of_cpus(before_ns: u64, after_ns: u64, cpus: f64, span_s: f64) -> f64 {
    after_ns.saturating_sub(before_ns) as f64 * 1e-9 / (span_s * cpus.max(1.0))
}

fn channel_table(before: &HostSample, after: &HostSample, span_s: f64) -> Table {
    let mut table = Table::zeros(after.channels.len(), CHANNEL.len());
    for (row, channel) in after.channels.iter().enumerate() {
        let cpus = channel.cpus.len() as f64;
        let level = row + 1;
        let bound: Vec<usize> = (0..after.disks.len())
            .filter(|d| usize::from(after.disks[*d].settings.channel) == level)
            .collect();
        let cores: f64 = bound
            .iter()
            .filter_map(|d| {
                find(&before.disks, *d, &after.disks[*d].id).map(|b| (b, &after.disks[*d]))
            })
            .filter_map(|(b, a)| DiskWindow::between(b, a, span_s).iothread_cores.ok())
            .map(|cores| cores.min(1.0))
            .sum();
        let vcpu = find(&before.channels, row, &channel.id)
            .map_or(Err(Validity::CounterReset), |b| {
                crate::sample::gained(b.vcpu_ns, channel.vcpu_ns)
            });
        let mut w = RowWriter {
            table: &mut table,
            columns: &CHANNEL,
            row,
            next: 0,
        };
        w.put(Ok(lane_load(before, after, level, span_s)));
        w.put(vcpu.map(|ns| ns as f64 * 1e-9 / (span_s * cpus.max(1.0))));
        w.put(Ok(bound.len() as f64));
        w.put(Ok(cores));
        w.put(Ok(cpus));
    }
    table
}

fn pair_table(after: &HostSample) -> Array3<f32> {
    let flag = |set: bool| f32::from(u8::from(set));
    Array3::from_shape_fn(
        (after.disks.len(), after.channels.len(), PAIR.len()),
        |(disk, channel, column)| {
            let (d, c) = (&after.disks[disk], &after.channels[channel]);
            match column {
                0 => flag(usize::from(d.settings.channel) == channel + 1),
                1 => d.vcpu_share.get(channel).copied().unwrap_or(0.0),
                _ => flag(after.devices[d.device].numa == c.numa),
            }
        },
    )
}

fn device_table(before: &HostSample, after: &HostSample, span_s: f64) -> Table {
    let mut table = Table::zeros(after.devices.len(), DEVICE.len());
    for (row, device) in after.devices.iter().enumerate() {
        let window = find(&before.devices, row, &device.id)
            .map(|b| DeviceWindow::between(b, device, span_s));
        let get = |f: fn(&DeviceWindow) -> Reading<f64>| {
            window.as_ref().map_or(Err(Validity::CounterReset), f)
        };
        let of_device = || after.disks.iter().filter(|d| d.device == row);
        let buffered = of_device()
            .filter(|d| d.settings.cache == Cache::Buffered)
            .count();
        let mut w = RowWriter {
            table: &mut table,
            columns: &DEVICE,
            row,
            next: 0,
        };
        w.put(get(|w| w.utilisation));
        w.put(get(|w| w.iops));
        w.put(get(|w| w.bytes_per_sec).map(|b| b / 1_048_576.0));
        w.put(get(|w| w.await_us));
        w.put(get(|w| w.queue_depth));
        w.put(get(|w| w.write_share));
        w.put(Ok(device.reference.read_us));
        w.flag(device.class == DeviceClass::Hdd);
        w.put(Ok(buffered as f64));
        w.put(Ok(of_device().count() as f64));
        w.put(Ok(f64::from(device.scheduler)));
    }
    table
}

fn host_table(before: &HostSample, after: &HostSample, span_s: f64) -> Table {
    let host = &after.host;
    let mut table = Table::zeros(1, HOST.len());
    let mut w = RowWriter {
        table: &mut table,
        columns: &HOST,
        row: 0,
        next: 0,
    };
    w.put(Ok(lane_load(before, after, 0, span_s)));
    w.put(Ok(
        host.mem_available_bytes as f64 / (host.mem_total_bytes as f64).max(1.0)
    ));
    w.put(Ok(
        host.dirty_bytes as f64 / (host.dirty_limit_bytes as f64).max(1.0)
    ));
    w.put(host.psi_cpu.map(f64::from));
    w.put(host.psi_io.map(f64::from));
    w.put(host.psi_memory.map(f64::from));
    w.put(Ok(f64::from(host.cpus)));
    drop(w);
    table
}

fn settings(
    spec: &EnvSpec,
    sample: &HostSample,
    disk: impl Fn(&crate::sample::DiskSample) -> [u16; 3],
    device: impl Fn(&crate::sample::DeviceSample) -> u16,
) -> JointAction {
    let rows: Vec<[u16; 3]> = sample.disks.iter().map(disk).collect();
    JointAction {
        disks: Array2::from_shape_fn((rows.len(), 3), |(r, h)| rows[r][h]),
        devices: Array2::from_shape_fn(
            (sample.devices.len(), spec.device_heads.len()),
            |(r, _)| device(&sample.devices[r]),
        ),
    }
}

fn masks(spec: &EnvSpec, sample: &HostSample) -> Masks {
    let channels = sample.channels.len();
    let mut disks = Array2::default((sample.disks.len(), spec.disk_levels(channels)));
    for (row, disk) in sample.disks.iter().enumerate() {
        let m = &disk.masks;
        let all = m.channel.iter().chain(&m.cache).chain(&m.polling);
        for (cell, reason) in disks.row_mut(row).iter_mut().zip(all) {
            *cell = *reason;
        }
    }
    let mut devices = Array2::from_elem(
        (sample.devices.len(), spec.device_levels(channels)),
        MaskReason::NotEnabled,
    );
    for (row, device) in sample.devices.iter().enumerate() {
        for (cell, reason) in devices.row_mut(row).iter_mut().zip(&device.scheduler_mask) {
            *cell = *reason;
        }
    }
    Masks { disks, devices }
}
