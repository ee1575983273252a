//! Episodes played into a decision log: the same rows, in the same files, as a service writes.
//!
//! Everything random comes from the episode's seed, ids too, so that the same seeds give the same log.
//! What is full becomes Parquet on the way: of a long log no more than a segment is there as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_env::{
    EnvError, EnvSpec, Environment, JointAction, Observation, ResetOptions, Rewards, Rng, Turn,
    TurnView,
};
use blkpilot_models::explore::explore;
use blkpilot_models::{Choice, Outlier, Policy, PolicyError, decide_with};
use rand::{Rng as _, SeedableRng as _};
use thiserror::Error;

use crate::compact::Compactor;
use crate::error::LogError;
use crate::join::Horizon;
use crate::retain::Keep;
use crate::schema::{DecisionId, DecisionRow, EpisodeId, Event, HostStepId, OutcomeRow, Source};
use crate::turn::{Ending, StepContext};
use crate::verify::is_log;
use crate::writer::{Config, Writer};

/// When the first episode begins: 2024-01-01 UTC, in microseconds since 1970.
const START_US: i64 = 1_704_067_200_000_000;
/// Whose draws are ids; the environment's is 0, and 1 is for what the policy draws.
const ID_STREAM: u64 = 2;
/// Why an executed level is not the requested one.
const REFUSED: &str = "the simulated host kept its value";

/// What the rows of a log that is played have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Name of the host.
    pub host: String,
    /// Version of the policy; empty where it has none.
    pub policy_version: String,
    /// Length of an interval in seconds.
    pub interval_s: f64,
    /// Probability with which a head is drawn from all that is allowed, in [0, 1].
    pub epsilon: f64,
    /// Weights of the reward in force.
    pub reward_weights: BTreeMap<String, f64>,
}

/// What has been written so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// Episodes that were played to their end.
    pub episodes: u64,
    /// Joint decisions.
    pub steps: u64,
    /// Rows.
    pub rows: u64,
    /// Rows that count.
    pub counted: u64,
    /// Sum of their own rewards.
    pub reward_sum: f64,
    /// Parquet files.
    pub files: u64,
}

impl Tally {
    /// Mean own reward of the rows that count; `None` if none does.
    #[must_use]
    pub fn reward_mean(&self) -> Option<f64> {
        (self.counted > 0).then(|| self.reward_sum / self.counted as f64)
    }
}

/// Why an episode did not get into the log.
#[derive(Debug, Error)]
pub enum PlayError {
    /// The directory has a log already, which would not be that of these seeds any more.
    #[error("{}: there is a decision log already: choose another directory", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The log cannot be written.
    #[error("the decision log cannot be written")]
    Log(#[from] LogError),
    /// The policy failed to decide.
    #[error("the policy failed")]
    Policy(#[from] PolicyError),
    /// The environment failed.
    #[error("the environment failed")]
    Environment(#[from] EnvError),
}

/// Plays a policy in an environment and logs it.
pub struct Player<E> {
    environment: E,
    policy: Exploring,
    interval_s: f64,
    context: StepContext,
    writer: Writer,
    compactor: Compactor,
    /// Segment that was being written when the last became Parquet.
    compacted: u64,
    tally: Tally,
}

impl<E: Environment> Player<E> {
    /// Begins a log in `dir`.
    ///
    /// # Errors
    /// `Exists`, `Log`.
    pub fn open(
        dir: &Path,
        environment: E,
        policy: Box<dyn Policy>,
        setup: Setup,
        config: Config,
    ) -> Result<Self, PlayError> {
        if dir.exists() && is_log(dir)? {
            let dir = dir.to_owned();
            return Err(PlayError::Exists { dir });
        }
        let (writer, _) = Writer::open(dir, config)?;
        let keep = Keep {
            most_bytes: u64::MAX,
            most_age: None,
        };
        Ok(Self {
            context: StepContext {
                host_step_id: HostStepId(0),
                episode_id: EpisodeId(0),
                at_us: START_US,
                host: setup.host.into(),
                source: Source::Simulator,
                policy: policy.name().into(),
                policy_version: setup.policy_version.into(),
                spec_hash: environment.spec().hash().into(),
                reward_weights: Arc::new(setup.reward_weights),
            },
            environment,
            policy: Exploring {
                policy,
                epsilon: setup.epsilon,
                explored: vec![],
            },
            interval_s: setup.interval_s,
            compactor: writer.compactor(keep),
            compacted: writer.number(),
            writer,
            tally: Tally::default(),
        })
    }

    /// Plays the episode of `seed`, after those before it in time, and makes it durable. The policy draws
    /// from `decisions`, which must not be the environment's stream. When `stop` is set the episode is cut
    /// after the step in hand, and its last rows say so. Returns whether it came to its end.
    ///
    /// # Errors
    /// `Policy`, `Environment`, `Log`.
    pub fn play(
        &mut self,
        seed: u64,
        mut decisions: Rng,
        stop: &AtomicBool,
    ) -> Result<bool, PlayError> {
        let mut ids = Rng::seed_from_u64(seed);
        ids.set_stream(ID_STREAM);
        self.policy.reset();
        self.context.episode_id = EpisodeId(id(&mut ids));
        let mut obs = self.environment.reset(Some(seed), &ResetOptions::new())?;
        loop {
            let (mut rows, turns, action) = self.decide(&obs, &mut decisions, &mut ids)?;
            let step = self.environment.step(&action)?;
            let (is_last, stopped) = (step.is_last(), stop.load(Ordering::Relaxed));
            self.context.at_us += (self.interval_s * 1e6).round() as i64;
            let ending = Ending {
                at_us: self.context.at_us,
                interval_s: self.interval_s,
                terminated: step.terminated,
                truncated: step.truncated || stopped && !is_last,
            };
            for (row, turn) in rows.iter_mut().zip(&turns) {
                row.set_executed(*turn, &step.executed, REFUSED);
            }
            self.write(rows, &turns, &step.rewards, &ending)?;
            if is_last || stopped {
                self.tally.episodes += u64::from(is_last);
                self.end_episode()?;
                return Ok(is_last);
            }
            obs = step.observation;
        }
    }

    fn decide(
        &mut self,
        obs: &Observation,
        rng: &mut Rng,
        ids: &mut Rng,
    ) -> Result<(Vec<DecisionRow>, Vec<Turn>, JointAction), PolicyError> {
        self.context.host_step_id = HostStepId(id(ids));
        let (context, spec) = (&self.context, self.environment.spec());
        let mut rows: Vec<DecisionRow> = vec![];
        let decided = decide_with(&mut self.policy, spec, obs, rng, |view, made| {
            let order = rows.len() as u32;
            let id = DecisionId(id(ids));
            rows.push(DecisionRow::of_turn(id, order, context, obs, view, made));
        })?;
        for (row, explored) in rows.iter_mut().zip(&self.policy.explored) {
            row.epsilon = self.policy.epsilon;
            for (head, explored) in row.heads.iter_mut().zip(explored) {
                head.explored = *explored;
            }
        }
        Ok((rows, decided.order, decided.action))
    }

    /// Decisions first, then their outcomes, as they come from a host.
    fn write(
        &mut self,
        rows: Vec<DecisionRow>,
        turns: &[Turn],
        rewards: &Rewards,
        ending: &Ending,
    ) -> Result<(), LogError> {
        let spec = self.environment.spec();
        let outcome = |(row, turn): (&DecisionRow, &Turn)| match *turn {
            Turn::Disk(disk) => OutcomeRow::of_disk(row.id, disk, spec, rewards, ending),
            Turn::Device(_) => OutcomeRow::of_device(row.id, rewards, ending),
        };
        let outcomes: Vec<OutcomeRow> = rows.iter().zip(turns).map(outcome).collect();
        self.tally.steps += 1;
        for row in rows {
            self.writer.append(&Event::Decision(Box::new(row)))?;
        }
        for outcome in outcomes {
            self.tally.rows += 1;
            if outcome.counted {
                self.tally.counted += 1;
                self.tally.reward_sum += f64::from(outcome.reward_own);
            }
            self.writer.append(&Event::Outcome(outcome))?;
        }
        Ok(())
    }

    /// An episode is in one segment: only a commit seals.
    fn end_episode(&mut self) -> Result<(), LogError> {
        self.writer.commit()?;
        if self.writer.number() != self.compacted {
            self.compact()?;
        }
        Ok(())
    }

    /// Whoever wants to stop, what has been played becomes Parquet.
    fn compact(&mut self) -> Result<(), LogError> {
        let go_on = AtomicBool::new(false);
        let done = self.compactor.compact(Horizon::Final, &go_on)?;
        self.tally.files += done.files;
        self.compacted = self.writer.number();
        Ok(())
    }

    /// What has been written so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Name of the policy in the log.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.context.policy
    }

    /// Seals the log and makes all of it Parquet.
    ///
    /// # Errors
    /// `Log`.
    pub fn finish(mut self) -> Result<Tally, PlayError> {
        self.writer.seal()?;
        self.compact()?;
        Ok(self.tally)
    }
}

/// A policy that explores, and remembers where it did.
struct Exploring {
    policy: Box<dyn Policy>,
    epsilon: f64,
    /// Per turn of this decision, per head.
    explored: Vec<Vec<bool>>,
}

impl Policy for Exploring {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn begin(&mut self, spec: &EnvSpec, obs: &Observation) -> Result<(), PolicyError> {
        self.explored.clear();
        self.policy.begin(spec, obs)
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let made = explore(self.policy.as_mut(), self.epsilon, spec, view, rng)?;
        self.explored.push(made.explored);
        Ok(made.choice)
    }

    fn novelty(&self, view: &TurnView<'_>) -> Vec<Outlier> {
        self.policy.novelty(view)
    }

    fn reset(&mut self) {
        self.policy.reset();
    }
}

/// A UUID of version 4.
fn id(rng: &mut Rng) -> u128 {
    let drawn = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    let version_and_variant = (0x4 << 76) | (0b10 << 62);
    drawn & !((0xf << 76) | (0b11 << 62)) | version_and_variant
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blkpilot_env::Level;
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_models::baseline::{LeastLoaded, RandomPolicy};

    use super::*;
    use crate::columns::LoggedRow;
    use crate::scan::{Query, Scan};

    fn setup(epsilon: f64) -> Setup {
        Setup {
            host: "mixed".to_owned(),
            policy_version: String::new(),
            interval_s: 2.0,
            epsilon,
            reward_weights: BTreeMap::from([("beta".to_owned(), 0.5)]),
        }
    }

    fn least_loaded(host: &SimHost) -> Box<dyn Policy> {
        Box::new(LeastLoaded::new(host.spec()).unwrap())
    }

    fn decisions(seed: u64) -> Rng {
        let mut rng = Rng::seed_from_u64(seed);
        rng.set_stream(1);
        rng
    }

    /// Logs these seeds; segments are small, so that there are several.
    fn play(dir: &Path, seeds: &[u64], epsilon: f64) -> (Tally, Vec<LoggedRow>) {
        let host = SimHost::fixed(presets::mixed()).unwrap();
        let policy = least_loaded(&host);
        let config = Config {
            segment_bytes: 100_000,
        };
        let mut player = Player::open(dir, host, policy, setup(epsilon), config).unwrap();
        for seed in seeds {
            let go_on = AtomicBool::new(false);
            assert!(player.play(*seed, decisions(*seed), &go_on).unwrap());
        }
        (player.finish().unwrap(), rows(dir))
    }

    fn rows(dir: &Path) -> Vec<LoggedRow> {
        let scan = Scan::open(dir, Query::default(), Horizon::Final).unwrap();
        scan.flat_map(|batch| batch.unwrap().rows().unwrap())
            .collect()
    }

    #[test]
    fn each_decision_is_there_with_its_propensity_and_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let (tally, rows) = play(dir.path(), &[1, 2, 3], 0.5);
        assert_eq!((tally.episodes, tally.rows), (3, rows.len() as u64));
        assert!(tally.files > 1, "{tally:?}: more than one segment");
        let report = crate::verify::verify(dir.path(), Horizon::Final).unwrap();
        assert_eq!((report.wrong, report.outcomes), (0, tally.rows));
        let episodes: BTreeSet<u128> = rows.iter().map(|row| row.decision.episode_id.0).collect();
        assert_eq!(episodes.len(), 3);
        let heads = || rows.iter().flat_map(|row| &row.decision.heads);
        assert!(heads().all(|head| head.forced == (head.propensity == 1.0)));
        let explored = heads().filter(|head| head.explored).count() as f64;
        let free = heads().filter(|head| !head.forced).count() as f64;
        assert!((explored / free - 0.5).abs() < 0.05, "{explored} of {free}");
        let counted = rows.iter().filter_map(|row| row.outcome.as_ref().ok());
        let rewards: Vec<f64> = counted
            .filter(|outcome| outcome.counted)
            .map(|outcome| outcome.reward_own.into())
            .collect();
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        assert!((tally.reward_mean().unwrap() - mean).abs() < 1e-9);
    }

    /// The rate of each level is what its propensities say: 1/propensity of the rows that have it
    /// averages to the number of its rows.
    #[test]
    fn propensities_are_those_of_what_was_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let (_, rows) = play(dir.path(), &[1, 2, 3, 4, 5, 6], 0.7);
        let heads = || {
            let heads = rows.iter().map(|row| &row.decision.heads[1]);
            heads.filter(|head| !head.forced)
        };
        let free = heads().count() as f64;
        for level in 0..2 {
            let of_level = heads().filter(|head| head.requested == level as Level);
            let inverse: Vec<f64> = of_level.map(|head| 1.0 / head.propensity).collect();
            let mean = inverse.iter().sum::<f64>() / free;
            let largest = inverse.iter().copied().fold(0.0, f64::max);
            let four_errors = 4.0 * (largest / free).sqrt();
            assert!((mean - 1.0).abs() < four_errors, "level {level}: {mean}");
        }
    }

    #[test]
    fn the_same_seeds_give_the_same_log_and_others_another() {
        let (one, two, other) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let rows = play(one.path(), &[7], 0.2).1;
        assert_eq!(rows, play(two.path(), &[7], 0.2).1);
        assert_ne!(rows, play(other.path(), &[8], 0.2).1);
    }

    #[test]
    fn a_directory_with_a_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        play(dir.path(), &[1], 0.0);
        let host = SimHost::fixed(presets::mixed()).unwrap();
        let policy = Box::new(RandomPolicy);
        let again = Player::open(dir.path(), host, policy, setup(0.0), Config::default());
        assert!(matches!(again.err(), Some(PlayError::Exists { .. })));
    }

    #[test]
    fn an_episode_that_is_stopped_says_that_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let host = SimHost::fixed(presets::mixed()).unwrap();
        let policy = least_loaded(&host);
        let mut player =
            Player::open(dir.path(), host, policy, setup(0.1), Config::default()).unwrap();
        let stop = AtomicBool::new(true);
        assert!(!player.play(1, decisions(1), &stop).unwrap());
        let tally = player.finish().unwrap();
        assert_eq!((tally.episodes, tally.steps), (0, 1));
        let rows = rows(dir.path());
        let ends = rows.iter().map(|row| row.outcome.as_ref().unwrap());
        assert!(ends.into_iter().all(|end| end.truncated && !end.terminated));
    }

    #[test]
    fn ids_are_uuids_of_version_4() {
        let text = DecisionId(id(&mut Rng::seed_from_u64(1))).to_string();
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}
