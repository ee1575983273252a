//! Fitted Q evaluation with a network: what a policy is worth, from transitions of another one.
//!
//! With k steps to go, Q_k is fitted to `r + γ Σ_a π(a|s') Q_{k−1}(s', a)` by least squares, from Q_0 = 0 up to the
//! horizon; nothing follows what has terminated. The target of a sweep is computed once, by the network of the sweep
//! before, which is what a target network is for. Each sweep starts from the weights of the one before and ends when the
//! Bellman error on groups of transitions that it is not fitted to falls no further; the weights that were best on those
//! are kept.
//!
//! Q of a joint decision is the mean over its rows of
//!
//! ```text
//! b(x) + Σ over heads with a choice of A_h(x, a_h)
//! ```
//!
//! with b and A_h the value and the scores of the policies' own architecture, `pointer_v1`: not linear in what a row saw
//! in its turn, any number of channels, and additive over rows and heads, so that the expectation over a policy's joint
//! choice is a sum over levels, head by head. A device's row has scores and no b.
//!
//! Sources: Le, Voloshin and Yue 2019, "Batch Policy Learning under Constraints", algorithm 3; Voloshin, Le, Jiang
//! and Yue 2019, "Empirical Study of Off-Policy Policy Evaluation for Reinforcement Learning", of which FQE came
//! out as the most reliable of those that fit a model of values.

mod decisions;
mod joint;

use std::collections::BTreeSet;

use blkpilot_env::decision::shuffle;
use blkpilot_env::{EnvSpec, Rng};
use blkpilot_models::Architecture;
use rand::SeedableRng as _;
use tch::{Kind, Tensor, no_grad};

use crate::adam::{Adam, AdamConfig, clip_gradients};
use crate::network::Network;
use crate::{LearnError, use_one_thread};

pub use decisions::{Builder, Decisions, Outcome, TakenTurn, Then};
pub use joint::{Of, q};

/// Of the groups that are fitted to, every so manieth is kept for the early stop.
const CHECK_EVERY: usize = 5;
/// Share of the error by which an epoch must lower it to count as better.
const LEAST_GAIN: f64 = 1e-3;
/// By what the learning rate is multiplied after an epoch that was not better.
const SLOW_DOWN: f64 = 0.5;
/// Joint decisions that are looked at together where nothing is learnt.
const CHUNK: usize = 4096;

/// How the network is fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FqeConfig {
    /// Kind and sizes of the network.
    pub architecture: Architecture,
    /// Discount per step, in [0, 1].
    pub gamma: f64,
    /// Steps to go (H), at least 1: so many sweeps are made.
    pub horizon: usize,
    /// Step size of Adam at the beginning of a sweep.
    pub learning_rate: f64,
    /// Joint decisions per minibatch.
    pub minibatch: usize,
    /// Passes over the transitions per sweep at most.
    pub epochs: usize,
    /// Epochs that are not better, each with half the step size of the one before, after which a sweep ends.
    pub patience: usize,
    /// Greatest norm of the gradient.
    pub max_grad_norm: f64,
    /// Everything random follows from it.
    pub seed: u64,
}

impl FqeConfig {
    /// The default network, minibatches of 128, up to 60 epochs with a patience of 3, Adam at 2e-3.
    #[must_use]
    pub fn new(gamma: f64, horizon: usize, seed: u64) -> Self {
        Self {
            architecture: Architecture::default(),
            gamma,
            horizon,
            learning_rate: 2e-3,
            minibatch: 128,
            epochs: 60,
            patience: 3,
            max_grad_norm: 1.0,
            seed,
        }
    }
}

/// What a sweep came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sweep {
    /// Passes over the transitions.
    pub epochs: usize,
    /// Mean squared Bellman error on the groups it was not fitted to, in squared reward units.
    pub bellman_error: f64,
    /// Variance of the targets that it was fitted to.
    pub target_variance: f64,
}

/// A fitted Q with all steps to go.
#[derive(Debug)]
pub struct Fitted {
    network: Network,
    scale: Scale,
    /// One per sweep.
    pub sweeps: Vec<Sweep>,
}

impl Fitted {
    /// What the policy is expected to bring from each of these joint decisions on, before it has chosen:
    /// `Σ_t γ^t r_t` over the horizon.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn values(&self, decisions: &Decisions, steps: &[usize]) -> Result<Vec<f64>, LearnError> {
        values(&self.network, self.scale, decisions, steps)
    }
}

/// What is taken out of targets before a network is fitted to them.
#[derive(Debug, Clone, Copy)]
struct Scale {
    mean: f64,
    deviation: f64,
}

impl Scale {
    fn of(targets: &[f64]) -> Self {
        let n = targets.len().max(1) as f64;
        let mean = targets.iter().sum::<f64>() / n;
        let squares: f64 = targets.iter().map(|y| (y - mean).powi(2)).sum();
        let deviation = (squares / n).sqrt();
        // Targets that are all the same are fitted as they are.
        let is_flat = deviation <= 1e-9 * (1.0 + mean.abs());
        Self {
            mean,
            deviation: if is_flat { 1.0 } else { deviation },
        }
    }
}

/// A joint decision with what its Q is fitted to.
type Lesson = (usize, f64);

/// Fits Q to the transitions of the groups that are not held out. Deterministic on one machine: the same
/// decisions and seed give the same bits.
///
/// # Errors
/// `TooFewGroups`; `FitDiverged` if an error, a gradient or a value is not finite, or if values leave what the
/// rewards can add up to; `Torch` if libtorch fails.
pub fn fit(
    spec: &EnvSpec,
    decisions: &Decisions,
    is_held_out: impl Fn(usize) -> bool,
    config: &FqeConfig,
) -> Result<Fitted, LearnError> {
    use_one_thread();
    let (train, check) = split(decisions, is_held_out)?;
    let mut rng = Rng::seed_from_u64(config.seed);
    let network = Network::new(spec, config.architecture, &mut rng)?;
    let mut fitting = Fitting {
        decisions,
        config,
        adam: Adam::new(AdamConfig::default(), network.parameters())?,
        network,
        rng,
        steps_to_go: 0,
    };
    let mut sweeps = Vec::with_capacity(config.horizon);
    let mut scale = None;
    let bounds = bounds(decisions, &train);
    let mut reach = 0.0;
    for k in 1..=config.horizon {
        fitting.steps_to_go = k;
        let [train, check] = [&train, &check].map(|of| fitting.targets(of, scale));
        let (train, check) = (train?, check?);
        let targets: Vec<f64> = train.iter().map(|(_, target)| *target).collect();
        reach = 1.0 + config.gamma * reach;
        fitting.check_reach(&targets, bounds, reach)?;
        let own = Scale::of(&targets);
        let (epochs, error) = fitting.sweep(&train, &check, own)?;
        sweeps.push(Sweep {
            epochs,
            bellman_error: error * own.deviation.powi(2),
            target_variance: own.deviation.powi(2),
        });
        scale = Some(own);
    }
    let scale = scale.unwrap_or(Scale::of(&[]));
    let values = values(&fitting.network, scale, decisions, &train)?;
    fitting.check_reach(&values, bounds, reach)?;
    Ok(Fitted {
        network: fitting.network,
        scale,
        sweeps,
    })
}

/// Transitions to fit to, and those for the early stop, by group.
fn split(
    decisions: &Decisions,
    is_held_out: impl Fn(usize) -> bool,
) -> Result<(Vec<usize>, Vec<usize>), LearnError> {
    let transitions = decisions.transitions();
    let known: BTreeSet<usize> = transitions
        .map(|step| decisions.outcome(step).group)
        .filter(|group| !is_held_out(*group))
        .collect();
    let groups = known.len();
    if groups < 2 {
        return Err(LearnError::TooFewGroups { groups });
    }
    let every = CHECK_EVERY.min(groups);
    let checked: BTreeSet<usize> = known
        .iter()
        .copied()
        .skip(every - 1)
        .step_by(every)
        .collect();
    let of = |step: &usize| decisions.outcome(*step).group;
    let own = decisions
        .transitions()
        .filter(|step| known.contains(&of(step)));
    Ok(own.partition(|step| !checked.contains(&of(step))))
}

/// Least and greatest reward, 0 among them where something has terminated.
fn bounds(decisions: &Decisions, steps: &[usize]) -> [f64; 2] {
    let outcomes = steps.iter().map(|step| decisions.outcome(*step));
    outcomes.fold(
        [f64::INFINITY, f64::NEG_INFINITY],
        |[low, high], outcome| {
            let zero = if outcome.then == Then::End {
                0.0
            } else {
                outcome.reward
            };
            [
                low.min(outcome.reward).min(zero),
                high.max(outcome.reward).max(zero),
            ]
        },
    )
}

struct Fitting<'a> {
    decisions: &'a Decisions,
    config: &'a FqeConfig,
    network: Network,
    adam: Adam,
    rng: Rng,
    steps_to_go: usize,
}

impl Fitting<'_> {
    fn diverged(&self, quantity: &'static str, value: f64) -> LearnError {
        LearnError::FitDiverged {
            steps_to_go: self.steps_to_go,
            quantity,
            value,
        }
    }

    /// `r + γ Σ_a π(a|s') Q(s', a)` of each transition, Q being what was fitted last: 0 without a `scale`.
    fn targets(&self, steps: &[usize], scale: Option<Scale>) -> Result<Vec<Lesson>, LearnError> {
        let is_followed = |step: &usize| self.decisions.outcome(*step).then == Then::Next;
        let next: Vec<usize> = steps
            .iter()
            .filter(|step| is_followed(step))
            .map(|step| step + 1)
            .collect();
        let follows = match scale {
            Some(scale) => values(&self.network, scale, self.decisions, &next)?,
            None => vec![0.0; next.len()],
        };
        let mut follows = follows.into_iter();
        let target = |step: &usize| {
            let after = match is_followed(step) {
                true => follows.next().unwrap_or(0.0),
                false => 0.0,
            };
            let reward = self.decisions.outcome(*step).reward;
            (*step, reward + self.config.gamma * after)
        };
        Ok(steps.iter().map(target).collect())
    }

    /// The mean of values over the transitions must be one that rewards could have added up to. `reach`: the
    /// sum of the discounts.
    fn check_reach(
        &self,
        values: &[f64],
        [low, high]: [f64; 2],
        reach: f64,
    ) -> Result<(), LearnError> {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        // What the log does not show may be somewhat worse or better than all that it does.
        let room = high - low + 1e-6 * (1.0 + low.abs().max(high.abs()));
        if ((low - room) * reach..=(high + room) * reach).contains(&mean) {
            return Ok(());
        }
        Err(self.diverged("the mean value", mean))
    }

    /// Fits the network; returns the epochs it took and the error that is left, in squared deviations of the targets.
    fn sweep(
        &mut self,
        train: &[Lesson],
        check: &[Lesson],
        scale: Scale,
    ) -> Result<(usize, f64), LearnError> {
        let mut best = (self.error(check, scale)?, self.snapshot()?);
        let (mut rate, mut left) = (self.config.learning_rate, self.config.patience);
        let mut order = train.to_vec();
        for epoch in 0..self.config.epochs {
            shuffle(&mut order, &mut self.rng);
            for lessons in order.chunks(self.config.minibatch.max(1)) {
                self.learn(lessons, scale, rate)?;
            }
            let error = self.error(check, scale)?;
            if error < best.0 * (1.0 - LEAST_GAIN) {
                best = (error, self.snapshot()?);
                continue;
            }
            self.restore(&best.1)?;
            (rate, left) = (rate * SLOW_DOWN, left.saturating_sub(1));
            if left == 0 {
                return Ok((epoch + 1, best.0));
            }
        }
        self.restore(&best.1)?;
        Ok((self.config.epochs, best.0))
    }

    fn learn(&mut self, lessons: &[Lesson], scale: Scale, rate: f64) -> Result<(), LearnError> {
        let loss = loss(&self.network, self.decisions, lessons, scale)?;
        let parameters: Vec<&Tensor> = self.network.parameters().values().collect();
        // The policy's and the critic's layers of kinds of rows that are not there have no part in it.
        let gradients = Tensor::f_run_backward(&[&loss], &parameters, false, false)?;
        let norm = clip_gradients(&gradients, self.config.max_grad_norm)?;
        if !norm.is_finite() {
            return Err(self.diverged("the norm of the gradient", norm));
        }
        Ok(self
            .adam
            .step(self.network.parameters(), &gradients, rate)?)
    }

    /// Mean squared error in squared deviations of the targets.
    fn error(&self, lessons: &[Lesson], scale: Scale) -> Result<f64, LearnError> {
        let mut sum = 0.0;
        for part in lessons.chunks(CHUNK) {
            let loss = no_grad(|| loss(&self.network, self.decisions, part, scale))?;
            sum += loss.f_double_value(&[])? * part.len() as f64;
        }
        match sum / lessons.len().max(1) as f64 {
            error if error.is_finite() => Ok(error),
            error => Err(self.diverged("the Bellman error", error)),
        }
    }

    fn snapshot(&self) -> Result<Vec<Tensor>, LearnError> {
        let copy = |tensor: &Tensor| -> Result<Tensor, LearnError> {
            let mut own = tensor.f_detach()?.f_zeros_like()?;
            own.f_copy_(&tensor.f_detach()?)?;
            Ok(own)
        };
        self.network.parameters().values().map(copy).collect()
    }

    fn restore(&self, snapshot: &[Tensor]) -> Result<(), LearnError> {
        no_grad(|| {
            for (parameter, kept) in self.network.parameters().values().zip(snapshot) {
                parameter.shallow_clone().f_copy_(kept)?;
            }
            Ok(())
        })
    }
}

/// Mean of (Q − target)² in squared deviations of the targets; a scalar.
fn loss(
    network: &Network,
    decisions: &Decisions,
    lessons: &[Lesson],
    scale: Scale,
) -> Result<Tensor, LearnError> {
    let steps: Vec<usize> = lessons.iter().map(|(step, _)| *step).collect();
    let targets: Vec<f64> = lessons
        .iter()
        .map(|(_, target)| (target - scale.mean) / scale.deviation)
        .collect();
    let found = q(network, decisions, &steps, Of::Taken)?;
    let targets = Tensor::f_from_slice(&targets)?.f_to_kind(found.kind())?;
    let squares = found.f_sub(&targets)?.f_square()?;
    Ok(squares.f_mean(None::<Kind>)?)
}

/// `Σ_a π(a|s) Q(s, a)` of joint decisions.
fn values(
    network: &Network,
    scale: Scale,
    decisions: &Decisions,
    steps: &[usize],
) -> Result<Vec<f64>, LearnError> {
    let mut all = Vec::with_capacity(steps.len());
    for part in steps.chunks(CHUNK) {
        let found = no_grad(|| q(network, decisions, part, Of::Expected))?;
        let found = Vec::<f64>::try_from(found.f_to_kind(Kind::Double)?)?;
        all.extend(found.into_iter().map(|q| scale.mean + scale.deviation * q));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
