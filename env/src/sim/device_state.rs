//! What a simulated device carries from one interval to the next, and what a request costs on it.

use super::boot::GIB;
use super::disk_state::CLUSTER_BYTES;
use super::network::Discipline;
use super::scenario::{DeviceModel, Phase};

/// Size of one write-back request, bytes: the kernel coalesces dirty pages.
pub(super) const WRITEBACK_BYTES: f64 = 128.0 * 1024.0;
/// Most of the device that write-back takes from foreground requests.
const MAX_WRITEBACK_LOAD: f64 = 0.8;
/// Part of the inflation by garbage collection that reads suffer: they wait for the same dies, but
/// write nothing themselves.
const GC_ON_READS: f64 = 0.5;
/// Time per request under a scheduler's lock, seconds, by level: none, mq-deadline, kyber, bfq. It
/// bounds the requests per second of a device. Estimates: some hundred thousand under bfq, some million
/// under mq-deadline.
const LOCK_S: [f64; 4] = [0.0, 0.5e-6, 0.3e-6, 2e-6];
/// Reads that may pass a queued write, by level.
const DEADLINE_READS: f64 = 2.0;
const KYBER_READS: f64 = 16.0;

/// The order in which a scheduler of this level serves.
pub(super) fn discipline(scheduler: u16) -> Discipline {
    match scheduler {
        1 => Discipline::ReadsFirst {
            reads_per_write: DEADLINE_READS,
        },
        2 => Discipline::ReadsFirst {
            reads_per_write: KYBER_READS,
        },
        3 => Discipline::Fair,
        _ => Discipline::Fifo,
    }
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DeviceState {
    /// Share of the erased blocks that is used up.
    pub(super) spent: f64,
    /// Write-back in this interval, bytes per second.
    pub(super) writeback_bytes_per_sec: f64,
}

/// What one visit costs by reads and writes, seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct VisitCost {
    pub(super) server_s: [f64; 2],
    pub(super) transfer_s: [f64; 2],
}

impl DeviceState {
    /// Inflation of reads and writes by garbage collection.
    pub(super) fn inflation(&self, model: &DeviceModel) -> [f64; 2] {
        let inflation = model.gc_inflation * self.spent;
        [1.0 + GC_ON_READS * inflation, 1.0 + inflation]
    }

    /// Cost of a request of the phase; a write copies its cluster with probability `copying`.
    pub(super) fn visit(
        &self,
        model: &DeviceModel,
        phase: &Phase,
        scheduler: u16,
        copying: f64,
    ) -> VisitCost {
        let bytes = phase.request_kib * 1024.0;
        let gc = self.inflation(model);
        let seeking =
            1.0 - phase.sequential_share * (1.0 - model.sequential_service / merged(model, phase));
        let service_us = [model.reference.read_us, model.reference.write_us];
        let mut server_s = [0, 1].map(|d| service_us[d] * 1e-6 * seeking * gc[d]);
        let least_s = model.max_iops.map_or(0.0, |iops| 1.0 / iops);
        let lock_s = LOCK_S[usize::from(scheduler).min(LOCK_S.len() - 1)];
        let wire = |bytes: f64| {
            (bytes / model.reference.bytes_per_sec)
                .max(least_s)
                .max(lock_s)
        };
        let mut transfer_s = [wire(bytes); 2];
        // Copying reads the old cluster and writes it elsewhere: neither place follows the request's.
        server_s[1] += copying * (service_us[0] * gc[0] + service_us[1] * gc[1]) * 1e-6;
        transfer_s[1] += copying * 2.0 * wire(CLUSTER_BYTES);
        VisitCost {
            server_s,
            transfer_s,
        }
    }

    /// Service and transfer of one write-back request, seconds.
    pub(super) fn writeback_cost_s(&self, model: &DeviceModel) -> (f64, f64) {
        let least_s = model.max_iops.map_or(0.0, |iops| 1.0 / iops);
        let wire_s = (WRITEBACK_BYTES / model.reference.bytes_per_sec).max(least_s);
        (
            model.reference.write_us * 1e-6 * self.inflation(model)[1],
            wire_s,
        )
    }

    /// Most that is written back, bytes per second.
    pub(super) fn most_writeback(&self, model: &DeviceModel) -> f64 {
        let (server_s, wire_s) = self.writeback_cost_s(model);
        MAX_WRITEBACK_LOAD * WRITEBACK_BYTES / wire_s.max(server_s / model.parallelism)
    }

    /// Uses up erased blocks by what was written and wins some back in idle time.
    pub(super) fn collect(&mut self, model: &DeviceModel, did: Wear, dt: f64) {
        if model.erased_gib <= 0.0 {
            self.spent = did.write_share * did.utilisation;
            return;
        }
        let idle = 1.0 - did.utilisation.clamp(0.0, 1.0);
        let won = model.erase_bytes_per_sec * idle * dt;
        self.spent += (did.written_bytes - won) / (model.erased_gib * GIB);
        self.spent = self.spent.clamp(0.0, 1.0);
    }
}

/// What wore a device in an interval.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wear {
    pub(super) written_bytes: f64,
    pub(super) write_share: f64,
    pub(super) utilisation: f64,
}

/// How many sequential requests go to the medium as one.
fn merged(model: &DeviceModel, phase: &Phase) -> f64 {
    (model.merge_kib / phase.request_kib)
        .min(phase.outstanding)
        .max(1.0)
}
