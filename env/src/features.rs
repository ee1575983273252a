//! From a window of a host to an observation: the one place where features are computed, for live
//! and simulated hosts alike.

mod columns;

use std::time::Duration;

use ndarray::{Array2, Array3, ArrayViewMut1};

use crate::observation::{MaskReason, Observation, Table, Validity};
use crate::reward::{RewardConfig, reference_us};
use crate::sample::{Cache, DeviceClass, Polling, Reading};
use crate::spec::{EnvSpec, Level};
use crate::window::{DeviceRow, DiskRow, HostWindow};

use columns::{
    BOUND_CORES, BOUND_DISKS, BUFFERED_DISKS, CHANNEL, CHANNEL_BOUNDS, DEVICE, DEVICE_BOUNDS,
    DEVICE_DISKS, DISK, DISK_BOUNDS, GROUP_SIZE, HOST, HOST_BOUNDS, IS_CURRENT, IS_NUMA_LOCAL,
    PAIR, VCPU_SHARE,
};
pub use columns::{REWARD_WEIGHTS, kvm_host_spec};

/// Index of the `channel` head among the disk heads of a KVM host.
pub const CHANNEL_HEAD: usize = 0;
/// Index of the `cache` head.
pub const CACHE_HEAD: usize = 1;
/// Index of the `polling` head.
pub const POLLING_HEAD: usize = 2;

/// I/O schedulers of a device, as levels of the device head: those of blk-mq.
pub const SCHEDULERS: [&str; 4] = ["none", "mq-deadline", "kyber", "bfq"];

/// What an observation tells of beside the window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms<'a> {
    /// Length of one decision interval.
    pub interval: Duration,
    /// What is paid for: a policy sees the weights, so one that was trained under many serves under any of them.
    pub reward: &'a RewardConfig,
}

/// What is seen at the end of a window.
#[must_use]
pub fn observe(spec: &EnvSpec, window: &HostWindow, terms: Terms<'_>) -> Observation {
    let mut obs = Observation::default();
    observe_into(spec, window, terms, &mut obs);
    obs
}

/// As [`observe`], into buffers that are kept: nothing is allocated where disks, channels and
/// devices are those of the last call.
pub fn observe_into(spec: &EnvSpec, window: &HostWindow, terms: Terms<'_>, obs: &mut Observation) {
    lay_out(spec, window, obs);
    refresh(window, terms, obs);
}

/// Brings an observation that [`observe_into`] has made of a window of the same host up to date.
///
/// What a host has is left as it is: names, groups, masks, what would be in force without us, and
/// the features that are constants of a disk, a channel, a device or a pair.
///
/// # Panics
/// If the window has other numbers of disks, channels or devices than the observation.
pub fn refresh(window: &HostWindow, terms: Terms<'_>, obs: &mut Observation) {
    refresh_disks(window, terms.interval, obs);
    refresh_channels(window, obs);
    refresh_devices(window, obs);
    refresh_host(window, terms.reward, obs);
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
    let last_hits = disk.last_hits.ok_or(Validity::Idle);
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
        last_hits.map(|hits| hits.rate),
        last_hits.map(|hits| hits.cached_bytes / GIB),
        Ok(last_hits.map_or(f64::INFINITY, |hits| {
            hits.age.as_secs_f64() * intervals_per_s
        })),
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

fn refresh_host(window: &HostWindow, reward: &RewardConfig, obs: &mut Observation) {
    let host = &window.host;
    let objective = reward.slo_p99_us;
    let readings = [
        Ok(host.cpu_load),
        Ok(host.mem_available_bytes / host.mem_total_bytes.max(1.0)),
        Ok(host.dirty_bytes / host.dirty_limit_bytes.max(1.0)),
        host.psi_cpu.map(f64::from),
        host.psi_io.map(f64::from),
        host.psi_memory.map(f64::from),
        Ok(f64::from(host.cpus)),
        Ok(reward.cpu),
        Ok(reward.page_cache),
        Ok(reward.writeback),
        Ok(reward.change),
        Ok(objective.map_or(0.0, |_| reward.slo)),
        Ok(objective.unwrap_or(0.0)),
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
