//! What the importance weights say of how far an estimate can be trusted.

use super::moments::{Moments, quantile_of_sorted, sum};
use super::scaled::{Scaled, ScaledSum};

/// Weights above this are counted.
const LARGE: f64 = 10.0;

/// Facts about the weights of one estimate.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightDiagnostics {
    /// Weights.
    pub n: usize,
    /// Effective sample size (Σw)²/Σw², in units: 0 where all weights are 0.
    pub ess: f64,
    /// Its share of n.
    pub ess_fraction: f64,
    /// Mean; 1 is expected.
    pub mean: f64,
    /// Standard deviation with denominator n − 1; 0 for one weight.
    pub std: f64,
    /// Largest weight.
    pub max: f64,
    /// Its share of the sum; 0 where all weights are 0.
    pub max_share: f64,
    /// (mean − 1)/(std/√n); `None` where the weights do not vary. Beyond ±3 the propensities are
    /// wrong, support is missing, or the log is too short for so heavy a tail.
    pub mean_z: Option<f64>,
    /// Share of weights that are 0.
    pub zero_fraction: f64,
    /// Share of weights above 10.
    pub above_10_fraction: f64,
    /// Median, by linear interpolation.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Mean of w² − 1: the chi-squared divergence of the evaluation policy, as seen in the log.
    pub chi2: f64,
    /// Shape of the tail after Pareto smoothing; above 0.7 means are not to be trusted. `None` where
    /// fewer than 5 weights lie in the tail.
    pub pareto_k: Option<f64>,
}

impl WeightDiagnostics {
    /// Of finite weights, not negative and at least one.
    #[must_use]
    pub fn new(weights: &[f64]) -> Self {
        let n = weights.len() as f64;
        let moments = Moments::of(weights);
        let std = match weights.len() {
            1 => 0.0,
            _ => moments.sample_variance().sqrt(),
        };
        let mut sorted = weights.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let max = sorted[sorted.len() - 1];
        let ess = effective_sample_size(weights);
        let share = |count: usize| count as f64 / n;
        let total = sum(weights);
        let mean = moments.mean();
        Self {
            n: weights.len(),
            ess,
            ess_fraction: ess / n,
            mean,
            std,
            max,
            max_share: if total > 0.0 { max / total } else { 0.0 },
            mean_z: (std > 0.0).then(|| (mean - 1.0) / (std / n.sqrt())),
            zero_fraction: share(sorted.partition_point(|w| *w <= 0.0)),
            above_10_fraction: share(sorted.len() - sorted.partition_point(|w| *w <= LARGE)),
            p50: quantile_of_sorted(&sorted, 0.5),
            p95: quantile_of_sorted(&sorted, 0.95),
            p99: quantile_of_sorted(&sorted, 0.99),
            chi2: moments.population_variance() + mean * mean - 1.0,
            pareto_k: super::pareto::k_hat_of_sorted(&sorted),
        }
    }
}

/// (Σw)²/Σw², in units; 0 where all weights are 0.
///
/// Source: Kong 1992.
#[must_use]
pub fn effective_sample_size(weights: &[f64]) -> f64 {
    let (mut total, mut squares) = (ScaledSum::default(), ScaledSum::default());
    for &weight in weights {
        let weight = Scaled::new(weight);
        total.add(weight);
        squares.add(weight.product(weight));
    }
    ess_of(total, squares)
}

pub(super) fn ess_of(total: ScaledSum, squares: ScaledSum) -> f64 {
    let (total, squares) = (total.total(), squares.total());
    if squares.is_zero() {
        return 0.0;
    }
    total.product(total).quotient(squares).value()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights 0, 1, 3: ESS 16/10, mean 4/3, s² = 7/3, z = (1/3)/√(7/9).
    #[test]
    fn three_weights_by_hand() {
        let of = WeightDiagnostics::new(&[3.0, 0.0, 1.0]);
        let near =
            |found: f64, known: f64| assert!((found - known).abs() < 1e-14, "{found} {known}");
        near(of.ess, 1.6);
        near(of.mean, 4.0 / 3.0);
        near(of.std, (7.0f64 / 3.0).sqrt());
        near(of.mean_z.unwrap(), (1.0 / 3.0) / (7.0f64 / 9.0).sqrt());
        near(of.max_share, 0.75);
        near(of.zero_fraction, 1.0 / 3.0);
        near(of.p95, 1.0 + 2.0 * 0.9);
        near(of.chi2, 10.0 / 3.0 - 1.0);
    }

    #[test]
    fn equal_weights_are_as_many_as_they_are() {
        let of = WeightDiagnostics::new(&[1.0; 7]);
        assert_eq!((of.ess, of.ess_fraction, of.mean_z), (7.0, 1.0, None));
    }

    #[test]
    fn no_overlap_is_an_effective_size_of_zero() {
        let of = WeightDiagnostics::new(&[0.0; 4]);
        assert_eq!((of.ess, of.max_share, of.zero_fraction), (0.0, 0.0, 1.0));
    }

    #[test]
    fn squares_may_overflow() {
        assert!((effective_sample_size(&[1e200, 1e200]) - 2.0).abs() < 1e-12);
    }
}
