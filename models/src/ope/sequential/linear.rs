//! Fitted Q evaluation with features: `Q(s, a) = φ(s, a)·θ`.
//!
//! The next value is linear in θ too, `Σ_a' pie(a') φ(s', a')·θ`, so that all sweeps need only three sums
//! over the log, which are made in one pass.

use nalgebra::{DMatrix, DVector};

use crate::ope::error::{OpeError, check_length};
use crate::ope::least_squares::RANK_TOLERANCE;

/// Sums over transitions.
///
/// Source: Le, Voloshin and Yue 2019, algorithm 3, with least squares; the fixed point is LSTD-Q of
/// Lagoudakis and Parr 2003, "Least-squares policy iteration".
#[derive(Debug, Clone, PartialEq)]
pub struct LinearFqe {
    /// Σ φ φ'.
    features: DMatrix<f64>,
    /// Σ φ φ̄', with φ̄ the features expected next.
    follows: DMatrix<f64>,
    /// Σ φ r.
    reward: DVector<f64>,
    ridge: f64,
}

impl LinearFqe {
    /// Without transitions; `ridge` is added to the diagonal of `Σ φ φ'`, at least 0.
    ///
    /// # Errors
    /// `Setting` for a negative ridge.
    pub fn new(features: usize, ridge: f64) -> Result<Self, OpeError> {
        if !(ridge >= 0.0 && ridge.is_finite()) {
            return Err(OpeError::Setting {
                what: "ridge",
                value: ridge,
                rule: "must be finite and not negative",
            });
        }
        Ok(Self {
            features: DMatrix::zeros(features, features),
            follows: DMatrix::zeros(features, features),
            reward: DVector::zeros(features),
            ridge,
        })
    }

    /// Adds a transition: features of the logged pair, the features expected next under the evaluation
    /// policy, `Σ_a' pie(a'|s') φ(s', a')` (all 0 after termination), and the reward.
    ///
    /// # Errors
    /// `Length` for another number of features; `Setting` where one, or the reward, is not finite.
    pub fn push(
        &mut self,
        features: &[f64],
        expected_next: &[f64],
        reward: f64,
    ) -> Result<(), OpeError> {
        check_length("features", features.len(), self.reward.len())?;
        check_length(
            "features expected next",
            expected_next.len(),
            self.reward.len(),
        )?;
        let mut all = features.iter().chain(expected_next).chain([&reward]);
        if let Some(sick) = all.find(|x| !x.is_finite()) {
            return Err(OpeError::Setting {
                what: "a feature or reward",
                value: *sick,
                rule: "must be finite",
            });
        }
        for (j, x) in features.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            for (k, y) in features.iter().enumerate() {
                self.features[(j, k)] += x * y;
                self.follows[(j, k)] += x * expected_next[k];
            }
            self.reward[j] += x * reward;
        }
        Ok(())
    }

    /// θ with `horizon` steps to go, by that many fits from Q = 0; of equal fits the shortest.
    ///
    /// # Errors
    /// `Setting` for gamma or horizon; `Singular` where the fits run away.
    pub fn finite_horizon(&self, gamma: f64, horizon: usize) -> Result<Vec<f64>, OpeError> {
        super::check_setting(horizon, gamma)?;
        let inverse = self.inverse();
        let mut theta = DVector::zeros(self.reward.len());
        for _ in 0..horizon {
            theta = &inverse * (&self.reward + &self.follows * theta * gamma);
        }
        finite(&theta)
    }

    /// θ without end: the fixed point.
    ///
    /// # Errors
    /// `Setting` for gamma; `Singular` where there is none, or more than one.
    pub fn infinite_horizon(&self, gamma: f64) -> Result<Vec<f64>, OpeError> {
        super::check_setting(1, gamma)?;
        let system = self.regularised() - &self.follows * gamma;
        match system.lu().solve(&self.reward) {
            Some(theta) => finite(&theta),
            None => Err(singular()),
        }
    }

    fn regularised(&self) -> DMatrix<f64> {
        let n = self.reward.len();
        &self.features + DMatrix::identity(n, n) * self.ridge
    }

    /// The pseudo-inverse of the symmetric matrix of features.
    fn inverse(&self) -> DMatrix<f64> {
        let eigen = self.regularised().symmetric_eigen();
        let largest = eigen.eigenvalues.amax();
        let inverse = |value: f64| {
            if value > RANK_TOLERANCE * largest {
                1.0 / value
            } else {
                0.0
            }
        };
        let middle = DMatrix::from_diagonal(&eigen.eigenvalues.map(inverse));
        &eigen.eigenvectors * middle * eigen.eigenvectors.transpose()
    }
}

fn finite(theta: &DVector<f64>) -> Result<Vec<f64>, OpeError> {
    if theta.iter().all(|x| x.is_finite()) {
        return Ok(theta.as_slice().to_vec());
    }
    Err(singular())
}

fn singular() -> OpeError {
    OpeError::Singular {
        what: "linear FQE",
        hint: "the features are collinear, or the fits run away; raise the ridge or take fewer features",
    }
}
