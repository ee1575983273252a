//! What a simulated host is made of. Every quantity has its unit in its name.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::costs::Costs;
use crate::sample::{Cache, DeviceClass, DeviceReference, Polling};

/// A simulated host and the workload of its guests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name, for reports.
    pub name: String,
    /// Length of a decision interval, seconds.
    #[serde(default = "one")]
    pub interval_s: f64,
    /// Intervals per episode.
    #[serde(default = "sixty_four")]
    pub steps: u32,
    /// Standard deviation of the multiplicative (log-normal) noise on service demands.
    #[serde(default = "five_percent")]
    pub noise: f64,
    /// Memory of the host, GiB.
    pub memory_gib: f64,
    /// Memory that the page cache may take, GiB.
    pub cache_gib: f64,
    /// Dirty page cache at which writers are throttled, GiB.
    pub dirty_limit_gib: f64,
    /// Whether the I/O scheduler of the devices may be chosen.
    #[serde(default)]
    pub schedulers: bool,
    /// What the path of a request costs beside the device.
    #[serde(default)]
    pub costs: Costs,
    /// Channels, at least one.
    pub channels: Vec<ChannelModel>,
    /// Backing devices, at least one.
    pub devices: Vec<DeviceModel>,
    /// Virtual disks, at least one.
    pub disks: Vec<DiskModel>,
}

fn one() -> f64 {
    1.0
}
fn sixty_four() -> u32 {
    64
}
fn five_percent() -> f64 {
    0.05
}

/// A channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelModel {
    /// Host CPUs.
    pub cpus: u32,
    /// NUMA node.
    #[serde(default)]
    pub numa: u16,
    /// Load of everything that is not a managed disk or its guest, cores.
    #[serde(default)]
    pub background_cores: f64,
}

/// A backing device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceModel {
    /// Name.
    pub name: String,
    /// Kind.
    pub class: DeviceClass,
    /// NUMA node.
    #[serde(default)]
    pub numa: u16,
    /// Hardware queues.
    #[serde(default = "one_queue")]
    pub hw_queues: u16,
    /// Latency of a small read and write on the idle device and its bandwidth.
    pub reference: DeviceReference,
    /// Requests that it serves at the same time.
    pub parallelism: f64,
    /// Ceiling on requests per second, such as a cap set from outside.
    #[serde(default)]
    pub max_iops: Option<f64>,
    /// By how much garbage collection inflates the service of writes when no erased block is left;
    /// reads suffer half of it.
    #[serde(default)]
    pub gc_inflation: f64,
    /// Writes that erased blocks take before collection has to keep pace, GiB; 0: none are kept, and
    /// the inflation follows the share of writes at once.
    #[serde(default)]
    pub erased_gib: f64,
    /// Erased blocks won back while the device is idle, bytes per second.
    #[serde(default = "half_gigabyte")]
    pub erase_bytes_per_sec: f64,
    /// Service of a request that follows the one before it on the medium, relative to a random one:
    /// small for a disk that need not seek, 1 for flash.
    #[serde(default = "one")]
    pub sequential_service: f64,
    /// Largest request that neighbouring sequential ones merge into, KiB; 0: they do not merge.
    #[serde(default)]
    pub merge_kib: f64,
}

fn half_gigabyte() -> f64 {
    5e8
}

fn one_queue() -> u16 {
    1
}

/// A virtual disk and what its guest does with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskModel {
    /// Guest.
    pub guest: String,
    /// Target in the guest, such as `vda`.
    pub target: String,
    /// Index of its device.
    pub device: usize,
    /// IOThread number, over the host; disks with the same number share it. None: the main loop.
    pub iothread: Option<usize>,
    /// Channel that the guest's vCPUs are pinned to; none: they float over all.
    #[serde(default)]
    pub vcpu_channel: Option<usize>,
    /// CPU the guest burns whatever the disk does, cores.
    #[serde(default)]
    pub vcpu_cores: f64,
    /// Guest CPU per request, microseconds.
    #[serde(default = "five_us")]
    pub guest_us: f64,
    /// IOThread CPU per request, microseconds.
    #[serde(default = "eight_us")]
    pub iothread_us: f64,
    /// Size of the image, GiB.
    pub capacity_gib: f64,
    /// Channel level without us; 0 floats.
    #[serde(default)]
    pub default_channel: u16,
    /// Cache strategy without us.
    #[serde(default = "direct")]
    pub default_cache: Cache,
    /// Polling without us.
    #[serde(default = "adaptive")]
    pub default_polling: Polling,
    /// What it does; each interval it may pass from one phase to another.
    pub phases: Vec<Phase>,
}

fn five_us() -> f64 {
    5.0
}
fn eight_us() -> f64 {
    8.0
}
fn direct() -> Cache {
    Cache::Direct
}
fn adaptive() -> Polling {
    Polling::Adaptive
}

impl DiskModel {
    /// Probability of each phase in the coming interval, for a disk that is in phase `from`; they sum
    /// to 1. A phase that only itself may follow is never left.
    #[must_use]
    pub fn transitions(&self, from: usize) -> Vec<f64> {
        let stays = self.stays(from);
        let weights = self.next_weights(from);
        let total: f64 = weights.clone().sum();
        let mut row: Vec<f64> = weights
            .map(|weight| (1.0 - stays) * weight / total.max(f64::MIN_POSITIVE))
            .collect();
        row[from] = stays;
        row
    }

    /// Probability that a disk that is in phase `from` is in it in the coming interval too.
    #[must_use]
    pub fn stays(&self, from: usize) -> f64 {
        if self.next_weights(from).all(|weight| weight == 0.0) {
            return 1.0;
        }
        1.0 - 1.0 / self.phases[from].mean_intervals
    }

    /// Relative probability of each phase to follow `from`, 0 for itself.
    pub(super) fn next_weights(&self, from: usize) -> impl Iterator<Item = f64> + Clone {
        let next = &self.phases[from].next;
        (0..self.phases.len()).map(move |to| match next.get(to) {
            _ if to == from => 0.0,
            Some(share) => *share,
            None => 1.0,
        })
    }
}

/// A phase of a workload. Closed without `arrivals_per_s`, open with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Requests that the guest keeps outstanding, or has in flight at most; 0 is an idle phase.
    pub outstanding: f64,
    /// Requests per second that arrive from outside, whatever the latency.
    #[serde(default)]
    pub arrivals_per_s: Option<f64>,
    /// Think time between a completion and the next request, microseconds.
    #[serde(default)]
    pub think_us: f64,
    /// Share of reads.
    pub read_share: f64,
    /// Request size, KiB.
    pub request_kib: f64,
    /// Data that is touched, GiB.
    pub working_set_gib: f64,
    /// Zipf exponent of the popularity over the working set; 0 is uniform.
    #[serde(default)]
    pub skew: f64,
    /// Share of the requests that follow the one before them on the medium.
    #[serde(default)]
    pub sequential_share: f64,
    /// Flushes per write.
    #[serde(default)]
    pub flush_share: f64,
    /// Whether a snapshot is taken when the phase begins and dropped when it ends: the first write to
    /// each cluster then copies it.
    #[serde(default)]
    pub snapshot: bool,
    /// Relative probabilities of the phases that may follow, one per phase of the disk, its own
    /// ignored; empty: all others alike.
    #[serde(default)]
    pub next: Vec<f64>,
    /// Mean length of the phase, intervals.
    #[serde(default = "twenty")]
    pub mean_intervals: f64,
}

fn twenty() -> f64 {
    20.0
}

/// Everything that is wrong with a scenario: key path and problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioErrors(pub Vec<(String, String)>);

impl fmt::Display for ScenarioErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(path, problem)| format!("{path} {problem}"))
            .collect();
        write!(f, "{}", lines.join("; "))
    }
}

impl std::error::Error for ScenarioErrors {}

/// Greatest number of disks of a simulated host.
pub const MAX_DISKS: usize = 1024;
/// Greatest mean length of a phase, intervals: one that is never left in practice.
pub const MAX_MEAN_INTERVALS: f64 = 1e9;
/// Greatest number of channels of a simulated host.
pub const MAX_CHANNELS: usize = 1024;

impl Scenario {
    /// The scenario of a TOML text, with everything in range.
    ///
    /// # Errors
    /// What is wrong with the text, or every key that is out of range.
    pub fn parse(text: &str) -> Result<Self, ScenarioErrors> {
        let scenario: Self = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or(1, |span| line_of(text, span.start));
            let line = text.lines().nth(place - 1).unwrap_or("").trim();
            let problem = format!("(`{line}`) is not a scenario: {}", error.message());
            ScenarioErrors(vec![(format!("line {place}"), problem)])
        })?;
        scenario.validate()?;
        Ok(scenario)
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}
