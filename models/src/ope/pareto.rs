//! The tail of importance weights.

/// Fewer weights than this in the tail say nothing of its shape.
const LEAST_TAIL: usize = 5;
/// Weights that differ by less than this share of the larger are the same, but for rounding: products of the same
/// factors in another order.
const SAME: f64 = 1e-9;

/// Shape k of the generalised Pareto distribution fitted to the largest weights, of all min(n/5, 3√n).
/// Variance is finite below 0.5; above 0.7 means converge too slowly to be trusted. `None` where
/// fewer than 5 weights lie in the tail or they do not differ.
///
/// What is equal to the largest weight below the tail, but for rounding, is no part of the tail.
///
/// Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto Smoothed Importance Sampling", with its
/// weakly informative prior; the fit is that of Zhang and Stephens 2009.
#[must_use]
pub fn k_hat(weights: &[f64]) -> Option<f64> {
    let mut sorted = weights.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    k_hat_of_sorted(&sorted)
}

/// As [`k_hat`], of the largest of `n` weights alone, in ascending order: of a log that is not held. As many
/// as 3√n + 1 suffice, and whatever they are divided by does not matter.
#[must_use]
pub fn k_hat_of_largest(largest: &[f64], n: usize) -> Option<f64> {
    let tail = tail_of(n);
    if tail < LEAST_TAIL || tail >= n || tail >= largest.len() {
        return None;
    }
    k_hat_of_tail(largest, tail)
}

fn tail_of(n: usize) -> usize {
    let n = n as f64;
    (0.2 * n).min(3.0 * n.sqrt()).ceil() as usize
}

pub(super) fn k_hat_of_sorted(sorted: &[f64]) -> Option<f64> {
    k_hat_of_largest(sorted, sorted.len())
}

/// The tail is what lies above the largest weight that is not among the `tail` largest. Where weights take few values
/// many may be equal to that one: what they differ by is rounding, and a shape that is fitted to it is none.
fn k_hat_of_tail(sorted: &[f64], tail: usize) -> Option<f64> {
    let cut = sorted[sorted.len() - tail - 1];
    let first = sorted.partition_point(|w| *w <= cut || is_same(cut, *w));
    let above: Vec<f64> = sorted[first..].iter().map(|w| w - cut).collect();
    let (least, largest) = (*sorted.get(first)?, *sorted.last()?);
    if above.len() < LEAST_TAIL || is_same(least, largest) {
        return None;
    }
    fit(&above)
}

fn is_same(smaller: f64, larger: f64) -> bool {
    larger - smaller <= SAME * larger
}

/// Posterior mean of the shape, from ascending exceedances.
fn fit(exceedances: &[f64]) -> Option<f64> {
    let n = exceedances.len();
    let largest = exceedances[n - 1];
    let quartile = exceedances[((n as f64 / 4.0 + 0.5).floor() as usize).max(1) - 1];
    if quartile <= 0.0 || !largest.is_finite() {
        return None;
    }
    let points = 30 + (n as f64).sqrt().floor() as usize;
    let theta = |j: usize| {
        let spread = 1.0 - (points as f64 / (j as f64 - 0.5)).sqrt();
        1.0 / largest + spread / (3.0 * quartile)
    };
    let shape = |theta: f64| {
        let logs = exceedances.iter().map(|x| libm::log1p(-theta * x));
        logs.sum::<f64>() / n as f64
    };
    let profile = |theta: f64| {
        let k = shape(theta);
        n as f64 * (libm::log(-theta / k) - k - 1.0)
    };
    let grid: Vec<(f64, f64)> = (1..=points)
        .map(|j| (theta(j), profile(theta(j))))
        .collect();
    let top = grid
        .iter()
        .map(|(_, l)| *l)
        .fold(f64::NEG_INFINITY, f64::max);
    let (mut weighted, mut total) = (0.0, 0.0);
    for (theta, likelihood) in &grid {
        let weight = libm::exp(likelihood - top);
        weighted += weight * theta;
        total += weight;
    }
    let k = shape(weighted / total);
    // A prior worth ten weights at 0.5 steadies short tails.
    let k = (k * n as f64 + 5.0) / (n as f64 + 10.0);
    k.is_finite().then_some(k)
}

#[cfg(test)]
mod tests {
    use blkpilot_env::Rng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// Quantiles of a Pareto distribution of shape k.
    fn pareto(k: f64, n: usize) -> Vec<f64> {
        (0..n)
            .map(|i| (1.0 - (i as f64 + 0.5) / n as f64).powf(-k))
            .collect()
    }

    #[test]
    fn the_shape_of_a_known_tail_is_found() {
        for k in [0.2, 0.5, 0.9] {
            let found = k_hat(&pareto(k, 20_000)).unwrap();
            assert!((found - k).abs() < 0.06, "{found} {k}");
        }
    }

    #[test]
    fn bounded_weights_have_a_light_tail() {
        let uniform: Vec<f64> = (0..10_000).map(|i| f64::from(i) / 5000.0).collect();
        assert!(k_hat(&uniform).unwrap() < 0.0);
    }

    /// Weights of 1600 windows of four decisions over heads of three and two levels, of policies that take their
    /// level with these shares and else any alike.
    fn of_near_policy(log: f64, other: f64, seed: u64) -> Vec<f64> {
        let mut rng = Rng::seed_from_u64(seed);
        let mut factor = |levels: f64| {
            let probability = |share: f64| share + (1.0 - share) / levels;
            let (p, q) = (probability(log), probability(other));
            if rng.random::<f64>() < p {
                return q / p;
            }
            (1.0 - other) / (1.0 - log)
        };
        let heads = [3.0, 2.0].repeat(4);
        let mut weight = |_| heads.iter().map(|levels| factor(*levels)).product();
        (0..1600).map(&mut weight).collect()
    }

    #[test]
    fn weights_of_few_values_that_differ_by_rounding_have_no_tail() {
        for (log, seed) in [0.4, 0.45].into_iter().flat_map(|log| [(log, 0), (log, 1)]) {
            let mut weights = of_near_policy(log, 0.54, seed);
            let k = k_hat(&weights);
            assert!(k.is_none_or(|k| k < 0.5), "{log}: {k:?}");
            weights.sort_unstable_by(f64::total_cmp);
            let is_rounding = |pair: &[f64]| pair[0] < pair[1] && is_same(pair[0], pair[1]);
            assert!(weights.windows(2).any(is_rounding), "{log}");
        }
    }

    #[test]
    fn a_heavy_tail_is_found_whatever_many_are_equal_below_it() {
        for equal in [1_000, 20_000] {
            let mut weights = vec![0.5; equal];
            weights.extend(pareto(0.9, 1_000).iter().map(|w| w + 0.5));
            let found = k_hat(&weights).unwrap();
            assert!((found - 0.9).abs() < 0.15, "{equal}: {found}");
        }
        // Three beyond many that are equal are too few.
        let mut weights = vec![0.2; 1_000];
        weights.extend([vec![0.3; 200], vec![10.0, 100.0, 1000.0]].concat());
        assert_eq!(k_hat(&weights), None);
    }

    #[test]
    fn the_largest_alone_and_in_any_unit_say_the_same() {
        let mut all = pareto(0.6, 5_000);
        all.sort_unstable_by(f64::total_cmp);
        let largest: Vec<f64> = all[4_000..].iter().map(|w| w / 1e9).collect();
        let (of_all, of_largest) = (
            k_hat(&all).unwrap(),
            k_hat_of_largest(&largest, 5_000).unwrap(),
        );
        assert!((of_all - of_largest).abs() < 1e-6, "{of_all} {of_largest}");
        assert_eq!(k_hat_of_largest(&largest[900..], 5_000), None);
    }

    #[test]
    fn too_few_or_equal_weights_have_none() {
        assert_eq!(k_hat(&[1.0, 2.0, 3.0]), None);
        assert_eq!(k_hat(&[1.0; 1000]), None);
    }
}
