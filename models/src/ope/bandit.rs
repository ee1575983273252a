//! Evaluation of one decision at a time: a context, an action of one or more heads, a reward.
//!
//! [`BanditLog`] borrows the columns of a log; [`BanditLog::columns`] checks every row and reduces it to
//! the four numbers that all estimators are made of ([`Columns`]). [`Estimator`] is the choice of how
//! they are put together, as [`Scores`](super::Scores) per row, or by [`Stream`] for logs that do not fit
//! into memory.

mod estimator;
mod lambda;
mod mrdr;
mod stream;
mod support;

pub use estimator::{Estimator, Shrinkage};
pub use lambda::{Bias, LambdaChoice, Tuned, choose_lambda};
pub use mrdr::{exact_table, weighted_table};
pub use stream::{Stream, StreamSummary};
pub use support::SupportDiagnostics;

use std::ops::Range;

use super::SUM_TOLERANCE;
use super::error::{
    OpeError, Place, check_distribution, check_finite, check_length, check_propensity,
};
use super::matrix::Matrix;

/// One head of the action: what was logged of it, and what the evaluation policy would do.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Its name in messages; empty where there is but one.
    pub name: &'a str,
    /// Logged action, one per row, below the number of levels.
    pub action: &'a [u32],
    /// Probability under the mask with which it was drawn, one per row, in (0, 1].
    pub pscore: &'a [f64],
    /// Probabilities of the evaluation policy `[rows × levels]`; rows sum to 1 within 1e-6.
    pub evaluation: Matrix<'a, f64>,
    /// Probabilities of the behaviour policy `[rows × levels]`, where they were logged.
    pub behaviour: Option<Matrix<'a, f64>>,
    /// What was allowed `[rows × levels]`; all where there is none.
    pub mask: Option<Matrix<'a, bool>>,
    /// What a model expects of each level `[rows × levels]`, in reward units; heads add up. 0 where there
    /// is none.
    pub q_hat: Option<Matrix<'a, f64>>,
}

/// Columns of a log of single decisions.
#[derive(Debug, Clone)]
pub struct BanditLog<'a> {
    /// Reward, one per row.
    pub reward: &'a [f64],
    /// The heads, at least one. Policies choose them independently given the context, so that a joint
    /// probability is a product.
    pub heads: Vec<Head<'a>>,
}

/// What estimators are made of, per row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Columns {
    /// Importance weight: the product over heads of evaluation probability over propensity.
    pub weight: Vec<f64>,
    /// Reward.
    pub reward: Vec<f64>,
    /// What the model expects of the evaluation policy: `Σ_a pie(a) q̂(a)`.
    pub value: Vec<f64>,
    /// Reward less what the model expects of the logged action.
    pub residual: Vec<f64>,
    /// The weight of each head.
    pub head_weight: Vec<Vec<f64>>,
}

impl Head<'_> {
    fn field(&self, column: &str) -> String {
        match self.name {
            "" => column.to_owned(),
            name => format!("{column}_{name}"),
        }
    }

    fn levels(&self) -> usize {
        self.evaluation.columns()
    }

    fn check_shape(&self, rows: usize) -> Result<(), OpeError> {
        let length = |column, found| check_length(&self.field(column), found, rows);
        length("action", self.action.len())?;
        length("pscore", self.pscore.len())?;
        length("eval_dist", self.evaluation.rows())?;
        let optional = [
            (
                "behaviour_dist",
                self.behaviour.map(|m| (m.rows(), m.columns())),
            ),
            ("mask", self.mask.map(|m| (m.rows(), m.columns()))),
            ("q_hat", self.q_hat.map(|m| (m.rows(), m.columns()))),
        ];
        for (column, shape) in optional {
            let Some((found, levels)) = shape else {
                continue;
            };
            length(column, found)?;
            if levels != self.levels() {
                let rule = "levels per row must be as many as the evaluation policy has";
                let field = self.field(column);
                return Err(OpeError::value(Place::Row(0), field, levels, rule));
            }
        }
        Ok(())
    }

    /// Checks row `i`.
    fn check_row(&self, i: usize) -> Result<(), OpeError> {
        let place = Place::Row(i);
        let action = self.action[i] as usize;
        let field = |column| self.field(column);
        if action >= self.levels() {
            let rule = "must be below the number of actions";
            return Err(OpeError::value(place, field("action"), action, rule));
        }
        let pscore = self.pscore[i];
        if !(pscore > 0.0 && pscore <= 1.0) {
            check_propensity(place, &field("pscore"), pscore)?;
        }
        let mask = self.mask.map(|mask| mask.row(i));
        if mask.is_some_and(|mask| !mask[action]) {
            let rule = "must be allowed by the mask of its row: the log is inconsistent";
            return Err(OpeError::value(place, field("action"), action, rule));
        }
        if !is_distribution(self.evaluation.row(i), mask) {
            let name = field("eval_dist");
            check_distribution(place, &name, self.evaluation.row(i), mask)?;
        }
        if let Some(behaviour) = self.behaviour {
            let behaviour = behaviour.row(i);
            if !is_distribution(behaviour, mask) {
                check_distribution(place, &field("behaviour_dist"), behaviour, mask)?;
            }
            if (behaviour[action] - pscore).abs() > SUM_TOLERANCE {
                let rule = "must be what the behaviour policy gives to the logged action";
                return Err(OpeError::value(place, field("pscore"), pscore, rule));
            }
        }
        Ok(())
    }
}

/// Independent sums, so that the additions of a row need not wait for each other.
const LANES: usize = 4;

/// The same as `check_distribution`, without a name to give: rows that pass cost no allocation.
#[inline]
fn is_distribution(probabilities: &[f64], mask: Option<&[bool]>) -> bool {
    check_distribution(Place::Row(0), "", probabilities, mask).is_ok()
}

/// `Σ a b`, in independent sums.
#[inline]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (left, right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = left.remainder().iter().zip(right.remainder());
    for (sum, (a, b)) in sums.iter_mut().zip(rest) {
        *sum = a * b;
    }
    for (a, b) in left.zip(right) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    (sums[0] + sums[2]) + (sums[1] + sums[3])
}

impl BanditLog<'_> {
    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.reward.len()
    }

    /// Checks every row and reduces it to what estimators are made of.
    ///
    /// # Errors
    /// The first thing that is wrong, by row and field: `Empty`, `Length`, `Value` (a propensity outside
    /// (0, 1] or not that of the behaviour policy, an action out of range or masked, a reward or q̂ that
    /// is not finite, mass on a masked action) or `Sum`.
    pub fn columns(&self) -> Result<Columns, OpeError> {
        let mut columns = Columns::default();
        self.columns_of(0..self.rows(), &mut columns)?;
        Ok(columns)
    }

    /// As `columns`, of some rows, into `columns`, whose memory is used again: for one chunk after another.
    ///
    /// # Errors
    /// As `columns`; `Value` where a row is not below their number.
    pub fn columns_of(&self, rows: Range<usize>, columns: &mut Columns) -> Result<(), OpeError> {
        self.check_shape()?;
        let reward = self.reward.get(rows.clone()).ok_or_else(|| {
            let rule = "must be at most the number of rows, and not before the first of them";
            OpeError::value(Place::Row(rows.start), "end of the rows", rows.end, rule)
        })?;
        // A sum of zeros is 0, and one with 0 times what is not finite is not.
        if reward.iter().map(|x| x * 0.0).sum::<f64>() != 0.0 {
            for (i, reward) in rows.clone().zip(reward) {
                check_finite(Place::Row(i), "reward", *reward)?;
            }
        }
        refill(&mut columns.weight, rows.len(), 1.0);
        refill(&mut columns.value, rows.len(), 0.0);
        columns.reward.clear();
        columns.reward.extend_from_slice(reward);
        columns.residual.clear();
        columns.residual.extend_from_slice(reward);
        columns.head_weight.resize(self.heads.len(), vec![]);
        for (number, head) in self.heads.iter().enumerate() {
            let mut weights = std::mem::take(&mut columns.head_weight[number]);
            refill(&mut weights, rows.len(), 0.0);
            let all = columns.weight.iter_mut().zip(&mut weights);
            for (i, (product, weight)) in rows.clone().zip(all) {
                head.check_row(i)?;
                *weight = head.evaluation.row(i)[head.action[i] as usize] / head.pscore[i];
                *product *= *weight;
                if !product.is_finite() {
                    check_finite(Place::Row(i), "importance weight", *product)?;
                }
            }
            columns.head_weight[number] = weights;
            if let Some(q_hat) = head.q_hat {
                columns.add_model(head, q_hat, rows.start)?;
            }
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), OpeError> {
        if self.heads.is_empty() || self.rows() == 0 && self.heads[0].action.is_empty() {
            return Err(OpeError::Empty {
                what: "the log of decisions",
            });
        }
        // The rows are those of the first column, so that a short reward is named as such.
        let rows = self.heads[0].action.len();
        check_length("reward", self.reward.len(), rows)?;
        self.heads
            .iter()
            .try_for_each(|head| head.check_shape(rows))
    }
}

fn refill(column: &mut Vec<f64>, rows: usize, value: f64) {
    column.clear();
    column.resize(rows, value);
}

impl Columns {
    /// `first`: the row of the log that is the first here.
    fn add_model(
        &mut self,
        head: &Head<'_>,
        q_hat: Matrix<'_, f64>,
        first: usize,
    ) -> Result<(), OpeError> {
        let rows = self.value.iter_mut().zip(&mut self.residual);
        for (i, (value, residual)) in (first..).zip(rows) {
            let q = q_hat.row(i);
            let expected = dot(q, head.evaluation.row(i));
            if !expected.is_finite() {
                let sick = q
                    .iter()
                    .copied()
                    .find(|q| !q.is_finite())
                    .unwrap_or(expected);
                check_finite(Place::Row(i), &head.field("q_hat"), sick)?;
            }
            *value += expected;
            *residual -= q[head.action[i] as usize];
        }
        Ok(())
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.weight.len()
    }

    /// The same rows with another model: `q_hat` `[rows × levels]` of the one head of the log.
    ///
    /// # Errors
    /// `Length` where rows differ; `Value` where a q̂ is not finite.
    pub fn with_model(&self, head: &Head<'_>, q_hat: Matrix<'_, f64>) -> Result<Self, OpeError> {
        check_length("q_hat", q_hat.rows(), self.rows())?;
        let mut columns = Self {
            value: vec![0.0; self.rows()],
            residual: self.reward.clone(),
            ..self.clone()
        };
        columns.add_model(head, q_hat, 0)?;
        Ok(columns)
    }

    /// The same rows with the pseudo-inverse weight `1 + Σ_h (w_h − 1)` for the product of heads: unbiased
    /// where the reward is additive over heads and policies are products, and of far less variance. It can
    /// be negative.
    ///
    /// Source: Swaminathan et al. 2017, "Off-policy evaluation for slate recommendation", the pseudo-inverse
    /// estimator, in the closed form for product policies of Vlassis et al. 2021.
    #[must_use]
    pub fn pseudo_inverse(&self) -> Self {
        let mut columns = self.clone();
        for (i, weight) in columns.weight.iter_mut().enumerate() {
            let excess: f64 = self.head_weight.iter().map(|head| head[i] - 1.0).sum();
            *weight = 1.0 + excess;
        }
        columns
    }
}

#[cfg(test)]
mod tests;
