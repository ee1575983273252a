//! Experiment configs: TOML in, a checked [`Config`] or every problem out, before anything is
//! touched.

use std::fmt;
use std::path::{Path, PathBuf};

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::presets;
use blkpilot_env::sim::{Generator, Scenario, ScenarioErrors};
use blkpilot_learn::{Discount, PpoConfig, Schedule};
use blkpilot_models::{Architecture, scenario_file};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::{Table, Value};

use crate::seeds;

/// Version of the format that this build reads.
pub const VERSION: u32 = 1;
/// Most host-steps of one rollout, over all environments: every turn of it is held in memory.
pub const MOST_ROLLOUT_STEPS: usize = 1 << 18;

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
    /// How to compare what was learnt.
    pub evaluation: Evaluation,
    /// The file as it was written, for the checkpoint's manifest.
    pub document: serde_json::Value,
    /// The directory at which its relative paths start.
    pub base: PathBuf,
}

/// What to learn on.
#[derive(Debug, Clone, PartialEq)]
pub enum EnvironmentConfig {
    /// CartPole-v1.
    CartPole,
    /// A simulated KVM host.
    SimHost {
        /// Where its scenarios come from.
        source: HostSource,
        /// Weights of the reward.
        reward: RewardConfig,
    },
}

/// Where the scenarios of a simulated host come from.
#[derive(Debug, Clone, PartialEq)]
pub enum HostSource {
    /// Always the same.
    Scenario(Box<Scenario>),
    /// Drawn anew for each episode.
    Generated(Generator),
}

/// How to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Host-steps to play, over all environments.
    pub env_steps: u64,
    /// Environments played together.
    pub envs: usize,
    /// Host-steps between two checkpoints.
    pub checkpoint_every: u64,
    /// The learner.
    pub ppo: PpoConfig,
}

/// How to compare what was learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Episodes per policy, each on a seed of its own.
    pub episodes: usize,
    /// Number of the first of these seeds; the others follow.
    pub first_seed: u64,
}

impl Evaluation {
    /// Greatest `first_seed`: far enough below [`seeds::evaluation`]'s range that no count of
    /// episodes leaves it.
    pub const GREATEST_FIRST_SEED: u64 = 1_000_000_000_000;

    /// Seed of one of its episodes, from 0.
    #[must_use]
    pub fn seed(&self, episode: usize) -> u64 {
        seeds::evaluation(self.first_seed + episode as u64)
    }
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

impl Config {
    /// Name of the learner.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        "ppo"
    }

    /// Reads a config. Relative paths in it start at the file's directory.
    ///
    /// # Errors
    /// `Read`, `Syntax`, or `Invalid` with everything that is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(file, &text)
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
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                file: file.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
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
    evaluation: Option<Table>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEnvironment {
    kind: Option<String>,
    scenario: Option<String>,
    generator: Option<Table>,
    reward: Option<Table>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawNetwork {
    hidden: Option<usize>,
    channel_hidden: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTraining {
    env_steps: Option<u64>,
    envs: Option<usize>,
    steps: Option<usize>,
    epochs: Option<usize>,
    minibatch: Option<usize>,
    gamma: Option<f64>,
    gae_lambda: Option<f64>,
    learning_rate: Option<f64>,
    learning_rate_schedule: Option<RawSchedule>,
    clip: Option<f64>,
    clip_schedule: Option<RawSchedule>,
    entropy: Option<f64>,
    entropy_schedule: Option<RawSchedule>,
    value_coefficient: Option<f64>,
    value_clip: Option<f64>,
    max_grad_norm: Option<f64>,
    target_kl: Option<f64>,
    checkpoint_every: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawSchedule {
    #[default]
    Constant,
    LinearToZero,
}

impl RawSchedule {
    fn of(this: Option<Self>, start: f64) -> Schedule {
        match this.unwrap_or_default() {
            Self::Constant => Schedule::Constant(start),
            Self::LinearToZero => Schedule::LinearToZero(start),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEvaluation {
    episodes: Option<usize>,
    first_seed: Option<u64>,
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
    let environment = environment.and_then(|table| self::environment(table, base, check));
    let network = raw.network.unwrap_or_default();
    let architecture = architecture(network, check);
    let training = check.need("training", raw.training, "add [training]");
    let training = training.and_then(|table| self::training(table, check));
    let evaluation = evaluation(raw.evaluation.unwrap_or_default(), check);
    let seed = raw.seed.unwrap_or(1);
    Some(Config {
        name: String::new(),
        seed,
        environment: environment?,
        architecture,
        training: training?,
        evaluation,
        document: serde_json::Value::Null,
        base: PathBuf::new(),
    })
}

fn environment(table: Table, base: &Path, check: &mut Check) -> Option<EnvironmentConfig> {
    let raw: RawEnvironment = check.read("environment", table);
    let kind = check.need("environment.kind", raw.kind.clone(), "cartpole or sim_host");
    match kind.as_deref() {
        Some("cartpole") => {
            let of_hosts = [
                ("scenario", raw.scenario.is_some()),
                ("generator", raw.generator.is_some()),
                ("reward", raw.reward.is_some()),
            ];
            for (key, _) in of_hosts.iter().filter(|(_, is_given)| *is_given) {
                let path = format!("environment.{key}");
                check.problem(path, "is only for kind = \"sim_host\": remove it");
            }
            Some(EnvironmentConfig::CartPole)
        }
        Some("sim_host") => sim_host(raw, base, check),
        Some(other) => {
            check.problem(
                "environment.kind",
                format!("= \"{other}\" must be cartpole or sim_host"),
            );
            None
        }
        None => None,
    }
}

fn sim_host(raw: RawEnvironment, base: &Path, check: &mut Check) -> Option<EnvironmentConfig> {
    let reward: RewardConfig = check.read("environment.reward", raw.reward.unwrap_or_default());
    for (key, problem) in reward.problems() {
        check.problem(format!("environment.reward.{key}"), problem);
    }
    let source = match (raw.scenario, raw.generator) {
        (Some(name), None) => fixed(&name, base, check),
        (None, Some(table)) => Some(HostSource::Generated(generator(table, check))),
        (None, None) => {
            let known = presets::NAMES.join(", ");
            let text = format!(
                "is missing: add [environment.generator], or scenario = a TOML file or one of {known}"
            );
            check.problem("environment.generator", text);
            None
        }
        (Some(_), Some(_)) => {
            check.problem(
                "environment.scenario",
                "stands beside environment.generator: keep one of them",
            );
            None
        }
    };
    Some(EnvironmentConfig::SimHost {
        source: source?,
        reward,
    })
}

fn fixed(name: &str, base: &Path, check: &mut Check) -> Option<HostSource> {
    match scenario_file::load(name, base) {
        Ok(scenario) => Some(HostSource::Scenario(Box::new(scenario))),
        Err(error) => {
            for line in error.lines() {
                check.problem("environment.scenario", format!("= \"{name}\": {line}"));
            }
            None
        }
    }
}

fn generator(table: Table, check: &mut Check) -> Generator {
    let generator: Generator = check.read("environment.generator", table);
    if let Err(ScenarioErrors(problems)) = generator.validate() {
        for (key, problem) in problems {
            check.problem(format!("environment.generator.{key}"), problem);
        }
    }
    generator
}

fn architecture(table: Table, check: &mut Check) -> Architecture {
    let raw: RawNetwork = check.read("network", table);
    let default = Architecture::default();
    let is_width = |width: usize| (1..=Architecture::WIDEST).contains(&width);
    let wanted = format!("must be in [1, {}]", Architecture::WIDEST);
    check.that("network.hidden", raw.hidden, is_width, &wanted);
    check.that(
        "network.channel_hidden",
        raw.channel_hidden,
        is_width,
        &wanted,
    );
    Architecture {
        hidden: raw.hidden.unwrap_or(default.hidden),
        channel_hidden: raw.channel_hidden.unwrap_or(default.channel_hidden),
        ..default
    }
}

fn training(table: Table, check: &mut Check) -> Option<Training> {
    let raw: RawTraining = check.read("training", table);
    let mut at = Section {
        name: "training",
        check,
    };
    let count = |n: usize| n >= 1;
    let share = |v: f64| (0.0..=1.0).contains(&v);
    let envs = at.need(
        "envs",
        raw.envs,
        |n| (1..=4096).contains(&n),
        "must be in [1, 4096]",
    );
    let steps = at.need(
        "steps",
        raw.steps,
        |n| (1..=65_536).contains(&n),
        "must be in [1, 65536]",
    );
    let epochs = at.need(
        "epochs",
        raw.epochs,
        |n| (1..=1000).contains(&n),
        "must be in [1, 1000]",
    );
    let minibatch = at.need("minibatch", raw.minibatch, count, "must be at least 1");
    let gamma = at.need("gamma", raw.gamma, share, "must be in [0, 1]");
    let gae_lambda = at.need("gae_lambda", raw.gae_lambda, share, "must be in [0, 1]");
    let learning_rate = at.need(
        "learning_rate",
        raw.learning_rate,
        |v| v > 0.0 && v <= 1.0,
        "must be in (0, 1]",
    );
    let clip = at.need("clip", raw.clip, |v| v > 0.0, "must be > 0");
    let entropy = at.may("entropy", raw.entropy, |v| v >= 0.0, "must be at least 0");
    let value = at.may(
        "value_coefficient",
        raw.value_coefficient,
        |v| v >= 0.0,
        "must be at least 0",
    );
    let value_clip = at.may(
        "value_clip",
        raw.value_clip,
        |v| v > 0.0,
        "must be > 0; leave it out for no clip",
    );
    let max_grad_norm = at.may(
        "max_grad_norm",
        raw.max_grad_norm,
        |v| v > 0.0,
        "must be > 0",
    );
    let target_kl = at.may(
        "target_kl",
        raw.target_kl,
        |v| v > 0.0,
        "must be > 0; leave it out for no target",
    );
    let every = at.may(
        "checkpoint_every",
        raw.checkpoint_every,
        |n| n >= 1,
        "must be at least 1",
    );
    let rollout = envs.unwrap_or(1).saturating_mul(steps.unwrap_or(1));
    if rollout > MOST_ROLLOUT_STEPS {
        let text = format!(
            "= {rollout} host-steps, all held in memory: must be at most {MOST_ROLLOUT_STEPS}"
        );
        at.check.problem("training.envs × training.steps", text);
    }
    let least = 2 * rollout.min(MOST_ROLLOUT_STEPS) as u64;
    let wanted = format!(
        "must be at least {least}: one rollout of envs × steps to warm up and one to learn from"
    );
    let env_steps = at.need("env_steps", raw.env_steps, |n| n >= least, &wanted);
    let env_steps = env_steps?;
    Some(Training {
        env_steps,
        envs: envs?,
        checkpoint_every: every.unwrap_or(env_steps.div_ceil(10)),
        ppo: PpoConfig {
            steps: steps?,
            epochs: epochs?,
            minibatch: minibatch?,
            discount: Discount {
                gamma: gamma? as f32,
                lambda: gae_lambda? as f32,
            },
            learning_rate: RawSchedule::of(raw.learning_rate_schedule, learning_rate?),
            clip: RawSchedule::of(raw.clip_schedule, clip?),
            entropy_coefficient: RawSchedule::of(raw.entropy_schedule, entropy.unwrap_or(0.0)),
            value_clip,
            value_coefficient: value.unwrap_or(0.5),
            max_grad_norm: max_grad_norm.unwrap_or(0.5),
            target_kl,
        },
    })
}

fn evaluation(table: Table, check: &mut Check) -> Evaluation {
    let raw: RawEvaluation = check.read("evaluation", table);
    let is_sane = |n: usize| (2..=100_000).contains(&n);
    check.that(
        "evaluation.episodes",
        raw.episodes,
        is_sane,
        "must be in [2, 100000]",
    );
    let greatest = Evaluation::GREATEST_FIRST_SEED;
    check.that(
        "evaluation.first_seed",
        raw.first_seed,
        |seed| seed <= greatest,
        &format!("must be in [0, {greatest}]"),
    );
    Evaluation {
        episodes: raw.episodes.unwrap_or(20),
        first_seed: raw.first_seed.unwrap_or(0),
    }
}

/// The problems found so far.
#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn problem(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem {
            path: path.into(),
            text: text.into(),
        });
    }

    /// Reads a table whose keys all have defaults. serde stops at the first problem, so each key is
    /// tried on its own first; those that fail are reported and left out.
    fn read<T: DeserializeOwned + Default>(&mut self, path: &str, table: Table) -> T {
        let mut good = Table::new();
        for (key, value) in table {
            let alone = Table::from_iter([(key.clone(), value.clone())]);
            match T::deserialize(Value::Table(alone)) {
                Ok(_) => {
                    good.insert(key, value);
                }
                Err(error) => {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    self.problem(path, complaint(&key, &value, &error));
                }
            }
        }
        T::deserialize(Value::Table(good)).unwrap_or_default()
    }

    fn need<T>(&mut self, path: &str, value: Option<T>, wanted: &str) -> Option<T> {
        let is_wrong = self.problems.iter().any(|problem| problem.path == path);
        if value.is_none() && !is_wrong {
            self.problem(path, format!("is missing: {wanted}"));
        }
        value
    }

    fn that<T: Copy + fmt::Display>(
        &mut self,
        path: &str,
        value: Option<T>,
        is_good: impl Fn(T) -> bool,
        wanted: &str,
    ) {
        if let Some(value) = value.filter(|value| !is_good(*value)) {
            self.problem(path, format!("= {value} {wanted}"));
        }
    }
}

/// What serde says, as `= VALUE must be …` or `is unknown: …`.
fn complaint(key: &str, value: &Value, error: &toml::de::Error) -> String {
    let message = error.message();
    match message.strip_prefix(&format!("unknown field `{key}`, ")) {
        Some(expected) => format!("is unknown: {expected}"),
        None => format!("= {value}: {message}"),
    }
}

/// One section of the config.
struct Section<'a> {
    name: &'static str,
    check: &'a mut Check,
}

impl Section<'_> {
    fn need<T: Copy + fmt::Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        is_good: impl Fn(T) -> bool,
        wanted: &str,
    ) -> Option<T> {
        let path = format!("{}.{key}", self.name);
        self.check.need(&path, value, &format!("it {wanted}"));
        self.may(key, value, is_good, wanted)
    }

    fn may<T: Copy + fmt::Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        is_good: impl Fn(T) -> bool,
        wanted: &str,
    ) -> Option<T> {
        self.check
            .that(&format!("{}.{key}", self.name), value, is_good, wanted);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        version = 1
        [environment]
        kind = "sim_host"
        [environment.generator]
        disks = [1, 3]
        [training]
        env_steps = 1000
        envs = 4
        steps = 8
        epochs = 2
        minibatch = 64
        gamma = 0.9
        gae_lambda = 0.9
        learning_rate = 1e-3
        clip = 0.2
    "#;

    fn problems(text: &str) -> Vec<String> {
        match Config::parse(Path::new("x.toml"), text) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = Config::parse(Path::new("configs/x.toml"), GOOD).unwrap();
        assert_eq!(config.name, "x");
        assert_eq!(config.architecture, Architecture::default());
        assert_eq!(config.training.checkpoint_every, 100);
        assert_eq!(config.evaluation.first_seed, 0);
        assert_eq!(config.training.ppo.clip, Schedule::Constant(0.2));
        let EnvironmentConfig::SimHost {
            source: HostSource::Generated(generator),
            ..
        } = config.environment
        else {
            panic!("a generator was given");
        };
        assert_eq!(generator.disks, (1, 3));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_path() {
        let text = GOOD
            .replace("version = 1", "version = 7")
            .replace("clip = 0.2", "clip = -0.2\nclipp = 1")
            .replace("gamma = 0.9\n", "")
            .replace("epochs = 2", "epochs = \"two\"")
            .replace("disks = [1, 3]", "disks = [3, 1]\ncolour = \"red\"")
            + "[evaluation]\nepisodes = 1\n[extra]\n";
        let found = problems(&text);
        let wanted = [
            "extra is unknown: expected one of `version`",
            "version = 7 must be 1",
            "environment.generator.colour is unknown",
            "environment.generator.disks = [3, 1] must be a range",
            "training.clipp is unknown",
            "training.epochs = \"two\": invalid type",
            "training.gamma is missing",
            "training.clip = -0.2 must be > 0",
            "evaluation.episodes = 1 must be",
        ];
        for start in wanted {
            assert!(
                found.iter().any(|line| line.starts_with(start)),
                "no `{start}` in {found:#?}"
            );
        }
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
    }

    #[test]
    fn a_rollout_is_bounded_and_no_product_overflows() {
        let rollout = |envs: &str, steps: &str| {
            let text = GOOD
                .replace("env_steps = 1000", "env_steps = 1_000_000")
                .replace("envs = 4", &format!("envs = {envs}"))
                .replace("        steps = 8", &format!("        steps = {steps}"));
            Config::parse(Path::new("x.toml"), &text).map_err(|error| error.to_string())
        };
        assert!(rollout("4096", "64").is_ok());
        let wanted = "x.toml: training.envs × training.steps = 268435456 host-steps, all held in \
                      memory: must be at most 262144";
        assert_eq!(rollout("4096", "65_536").unwrap_err(), wanted);
        let most = i64::MAX.to_string();
        let error = rollout(&most, &most).unwrap_err();
        assert_eq!(error.lines().count(), 3, "{error}");
    }

    #[test]
    fn evaluation_seeds_follow_the_first_and_stay_in_their_range() {
        let parse = |first: &str| {
            let text = format!("{GOOD}[evaluation]\nepisodes = 100_000\nfirst_seed = {first}\n");
            Config::parse(Path::new("x.toml"), &text).map_err(|error| error.to_string())
        };
        let evaluation = parse("10_000").unwrap().evaluation;
        assert_eq!(evaluation.seed(7), seeds::evaluation(10_007));
        let evaluation = parse("1_000_000_000_000").unwrap().evaluation;
        assert!(evaluation.seed(99_999) > evaluation.seed(0));
        let error = parse("1_000_000_000_001").unwrap_err();
        assert!(
            error.contains("evaluation.first_seed = 1000000000001 must be in"),
            "{error}"
        );
        assert!(parse("-1").is_err());
    }

    #[test]
    fn an_error_names_the_file_in_each_line() {
        let text = GOOD
            .replace("clip = 0.2", "clip = -0.2")
            .replace("envs = 4", "envs = 0");
        let error = Config::parse(Path::new("experiments/configs/x.toml"), &text).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("experiments/configs/x.toml: training.clip = -0.2 must be > 0"),
            "{text}"
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with("experiments/configs/x.toml: ")),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_scenario_lists_those_that_exist() {
        let text = GOOD.replace(
            "[environment.generator]\n        disks = [1, 3]",
            "scenario = \"no_such\"",
        );
        assert!(problems(&text)[0].contains("identical_disks"));
    }

    /// GOOD on the scenario of a file beside the config, `text`.
    fn on_a_file(text: &str) -> (tempfile::TempDir, Result<Config, ConfigError>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("own.toml"), text).unwrap();
        let config = GOOD.replace(
            "[environment.generator]\n        disks = [1, 3]",
            "scenario = \"own.toml\"",
        );
        let config = Config::parse(&dir.path().join("x.toml"), &config);
        (dir, config)
    }

    #[test]
    fn a_scenario_file_beside_the_config_is_trained_on() {
        let text = presets::text("capped_device").unwrap();
        let (_dir, config) = on_a_file(&text.replace("capped_device", "own"));
        let EnvironmentConfig::SimHost {
            source: HostSource::Scenario(scenario),
            ..
        } = config.unwrap().environment
        else {
            panic!("a scenario was given");
        };
        assert_eq!(scenario.name, "own");
        let expected = Scenario {
            name: "own".to_owned(),
            ..presets::capped_device()
        };
        assert_eq!(*scenario, expected);
    }

    #[test]
    fn every_problem_of_a_scenario_file_is_named_with_the_file() {
        let text = presets::text("capped_device").unwrap();
        let broken = text
            .replace("memory_gib = ", "memory_gib = -")
            .replace("cpus = 1", "cpus = 0");
        let (dir, config) = on_a_file(&broken);
        let text = config.unwrap_err().to_string();
        let file = dir.path().join("own.toml");
        assert!(text.lines().count() >= 2, "{text}");
        for line in text.lines() {
            let part = format!("environment.scenario = \"own.toml\": {}: ", file.display());
            assert!(line.contains(&part), "{line}");
        }
        for key in ["memory_gib", "channels[0].cpus"] {
            assert!(text.contains(key), "no {key} in {text}");
        }
    }

    #[test]
    fn hosts_keys_are_refused_for_cartpole() {
        let found = problems(&GOOD.replace("sim_host", "cartpole"));
        assert_eq!(
            found,
            ["environment.generator is only for kind = \"sim_host\": remove it"]
        );
    }
}
