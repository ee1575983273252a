//! Policies against the oracle of each scenario: `blkpilot-lab oracle`.
//!
//! What an oracle is and how it is computed is in `blkpilot_models::oracle`; this is what people and
//! scripts see of it.

use std::collections::BTreeMap;

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::Scenario;
use blkpilot_env::{EnvSpec, Observation};
use blkpilot_models::bootstrap::RESAMPLES;
use blkpilot_models::oracle::study::{BEST_STATIC, PolicyFigures, Progress};
use blkpilot_models::oracle::{
    Accuracy, Estimate, Limits, OracleError, Planner, Sight, Study, StudyError, StudyOptions,
    pooled, study,
};
use blkpilot_models::{Checkpoint, Selection};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::compare::{BASELINES, TRAINED, policies};
use crate::{LabError, seeds};

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
}

impl Default for OracleOptions {
    fn default() -> Self {
        Self {
            episodes: 16,
            first_seed: 0,
            tolerance: 0.02,
            epsilon: 0.01,
            limits: Limits::default(),
        }
    }
}

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
    /// Regret by policy over all scenarios: what is lost over the ranges, summed.
    pub pooled_regret: BTreeMap<String, Estimate>,
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
/// told the scenario's number and how far it is, and says whether to go on.
///
/// # Errors
/// `Interrupted` if not; `Policy` if the checkpoint does not fit; `Study` if the oracle has no answer.
pub fn oracle(
    scenarios: &[Scenario],
    checkpoint: Option<&Checkpoint>,
    options: &OracleOptions,
    watch: &mut dyn FnMut(usize, Progress) -> bool,
) -> Result<OracleReport, LabError> {
    let mut reports = Vec::with_capacity(scenarios.len());
    for (number, scenario) in scenarios.iter().enumerate() {
        let mut watch_one = |progress| watch(number, progress);
        reports.push(one(scenario, checkpoint, options, &mut watch_one)?);
    }
    let studies: Vec<Study> = reports.iter().map(|report| report.study.clone()).collect();
    Ok(OracleReport {
        resampled: "episodes: one per evaluation seed, the same seeds for all policies; pooled, \
                    each scenario's for themselves",
        resamples: RESAMPLES,
        first_seed: options.first_seed,
        tolerance: options.tolerance,
        epsilon: options.epsilon,
        pooled_regret: pooled(&studies),
        scenarios: reports,
    })
}

fn one(
    scenario: &Scenario,
    checkpoint: Option<&Checkpoint>,
    options: &OracleOptions,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<ScenarioReport, LabError> {
    let planner = Planner::new(scenario, RewardConfig::default(), options.limits);
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
        disks: scenario.disks.len(),
        channels: scenario.channels.len(),
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
        let mut text: String = self.scenarios.iter().map(|s| s.text() + "\n").collect();
        if self.scenarios.len() > 1 {
            let names = order().filter_map(|name| Some((name, self.pooled_regret.get(name)?)));
            let mut table = table(&["policy", "pooled regret", "95 % interval"]);
            for (name, regret) in names {
                table.add_row([
                    name.to_owned(),
                    percent(regret.value),
                    interval(regret.ci95),
                ]);
            }
            text += &format!("All {} scenarios\n{table}\n\n", self.scenarios.len());
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
