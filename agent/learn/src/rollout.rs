//! Playing many environments together, and what is remembered of it.
//!
//! In each host-step the disks of every environment decide in turn; turn j of all environments is
//! one forward pass. Environments may differ in their numbers of disks, channels and devices, and
//! each new episode may have others.

use blkpilot_env::{
    Autoreset, EnvSpec, Environment, JointDecision, Level, Observation, ResetOptions, Rng, Step,
    Turn, TurnView,
};
use blkpilot_models::categorical::{sample, softmax};
use blkpilot_models::normaliser::{Normaliser, PerTable, Statistics};
use tch::{Kind, Tensor, no_grad};

use crate::LearnError;
use crate::gae::{Discount, advantages};
use crate::network::Network;
use crate::turns::Turns;

/// What plays: a network, and the normalisers it goes with.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The network.
    pub network: &'a Network,
    /// Mean and deviation per column.
    pub normalisers: &'a PerTable<Normaliser>,
}

/// An episode that ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpisodeEnd {
    /// Sum over its steps of the host mean of the own rewards; a step in which no disk counts adds 0.
    pub episodic_return: f64,
    /// Its steps.
    pub steps: u32,
}

/// Turns with the levels drawn in them.
#[derive(Debug)]
pub struct Samples {
    /// What was seen; S rows.
    pub turns: Turns,
    /// The levels drawn; [S, heads].
    pub levels: Vec<i64>,
    /// Log-probability of the levels under the policy that drew them, forced heads left out; [S].
    pub log_probs: Vec<f32>,
}

/// What is remembered of some host-steps in each environment.
#[derive(Debug)]
pub struct Rollout {
    /// Turns of disks.
    pub disks: Samples,
    /// Turns of devices.
    pub devices: Samples,
    /// Episodes that ended.
    pub episodes: Vec<EpisodeEnd>,
    /// Host-steps played, over all environments.
    pub env_steps: u64,
    /// What the network was shown.
    pub seen: Statistics,
    /// Per environment its host-steps in order.
    tracks: Vec<Vec<HostStep>>,
    /// What follows where a track is cut, one row per disk.
    bootstraps: Turns,
}

#[derive(Debug)]
struct HostStep {
    /// Row in `Rollout::disks` of each disk.
    disk_rows: Vec<usize>,
    /// Row in `Rollout::devices` of each device that decided.
    device_rows: Vec<usize>,
    rewards: Vec<f32>,
    counted: Vec<bool>,
    disk_device: Vec<usize>,
    disk_group: Vec<Option<usize>>,
    tail: Tail,
}

/// What comes after a host-step.
#[derive(Debug, Clone, Copy)]
enum Tail {
    /// The next one of the track.
    Next,
    /// Nothing: the episode terminated.
    Terminated,
    /// Something that is not in the track: an episode that was truncated, or the end of the rollout.
    /// Its value per disk is that of the rows from here on in `Rollout::bootstraps`.
    Cut(usize),
}

/// What a rollout was worth, per sample.
#[derive(Debug)]
pub struct Estimates {
    /// Value of each disk's turn; [S].
    pub values: Vec<f32>,
    /// Value plus the disk's own advantage: what the critic should have said; [S].
    pub returns: Vec<f32>,
    /// What each disk's turn is credited with: the mean advantage of the disks on its IOThread; [S].
    pub disk_advantages: Vec<f32>,
    /// Whether a disk's turn teaches the policy: a head had a choice and a credited disk counted; [S].
    pub disk_weights: Vec<bool>,
    /// What each device's turn is credited with: the mean advantage of its disks.
    pub device_advantages: Vec<f32>,
    /// Whether a device's turn teaches the policy.
    pub device_weights: Vec<bool>,
}

/// Environments under way.
#[derive(Debug)]
pub struct Collector<E> {
    spec: EnvSpec,
    envs: Vec<E>,
    observations: Vec<Observation>,
    running: Vec<EpisodeEnd>,
    rng: Rng,
}

const NOT_STARTED: EpisodeEnd = EpisodeEnd {
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
    /// # Errors
    /// `Environment` if one fails, `Torch` if libtorch does.
    pub fn collect(&mut self, actor: Actor<'_>, steps: usize) -> Result<Rollout, LearnError> {
        let mut rollout = Rollout::empty(&self.spec, actor.normalisers, self.envs.len());
        for _ in 0..steps {
            let decided = self.decide(actor.network, &mut rollout)?;
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
        Ok(rollout)
    }

    /// One joint decision in each environment.
    fn decide(
        &mut self,
        network: &Network,
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
            let starts = (rollout.disks.turns.len(), rollout.devices.turns.len());
            for (joint, rows) in joints.iter().zip(&mut rows) {
                if let Some(view) = joint.view() {
                    rollout.seen.observe(&view);
                    match view.turn {
                        Turn::Disk(disk) => rows.disks[disk] = rollout.disks.turns.push(&view),
                        Turn::Device(device) => {
                            rows.devices[device] = rollout.devices.turns.push(&view);
                        }
                    }
                }
            }
            let disk_scores = scores(&rollout.disks.turns, starts.0, |batch| {
                network.scores(batch)
            })?;
            let device_scores = scores(&rollout.devices.turns, starts.1, |batch| {
                network.device_scores(batch)
            })?;
            let (mut disk, mut device) = (0, 0);
            for joint in &mut joints {
                let Some(view) = joint.view() else { continue };
                let (samples, scores, at) = match view.turn {
                    Turn::Disk(_) => (&mut rollout.disks, &disk_scores, &mut disk),
                    Turn::Device(_) => (&mut rollout.devices, &device_scores, &mut device),
                };
                let levels = samples.draw(&view, scores, *at, rng);
                *at += 1;
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
        running.episodic_return += f64::from(step.rewards.host_mean().unwrap_or(0.0));
        running.steps += 1;
        let tail = match (&step.final_observation, step.terminated) {
            (_, true) => Tail::Terminated,
            (Some(last), false) => {
                Tail::Cut(push_first_turns(&self.spec, last, &mut rollout.bootstraps)?)
            }
            (None, false) => Tail::Next,
        };
        if step.is_last() {
            rollout
                .episodes
                .push(std::mem::replace(running, NOT_STARTED));
        } else if step.observation.disk_count() != rows.disks.len() {
            return Err(unfit(
                index,
                "its number of disks changed within an episode; end the episode there",
            ));
        }
        let before = std::mem::replace(&mut self.observations[index], step.observation);
        rollout.tracks[index].push(HostStep {
            disk_rows: rows.disks,
            device_rows: rows.devices,
            rewards: step.rewards.total.to_vec(),
            counted: step.rewards.counted,
            disk_device: before.disk_device,
            disk_group: before.disk_group,
            tail,
        });
        Ok(())
    }
}

fn unfit(index: usize, problem: impl Into<String>) -> LearnError {
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

type Decided = (blkpilot_env::JointAction, Rows);

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

/// Scores of the turns from `start` on: per head [rows, levels].
fn scores(
    turns: &Turns,
    start: usize,
    forward: impl FnOnce(&crate::turns::Batch) -> Result<Vec<Tensor>, tch::TchError>,
) -> Result<Vec<Scores>, LearnError> {
    if start == turns.len() {
        return Ok(Vec::new());
    }
    let scores = no_grad(|| forward(&turns.batch(start..turns.len())?))?;
    scores.iter().map(Scores::new).collect()
}

struct Scores {
    width: usize,
    values: Vec<f32>,
}

impl Scores {
    fn new(tensor: &Tensor) -> Result<Self, LearnError> {
        let (_, width) = tensor.size2()?;
        let values = Vec::try_from(tensor.f_contiguous()?.f_view([-1_i64])?)?;
        Ok(Self {
            width: width as usize,
            values,
        })
    }
}

impl Samples {
    fn new(turns: Turns) -> Self {
        Self {
            turns,
            levels: Vec::new(),
            log_probs: Vec::new(),
        }
    }

    /// Draws the levels of row `at` of `scores` and remembers them.
    fn draw(
        &mut self,
        view: &TurnView<'_>,
        scores: &[Scores],
        at: usize,
        rng: &mut Rng,
    ) -> Vec<Level> {
        let mut log_prob = 0.0;
        let levels: Vec<Level> = (0..view.heads.len())
            .map(|head| {
                if let Some(level) = view.forced(head) {
                    return level;
                }
                let mask = view.head_mask(head);
                let Scores { width, values } = &scores[head];
                let probabilities = softmax(&values[at * width..][..mask.len()], mask);
                let level = sample(&probabilities, rng);
                log_prob += probabilities[level].ln();
                level as Level
            })
            .collect();
        self.levels
            .extend(levels.iter().map(|level| i64::from(*level)));
        self.log_probs.push(log_prob as f32);
        levels
    }
}

/// The view each disk would have if it were the first to decide; returns the row of disk 0.
fn push_first_turns(
    spec: &EnvSpec,
    obs: &Observation,
    turns: &mut Turns,
) -> Result<usize, LearnError> {
    let start = turns.len();
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
        turns.push(&joint.view().expect("the order names at least disk `first`"));
    }
    Ok(start)
}

impl Rollout {
    fn empty(spec: &EnvSpec, normalisers: &PerTable<Normaliser>, envs: usize) -> Self {
        Self {
            disks: Samples::new(Turns::of_disks(spec, normalisers)),
            devices: Samples::new(Turns::of_devices(spec, normalisers)),
            episodes: Vec::new(),
            env_steps: 0,
            seen: Statistics::new(spec),
            tracks: (0..envs).map(|_| Vec::new()).collect(),
            bootstraps: Turns::of_disks(spec, normalisers),
        }
    }

    /// Advantages per disk by GAE(λ) across time, with the network's values. A disk that does not
    /// count in a step has reward 0 there.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn estimate(&self, network: &Network, discount: Discount) -> Result<Estimates, LearnError> {
        let values = values(network, &self.disks.turns)?;
        let ahead = values_or_none(network, &self.bootstraps)?;
        let mut own = vec![0.0; values.len()];
        for track in &self.tracks {
            for episode in track.chunk_by(|step, _| matches!(step.tail, Tail::Next)) {
                estimate_episode(episode, &values, &ahead, discount, &mut own);
            }
        }
        let returns = values
            .iter()
            .zip(&own)
            .map(|(value, advantage)| value + advantage)
            .collect();
        let mut estimates = Estimates {
            disk_advantages: vec![0.0; values.len()],
            disk_weights: vec![false; values.len()],
            device_advantages: vec![0.0; self.devices.turns.len()],
            device_weights: vec![false; self.devices.turns.len()],
            values,
            returns,
        };
        for step in self.tracks.iter().flatten() {
            self.credit(step, &own, &mut estimates);
        }
        Ok(estimates)
    }

    /// Credits each turn with the mean advantage of the disks it decides for: those on one IOThread
    /// share its choices and its time, those on one device its scheduler.
    fn credit(&self, step: &HostStep, own: &[f32], estimates: &mut Estimates) {
        for (disk, &row) in step.disk_rows.iter().enumerate() {
            let group = step.disk_group.get(disk).copied().flatten();
            let shares = |other: usize| {
                other == disk || (group.is_some() && step.disk_group[other] == group)
            };
            if let Some(mean) = step.mean_advantage(own, shares) {
                estimates.disk_advantages[row] = mean;
                estimates.disk_weights[row] = self.disks.turns.has_choice(row);
            }
        }
        for (device, &row) in step.device_rows.iter().enumerate() {
            if let Some(mean) = step.mean_advantage(own, |disk| step.disk_device[disk] == device) {
                estimates.device_advantages[row] = mean;
                estimates.device_weights[row] = self.devices.turns.has_choice(row);
            }
        }
    }
}

impl HostStep {
    /// Mean advantage over those of the disks `of` that counted; `None` if none did.
    fn mean_advantage(&self, advantages: &[f32], of: impl Fn(usize) -> bool) -> Option<f32> {
        let counted = (0..self.disk_rows.len()).filter(|disk| self.counted[*disk] && of(*disk));
        let credited: Vec<f32> = counted
            .map(|disk| advantages[self.disk_rows[disk]])
            .collect();
        (!credited.is_empty()).then(|| credited.iter().sum::<f32>() / credited.len() as f32)
    }
}

/// Writes the advantages of one stretch without an end inside to the rows of its samples.
fn estimate_episode(
    steps: &[HostStep],
    values: &[f32],
    ahead: &[f32],
    discount: Discount,
    out: &mut [f32],
) {
    let Some(last) = steps.last() else { return };
    for disk in 0..last.disk_rows.len() {
        let reward = |step: &HostStep| {
            if step.counted[disk] {
                step.rewards[disk]
            } else {
                0.0
            }
        };
        let rewards: Vec<f32> = steps.iter().map(reward).collect();
        let tail = match last.tail {
            Tail::Cut(start) => ahead[start + disk],
            Tail::Terminated | Tail::Next => 0.0,
        };
        let own = steps.iter().map(|step| values[step.disk_rows[disk]]);
        let values: Vec<f32> = own.chain([tail]).collect();
        let advantages = advantages(&rewards, &values, discount)
            .expect("one value per step and one for the tail");
        for (step, advantage) in steps.iter().zip(advantages) {
            out[step.disk_rows[disk]] = advantage;
        }
    }
}

fn values(network: &Network, turns: &Turns) -> Result<Vec<f32>, LearnError> {
    let values = no_grad(|| {
        network
            .values(&turns.batch(0..turns.len())?)?
            .f_to_kind(Kind::Float)
    })?;
    Ok(Vec::try_from(values)?)
}

fn values_or_none(network: &Network, turns: &Turns) -> Result<Vec<f32>, LearnError> {
    if turns.is_empty() {
        Ok(Vec::new())
    } else {
        values(network, turns)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use blkpilot_env::cartpole::CartPole;
    use blkpilot_env::sim::{Generator, SimHost, presets};
    use blkpilot_env::vector::AutoresetEnv;
    use blkpilot_env::{EnvError, JointAction, Masks, Rewards, Table};
    use blkpilot_models::{Architecture, Tensor as Plain};
    use ndarray::{Array1, Array2, Array3};
    use rand::SeedableRng as _;

    use super::*;

    const HALF: Discount = Discount {
        gamma: 0.5,
        lambda: 0.5,
    };

    /// Episodes of three steps with reward 1 for each of two disks; the second is idle throughout.
    struct Timer {
        spec: EnvSpec,
        step: u32,
        terminates: bool,
    }

    impl Timer {
        fn new(terminates: bool) -> AutoresetEnv<Self> {
            let timer = Self {
                spec: CartPole::default_spec(),
                step: 0,
                terminates,
            };
            AutoresetEnv::new(timer, Autoreset::SameStep)
        }

        fn observe(&self) -> Observation {
            let action = JointAction {
                disks: Array2::zeros((2, 1)),
                devices: Array2::zeros((0, 0)),
            };
            Observation {
                disk_ids: vec!["a".to_owned(), "b".to_owned()],
                disks: Table::zeros(2, 4),
                pairs: Array3::zeros((2, 0, 0)),
                host: Table::zeros(1, 0),
                disk_group: vec![None, None],
                current: action.clone(),
                default: action,
                masks: Masks::all_allowed(&self.spec, 2, 0, 0),
                ..Observation::default()
            }
        }
    }

    impl Environment for Timer {
        fn spec(&self) -> &EnvSpec {
            &self.spec
        }

        fn reset(&mut self, _: Option<u64>, _: &ResetOptions) -> Result<Observation, EnvError> {
            self.step = 0;
            Ok(self.observe())
        }

        fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
            self.step += 1;
            let is_last = self.step == 3;
            Ok(Step {
                observation: self.observe(),
                rewards: Rewards {
                    total: Array1::ones(2),
                    own: Array1::ones(2),
                    terms: Array2::ones((2, 1)),
                    counted: vec![true, false],
                },
                executed: action.clone(),
                terminated: is_last && self.terminates,
                truncated: is_last && !self.terminates,
                final_observation: None,
            })
        }
    }

    /// A network that gives every turn the value 2.
    fn flat(spec: &EnvSpec) -> Network {
        let architecture = Architecture::default();
        let zeros = |shape: Vec<usize>| Plain {
            data: vec![0.0; shape.iter().product()],
            shape,
        };
        let shapes = architecture.tensor_shapes(spec).into_iter();
        let mut tensors: BTreeMap<_, _> =
            shapes.map(|(name, shape)| (name, zeros(shape))).collect();
        tensors.insert(
            "critic.value.bias".to_owned(),
            Plain {
                shape: vec![1],
                data: vec![2.0],
            },
        );
        Network::from_tensors(spec, architecture, &tensors, Kind::Float).unwrap()
    }

    fn identity(spec: &EnvSpec) -> PerTable<Normaliser> {
        PerTable::build(spec, |_, features| Normaliser::identity(features.len()))
    }

    /// Advantages of both disks in four host-steps: one whole episode and the first step of another.
    fn four_steps(terminates: bool) -> (Rollout, [Vec<f32>; 2]) {
        let spec = CartPole::default_spec();
        let (network, normalisers) = (flat(&spec), identity(&spec));
        let mut collector =
            Collector::new(vec![(Timer::new(terminates), 0)], Rng::seed_from_u64(0)).unwrap();
        let actor = Actor {
            network: &network,
            normalisers: &normalisers,
        };
        let rollout = collector.collect(actor, 4).unwrap();
        let estimates = rollout.estimate(&network, HALF).unwrap();
        let advantages = [0, 1].map(|disk| {
            let rows = rollout.tracks[0].iter().map(|step| step.disk_rows[disk]);
            rows.map(|row| estimates.returns[row] - estimates.values[row])
                .collect()
        });
        for step in &rollout.tracks[0] {
            assert!(
                estimates.disk_weights[step.disk_rows[0]]
                    && !estimates.disk_weights[step.disk_rows[1]]
            );
        }
        (rollout, advantages)
    }

    /// δ = 1 + ½·2 − 2 = 0 wherever something follows, also after a truncation.
    #[test]
    fn truncation_and_the_end_of_the_rollout_bootstrap() {
        let (rollout, [advantages, _]) = four_steps(false);
        assert_eq!(advantages, [0.0; 4]);
        assert_eq!(
            rollout.episodes,
            [EpisodeEnd {
                episodic_return: 3.0,
                steps: 3
            }]
        );
    }

    /// δ₂ = 1 − 2 = −1, carried back by ¼ per step, and not into the next episode.
    #[test]
    fn termination_does_not_bootstrap() {
        let (_, [advantages, _]) = four_steps(true);
        assert_eq!(advantages, [-0.0625, -0.25, -1.0, 0.0]);
    }

    /// δ = 0 + ½·2 − 2 = −1 in each step: A₂ = −1 − ¼·0 at the cut, −1.25, −1.3125.
    #[test]
    fn a_disk_that_does_not_count_has_reward_zero_and_weight_zero() {
        let (_, [_, idle]) = four_steps(false);
        assert_eq!(idle, [-1.3125, -1.25, -1.0, -1.0]);
    }

    fn play(host: SimHost, steps: usize) -> (Rollout, Network) {
        let spec = host.spec().clone();
        let network =
            Network::new(&spec, Architecture::default(), &mut Rng::seed_from_u64(5)).unwrap();
        let normalisers = identity(&spec);
        let mut collector = Collector::new(
            vec![(AutoresetEnv::new(host, Autoreset::SameStep), 9)],
            Rng::seed_from_u64(6),
        )
        .unwrap();
        let actor = Actor {
            network: &network,
            normalisers: &normalisers,
        };
        (collector.collect(actor, steps).unwrap(), network)
    }

    #[test]
    fn log_probs_of_a_rollout_are_those_the_network_gives_afterwards() {
        let generator = Generator {
            steps: 5,
            schedulers: true,
            ..Generator::default()
        };
        let (rollout, network) = play(SimHost::generated(generator).unwrap(), 12);
        let Samples {
            turns,
            levels,
            log_probs,
        } = &rollout.disks;
        let batch = turns.batch(0..turns.len()).unwrap();
        let taken = Tensor::from_slice(levels).view([turns.len() as i64, -1]);
        let scores = network.scores(&batch).unwrap();
        let judged = crate::categorical::judge(&scores, &batch, &taken).unwrap();
        let gap = (judged.log_prob - Tensor::from_slice(log_probs))
            .abs()
            .max()
            .double_value(&[]);
        assert!(gap < 1e-5, "{gap}");
        assert!(
            rollout.devices.turns.len() >= 12,
            "each device decides in each host-step"
        );
    }

    #[test]
    fn a_device_is_credited_with_the_mean_of_its_disks() {
        let (rollout, network) = play(SimHost::fixed(presets::noisy_neighbour()).unwrap(), 3);
        let estimates = rollout.estimate(&network, HALF).unwrap();
        for step in &rollout.tracks[0] {
            let own = |disk: usize| estimates.disk_advantages[step.disk_rows[disk]];
            let device = estimates.device_advantages[step.device_rows[0]];
            assert!((device - (own(0) + own(1)) / 2.0).abs() < 1e-6);
        }
    }

    #[test]
    fn disks_on_one_iothread_share_their_credit() {
        let mut scenario = presets::identical_disks(3, 2);
        scenario.disks[1].iothread = scenario.disks[0].iothread;
        let (rollout, network) = play(SimHost::fixed(scenario).unwrap(), 3);
        let estimates = rollout.estimate(&network, HALF).unwrap();
        for step in &rollout.tracks[0] {
            let credit = |disk: usize| estimates.disk_advantages[step.disk_rows[disk]];
            let own = |disk: usize| {
                estimates.returns[step.disk_rows[disk]] - estimates.values[step.disk_rows[disk]]
            };
            assert!((credit(0) - (own(0) + own(1)) / 2.0).abs() < 1e-6);
            assert_eq!(credit(0), credit(1));
            assert_eq!(credit(2), own(2));
        }
    }

    #[test]
    fn an_environment_that_does_not_reset_itself_is_refused() {
        let error = Collector::new(vec![(CartPole::new(0), 0)], Rng::seed_from_u64(0)).unwrap_err();
        assert!(error.to_string().contains("AutoresetEnv"), "{error}");
    }
}
