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
use super::distribution;
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

    /// Checks these rows; the first that is wrong is told of.
    ///
    /// What nearly all rows are is found out in straight lines, column by column; only where that does not
    /// settle it is each row looked at.
    fn check_rows(&self, rows: Range<usize>) -> Result<(), OpeError> {
        let levels = self.levels();
        let actions = self.action[rows.clone()].iter();
        let propensities = self.pscore[rows.clone()].iter();
        let is_plain = self.mask.is_none() && self.behaviour.is_none();
        let is_valid = is_plain
            && actions.fold(true, |all, action| all & ((*action as usize) < levels))
            && propensities.fold(true, |all, p| all & (*p > 0.0) & (*p <= 1.0))
            && distribution::are_all(self.evaluation.rows_of(rows.clone()), levels);
        if is_valid {
            return Ok(());
        }
        rows.into_iter().try_for_each(|i| self.check_row(i))
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
        self.check_distribution(place, "eval_dist", self.evaluation.row(i), mask)?;
        if let Some(behaviour) = self.behaviour {
            let behaviour = behaviour.row(i);
            self.check_distribution(place, "behaviour_dist", behaviour, mask)?;
            if (behaviour[action] - pscore).abs() > SUM_TOLERANCE {
                let rule = "must be what the behaviour policy gives to the logged action";
                return Err(OpeError::value(place, field("pscore"), pscore, rule));
            }
        }
        Ok(())
    }

    /// Importance weights of rows that have been checked.
    fn weights(&self, rows: Range<usize>, out: &mut Vec<f64>) {
        let levels = self.levels();
        let distributions = self.evaluation.rows_of(rows.clone()).chunks_exact(levels);
        let logged = self.action[rows.clone()].iter().zip(&self.pscore[rows]);
        let weight =
            |(row, (action, pscore)): (&[f64], (&u32, &f64))| row[*action as usize] / pscore;
        out.clear();
        out.extend(distributions.zip(logged).map(weight));
    }

    /// Rows that pass cost no allocation.
    fn check_distribution(
        &self,
        place: Place,
        column: &str,
        probabilities: &[f64],
        mask: Option<&[bool]>,
    ) -> Result<(), OpeError> {
        if check_distribution(place, "", probabilities, mask).is_ok() {
            return Ok(());
        }
        check_distribution(place, &self.field(column), probabilities, mask)
    }
}

/// Independent sums, so that the additions of a row need not wait for each other.
const LANES: usize = 4;

/// `Σ a b`, in independent sums.
#[inline]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (left, left_rest) = a.as_chunks::<LANES>();
    let (right, right_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in left.iter().zip(right) {
        sums = std::array::from_fn(|lane| sums[lane] + a[lane] * b[lane]);
    }
    let rest = left_rest.iter().zip(right_rest).map(|(a, b)| a * b);
    (sums[0] + sums[2]) + (sums[1] + sums[3]) + rest.sum::<f64>()
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
        if !are_finite(reward) {
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
            head.check_rows(rows.clone())?;
            head.weights(rows.clone(), &mut weights);
            let products = columns.weight.iter_mut().zip(&weights);
            products.for_each(|(product, weight)| *product *= weight);
            columns.head_weight[number] = weights;
            if !are_finite(&columns.weight) {
                for (i, product) in rows.clone().zip(&columns.weight) {
                    check_finite(Place::Row(i), "importance weight", *product)?;
                }
            }
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

fn are_finite(values: &[f64]) -> bool {
    // 0 times what is not finite is not 0.
    values.iter().fold(true, |all, x| all & (x * 0.0 == 0.0))
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
