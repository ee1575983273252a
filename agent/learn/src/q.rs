//! Q of disks' turns, read from the policies' own architecture: a duelling network with a branch per head.
//!
//! ```text
//! Q(x, a) = V(x) + Σ over heads with a choice of ( A_h(x, a_h) − mean over the allowed levels of A_h(x, ·) )
//! ```
//!
//! V is what `pointer_v1` calls the critic's value, A_h its actor's scores. Q is additive over heads, so that the
//! greatest over all joint choices of a turn is found head by head, exactly; a level that is masked is none of them, and
//! a head that was forced adds nothing. As a mean shifts all levels of a head alike, the greedy policy of a checkpoint
//! (its greatest scores) is the greedy policy of Q, and a value learner's checkpoint is served as any other.
//!
//! Sources: Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9; Tavakoli, Pardo and
//! Kormushev 2018, "Action Branching Architectures for Deep Reinforcement Learning", where the branches' Qs have a common
//! target; here they add up to one Q, as in [`crate::fqe`].

use tch::{Kind, TchError, Tensor};

use crate::categorical::log_prob;
use crate::network::Network;
use crate::turns::Batch;

/// Stands for −∞ where the greatest is sought.
const MASKED: f64 = -1e9;

/// What a network says of S turns of disks.
#[derive(Debug)]
pub struct Q {
    /// V; `[S]`.
    pub value: Tensor,
    /// Per head its advantages with mean 0 over the allowed levels; `[S, levels]`. 0 where the head was forced; what
    /// stands at masked levels means nothing.
    pub advantages: Vec<Tensor>,
}

impl Q {
    /// Q of the turns in `batch`, with gradients.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn of(network: &Network, batch: &Batch) -> Result<Self, TchError> {
        let scores = network.scores(batch)?;
        let heads = scores.iter().zip(&batch.allowed).enumerate();
        let advantages = heads.map(|(head, (scores, allowed))| {
            let free = batch.free.f_narrow(1, head as i64, 1)?;
            centre(scores, allowed)?.f_mul(&free)
        });
        Ok(Self {
            value: network.values(batch)?,
            advantages: advantages.collect::<Result<_, _>>()?,
        })
    }

    /// Q of the levels taken, int64 `[S, heads]`; `[S]`. A level that is not allowed gives a number without meaning.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn taken(&self, levels: &Tensor) -> Result<Tensor, TchError> {
        let mut sum = self.value.shallow_clone();
        for (head, advantages) in self.advantages.iter().enumerate() {
            let own = levels.f_narrow(1, head as i64, 1)?;
            sum = sum.f_add(&advantages.f_gather(1, &own, false)?.f_squeeze_dim(1)?)?;
        }
        Ok(sum)
    }

    /// The greatest Q over all joint choices that are allowed; `[S]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn greatest(&self, batch: &Batch) -> Result<Tensor, TchError> {
        let mut sum = self.value.shallow_clone();
        for (advantages, allowed) in self.advantages.iter().zip(&batch.allowed) {
            sum = sum.f_add(&best(advantages, allowed)?.0)?;
        }
        Ok(sum)
    }

    /// The levels of the greatest Q; int64 `[S, heads]`. Of a head that was forced, an allowed level, if there is one.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn best_levels(&self, batch: &Batch) -> Result<Tensor, TchError> {
        let heads = self.advantages.iter().zip(&batch.allowed);
        let levels = heads.map(|(advantages, allowed)| Ok(best(advantages, allowed)?.1));
        Tensor::f_stack(&levels.collect::<Result<Vec<_>, TchError>>()?, 1)
    }

    /// By how much the soft maximum exceeds the levels taken, int64 `[S, heads]`: the sum over heads with a choice of
    /// `ln Σ over allowed levels of exp A_h − A_h(a_h)`, at least 0; `[S]`. As Q is additive, the sum over heads is the
    /// log-sum-exp over all joint choices. Source: Kumar et al. 2020, "Conservative Q-Learning", eq. 4.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn soft_gap(&self, batch: &Batch, levels: &Tensor) -> Result<Tensor, TchError> {
        log_prob(&self.advantages, batch, levels)?.f_neg()
    }
}

/// Scores less their mean over the allowed levels; `[S, levels]`.
fn centre(scores: &Tensor, allowed: &Tensor) -> Result<Tensor, TchError> {
    let allowed = allowed.f_to_kind(scores.kind())?;
    let sum = |of: &Tensor| of.f_sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>);
    // At least one level is allowed in each row of a batch.
    scores.f_sub(&sum(&scores.f_mul(&allowed)?)?.f_div(&sum(&allowed)?)?)
}

/// The greatest over the allowed levels, `[S]`, and its level.
fn best(advantages: &Tensor, allowed: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    advantages
        .f_masked_fill(&allowed.f_logical_not()?, MASKED)?
        .f_max_dim(1, false)
}

#[cfg(test)]
mod tests;
