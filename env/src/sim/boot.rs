//! The window of a simulated host before anything has happened: names, masks and settings in place.

use super::scenario::{ChannelModel, DeviceModel, DiskModel, Scenario};
use crate::features::SCHEDULERS;
use crate::observation::{MaskReason, Validity};
use crate::sample::{DiskMasks, DiskSettings};
use crate::window::{
    ChannelRow, DeviceRow, DeviceWindow, DiskRow, DiskWindow, HostRow, HostWindow,
};

pub(super) const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// The lane of each disk and the number of lanes: one per IOThread, one per disk without.
pub(super) fn lanes_of(scenario: &Scenario) -> (Vec<usize>, usize) {
    let mut lanes: Vec<Option<usize>> = Vec::new();
    let lane_of = scenario
        .disks
        .iter()
        .map(|disk| {
            match lanes
                .iter()
                .position(|l| l.is_some() && *l == disk.iothread)
            {
                Some(lane) => lane,
                None => {
                    lanes.push(disk.iothread);
                    lanes.len() - 1
                }
            }
        })
        .collect();
    (lane_of, lanes.len())
}

pub(super) fn first_window(scenario: &Scenario) -> HostWindow {
    let channels = scenario.channels.len();
    HostWindow {
        span_s: scenario.interval_s,
        began_with: (0..scenario.disks.len()).map(Some).collect(),
        disks: scenario
            .disks
            .iter()
            .map(|d| first_disk(d, channels))
            .collect(),
        channels: scenario
            .channels
            .iter()
            .enumerate()
            .map(first_channel)
            .collect(),
        devices: scenario
            .devices
            .iter()
            .map(|d| first_device(d, scenario.schedulers))
            .collect(),
        host: HostRow {
            cpus: scenario.channels.iter().map(|c| c.cpus).sum(),
            cpu_load: 0.0,
            mem_total_bytes: scenario.memory_gib * GIB,
            mem_available_bytes: scenario.cache_gib * GIB,
            dirty_bytes: 0.0,
            dirty_limit_bytes: scenario.dirty_limit_gib * GIB,
            psi_cpu: Ok(0.0),
            psi_io: Ok(0.0),
            psi_memory: Ok(0.0),
        },
    }
}

fn first_disk(model: &DiskModel, channels: usize) -> DiskRow {
    let settings = DiskSettings {
        channel: model.default_channel,
        cache: model.default_cache,
        polling: model.default_polling,
    };
    let lane_mask = if model.iothread.is_some() {
        MaskReason::Allowed
    } else {
        MaskReason::NoIoThread
    };
    let vcpu_share = |k: usize| match model.vcpu_channel {
        Some(pinned) => f32::from(u8::from(pinned == k)),
        None => 1.0 / channels as f32,
    };
    DiskRow {
        id: format!("{}/{}", model.guest, model.target),
        device: model.device,
        group: model.iothread,
        settings_before: settings,
        settings,
        default: settings,
        masks: DiskMasks {
            channel: vec![lane_mask; channels + 1],
            cache: [MaskReason::Allowed; 2],
            polling: [lane_mask; 2],
        },
        vcpu_share: (0..channels).map(vcpu_share).collect(),
        capacity_bytes: model.capacity_gib * GIB,
        since_change_s: 3600.0,
        last_hits: None,
        in_flight: Ok(0),
        cached_bytes: Ok(0.0),
        dirty_bytes: Ok(0.0),
        did: DiskWindow::unknown(Validity::Idle),
    }
}

fn first_channel((k, model): (usize, &ChannelModel)) -> ChannelRow {
    ChannelRow {
        id: format!("core-{k}"),
        cpus: model.cpus as usize,
        numa: model.numa,
        cpu_load: 0.0,
        vcpu_load: Ok(0.0),
    }
}

fn first_device(model: &DeviceModel, schedulers: bool) -> DeviceRow {
    DeviceRow {
        id: model.name.clone(),
        class: model.class,
        numa: model.numa,
        reference: model.reference,
        scheduler_before: 0,
        scheduler: 0,
        default_scheduler: 0,
        scheduler_mask: if schedulers {
            vec![MaskReason::Allowed; SCHEDULERS.len()]
        } else {
            vec![]
        },
        did: DeviceWindow::unknown(Validity::Idle),
    }
}
