//! Where a run stands when its policy is saved, so that it can go on as if it had not been interrupted.

use std::fs;
use std::path::{Path, PathBuf};

use blkpilot_agent::durable;
use blkpilot_env::sim::Scenario;
use blkpilot_learn::{CollectorState, EpisodeEnd};
use blkpilot_models::Checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Config, EnvironmentConfig, HostSource, Overrides};
use crate::curve::Point;
use crate::start::{START_DIR, Start};
use crate::train::POLICY_DIR;
use crate::version::CODE;
use crate::{LabError, json_text, write_file};

/// File of the state within the directory of a run.
pub const STATE_FILE: &str = "state.json";
/// Config of a run within its directory, to be trained as it stands there.
pub const CONFIG_FILE: &str = "config.toml";
/// Scenario of a run within its directory, where it is trained on one.
pub const SCENARIO_FILE: &str = "scenario.toml";
const FORMAT: u32 = 2;
/// Keys of configs that name what is too large or too secret to be copied.
const NOT_COPIED: [(&str, &str); 6] = [
    ("data", "log"),
    ("training", "start_from"),
    ("environment", "ca_file"),
    ("environment", "cert_file"),
    ("environment", "key_file"),
    ("environment", "token_file"),
];

/// What of a run stands in no other file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) format: u32,
    /// Name of the config, and the directory at which its paths start.
    pub(crate) config: String,
    pub(crate) base: PathBuf,
    /// The config as it was written.
    pub(crate) document: Value,
    /// The scenario of its environment, where that is a file.
    pub(crate) scenario: Option<Value>,
    pub(crate) seed: u64,
    /// The policy that was saved with it.
    pub(crate) policy_sha256: String,
    /// The policy that it began from, if it began from one.
    #[serde(default)]
    pub(crate) start: Option<Start>,
    /// Where its environments stand, if the learner plays any.
    pub(crate) collector: Option<CollectorState>,
    /// Number of the file of what the learner remembers, if there is one.
    pub(crate) memory: Option<u64>,
    /// Recent episodes, and the points of the curve.
    pub(crate) recent: Vec<EpisodeEnd>,
    pub(crate) points: Vec<Point>,
    /// Seconds of training so far.
    pub(crate) wall_s: f64,
    pub(crate) next_checkpoint: u64,
    /// Versions of the code that trained it, in their order.
    pub(crate) code_versions: Vec<String>,
}

/// What to do where a run would go on under other circumstances than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Refuse, with the difference.
    Refuse,
    /// Go on as the run was: with the config and scenario in its directory. Only code that has changed may make it
    /// another run.
    GoOn,
}

impl State {
    pub(crate) const FORMAT: u32 = FORMAT;

    /// Writes it over the one before: whole or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), LabError> {
        let path = dir.join(STATE_FILE);
        let written = durable::replace(&path, json_text(self).as_bytes());
        written.map_err(|source| LabError::Write { path, source })
    }

    /// Reads that of a run, with the policy that was saved with it.
    pub(crate) fn load(dir: &Path) -> Result<(Self, Checkpoint), LabError> {
        let path = dir.join(STATE_FILE);
        let unusable = |problem: String| LabError::NotResumable {
            dir: dir.to_owned(),
            problem,
        };
        let text =
            fs::read(&path).map_err(|error| unusable(format!("{}: {error}", path.display())))?;
        let state: Self = serde_json::from_slice(&text)
            .map_err(|error| unusable(format!("{}: {error}", path.display())))?;
        if state.format != FORMAT {
            let found = state.format;
            return Err(unusable(format!(
                "its state has format {found}, this build reads {FORMAT}"
            )));
        }
        // One that was killed between the two has the policy of its state set aside.
        for name in [POLICY_DIR, "policy.previous"] {
            let policy = dir.join(name);
            if policy.exists() {
                let checkpoint = Checkpoint::load(&policy)?;
                if checkpoint.manifest.tensors_sha256 == state.policy_sha256 {
                    return Ok((state, checkpoint));
                }
            }
        }
        Err(unusable("the policy of its state is missing".to_owned()))
    }

    /// What the learner remembered.
    ///
    /// # Errors
    /// `NotResumable` if its file cannot be read.
    pub(crate) fn memory(&self, dir: &Path) -> Result<Option<Vec<u8>>, LabError> {
        let read = |number: u64| {
            let path = dir.join(memory_file(number));
            fs::read(&path).map_err(|error| LabError::NotResumable {
                dir: dir.to_owned(),
                problem: format!("{}: {error}", path.display()),
            })
        };
        self.memory.map(read).transpose()
    }

    /// The config of the run, from its own directory.
    ///
    /// # Errors
    /// `Changed` if config or scenario have been edited since, here or where they came from, unless `changed` says to go
    /// on; `Config`.
    pub(crate) fn config(&self, dir: &Path, changed: Changed) -> Result<Config, LabError> {
        let config = self.own_config(dir)?;
        if changed == Changed::Refuse {
            self.compare(dir)?;
        }
        Ok(config)
    }

    /// What its directory says: enough wherever it was copied to.
    fn own_config(&self, dir: &Path) -> Result<Config, LabError> {
        let mut config = self.config_on_own_scenario(dir)?;
        if self.start.is_some() {
            // The copy: whatever became of the policy.
            config.training.start_from = Some(dir.join(START_DIR));
        }
        Ok(config)
    }

    fn config_on_own_scenario(&self, dir: &Path) -> Result<Config, LabError> {
        let name = format!("{}.toml", self.config);
        let Some(scenario) = &self.scenario else {
            return Ok(Config::from_document(
                &self.base.join(name),
                &self.document,
            )?);
        };
        if !dir.join(SCENARIO_FILE).exists() {
            let file = self.base.join(name);
            let config = Config::from_document(&file, &self.document)?;
            self.refuse_other(dir, scenario_differences(scenario, &config))?;
            return Ok(config);
        }
        let mut document = anchored(&self.document, &self.base);
        document["environment"]["scenario"] = own_scenario();
        let config = Config::from_document(&dir.join(name), &document)?;
        self.refuse_other(dir, scenario_differences(scenario, &config))?;
        Ok(Config {
            document: self.document.clone(),
            base: self.base.clone(),
            ..config
        })
    }

    /// That config and scenario still say where they came from what they said. A file that is gone says nothing else.
    fn compare(&self, dir: &Path) -> Result<(), LabError> {
        let file = self.base.join(format!("{}.toml", self.config));
        let mut differences = vec![];
        if let Ok(text) = fs::read_to_string(&file) {
            match text.parse::<toml::Table>() {
                Ok(table) => {
                    let mut now = serde_json::to_value(table).unwrap_or_default();
                    self.keep_given(&mut now);
                    differ("", &self.document, &now, &mut differences);
                }
                Err(error) => differences.push(format!("it is no TOML now ({})", error.message())),
            }
        }
        if let (true, Some(scenario)) = (differences.is_empty(), &self.scenario) {
            match Config::from_document(&file, &self.document) {
                Ok(config) => differences = scenario_differences(scenario, &config),
                Err(error) if self.has_scenario_file() => differences.push(error.to_string()),
                Err(_) => {}
            }
        }
        self.refuse_other(dir, differences)
    }

    /// What may have been named on the command line. Whether a log is the same still, the learner knows; of the policy
    /// that it began from the run has a copy; where a service is makes no difference.
    fn keep_given(&self, now: &mut Value) {
        for (section, key) in Overrides::KEYS {
            let was = self.document.get(section).and_then(|own| own.get(key));
            if let (Some(was), Some(now)) = (was, now.as_object_mut()) {
                let nothing = || Value::Object(serde_json::Map::new());
                let own = now.entry(section).or_insert_with(nothing);
                if let Some(own) = own.as_object_mut() {
                    own.insert(key.to_owned(), was.clone());
                }
            }
        }
    }

    fn has_scenario_file(&self) -> bool {
        let name = self.document["environment"]["scenario"].as_str();
        name.is_some_and(|name| self.base.join(name).exists())
    }

    fn refuse_other(&self, dir: &Path, differences: Vec<String>) -> Result<(), LabError> {
        if differences.is_empty() {
            return Ok(());
        }
        Err(LabError::Changed {
            dir: dir.to_owned(),
            differences,
        })
    }

    /// That the code is the one that trained the run so far.
    ///
    /// # Errors
    /// `OtherCode`, unless `changed` says to go on.
    pub(crate) fn check_code(&self, dir: &Path, changed: Changed) -> Result<(), LabError> {
        match self.other_code() {
            Some(trained_by) if changed == Changed::Refuse => Err(LabError::OtherCode {
                dir: dir.to_owned(),
                trained_by,
                this: CODE,
            }),
            _ => Ok(()),
        }
    }

    /// The versions that trained it, if they are not this one alone. A run of a build that wrote none down counts as
    /// this one's: nothing is known against it.
    pub(crate) fn other_code(&self) -> Option<String> {
        let is_other = self.code_versions.iter().any(|version| version != CODE);
        is_other.then(|| self.code_versions.join(", then "))
    }
}

/// Writes config and scenario into the directory of a run, so that it stands for itself with the copy of the policy that
/// it begins from.
pub(crate) fn write_config(dir: &Path, config: &Config) -> Result<(), LabError> {
    let mut document = with_scenario_in(dir, config)?;
    if config.training.start_from.is_some() {
        document["training"]["start_from"] = format!("./{START_DIR}").into();
    }
    write_file(&dir.join(CONFIG_FILE), toml::to_string(&document)?)
}

/// Writes config and scenario into the directory of several runs.
pub(crate) fn write_config_as(dir: &Path, name: &str, config: &Config) -> Result<(), LabError> {
    let document = with_scenario_in(dir, config)?;
    write_file(&dir.join(name), toml::to_string(&document)?)
}

/// Writes the scenario, if there is one; the config as it may stand beside it.
fn with_scenario_in(dir: &Path, config: &Config) -> Result<Value, LabError> {
    let mut document = anchored(&config.document, &config.base);
    if let Some(scenario) = scenario_of(config) {
        write_file(&dir.join(SCENARIO_FILE), toml::to_string(scenario)?)?;
        document["environment"]["scenario"] = own_scenario();
    }
    Ok(document)
}

/// A config that may stand anywhere: what it names by a relative path, and is not copied, by its absolute
/// one. `base`: where the relative ones start.
fn anchored(document: &Value, base: &Path) -> Value {
    let mut document = document.clone();
    for (section, key) in NOT_COPIED {
        let named = document.get_mut(section).and_then(|own| own.get_mut(key));
        if let Some(path) = named {
            let absolute = path.as_str().map(|name| base.join(name));
            *path = absolute.map_or(Value::Null, |own| own.to_string_lossy().into());
        }
    }
    document
}

/// How the config in the directory of a run names the scenario beside it.
fn own_scenario() -> Value {
    format!("./{SCENARIO_FILE}").into()
}

fn scenario_differences(was: &Value, config: &Config) -> Vec<String> {
    let is = scenario(config).unwrap_or(Value::Null);
    let mut differences = vec![];
    if *was != is {
        differ("environment.scenario", was, &is, &mut differences);
    }
    differences
}

/// What the files begin with that hold what a learner remembers, within the directory of a run.
pub(crate) const MEMORY_FILES: &str = "memory-";

fn memory_file(number: u64) -> String {
    format!("{MEMORY_FILES}{number}.safetensors")
}

/// Writes what a learner remembers, beside what was written before: the state that is on disk still names that.
pub(crate) fn save_memory(dir: &Path, number: u64, memory: &[u8]) -> Result<(), LabError> {
    let path = dir.join(memory_file(number));
    durable::replace(&path, memory).map_err(|source| LabError::Write { path, source })
}

/// Removes what learners remembered before; `kept` is what the state names.
pub(crate) fn remove_memories(dir: &Path, kept: Option<u64>) -> Result<(), LabError> {
    let kept = kept.map(memory_file);
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(MEMORY_FILES) && Some(&name) != kept.as_ref() {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| LabError::Write { path, source })?;
        }
    }
    Ok(())
}

/// What the scenario of a config says, where there is one.
pub(crate) fn scenario(config: &Config) -> Option<Value> {
    serde_json::to_value(scenario_of(config)?).ok()
}

/// The one host that a config plays on, if it is only one.
pub(crate) fn scenario_of(config: &Config) -> Option<&Scenario> {
    match &config.environment {
        EnvironmentConfig::SimHost {
            source: HostSource::Scenario(scenario),
            ..
        } => Some(scenario),
        _ => None,
    }
}

/// Adds a line for each key in which two documents differ.
pub(crate) fn differ(path: &str, was: &Value, is: &Value, out: &mut Vec<String>) {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for key in keys {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                let nothing = Value::Null;
                let of = |object: &serde_json::Map<String, Value>| {
                    object.get(key).cloned().unwrap_or(nothing.clone())
                };
                differ(&path, &of(was), &of(is), out);
            }
        }
        _ if was == is => {}
        _ => {
            let text = |value: &Value| match value {
                Value::Null => "nothing".to_owned(),
                value => value.to_string(),
            };
            out.push(format!("{path} was {} and is {}", text(was), text(is)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_config_that_moves_takes_its_paths_along() {
        let document =
            json!({"data": {"log": "../log"}, "training": {"start_from": "/p", "clip": 1}});
        let anchored = anchored(&document, Path::new("/a/b"));
        let wanted =
            json!({"data": {"log": "/a/b/../log"}, "training": {"start_from": "/p", "clip": 1}});
        assert_eq!(anchored, wanted);
    }

    #[test]
    fn each_key_that_differs_is_named_with_both_values() {
        let was =
            json!({"seed": 1, "training": {"clip": 0.2, "epochs": 4}, "network": {"hidden": 8}});
        let is = json!({"seed": 1, "training": {"clip": 0.3, "epochs": 4, "target_kl": 0.1}});
        let mut found = vec![];
        differ("", &was, &is, &mut found);
        assert_eq!(
            found,
            [
                "network was {\"hidden\":8} and is nothing",
                "training.clip was 0.2 and is 0.3",
                "training.target_kl was nothing and is 0.1",
            ]
        );
    }
}
