//! What a disk completed in an interval, as the counters of a real host would show it.

use super::network::{Class, Flow};
use super::scenario::Phase;
use crate::sample::{Cache, DiskSample, LATENCY_BOUNDS_US, LATENCY_BUCKETS, OpCounters, Reading};

/// What one disk completed in an interval.
pub(super) struct Served {
    pub(super) requests: f64,
    pub(super) request_bytes: f64,
    read_share: f64,
    hit: f64,
    /// Mean latency of a read that hits, a read that misses, a write.
    hit_s: f64,
    latency_s: [f64; 2],
    /// Least latency of a hit and of a visit to the device, by direction.
    floor_s: [f64; 3],
    pub(super) device_s: [f64; 2],
    stall_time_s: f64,
}

impl Served {
    pub(super) fn new(
        flow: &Flow,
        class: &Class,
        phase: &Phase,
        hit: f64,
        dt: f64,
        stall_s: f64,
    ) -> Self {
        let work: f64 = class
            .visits
            .iter()
            .zip(class.server_s)
            .map(|(v, s)| v * (s + class.transfer_s))
            .sum();
        let device_s = class.server_s.map(|s| {
            if work > 0.0 {
                flow.device_s * (s + class.transfer_s) / work
            } else {
                0.0
            }
        });
        let base = flow.lane_s + class.delay_s;
        let stalled = stall_s.min(0.95 * dt);
        let write_visits = class.visits[1] / (1.0 - phase.read_share).max(1e-12);
        Self {
            requests: flow.throughput * (dt - stalled),
            request_bytes: phase.request_kib * 1024.0,
            read_share: phase.read_share,
            hit,
            hit_s: base,
            latency_s: [
                base + device_s[0],
                base + device_s[1] * write_visits.min(1.0),
            ],
            floor_s: [
                flow.cpu_s + class.delay_s,
                flow.cpu_s + class.delay_s + class.server_s[0] + class.transfer_s,
                flow.cpu_s
                    + class.delay_s
                    + (class.server_s[1] + class.transfer_s) * write_visits.min(1.0),
            ],
            device_s,
            stall_time_s: stalled * class.outstanding,
        }
    }

    pub(super) fn count(&self, sample: &mut DiskSample) {
        let reads = (self.requests * self.read_share).round();
        let writes = (self.requests * (1.0 - self.read_share)).round();
        let missed = reads * (1.0 - self.hit);
        let read_s = self.hit_s * self.hit + self.latency_s[0] * (1.0 - self.hit);
        let stall_share = self.stall_time_s / (reads + writes).max(1.0);
        bump(
            &mut sample.reads,
            reads,
            self.request_bytes,
            read_s + stall_share,
        );
        bump(
            &mut sample.writes,
            writes,
            self.request_bytes,
            self.latency_s[1] + stall_share,
        );
        let to_device = if sample.settings.cache == Cache::Direct {
            reads
        } else {
            missed
        };
        add(
            &mut sample.device_read_bytes,
            to_device * self.request_bytes,
        );
        if let Ok(counts) = &mut sample.latency_counts {
            spread(counts, reads - missed, self.floor_s[0], self.hit_s);
            spread(counts, missed, self.floor_s[1], self.latency_s[0]);
            spread(counts, writes, self.floor_s[2], self.latency_s[1]);
        }
    }
}

/// Spreads `requests` over the histogram: a fixed floor plus an exponential wait.
fn spread(counts: &mut [u64; LATENCY_BUCKETS], requests: f64, floor_s: f64, mean_s: f64) {
    if requests < 1.0 {
        return;
    }
    let floor_us = floor_s.min(mean_s) * 1e6;
    let wait_us = (mean_s * 1e6 - floor_us).max(1e-3);
    let mut below = 0;
    for (count, &bound) in counts.iter_mut().zip(&LATENCY_BOUNDS_US) {
        let over = (f64::from(bound) - floor_us).max(0.0);
        let reached = (requests * -libm::expm1(-over / wait_us)).round() as u64;
        *count += reached - below;
        below = reached;
    }
    counts[LATENCY_BUCKETS - 1] += requests.round() as u64 - below;
}

fn bump(counters: &mut OpCounters, requests: f64, request_bytes: f64, latency_s: f64) {
    counters.requests += requests as u64;
    counters.bytes += (requests * request_bytes) as u64;
    counters.time_ns += (requests * latency_s * 1e9) as u64;
}

pub(super) fn add(counter: &mut Reading<u64>, gain: f64) {
    if let Ok(value) = counter {
        *value += gain.max(0.0) as u64;
    }
}
