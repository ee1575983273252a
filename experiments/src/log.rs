//! Decision logs of simulated hosts: the same rows, in the same files, as a service writes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::SimHost;
use blkpilot_env::{EnvSpec, Environment as _};
use blkpilot_log::{Config as WriterConfig, Player, play};
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy, RoundRobin};
use blkpilot_models::scenario_file;
use blkpilot_models::{Checkpoint, NetworkPolicy, Policy, Selection};
use serde::Serialize;

use crate::LabError;
use crate::compare::BASELINES;
use crate::config::{Config, EnvironmentConfig, HostSource};
use crate::seeds;

/// What is played, and written where.
#[derive(Debug)]
pub struct LogRun<'a> {
    /// A preset, a scenario's file, or an experiment's config.
    pub environment: &'a str,
    /// The name of a baseline, or the directory of a trained policy.
    pub policy: &'a str,
    /// How a trained policy's scores become a choice.
    pub selection: Selection,
    /// Probability with which a head is drawn from all that is allowed.
    pub epsilon: f64,
    /// Number of episodes.
    pub episodes: u64,
    /// Number of the first evaluation seed.
    pub first_seed: u64,
    /// The log's directory, in which no log must be yet.
    pub out: &'a Path,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Logged {
    /// Name of the host in the log.
    pub host: String,
    /// Name of the policy in the log.
    pub policy: String,
    /// Episodes that were played to their end.
    pub episodes: u64,
    /// Joint decisions.
    pub steps: u64,
    /// Rows.
    pub rows: u64,
    /// Mean own reward of the rows that count; `None` if none does.
    pub reward_mean: Option<f64>,
    /// Parquet files.
    pub files: u64,
    /// Somebody pressed Ctrl-C.
    pub interrupted: bool,
}

/// Plays the episodes and writes their decisions and outcomes as Parquet. `each_episode` is called
/// after every one. Ends early, with what was played so far, when `stop` is set.
///
/// # Errors
/// `NotAHost`, `NoPolicy`, and those of loading either; `Log` if `out` holds a log, or if the policy, the
/// host or the writer fails.
pub fn log(
    run: &LogRun<'_>,
    stop: &AtomicBool,
    mut each_episode: impl FnMut(),
) -> Result<Logged, LabError> {
    let (name, environment) = environment(run.environment)?;
    let EnvironmentConfig::SimHost { source, reward, .. } = environment else {
        return Err(LabError::NotAHost { name });
    };
    let (host, interval_s) = host(source)?;
    let host = host.with_reward(reward);
    let (policy, policy_version) = policy(run, host.spec())?;
    let setup = play::Setup {
        host: name.clone(),
        policy_version,
        interval_s,
        epsilon: run.epsilon,
        reward_weights: reward.numbers(),
    };
    let mut player = Player::open(run.out, host, policy, setup, WriterConfig::default())?;
    for episode in 0..run.episodes {
        let seed = seeds::evaluation(run.first_seed + episode);
        if stop.load(Ordering::Relaxed) || !player.play(seed, seeds::decisions(seed), stop)? {
            break;
        }
        each_episode();
    }
    let policy = player.policy().to_owned();
    let tally = player.finish()?;
    Ok(Logged {
        host: name,
        policy,
        episodes: tally.episodes,
        steps: tally.steps,
        rows: tally.rows,
        reward_mean: tally.reward_mean(),
        files: tally.files,
        interrupted: tally.episodes < run.episodes,
    })
}

/// A simulated host, with the length of its interval in seconds.
fn host(source: HostSource) -> Result<(SimHost, f64), LabError> {
    Ok(match source {
        HostSource::Scenario(scenario) => {
            let interval_s = scenario.interval_s;
            (SimHost::fixed(*scenario)?, interval_s)
        }
        HostSource::Generated(generator) => {
            let interval_s = generator.interval_s;
            (SimHost::generated(generator)?, interval_s)
        }
    })
}

/// A preset, a scenario or a config, with the name that its host has in the log.
pub(crate) fn environment(name: &str) -> Result<(String, EnvironmentConfig), LabError> {
    match scenario_file::load(name, Path::new("")) {
        Ok(scenario) => Ok((
            scenario.name.clone(),
            EnvironmentConfig::SimHost {
                source: HostSource::Scenario(Box::new(scenario)),
                reward: RewardConfig::default(),
                ranges: None,
            },
        )),
        // A file that is no scenario may be a config; what is wrong with it as a config is told of
        // those that look like one.
        Err(error) => match Config::load(Path::new(name)) {
            Ok(config) => Ok((config.name, config.environment)),
            Err(as_config) if says_version(name) => Err(as_config.into()),
            Err(_) => Err(error.into()),
        },
    }
}

/// Scenarios have no key `version`, configs must have one.
fn says_version(file: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.parse::<toml::Table>()
        .is_ok_and(|table| table.contains_key("version"))
}

/// A policy with its version.
fn policy(run: &LogRun<'_>, spec: &EnvSpec) -> Result<(Box<dyn Policy>, String), LabError> {
    let policy: Box<dyn Policy> = match run.policy {
        "keep_default" => Box::new(KeepDefault),
        "random" => Box::new(RandomPolicy),
        "round_robin" => Box::new(RoundRobin::new(spec)?),
        "least_loaded" => Box::new(LeastLoaded::new(spec)?),
        dir => return trained(&PathBuf::from(dir), run.selection, spec),
    };
    Ok((policy, String::new()))
}

fn trained(
    dir: &Path,
    selection: Selection,
    spec: &EnvSpec,
) -> Result<(Box<dyn Policy>, String), LabError> {
    if !dir.exists() {
        return Err(LabError::NoPolicy {
            name: dir.display().to_string(),
            known: BASELINES.join(", "),
        });
    }
    let checkpoint = Checkpoint::load(dir)?;
    checkpoint.check_fits(spec)?;
    let name = dir.file_name().unwrap_or(dir.as_os_str());
    let network = NetworkPolicy::new(name.to_string_lossy(), &checkpoint, selection)?;
    let version = checkpoint.manifest.tensors_sha256.clone();
    Ok((Box::new(network), version))
}

impl Logged {
    /// For people.
    #[must_use]
    pub fn text(&self, out: &Path) -> String {
        let reward = self.reward_mean;
        let reward = reward.map_or_else(
            || "no row counts".to_owned(),
            |mean| format!("mean own reward {mean:.4}"),
        );
        let end = if self.interrupted {
            "interrupted; "
        } else {
            ""
        };
        format!(
            "{end}{} episodes of {} on {}: {} steps, {} rows in {} files below {}; {reward}\n",
            self.episodes,
            self.policy,
            self.host,
            self.steps,
            self.rows,
            self.files,
            out.display()
        )
    }
}
