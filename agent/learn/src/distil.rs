//! Distilling a planner that knows more than a policy may: in each turn that the policy plays, the planner says what
//! each level would have cost, and the network learns these costs from what a policy sees.
//!
//! The planner is that of [`blkpilot_models::oracle`]: it knows in which phase each disk of a simulated host is, and what
//! a host comes to under a setting. In a turn it prices the levels of one disk while those that have decided keep what
//! they chose and the others what they have: the sequence that the policy itself decides in. What it prices is the mean
//! of the whole host, so that a disk learns what it does to its neighbours.
//!
//! What is played is drawn from the policy that learns, so that it is taught where it gets to by itself (DAgger: Ross,
//! Gordon and Bagnell 2011), by the costs of all levels and not by the best one alone (AggreVaTe: Ross and Bagnell
//! 2014). Where costs depend on what is not seen, the network comes to what they are on average, and minimises that; it
//! never changes a setting only to find something out (Q-MDP: Littman, Cassandra and Kaelbling 1995).
//!
//! What was priced is remembered and learnt from again and again, as DAgger aggregates: an update that looked at its own
//! turns alone would forget those of other hosts.
//!
//! Scores are costs, negated, in units of `temperature`, relative to their mean over the levels allowed: a checkpoint is
//! served as any other, and sampled from it is Boltzmann exploration.

mod loss;
mod memory;
mod play;

use std::collections::BTreeMap;

use blkpilot_env::sim::SimHost;
use blkpilot_env::{EnvSpec, Environment, Rng};
use blkpilot_models::network::{ActorCritic, Scratch};
use blkpilot_models::normaliser::{Normaliser, PerTable, Range, Statistics};
use blkpilot_models::oracle::{OracleError, Planner};
use blkpilot_models::{Architecture, Checkpoint, Manifest};
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::adam::{Adam, AdamConfig, clip_gradients};
use crate::collector::{Collector, Resumable, unfit};
use crate::network::Network;
use crate::ppo::Schedule;
use crate::rollout::EpisodeEnd;
use crate::stored::{Stored, write_moments};
use crate::{LearnError, use_one_thread};
use memory::Memory;
use play::{Class, Played, Pupil};

pub use loss::loss;

/// What distillation needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct DistilConfig {
    /// Host-steps per environment and update.
    pub steps: usize,
    /// How often a turn that was priced is learnt from, on average, while it is remembered.
    pub epochs: usize,
    /// Disks' turns per minibatch.
    pub minibatch: usize,
    /// Most turns that are remembered.
    pub replay_capacity: usize,
    /// Cost that a unit of score stands for, in reward per interval.
    pub temperature: f64,
    /// Turns of a host-step that the planner prices, on average, however many disks there are; no turn is priced twice.
    /// It takes most of the time.
    pub priced_per_step: f64,
    /// Threads that play and price.
    pub threads: usize,
    /// Step size of Adam.
    pub learning_rate: Schedule,
    /// Greatest norm of the gradient.
    pub max_grad_norm: f64,
}

/// What one update did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DistilReport {
    /// Step size of Adam.
    pub learning_rate: f64,
    /// See [`loss`], in units of the temperature.
    pub loss: f64,
    /// What the levels drawn in the turns that were priced cost, a disk at a time, in reward per interval.
    pub cost: f64,
    /// What the levels with the greatest scores would have cost, before the update.
    pub greedy_cost: f64,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// Turns that were priced.
    pub turns: usize,
    /// Turns that are remembered.
    pub remembered: usize,
}

/// An environment with a simulated host in it, whose phases a planner may know.
pub trait Planned: Environment {
    /// The host; `None` where it is none.
    fn host(&self) -> Option<&SimHost>;
}

impl Planned for Resumable<SimHost> {
    fn host(&self) -> Option<&SimHost> {
        Some(self.inner().inner())
    }
}

/// What of a learner stands in no other part of a checkpoint: under [`STATE`] in its manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    updates: u64,
    adam_steps: u64,
    statistics: Statistics,
    rng: Rng,
    /// Ranges of the policy that it began from, if it began from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<PerTable<Range>>,
}

/// Key of the learner's state in a manifest.
const STATE: &str = "distil";

/// A learner.
#[derive(Debug)]
pub struct Distil {
    spec: EnvSpec,
    config: DistilConfig,
    seed: u64,
    network: Network,
    adam: Adam,
    statistics: Statistics,
    normalisers: PerTable<Normaliser>,
    /// Ranges of the policy that it began from; its normalisers stay then.
    start: Option<PerTable<Range>>,
    memory: Memory,
    rng: Rng,
    updates: u64,
    env_steps: u64,
    /// Of the episode of each environment; made anew where one is missing.
    planners: Vec<Option<Planner>>,
}

impl Distil {
    /// A learner for environments with `spec`; everything random follows from `seed`.
    ///
    /// # Errors
    /// `Unfit` if devices have heads, `Torch` if libtorch fails.
    pub fn new(
        spec: &EnvSpec,
        architecture: Architecture,
        config: DistilConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        let mut rng = Rng::seed_from_u64(seed);
        let network = Network::new(spec, architecture, &mut rng)?;
        Self::with_network(spec, network, config, seed, rng)
    }

    /// A learner that begins from a policy, whoever has learnt it: weights, normalisers and ranges are that policy's,
    /// all else is new. The weights know their inputs as these normalisers show them, so they stay as they are; ranges
    /// are widened to what is seen.
    ///
    /// # Errors
    /// As [`Distil::new`]; `Checkpoint` if the policy's spec does not fit `spec`, with the difference.
    pub fn start_from(
        checkpoint: &Checkpoint,
        spec: &EnvSpec,
        config: DistilConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        let (network, manifest) = (Network::of_policy(checkpoint, spec)?, &checkpoint.manifest);
        let learner = Self::with_network(spec, network, config, seed, Rng::seed_from_u64(seed))?;
        Ok(Self {
            normalisers: manifest.normalisers.clone(),
            start: Some(manifest.seen.clone()),
            ..learner
        })
    }

    fn with_network(
        spec: &EnvSpec,
        network: Network,
        config: DistilConfig,
        seed: u64,
        rng: Rng,
    ) -> Result<Self, LearnError> {
        if !spec.device_heads.is_empty() {
            let problem = "its devices decide too, and only the turns of disks are distilled; take them out \
                           (generator.schedulers = false), or train with PPO";
            return Err(unfit(0, problem));
        }
        Ok(Self {
            start: None,
            adam: Adam::new(AdamConfig::default(), network.parameters())?,
            normalisers: PerTable::build(spec, |_, features| Normaliser::identity(features.len())),
            spec: spec.clone(),
            memory: Memory::new(config.replay_capacity),
            config,
            seed,
            network,
            statistics: Statistics::new(spec),
            rng,
            updates: 0,
            env_steps: 0,
            planners: vec![],
        })
    }

    /// Goes on from a checkpoint of [`Distil::checkpoint`] with what [`Distil::memory`] gave as if it had not been
    /// interrupted. Without a memory it has forgotten all that was priced, and goes on with what it has learnt.
    ///
    /// # Errors
    /// `NoState` if it is of another learner, or its state or memory is missing or does not fit; `Torch` if libtorch
    /// fails.
    pub fn resume(
        checkpoint: &Checkpoint,
        memory: Option<&[u8]>,
        config: DistilConfig,
    ) -> Result<Self, LearnError> {
        let Checkpoint { manifest, tensors } = checkpoint;
        let state = manifest.extra.get(STATE).cloned().unwrap_or_default();
        let state: State = serde_json::from_value(state).map_err(|error| LearnError::NoState {
            problem: format!("extra.{STATE} of its manifest: {error}"),
        })?;
        let learner = Self::new(&manifest.spec, manifest.architecture, config, manifest.seed)?;
        let stored = Stored { manifest, tensors };
        let network = stored.network("")?;
        let moments = stored.moments("", &network)?;
        let memory = match memory {
            Some(bytes) => {
                Memory::from_bytes(&manifest.spec, bytes, learner.config.replay_capacity)?
            }
            None => Memory::new(learner.config.replay_capacity),
        };
        Ok(Self {
            memory,
            adam: Adam::resume(AdamConfig::default(), state.adam_steps, moments),
            network,
            normalisers: manifest.normalisers.clone(),
            statistics: state.statistics,
            start: state.start,
            rng: state.rng,
            updates: state.updates,
            env_steps: manifest.env_steps,
            ..learner
        })
    }

    /// Host-steps played.
    #[must_use]
    pub fn env_steps(&self) -> u64 {
        self.env_steps
    }

    /// Updates made.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Plays, and learns from what the planner says of it. `progress` in [0, 1] is the share of the training that is
    /// done.
    ///
    /// # Errors
    /// `Unfit` if there is no simulated host in an environment, `Environment` if one fails, `Planning` if a planner
    /// does; `Diverged` if a loss or a gradient is not finite; `Torch` if libtorch fails.
    pub fn update<E: Planned + Send>(
        &mut self,
        collector: &mut Collector<E>,
        progress: f64,
    ) -> Result<(DistilReport, Vec<EpisodeEnd>), LearnError> {
        let mut played = self.play(collector)?;
        let turns = played.lessons.len();
        played
            .lessons
            .drain(..)
            .for_each(|own| self.memory.push(own));
        self.statistics.merge(&played.seen);
        if self.start.is_none() {
            self.normalisers = self.statistics.normalisers();
        }
        let mut report = self.learn(turns, progress)?;
        report.cost = mean(&played.taken);
        report.greedy_cost = mean(&played.greedy);
        self.env_steps += (self.config.steps * collector.len()) as u64;
        self.updates += 1;
        Ok((report, played.episodes))
    }

    /// The policy as it stands, with all but the memory that [`Distil::resume`] needs. `config` is kept as it is, for
    /// whoever reads the manifest.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn checkpoint(&self, config: serde_json::Value) -> Result<Checkpoint, LearnError> {
        let state = State {
            updates: self.updates,
            adam_steps: self.adam.steps(),
            statistics: self.statistics.clone(),
            rng: self.rng.clone(),
            start: self.start.clone(),
        };
        let state = serde_json::to_value(state).expect("numbers and text");
        let manifest = Manifest {
            normalisers: self.normalisers.clone(),
            seen: match &self.start {
                Some(start) => self.statistics.widened(start),
                None => self.statistics.ranges(),
            },
            algorithm: "distil".to_owned(),
            config,
            seed: self.seed,
            env_steps: self.env_steps,
            extra: BTreeMap::from([(STATE.to_owned(), state)]),
            ..Manifest::untrained(&self.spec, self.network.architecture())
        };
        let mut tensors = self.network.tensors()?;
        write_moments("", self.adam.moments(), &mut tensors)?;
        Ok(Checkpoint { manifest, tensors })
    }

    /// What it remembers, for [`Distil::resume`].
    #[must_use]
    pub fn memory(&self) -> Vec<u8> {
        self.memory.to_bytes()
    }

    /// Each environment by itself, with random numbers of its own: how many threads there are changes nothing.
    fn play<E: Planned + Send>(
        &mut self,
        collector: &mut Collector<E>,
    ) -> Result<Played, LearnError> {
        let tensors = self.network.tensors()?;
        let class = Class {
            spec: &self.spec,
            network: &ActorCritic::unverified(&self.spec, &self.normalisers, &tensors),
            config: &self.config,
        };
        self.planners.resize_with(collector.len(), || None);
        let mut pupils: Vec<Pupil<'_, E>> = Vec::with_capacity(collector.len());
        let own = collector.envs.iter_mut().zip(&mut collector.observations);
        let own = own.zip(&mut collector.running).zip(&mut self.planners);
        for (index, (((env, seen), running), planner)) in own.enumerate() {
            pupils.push(Pupil {
                index,
                env,
                seen,
                running,
                planner,
                rng: Rng::seed_from_u64(collector.rng.random()),
                scratch: Scratch::default(),
                probabilities: vec![],
                played: Played::empty(&self.spec),
            });
        }
        let share = pupils.len().div_ceil(self.config.threads.max(1));
        let results: Vec<Result<(), LearnError>> = std::thread::scope(|scope| {
            let shares: Vec<_> = pupils
                .chunks_mut(share)
                .map(|own| scope.spawn(|| own.iter_mut().try_for_each(|pupil| pupil.play(class))))
                .collect();
            let joined = shares.into_iter().map(|share| match share.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        results.into_iter().collect::<Result<(), _>>()?;
        let mut all = Played::empty(&self.spec);
        for pupil in pupils {
            all.append(pupil.played);
        }
        Ok(all)
    }

    /// From what is remembered, after so many more turns were.
    fn learn(&mut self, turns: usize, progress: f64) -> Result<DistilReport, LearnError> {
        let rate = self.config.learning_rate.at(progress);
        let mut report = DistilReport {
            learning_rate: rate,
            turns,
            remembered: self.memory.len(),
            ..DistilReport::default()
        };
        let size = self.config.minibatch;
        let steps = (turns * self.config.epochs).div_ceil(size);
        for _ in 0..steps {
            let drawn = self
                .memory
                .draw(size, &self.spec, &self.normalisers, &mut self.rng);
            let (batch, targets) = drawn?;
            let loss = loss(&self.network.scores(&batch)?, &batch, &targets)?;
            report.loss += self.finite("the loss", loss.f_double_value(&[])?)? / steps as f64;
            let parameters: Vec<&Tensor> = self.network.parameters().values().collect();
            let gradients = Tensor::f_run_backward(&[&loss], &parameters, false, false)?;
            let norm = clip_gradients(&gradients, self.config.max_grad_norm)?;
            report.grad_norm += self.finite("the norm of the gradient", norm)? / steps as f64;
            self.adam
                .step(self.network.parameters(), &gradients, rate)?;
        }
        Ok(report)
    }

    fn finite(&self, quantity: &'static str, value: f64) -> Result<f64, LearnError> {
        if value.is_finite() {
            return Ok(value);
        }
        Err(LearnError::Diverged {
            update: self.updates,
            quantity,
            value,
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl From<OracleError> for LearnError {
    fn from(source: OracleError) -> Self {
        Self::Planning(source)
    }
}

#[cfg(test)]
mod tests;
