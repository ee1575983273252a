//! What an estimator makes of each unit, and what intervals and resampling start from.
//!
//! A unit is whatever is independent of the others: a round, a trajectory, a block of host and time.
//! Each estimator here is a sum of ratios of sums over units, `Σ_k Σ_i a_ik / Σ_i b_ik`: a plain mean has
//! one term with b = 1, a self-normalised one has its weights there. [`Terms`] holds the a and b, so that
//! blocks of units are added up and replicates re-normalise; [`Scores`] only what a standard error needs.

use super::error::{OpeError, Place, check_finite};
use super::moments::Moments;

/// What the values of [`Scores`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The estimate is the mean of the values.
    Mean,
    /// The estimate is a ratio of sums; the values are its influence function, with mean 0.
    Ratio,
}

/// An estimate with its sampling error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Units.
    pub n: usize,
    /// The estimate, in reward units.
    pub estimate: f64,
    /// Its standard error, in reward units: s/√n with s of denominator n − 1 for a mean, the delta method
    /// √(mean φ²/n) for a ratio.
    pub std_err: f64,
    /// Which of the two.
    pub kind: Kind,
}

/// An estimate and what each unit adds to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    estimate: f64,
    kind: Kind,
    values: Vec<f64>,
}

impl Scores {
    /// A mean of scores, one per unit.
    ///
    /// # Errors
    /// `Empty`, and `Value` where a score is not finite.
    pub fn mean(values: Vec<f64>) -> Result<Self, OpeError> {
        if values.is_empty() {
            return Err(OpeError::Empty { what: "scores" });
        }
        let estimate = Moments::of(&values).mean();
        let scores = Self {
            estimate,
            kind: Kind::Mean,
            values,
        };
        scores.checked()
    }

    /// A ratio, or a sum of ratios: the estimate and its influence function, one value per unit.
    pub(super) fn ratio(estimate: f64, influence: Vec<f64>) -> Result<Self, OpeError> {
        let scores = Self {
            estimate,
            kind: Kind::Ratio,
            values: influence,
        };
        scores.checked()
    }

    fn checked(self) -> Result<Self, OpeError> {
        if !self.estimate.is_finite() {
            let sick = |(i, x): (usize, &f64)| check_finite(Place::Row(i), "score", *x).err();
            let at = self.values.iter().enumerate().find_map(sick);
            return Err(at.unwrap_or(OpeError::Setting {
                what: "the estimate",
                value: self.estimate,
                rule: "must be finite: the scores are too large for f64",
            }));
        }
        Ok(self)
    }

    /// The estimate.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        self.estimate
    }

    /// Whether it is a mean or a ratio.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Per unit: the score of a mean, the influence on a ratio.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Per unit, what it moves the estimate by, times n; mean 0 for both kinds. Sums of it over blocks
    /// of dependent units give their standard error, differences of two estimators' a paired one.
    pub fn influence(&self) -> impl Iterator<Item = f64> {
        let centre = match self.kind {
            Kind::Mean => self.estimate,
            Kind::Ratio => 0.0,
        };
        self.values.iter().map(move |value| value - centre)
    }

    /// The estimate with its standard error.
    ///
    /// # Errors
    /// `TooFew` below two units.
    pub fn summary(&self) -> Result<Summary, OpeError> {
        let n = self.values.len();
        if n < 2 {
            return Err(OpeError::TooFew {
                what: "a standard error",
                needed: 2,
                found: n,
            });
        }
        Ok(Summary {
            n,
            estimate: self.estimate,
            std_err: self.std_err(),
            kind: self.kind,
        })
    }

    fn std_err(&self) -> f64 {
        let n = self.values.len() as f64;
        let of = |values: &[f64]| match self.kind {
            Kind::Mean => Moments::of(values).sample_variance(),
            Kind::Ratio => mean_square(values),
        };
        let variance = of(&self.values);
        if variance.is_finite() {
            return (variance / n).sqrt();
        }
        // Scores of 1e200 are numbers, their squares are none.
        let largest = self
            .values
            .iter()
            .fold(0.0, |most: f64, x| most.max(x.abs()));
        let small: Vec<f64> = self.values.iter().map(|x| x / largest).collect();
        largest * (of(&small) / n).sqrt()
    }
}

fn mean_square(values: &[f64]) -> f64 {
    let moments = Moments::of(values);
    moments.population_variance() + moments.mean() * moments.mean()
}

/// Numerators and denominators per unit, of an estimate `Σ_k Σ_i a_ik / Σ_i b_ik`.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    terms: usize,
    /// Per unit its `terms` numerators, then its `terms` denominators.
    values: Vec<f64>,
}

impl Terms {
    /// No units yet; `terms` is how many ratios are summed.
    #[must_use]
    pub fn new(terms: usize, units: usize) -> Self {
        let values = Vec::with_capacity(2 * terms * units);
        Self { terms, values }
    }

    /// Of a mean: one term, whose denominators are 1.
    #[must_use]
    pub fn of_mean(scores: &[f64]) -> Self {
        let values = scores.iter().flat_map(|score| [*score, 1.0]).collect();
        Self { terms: 1, values }
    }

    /// Adds a unit, by what writes its numerators and denominators into zeroed slices of `terms`.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut [f64], &mut [f64])) {
        let begin = self.values.len();
        self.values.resize(begin + 2 * self.terms, 0.0);
        let (numerators, denominators) = self.values[begin..].split_at_mut(self.terms);
        write(numerators, denominators);
    }

    /// How many units.
    #[must_use]
    pub fn units(&self) -> usize {
        self.values.len() / (2 * self.terms)
    }

    /// Adds up the units of each block: `block[i]` is the block of unit i, below `blocks`. What is
    /// resampled then is the block, and the mean stays one over units.
    ///
    /// # Errors
    /// `Length` where there is not one block per unit; `Value` where one is not below `blocks`.
    pub fn by_block(&self, block: &[usize], blocks: usize) -> Result<Self, OpeError> {
        super::error::check_length("block", block.len(), self.units())?;
        let width = 2 * self.terms;
        let mut values = vec![0.0; width * blocks];
        for (i, (unit, &block)) in self.values.chunks_exact(width).zip(block).enumerate() {
            let place = Place::Row(i);
            let sums = values
                .get_mut(block * width..(block + 1) * width)
                .ok_or_else(|| {
                    OpeError::value(place, "block", block, "must be below the number of blocks")
                })?;
            sums.iter_mut().zip(unit).for_each(|(sum, x)| *sum += x);
        }
        let terms = self.terms;
        Ok(Self { terms, values })
    }

    /// The estimate from these units, each as often as it is named. `scratch` is overwritten.
    /// `None` where a sum of weights is 0.
    pub(super) fn estimate_of(
        &self,
        units: impl Iterator<Item = usize>,
        scratch: &mut Vec<f64>,
    ) -> Option<f64> {
        let width = 2 * self.terms;
        scratch.clear();
        scratch.resize(width, 0.0);
        for unit in units {
            let values = &self.values[unit * width..(unit + 1) * width];
            scratch
                .iter_mut()
                .zip(values)
                .for_each(|(sum, x)| *sum += x);
        }
        let (numerators, denominators) = scratch.split_at(self.terms);
        let ratios = numerators.iter().zip(denominators);
        ratios
            .map(|(a, b)| (*b != 0.0).then(|| a / b))
            .sum::<Option<f64>>()
    }

    /// The estimate from all units; `None` where a sum of weights is 0.
    #[must_use]
    pub fn estimate(&self) -> Option<f64> {
        self.estimate_of(0..self.units(), &mut vec![])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_of_scores_with_its_standard_error() {
        let summary = Scores::mean(vec![1.0, 2.0, 3.0, 6.0]).unwrap().summary();
        let summary = summary.unwrap();
        assert_eq!(summary.estimate, 3.0);
        assert_eq!(summary.std_err, (14.0f64 / 3.0 / 4.0).sqrt());
    }

    #[test]
    fn one_unit_has_an_estimate_and_no_standard_error() {
        let one = Scores::mean(vec![2.0]).unwrap();
        assert_eq!(one.estimate(), 2.0);
        assert!(matches!(one.summary(), Err(OpeError::TooFew { .. })));
    }

    #[test]
    fn squares_may_overflow() {
        let summary = Scores::mean(vec![1e200, 3e200]).unwrap().summary().unwrap();
        assert!((summary.std_err / 1e200 - 1.0).abs() < 1e-12, "{summary:?}");
    }

    #[test]
    fn a_score_that_is_no_number_is_named() {
        let error = Scores::mean(vec![1.0, f64::INFINITY]).unwrap_err();
        assert!(
            error.to_string().starts_with("row 1: score = inf"),
            "{error}"
        );
    }

    /// 3 units in 2 blocks: the mean stays (1 + 2 + 6)/3, also when a block of two is one unit.
    #[test]
    fn blocks_add_up_and_keep_the_estimate() {
        let terms = Terms::of_mean(&[1.0, 2.0, 6.0]);
        let blocks = terms.by_block(&[0, 1, 0], 2).unwrap();
        assert_eq!((blocks.units(), blocks.estimate()), (2, Some(3.0)));
        let second_only = blocks.estimate_of([1, 1].into_iter(), &mut vec![]);
        assert_eq!(second_only, Some(2.0));
        assert!(terms.by_block(&[0, 2, 0], 2).is_err());
    }
}
