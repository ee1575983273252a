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
    flush_share: f64,
    /// Requests that stood still, and for how long.
    delayed: f64,
    stall_s: f64,
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
        let requests = flow.throughput * (dt - stall_s);
        let write_visits = class.visits[1] / (1.0 - phase.read_share).max(1e-12);
        Self {
            requests,
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
            flush_share: phase.flush_share,
            // All requests in flight wait for the end of the stall and complete after it.
            delayed: if stall_s > 0.0 {
                class.outstanding.min(requests)
            } else {
                0.0
            },
            stall_s,
        }
    }

    pub(super) fn count(&self, sample: &mut DiskSample) {
        let reads = (self.requests * self.read_share).round();
        let writes = (self.requests * (1.0 - self.read_share)).round();
        let missed = reads * (1.0 - self.hit);
        let read_s = self.hit_s * self.hit + self.latency_s[0] * (1.0 - self.hit);
        let stall_share = self.delayed * self.stall_s / (reads + writes).max(1.0);
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
        sample.flushes += (writes * self.flush_share).round() as u64;
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
            let prompt = 1.0 - self.delayed / self.requests.max(1.0);
            spread(
                counts,
                (reads - missed) * prompt,
                self.floor_s[0],
                self.hit_s,
            );
            spread(counts, missed * prompt, self.floor_s[1], self.latency_s[0]);
            spread(counts, writes * prompt, self.floor_s[2], self.latency_s[1]);
            counts[bucket(self.stall_s * 1e6)] += self.delayed as u64;
        }
    }
}

/// The bucket of a latency.
fn bucket(latency_us: f64) -> usize {
    LATENCY_BOUNDS_US.partition_point(|bound| f64::from(*bound) < latency_us)
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
