//! What stands between a policy and guests that matter: pure, time passed in.
//!
//! Before a decision the guard closes what may not be changed now ([`Guard::restrict`]), so that what
//! a policy chooses is what happens and its propensities are those of the choices it really had.
//! After every window it judges what the last changes brought ([`Guard::observe`]) and names the disks
//! that must go back, with the reason. It never touches a host: whoever owns one carries it out.
//!
//! - [`budget`]: how soon and how often anything may be changed;
//! - [`trial`]: a window before a change against windows after it, with untouched disks as controls;
//! - [`stall`]: requests in flight and none completed;
//! - [`breaker`]: no changes for a while after too many went wrong;
//! - [`neighbour`]: limits a heavy neighbour while others miss their objectives;
//! - [`exploration`]: how much a guest may be explored, and when it may not.

pub mod breaker;
pub mod budget;
pub mod config;
pub mod exploration;
pub mod neighbour;
pub mod stall;
pub mod trial;

use std::fmt;
use std::time::Duration;

use crate::decision::JointAction;
use crate::features::CACHE_HEAD;
use crate::observation::{MaskReason, Observation};
use crate::spec::{EnvSpec, Level};
use crate::window::HostWindow;

use breaker::Breaker;
use budget::ChangeBudget;
pub use config::GuardConfig;
use exploration::{Calm, Unrest};
use stall::StallWatch;
use trial::TrialWatch;

/// Why a disk goes back to what it had before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Harm {
    /// Its latency rose by more than chance and tolerance explain. Ratios of after to before, the
    /// controls' own ratio taken out.
    Latency {
        /// Of the mean latency.
        mean_ratio: f64,
        /// Of the 99th percentile, where it could be measured.
        p99_ratio: Option<f64>,
        /// The ratio from which on it counts as harm.
        threshold: f64,
    },
    /// Its p99 is above its objective now and was not before.
    Objective {
        /// The p99 after the change, microseconds.
        p99_us: f64,
        /// The objective, microseconds.
        objective_us: f64,
    },
    /// Requests were in flight and none completed for some windows in a row.
    Stall {
        /// How many windows.
        windows: u32,
    },
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latency {
                mean_ratio,
                p99_ratio,
                threshold,
            } => {
                write!(f, "mean latency ×{mean_ratio:.2}")?;
                if let Some(p99) = p99_ratio {
                    write!(f, ", p99 ×{p99:.2}")?;
                }
                write!(f, " after the change, more than ×{threshold:.2}")
            }
            Self::Objective {
                p99_us,
                objective_us,
            } => write!(
                f,
                "p99 {p99_us:.0} µs after the change, above its objective of {objective_us:.0} µs"
            ),
            Self::Stall { windows } => write!(
                f,
                "nothing completed in {windows} windows with requests in flight"
            ),
        }
    }
}

/// A disk that must go back.
#[derive(Debug, Clone, PartialEq)]
pub struct Intervention {
    /// `guest/target`.
    pub disk: String,
    /// Its levels before the change, in the order of the disk heads.
    pub levels: Vec<Level>,
    /// Why.
    pub harm: Harm,
}

/// The guard of one host.
#[derive(Debug)]
pub struct Guard {
    budget: ChangeBudget,
    trials: TrialWatch,
    stalls: StallWatch,
    breaker: Breaker,
    calm: Calm,
}

impl Guard {
    /// A guard that has seen nothing yet.
    #[must_use]
    pub fn new(config: &GuardConfig) -> Self {
        Self {
            budget: ChangeBudget::new(config.dwell, config.changes_per_minute),
            trials: TrialWatch::new(config.trial),
            stalls: StallWatch::new(config.stall_windows),
            breaker: Breaker::new(config.breaker),
            calm: Calm::new(config.trial.p99_objective_us),
        }
    }

    /// Closes every level that may not be chosen now, but for those in force: while changes are
    /// stopped all, within its dwell a head, beyond the rate everything, during a trial the disk.
    pub fn restrict(&self, now: Duration, spec: &EnvSpec, obs: &mut Observation) {
        if let Some(reason) = self.closes_everything(now) {
            obs.masks.disks.map_inplace(|cell| close(cell, reason));
            obs.masks.devices.map_inplace(|cell| close(cell, reason));
            return;
        }
        let channels = obs.channel_count();
        for row in 0..obs.disk_count() {
            let is_on_trial = self.trials.is_on_trial(&obs.disk_ids[row]);
            let mut start = 0;
            for (head, spec_head) in spec.disk_heads.iter().enumerate() {
                let end = start + spec_head.len(channels);
                if is_on_trial || self.budget.dwells(now, &obs.disk_ids[row], head) {
                    let mut cells = obs.masks.disks.row_mut(row);
                    let cells = cells.iter_mut().skip(start).take(end - start);
                    cells.for_each(|cell| close(cell, MaskReason::Dwell));
                }
                start = end;
            }
        }
    }

    fn closes_everything(&self, now: Duration) -> Option<MaskReason> {
        if self.breaker.is_open(now) {
            Some(MaskReason::BreakerOpen)
        } else if self.budget.is_spent(now) {
            Some(MaskReason::RateLimit)
        } else {
            None
        }
    }

    /// Notes what has been changed on the host that `obs` shows: `executed` took effect in place of
    /// what was in force. Changes that somebody asked for count as much as a policy's.
    pub fn changed(&mut self, now: Duration, obs: &Observation, executed: &JointAction) {
        for (row, disk) in obs.disk_ids.iter().enumerate() {
            let (was, is) = (obs.current.disks.row(row), executed.disks.row(row));
            let heads = (0..was.len()).filter(|head| was[*head] != is[*head]);
            let heads: Vec<usize> = heads.collect();
            if heads.is_empty() {
                continue;
            }
            self.budget.note(now, disk, &heads);
            self.trials
                .begin(disk, was.to_vec(), heads.contains(&CACHE_HEAD));
        }
    }

    /// Why a disk must not be explored now; `None` if it may be.
    #[must_use]
    pub fn unrest(&self, now: Duration, disk: &str) -> Option<Unrest> {
        if self.breaker.is_open(now) {
            Some(Unrest::BreakerOpen)
        } else if self.trials.is_on_trial(disk) {
            Some(Unrest::OnTrial)
        } else {
            self.calm.unrest(disk)
        }
    }

    /// Notes that a change failed on the host.
    pub fn failed(&mut self, now: Duration) {
        self.breaker.note_failure(now);
    }

    /// Judges a window. What it names goes back; until it has, the guard names it again.
    pub fn observe(&mut self, window: &HostWindow) -> Vec<Intervention> {
        self.calm.observe(window);
        let mut interventions = self.trials.observe(window);
        for (disk, windows) in self.stalls.observe(window) {
            let is_named = interventions.iter().any(|known| known.disk == disk);
            if let (false, Some(levels)) = (is_named, self.trials.levels_before(&disk)) {
                let harm = Harm::Stall { windows };
                interventions.push(Intervention { disk, levels, harm });
            }
        }
        interventions
    }

    /// Ends a disk's trial without going back: what is in force stays, whatever it brought.
    pub fn settle(&mut self, disk: &str) {
        self.trials.settle(disk);
    }

    /// Notes that a disk went back: its trial is over, it may not change again for its dwell, and the
    /// breaker has one failure more.
    pub fn went_back(&mut self, now: Duration, disk: &str, heads: usize) {
        self.breaker.note_failure(now);
        self.trials.end(disk);
        self.budget.note(now, disk, &(0..heads).collect::<Vec<_>>());
    }
}

/// Keeps the reason of a level that was closed already.
fn close(cell: &mut MaskReason, reason: MaskReason) {
    if cell.is_allowed() {
        *cell = reason;
    }
}

#[cfg(test)]
mod tests;
