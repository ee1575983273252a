//! Learning from decision logs: behaviour cloning, conservative Q-learning and implicit Q-learning.
//!
//! A log is held in memory as a [`Dataset`] of disks' turns. Learners draw minibatches from it, with replacement, and
//! never play. A turn is worth what its own disk earned, with its part of the host mean; what follows it is the turn of the
//! same disk in the next joint decision. Where an episode terminates nothing follows; where it was cut, or the log has a
//! gap, what follows was not logged, and no value is learnt from the turn (cloning takes it all the same).
//!
//! Whatever the learner, a policy leaves as a checkpoint of `pointer_v1`: of [`cql`] scores are advantages, and the policy
//! is greedy; of [`iql`] and [`bc`] they are logits, to be drawn from.

pub mod bc;
pub mod cql;
mod data;
pub mod iql;
mod kept;

use blkpilot_env::{EnvSpec, Rng};
use blkpilot_models::{Architecture, Checkpoint, Manifest};
use rand::{RngExt as _, SeedableRng as _};
use tch::{Kind, TchError, Tensor, no_grad};

use crate::adam::{Adam, AdamConfig, clip_gradients};
use crate::network::Network;
use crate::ppo::Schedule;
use crate::q::Q;
use crate::{LearnError, use_one_thread};

pub use cql::{CqlConfig, TdLoss};
pub use data::{Builder, Dataset, Facts, Joint, Lessons, Logged};
pub use iql::IqlConfig;

/// Turns that are looked at together where nothing is learnt.
const CHUNK: usize = 4096;
/// How many times what rewards can add up to a mean Q may be before learning counts as diverged: conservative values
/// leave that range somewhat, those that run away by orders of magnitude.
const MOST_REACH: f64 = 10.0;

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Algorithm {
    /// Behaviour cloning.
    Bc,
    /// Conservative Q-learning.
    Cql(CqlConfig),
    /// Implicit Q-learning.
    Iql(IqlConfig),
}

impl Algorithm {
    /// Its name in configs and checkpoints.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bc => "bc",
            Self::Cql(_) => "cql",
            Self::Iql(_) => "iql",
        }
    }
}

/// How to learn from a log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfflineConfig {
    /// What is learnt.
    pub algorithm: Algorithm,
    /// Turns per minibatch, at least 1.
    pub minibatch: usize,
    /// Discount per step, in [0, 1].
    pub gamma: f64,
    /// Step size of Adam.
    pub learning_rate: Schedule,
    /// Greatest norm of the gradient; `None` does not limit it.
    pub max_grad_norm: Option<f64>,
}

/// What some gradient steps did: means over them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OfflineReport {
    /// Step size of Adam.
    pub learning_rate: f64,
    /// The figures of the algorithm, by the names that they have in event files, such as `td_loss`.
    pub figures: Vec<(&'static str, f64)>,
}

/// A network that is descended.
#[derive(Debug)]
struct Trained {
    network: Network,
    adam: Adam,
}

impl Trained {
    fn new(network: Network) -> Result<Self, TchError> {
        Ok(Self {
            adam: Adam::new(AdamConfig::default(), network.parameters())?,
            network,
        })
    }

    /// One step of Adam. Layers that have no part in the loss stay as they are.
    fn descend(&mut self, loss: &Tensor, rate: f64, clip: Option<f64>) -> Result<(), TchError> {
        let parameters: Vec<&Tensor> = self.network.parameters().values().collect();
        let gradients = Tensor::f_run_backward(&[loss], &parameters, false, false)?;
        if let Some(most) = clip {
            clip_gradients(&gradients, most)?;
        }
        self.adam.step(self.network.parameters(), &gradients, rate)
    }
}

/// A learner with its log.
#[derive(Debug)]
pub struct Offline {
    spec: EnvSpec,
    config: OfflineConfig,
    seed: u64,
    data: Dataset,
    policy: Trained,
    /// Of IQL.
    critic: Option<Trained>,
    /// Q of a while ago: of CQL the policy's network, of IQL the critic.
    target: Option<Network>,
    rng: Rng,
    steps: u64,
}

impl Offline {
    /// A learner for environments with `spec`; everything random follows from `seed`.
    ///
    /// # Errors
    /// `NoLessons` if values are to be learnt and the data have no transition; `Torch` if libtorch fails.
    pub fn new(
        spec: &EnvSpec,
        architecture: Architecture,
        config: OfflineConfig,
        data: Dataset,
        seed: u64,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        check(&data, &config)?;
        let mut rng = Rng::seed_from_u64(seed);
        let policy = Network::new(spec, architecture, &mut rng)?;
        let (critic, target) = match config.algorithm {
            Algorithm::Bc => (None, None),
            Algorithm::Cql(_) => (None, Some(copy(spec, &policy)?)),
            Algorithm::Iql(_) => {
                let critic = Network::new(spec, architecture, &mut rng)?;
                let target = copy(spec, &critic)?;
                (Some(Trained::new(critic)?), Some(target))
            }
        };
        Ok(Self {
            spec: spec.clone(),
            config,
            seed,
            data,
            policy: Trained::new(policy)?,
            critic,
            target,
            rng,
            steps: 0,
        })
    }

    /// What it learns from.
    #[must_use]
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Gradient steps made.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Makes `steps` gradient steps. `progress` in [0, 1] is the share of the training that is done.
    ///
    /// # Errors
    /// `Diverged` if a loss is not finite or Q leaves what rewards can add up to by far, `Torch` if libtorch fails.
    pub fn learn(&mut self, steps: u64, progress: f64) -> Result<OfflineReport, LearnError> {
        let rate = self.config.learning_rate.at(progress);
        let mut sums: Vec<(&'static str, f64)> = vec![];
        for _ in 0..steps {
            let figures = self.step(rate)?;
            self.check_reach(&figures)?;
            self.steps += 1;
            if sums.is_empty() {
                sums = figures.iter().map(|(name, _)| (*name, 0.0)).collect();
            }
            let pairs = sums.iter_mut().zip(figures);
            pairs.for_each(|((_, sum), (_, value))| *sum += value);
        }
        sums.iter_mut().for_each(|(_, sum)| *sum /= steps as f64);
        Ok(OfflineReport {
            learning_rate: rate,
            figures: sums,
        })
    }

    fn step(&mut self, rate: f64) -> Result<Vec<(&'static str, f64)>, LearnError> {
        let clip = self.config.max_grad_norm;
        match self.config.algorithm {
            Algorithm::Bc => {
                let rows = draw(self.data.choices(), self.config.minibatch, &mut self.rng);
                let (batch, levels) = self.data.examples(&rows)?;
                let loss = bc::loss(&self.policy.network.scores(&batch)?, &batch, &levels)?;
                self.policy.descend(&loss, rate, clip)?;
                read([("policy_loss", &loss)])
            }
            Algorithm::Cql(own) => self.step_cql(own, rate),
            Algorithm::Iql(own) => self.step_iql(own, rate),
        }
    }

    fn step_cql(
        &mut self,
        own: CqlConfig,
        rate: f64,
    ) -> Result<Vec<(&'static str, f64)>, LearnError> {
        let rows = draw(
            self.data.transitions(),
            self.config.minibatch,
            &mut self.rng,
        );
        let lessons = self.data.lessons(&rows)?;
        let target = self.target.as_ref().expect("CQL has a target network");
        let network = &self.policy.network;
        let targets = cql::targets(network, target, &lessons, self.config.gamma)?;
        let loss = cql::loss(network, &lessons, &targets, &own)?;
        self.policy
            .descend(&loss.total, rate, self.config.max_grad_norm)?;
        if (self.steps + 1).is_multiple_of(own.target_every) {
            approach(target, &self.policy.network, 1.0)?;
        }
        read([
            ("td_loss", &loss.td),
            ("conservative_loss", &loss.gap),
            ("q_values", &loss.q),
        ])
    }

    fn step_iql(
        &mut self,
        own: IqlConfig,
        rate: f64,
    ) -> Result<Vec<(&'static str, f64)>, LearnError> {
        let rows = draw(
            self.data.transitions(),
            self.config.minibatch,
            &mut self.rng,
        );
        let lessons = self.data.lessons(&rows)?;
        let critic = self.critic.as_mut().expect("IQL has a critic");
        let target = self.target.as_ref().expect("IQL has a target network");
        let scale = (self.config.gamma, &own);
        let policy = &self.policy.network;
        let loss = iql::loss(policy, &critic.network, target, &lessons, scale)?;
        let clip = self.config.max_grad_norm;
        self.policy.descend(&loss.policy_and_value, rate, clip)?;
        critic.descend(&loss.critic, rate, clip)?;
        approach(target, &critic.network, own.polyak)?;
        read([
            ("policy_loss", &loss.policy),
            ("value_loss", &loss.value),
            ("td_loss", &loss.critic),
            ("q_values", &loss.q),
            ("v_values", &loss.v),
            ("weight", &loss.weight),
        ])
    }

    fn check_reach(&self, figures: &[(&'static str, f64)]) -> Result<(), LearnError> {
        let reach = f64::from(self.data.facts.greatest_reward) / (1.0 - self.config.gamma);
        let is_far = |(name, value): &(&str, f64)| {
            let is_value = matches!(*name, "q_values" | "v_values");
            // With nothing earned, or without discount, there is no such bound.
            let is_bounded = reach > 0.0 && reach.is_finite();
            !value.is_finite() || is_value && is_bounded && value.abs() > MOST_REACH * reach
        };
        match figures.iter().find(|figure| is_far(figure)) {
            None => Ok(()),
            Some((quantity, value)) => Err(LearnError::Diverged {
                update: self.steps,
                quantity,
                value: *value,
            }),
        }
    }

    /// What the learner itself expects its policy to bring from the beginnings of disks' courses on, discounted: mean of
    /// the greatest Q of CQL, of V of IQL. Such estimates tend to be wrong where the log does not bear them out.
    /// `None` of cloning, which has no values.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn own_estimate(&self) -> Result<Option<f64>, LearnError> {
        let (network, begins) = (&self.policy.network, self.data.begins());
        let is_bc = self.config.algorithm == Algorithm::Bc;
        if is_bc || begins.is_empty() {
            return Ok(None);
        }
        let mut sum = 0.0;
        for rows in begins.chunks(CHUNK) {
            let (batch, _) = self.data.examples(rows)?;
            let values = no_grad(|| match self.config.algorithm {
                Algorithm::Cql(_) => Q::of(network, &batch)?.greatest(&batch),
                Algorithm::Bc | Algorithm::Iql(_) => network.values(&batch),
            })?;
            sum += values.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        Ok(Some(sum / begins.len() as f64))
    }

    /// The policy as it stands, with all that [`Offline::resume`] needs. `config` is kept as it is, for whoever reads the
    /// manifest.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn checkpoint(&self, config: serde_json::Value) -> Result<Checkpoint, LearnError> {
        let mut manifest = Manifest {
            normalisers: self.data.normalisers.clone(),
            seen: self.data.seen.clone(),
            algorithm: self.config.algorithm.name().to_owned(),
            config,
            seed: self.seed,
            ..Manifest::untrained(&self.spec, self.policy.network.architecture())
        };
        let mut tensors = self.policy.network.tensors()?;
        kept::write(self, &mut manifest, &mut tensors)?;
        Ok(Checkpoint { manifest, tensors })
    }

    /// Goes on from a checkpoint of [`Offline::checkpoint`] as if it had not been interrupted, with the same data.
    ///
    /// # Errors
    /// `NoState` if it is of another learner, its state is missing or does not fit, or the data are not those that it
    /// learnt from; `NoLessons`; `Torch` if libtorch fails.
    pub fn resume(
        checkpoint: &Checkpoint,
        config: OfflineConfig,
        data: Dataset,
    ) -> Result<Self, LearnError> {
        use_one_thread();
        check(&data, &config)?;
        kept::read(checkpoint, config, data)
    }
}

fn check(data: &Dataset, config: &OfflineConfig) -> Result<(), LearnError> {
    let Facts {
        turns,
        transitions,
        cut,
        ..
    } = data.facts;
    if config.algorithm != Algorithm::Bc && transitions == 0 {
        return Err(LearnError::NoLessons {
            problem: format!(
                "of none of its {turns} turns are both reward and successor known ({cut} have a reward and no successor); log longer episodes, or clone the behaviour"
            ),
        });
    }
    Ok(())
}

/// So many of the rows, with replacement.
fn draw(rows: &[i64], count: usize, rng: &mut Rng) -> Vec<i64> {
    (0..count)
        .map(|_| rows[rng.random_range(0..rows.len())])
        .collect()
}

/// A network of its own with the same weights.
fn copy(spec: &EnvSpec, network: &Network) -> Result<Network, TchError> {
    Network::from_tensors(
        spec,
        network.architecture(),
        &network.tensors()?,
        Kind::Float,
    )
}

/// Moves the parameters of `target` so much of the way to those of `network`; all the way with 1.
fn approach(target: &Network, network: &Network, share: f64) -> Result<(), TchError> {
    no_grad(|| {
        let pairs = target
            .parameters()
            .values()
            .zip(network.parameters().values());
        for (target, own) in pairs {
            let mut target = target.shallow_clone();
            if share < 1.0 {
                let _ = target.f_lerp_(own, share)?;
            } else {
                target.f_copy_(own)?;
            }
        }
        Ok(())
    })
}

/// Scalars as numbers.
fn read<const N: usize>(
    figures: [(&'static str, &Tensor); N],
) -> Result<Vec<(&'static str, f64)>, LearnError> {
    let number = |(name, value): &(&'static str, &Tensor)| Ok((*name, value.f_double_value(&[])?));
    figures.iter().map(number).collect()
}
