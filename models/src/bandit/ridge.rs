//! Bayesian linear regression, one observation at a time, that forgets.
//!
//! With precision A and b, both in units of the noise: after an observation (ψ, r),
//! `A ← μ A + (1 − μ) λ I + ψψᵀ` and `b ← μ b + r ψ`. The prior λ does not fade, so A stays regular however long
//! nothing of a direction is seen, and what is not tried any more becomes uncertain again. The noise is estimated from
//! the residuals under a weak inverse-gamma prior, so that a bandit's numbers are in standard deviations, whatever the
//! scale of rewards.
//!
//! Source: Russac, Vernade and Cappé 2019, eq. 4, with one discount for A and its square, as in the Bayesian reading;
//! Gelman et al. 2013, "Bayesian Data Analysis", 3rd edition, section 14.2, on the noise.

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};
use serde::{Deserialize, Serialize};

use super::BanditConfig;

/// The noise's variance before anything is known, in rewards squared, and how many observations that is worth.
const PRIOR_VARIANCE: f64 = 0.01;
const PRIOR_WEIGHT: f64 = 2.0;

/// What a model has learned: sums over observations, each with the weight that is left of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// A, the rows of its lower triangle one after another.
    pub precision: Vec<f64>,
    /// b.
    pub moment: Vec<f64>,
    /// Weights.
    pub weight: f64,
    /// Weighted squares of rewards.
    pub squares: f64,
}

impl Sums {
    fn matrix(&self) -> DMatrix<f64> {
        let n = self.moment.len();
        DMatrix::from_fn(n, n, |i, j| self.precision[cell(i.max(j), i.min(j))])
    }
}

/// Where row i, column j ≤ i of a lower triangle stands.
fn cell(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// A linear model of rewards.
#[derive(Debug, Clone)]
pub(super) struct Ridge {
    sums: Sums,
    /// Of A.
    root: Cholesky<f64, Dyn>,
    theta: DVector<f64>,
    /// Variance of the noise.
    noise: f64,
}

impl Ridge {
    /// One that knows nothing, of so many features.
    pub(super) fn new(width: usize, ridge: f64) -> Self {
        let mut sums = Sums {
            precision: vec![0.0; cell(width, 0)],
            moment: vec![0.0; width],
            weight: 0.0,
            squares: 0.0,
        };
        (0..width).for_each(|i| sums.precision[cell(i, i)] = ridge);
        Self::of(sums, width).expect("a multiple of the identity has a root")
    }

    /// One that goes on from what was learned; `None` where that is not of so many features, or no regression.
    pub(super) fn of(sums: Sums, width: usize) -> Option<Self> {
        let is_shaped = sums.moment.len() == width && sums.precision.len() == cell(width, 0);
        let mut numbers = sums.moment.iter().chain(&sums.precision);
        let is_finite = numbers.all(|x| x.is_finite()) && (sums.weight + sums.squares).is_finite();
        if !is_shaped || !is_finite {
            return None;
        }
        let root = Cholesky::new(sums.matrix())?;
        let theta = root.solve(&DVector::from_column_slice(&sums.moment));
        // Σ w r² − θ̂ᵀb is the sum of squared residuals, with what the ridge adds.
        let residuals = sums.squares - theta.dot(&DVector::from_column_slice(&sums.moment));
        let noise =
            (PRIOR_WEIGHT * PRIOR_VARIANCE + residuals.max(0.0)) / (PRIOR_WEIGHT + sums.weight);
        Some(Self {
            sums,
            root,
            theta,
            noise,
        })
    }

    /// What it has learned.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Takes an observation. One after which there would be no regression any more is left out.
    pub(super) fn push(&mut self, features: &[f64], reward: f64, config: &BanditConfig) {
        let (memory, width) = (config.memory, features.len());
        let mut sums = self.sums.clone();
        for (i, x) in features.iter().enumerate() {
            for (j, y) in features[..=i].iter().enumerate() {
                let own = &mut sums.precision[cell(i, j)];
                *own = memory * *own + x * y;
            }
            sums.precision[cell(i, i)] += (1.0 - memory) * config.ridge;
            sums.moment[i] = memory * sums.moment[i] + reward * x;
        }
        sums.weight = memory * sums.weight + 1.0;
        sums.squares = memory * sums.squares + reward * reward;
        if let Some(next) = Self::of(sums, width) {
            *self = next;
        }
    }

    /// Expected reward of ψ.
    pub(super) fn mean(&self, features: &[f64]) -> f64 {
        features
            .iter()
            .zip(self.theta.iter())
            .map(|(x, t)| x * t)
            .sum()
    }

    /// Covariance of the expected rewards of several ψ, `[rows, rows]`: σ² ΨA⁻¹Ψᵀ.
    pub(super) fn covariance(&self, rows: &[&[f64]]) -> DMatrix<f64> {
        let width = self.sums.moment.len();
        let columns = DMatrix::from_fn(width, rows.len(), |i, j| rows[j][i]);
        let solved = self.root.solve(&columns);
        columns.tr_mul(&solved) * self.noise
    }
}

/// A lower triangular root of a covariance, which may be singular: levels that look the same have the same reward.
pub(super) fn root(mut covariance: DMatrix<f64>) -> DMatrix<f64> {
    let n = covariance.nrows();
    let largest = covariance.diagonal().amax();
    // In units of its variances; 0 where nothing is uncertain.
    for share in [0.0, 1e-12, 1e-9, 1e-6] {
        (0..n).for_each(|i| covariance[(i, i)] += share * largest);
        if let Some(root) = Cholesky::new(covariance.clone()) {
            return root.l();
        }
    }
    DMatrix::zeros(n, n)
}

#[cfg(test)]
mod tests {
    use super::super::{Algorithm, BanditConfig};
    use super::*;

    fn config(ridge: f64, memory: f64) -> BanditConfig {
        BanditConfig {
            ridge,
            memory,
            ..BanditConfig::new(Algorithm::LinUcb(1.0))
        }
    }

    /// (1, 0) brings 2, (1, 1) brings 3: A = [[3, 1], [1, 2]], b = (5, 3), θ̂ = (7, 4)/5.
    #[test]
    fn two_observations_by_hand() {
        let config = config(1.0, 1.0);
        let mut ridge = Ridge::new(2, 1.0);
        ridge.push(&[1.0, 0.0], 2.0, &config);
        ridge.push(&[1.0, 1.0], 3.0, &config);
        assert!((ridge.mean(&[1.0, 0.0]) - 1.4).abs() < 1e-12);
        assert!((ridge.mean(&[0.0, 1.0]) - 0.8).abs() < 1e-12);
        // Σ r² − θ̂ᵀb = 13 − 9.4; with the prior (0.02 + 3.6)/4.
        let noise = 3.62 / 4.0;
        let variance = ridge.covariance(&[&[1.0, 0.0]])[(0, 0)];
        assert!((variance - noise * 2.0 / 5.0).abs() < 1e-12, "{variance}");
    }

    #[test]
    fn what_is_long_past_is_forgotten_and_uncertain_again() {
        let config = config(1.0, 0.95);
        let mut ridge = Ridge::new(2, 1.0);
        for _ in 0..400 {
            ridge.push(&[1.0, 0.0], 5.0, &config);
        }
        for _ in 0..400 {
            ridge.push(&[0.0, 1.0], 1.0, &config);
        }
        assert!(ridge.mean(&[1.0, 0.0]).abs() < 1e-6);
        assert!((ridge.mean(&[0.0, 1.0]) - 1.0).abs() < 0.06);
        let of = |own: &[f64]| ridge.covariance(&[own])[(0, 0)];
        assert!(of(&[1.0, 0.0]) > 15.0 * of(&[0.0, 1.0]));
    }

    #[test]
    fn what_is_no_regression_is_not_taken_up() {
        let sums = Ridge::new(2, 1.0).sums().clone();
        assert!(Ridge::of(sums.clone(), 2).is_some());
        assert!(Ridge::of(sums.clone(), 3).is_none());
        for precision in [vec![1.0, 2.0, 1.0], vec![1.0, f64::NAN, 1.0]] {
            let sums = Sums {
                precision,
                ..sums.clone()
            };
            assert!(Ridge::of(sums, 2).is_none());
        }
    }

    #[test]
    fn levels_that_look_the_same_have_a_root_too() {
        let one = DMatrix::from_element(3, 3, 2.0);
        let root = root(one.clone());
        assert!((&root * root.transpose() - one).amax() < 1e-5);
        assert_eq!(super::root(DMatrix::zeros(2, 2)), DMatrix::zeros(2, 2));
    }
}
