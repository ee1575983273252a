//! A trial: default and tuned windows in turn on one host, compared pair by pair.
//!
//! What else happens on the host drifts, so the two are alternated in the order default–tuned,
//! tuned–default, …: a steady drift then weighs on both alike. Each half of a pair first lets a few
//! intervals pass for caches and queues to settle, then measures a few. Figures are medians over the
//! pairs; intervals are percentile bootstrap intervals that resample whole pairs.

use std::collections::BTreeMap;

use blkpilot_env::{
    EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Rng, Step,
};
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use thiserror::Error;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 10_000;

/// How long a trial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Pairs of a default and a tuned half; at least 1.
    pub alternations: u32,
    /// Intervals at the start of each half that are not measured.
    pub settle: u32,
    /// Intervals of each half that are measured; at least 1.
    pub measure: u32,
}

impl Plan {
    /// Intervals of the whole trial.
    #[must_use]
    pub fn intervals(&self) -> u64 {
        u64::from(self.alternations) * 2 * u64::from(self.settle + self.measure)
    }
}

/// Which half of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// Every guest has what it would have without us.
    Default,
    /// The policy decides each interval.
    Tuned,
}

/// Why a trial ended early.
#[derive(Debug, Error)]
pub enum TrialError {
    /// The plan measures nothing.
    #[error("a trial needs at least one alternation and one measured interval")]
    Empty,
    /// The first reset failed.
    #[error("the trial did not start: {0}")]
    NotStarted(#[source] EnvError),
    /// However the trial ended, what it had in force was not put back.
    #[error("{}the guests are not back at their defaults: {reason}", ended(trial.as_deref()))]
    NotRestored {
        /// Why the trial ended early; `None` if it did not.
        trial: Option<Box<TrialError>>,
        /// Why it was not put back.
        reason: String,
    },
    /// The environment refused or failed.
    #[error(transparent)]
    Environment(#[from] EnvError),
    /// The policy failed.
    #[error("the policy failed: {0}")]
    Policy(String),
    /// Default and tuned windows are not about the same guests.
    #[error(
        "guests came or went, so that what was measured before and after cannot be compared: try again"
    )]
    GuestsChanged,
    /// It was interrupted.
    #[error("interrupted")]
    Interrupted,
}

fn ended(trial: Option<&TrialError>) -> String {
    trial.map_or_else(String::new, |error| format!("{error}; "))
}

/// A figure of one half: its name, such as `web/vda iops`, and how it is compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Figure {
    /// Disk, or `host`.
    pub of: String,
    /// Quantity with its unit.
    pub quantity: &'static str,
}

/// Quantities whose size can be zero or negative, so that only differences make sense.
const BY_DIFFERENCE: [&str; 1] = ["reward"];

/// Two medians and how they compare.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Disk, or `host`.
    pub of: String,
    /// Quantity with its unit.
    pub quantity: &'static str,
    /// Median over the default halves.
    pub default: f64,
    /// Median over the tuned halves.
    pub tuned: f64,
    /// Median over the pairs of tuned / default; for rewards of tuned − default.
    pub change: f64,
    /// 95 % bootstrap interval of `change`.
    pub ci95: (f64, f64),
    /// Whether `change` is a ratio or a difference.
    pub is_ratio: bool,
    /// Whether the interval leaves out "no change".
    pub beyond_noise: bool,
}

/// What a trial found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How long it was.
    pub plan: Plan,
    /// What the policy had in force at the end of the last tuned half: disk, head, level.
    pub tuned_settings: Vec<(String, String, String)>,
    /// Every figure.
    pub comparisons: Vec<Comparison>,
}

/// Runs a trial. `tune` chooses the action of a tuned interval; `tick` is called after each
/// interval and ends the trial by returning `false`.
///
/// The environment is left at its defaults, also after an error or an interruption.
///
/// # Errors
/// See [`TrialError`]; after `NotStarted` and `NotRestored` the defaults may not be in force.
pub fn run(
    env: &mut dyn Environment,
    tune: &mut dyn FnMut(&Observation) -> Result<JointAction, TrialError>,
    plan: Plan,
    tick: &mut dyn FnMut(Arm) -> bool,
) -> Result<Report, TrialError> {
    if plan.alternations == 0 || plan.measure == 0 {
        return Err(TrialError::Empty);
    }
    let spec = env.spec().clone();
    let mut observation = env
        .reset(None, &ResetOptions::new())
        .map_err(TrialError::NotStarted)?;
    let mut halves = Halves {
        default: Vec::new(),
        tuned: Vec::new(),
        settings: Vec::new(),
    };
    let result = alternate(env, &spec, &mut observation, tune, plan, tick, &mut halves);
    if let Err(reason) = restore(env, &observation.default) {
        let trial = result.err().map(Box::new);
        return Err(TrialError::NotRestored { trial, reason });
    }
    result?;
    Ok(report(plan, &halves))
}

fn restore(env: &mut dyn Environment, default: &JointAction) -> Result<(), String> {
    let step = env.step(default).map_err(|error| error.to_string())?;
    if step.executed == *default {
        Ok(())
    } else {
        Err("the host kept some settings".to_owned())
    }
}

struct Halves {
    default: Vec<BTreeMap<Figure, f64>>,
    tuned: Vec<BTreeMap<Figure, f64>>,
    settings: Vec<(String, String, String)>,
}

fn alternate(
    env: &mut dyn Environment,
    spec: &EnvSpec,
    observation: &mut Observation,
    tune: &mut dyn FnMut(&Observation) -> Result<JointAction, TrialError>,
    plan: Plan,
    tick: &mut dyn FnMut(Arm) -> bool,
    halves: &mut Halves,
) -> Result<(), TrialError> {
    for pair in 0..plan.alternations {
        let order = if pair % 2 == 0 {
            [Arm::Default, Arm::Tuned]
        } else {
            [Arm::Tuned, Arm::Default]
        };
        for arm in order {
            let mut measured = Vec::new();
            for interval in 0..plan.settle + plan.measure {
                let action = match arm {
                    Arm::Default => observation.default.clone(),
                    Arm::Tuned => tune(observation)?,
                };
                let step = env.step(&action)?;
                if interval >= plan.settle {
                    measured.push(figures(spec, &step));
                }
                go_on(env, step, observation)?;
                if !tick(arm) {
                    return Err(TrialError::Interrupted);
                }
            }
            match arm {
                Arm::Default => halves.default.push(means(&measured)),
                Arm::Tuned => {
                    halves.tuned.push(means(&measured));
                    halves.settings = settings(spec, observation);
                }
            }
        }
    }
    Ok(())
}

/// Simulated episodes end; the trial goes on in the next one, unless it is about other guests.
fn go_on(
    env: &mut dyn Environment,
    step: Step,
    observation: &mut Observation,
) -> Result<(), TrialError> {
    let next = if step.is_last() && step.final_observation.is_none() {
        env.reset(None, &ResetOptions::new())?
    } else {
        step.observation
    };
    let before = std::mem::replace(observation, next);
    if before.disk_ids == observation.disk_ids {
        Ok(())
    } else {
        Err(TrialError::GuestsChanged)
    }
}

fn figures(spec: &EnvSpec, step: &Step) -> BTreeMap<Figure, f64> {
    let mut figures = BTreeMap::new();
    let obs = step
        .final_observation
        .as_deref()
        .unwrap_or(&step.observation);
    let column = |name: &str| spec.disk_features.iter().position(|f| f.name == name);
    let quantities = [
        ("iops", "iops"),
        ("latency_us_mean", "mean latency, µs"),
        ("latency_us_p99", "p99 latency, µs"),
    ];
    for (disk, id) in obs.disk_ids.iter().enumerate() {
        for (feature, quantity) in quantities {
            let Some(column) = column(feature) else {
                continue;
            };
            if obs.disks.validity[[disk, column]].is_usable() {
                let figure = Figure {
                    of: id.clone(),
                    quantity,
                };
                figures.insert(figure, f64::from(obs.disks.values[[disk, column]]));
            }
        }
    }
    let host = |name: &str| {
        let column = spec.host_features.iter().position(|f| f.name == name)?;
        Some(f64::from(obs.host.values[[0, column]]))
    };
    if let (Some(load), Some(cpus)) = (host("cpu_load"), host("cpus")) {
        figures.insert(
            Figure {
                of: "host".to_owned(),
                quantity: "CPU, cores",
            },
            load * cpus,
        );
    }
    if let Some(reward) = step.rewards.host_mean() {
        figures.insert(
            Figure {
                of: "host".to_owned(),
                quantity: "reward",
            },
            f64::from(reward),
        );
    }
    figures
}

fn settings(spec: &EnvSpec, obs: &Observation) -> Vec<(String, String, String)> {
    let mut settings = Vec::new();
    for (disk, id) in obs.disk_ids.iter().enumerate() {
        for (head, spec_head) in spec.disk_heads.iter().enumerate() {
            let level = spec_head.level_name(obs.current.disks[[disk, head]]);
            settings.push((id.clone(), spec_head.name.clone(), level));
        }
    }
    settings
}

fn means(measured: &[BTreeMap<Figure, f64>]) -> BTreeMap<Figure, f64> {
    let mut sums: BTreeMap<Figure, (f64, f64)> = BTreeMap::new();
    for (figure, value) in measured.iter().flatten() {
        let (sum, n) = sums.entry(figure.clone()).or_default();
        *sum += value;
        *n += 1.0;
    }
    sums.into_iter()
        .map(|(figure, (sum, n))| (figure, sum / n))
        .collect()
}

fn report(plan: Plan, halves: &Halves) -> Report {
    let named: std::collections::BTreeSet<&Figure> =
        halves.default.iter().flat_map(BTreeMap::keys).collect();
    let mut rng = Rng::seed_from_u64(0);
    let comparisons = named
        .into_iter()
        .filter_map(|figure| {
            let pairs: Vec<(f64, f64)> = halves
                .default
                .iter()
                .zip(&halves.tuned)
                .filter_map(|(d, t)| Some((*d.get(figure)?, *t.get(figure)?)))
                .collect();
            (!pairs.is_empty()).then(|| compare(figure, &pairs, &mut rng))
        })
        .collect();
    Report {
        plan,
        tuned_settings: halves.settings.clone(),
        comparisons,
    }
}

fn compare(figure: &Figure, pairs: &[(f64, f64)], rng: &mut Rng) -> Comparison {
    let is_ratio = !BY_DIFFERENCE.contains(&figure.quantity);
    let changes: Vec<f64> = pairs
        .iter()
        .map(|(default, tuned)| {
            if is_ratio {
                tuned / default
            } else {
                tuned - default
            }
        })
        .collect();
    let ci95 = bootstrap(&changes, rng);
    let none = if is_ratio { 1.0 } else { 0.0 };
    Comparison {
        of: figure.of.clone(),
        quantity: figure.quantity,
        default: median(pairs.iter().map(|p| p.0).collect()),
        tuned: median(pairs.iter().map(|p| p.1).collect()),
        change: median(changes.clone()),
        ci95,
        is_ratio,
        beyond_noise: changes.len() > 1 && (ci95.0 > none || ci95.1 < none),
    }
}

/// The 2.5 % and 97.5 % quantiles of the median over resampled pairs.
fn bootstrap(changes: &[f64], rng: &mut Rng) -> (f64, f64) {
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            median(
                (0..changes.len())
                    .map(|_| changes[rng.random_range(0..changes.len())])
                    .collect(),
            )
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (
        medians[RESAMPLES / 40],
        medians[RESAMPLES - 1 - RESAMPLES / 40],
    )
}

/// The median; NaN of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => values[n / 2],
        _ => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::features::{CACHE_HEAD, CHANNEL_HEAD};
    use blkpilot_env::sim::{Scenario, SimHost, presets};

    use super::*;

    const PLAN: Plan = Plan {
        alternations: 6,
        settle: 2,
        measure: 2,
    };

    fn host(scenario: Scenario) -> SimHost {
        SimHost::fixed(Scenario {
            steps: 1000,
            ..scenario
        })
        .unwrap()
    }

    fn change<'a>(report: &'a Report, of: &str, quantity: &str) -> &'a Comparison {
        report
            .comparisons
            .iter()
            .find(|c| c.of == of && c.quantity == quantity)
            .unwrap()
    }

    #[test]
    fn a_better_binding_shows_beyond_noise() {
        let mut tune = |obs: &Observation| {
            let mut action = obs.default.clone();
            action.disks[[0, CHANNEL_HEAD]] = 3;
            action.disks[[1, CHANNEL_HEAD]] = 4;
            Ok(action)
        };
        let report = run(
            &mut host(presets::poor_binding()),
            &mut tune,
            PLAN,
            &mut |_| true,
        )
        .unwrap();
        let iops = change(&report, "guest-0/vda", "iops");
        assert!(iops.change > 1.3 && iops.beyond_noise, "{iops:?}");
        let reward = change(&report, "host", "reward");
        assert!(
            reward.change > 0.0 && reward.beyond_noise && !reward.is_ratio,
            "{reward:?}"
        );
    }

    #[test]
    fn changing_nothing_stays_within_noise() {
        let mut tune = |obs: &Observation| Ok(obs.default.clone());
        let report = run(
            &mut host(presets::poor_binding()),
            &mut tune,
            PLAN,
            &mut |_| true,
        )
        .unwrap();
        let iops = change(&report, "guest-0/vda", "iops");
        assert!(
            !iops.beyond_noise && (iops.change - 1.0).abs() < 0.1,
            "{iops:?}"
        );
    }

    #[test]
    fn an_interrupted_trial_leaves_the_defaults_in_force() {
        let mut env = host(presets::capped_device());
        let mut tune = |obs: &Observation| {
            let mut action = obs.default.clone();
            action.disks.column_mut(CACHE_HEAD).fill(1);
            Ok(action)
        };
        let mut ticks = 0;
        let mut tick = |_| {
            ticks += 1;
            ticks < 6
        };
        let result = run(&mut env, &mut tune, PLAN, &mut tick);
        assert!(matches!(result, Err(TrialError::Interrupted)));
        let sample = env.sample().unwrap();
        assert!(sample.disks.iter().all(|d| d.settings == d.default));
    }

    /// A host that fails for good after some steps.
    struct Mortal {
        host: SimHost,
        steps_left: u32,
    }

    impl Environment for Mortal {
        fn spec(&self) -> &EnvSpec {
            self.host.spec()
        }

        fn reset(
            &mut self,
            seed: Option<u64>,
            options: &ResetOptions,
        ) -> Result<Observation, EnvError> {
            self.host.reset(seed, options)
        }

        fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
            self.steps_left = self
                .steps_left
                .checked_sub(1)
                .ok_or(EnvError::EpisodeOver)?;
            self.host.step(action)
        }
    }

    #[test]
    fn a_trial_that_could_not_restore_the_defaults_says_so() {
        let mut tune = |obs: &Observation| Ok(obs.default.clone());
        // In the midst of the trial, and at its last step, which restores.
        for (steps_left, is_early) in [(5, true), (48, false)] {
            let mut env = Mortal {
                host: host(presets::capped_device()),
                steps_left,
            };
            match run(&mut env, &mut tune, PLAN, &mut |_| true) {
                Err(TrialError::NotRestored { trial, .. }) => {
                    assert_eq!(trial.is_some(), is_early);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn medians_and_their_interval_are_those_of_the_pairs() {
        let figure = Figure {
            of: "d".to_owned(),
            quantity: "iops",
        };
        let pairs = [(100.0, 200.0), (100.0, 190.0), (50.0, 110.0)];
        let comparison = compare(&figure, &pairs, &mut Rng::seed_from_u64(1));
        assert_eq!(
            (comparison.default, comparison.tuned, comparison.change),
            (100.0, 190.0, 2.0)
        );
        assert_eq!(comparison.ci95, (1.9, 2.2));
        assert!(comparison.beyond_noise);
    }
}
