//! The loss of PPO: the clipped objectives of disks and devices, the value loss, the entropy bonus.

use tch::{Kind, TchError, Tensor};

use crate::categorical::judge;
use crate::network::Network;
use crate::rollout::{Estimates, Samples};
use crate::turns::Batch;

/// What is to be learnt from some turns; S of them.
#[derive(Debug)]
pub(crate) struct Lessons {
    pub(crate) len: usize,
    pub(crate) batch: Batch,
    /// int64 `[S, heads]`.
    pub(crate) levels: Tensor,
    /// `[S]`.
    pub(crate) log_probs: Tensor,
    /// `[S]`.
    pub(crate) advantages: Tensor,
    /// 1 where the turn teaches the policy, else 0; `[S]`.
    pub(crate) weights: Tensor,
    /// Old value and return, of disks; `[S]`.
    pub(crate) values: Option<(Tensor, Tensor)>,
}

impl Lessons {
    pub(crate) fn of_disks(samples: &Samples, estimates: &Estimates) -> Result<Self, TchError> {
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

    pub(crate) fn of_devices(samples: &Samples, estimates: &Estimates) -> Result<Self, TchError> {
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

    pub(crate) fn select(&self, rows: &[i64]) -> Result<Self, TchError> {
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
pub(crate) struct PolicyLoss {
    pub(crate) objective: Tensor,
    entropy: Tensor,
    approx_kl: Tensor,
    clip_fraction: Tensor,
    /// Number of turns that teach, which the means above are over.
    turns: Tensor,
    /// Mean entropy per head, over the turns where it had a choice; [heads].
    head_entropy: Tensor,
    /// Number of those turns; [heads].
    head_turns: Tensor,
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

pub(crate) fn policy_loss(
    scores: &[Tensor],
    lessons: &Lessons,
    clip: f64,
) -> Result<PolicyLoss, TchError> {
    let judged = judge(scores, &lessons.batch, &lessons.levels)?;
    let turns = lessons.weights.f_sum(None::<Kind>)?;
    let count = turns.f_clamp_min(1.0)?;
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
    let head_turns =
        lessons
            .batch
            .free
            .f_sum_dim_intlist([0_i64].as_slice(), false, None::<Kind>)?;
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
        turns,
        head_entropy: entropy_sum.f_div(&head_turns.f_clamp_min(1.0)?)?,
        head_turns,
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

/// What one minibatch showed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
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

impl Loss {
    pub(crate) fn figures(&self) -> Result<Figures, TchError> {
        let mut head_entropy = Vec::new();
        for policy in &self.policies {
            let means = Vec::<f64>::try_from(policy.head_entropy.f_to_kind(Kind::Double)?)?;
            let turns = Vec::<f64>::try_from(policy.head_turns.f_to_kind(Kind::Double)?)?;
            let pairs = means.into_iter().zip(turns);
            head_entropy.extend(pairs.map(|(mean, turns)| (turns > 0.0).then_some(mean)));
        }
        let sum = |of: fn(&PolicyLoss) -> &Tensor| -> Result<f64, TchError> {
            self.policies
                .iter()
                .map(|policy| of(policy).f_double_value(&[]))
                .sum()
        };
        let turns = sum(|p| &p.turns)?.max(1.0);
        let pooled = |of: fn(&PolicyLoss) -> &Tensor| -> Result<f64, TchError> {
            let mut total = 0.0;
            for policy in &self.policies {
                total += of(policy).f_double_value(&[])? * policy.turns.f_double_value(&[])?;
            }
            Ok(total / turns)
        };
        Ok(Figures {
            policy_loss: sum(|p| &p.objective)?,
            value_loss: self.value.f_double_value(&[])?,
            entropy: sum(|p| &p.entropy)?,
            approx_kl: pooled(|p| &p.approx_kl)?,
            clip_fraction: pooled(|p| &p.clip_fraction)?,
            grad_norm: 0.0,
            head_entropy,
        })
    }
}
