//! One interval of a host as a queueing network, solved by approximate mean-value analysis.
//!
//! Classes are the disks. A request passes, in this order, its guest's *vCPU* (before it is
//! submitted, so not part of its latency), the *lane* (its IOThread), a fixed delay, the *servers* of
//! its device and the *transfer* through the device's bandwidth or request ceiling; reads that hit
//! the page cache skip the device. The parts are explained where they are computed: [`station`]
//! (waits), [`cpu`] (who runs on a channel), [`tail`] (99th percentile), [`solver`] (the fixed
//! point). `docs/simulator.md` has all equations in one place, with their errors.

mod class_state;
mod cpu;
mod device;
mod lane;
mod mixing;
mod results;
mod solver;
mod station;
mod tail;

pub use solver::Solver;

use super::costs::Costs;

/// Squared coefficient of variation of the CPU time of a request, in a lane or in its guest.
pub const CPU_VARIATION: f64 = 0.25;
/// The same of a device's service: seek and rotation of a disk, page and die conflicts of flash.
pub const SERVICE_VARIATION: f64 = 0.25;
/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// `outstanding` requests circulate; each thinks `think_s` seconds after its completion. 0 is an
    /// idle disk.
    Closed {
        /// Requests outstanding.
        outstanding: f64,
        /// Think time, seconds.
        think_s: f64,
    },
    /// Poisson arrivals, of which at most `limit` are in flight: more wait outside, unseen.
    Open {
        /// Arrivals per second.
        rate_per_s: f64,
        /// Most requests in flight.
        limit: f64,
    },
}

impl Load {
    /// Most requests in flight.
    #[must_use]
    pub fn limit(&self) -> f64 {
        match *self {
            Self::Closed { outstanding, .. } => outstanding,
            Self::Open { rate_per_s, limit } if rate_per_s > 0.0 => limit,
            Self::Open { .. } => 0.0,
        }
    }
}

/// What a guest does with its vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Vcpu {
    /// Channel they are pinned to; none: they float.
    pub channel: Option<usize>,
    /// CPU per request on the vCPU that submits, seconds.
    pub request_s: f64,
    /// CPU that is burnt whatever the disk does, cores.
    pub background_cores: f64,
}

/// A disk's part of the page cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheUse {
    /// Index of its [`super::page_cache::HitCurve`].
    pub curve: usize,
    /// Bytes per page (its request size, where that is larger than a page of memory).
    pub page_bytes: f64,
    /// What is resident now; a warm cache holds no less than the model gives it. Bytes.
    pub cached_bytes: f64,
}

/// What a disk asks of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Class {
    /// How its requests come.
    pub load: Load,
    /// Its guest.
    pub vcpu: Vcpu,
    /// Index of its lane.
    pub lane: usize,
    /// CPU of the lane per request, seconds, uncontended and bound.
    pub lane_s: f64,
    /// Extra latency outside any station, such as the copy from the page cache, seconds.
    pub delay_s: f64,
    /// Index of its device.
    pub device: usize,
    /// Device visits per request by reads and writes, before cache hits are taken off the reads.
    pub visits: [f64; 2],
    /// Service time of one visit at a server, by reads and writes, seconds.
    pub server_s: [f64; 2],
    /// Time of one visit in the transfer, by reads and writes, seconds.
    pub transfer_s: [f64; 2],
    /// Its part of the page cache; none: direct.
    pub cache: Option<CacheUse>,
}

/// An IOThread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lane {
    /// Channel it is bound to.
    pub channel: Option<usize>,
    /// Whether the channel is on another node than the device.
    pub is_remote: bool,
    /// Whether it polls.
    pub is_polling: bool,
}

/// A channel: its CPUs and the background load on them, in cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channel {
    /// CPUs.
    pub cpus: f64,
    /// Load that has nothing to do with the guests, cores.
    pub background_cores: f64,
}

/// A device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Device {
    /// Servers.
    pub parallelism: f64,
    /// How its scheduler shares it.
    pub discipline: Discipline,
    /// Write-back and the like.
    pub background: Background,
}

/// Writes that no disk waits for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Background {
    /// Requests per second, Poisson.
    pub rate_per_s: f64,
    /// Service time at a server, seconds.
    pub server_s: f64,
    /// Time in the transfer, seconds.
    pub transfer_s: f64,
}

/// In what order a device's queues are served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Discipline {
    /// First come, first served (`none`).
    Fifo,
    /// Reads pass queued writes, but one write goes after so many reads: 2 under `mq-deadline`
    /// (`writes_starved`); more under `kyber`, whose write depth shrinks while reads miss their target.
    ReadsFirst {
        /// Reads in a row that may pass a queued write, ≥ 1.
        reads_per_write: f64,
    },
    /// The disk with the least in service goes next (`bfq`).
    Fair,
}

/// The network of one interval.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Network {
    /// Disks.
    pub classes: Vec<Class>,
    /// IOThreads.
    pub lanes: Vec<Lane>,
    /// Channels.
    pub channels: Vec<Channel>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Size of the page cache, bytes.
    pub cache_bytes: f64,
    /// What the path costs beside the device.
    pub costs: Costs,
}

/// What a class gets.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flow {
    /// Requests per second.
    pub throughput: f64,
    /// Mean latency from submission to completion, seconds.
    pub latency_s: f64,
    /// 99th percentile of the latency, seconds.
    pub p99_s: f64,
    /// Think time and guest CPU between a completion and the next submission, seconds.
    pub away_s: f64,
    /// Time in the lane per request, queueing included, seconds.
    pub lane_s: f64,
    /// The part of `lane_s` during which the IOThread could run but did not, seconds.
    pub run_delay_s: f64,
    /// CPU of the IOThread per request, seconds.
    pub cpu_s: f64,
    /// Time of one device visit, queueing included, by reads and writes, seconds.
    pub device_s: [f64; 2],
    /// Device visits per request by reads and writes.
    pub visits: [f64; 2],
    /// Hit probability of a read.
    pub hit: f64,
    /// Bytes that a warm cache would hold of this disk; 0 for direct.
    pub resident_bytes: f64,
}

/// What a device does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeviceFlow {
    /// Share of the servers that is busy.
    pub server_utilisation: f64,
    /// Share of the time in which the transfer is busy.
    pub transfer_utilisation: f64,
    /// Share of the time with a request in flight.
    pub busy: f64,
    /// Time of a background write, queueing included, seconds.
    pub background_s: f64,
    /// Background writes per second: fewer than asked for where the device holds as many as it can.
    pub background_per_s: f64,
}

/// The solution.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Solution {
    /// Per class.
    pub flows: Vec<Flow>,
    /// CPU of each lane, polling included, cores.
    pub lane_cores: Vec<f64>,
    /// Share of the time in which each lane has a request.
    pub lane_busy: Vec<f64>,
    /// Busy CPUs of each channel, cores.
    pub channel_cores: Vec<f64>,
    /// The part of it that runs vCPUs, cores.
    pub vcpu_cores: Vec<f64>,
    /// Threads that could run on each channel, on average.
    pub channel_runnable: Vec<f64>,
    /// Per device.
    pub devices: Vec<DeviceFlow>,
    /// Passes of the fixed point.
    pub passes: u32,
    /// Whether it converged within the most passes allowed.
    pub converged: bool,
}
