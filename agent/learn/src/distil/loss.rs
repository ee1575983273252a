//! What scores are to be brought to.

use tch::{Kind, TchError, Tensor};

use crate::turns::Batch;

/// What the squared error counts beside the expected cost. Alone, the expected cost says nothing of how much worse one
/// bad level is than another, and its gradient vanishes where the policy has made up its mind.
const SQUARES: f64 = 0.05;
/// Score of a level that is not allowed.
const NEVER: f64 = -1e9;

/// Mean over turns, and over the heads that had a choice, of what the levels drawn are expected to cost, and
/// [`SQUARES`] times the mean squared error of the scores; a scalar, in units of the temperature.
///
/// Targets are costs, negated and relative to their mean over the levels allowed: `[S, levels]` per head, and scores
/// likewise, but relative to anything. The expected cost is `Σ π(a) c(a)` with π the softmax of the scores and c the
/// cost above that of the best level. Least squares spends what a network can say on costs that are far from what
/// decides; the expected cost looks at what decides alone.
///
/// # Errors
/// If libtorch fails.
pub fn loss(scores: &[Tensor], batch: &Batch, targets: &[Tensor]) -> Result<Tensor, TchError> {
    let heads = scores.iter().zip(&batch.allowed).zip(targets);
    let losses = heads.map(|((scores, allowed), targets)| of_head(scores, allowed, targets));
    let losses = losses.collect::<Result<Vec<_>, TchError>>()?;
    let free = Tensor::f_cat(&losses, 1)?.f_mul(&batch.free)?;
    let heads = batch.free.f_sum(None::<Kind>)?.f_clamp_min(1.0)?;
    free.f_sum(None::<Kind>)?.f_div(&heads)
}

/// `[S, 1]`.
fn of_head(scores: &Tensor, allowed: &Tensor, targets: &Tensor) -> Result<Tensor, TchError> {
    let is_masked = allowed.f_eq(0.0)?;
    let allowed = allowed.f_to_kind(scores.kind())?;
    let over_levels = |of: &Tensor| of.f_sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>);
    let levels = over_levels(&allowed)?;
    let mean = |of: &Tensor| over_levels(&of.f_mul(&allowed)?)?.f_div(&levels);
    let relative = scores.f_sub(&mean(scores)?)?;
    let squares = mean(&relative.f_sub(targets)?.f_square()?)?;

    let masked = |of: &Tensor| of.f_masked_fill(&is_masked, NEVER);
    let best = masked(targets)?.f_amax([1_i64].as_slice(), true)?;
    let costs = best.f_sub(targets)?.f_mul(&allowed)?;
    let policy = masked(scores)?.f_softmax(-1, None::<Kind>)?;
    let expected = over_levels(&policy.f_mul(&costs)?)?;
    squares.f_mul_scalar(SQUARES)?.f_add(&expected)
}
