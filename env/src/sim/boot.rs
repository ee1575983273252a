//! The first sample of a simulated host: everything in place, all counters at zero.

use std::time::Duration;

use super::scenario::{DeviceModel, DiskModel, Scenario};
use super::simulation::SCHEDULERS;
use crate::observation::MaskReason;
use crate::sample::{
    ChannelSample, DeviceSample, DiskMasks, DiskSample, DiskSettings, HostGauges, HostSample,
    LATENCY_BUCKETS, OpCounters,
};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

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

pub(super) fn first_sample(scenario: &Scenario) -> HostSample {
    let channels = scenario.channels.len();
    let mut first_cpu = 0;
    HostSample {
        at: Duration::ZERO,
        disks: scenario
            .disks
            .iter()
            .map(|d| first_disk(d, channels))
            .collect(),
        channels: scenario
            .channels
            .iter()
            .enumerate()
            .map(|(k, c)| {
                let cpus = (first_cpu..first_cpu + c.cpus).collect();
                first_cpu += c.cpus;
                ChannelSample {
                    id: format!("core-{k}"),
                    cpus,
                    numa: c.numa,
                    hw_queues: 1,
                    busy_ns: 0,
                    vcpu_ns: Ok(0),
                }
            })
            .collect(),
        devices: scenario
            .devices
            .iter()
            .map(|d| first_device(d, scenario.schedulers))
            .collect(),
        host: HostGauges {
            cpus: scenario.channels.iter().map(|c| c.cpus).sum(),
            cpu_busy_ns: 0,
            mem_total_bytes: (scenario.memory_gib * GIB) as u64,
            mem_available_bytes: (scenario.cache_gib * GIB) as u64,
            dirty_bytes: 0,
            dirty_limit_bytes: (scenario.dirty_limit_gib * GIB) as u64,
            psi_cpu: Ok(0.0),
            psi_io: Ok(0.0),
            psi_memory: Ok(0.0),
        },
    }
}

fn first_disk(model: &DiskModel, channels: usize) -> DiskSample {
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
    DiskSample {
        id: format!("{}/{}", model.guest, model.target),
        device: model.device,
        group: model.iothread,
        settings,
        default: settings,
        masks: DiskMasks {
            channel: vec![lane_mask; channels + 1],
            cache: [MaskReason::Allowed; 2],
            polling: [lane_mask; 2],
        },
        reads: OpCounters::default(),
        writes: OpCounters::default(),
        flushes: 0,
        in_flight: Ok(0),
        device_read_bytes: Ok(0),
        latency_counts: Ok([0; LATENCY_BUCKETS]),
        iothread_cpu_ns: Ok(0),
        iothread_wait_ns: Ok(0),
        vcpu_share: (0..channels).map(vcpu_share).collect(),
        capacity_bytes: (model.capacity_gib * GIB) as u64,
        cached_bytes: Ok(0),
        dirty_bytes: Ok(0),
        since_change: Duration::from_secs(3600),
    }
}

fn first_device(model: &DeviceModel, schedulers: bool) -> DeviceSample {
    DeviceSample {
        id: model.name.clone(),
        class: model.class,
        numa: model.numa,
        hw_queues: model.hw_queues,
        reference: model.reference,
        reads: OpCounters::default(),
        writes: OpCounters::default(),
        busy_ns: 0,
        scheduler: 0,
        default_scheduler: 0,
        scheduler_mask: if schedulers {
            vec![MaskReason::Allowed; SCHEDULERS.len()]
        } else {
            vec![]
        },
    }
}
