//! What a simulated disk carries from one interval to the next.

use rand::RngExt as _;

use super::boot::GIB;
use super::page_cache::HitCurve;
use super::scenario::{DiskModel, Phase};

/// Cluster of an image that a snapshot shares until it is written, bytes (qcow2's default).
pub(super) const CLUSTER_BYTES: f64 = 65_536.0;

/// Where a disk stands.
#[derive(Debug, Clone)]
pub(super) struct DiskState {
    pub(super) phase: usize,
    /// Index of the hit curve of each phase, and of that of its clusters.
    curves: Vec<(usize, usize)>,
    /// Its pages in the page cache and those of them that are dirty, bytes.
    pub(super) cached_bytes: f64,
    pub(super) dirty_bytes: f64,
    /// Time for which it stands still at the start of the next interval, seconds.
    pub(super) stall_s: f64,
    /// Whether its dirty pages are written out so that it can go back to direct. New writes wait for
    /// the device meanwhile.
    pub(super) is_flushing: bool,
    /// Writes since the snapshot was taken, where there is one.
    pub(super) snapshot: Option<f64>,
    /// Probability that a write copies its cluster in this interval.
    pub(super) copying: f64,
    /// Clusters copied since the start, bytes.
    pub(super) copied_bytes: f64,
}

impl DiskState {
    /// A disk in a random phase, with its curves still to be computed.
    pub(super) fn new(model: &DiskModel, curves: &mut Vec<HitCurve>, rng: &mut crate::Rng) -> Self {
        let add = |phase: &Phase, curves: &mut Vec<HitCurve>| {
            let first = curves.len();
            curves.push(HitCurve::default());
            if phase.snapshot {
                curves.push(HitCurve::default());
            }
            (first, curves.len() - 1)
        };
        let curves = model.phases.iter().map(|p| add(p, curves)).collect();
        let phase = rng.random_range(0..model.phases.len());
        Self {
            phase,
            curves,
            cached_bytes: 0.0,
            dirty_bytes: 0.0,
            stall_s: 0.0,
            is_flushing: false,
            snapshot: model.phases[phase].snapshot.then_some(0.0),
            copying: 0.0,
            copied_bytes: 0.0,
        }
    }

    /// Passes to another phase, by chance. As many numbers are drawn where there is nowhere to go, so
    /// that one disk's phases do not shift another's.
    pub(super) fn move_phase(&mut self, model: &DiskModel, rng: &mut crate::Rng) {
        let (leaving, drawn) = (rng.random::<f64>(), rng.random::<f64>());
        let phase = &model.phases[self.phase];
        if model.phases.len() == 1 || leaving * phase.mean_intervals >= 1.0 {
            return;
        }
        self.phase = next_phase(self.phase, model, drawn);
        self.snapshot = model.phases[self.phase].snapshot.then_some(0.0);
    }

    /// Index of the hit curve of its phase; computed when it is first needed.
    pub(super) fn curve(&self, phase: &Phase, curves: &mut [HitCurve]) -> usize {
        let index = self.curves[self.phase].0;
        prepare(&mut curves[index], phase, page_bytes(phase));
        index
    }

    /// Probability that a write is the first to its cluster since the snapshot.
    pub(super) fn copying(&self, phase: &Phase, curves: &mut [HitCurve]) -> f64 {
        let Some(writes) = self.snapshot else {
            return 0.0;
        };
        let curve = &mut curves[self.curves[self.phase].1];
        prepare(curve, phase, CLUSTER_BYTES.max(page_bytes(phase)));
        1.0 - curve.at(libm::log(writes.max(1e-9))).hit
    }
}

fn prepare(curve: &mut HitCurve, phase: &Phase, bytes: f64) {
    if curve.len() == 0.0 {
        *curve = HitCurve::zipf(phase.working_set_gib * GIB / bytes, phase.skew);
    }
}

/// A page of the cache, or as much as a request brings in at once.
pub(super) fn page_bytes(phase: &Phase) -> f64 {
    (phase.request_kib * 1024.0).max(4096.0)
}

fn next_phase(current: usize, model: &DiskModel, drawn: f64) -> usize {
    let weights = model.next_weights(current);
    let mut left = drawn * weights.clone().sum::<f64>();
    for (next, weight) in weights.enumerate() {
        left -= weight;
        if left < 0.0 {
            return next;
        }
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::presets;

    #[test]
    fn phases_follow_their_shares() {
        let mut disk = presets::identical_disks(1, 1).disks.remove(0);
        disk.phases = vec![presets::random_read(1.0, 1.0); 3];
        disk.phases[0].next = vec![0.0, 0.25, 0.75];
        disk.phases[2].next = vec![0.0, 0.0, 1.0];
        assert_eq!(next_phase(0, &disk, 0.2), 1);
        assert_eq!(next_phase(0, &disk, 0.3), 2);
        assert_eq!(next_phase(1, &disk, 0.49), 0);
        assert_eq!(next_phase(1, &disk, 0.51), 2);
        assert_eq!(next_phase(2, &disk, 0.5), 2, "nothing else may follow");
        disk.phases[0].mean_intervals = 4.0;
        disk.phases[1].mean_intervals = 4.0;
        assert_eq!(disk.transitions(0), [0.75, 0.0625, 0.1875]);
        assert_eq!(disk.transitions(1), [0.125, 0.75, 0.125]);
        assert_eq!(disk.transitions(2), [0.0, 0.0, 1.0]);
    }
}
