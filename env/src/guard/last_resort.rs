//! Where nobody is to blame, everything goes back.
//!
//! The trials find whose change hurts a disk by what was changed when. Settings that hurt together, later
//! or by turns can hide behind each other from them. So who misses an objective for long, which it could
//! meet, is believed in the end, without a culprit: all that a policy has changed on the host goes back to
//! what it is without us. If the objective is missed then too, it was not us, and nothing more is undone
//! for it until it is met again.

use std::collections::{BTreeMap, VecDeque};

use super::objective::{ObjectiveWatch, p99_us};
use super::{Harm, Intervention};
use crate::spec::Level;
use crate::window::HostWindow;

/// Windows of a disk by whose majority it can meet its objective, or cannot.
const REMEMBERED: usize = 8;

/// What a policy has changed on a host, and which of its disks can meet their objective.
#[derive(Debug)]
pub struct LastResort {
    p99_objective_us: Option<f64>,
    /// Windows in a row above the objective that bring it.
    windows: u32,
    /// The levels that disks have without us, of those that have others.
    defaults: BTreeMap<String, Vec<Level>>,
    /// Whether each disk met its objective in its last windows that tell: in those above it only while
    /// nothing was changed.
    met: BTreeMap<String, VecDeque<bool>>,
}

impl LastResort {
    /// Nothing is changed. `p99_objective_us`: without one nothing ever goes back.
    #[must_use]
    pub fn new(p99_objective_us: Option<f64>, windows: u32) -> Self {
        Self {
            p99_objective_us,
            windows,
            defaults: BTreeMap::new(),
            met: BTreeMap::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set(&mut self, p99_objective_us: Option<f64>, windows: u32) {
        if self.p99_objective_us != p99_objective_us {
            // Whether a disk met another objective says nothing of this one.
            self.met.clear();
        }
        self.p99_objective_us = p99_objective_us;
        self.windows = windows;
    }

    /// A disk has `now` in the place of what it had.
    pub fn note(&mut self, disk: &str, now: &[Level], default: &[Level]) {
        if now == default {
            self.defaults.remove(disk);
        } else {
            self.defaults.insert(disk.to_owned(), default.to_vec());
        }
    }

    /// What a disk has is not ours, or cannot be helped.
    pub fn forget(&mut self, disk: &str) {
        self.defaults.remove(disk);
    }

    /// Takes a window.
    pub fn observe(&mut self, window: &HostWindow) {
        let Some(objective_us) = self.p99_objective_us else {
            return;
        };
        let is_there = |disk: &String| window.disks.iter().any(|row| row.id == *disk);
        self.defaults.retain(|disk, _| is_there(disk));
        self.met.retain(|disk, _| is_there(disk));
        for row in &window.disks {
            let Some(p99_us) = p99_us(row) else { continue };
            let is_met = p99_us <= objective_us;
            if is_met || self.defaults.is_empty() {
                let met = self.met.entry(row.id.clone()).or_default();
                if met.len() == REMEMBERED {
                    met.pop_front();
                }
                met.push_back(is_met);
            }
        }
    }

    /// Whether a disk can meet its objective, as far as is known.
    #[must_use]
    pub fn can_meet(&self, disk: &str) -> bool {
        self.met.get(disk).is_none_or(|met| {
            let times = met.iter().filter(|is_met| **is_met).count();
            2 * times >= met.len()
        })
    }

    /// Whether a disk is to go back.
    #[must_use]
    pub fn names(&self, disk: &str, objective: &ObjectiveWatch) -> bool {
        self.defaults.contains_key(disk) && self.victim(objective).is_some()
    }

    /// All that is changed, once a disk has missed for long what it can meet.
    #[must_use]
    pub fn interventions(&self, objective: &ObjectiveWatch) -> Vec<Intervention> {
        let Some(harm) = self.victim(objective) else {
            return vec![];
        };
        let back = self.defaults.iter().map(|(disk, default)| Intervention {
            disk: disk.clone(),
            levels: default.clone(),
            harm: harm.clone(),
        });
        back.collect()
    }

    /// What a disk suffers for long that it need not.
    fn victim(&self, objective: &ObjectiveWatch) -> Option<Harm> {
        let objective_us = self.p99_objective_us?;
        let mut missing = objective.all_missed();
        let (disk, missed) =
            missing.find(|(disk, missed)| missed.in_all >= self.windows && self.can_meet(disk))?;
        Some(Harm::Unexplained {
            disk: disk.clone(),
            windows: missed.in_all,
            p99_us: missed.p99_us,
            objective_us,
        })
    }
}
