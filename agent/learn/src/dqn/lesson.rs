//! What is to be learnt from some transitions: targets, errors and their loss.

use blkpilot_env::EnvSpec;
use blkpilot_models::normaliser::{Normaliser, PerTable};
use tch::{Kind, Reduction, TchError, Tensor, no_grad};

use super::replay::{Drawn, Replay};
use crate::network::Network;
use crate::q::Q;
use crate::turns::{Batch, Turns};

/// Where the loss goes over from a square to a line, in reward units.
const HUBER: f64 = 1.0;

/// Transitions as tensors; S of them.
#[derive(Debug)]
pub(super) struct Lessons {
    pub(super) batch: Batch,
    /// int64 `[S, heads]`.
    pub(super) levels: Tensor,
    /// `[S]`.
    pub(super) rewards: Tensor,
    /// 0 where nothing follows; `[S]`.
    pub(super) discounts: Tensor,
    /// What follows; where nothing does, the turn itself.
    pub(super) next: Batch,
    /// What the loss of each is multiplied by; `[S]`.
    pub(super) weights: Tensor,
}

impl Lessons {
    /// Of the transitions drawn, normalised by what is known now.
    pub(super) fn of(
        spec: &EnvSpec,
        normalisers: &PerTable<Normaliser>,
        replay: &Replay,
        drawn: &Drawn,
    ) -> Result<Self, TchError> {
        let mut turns = Turns::of_disks(spec, normalisers);
        let mut next = Turns::of_disks(spec, normalisers);
        let (mut levels, mut rewards, mut discounts) = (vec![], vec![], vec![]);
        for place in &drawn.places {
            let transition = replay.get(*place);
            let follows = transition.next.as_ref();
            transition.turn.with(spec, |view| turns.push(view));
            follows
                .unwrap_or(&transition.turn)
                .with(spec, |view| next.push(view));
            levels.extend(transition.levels.iter().map(|level| i64::from(*level)));
            rewards.push(transition.reward);
            discounts.push(follows.map_or(0.0, |_| transition.discount));
        }
        let rows = drawn.places.len();
        Ok(Self {
            batch: turns.batch(0..rows)?,
            next: next.batch(0..rows)?,
            levels: Tensor::f_from_slice(&levels)?.f_view([rows as i64, turns.heads() as i64])?,
            rewards: Tensor::f_from_slice(&rewards)?,
            discounts: Tensor::f_from_slice(&discounts)?,
            weights: Tensor::f_from_slice(&drawn.weights)?,
        })
    }
}

/// Which network says what the best choice of the next turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrap {
    /// The target network's own: `max_a Q'(x', a)`. Source: Mnih et al. 2015.
    Max,
    /// The learning network's, valued by the target network: `Q'(x', argmax_a Q(x', a))`. Source: van Hasselt, Guez and
    /// Silver 2016.
    Double,
}

/// `r + γ^n Q'(x', a')`; `[S]`, without gradients.
pub(super) fn targets(
    network: &Network,
    target: &Network,
    lessons: &Lessons,
    bootstrap: Bootstrap,
) -> Result<Tensor, TchError> {
    no_grad(|| {
        let next = &lessons.next;
        let valued = Q::of(target, next)?;
        let follows = match bootstrap {
            Bootstrap::Max => valued.greatest(next)?,
            Bootstrap::Double => valued.taken(&Q::of(network, next)?.best_levels(next)?)?,
        };
        lessons.rewards.f_add(&follows.f_mul(&lessons.discounts)?)
    })
}

/// The loss of some transitions and its parts.
pub(super) struct Loss {
    /// Mean of weight × Huber loss; a scalar.
    pub(super) total: Tensor,
    /// Q of what was taken; `[S]`.
    pub(super) q: Tensor,
    /// Q less its target; `[S]`.
    pub(super) errors: Tensor,
}

/// The weighted Huber loss of Q against its targets, `[S]`.
pub(super) fn loss(
    network: &Network,
    lessons: &Lessons,
    targets: &Tensor,
) -> Result<Loss, TchError> {
    let q = Q::of(network, &lessons.batch)?.taken(&lessons.levels)?;
    let own = q.f_huber_loss(targets, Reduction::None, HUBER)?;
    Ok(Loss {
        total: own.f_mul(&lessons.weights)?.f_mean(None::<Kind>)?,
        errors: q.f_detach()?.f_sub(targets)?,
        q: q.f_detach()?,
    })
}
