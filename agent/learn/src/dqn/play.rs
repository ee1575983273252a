//! Playing ε-greedily, one host-step at a time.

use std::sync::Arc;

use blkpilot_env::{
    Environment, JointDecision, Level, Observation, Rewards, Rng, Step, Turn, TurnView,
};
use blkpilot_models::categorical::greedy;
use blkpilot_models::network::{ActorCritic, Scratch};
use blkpilot_models::normaliser::Statistics;
use rand::RngExt as _;

use super::steps::{HostStep, Then};
use crate::LearnError;
use crate::collector::{
    Collector, NOT_STARTED, do_disks_change, for_each_first_turn, last_of_episode,
};
use crate::rollout::EpisodeEnd;
use crate::seen::SeenTurn;

/// A turn, and the levels that were taken in it.
type Taken = (Arc<SeenTurn>, Arc<[Level]>);

/// What plays: the network as it is served, which for one turn at a time is many times faster than libtorch.
pub(super) struct Player {
    network: ActorCritic,
    scratch: Scratch,
    /// Share of the turns in which its levels are drawn from all that are allowed.
    pub(super) epsilon: f64,
}

impl Player {
    pub(super) fn new(network: ActorCritic, epsilon: f64) -> Self {
        Self {
            network,
            scratch: Scratch::default(),
            epsilon,
        }
    }

    fn choose(&mut self, view: &TurnView<'_>, rng: &mut Rng) -> Result<Vec<Level>, LearnError> {
        let heads = 0..view.heads.len();
        if rng.random::<f64>() < self.epsilon {
            let level = |head: usize| view.forced(head).unwrap_or_else(|| any(view, head, rng));
            return Ok(heads.map(level).collect());
        }
        let mut scores = self.network.scores(view, &mut self.scratch)?;
        let mut level = |head: usize| {
            let mask = view.head_mask(head);
            let (own, later) = scores.split_at(mask.len());
            scores = later;
            let best = || greedy(own, mask).expect("a head that is not forced has a choice");
            view.forced(head).unwrap_or_else(|| best() as Level)
        };
        Ok(heads.map(&mut level).collect())
    }
}

/// One of the levels that are allowed, each as likely as the others.
fn any(view: &TurnView<'_>, head: usize, rng: &mut Rng) -> Level {
    let mask = view.head_mask(head);
    let allowed: Vec<usize> = (0..mask.len()).filter(|l| mask[*l].is_allowed()).collect();
    allowed[rng.random_range(0..allowed.len())] as Level
}

/// What one host-step in each environment came to.
#[derive(Debug, Default)]
pub(super) struct Played {
    /// By environment.
    pub(super) steps: Vec<(HostStep, Then)>,
    /// Episodes that ended.
    pub(super) episodes: Vec<EpisodeEnd>,
}

impl<E: Environment> Collector<E> {
    /// One host-step in each environment; `seen` is told what the network is shown.
    ///
    /// # Errors
    /// As [`Collector::collect`].
    pub(super) fn play_step(
        &mut self,
        player: &mut Player,
        seen: &mut Statistics,
    ) -> Result<Played, LearnError> {
        let mut played = Played::default();
        for index in 0..self.envs.len() {
            let own = self.play_one(index, player, seen, &mut played.episodes)?;
            played.steps.push(own);
        }
        Ok(played)
    }

    fn play_one(
        &mut self,
        index: usize,
        player: &mut Player,
        seen: &mut Statistics,
        episodes: &mut Vec<EpisodeEnd>,
    ) -> Result<(HostStep, Then), LearnError> {
        let obs = &self.observations[index];
        let mut joint = JointDecision::in_random_order(&self.spec, obs, &mut self.rng);
        let mut decided: Vec<Option<Taken>> = vec![None; obs.disk_count()];
        while let Some(view) = joint.view() {
            seen.observe(&view);
            let levels = player.choose(&view, &mut self.rng)?;
            if let Turn::Disk(disk) = view.turn {
                decided[disk] = Some((Arc::new(SeenTurn::of(&view)), levels[..].into()));
            }
            joint.commit(&levels)?;
        }
        let (turns, levels) = decided.into_iter().flatten().unzip();
        let step = self.envs[index]
            .step(&joint.finish().0)
            .map_err(|source| LearnError::Environment { index, source })?;
        let then = self.then(index, &step)?;
        let rewards = match then {
            Then::LeftOut => vec![],
            _ => (0..obs.disk_count())
                .map(|disk| credited(disk, obs, &step.rewards))
                .collect(),
        };
        let own = HostStep {
            rewards,
            turns,
            levels,
        };
        self.running[index].episodic_return += f64::from(step.rewards.host_mean().unwrap_or(0.0));
        self.running[index].steps += 1;
        if step.is_last() {
            episodes.push(std::mem::replace(&mut self.running[index], NOT_STARTED));
        }
        self.observations[index] = step.observation;
        Ok((own, then))
    }

    fn then(&self, index: usize, step: &Step) -> Result<Then, LearnError> {
        let before = &self.observations[index];
        let Some(last) = last_of_episode(step, index)? else {
            return Ok(Then::Terminated);
        };
        if do_disks_change(before, Some(last), step.truncated, index)? {
            return Ok(Then::LeftOut);
        }
        if !step.truncated {
            return Ok(Then::Next);
        }
        let mut turns = Vec::with_capacity(last.disk_count());
        for_each_first_turn(&self.spec, last, |view| {
            turns.push(Arc::new(SeenTurn::of(view)));
        })?;
        Ok(Then::Cut(turns))
    }
}

/// The mean reward of those disks on the IOThread that counted, which share its choices and its time; 0 if none did.
pub(super) fn credited(disk: usize, obs: &Observation, rewards: &Rewards) -> f32 {
    let group = obs.disk_group.get(disk).copied().flatten();
    let shares =
        |other: &usize| *other == disk || (group.is_some() && obs.disk_group[*other] == group);
    let counted = (0..rewards.total.len()).filter(|other| rewards.counted[*other] && shares(other));
    let own: Vec<f32> = counted.map(|other| rewards.total[other]).collect();
    if own.is_empty() {
        return 0.0;
    }
    own.iter().sum::<f32>() / own.len() as f32
}
