//! Which disks a joint decision may change: what is closed on one disk and on those tied to it, and how
//! many may be changed at once.

use std::collections::BTreeMap;

use super::close;
use crate::observation::{MaskReason, Observation};
use crate::spec::{EnvSpec, HeadScope, Level};

/// Something of one disk that is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    row: usize,
    head: usize,
    /// `None`: every level.
    level: Option<Level>,
}

impl Closed {
    /// Every level of a head, since it was changed too recently.
    #[must_use]
    pub fn head(row: usize, head: usize) -> Self {
        let level = None;
        Self { row, head, level }
    }

    /// One level, since it did harm.
    #[must_use]
    pub fn level(row: usize, head: usize, level: Level) -> Self {
        let level = Some(level);
        Self { row, head, level }
    }

    /// Whether it is every level of a head.
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.level.is_none()
    }

    /// Closes it, for the disks on the same IOThread too where the head is the IOThread's: whichever of
    /// them decides first decides for all. A level in force stays open as far as it was undone: a disk
    /// may keep what it has.
    pub fn close(self, spec: &EnvSpec, obs: &mut Observation) {
        let channels = obs.channel_count();
        let lengths = spec.disk_heads.iter().map(|head| head.len(channels));
        let start: usize = lengths.clone().take(self.head).sum();
        let Some(length) = lengths.clone().nth(self.head) else {
            return;
        };
        for row in tied(spec, obs, self.row, self.head) {
            let in_force = usize::from(obs.current.disks[[row, self.head]]);
            match self.level {
                None => (start..start + length)
                    .for_each(|cell| close(&mut obs.masks.disks[[row, cell]], MaskReason::Dwell)),
                Some(level) if usize::from(level) < length && usize::from(level) != in_force => {
                    let cell = start + usize::from(level);
                    close(
                        &mut obs.masks.disks[[row, cell]],
                        MaskReason::RecentlyUndone,
                    );
                }
                Some(_) => {}
            }
        }
    }
}

/// The rows that share a head with a row.
fn tied(spec: &EnvSpec, obs: &Observation, row: usize, head: usize) -> Vec<usize> {
    let group = obs.disk_group[row].filter(|_| spec.disk_heads[head].scope == HeadScope::IoThread);
    match group {
        None => vec![row],
        Some(group) => (0..obs.disk_count())
            .filter(|other| obs.disk_group[*other] == Some(group))
            .collect(),
    }
}

/// How many disks one joint decision may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// One, or those on one IOThread.
    One,
    /// As many as the rate leaves.
    Disks {
        /// How many that are.
        left: usize,
        /// How many there are in a minute.
        most: usize,
    },
}

impl Limit {
    /// Closes the disks beyond the limit: those on one IOThread are open together or not at all. Where
    /// there are more than may be, they take turns: `turn` says who is first. More disks on one IOThread
    /// than may be changed in a minute are open when nothing else was changed in one.
    pub fn apply(self, turn: usize, obs: &mut Observation) {
        let units = open_units(obs);
        let (reason, open) = match self {
            Self::One => (MaskReason::BreakerOpen, usize::from(!units.is_empty())),
            Self::Disks { left, most } => (MaskReason::RateLimit, within(&units, turn, left, most)),
        };
        let closed = (open..units.len()).flat_map(|i| &units[(turn + i) % units.len()]);
        for row in closed {
            let mut cells = obs.masks.disks.row_mut(*row);
            cells.map_inplace(|cell| close(cell, reason));
        }
    }
}

/// How many units, in turn, may all be changed.
fn within(units: &[Vec<usize>], turn: usize, left: usize, most: usize) -> usize {
    let mut used = 0;
    for i in 0..units.len() {
        used += units[(turn + i) % units.len()].len();
        if used > left {
            let is_alone = i == 0 && left == most;
            return if is_alone { 1 } else { i };
        }
    }
    units.len()
}

/// The rows of which something can be changed, those on one IOThread together.
fn open_units(obs: &Observation) -> Vec<Vec<usize>> {
    let mut unit_of = BTreeMap::new();
    let mut units: Vec<Vec<usize>> = vec![];
    for row in 0..obs.disk_count() {
        let is_open = obs
            .masks
            .disks
            .row(row)
            .iter()
            .any(|cell| cell.is_allowed());
        if !is_open {
            continue;
        }
        let unit = match obs.disk_group[row] {
            None => units.len(),
            Some(group) => *unit_of.entry(group).or_insert(units.len()),
        };
        if unit == units.len() {
            units.push(vec![]);
        }
        units[unit].push(row);
    }
    units
}
