//! Models of values that a caller adds, and the estimates that they make.
//!
//! A model is fitted once per fold of blocks, to the windows of the others, and says what each window's beginning is
//! worth. The estimate is cross-fitted: of each window it takes the value by the fit that has not seen it. Its error is
//! that of the jackknife over folds: of G estimates, each by the fit and of the windows without one fold, the
//! variance is (G − 1)/G Σ (θ_g − θ̄)², with G − 1 degrees of freedom. It takes in what the fit adds, for which no
//! model has to be differentiated or fitted anew, and is coarse: five numbers make it.
//!
//! Source: Shao and Tu 1995, "The Jackknife and Bootstrap", the grouped jackknife; cross-fitting as in
//! Chernozhukov et al. 2018, "Double/debiased machine learning".

use blkpilot_models::ope::quantile;
use serde::{Deserialize, Serialize};

use crate::estimate::Value;
use crate::fit::FOLDS;
use crate::sample::Sample;

/// One fit of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Number of the policy: 0 is evaluated, 1 is what it is compared with.
    pub policy: usize,
    /// The fold that the fit must not see.
    pub held_out: usize,
}

/// A model of the values of a policy.
pub trait ValueModel {
    /// Its name in reports.
    fn name(&self) -> &str;

    /// What each window of the sample is expected to bring from its beginning on, in the order of the steps that begin
    /// one: `Σ_t γ^t r_t` over the steps of a whole window, by a model that is fitted to the steps of other folds
    /// than the one held out.
    ///
    /// # Errors
    /// Why there are none, in words; the way out with them.
    fn values(&mut self, sample: &Sample, fit: Fit) -> Result<Vec<f64>, String>;
}

/// What an added model says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelEstimate {
    /// Name of the model.
    pub name: String,
    /// What the policy would have brought.
    pub value: Option<Value>,
    /// What it is compared with would have: another policy by the same model, or the behaviour as it was.
    pub baseline: Option<Value>,
    /// The difference, by the same folds.
    pub difference: Option<Value>,
    /// Why there is none.
    pub undefined: Option<String>,
    /// Windows that it was made of, which are all of the log or a random sample.
    pub windows: u64,
    /// What a reader should know of it: what its interval covers, and of how much of the log it was made.
    pub notes: Vec<String>,
}

/// A number from all folds, and from all but each.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LeftOut {
    pub(crate) whole: f64,
    pub(crate) without: Vec<f64>,
}

impl LeftOut {
    fn less(&self, other: &Self) -> Self {
        let pairs = self.without.iter().zip(&other.without);
        Self {
            whole: self.whole - other.whole,
            without: pairs.map(|(a, b)| a - b).collect(),
        }
    }

    /// With the error of the jackknife.
    fn value(&self, confidence: f64) -> Value {
        let groups = self.without.len() as f64;
        let mean = self.without.iter().sum::<f64>() / groups;
        let squares: f64 = self.without.iter().map(|x| (x - mean).powi(2)).sum();
        let std_err = ((groups - 1.0) / groups * squares).sqrt();
        let t = quantile::student(0.5 + confidence / 2.0, groups - 1.0);
        Value {
            estimate: self.whole,
            std_err,
            interval: [self.whole - t * std_err, self.whole + t * std_err],
        }
    }
}

/// What estimates of added models are made of.
pub(crate) struct Added {
    pub(crate) sample: Sample,
    pub(crate) policies: usize,
    pub(crate) behaviour: Option<LeftOut>,
    pub(crate) confidence: f64,
}

impl Added {
    /// The estimate by a model. `tick` is told of how many rows of how many it has been fitted to.
    pub(crate) fn estimate(
        &self,
        model: &mut dyn ValueModel,
        tick: &mut dyn FnMut(u64, u64),
    ) -> ModelEstimate {
        let name = model.name().to_owned();
        let mut estimate = ModelEstimate {
            value: None,
            baseline: None,
            difference: None,
            undefined: None,
            windows: self.sample.windows() as u64,
            notes: self.notes(&name),
            name,
        };
        match self.by(model, tick) {
            Ok((own, other)) => {
                estimate.value = Some(own.value(self.confidence));
                estimate.baseline = Some(other.value(self.confidence));
                estimate.difference = Some(own.less(&other).value(self.confidence));
            }
            Err(why) => estimate.undefined = Some(why),
        }
        estimate
    }

    /// The value of the policy, and of what it is compared with.
    fn by(
        &self,
        model: &mut dyn ValueModel,
        tick: &mut dyn FnMut(u64, u64),
    ) -> Result<(LeftOut, LeftOut), String> {
        let folds: Vec<usize> = self.sample.folds().collect();
        if (0..FOLDS).any(|fold| !folds.contains(&fold)) {
            return Err(format!(
                "its windows lie in fewer than {FOLDS} blocks, and each of {FOLDS} folds needs one: shorten --block, or log for longer"
            ));
        }
        let of_all = (self.sample.rows() * self.policies * FOLDS) as u64;
        let mut values = Vec::with_capacity(self.policies);
        for policy in 0..self.policies {
            let mut fits = Vec::with_capacity(FOLDS);
            for held_out in 0..FOLDS {
                tick(
                    (self.sample.rows() * (policy * FOLDS + held_out)) as u64,
                    of_all,
                );
                let of = model.values(&self.sample, Fit { policy, held_out })?;
                check(&of, &folds)?;
                fits.push(of);
            }
            values.push(self.left_out(&fits, &folds));
        }
        let second = values.get(1).cloned().or_else(|| self.behaviour.clone());
        let second = second.ok_or("the behaviour has no value without each of its folds")?;
        Ok((values.remove(0), second))
    }

    /// Means per step over windows: of all by the fits that have not seen them, and of those of other folds by
    /// each fit.
    fn left_out(&self, fits: &[Vec<f64>], folds: &[usize]) -> LeftOut {
        let gamma = self.sample.gamma();
        let discounts = std::iter::successors(Some(1.0), |discount| Some(discount * gamma));
        let whole: f64 = discounts.take(self.sample.horizon()).sum();
        let crossed = folds.iter().enumerate().map(|(i, fold)| fits[*fold][i]);
        let without = |(held_out, fit): (usize, &Vec<f64>)| {
            let others = fit.iter().zip(folds);
            let others = others.filter(|(_, fold)| **fold != held_out);
            mean(others.map(|(value, _)| *value)) / whole
        };
        LeftOut {
            whole: mean(crossed) / whole,
            without: fits.iter().enumerate().map(without).collect(),
        }
    }

    fn notes(&self, name: &str) -> Vec<String> {
        let (held, begun) = (self.sample.windows() as u64, self.sample.begun());
        let mut notes = vec![format!(
            "{name}'s intervals are those of the jackknife over {FOLDS} folds of blocks, with {} degrees of freedom: they cover what the fit and the states add to its error, not what its form gets wrong; no verdict looks at it",
            FOLDS - 1
        )];
        if held < begun {
            notes.push(format!(
                "{name} is made of a random sample of {held} of {begun} windows: at most {} rows are held in memory",
                self.sample.most_rows()
            ));
        }
        notes
    }
}

fn check(values: &[f64], folds: &[usize]) -> Result<(), String> {
    if values.len() != folds.len() {
        return Err(format!(
            "it gives {} values for {} windows",
            values.len(),
            folds.len()
        ));
    }
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(format!("it gives the value {value}, which is no number")),
        None => Ok(()),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for value in values {
        sum += value;
        n += 1.0;
    }
    sum / n
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The jackknife of a mean over groups of one is the error of the mean: of 1, 2, 3, 4, 5 it is √(2.5/5).
    #[test]
    fn the_error_of_a_mean_is_that_of_the_mean() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0];
        let left_out = LeftOut {
            whole: 3.0,
            without: values.iter().map(|x| (15.0 - x) / 4.0).collect(),
        };
        let value = left_out.value(0.95);
        assert!((value.std_err - 0.5_f64.sqrt()).abs() < 1e-12, "{value:?}");
        // t = 2.776 on 4 degrees.
        assert!((value.interval[1] - 3.0 - 2.776 * value.std_err).abs() < 1e-3);
        let other = left_out.less(&left_out).value(0.95);
        assert_eq!((other.estimate, other.std_err), (0.0, 0.0));
    }
}
