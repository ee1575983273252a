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
    /// By how much garbage collection inflates service when the device does nothing but write.
    #[serde(default)]
    pub gc_inflation: f64,
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

/// A phase of a closed-loop workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Requests that the guest keeps outstanding; 0 is an idle phase.
    pub outstanding: f64,
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
    /// Flushes per write.
    #[serde(default)]
    pub flush_share: f64,
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
/// Greatest number of channels of a simulated host.
pub const MAX_CHANNELS: usize = 1024;

impl Scenario {
    /// Checks everything at once.
    ///
    /// # Errors
    /// Each key that is out of range, with its path.
    pub fn validate(&self) -> Result<(), ScenarioErrors> {
        let mut check = Check::default();
        check.range("interval_s", self.interval_s, 1e-3, 3600.0);
        check.range("steps", f64::from(self.steps), 1.0, 1e6);
        check.range("noise", self.noise, 0.0, 1.0);
        check.range("memory_gib", self.memory_gib, 1e-3, 1e6);
        check.range("cache_gib", self.cache_gib, 1e-6, self.memory_gib);
        check.range(
            "dirty_limit_gib",
            self.dirty_limit_gib,
            1e-6,
            self.memory_gib,
        );
        check.range(
            "channels",
            self.channels.len() as f64,
            1.0,
            MAX_CHANNELS as f64,
        );
        check.range("devices", self.devices.len() as f64, 1.0, MAX_DISKS as f64);
        check.range("disks", self.disks.len() as f64, 1.0, MAX_DISKS as f64);
        for (key, value, low, high) in self.costs.ranges() {
            check.range(&format!("costs.{key}"), value, low, high);
        }
        for (i, channel) in self.channels.iter().enumerate() {
            check.range(
                &format!("channels[{i}].cpus"),
                f64::from(channel.cpus),
                1.0,
                1024.0,
            );
            check.range(
                &format!("channels[{i}].background_cores"),
                channel.background_cores,
                0.0,
                1024.0,
            );
        }
        for (i, device) in self.devices.iter().enumerate() {
            check.device(&format!("devices[{i}]"), device);
        }
        for (i, disk) in self.disks.iter().enumerate() {
            check.disk(&format!("disks[{i}]"), disk, self);
        }
        if check.0.is_empty() {
            Ok(())
        } else {
            Err(ScenarioErrors(check.0))
        }
    }
}

#[derive(Default)]
struct Check(Vec<(String, String)>);

impl Check {
    fn range(&mut self, path: &str, value: f64, low: f64, high: f64) {
        if !(low..=high).contains(&value) {
            self.0.push((
                path.to_owned(),
                format!("= {value} must be in [{low}, {high}]"),
            ));
        }
    }

    fn device(&mut self, path: &str, device: &DeviceModel) {
        self.range(
            &format!("{path}.reference.read_us"),
            device.reference.read_us,
            0.01,
            1e7,
        );
        self.range(
            &format!("{path}.reference.write_us"),
            device.reference.write_us,
            0.01,
            1e7,
        );
        self.range(
            &format!("{path}.reference.bytes_per_sec"),
            device.reference.bytes_per_sec,
            1e3,
            1e13,
        );
        self.range(&format!("{path}.parallelism"), device.parallelism, 1.0, 1e5);
        self.range(
            &format!("{path}.max_iops"),
            device.max_iops.unwrap_or(1.0),
            1.0,
            1e9,
        );
        self.range(
            &format!("{path}.gc_inflation"),
            device.gc_inflation,
            0.0,
            100.0,
        );
    }

    fn disk(&mut self, path: &str, disk: &DiskModel, host: &Scenario) {
        self.index(&format!("{path}.device"), disk.device, host.devices.len());
        self.index(
            &format!("{path}.vcpu_channel"),
            disk.vcpu_channel.unwrap_or(0),
            host.channels.len(),
        );
        self.index(
            &format!("{path}.default_channel"),
            disk.default_channel.into(),
            host.channels.len() + 1,
        );
        self.range(&format!("{path}.vcpu_cores"), disk.vcpu_cores, 0.0, 1024.0);
        self.range(&format!("{path}.guest_us"), disk.guest_us, 0.0, 1e6);
        self.range(&format!("{path}.iothread_us"), disk.iothread_us, 0.01, 1e6);
        self.range(
            &format!("{path}.capacity_gib"),
            disk.capacity_gib,
            1e-6,
            1e6,
        );
        self.range(
            &format!("{path}.phases"),
            disk.phases.len() as f64,
            1.0,
            64.0,
        );
        if disk.iothread.is_none() && disk.default_channel != 0 {
            self.0.push((
                format!("{path}.default_channel"),
                "needs an iothread to be bound".to_owned(),
            ));
        }
        for (i, phase) in disk.phases.iter().enumerate() {
            self.phase(&format!("{path}.phases[{i}]"), phase, disk.capacity_gib);
        }
    }

    fn phase(&mut self, path: &str, phase: &Phase, capacity_gib: f64) {
        self.range(
            &format!("{path}.outstanding"),
            phase.outstanding,
            0.0,
            65536.0,
        );
        self.range(&format!("{path}.think_us"), phase.think_us, 0.0, 1e9);
        self.range(&format!("{path}.read_share"), phase.read_share, 0.0, 1.0);
        self.range(
            &format!("{path}.request_kib"),
            phase.request_kib,
            0.5,
            65536.0,
        );
        self.range(
            &format!("{path}.working_set_gib"),
            phase.working_set_gib,
            1e-6,
            capacity_gib.max(1e-6),
        );
        self.range(&format!("{path}.skew"), phase.skew, 0.0, 5.0);
        self.range(&format!("{path}.flush_share"), phase.flush_share, 0.0, 1.0);
        self.range(
            &format!("{path}.mean_intervals"),
            phase.mean_intervals,
            1.0,
            1e9,
        );
    }

    fn index(&mut self, path: &str, index: usize, len: usize) {
        if index >= len {
            self.0
                .push((path.to_owned(), format!("= {index} must be below {len}")));
        }
    }
}
