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
    /// On the diagonal of `Σ φ φ'`.
    ridge: DVector<f64>,
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
            ridge: DVector::from_element(features, ridge),
        })
    }

    /// Adds no ridge to the diagonal of this feature. Of an intercept, which is 1 in all transitions, it would
    /// draw the mean of what is fitted to 0; without, residuals sum to 0.
    ///
    /// Source: Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical Learning", section 3.4.1.
    ///
    /// # Errors
    /// `Length` for a feature that there is not.
    pub fn unpenalised(mut self, feature: usize) -> Result<Self, OpeError> {
        let Some(ridge) = self.ridge.get_mut(feature) else {
            check_length("number of features", feature + 1, self.reward.len())?;
            return Ok(self);
        };
        *ridge = 0.0;
        Ok(self)
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

    /// Adds the transitions of another, of the same features. Of the two ridges this one's stays.
    ///
    /// # Errors
    /// `Length` for another number of features.
    pub fn merge(&mut self, other: &Self) -> Result<(), OpeError> {
        check_length("features", other.reward.len(), self.reward.len())?;
        self.features += &other.features;
        self.follows += &other.follows;
        self.reward += &other.reward;
        Ok(())
    }

    /// All fits of [`LinearFqe::finite_horizon`], with what tells how much a transition moved them.
    ///
    /// # Errors
    /// As [`LinearFqe::finite_horizon`].
    pub fn fits(&self, gamma: f64, horizon: usize) -> Result<Fits, OpeError> {
        super::check_setting(horizon, gamma)?;
        let inverse = self.inverse();
        let mut theta = DVector::zeros(self.reward.len());
        let mut thetas = Vec::with_capacity(horizon);
        for _ in 0..horizon {
            theta = &inverse * (&self.reward + &self.follows * theta * gamma);
            thetas.push(finite(&theta)?);
        }
        Ok(Fits {
            thetas,
            inverse,
            follows: self.follows.clone(),
            gamma,
        })
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
        &self.features + DMatrix::from_diagonal(&self.ridge)
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

/// The fits with 1 to `horizon` steps to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Fits {
    thetas: Vec<Vec<f64>>,
    inverse: DMatrix<f64>,
    follows: DMatrix<f64>,
    gamma: f64,
}

impl Fits {
    /// θ with so many steps to go, from 1.
    #[must_use]
    pub fn theta(&self, steps_to_go: usize) -> &[f64] {
        &self.thetas[steps_to_go - 1]
    }

    /// For k = 1 … horizon the vectors `u_k` with which one transition more, of features φ, features
    /// expected next φ̄' and reward r, moves the value `start·θ_horizon` by
    /// `Σ_k u_k·φ (r + γ φ̄'·θ_{k−1} − φ·θ_k)` in the first order (θ_0 = 0).
    ///
    /// Source: the derivative of the sweeps; the delta method of Duan, Jia and Wang 2020, "Minimax-optimal
    /// off-policy evaluation with linear function approximation", without its assumption that
    /// transitions are independent: the caller adds them up by block.
    #[must_use]
    pub fn adjoint(&self, start: &[f64]) -> Vec<Vec<f64>> {
        let mut gradient = DVector::from_row_slice(start);
        let mut vectors = Vec::with_capacity(self.thetas.len());
        for _ in 0..self.thetas.len() {
            let vector = &self.inverse * &gradient;
            gradient = self.follows.tr_mul(&vector) * self.gamma;
            vectors.push(vector.as_slice().to_vec());
        }
        vectors.reverse();
        vectors
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Three states in a ring, two of them rewarded; features are states, so that all is exact.
    fn ring(extra: f64) -> LinearFqe {
        let mut fqe = LinearFqe::new(3, 0.0).unwrap();
        let one = |at: usize| {
            (0..3)
                .map(|i| f64::from(u8::from(i == at)))
                .collect::<Vec<_>>()
        };
        for (state, next, reward) in [(0, 1, 1.0), (1, 2, 0.0), (2, 0, 2.0), (0, 2, 0.5)] {
            fqe.push(&one(state), &one(next), reward).unwrap();
        }
        // A transition that counts for a part of one.
        let root = extra.sqrt();
        let scaled = |at: usize| one(at).iter().map(|x| x * root).collect::<Vec<_>>();
        fqe.push(&scaled(0), &scaled(0), 3.0 * root).unwrap();
        fqe
    }

    #[test]
    fn the_fits_are_those_of_each_horizon_and_two_halves_make_the_whole() {
        let whole = ring(1.0);
        let fits = whole.fits(0.9, 4).unwrap();
        for k in 1..=4 {
            assert_eq!(fits.theta(k), whole.finite_horizon(0.9, k).unwrap());
        }
        let mut twice = whole.clone();
        twice.merge(&whole).unwrap();
        for (a, b) in twice
            .fits(0.9, 4)
            .unwrap()
            .theta(4)
            .iter()
            .zip(fits.theta(4))
        {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        assert!(twice.merge(&LinearFqe::new(2, 0.0).unwrap()).is_err());
    }

    #[test]
    fn rewards_that_are_all_higher_make_the_value_as_much_higher_without_a_ridge_on_the_intercept()
    {
        let shift = 100.0;
        let value = |shift: f64, is_free: bool| {
            let mut fqe = LinearFqe::new(2, 1.0).unwrap();
            if is_free {
                fqe = fqe.unpenalised(0).unwrap();
            }
            for (x, reward) in [(-1.0, 0.2), (0.5, 0.1), (0.5, -0.4), (2.0, 0.3)] {
                fqe.push(&[1.0, x], &[1.0, -x], reward + shift).unwrap();
            }
            let theta = fqe.finite_horizon(0.5, 3).unwrap();
            theta[0] + 0.5 * theta[1]
        };
        // Over three steps, 1 + γ + γ².
        let gain = |is_free| value(shift, is_free) - value(0.0, is_free);
        assert!((gain(true) - 1.75 * shift).abs() < 1e-9, "{}", gain(true));
        // Of four transitions, the ridge of one takes a fifth and more.
        assert!(gain(false) < 0.8 * 1.75 * shift, "{}", gain(false));
        assert!(LinearFqe::new(2, 1.0).unwrap().unpenalised(2).is_err());
    }

    #[test]
    fn the_adjoint_says_what_a_transition_more_moves() {
        let (step, horizon, gamma) = (1e-6, 5, 0.9);
        let start = [0.2, 0.3, 0.5];
        let value = |fqe: &LinearFqe| -> f64 {
            let theta = fqe.finite_horizon(gamma, horizon).unwrap();
            start.iter().zip(&theta).map(|(x, y)| x * y).sum()
        };
        let fits = ring(0.0).fits(gamma, horizon).unwrap();
        let vectors = fits.adjoint(&start);
        // From state 0 to state 0 with reward 3.
        let moved: f64 = (1..=horizon)
            .map(|k| {
                let after = if k == 1 { 0.0 } else { fits.theta(k - 1)[0] };
                vectors[k - 1][0] * (3.0 + gamma * after - fits.theta(k)[0])
            })
            .sum();
        let difference = (value(&ring(step)) - value(&ring(0.0))) / step;
        assert!((moved - difference).abs() < 1e-4, "{moved} {difference}");
    }
}
