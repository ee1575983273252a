//! MAGIC: a blend of the model and of weighted doubly robust estimates that trust it from later steps on.

use nalgebra::DMatrix;

use super::{StepWeights, Steps};
use crate::ope::error::OpeError;
use crate::ope::{quantile, simplex};

/// The level of the interval around the last partial estimate is 90 %, as both sides leave 5 %.
const PROBABILITY: f64 = 0.95;
/// Partial estimates stand this many steps apart, or further where there would be more than `MOST` of them.
const APART: usize = 5;
const MOST: usize = 100;

/// The estimate and what it was blended of.
///
/// Source: Thomas and Brunskill 2016, "Data-efficient off-policy policy evaluation for reinforcement
/// learning", MAGIC, with the interval of the last partial estimate by its normal approximation.
#[derive(Debug, Clone, PartialEq)]
pub struct Magic {
    /// The estimate, in reward units.
    pub estimate: f64,
    /// Steps up to which weights count: −1 is the model alone, the last step no model after it.
    pub last_step: Vec<i64>,
    /// The partial estimate of each.
    pub partial: Vec<f64>,
    /// How far each is from the interval around the last, with its sign.
    pub bias: Vec<f64>,
    /// The share that each gets.
    pub share: Vec<f64>,
    /// The sampling variance of each.
    pub variance: Vec<f64>,
}

impl Magic {
    /// The last steps that are blended by default: −1, 0, 4, 9, … and the last of the horizon.
    #[must_use]
    pub fn default_steps(horizon: usize) -> Vec<i64> {
        let apart = APART.max(horizon.div_ceil(MOST));
        let last = horizon as i64 - 1;
        let between = (1..)
            .map(|k| (k * apart) as i64 - 1)
            .take_while(|step| *step < last);
        let mut steps = vec![-1, 0];
        steps.extend(between.filter(|step| *step > 0));
        if last > 0 {
            steps.push(last);
        }
        steps
    }

    /// Blends the partial estimates that end with these steps: ascending, from −1 on, the last one that of
    /// the horizon.
    ///
    /// # Errors
    /// `TooFew` below two trajectories, `NoOverlap` where the weights of a step are all 0, `Setting` for
    /// steps out of order.
    pub fn new(steps: &Steps, weights: &StepWeights, last_step: &[i64]) -> Result<Self, OpeError> {
        check_steps(last_step, steps.horizon)?;
        let n = steps.trajectories();
        if n < 2 {
            return Err(OpeError::TooFew {
                what: "magic",
                needed: 2,
                found: n,
            });
        }
        if weights.runs_out() {
            return Err(OpeError::NoOverlap { what: "magic" });
        }
        let parts = partial_scores(steps, weights, last_step);
        let partial: Vec<f64> = parts.row_sum().iter().copied().collect();
        let omega = covariance(&parts);
        let bias = biases(&partial, omega[(partial.len() - 1, partial.len() - 1)]);
        let bias_matrix = DMatrix::from_fn(bias.len(), bias.len(), |j, k| bias[j] * bias[k]);
        let share = simplex::minimise(&(&omega + bias_matrix));
        Ok(Self {
            estimate: share.iter().zip(&partial).map(|(x, g)| x * g).sum(),
            last_step: last_step.to_vec(),
            variance: omega.diagonal().iter().copied().collect(),
            partial,
            bias,
            share,
        })
    }
}

fn check_steps(last_step: &[i64], horizon: usize) -> Result<(), OpeError> {
    let ascending = last_step.windows(2).all(|pair| pair[0] < pair[1]);
    let whole = last_step.first().is_some_and(|first| *first >= -1)
        && last_step.last() == Some(&(horizon as i64 - 1));
    if ascending && whole {
        return Ok(());
    }
    Err(OpeError::Setting {
        what: "the last of magic's steps",
        value: last_step.last().map_or(-1.0, |last| *last as f64),
        rule: "must be the last of the horizon, after ascending ones from -1 on",
    })
}

/// What each trajectory adds to each partial estimate `[trajectories × steps]`:
/// `Σ_{t ≤ j} γ^t [w_t (r − q) + w_{t−1} V] + γ^{j+1} w_j V_{j+1}`, w over its sum.
fn partial_scores(steps: &Steps, weights: &StepWeights, last_step: &[i64]) -> DMatrix<f64> {
    let n = steps.trajectories();
    let discounts = steps.discounts();
    let mut parts = DMatrix::zeros(n, last_step.len());
    for i in 0..n {
        let (mut sum, mut column) = (0.0, 0);
        for step in steps.walk(i) {
            let before = match step.t {
                0 => 1.0 / n as f64,
                t => weights.share(step.before, t - 1),
            };
            let expected = discounts[step.t] * before * steps.v[step.row];
            if last_step.get(column) == Some(&(step.t as i64 - 1)) {
                parts[(i, column)] = sum + expected;
                column += 1;
            }
            let surprise = steps.reward[step.row] - steps.q[step.row];
            sum += expected + discounts[step.t] * weights.share(step.now, step.t) * surprise;
        }
        // After the end there is no value to come, and nothing is added.
        for column in column..last_step.len() {
            parts[(i, column)] = sum;
        }
    }
    parts
}

/// n/(n − 1) Σ_i (g_ij − mean_j)(g_ik − mean_k).
fn covariance(parts: &DMatrix<f64>) -> DMatrix<f64> {
    let n = parts.nrows() as f64;
    let mean = parts.row_mean();
    let mut centred = parts.clone();
    for mut row in centred.row_iter_mut() {
        row -= &mean;
    }
    centred.tr_mul(&centred) * (n / (n - 1.0))
}

fn biases(partial: &[f64], variance: f64) -> Vec<f64> {
    let last = partial[partial.len() - 1];
    let half_width = quantile::normal(PROBABILITY) * variance.sqrt();
    let outside = |g: &f64| g - g.clamp(last - half_width, last + half_width);
    partial.iter().map(outside).collect()
}
