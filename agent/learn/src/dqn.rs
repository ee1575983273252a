//! Deep Q-learning over disks that decide in turn: double, over n steps, from a replay that may be prioritised, with the
//! duelling and branching Q of [`crate::q`].
//!
//! A transition is the turn of one disk; what follows is the turn of the same disk in a later joint decision, or, where an
//! episode was cut, the turn it would have had. Its reward is the mean of the rewards of the disks on its IOThread. All
//! turns are learnt from, also those in which nothing was to be chosen or nothing was done: others bootstrap from them.
//!
//! Features are remembered as they were seen and normalised when they are drawn, by what is known then (as
//! Stable-Baselines3 does with `VecNormalize`): mean and deviation move, and turns that were normalised when they were
//! played would not mean the same as those of today.
//!
//! Sources: Mnih et al. 2015; van Hasselt, Guez and Silver 2016; Wang et al. 2016; Schaul et al. 2016; Hessel et al. 2018;
//! Tavakoli, Pardo and Kormushev 2018.

mod lesson;
mod play;
mod replay;
mod steps;

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Environment, Rng};
use blkpilot_models::network::ActorCritic;
use blkpilot_models::normaliser::{Normaliser, PerTable, Statistics};
use blkpilot_models::{Architecture, Checkpoint, Manifest};
use rand::SeedableRng as _;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::adam::{Adam, AdamConfig, clip_gradients};
use crate::collector::{Collector, unfit};
use crate::network::Network;
use crate::ppo::Schedule;
use crate::rollout::EpisodeEnd;
use crate::stored::{Stored, write_moments, write_weights};
use crate::{LearnError, use_one_thread};

use lesson::{Lessons, Loss, loss, targets};
use play::Player;
use replay::{Memory, Replay};
use steps::{Reach, Waiting};

pub use lesson::Bootstrap;
pub use replay::Prioritised;

/// How the target network follows the one that learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Follow {
    /// It becomes its copy once so many host-steps have been played since it last did.
    Copy {
        /// Host-steps, over all environments.
        every: u64,
    },
    /// With each gradient step it goes this share of the way, in (0, 1] (τ). Source: Lillicrap et al. 2016.
    Polyak {
        /// The share.
        tau: f64,
    },
}

/// How often levels are drawn from all that are allowed: a share that falls along a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exploration {
    /// Share of the turns at the beginning.
    pub from: f64,
    /// Share of the turns at the end.
    pub to: f64,
    /// Share of the training after which the end is reached, in [0, 1].
    pub fraction: f64,
}

impl Exploration {
    /// Its value at `progress`, in [0, 1].
    #[must_use]
    pub fn at(self, progress: f64) -> f64 {
        if progress >= self.fraction {
            return self.to;
        }
        self.from + (self.to - self.from) * progress / self.fraction
    }
}

/// What DQN needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct DqnConfig {
    /// Host-steps of the whole training, over all environments: what schedules are shares of.
    pub env_steps: u64,
    /// Host-steps played, over all environments, before each bout of learning.
    pub train_frequency: u64,
    /// Gradient steps of a bout.
    pub gradient_steps: usize,
    /// Host-steps, over all environments, before the first bout; levels are drawn from all that are allowed until then.
    pub learning_starts: u64,
    /// Transitions per gradient step.
    pub batch: usize,
    /// Transitions remembered.
    pub capacity: usize,
    /// Of transitions with a greater error more is learnt, if given; all are alike else.
    pub prioritised: Option<Prioritised>,
    /// Discount per host-step.
    pub gamma: f64,
    /// Host-steps that a transition is over (n), at least 1.
    pub n_steps: usize,
    /// Which network chooses in the next turn.
    pub bootstrap: Bootstrap,
    /// How the target network follows.
    pub follow: Follow,
    /// How often levels are drawn from all that are allowed.
    pub exploration: Exploration,
    /// Step size of Adam.
    pub learning_rate: Schedule,
    /// Greatest norm of the gradient.
    pub max_grad_norm: f64,
}

/// What one round did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoundReport {
    /// Episodes that ended.
    pub episodes: Vec<EpisodeEnd>,
    /// Share of the turns that explored at its end.
    pub epsilon: f64,
    /// Step size of Adam.
    pub learning_rate: f64,
    /// Transitions remembered.
    pub remembered: usize,
    /// What its gradient steps came to; `None` if there was none.
    pub learnt: Option<Learnt>,
}

/// What the host-steps of one round came to.
struct Play {
    episodes: Vec<EpisodeEnd>,
    /// Share of the turns that explored at its end.
    epsilon: f64,
    /// Whether all were played that were to be.
    is_whole: bool,
}

/// What gradient steps came to: means over them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Learnt {
    /// Weighted Huber loss.
    pub td_loss: f64,
    /// Q of what was taken.
    pub q_value: f64,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
}

/// What of a learner stands in no other part of a checkpoint: under [`STATE`] in its manifest. Adam's moments and the
/// target network are among its tensors; what is remembered is in [`Dqn::memory`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    gradient_steps: u64,
    adam_steps: u64,
    copied_at: u64,
    statistics: Statistics,
    rng: Rng,
}

/// Key of the learner's state in a manifest.
const STATE: &str = "dqn";
/// What the target network's tensors are called in a checkpoint, before their own names.
const TARGET: &str = "target.";

/// A learner.
#[derive(Debug)]
pub struct Dqn {
    spec: EnvSpec,
    config: DqnConfig,
    seed: u64,
    network: Network,
    target: Network,
    adam: Adam,
    statistics: Statistics,
    normalisers: PerTable<Normaliser>,
    rng: Rng,
    memory: Memory,
    gradient_steps: u64,
    env_steps: u64,
    /// Host-steps at which the target network last became a copy.
    copied_at: u64,
}

impl Dqn {
    /// A learner for `envs` environments with `spec`; everything random follows from `seed`.
    ///
    /// # Errors
    /// `Unfit` if devices have heads, `Torch` if libtorch fails.
    pub fn new(
        spec: &EnvSpec,
        envs: usize,
        architecture: Architecture,
        config: DqnConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        check_fits(spec)?;
        let mut rng = Rng::seed_from_u64(seed);
        let network = Network::new(spec, architecture, &mut rng)?;
        let target = Network::from_tensors(spec, architecture, &network.tensors()?, Kind::Float)?;
        Ok(Self {
            adam: Adam::new(AdamConfig::default(), network.parameters())?,
            normalisers: PerTable::build(spec, |_, features| Normaliser::identity(features.len())),
            memory: Memory {
                replay: Replay::new(config.capacity, config.prioritised),
                waiting: vec![Waiting::default(); envs],
            },
            spec: spec.clone(),
            config,
            seed,
            network,
            target,
            statistics: Statistics::new(spec),
            rng,
            gradient_steps: 0,
            env_steps: 0,
            copied_at: 0,
        })
    }

    /// Goes on from a checkpoint of [`Dqn::checkpoint`] with what [`Dqn::memory`] gave as if it had not been
    /// interrupted. Without a memory it has forgotten all that it played, and goes on with what it has learnt.
    ///
    /// # Errors
    /// `NoState` if it is of another learner, or its state is missing or does not fit; `Torch` if libtorch fails.
    pub fn resume(
        checkpoint: &Checkpoint,
        memory: Option<&[u8]>,
        envs: usize,
        config: DqnConfig,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        let Checkpoint { manifest, tensors } = checkpoint;
        let no_state = |problem: String| LearnError::NoState { problem };
        let state = manifest.extra.get(STATE).cloned().unwrap_or_default();
        let state: State = serde_json::from_value(state)
            .map_err(|error| no_state(format!("extra.{STATE} of its manifest: {error}")))?;
        let spec = &manifest.spec;
        let mut learner = Self::new(spec, envs, manifest.architecture, config, manifest.seed)?;
        if let Some(bytes) = memory {
            let DqnConfig {
                capacity,
                prioritised,
                ..
            } = learner.config;
            learner.memory = Memory::from_bytes(spec, bytes, capacity, prioritised)?;
            let found = learner.memory.waiting.len();
            if found != envs {
                let problem = format!("it played {found} environments, and there are {envs}");
                return Err(no_state(problem));
            }
        }
        let stored = Stored { manifest, tensors };
        learner.network = stored.network("")?;
        learner.target = stored.network(TARGET)?;
        let moments = stored.moments("", &learner.network)?;
        Ok(Self {
            adam: Adam::resume(AdamConfig::default(), state.adam_steps, moments),
            normalisers: manifest.normalisers.clone(),
            statistics: state.statistics,
            rng: state.rng,
            gradient_steps: state.gradient_steps,
            env_steps: manifest.env_steps,
            copied_at: state.copied_at,
            ..learner
        })
    }

    /// Host-steps played.
    #[must_use]
    pub fn env_steps(&self) -> u64 {
        self.env_steps
    }

    /// Gradient steps made.
    #[must_use]
    pub fn gradient_steps(&self) -> u64 {
        self.gradient_steps
    }

    /// Plays, then learns.
    ///
    /// # Errors
    /// As [`Collector::collect`]; `Diverged` if a loss or a gradient is not finite.
    pub fn round<E: Environment>(
        &mut self,
        collector: &mut Collector<E>,
    ) -> Result<RoundReport, LearnError> {
        self.round_while(collector, || true)
    }

    /// As [`Dqn::round`], for environments whose steps take their time: `go_on` is asked before each host-step. A round
    /// that is not gone on with learns nothing, but remembers what it has played.
    ///
    /// # Errors
    /// As [`Dqn::round`].
    pub fn round_while<E: Environment>(
        &mut self,
        collector: &mut Collector<E>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<RoundReport, LearnError> {
        let Play {
            episodes,
            epsilon,
            is_whole,
        } = self.play(collector, &mut go_on)?;
        let is_ready = is_whole && self.env_steps >= self.config.learning_starts;
        let learnt = match is_ready && self.memory.replay.len() > 0 {
            true => Some(self.bout()?),
            false => None,
        };
        Ok(RoundReport {
            episodes,
            epsilon,
            learning_rate: self.config.learning_rate.at(self.progress()),
            remembered: self.memory.replay.len(),
            learnt,
        })
    }

    /// The policy as it stands, with all but the memory that [`Dqn::resume`] needs. `config` is kept as it is, for
    /// whoever reads the manifest.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn checkpoint(&self, config: serde_json::Value) -> Result<Checkpoint, LearnError> {
        let manifest = Manifest {
            normalisers: self.normalisers.clone(),
            seen: self.statistics.ranges(),
            algorithm: "dqn".to_owned(),
            config,
            seed: self.seed,
            env_steps: self.env_steps,
            extra: BTreeMap::from([(STATE.to_owned(), self.state())]),
            ..Manifest::untrained(&self.spec, self.network.architecture())
        };
        let mut tensors = self.network.tensors()?;
        write_moments("", self.adam.moments(), &mut tensors)?;
        write_weights(TARGET, &self.target, &mut tensors)?;
        Ok(Checkpoint { manifest, tensors })
    }

    /// What is remembered, for [`Dqn::resume`]: a safetensors file.
    #[must_use]
    pub fn memory(&self) -> Vec<u8> {
        self.memory.to_bytes()
    }

    /// The episodes under way are not gone on with: what waits for what follows in them is forgotten.
    pub fn leave_episodes(&mut self) {
        for waiting in &mut self.memory.waiting {
            waiting.steps.clear();
        }
    }

    fn state(&self) -> serde_json::Value {
        let state = State {
            gradient_steps: self.gradient_steps,
            adam_steps: self.adam.steps(),
            copied_at: self.copied_at,
            statistics: self.statistics.clone(),
            rng: self.rng.clone(),
        };
        serde_json::to_value(state).expect("numbers and text")
    }

    fn progress(&self) -> f64 {
        self.env_steps as f64 / self.config.env_steps.max(1) as f64
    }

    fn epsilon(&self) -> f64 {
        if self.env_steps < self.config.learning_starts {
            return 1.0;
        }
        self.config.exploration.at(self.progress())
    }

    /// Plays until `train_frequency` host-steps are reached.
    fn play<E: Environment>(
        &mut self,
        collector: &mut Collector<E>,
        go_on: &mut impl FnMut() -> bool,
    ) -> Result<Play, LearnError> {
        let found = collector.len();
        let envs = self.memory.waiting.len();
        if found != envs {
            let problem = format!("there are {found} environments, and the learner is for {envs}");
            return Err(unfit(found.min(envs), problem));
        }
        let mut player = Player::new(self.served()?, self.epsilon());
        let mut seen = Statistics::new(&self.spec);
        let (mut episodes, mut transitions) = (vec![], vec![]);
        let reach = Reach {
            steps: self.config.n_steps,
            gamma: self.config.gamma,
        };
        let mut is_whole = true;
        for _ in 0..self.config.train_frequency.div_ceil(envs as u64) {
            is_whole = go_on();
            if !is_whole {
                break;
            }
            player.epsilon = self.epsilon();
            let played = collector.play_step(&mut player, &mut seen)?;
            let waiting = self.memory.waiting.iter_mut();
            for (waiting, (step, then)) in waiting.zip(played.steps) {
                waiting.push(step, &then, reach, &mut transitions);
            }
            for transition in transitions.drain(..) {
                self.memory.replay.push(transition);
            }
            episodes.extend(played.episodes);
            self.env_steps += envs as u64;
        }
        self.statistics.merge(&seen);
        self.normalisers = self.statistics.normalisers();
        Ok(Play {
            episodes,
            epsilon: player.epsilon,
            is_whole,
        })
    }

    /// The network as it is served.
    fn served(&self) -> Result<ActorCritic, LearnError> {
        let manifest = Manifest {
            normalisers: self.normalisers.clone(),
            ..Manifest::untrained(&self.spec, self.network.architecture())
        };
        let tensors = self.network.tensors()?;
        Ok(ActorCritic::new(&Checkpoint { manifest, tensors })?)
    }

    /// The gradient steps of a round.
    fn bout(&mut self) -> Result<Learnt, LearnError> {
        if let Follow::Copy { every } = self.config.follow
            && self.env_steps - self.copied_at >= every
        {
            self.copied_at = self.env_steps;
            self.follow(1.0)?;
        }
        let count = self.config.gradient_steps;
        let mut sum = Learnt::default();
        for _ in 0..count {
            let own = self.learn()?;
            sum.td_loss += own.td_loss / count as f64;
            sum.q_value += own.q_value / count as f64;
            sum.grad_norm += own.grad_norm / count as f64;
        }
        Ok(sum)
    }

    /// One step of Adam.
    fn learn(&mut self) -> Result<Learnt, LearnError> {
        let progress = self.progress();
        let replay = &self.memory.replay;
        let drawn = replay.draw(self.config.batch, progress, &mut self.rng);
        let lessons = Lessons::of(&self.spec, &self.normalisers, replay, &drawn)?;
        let targets = targets(&self.network, &self.target, &lessons, self.config.bootstrap)?;
        let Loss { total, q, errors } = loss(&self.network, &lessons, &targets)?;
        let td_loss = self.finite("the loss", total.f_double_value(&[])?)?;
        let parameters: Vec<&Tensor> = self.network.parameters().values().collect();
        let gradients = Tensor::f_run_backward(&[&total], &parameters, false, false)?;
        let norm = clip_gradients(&gradients, self.config.max_grad_norm)?;
        let grad_norm = self.finite("the norm of the gradient", norm)?;
        let rate = self.config.learning_rate.at(progress);
        self.adam
            .step(self.network.parameters(), &gradients, rate)?;
        self.gradient_steps += 1;
        if let Follow::Polyak { tau } = self.config.follow {
            self.follow(tau)?;
        }
        let errors = Vec::<f32>::try_from(errors)?;
        self.memory.replay.set_errors(&drawn.places, &errors);
        Ok(Learnt {
            td_loss,
            q_value: q.f_mean(None::<Kind>)?.f_double_value(&[])?,
            grad_norm,
        })
    }

    fn finite(&self, quantity: &'static str, value: f64) -> Result<f64, LearnError> {
        if value.is_finite() {
            return Ok(value);
        }
        Err(LearnError::Diverged {
            update: self.gradient_steps,
            quantity,
            value,
        })
    }

    /// Takes the target network `share` of the way to the one that learns.
    fn follow(&self, share: f64) -> Result<(), LearnError> {
        no_grad(|| {
            for (name, own) in self.target.parameters() {
                let learnt = &self.network.parameters()[name];
                let _ = own.shallow_clone().f_lerp_(learnt, share)?;
            }
            Ok(())
        })
    }
}

fn check_fits(spec: &EnvSpec) -> Result<(), LearnError> {
    let names: Vec<&str> = spec
        .device_heads
        .iter()
        .map(|head| head.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "its devices decide too (head {}), and DQN learns the turns of disks alone; take them out (of simulated hosts: \
         generator.schedulers = false), or train with PPO",
        names.join(", ")
    );
    Err(unfit(0, problem))
}

#[cfg(test)]
mod tests;
