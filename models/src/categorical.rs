//! A categorical distribution over the levels of one head, under its mask.
//!
//! Scores are f32, as the network gives them; exponentials and sums are f64, so that propensities
//! sum to 1 within 1e-15. Masked levels have probability 0 and log-probability −∞. Where nothing is
//! allowed the level in force is certain: log-probability and entropy are 0.

use blkpilot_env::{MaskReason, Rng};
use rand::RngExt as _;

/// Probabilities [levels] of the allowed levels, written to `out`; all 0 if none is allowed.
/// `scores`, `mask` and `out` have one entry per level.
pub fn softmax_into(scores: &[f32], mask: &[MaskReason], out: &mut [f64]) {
    let Some(best) = greedy(scores, mask) else {
        out.fill(0.0);
        return;
    };
    let top = f64::from(scores[best]);
    let mut sum = 0.0;
    for ((out, &score), reason) in out.iter_mut().zip(scores).zip(mask) {
        *out = if reason.is_allowed() { libm::exp(f64::from(score) - top) } else { 0.0 };
        sum += *out;
    }
    out.iter_mut().for_each(|p| *p /= sum);
}

/// Probabilities [levels] of the allowed levels; all 0 if none is allowed.
#[must_use]
pub fn softmax(scores: &[f32], mask: &[MaskReason]) -> Vec<f64> {
    let mut out = vec![0.0; scores.len()];
    softmax_into(scores, mask, &mut out);
    out
}

/// Log-probability of `level`: −∞ if it is masked, 0 if nothing is allowed.
#[must_use]
pub fn log_probability(scores: &[f32], mask: &[MaskReason], level: usize) -> f64 {
    let Some(best) = greedy(scores, mask) else {
        return 0.0;
    };
    if !mask[level].is_allowed() {
        return f64::NEG_INFINITY;
    }
    let top = f64::from(scores[best]);
    let allowed = scores.iter().zip(mask).filter(|(_, reason)| reason.is_allowed());
    let sum: f64 = allowed.map(|(&score, _)| libm::exp(f64::from(score) - top)).sum();
    f64::from(scores[level]) - top - libm::log(sum)
}

/// Entropy in nats: 0 if at most one level is allowed.
#[must_use]
pub fn entropy(scores: &[f32], mask: &[MaskReason]) -> f64 {
    let terms = softmax(scores, mask).into_iter().filter(|p| *p > 0.0).map(|p| p * libm::log(p));
    // Not −Σ, which would make a certain level's entropy −0.
    0.0 - terms.sum::<f64>()
}

/// The allowed level with the greatest score, the first of equals; `None` if none is allowed.
#[must_use]
pub fn greedy(scores: &[f32], mask: &[MaskReason]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (level, reason) in mask.iter().enumerate() {
        if reason.is_allowed() && best.is_none_or(|b| scores[level] > scores[b]) {
            best = Some(level);
        }
    }
    best
}

/// Draws a level by its probability: the first whose cumulative sum exceeds one uniform draw.
/// `probabilities` sum to 1 within rounding and at least one is > 0; a level of probability 0 is
/// never drawn.
pub fn sample(probabilities: &[f64], rng: &mut Rng) -> usize {
    let mut left: f64 = rng.random();
    let mut last = 0;
    for (level, &p) in probabilities.iter().enumerate() {
        if p > 0.0 {
            if left < p {
                return level;
            }
            left -= p;
            last = level;
        }
    }
    last
}
