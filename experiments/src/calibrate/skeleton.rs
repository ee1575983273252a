//! A scenario of what can be read off a recording: channels, devices, disks and workloads.

use blkpilot_env::sample::{Cache, DeviceClass};
use blkpilot_env::sim::Costs;
use blkpilot_env::sim::scenario::{ChannelModel, DeviceModel, DiskModel, Phase, Scenario};
use blkpilot_env::window::{DeviceRow, DiskRow};

use super::settings::{Measured, Recorded, Setting, median};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Smallest working set, GiB.
const LEAST_GIB: f64 = 1e-6;

/// The scenario that `seen` settings of a recording suggest, unfitted. Nothing of the other settings
/// is used but what is the same in all: what the host consists of.
#[must_use]
pub fn skeleton(recorded: &Recorded, seen: &[usize]) -> Scenario {
    let settings: Vec<&Setting> = seen.iter().map(|i| &recorded.settings[*i]).collect();
    let host = &recorded.host.host;
    let memory_gib = (host.mem_total_bytes / GIB).max(1e-3);
    let gib = |bytes: f64| (bytes / GIB).clamp(LEAST_GIB, memory_gib);
    Scenario {
        name: "calibrated".to_owned(),
        interval_s: recorded.span_s,
        steps: 64,
        noise: recorded.noise.clamp(0.0, 1.0),
        memory_gib,
        cache_gib: gib(host.mem_available_bytes),
        dirty_limit_gib: gib(host.dirty_limit_bytes),
        schedulers: recorded
            .host
            .devices
            .iter()
            .any(|d| !d.scheduler_mask.is_empty()),
        costs: Costs::default(),
        channels: channels(recorded, &settings),
        devices: recorded.host.devices.iter().map(device).collect(),
        disks: (0..recorded.host.disks.len())
            .map(|disk| disk_model(recorded, &settings, disk))
            .collect(),
    }
}

fn channels(recorded: &Recorded, settings: &[&Setting]) -> Vec<ChannelModel> {
    let cpus: usize = recorded.host.channels.iter().map(|c| c.cpus).sum();
    let other = median(settings.iter().filter_map(|s| s.other_cores).collect()).unwrap_or(0.0);
    let channel = |c: &blkpilot_env::window::ChannelRow| ChannelModel {
        cpus: c.cpus as u32,
        numa: c.numa,
        background_cores: other * c.cpus as f64 / cpus.max(1) as f64,
    };
    recorded.host.channels.iter().map(channel).collect()
}

fn device(row: &DeviceRow) -> DeviceModel {
    DeviceModel {
        name: row.id.clone(),
        class: row.class,
        numa: row.numa,
        hw_queues: 1,
        reference: row.reference,
        parallelism: match row.class {
            DeviceClass::Hdd => 1.0,
            DeviceClass::SataSsd => 10.0,
            DeviceClass::Nvme => 64.0,
        },
        max_iops: None,
        gc_inflation: 0.0,
        erased_gib: 0.0,
        erase_bytes_per_sec: 0.0,
        sequential_service: 1.0,
        merge_kib: 0.0,
    }
}

fn disk_model(recorded: &Recorded, settings: &[&Setting], disk: usize) -> DiskModel {
    let row = &recorded.host.disks[disk];
    let (guest, target) = row.id.rsplit_once('/').unwrap_or((&row.id, "vda"));
    DiskModel {
        guest: guest.to_owned(),
        target: target.to_owned(),
        device: row.device,
        iothread: row.group,
        vcpu_channel: row.vcpu_share.iter().position(|share| *share > 0.99),
        vcpu_cores: 0.0,
        guest_us: 5.0,
        iothread_us: 8.0,
        capacity_gib: (row.capacity_bytes / GIB).max(LEAST_GIB),
        default_channel: if row.group.is_some() {
            row.default.channel
        } else {
            0
        },
        default_cache: row.default.cache,
        default_polling: row.default.polling,
        phases: vec![workload(row, settings, disk)],
    }
}

/// A closed loop with the greatest queue depth that was seen, idle where nothing was.
fn workload(row: &DiskRow, settings: &[&Setting], disk: usize) -> Phase {
    let seen: Vec<&Measured> = settings
        .iter()
        .filter_map(|s| s.disks[disk].as_ref())
        .collect();
    let of = |f: &dyn Fn(&Measured) -> f64| median(seen.iter().map(|m| f(m)).collect());
    let capacity_gib = (row.capacity_bytes / GIB).max(LEAST_GIB);
    Phase {
        outstanding: seen.iter().map(|m| m.queue_depth).fold(0.0, f64::max),
        arrivals_per_s: None,
        think_us: 0.0,
        read_share: of(&|m| m.read_share).unwrap_or(1.0).clamp(0.0, 1.0),
        request_kib: of(&|m| m.request_bytes / 1024.0)
            .unwrap_or(4.0)
            .clamp(0.5, 65536.0),
        working_set_gib: working_set_gib(settings, disk)
            .unwrap_or(capacity_gib)
            .min(capacity_gib),
        skew: 0.0,
        sequential_share: 0.0,
        flush_share: of(&|m| m.flush_share).unwrap_or(0.0).clamp(0.0, 1.0),
        snapshot: false,
        next: vec![],
        mean_intervals: 20.0,
    }
}

/// What the page cache held of a buffered disk.
fn working_set_gib(settings: &[&Setting], disk: usize) -> Option<f64> {
    let buffered = settings
        .iter()
        .filter(|s| s.of_disk(disk).cache == Cache::Buffered);
    let cached = buffered.filter_map(|s| s.disks[disk].as_ref()?.cached_bytes);
    let most = cached.fold(0.0, f64::max);
    (most > 0.0).then(|| (most / GIB).max(LEAST_GIB))
}
