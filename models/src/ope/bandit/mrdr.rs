//! More robust doubly robust: models fitted for the variance of the estimate, not for the reward.
//!
//! Both give a table `[buckets × actions]` of q̂; the estimate is then [`Estimator::DoublyRobust`] on
//! [`Columns::with_model`]. The same rows fit and are evaluated: no cross-fitting.
//!
//! Source: Farajtabar, Chow and Ghavamzadeh 2018, "More Robust Doubly Robust Off-policy Evaluation".
//!
//! [`Estimator::DoublyRobust`]: super::Estimator::DoublyRobust
//! [`Columns::with_model`]: super::Columns::with_model

use super::Head;
use crate::ope::error::{OpeError, Place, check_length};
use crate::ope::least_squares::minimum_norm;

/// The fit of weighted least squares: mean reward per bucket and action, with weight
/// `pie(a)(1 − pscore)/pscore²`. 0 where nothing has weight.
///
/// `bucket`: one per row, below `buckets`. The rows must have passed [`BanditLog::columns`].
///
/// Source: the objective there with the diagonal of Ω only, as obp's `fitting_method="mrdr"`.
///
/// # Errors
/// `Length`, or `Value` for a bucket out of range.
///
/// [`BanditLog::columns`]: super::BanditLog::columns
pub fn weighted_table(
    head: &Head<'_>,
    reward: &[f64],
    bucket: &[usize],
    buckets: usize,
) -> Result<Vec<f64>, OpeError> {
    check_buckets(reward.len(), bucket, buckets)?;
    let levels = head.evaluation.columns();
    let mut sums = vec![[0.0; 2]; buckets * levels];
    for (i, (&bucket, r)) in bucket.iter().zip(reward).enumerate() {
        let (action, pscore) = (head.action[i] as usize, head.pscore[i]);
        let weight = head.evaluation.row(i)[action] * (1.0 - pscore) / (pscore * pscore);
        let [total, weighted] = &mut sums[bucket * levels + action];
        *total += weight;
        *weighted += weight * r;
    }
    let mean = |[total, weighted]: &[f64; 2]| if *total > 0.0 { weighted / total } else { 0.0 };
    Ok(sums.iter().map(mean).collect())
}

/// The fit that minimises the estimated variance itself: per bucket
/// `Σ_i w_i q_i' Ω_i q_i` with `q_i = D_i q − 1{a_i} r_i`, `D_i = diag(pie_i)` and
/// `Ω_i = diag(1/pib_i) − 11'` on the actions that the behaviour policy plays; of equal minima the one of
/// least norm.
///
/// Source: the objective there for contextual bandits.
///
/// # Errors
/// As `weighted_table`; `Value` where the log has no behaviour policy.
pub fn exact_table(
    head: &Head<'_>,
    reward: &[f64],
    bucket: &[usize],
    buckets: usize,
) -> Result<Vec<f64>, OpeError> {
    check_buckets(reward.len(), bucket, buckets)?;
    let Some(behaviour) = head.behaviour else {
        let rule = "must be logged for every action to fit mrdr_exact";
        return Err(OpeError::value(
            Place::Row(0),
            head.field("behaviour_dist"),
            "missing",
            rule,
        ));
    };
    let levels = head.evaluation.columns();
    let mut normal = vec![NormalEquations::new(levels); buckets];
    for (i, (&bucket, r)) in bucket.iter().zip(reward).enumerate() {
        let (action, pie, pib) = (
            head.action[i] as usize,
            head.evaluation.row(i),
            behaviour.row(i),
        );
        let weight = pie[action] / head.pscore[i];
        normal[bucket].add(weight, pie, pib, action, *r);
    }
    Ok(normal.iter().flat_map(NormalEquations::solve).collect())
}

fn check_buckets(rows: usize, bucket: &[usize], buckets: usize) -> Result<(), OpeError> {
    check_length("bucket", bucket.len(), rows)?;
    match bucket.iter().position(|b| *b >= buckets) {
        None => Ok(()),
        Some(row) => {
            let rule = "must be below the number of buckets";
            Err(OpeError::value(
                Place::Row(row),
                "bucket",
                bucket[row],
                rule,
            ))
        }
    }
}

/// `Σ c D Ω D · q = Σ c D Ω 1{a} r`.
#[derive(Clone)]
struct NormalEquations {
    matrix: Vec<f64>,
    right: Vec<f64>,
}

impl NormalEquations {
    fn new(levels: usize) -> Self {
        Self {
            matrix: vec![0.0; levels * levels],
            right: vec![0.0; levels],
        }
    }

    fn add(&mut self, weight: f64, pie: &[f64], pib: &[f64], action: usize, reward: f64) {
        let levels = pie.len();
        let played = |k: usize| pib[k] > 0.0;
        for j in (0..levels).filter(|j| played(*j)) {
            for k in (0..levels).filter(|k| played(*k)) {
                let diagonal = if j == k { 1.0 / pib[j] } else { 0.0 };
                self.matrix[j * levels + k] += weight * pie[j] * (diagonal - 1.0) * pie[k];
            }
            let diagonal = if j == action { 1.0 / pib[j] } else { 0.0 };
            self.right[j] += weight * pie[j] * (diagonal - 1.0) * reward;
        }
    }

    fn solve(&self) -> Vec<f64> {
        minimum_norm(&self.matrix, &self.right)
    }
}
