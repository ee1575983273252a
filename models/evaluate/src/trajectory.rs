//! Joint decisions as steps of trajectories: one per host, or one per disk.

use std::collections::HashMap;

use crate::options::Exposure;
use crate::read::Step;
use crate::step::{HostStep, Row};

/// A step of a trajectory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unit {
    /// Number of the trajectory.
    pub(crate) trajectory: usize,
    /// The row that decides, or all of them.
    pub(crate) row: Option<usize>,
    /// Its reward, on the scale of one.
    pub(crate) reward: f64,
    /// It follows the step before it of this trajectory.
    pub(crate) follows: bool,
    pub(crate) has_terminated: bool,
}

impl Unit {
    /// Numbers of the rows that decide.
    pub(crate) fn rows(&self, step: &HostStep) -> std::ops::Range<usize> {
        match self.row {
            Some(row) => row..row + 1,
            None => 0..step.rows.len(),
        }
    }
}

/// Where each trajectory stands.
#[derive(Debug)]
pub(crate) struct Trajectories {
    exposure: Exposure,
    /// Per host: the how manieth joint decision it is.
    serials: HashMap<usize, u64>,
    /// By host and disk: its number, and the joint decision in which it last had a reward.
    known: HashMap<(usize, u32), (usize, u64)>,
}

impl Trajectories {
    pub(crate) fn new(exposure: Exposure) -> Self {
        Self {
            exposure,
            serials: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// The steps that a joint decision makes, into `units`.
    pub(crate) fn units(&mut self, of: &Step<'_>, units: &mut Vec<Unit>) {
        units.clear();
        let step = of.step;
        let serial = self.serials.entry(step.host).or_default();
        *serial += 1;
        let serial = *serial;
        match self.exposure {
            Exposure::Host => {
                let Some(reward) = step.reward() else { return };
                units.push(Unit {
                    trajectory: step.host,
                    row: None,
                    reward,
                    follows: of.follows,
                    has_terminated: step.has_terminated(),
                });
            }
            Exposure::Disk => {
                let (counted, known) = step.counted();
                // So that the mean over disks is the mean over those that count.
                let scale = f64::from(known) / f64::from(counted.max(1));
                for (i, row) in step.rows.iter().enumerate() {
                    let Some(reward) = own_reward(row) else {
                        continue;
                    };
                    let (trajectory, follows) =
                        self.step_of((step.host, row.subject), serial, of.follows);
                    units.push(Unit {
                        trajectory,
                        row: Some(i),
                        reward: reward * scale,
                        follows,
                        has_terminated: step.has_terminated(),
                    });
                }
            }
        }
    }

    fn step_of(&mut self, disk: (usize, u32), serial: u64, follows: bool) -> (usize, bool) {
        let next = self.known.len();
        let (number, last) = self.known.entry(disk).or_insert((next, 0));
        let follows = follows && *last + 1 == serial;
        *last = serial;
        (*number, follows)
    }
}

fn own_reward(row: &Row) -> Option<f64> {
    let outcome = row.outcome.filter(|_| row.is_disk)?;
    Some(if outcome.counted { outcome.own } else { 0.0 })
}

/// Where a trajectory stands in its window.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cut {
    /// Steps of the window so far; 0 before the first of all.
    steps: usize,
    /// The block in which it began.
    pub(crate) block: usize,
}

/// Whether a step begins a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    /// It goes on with one.
    GoesOn,
    /// It begins one, and the one before had so many steps.
    Begins { before: usize },
}

impl Cut {
    /// Takes the next step; `block` is the one that it would begin a window in.
    pub(crate) fn take(
        &mut self,
        unit: &Unit,
        horizon: usize,
        block: impl FnOnce() -> usize,
    ) -> Turned {
        if unit.follows && self.steps > 0 && self.steps < horizon {
            self.steps += 1;
            return Turned::GoesOn;
        }
        let before = self.steps;
        *self = Self {
            steps: 1,
            block: block(),
        };
        Turned::Begins { before }
    }

    /// Number of the step within its window, from 0.
    pub(crate) fn at(&self) -> usize {
        self.steps.saturating_sub(1)
    }
}
