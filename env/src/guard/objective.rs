//! Whether a disk is above its objective: for how many windows in a row.
//!
//! Here nobody is asked whether others fare as badly: who has promised a p99 has promised it whatever
//! the neighbours do.

use std::collections::BTreeMap;

use super::stall::is_silent;
use crate::window::{DiskRow, HostWindow};

/// Windows above the objective, disk by disk.
#[derive(Debug)]
pub struct ObjectiveWatch {
    p99_objective_us: Option<f64>,
    missed: BTreeMap<String, Missed>,
}

/// A disk that is above its objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Missed {
    /// Windows in a row, since it went back if it did, ≥ 1.
    pub windows: u32,
    /// Windows in a row, whatever was done meanwhile, ≥ 1.
    pub in_all: u32,
    /// The p99 of the last of them, microseconds; infinite where nothing completed.
    pub p99_us: f64,
}

impl ObjectiveWatch {
    /// `p99_objective_us`: without one nothing is ever missed.
    #[must_use]
    pub fn new(p99_objective_us: Option<f64>) -> Self {
        Self {
            p99_objective_us,
            missed: BTreeMap::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set(&mut self, p99_objective_us: Option<f64>) {
        if self.p99_objective_us != p99_objective_us {
            self.missed.clear();
        }
        self.p99_objective_us = p99_objective_us;
    }

    /// Takes a window. One that says nothing of a disk, since it was idle or its p99 could not be
    /// measured, neither counts nor ends a row.
    pub fn observe(&mut self, window: &HostWindow) {
        let Some(objective_us) = self.p99_objective_us else {
            return;
        };
        let is_there = |disk: &String| window.disks.iter().any(|row| row.id == *disk);
        self.missed.retain(|disk, _| is_there(disk));
        for row in &window.disks {
            let Some(p99_us) = p99_us(row) else { continue };
            if p99_us <= objective_us {
                self.missed.remove(&row.id);
                continue;
            }
            let before = self.missed.get(&row.id);
            let (windows, in_all) = before.map_or((0, 0), |m| (m.windows, m.in_all));
            let missed = Missed {
                windows: windows.saturating_add(1),
                in_all: in_all.saturating_add(1),
                p99_us,
            };
            self.missed.insert(row.id.clone(), missed);
        }
    }

    /// A disk that was above its objective in the last window that said anything of it.
    #[must_use]
    pub fn missed(&self, disk: &str) -> Option<Missed> {
        self.missed.get(disk).filter(|m| m.windows > 0).copied()
    }

    /// The disks that were above their objective in the last window that said anything of them, those that
    /// have gone back since included.
    pub fn last_missed(&self) -> impl Iterator<Item = &String> {
        self.missed.keys()
    }

    /// The disks that are above their objective.
    pub fn all_missed(&self) -> impl Iterator<Item = (&String, &Missed)> {
        self.missed.iter().filter(|(_, missed)| missed.windows > 0)
    }

    /// A disk has gone back: what it was like before is not what it is like now.
    pub fn went_back(&mut self, disk: &str) {
        if let Some(missed) = self.missed.get_mut(disk) {
            missed.windows = 0;
        }
    }
}

/// A window's p99 of a disk, microseconds; `None` where it says nothing of it. Requests that nothing comes
/// of are above any objective.
pub(super) fn p99_us(row: &DiskRow) -> Option<f64> {
    if is_silent(row) {
        Some(f64::INFINITY)
    } else {
        row.did.latency_us_p99.ok()
    }
}
