//! Intervals by resampling.

use blkpilot_env::Rng;
use rand::{RngExt as _, SeedableRng as _};

/// Resamples behind each interval.
pub const RESAMPLES: usize = 10_000;

/// Mean of the values.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// 95 % percentile interval of the mean, by the bootstrap. The same resamples for every list of one
/// length.
///
/// Source: Efron and Tibshirani 1993, section 13.3.
#[must_use]
pub fn ci95(values: &[f64]) -> [f64; 2] {
    ci95_of(&[values.len()], |drawn| {
        drawn[0].iter().map(|i| values[*i]).sum::<f64>() / values.len() as f64
    })
}

/// 95 % percentile interval of any statistic. `sizes` are the sizes of the strata; `statistic` is given,
/// per stratum, as many indices into it as it is large, drawn with replacement. The same resamples for
/// the same sizes, so that what is computed from them is paired.
///
/// Source: Efron and Tibshirani 1993, sections 13.3 and 8.3.
#[must_use]
pub fn ci95_of(sizes: &[usize], statistic: impl Fn(&[Vec<usize>]) -> f64) -> [f64; 2] {
    let mut rng = Rng::seed_from_u64(0);
    let mut drawn: Vec<Vec<usize>> = sizes.iter().map(|size| vec![0; *size]).collect();
    let mut statistics: Vec<f64> = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for stratum in &mut drawn {
            let size = stratum.len();
            stratum
                .iter_mut()
                .for_each(|index| *index = rng.random_range(0..size));
        }
        statistics.push(statistic(&drawn));
    }
    statistics.sort_by(f64::total_cmp);
    [
        statistics[RESAMPLES / 40],
        statistics[RESAMPLES - 1 - RESAMPLES / 40],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means of 100 draws of ±1 have deviation 0.1: the interval is ±0.196 within sampling error.
    #[test]
    fn the_interval_has_the_width_of_a_known_case() {
        let values: Vec<f64> = (0..100)
            .map(|i| if i % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let [low, high] = ci95(&values);
        assert!(
            (low + 0.196).abs() < 0.03 && (high - 0.196).abs() < 0.03,
            "{low} {high}"
        );
    }

    /// Strata are resampled each for itself: a difference between them has no variance of its own.
    #[test]
    fn strata_do_not_mix() {
        let strata = [[1.0; 5], [3.0; 5]];
        let pooled = ci95_of(&[5, 5], |drawn| {
            let of = |s: usize| drawn[s].iter().map(|i| strata[s][*i]).sum::<f64>();
            (of(0) + of(1)) / 10.0
        });
        assert_eq!(pooled, [2.0, 2.0]);
    }
}
