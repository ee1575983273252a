//! The estimators that are made of a weight, a reward and a model.

use super::Columns;
use crate::ope::error::OpeError;
use crate::ope::moments::sum;
use crate::ope::scores::{Scores, Terms};

/// What is done to a weight w so that no row outweighs the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shrinkage {
    /// Nothing.
    None,
    /// min(w, λ). Source: Ionides 2008.
    Clip(f64),
    /// w up to τ, 0 above: the model decides there. Source: Wang, Agarwal and Dudík 2017, SWITCH.
    Switch(f64),
    /// λ w/(w² + λ), which bounds the error best. Source: Su et al. 2020, "Doubly robust off-policy
    /// evaluation with shrinkage", optimistic shrinkage.
    Optimistic(f64),
    /// w/(1 − λ + λ w), λ in [0, 1]. Source: Metelli, Russo and Restelli 2021, "Subgaussian and
    /// Differentiable Importance Sampling", its power mean with s = −1.
    SubGaussian(f64),
}

impl Shrinkage {
    /// The weight after it.
    #[inline]
    #[must_use]
    pub fn of(self, weight: f64) -> f64 {
        match self {
            Self::None => weight,
            Self::Clip(most) => weight.min(most),
            Self::Switch(most) if weight <= most => weight,
            Self::Switch(_) => 0.0,
            Self::Optimistic(lambda) => lambda * weight / (weight * weight + lambda),
            Self::SubGaussian(lambda) => weight / (1.0 - lambda + lambda * weight),
        }
    }

    /// Checks the parameter.
    fn check(self) -> Result<(), OpeError> {
        let refuse = |what, value, rule| Err(OpeError::Setting { what, value, rule });
        match self {
            Self::Clip(x) | Self::Switch(x) | Self::Optimistic(x) if x.is_nan() || x <= 0.0 => {
                refuse("the bound of the weights", x, "must be positive")
            }
            Self::SubGaussian(x) if !(0.0..=1.0).contains(&x) => {
                refuse("lambda of the sub-Gaussian weights", x, "must be in [0, 1]")
            }
            _ => Ok(()),
        }
    }
}

/// How an estimate is made of w (weight), r (reward), V (what the model expects of the evaluation policy)
/// and e (r less what it expects of the logged action), ŵ the weight after shrinkage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// Mean of V.
    DirectMethod,
    /// Mean of ŵ r. Source: Horvitz and Thompson 1952.
    InverseWeight(Shrinkage),
    /// Σ w r/Σ w. Source: Swaminathan and Joachims 2015, "The self-normalized estimator for
    /// counterfactual learning".
    SelfNormalised,
    /// Mean of V + ŵ e. Source: Dudík, Langford and Li 2011, "Doubly robust policy evaluation and
    /// learning".
    DoublyRobust(Shrinkage),
    /// Mean of V + Σ w e/Σ w. Source: Thomas and Brunskill 2016, WDR, for one step.
    SelfNormalisedDoublyRobust,
}

impl Estimator {
    /// Checks the parameter of its shrinkage.
    pub(super) fn check(self) -> Result<(), OpeError> {
        match self {
            Self::InverseWeight(shrinkage) | Self::DoublyRobust(shrinkage) => shrinkage.check(),
            _ => Ok(()),
        }
    }

    /// Its scores over these rows.
    ///
    /// # Errors
    /// `NoOverlap` where the weights that normalise sum to 0; `Setting` for a parameter out of range;
    /// `Value` and `Empty` as [`Scores::mean`].
    pub fn scores(self, columns: &Columns) -> Result<Scores, OpeError> {
        let Columns {
            weight,
            reward,
            value,
            residual,
            ..
        } = columns;
        self.check()?;
        match self {
            Self::DirectMethod => Scores::mean(value.clone()),
            Self::InverseWeight(shrinkage) => {
                let rows = weight.iter().zip(reward);
                Scores::mean(rows.map(|(w, r)| shrinkage.of(*w) * r).collect())
            }
            Self::DoublyRobust(shrinkage) => {
                let rows = weight.iter().zip(residual).zip(value);
                Scores::mean(rows.map(|((w, e), v)| v + shrinkage.of(*w) * e).collect())
            }
            Self::SelfNormalised => {
                let (estimate, influence) = ratio(weight, reward)?;
                Scores::ratio(estimate, influence)
            }
            Self::SelfNormalisedDoublyRobust => {
                let (correction, mut influence) = ratio(weight, residual)?;
                let expected = Scores::mean(value.clone())?;
                let moved = influence.iter_mut().zip(expected.influence());
                moved.for_each(|(sum, x)| *sum += x);
                Scores::ratio(expected.estimate() + correction, influence)
            }
        }
    }

    /// Its numerators and denominators over these rows, for resampling.
    ///
    /// # Errors
    /// `Setting`, as `scores`.
    pub fn terms(self, columns: &Columns) -> Result<Terms, OpeError> {
        let rows = columns.rows();
        match self {
            Self::SelfNormalised => {
                let mut terms = Terms::new(1, rows);
                for (w, r) in columns.weight.iter().zip(&columns.reward) {
                    terms.push(|a, b| (a[0], b[0]) = (w * r, *w));
                }
                Ok(terms)
            }
            Self::SelfNormalisedDoublyRobust => {
                let mut terms = Terms::new(2, rows);
                for i in 0..rows {
                    let w = columns.weight[i];
                    terms.push(|a, b| {
                        a.copy_from_slice(&[columns.value[i], w * columns.residual[i]]);
                        b.copy_from_slice(&[1.0, w]);
                    });
                }
                Ok(terms)
            }
            _ => Ok(Terms::of_mean(self.scores(columns)?.values())),
        }
    }
}

/// Σ w x/Σ w, and its influence (w/w̄)(x − ratio) per row.
fn ratio(weight: &[f64], x: &[f64]) -> Result<(f64, Vec<f64>), OpeError> {
    let total = sum(weight);
    if total == 0.0 {
        return Err(OpeError::NoOverlap {
            what: "the self-normalised estimate",
        });
    }
    // Around a pivot, so that where all x are equal the ratio is exactly that.
    let pivot = x[0];
    let products: Vec<f64> = weight.iter().zip(x).map(|(w, x)| w * (x - pivot)).collect();
    let ratio = pivot + sum(&products) / total;
    let mean = total / weight.len() as f64;
    let influence = weight.iter().zip(x).map(|(w, x)| w / mean * (x - ratio));
    Ok((ratio, influence.collect()))
}
