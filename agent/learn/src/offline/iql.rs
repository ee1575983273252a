//! Implicit Q-learning: values of what was taken, never of what was not, and a policy that imitates what turned out
//! better than the rest.
//!
//! ```text
//! L_V = mean |τ − 1(u < 0)| u²,  u = Q'(x, a) − V(x)
//! L_Q = mean ( Q(x, a) − r − γ V(x') )², V(x') = 0 where nothing follows
//! L_π = − mean min(exp(β u), M) ln π(a|x)
//! ```
//!
//! V and π are critic and actor of one network, which share no layer; Q is another network, Q' its moving average. All
//! three are descended from the parameters as they were before the step. With one Q instead of the lesser of two.
//!
//! Source: Kostrikov, Nair and Levine 2022, "Offline Reinforcement Learning with Implicit Q-Learning", eqs. 5 to 7.

use tch::{Kind, Reduction, TchError, Tensor, no_grad};

use super::data::Lessons;
use crate::categorical::log_prob;
use crate::network::Network;
use crate::q::Q;

/// What IQL needs to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IqlConfig {
    /// Which expectile of Q over what was taken V is (τ), in (0, 1): 0.5 is the mean, towards 1 the greatest.
    pub expectile: f64,
    /// How much better choices are preferred (β), at least 0: with 0 it is behaviour cloning.
    pub beta: f64,
    /// Greatest weight of a turn (M), above 0.
    pub most_weight: f64,
    /// Share of Q that its moving average takes in with each step, in (0, 1].
    pub polyak: f64,
}

/// The losses of a minibatch; scalars.
#[derive(Debug)]
pub struct Loss {
    /// L_V + L_π, which have no parameter in common: of the policy's network.
    pub policy_and_value: Tensor,
    /// L_π.
    pub policy: Tensor,
    /// L_V.
    pub value: Tensor,
    /// L_Q: of the other network.
    pub critic: Tensor,
    /// Mean Q of what was taken.
    pub q: Tensor,
    /// Mean V.
    pub v: Tensor,
    /// Mean weight of a turn.
    pub weight: Tensor,
}

/// The losses of a minibatch, with gradients.
///
/// # Errors
/// If libtorch fails.
pub fn loss(
    policy: &Network,
    critic: &Network,
    target: &Network,
    lessons: &Lessons,
    (gamma, config): (f64, &IqlConfig),
) -> Result<Loss, TchError> {
    let Lessons { batch, levels, .. } = lessons;
    let mean = |tensor: &Tensor| tensor.f_detach()?.f_mean(None::<Kind>);
    let values = policy.values(batch)?;
    let judged = no_grad(|| Q::of(target, batch)?.taken(levels))?;
    let advantages = judged.f_sub(&values)?;
    let value = expectile_loss(&advantages, config.expectile)?;
    let weights = weights(&advantages, config)?;
    let log_prob = log_prob(&policy.scores(batch)?, batch, levels)?;
    let imitated = weights.f_mul(&log_prob)?.f_mean(None::<Kind>)?.f_neg()?;
    let q = Q::of(critic, batch)?.taken(levels)?;
    let critic = q.f_mse_loss(&targets(policy, lessons, gamma)?, Reduction::Mean)?;
    Ok(Loss {
        policy_and_value: imitated.f_add(&value)?,
        policy: imitated,
        value,
        critic,
        q: mean(&q)?,
        v: mean(&values)?,
        weight: mean(&weights)?,
    })
}

/// r + γ V(x'), without gradients; `[S]`.
///
/// # Errors
/// If libtorch fails.
pub fn targets(policy: &Network, lessons: &Lessons, gamma: f64) -> Result<Tensor, TchError> {
    no_grad(|| {
        let ahead = policy.values(&lessons.next)?.f_mul(&lessons.goes_on)?;
        lessons.rewards.f_add(&ahead.f_mul_scalar(gamma)?)
    })
}

/// Mean of |τ − 1(u < 0)| u²; a scalar.
///
/// # Errors
/// If libtorch fails.
pub fn expectile_loss(u: &Tensor, expectile: f64) -> Result<Tensor, TchError> {
    // |τ − 1| where u < 0, else τ.
    let below = u.f_lt(0.0)?.f_to_kind(u.kind())?;
    let shares = below
        .f_mul_scalar(1.0 - 2.0 * expectile)?
        .f_add_scalar(expectile)?;
    shares.f_mul(&u.f_square()?)?.f_mean(None::<Kind>)
}

/// min(exp(β u), M), without gradients; `[S]`.
fn weights(advantages: &Tensor, config: &IqlConfig) -> Result<Tensor, TchError> {
    // Clipped before the exponential, which would else be infinite.
    let exponents = advantages.f_detach()?.f_mul_scalar(config.beta)?;
    exponents.f_clamp_max(config.most_weight.ln())?.f_exp()
}
