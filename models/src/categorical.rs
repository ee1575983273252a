//! A categorical distribution over the levels of one head, under its mask.
//!
//! Scores are f32, as the network gives them; exponentials and sums are f64, so that propensities
//! sum to 1 within 1e-15. Masked levels have probability 0 and log-probability −∞. Where nothing is
//! allowed the level in force is certain: log-probability and entropy are 0.

use blkpilot_env::{MaskReason, Rng};
use rand::RngExt as _;

/// Probabilities `[levels]` of the allowed levels, written to `out`; all 0 if none is allowed.
/// `scores`, `mask` and `out` have one entry per level.
pub fn softmax_into(scores: &[f32], mask: &[MaskReason], out: &mut [f64]) {
    let Some(best) = greedy(scores, mask) else {
        out.fill(0.0);
        return;
    };
    let top = f64::from(scores[best]);
    let mut sum = 0.0;
    for ((out, &score), reason) in out.iter_mut().zip(scores).zip(mask) {
        *out = if reason.is_allowed() {
            libm::exp(f64::from(score) - top)
        } else {
            0.0
        };
        sum += *out;
    }
    out.iter_mut().for_each(|p| *p /= sum);
}

/// Probabilities `[levels]` of the allowed levels; all 0 if none is allowed.
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
    let allowed = scores
        .iter()
        .zip(mask)
        .filter(|(_, reason)| reason.is_allowed());
    let sum: f64 = allowed
        .map(|(&score, _)| libm::exp(f64::from(score) - top))
        .sum();
    f64::from(scores[level]) - top - libm::log(sum)
}

/// Entropy in nats: 0 if at most one level is allowed.
#[must_use]
pub fn entropy(scores: &[f32], mask: &[MaskReason]) -> f64 {
    let terms = softmax(scores, mask)
        .into_iter()
        .filter(|p| *p > 0.0)
        .map(|p| p * libm::log(p));
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

#[cfg(test)]
mod tests {
    use MaskReason::{Allowed, Frozen};
    use blkpilot_env::Rng;
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12 * (1.0 + b.abs())
    }

    #[test]
    fn a_masked_level_takes_no_part() {
        let (scores, mask) = ([2.0_f32.ln(), 50.0, 0.0], [Allowed, Frozen, Allowed]);
        let p = softmax(&scores, &mask);
        assert!((p[0] - 2.0 / 3.0).abs() < 1e-7 && p[1] == 0.0);
        assert!(close(p.iter().sum(), 1.0));
        assert_eq!(log_probability(&scores, &mask, 1), f64::NEG_INFINITY);
        assert_eq!(greedy(&scores, &mask), Some(0));
        let want = -(p[0] * p[0].ln() + p[2] * p[2].ln());
        assert!(close(entropy(&scores, &mask), want));
    }

    #[test]
    fn one_allowed_level_is_certain_and_none_leaves_nothing_to_say() {
        let scores = [-300.0, 7.0];
        assert_eq!(softmax(&scores, &[Allowed, Frozen]), [1.0, 0.0]);
        assert_eq!(
            entropy(&scores, &[Allowed, Frozen]).to_bits(),
            0.0_f64.to_bits()
        );
        assert_eq!(log_probability(&scores, &[Allowed, Frozen], 0), 0.0);
        assert_eq!(greedy(&scores, &[Frozen, Frozen]), None);
        assert_eq!(softmax(&scores, &[Frozen, Frozen]), [0.0, 0.0]);
        assert_eq!(entropy(&scores, &[Frozen, Frozen]), 0.0);
        assert_eq!(log_probability(&scores, &[Frozen, Frozen], 1), 0.0);
    }

    #[test]
    fn a_uniform_distribution_has_the_entropy_of_its_count() {
        let mask = [Allowed, Frozen, Allowed, Allowed];
        assert!(close(entropy(&[1.5; 4], &mask), 3.0_f64.ln()));
    }

    #[test]
    fn scores_that_are_far_apart_neither_overflow_nor_give_nan() {
        let p = softmax(&[f32::MAX, -f32::MAX, 0.0], &[Allowed; 3]);
        assert_eq!(p, [1.0, 0.0, 0.0]);
        assert_eq!(entropy(&[f32::MAX, -f32::MAX, 0.0], &[Allowed; 3]), 0.0);
    }

    #[test]
    fn the_first_of_equal_scores_is_taken() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0], &[Allowed; 3]), Some(1));
        assert_eq!(
            greedy(&[1.0, 3.0, 3.0], &[Allowed, Frozen, Allowed]),
            Some(2)
        );
    }

    /// 40 000 draws: the greatest deviation of a share of 0.5 is below 4 standard deviations, 0.01.
    #[test]
    fn draws_have_the_frequencies_of_the_probabilities() {
        let mut rng = Rng::seed_from_u64(11);
        let p = [0.5, 0.0, 0.2, 0.3];
        let mut counts = [0_u32; 4];
        for _ in 0..40_000 {
            counts[sample(&p, &mut rng)] += 1;
        }
        for (count, p) in counts.into_iter().zip(p) {
            assert!((f64::from(count) / 40_000.0 - p).abs() < 0.01, "{counts:?}");
        }
        assert_eq!(counts[1], 0);
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_agree_with_their_logarithms(
            levels in prop::collection::vec((-30.0_f32..30.0, any::<bool>()), 1..12),
            seed in any::<u64>(),
        ) {
            let (scores, mask): (Vec<f32>, Vec<MaskReason>) =
                levels.iter().map(|(s, allowed)| (*s, if *allowed { Allowed } else { Frozen })).unzip();
            prop_assume!(mask.contains(&Allowed));
            let p = softmax(&scores, &mask);
            prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-14);
            for (level, p) in p.iter().enumerate() {
                prop_assert!((log_probability(&scores, &mask, level).exp() - p).abs() < 1e-13);
            }
            let drawn = sample(&p, &mut Rng::seed_from_u64(seed));
            prop_assert!(p[drawn] > 0.0 && mask[drawn].is_allowed());
            let most = (mask.iter().filter(|m| m.is_allowed()).count() as f64).ln();
            prop_assert!((0.0..=most + 1e-12).contains(&entropy(&scores, &mask)));
        }
    }
}
