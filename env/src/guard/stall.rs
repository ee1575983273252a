//! A stalled guest is invisible from the host but for one thing: requests are in flight and none
//! completes.

use std::collections::BTreeMap;

use crate::window::{DiskRow, HostWindow};

/// Counts windows without a completion per disk.
#[derive(Debug)]
pub struct StallWatch {
    /// Windows in a row that count as a stall.
    windows: u32,
    silent: BTreeMap<String, u32>,
}

impl StallWatch {
    /// `windows` ≥ 1.
    #[must_use]
    pub fn new(windows: u32) -> Self {
        Self {
            windows: windows.max(1),
            silent: BTreeMap::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set(&mut self, windows: u32) {
        self.windows = windows.max(1);
    }

    /// The disks that are stalled after this window, and for how many windows they have been silent.
    pub fn observe(&mut self, window: &HostWindow) -> Vec<(String, u32)> {
        let silent = window.disks.iter().filter(|disk| is_silent(disk));
        let counted = silent.map(|disk| {
            let before = self.silent.get(&disk.id).copied().unwrap_or(0);
            (disk.id.clone(), before.saturating_add(1))
        });
        self.silent = counted.collect();
        let stalled = self
            .silent
            .iter()
            .filter(|(_, count)| **count >= self.windows);
        stalled
            .map(|(disk, count)| (disk.clone(), *count))
            .collect()
    }
}

/// Whether requests were in flight and none completed.
pub(super) fn is_silent(disk: &DiskRow) -> bool {
    disk.did.iops == Ok(0.0) && disk.in_flight.is_ok_and(|requests| requests > 0)
}
