//! Which runs there are, by configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use blkpilot_models::Checkpoint;
use serde_json::Value;

use crate::LabError;
use crate::config::{Config, EnvironmentConfig};
use crate::curve::Point;
use crate::state::{Changed, STATE_FILE, State};
use crate::train::SUMMARY_FILE;

/// Directories below those that were named in which runs are looked for.
const DEEPEST: usize = 5;

/// A run that is on the page.
#[derive(Debug)]
pub struct ReportedRun {
    /// Its directory.
    pub dir: PathBuf,
    /// Its seed.
    pub seed: u64,
    /// Versions of the code that trained it.
    pub code_versions: Vec<String>,
    /// Points of its learning curve.
    pub points: Vec<Point>,
    /// What it has learned so far.
    pub checkpoint: Checkpoint,
    /// `summary.json`; `None` where it was not compared.
    pub summary: Option<Value>,
}

/// Runs of one configuration, by seed.
#[derive(Debug)]
pub struct Group {
    /// What the page calls it.
    pub label: String,
    /// Its config.
    pub config: Config,
    /// Its runs.
    pub runs: Vec<ReportedRun>,
}

impl Group {
    /// Runs that were trained to their end and compared.
    pub fn done(&self) -> impl Iterator<Item = &ReportedRun> {
        self.runs.iter().filter(|run| run.summary.is_some())
    }

    /// Why there is nothing to play again, in words; `None` if there is something.
    #[must_use]
    pub fn nothing_to_play(&self) -> Option<&'static str> {
        if self.done().next().is_none() {
            return Some("No run was trained to its end yet.");
        }
        if matches!(self.config.environment, EnvironmentConfig::Remote(_)) {
            return Some(
                "What is at a service is not played again; each run's summary.json has its comparison.",
            );
        }
        (self.config.evaluation.episodes == 0)
            .then_some("The config has no evaluation episodes: evaluation.episodes = 0.")
    }
}

/// All runs in and below the directories, grouped by what their configs say.
///
/// # Errors
/// `NothingToReport`; `NotResumable`, `Policy`, `Config` of a run that cannot be read.
pub fn groups(dirs: &[PathBuf]) -> Result<Vec<Group>, LabError> {
    let mut found = vec![];
    for dir in dirs {
        below(dir, 0, &mut found);
    }
    found.sort();
    found.dedup();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for dir in found {
        let (run, config, key) = read(dir)?;
        let new = || Group {
            label: String::new(),
            config,
            runs: vec![],
        };
        groups.entry(key).or_insert_with(new).runs.push(run);
    }
    if groups.is_empty() {
        return Err(LabError::NothingToReport {
            dirs: dirs.to_vec(),
        });
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.runs.sort_by_key(|run| run.seed);
    }
    name(&mut groups);
    Ok(groups)
}

/// A run's own directory is not gone into.
fn below(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if dir.join(STATE_FILE).exists() {
        found.push(dir.to_owned());
    } else if depth < DEEPEST {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            below(&entry.path(), depth + 1, found);
        }
    }
}

/// A run, its config, and what tells its configuration from others.
fn read(dir: PathBuf) -> Result<(ReportedRun, Config, String), LabError> {
    let (state, checkpoint) = State::load(&dir)?;
    let config = state.config(&dir, Changed::GoOn)?;
    let mut document = state.document.clone();
    if let Some(table) = document.as_object_mut() {
        table.remove("seed");
    }
    if let Some(scenario) = &state.scenario {
        document["environment"]["scenario"] = scenario.clone();
    }
    let summary = fs::read(dir.join(SUMMARY_FILE)).ok();
    let summary = summary.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let run = ReportedRun {
        seed: state.seed,
        code_versions: state.code_versions,
        points: state.points,
        checkpoint,
        summary: summary.filter(|own| own["interrupted"] == false),
        dir,
    };
    Ok((run, config, document.to_string()))
}

/// By their configs' names; where that does not tell them apart, by the directories that their runs are in.
fn name(groups: &mut [Group]) {
    let by_config = |group: &Group| group.config.name.clone();
    let by_directory = |group: &Group| {
        let above = group.runs[0].dir.parent().and_then(Path::file_name);
        above.map_or_else(
            || by_config(group),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    let are_distinct = |names: &[String]| {
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        distinct.len() == names.len()
    };
    let mut names: Vec<String> = groups.iter().map(by_config).collect();
    if !are_distinct(&names) {
        names = groups.iter().map(by_directory).collect();
    }
    if !are_distinct(&names) {
        let numbered = names.iter().enumerate();
        names = numbered
            .map(|(i, name)| format!("{name} ({})", i + 1))
            .collect();
    }
    for (group, name) in groups.iter_mut().zip(names) {
        group.label = name;
    }
}
