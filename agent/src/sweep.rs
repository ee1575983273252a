//! A sweep: each setting of the knobs for a while, recorded, to calibrate a simulated host by.
//!
//! One disk is swept at a time, through every combination of the levels that it may have, while the
//! others keep their defaults; disks that share an IOThread share the levels of its heads. What else
//! happens on the host drifts, so the settings are gone through several times, each time in another
//! order. Changes go the way of all changes: checked against the masks, journalled, applied, read
//! back; and everything is put back at the end, however it ends.

use blkpilot_env::decision::{check_action, shuffle};
use blkpilot_env::observation::head_slice;
use blkpilot_env::sample::HostSample;
use blkpilot_env::spec::HeadScope;
use blkpilot_env::{ActionError, EnvSpec, JointAction, Level, Observation, Rng};
use blkpilot_log::recording::RecordingError;
use rand::SeedableRng as _;
use serde::Serialize;
use thiserror::Error;

use crate::admission::{Purpose, restrict};
use crate::backend::modes::Modes;
use crate::backend::{BackendError, HostBackend};

/// How long a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Times that all settings are gone through; at least 1.
    pub rounds: u32,
    /// Intervals after each change that are only there for caches and queues to settle.
    pub settle: u32,
    /// Intervals that follow; at least 1.
    pub measure: u32,
    /// Most settings; a random choice of them where there are more. The defaults are always one.
    pub most_settings: usize,
    /// Seed of the order and the choice.
    pub seed: u64,
}

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How long it was to be.
    pub plan: Plan,
    /// Settings that were gone through.
    pub settings: usize,
    /// Settings there are.
    pub settings_possible: usize,
    /// Samples recorded.
    pub samples: u64,
    /// What did not take effect: whose, and why.
    pub failures: Vec<String>,
}

/// Why a sweep ended early.
#[derive(Debug, Error)]
pub enum SweepError {
    /// There is nothing to sweep.
    #[error(
        "no managed disk has a knob that may be turned: opt a guest in with a mode that allows changes"
    )]
    Nothing,
    /// The host cannot be worked with.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The recording cannot be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Guests came or went.
    #[error("guests or disks came or went during the sweep: run it again")]
    GuestsChanged,
    /// However it ended, not everything was put back.
    #[error("{}not everything was put back: {reason}; `blkpilot rollback` by a service with this data directory tries again", ended(sweep.as_deref()))]
    NotRestored {
        /// Why the sweep ended early; `None` if it did not.
        sweep: Option<Box<SweepError>>,
        /// What was not put back.
        reason: String,
    },
    /// It was interrupted.
    #[error("interrupted")]
    Interrupted,
}

fn ended(sweep: Option<&SweepError>) -> String {
    sweep.map_or_else(String::new, |error| format!("{error}; "))
}

/// Who takes part in a sweep.
pub struct Sweep<'a> {
    /// The host.
    pub host: &'a mut dyn HostBackend,
    /// Whose knobs may be turned.
    pub modes: &'a Modes,
    /// Takes each sample.
    pub record: &'a mut dyn FnMut(&HostSample) -> Result<(), RecordingError>,
    /// Lets one interval pass; `false` ends the sweep.
    pub pause: &'a mut dyn FnMut() -> bool,
    /// Told how many settings lie behind and how many there are in all.
    pub progress: &'a mut dyn FnMut(usize, usize),
}

/// Sweeps. The host is left at its defaults, also after an error or an interruption.
///
/// # Errors
/// See [`SweepError`].
pub fn run(mut sweep: Sweep<'_>, plan: Plan) -> Result<Report, SweepError> {
    sweep.pause()?;
    let first = sweep.look()?;
    let possible = settings(sweep.host.spec(), &first);
    if possible.len() < 2 {
        return Err(SweepError::Nothing);
    }
    let mut rng = Rng::seed_from_u64(plan.seed);
    let mut report = Report {
        plan,
        settings: 0,
        settings_possible: possible.len(),
        samples: 1,
        failures: vec![],
    };
    let chosen = choose(possible, plan.most_settings, &mut rng);
    report.settings = chosen.len();
    let result = sweep.rounds(&first, chosen, &mut rng, &mut report);
    let restored = sweep.host.rollback(&first, None);
    let left = match restored {
        Ok(execution) => execution.failures,
        Err(error) => vec![error.to_string()],
    };
    if !left.is_empty() {
        return Err(SweepError::NotRestored {
            sweep: result.err().map(Box::new),
            reason: left.join("; "),
        });
    }
    result.map(|()| report)
}

impl Sweep<'_> {
    fn pause(&mut self) -> Result<(), SweepError> {
        if (self.pause)() {
            Ok(())
        } else {
            Err(SweepError::Interrupted)
        }
    }

    /// The window that ends now, recorded, with what modes forbid closed.
    fn look(&mut self) -> Result<Observation, SweepError> {
        let window = self.host.observe()?;
        (self.record)(self.host.sample())?;
        let guests = self.host.guests();
        let seen = &window.observation;
        let spec = self.host.spec();
        Ok(restrict(spec, seen, &guests, self.modes, Purpose::Advice))
    }

    fn rounds(
        &mut self,
        first: &Observation,
        mut settings: Vec<JointAction>,
        rng: &mut Rng,
        report: &mut Report,
    ) -> Result<(), SweepError> {
        let all = settings.len() * report.plan.rounds as usize;
        let mut seen = first.clone();
        for round in 0..report.plan.rounds as usize {
            shuffle(&mut settings, rng);
            for (n, setting) in settings.iter().enumerate() {
                (self.progress)(round * settings.len() + n, all);
                self.turn(&seen, setting, report)?;
                for _ in 0..report.plan.settle + report.plan.measure {
                    self.pause()?;
                    seen = self.look()?;
                    report.samples += 1;
                    if seen.disk_ids != first.disk_ids {
                        return Err(SweepError::GuestsChanged);
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts a setting in force; what does not take effect is noted.
    fn turn(
        &mut self,
        seen: &Observation,
        setting: &JointAction,
        report: &mut Report,
    ) -> Result<(), SweepError> {
        match check_action(self.host.spec(), seen, setting) {
            Ok(()) => {
                let execution = self.host.apply(seen, setting)?;
                report.failures.extend(execution.failures);
                // The change itself is in no window.
                self.host.restart_window()?;
                (self.record)(self.host.sample())?;
                report.samples += 1;
            }
            Err(error) => report.failures.push(closed(&error)),
        }
        Ok(())
    }
}

fn closed(error: &ActionError) -> String {
    format!("a setting may not be chosen any more: {error}")
}

/// Every setting of one disk's heads with the others at their defaults, the defaults first; each is
/// allowed by the masks of `obs`.
#[must_use]
pub fn settings(spec: &EnvSpec, obs: &Observation) -> Vec<JointAction> {
    let mut settings = vec![obs.default.clone()];
    for disk in 0..obs.disk_count() {
        let mut of_disk = vec![obs.default.clone()];
        for (head, _) in spec.disk_heads.iter().enumerate() {
            let levels = allowed(spec, obs, disk, head);
            of_disk = of_disk
                .iter()
                .flat_map(|action| {
                    levels.iter().map(|level| {
                        let mut action = action.clone();
                        set(spec, obs, &mut action, (disk, head), *level);
                        action
                    })
                })
                .collect();
        }
        for action in of_disk {
            if !settings.contains(&action) && check_action(spec, obs, &action).is_ok() {
                settings.push(action);
            }
        }
    }
    settings
}

/// Levels of a head that a disk may have, the default among them.
fn allowed(spec: &EnvSpec, obs: &Observation, disk: usize, head: usize) -> Vec<Level> {
    let masks = obs.masks.disks.row(disk).to_vec();
    let mask = head_slice(&spec.disk_heads, obs.channel_count(), &masks, head);
    let default = obs.default.disks[[disk, head]];
    let levels = mask.iter().enumerate().map(|(level, reason)| {
        let level = level as Level;
        (reason.is_allowed() || level == default).then_some(level)
    });
    levels.flatten().collect()
}

fn set(
    spec: &EnvSpec,
    obs: &Observation,
    action: &mut JointAction,
    (disk, head): (usize, usize),
    level: Level,
) {
    let group = obs.disk_group[disk];
    let is_tied = spec.disk_heads[head].scope == HeadScope::IoThread && group.is_some();
    for other in 0..obs.disk_count() {
        if other == disk || (is_tied && obs.disk_group[other] == group) {
            action.disks[[other, head]] = level;
        }
    }
}

/// At most `most` of the settings, the first of them for certain.
fn choose(mut settings: Vec<JointAction>, most: usize, rng: &mut Rng) -> Vec<JointAction> {
    shuffle(&mut settings[1..], rng);
    settings.truncate(most.max(2));
    settings
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use blkpilot_env::sample::DiskSettings;
    use blkpilot_env::sim::presets;

    use super::*;
    use crate::backend::modes::Reach;
    use crate::backend::simulated::SimulatedHost;
    use crate::config::GuestConfig;
    use crate::config::mode::{Knob, Mode};

    const PLAN: Plan = Plan {
        rounds: 2,
        settle: 1,
        measure: 2,
        most_settings: 100,
        seed: 3,
    };

    fn modes(default: Mode) -> Modes {
        Modes {
            default,
            guests: BTreeMap::new(),
            candidate: Reach::Nobody,
        }
    }

    fn cache_only() -> BTreeMap<String, GuestConfig> {
        let guest = GuestConfig {
            knobs: Some(vec![Knob::Cache]),
            ..GuestConfig::default()
        };
        BTreeMap::from([("guest-0".to_owned(), guest)])
    }

    struct Swept {
        result: Result<Report, SweepError>,
        samples: Vec<HostSample>,
        host: SimulatedHost,
    }

    fn sweep(
        plan: Plan,
        modes: &Modes,
        guests: BTreeMap<String, GuestConfig>,
        pauses: u32,
    ) -> Swept {
        let mut host = SimulatedHost::open(presets::poor_binding(), 1, guests).unwrap();
        let (mut samples, mut left) = (vec![], pauses);
        let result = run(
            Sweep {
                host: &mut host,
                modes,
                record: &mut |sample| {
                    samples.push(sample.clone());
                    Ok(())
                },
                pause: &mut || {
                    left = left.saturating_sub(1);
                    left > 0
                },
                progress: &mut |_, _| (),
            },
            plan,
        );
        Swept {
            result,
            samples,
            host,
        }
    }

    fn levels(settings: DiskSettings) -> [Level; 3] {
        settings.levels()
    }

    #[test]
    fn every_combination_of_one_disk_is_held_as_long_as_the_plan_says() {
        let swept = sweep(PLAN, &modes(Mode::Advise), BTreeMap::new(), u32::MAX);
        let report = swept.result.unwrap();
        // Two disks with 5 × 2 × 2 settings each; the defaults are counted once.
        assert_eq!((report.settings, report.settings_possible), (39, 39));
        assert_eq!(report.samples, swept.samples.len() as u64);
        assert!(report.failures.is_empty());
        let default = swept.samples[0].disks[0].default;
        let mut held: BTreeMap<Vec<[Level; 3]>, u32> = BTreeMap::new();
        for pair in swept.samples.windows(2) {
            let now: Vec<_> = pair[1].disks.iter().map(|d| levels(d.settings)).collect();
            let moved = now.iter().filter(|l| **l != levels(default)).count();
            assert!(moved <= 2, "{now:?}");
            if pair[0].at < pair[1].at {
                *held.entry(now).or_default() += 1;
            }
        }
        assert_eq!(held.len(), 39);
        let spans: BTreeSet<u32> = held.values().copied().collect();
        assert!(spans.iter().all(|n| (6..=7).contains(n)), "{spans:?}");
    }

    #[test]
    fn what_was_there_is_put_back_also_after_an_interruption() {
        for pauses in [2, 10, 31, u32::MAX] {
            let mut swept = sweep(PLAN, &modes(Mode::Advise), BTreeMap::new(), pauses);
            assert_eq!(swept.result.is_ok(), pauses == u32::MAX, "{pauses}");
            swept.host.observe().unwrap();
            let disks = &swept.host.sample().disks;
            assert!(disks.iter().all(|d| d.settings == d.default), "{disks:?}");
        }
    }

    #[test]
    fn only_what_a_guest_agreed_to_is_turned() {
        let guests = cache_only();
        let swept = sweep(PLAN, &modes(Mode::Advise), guests, u32::MAX);
        assert!(swept.result.is_ok());
        for sample in &swept.samples {
            let [channel, _, polling] = levels(sample.disks[0].settings);
            let default = levels(sample.disks[0].default);
            assert_eq!([channel, polling], [default[0], default[2]]);
        }
        let observed = sweep(PLAN, &modes(Mode::Observe), BTreeMap::new(), u32::MAX);
        assert!(matches!(observed.result, Err(SweepError::Nothing)));
    }

    #[test]
    fn a_choice_of_settings_keeps_the_defaults() {
        let plan = Plan {
            most_settings: 5,
            ..PLAN
        };
        let swept = sweep(plan, &modes(Mode::Advise), BTreeMap::new(), u32::MAX);
        let report = swept.result.unwrap();
        assert_eq!((report.settings, report.settings_possible), (5, 39));
        let is_default = |s: &HostSample| s.disks.iter().all(|d| d.settings == d.default);
        let held = swept.samples[1..].iter().filter(|s| is_default(s)).count();
        assert!(held >= 6, "{held}");
    }
}
