//! Experiment configs: TOML in, a checked [`Config`] or every problem out, before anything is
//! touched. Each section has a file of its own, and so has each learner's part of `[training]`.

mod check;
mod data;
mod environment;
mod evaluation;
mod network;
mod remote;
mod training;

use std::fmt;
use std::path::{Path, PathBuf};

use blkpilot_models::Architecture;
use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use check::Check;

pub use data::Data;
pub use environment::{EnvironmentConfig, HostSource};
pub use evaluation::Evaluation;
pub use remote::{RemoteConfig, RemoteKind};
pub use training::{LearnerConfig, MOST_REMEMBERED, MOST_ROLLOUT_STEPS, OfflineTraining, Training};

/// Version of the format that this build reads.
pub const VERSION: u32 = 1;

/// An experiment that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file's name without its ending.
    pub name: String,
    /// Seed of the run, unless another is given.
    pub seed: u64,
    /// What to learn on.
    pub environment: EnvironmentConfig,
    /// Kind and sizes of the network.
    pub architecture: Architecture,
    /// How to learn.
    pub training: Training,
    /// What a learner from a log learns from.
    pub data: Option<Data>,
    /// How to compare what was learnt.
    pub evaluation: Evaluation,
    /// The file as it was written, for the checkpoint's manifest.
    pub document: serde_json::Value,
    /// The directory at which its relative paths start.
    pub base: PathBuf,
}

/// One thing that is wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, such as `training.clip`.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.text)
    }
}

/// Why a config was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read it; configs that come with blkpilot are in experiments/configs", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What the parser says, with line and column.
        message: String,
    },
    /// The file says something that cannot be run.
    #[error("{}", lines(file, problems))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

fn lines(file: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|p| format!("{}: {p}", file.display()))
        .collect();
    lines.join("\n")
}

/// What the command line says in place of a config.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Of `environment.address`.
    pub address: Option<String>,
    /// Of `data.log`; the path starts where the program was started, as does the next.
    pub log: Option<PathBuf>,
    /// Of `training.start_from`.
    pub start_from: Option<PathBuf>,
}

impl Overrides {
    /// Keys that may be given so, by section.
    pub(crate) const KEYS: [(&str, &str); 3] = [
        ("environment", "address"),
        ("data", "log"),
        ("training", "start_from"),
    ];

    /// Writes them into a document, as if they had stood there.
    fn write(&self, table: &mut Table) {
        let path = |dir: &Option<PathBuf>| {
            let dir = dir.as_deref()?;
            let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
            Some(dir.to_string_lossy().into_owned())
        };
        let given = [
            self.address.clone(),
            path(&self.log),
            path(&self.start_from),
        ];
        for ((section, key), value) in Self::KEYS.into_iter().zip(given) {
            let Some(value) = value else { continue };
            let section = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(key.to_owned(), Value::String(value));
            }
        }
    }
}

impl Config {
    /// Name of the learner.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        self.training.learner.name()
    }

    /// Reads a config. Relative paths in it start at the file's directory.
    ///
    /// # Errors
    /// `Read`, `Syntax`, or `Invalid` with everything that is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with(file, &Overrides::default())
    }

    /// As [`Config::load`], with what the command line says in its place.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(file: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse_with(file, &text, overrides)
    }

    /// As [`Config::load`], of what [`Config::document`] says of the file.
    ///
    /// # Errors
    /// `Syntax` if it is no document of a config, `Invalid`.
    pub fn from_document(file: &Path, document: &serde_json::Value) -> Result<Self, ConfigError> {
        let text = toml::to_string(document).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            message: error.to_string(),
        })?;
        Self::parse(file, &text)
    }

    /// As [`Config::load`], of a text that was read from `file`.
    ///
    /// # Errors
    /// `Syntax`, `Invalid`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(file, text, &Overrides::default())
    }

    fn parse_with(file: &Path, text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut table: Table =
            text.parse()
                .map_err(|error: toml::de::Error| ConfigError::Syntax {
                    file: file.to_owned(),
                    message: error.to_string().trim_end().to_owned(),
                })?;
        overrides.write(&mut table);
        let document = serde_json::to_value(&table).unwrap_or_default();
        let name = file
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let mut check = Check::default();
        let base = file.parent().unwrap_or(Path::new(""));
        match validate(table, base, &mut check) {
            Some(checked) if check.problems.is_empty() => Ok(Self {
                name,
                document,
                base: std::path::absolute(base).unwrap_or_else(|_| base.to_owned()),
                ..checked
            }),
            _ => Err(ConfigError::Invalid {
                file: file.to_owned(),
                problems: check.problems,
            }),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    version: Option<u32>,
    seed: Option<u64>,
    environment: Option<Table>,
    network: Option<Table>,
    training: Option<Table>,
    data: Option<Table>,
    evaluation: Option<Table>,
}

fn validate(table: Table, base: &Path, check: &mut Check) -> Option<Config> {
    let raw: RawConfig = check.read("", table);
    let version = check.need("version", raw.version, &format!("version = {VERSION}"));
    check.that(
        "version",
        version,
        |v| v == VERSION,
        &format!("must be {VERSION}, which this build reads"),
    );
    let environment = check.need("environment", raw.environment, "add [environment]");
    let environment = environment.and_then(|table| environment::environment(table, base, check));
    let has_network = raw.network.is_some();
    let network = raw.network.unwrap_or_default();
    let architecture = network::architecture(network, check);
    let training = check.need("training", raw.training, "add [training]");
    let training = training.and_then(|table| training::training(table, base, check));
    let learner = training.as_ref().map(|training| &training.learner);
    let data = data::data(raw.data, base, learner, check);
    check_together(environment.as_ref(), training.as_ref(), has_network, check);
    let evaluation = evaluation::evaluation(raw.evaluation.unwrap_or_default(), check);
    let seed = raw.seed.unwrap_or(1);
    Some(Config {
        name: String::new(),
        seed,
        environment: environment?,
        architecture,
        training: training?,
        data,
        evaluation,
        document: serde_json::Value::Null,
        base: PathBuf::new(),
    })
}

/// What sections say of each other.
fn check_together(
    environment: Option<&EnvironmentConfig>,
    training: Option<&Training>,
    has_network: bool,
    check: &mut Check,
) {
    let Some(training) = training else { return };
    let envs = training.envs;
    if envs > 1 && environment.is_some_and(EnvironmentConfig::is_live) {
        let text = format!("= {envs} must be 1: a live host can be one environment at a time");
        check.problem("training.envs", text);
    }
    let is_remote = matches!(environment, Some(EnvironmentConfig::Remote(_)));
    if is_remote && matches!(training.learner, LearnerConfig::Offline(_)) {
        let text = "= \"remote\" is only for learners that play: name what the log was written on, as a simulated host";
        check.problem("environment.kind", text);
    }
    if matches!(training.learner, LearnerConfig::Distil(_)) {
        check_planned(environment, check);
    }
    if has_network && training.start_from.is_some() {
        let text =
            "stands beside training.start_from, whose policy has its own: remove one of them";
        check.problem("network", text);
    }
}

/// What a planner can plan for.
fn check_planned(environment: Option<&EnvironmentConfig>, check: &mut Check) {
    match environment {
        Some(EnvironmentConfig::SimHost { source, .. }) => {
            let (key, has_schedulers) = match source {
                HostSource::Generated(generator) => ("generator", generator.schedulers),
                HostSource::Scenario(scenario) => ("scenario", scenario.schedulers),
            };
            if has_schedulers {
                let text = "has schedulers = true, and only the turns of disks are distilled: leave it out, or train with \
                            algorithm = \"ppo\"";
                check.problem(format!("environment.{key}"), text);
            }
        }
        Some(EnvironmentConfig::CartPole | EnvironmentConfig::Remote(_)) => {
            let text = "must be \"sim_host\" for algorithm = \"distil\": what it learns from is a planner of simulated hosts";
            check.problem("environment.kind", text);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests;
