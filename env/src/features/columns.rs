//! The columns of the tables, and the spec of a KVM host that they make.

use super::CACHE_HEAD;
use crate::reward::RewardTerm;
use crate::sample::Cache;
use crate::spec::{Autoreset, EnvSpec, Feature, Head, HeadScope, Levels, Projection, Scale, Unit};
use Scale::{Linear, Log};

/// Columns that are not written in the order of their table.
pub(super) const GROUP_SIZE: usize = position(&DISK, "group_size");
pub(super) const BOUND_DISKS: usize = position(&CHANNEL, "bound_disks");
pub(super) const BOUND_CORES: usize = position(&CHANNEL, "bound_cores");
pub(super) const IS_CURRENT: usize = position(&PAIR, "is_current");
pub(super) const VCPU_SHARE: usize = position(&PAIR, "vcpu_share");
pub(super) const IS_NUMA_LOCAL: usize = position(&PAIR, "is_numa_local");
pub(super) const BUFFERED_DISKS: usize = position(&DEVICE, "buffered_disks");
pub(super) const DEVICE_DISKS: usize = position(&DEVICE, "disks");

pub(super) const DISK_BOUNDS: [(f32, f32); DISK.len()] = bounds(&DISK);
pub(super) const CHANNEL_BOUNDS: [(f32, f32); CHANNEL.len()] = bounds(&CHANNEL);
pub(super) const DEVICE_BOUNDS: [(f32, f32); DEVICE.len()] = bounds(&DEVICE);
pub(super) const HOST_BOUNDS: [(f32, f32); HOST.len()] = bounds(&HOST);

/// Name, unit, least and greatest value, scale, description.
pub(super) type Column = (&'static str, Unit, f32, f32, Scale, &'static str);

pub(super) const DISK: [Column; 24] = [
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
    (
        "last_hit_rate",
        Unit::Share,
        0.0,
        1.0,
        Linear,
        "Hit rate when it was last buffered and read.",
    ),
    (
        "last_cached_gib",
        Unit::Gibibytes,
        0.0,
        65536.0,
        Log,
        "What was cached of it before; of a cold cache, a hit rate tells little.",
    ),
    (
        "intervals_since_hit_rate",
        Unit::Intervals,
        0.0,
        1000.0,
        Log,
        "Intervals since then; 1000 if it was not seen.",
    ),
];

pub(super) const CHANNEL: [Column; 5] = [
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

pub(super) const PAIR: [Column; 3] = [
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

pub(super) const DEVICE: [Column; 11] = [
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

pub(super) const HOST: [Column; 13] = [
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
    (
        "weight_cpu",
        Unit::Ratio,
        0.0,
        1.0,
        Linear,
        "Weight of CPU per request in the reward.",
    ),
    (
        "weight_page_cache",
        Unit::Ratio,
        0.0,
        1.0,
        Linear,
        "Weight of page cache in the reward.",
    ),
    (
        "weight_writeback",
        Unit::Ratio,
        0.0,
        1.0,
        Linear,
        "Weight of write-back that is owed in the reward.",
    ),
    (
        "weight_change",
        Unit::Ratio,
        0.0,
        1.0,
        Linear,
        "Weight of a changed setting in the reward.",
    ),
    (
        "weight_slo",
        Unit::Ratio,
        0.0,
        1.0,
        Linear,
        "Weight of a missed p99 objective in the reward; 0 without an objective.",
    ),
    (
        "slo_p99_us",
        Unit::Microseconds,
        0.0,
        1e7,
        Log,
        "The p99 objective; 0 for none.",
    ),
];

/// The columns of the host table that say what is paid for.
pub const REWARD_WEIGHTS: [&str; 6] = [
    "weight_cpu",
    "weight_page_cache",
    "weight_writeback",
    "weight_change",
    "weight_slo",
    "slo_p99_us",
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
