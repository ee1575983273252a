//! Where a run stands when its policy is saved, so that it can go on as if it had not been interrupted.

use std::fs;
use std::path::{Path, PathBuf};

use blkpilot_agent::durable;
use blkpilot_learn::{CollectorState, EpisodeEnd};
use blkpilot_models::Checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Config, EnvironmentConfig, HostSource};
use crate::curve::Point;
use crate::start::Start;
use crate::train::POLICY_DIR;
use crate::{LabError, json_text};

/// File of the state within the directory of a run.
pub const STATE_FILE: &str = "state.json";
const FORMAT: u32 = 2;

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
    /// Recent episodes, and the points of the curve.
    pub(crate) recent: Vec<EpisodeEnd>,
    pub(crate) points: Vec<Point>,
    /// Seconds of training so far.
    pub(crate) wall_s: f64,
    pub(crate) next_checkpoint: u64,
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

    /// The config of the run, if it is still what it was.
    pub(crate) fn config(&self, dir: &Path) -> Result<Config, LabError> {
        let file = self.base.join(format!("{}.toml", self.config));
        let config = Config::from_document(&file, &self.document)?;
        self.compare(dir, &config)?;
        Ok(config)
    }

    /// That the config is the one of the run.
    ///
    /// # Errors
    /// `Changed`, with all that differs.
    pub(crate) fn compare(&self, dir: &Path, config: &Config) -> Result<(), LabError> {
        let mut differences = vec![];
        differ("", &self.document, &config.document, &mut differences);
        let scenario = scenario(config);
        if differences.is_empty() && scenario != self.scenario {
            let (was, is) = (self.scenario.clone(), scenario);
            let nothing = Value::Null;
            differ(
                "environment.scenario",
                was.as_ref().unwrap_or(&nothing),
                is.as_ref().unwrap_or(&nothing),
                &mut differences,
            );
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(LabError::Changed {
            dir: dir.to_owned(),
            differences,
        })
    }
}

/// What the scenario of a config says, where there is one.
pub(crate) fn scenario(config: &Config) -> Option<Value> {
    match &config.environment {
        EnvironmentConfig::SimHost {
            source: HostSource::Scenario(scenario),
            ..
        } => serde_json::to_value(scenario).ok(),
        _ => None,
    }
}

/// Adds a line for each key in which two documents differ.
fn differ(path: &str, was: &Value, is: &Value, out: &mut Vec<String>) {
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
