//! Each change of a disk is a trial: windows before it against windows after it.
//!
//! Latencies are compared as logarithms, since they spread by factors. With b the median over the
//! windows before a change and a the one over the windows after it, the effect is (a − b) minus the
//! same of the controls: the median over the disks that nothing was changed on meanwhile, so that
//! what happened to the whole host is not blamed on one change. It counts as harm when it exceeds a
//! tolerance and what chance explains: z·σ·√(1/n_b + 1/n_a), σ estimated from the disk's own
//! differences between one window and the next while nothing was changed (median absolute
//! difference / 0.6745 / √2, Rousseeuw and Croux 1993), the controls' uncertainty added in.
//!
//! Requests that wait are latency by Little's law, so a disk that serves less because less is asked
//! of it is not harmed, and one that serves less of what is asked is.

use std::collections::{BTreeMap, VecDeque};

use super::{Harm, Intervention};
use crate::spec::Level;
use crate::window::{DiskRow, HostWindow};

/// Windows that are remembered per disk.
const MOST_WINDOWS: usize = 32;
/// A normal deviate's median absolute value.
const NORMAL_MAD: f64 = 0.6745;
/// Noise of a logarithm where too little has been seen to estimate it.
const UNKNOWN_SIGMA: f64 = 0.25;
/// Differences from which σ is estimated.
const LEAST_DIFFERENCES: usize = 4;

/// When a change counts as harmful.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrialConfig {
    /// Windows after a change that are left out: the change itself, and what it stirs up.
    pub settle_windows: u32,
    /// The same where the cache strategy was changed: a cache has to warm up.
    pub settle_windows_cache: u32,
    /// Windows after a change that are judged, ≥ 1. Harm is known when the first of them is that bad,
    /// and at the end of the last at the latest.
    pub windows: u32,
    /// Rise of the latency that is borne, a ratio ≥ 1.
    pub tolerated_ratio: f64,
    /// Standard errors beyond it that count as more than chance.
    pub z: f64,
    /// Objective for the p99, microseconds.
    pub p99_objective_us: Option<f64>,
}

impl Default for TrialConfig {
    fn default() -> Self {
        Self {
            settle_windows: 0,
            settle_windows_cache: 1,
            windows: 3,
            tolerated_ratio: 1.15,
            z: 3.0,
            p99_objective_us: None,
        }
    }
}

/// Logarithms of a disk's latencies in one window, in ln µs; `None` where it completed nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Latency {
    mean: f64,
    p99: Option<f64>,
}

impl Latency {
    fn of(row: &DiskRow) -> Option<Self> {
        let log = |us: f64| (us > 0.0).then(|| libm::log(us));
        Some(Self {
            mean: log(row.did.latency_us_mean.ok()?)?,
            p99: row.did.latency_us_p99.ok().and_then(log),
        })
    }
}

/// What is known of one disk while its settings stay as they are.
#[derive(Debug, Default)]
struct History {
    windows: VecDeque<Latency>,
}

impl History {
    fn push(&mut self, latency: Latency) {
        if self.windows.len() == MOST_WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(latency);
    }

    /// The last `most` values of one figure.
    fn last(&self, most: usize, figure: impl Fn(&Latency) -> Option<f64>) -> Vec<f64> {
        let newest = self.windows.iter().rev().take(most);
        newest.filter_map(figure).collect()
    }

    /// Standard deviation of one window's figure.
    fn sigma(&self, figure: impl Fn(&Latency) -> Option<f64>) -> f64 {
        let values = self.last(MOST_WINDOWS, figure);
        let steps: Vec<f64> = values.windows(2).map(|w| libm::fabs(w[1] - w[0])).collect();
        if steps.len() < LEAST_DIFFERENCES {
            return UNKNOWN_SIGMA;
        }
        median(steps).unwrap_or(0.0) / NORMAL_MAD / std::f64::consts::SQRT_2
    }
}

/// A change that is being judged.
#[derive(Debug)]
struct Trial {
    levels_before: Vec<Level>,
    before: History,
    settle: u32,
    after: History,
    /// What every other disk showed when the change was made, by disk.
    others_before: BTreeMap<String, f64>,
}

/// The trials of one host.
#[derive(Debug)]
pub struct TrialWatch {
    config: TrialConfig,
    histories: BTreeMap<String, History>,
    trials: BTreeMap<String, Trial>,
    /// Levels before the last change that was found harmless, for a stall that comes later.
    settled: BTreeMap<String, Vec<Level>>,
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

    /// Whether the last change of a disk is still being judged.
    #[must_use]
    pub fn is_on_trial(&self, disk: &str) -> bool {
        self.trials.contains_key(disk)
    }

    /// The levels that a disk had before its last change.
    #[must_use]
    pub fn levels_before(&self, disk: &str) -> Option<Vec<Level>> {
        let trial = self.trials.get(disk).map(|trial| &trial.levels_before);
        trial.or_else(|| self.settled.get(disk)).cloned()
    }

    /// A disk has been changed; `levels_before` had been in force.
    pub fn begin(&mut self, disk: &str, levels_before: Vec<Level>, is_cache_changed: bool) {
        let (levels_before, before) = match self.trials.remove(disk) {
            // Changed again before it was judged: what counts is where it came from.
            Some(trial) => (trial.levels_before, trial.before),
            None => (
                levels_before,
                self.histories.remove(disk).unwrap_or_default(),
            ),
        };
        let others = self.histories.iter().filter(|(other, _)| *other != disk);
        let recent = self.config.windows as usize;
        let level = |history: &History| median(history.last(recent, |l| Some(l.mean)));
        let trial = Trial {
            levels_before,
            before,
            settle: if is_cache_changed {
                self.config.settle_windows_cache
            } else {
                self.config.settle_windows
            },
            after: History::default(),
            others_before: others
                .filter_map(|(other, history)| Some((other.clone(), level(history)?)))
                .collect(),
        };
        self.trials.insert(disk.to_owned(), trial);
    }

    /// A disk has gone back to what it had: nothing of its trial is known of what is in force now.
    pub fn end(&mut self, disk: &str) {
        if let Some(trial) = self.trials.remove(disk) {
            self.histories.insert(disk.to_owned(), trial.before);
        }
        self.settled.remove(disk);
    }

    /// Takes a window, and names the disks whose change has done harm.
    pub fn observe(&mut self, window: &HostWindow) -> Vec<Intervention> {
        self.forget_the_gone(window);
        for row in &window.disks {
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
        self.judge()
    }

    fn forget_the_gone(&mut self, window: &HostWindow) {
        let is_there = |disk: &String| window.disks.iter().any(|row| row.id == *disk);
        self.histories.retain(|disk, _| is_there(disk));
        self.trials.retain(|disk, _| is_there(disk));
        self.settled.retain(|disk, _| is_there(disk));
    }

    fn judge(&mut self) -> Vec<Intervention> {
        let mut harmed = Vec::new();
        let mut harmless = Vec::new();
        for (disk, trial) in &self.trials {
            let windows = trial.after.windows.len();
            match self.harm_of(trial) {
                Some(harm) => harmed.push(Intervention {
                    disk: disk.clone(),
                    levels: trial.levels_before.clone(),
                    harm,
                }),
                None if windows >= self.config.windows as usize => harmless.push(disk.clone()),
                None => {}
            }
        }
        for disk in harmless {
            self.settle(&disk);
        }
        harmed
    }

    /// Ends a trial: what is in force stays.
    pub fn settle(&mut self, disk: &str) {
        if let Some(trial) = self.trials.remove(disk) {
            self.settled.insert(disk.to_owned(), trial.levels_before);
            self.histories.insert(disk.to_owned(), trial.after);
        }
    }

    fn harm_of(&self, trial: &Trial) -> Option<Harm> {
        let (shift, shift_variance) = self.shift_of_controls(trial);
        let effect = |figure: fn(&Latency) -> Option<f64>| -> Option<(f64, f64)> {
            let before = trial.before.last(MOST_WINDOWS, figure);
            let after = trial.after.last(MOST_WINDOWS, figure);
            let change = median(after.clone())? - median(before.clone())? - shift;
            let sigma = trial.before.sigma(figure);
            let spread = 1.0 / before.len() as f64 + 1.0 / after.len() as f64;
            let error = libm::sqrt(sigma * sigma * spread + shift_variance);
            Some((change, error))
        };
        let mean = effect(|latency| Some(latency.mean));
        let p99 = effect(|latency| latency.p99);
        let limit = |error: f64| libm::log(self.config.tolerated_ratio) + self.config.z * error;
        let worst = [mean, p99]
            .into_iter()
            .flatten()
            .find(|(change, error)| *change > limit(*error));
        if let Some((_, error)) = worst {
            return Some(Harm::Latency {
                mean_ratio: libm::exp(mean.map_or(0.0, |(change, _)| change)),
                p99_ratio: p99.map(|(change, _)| libm::exp(change)),
                threshold: libm::exp(limit(error)),
            });
        }
        self.missed_objective(trial)
    }

    /// Above the objective after the change, by the median over its windows, and not before it.
    fn missed_objective(&self, trial: &Trial) -> Option<Harm> {
        let objective_us = self.config.p99_objective_us?;
        let p99_us =
            |history: &History| median(history.last(MOST_WINDOWS, |l| l.p99)).map(libm::exp);
        let after = p99_us(&trial.after)?;
        let is_judged = trial.after.windows.len() >= self.config.windows as usize;
        let was_met = p99_us(&trial.before).is_none_or(|before| before <= objective_us);
        (is_judged && was_met && after > objective_us).then_some(Harm::Objective {
            p99_us: after,
            objective_us,
        })
    }

    /// By how much the disks moved that nothing was changed on since, and the variance of that.
    fn shift_of_controls(&self, trial: &Trial) -> (f64, f64) {
        let recent = trial.after.windows.len().max(1);
        let moved = trial.others_before.iter().filter_map(|(disk, before)| {
            let history = self.histories.get(disk)?;
            let now = median(history.last(recent, |l| Some(l.mean)))?;
            let sigma = history.sigma(|l| Some(l.mean));
            Some((now - before, sigma * sigma * 2.0 / recent as f64))
        });
        let moved: Vec<(f64, f64)> = moved.collect();
        let Some(shift) = median(moved.iter().map(|(shift, _)| *shift).collect()) else {
            return (0.0, 0.0);
        };
        let count = moved.len() as f64;
        let variance = moved.iter().map(|(_, variance)| variance).sum::<f64>() / (count * count);
        // A neighbour that gets better is no reason to find a disk worse.
        (shift.max(0.0), variance)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    Some(if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    })
}
