//! Sums, means and variances of columns: in one pass, by chunk, mergeable.

/// Values that are summed at a time: they stay in the first-level cache.
pub const CHUNK: usize = 1024;
/// Independent sums, so that the additions need not wait for each other.
const LANES: usize = 8;

/// Sum of the values.
#[must_use]
pub fn sum(values: &[f64]) -> f64 {
    sum_of(values, |x| x)
}

#[inline]
fn sum_of(values: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|x| term(*x)).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// Count, mean and sum of squared deviations of what was seen so far.
///
/// Source: Chan, Golub and LeVeque 1983, the pairwise update.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    n: usize,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of a column.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut moments = Self::default();
        values.chunks(CHUNK).for_each(|chunk| moments.push(chunk));
        moments
    }

    /// Adds a chunk. It is read twice, so it should be no longer than [`CHUNK`].
    pub fn push(&mut self, chunk: &[f64]) {
        if chunk.is_empty() {
            return;
        }
        let mean = sum(chunk) / chunk.len() as f64;
        let squares = sum_of(chunk, |x| (x - mean) * (x - mean));
        self.merge(Self {
            n: chunk.len(),
            mean,
            squares,
        });
    }

    /// Adds what another has seen.
    pub fn merge(&mut self, other: Self) {
        let n = self.n + other.n;
        if n == 0 {
            return;
        }
        let delta = other.mean - self.mean;
        let share = other.n as f64 / n as f64;
        self.squares += other.squares + delta * delta * self.n as f64 * share;
        self.mean += delta * share;
        self.n = n;
    }

    /// How many values.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Mean; 0 of nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Variance with denominator n.
    #[must_use]
    pub fn population_variance(&self) -> f64 {
        self.squares / self.n as f64
    }

    /// Variance with denominator n − 1; needs two values.
    #[must_use]
    pub fn sample_variance(&self) -> f64 {
        self.squares / (self.n as f64 - 1.0)
    }
}

/// Quantile by linear interpolation between order statistics; `sorted` is ascending and not empty.
///
/// Source: Hyndman and Fan 1996, definition 7.
#[must_use]
pub fn quantile_of_sorted(sorted: &[f64], probability: f64) -> f64 {
    let position = probability * (sorted.len() - 1) as f64;
    let below = position.floor();
    let low = sorted[below as usize];
    let high = sorted[(below as usize + 1).min(sorted.len() - 1)];
    low + (high - low) * (position - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_a_known_column() {
        let moments = Moments::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((moments.n(), moments.mean()), (8, 5.0));
        assert_eq!(moments.population_variance(), 4.0);
        assert_eq!(moments.sample_variance(), 32.0 / 7.0);
    }

    #[test]
    fn chunks_merge_to_the_whole() {
        let values: Vec<f64> = (0..5000).map(|i| 1e6 + f64::from(i % 17)).collect();
        let mean = values.iter().sum::<f64>() / 5000.0;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let moments = Moments::of(&values);
        assert!((moments.mean() - mean).abs() < 1e-8);
        assert!((moments.population_variance() * 5000.0 / squares - 1.0).abs() < 1e-12);
    }

    #[test]
    fn equal_values_have_no_variance_but_rounding() {
        assert!(Moments::of(&[2.248; 3000]).sample_variance() < 1e-28);
    }

    #[test]
    fn quantiles_interpolate() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile_of_sorted(&sorted, 0.5), 3.0);
        assert_eq!(quantile_of_sorted(&sorted, 0.0), 1.0);
        assert_eq!(quantile_of_sorted(&sorted, 1.0), 8.0);
        assert_eq!(quantile_of_sorted(&[7.0], 0.3), 7.0);
    }
}
