//! What the path of a request costs beside the device: constants of a host's kernel, CPUs and QEMU.

use serde::{Deserialize, Serialize};

/// The `[costs]` table of a scenario. What is left out has the value of a KVM host with a recent
/// x86 server CPU; calibration fits them to a host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Costs {
    /// CPU of an IOThread that is not bound, as a multiple of that of a bound one: migrations and
    /// cold caches; ≥ 0.1.
    pub float_cpu_factor: f64,
    /// CPU on a channel on another NUMA node than the device, as a multiple of that on its own; ≥ 0.1.
    pub remote_cpu_factor: f64,
    /// Wait for a CPU that runs something else when a request arrives, at full load, microseconds.
    pub preempt_us: f64,
    /// Latency of waking a sleeping IOThread, microseconds.
    pub wake_us: f64,
    /// CPU of waking it, microseconds.
    pub wake_cpu_us: f64,
    /// Longest time that adaptive polling spins before it sleeps, microseconds (`poll-max-ns`).
    pub poll_max_us: f64,
    /// Copying from or to the page cache, bytes per second.
    pub copy_bytes_per_sec: f64,
    /// Page-cache lookup and hand-over to a worker, microseconds per buffered request.
    pub buffered_delay_us: f64,
    /// IOThread CPU that a buffered request takes beyond a direct one, microseconds.
    pub buffered_cpu_us: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            float_cpu_factor: 1.12,
            remote_cpu_factor: 1.15,
            preempt_us: 12.0,
            wake_us: 5.0,
            wake_cpu_us: 1.5,
            poll_max_us: 32.768,
            copy_bytes_per_sec: 10e9,
            buffered_delay_us: 1.5,
            buffered_cpu_us: 1.0,
        }
    }
}

impl Costs {
    /// Each key of the table with its value and its range.
    pub(super) fn ranges(&self) -> [(&'static str, f64, f64, f64); 9] {
        [
            ("float_cpu_factor", self.float_cpu_factor, 0.1, 100.0),
            ("remote_cpu_factor", self.remote_cpu_factor, 0.1, 100.0),
            ("preempt_us", self.preempt_us, 0.0, 1e6),
            ("wake_us", self.wake_us, 0.0, 1e6),
            ("wake_cpu_us", self.wake_cpu_us, 0.0, 1e6),
            ("poll_max_us", self.poll_max_us, 1e-3, 1e6),
            ("copy_bytes_per_sec", self.copy_bytes_per_sec, 1e3, 1e15),
            ("buffered_delay_us", self.buffered_delay_us, 0.0, 1e6),
            ("buffered_cpu_us", self.buffered_cpu_us, 0.0, 1e6),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::presets;

    #[test]
    fn every_cost_out_of_range_is_named() {
        let mut scenario = presets::poor_binding();
        scenario.costs = Costs {
            wake_us: -1.0,
            preempt_us: f64::NAN,
            copy_bytes_per_sec: 0.0,
            ..Costs::default()
        };
        let wrong = scenario.validate().unwrap_err();
        let paths: Vec<&str> = wrong.0.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "costs.preempt_us",
                "costs.wake_us",
                "costs.copy_bytes_per_sec"
            ]
        );
    }
}
