//! What to learn on: `[environment]`.

use std::path::{Path, PathBuf};

use blkpilot_env::reward::{RewardConfig, WeightRanges};
use blkpilot_env::sim::presets;
use blkpilot_env::sim::{Generator, Scenario, ScenarioErrors};
use blkpilot_models::scenario_file;
use serde::Deserialize;
use toml::Table;

use super::check::Check;
use super::remote::{self, RemoteConfig};

/// What to learn on.
#[derive(Debug, Clone, PartialEq)]
pub enum EnvironmentConfig {
    /// CartPole-v1.
    CartPole,
    /// A simulated KVM host.
    SimHost {
        /// Where its scenarios come from.
        source: HostSource,
        /// Weights of the reward that policies are compared under, and trained under unless there are ranges.
        reward: RewardConfig,
        /// What the weights of each training episode are drawn from.
        ranges: Option<Box<WeightRanges>>,
    },
    /// An environment at a running service.
    Remote(RemoteConfig),
}

impl EnvironmentConfig {
    /// Whether what is done there is done to guests.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Remote(remote) if remote.is_host())
    }
}

/// Where the scenarios of a simulated host come from.
#[derive(Debug, Clone, PartialEq)]
pub enum HostSource {
    /// Always the same.
    Scenario(Box<Scenario>),
    /// Drawn anew for each episode.
    Generated(Generator),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawEnvironment {
    kind: Option<String>,
    pub(super) scenario: Option<String>,
    pub(super) generator: Option<Table>,
    pub(super) reward: Option<Table>,
    pub(super) reward_ranges: Option<Table>,
    pub(super) address: Option<String>,
    pub(super) host: Option<String>,
    pub(super) force_reason: Option<String>,
    pub(super) cart_pole: Option<bool>,
    pub(super) episode_steps: Option<u32>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
}

impl RawEnvironment {
    /// The keys that only an environment at a service has, and whether they are given.
    fn of_remote(&self) -> [(&'static str, bool); 9] {
        [
            ("address", self.address.is_some()),
            ("host", self.host.is_some()),
            ("force_reason", self.force_reason.is_some()),
            ("cart_pole", self.cart_pole.is_some()),
            ("episode_steps", self.episode_steps.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("cert_file", self.cert_file.is_some()),
            ("key_file", self.key_file.is_some()),
            ("token_file", self.token_file.is_some()),
        ]
    }
}

pub(super) fn environment(
    table: Table,
    base: &Path,
    check: &mut Check,
) -> Option<EnvironmentConfig> {
    let raw: RawEnvironment = check.read("environment", table);
    let kinds = "cartpole, sim_host or remote";
    let kind = check.need("environment.kind", raw.kind.clone(), kinds);
    if kind.as_deref() != Some("remote") {
        for (key, _) in raw.of_remote().iter().filter(|(_, is_given)| *is_given) {
            let path = format!("environment.{key}");
            check.problem(path, "is only for kind = \"remote\": remove it");
        }
    }
    match kind.as_deref() {
        Some("cartpole") => {
            let of_hosts = [
                ("scenario", raw.scenario.is_some()),
                ("generator", raw.generator.is_some()),
                ("reward", raw.reward.is_some()),
                ("reward_ranges", raw.reward_ranges.is_some()),
            ];
            for (key, _) in of_hosts.iter().filter(|(_, is_given)| *is_given) {
                let path = format!("environment.{key}");
                check.problem(path, "is only for kind = \"sim_host\": remove it");
            }
            Some(EnvironmentConfig::CartPole)
        }
        Some("sim_host") => sim_host(raw, base, check),
        Some("remote") => remote::remote(raw, base, check).map(EnvironmentConfig::Remote),
        Some(other) => {
            check.problem("environment.kind", format!("= \"{other}\" must be {kinds}"));
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
    let ranges = raw.reward_ranges.map(|table| {
        let ranges: WeightRanges = check.read("environment.reward_ranges", table);
        for (key, problem) in ranges.problems() {
            check.problem(format!("environment.reward_ranges.{key}"), problem);
        }
        Box::new(ranges)
    });
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
        ranges,
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
