//! Conservative Q-learning over branching heads: double DQN on logged turns, with what the data do not show held down.
//!
//! ```text
//! loss = mean ℓ( Q(x, a) − y ) + α · mean( ln Σ over joint choices of exp Q(x, ·) − Q(x, a) )
//! y    = r + γ · Q'( x', argmax Q(x', ·) ), or r where nothing follows
//! ```
//!
//! Q' is the network of a while ago. The second part is CQL(H) with a uniform prior: as Q is additive over heads the
//! sum over joint choices is a sum of sums, head by head.
//!
//! Sources: Kumar, Zhou, Tucker and Levine 2020, "Conservative Q-Learning for Offline Reinforcement Learning", eq. 4; van
//! Hasselt, Guez and Silver 2016, "Deep Reinforcement Learning with Double Q-learning", eq. 4.

use tch::{Kind, Reduction, TchError, Tensor, no_grad};

use super::data::Lessons;
use crate::network::Network;
use crate::q::Q;

/// What is made of a temporal difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TdLoss {
    /// Half the square within ±1, linear beyond.
    Huber,
    /// The square.
    Squared,
}

impl TdLoss {
    /// Mean over turns; a scalar.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn of(self, found: &Tensor, wanted: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Huber => found.f_smooth_l1_loss(wanted, Reduction::Mean, 1.0),
            Self::Squared => found.f_mse_loss(wanted, Reduction::Mean),
        }
    }
}

/// What CQL needs to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CqlConfig {
    /// Weight of the conservative part (α), at least 0: with 0 it is double DQN.
    pub alpha: f64,
    /// What is made of a temporal difference.
    pub td_loss: TdLoss,
    /// Gradient steps after which the target network becomes the network, at least 1.
    pub target_every: u64,
}

/// The loss of a minibatch and its parts; scalars.
#[derive(Debug)]
pub struct Loss {
    /// What is descended.
    pub total: Tensor,
    /// Of the temporal differences.
    pub td: Tensor,
    /// By how much the soft maximum exceeds what was taken.
    pub gap: Tensor,
    /// Mean Q of what was taken.
    pub q: Tensor,
}

/// What Q of each turn should be, without gradients; `[S]`.
///
/// # Errors
/// If libtorch fails.
pub fn targets(
    network: &Network,
    target: &Network,
    lessons: &Lessons,
    gamma: f64,
) -> Result<Tensor, TchError> {
    no_grad(|| {
        let next = &lessons.next;
        // The greatest of scores and of advantages are at the same levels: V has no part in the choice.
        let chooses = Q {
            value: Tensor::new(),
            advantages: network.scores(next)?,
        };
        let best = chooses.best_levels(next)?;
        let ahead = Q::of(target, next)?.taken(&best)?;
        let ahead = ahead.f_mul(&lessons.goes_on)?.f_mul_scalar(gamma)?;
        lessons.rewards.f_add(&ahead)
    })
}

/// The loss of a minibatch, with gradients.
///
/// # Errors
/// If libtorch fails.
pub fn loss(
    network: &Network,
    lessons: &Lessons,
    targets: &Tensor,
    config: &CqlConfig,
) -> Result<Loss, TchError> {
    let q = Q::of(network, &lessons.batch)?;
    let taken = q.taken(&lessons.levels)?;
    let td = config.td_loss.of(&taken, targets)?;
    let gap = q
        .soft_gap(&lessons.batch, &lessons.levels)?
        .f_mean(None::<Kind>)?;
    Ok(Loss {
        total: td.f_add(&gap.f_mul_scalar(config.alpha)?)?,
        q: taken.f_detach()?.f_mean(None::<Kind>)?,
        td,
        gap,
    })
}
