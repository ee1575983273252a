//! Scenarios by name, from the workloads the project started from.

use super::costs::Costs;
use super::scenario::{ChannelModel, DeviceModel, DiskModel, Phase, Scenario};
use crate::sample::{Cache, DeviceClass, DeviceReference, Polling};

/// Names that [`by_name`] knows.
pub const NAMES: [&str; 5] = [
    "mixed",
    "identical_disks",
    "poor_binding",
    "capped_device",
    "noisy_neighbour",
];

/// A scenario by name.
#[must_use]
pub fn by_name(name: &str) -> Option<Scenario> {
    Some(match name {
        "mixed" => mixed(),
        "identical_disks" => identical_disks(4, 4),
        "poor_binding" => poor_binding(),
        "capped_device" => capped_device(),
        "noisy_neighbour" => noisy_neighbour(),
        _ => return None,
    })
}

/// A PCIe 4 NVMe drive.
#[must_use]
pub fn nvme(name: &str) -> DeviceModel {
    DeviceModel {
        name: name.to_owned(),
        class: DeviceClass::Nvme,
        numa: 0,
        hw_queues: 16,
        reference: DeviceReference {
            read_us: 78.0,
            write_us: 18.0,
            bytes_per_sec: 6.5e9,
        },
        parallelism: 64.0,
        max_iops: None,
        gc_inflation: 1.5,
    }
}

/// A SATA drive.
#[must_use]
pub fn sata_ssd(name: &str) -> DeviceModel {
    DeviceModel {
        name: name.to_owned(),
        class: DeviceClass::SataSsd,
        numa: 0,
        hw_queues: 1,
        reference: DeviceReference {
            read_us: 110.0,
            write_us: 45.0,
            bytes_per_sec: 5.3e8,
        },
        parallelism: 10.0,
        max_iops: None,
        gc_inflation: 2.0,
    }
}

/// A 7,200 rpm disk: seek and half a turn for each small request.
#[must_use]
pub fn hdd(name: &str) -> DeviceModel {
    DeviceModel {
        name: name.to_owned(),
        class: DeviceClass::Hdd,
        numa: 0,
        hw_queues: 1,
        reference: DeviceReference {
            read_us: 8_000.0,
            write_us: 4_000.0,
            bytes_per_sec: 2.2e8,
        },
        parallelism: 1.0,
        max_iops: None,
        gc_inflation: 0.0,
    }
}

/// An NVMe drive behind a ceiling of `iops`, as under a tenant's cap or a busy neighbour.
#[must_use]
pub fn capped_nvme(name: &str, iops: f64) -> DeviceModel {
    DeviceModel {
        max_iops: Some(iops),
        ..nvme(name)
    }
}

/// Small random reads over a working set.
#[must_use]
pub fn random_read(outstanding: f64, working_set_gib: f64) -> Phase {
    Phase {
        outstanding,
        think_us: 0.0,
        read_share: 1.0,
        request_kib: 4.0,
        working_set_gib,
        skew: 0.6,
        flush_share: 0.0,
        mean_intervals: 20.0,
    }
}

fn host(name: &str, channels: usize, devices: Vec<DeviceModel>, disks: Vec<DiskModel>) -> Scenario {
    Scenario {
        name: name.to_owned(),
        interval_s: 1.0,
        steps: 64,
        noise: 0.05,
        memory_gib: 32.0,
        cache_gib: 16.0,
        dirty_limit_gib: 4.0,
        schedulers: false,
        costs: Costs::default(),
        channels: vec![
            ChannelModel {
                cpus: 1,
                numa: 0,
                background_cores: 0.0
            };
            channels
        ],
        devices,
        disks,
    }
}

fn disk(guest: &str, iothread: usize, phases: Vec<Phase>) -> DiskModel {
    DiskModel {
        guest: guest.to_owned(),
        target: "vda".to_owned(),
        device: 0,
        iothread: Some(iothread),
        vcpu_channel: None,
        vcpu_cores: 0.1,
        guest_us: 5.0,
        iothread_us: 8.0,
        capacity_gib: 64.0,
        default_channel: 0,
        default_cache: Cache::Direct,
        default_polling: Polling::Adaptive,
        phases,
    }
}

/// `disks` equal disks with an IOThread each on `channels` equal channels: one per channel is best.
#[must_use]
pub fn identical_disks(disks: usize, channels: usize) -> Scenario {
    let one = |i: usize| DiskModel {
        iothread_us: 12.0,
        guest_us: 2.0,
        vcpu_cores: 0.02,
        ..disk(
            &format!("guest-{i}"),
            i,
            vec![Phase {
                skew: 0.0,
                ..random_read(16.0, 64.0)
            }],
        )
    };
    host(
        "identical_disks",
        channels,
        vec![nvme("nvme0n1")],
        (0..disks).map(one).collect(),
    )
}

/// Guests whose IOThread shares a core with their own vCPUs, with free cores beside.
#[must_use]
pub fn poor_binding() -> Scenario {
    let one = |i: usize| DiskModel {
        vcpu_channel: Some(i),
        vcpu_cores: 0.7,
        default_channel: i as u16 + 1,
        iothread_us: 14.0,
        ..disk(&format!("guest-{i}"), i, vec![random_read(16.0, 60.0)])
    };
    host(
        "poor_binding",
        4,
        vec![nvme("nvme0n1")],
        (0..2).map(one).collect(),
    )
}

/// Working sets that fit the page cache, on a device with a ceiling: buffered is best.
#[must_use]
pub fn capped_device() -> Scenario {
    let one = |i: usize| DiskModel {
        capacity_gib: 0.5,
        ..disk(&format!("guest-{i}"), i, vec![random_read(4.0, 0.25)])
    };
    host(
        "capped_device",
        4,
        vec![capped_nvme("nvme0n1", 4000.0)],
        (0..2).map(one).collect(),
    )
}

/// A latency-sensitive reader beside a writer that keeps 256 requests outstanding.
#[must_use]
pub fn noisy_neighbour() -> Scenario {
    let writer = Phase {
        read_share: 0.0,
        request_kib: 64.0,
        ..random_read(256.0, 60.0)
    };
    let disks = vec![
        disk("victim", 0, vec![random_read(1.0, 60.0)]),
        disk("neighbour", 1, vec![writer]),
    ];
    Scenario {
        schedulers: true,
        ..host("noisy_neighbour", 4, vec![sata_ssd("sda")], disks)
    }
}

/// Trading, IoT ingestion, image builds and backup on one host with an NVMe and a capped drive.
#[must_use]
pub fn mixed() -> Scenario {
    let idle = Phase {
        outstanding: 0.0,
        mean_intervals: 6.0,
        ..random_read(1.0, 1.0)
    };
    let trading = Phase {
        read_share: 0.7,
        flush_share: 0.3,
        think_us: 60.0,
        ..random_read(4.0, 3.0)
    };
    let ingestion = Phase {
        read_share: 0.05,
        request_kib: 16.0,
        flush_share: 0.05,
        ..random_read(32.0, 40.0)
    };
    let build = Phase {
        read_share: 0.6,
        request_kib: 32.0,
        think_us: 200.0,
        ..random_read(8.0, 4.0)
    };
    let backup = Phase {
        request_kib: 512.0,
        skew: 0.0,
        mean_intervals: 30.0,
        ..random_read(4.0, 60.0)
    };
    let disks = vec![
        DiskModel {
            vcpu_channel: Some(0),
            vcpu_cores: 0.5,
            default_channel: 1,
            ..disk("trading", 0, vec![trading.clone(), idle.clone()])
        },
        DiskModel {
            vcpu_cores: 0.4,
            ..disk("ingestion", 1, vec![ingestion, idle.clone()])
        },
        DiskModel {
            device: 1,
            capacity_gib: 8.0,
            ..disk("builds", 2, vec![build, idle.clone()])
        },
        DiskModel {
            device: 1,
            default_polling: Polling::Off,
            ..disk("backup", 3, vec![backup, idle])
        },
    ];
    host(
        "mixed",
        4,
        vec![nvme("nvme0n1"), capped_nvme("nvme1n1", 6000.0)],
        disks,
    )
}
