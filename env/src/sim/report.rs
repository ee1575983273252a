//! Writes what an interval showed into the window.

use std::time::Duration;

use super::device_state::{WRITEBACK_BYTES, Wear};
use super::disk_state::CLUSTER_BYTES;
use super::episode::Episode;
use super::network::Flow;
use crate::observation::Validity;
use crate::sample::{Cache, CacheUse, LastHits, Reading};
use crate::window::{DeviceWindow, DiskWindow};

/// Requests in an interval below which a disk or device has done nothing.
const LEAST_REQUESTS: f64 = 0.5;
/// Share of the requests from which on the slowest decide the 99th percentile.
const TAIL: f64 = 0.01;

/// What a device did, summed up over its disks and its write-back; per second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DeviceSum {
    reads: f64,
    writes: f64,
    bytes: f64,
    written_bytes: f64,
    /// Requests times their time in the device: those in flight.
    present: f64,
    /// Dirty pages of its disks, bytes.
    pub(super) dirty_bytes: f64,
}

impl Episode {
    /// Writes the window, and carries over what the next interval starts from.
    pub(super) fn report(&mut self) {
        self.sum_up_devices();
        for disk in 0..self.disks.len() {
            self.report_disk(disk);
        }
        self.report_channels();
        self.report_devices();
        self.age_pages();
    }

    /// Share of the interval in which a disk stands still.
    fn standing(&self, disk: usize) -> f64 {
        (self.disks[disk].stall_s / self.scenario.interval_s).min(1.0)
    }

    fn sum_up_devices(&mut self) {
        for (device, sum) in self.sums.iter_mut().enumerate() {
            let flow = &self.solution.devices[device];
            let written = flow.background_per_s * WRITEBACK_BYTES;
            self.devices[device].writeback_bytes_per_sec = written;
            *sum = DeviceSum {
                writes: flow.background_per_s,
                bytes: written,
                written_bytes: written,
                present: flow.background_per_s * flow.background_s,
                ..DeviceSum::default()
            };
        }
        for disk in 0..self.disks.len() {
            let (flow, phase) = (self.solution.flows[disk], self.phase(disk));
            let rate = flow.throughput * (1.0 - self.standing(disk));
            let visits = flow.visits.map(|visits| rate * visits);
            let request_bytes = phase.request_kib * 1024.0;
            let state = &self.disks[disk];
            let copies = visits[1] * state.copying;
            let sum = &mut self.sums[self.scenario.disks[disk].device];
            sum.reads += visits[0] + copies;
            sum.writes += visits[1] + copies;
            sum.bytes += (visits[0] + visits[1]) * request_bytes + 2.0 * copies * CLUSTER_BYTES;
            sum.written_bytes += visits[1] * request_bytes + copies * CLUSTER_BYTES;
            sum.present += visits[0] * flow.device_s[0] + visits[1] * flow.device_s[1];
            sum.dirty_bytes += state.dirty_bytes;
        }
    }

    fn report_disk(&mut self, disk: usize) {
        let lane = self.lane_of[disk];
        let cores = self.solution.lane_cores[lane] / self.lane_sizes[lane] as f64;
        let flow = self.solution.flows[disk];
        let (did, in_flight) = self.did(disk, &flow, cores);
        let dt = self.scenario.interval_s;
        let copied = flow.throughput * flow.visits[1] * self.disks[disk].copying * dt;
        let reads = did.iops.unwrap_or(0.0) * did.read_share.unwrap_or(0.0) * dt;
        let row = &mut self.window.disks[disk];
        let seen = CacheUse {
            cache: row.settings.cache,
            reads,
            hit_rate: did.hit_rate,
            cached_bytes: row.cached_bytes, // not yet of this interval
        };
        row.did = did;
        row.in_flight = Ok(in_flight.round() as u32);
        row.since_change_s += dt;
        row.last_hits = LastHits::after(row.last_hits, Duration::from_secs_f64(dt), seen);
        let state = &mut self.disks[disk];
        state.copied_bytes += copied * CLUSTER_BYTES;
        state.stall_s = 0.0;
    }

    fn did(&self, disk: usize, flow: &Flow, cores: f64) -> (DiskWindow, f64) {
        let (phase, dt) = (self.phase(disk), self.scenario.interval_s);
        let standing = self.standing(disk);
        let iops = flow.throughput * (1.0 - standing);
        let in_flight = flow.throughput * flow.latency_s;
        if iops * dt < LEAST_REQUESTS {
            let mut idle = DiskWindow::unknown(Validity::Idle);
            (idle.iops, idle.queue_depth) = (Ok(0.0), Ok(in_flight));
            (idle.iothread_cores, idle.run_delay) = (Ok(cores), Ok(0.0));
            return (idle, in_flight);
        }
        // All requests in flight wait for the end of the stall and complete after it.
        let delayed = (in_flight / (iops * dt)).min(1.0);
        let stall_s = standing * dt;
        let latency_s = flow.latency_s + delayed * stall_s;
        let p99_s = if stall_s > 0.0 && delayed > TAIL {
            flow.p99_s.max(stall_s)
        } else {
            flow.p99_s
        };
        let did = DiskWindow {
            iops: Ok(iops),
            queue_depth: Ok(iops * latency_s),
            latency_us_mean: Ok(latency_s * 1e6),
            latency_us_p99: Ok(p99_s * 1e6),
            read_share: Ok(phase.read_share),
            request_bytes: Ok(phase.request_kib * 1024.0),
            hit_rate: self.hit_rate(disk, flow),
            flush_share: Ok(phase.flush_share * (1.0 - phase.read_share)),
            iothread_cores: Ok(cores),
            run_delay: Ok(iops * flow.run_delay_s),
        };
        (did, in_flight)
    }

    fn hit_rate(&self, disk: usize, flow: &Flow) -> Reading<f64> {
        if self.phase(disk).read_share == 0.0 {
            return Err(Validity::Idle);
        }
        Ok(flow.hit)
    }

    fn report_channels(&mut self) {
        let (mut busy, mut waiting) = (0.0, 0.0);
        for (k, row) in self.window.channels.iter_mut().enumerate() {
            let cpus = row.cpus as f64;
            let cores = self.solution.channel_cores[k].min(cpus);
            row.cpu_load = cores / cpus;
            row.vcpu_load = Ok((self.solution.vcpu_cores[k] / cpus).min(row.cpu_load));
            busy += cores;
            waiting += (self.solution.channel_runnable[k] - cores).max(0.0);
        }
        let mut reading = 0.0;
        let mut fetched = 0.0;
        for (disk, flow) in self.solution.flows.iter().enumerate() {
            if self.window.disks[disk].settings.cache == Cache::Buffered {
                reading += flow.throughput * flow.visits[0] * flow.device_s[0];
                fetched += flow.throughput * flow.visits[0] * self.phase(disk).request_kib / 4.0;
            }
        }
        let reclaiming = if self.is_cache_full {
            fetched * super::episode::RECLAIM_S
        } else {
            0.0
        };
        let host = &mut self.window.host;
        host.cpu_load = busy / f64::from(host.cpus.max(1));
        host.psi_cpu = Ok(some(waiting));
        host.psi_io = Ok(some(reading));
        host.psi_memory = Ok(some(reclaiming));
    }

    fn report_devices(&mut self) {
        let dt = self.scenario.interval_s;
        for (device, (row, sum)) in self.window.devices.iter_mut().zip(&self.sums).enumerate() {
            let requests = sum.reads + sum.writes;
            let busy = self.solution.devices[device].busy;
            row.did = DeviceWindow {
                utilisation: Ok(busy),
                iops: Ok(requests),
                bytes_per_sec: Ok(sum.bytes),
                await_us: per_request(sum.present * 1e6, requests, dt),
                queue_depth: Ok(sum.present),
                write_share: per_request(sum.writes, requests, dt),
            };
            let wear = Wear {
                written_bytes: sum.written_bytes * dt,
                write_share: sum.writes / requests.max(1e-12),
                utilisation: busy,
            };
            self.devices[device].collect(&self.scenario.devices[device], wear, dt);
        }
    }
}

fn per_request(total: f64, requests: f64, dt: f64) -> Reading<f64> {
    if requests * dt < LEAST_REQUESTS {
        Err(Validity::Idle)
    } else {
        Ok(total / requests)
    }
}

/// Share of the time in which at least one of `waiting` tasks waits, if they do so independently.
fn some(waiting: f64) -> f32 {
    -libm::expm1(-waiting) as f32
}
