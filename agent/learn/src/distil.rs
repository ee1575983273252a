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
//! 2014). Of costs that depend on what is not seen, least squares learns the mean, so that the policy minimises the
//! expected cost; it never changes a setting only to find something out (Q-MDP: Littman, Cassandra and Kaelbling 1995).
//!
//! Features are normalised by what was seen before an update: in the first one they are as they are, and it teaches
//! little.
//!
//! Scores are costs, negated, in units of `temperature`, relative to their mean over the levels allowed: a checkpoint is
//! served as any other, and sampled from it is Boltzmann exploration.

use std::collections::BTreeMap;

use blkpilot_env::sim::SimHost;
use blkpilot_env::{EnvSpec, Environment, JointDecision, Level, Observation, Rng, Turn, TurnView};
use blkpilot_models::categorical::{sample, softmax_into};
use blkpilot_models::network::{ActorCritic, Scratch};
use blkpilot_models::normaliser::{Normaliser, PerTable, Statistics};
use blkpilot_models::oracle::{LevelCost, Limits, Moment, OracleError, Planner};
use blkpilot_models::{Architecture, Checkpoint, Manifest};
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use crate::adam::{Adam, AdamConfig, clip_gradients};
use crate::collector::{Collector, NOT_STARTED, Resumable, unfit};
use crate::network::Network;
use crate::ppo::Schedule;
use crate::rollout::EpisodeEnd;
use crate::stored::{Stored, write_moments};
use crate::turns::{Batch, Turns};
use crate::{LearnError, use_one_thread};

/// Cost above which levels are alike: too bad to tell apart, in reward per interval.
const MOST_COST: f64 = 1.0;
/// Blocks of intervals in which a host has to settle: see [`Limits::blocks`].
const BLOCKS: u32 = 4;
/// Costs below which a turn teaches nothing, in reward per interval: its disk is idle, or nothing it does matters.
const LEAST_COST: f64 = 1e-4;

/// What distillation needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct DistilConfig {
    /// Host-steps per environment and update.
    pub steps: usize,
    /// Passes over the turns of an update.
    pub epochs: usize,
    /// Disks' turns per minibatch.
    pub minibatch: usize,
    /// Cost that a unit of score stands for, in reward per interval.
    pub temperature: f64,
    /// Share of the turns that the planner prices; it takes most of the time.
    pub priced: f64,
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
    /// Mean squared error of the costs, in units of the temperature.
    pub loss: f64,
    /// What the levels drawn in the turns that were priced cost, a disk at a time, in reward per interval.
    pub cost: f64,
    /// What the levels with the greatest scores would have cost, before the update.
    pub greedy_cost: f64,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// Turns that were learnt from.
    pub turns: usize,
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
        if !spec.device_heads.is_empty() {
            let problem = "its devices decide too, and only the turns of disks are distilled; take them out \
                           (generator.schedulers = false), or train with PPO";
            return Err(unfit(0, problem));
        }
        let mut rng = Rng::seed_from_u64(seed);
        let network = Network::new(spec, architecture, &mut rng)?;
        Ok(Self {
            adam: Adam::new(AdamConfig::default(), network.parameters())?,
            normalisers: PerTable::build(spec, |_, features| Normaliser::identity(features.len())),
            spec: spec.clone(),
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

    /// Goes on from a checkpoint of [`Distil::checkpoint`] as if it had not been interrupted.
    ///
    /// # Errors
    /// `NoState` if it is of another learner, or its state is missing or does not fit; `Torch` if libtorch fails.
    pub fn resume(checkpoint: &Checkpoint, config: DistilConfig) -> Result<Self, LearnError> {
        let Checkpoint { manifest, tensors } = checkpoint;
        let state = manifest.extra.get(STATE).cloned().unwrap_or_default();
        let state: State = serde_json::from_value(state).map_err(|error| LearnError::NoState {
            problem: format!("extra.{STATE} of its manifest: {error}"),
        })?;
        let learner = Self::new(&manifest.spec, manifest.architecture, config, manifest.seed)?;
        let stored = Stored { manifest, tensors };
        let network = stored.network("")?;
        let moments = stored.moments("", &network)?;
        Ok(Self {
            adam: Adam::resume(AdamConfig::default(), state.adam_steps, moments),
            network,
            normalisers: manifest.normalisers.clone(),
            statistics: state.statistics,
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
        let played = self.play(collector)?;
        let mut report = self.learn(&played, progress)?;
        report.learning_rate = self.config.learning_rate.at(progress);
        self.statistics.merge(&played.seen);
        self.normalisers = self.statistics.normalisers();
        self.env_steps += (self.config.steps * collector.len()) as u64;
        self.updates += 1;
        Ok((report, played.episodes))
    }

    /// The policy as it stands, with all that [`Distil::resume`] needs. `config` is kept as it is, for whoever reads
    /// the manifest.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn checkpoint(&self, config: serde_json::Value) -> Result<Checkpoint, LearnError> {
        let state = State {
            updates: self.updates,
            adam_steps: self.adam.steps(),
            statistics: self.statistics.clone(),
            rng: self.rng.clone(),
        };
        let state = serde_json::to_value(state).expect("numbers and text");
        let manifest = Manifest {
            normalisers: self.normalisers.clone(),
            seen: self.statistics.ranges(),
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

    /// Each environment by itself, with random numbers of its own: how many threads there are changes nothing.
    fn play<E: Planned + Send>(
        &mut self,
        collector: &mut Collector<E>,
    ) -> Result<Played, LearnError> {
        let tensors = self.network.tensors()?;
        let class = Class {
            spec: &self.spec,
            normalisers: &self.normalisers,
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
                played: Played::empty(class),
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
        let mut all = Played::empty(class);
        for pupil in pupils {
            all.append(pupil.played);
        }
        Ok(all)
    }

    fn learn(&mut self, played: &Played, progress: f64) -> Result<DistilReport, LearnError> {
        let turns = played.turns.len();
        let mut report = DistilReport {
            cost: mean(&played.taken),
            greedy_cost: mean(&played.greedy),
            turns,
            ..DistilReport::default()
        };
        if turns == 0 {
            return Ok(report);
        }
        let batch = played.turns.batch(0..turns)?;
        let targets = played.turns.batch_of_levels(&played.scores)?;
        let count = turns.div_ceil(self.config.minibatch);
        let steps = (count * self.config.epochs) as f64;
        for _ in 0..self.config.epochs {
            let mut rows: Vec<i64> = (0..turns as i64).collect();
            blkpilot_env::decision::shuffle(&mut rows, &mut self.rng);
            for part in 0..count {
                let part = &rows[turns * part / count..turns * (part + 1) / count];
                let index = Tensor::f_from_slice(part)?;
                let own = batch.select(&index)?;
                let targets = targets.iter().map(|of| of.f_index_select(0, &index));
                let targets = targets.collect::<Result<Vec<_>, _>>()?;
                let loss = loss(&self.network.scores(&own)?, &own, &targets)?;
                report.loss += self.finite("the loss", loss.f_double_value(&[])?)? / steps;
                let parameters: Vec<&Tensor> = self.network.parameters().values().collect();
                let gradients = Tensor::f_run_backward(&[&loss], &parameters, false, false)?;
                let norm = clip_gradients(&gradients, self.config.max_grad_norm)?;
                report.grad_norm += self.finite("the norm of the gradient", norm)? / steps;
                let rate = self.config.learning_rate.at(progress);
                self.adam
                    .step(self.network.parameters(), &gradients, rate)?;
            }
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

/// Mean over turns, and over the heads that had a choice, of the squared error of scores relative to their mean over
/// the levels allowed; targets, `[S, levels]` per head, are so already.
///
/// # Errors
/// If libtorch fails.
pub fn loss(scores: &[Tensor], batch: &Batch, targets: &[Tensor]) -> Result<Tensor, TchError> {
    let errors = scores.iter().zip(&batch.allowed).zip(targets);
    let errors = errors.map(|((scores, allowed), targets)| {
        let allowed = allowed.f_to_kind(scores.kind())?;
        let levels = allowed.f_sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>)?;
        let mean = |of: &Tensor| {
            let sum = of.f_mul(&allowed)?;
            let sum = sum.f_sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>)?;
            sum.f_div(&levels)
        };
        let relative = scores.f_sub(&mean(scores)?)?;
        mean(&relative.f_sub(targets)?.f_square()?)
    });
    let errors = errors.collect::<Result<Vec<_>, TchError>>()?;
    let free = Tensor::f_cat(&errors, 1)?.f_mul(&batch.free)?;
    let heads = batch.free.f_sum(None::<Kind>)?.f_clamp_min(1.0)?;
    free.f_sum(None::<Kind>)?.f_div(&heads)
}

/// What all pupils share.
#[derive(Clone, Copy)]
struct Class<'a> {
    spec: &'a EnvSpec,
    normalisers: &'a PerTable<Normaliser>,
    network: &'a ActorCritic,
    config: &'a DistilConfig,
}

/// What was played, and what the planner said of it.
struct Played {
    /// Those that were priced.
    turns: Turns,
    /// What their scores should have been, laid out as their masks are.
    scores: Vec<f32>,
    /// What the levels drawn cost.
    taken: Vec<f64>,
    /// What the levels with the greatest scores would have cost.
    greedy: Vec<f64>,
    seen: Statistics,
    episodes: Vec<EpisodeEnd>,
}

impl Played {
    fn empty(class: Class<'_>) -> Self {
        Self {
            turns: Turns::of_disks(class.spec, class.normalisers),
            scores: vec![],
            taken: vec![],
            greedy: vec![],
            seen: Statistics::new(class.spec),
            episodes: vec![],
        }
    }

    fn append(&mut self, mut other: Self) {
        self.turns.append(other.turns);
        self.scores.append(&mut other.scores);
        self.taken.append(&mut other.taken);
        self.greedy.append(&mut other.greedy);
        self.seen.merge(&other.seen);
        self.episodes.append(&mut other.episodes);
    }
}

/// One environment.
struct Pupil<'a, E> {
    index: usize,
    env: &'a mut E,
    seen: &'a mut Observation,
    running: &'a mut EpisodeEnd,
    planner: &'a mut Option<Planner>,
    rng: Rng,
    scratch: Scratch,
    probabilities: Vec<f64>,
    played: Played,
}

/// What a turn came to.
struct Drawn {
    levels: Vec<Level>,
    greedy: Vec<Level>,
}

impl<E: Planned> Pupil<'_, E> {
    fn play(&mut self, class: Class<'_>) -> Result<(), LearnError> {
        (0..class.config.steps).try_for_each(|_| self.step(class))
    }

    fn step(&mut self, class: Class<'_>) -> Result<(), LearnError> {
        let Some(host) = self.env.host() else {
            let problem = "there is no simulated host in it, and only those can be planned for: train with PPO";
            return Err(unfit(self.index, problem));
        };
        let (scenario, phases) = host
            .scenario()
            .zip(host.phases())
            .expect("a collector has reset it");
        let planner = match &mut *self.planner {
            Some(planner) if self.running.steps > 0 => planner,
            planner => {
                let limits = Limits {
                    blocks: BLOCKS,
                    ..Limits::default()
                };
                planner.insert(Planner::new(scenario, *host.reward(), limits)?)
            }
        };
        let left = scenario.steps.saturating_sub(self.running.steps);
        let mut joint = JointDecision::in_random_order(class.spec, self.seen, &mut self.rng);
        let current = planner.values().knobs().read(&self.seen.current);
        let moment = Moment {
            phases,
            current,
            left,
        };
        while let Some(view) = joint.view() {
            self.played.seen.observe(&view);
            let drawn = draw(
                class,
                &view,
                &mut self.scratch,
                &mut self.probabilities,
                &mut self.rng,
            )?;
            if let Turn::Disk(disk) = view.turn
                && planner.has_choice(disk)
                && self.rng.random::<f64>() < class.config.priced
            {
                let chosen = planner.values().knobs().read(joint.so_far());
                let costs = planner.costs_alone(&moment, &chosen, disk)?;
                self.played
                    .price(&view, &costs, &drawn, class.config.temperature);
            }
            joint.commit(&drawn.levels)?;
        }
        let index = self.index;
        let step = self
            .env
            .step(&joint.finish().0)
            .map_err(|source| LearnError::Environment { index, source })?;
        self.running.episodic_return += f64::from(step.rewards.host_mean().unwrap_or(0.0));
        self.running.steps += 1;
        if step.is_last() {
            let ended = std::mem::replace(self.running, NOT_STARTED);
            self.played.episodes.push(ended);
            *self.planner = None;
        }
        *self.seen = step.observation;
        Ok(())
    }
}

fn draw(
    class: Class<'_>,
    view: &TurnView<'_>,
    scratch: &mut Scratch,
    probabilities: &mut Vec<f64>,
    rng: &mut Rng,
) -> Result<Drawn, LearnError> {
    let mut scores = class.network.scores(view, scratch)?;
    let heads = view.heads.len();
    let (mut levels, mut best) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
    for head in 0..heads {
        let mask = view.head_mask(head);
        let (own, later) = scores.split_at(mask.len());
        scores = later;
        if let Some(level) = view.forced(head) {
            levels.push(level);
            best.push(level);
            continue;
        }
        probabilities.resize(mask.len(), 0.0);
        softmax_into(own, mask, probabilities);
        levels.push(sample(probabilities, rng) as Level);
        let greatest = blkpilot_models::categorical::greedy(own, mask);
        best.push(greatest.expect("a head that is not forced has a choice") as Level);
    }
    Ok(Drawn {
        levels,
        greedy: best,
    })
}

impl Played {
    fn price(&mut self, view: &TurnView<'_>, costs: &[LevelCost], drawn: &Drawn, temperature: f64) {
        let free = |cost: &&LevelCost| view.forced(cost.head).is_none();
        let greatest = costs.iter().filter(free).map(|cost| cost.cost);
        if greatest.fold(0.0, f64::max) < LEAST_COST {
            return;
        }
        self.turns.push(view);
        let of = |levels: &[Level]| {
            let own = costs.iter().filter(free);
            let own = own.filter(|cost| levels[cost.head] == cost.level);
            own.map(|cost| cost.cost).fold(0.0, f64::max)
        };
        self.taken.push(of(&drawn.levels));
        self.greedy.push(of(&drawn.greedy));
        for head in 0..view.heads.len() {
            let own: Vec<Option<f64>> = (0..view.head_mask(head).len())
                .map(|level| {
                    let is_it =
                        |cost: &&LevelCost| cost.head == head && usize::from(cost.level) == level;
                    let cost = costs.iter().find(is_it)?;
                    let is_allowed = view.head_mask(head)[level].is_allowed();
                    is_allowed.then(|| -cost.cost.min(MOST_COST) / temperature)
                })
                .collect();
            let known: Vec<f64> = own.iter().flatten().copied().collect();
            let mean = mean(&known);
            let relative = own
                .iter()
                .map(|score| score.map_or(0.0, |score| score - mean) as f32);
            self.scores.extend(relative);
        }
    }
}

impl From<OracleError> for LearnError {
    fn from(source: OracleError) -> Self {
        Self::Planning(source)
    }
}

#[cfg(test)]
mod tests;
