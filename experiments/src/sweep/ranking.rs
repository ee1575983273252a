//! What the configurations of a sweep came to, best first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use serde_json::Value;

use super::plan::Plan;
use crate::compare::TRAINED;
use crate::statistics::{interquartile_mean, median, quantile};
use crate::train::SUMMARY_FILE;

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Trained and compared.
    Done,
    /// Ended before its time, or not begun; the sweep called again goes on.
    Interrupted,
    /// Ended with an error.
    Failed(String),
    /// Another process trains there.
    Elsewhere,
}

impl Outcome {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Interrupted => "interrupted".to_owned(),
            Self::Failed(error) => format!("failed: {error}"),
            Self::Elsewhere => "left alone: another process is training there".to_owned(),
        }
    }
}

/// What a sweep came to; `sweep.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepReport {
    /// Name of the sweep.
    pub name: String,
    /// Name of the config that all runs start from.
    pub config: String,
    /// Versions of the code that trained its runs: one, unless it was gone on with after a change.
    pub code_versions: Vec<String>,
    /// Whether it was ended before its time.
    pub interrupted: bool,
    /// Runs that failed, or that another process has.
    pub failed: Vec<Failure>,
    /// Configurations, best median first; those without a run that is done come last.
    pub configurations: Vec<Ranked>,
}

/// A run that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its directory.
    pub dir: PathBuf,
    /// Its configuration.
    pub label: String,
    /// Its seed.
    pub seed: u64,
    /// What it said.
    pub error: String,
}

/// A configuration with its figures. Each run counts by the mean reward of its trained policy over the evaluation
/// episodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    /// Its name, and that of its directory.
    pub label: String,
    /// What it sets, by dotted key.
    pub parameters: BTreeMap<String, Value>,
    /// Seeds asked for.
    pub seeds: usize,
    /// Reward by seed, of runs that are done.
    pub rewards: BTreeMap<u64, f64>,
    /// The run in the middle.
    pub median: Option<f64>,
    /// First and third quartile.
    pub quartiles: Option<[f64; 2]>,
    /// Mean of the middle half.
    pub interquartile_mean: Option<f64>,
    /// Worst and best run.
    pub extremes: Option<[f64; 2]>,
    /// Least of the mean differences to the policies that are not trained, mean over the runs: how much it is ahead of
    /// the best of them.
    pub ahead: Option<f64>,
}

impl SweepReport {
    /// Ranks what the runs of a plan came to: number of the configuration, seed, directory, outcome.
    #[must_use]
    pub fn of(plan: &Plan, runs: impl Iterator<Item = (usize, u64, PathBuf, Outcome)>) -> Self {
        let mut figures = vec![Runs::default(); plan.configurations.len()];
        let (mut failed, mut interrupted) = (vec![], false);
        for (number, seed, dir, outcome) in runs {
            match &outcome {
                Outcome::Done => figures[number].take(seed, &dir),
                Outcome::Interrupted => interrupted = true,
                Outcome::Failed(_) | Outcome::Elsewhere => failed.push(Failure {
                    dir,
                    label: plan.configurations[number].label.clone(),
                    seed,
                    error: match &outcome {
                        Outcome::Failed(error) => error.clone(),
                        other => other.text(),
                    },
                }),
            }
        }
        let versions = figures.iter().flat_map(|own| own.code_versions.clone());
        let code_versions: BTreeSet<String> = versions.collect();
        failed.sort_by(|a, b| (&a.label, a.seed).cmp(&(&b.label, b.seed)));
        let ranked = plan.configurations.iter().zip(figures).map(|(own, runs)| {
            let rewards: Vec<f64> = runs.rewards.values().copied().collect();
            let both = |low, high| Some([quantile(&rewards, low)?, quantile(&rewards, high)?]);
            Ranked {
                label: own.label.clone(),
                parameters: own.parameters.clone(),
                seeds: plan.seeds.len(),
                median: median(&rewards),
                quartiles: both(0.25, 0.75),
                interquartile_mean: interquartile_mean(&rewards),
                extremes: both(0.0, 1.0),
                ahead: runs.ahead(),
                rewards: runs.rewards,
            }
        });
        let mut configurations: Vec<Ranked> = ranked.collect();
        let key = |own: &Ranked| own.median.unwrap_or(f64::NEG_INFINITY);
        // Stable: equals stay in the order of the file.
        configurations.sort_by(|a, b| key(b).total_cmp(&key(a)));
        Self {
            name: plan.name.clone(),
            config: plan
                .configurations
                .first()
                .map_or_else(String::new, |own| own.config.name.clone()),
            code_versions: code_versions.into_iter().collect(),
            interrupted,
            failed,
            configurations,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let keys: Vec<&String> = self
            .configurations
            .first()
            .map(|own| own.parameters.keys().collect())
            .unwrap_or_default();
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        let figures = [
            "seeds",
            "median",
            "quartiles",
            "worst",
            "best",
            "ahead of baselines",
        ];
        let names = keys.iter().map(|key| key.as_str());
        table.set_header(["#"].into_iter().chain(names).chain(figures));
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for (place, own) in self.configurations.iter().enumerate() {
            let values = keys.iter().map(|key| plain(&own.parameters[*key]));
            let figures = [
                format!("{}/{}", own.rewards.len(), own.seeds),
                number(own.median),
                own.quartiles
                    .map_or_else(dash, |[low, high]| format!("{low:.4} to {high:.4}")),
                number(own.extremes.map(|[worst, _]| worst)),
                number(own.extremes.map(|[_, best]| best)),
                own.ahead.map_or_else(dash, |ahead| format!("{ahead:+.4}")),
            ];
            let place = [(place + 1).to_string()];
            table.add_row(place.into_iter().chain(values).chain(figures));
        }
        let mut text = format!(
            "{table}\nreward of the trained policy, by the median over seeds; ahead of baselines: mean difference to the \
             best policy that is not trained\n"
        );
        if self.code_versions.len() > 1 {
            let versions = self.code_versions.join(", ");
            text += &format!("note: the runs were trained by different code: {versions}\n");
        }
        for failure in &self.failed {
            let error = failure.error.replace('\n', "\n    ");
            text += &format!("{}: {error}\n", failure.dir.display());
        }
        text
    }
}

/// Figures of the runs of one configuration.
#[derive(Debug, Clone, Default)]
struct Runs {
    rewards: BTreeMap<u64, f64>,
    differences: BTreeMap<String, Vec<f64>>,
    code_versions: BTreeSet<String>,
}

impl Runs {
    fn take(&mut self, seed: u64, dir: &Path) {
        let text = fs::read(dir.join(SUMMARY_FILE)).unwrap_or_default();
        let summary: Value = serde_json::from_slice(&text).unwrap_or_default();
        let reward = summary["policies"][TRAINED]["reward_mean"].as_f64();
        self.rewards.extend(reward.map(|reward| (seed, reward)));
        let versions = summary["code_versions"].as_array().into_iter().flatten();
        self.code_versions
            .extend(versions.filter_map(|own| Some(own.as_str()?.to_owned())));
        let differences = summary["differences"].as_object().into_iter().flatten();
        for (name, difference) in differences {
            let own = self.differences.entry(name.clone()).or_default();
            own.extend(difference["mean"].as_f64());
        }
    }

    fn ahead(&self) -> Option<f64> {
        let means = self
            .differences
            .values()
            .filter(|own| !own.is_empty())
            .map(|own| own.iter().sum::<f64>() / own.len() as f64);
        means.min_by(f64::total_cmp)
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(dash, |value| format!("{value:.4}"))
}

fn dash() -> String {
    "–".to_owned()
}
