//! Each change of a disk is a trial: windows before it against windows after it.
//!
//! Latencies are compared as logarithms, since they spread by factors. With b the median over the
//! windows before a change and a the one over the windows after it, the effect is (a − b) minus the
//! same of the controls: the median over the disks that nothing was changed on meanwhile, so that
//! what happened to the whole host is not blamed on one change. It counts as harm when it exceeds a
//! tolerance and what chance explains: z·σ·√(1/n_b + 1/n_a), σ estimated from the disk's own
//! differences between one window and the next while nothing was changed (median absolute
//! difference / 0.6745 / √2, Rousseeuw and Croux 1993), the controls' uncertainty added in. An effect
//! beyond the tolerance that chance still explains is watched for longer, since what chance explains
//! shrinks with the windows.
//!
//! Requests that wait are latency by Little's law, so a disk that serves less because less is asked
//! of it is not harmed, and one that serves less of what is asked is.
//!
//! An objective is another matter: it is a promise, and neither chance nor the neighbours excuse it. A
//! disk that met it before a change goes back once it has missed it for some windows in a row, a change
//! goes back too when another disk does, and a disk that was changed long ago goes back to its default.

use std::collections::BTreeMap;

use super::latency::{History, Latency, Rise, Shift, median};
use super::objective::{Missed, ObjectiveWatch};
use super::{Harm, Intervention};
use crate::spec::Level;
use crate::window::HostWindow;

/// When a change counts as harmful.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrialConfig {
    /// Windows after a change that are left out: the change itself, and what it stirs up.
    pub settle_windows: u32,
    /// The same where the cache strategy was changed: a cache has to warm up.
    pub settle_windows_cache: u32,
    /// Windows after a change that are judged, ≥ 1. Harm is known when the first of them is that bad,
    /// and at the end of the last at the latest, if there is no doubt.
    pub windows: u32,
    /// Windows that are judged at most while the latency has risen by more than is borne, but chance
    /// explains it.
    pub doubt_windows: u32,
    /// Rise of the latency that is borne, a ratio ≥ 1.
    pub tolerated_ratio: f64,
    /// Standard errors beyond it that count as more than chance.
    pub z: f64,
    /// Objective for the p99, microseconds.
    pub p99_objective_us: Option<f64>,
    /// Windows in a row above the objective that undo a change on trial, ≥ 1; those that are left out
    /// otherwise count.
    pub objective_windows: u32,
    /// The same for a disk whose changes were all kept, which goes back to its default then, ≥ 1.
    pub late_windows: u32,
}

impl Default for TrialConfig {
    fn default() -> Self {
        Self {
            settle_windows: 0,
            settle_windows_cache: 1,
            windows: 3,
            doubt_windows: 12,
            tolerated_ratio: 1.15,
            z: 3.0,
            p99_objective_us: None,
            objective_windows: 2,
            late_windows: 10,
        }
    }
}

impl TrialConfig {
    /// Windows for which a disk may miss its objective because of an earlier change that is not undone
    /// yet: as long it hides what a change does to it that is made meanwhile.
    #[must_use]
    pub fn longest_doubt(&self) -> u32 {
        let (late, enough) = (self.late_windows.max(1), self.objective_windows.max(1));
        late.saturating_add(enough).saturating_add(1)
    }
}

/// The levels of a disk around a change, in the order of the disk heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// Before it.
    pub before: Vec<Level>,
    /// After it.
    pub now: Vec<Level>,
    /// Without us.
    pub default: Vec<Level>,
}

/// A change that is being judged.
#[derive(Debug)]
struct Trial {
    levels: Levels,
    /// Whether the objective was met before it, as far as is known.
    met: bool,
    /// Windows since the change.
    age: u32,
    before: History,
    settle: u32,
    after: History,
    /// What every other disk showed when the change was made, by disk.
    others_before: BTreeMap<String, f64>,
}

/// A disk that misses an objective that it met.
struct Other {
    disk: String,
    missed: Missed,
    is_on_trial: bool,
}

impl Other {
    /// Whether it has missed it only since a change was made.
    fn began_during(&self, trial: &Trial) -> bool {
        self.missed.windows <= trial.age
    }
}

/// The trials of one host.
#[derive(Debug)]
pub struct TrialWatch {
    config: TrialConfig,
    histories: BTreeMap<String, History>,
    trials: BTreeMap<String, Trial>,
    /// Of disks whose last change was found harmless, for a stall or a missed objective that comes
    /// later.
    settled: BTreeMap<String, Settled>,
}

/// A change that was kept.
#[derive(Debug)]
struct Settled {
    levels: Levels,
    met: bool,
}

impl TrialWatch {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(config: TrialConfig) -> Self {
        Self {
            config,
            histories: BTreeMap::new(),
            trials: BTreeMap::new(),
            settled: BTreeMap::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set_config(&mut self, config: TrialConfig) {
        self.config = config;
    }

    /// Whether the last change of a disk is still being judged.
    #[must_use]
    pub fn is_on_trial(&self, disk: &str) -> bool {
        self.trials.contains_key(disk)
    }

    /// Whether that of any disk is.
    #[must_use]
    pub fn is_any_on_trial(&self) -> bool {
        !self.trials.is_empty()
    }

    /// The levels that a disk had before its last change.
    #[must_use]
    pub fn levels_before(&self, disk: &str) -> Option<Vec<Level>> {
        let trial = self.trials.get(disk).map(|trial| &trial.levels);
        let settled = || self.settled.get(disk).map(|settled| &settled.levels);
        trial.or_else(settled).map(|levels| levels.before.clone())
    }

    /// A disk has been changed.
    pub fn begin(&mut self, disk: &str, mut levels: Levels, is_cache_changed: bool) {
        let (met, before) = match self.trials.remove(disk) {
            // Changed again before it was judged: what counts is where it came from.
            Some(trial) => {
                levels.before = trial.levels.before;
                (trial.met, trial.before)
            }
            None => {
                let before = self.histories.remove(disk).unwrap_or_default();
                let was_met = self.settled.get(disk).is_some_and(|settled| settled.met);
                (was_met || self.is_met(&before, 0), before)
            }
        };
        // What is changed itself is nobody's control any more.
        for trial in self.trials.values_mut() {
            trial.others_before.remove(disk);
        }
        let others = self.histories.iter().filter(|(other, _)| *other != disk);
        let recent = self.config.windows as usize;
        let trial = Trial {
            levels,
            met,
            age: 0,
            before,
            settle: if is_cache_changed {
                self.config.settle_windows_cache
            } else {
                self.config.settle_windows
            },
            after: History::default(),
            others_before: others
                .filter_map(|(other, history)| Some((other.clone(), history.recent(recent)?)))
                .collect(),
        };
        self.trials.insert(disk.to_owned(), trial);
    }

    /// A disk has gone back, and `in_force` is in force: nothing of its trial is known of that. What
    /// others missed while it lasted was its doing, so that it says nothing of them.
    pub fn end(&mut self, disk: &str, in_force: &[Level], objective: &ObjectiveWatch) {
        if let Some(trial) = self.trials.remove(disk) {
            for (other, missed) in objective.all_missed() {
                if let Some(history) = self.histories.get_mut(other) {
                    history.forget(missed.windows.min(trial.age) as usize);
                }
            }
            self.histories.insert(disk.to_owned(), trial.before);
            return;
        }
        // What it missed with what has gone says nothing of what is in force, nor is it a control.
        self.histories.remove(disk);
        for trial in self.trials.values_mut() {
            trial.others_before.remove(disk);
        }
        if let Some(mut settled) = self.settled.remove(disk)
            && in_force != settled.levels.default
        {
            // On the way back to its default there is only that.
            settled.levels.before.clone_from(&settled.levels.default);
            settled.levels.now = in_force.to_vec();
            self.settled.insert(disk.to_owned(), settled);
        }
    }

    /// Something else that a disk depends on was changed: its windows say nothing of what comes.
    pub fn forget_windows(&mut self, disk: &str) {
        self.histories.remove(disk);
    }

    /// A disk was put back by somebody, so that nothing of it is ours any more.
    pub fn forget(&mut self, disk: &str) {
        if let Some(trial) = self.trials.remove(disk) {
            self.histories.insert(disk.to_owned(), trial.before);
        }
        self.settled.remove(disk);
    }

    /// Takes a window, which `objective` has seen, and names the disks whose change has done harm.
    pub fn observe(
        &mut self,
        window: &HostWindow,
        objective: &ObjectiveWatch,
    ) -> Vec<Intervention> {
        self.forget_the_gone(window);
        for row in &window.disks {
            if let Some(trial) = self.trials.get_mut(&row.id) {
                trial.age = trial.age.saturating_add(1);
            }
            let Some(latency) = Latency::of(row) else {
                continue;
            };
            match self.trials.get_mut(&row.id) {
                Some(trial) if trial.settle > 0 => trial.settle -= 1,
                Some(trial) => trial.after.push(latency),
                None => self
                    .histories
                    .entry(row.id.clone())
                    .or_default()
                    .push(latency),
            }
        }
        let others = self.missing(objective);
        let mut harmed = self.judge(objective, &others);
        harmed.extend(self.late(objective));
        harmed
    }

    fn forget_the_gone(&mut self, window: &HostWindow) {
        let is_there = |disk: &String| window.disks.iter().any(|row| row.id == *disk);
        self.histories.retain(|disk, _| is_there(disk));
        self.trials.retain(|disk, _| is_there(disk));
        self.settled.retain(|disk, _| is_there(disk));
        for trial in self.trials.values_mut() {
            trial.others_before.retain(|disk, _| is_there(disk));
        }
    }

    fn judge(&mut self, objective: &ObjectiveWatch, others: &[Other]) -> Vec<Intervention> {
        let mut harmed = Vec::new();
        let mut harmless = Vec::new();
        for (disk, trial) in &self.trials {
            let missed = objective.missed(disk).filter(|_| trial.met);
            let rise = self.rise_of(trial);
            let harm = rise.harm(self.config.z);
            let harm = harm.or_else(|| self.missed_objective(trial, missed));
            let harm = harm.or_else(|| self.harm_to_others(trial, others));
            let judged = trial.after.len();
            let is_doubtful =
                rise.is_beyond_tolerance() && judged < self.config.doubt_windows as usize;
            let is_judged = judged >= self.config.windows as usize && !is_doubtful;
            // While it may be why an objective is missed, its own or another's, it is not let off.
            let is_suspect = others.iter().any(|other| {
                other.began_during(trial) || other.missed.in_all <= self.config.longest_doubt()
            });
            let is_over = is_judged && missed.is_none() && !is_suspect;
            match harm {
                Some(harm) => harmed.push(Intervention {
                    disk: disk.clone(),
                    levels: trial.levels.before.clone(),
                    harm,
                }),
                None if is_over => harmless.push(disk.clone()),
                None => {}
            }
        }
        for disk in harmless {
            self.keep(&disk);
        }
        harmed
    }

    /// Lets a disk keep what it has, whatever comes of it.
    pub fn settle(&mut self, disk: &str) {
        if self.is_on_trial(disk) {
            self.keep(disk);
        } else {
            self.settled.remove(disk);
        }
    }

    /// Ends a trial: what is in force stays.
    fn keep(&mut self, disk: &str) {
        if let Some(trial) = self.trials.remove(disk) {
            let (levels, met) = (trial.levels, trial.met);
            self.settled
                .insert(disk.to_owned(), Settled { levels, met });
            self.histories.insert(disk.to_owned(), trial.after);
        }
    }

    /// The disks that miss an objective that they met before.
    fn missing(&self, objective: &ObjectiveWatch) -> Vec<Other> {
        let missing = objective.all_missed().filter_map(|(disk, missed)| {
            let trial = self.trials.get(disk);
            let history = self.histories.get(disk);
            let met = trial.map_or_else(
                || history.is_none_or(|h| self.is_met(h, missed.windows as usize)),
                |trial| trial.met,
            );
            met.then(|| Other {
                disk: disk.clone(),
                missed: *missed,
                is_on_trial: trial.is_some(),
            })
        });
        missing.collect()
    }

    /// A change is to blame for what a disk that is not on trial itself suffers since it was made.
    fn harm_to_others(&self, trial: &Trial, others: &[Other]) -> Option<Harm> {
        let objective_us = self.config.p99_objective_us?;
        let enough = self.config.objective_windows.max(1);
        let other = others.iter().find(|other| {
            !other.is_on_trial && other.missed.windows >= enough && other.began_during(trial)
        })?;
        Some(Harm::Other {
            disk: other.disk.clone(),
            p99_us: other.missed.p99_us,
            objective_us,
        })
    }

    /// The disks that are not at their default, and have missed an objective for long that they met
    /// before they were first changed.
    fn late<'a>(
        &'a self,
        objective: &'a ObjectiveWatch,
    ) -> impl Iterator<Item = Intervention> + 'a {
        let enough = self.config.late_windows.max(1);
        let objective_us = self.config.p99_objective_us.unwrap_or(f64::INFINITY);
        self.settled.iter().filter_map(move |(disk, settled)| {
            let is_changed = settled.met && settled.levels.now != settled.levels.default;
            let missed = objective.missed(disk).filter(|m| m.in_all >= enough)?;
            let is_due = is_changed && !self.is_on_trial(disk);
            is_due.then(|| Intervention {
                disk: disk.clone(),
                levels: settled.levels.default.clone(),
                harm: Harm::Late {
                    windows: missed.in_all,
                    p99_us: missed.p99_us,
                    objective_us,
                },
            })
        })
    }

    /// By how much the latency of a disk has risen with its change.
    fn rise_of(&self, trial: &Trial) -> Rise {
        let tolerated = libm::log(self.config.tolerated_ratio);
        let shift = self.shift_of_controls(trial);
        Rise::between(&trial.before, &trial.after, shift, tolerated)
    }

    /// Above the objective after the change, for some windows in a row or by the median over those
    /// that are judged, and not before it. `missed`: the row that has not ended yet.
    fn missed_objective(&self, trial: &Trial, missed: Option<Missed>) -> Option<Harm> {
        let objective_us = self.config.p99_objective_us.filter(|_| trial.met)?;
        let enough = self.config.objective_windows.max(1);
        let p99_us = match missed {
            Some(missed) if missed.windows.min(trial.age) >= enough => missed.p99_us,
            _ if trial.after.len() < self.config.windows as usize => return None,
            _ => trial.after.p99_us(0)?,
        };
        (p99_us > objective_us).then_some(Harm::Objective {
            p99_us,
            objective_us,
        })
    }

    /// Whether a disk met the objective in these windows, but for the last `newest`, by their median.
    fn is_met(&self, history: &History, newest: usize) -> bool {
        let Some(objective_us) = self.config.p99_objective_us else {
            return true;
        };
        history
            .p99_us(newest)
            .is_none_or(|p99_us| p99_us <= objective_us)
    }

    /// By how much the disks moved that nothing was changed on since.
    fn shift_of_controls(&self, trial: &Trial) -> Shift {
        let recent = trial.after.len().max(1);
        let moved = trial.others_before.iter().filter_map(|(disk, before)| {
            let history = self.histories.get(disk)?;
            let sigma = history.sigma(|latency| Some(latency.mean));
            let variance = sigma * sigma * 2.0 / recent as f64;
            Some((history.recent(recent)? - before, variance))
        });
        let (moved, variances): (Vec<f64>, Vec<f64>) = moved.unzip();
        let count = moved.len().max(1) as f64;
        Shift {
            // A neighbour that gets better is no reason to find a disk worse.
            by: median(moved).unwrap_or(0.0).max(0.0),
            variance: variances.iter().sum::<f64>() / (count * count),
        }
    }
}
