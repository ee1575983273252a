//! Percentile intervals by resampling units.

use blkpilot_env::Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::error::OpeError;
use super::interval::Interval;
use super::moments::quantile_of_sorted;
use super::scores::Terms;

/// How often is resampled, and from which seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Replicates, at least 2.
    pub replicates: usize,
    /// Seed. Estimates with the same number of units get the same replicates, so that they are paired.
    pub seed: u64,
}

impl Bootstrap {
    /// Percentile interval of each estimate. A replicate draws as many units as there are, with
    /// replacement, and normalises by the weights drawn. All must have the same units.
    ///
    /// Source: Efron and Tibshirani 1993, section 13.3.
    ///
    /// # Errors
    /// `Empty` without units, `Length` where the estimates differ in units, `Setting` for fewer than two
    /// replicates, `NoOverlap` where a replicate draws only weights of 0.
    pub fn percentile(&self, estimates: &[&Terms], alpha: f64) -> Result<Vec<Interval>, OpeError> {
        let replicates = self.replicate(estimates)?;
        let ends = |values| percentiles(values, alpha);
        Ok(replicates.into_iter().map(ends).collect())
    }

    /// The replicates of each estimate: `[estimates][replicates]`.
    ///
    /// # Errors
    /// As `percentile`.
    pub fn replicate(&self, estimates: &[&Terms]) -> Result<Vec<Vec<f64>>, OpeError> {
        let units = estimates.first().map_or(0, |terms| terms.units());
        for terms in estimates {
            super::error::check_length("units of the bootstrap", terms.units(), units)?;
        }
        let mut scratch = vec![];
        let mut replicates = vec![Vec::with_capacity(self.replicates); estimates.len()];
        self.draw(units, |drawn| {
            for (terms, values) in estimates.iter().zip(&mut replicates) {
                let estimate = terms.estimate_of(drawn.iter().copied(), &mut scratch);
                values.push(estimate.ok_or(OpeError::NoOverlap {
                    what: "a replicate",
                })?);
            }
            Ok(())
        })?;
        Ok(replicates)
    }

    /// The replicates of an estimate that is no sum of ratios, as one that is fitted: `estimate` makes it
    /// of the units drawn, each as often as it is named. They are the draws of `replicate`.
    ///
    /// # Errors
    /// As `replicate`, and those of `estimate`.
    pub fn replicate_by(
        &self,
        units: usize,
        mut estimate: impl FnMut(&[usize]) -> Result<f64, OpeError>,
    ) -> Result<Vec<f64>, OpeError> {
        let mut replicates = Vec::with_capacity(self.replicates);
        self.draw(units, |drawn| {
            replicates.push(estimate(drawn)?);
            Ok(())
        })?;
        Ok(replicates)
    }

    /// Shows as many units as there are, drawn with replacement, once per replicate.
    fn draw(
        &self,
        units: usize,
        mut show: impl FnMut(&[usize]) -> Result<(), OpeError>,
    ) -> Result<(), OpeError> {
        if units == 0 {
            return Err(OpeError::Empty { what: "bootstrap" });
        }
        if self.replicates < 2 {
            return Err(OpeError::Setting {
                what: "replicates",
                value: self.replicates as f64,
                rule: "must be at least 2",
            });
        }
        let mut rng = Rng::seed_from_u64(self.seed);
        let mut drawn = vec![0; units];
        for _ in 0..self.replicates {
            drawn
                .iter_mut()
                .for_each(|unit| *unit = rng.random_range(0..units));
            show(&drawn)?;
        }
        Ok(())
    }
}

/// Percentile interval from replicates.
///
/// Source: Efron and Tibshirani 1993, section 13.3.
#[must_use]
pub fn percentiles(mut replicates: Vec<f64>, alpha: f64) -> Interval {
    replicates.sort_by(f64::total_cmp);
    [alpha / 2.0, 1.0 - alpha / 2.0].map(|p| quantile_of_sorted(&replicates, p))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap {
        replicates: 2000,
        seed: 1,
    };

    /// Means of 100 draws of ±1 have deviation 0.1.
    #[test]
    fn interval_of_a_mean_has_the_known_width() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i % 2 * 2 - 1)).collect();
        let [low, high] = BOOTSTRAP
            .percentile(&[&Terms::of_mean(&scores)], 0.05)
            .unwrap()[0];
        assert!(
            (low + 0.196).abs() < 0.03 && (high - 0.196).abs() < 0.03,
            "{low} {high}"
        );
    }

    /// With one reward for all, a ratio that re-normalises cannot vary.
    #[test]
    fn ratios_normalise_inside_each_replicate() {
        let mut terms = Terms::new(1, 0);
        for weight in [0.25, 4.0, 1.0, 0.5] {
            terms.push(|a, b| (a[0], b[0]) = (weight * 2.248, weight));
        }
        let [low, high] = BOOTSTRAP.percentile(&[&terms], 0.05).unwrap()[0];
        assert!((low - 2.248).abs() < 1e-14 && (high - 2.248).abs() < 1e-14);
    }

    #[test]
    fn a_mean_that_is_fitted_has_the_replicates_of_the_mean() {
        let scores = [1.0, 2.0, 5.0];
        let of = |drawn: &[usize]| Ok(drawn.iter().map(|i| scores[*i]).sum::<f64>() / 3.0);
        let fitted = BOOTSTRAP.replicate_by(3, of).unwrap();
        let summed = BOOTSTRAP.replicate(&[&Terms::of_mean(&scores)]).unwrap();
        let pairs = fitted.iter().zip(&summed[0]);
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn equal_units_give_paired_replicates() {
        let one = Terms::of_mean(&[1.0, 2.0, 5.0]);
        let two = Terms::of_mean(&[2.0, 3.0, 6.0]);
        let replicates = BOOTSTRAP.replicate(&[&one, &two]).unwrap();
        let paired = replicates[0].iter().zip(&replicates[1]);
        assert!(paired.clone().all(|(a, b)| (b - a - 1.0).abs() < 1e-12));
    }
}
