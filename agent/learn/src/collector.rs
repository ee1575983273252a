//! Playing many environments together.
//!
//! In each host-step the disks of every environment decide in turn. Environments may differ in their numbers of disks, channels and devices, and
//! each new episode may have others.

use blkpilot_env::recorded::{EpisodeState, Recorded};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    Autoreset, EnvSpec, Environment, JointAction, JointDecision, Level, Observation, Repeatable,
    ResetOptions, Rng, Step, Turn, TurnView,
};
use blkpilot_models::categorical::{sample, softmax_into};
use blkpilot_models::network::{ActorCritic, Scratch};
use blkpilot_models::normaliser::{Normaliser, PerTable};
use serde::{Deserialize, Serialize};

use crate::LearnError;
use crate::network::Network;
use crate::rollout::{EpisodeEnd, HostStep, Rollout, Samples, Tail};
use crate::turns::Turns;

/// What plays: a network, and the normalisers it goes with.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The network.
    pub network: &'a Network,
    /// Mean and deviation per column.
    pub normalisers: &'a PerTable<Normaliser>,
}

/// Where a collector stands between two rollouts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectorState {
    /// The episode of each environment.
    pub episodes: Vec<EpisodeState>,
    /// What each has earned so far.
    pub running: Vec<EpisodeEnd>,
    /// What orders and levels are drawn from.
    pub rng: Rng,
}

/// An environment that resets itself and remembers its episode.
pub type Resumable<E> = AutoresetEnv<Recorded<E>>;

/// An environment that can say where its episode stands.
pub trait Continued: Environment {
    /// The episode under way; `None` where nobody can go on with it in another process, since it is not ours to make
    /// again: a live host's.
    fn episode(&self) -> Option<&EpisodeState>;
}

impl<E: Repeatable> Continued for Resumable<E> {
    fn episode(&self) -> Option<&EpisodeState> {
        self.inner().state()
    }
}

impl<E: Continued> Collector<E> {
    /// Where it stands. Episodes that nobody can go on with are left out, with what they have earned.
    #[must_use]
    pub fn state(&self) -> CollectorState {
        let known = self.envs.iter().zip(&self.running);
        let known = known.filter_map(|(env, running)| Some((env.episode()?.clone(), *running)));
        let (episodes, running) = known.unzip();
        CollectorState {
            episodes,
            running,
            rng: self.rng.clone(),
        }
    }
}

impl<E: Repeatable> Collector<Resumable<E>> {
    /// Goes on from where one stood, in environments that are made as its were.
    ///
    /// # Errors
    /// As [`Collector::new`]; `Unfit` if there are not as many environments.
    pub fn resume(envs: Vec<E>, state: CollectorState) -> Result<Self, LearnError> {
        let (found, wanted) = (envs.len(), state.episodes.len());
        let Some(spec) = envs.first().map(|env| env.spec().clone()) else {
            return Err(unfit(0, "there is none; give at least one"));
        };
        if found != wanted || state.running.len() != wanted {
            let problem = format!("there are {found} environments, and {wanted} were played");
            return Err(unfit(found, problem));
        }
        let spec = EnvSpec {
            autoreset: Autoreset::SameStep,
            ..spec
        };
        let mut collector = Self {
            spec,
            envs: Vec::with_capacity(found),
            observations: Vec::with_capacity(found),
            running: state.running,
            rng: state.rng,
        };
        for (index, (env, episode)) in envs.into_iter().zip(&state.episodes).enumerate() {
            let resumed = Recorded::resume(env, episode);
            let (env, seen) =
                resumed.map_err(|source| LearnError::Environment { index, source })?;
            let env = AutoresetEnv::new(env, Autoreset::SameStep);
            check_fits(&collector.spec, env.spec(), index)?;
            collector.envs.push(env);
            collector.observations.push(seen);
        }
        Ok(collector)
    }
}

/// Environments under way.
#[derive(Debug)]
pub struct Collector<E> {
    pub(crate) spec: EnvSpec,
    pub(crate) envs: Vec<E>,
    pub(crate) observations: Vec<Observation>,
    pub(crate) running: Vec<EpisodeEnd>,
    pub(crate) rng: Rng,
}

pub(crate) const NOT_STARTED: EpisodeEnd = EpisodeEnd {
    episodic_return: 0.0,
    steps: 0,
};

impl<E: Environment> Collector<E> {
    /// Resets each environment with its seed; later episodes go on from there. `rng` draws orders
    /// and levels.
    ///
    /// # Errors
    /// `Unfit` if there is no environment, one differs in its spec from the first, or does not
    /// reset itself (`Autoreset::SameStep`); `Environment` if one fails.
    pub fn new(envs: Vec<(E, u64)>, rng: Rng) -> Result<Self, LearnError> {
        let spec = match envs.first() {
            Some((env, _)) => env.spec().clone(),
            None => return Err(unfit(0, "there is none; give at least one")),
        };
        let mut collector = Self {
            spec,
            envs: Vec::new(),
            observations: Vec::new(),
            running: Vec::new(),
            rng,
        };
        for (index, (mut env, seed)) in envs.into_iter().enumerate() {
            check_fits(&collector.spec, env.spec(), index)?;
            let observation = env
                .reset(Some(seed), &ResetOptions::new())
                .map_err(|source| LearnError::Environment { index, source })?;
            collector.envs.push(env);
            collector.observations.push(observation);
            collector.running.push(NOT_STARTED);
        }
        Ok(collector)
    }

    /// What the environments show and offer.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// The same, with its environments wrapped in something that does not change what they do.
    #[must_use]
    pub fn map<F: Environment>(self, wrap: impl FnMut(E) -> F) -> Collector<F> {
        Collector {
            spec: self.spec,
            envs: self.envs.into_iter().map(wrap).collect(),
            observations: self.observations,
            running: self.running,
            rng: self.rng,
        }
    }

    /// The environments, amid their episodes.
    #[must_use]
    pub fn into_environments(self) -> Vec<E> {
        self.envs
    }

    /// Number of environments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.envs.len()
    }

    /// Whether there is none; never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.envs.is_empty()
    }

    /// Plays `steps` host-steps in each environment, with levels drawn from the actor's policy.
    ///
    /// What is learnt from is the action that was drawn, also where another one took effect: its probability is
    /// known, and what an environment makes of it is the environment's (docs/adr/0018-training-on-a-live-host.md).
    ///
    /// # Errors
    /// `Environment` if one fails, `Unfit` if one truncates an episode without its final observation
    /// or changes its disks without an end of the episode, `Torch` if libtorch fails.
    pub fn collect(&mut self, actor: Actor<'_>, steps: usize) -> Result<Rollout, LearnError> {
        let rollout = self.collect_while(actor, steps, || true)?;
        Ok(rollout.expect("it was told to go on"))
    }

    /// As [`Collector::collect`], for environments whose steps take their time: `go_on` is asked before each
    /// host-step, and `None` is what a rollout comes to that is not gone on with.
    ///
    /// # Errors
    /// As [`Collector::collect`].
    pub fn collect_while(
        &mut self,
        actor: Actor<'_>,
        steps: usize,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Rollout>, LearnError> {
        let mut rollout = Rollout::empty(&self.spec, actor.normalisers, self.envs.len());
        let mut player = Player::new(&self.spec, actor)?;
        for _ in 0..steps {
            if !go_on() {
                return Ok(None);
            }
            let decided = self.decide(&mut player, &mut rollout)?;
            for (index, (action, rows)) in decided.into_iter().enumerate() {
                let step = self.envs[index]
                    .step(&action)
                    .map_err(|source| LearnError::Environment { index, source })?;
                self.remember(index, step, rows, &mut rollout)?;
            }
        }
        for (track, observation) in rollout.tracks.iter_mut().zip(&self.observations) {
            if let Some(last) = track
                .last_mut()
                .filter(|last| matches!(last.tail, Tail::Next))
            {
                last.tail = Tail::Cut(push_first_turns(
                    &self.spec,
                    observation,
                    &mut rollout.bootstraps,
                )?);
            }
        }
        rollout.env_steps = (steps * self.envs.len()) as u64;
        Ok(Some(rollout))
    }

    /// One joint decision in each environment; turn j of all of them before turn j + 1 of any.
    fn decide(
        &mut self,
        player: &mut Player,
        rollout: &mut Rollout,
    ) -> Result<Vec<Decided>, LearnError> {
        let Self {
            spec,
            observations,
            rng,
            ..
        } = self;
        let mut joints: Vec<JointDecision<'_>> = observations
            .iter()
            .map(|obs| JointDecision::in_random_order(spec, obs, rng))
            .collect();
        let mut rows: Vec<Rows> = observations
            .iter()
            .map(|obs| Rows::new(spec, obs))
            .collect();
        while joints.iter().any(|joint| joint.view().is_some()) {
            for (joint, rows) in joints.iter_mut().zip(&mut rows) {
                let Some(view) = joint.view() else { continue };
                rollout.seen.observe(&view);
                let (samples, row) = match view.turn {
                    Turn::Disk(disk) => (&mut rollout.disks, &mut rows.disks[disk]),
                    Turn::Device(device) => (&mut rollout.devices, &mut rows.devices[device]),
                };
                *row = samples.turns.push(&view);
                let levels = player.draw(&view, samples, rng)?;
                joint.commit(&levels)?;
            }
        }
        Ok(joints
            .into_iter()
            .map(|joint| joint.finish().0)
            .zip(rows)
            .collect())
    }

    fn remember(
        &mut self,
        index: usize,
        step: Step,
        rows: Rows,
        rollout: &mut Rollout,
    ) -> Result<(), LearnError> {
        let running = &mut self.running[index];
        let begins_episode = running.steps == 0;
        running.episodic_return += f64::from(step.rewards.host_mean().unwrap_or(0.0));
        running.steps += 1;
        if step.is_last() {
            rollout
                .episodes
                .push(std::mem::replace(running, NOT_STARTED));
        }
        let last = last_of_episode(&step, index)?;
        let before = &self.observations[index];
        if do_disks_change(before, last, step.truncated, index)? {
            // What this step earned is not what came of its action. The episode ends before it.
            if let Some(cut) = rollout.tracks[index]
                .last_mut()
                .filter(|cut| matches!(cut.tail, Tail::Next))
            {
                let start = push_first_turns(&self.spec, before, &mut rollout.bootstraps)?;
                cut.tail = Tail::Cut(start);
            }
            self.observations[index] = step.observation;
            return Ok(());
        }
        let tail = match last {
            _ if step.terminated => Tail::Terminated,
            Some(last) if step.truncated => {
                Tail::Cut(push_first_turns(&self.spec, last, &mut rollout.bootstraps)?)
            }
            _ => Tail::Next,
        };
        let before = std::mem::replace(&mut self.observations[index], step.observation);
        rollout.tracks[index].push(HostStep {
            disk_rows: rows.disks,
            device_rows: rows.devices,
            rewards: step.rewards.total.to_vec(),
            counted: step.rewards.counted,
            disk_device: before.disk_device,
            disk_group: before.disk_group,
            tail,
            begins_episode,
        });
        Ok(())
    }
}

/// What the step shows of the episode that it belongs to; `None` after termination, where nothing
/// follows.
pub(crate) fn last_of_episode(
    step: &Step,
    index: usize,
) -> Result<Option<&Observation>, LearnError> {
    match (&step.final_observation, step.terminated, step.truncated) {
        (_, true, _) => Ok(None),
        (_, false, false) => Ok(Some(&step.observation)),
        (Some(last), false, true) => Ok(Some(last)),
        (None, false, true) => Err(unfit(
            index,
            "it truncated an episode without a final observation; give Step::final_observation there",
        )),
    }
}

/// Whether other disks are there at the end of a step than before it; the episode must end with it then. `last`: as
/// [`last_of_episode`] has it.
pub(crate) fn do_disks_change(
    before: &Observation,
    last: Option<&Observation>,
    truncated: bool,
    index: usize,
) -> Result<bool, LearnError> {
    let change = last.is_some_and(|last| last.disk_ids != before.disk_ids);
    if change && !truncated {
        return Err(unfit(
            index,
            "its disks changed within an episode; end the episode there",
        ));
    }
    Ok(change)
}

pub(crate) fn unfit(index: usize, problem: impl Into<String>) -> LearnError {
    LearnError::Unfit {
        index,
        problem: problem.into(),
    }
}

fn check_fits(spec: &EnvSpec, own: &EnvSpec, index: usize) -> Result<(), LearnError> {
    if own.autoreset != Autoreset::SameStep {
        let problem = format!(
            "it resets by {:?}; wrap it in AutoresetEnv with SameStep",
            own.autoreset
        );
        return Err(unfit(index, problem));
    }
    match spec.difference(own) {
        None => Ok(()),
        Some(difference) => Err(unfit(
            index,
            format!("its spec differs from the first one's: {difference}"),
        )),
    }
}

type Decided = (JointAction, Rows);

/// Rows of the samples that one joint decision made.
struct Rows {
    disks: Vec<usize>,
    devices: Vec<usize>,
}

impl Rows {
    fn new(spec: &EnvSpec, obs: &Observation) -> Self {
        let devices = if spec.device_heads.is_empty() {
            0
        } else {
            obs.device_count()
        };
        Self {
            disks: vec![0; obs.disk_count()],
            devices: vec![0; devices],
        }
    }
}

/// The network as it is served: for one turn at a time many times faster than libtorch, and equal to it within
/// 2e-6 · (1 + |x|).
struct Player {
    network: ActorCritic,
    scratch: Scratch,
    probabilities: Vec<f64>,
}

impl Player {
    fn new(spec: &EnvSpec, actor: Actor<'_>) -> Result<Self, LearnError> {
        let tensors = actor.network.tensors()?;
        Ok(Self {
            network: ActorCritic::unverified(spec, actor.normalisers, &tensors),
            scratch: Scratch::default(),
            probabilities: Vec::new(),
        })
    }

    /// Draws the levels of a turn and remembers them.
    fn draw(
        &mut self,
        view: &TurnView<'_>,
        samples: &mut Samples,
        rng: &mut Rng,
    ) -> Result<Vec<Level>, LearnError> {
        let mut scores = self.network.scores(view, &mut self.scratch)?;
        let (mut log_prob, mut levels) = (0.0, Vec::with_capacity(view.heads.len()));
        for head in 0..view.heads.len() {
            let mask = view.head_mask(head);
            let (own, later) = scores.split_at(mask.len());
            scores = later;
            levels.push(view.forced(head).unwrap_or_else(|| {
                self.probabilities.resize(mask.len(), 0.0);
                softmax_into(own, mask, &mut self.probabilities);
                let level = sample(&self.probabilities, rng);
                log_prob += self.probabilities[level].ln();
                level as Level
            }));
        }
        let taken = levels.iter().map(|level| i64::from(*level));
        samples.levels.extend(taken);
        samples.log_probs.push(log_prob as f32);
        Ok(levels)
    }
}

/// Adds the view each disk would have if it were the first to decide; returns the row of disk 0.
pub(crate) fn push_first_turns(
    spec: &EnvSpec,
    obs: &Observation,
    turns: &mut Turns,
) -> Result<usize, LearnError> {
    let start = turns.len();
    for_each_first_turn(spec, obs, |view| {
        turns.push(view);
    })?;
    Ok(start)
}

/// Shows the view each disk would have if it were the first to decide, in the order of the disks.
pub(crate) fn for_each_first_turn(
    spec: &EnvSpec,
    obs: &Observation,
    mut look: impl FnMut(&TurnView<'_>),
) -> Result<(), LearnError> {
    let devices = if spec.device_heads.is_empty() {
        0
    } else {
        obs.device_count()
    };
    let disks = obs.disk_count();
    for first in 0..disks {
        let others = (0..disks).filter(|disk| *disk != first).map(Turn::Disk);
        let order = std::iter::once(Turn::Disk(first))
            .chain(others)
            .chain((0..devices).map(Turn::Device));
        let joint = JointDecision::new(spec, obs, order.collect())?;
        look(&joint.view().expect("the order names at least disk `first`"));
    }
    Ok(())
}
