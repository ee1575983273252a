//! Limits a heavy neighbour while disks with an objective miss it: pure, time passed in.
//!
//! Where a disk has missed its objective for some windows in a row, and the disk of another guest has
//! made most of their device's requests or bytes meanwhile, that one is limited to a share of what it
//! did, and again as long as the objective is missed, never below a floor. The limit is loosened step by
//! step once every objective on the device is met for longer than it took to set it, and lifted at once
//! where it does not bind any more, did not help, or may not be any longer. No disk is limited for longer
//! than [`NeighbourConfig::longest`] without a pause.
//!
//! What is in force is not remembered but told with each window ([`Facts`]): a limit that could not be
//! set is not believed in, and one that could not be lifted is named again.

mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::window::{DiskRow, HostWindow};

use super::stall::is_silent;
use load::{Load, Loads};

/// Time after which a limit that could not be set is tried again, if the pause is not shorter.
const RETRY: Duration = Duration::from_secs(30);

/// When neighbours are limited, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NeighbourConfig {
    /// Windows in a row in which an objective is missed before anything is limited, and limited further,
    /// ≥ 1.
    pub windows: u32,
    /// Windows in a row in which all are met before a limit is loosened, ≥ 1; doubled each time that
    /// loosening turns out to be too early.
    pub relief_windows: u32,
    /// Share of the device's requests or bytes that makes a neighbour the heavy one, (0, 1].
    pub dominant_share: f64,
    /// What one step leaves of it, (0, 1).
    pub step: f64,
    /// No limit is below this, requests per second, ≥ 1.
    pub least_iops: u64,
    /// No limit is below this, bytes per second, ≥ 1.
    pub least_bytes_per_s: u64,
    /// Longest time for which one disk is limited.
    pub longest: Duration,
    /// Time after that, or after a limit that did not help, in which it is not limited again.
    pub pause: Duration,
}

impl Default for NeighbourConfig {
    fn default() -> Self {
        Self {
            windows: 5,
            relief_windows: 10,
            dominant_share: 0.5,
            step: 0.5,
            least_iops: 100,
            least_bytes_per_s: 1 << 20,
            longest: Duration::from_secs(600),
            pause: Duration::from_secs(600),
        }
    }
}

/// What holds on the host at the end of a window. Disks are named `guest/target`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// Disks with an objective of their own for the p99, microseconds.
    pub objectives_us: BTreeMap<String, f64>,
    /// Disks that may be limited: their guests have opted in, and nobody else has set limits.
    pub may_limit: BTreeSet<String>,
    /// Disks on which a limit that was named here is in force.
    pub limited: BTreeSet<String>,
}

/// The limits of a disk, each per second; never both `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Requests.
    pub iops: Option<u64>,
    /// Bytes.
    pub bytes_per_s: Option<u64>,
}

/// What shall be done about a neighbour.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The neighbour, `guest/target`.
    pub disk: String,
    /// What shall be done.
    pub action: Action,
}

/// What shall be done about a neighbour.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Limit it, in place of a limit that it has.
    Limit(Limit, Reason),
    /// Lift its limit.
    Lift(Why),
}

/// Why a limit is set or changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// A disk misses its objective.
    Missed {
        /// The disk, `guest/target`.
        victim: String,
        /// Its p99 in the last window, microseconds; `None` where it has completed nothing.
        p99_us: Option<f64>,
        /// Its objective, microseconds.
        objective_us: f64,
        /// For how many windows.
        windows: u32,
        /// The neighbour's share of the device's requests or bytes, whichever is larger.
        share: f64,
    },
    /// All objectives have been met for some windows.
    Met {
        /// How many windows.
        windows: u32,
    },
}

/// Why a limit is lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// All objectives are met with a limit that is hardly one.
    Relieved,
    /// The disk asks for less than half of it.
    NotNeeded,
    /// Objectives are missed although it is at the floor: it was not this neighbour.
    DidNotHelp,
    /// It has been limited for as long as may be.
    TimeIsUp,
    /// No disk with an objective is on its device any more.
    NobodyToProtect,
    /// It may not be limited any more.
    NotAllowed,
    /// Nobody knows any more why it was limited.
    Forgotten,
    /// The guard ends, or somebody else takes the host over.
    Leaving,
}

/// The limits of one host's guard.
#[derive(Debug)]
pub struct NeighbourWatch {
    config: NeighbourConfig,
    loads: Loads,
    /// Windows in a row in which a disk has missed its objective.
    missed: BTreeMap<String, u32>,
    held: BTreeMap<String, Held>,
    lifting: BTreeMap<String, Why>,
    paused: BTreeMap<String, Duration>,
}

/// A limit.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    limit: Limit,
    /// What the neighbour did before.
    before: Load,
    since: Duration,
    /// Windows in a row, since the last step, in which all objectives were met.
    met: u32,
    /// The same in which one was missed.
    missed: u32,
    loosen_after: u32,
    /// Windows in a row in which it has asked for less than half of it.
    slack: u32,
    was_loosened: bool,
}

/// How the disks with an objective on one device fare.
struct Fate<'a> {
    /// The one that has missed its objective for longest.
    worst: Option<(&'a DiskRow, f64, u32)>,
    anyone: bool,
    all_met: bool,
}

impl NeighbourWatch {
    /// Nothing seen, nothing limited.
    #[must_use]
    pub fn new(config: NeighbourConfig) -> Self {
        Self {
            loads: Loads::new(config.windows),
            config,
            missed: BTreeMap::new(),
            held: BTreeMap::new(),
            lifting: BTreeMap::new(),
            paused: BTreeMap::new(),
        }
    }

    /// Takes a window, and names what shall be done: at most one step per device.
    pub fn observe(&mut self, now: Duration, window: &HostWindow, facts: &Facts) -> Vec<Step> {
        self.loads.observe(window);
        self.count(window, facts);
        self.paused.retain(|_, until| now < *until);
        self.believe(now, window, facts);
        let mut steps = Vec::new();
        for device in 0..window.devices.len() {
            let fate = self.fate(window, device, facts);
            let held = self.held_on(window, device);
            let step = match held {
                Some(disk) => self.reconsider(now, &disk, &fate, facts),
                None => self.limit(now, window, device, &fate, facts),
            };
            steps.extend(step);
        }
        let lifts = self.lifting.iter().map(|(disk, why)| Step {
            disk: disk.clone(),
            action: Action::Lift(*why),
        });
        steps.extend(lifts);
        steps
    }

    /// Lifts everything that `limited` names: to be called until it is empty.
    pub fn leave(&mut self, limited: &BTreeSet<String>) -> Vec<Step> {
        self.held.clear();
        let lift = |disk: &String| Step {
            disk: disk.clone(),
            action: Action::Lift(Why::Leaving),
        };
        self.lifting = limited
            .iter()
            .map(|disk| (disk.clone(), Why::Leaving))
            .collect();
        limited.iter().map(lift).collect()
    }

    fn count(&mut self, window: &HostWindow, facts: &Facts) {
        let objectives = &facts.objectives_us;
        let missed = window.disks.iter().filter_map(|row| {
            let before = self.missed.get(&row.id).copied().unwrap_or(0);
            let is_missed = misses(row, *objectives.get(&row.id)?);
            is_missed.then(|| (row.id.clone(), before.saturating_add(1)))
        });
        self.missed = missed.collect();
    }

    /// Brings what is held after what is in force.
    fn believe(&mut self, now: Duration, window: &HostWindow, facts: &Facts) {
        self.lifting.retain(|disk, _| facts.limited.contains(disk));
        let is_there = |disk: &String| window.disks.iter().any(|row| row.id == *disk);
        let lost = |disk: &String| !facts.limited.contains(disk) || !is_there(disk);
        let lost: Vec<String> = self
            .held
            .keys()
            .filter(|disk| lost(disk))
            .cloned()
            .collect();
        for disk in lost {
            self.held.remove(&disk);
            // It could not be set, or somebody has lifted it.
            self.paused.insert(disk, now + self.config.pause.min(RETRY));
        }
        for disk in &facts.limited {
            if !self.held.contains_key(disk) {
                self.lifting.entry(disk.clone()).or_insert(Why::Forgotten);
            }
        }
    }

    fn held_on(&self, window: &HostWindow, device: usize) -> Option<String> {
        let mut rows = window.disks.iter().filter(|row| row.device == device);
        rows.find(|row| self.held.contains_key(&row.id) || self.lifting.contains_key(&row.id))
            .map(|row| row.id.clone())
    }

    fn fate<'a>(&self, window: &'a HostWindow, device: usize, facts: &Facts) -> Fate<'a> {
        let rows = window.disks.iter().filter(|row| row.device == device);
        let mut fate = Fate {
            worst: None,
            anyone: false,
            all_met: true,
        };
        for row in rows {
            let Some(objective_us) = facts.objectives_us.get(&row.id) else {
                continue;
            };
            fate.anyone = true;
            fate.all_met &= meets(row, *objective_us);
            let missed = self.missed.get(&row.id).copied().unwrap_or(0);
            if missed > fate.worst.as_ref().map_or(0, |(_, _, windows)| *windows) {
                fate.worst = Some((row, *objective_us, missed));
            }
        }
        fate
    }

    /// Whether a limit goes on, and how.
    fn reconsider(
        &mut self,
        now: Duration,
        disk: &str,
        fate: &Fate<'_>,
        facts: &Facts,
    ) -> Option<Step> {
        let config = self.config;
        let load = self.loads.last(disk);
        let share = self.loads.share(disk);
        let held = self.held.get_mut(disk)?;
        held.note(fate, load);
        let is_allowed = facts.may_limit.contains(disk);
        let why = if !is_allowed {
            Some(Why::NotAllowed)
        } else if !fate.anyone {
            Some(Why::NobodyToProtect)
        } else if now.saturating_sub(held.since) >= config.longest {
            Some(Why::TimeIsUp)
        } else if held.slack >= config.relief_windows {
            Some(Why::NotNeeded)
        } else {
            None
        };
        if let Some(why) = why {
            return self.lift(now, disk, why);
        }
        let action = if held.missed >= config.windows {
            if held.was_loosened {
                held.loosen_after = held.loosen_after.saturating_mul(2);
            }
            let tighter = held.limit.tightened(&config);
            if tighter == held.limit {
                return self.lift(now, disk, Why::DidNotHelp);
            }
            held.turn(tighter, false);
            Action::Limit(tighter, reason(fate, share)?)
        } else if held.met >= held.loosen_after {
            let windows = held.met;
            let looser = held.limit.loosened(&config);
            if looser.is_beyond(&held.before) {
                return self.lift(now, disk, Why::Relieved);
            }
            held.turn(looser, true);
            Action::Limit(looser, Reason::Met { windows })
        } else {
            return None;
        };
        let disk = disk.to_owned();
        Some(Step { disk, action })
    }

    /// The step itself is among those of [`Self::lifting`].
    fn lift(&mut self, now: Duration, disk: &str, why: Why) -> Option<Step> {
        self.held.remove(disk);
        self.lifting.insert(disk.to_owned(), why);
        if matches!(why, Why::TimeIsUp | Why::DidNotHelp) {
            self.paused.insert(disk.to_owned(), now + self.config.pause);
        }
        None
    }

    fn limit(
        &mut self,
        now: Duration,
        window: &HostWindow,
        device: usize,
        fate: &Fate<'_>,
        facts: &Facts,
    ) -> Option<Step> {
        let (victim, _, windows) = fate.worst.as_ref()?;
        if *windows < self.config.windows {
            return None;
        }
        let rows = window.disks.iter().filter(|row| row.device == device);
        let candidates = rows.filter(|row| {
            guest_of(&row.id) != guest_of(&victim.id)
                && facts.may_limit.contains(&row.id)
                && !facts.limited.contains(&row.id)
                && !self.paused.contains_key(&row.id)
                // One that suffers too is no culprit.
                && !self.missed.contains_key(&row.id)
        });
        let heaviest = candidates.max_by(|a, b| {
            let share = |row: &DiskRow| self.loads.share(&row.id);
            share(a).total_cmp(&share(b))
        })?;
        let disk = heaviest.id.clone();
        let before = self.loads.dominant(&disk, self.config.dominant_share)?;
        let limit = Limit::of(&before, &self.config)?;
        let share = self.loads.share(&disk);
        let action = Action::Limit(limit, reason(fate, share)?);
        let held = Held {
            limit,
            before,
            since: now,
            met: 0,
            missed: 0,
            loosen_after: self.config.relief_windows,
            slack: 0,
            was_loosened: false,
        };
        self.held.insert(disk.clone(), held);
        Some(Step { disk, action })
    }
}

impl Held {
    fn note(&mut self, fate: &Fate<'_>, load: Option<Load>) {
        // A window that tells neither counts for neither.
        self.met = if fate.all_met {
            self.met.saturating_add(1)
        } else {
            0
        };
        self.missed = if fate.worst.is_some() {
            self.missed.saturating_add(1)
        } else {
            0
        };
        let is_slack = load.is_some_and(|load| self.limit.is_slack(&load));
        self.slack = if is_slack {
            self.slack.saturating_add(1)
        } else {
            0
        };
    }

    fn turn(&mut self, limit: Limit, was_loosened: bool) {
        self.limit = limit;
        self.was_loosened = was_loosened;
        (self.met, self.missed, self.slack) = (0, 0, 0);
    }
}

impl Limit {
    /// One step below what a neighbour does; `None` where the floor is not below that.
    fn of(load: &Load, config: &NeighbourConfig) -> Option<Self> {
        let below = |rate: f64, least: u64| {
            let limit = stepped(rate, config.step).max(least);
            ((limit as f64) < rate).then_some(limit)
        };
        let limit = Self {
            iops: load.iops.and_then(|rate| below(rate, config.least_iops)),
            bytes_per_s: load
                .bytes_per_s
                .and_then(|rate| below(rate, config.least_bytes_per_s)),
        };
        (limit.iops.is_some() || limit.bytes_per_s.is_some()).then_some(limit)
    }

    fn tightened(&self, config: &NeighbourConfig) -> Self {
        let tighter =
            |limit: u64, least: u64| stepped(limit as f64, config.step).max(least).min(limit);
        Self {
            iops: self.iops.map(|limit| tighter(limit, config.least_iops)),
            bytes_per_s: self
                .bytes_per_s
                .map(|limit| tighter(limit, config.least_bytes_per_s)),
        }
    }

    fn loosened(&self, config: &NeighbourConfig) -> Self {
        let looser =
            |limit: u64| stepped(limit as f64, 1.0 / config.step).max(limit.saturating_add(1));
        Self {
            iops: self.iops.map(looser),
            bytes_per_s: self.bytes_per_s.map(looser),
        }
    }

    /// Whether a neighbour could do all that it did before.
    fn is_beyond(&self, before: &Load) -> bool {
        let beyond = |limit: Option<u64>, rate: Option<f64>| match (limit, rate) {
            (Some(limit), Some(rate)) => limit as f64 >= rate,
            _ => true,
        };
        beyond(self.iops, before.iops) && beyond(self.bytes_per_s, before.bytes_per_s)
    }

    fn is_slack(&self, load: &Load) -> bool {
        let slack = |limit: Option<u64>, rate: Option<f64>| match (limit, rate) {
            (Some(limit), Some(rate)) => rate < limit as f64 / 2.0,
            (Some(_), None) => false,
            (None, _) => true,
        };
        slack(self.iops, load.iops) && slack(self.bytes_per_s, load.bytes_per_s)
    }
}

/// A part or multiple of a rate, in whole units.
fn stepped(rate: f64, factor: f64) -> u64 {
    let limit = libm::round(rate * factor);
    // Rates are far below what does not fit.
    if limit.is_finite() && limit > 0.0 {
        limit as u64
    } else {
        0
    }
}

fn reason(fate: &Fate<'_>, share: f64) -> Option<Reason> {
    let (row, objective_us, windows) = fate.worst.as_ref()?;
    Some(Reason::Missed {
        victim: row.id.clone(),
        p99_us: row.did.latency_us_p99.ok(),
        objective_us: *objective_us,
        windows: *windows,
        share,
    })
}

/// A disk that asks for nothing misses nothing, one that waits for all it asked does.
fn misses(row: &DiskRow, objective_us: f64) -> bool {
    is_silent(row)
        || row
            .did
            .latency_us_p99
            .is_ok_and(|p99_us| p99_us > objective_us)
}

fn meets(row: &DiskRow, objective_us: f64) -> bool {
    use crate::observation::Validity;
    match row.did.latency_us_p99 {
        Ok(p99_us) => p99_us <= objective_us,
        Err(Validity::Idle) => !is_silent(row),
        Err(_) => false,
    }
}

fn guest_of(disk: &str) -> &str {
    disk.rsplit_once('/').map_or(disk, |(guest, _)| guest)
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.iops, self.bytes_per_s) {
            (Some(iops), Some(bytes)) => write!(f, "{iops} requests and {bytes} bytes per second"),
            (Some(iops), None) => write!(f, "{iops} requests per second"),
            (None, Some(bytes)) => write!(f, "{bytes} bytes per second"),
            (None, None) => f.write_str("nothing"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missed {
                victim,
                p99_us,
                objective_us,
                windows,
                share,
            } => {
                write!(
                    f,
                    "{victim} has missed its p99 of {objective_us:.0} µs for {windows} windows ("
                )?;
                match p99_us {
                    Some(p99_us) => write!(f, "{p99_us:.0} µs")?,
                    None => f.write_str("nothing completed")?,
                }
                let percent = share * 100.0;
                write!(
                    f,
                    "), and this disk makes {percent:.0} % of its device's load"
                )
            }
            Self::Met { windows } => write!(
                f,
                "all objectives on its device were met for {windows} windows"
            ),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relieved => "all objectives on its device are met",
            Self::NotNeeded => "it asks for less than half of it",
            Self::DidNotHelp => "objectives are missed although it is at the floor",
            Self::TimeIsUp => "it was limited for as long as may be",
            Self::NobodyToProtect => "no disk with an objective is on its device any more",
            Self::NotAllowed => "it may not be limited any more",
            Self::Forgotten => "nobody knows any more why it was limited",
            Self::Leaving => "the guard ends",
        })
    }
}

#[cfg(test)]
mod tests;
