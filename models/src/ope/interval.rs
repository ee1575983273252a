//! Confidence intervals of one estimate.
//!
//! `alpha` is the probability of being outside, in (0, 1), and both sides share it; bounds of one side
//! are named so. Those of normal and Student hold for many units, the others always, given the range of a
//! score.

use super::error::OpeError;
use super::moments::Moments;
use super::quantile;
use super::scores::Summary;

/// Lower and upper end.
pub type Interval = [f64; 2];

fn around(estimate: f64, half_width: f64) -> Interval {
    [estimate - half_width, estimate + half_width]
}

/// Checks a probability of error.
///
/// # Errors
/// `Setting` outside (0, 1).
pub fn check_alpha(alpha: f64) -> Result<(), OpeError> {
    if alpha > 0.0 && alpha < 1.0 {
        return Ok(());
    }
    Err(OpeError::Setting {
        what: "alpha",
        value: alpha,
        rule: "must be in (0, 1)",
    })
}

/// Estimate ± z·se.
#[must_use]
pub fn normal(summary: &Summary, alpha: f64) -> Interval {
    let z = quantile::normal(1.0 - alpha / 2.0);
    around(summary.estimate, z * summary.std_err)
}

/// Estimate ± t·se with n − 1 degrees of freedom.
#[must_use]
pub fn student_t(summary: &Summary, alpha: f64) -> Interval {
    let t = quantile::student(1.0 - alpha / 2.0, summary.n as f64 - 1.0);
    around(summary.estimate, t * summary.std_err)
}

/// Half width for the mean of `n` scores within a range of this length.
///
/// Source: Hoeffding 1963, theorem 2, both sides.
#[must_use]
pub fn hoeffding_half_width(range: f64, n: usize, alpha: f64) -> f64 {
    range * (libm::log(2.0 / alpha) / (2.0 * n as f64)).sqrt()
}

/// For a mean of scores that lie in `range`.
#[must_use]
pub fn hoeffding(summary: &Summary, range: Interval, alpha: f64) -> Interval {
    let half_width = hoeffding_half_width(range[1] - range[0], summary.n, alpha);
    around(summary.estimate, half_width)
}

/// For a mean of scores that lie in `range`: narrower than Hoeffding's where they vary little.
///
/// Source: Maurer and Pontil 2009, theorem 4, at alpha/2 for each side.
#[must_use]
pub fn empirical_bernstein(summary: &Summary, range: Interval, alpha: f64) -> Interval {
    let log = libm::log(4.0 / alpha);
    let by_variance = summary.std_err * (2.0 * log).sqrt();
    let by_range = 7.0 * (range[1] - range[0]) * log / (3.0 * (summary.n as f64 - 1.0));
    around(summary.estimate, by_variance + by_range)
}

/// Lower bound, of one side, for the mean of scores that are never negative and have no upper bound:
/// those above `cap` count as `cap`, which only lowers the mean.
///
/// Source: Thomas, Theocharous and Ghavamzadeh 2015, "High-Confidence Off-Policy Evaluation", theorem 1
/// with one threshold for all.
///
/// # Errors
/// `TooFew` below two scores; `Setting` where one is negative, or the cap is not positive.
pub fn hcope_lower(scores: &[f64], cap: f64, delta: f64) -> Result<f64, OpeError> {
    let n = scores.len();
    if n < 2 {
        return Err(OpeError::TooFew {
            what: "the lower bound of Thomas et al.",
            needed: 2,
            found: n,
        });
    }
    let refused = |what, value, rule| Err(OpeError::Setting { what, value, rule });
    if cap.is_nan() || cap <= 0.0 {
        return refused("cap", cap, "must be positive");
    }
    if let Some(negative) = scores.iter().find(|score| **score < 0.0) {
        return refused("a score", *negative, "must not be negative for this bound");
    }
    let capped: Vec<f64> = scores.iter().map(|score| score.min(cap)).collect();
    let moments = Moments::of(&capped);
    let log = libm::log(2.0 / delta);
    let n = n as f64;
    Ok(moments.mean()
        - 7.0 * cap * log / (3.0 * (n - 1.0))
        - (2.0 * log * moments.sample_variance() / n).sqrt())
}

/// Lower bounds of one side as the Open Bandit Pipeline has them: scores in [0, `x_max`], variance with
/// denominator n.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObpLowerBounds {
    /// By Hoeffding's inequality.
    pub hoeffding: f64,
    /// By the empirical Bernstein inequality.
    pub bernstein: f64,
    /// By Student's distribution.
    pub student_t: f64,
}

impl ObpLowerBounds {
    /// Of the mean of `scores`, each wrong with probability `delta`.
    ///
    /// Source: obp 0.5.7, `obp/ope/helper.py`, after Thomas et al. 2015.
    ///
    /// # Errors
    /// `TooFew` below two scores; `Setting` where a score is above `x_max`.
    pub fn new(scores: &[f64], x_max: f64, delta: f64) -> Result<Self, OpeError> {
        let n = scores.len();
        if n < 2 {
            return Err(OpeError::TooFew {
                what: "a lower bound",
                needed: 2,
                found: n,
            });
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest > x_max {
            return Err(OpeError::Setting {
                what: "x_max",
                value: x_max,
                rule: "must not be below the largest score",
            });
        }
        let moments = Moments::of(scores);
        let (mean, before_last) = (moments.mean(), n as f64 - 1.0);
        let std_err = (moments.population_variance() / before_last).sqrt();
        let log = libm::log(2.0 / delta);
        let by_hoeffding = x_max * (libm::log(1.0 / delta) / (2.0 * n as f64)).sqrt();
        let by_bernstein = 7.0 * x_max * log / (3.0 * before_last) + std_err * (2.0 * log).sqrt();
        Ok(Self {
            hoeffding: mean - by_hoeffding,
            bernstein: mean - by_bernstein,
            student_t: mean - std_err * quantile::student(1.0 - delta, before_last),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ope::Scores;

    fn near(found: f64, known: f64) {
        assert!((found - known).abs() < 1e-12, "{found} {known}");
    }

    fn four() -> Summary {
        Scores::mean(vec![0.0, 1.0, 1.0, 2.0])
            .unwrap()
            .summary()
            .unwrap()
    }

    /// Mean 1, s² = 2/3, se = 0.408248; t of 3 degrees at 0.975 is 3.182446.
    #[test]
    fn normal_and_student_by_hand() {
        let se = (2.0f64 / 3.0 / 4.0).sqrt();
        near(normal(&four(), 0.05)[1], 1.0 + 1.959_963_984_540_054 * se);
        near(student_t(&four(), 0.05)[0], 1.0 - 3.182_446_305_283_71 * se);
    }

    /// Scores in [0, 2]: 2·√(ln 40/8); √(2·(2/3)·ln 80/4) + 7·2·ln 80/9.
    #[test]
    fn bounds_by_range_by_hand() {
        near(
            hoeffding(&four(), [0.0, 2.0], 0.05)[1],
            1.0 + 2.0 * (40f64.ln() / 8.0).sqrt(),
        );
        let half = (2.0 * (2.0 / 3.0) * 80f64.ln() / 4.0).sqrt() + 14.0 * 80f64.ln() / 9.0;
        near(
            empirical_bernstein(&four(), [0.0, 2.0], 0.05)[0],
            1.0 - half,
        );
    }

    /// Capped at 1 the scores are 0, 1, 1, 1: mean 0.75, variance 0.25.
    #[test]
    fn hcope_by_hand() {
        let log = 40f64.ln();
        let known = 0.75 - 7.0 * log / 9.0 - (2.0 * log * 0.25 / 4.0).sqrt();
        near(
            hcope_lower(&[0.0, 1.0, 1.0, 2.0], 1.0, 0.05).unwrap(),
            known,
        );
        assert!(hcope_lower(&[-1.0, 1.0], 1.0, 0.05).is_err());
    }

    #[test]
    fn obp_bounds_by_hand() {
        let bounds = ObpLowerBounds::new(&[0.0, 1.0, 1.0, 2.0], 2.0, 0.05).unwrap();
        near(bounds.hoeffding, 1.0 - 2.0 * (20f64.ln() / 8.0).sqrt());
        let log = 40f64.ln();
        near(
            bounds.bernstein,
            1.0 - 14.0 * log / 9.0 - (2.0 * log * 0.5 / 3.0).sqrt(),
        );
        near(
            bounds.student_t,
            1.0 - (0.5f64 / 3.0).sqrt() * 2.353_363_434_801_823,
        );
        assert!(ObpLowerBounds::new(&[0.0, 3.0], 2.0, 0.05).is_err());
    }
}
