//! A trained policy beside those that are not trained, on episodes that training never saw.
//!
//! Every policy plays the same evaluation seeds, so differences are paired. What is resampled for
//! the intervals are episodes; disks and intervals within one are not independent.
//!
//! A live host cannot be given a seed. There the trained policy and keep-default play in turn, one episode each, in
//! an order that is turned each time, so that what drifts weighs on both alike; what is paired and resampled are
//! these rounds. The other baselines would only disturb its guests.

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Environment};
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy, RoundRobin};
use blkpilot_models::bootstrap::{RESAMPLES, ci95, mean};
use blkpilot_models::episode::{Episode, Measure, leave_out_empty, play};
use blkpilot_models::policy::Policy;
use blkpilot_models::{Checkpoint, NetworkPolicy, Selection};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::config::{Config, EnvironmentConfig, RemoteKind};
use crate::environments::{self, Purpose};
use crate::remote::Remote;
use crate::{LabError, seeds};

/// Name of the trained policy in reports.
pub const TRAINED: &str = "trained";
/// The others, in the order of reports; those that choose channels are left out where there are none.
pub const BASELINES: [&str; 4] = ["keep_default", "random", "round_robin", "least_loaded"];

/// Those that play on a live host.
const ON_LIVE_HOSTS: [&str; 2] = [TRAINED, "keep_default"];

/// What stands for an episode of a config's environment.
pub(crate) fn measure_of(config: &Config) -> Measure {
    match config.environment {
        EnvironmentConfig::SimHost { .. } => Measure::RewardPerInterval,
        EnvironmentConfig::Remote(ref remote) if remote.kind != RemoteKind::CartPole => {
            Measure::RewardPerInterval
        }
        EnvironmentConfig::CartPole | EnvironmentConfig::Remote(_) => Measure::Return,
    }
}

const OVER_SEEDS: &str = "episodes: one per evaluation seed, the same seeds for all policies";
const OVER_ROUNDS: &str = "rounds: one episode of each policy, one after another on one host, in an order that is turned each time";

/// Figures of all policies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What stands for an episode.
    pub measure: Measure,
    /// Episodes per policy that the figures are over.
    pub episodes: usize,
    /// Number of the first evaluation seed, the config's `evaluation.first_seed`; the others follow.
    pub first_seed: u64,
    /// Further seeds that are left out for all policies: with one of them nothing counted.
    pub left_out: usize,
    /// What the intervals come from.
    pub resampled: &'static str,
    /// Resamples behind each interval.
    pub resamples: usize,
    /// Figures by policy.
    pub policies: BTreeMap<String, Figures>,
    /// Trained minus baseline, by baseline.
    pub differences: BTreeMap<String, Difference>,
}

/// Figures of one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Mean over the episodes.
    pub reward_mean: f64,
    /// Its 95 % interval.
    pub reward_ci95: [f64; 2],
    /// Relative performance loss, mean over disks that count, intervals and episodes; `None` where
    /// the environment has no such terms.
    pub loss_mean: Option<f64>,
}

/// Trained minus baseline, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Mean over the episodes.
    pub mean: f64,
    /// Its 95 % interval.
    pub ci95: [f64; 2],
}

/// Plays the evaluation episodes of a config with a checkpoint's policy, which chooses as the config says, and
/// with each baseline. `each_episode` is called after every episode and says whether to go on.
///
/// # Errors
/// `Interrupted` if not; `Policy` if the checkpoint does not fit the environment; `Decide` or
/// `Environment` if one fails; `NothingCounted` if that is so on every seed.
pub fn compare(
    config: &Config,
    checkpoint: &Checkpoint,
    each_episode: impl FnMut() -> bool,
) -> Result<Comparison, LabError> {
    let EnvironmentConfig::Remote(remote) = &config.environment else {
        let mut env = environments::make(&config.environment, Purpose::Evaluation)?;
        return compare_in(&mut env, config, checkpoint, each_episode);
    };
    let mut env = Remote::create(remote, Purpose::Evaluation)?;
    let comparison = compare_in(&mut env, config, checkpoint, each_episode);
    let figures = env.close();
    match comparison {
        Ok(_) if figures.put_back == Some(false) => Err(LabError::NotPutBack {
            host: figures.played,
        }),
        other => other,
    }
}

fn compare_in<E: Environment>(
    env: &mut E,
    config: &Config,
    checkpoint: &Checkpoint,
    mut each_episode: impl FnMut() -> bool,
) -> Result<Comparison, LabError> {
    let spec = env.spec().clone();
    checkpoint.check_fits(&spec)?;
    let measure = measure_of(config);
    let trained = (checkpoint, config.evaluation.selection);
    let mut policies = policies(&spec, Some(trained))?;
    let is_live = config.environment.is_live();
    policies.retain(|policy| !is_live || ON_LIVE_HOSTS.contains(&policy.name()));
    let mut played: BTreeMap<String, Vec<Episode>> = BTreeMap::new();
    for (number, episode) in order(policies.len(), config.evaluation.episodes, is_live) {
        let policy = policies[number].as_mut();
        let seed = config.evaluation.seed(episode);
        let seed = (seed, seeds::decisions(seed));
        let episode = play(env, policy, seed, measure, |_| ())?;
        let episodes = played.entry(policy.name().to_owned()).or_default();
        episodes.push(episode);
        if !each_episode() {
            return Err(LabError::Interrupted);
        }
    }
    let kept = leave_out_empty(&mut played, |episode| episode.reward);
    let left_out = kept.iter().filter(|kept| !**kept).count();
    let kept = config.evaluation.episodes - left_out;
    if kept == 0 {
        return Err(LabError::NothingCounted { seeds: left_out });
    }
    Ok(Comparison {
        first_seed: config.evaluation.first_seed,
        left_out,
        resampled: if is_live { OVER_ROUNDS } else { OVER_SEEDS },
        ..figures(measure, kept, &played)
    })
}

/// Which policy plays which episode, in order: one policy after another, or all in turn.
fn order(policies: usize, episodes: usize, in_turn: bool) -> Vec<(usize, usize)> {
    if in_turn {
        let round = |episode| {
            (0..policies).map(move |policy| ((policy + episode) % policies.max(1), episode))
        };
        (0..episodes).flat_map(round).collect()
    } else {
        let all = |policy| (0..episodes).map(move |episode| (policy, episode));
        (0..policies).flat_map(all).collect()
    }
}

/// Number of episodes that [`compare`] plays.
#[must_use]
pub fn episode_count(config: &Config) -> usize {
    let policies = match &config.environment {
        environment if environment.is_live() => ON_LIVE_HOSTS.len(),
        _ if measure_of(config) == Measure::Return => 3,
        _ => 1 + BASELINES.len(),
    };
    policies * config.evaluation.episodes
}

/// The policies that are not trained, and the trained one if there is a checkpoint.
pub(crate) fn policies(
    spec: &EnvSpec,
    checkpoint: Option<(&Checkpoint, Selection)>,
) -> Result<Vec<Box<dyn Policy>>, LabError> {
    let mut policies: Vec<Box<dyn Policy>> = vec![Box::new(KeepDefault), Box::new(RandomPolicy)];
    if let Some((checkpoint, selection)) = checkpoint {
        let trained = NetworkPolicy::new(TRAINED, checkpoint, selection)?;
        policies.insert(0, Box::new(trained));
    }
    if spec.disk_heads.iter().any(|head| head.is_pointer()) {
        policies.push(Box::new(RoundRobin::new(spec)?));
        policies.push(Box::new(LeastLoaded::new(spec)?));
    }
    Ok(policies)
}

fn figures(
    measure: Measure,
    episodes: usize,
    played: &BTreeMap<String, Vec<Episode>>,
) -> Comparison {
    let rewards = |name: &str| -> Vec<f64> {
        let rewards = played[name].iter().map(|episode| episode.reward);
        rewards.flatten().collect()
    };
    let of = |name: &String| {
        let losses: Vec<f64> = played[name].iter().filter_map(|e| e.loss).collect();
        let rewards = rewards(name);
        let figures = Figures {
            reward_mean: mean(&rewards),
            reward_ci95: ci95(&rewards),
            loss_mean: (!losses.is_empty()).then(|| mean(&losses)),
        };
        (name.clone(), figures)
    };
    let against = |name: &String| {
        let paired: Vec<f64> = rewards(TRAINED)
            .iter()
            .zip(rewards(name))
            .map(|(own, other)| own - other)
            .collect();
        (
            name.clone(),
            Difference {
                mean: mean(&paired),
                ci95: ci95(&paired),
            },
        )
    };
    Comparison {
        measure,
        episodes,
        first_seed: 0,
        left_out: 0,
        resampled: OVER_SEEDS,
        resamples: RESAMPLES,
        policies: played.keys().map(of).collect(),
        differences: played
            .keys()
            .filter(|name| *name != TRAINED)
            .map(against)
            .collect(),
    }
}

impl Comparison {
    /// The one of a run that was not compared: without policies.
    #[must_use]
    pub fn none(config: &Config) -> Self {
        Self {
            first_seed: config.evaluation.first_seed,
            ..figures(measure_of(config), 0, &BTreeMap::new())
        }
    }

    /// As a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header([
            "policy",
            "reward",
            "95 % interval",
            "loss",
            "trained − it",
            "95 % interval",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let interval = |[low, high]: [f64; 2]| format!("{low:.4} to {high:.4}");
        for name in [TRAINED].into_iter().chain(BASELINES) {
            let Some(own) = self.policies.get(name) else {
                continue;
            };
            let difference = self.differences.get(name);
            table.add_row([
                name.to_owned(),
                format!("{:.4}", own.reward_mean),
                interval(own.reward_ci95),
                own.loss_mean
                    .map_or_else(|| "–".to_owned(), |loss| format!("{loss:.4}")),
                difference.map_or_else(String::new, |d| format!("{:+.4}", d.mean)),
                difference.map_or_else(String::new, |d| interval(d.ci95)),
            ]);
        }
        let left_out = match self.left_out {
            0 => String::new(),
            seeds => format!(", {seeds} more left out, on which nothing counted"),
        };
        let over = if self.resampled == OVER_ROUNDS {
            format!("{} rounds", self.episodes)
        } else {
            let (episodes, first) = (self.episodes, self.first_seed);
            format!("{episodes} episodes from evaluation seed {first} on")
        };
        format!(
            "{table}\nreward: {}, mean over {over}{left_out}; intervals resample {} ({} times)",
            self.measure, self.resampled, self.resamples
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episodes(rewards: &[f64]) -> Vec<Episode> {
        rewards
            .iter()
            .map(|reward| Episode {
                reward: Some(*reward),
                loss: Some(-reward),
            })
            .collect()
    }

    /// Nothing counts for one policy on the second seed: what the other earned there is left out too.
    #[test]
    fn a_seed_on_which_nothing_counts_is_left_out_for_all() {
        let mut played = BTreeMap::from([
            (TRAINED.to_owned(), episodes(&[-1.0, -50.0, -3.0])),
            ("random".to_owned(), episodes(&[-2.0, 0.0, -4.0])),
        ]);
        played.get_mut("random").unwrap()[1] = Episode {
            reward: None,
            loss: None,
        };
        let kept = leave_out_empty(&mut played, |episode| episode.reward);
        assert_eq!(kept, [true, false, true]);
        let comparison = Comparison {
            left_out: 1,
            ..figures(Measure::RewardPerInterval, 2, &played)
        };
        assert_eq!(comparison.policies[TRAINED].reward_mean, -2.0);
        assert_eq!(comparison.policies["random"].reward_mean, -3.0);
        assert_eq!(comparison.differences["random"].mean, 1.0);
        let table = comparison.table();
        assert!(
            table.contains("over 2 episodes from evaluation seed 0 on, 1 more left out"),
            "{table}"
        );
    }

    /// So that what drifts on a live host weighs on all alike.
    #[test]
    fn policies_on_a_live_host_play_in_turn_and_none_is_always_first() {
        assert_eq!(
            order(2, 3, false),
            [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        );
        assert_eq!(
            order(2, 3, true),
            [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]
        );
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let played = BTreeMap::from([
            (TRAINED.to_owned(), episodes(&[1.0, 11.0, 101.0])),
            ("random".to_owned(), episodes(&[0.0, 10.0, 100.0])),
        ]);
        let comparison = figures(Measure::Return, 3, &played);
        let difference = &comparison.differences["random"];
        assert_eq!((difference.mean, difference.ci95), (1.0, [1.0, 1.0]));
        assert_eq!(comparison.differences.len(), 1);
        let [low, high] = comparison.policies["random"].reward_ci95;
        assert!(low < 5.0 && high > 60.0, "{low} {high}");
    }
}
