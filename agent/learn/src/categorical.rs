//! Log-probabilities and entropies of masked heads, with gradients. Heads that were forced
//! contribute neither.
//!
//! Sampling is `blkpilot_models::categorical`'s, in f64 from our own generator; this is the same
//! distribution in f32.

use tch::{Kind, TchError, Tensor};

use crate::turns::Batch;

/// Stands for −∞ under a mask: its exponential is 0 and its products stay finite.
const MASKED: f64 = -1e9;

/// What a policy says of the levels that were taken in S turns.
#[derive(Debug)]
pub struct Judgement {
    /// Log-probability of the levels taken, summed over the heads that had a choice; `[S]`.
    pub log_prob: Tensor,
    /// Entropy per head in nats, 0 where it was forced; `[S, heads]`.
    pub entropy: Tensor,
}

/// Judges the levels taken, int64 `[S, heads]`, under the scores and masks of each head.
///
/// # Errors
/// If libtorch fails.
pub fn judge(scores: &[Tensor], batch: &Batch, taken: &Tensor) -> Result<Judgement, TchError> {
    let heads = log_softmaxes(scores, batch)?;
    let entropies = heads.iter().map(|log_p| {
        let terms = log_p.f_exp()?.f_mul(log_p)?;
        let sum = terms.f_sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>)?;
        sum.f_neg()
    });
    let entropies = entropies.collect::<Result<Vec<_>, TchError>>()?;
    Ok(Judgement {
        log_prob: of_taken(&heads, batch, taken)?,
        entropy: Tensor::f_cat(&entropies, 1)?.f_mul(&batch.free)?,
    })
}

/// The log-probability that [`judge`] gives, for whoever has no use for the entropies; `[S]`.
///
/// # Errors
/// If libtorch fails.
pub fn log_prob(scores: &[Tensor], batch: &Batch, taken: &Tensor) -> Result<Tensor, TchError> {
    of_taken(&log_softmaxes(scores, batch)?, batch, taken)
}

fn log_softmaxes(scores: &[Tensor], batch: &Batch) -> Result<Vec<Tensor>, TchError> {
    let heads = scores.iter().zip(&batch.allowed);
    heads
        .map(|(scores, allowed)| log_softmax(scores, allowed))
        .collect()
}

/// Sum over the heads that had a choice.
fn of_taken(heads: &[Tensor], batch: &Batch, taken: &Tensor) -> Result<Tensor, TchError> {
    let own = heads.iter().enumerate().map(|(head, log_p)| {
        let level = taken.f_narrow(1, head as i64, 1)?;
        log_p.f_gather(1, &level, false)
    });
    let own = own.collect::<Result<Vec<_>, TchError>>()?;
    let free = Tensor::f_cat(&own, 1)?.f_mul(&batch.free)?;
    free.f_sum_dim_intlist([1_i64].as_slice(), false, None::<Kind>)
}

/// Log-probabilities under a mask: of `scores` and `allowed`, both `[S, levels]`.
///
/// # Errors
/// If libtorch fails.
pub fn log_softmax(scores: &Tensor, allowed: &Tensor) -> Result<Tensor, TchError> {
    scores
        .f_masked_fill(&allowed.f_logical_not()?, MASKED)?
        .f_log_softmax(-1, None::<Kind>)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_row(scores: &[f64], allowed: &[bool], free: f64, taken: i64) -> (f64, f64) {
        let row = |t: Tensor| t.view([1, -1]);
        let batch = Batch {
            own: Tensor::zeros([1, 0], (Kind::Double, tch::Device::Cpu)),
            lanes: None,
            allowed: vec![row(Tensor::from_slice(allowed))],
            free: row(Tensor::from_slice(&[free])),
        };
        let judged = judge(
            &[row(Tensor::from_slice(scores))],
            &batch,
            &row(Tensor::from_slice(&[taken])),
        )
        .unwrap();
        (
            judged.log_prob.double_value(&[0]),
            judged.entropy.double_value(&[0, 0]),
        )
    }

    /// Scores ln 1, ln 3, ln 6 with the last masked: probabilities 1/4, 3/4.
    #[test]
    fn masked_levels_take_no_probability_and_no_entropy() {
        let scores = [0.0, 3.0_f64.ln(), 6.0_f64.ln()];
        let (log_prob, entropy) = one_row(&scores, &[true, true, false], 1.0, 1);
        assert!((log_prob - 0.75_f64.ln()).abs() < 1e-12);
        let want = -(0.25 * 0.25_f64.ln() + 0.75 * 0.75_f64.ln());
        assert!((entropy - want).abs() < 1e-12);
    }

    #[test]
    fn forced_heads_contribute_nothing() {
        assert_eq!(one_row(&[5.0, 1.0], &[false, true], 0.0, 1), (0.0, 0.0));
    }

    #[test]
    fn gradients_do_not_reach_masked_scores_and_stay_finite() {
        let scores = Tensor::from_slice(&[1.0_f64, 2.0, 700.0])
            .view([1, 3])
            .set_requires_grad(true);
        let allowed = Tensor::from_slice(&[true, true, false]).view([1, 3]);
        let log_p = log_softmax(&scores, &allowed).unwrap();
        let entropy = -(log_p.exp() * &log_p).sum(Kind::Double);
        let loss = log_p.get(0).get(1) + entropy;
        let gradient = Tensor::run_backward(&[loss], &[&scores], false, false).remove(0);
        let gradient = Vec::<f64>::try_from(gradient.view([-1])).unwrap();
        assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
        assert_eq!(gradient[2], 0.0);
        assert!(gradient[0] != 0.0);
    }
}
