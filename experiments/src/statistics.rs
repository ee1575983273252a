//! Few numbers, one per training seed, summed up.

/// Quantile `p` in [0, 1], with linear interpolation between the values; `None` of none.
///
/// Source: Hyndman and Fan 1996, definition 7.
#[must_use]
pub fn quantile(values: &[f64], p: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = p * sorted.len().checked_sub(1)? as f64;
    let (below, share) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    Some(sorted[below] + share * (sorted[above] - sorted[below]))
}

/// The value in the middle; `None` of none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Interquartile mean: that of what is left when a quarter of the values, rounded down, is taken off at each end. It
/// is moved less by single runs than the mean and wastes less than the median. `None` of none.
///
/// Source: Agarwal et al. 2021, section 4.3.
#[must_use]
pub fn interquartile_mean(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let cut = sorted.len() / 4;
    let kept = &sorted[cut..sorted.len() - cut];
    (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `numpy.quantile` and `scipy.stats.trim_mean(…, 0.25)`.
    #[test]
    fn quantiles_and_the_interquartile_mean_are_those_of_numpy_and_scipy() {
        let values = [3.0, 1.0, 10.0, 2.0, 5.0, 4.0];
        assert_eq!(median(&values), Some(3.5));
        assert_eq!(quantile(&values, 0.25), Some(2.25));
        assert_eq!(quantile(&values, 0.9), Some(7.5));
        assert_eq!(interquartile_mean(&values), Some(3.5));
        let nine = [9.0, 1.0, 8.0, 2.0, 100.0, 3.0, 4.0, -50.0, 5.0];
        assert_eq!(interquartile_mean(&nine), Some(4.4));
        assert_eq!(interquartile_mean(&[1.0, 5.0]), Some(3.0));
        assert_eq!((median(&[]), interquartile_mean(&[])), (None, None));
        assert_eq!(quantile(&[7.0], 0.75), Some(7.0));
    }
}
