//! The choice of how much to shrink.

use super::{Columns, Estimator, Shrinkage};
use crate::ope::error::OpeError;
use crate::ope::moments::Moments;

/// How the bias of a shrunk estimate is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bias {
    /// As it appears in the log: |mean (w − ŵ)(r − q̂)|.
    PlugIn,
    /// That and what it may be more, with probability 1 − δ: the value is δ, in (0, 1).
    UpperBound(f64),
}

/// What is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuned {
    /// Inverse weights, clipped at λ.
    ClippedInverseWeight,
    /// Doubly robust, with optimistic shrinkage λ.
    OptimisticDoublyRobust,
}

impl Tuned {
    fn shrinkage(self, lambda: f64) -> Shrinkage {
        match self {
            Self::ClippedInverseWeight => Shrinkage::Clip(lambda),
            Self::OptimisticDoublyRobust => Shrinkage::Optimistic(lambda),
        }
    }

    fn estimator(self, lambda: f64) -> Estimator {
        let shrinkage = self.shrinkage(lambda);
        match self {
            Self::ClippedInverseWeight => Estimator::InverseWeight(shrinkage),
            Self::OptimisticDoublyRobust => Estimator::DoublyRobust(shrinkage),
        }
    }
}

/// A grid with the error expected at each point.
#[derive(Debug, Clone, PartialEq)]
pub struct LambdaChoice {
    /// λ with its estimated mean squared error, in squared reward units.
    pub grid: Vec<(f64, f64)>,
    /// The λ of least error; the first of equal ones.
    pub best: f64,
}

/// Estimates the mean squared error of each λ as variance plus squared bias, and takes the least.
///
/// Source: Su et al. 2020, "Doubly robust off-policy evaluation with shrinkage", on model selection, in the form of
/// obp 0.5.7 (`estimate_bias_in_ope`, `estimate_high_probability_upper_bound_bias`).
///
/// # Errors
/// `Empty` without a grid or rows; `Setting` for a λ or δ out of range.
pub fn choose_lambda(
    columns: &Columns,
    tuned: Tuned,
    grid: &[f64],
    bias: Bias,
) -> Result<LambdaChoice, OpeError> {
    if let Bias::UpperBound(delta) = bias {
        crate::ope::interval::check_alpha(delta)?;
    }
    let errors = grid.iter().map(|&lambda| {
        let scores = tuned.estimator(lambda).scores(columns)?;
        let moments = Moments::of(scores.values());
        let n = moments.n() as f64;
        let off = bias_of(columns, tuned, lambda, bias);
        Ok((lambda, moments.population_variance() / n + off * off))
    });
    let grid = errors.collect::<Result<Vec<_>, OpeError>>()?;
    let (best, _) = grid
        .iter()
        .copied()
        .reduce(|least, point| if point.1 < least.1 { point } else { least })
        .ok_or(OpeError::Empty {
            what: "the grid of lambda",
        })?;
    Ok(LambdaChoice { grid, best })
}

fn bias_of(columns: &Columns, tuned: Tuned, lambda: f64, bias: Bias) -> f64 {
    let shrinkage = tuned.shrinkage(lambda);
    let unexplained = match tuned {
        Tuned::ClippedInverseWeight => &columns.reward,
        Tuned::OptimisticDoublyRobust => &columns.residual,
    };
    let lost = columns.weight.iter().zip(unexplained);
    let lost: Vec<f64> = lost.map(|(w, x)| (w - shrinkage.of(*w)) * x).collect();
    let seen = Moments::of(&lost).mean().abs();
    let Bias::UpperBound(delta) = bias else {
        return seen;
    };
    let n = columns.rows() as f64;
    let moments = Moments::of(&columns.weight);
    let mean_square = moments.population_variance() + moments.mean() * moments.mean();
    let largest = columns.weight.iter().copied().fold(0.0, f64::max);
    let log = libm::log(2.0 / delta);
    seen + (2.0 * mean_square * log / n).sqrt() + 2.0 * largest * log / (3.0 * n)
}
