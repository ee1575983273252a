//! What a host reports at one instant: cumulative counters and a few gauges. Two of them make a
//! [`crate::window::HostWindow`], from which everything shown to an agent and every reward is
//! computed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observation::{MaskReason, Validity};
use crate::spec::Level;

/// Upper bounds of the latency histogram's buckets, in microseconds; one more bucket holds the rest.
/// About four per decade, from a page-cache hit to a stalled disk.
pub const LATENCY_BOUNDS_US: [u32; 28] = [
    1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 130, 200, 320, 500, 800, 1_300, 2_000, 3_200, 5_000, 8_000,
    13_000, 20_000, 32_000, 50_000, 80_000, 200_000, 1_000_000, 5_000_000,
];

/// Buckets of the latency histogram.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// A reading that may be missing, with the reason.
pub type Reading<T> = Result<T, Validity>;

/// Cache strategy of a disk. Its level is its position here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// O_DIRECT: the host page cache is bypassed.
    Direct,
    /// Through the host page cache.
    Buffered,
}

/// Polling of an IOThread. Its level is its position here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Polling {
    /// The IOThread sleeps as soon as it has nothing to do (`poll-max-ns` 0).
    Off,
    /// QEMU's adaptive polling.
    Adaptive,
}

/// What is in force on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSettings {
    /// 0 = float, k = bound to channel k − 1.
    pub channel: Level,
    /// Cache strategy.
    pub cache: Cache,
    /// Polling of its IOThread.
    pub polling: Polling,
}

impl DiskSettings {
    /// The settings as levels, in the order of the disk heads.
    #[must_use]
    pub fn levels(self) -> [Level; 3] {
        [self.channel, self.cache as Level, self.polling as Level]
    }

    /// The settings that levels stand for; `None` if a level is not one of a disk head.
    #[must_use]
    pub fn from_levels(levels: [Level; 3]) -> Option<Self> {
        let cache = match levels[1] {
            0 => Cache::Direct,
            1 => Cache::Buffered,
            _ => return None,
        };
        let polling = match levels[2] {
            0 => Polling::Off,
            1 => Polling::Adaptive,
            _ => return None,
        };
        Some(Self {
            channel: levels[0],
            cache,
            polling,
        })
    }
}

/// What may be chosen for a disk now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMasks {
    /// `[K + 1]`.
    pub channel: Vec<MaskReason>,
    /// Direct, buffered.
    pub cache: [MaskReason; 2],
    /// Off, adaptive.
    pub polling: [MaskReason; 2],
}

impl DiskMasks {
    /// Everything masked for one reason.
    #[must_use]
    pub fn all(channels: usize, reason: MaskReason) -> Self {
        Self {
            channel: vec![reason; channels + 1],
            cache: [reason; 2],
            polling: [reason; 2],
        }
    }
}

/// Completed requests of one direction since the guest started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OpCounters {
    /// Requests completed.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Time from submission to completion, summed over requests, nanoseconds.
    pub time_ns: u64,
}

/// One virtual disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskSample {
    /// `guest/target`.
    pub id: String,
    /// Row of the device that does its work.
    pub device: usize,
    /// Its IOThread, numbered over the host; `None` for a disk that runs in the main loop.
    pub group: Option<usize>,
    /// What is in force.
    pub settings: DiskSettings,
    /// What would be in force without us.
    pub default: DiskSettings,
    /// What may be chosen now.
    pub masks: DiskMasks,
    /// Completed reads.
    pub reads: OpCounters,
    /// Completed writes.
    pub writes: OpCounters,
    /// Completed flushes.
    pub flushes: u64,
    /// Requests in flight now.
    pub in_flight: Reading<u32>,
    /// Bytes of reads that went to the device: the rest were cache hits.
    pub device_read_bytes: Reading<u64>,
    /// Completed requests by latency, in the buckets of [`LATENCY_BOUNDS_US`].
    pub latency_counts: Reading<[u64; LATENCY_BUCKETS]>,
    /// CPU time of its IOThread (shared evenly among its disks), nanoseconds.
    pub iothread_cpu_ns: Reading<u64>,
    /// Time its IOThread was runnable but not running (shared evenly), nanoseconds.
    pub iothread_wait_ns: Reading<u64>,
    /// For each channel, the share of the guest's vCPUs that may run there; `[K]`.
    pub vcpu_share: Vec<f32>,
    /// Size of the image as the guest sees it, bytes.
    pub capacity_bytes: u64,
    /// Its pages in the host page cache, bytes.
    pub cached_bytes: Reading<u64>,
    /// Its pages that have to be written back, bytes.
    pub dirty_bytes: Reading<u64>,
    /// Time since we last changed one of its settings.
    pub since_change: Duration,
    /// What the page cache did for it when it last could; `None` if it was not seen.
    #[serde(default)]
    pub last_hits: Option<LastHits>,
}

/// What the page cache did for a disk's reads in the last window in which it was buffered and read.
///
/// A disk that is direct shows nothing of it: who does not remember tries the cache again and again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastHits {
    /// Share of read bytes served by the host page cache.
    pub rate: f64,
    /// Its pages in the host page cache when that window began, bytes: few where the cache was cold, and then the rate
    /// tells little.
    pub cached_bytes: f64,
    /// Time since the end of that window.
    pub age: Duration,
}

/// What one window showed of a disk's cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheUse {
    /// What was in force at its end.
    pub cache: Cache,
    /// Completed reads.
    pub reads: f64,
    /// Share of read bytes served by the host page cache.
    pub hit_rate: Reading<f64>,
    /// Pages in the host page cache when it began, bytes.
    pub cached_bytes: Reading<f64>,
}

impl LastHits {
    /// Fewer reads than these tell nothing.
    pub const LEAST_READS: f64 = 32.0;

    /// What is known after a window that is `span` long, from what was known before it and what it showed.
    #[must_use]
    pub fn after(before: Option<Self>, span: Duration, seen: CacheUse) -> Option<Self> {
        let tells = seen.cache == Cache::Buffered && seen.reads >= Self::LEAST_READS;
        match (seen.hit_rate, seen.cached_bytes) {
            (Ok(rate), Ok(cached_bytes)) if tells => Some(Self {
                rate,
                cached_bytes,
                age: Duration::ZERO,
            }),
            _ => before.map(|known| Self {
                age: known.age + span,
                ..known
            }),
        }
    }
}

/// Kind of a backing device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceClass {
    /// Rotating.
    Hdd,
    /// SATA or SAS flash.
    SataSsd,
    /// NVMe flash.
    Nvme,
}

impl DeviceClass {
    /// The environment factor of the loss model: what part of the loss virtualisation accounts for
    /// (0.78 on flash, where NAND program time dominates; 0.93 on disks).
    #[must_use]
    pub fn environment_factor(self) -> f64 {
        match self {
            Self::Hdd => 0.93,
            Self::SataSsd | Self::Nvme => 0.78,
        }
    }
}

/// What the device does for an unvirtualised, uncontended request: the reference of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceReference {
    /// Latency of a small read, microseconds.
    pub read_us: f64,
    /// Latency of a small write, microseconds.
    pub write_us: f64,
    /// Bandwidth, bytes per second.
    pub bytes_per_sec: f64,
}

/// One backing device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceSample {
    /// Kernel name.
    pub id: String,
    /// Kind.
    pub class: DeviceClass,
    /// NUMA node.
    pub numa: u16,
    /// Hardware queues.
    pub hw_queues: u16,
    /// Reference of the loss.
    pub reference: DeviceReference,
    /// Completed reads.
    pub reads: OpCounters,
    /// Completed writes.
    pub writes: OpCounters,
    /// Time with at least one request in flight, nanoseconds.
    pub busy_ns: u64,
    /// Scheduler in force, as a level of the device head; 0 where the head is not enabled.
    pub scheduler: Level,
    /// Scheduler without us.
    pub default_scheduler: Level,
    /// What may be chosen; empty where the head is not enabled.
    pub scheduler_mask: Vec<MaskReason>,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSample {
    /// Name, such as `core-3`.
    pub id: String,
    /// Its host CPUs.
    pub cpus: Vec<u32>,
    /// NUMA node.
    pub numa: u16,
    /// Hardware queues mapped to its CPUs, over all managed devices.
    pub hw_queues: u16,
    /// Busy time of its CPUs, summed, nanoseconds.
    pub busy_ns: u64,
    /// Guest time of its CPUs (vCPUs running), summed, nanoseconds.
    pub vcpu_ns: Reading<u64>,
}

/// The host as a whole. Pressures are 10-second averages, shares of one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HostGauges {
    /// CPUs online.
    pub cpus: u32,
    /// Busy time of all CPUs, summed, nanoseconds.
    pub cpu_busy_ns: u64,
    /// Memory, bytes.
    pub mem_total_bytes: u64,
    /// Memory that could be had without swapping, bytes.
    pub mem_available_bytes: u64,
    /// Dirty page cache, bytes.
    pub dirty_bytes: u64,
    /// Dirty page cache at which writers are throttled, bytes.
    pub dirty_limit_bytes: u64,
    /// Pressure on CPU (some).
    pub psi_cpu: Reading<f32>,
    /// Pressure on I/O (some).
    pub psi_io: Reading<f32>,
    /// Pressure on memory (some).
    pub psi_memory: Reading<f32>,
}

/// A host at one instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// When: time since boot.
    pub at: Duration,
    /// Managed virtual disks.
    pub disks: Vec<DiskSample>,
    /// Channels.
    pub channels: Vec<ChannelSample>,
    /// Backing devices.
    pub devices: Vec<DeviceSample>,
    /// The rest.
    pub host: HostGauges,
}

/// A quantile of a histogram in the buckets of [`LATENCY_BOUNDS_US`], in microseconds, interpolated
/// linearly within its bucket; the open last bucket answers with its lower bound. `None` if empty.
#[must_use]
pub fn quantile_us(counts: &[u64; LATENCY_BUCKETS], q: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = q * total as f64;
    let mut below = 0.0;
    for (bucket, &count) in counts.iter().enumerate() {
        let low = if bucket == 0 {
            0.0
        } else {
            f64::from(LATENCY_BOUNDS_US[bucket - 1])
        };
        let Some(&high) = LATENCY_BOUNDS_US.get(bucket) else {
            return Some(low);
        };
        if below + count as f64 >= rank {
            return Some(low + (f64::from(high) - low) * (rank - below) / (count as f64).max(1.0));
        }
        below += count as f64;
    }
    unreachable!("the ranks of a histogram end at its total")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_known_from_the_last_window_that_was_buffered_and_read() {
        let second = Duration::from_secs(1);
        let buffered = CacheUse {
            cache: Cache::Buffered,
            reads: 32.0,
            hit_rate: Ok(0.7),
            cached_bytes: Ok(5e9),
        };
        let direct = CacheUse {
            cache: Cache::Direct,
            hit_rate: Ok(0.0),
            ..buffered
        };
        let known = Some(LastHits {
            rate: 0.7,
            cached_bytes: 5e9,
            age: Duration::ZERO,
        });
        let aged = known.map(|hits| LastHits {
            age: second,
            ..hits
        });
        let idle = Err(Validity::Idle);
        let tells_nothing = [
            direct,
            CacheUse {
                reads: 31.0,
                ..buffered
            },
            CacheUse {
                hit_rate: idle,
                ..buffered
            },
            CacheUse {
                cached_bytes: idle,
                ..buffered
            },
        ];
        for seen in tells_nothing {
            assert_eq!(LastHits::after(None, second, seen), None);
            assert_eq!(LastHits::after(known, second, seen), aged);
        }
        for before in [None, known, aged] {
            assert_eq!(LastHits::after(before, second, buffered), known);
        }
    }

    #[test]
    fn p99_lies_in_the_bucket_that_holds_it() {
        let mut counts = [0; LATENCY_BUCKETS];
        counts[4] = 98; // 5 to 8 µs
        counts[13] = 2; // 320 to 500 µs
        let p99 = quantile_us(&counts, 0.99).unwrap();
        assert!((p99 - 410.0).abs() < 1e-9, "{p99}");
        assert_eq!(quantile_us(&[0; LATENCY_BUCKETS], 0.5), None);
    }

    #[test]
    fn settings_and_levels_are_inverse() {
        for levels in [[0, 0, 0], [3, 1, 1], [1, 0, 1]] {
            assert_eq!(DiskSettings::from_levels(levels).unwrap().levels(), levels);
        }
        assert_eq!(DiskSettings::from_levels([0, 2, 0]), None);
    }
}
