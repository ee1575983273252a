//! Dirty pages: when the kernel writes them back, whom it throttles, and how pages come and go.
//!
//! Below the background threshold pages are written when they have expired (`dirty_expire_centisecs`,
//! 30 s); above it everything is written as fast as the device gives until the threshold is well
//! undercut: a burst. Above the middle of threshold and limit writers wait for the device, all of them
//! at the limit (`balance_dirty_pages`, Linux `mm/page-writeback.c`).

use super::episode::{Episode, REOPEN_STALL_S};
use crate::sample::Cache;

/// Age at which dirty pages are written, seconds.
const EXPIRE_S: f64 = 30.0;
/// Share of the dirty limit at which a burst begins, and at which it ends.
const BACKGROUND: f64 = 0.5;
const BURST_END: f64 = 0.35;
/// Share at which writers begin to be throttled.
const FREE_RUN: f64 = 0.75;
/// Share of a direct disk's stale pages that are reclaimed per interval.
const STALE_RECLAIM: f64 = 0.2;

/// What the flusher does.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WriteBack {
    is_bursting: bool,
    /// Share of buffered writes that wait for the device because of the limit.
    pub(super) throttled: f64,
}

impl Episode {
    /// Decides how much each device writes back in the interval to come.
    pub(super) fn plan_write_back(&mut self) {
        let dirty: f64 = self.disks.iter().map(|d| d.dirty_bytes).sum();
        let full = dirty / self.window.host.dirty_limit_bytes;
        self.write_back.is_bursting =
            full > BACKGROUND || (self.write_back.is_bursting && full > BURST_END);
        self.write_back.throttled = ((full - FREE_RUN) / (1.0 - FREE_RUN)).clamp(0.0, 1.0);
        let interval_s = self.scenario.interval_s;
        for state in &mut self.devices {
            state.writeback_bytes_per_sec = 0.0;
        }
        for (state, model) in self.disks.iter().zip(&self.scenario.disks) {
            // Pages that keep a disk from going back to direct are written at once.
            let horizon_s = if state.is_flushing || self.write_back.is_bursting {
                interval_s
            } else {
                EXPIRE_S.max(interval_s)
            };
            self.devices[model.device].writeback_bytes_per_sec += state.dirty_bytes / horizon_s;
        }
        for (state, model) in self.devices.iter_mut().zip(&self.scenario.devices) {
            let most = state.most_writeback(model);
            state.writeback_bytes_per_sec = state.writeback_bytes_per_sec.min(most);
        }
    }

    /// Lets pages come and go as the interval has shown.
    pub(super) fn age_pages(&mut self) {
        let mut resident = 0.0;
        for disk in 0..self.disks.len() {
            self.write_back_disk(disk);
            self.age_disk(disk);
            resident += self.disks[disk].cached_bytes;
        }
        self.is_cache_full = resident > 0.95 * self.network.cache_bytes;
        self.window.host.dirty_bytes = self.disks.iter().map(|d| d.dirty_bytes).sum();
    }

    /// Takes from a disk's dirty pages its part of what its device wrote.
    fn write_back_disk(&mut self, disk: usize) {
        let device = self.scenario.disks[disk].device;
        let dirty = self.disks[disk].dirty_bytes;
        let of_device: f64 = self.sums[device].dirty_bytes;
        if dirty <= 0.0 || of_device <= 0.0 {
            return;
        }
        let rate = self.devices[device].writeback_bytes_per_sec;
        let written = (rate * self.scenario.interval_s / of_device).min(1.0) * dirty;
        let state = &mut self.disks[disk];
        state.dirty_bytes = if dirty - written < 1.0 {
            0.0
        } else {
            dirty - written
        };
        if state.dirty_bytes == 0.0 && state.is_flushing {
            let row = &mut self.window.disks[disk];
            (row.settings.cache, row.since_change_s) = (Cache::Direct, 0.0);
            (state.is_flushing, state.stall_s) = (false, REOPEN_STALL_S);
        }
    }

    fn age_disk(&mut self, disk: usize) {
        let waiting = self.waiting_writes(disk);
        let (phase, flow) = (self.phase(disk), &self.solution.flows[disk]);
        let bytes_per_sec = flow.throughput * phase.request_kib * 1024.0;
        let written = bytes_per_sec * (1.0 - phase.read_share);
        let fetched = bytes_per_sec * phase.read_share * (1.0 - flow.hit);
        let (dt, is_cached) = (
            self.scenario.interval_s,
            self.network.classes[disk].cache.is_some(),
        );
        let writes = flow.throughput * (1.0 - phase.read_share) * dt;
        let resident = flow.resident_bytes;
        let state = &mut self.disks[disk];
        if is_cached {
            state.cached_bytes = (state.cached_bytes + (written + fetched) * dt).min(resident);
            if self.window.disks[disk].settings.cache == Cache::Buffered {
                state.dirty_bytes += written * (1.0 - waiting) * dt;
            }
        } else {
            state.cached_bytes *= 1.0 - STALE_RECLAIM;
        }
        if let Some(since) = &mut state.snapshot {
            *since += writes;
        }
        let row = &mut self.window.disks[disk];
        row.cached_bytes = Ok(state.cached_bytes);
        row.dirty_bytes = Ok(state.dirty_bytes);
    }
}
