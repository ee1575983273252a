//! From a window of a host to an observation: the one place where features are computed, for live
//! and simulated hosts alike.

use std::time::Duration;

use ndarray::{Array2, Array3, ArrayViewMut1};

use crate::observation::{MaskReason, Observation, Table, Validity};
use crate::reward::{RewardTerm, reference_us};
use crate::sample::{Cache, DeviceClass, Polling, Reading};
use crate::spec::{
    Autoreset, EnvSpec, Feature, Head, HeadScope, Level, Levels, Projection, Scale, Unit,
};
use crate::window::{DeviceRow, DiskRow, HostWindow};

/// Index of the `channel` head among the disk heads of a KVM host.
pub const CHANNEL_HEAD: usize = 0;
/// Index of the `cache` head.
pub const CACHE_HEAD: usize = 1;
/// Index of the `polling` head.
pub const POLLING_HEAD: usize = 2;

/// Columns that are not written in the order of their table.
const GROUP_SIZE: usize = position(&DISK, "group_size");
const BOUND_DISKS: usize = position(&CHANNEL, "bound_disks");
const BOUND_CORES: usize = position(&CHANNEL, "bound_cores");
const IS_CURRENT: usize = position(&PAIR, "is_current");
const VCPU_SHARE: usize = position(&PAIR, "vcpu_share");
const IS_NUMA_LOCAL: usize = position(&PAIR, "is_numa_local");
const BUFFERED_DISKS: usize = position(&DEVICE, "buffered_disks");
const DEVICE_DISKS: usize = position(&DEVICE, "disks");

const DISK_BOUNDS: [(f32, f32); DISK.len()] = bounds(&DISK);
const CHANNEL_BOUNDS: [(f32, f32); CHANNEL.len()] = bounds(&CHANNEL);
const DEVICE_BOUNDS: [(f32, f32); DEVICE.len()] = bounds(&DEVICE);
const HOST_BOUNDS: [(f32, f32); HOST.len()] = bounds(&HOST);

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
                feature: BOUND_DISKS,
            },
            Projection::ChannelSum {
                feature: BOUND_CORES,
                disk_feature: position(&DISK, "iothread_cores"),
            },
            Projection::DeviceCount {
                feature: BUFFERED_DISKS,
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

/// The place of a column in its table, found when this is compiled.
const fn position(columns: &[Column], name: &str) -> usize {
    let mut place = 0;
    while !is_equal(columns[place].0, name) {
        place += 1;
    }
    place
}

const fn bounds<const COLUMNS: usize>(columns: &[Column; COLUMNS]) -> [(f32, f32); COLUMNS] {
    let mut bounds = [(0.0, 0.0); COLUMNS];
    let mut place = 0;
    while place < COLUMNS {
        bounds[place] = (columns[place].2, columns[place].3);
        place += 1;
    }
    bounds
}

const fn is_equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut same = 0;
    while same < a.len() && same < b.len() && a[same] == b[same] {
        same += 1;
    }
    same == a.len() && same == b.len()
}

/// What is seen at the end of a window. `interval` is the length of one decision interval.
#[must_use]
pub fn observe(spec: &EnvSpec, window: &HostWindow, interval: Duration) -> Observation {
    let mut obs = Observation::default();
    observe_into(spec, window, interval, &mut obs);
    obs
}

/// As [`observe`], into buffers that are kept: nothing is allocated where disks, channels and
/// devices are those of the last call.
pub fn observe_into(
    spec: &EnvSpec,
    window: &HostWindow,
    interval: Duration,
    obs: &mut Observation,
) {
    lay_out(spec, window, obs);
    refresh(window, interval, obs);
}

/// Brings an observation that [`observe_into`] has made of a window of the same host up to date.
///
/// What a host has is left as it is: names, groups, masks, what would be in force without us, and
/// the features that are constants of a disk, a channel, a device or a pair.
///
/// # Panics
/// If the window has other numbers of disks, channels or devices than the observation.
pub fn refresh(window: &HostWindow, interval: Duration, obs: &mut Observation) {
    refresh_disks(window, interval, obs);
    refresh_channels(window, obs);
    refresh_devices(window, obs);
    refresh_host(window, obs);
}

/// Gives the observation the window's shapes and writes what only changes with the host itself.
fn lay_out(spec: &EnvSpec, window: &HostWindow, obs: &mut Observation) {
    let (disks, channels) = (window.disks.len(), window.channels.len());
    let devices = window.devices.len();
    set_names(&mut obs.disk_ids, window.disks.iter().map(|d| &d.id));
    set_names(&mut obs.channel_ids, window.channels.iter().map(|c| &c.id));
    set_names(&mut obs.device_ids, window.devices.iter().map(|d| &d.id));
    obs.disks.reshape(disks, DISK.len());
    obs.channels.reshape(channels, CHANNEL.len());
    obs.devices.reshape(devices, DEVICE.len());
    obs.host.reshape(1, HOST.len());
    if obs.pairs.dim() != (disks, channels, PAIR.len()) {
        obs.pairs = Array3::zeros((disks, channels, PAIR.len()));
    }
    for action in [&mut obs.current, &mut obs.default] {
        reshape(&mut action.disks, (disks, spec.disk_heads.len()));
        reshape(&mut action.devices, (devices, spec.device_heads.len()));
    }
    let masks = &mut obs.masks;
    reshape(&mut masks.disks, (disks, spec.disk_levels(channels)));
    reshape(&mut masks.devices, (devices, spec.device_levels(channels)));
    lay_out_disks(window, obs);
    lay_out_devices(window, obs);
}

fn lay_out_disks(window: &HostWindow, obs: &mut Observation) {
    obs.disk_device.clear();
    obs.disk_device
        .extend(window.disks.iter().map(|d| d.device));
    obs.disk_group.clear();
    obs.disk_group.extend(window.disks.iter().map(|d| d.group));
    for (row, disk) in window.disks.iter().enumerate() {
        set_levels(obs.default.disks.row_mut(row), disk.default.levels());
        let masks = &disk.masks;
        let levels = masks.channel.iter().chain(&masks.cache);
        set_masks(obs.masks.disks.row_mut(row), levels.chain(&masks.polling));
        let node = window.devices[disk.device].numa;
        for (channel, row_of_channel) in window.channels.iter().enumerate() {
            obs.pairs[[row, channel, VCPU_SHARE]] =
                disk.vcpu_share.get(channel).copied().unwrap_or(0.0);
            obs.pairs[[row, channel, IS_NUMA_LOCAL]] =
                f32::from(u8::from(row_of_channel.numa == node));
            obs.pairs[[row, channel, IS_CURRENT]] = 0.0;
        }
        set_levels(obs.current.disks.row_mut(row), disk.settings.levels());
        mark_current(&mut obs.pairs, row, disk.settings.channel, 1.0);
    }
    for row in 0..window.disks.len() {
        let size = group_size(window, row) as f32;
        obs.disks.values[[row, GROUP_SIZE]] = size.min(DISK_BOUNDS[GROUP_SIZE].1);
    }
}

fn lay_out_devices(window: &HostWindow, obs: &mut Observation) {
    for (row, device) in window.devices.iter().enumerate() {
        set_levels(obs.default.devices.row_mut(row), [device.default_scheduler]);
        set_masks(obs.masks.devices.row_mut(row), &device.scheduler_mask);
    }
    obs.devices.values.column_mut(DEVICE_DISKS).fill(0.0);
    let mut rows = Rows::of(&mut obs.devices, &DEVICE_BOUNDS);
    for disk in &window.disks {
        rows.add(disk.device, DEVICE_DISKS, 1.0);
    }
}

/// Disks on the IOThread of one, itself included.
fn group_size(window: &HostWindow, row: usize) -> usize {
    let group = window.disks[row].group;
    match group {
        None => 1,
        Some(_) => window.disks.iter().filter(|d| d.group == group).count(),
    }
}

fn refresh_disks(window: &HostWindow, interval: Duration, obs: &mut Observation) {
    assert_eq!(window.disks.len(), obs.disks.rows(), "one row per disk");
    let intervals_per_s = 1.0 / interval.as_secs_f64().max(1e-9);
    let mut rows = Rows::of(&mut obs.disks, &DISK_BOUNDS);
    for (row, disk) in window.disks.iter().enumerate() {
        let group_size = rows.value(row, GROUP_SIZE);
        rows.write(
            row,
            disk_readings(window, disk, group_size, intervals_per_s),
        );
    }
    let heads = obs.current.disks.ncols();
    let current = slice_of(&mut obs.current.disks);
    for (row, (levels, disk)) in current
        .chunks_exact_mut(heads)
        .zip(&window.disks)
        .enumerate()
    {
        let (was, is) = (levels[CHANNEL_HEAD], disk.settings.channel);
        levels.copy_from_slice(&disk.settings.levels());
        if was != is {
            mark_current(&mut obs.pairs, row, was, 0.0);
            mark_current(&mut obs.pairs, row, is, 1.0);
        }
    }
}

fn mark_current(pairs: &mut Array3<f32>, row: usize, level: Level, mark: f32) {
    let channel = usize::from(level).checked_sub(1);
    if let Some(cell) = channel.and_then(|channel| pairs.get_mut([row, channel, IS_CURRENT])) {
        *cell = mark;
    }
}

fn disk_readings(
    window: &HostWindow,
    disk: &DiskRow,
    group_size: f32,
    intervals_per_s: f64,
) -> [Reading<f64>; DISK.len()] {
    let (did, settings, host) = (&disk.did, disk.settings, &window.host);
    [
        did.queue_depth,
        Ok(window.cpu_load(settings.channel)),
        did.hit_rate,
        did.iops,
        did.latency_us_mean,
        did.latency_us_p99,
        slowdown(window, disk),
        did.read_share,
        did.request_bytes.map(|bytes| bytes / 1024.0),
        did.flush_share,
        did.iothread_cores,
        did.run_delay,
        flag(settings.cache == Cache::Buffered),
        flag(settings.polling == Polling::Adaptive),
        flag(settings.channel != 0),
        flag(disk.group.is_some()),
        Ok(f64::from(group_size)),
        Ok(disk.since_change_s * intervals_per_s),
        Ok(disk.capacity_bytes / GIB),
        disk.cached_bytes.map(|bytes| bytes / host.mem_total_bytes),
        Ok(host.mem_available_bytes / disk.capacity_bytes.max(1.0)),
    ]
}

/// Mean latency over that of the same requests on the idle device.
fn slowdown(window: &HostWindow, disk: &DiskRow) -> Reading<f64> {
    let (share, bytes) = (disk.did.read_share?, disk.did.request_bytes?);
    let reference = &window.devices[disk.device].reference;
    Ok(disk.did.latency_us_mean? / reference_us(reference, share, bytes))
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

fn refresh_channels(window: &HostWindow, obs: &mut Observation) {
    assert_eq!(window.channels.len(), obs.channels.rows(), "one row each");
    let mut rows = Rows::of(&mut obs.channels, &CHANNEL_BOUNDS);
    for (row, channel) in window.channels.iter().enumerate() {
        let readings = [
            Ok(channel.cpu_load),
            channel.vcpu_load,
            Ok(0.0), // bound_disks and bound_cores: summed up below
            Ok(0.0),
            Ok(channel.cpus as f64),
        ];
        rows.write(row, readings);
    }
    for disk in &window.disks {
        let bound = usize::from(disk.settings.channel).wrapping_sub(1);
        if bound < window.channels.len() {
            let cores = disk.did.iothread_cores.unwrap_or(0.0).min(1.0);
            rows.add(bound, BOUND_DISKS, 1.0);
            rows.add(bound, BOUND_CORES, cores as f32);
        }
    }
}

fn refresh_devices(window: &HostWindow, obs: &mut Observation) {
    assert_eq!(window.devices.len(), obs.devices.rows(), "one row each");
    let mut rows = Rows::of(&mut obs.devices, &DEVICE_BOUNDS);
    for (row, device) in window.devices.iter().enumerate() {
        set_levels(obs.current.devices.row_mut(row), [device.scheduler]);
        let disks = rows.value(row, DEVICE_DISKS);
        rows.write(row, device_readings(device, disks));
    }
    for disk in &window.disks {
        if disk.settings.cache == Cache::Buffered {
            rows.add(disk.device, BUFFERED_DISKS, 1.0);
        }
    }
}

fn device_readings(device: &DeviceRow, disks: f32) -> [Reading<f64>; DEVICE.len()] {
    let did = &device.did;
    [
        did.utilisation,
        did.iops,
        did.bytes_per_sec.map(|b| b / 1_048_576.0),
        did.await_us,
        did.queue_depth,
        did.write_share,
        Ok(device.reference.read_us),
        flag(device.class == DeviceClass::Hdd),
        Ok(0.0), // buffered_disks: summed up afterwards
        Ok(f64::from(disks)),
        Ok(f64::from(device.scheduler)),
    ]
}

fn refresh_host(window: &HostWindow, obs: &mut Observation) {
    let host = &window.host;
    let readings = [
        Ok(host.cpu_load),
        Ok(host.mem_available_bytes / host.mem_total_bytes.max(1.0)),
        Ok(host.dirty_bytes / host.dirty_limit_bytes.max(1.0)),
        host.psi_cpu.map(f64::from),
        host.psi_io.map(f64::from),
        host.psi_memory.map(f64::from),
        Ok(f64::from(host.cpus)),
    ];
    Rows::of(&mut obs.host, &HOST_BOUNDS).write(0, readings);
}

/// The rows of a table, written one reading per column and clipped to the columns' bounds.
struct Rows<'a, const COLUMNS: usize> {
    values: &'a mut [f32],
    validity: &'a mut [Validity],
    bounds: &'static [(f32, f32); COLUMNS],
}

impl<'a, const COLUMNS: usize> Rows<'a, COLUMNS> {
    fn of(table: &'a mut Table, bounds: &'static [(f32, f32); COLUMNS]) -> Self {
        Self {
            values: slice_of(&mut table.values),
            validity: slice_of(&mut table.validity),
            bounds,
        }
    }

    fn write(&mut self, row: usize, readings: [Reading<f64>; COLUMNS]) {
        let cells = row * COLUMNS..(row + 1) * COLUMNS;
        let values = self.values[cells.clone()].iter_mut();
        let cells = values.zip(&mut self.validity[cells]).zip(self.bounds);
        for (((value, validity), (low, high)), reading) in cells.zip(readings) {
            (*value, *validity) = match reading {
                Ok(read) => ((read as f32).max(*low).min(*high), Validity::Valid),
                Err(why) => (0.0, why),
            };
        }
    }

    fn value(&self, row: usize, column: usize) -> f32 {
        self.values[row * COLUMNS + column]
    }

    /// Adds to a value, up to its bound.
    fn add(&mut self, row: usize, column: usize, gain: f32) {
        let value = &mut self.values[row * COLUMNS + column];
        *value = (*value + gain).min(self.bounds[column].1);
    }
}

fn slice_of<T>(array: &mut Array2<T>) -> &mut [T] {
    array.as_slice_mut().expect("tables are in standard layout")
}

fn flag(set: bool) -> Reading<f64> {
    Ok(f64::from(u8::from(set)))
}

/// Gives an array its shape; where it has it, its values stay.
fn reshape<T: Clone + Default>(array: &mut Array2<T>, shape: (usize, usize)) {
    if array.dim() != shape {
        *array = Array2::default(shape);
    }
}

fn set_names<'a>(names: &mut Vec<String>, from: impl ExactSizeIterator<Item = &'a String>) {
    names.resize_with(from.len(), String::new);
    for (name, from) in names.iter_mut().zip(from) {
        name.clone_from(from);
    }
}

fn set_levels<const HEADS: usize>(mut row: ArrayViewMut1<'_, Level>, levels: [Level; HEADS]) {
    for (cell, level) in row.iter_mut().zip(levels) {
        *cell = level;
    }
}

/// Levels that a mask does not speak of are not enabled.
fn set_masks<'a>(
    mut row: ArrayViewMut1<'_, MaskReason>,
    masks: impl IntoIterator<Item = &'a MaskReason>,
) {
    row.fill(MaskReason::NotEnabled);
    for (cell, mask) in row.iter_mut().zip(masks) {
        *cell = *mask;
    }
}
