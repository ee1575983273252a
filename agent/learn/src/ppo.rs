//! Proximal policy optimisation over disks that decide in turn.
//!
//! Source: Schulman et al. 2017; details after Huang et al. 2022, "The 37 implementation details of
//! PPO".

use std::collections::BTreeMap;

use blkpilot_env::decision::shuffle;
use blkpilot_env::{EnvSpec, Environment, Rng};
use blkpilot_models::checkpoint::OPTIMISER;
use blkpilot_models::normaliser::{Normaliser, PerTable, Range, Statistics};
use blkpilot_models::{Architecture, Checkpoint, Manifest};
use rand::SeedableRng as _;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::adam::{Adam, AdamConfig, Moments, clip_gradients};
use crate::collector::{Actor, Collector};
use crate::gae::Discount;
use crate::loss::{Figures, Lessons, LossWeights, Minibatch, loss};
use crate::network::{ALL, Network};
use crate::reward_scale::RewardScale;
use crate::rollout::{Estimates, Rewards, Rollout};
use crate::stored::Stored;
use crate::{LearnError, use_one_thread};

/// How a quantity follows the progress of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Stays as it is.
    Constant(f64),
    /// From this to 0.
    LinearToZero(f64),
}

impl Schedule {
    /// Its value at `progress`, in [0, 1].
    #[must_use]
    pub fn at(self, progress: f64) -> f64 {
        match self {
            Self::Constant(value) => value,
            Self::LinearToZero(start) => start * (1.0 - progress.clamp(0.0, 1.0)),
        }
    }
}

/// What PPO needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct PpoConfig {
    /// Host-steps per environment and rollout.
    pub steps: usize,
    /// Passes over each rollout.
    pub epochs: usize,
    /// Disks' turns per minibatch.
    pub minibatch: usize,
    /// How far ahead advantages look.
    pub discount: Discount,
    /// Whether the learner sees rewards divided by the running deviation of the discounted return, and clipped to
    /// ± 10. What the critic says is in that unit then.
    pub normalise_reward: bool,
    /// Step size of Adam.
    pub learning_rate: Schedule,
    /// How far the ratio of probabilities may leave 1.
    pub clip: Schedule,
    /// How far a value may move from the one of the rollout; `None` does not limit it.
    pub value_clip: Option<f64>,
    /// Weight of the value loss.
    pub value_coefficient: f64,
    /// Weight of the entropy bonus.
    pub entropy_coefficient: Schedule,
    /// Greatest norm of the gradient.
    pub max_grad_norm: f64,
    /// An update ends once the policy has moved this far: approximate KL divergence per turn, of
    /// disks and devices together, above 1.5 × this.
    pub target_kl: Option<f64>,
}

/// What one update did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UpdateReport {
    /// Step size of Adam.
    pub learning_rate: f64,
    /// Clipped objective, negated; mean over minibatches, as are the next ones.
    pub policy_loss: f64,
    /// Half the mean squared error of the values.
    pub value_loss: f64,
    /// Entropy per turn in nats: the sum of the heads'.
    pub entropy: f64,
    /// Entropy of each head, by name, over the minibatches in which it had a choice; disks' heads,
    /// then devices'. Heads that had none are left out.
    pub head_entropy: Vec<(String, f64)>,
    /// Estimate of the KL divergence from the policy that played: mean of (ratio − 1) − ln ratio
    /// over the turns of disks and devices.
    pub approx_kl: f64,
    /// Share of these turns whose ratio left the clip range.
    pub clip_fraction: f64,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// 1 − variance of the values' error over the variance of the returns, before the update.
    pub explained_variance: f64,
    /// Minibatches taken; fewer than planned if `target_kl` ended the update.
    pub minibatches: usize,
}

/// What of a learner stands in no other part of a checkpoint: under [`STATE`] in its manifest. Adam's moments are among
/// its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    updates: u64,
    adam_steps: u64,
    statistics: Statistics,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reward_scale: Option<RewardScale>,
    rng: Rng,
    /// Ranges of the policy that it began from, if it began from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<PerTable<Range>>,
}

/// Key of the learner's state in a manifest.
const STATE: &str = "ppo";

/// A learner.
#[derive(Debug)]
pub struct Ppo {
    spec: EnvSpec,
    config: PpoConfig,
    seed: u64,
    network: Network,
    adam: Adam,
    statistics: Statistics,
    normalisers: PerTable<Normaliser>,
    /// Where rewards are normalised.
    reward_scale: Option<RewardScale>,
    /// Ranges of the policy that it began from; its normalisers stay then.
    start: Option<PerTable<Range>>,
    rng: Rng,
    updates: u64,
    env_steps: u64,
}

impl Ppo {
    /// A learner for environments with `spec`; everything random follows from `seed`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(
        spec: &EnvSpec,
        architecture: Architecture,
        config: PpoConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        let mut rng = Rng::seed_from_u64(seed);
        let network = Network::new(spec, architecture, &mut rng)?;
        let statistics = Statistics::new(spec);
        Ok(Self {
            adam: Adam::new(AdamConfig::default(), network.flat())?,
            normalisers: PerTable::build(spec, |_, features| Normaliser::identity(features.len())),
            spec: spec.clone(),
            reward_scale: config.normalise_reward.then(RewardScale::default),
            config,
            seed,
            network,
            statistics,
            start: None,
            rng,
            updates: 0,
            env_steps: 0,
        })
    }

    /// A learner that begins from a policy, whoever has learnt it: weights, normalisers and ranges are that
    /// policy's, all else is new. The weights know their inputs as these normalisers show them, so they stay as
    /// they are, and no warm-up is needed; ranges are widened to what is seen.
    ///
    /// # Errors
    /// `Checkpoint` if its spec does not fit `spec`, with the difference; `Torch` if libtorch fails.
    pub fn start_from(
        checkpoint: &Checkpoint,
        spec: &EnvSpec,
        config: PpoConfig,
        seed: u64,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        let (network, manifest) = (Network::of_policy(checkpoint, spec)?, &checkpoint.manifest);
        Ok(Self {
            adam: Adam::new(AdamConfig::default(), network.flat())?,
            normalisers: manifest.normalisers.clone(),
            start: Some(manifest.seen.clone()),
            statistics: Statistics::new(spec),
            spec: spec.clone(),
            reward_scale: config.normalise_reward.then(RewardScale::default),
            config,
            seed,
            network,
            rng: Rng::seed_from_u64(seed),
            updates: 0,
            env_steps: 0,
        })
    }

    /// Goes on from a checkpoint of [`Ppo::checkpoint`] as if it had not been interrupted: weights, moments of Adam,
    /// statistics of the features and random numbers are those of the learner that wrote it.
    ///
    /// # Errors
    /// `NoState` if it is of another learner, or its state is missing or does not fit; `Torch` if libtorch fails.
    pub fn resume(checkpoint: &Checkpoint, config: PpoConfig) -> Result<Self, LearnError> {
        use_one_thread();
        let Checkpoint { manifest, tensors } = checkpoint;
        let no_state = |problem: String| LearnError::NoState { problem };
        let state = manifest.extra.get(STATE).cloned().unwrap_or_default();
        let state: State = serde_json::from_value(state)
            .map_err(|error| no_state(format!("extra.{STATE} of its manifest: {error}")))?;
        if state.reward_scale.is_some() != config.normalise_reward {
            let was = if config.normalise_reward {
                "as they were"
            } else {
                "normalised"
            };
            return Err(no_state(format!(
                "it was trained on rewards {was}: set normalise_reward = {}",
                !config.normalise_reward
            )));
        }
        let spec = &manifest.spec;
        let network = Network::from_tensors(spec, manifest.architecture, tensors, Kind::Float)?;
        let moments = moments(&network, Stored { manifest, tensors })?;
        Ok(Self {
            adam: Adam::resume(AdamConfig::default(), state.adam_steps, moments),
            normalisers: manifest.normalisers.clone(),
            spec: spec.clone(),
            config,
            seed: manifest.seed,
            network,
            statistics: state.statistics,
            reward_scale: state.reward_scale,
            start: state.start,
            rng: state.rng,
            updates: state.updates,
            env_steps: manifest.env_steps,
        })
    }

    /// What plays at present.
    #[must_use]
    pub fn actor(&self) -> Actor<'_> {
        Actor {
            network: &self.network,
            normalisers: &self.normalisers,
        }
    }

    /// Host-steps learnt from, the warm-up included.
    #[must_use]
    pub fn env_steps(&self) -> u64 {
        self.env_steps
    }

    /// Updates made.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Plays one rollout with the policy as it stands.
    ///
    /// # Errors
    /// As [`Collector::collect`].
    pub fn play<E: Environment>(
        &self,
        collector: &mut Collector<E>,
    ) -> Result<Rollout, LearnError> {
        collector.collect(self.actor(), self.config.steps)
    }

    /// As [`Ppo::play`], while it is gone on with.
    ///
    /// # Errors
    /// As [`Collector::collect_while`].
    pub fn play_while<E: Environment>(
        &self,
        collector: &mut Collector<E>,
        go_on: impl FnMut() -> bool,
    ) -> Result<Option<Rollout>, LearnError> {
        collector.collect_while(self.actor(), self.config.steps, go_on)
    }

    /// Whether features are not normalised yet: a rollout to warm up comes first.
    #[must_use]
    pub fn wants_warm_up(&self) -> bool {
        self.start.is_none() && self.env_steps == 0
    }

    /// Takes mean and deviation of the features from a rollout, and that of the rewards, and learns nothing else
    /// from it. Called once, before the first update: until then features are not normalised.
    pub fn warm_up(&mut self, rollout: &Rollout) {
        self.scale_rewards(rollout);
        self.look_at(rollout);
    }

    /// The rewards of a rollout as they are learnt from; where they are normalised, their scale has seen them then.
    fn scale_rewards(&mut self, rollout: &Rollout) -> Vec<Rewards> {
        let mut rewards = rollout.rewards();
        if let Some(scale) = &mut self.reward_scale {
            let gamma = f64::from(self.config.discount.gamma);
            scale.apply(&rollout.tracks, gamma, &mut rewards);
        }
        rewards
    }

    /// One update from a rollout played by [`Ppo::actor`]. `progress` in [0, 1] is the share of the
    /// training that is done. Normalisers stay as they are until its end, so the log-probabilities
    /// of the rollout remain those of the policy that played.
    ///
    /// # Errors
    /// `Diverged` if the loss or the gradient is not finite, `Torch` if libtorch fails.
    pub fn update(&mut self, rollout: &Rollout, progress: f64) -> Result<UpdateReport, LearnError> {
        let rewards = self.scale_rewards(rollout);
        let estimates = rollout.estimate_from(&rewards, &self.network, self.config.discount)?;
        let disks = Lessons::of_disks(&rollout.disks, &estimates)?;
        let devices = Lessons::of_devices(&rollout.devices, &estimates)?;
        let mut tally = Tally::default();
        'update: for _ in 0..self.config.epochs {
            for (disk_rows, device_rows) in self.minibatches(disks.len(), devices.len()) {
                let disk = disks.select(&disk_rows)?;
                let device = if device_rows.is_empty() {
                    None
                } else {
                    Some(devices.select(&device_rows)?)
                };
                if !self.learn(&disk, device.as_ref(), progress, &mut tally)? {
                    break 'update;
                }
            }
        }
        self.updates += 1;
        self.look_at(rollout);
        let mut report = tally.report(&self.spec);
        report.learning_rate = self.config.learning_rate.at(progress);
        report.explained_variance = explained_variance(&estimates);
        Ok(report)
    }

    /// The policy as it stands, with all that [`Ppo::resume`] needs. `config` is kept as it is, for whoever reads the
    /// manifest.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn checkpoint(&self, config: serde_json::Value) -> Result<Checkpoint, LearnError> {
        let manifest = Manifest {
            normalisers: self.normalisers.clone(),
            seen: self.ranges(),
            algorithm: "ppo".to_owned(),
            config,
            seed: self.seed,
            env_steps: self.env_steps,
            extra: BTreeMap::from([(STATE.to_owned(), self.state())]),
            ..Manifest::untrained(&self.spec, self.network.architecture())
        };
        let mut tensors = self.network.tensors()?;
        let Moments { first, second } = &self.adam.moments()[ALL];
        for (moment, vector) in [("first", first), ("second", second)] {
            for (name, tensor) in self.network.by_name(vector)? {
                tensors.insert(format!("{OPTIMISER}{moment}.{name}"), tensor);
            }
        }
        Ok(Checkpoint { manifest, tensors })
    }

    fn state(&self) -> serde_json::Value {
        let state = State {
            updates: self.updates,
            adam_steps: self.adam.steps(),
            statistics: self.statistics.clone(),
            reward_scale: self.reward_scale.clone(),
            rng: self.rng.clone(),
            start: self.start.clone(),
        };
        serde_json::to_value(state).expect("numbers and text")
    }

    fn ranges(&self) -> PerTable<Range> {
        match &self.start {
            Some(start) => self.statistics.widened(start),
            None => self.statistics.ranges(),
        }
    }

    fn look_at(&mut self, rollout: &Rollout) {
        self.statistics.merge(&rollout.seen);
        if self.start.is_none() {
            self.normalisers = self.statistics.normalisers();
        }
        self.env_steps += rollout.env_steps;
    }

    /// Shuffled rows of disks in minibatches, each with its share of the devices' rows.
    fn minibatches(&mut self, disks: usize, devices: usize) -> Vec<(Vec<i64>, Vec<i64>)> {
        let mut shuffled = |rows: usize| {
            let mut rows: Vec<i64> = (0..rows as i64).collect();
            shuffle(&mut rows, &mut self.rng);
            rows
        };
        let (disks, devices) = (shuffled(disks), shuffled(devices));
        let count = disks.len().div_ceil(self.config.minibatch).max(1);
        let part = |rows: &[i64], i: usize| {
            rows[rows.len() * i / count..rows.len() * (i + 1) / count].to_vec()
        };
        (0..count)
            .map(|i| (part(&disks, i), part(&devices, i)))
            .collect()
    }

    /// One step of Adam; false if the policy has moved far enough, and no step was made.
    fn learn(
        &mut self,
        disks: &Minibatch<'_>,
        devices: Option<&Minibatch<'_>>,
        progress: f64,
        tally: &mut Tally,
    ) -> Result<bool, LearnError> {
        let weights = LossWeights {
            clip: self.config.clip.at(progress),
            value_clip: self.config.value_clip,
            value: self.config.value_coefficient,
            entropy: self.config.entropy_coefficient.at(progress),
        };
        let figures = loss(&self.network, disks, devices, &weights)?;
        let diverged = |quantity, value| LearnError::Diverged {
            update: self.updates,
            quantity,
            value,
        };
        if !figures.loss.is_finite() {
            return Err(diverged("the loss", figures.loss));
        }
        let target = self.config.target_kl.unwrap_or(f64::INFINITY);
        if figures.approx_kl > 1.5 * target {
            return Ok(false);
        }
        let gradient = std::slice::from_ref(self.network.gradient());
        let norm = clip_gradients(gradient, self.config.max_grad_norm)?;
        if !norm.is_finite() {
            return Err(diverged("the norm of the gradient", norm));
        }
        let rate = self.config.learning_rate.at(progress);
        self.adam.step(self.network.flat(), gradient, rate)?;
        tally.add(&Figures {
            grad_norm: norm,
            ..figures
        });
        Ok(true)
    }
}

/// Adam's moments of all parameters as one vector each, from the tensors of a checkpoint.
fn moments(network: &Network, stored: Stored<'_>) -> Result<BTreeMap<String, Moments>, LearnError> {
    let by_name = stored.moments("", network)?;
    let all = |of: fn(&Moments) -> &Tensor| -> Result<Tensor, LearnError> {
        let flat = by_name.values().map(|m| of(m).f_flatten(0, -1));
        Ok(Tensor::f_cat(&flat.collect::<Result<Vec<_>, _>>()?, 0)?)
    };
    let (first, second) = (all(|m| &m.first)?, all(|m| &m.second)?);
    Ok(BTreeMap::from([(
        ALL.to_owned(),
        Moments { first, second },
    )]))
}

/// Means over the minibatches of an update.
#[derive(Debug, Default)]
struct Tally {
    minibatches: usize,
    sums: Figures,
    /// Per head the sum of its entropies, and how many minibatches had one.
    heads: Vec<(f64, usize)>,
}

impl Tally {
    fn add(&mut self, figures: &Figures) {
        self.minibatches += 1;
        let sums = &mut self.sums;
        sums.policy_loss += figures.policy_loss;
        sums.value_loss += figures.value_loss;
        sums.entropy += figures.entropy;
        sums.approx_kl += figures.approx_kl;
        sums.clip_fraction += figures.clip_fraction;
        sums.grad_norm += figures.grad_norm;
        // A minibatch without devices has fewer heads.
        let heads = self.heads.len().max(figures.head_entropy.len());
        self.heads.resize(heads, (0.0, 0));
        for ((sum, count), own) in self.heads.iter_mut().zip(&figures.head_entropy) {
            if let Some(own) = own {
                *sum += own;
                *count += 1;
            }
        }
    }

    fn report(&self, spec: &EnvSpec) -> UpdateReport {
        let mean = |sum: f64| sum / self.minibatches.max(1) as f64;
        let heads = spec.disk_heads.iter().chain(&spec.device_heads);
        UpdateReport {
            policy_loss: mean(self.sums.policy_loss),
            value_loss: mean(self.sums.value_loss),
            entropy: mean(self.sums.entropy),
            approx_kl: mean(self.sums.approx_kl),
            clip_fraction: mean(self.sums.clip_fraction),
            grad_norm: mean(self.sums.grad_norm),
            head_entropy: heads
                .zip(&self.heads)
                .filter(|(_, (_, count))| *count > 0)
                .map(|(head, (sum, count))| (head.name.clone(), sum / *count as f64))
                .collect(),
            minibatches: self.minibatches,
            ..UpdateReport::default()
        }
    }
}

fn explained_variance(estimates: &Estimates) -> f64 {
    let variance = |values: &mut dyn Iterator<Item = f64>| {
        let values: Vec<f64> = values.collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64
    };
    let returns = variance(&mut estimates.returns.iter().map(|r| f64::from(*r)));
    let pairs = estimates.returns.iter().zip(&estimates.values);
    let errors = variance(&mut pairs.map(|(r, v)| f64::from(*r) - f64::from(*v)));
    if returns > 0.0 {
        1.0 - errors / returns
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests;
