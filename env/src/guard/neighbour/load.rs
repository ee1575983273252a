//! What each disk asks of its device, and which share of all that is.

use std::collections::{BTreeMap, VecDeque};

use crate::window::{DiskRow, HostWindow};

/// What a disk asks of its device, per second; what is not dominant or not known is left out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Load {
    pub(super) iops: Option<f64>,
    pub(super) bytes_per_s: Option<f64>,
}

/// One window of a disk.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    iops: f64,
    bytes_per_s: f64,
    share_of_iops: f64,
    share_of_bytes: f64,
}

/// The last windows of every disk.
#[derive(Debug)]
pub(super) struct Loads {
    windows: usize,
    seen: BTreeMap<String, VecDeque<Seen>>,
}

impl Loads {
    /// Over this many windows, ≥ 1.
    pub(super) fn new(windows: u32) -> Self {
        Self {
            windows: windows.max(1) as usize,
            seen: BTreeMap::new(),
        }
    }

    pub(super) fn observe(&mut self, window: &HostWindow) {
        self.seen
            .retain(|disk, _| window.disks.iter().any(|row| row.id == *disk));
        let totals = totals(window);
        for row in &window.disks {
            let seen = self.seen.entry(row.id.clone()).or_default();
            let Some((iops, bytes_per_s)) = rates(row) else {
                // What is not known breaks the row of windows.
                seen.clear();
                continue;
            };
            if seen.len() == self.windows {
                seen.pop_front();
            }
            let (all_iops, all_bytes) = totals.get(row.device).copied().unwrap_or_default();
            let share = |of: f64, all: f64| if all > 0.0 { of / all } else { 0.0 };
            seen.push_back(Seen {
                iops,
                bytes_per_s,
                share_of_iops: share(iops, all_iops),
                share_of_bytes: share(bytes_per_s, all_bytes),
            });
        }
    }

    /// What a disk asked for in the last window.
    pub(super) fn last(&self, disk: &str) -> Option<Load> {
        let seen = self.seen.get(disk)?.back()?;
        Some(Load {
            iops: Some(seen.iops),
            bytes_per_s: Some(seen.bytes_per_s),
        })
    }

    /// The larger of its shares, by the medians of the windows; 0 where too few are known.
    pub(super) fn share(&self, disk: &str) -> f64 {
        let iops = self.median(disk, |seen| seen.share_of_iops);
        let bytes = self.median(disk, |seen| seen.share_of_bytes);
        iops.unwrap_or(0.0).max(bytes.unwrap_or(0.0))
    }

    /// What a disk asks for where that is at least this share of its device's, by the medians of the
    /// windows; `None` where neither is.
    pub(super) fn dominant(&self, disk: &str, share: f64) -> Option<Load> {
        let of_iops = self.median(disk, |seen| seen.share_of_iops)? >= share;
        let of_bytes = self.median(disk, |seen| seen.share_of_bytes)? >= share;
        let load = Load {
            iops: self.median(disk, |seen| seen.iops).filter(|_| of_iops),
            bytes_per_s: self
                .median(disk, |seen| seen.bytes_per_s)
                .filter(|_| of_bytes),
        };
        (of_iops || of_bytes).then_some(load)
    }

    fn median(&self, disk: &str, figure: impl Fn(&Seen) -> f64) -> Option<f64> {
        let seen = self
            .seen
            .get(disk)
            .filter(|seen| seen.len() == self.windows)?;
        let mut values: Vec<f64> = seen.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

/// Requests and bytes per second that reach the device: hits in the host's page cache do not.
fn rates(row: &DiskRow) -> Option<(f64, f64)> {
    let did = &row.did;
    let iops = did.iops.ok()?;
    let hits = did.hit_rate.unwrap_or(0.0) * did.read_share.unwrap_or(0.0);
    let missed = iops * (1.0 - hits).clamp(0.0, 1.0);
    Some((missed, missed * did.request_bytes.unwrap_or(0.0)))
}

/// Of each device: what its disks ask for, or what it did where that is more, since others use it too.
fn totals(window: &HostWindow) -> Vec<(f64, f64)> {
    let of = |(index, device): (usize, &crate::window::DeviceRow)| {
        let rows = window.disks.iter().filter(|row| row.device == index);
        let (iops, bytes) = rows
            .filter_map(rates)
            .fold((0.0, 0.0), |sum, rate| (sum.0 + rate.0, sum.1 + rate.1));
        (
            iops.max(device.did.iops.unwrap_or(0.0)),
            bytes.max(device.did.bytes_per_sec.unwrap_or(0.0)),
        )
    };
    window.devices.iter().enumerate().map(of).collect()
}
