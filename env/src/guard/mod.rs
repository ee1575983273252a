//! What stands between a policy and guests that matter: pure, time passed in.
//!
//! Before a decision the guard closes what may not be changed now ([`Guard::restrict`]), so that what
//! a policy chooses is what happens and its propensities are those of the choices it really had.
//! After every window it judges what the last changes brought ([`Guard::observe`]) and names the disks
//! that must go back, with the reason. It never touches a host: whoever owns one carries it out.
//!
//! - [`budget`]: how soon and how often anything may be changed;
//! - [`trial`]: a window before a change against windows after it, with untouched disks as controls;
//! - [`objective`]: for how many windows a disk has been above its objective;
//! - [`last_resort`]: everything goes back where nobody is to blame;
//! - [`stall`]: requests in flight and none completed;
//! - [`backoff`]: a level that did harm stays closed, longer each time;
//! - [`device`]: a setting of a device, judged by all disks on it;
//! - [`breaker`]: no changes for a while after too many went wrong;
//! - [`harm`]: what had to be put back of one policy's changes;
//! - [`neighbour`]: limits a heavy neighbour while others miss their objectives;
//! - [`exploration`]: how much a guest may be explored, and when it may not;
//! - [`bound`]: how long and how often all of this lets a policy do harm that means to.

pub mod backoff;
pub mod bound;
pub mod breaker;
pub mod budget;
pub mod config;
pub mod device;
pub mod exploration;
pub mod harm;
pub mod last_resort;
mod latency;
pub mod neighbour;
pub mod objective;
pub mod opening;
pub mod stall;
pub mod trial;

use std::fmt;
use std::time::Duration;

use crate::decision::JointAction;
use crate::features::CACHE_HEAD;
use crate::observation::{MaskReason, Observation};
use crate::spec::{EnvSpec, Level};
use crate::window::HostWindow;

use backoff::LevelBackoff;
use breaker::{Breaker, Phase};
use budget::ChangeBudget;
pub use config::GuardConfig;
use device::{DeviceIntervention, DeviceWatch};
use exploration::{Calm, Unrest};
use last_resort::LastResort;
use objective::ObjectiveWatch;
use opening::{Closed, Limit};
use stall::StallWatch;
use trial::{Levels, TrialWatch};

/// Why a disk goes back to what it had before.
#[derive(Debug, Clone, PartialEq)]
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
    /// Another disk, on which nothing was changed, is above its objective since.
    Other {
        /// That disk.
        disk: String,
        /// Its p99, microseconds.
        p99_us: f64,
        /// The objective, microseconds.
        objective_us: f64,
    },
    /// It has been above its objective for long, which it met before it was first changed: it goes back
    /// to what it had without us.
    Late {
        /// For how many windows in a row.
        windows: u32,
        /// Its p99 in the last of them, microseconds.
        p99_us: f64,
        /// The objective, microseconds.
        objective_us: f64,
    },
    /// A disk has been above its objective for long, which it can meet, whatever was undone: everything
    /// goes back to what it is without us.
    Unexplained {
        /// That disk.
        disk: String,
        /// For how many windows in a row.
        windows: u32,
        /// Its p99 in the last of them, microseconds.
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
            Self::Other {
                disk,
                p99_us,
                objective_us,
            } => write!(
                f,
                "p99 {p99_us:.0} µs of {disk} after the change, above its objective of {objective_us:.0} µs"
            ),
            Self::Late {
                windows,
                p99_us,
                objective_us,
            } => write!(
                f,
                "p99 {p99_us:.0} µs, above its objective of {objective_us:.0} µs for {windows} windows"
            ),
            Self::Unexplained {
                disk,
                windows,
                p99_us,
                objective_us,
            } => write!(
                f,
                "p99 {p99_us:.0} µs of {disk}, above its objective of {objective_us:.0} µs for {windows} windows, and not known why"
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
    /// The levels that it shall have: those before the change or, of [`Harm::Late`] and
    /// [`Harm::Unexplained`], those without us; in the order of the disk heads.
    pub levels: Vec<Level>,
    /// Why.
    pub harm: Harm,
}

/// Why what somebody asks for is not done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Too many changes went wrong, or the one that tries again is still being judged.
    Breaker {
        /// When to ask again.
        wait: Duration,
    },
    /// As many disks were changed in the last minute as may be.
    Rate {
        /// When as many may be changed.
        wait: Duration,
    },
    /// The setting was changed too recently.
    Dwell {
        /// When it may be changed again.
        wait: Duration,
    },
    /// The last change of the device, or of a disk on it, is still being judged.
    OnTrial {
        /// When to ask again; the trial may take longer.
        wait: Duration,
    },
}

/// The guard of one host.
#[derive(Debug)]
pub struct Guard {
    dwell: Duration,
    devices: DeviceWatch,
    budget: ChangeBudget,
    backoff: LevelBackoff,
    trials: TrialWatch,
    objective: ObjectiveWatch,
    last_resort: LastResort,
    stalls: StallWatch,
    breaker: Breaker,
    calm: Calm,
    /// Windows seen, by which disks take turns where not all may be changed.
    windows: usize,
}

impl Guard {
    /// A guard that has seen nothing yet.
    #[must_use]
    pub fn new(config: &GuardConfig) -> Self {
        Self {
            dwell: config.dwell,
            devices: DeviceWatch::new(config.trial, config.stall_windows),
            budget: ChangeBudget::new(config.dwell, config.changes_per_minute),
            backoff: LevelBackoff::new(config.backoff),
            trials: TrialWatch::new(config.trial),
            objective: ObjectiveWatch::new(config.trial.p99_objective_us),
            last_resort: LastResort::new(
                config.trial.p99_objective_us,
                config.trial.longest_doubt(),
            ),
            stalls: StallWatch::new(config.stall_windows),
            breaker: Breaker::new(config.breaker),
            calm: Calm::new(config.trial.p99_objective_us),
            windows: 0,
        }
    }

    /// From now on it is as careful as this. What it knows stays: trials go on, and what is closed for a time
    /// stays closed so long.
    pub fn set_config(&mut self, config: &GuardConfig) {
        let objective = config.trial.p99_objective_us;
        self.dwell = config.dwell;
        self.devices.set_config(config.trial, config.stall_windows);
        self.budget.set(config.dwell, config.changes_per_minute);
        self.backoff.set_config(config.backoff);
        self.trials.set_config(config.trial);
        self.objective.set(objective);
        self.last_resort
            .set(objective, config.trial.longest_doubt());
        self.stalls.set(config.stall_windows);
        self.breaker.set_config(config.breaker);
        self.calm.set(objective);
    }

    /// Closes every level that may not be chosen now, but for those in force: while changes are
    /// stopped all, within its dwell a head, beyond the rate everything, during a trial the disk, and
    /// a level that did harm for a while. What is closed for a disk is closed for those on its
    /// IOThread where the head is the IOThread's.
    ///
    /// No joint decision on what is left can change more disks than the rate allows; where there are
    /// more, they take turns. While the breaker is half open it is one disk, or those on one IOThread,
    /// and none while one is on trial.
    pub fn restrict(&self, now: Duration, spec: &EnvSpec, obs: &mut Observation) {
        if let Some(reason) = self.closes_everything(now, obs) {
            obs.masks.disks.map_inplace(|cell| close(cell, reason));
            obs.masks.devices.map_inplace(|cell| close(cell, reason));
            return;
        }
        let rows = 0..obs.disk_count();
        let closed = rows.flat_map(|row| self.closed_of(now, spec, obs, row));
        let (heads, levels): (Vec<Closed>, Vec<Closed>) = closed.partition(Closed::is_head);
        for closed in heads.into_iter().chain(levels) {
            closed.close(spec, obs);
        }
        self.limit(now).apply(self.windows, obs);
    }

    fn closes_everything(&self, now: Duration, obs: &Observation) -> Option<MaskReason> {
        let is_on_trial = |disk: &String| self.trials.is_on_trial(disk);
        let is_probed = self.is_probing(now) && obs.disk_ids.iter().any(is_on_trial);
        if self.breaker.is_open(now) || is_probed {
            Some(MaskReason::BreakerOpen)
        } else if self.budget.is_spent(now) {
            Some(MaskReason::RateLimit)
        } else {
            None
        }
    }

    fn is_probing(&self, now: Duration) -> bool {
        self.breaker.phase(now) == Phase::HalfOpen
    }

    fn limit(&self, now: Duration) -> Limit {
        if self.is_probing(now) {
            Limit::One
        } else {
            Limit::Disks {
                left: self.budget.left(now),
                most: self.budget.most(),
            }
        }
    }

    /// What of one disk is closed: heads that dwell, and levels that did harm.
    fn closed_of(
        &self,
        now: Duration,
        spec: &EnvSpec,
        obs: &Observation,
        row: usize,
    ) -> Vec<Closed> {
        let disk = &obs.disk_ids[row];
        let is_on_trial = self.trials.is_on_trial(disk) || self.devices.is_judged_by(disk);
        let heads = 0..spec.disk_heads.len();
        let dwelling = heads.filter(|head| is_on_trial || self.budget.dwells(now, disk, *head));
        let dwelling = dwelling.map(|head| Closed::head(row, head));
        let undone = self.backoff.closed(now, disk);
        let undone = undone.map(|(head, level)| Closed::level(row, head, level));
        dwelling.chain(undone).collect()
    }

    /// Notes what has been changed on the host that `obs` shows: `executed` took effect in place of
    /// what was in force. Changes that somebody asked for count as much as a policy's.
    pub fn changed(&mut self, now: Duration, obs: &Observation, executed: &JointAction) {
        for mut change in changes(obs, executed) {
            let is_cache_changed = change.heads.contains(&CACHE_HEAD);
            self.note_left(now, &mut change);
            self.budget.note(now, change.disk, &change.heads);
            self.devices.disk_changed(change.disk);
            let Levels { now, default, .. } = &change.levels;
            self.last_resort.note(change.disk, now, default);
            self.trials
                .begin(change.disk, change.levels, is_cache_changed);
        }
    }

    /// What is left while a disk misses an objective that it can meet counts as undone, so that there is no
    /// way back to it either: else a policy could leave in time, and come back.
    fn note_left(&mut self, now: Duration, change: &mut DiskChange<'_>) {
        let mut missing = self.objective.last_missed();
        if !missing.any(|disk| self.last_resort.can_meet(disk)) {
            return;
        }
        let Levels {
            before, default, ..
        } = &mut change.levels;
        for head in &change.heads {
            let (was, default) = (&mut before[*head], default[*head]);
            if *was != default {
                self.backoff.note_undone(now, change.disk, *head, *was);
                *was = default;
            }
        }
    }

    /// Whether somebody may change so many disks and devices now.
    ///
    /// # Errors
    /// Why not, and when to ask again. More than may be changed in a minute at all may be when nothing
    /// was changed in one.
    pub fn admit(&self, now: Duration, count: usize) -> Result<(), Held> {
        if let Phase::Open { until } = self.breaker.phase(now) {
            let wait = until.saturating_sub(now);
            return Err(Held::Breaker { wait });
        }
        if self.is_probing(now) && self.trials.is_any_on_trial() {
            return Err(Held::Breaker { wait: self.dwell });
        }
        let wait = self.budget.wait(now, count);
        if wait.is_zero() {
            Ok(())
        } else {
            Err(Held::Rate { wait })
        }
    }

    /// Whether somebody may change a setting, by its number, of a device now.
    ///
    /// # Errors
    /// As [`Guard::admit`], and `Dwell`, `OnTrial`.
    pub fn admit_device(&self, now: Duration, device: &str, setting: usize) -> Result<(), Held> {
        self.admit(now, 1)?;
        let wait = self.budget.dwell_left(now, &device_key(device), setting);
        if !wait.is_zero() {
            return Err(Held::Dwell { wait });
        }
        let mut disks = self.devices.disks_of(device);
        let is_on_trial =
            self.devices.is_on_trial(device) || disks.any(|disk| self.trials.is_on_trial(disk));
        if is_on_trial {
            return Err(Held::OnTrial { wait: self.dwell });
        }
        Ok(())
    }

    /// Whether a setting of a device is still being judged.
    #[must_use]
    pub fn is_device_on_trial(&self, device: &str) -> bool {
        self.devices.is_on_trial(device)
    }

    /// Notes that a setting of a device was changed: it is judged by the disks on it.
    pub fn device_changed(&mut self, now: Duration, device: &str, setting: usize) {
        self.budget.note(now, &device_key(device), &[setting]);
        self.devices.begin(device);
    }

    /// Judges the settings of devices by a window. What it names goes back; until it has, the guard
    /// names it again.
    pub fn observe_devices(&mut self, window: &HostWindow) -> Vec<DeviceIntervention> {
        self.devices.observe(window)
    }

    /// Notes that a setting of a device went back: it may not be changed again for its dwell, and the
    /// breaker has one failure more.
    pub fn device_went_back(&mut self, now: Duration, device: &str, setting: usize) {
        self.breaker.note_failure(now);
        self.budget.note(now, &device_key(device), &[setting]);
        self.devices.end(device);
    }

    /// Notes that somebody has put a device back: nothing is judged any more.
    pub fn device_rolled_back(&mut self, device: &str) {
        self.devices.end(device);
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
        self.windows = self.windows.wrapping_add(1);
        self.calm.observe(window);
        self.objective.observe(window);
        self.last_resort.observe(window);
        let blamed = self.trials.observe(window, &self.objective);
        let mut interventions = self.last_resort.interventions(&self.objective);
        let is_named = |of: &[Intervention], disk: &str| of.iter().any(|known| known.disk == disk);
        for one in blamed {
            if !is_named(&interventions, &one.disk) {
                interventions.push(one);
            }
        }
        for (disk, windows) in self.stalls.observe(window) {
            if is_named(&interventions, &disk) {
                continue;
            }
            if let Some(levels) = self.trials.levels_before(&disk) {
                let harm = Harm::Stall { windows };
                interventions.push(Intervention { disk, levels, harm });
            }
        }
        interventions
    }

    /// Lets a disk keep what it has, whatever it brought and will bring.
    pub fn settle(&mut self, disk: &str) {
        self.trials.settle(disk);
        self.last_resort.forget(disk);
    }

    /// Notes that a disk went back, with those on its IOThread: `executed` took effect in place of what
    /// `obs` shows in force. Their trials are over, they may not change again for their dwell, the
    /// levels that they had stay closed for a while, and the breaker has one failure more.
    pub fn went_back(
        &mut self,
        now: Duration,
        obs: &Observation,
        executed: &JointAction,
        disk: &str,
    ) {
        self.breaker.note_failure(now);
        if self.last_resort.names(disk, &self.objective) {
            // What it has still is somebody else's.
            self.last_resort.forget(disk);
        }
        let row = obs.disk_ids.iter().position(|id| id == disk);
        let in_force = row.map(|row| executed.disks.row(row).to_vec());
        self.end_trial(disk, &in_force.unwrap_or_default());
        for change in changes(obs, executed) {
            for head in &change.heads {
                let undone = change.levels.before[*head];
                self.backoff.note_undone(now, change.disk, *head, undone);
            }
            let all: Vec<usize> = (0..change.levels.now.len()).collect();
            self.budget.note(now, change.disk, &all);
            let Levels { now, default, .. } = &change.levels;
            self.last_resort.note(change.disk, now, default);
            if change.disk != disk {
                self.end_trial(change.disk, &change.levels.now);
            }
        }
    }

    fn end_trial(&mut self, disk: &str, in_force: &[Level]) {
        self.trials.end(disk, in_force, &self.objective);
        self.objective.went_back(disk);
    }

    /// Notes that somebody has put disks back: their trials are over, and nothing is held against what
    /// they had.
    pub fn rolled_back(&mut self, now: Duration, obs: &Observation, executed: &JointAction) {
        for change in changes(obs, executed) {
            self.budget.note(now, change.disk, &change.heads);
            self.trials.forget(change.disk);
            self.last_resort.forget(change.disk);
        }
    }
}

/// A device among the disks, whose names have a slash.
fn device_key(device: &str) -> String {
    format!("device {device}")
}

/// What became of one disk.
struct DiskChange<'a> {
    disk: &'a str,
    heads: Vec<usize>,
    levels: Levels,
}

/// The disks whose levels in `executed` are not those that `obs` shows in force.
fn changes<'a>(
    obs: &'a Observation,
    executed: &'a JointAction,
) -> impl Iterator<Item = DiskChange<'a>> {
    let rows = obs.disk_ids.iter().enumerate();
    rows.filter_map(|(row, disk)| {
        let (before, now) = (obs.current.disks.row(row), executed.disks.row(row));
        let heads = (0..before.len()).filter(|head| before[*head] != now[*head]);
        let heads: Vec<usize> = heads.collect();
        let levels = Levels {
            before: before.to_vec(),
            now: now.to_vec(),
            default: obs.default.disks.row(row).to_vec(),
        };
        (!heads.is_empty()).then_some(DiskChange {
            disk,
            heads,
            levels,
        })
    })
}

/// Keeps the reason of a level that was closed already.
fn close(cell: &mut MaskReason, reason: MaskReason) {
    if cell.is_allowed() {
        *cell = reason;
    }
}

#[cfg(test)]
mod tests;
