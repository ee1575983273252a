//! Behaviour cloning: the policy that the log's choices are most likely under.
//!
//! Source: Pomerleau 1991, "Efficient Training of Artificial Neural Networks for Autonomous Navigation".

use tch::{Kind, TchError, Tensor};

use crate::categorical::log_prob;
use crate::turns::Batch;

/// Cross entropy under the masks, in nats: mean over turns of −ln π(a|x), summed over the heads that had a choice. Its
/// least is the entropy of the behaviour.
///
/// # Errors
/// If libtorch fails.
pub fn loss(scores: &[Tensor], batch: &Batch, levels: &Tensor) -> Result<Tensor, TchError> {
    log_prob(scores, batch, levels)?
        .f_mean(None::<Kind>)?
        .f_neg()
}
