//! Policies against the oracle of each scenario: `blkpilot-lab oracle`.
//!
//! What an oracle is and how it is computed is in `blkpilot_models::oracle`; this is what people and
//! scripts see of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::Scenario;
use blkpilot_env::{EnvSpec, Observation, Rng};
use blkpilot_models::bootstrap::RESAMPLES;
use blkpilot_models::oracle::study::{BEST_STATIC, PolicyFigures, Progress};
use blkpilot_models::oracle::{
    Accuracy, Estimate, Limits, OracleError, Planner, PooledFigures, Resampled, Sight, Study,
    StudyError, StudyOptions, pooled, study,
};
use blkpilot_models::{Checkpoint, Selection};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use rand::SeedableRng as _;
use serde::Serialize;

use crate::compare::{BASELINES, TRAINED, policies};
use crate::config::{EnvironmentConfig, HostSource};
use crate::log::environment;
use crate::{LabError, seeds};

/// A scenario, and what is paid for on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The scenario.
    pub scenario: Scenario,
    /// Weights of the reward.
    pub reward: RewardConfig,
}

/// What policies are judged on.
#[derive(Debug, Clone, PartialEq)]
pub struct Cases {
    /// Each scenario.
    pub cases: Vec<Case>,
    /// Whether they are draws of many that could have been, or the ones that are asked about.
    pub resampled: Resampled,
}

impl Cases {
    /// The scenarios of these names: presets, files of scenarios, or experiments' configs, of which one with a
    /// generator gives `hosts` hosts, drawn from the evaluation seeds from `first_seed` on. Weights of the reward are
    /// the configs', and the default ones elsewhere.
    ///
    /// # Errors
    /// `Config`, `ScenarioFile`; `NotAHost` for a config of another environment.
    pub fn find(names: &[String], hosts: u64, first_seed: u64) -> Result<Self, LabError> {
        let mut cases = Vec::new();
        let mut are_drawn = true;
        for name in names {
            let (name, environment) = environment(name)?;
            let EnvironmentConfig::SimHost { source, reward, .. } = environment else {
                return Err(LabError::NotAHost { name });
            };
            match source {
                HostSource::Scenario(scenario) => {
                    are_drawn = false;
                    cases.push(Case {
                        scenario: *scenario,
                        reward,
                    });
                }
                HostSource::Generated(generator) => {
                    cases.extend((0..hosts).map(|number| {
                        let number = first_seed + number;
                        let mut rng = Rng::seed_from_u64(seeds::evaluation(number));
                        let mut scenario = generator.draw(&mut rng);
                        scenario.name = format!("{name}, host {number}");
                        Case { scenario, reward }
                    }));
                }
            }
        }
        Ok(Self {
            cases,
            resampled: if are_drawn {
                Resampled::Scenarios
            } else {
                Resampled::Episodes
            },
        })
    }
}

/// How to judge.
#[derive(Debug, Clone, Copy)]
pub struct OracleOptions {
    /// Episodes per policy and scenario, at least 2.
    pub episodes: u64,
    /// Number of the first evaluation seed.
    pub first_seed: u64,
    /// Gain, as a share of the state's range, up to which a decision is correct.
    pub tolerance: f64,
    /// Range, in reward per interval, below which a state is left out.
    pub epsilon: f64,
    /// What the oracle may spend.
    pub limits: Limits,
    /// Scenarios that are studied at a time; how many changes no figure.
    pub threads: usize,
}

impl Default for OracleOptions {
    fn default() -> Self {
        Self {
            episodes: 16,
            first_seed: 0,
            tolerance: 0.02,
            epsilon: 0.01,
            limits: Limits::default(),
            threads: 1,
        }
    }
}

/// Most scenarios that a report for people tells of one by one.
const MOST_SHOWN: usize = 12;

/// Figures over several scenarios.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OracleReport {
    /// What the intervals come from.
    pub resampled: &'static str,
    /// Resamples behind each interval.
    pub resamples: usize,
    /// Number of the first evaluation seed.
    pub first_seed: u64,
    /// Gain, as a share of the range, up to which a decision is correct.
    pub tolerance: f64,
    /// Range below which a state is left out of the accuracy.
    pub epsilon: f64,
    /// By scenario, in the order asked for.
    pub scenarios: Vec<ScenarioReport>,
    /// By policy over all scenarios.
    pub pooled: BTreeMap<String, PooledFigures>,
}

/// Figures of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScenarioReport {
    /// Disks.
    pub disks: usize,
    /// Channels.
    pub channels: usize,
    /// The best static setting: names of the levels by disk or device and head.
    pub best_static: BTreeMap<String, BTreeMap<String, String>>,
    /// The figures.
    #[serde(flatten)]
    pub study: Study,
}

/// Studies each scenario with the baselines and, if there is one, a trained policy, greedy. `watch` is
/// told the number of the scenario and how far it is, and says whether to go on; of several that are studied at a time,
/// by turns.
///
/// # Errors
/// `Interrupted` if not; `Policy` if the checkpoint does not fit; `Study` if the oracle has no answer.
pub fn oracle(
    cases: &Cases,
    checkpoint: Option<&Checkpoint>,
    options: &OracleOptions,
    watch: &mut (dyn FnMut(usize, Progress) -> bool + Send),
) -> Result<OracleReport, LabError> {
    let reports = each(cases, checkpoint, options, watch)?;
    let studies: Vec<Study> = reports.iter().map(|report| report.study.clone()).collect();
    Ok(OracleReport {
        resampled: match cases.resampled {
            Resampled::Episodes => {
                "episodes: one per evaluation seed, the same seeds for all policies; pooled, each scenario's for \
                 themselves"
            }
            Resampled::Scenarios => {
                "episodes: one per evaluation seed, the same seeds for all policies; pooled, hosts with all their \
                 episodes"
            }
        },
        resamples: RESAMPLES,
        first_seed: options.first_seed,
        tolerance: options.tolerance,
        epsilon: options.epsilon,
        pooled: pooled(
            &studies,
            cases.resampled,
            checkpoint.is_some().then_some(TRAINED),
        ),
        scenarios: reports,
    })
}

/// The scenarios one by one, several at a time; the first error ends those that are not done.
fn each(
    cases: &Cases,
    checkpoint: Option<&Checkpoint>,
    options: &OracleOptions,
    watch: &mut (dyn FnMut(usize, Progress) -> bool + Send),
) -> Result<Vec<ScenarioReport>, LabError> {
    let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let watch = Mutex::new(watch);
    let study_some = || {
        let mut own = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.cases.get(number) else {
                return own;
            };
            let mut watch_one = |progress| {
                let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
                !has_failed.load(Ordering::Relaxed) && watch(number, progress)
            };
            let report = one(case, checkpoint, options, &mut watch_one);
            let is_last = report.is_err();
            // Those that are interrupted for it say only that they were.
            let is_first = !is_last || !has_failed.swap(true, Ordering::Relaxed);
            if is_first {
                own.push((number, report));
            }
            if is_last {
                return own;
            }
        }
    };
    let mut done = std::thread::scope(|scope| {
        let workers = options.threads.clamp(1, cases.cases.len().max(1));
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(study_some)).collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(own) => own,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect::<Vec<_>>()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, report)| report).collect()
}

fn one(
    case: &Case,
    checkpoint: Option<&Checkpoint>,
    options: &OracleOptions,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<ScenarioReport, LabError> {
    let planner = Planner::new(&case.scenario, case.reward, options.limits);
    let mut planner = planner.map_err(StudyError::from)?;
    let spec = planner.values().spec().clone();
    if let Some(checkpoint) = checkpoint {
        checkpoint.check_fits(&spec)?;
    }
    let mut policies = policies(&spec, checkpoint.map(|own| (own, Selection::Greedy)))?;
    let seed = |i: u64| {
        let seed = seeds::evaluation(options.first_seed + i);
        (seed, seeds::decisions(seed))
    };
    let study_options = StudyOptions {
        seeds: (0..options.episodes).map(seed).collect(),
        tolerance: options.tolerance,
        epsilon: options.epsilon,
    };
    let study = study(&mut planner, &mut policies, &study_options, watch);
    let study = study.map_err(|error| match error {
        StudyError::Interrupted => LabError::Interrupted,
        StudyError::Oracle(OracleError::Scenario(problems)) => LabError::Scenario(problems),
        other => LabError::Study(other),
    })?;
    Ok(ScenarioReport {
        disks: case.scenario.disks.len(),
        channels: case.scenario.channels.len(),
        best_static: level_names(&spec, planner.values().first_observation(), &study),
        study,
    })
}

fn level_names(
    spec: &EnvSpec,
    obs: &Observation,
    study: &Study,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let tables = [
        (&obs.disk_ids, &spec.disk_heads, &study.best_static.disks),
        (
            &obs.device_ids,
            &spec.device_heads,
            &study.best_static.devices,
        ),
    ];
    let mut names = BTreeMap::new();
    for (ids, heads, levels) in tables {
        for (row, id) in ids.iter().enumerate().filter(|_| !heads.is_empty()) {
            let own = heads.iter().enumerate();
            let named = own.map(|(h, head)| (head.name.clone(), head.level_name(levels[[row, h]])));
            names.insert(id.clone(), named.collect());
        }
    }
    names
}

impl OracleReport {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.scenarios.len() <= MOST_SHOWN {
            text.extend(self.scenarios.iter().map(|s| s.text() + "\n"));
        }
        if self.scenarios.len() > 1 {
            text += &format!(
                "All {} scenarios\n{}\n\n",
                self.scenarios.len(),
                self.pooled_table()
            );
        }
        let from = self.first_seed;
        text + &format!(
            "Rewards: host mean per interval, from evaluation seed {from} on. Regret: (oracle − \
             policy)/(oracle − random).\nCorrect: decisions of one disk in one interval that, changed \
             alone, would gain at most {:.0} % of the state's range;\nstates with a range below {} are \
             left out. Intervals: 95 % bootstrap, {} resamples of {}.\n",
            self.tolerance * 100.0,
            self.epsilon,
            self.resamples,
            self.resampled
        )
    }
}

impl OracleReport {
    fn pooled_table(&self) -> Table {
        let mut table = table(&[
            "policy",
            "reward",
            "loss",
            "regret",
            "95 % interval",
            "lagged regret",
            "95 % interval",
            "correct",
            "95 % interval",
            "trained − it",
            "95 % interval",
        ]);
        let named = order().filter_map(|name| Some((name, self.pooled.get(name)?)));
        for (name, own) in named {
            let dash = || "–".to_owned();
            let share = |of: Option<Estimate>| {
                of.map_or_else(
                    || [dash(), dash()],
                    |e| [percent(e.value), interval(e.ci95)],
                )
            };
            let lead = own.subject_minus_it.map_or_else(
                || [dash(), dash()],
                |lead| {
                    let [low, high] = lead.ci95;
                    [
                        format!("{:+.4}", lead.value),
                        format!("{low:+.4} to {high:+.4}"),
                    ]
                },
            );
            let mut row = vec![
                name.to_owned(),
                format!("{:.4}", own.reward.value),
                own.loss.map_or_else(dash, |loss| format!("{loss:.4}")),
            ];
            for cells in [
                share(own.regret),
                share(own.lagged_regret),
                share(own.correct),
                lead,
            ] {
                row.extend(cells);
            }
            table.add_row(row);
        }
        table
    }
}

impl ScenarioReport {
    fn text(&self) -> String {
        let study = &self.study;
        let mut table = table(&[
            "policy",
            "reward",
            "95 % interval",
            "loss",
            "regret",
            "95 % interval",
            "correct",
            "95 % interval",
        ]);
        let rows = order().filter_map(|name| Some((name, study.policies.get(name)?)));
        for (name, figures) in rows {
            table.add_row(policy_row(name, figures));
        }
        format!(
            "{}: {} disks, {} channels, {} episodes{}\n{}{table}\n{}{}{}",
            study.scenario,
            self.disks,
            self.channels,
            study.episodes,
            match study.seeds_left_out {
                0 => String::new(),
                seeds => format!(" ({seeds} more left out, on which nothing counted)"),
            },
            self.steady_text(),
            self.left_out_text(),
            self.static_text(),
            self.dependence_text(),
        )
    }

    fn steady_text(&self) -> String {
        let steady = &self.study.steady;
        let states = if steady.all_states {
            "all"
        } else {
            "a sample of"
        };
        let how = if steady.exhaustive >= 1.0 {
            "every setting tried in each: exact".to_owned()
        } else {
            format!(
                "every setting tried in {:.0} % of them, the others searched: the optimum is at most \
                 {:.4} better (bound {:.4}, see docs/oracle.md)",
                steady.exhaustive * 100.0,
                steady.bound - steady.best,
                steady.bound
            )
        };
        let best_static = if steady.best_static_exhaustive {
            "exact".to_owned()
        } else {
            format!("searched, at most {:.4}", steady.best_static_bound)
        };
        format!(
            "Steady values, phase vectors: {states} {}, {how}.\nBest {:.4}, best static {:.4} \
             ({best_static}), random {:.4}: a static setting gives up {:.1} % of the range. {} values \
             computed, {} of them means over a swing.\n",
            steady.states,
            steady.best,
            steady.best_static,
            steady.random,
            steady.best_static_regret * 100.0,
            steady.evaluations,
            steady.unsettled
        )
    }

    fn left_out_text(&self) -> String {
        let accuracies = self.study.policies.values().map(|own| own.accuracy);
        let left_out: usize = accuracies.clone().map(|own| own.left_out).sum();
        let all = left_out + accuracies.map(|own| own.judged).sum::<usize>();
        match left_out {
            0 => String::new(),
            _ => format!("Left out, since little is at stake: {left_out} of {all} decisions.\n"),
        }
    }

    fn static_text(&self) -> String {
        let row = |(id, levels): (&String, &BTreeMap<String, String>)| {
            let levels: Vec<String> = levels.iter().map(|(h, l)| format!("{h} {l}")).collect();
            format!("{id}: {}", levels.join(", "))
        };
        let rows: Vec<String> = self.best_static.iter().map(row).collect();
        format!("Best static: {}.\n", rows.join("; "))
    }

    fn dependence_text(&self) -> String {
        let heads = self.study.dependence.iter().map(|(name, head)| {
            format!(
                "{name} {:.0} % ({} of {} choices)",
                head.differs * 100.0,
                head.knobs_that_differ,
                head.knobs
            )
        });
        let heads: Vec<String> = heads.collect();
        format!(
            "Best level differs between phase vectors: {}.\n",
            heads.join(", ")
        )
    }
}

/// Policies in the order of reports.
fn order() -> impl Iterator<Item = &'static str> {
    let oracles = [BEST_STATIC, Sight::Last.name(), Sight::Next.name()];
    [TRAINED].into_iter().chain(BASELINES).chain(oracles)
}

fn policy_row(name: &str, figures: &PolicyFigures) -> [String; 8] {
    let dash = || "–".to_owned();
    let Accuracy { correct, .. } = figures.accuracy;
    [
        name.to_owned(),
        format!("{:.4}", figures.reward.value),
        format!(
            "{:.4} to {:.4}",
            figures.reward.ci95[0], figures.reward.ci95[1]
        ),
        figures.loss.map_or_else(dash, |loss| format!("{loss:.4}")),
        figures
            .regret
            .map_or_else(dash, |regret| percent(regret.value)),
        figures
            .regret
            .map_or_else(dash, |regret| interval(regret.ci95)),
        correct.map_or_else(dash, |correct| percent(correct.value)),
        correct.map_or_else(dash, |correct| interval(correct.ci95)),
    ]
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.1} to {:.1} %", low * 100.0, high * 100.0)
}
