//! The counters that a real host would show, advanced from windows. Recordings and the daemon read
//! them; training does not need them.

use std::time::Duration;

use super::scenario::Scenario;
use crate::sample::{
    ChannelSample, DeviceSample, DiskSample, HostGauges, HostSample, LATENCY_BOUNDS_US,
    LATENCY_BUCKETS, OpCounters, Reading,
};
use crate::window::{ChannelRow, DeviceRow, DiskRow, HostWindow};

/// ln 100: an exponential exceeds this multiple of its mean with 1 %.
const LN_100: f64 = 4.605_170_185_988_092;
/// ln 5, and the share of slow requests in a latency with a heavy tail: 5 % of them, of which a fifth
/// lies beyond the 99th percentile.
const LN_5: f64 = 1.609_437_912_434_1;
const SLOW_SHARE: f64 = 0.05;

/// All counters at zero, for the host of a first window.
pub(super) fn start(scenario: &Scenario, window: &HostWindow) -> HostSample {
    let mut first_cpu = 0;
    let hw_queues = scenario.devices.iter().map(|d| d.hw_queues);
    HostSample {
        at: Duration::ZERO,
        disks: window.disks.iter().map(disk).collect(),
        channels: window
            .channels
            .iter()
            .map(|row| {
                let cpus = first_cpu..first_cpu + row.cpus as u32;
                first_cpu = cpus.end;
                channel(row, cpus.collect())
            })
            .collect(),
        devices: window
            .devices
            .iter()
            .zip(hw_queues)
            .map(|(row, queues)| device(row, queues))
            .collect(),
        host: HostGauges {
            cpus: window.host.cpus,
            cpu_busy_ns: 0,
            mem_total_bytes: window.host.mem_total_bytes as u64,
            mem_available_bytes: window.host.mem_available_bytes as u64,
            dirty_bytes: window.host.dirty_bytes as u64,
            dirty_limit_bytes: window.host.dirty_limit_bytes as u64,
            psi_cpu: window.host.psi_cpu,
            psi_io: window.host.psi_io,
            psi_memory: window.host.psi_memory,
        },
    }
}

fn disk(row: &DiskRow) -> DiskSample {
    DiskSample {
        id: row.id.clone(),
        device: row.device,
        group: row.group,
        settings: row.settings,
        default: row.default,
        masks: row.masks.clone(),
        reads: OpCounters::default(),
        writes: OpCounters::default(),
        flushes: 0,
        in_flight: row.in_flight,
        device_read_bytes: Ok(0),
        latency_counts: Ok([0; LATENCY_BUCKETS]),
        iothread_cpu_ns: Ok(0),
        iothread_wait_ns: Ok(0),
        vcpu_share: row.vcpu_share.clone(),
        capacity_bytes: row.capacity_bytes as u64,
        cached_bytes: row.cached_bytes.map(|bytes| bytes as u64),
        dirty_bytes: row.dirty_bytes.map(|bytes| bytes as u64),
        since_change: Duration::from_secs_f64(row.since_change_s),
        last_hits: row.last_hits,
    }
}

fn channel(row: &ChannelRow, cpus: Vec<u32>) -> ChannelSample {
    ChannelSample {
        id: row.id.clone(),
        cpus,
        numa: row.numa,
        hw_queues: 1,
        busy_ns: 0,
        vcpu_ns: Ok(0),
    }
}

fn device(row: &DeviceRow, hw_queues: u16) -> DeviceSample {
    DeviceSample {
        id: row.id.clone(),
        class: row.class,
        numa: row.numa,
        hw_queues,
        reference: row.reference,
        reads: OpCounters::default(),
        writes: OpCounters::default(),
        busy_ns: 0,
        scheduler: row.scheduler,
        default_scheduler: row.default_scheduler,
        scheduler_mask: row.scheduler_mask.clone(),
    }
}

/// Adds what a window of the same host showed.
pub(super) fn advance(sample: &mut HostSample, window: &HostWindow) {
    let span_s = window.span_s;
    sample.at += Duration::from_secs_f64(span_s);
    for (disk, row) in sample.disks.iter_mut().zip(&window.disks) {
        advance_disk(disk, row, span_s);
    }
    for (channel, row) in sample.channels.iter_mut().zip(&window.channels) {
        let cpus_s = row.cpus as f64 * span_s;
        channel.busy_ns += nanoseconds(row.cpu_load * cpus_s);
        add(
            &mut channel.vcpu_ns,
            row.vcpu_load.unwrap_or(0.0) * cpus_s * 1e9,
        );
        sample.host.cpu_busy_ns += nanoseconds(row.cpu_load * cpus_s);
    }
    for (device, row) in sample.devices.iter_mut().zip(&window.devices) {
        advance_device(device, row, span_s);
    }
    sample.host.dirty_bytes = window.host.dirty_bytes as u64;
    sample.host.psi_cpu = window.host.psi_cpu;
    sample.host.psi_io = window.host.psi_io;
    sample.host.psi_memory = window.host.psi_memory;
}

fn advance_disk(sample: &mut DiskSample, row: &DiskRow, span_s: f64) {
    let did = &row.did;
    sample.settings = row.settings;
    sample.in_flight = row.in_flight;
    sample.since_change = Duration::from_secs_f64(row.since_change_s);
    sample.last_hits = row.last_hits;
    sample.cached_bytes = row.cached_bytes.map(|bytes| bytes as u64);
    sample.dirty_bytes = row.dirty_bytes.map(|bytes| bytes as u64);
    add(
        &mut sample.iothread_cpu_ns,
        did.iothread_cores.unwrap_or(0.0) * span_s * 1e9,
    );
    add(
        &mut sample.iothread_wait_ns,
        did.run_delay.unwrap_or(0.0) * span_s * 1e9,
    );
    let requests = did.iops.unwrap_or(0.0) * span_s;
    let (Ok(share), Ok(bytes), Ok(latency_us)) =
        (did.read_share, did.request_bytes, did.latency_us_mean)
    else {
        return;
    };
    let reads = (requests * share).round();
    let writes = (requests * (1.0 - share)).round();
    bump(&mut sample.reads, reads, bytes, latency_us);
    bump(&mut sample.writes, writes, bytes, latency_us);
    let missed = reads * (1.0 - did.hit_rate.unwrap_or(0.0));
    add(&mut sample.device_read_bytes, missed * bytes);
    sample.flushes += (did.flush_share.unwrap_or(0.0) * requests).round() as u64;
    if let (Ok(counts), Ok(p99_us)) = (&mut sample.latency_counts, did.latency_us_p99) {
        spread(counts, reads + writes, latency_us, p99_us);
    }
}

fn advance_device(sample: &mut DeviceSample, row: &DeviceRow, span_s: f64) {
    let did = &row.did;
    sample.scheduler = row.scheduler;
    sample.busy_ns += nanoseconds(did.utilisation.unwrap_or(0.0) * span_s);
    let (Ok(iops), Ok(share), Ok(await_us)) = (did.iops, did.write_share, did.await_us) else {
        return;
    };
    let requests = iops * span_s;
    let bytes = did.bytes_per_sec.unwrap_or(0.0) / iops.max(1e-12);
    bump(
        &mut sample.writes,
        (requests * share).round(),
        bytes,
        await_us,
    );
    bump(
        &mut sample.reads,
        (requests * (1.0 - share)).round(),
        bytes,
        await_us,
    );
}

/// Spreads requests over the histogram so that mean and 99th percentile are met: a fixed part and an
/// exponential one, or two exponentials where the tail is heavier than one.
fn spread(counts: &mut [u64; LATENCY_BUCKETS], requests: f64, mean_us: f64, p99_us: f64) {
    let wait_us = ((p99_us - mean_us) / (LN_100 - 1.0)).max(1e-3);
    if wait_us <= mean_us {
        let law = [(1.0, mean_us - wait_us, wait_us), (0.0, 0.0, 1.0)];
        return fill(counts, requests, law);
    }
    let slow_us = p99_us / LN_5;
    let quick_us = ((mean_us - SLOW_SHARE * slow_us) / (1.0 - SLOW_SHARE)).max(0.05 * mean_us);
    let law = [
        (1.0 - SLOW_SHARE, 0.0, quick_us),
        (SLOW_SHARE, 0.0, slow_us),
    ];
    fill(counts, requests, law);
}

/// Fills the histogram from a mixture of (share, fixed part, mean of the exponential part).
fn fill(counts: &mut [u64; LATENCY_BUCKETS], requests: f64, law: [(f64, f64, f64); 2]) {
    let mut below = 0;
    let mut reach = |count: &mut u64, share: f64| {
        let reached = (requests * share).round() as u64;
        *count += reached - below;
        below = reached;
    };
    for (count, &bound) in counts.iter_mut().zip(&LATENCY_BOUNDS_US) {
        let part = |(share, fixed, mean): (f64, f64, f64)| {
            share * -libm::expm1(-(f64::from(bound) - fixed).max(0.0) / mean)
        };
        reach(count, law.into_iter().map(part).sum());
    }
    reach(&mut counts[LATENCY_BUCKETS - 1], 1.0);
}

fn bump(counters: &mut OpCounters, requests: f64, request_bytes: f64, latency_us: f64) {
    counters.requests += requests as u64;
    counters.bytes += (requests * request_bytes) as u64;
    counters.time_ns += (requests * latency_us * 1e3) as u64;
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).max(0.0) as u64
}

fn add(counter: &mut Reading<u64>, gain: f64) {
    if let Ok(value) = counter {
        *value += gain.max(0.0) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::quantile_us;

    #[test]
    fn a_histogram_has_the_percentile_it_was_spread_for() {
        for (mean, p99) in [
            (100.0, 150.0),
            (100.0, 460.0),
            (100.0, 900.0),
            (80.0, 6_000.0),
        ] {
            let mut counts = [0; LATENCY_BUCKETS];
            spread(&mut counts, 1e6, mean, p99);
            assert_eq!(counts.iter().sum::<u64>(), 1_000_000);
            let found = quantile_us(&counts, 0.99).unwrap();
            assert!((found / p99 - 1.0).abs() < 0.3, "{mean} {p99} {found}");
        }
    }
}
