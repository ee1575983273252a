//! What one disk or device did in a window, as rates: from the counters of two samples.

use std::time::Duration;

use crate::observation::Validity;
use crate::sample::{
    Cache, CacheUse, DeviceSample, DiskSample, LATENCY_BUCKETS, LastHits, Reading, quantile_us,
};

/// What one disk did in a window. Rates are per second, latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskWindow {
    /// Requests (reads and writes) completed per second.
    pub iops: Reading<f64>,
    /// Average requests in flight, by Little's law from the summed latencies.
    pub queue_depth: Reading<f64>,
    /// Mean latency; `Idle` without completions.
    pub latency_us_mean: Reading<f64>,
    /// 99th percentile, interpolated in its bucket.
    pub latency_us_p99: Reading<f64>,
    /// Share of reads among the requests; `Idle` without completions.
    pub read_share: Reading<f64>,
    /// Mean bytes per request; `Idle` without completions.
    pub request_bytes: Reading<f64>,
    /// Share of read bytes served by the host page cache; 0 for direct, `Idle` without reads.
    pub hit_rate: Reading<f64>,
    /// Flushes per request.
    pub flush_share: Reading<f64>,
    /// CPU of the IOThread, cores.
    pub iothread_cores: Reading<f64>,
    /// Run delay of the IOThread, seconds per second.
    pub run_delay: Reading<f64>,
}

impl DiskWindow {
    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: Validity) -> Self {
        Self {
            iops: Err(why),
            queue_depth: Err(why),
            latency_us_mean: Err(why),
            latency_us_p99: Err(why),
            read_share: Err(why),
            request_bytes: Err(why),
            hit_rate: Err(why),
            flush_share: Err(why),
            iothread_cores: Err(why),
            run_delay: Err(why),
        }
    }

    /// The window between two samples of the same disk, `span_s` seconds apart.
    #[must_use]
    pub fn between(before: &DiskSample, after: &DiskSample, span_s: f64) -> Self {
        let ops = Ops::between(before, after);
        let per_request = |f: &dyn Fn(&Ops) -> f64| -> Reading<f64> {
            let ops = ops?;
            if ops.requests() > 0 {
                Ok(f(&ops))
            } else {
                Err(Validity::Idle)
            }
        };
        let per_second = |counter: Reading<u64>| counter.map(|ns| ns as f64 * 1e-9 / span_s);
        Self {
            iops: ops.map(|o| o.requests() as f64 / span_s),
            queue_depth: ops.map(|o| o.time_ns as f64 * 1e-9 / span_s),
            latency_us_mean: per_request(&|o| o.time_ns as f64 * 1e-3 / o.requests() as f64),
            latency_us_p99: p99_between(&before.latency_counts, &after.latency_counts),
            read_share: per_request(&|o| o.reads as f64 / o.requests() as f64),
            request_bytes: per_request(&|o| o.bytes as f64 / o.requests() as f64),
            hit_rate: hit_rate(before, after),
            flush_share: per_request(&|o| {
                after.flushes.saturating_sub(before.flushes) as f64 / o.requests() as f64
            }),
            iothread_cores: per_second(gained(before.iothread_cpu_ns, after.iothread_cpu_ns)),
            run_delay: per_second(gained(before.iothread_wait_ns, after.iothread_wait_ns)),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Ops {
    reads: u64,
    writes: u64,
    bytes: u64,
    time_ns: u64,
}

impl Ops {
    fn between(before: &DiskSample, after: &DiskSample) -> Reading<Self> {
        let delta = |a: u64, b: u64| gained(Ok(a), Ok(b));
        Ok(Self {
            reads: delta(before.reads.requests, after.reads.requests)?,
            writes: delta(before.writes.requests, after.writes.requests)?,
            bytes: delta(before.reads.bytes, after.reads.bytes)?
                + delta(before.writes.bytes, after.writes.bytes)?,
            time_ns: delta(before.reads.time_ns, after.reads.time_ns)?
                + delta(before.writes.time_ns, after.writes.time_ns)?,
        })
    }

    fn requests(&self) -> u64 {
        self.reads + self.writes
    }
}

impl LastHits {
    /// What is known at a sample, from the one before it of the same disk.
    #[must_use]
    pub fn between(before: &DiskSample, after: &DiskSample, span: Duration) -> Option<Self> {
        let reads = after.reads.requests.saturating_sub(before.reads.requests);
        let seen = CacheUse {
            cache: after.settings.cache,
            reads: reads as f64,
            hit_rate: hit_rate(before, after),
            cached_bytes: before.cached_bytes.map(|bytes| bytes as f64),
        };
        Self::after(before.last_hits, span, seen)
    }
}

fn hit_rate(before: &DiskSample, after: &DiskSample) -> Reading<f64> {
    let read = gained(Ok(before.reads.bytes), Ok(after.reads.bytes))?;
    if read == 0 {
        return Err(Validity::Idle);
    }
    if after.settings.cache == Cache::Direct && before.settings.cache == Cache::Direct {
        return Ok(0.0);
    }
    let missed = gained(before.device_read_bytes, after.device_read_bytes)?;
    Ok((1.0 - missed as f64 / read as f64).clamp(0.0, 1.0))
}

fn p99_between(
    before: &Reading<[u64; LATENCY_BUCKETS]>,
    after: &Reading<[u64; LATENCY_BUCKETS]>,
) -> Reading<f64> {
    let (before, after) = (
        before.as_ref().map_err(|e| *e)?,
        after.as_ref().map_err(|e| *e)?,
    );
    let mut counts = [0_u64; LATENCY_BUCKETS];
    for (count, (b, a)) in counts.iter_mut().zip(before.iter().zip(after)) {
        *count = a.checked_sub(*b).ok_or(Validity::CounterReset)?;
    }
    quantile_us(&counts, 0.99).ok_or(Validity::Idle)
}

/// What one device did in a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceWindow {
    /// Share of the time with a request in flight.
    pub utilisation: Reading<f64>,
    /// Requests per second.
    pub iops: Reading<f64>,
    /// Bytes per second.
    pub bytes_per_sec: Reading<f64>,
    /// Mean time in the device, queueing included, microseconds.
    pub await_us: Reading<f64>,
    /// Mean requests in flight.
    pub queue_depth: Reading<f64>,
    /// Share of writes.
    pub write_share: Reading<f64>,
}

impl DeviceWindow {
    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: Validity) -> Self {
        Self {
            utilisation: Err(why),
            iops: Err(why),
            bytes_per_sec: Err(why),
            await_us: Err(why),
            queue_depth: Err(why),
            write_share: Err(why),
        }
    }

    /// The window between two samples of the same device, `span_s` seconds apart.
    #[must_use]
    pub fn between(before: &DeviceSample, after: &DeviceSample, span_s: f64) -> Self {
        let delta = |f: fn(&DeviceSample) -> u64| gained(Ok(f(before)), Ok(f(after)));
        let reads = delta(|d| d.reads.requests);
        let writes = delta(|d| d.writes.requests);
        let bytes = delta(|d| d.reads.bytes + d.writes.bytes);
        let time_ns = delta(|d| d.reads.time_ns + d.writes.time_ns);
        let requests = reads.and_then(|r| writes.map(|w| r + w));
        let per_request = |total: Reading<u64>| {
            let (requests, total) = (requests?, total?);
            if requests == 0 {
                Err(Validity::Idle)
            } else {
                Ok(total as f64 / requests as f64)
            }
        };
        Self {
            utilisation: delta(|d| d.busy_ns).map(|ns| (ns as f64 * 1e-9 / span_s).min(1.0)),
            iops: requests.map(|r| r as f64 / span_s),
            bytes_per_sec: bytes.map(|b| b as f64 / span_s),
            await_us: per_request(time_ns).map(|ns| ns * 1e-3),
            queue_depth: time_ns.map(|ns| ns as f64 * 1e-9 / span_s),
            write_share: per_request(writes),
        }
    }
}

/// What a counter gained between two readings.
pub(super) fn gained(before: Reading<u64>, after: Reading<u64>) -> Reading<u64> {
    let (before, after) = (before?, after?);
    after.checked_sub(before).ok_or(Validity::CounterReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_goes_back_is_a_reset_not_a_huge_rate() {
        assert_eq!(gained(Ok(10), Ok(4)), Err(Validity::CounterReset));
        assert_eq!(
            gained(Ok(10), Err(Validity::NotOptedIn)),
            Err(Validity::NotOptedIn)
        );
    }
}
