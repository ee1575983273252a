//! Proximal policy optimisation over disks that decide in turn.
//!
//! Source: Schulman et al. 2017; details after Huang et al. 2022, "The 37 implementation details of
//! PPO".

use blkpilot_env::decision::shuffle;
use blkpilot_env::{EnvSpec, Environment, Rng};
use blkpilot_models::normaliser::{Normaliser, PerTable, Statistics};
use blkpilot_models::{Architecture, Checkpoint, Manifest};
use rand::SeedableRng as _;
use tch::{Kind, TchError, Tensor, no_grad};

use crate::adam::{Adam, AdamConfig};
use crate::categorical::judge;
use crate::gae::Discount;
use crate::network::Network;
use crate::rollout::{Actor, Collector, Estimates, Rollout, Samples};
use crate::turns::Batch;
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
    /// An update ends once the policy has moved this far: approximate KL divergence per turn × 1.5.
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
    /// Entropy of each head that had a choice, by name; disks' heads, then devices'.
    pub head_entropy: Vec<(String, f64)>,
    /// Estimate of the KL divergence from the policy that played: mean of (ratio − 1) − ln ratio.
    pub approx_kl: f64,
    /// Share of turns whose ratio left the clip range.
    pub clip_fraction: f64,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// 1 − variance of the values' error over the variance of the returns, before the update.
    pub explained_variance: f64,
    /// Minibatches taken; fewer than planned if `target_kl` ended the update.
    pub minibatches: usize,
}

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
            adam: Adam::new(AdamConfig::default(), network.parameters())?,
            normalisers: PerTable::build(spec, |_, features| Normaliser::identity(features.len())),
            spec: spec.clone(),
            config,
            seed,
            network,
            statistics,
            rng,
            updates: 0,
            env_steps: 0,
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

    /// Takes mean and deviation of the features from a rollout, and learns nothing else from it.
    /// Called once, before the first update: until then features are not normalised.
    pub fn warm_up(&mut self, rollout: &Rollout) {
        self.look_at(rollout);
    }

    /// One update from a rollout played by [`Ppo::actor`]. `progress` in [0, 1] is the share of the
    /// training that is done. Normalisers stay as they are until its end, so the log-probabilities
    /// of the rollout remain those of the policy that played.
    ///
    /// # Errors
    /// `Diverged` if the loss or the gradient is not finite, `Torch` if libtorch fails.
    pub fn update(&mut self, rollout: &Rollout, progress: f64) -> Result<UpdateReport, LearnError> {
        let estimates = rollout.estimate(&self.network, self.config.discount)?;
        let disks = Lessons::of_disks(&rollout.disks, &estimates)?;
        let devices = Lessons::of_devices(&rollout.devices, &estimates)?;
        let mut tally = Tally::default();
        'update: for _ in 0..self.config.epochs {
            for (disk_rows, device_rows) in self.minibatches(disks.len, devices.len) {
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

    /// The policy as it stands. `config` is kept as it is, for whoever reads the manifest.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn checkpoint(&self, config: serde_json::Value) -> Result<Checkpoint, LearnError> {
        let manifest = Manifest {
            normalisers: self.normalisers.clone(),
            seen: self.statistics.ranges(),
            algorithm: "ppo".to_owned(),
            config,
            seed: self.seed,
            env_steps: self.env_steps,
            ..Manifest::untrained(&self.spec, self.network.architecture())
        };
        Ok(Checkpoint {
            manifest,
            tensors: self.network.tensors()?,
        })
    }

    fn look_at(&mut self, rollout: &Rollout) {
        self.statistics.merge(&rollout.seen);
        self.normalisers = self.statistics.normalisers();
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
        disks: &Lessons,
        devices: Option<&Lessons>,
        progress: f64,
        tally: &mut Tally,
    ) -> Result<bool, LearnError> {
        let weights = LossWeights {
            clip: self.config.clip.at(progress),
            value_clip: self.config.value_clip,
            value: self.config.value_coefficient,
            entropy: self.config.entropy_coefficient.at(progress),
        };
        let loss = loss(&self.network, disks, devices, &weights)?;
        let seen = loss.figures()?;
        let diverged = |quantity, value| LearnError::Diverged {
            update: self.updates,
            quantity,
            value,
        };
        let total = loss.total.f_double_value(&[])?;
        if !total.is_finite() {
            return Err(diverged("the loss", total));
        }
        if self
            .config
            .target_kl
            .is_some_and(|target| seen.approx_kl > 1.5 * target)
        {
            return Ok(false);
        }
        let parameters: Vec<&Tensor> = self.network.parameters().values().collect();
        let gradients = Tensor::f_run_backward(&[&loss.total], &parameters, false, false)?;
        let norm = clip_gradients(&gradients, self.config.max_grad_norm)?;
        if !norm.is_finite() {
            return Err(diverged("the norm of the gradient", norm));
        }
        let rate = self.config.learning_rate.at(progress);
        self.adam
            .step(self.network.parameters(), &gradients, rate)?;
        tally.add(&Figures {
            grad_norm: norm,
            ..seen
        });
        Ok(true)
    }
}

/// What is to be learnt from some turns; S of them.
#[derive(Debug)]
pub(crate) struct Lessons {
    pub(crate) len: usize,
    pub(crate) batch: Batch,
    /// int64 [S, heads].
    pub(crate) levels: Tensor,
    /// [S].
    pub(crate) log_probs: Tensor,
    /// [S].
    pub(crate) advantages: Tensor,
    /// 1 where the turn teaches the policy, else 0; [S].
    pub(crate) weights: Tensor,
    /// Old value and return, of disks; [S].
    pub(crate) values: Option<(Tensor, Tensor)>,
}

impl Lessons {
    fn of_disks(samples: &Samples, estimates: &Estimates) -> Result<Self, TchError> {
        let values = (
            Tensor::f_from_slice(&estimates.values)?,
            Tensor::f_from_slice(&estimates.returns)?,
        );
        Self::new(
            samples,
            &estimates.disk_advantages,
            &estimates.disk_weights,
            Some(values),
        )
    }

    fn of_devices(samples: &Samples, estimates: &Estimates) -> Result<Self, TchError> {
        Self::new(
            samples,
            &estimates.device_advantages,
            &estimates.device_weights,
            None,
        )
    }

    fn new(
        samples: &Samples,
        advantages: &[f32],
        weights: &[bool],
        values: Option<(Tensor, Tensor)>,
    ) -> Result<Self, TchError> {
        let (rows, heads) = (samples.turns.len(), samples.turns.heads());
        let weights: Vec<f32> = weights.iter().map(|w| f32::from(u8::from(*w))).collect();
        Ok(Self {
            len: rows,
            batch: samples.turns.batch(0..rows)?,
            levels: Tensor::f_from_slice(&samples.levels)?.f_view([rows as i64, heads as i64])?,
            log_probs: Tensor::f_from_slice(&samples.log_probs)?,
            advantages: Tensor::f_from_slice(advantages)?,
            weights: Tensor::f_from_slice(&weights)?,
            values,
        })
    }

    fn select(&self, rows: &[i64]) -> Result<Self, TchError> {
        let index = Tensor::f_from_slice(rows)?;
        let pick = |tensor: &Tensor| tensor.f_index_select(0, &index);
        let values = match &self.values {
            Some((old, returns)) => Some((pick(old)?, pick(returns)?)),
            None => None,
        };
        Ok(Self {
            len: rows.len(),
            batch: self.batch.select(&index)?,
            levels: pick(&self.levels)?,
            log_probs: pick(&self.log_probs)?,
            advantages: pick(&self.advantages)?,
            weights: pick(&self.weights)?,
            values,
        })
    }
}

/// Weights of the parts of the loss.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LossWeights {
    pub(crate) clip: f64,
    pub(crate) value_clip: Option<f64>,
    pub(crate) value: f64,
    pub(crate) entropy: f64,
}

/// The loss of one minibatch and its parts.
pub(crate) struct Loss {
    pub(crate) total: Tensor,
    value: Tensor,
    /// Of disks' turns, then of devices'.
    policies: Vec<PolicyLoss>,
}

/// Clipped objective of some turns.
struct PolicyLoss {
    objective: Tensor,
    entropy: Tensor,
    approx_kl: Tensor,
    clip_fraction: Tensor,
    /// Mean entropy per head, over the turns where it had a choice; [heads].
    head_entropy: Tensor,
}

/// The loss of one minibatch: the clipped objectives of disks and devices, each a mean over its own
/// turns, the value loss and the entropy bonus.
pub(crate) fn loss(
    network: &Network,
    disks: &Lessons,
    devices: Option<&Lessons>,
    weights: &LossWeights,
) -> Result<Loss, TchError> {
    let mut policies = vec![policy_loss(
        &network.scores(&disks.batch)?,
        disks,
        weights.clip,
    )?];
    if let Some(devices) = devices {
        policies.push(policy_loss(
            &network.device_scores(&devices.batch)?,
            devices,
            weights.clip,
        )?);
    }
    let value = value_loss(&network.values(&disks.batch)?, disks, weights.value_clip)?;
    let mut total = value.f_mul_scalar(weights.value)?;
    for policy in &policies {
        let bonus = policy.entropy.f_mul_scalar(weights.entropy)?;
        total = total.f_add(&policy.objective)?.f_sub(&bonus)?;
    }
    Ok(Loss {
        total,
        value,
        policies,
    })
}

fn policy_loss(scores: &[Tensor], lessons: &Lessons, clip: f64) -> Result<PolicyLoss, TchError> {
    let judged = judge(scores, &lessons.batch, &lessons.levels)?;
    let count = lessons.weights.f_sum(None::<Kind>)?.f_clamp_min(1.0)?;
    let mean = |tensor: &Tensor| {
        tensor
            .f_mul(&lessons.weights)?
            .f_sum(None::<Kind>)?
            .f_div(&count)
    };
    let advantages = normalise(&lessons.advantages, &lessons.weights, &count)?;
    let log_ratio = judged.log_prob.f_sub(&lessons.log_probs)?;
    let ratio = log_ratio.f_exp()?;
    let clipped = ratio.f_clamp(1.0 - clip, 1.0 + clip)?;
    let gain = ratio
        .f_mul(&advantages)?
        .f_minimum(&clipped.f_mul(&advantages)?)?;
    let left = ratio
        .f_sub_scalar(1.0)?
        .f_abs()?
        .f_gt(clip)?
        .f_to_kind(ratio.kind())?;
    let free = lessons
        .batch
        .free
        .f_sum_dim_intlist([0_i64].as_slice(), false, None::<Kind>)?
        .f_clamp_min(1.0)?;
    let entropy_sum = judged
        .entropy
        .f_sum_dim_intlist([0_i64].as_slice(), false, None::<Kind>)?;
    Ok(PolicyLoss {
        objective: mean(&gain)?.f_neg()?,
        entropy: mean(&judged.entropy.f_sum_dim_intlist(
            [1_i64].as_slice(),
            false,
            None::<Kind>,
        )?)?,
        approx_kl: mean(&ratio.f_sub_scalar(1.0)?.f_sub(&log_ratio)?)?,
        clip_fraction: mean(&left)?,
        head_entropy: entropy_sum.f_div(&free)?,
    })
}

/// Advantages with mean 0 and deviation 1 over the turns that teach; as they are if fewer than two do.
fn normalise(advantages: &Tensor, weights: &Tensor, count: &Tensor) -> Result<Tensor, TchError> {
    if count.f_double_value(&[])? < 2.0 {
        return Ok(advantages.shallow_clone());
    }
    let mean = advantages
        .f_mul(weights)?
        .f_sum(None::<Kind>)?
        .f_div(count)?;
    let centred = advantages.f_sub(&mean)?;
    let squares = centred.f_square()?.f_mul(weights)?.f_sum(None::<Kind>)?;
    let deviation = squares.f_div(&count.f_sub_scalar(1.0)?)?.f_sqrt()?;
    centred.f_div(&deviation.f_add_scalar(1e-8)?)
}

/// Half the mean squared error; with a clip, the worse of the value and the value kept near the old.
fn value_loss(values: &Tensor, lessons: &Lessons, clip: Option<f64>) -> Result<Tensor, TchError> {
    let Some((old, returns)) = &lessons.values else {
        return values.f_sum(None::<Kind>)?.f_mul_scalar(0.0);
    };
    let mut errors = values.f_sub(returns)?.f_square()?;
    if let Some(clip) = clip {
        let near = values.f_sub(old)?.f_clamp(-clip, clip)?.f_add(old)?;
        errors = errors.f_maximum(&near.f_sub(returns)?.f_square()?)?;
    }
    errors.f_mean(None::<Kind>)?.f_mul_scalar(0.5)
}

/// Scales gradients so that their norm is at most `most`; returns the norm they had.
fn clip_gradients(gradients: &[Tensor], most: f64) -> Result<f64, TchError> {
    no_grad(|| {
        let defined: Vec<&Tensor> = gradients.iter().filter(|g| g.defined()).collect();
        let norms = defined
            .iter()
            .map(|g| g.f_norm())
            .collect::<Result<Vec<_>, _>>()?;
        let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
        let scale = most / (norm + 1e-6);
        if scale < 1.0 {
            for gradient in defined {
                let _ = gradient.shallow_clone().f_mul_scalar_(scale)?;
            }
        }
        Ok(norm)
    })
}

/// What one minibatch showed.
#[derive(Debug, Clone, Default)]
struct Figures {
    policy_loss: f64,
    value_loss: f64,
    entropy: f64,
    approx_kl: f64,
    clip_fraction: f64,
    grad_norm: f64,
    head_entropy: Vec<f64>,
}

impl Loss {
    fn figures(&self) -> Result<Figures, TchError> {
        let first = &self.policies[0];
        let mut head_entropy = Vec::new();
        for policy in &self.policies {
            head_entropy.extend(Vec::<f64>::try_from(
                policy.head_entropy.f_to_kind(Kind::Double)?,
            )?);
        }
        let sum = |of: fn(&PolicyLoss) -> &Tensor| -> Result<f64, TchError> {
            self.policies
                .iter()
                .map(|policy| of(policy).f_double_value(&[]))
                .sum()
        };
        Ok(Figures {
            policy_loss: sum(|p| &p.objective)?,
            value_loss: self.value.f_double_value(&[])?,
            entropy: sum(|p| &p.entropy)?,
            approx_kl: first.approx_kl.f_double_value(&[])?,
            clip_fraction: first.clip_fraction.f_double_value(&[])?,
            grad_norm: 0.0,
            head_entropy,
        })
    }
}

/// Means over the minibatches of an update.
#[derive(Debug, Default)]
struct Tally {
    minibatches: usize,
    sums: Figures,
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
        sums.head_entropy.resize(figures.head_entropy.len(), 0.0);
        sums.head_entropy
            .iter_mut()
            .zip(&figures.head_entropy)
            .for_each(|(sum, own)| *sum += own);
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
                .zip(&self.sums.head_entropy)
                .map(|(head, sum)| (head.name.clone(), mean(*sum)))
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
mod tests {
    use blkpilot_env::Autoreset;
    use blkpilot_env::cartpole::CartPole;
    use blkpilot_env::sim::{Generator, SimHost};
    use blkpilot_env::vector::AutoresetEnv;
    use rand::RngExt as _;

    use super::*;

    const WEIGHTS: LossWeights = LossWeights {
        clip: 0.2,
        value_clip: Some(0.3),
        value: 0.5,
        entropy: 0.03,
    };

    fn config() -> PpoConfig {
        PpoConfig {
            steps: 8,
            epochs: 2,
            minibatch: 16,
            discount: Discount {
                gamma: 0.9,
                lambda: 0.9,
            },
            learning_rate: Schedule::LinearToZero(1e-3),
            clip: Schedule::Constant(0.2),
            value_clip: None,
            value_coefficient: 0.5,
            entropy_coefficient: Schedule::Constant(0.01),
            max_grad_norm: 0.5,
            target_kl: None,
        }
    }

    fn hosts(count: u64) -> Collector<AutoresetEnv<SimHost>> {
        let generator = Generator {
            disks: (1, 4),
            steps: 5,
            schedulers: true,
            ..Generator::default()
        };
        let host = || SimHost::generated(generator.clone()).unwrap();
        let envs = (0..count).map(|seed| (AutoresetEnv::new(host(), Autoreset::SameStep), seed));
        Collector::new(envs.collect(), Rng::seed_from_u64(1)).unwrap()
    }

    impl Lessons {
        fn to_double(&self) -> Self {
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            Self {
                len: self.len,
                batch: self.batch.to_kind(Kind::Double).unwrap(),
                levels: self.levels.shallow_clone(),
                log_probs: double(&self.log_probs),
                advantages: double(&self.advantages),
                weights: double(&self.weights),
                values: self
                    .values
                    .as_ref()
                    .map(|(old, returns)| (double(old), double(returns))),
            }
        }
    }

    /// Central differences of the whole loss in f64, over a network of three and two units, on hosts
    /// of several sizes, with old log-probabilities moved so that some turns are clipped.
    #[test]
    fn the_gradient_of_the_loss_equals_its_differences() {
        let mut collector = hosts(3);
        let spec = collector.spec().clone();
        let architecture = Architecture {
            hidden: 3,
            channel_hidden: 2,
            ..Architecture::default()
        };
        let ppo = Ppo::new(&spec, architecture, config(), 7).unwrap();
        let rollout = ppo.play(&mut collector).unwrap();
        let estimates = rollout.estimate(&ppo.network, ppo.config.discount).unwrap();
        let mut rng = Rng::seed_from_u64(8);
        let mut moved = |lessons: Lessons| {
            let shifts: Vec<f64> = (0..lessons.len)
                .map(|_| rng.random_range(-0.4..0.4))
                .collect();
            let lessons = lessons.to_double();
            Lessons {
                log_probs: &lessons.log_probs + Tensor::from_slice(&shifts),
                ..lessons
            }
        };
        let disks = moved(Lessons::of_disks(&rollout.disks, &estimates).unwrap());
        let devices = moved(Lessons::of_devices(&rollout.devices, &estimates).unwrap());
        let tensors = ppo.network.tensors().unwrap();
        let network = Network::from_tensors(&spec, architecture, &tensors, Kind::Double).unwrap();

        let parameters: Vec<&Tensor> = network.parameters().values().collect();
        let total = || {
            loss(&network, &disks, Some(&devices), &WEIGHTS)
                .unwrap()
                .total
        };
        let gradients = Tensor::run_backward(&[total()], &parameters, false, false);
        const STEP: f64 = 1e-5;
        let mut checked = 0;
        for (name, gradient) in network.parameters().keys().zip(&gradients) {
            let flat = no_grad(|| network.parameters()[name].detach().view([-1]));
            let gradient = gradient.view([-1]);
            for at in [0, flat.size()[0] / 2, flat.size()[0] - 1] {
                let nudge = |by: f64| {
                    let _ = flat.get(at).g_add_scalar_(by);
                    no_grad(|| total().double_value(&[]))
                };
                let (up, down) = (nudge(STEP), nudge(-2.0 * STEP));
                nudge(STEP);
                let (got, want) = (gradient.double_value(&[at]), (up - down) / (2.0 * STEP));
                assert!(
                    (got - want).abs() < 1e-7 + 1e-5 * want.abs(),
                    "{name}[{at}]: {got} is not {want}"
                );
                checked += usize::from(want.abs() > 1e-9);
            }
        }
        assert!(checked > 50, "only {checked} differences were not 0");
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_bit_for_bit() {
        let train = || {
            let mut collector = hosts(2);
            let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
            let rollout = ppo.play(&mut collector).unwrap();
            ppo.warm_up(&rollout);
            for _ in 0..3 {
                let rollout = ppo.play(&mut collector).unwrap();
                ppo.update(&rollout, 0.5).unwrap();
            }
            ppo.network.tensors().unwrap()
        };
        assert_eq!(train(), train());
    }

    #[test]
    fn an_update_raises_what_paid_and_reports_what_it_did() {
        let mut collector = hosts(4);
        let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
        let rollout = ppo.play(&mut collector).unwrap();
        ppo.warm_up(&rollout);
        let rollout = ppo.play(&mut collector).unwrap();
        let estimates = rollout.estimate(&ppo.network, ppo.config.discount).unwrap();
        let lessons = Lessons::of_disks(&rollout.disks, &estimates).unwrap();
        let report = ppo.update(&rollout, 0.25).unwrap();
        // The plain objective, under the normalisers of the rollout.
        let after = no_grad(|| {
            let scores = ppo.network.scores(&lessons.batch).unwrap();
            policy_loss(&scores, &lessons, 1e9)
                .unwrap()
                .objective
                .double_value(&[])
        });
        assert!(after < -1e-3, "{after}");
        assert_eq!(report.learning_rate, 0.75e-3);
        let names: Vec<&str> = report
            .head_entropy
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["channel", "cache", "polling", "scheduler"]);
        let polling = report.head_entropy[2].1;
        assert!(
            (polling - 2.0_f64.ln()).abs() < 0.02,
            "an untrained head of two levels: {polling}"
        );
        assert!(report.approx_kl > 0.0 && report.grad_norm > 0.0 && report.minibatches > 2);
    }

    #[test]
    fn target_kl_ends_an_update_early() {
        let mut collector = hosts(4);
        let config = PpoConfig {
            epochs: 50,
            target_kl: Some(1e-4),
            ..config()
        };
        let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config, 3).unwrap();
        let rollout = ppo.play(&mut collector).unwrap();
        let report = ppo.update(&rollout, 0.0).unwrap();
        assert!(report.minibatches < 50, "{}", report.minibatches);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_an_error_with_a_way_out() {
        let env = AutoresetEnv::new(CartPole::new(0), Autoreset::SameStep);
        let mut collector = Collector::new(vec![(env, 0)], Rng::seed_from_u64(1)).unwrap();
        let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
        let rollout = ppo.play(&mut collector).unwrap();
        let _ = no_grad(|| {
            ppo.network.parameters()["critic.value.bias"]
                .shallow_clone()
                .fill_(f64::NAN)
        });
        let error = ppo.update(&rollout, 0.0).unwrap_err();
        assert!(
            error.to_string().contains("lower the learning rate"),
            "{error}"
        );
    }

    /// Returns 0, 2 (variance 1) and errors ±½ (variance ¼).
    #[test]
    fn explained_variance_worked_by_hand() {
        let estimates = Estimates {
            values: vec![0.5, 1.5],
            returns: vec![0.0, 2.0],
            disk_advantages: vec![],
            disk_weights: vec![],
            device_advantages: vec![],
            device_weights: vec![],
        };
        assert!((explained_variance(&estimates) - 0.75).abs() < 1e-12);
    }
}
