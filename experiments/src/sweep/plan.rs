//! All runs of a sweep, checked before the first is started.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::file::{MOST_RUNS, SweepFile};
use super::parameters::{Choice, draws, grid, grid_size, label};
use crate::LabError;
use crate::config::{Config, ConfigError, Problem};
use crate::state::{differ, write_config_as};

/// One configuration of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// Its name, and that of its directory.
    pub label: String,
    /// What it sets, by dotted key.
    pub parameters: BTreeMap<String, Value>,
    /// The config.
    pub config: Config,
}

/// A sweep that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Name of the sweep.
    pub name: String,
    /// Its configurations.
    pub configurations: Vec<Configuration>,
    /// Seeds of each.
    pub seeds: Vec<u64>,
    /// Directory of the sweep.
    pub out: PathBuf,
}

impl Plan {
    /// Makes the configurations of a sweep file and checks them all.
    ///
    /// # Errors
    /// `Config` with everything that is wrong with any of them, each problem once.
    pub fn of(file: &Path, out: Option<&Path>) -> Result<Self, LabError> {
        let sweep = SweepFile::load(file)?;
        let invalid = |problems| ConfigError::Invalid {
            file: file.to_owned(),
            problems,
        };
        let base = Config::load(&sweep.config)?;
        if base.environment.is_live() {
            let text = "trains on a live host, which one run at a time may have: use `blkpilot-lab train`, once per run";
            return Err(invalid(vec![Problem {
                path: "config".to_owned(),
                text: text.to_owned(),
            }])
            .into());
        }
        let choices = choices(&sweep).map_err(|problem| invalid(vec![problem]))?;
        let mut problems: Vec<(Problem, Vec<String>)> = vec![];
        let mut configurations = vec![];
        for choice in choices {
            let label = label(&choice);
            match configuration(&sweep, &base, &choice) {
                Ok(configuration) => configurations.push(configuration),
                Err(found) => found.into_iter().for_each(|problem| {
                    match problems.iter_mut().find(|(own, _)| *own == problem) {
                        Some((_, labels)) => labels.push(label.clone()),
                        None => problems.push((problem, vec![label.clone()])),
                    }
                }),
            }
        }
        if !problems.is_empty() {
            let problems = problems.into_iter().map(in_configurations).collect();
            return Err(invalid(problems).into());
        }
        let default = || Path::new("out").join(&sweep.name);
        Ok(Self {
            name: sweep.name.clone(),
            configurations,
            seeds: sweep.seeds,
            out: out.map_or_else(default, Path::to_owned),
        })
    }

    /// Directory of a configuration.
    #[must_use]
    pub fn dir(&self, configuration: &Configuration) -> PathBuf {
        self.out.join(&configuration.label)
    }

    /// The config file of a configuration.
    #[must_use]
    pub fn config_file(&self, configuration: &Configuration) -> PathBuf {
        let name = format!("{}.toml", configuration.config.name);
        self.dir(configuration).join(name)
    }

    /// Directory of a run.
    #[must_use]
    pub fn run_dir(&self, configuration: &Configuration, seed: u64) -> PathBuf {
        self.dir(configuration).join(format!("seed-{seed}"))
    }

    /// Writes the config of each configuration to its directory.
    ///
    /// # Errors
    /// `Changed` if runs have begun there under another config, before anything is written; `Write`.
    pub fn write(&self) -> Result<(), LabError> {
        for configuration in &self.configurations {
            self.refuse_another(configuration)?;
        }
        for configuration in &self.configurations {
            let dir = self.dir(configuration);
            fs::create_dir_all(&dir).map_err(|source| LabError::Write {
                path: dir.clone(),
                source,
            })?;
            let name = format!("{}.toml", configuration.config.name);
            write_config_as(&dir, &name, &configuration.config)?;
        }
        Ok(())
    }

    /// What is compared is what would be written, so that a scenario file counts too.
    fn refuse_another(&self, configuration: &Configuration) -> Result<(), LabError> {
        let Ok(found) = Config::load(&self.config_file(configuration)) else {
            return Ok(());
        };
        let dir = self.dir(configuration);
        let has_begun = self
            .seeds
            .iter()
            .any(|seed| self.run_dir(configuration, *seed).exists());
        let whole = |config: &Config| {
            let mut document = config.document.clone();
            if let Some(scenario) = crate::state::scenario(config) {
                document["environment"]["scenario"] = scenario;
            }
            document
        };
        let mut differences = vec![];
        differ(
            "",
            &whole(&found),
            &whole(&configuration.config),
            &mut differences,
        );
        if differences.is_empty() || !has_begun {
            return Ok(());
        }
        Err(LabError::SweepChanged { dir, differences })
    }
}

fn choices(sweep: &SweepFile) -> Result<Vec<Choice>, Problem> {
    let problem = |path: &str, text: String| Problem {
        path: path.to_owned(),
        text,
    };
    let count = sweep
        .samples
        .unwrap_or_else(|| grid_size(&sweep.parameters));
    let runs = count.saturating_mul(sweep.seeds.len());
    if runs > MOST_RUNS {
        let text = format!("make {runs} runs with the seeds: must be at most {MOST_RUNS}");
        return Err(problem("parameters", text));
    }
    let Some(samples) = sweep.samples else {
        return Ok(grid(&sweep.parameters));
    };
    let drawn = draws(&sweep.parameters, samples, sweep.seed);
    if drawn.len() < samples {
        let text = format!(
            "= {samples} are more than the {} that were found to differ: leave it out for all of them",
            drawn.len()
        );
        return Err(problem("samples", text));
    }
    Ok(drawn)
}

fn configuration(
    sweep: &SweepFile,
    base: &Config,
    choice: &Choice,
) -> Result<Configuration, Vec<Problem>> {
    let mut document = base.document.clone();
    let mut parameters = BTreeMap::new();
    let mut problems = vec![];
    for (key, value) in choice {
        let value = serde_json::to_value(value).unwrap_or_default();
        problems.extend(set(&mut document, key, value.clone()).err());
        parameters.insert(key.clone(), value);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    match Config::from_document(&sweep.config, &document) {
        Ok(config) => Ok(Configuration {
            label: label(choice),
            parameters,
            config,
        }),
        Err(ConfigError::Invalid { problems, .. }) => Err(problems),
        Err(other) => Err(vec![Problem {
            path: "config".to_owned(),
            text: other.to_string(),
        }]),
    }
}

/// Sets a dotted key; tables on the way are made.
fn set(document: &mut Value, key: &str, value: Value) -> Result<(), Problem> {
    let mut at = document;
    let mut keys = key.split('.').peekable();
    while let Some(part) = keys.next() {
        let Some(table) = at.as_object_mut() else {
            return Err(Problem {
                path: key.to_owned(),
                text: format!("cannot be set: what stands before `{part}` is no table"),
            });
        };
        if keys.peek().is_none() {
            table.insert(part.to_owned(), value);
            return Ok(());
        }
        at = table
            .entry(part)
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    Ok(())
}

/// A problem with the configurations that have it.
fn in_configurations((problem, labels): (Problem, Vec<String>)) -> Problem {
    let place = match &labels[..] {
        [only] => format!(" (configuration {only})"),
        [first, ..] => format!(" ({} configurations, such as {first})", labels.len()),
        [] => String::new(),
    };
    Problem {
        text: problem.text + &place,
        ..problem
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dotted_keys_are_set_and_tables_made() {
        let mut document = json!({"training": {"clip": 0.2}, "seed": 1});
        set(&mut document, "training.clip", json!(0.3)).unwrap();
        set(&mut document, "network.hidden", json!(8)).unwrap();
        assert_eq!(
            document,
            json!({"training": {"clip": 0.3}, "seed": 1, "network": {"hidden": 8}})
        );
        let problem = set(&mut document, "seed.value", json!(1)).unwrap_err();
        assert!(problem.text.contains("no table"), "{problem}");
    }
}
