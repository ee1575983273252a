//! The loss of PPO: the clipped objectives of disks and devices, the value loss, the entropy bonus.
//!
//! All of it is a sum over turns of a few numbers each, so it is computed here, in f64, together with its gradient
//! with respect to what the network said, which the network's backward pass takes on to the parameters. (Written as
//! operations of libtorch, each of which costs microseconds however small it is, it took longer than the network.)

use tch::{Kind, TchError, Tensor};

use crate::network::Network;
use crate::rollout::{Estimates, Samples};
use crate::turns::{Batch, Turns};

/// What is to be learnt from some turns; S of them.
#[derive(Debug)]
pub(crate) struct Lessons<'a> {
    turns: &'a Turns,
    pub(crate) batch: Batch,
    /// `[S, heads]`.
    levels: &'a [i64],
    /// Of these levels, under the policy that drew them; `[S]`.
    pub(crate) log_probs: Vec<f32>,
    /// `[S]`.
    advantages: &'a [f32],
    /// Whether the turn teaches the policy; `[S]`.
    teaches: &'a [bool],
    /// What the critic said when the rollout was played; `[S]`, nothing of devices.
    values: &'a [f32],
    /// What it should have said; `[S]`, nothing of devices.
    returns: &'a [f32],
}

impl<'a> Lessons<'a> {
    pub(crate) fn of_disks(samples: &'a Samples, from: &'a Estimates) -> Result<Self, TchError> {
        Ok(Self {
            values: &from.values,
            returns: &from.returns,
            ..Self::new(samples, &from.disk_advantages, &from.disk_weights)?
        })
    }

    pub(crate) fn of_devices(samples: &'a Samples, from: &'a Estimates) -> Result<Self, TchError> {
        Self::new(samples, &from.device_advantages, &from.device_weights)
    }

    fn new(
        samples: &'a Samples,
        advantages: &'a [f32],
        teaches: &'a [bool],
    ) -> Result<Self, TchError> {
        Ok(Self {
            turns: &samples.turns,
            batch: samples.turns.batch(0..samples.turns.len())?,
            levels: &samples.levels,
            log_probs: samples.log_probs.clone(),
            advantages,
            teaches,
            values: &[],
            returns: &[],
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.turns.len()
    }

    /// The turns `rows`.
    pub(crate) fn select(&self, rows: &[i64]) -> Result<Minibatch<'_>, TchError> {
        Ok(Minibatch {
            lessons: self,
            batch: self.batch.select(&Tensor::f_from_slice(rows)?)?,
            rows: rows.iter().map(|row| *row as usize).collect(),
        })
    }
}

/// Some of the turns; M of them.
#[derive(Debug)]
pub(crate) struct Minibatch<'a> {
    lessons: &'a Lessons<'a>,
    pub(crate) batch: Batch,
    rows: Vec<usize>,
}

impl Minibatch<'_> {
    /// Number of turns that teach.
    fn teaching(&self) -> usize {
        let teaches = |row: &&usize| self.lessons.teaches[**row];
        self.rows.iter().filter(teaches).count()
    }

    /// Advantages with mean 0 and deviation 1 over the turns that teach; as they are if fewer than two do.
    fn normalised_advantages(&self) -> Vec<f64> {
        let of = |row: &usize| f64::from(self.lessons.advantages[*row]);
        let count = self.teaching() as f64;
        if count < 2.0 {
            return self.rows.iter().map(of).collect();
        }
        let teaching = || {
            let rows = self.rows.iter();
            rows.filter(|row| self.lessons.teaches[**row]).map(of)
        };
        let mean = teaching().sum::<f64>() / count;
        let squares: f64 = teaching().map(|advantage| (advantage - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0)).sqrt();
        let normalised = |row| (of(row) - mean) / (deviation + 1e-8);
        self.rows.iter().map(normalised).collect()
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

/// What one minibatch showed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) loss: f64,
    pub(crate) policy_loss: f64,
    pub(crate) value_loss: f64,
    pub(crate) entropy: f64,
    pub(crate) approx_kl: f64,
    pub(crate) clip_fraction: f64,
    pub(crate) grad_norm: f64,
    /// Of disks' heads, then of devices'; `None` where no turn had a choice. Devices' are left out
    /// where none had a turn.
    pub(crate) head_entropy: Vec<Option<f64>>,
}

/// The loss of one minibatch: the clipped objectives of disks and devices, each a mean over its own
/// turns, the value loss and the entropy bonus. Its gradient is [`Network::gradient`] then.
pub(crate) fn loss(
    network: &Network,
    disks: &Minibatch<'_>,
    devices: Option<&Minibatch<'_>>,
    weights: &LossWeights,
) -> Result<Figures, TchError> {
    network.clear_gradient()?;
    let pass = network.disk_pass(&disks.batch)?;
    let value = value_loss(&Table::read(&pass.values)?.entries, disks, weights);
    let policy = policy_loss(tables(&pass.scores)?, disks, weights);
    let of_values = tensor_like(&pass.values, &value.gradient)?;
    pass.backward(&policy.gradient_like(&pass.scores)?, &of_values)?;
    let mut policies = vec![policy];
    if let Some(devices) = devices
        && let Some(pass) = network.device_pass(&devices.batch)?
    {
        let policy = policy_loss(tables(&pass.scores)?, devices, weights);
        pass.backward(&policy.gradient_like(&pass.scores)?)?;
        policies.push(policy);
    }
    Ok(figures(&value, &policies, weights))
}

fn tables(scores: &[Tensor]) -> Result<Vec<Table>, TchError> {
    scores.iter().map(Table::read).collect()
}

/// Of the shape and kind of `tensor`.
fn tensor_like(tensor: &Tensor, entries: &[f64]) -> Result<Tensor, TchError> {
    let flat = Tensor::f_from_slice(entries)?.f_to_kind(tensor.kind())?;
    flat.f_view_as(tensor)
}

/// Numbers by turn and level, padded as the network's scores are.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    width: usize,
    entries: Vec<f64>,
}

impl Table {
    /// Of a tensor `[M]` or `[M, width]`.
    pub(crate) fn read(tensor: &Tensor) -> Result<Self, TchError> {
        let width = tensor.size().get(1).map_or(1, |width| *width as usize);
        let flat = tensor.f_detach()?.f_to_kind(Kind::Double)?;
        Ok(Self {
            width,
            entries: Vec::try_from(flat.f_reshape([-1_i64])?)?,
        })
    }

    fn row_mut(&mut self, at: usize) -> &mut [f64] {
        &mut self.entries[at * self.width..][..self.width]
    }
}

/// Half the mean squared error of the values, and its gradient times its weight.
pub(crate) struct ValueLoss {
    pub(crate) value: f64,
    pub(crate) gradient: Vec<f64>,
}

/// With a clip, the worse of the value and the value kept near the old. `said`: `[M]`.
pub(crate) fn value_loss(
    said: &[f64],
    minibatch: &Minibatch<'_>,
    weights: &LossWeights,
) -> ValueLoss {
    let Minibatch { lessons, rows, .. } = minibatch;
    let share = 1.0 / rows.len() as f64;
    let mut loss = ValueLoss {
        value: 0.0,
        gradient: Vec::with_capacity(rows.len()),
    };
    for (&row, value) in rows.iter().zip(said) {
        let old = f64::from(lessons.values[row]);
        let wanted = f64::from(lessons.returns[row]);
        let limit = weights.value_clip.unwrap_or(f64::INFINITY);
        let near = old + (value - old).clamp(-limit, limit);
        let (error, near_error) = (value - wanted, near - wanted);
        // The value kept near does not move with the network where it is the worse of the two.
        let (worse, slope) = if near_error.abs() > error.abs() {
            (near_error, 0.0)
        } else {
            (error, error)
        };
        loss.value += 0.5 * share * worse * worse;
        loss.gradient.push(weights.value * share * slope);
    }
    loss
}

/// Clipped objective of some turns, negated, and what goes with it; means over the turns that teach.
#[derive(Debug)]
pub(crate) struct PolicyLoss {
    /// Number of turns that teach.
    turns: usize,
    pub(crate) objective: f64,
    entropy: f64,
    approx_kl: f64,
    clip_fraction: f64,
    /// Per head the sum of its entropies over the turns where it had a choice, and their number.
    heads: Vec<(f64, usize)>,
    /// Gradient of the objective and the entropy bonus with respect to the scores; a table per head.
    pub(crate) gradient: Vec<Table>,
}

impl PolicyLoss {
    fn gradient_like(&self, scores: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let pairs = scores.iter().zip(&self.gradient);
        let like = |(scores, gradient): (_, &Table)| tensor_like(scores, &gradient.entries);
        pairs.map(like).collect()
    }
}

/// `scores`: a table per head, not masked; the gradient takes their place.
pub(crate) fn policy_loss(
    scores: Vec<Table>,
    minibatch: &Minibatch<'_>,
    weights: &LossWeights,
) -> PolicyLoss {
    let Minibatch { lessons, rows, .. } = minibatch;
    let turns = minibatch.teaching();
    let share = 1.0 / turns.max(1) as f64;
    let mut turn = vec![Distribution::default(); scores.len()];
    let mut loss = PolicyLoss {
        turns,
        objective: 0.0,
        entropy: 0.0,
        approx_kl: 0.0,
        clip_fraction: 0.0,
        heads: vec![(0.0, 0); scores.len()],
        gradient: scores,
    };
    let advantages = minibatch.normalised_advantages();
    for (at, (&row, advantage)) in rows.iter().zip(advantages).enumerate() {
        let levels = &lessons.levels[row * turn.len()..][..turn.len()];
        for (head, own) in turn.iter_mut().enumerate() {
            let scores = loss.gradient[head].row_mut(at);
            if lessons.turns.is_free(row, head) {
                own.judge(scores, lessons.turns.head_mask(row, head));
                loss.heads[head].0 += own.entropy;
                loss.heads[head].1 += 1;
            } else {
                own.nothing_to_choose();
            }
            scores.fill(0.0);
        }
        if !lessons.teaches[row] {
            continue;
        }
        let log_prob: f64 = turn.iter().zip(levels).map(|(h, l)| h.log_prob(*l)).sum();
        let log_ratio = log_prob - f64::from(lessons.log_probs[row]);
        let ratio = log_ratio.exp();
        let (gain, slope) = clipped_gain(ratio, advantage, weights.clip);
        loss.objective -= share * gain;
        loss.entropy += share * turn.iter().map(|head| head.entropy).sum::<f64>();
        loss.approx_kl += share * (ratio - 1.0 - log_ratio);
        loss.clip_fraction += share * f64::from((ratio - 1.0).abs() > weights.clip);
        for ((own, &level), gradient) in turn.iter().zip(levels).zip(&mut loss.gradient) {
            let out = gradient.row_mut(at);
            own.add_gradient(-share * slope, level, share * weights.entropy, out);
        }
    }
    loss
}

/// min(ratio · A, clip(ratio) · A), and its derivative with respect to the logarithm of the ratio.
///
/// Source: Schulman et al. 2017, eq. 7.
fn clipped_gain(ratio: f64, advantage: f64, clip: f64) -> (f64, f64) {
    let plain = ratio * advantage;
    let clipped = ratio.clamp(1.0 - clip, 1.0 + clip) * advantage;
    if plain <= clipped {
        (plain, plain)
    } else {
        (clipped, 0.0)
    }
}

/// The policy's distribution over the levels of one head in one turn. One that had no choice is certain.
#[derive(Debug, Clone, Default)]
struct Distribution {
    /// Probability and its logarithm per level; 0 and −∞ where it is masked. Nothing without a choice.
    levels: Vec<(f64, f64)>,
    entropy: f64,
}

impl Distribution {
    /// Softmax of `scores` over the levels that `allowed` has; the scores may be padded.
    fn judge(&mut self, scores: &[f64], allowed: &[bool]) {
        let scores = || scores.iter().zip(allowed);
        let free = || scores().filter(|(_, allowed)| **allowed).map(|(s, _)| *s);
        let top = free().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = top + free().map(|score| (score - top).exp()).sum::<f64>().ln();
        self.levels.clear();
        self.levels.extend(scores().map(|(score, allowed)| {
            if *allowed {
                let log_p = score - log_sum;
                (log_p.exp(), log_p)
            } else {
                (0.0, f64::NEG_INFINITY)
            }
        }));
        let possible = self.levels.iter().filter(|(p, _)| *p != 0.0);
        self.entropy = -possible.map(|(p, log_p)| p * log_p).sum::<f64>();
    }

    fn nothing_to_choose(&mut self) {
        self.levels.clear();
        self.entropy = 0.0;
    }

    fn log_prob(&self, level: i64) -> f64 {
        self.levels
            .get(level as usize)
            .map_or(0.0, |(_, log_p)| *log_p)
    }

    /// Adds `of_log_prob` · ∂ ln p(level) / ∂ scores − `of_entropy` · ∂ entropy / ∂ scores.
    fn add_gradient(&self, of_log_prob: f64, level: i64, of_entropy: f64, out: &mut [f64]) {
        for (at, ((p, log_p), out)) in self.levels.iter().zip(out).enumerate() {
            let taken = f64::from(at as i64 == level);
            *out += of_log_prob * (taken - p);
            if *p != 0.0 {
                *out += of_entropy * p * (log_p + self.entropy);
            }
        }
    }
}

fn figures(value: &ValueLoss, policies: &[PolicyLoss], weights: &LossWeights) -> Figures {
    let sum = |of: fn(&PolicyLoss) -> f64| policies.iter().map(of).sum::<f64>();
    let turns = sum(|policy| policy.turns as f64).max(1.0);
    let (policy_loss, entropy) = (sum(|p| p.objective), sum(|p| p.entropy));
    let heads = policies.iter().flat_map(|policy| &policy.heads);
    Figures {
        loss: weights.value * value.value + policy_loss - weights.entropy * entropy,
        policy_loss,
        value_loss: value.value,
        entropy,
        approx_kl: sum(|p| p.approx_kl * p.turns as f64) / turns,
        clip_fraction: sum(|p| p.clip_fraction * p.turns as f64) / turns,
        grad_norm: 0.0,
        head_entropy: heads
            .map(|(sum, turns)| (*turns > 0).then(|| sum / *turns as f64))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
