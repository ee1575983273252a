//! Playing the evaluation episodes, and what was decided in them.

use std::collections::BTreeMap;

use blkpilot_env::sim::SimHost;
use blkpilot_env::{Environment as _, JointAction, ResetOptions, Rng};

use super::OracleError;
use super::best_static::BestStatic;
use super::knobs::Setting;
use super::phases::PhaseVector;
use super::planner::{Moment, Planner};
use super::policies::{OraclePolicy, Sight, StaticPolicy};
use super::study::{BEST_STATIC, Progress, StudyError, StudyOptions, go_on};
use crate::baseline::KeepDefault;
use crate::episode::{Episode, Measure, play};
use crate::policy::Policy;

/// One episode of one policy: what it came to, and what was decided in each interval.
pub(super) struct Record {
    pub(super) episode: Episode,
    /// Per interval: when and from where, and the setting decided.
    pub(super) decided: Vec<(Moment, Setting)>,
}

/// Records by policy, one per seed.
pub(super) type Records = BTreeMap<String, Vec<Record>>;

/// Plays each seed with each policy, best static, lagged oracle and oracle.
pub(super) fn play_all(
    planner: &mut Planner,
    policies: &mut [Box<dyn Policy>],
    best: &BestStatic,
    options: &StudyOptions,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<Records, StudyError> {
    let scenario = planner.values().scenario().clone();
    let host = SimHost::fixed(scenario).map_err(OracleError::from)?;
    let mut host = host.with_reward(*planner.values().reward());
    let held = planner.values().knobs().write(&best.setting);
    let mut held = StaticPolicy::new(BEST_STATIC, held);
    let total = (policies.len() + 3) * options.seeds.len();
    let mut records = Records::new();
    for (number, seed) in options.seeds.iter().enumerate() {
        let path = path_of(&mut host, seed)?;
        let mut session = Session {
            host: &mut host,
            seed,
            path: &path,
            records: &mut records,
        };
        for policy in policies.iter_mut() {
            session.play(planner, policy.as_mut())?;
        }
        session.play(planner, &mut held)?;
        session.play_oracle(planner, Sight::Last)?;
        session.play_oracle(planner, Sight::Next)?;
        go_on(watch(Progress::Episodes(
            total / options.seeds.len() * (number + 1),
            total,
        )))?;
    }
    Ok(records)
}

/// The phase vector at the reset of a seed, then that of each interval.
fn path_of(host: &mut SimHost, seed: &(u64, Rng)) -> Result<Vec<PhaseVector>, OracleError> {
    host.reset(Some(seed.0), &ResetOptions::new())?;
    let mut path: Vec<PhaseVector> = host.phases().into_iter().collect();
    let measure = Measure::RewardPerInterval;
    play(host, &mut KeepDefault, seed.clone(), measure, |played| {
        path.extend(played.env.phases());
    })?;
    Ok(path)
}

/// One seed.
struct Session<'a> {
    host: &'a mut SimHost,
    seed: &'a (u64, Rng),
    path: &'a [PhaseVector],
    records: &'a mut Records,
}

impl Session<'_> {
    fn play_oracle(&mut self, planner: &mut Planner, sight: Sight) -> Result<(), StudyError> {
        let mut oracle = OraclePolicy::new(planner, self.path, sight);
        let played = self.watched(&mut oracle)?;
        self.keep(planner, sight.name(), &played);
        Ok(())
    }

    fn play(&mut self, planner: &Planner, policy: &mut dyn Policy) -> Result<(), StudyError> {
        let played = self.watched(policy)?;
        self.keep(planner, policy.name(), &played);
        Ok(())
    }

    /// Plays the seed; per interval, the action in force before and the one decided.
    fn watched(
        &mut self,
        policy: &mut dyn Policy,
    ) -> Result<(Episode, Vec<(JointAction, JointAction)>), StudyError> {
        let (mut decided, mut path) = (Vec::new(), Vec::new());
        let measure = Measure::RewardPerInterval;
        let episode = play(self.host, policy, self.seed.clone(), measure, |played| {
            decided.push((played.seen.current.clone(), played.decision.action.clone()));
            path.extend(played.env.phases());
        });
        let episode = episode.map_err(OracleError::from)?;
        if path != self.path[1..] {
            return Err(StudyError::Path {
                seed: self.seed.0,
                policy: policy.name().to_owned(),
            });
        }
        Ok((episode, decided))
    }

    fn keep(
        &mut self,
        planner: &Planner,
        policy: &str,
        (episode, decided): &(Episode, Vec<(JointAction, JointAction)>),
    ) {
        let knobs = planner.values().knobs();
        let moment = |(t, (current, action)): (usize, &(JointAction, JointAction))| {
            let moment = Moment {
                phases: self.path[t + 1].clone(),
                current: knobs.read(current),
                left: (decided.len() - t) as u32,
            };
            (moment, knobs.read(action))
        };
        let record = Record {
            episode: *episode,
            decided: decided.iter().enumerate().map(moment).collect(),
        };
        self.records
            .entry(policy.to_owned())
            .or_default()
            .push(record);
    }
}
