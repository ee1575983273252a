//! Estimates with intervals, from sums per block.
//!
//! All are means over the steps of a window, `Σ_t γ^t m_t / Σ_t γ^t`, so that they are on the scale of one
//! reward; the means m_t are over the windows that reach step t.

use blkpilot_env::Rng;
use blkpilot_models::ope::moments::quantile_of_sorted;
use blkpilot_models::ope::quantile;
use blkpilot_models::ope::scaled::{Scaled, ScaledSum};
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use crate::fit::FOLDS;
use crate::options::Options;
use crate::value_model::LeftOut;
use crate::windows::{BlockSums, PolicySums, Ratio, StepSums};

/// An estimator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Self-normalised importance sampling per decision: `m_t = Σ w_t r_t/Σ w_t`.
    ///
    /// Source: Precup, Sutton and Singh 2000, the weighted per-decision estimator.
    Snpdis,
    /// Weighted doubly robust: what SNPDIS gives, less the same of the model at what was drawn, plus the model's
    /// value before the draw, each with normalised weights; row by row of a joint decision.
    ///
    /// Source: Thomas and Brunskill 2016, "Data-efficient off-policy policy evaluation", WDR.
    Wdr,
    /// Fitted Q evaluation, linear and cross-fitted: the model's value of the states in which windows begin.
    ///
    /// Source: Le, Voloshin and Yue 2019, "Batch policy learning under constraints".
    Fqe,
}

impl Estimator {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Snpdis, Self::Wdr, Self::Fqe];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snpdis => "SNPDIS",
            Self::Wdr => "WDR",
            Self::Fqe => "FQE",
        }
    }
}

/// A number with its sampling error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The estimate, in reward units.
    pub estimate: f64,
    /// Standard deviation over replicates.
    pub std_err: f64,
    /// Percentile interval, expanded for few blocks.
    pub interval: [f64; 2],
}

/// What one estimator says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Which.
    pub estimator: Estimator,
    /// What the policy would have brought.
    pub value: Option<Value>,
    /// What it is compared with would have: another policy by the same estimator, or the behaviour as it was.
    pub baseline: Option<Value>,
    /// The difference, in the same replicates.
    pub difference: Option<Value>,
    /// Why there is none.
    pub undefined: Option<String>,
}

/// Numerators and denominators of one policy in one block, relative to all blocks' denominators.
struct Flat {
    /// Per step: numerator and denominator of reward, q and v.
    steps: Vec<[f64; 6]>,
    first: f64,
    influence: f64,
}

struct FlatBlock {
    fold: usize,
    behaviour: Vec<[f64; 2]>,
    begun: f64,
    policies: Vec<Flat>,
}

/// Everything that is resampled.
pub(crate) struct Resampling {
    blocks: Vec<FlatBlock>,
    discounts: Vec<f64>,
    /// Per policy: why its model gives nothing.
    no_model: Vec<Option<String>>,
    options: Options,
}

/// One value per estimator and policy, then the behaviour's; `None` where weights are all 0.
#[derive(Debug, Clone, Default, PartialEq)]
struct Drawn {
    policies: Vec<[Option<f64>; 3]>,
    behaviour: Option<f64>,
}

fn column(sums: &StepSums, which: usize) -> &Ratio {
    [&sums.reward, &sums.q, &sums.v][which]
}

impl Resampling {
    pub(crate) fn new(
        sums: &[BlockSums],
        no_model: Vec<Option<String>>,
        options: &Options,
    ) -> Self {
        let policies = no_model.len();
        // Of each step the sum of weights of all blocks, by which all is divided: within f64 then.
        let totals: Vec<Vec<[Scaled; 3]>> = (0..policies)
            .map(|policy| totals(sums, policy, options.horizon))
            .collect();
        let begun = sums.iter().enumerate();
        let begun = begun.filter(|(_, block)| block.begun > 0.0);
        let blocks = begun.map(|(number, block)| FlatBlock {
            fold: number % FOLDS,
            behaviour: block.behaviour.clone(),
            begun: block.begun,
            policies: block
                .policies
                .iter()
                .zip(&totals)
                .map(|(sums, totals)| flat(sums, totals))
                .collect(),
        });
        Self {
            blocks: blocks.collect(),
            discounts: options.discounts(),
            no_model,
            options: options.clone(),
        }
    }

    /// Blocks with windows.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The behaviour's value, from all blocks and from all but those of each fold.
    pub(crate) fn behaviour_by_fold(&self) -> Option<LeftOut> {
        let without = |fold: Option<usize>| {
            let blocks = self.blocks.iter();
            let times = blocks.map(|block| f64::from(u8::from(Some(block.fold) != fold)));
            self.draw(&times.collect::<Vec<_>>()).behaviour
        };
        let folds = (0..FOLDS).map(|fold| without(Some(fold)));
        Some(LeftOut {
            whole: without(None)?,
            without: folds.collect::<Option<_>>()?,
        })
    }

    /// Estimates from the blocks, each as often as `times` says.
    fn draw(&self, times: &[f64]) -> Drawn {
        let horizon = self.discounts.len();
        let policies = self.no_model.len();
        let mut behaviour = vec![[0.0; 2]; horizon];
        let mut steps = vec![vec![[0.0; 6]; horizon]; policies];
        let mut first = vec![[0.0; 3]; policies];
        for (block, &times) in self.blocks.iter().zip(times) {
            for (number, policy) in block.policies.iter().enumerate() {
                first[number][2] += (times - 1.0) * policy.influence;
            }
            if times == 0.0 {
                continue;
            }
            add_all(&mut behaviour, &block.behaviour, times);
            for (number, policy) in block.policies.iter().enumerate() {
                add_all(&mut steps[number], &policy.steps, times);
                first[number][0] += times * policy.first;
                first[number][1] += times * block.begun;
            }
        }
        let whole: f64 = self.discounts.iter().sum();
        let mean = |of: &dyn Fn(usize) -> Option<f64>| -> Option<f64> {
            let terms = self.discounts.iter().enumerate();
            let sum: Option<f64> = terms.map(|(t, discount)| Some(discount * of(t)?)).sum();
            sum.map(|sum| sum / whole)
        };
        let ratio = |a: f64, b: f64| (b > 0.0).then(|| a / b);
        let of_policy = |(number, steps): (usize, &Vec<[f64; 6]>)| {
            let reward = |t: usize| ratio(steps[t][0], steps[t][1]);
            let surprise = |t: usize| {
                let [.., q, q_weight, v, v_weight] = steps[t];
                Some(reward(t)? - ratio(q, q_weight)? + ratio(v, v_weight)?)
            };
            let has_model = self.no_model[number].is_none();
            let [first, begun, influence] = first[number];
            let fqe = ratio(first, begun).map(|value| (value + influence) / whole);
            [
                mean(&reward),
                has_model.then(|| mean(&surprise)).flatten(),
                has_model.then_some(fqe).flatten(),
            ]
        };
        Drawn {
            policies: steps.iter().enumerate().map(of_policy).collect(),
            behaviour: mean(&|t| ratio(behaviour[t][0], behaviour[t][1])),
        }
    }

    /// Estimates with intervals: of the first policy, against the second or else the behaviour. And the
    /// behaviour's value.
    pub(crate) fn estimates(&self) -> (Vec<Estimate>, Option<Value>) {
        let count = self.blocks.len();
        let whole = self.draw(&vec![1.0; count]);
        let mut rng = Rng::seed_from_u64(self.options.seed);
        let mut times = vec![0.0; count];
        let replicates: Vec<Drawn> = (0..self.options.replicates)
            .map(|_| {
                times.fill(0.0);
                for _ in 0..count {
                    times[rng.random_range(0..count)] += 1.0;
                }
                self.draw(&times)
            })
            .collect();
        let estimates = Estimator::ALL.into_iter().enumerate();
        let estimates = estimates
            .map(|(number, estimator)| self.estimate(estimator, number, &whole, &replicates))
            .collect();
        let behaviour = self.value(|drawn| drawn.behaviour, &whole, &replicates);
        (estimates, behaviour.ok())
    }

    fn estimate(
        &self,
        estimator: Estimator,
        number: usize,
        whole: &Drawn,
        replicates: &[Drawn],
    ) -> Estimate {
        let is_paired = self.no_model.len() > 1;
        let own = move |drawn: &Drawn| drawn.policies[0][number];
        let other = move |drawn: &Drawn| match is_paired {
            true => drawn.policies[1][number],
            false => drawn.behaviour,
        };
        let difference = move |drawn: &Drawn| Some(own(drawn)? - other(drawn)?);
        let value = self.value(own, whole, replicates);
        let baseline = self.value(other, whole, replicates);
        let difference = self.value(difference, whole, replicates);
        let mut why = value.as_ref().err().or(baseline.as_ref().err()).cloned();
        if estimator != Estimator::Snpdis {
            let no_model = self.no_model.iter().flatten().next();
            why = no_model.cloned().or(why);
        }
        Estimate {
            estimator,
            value: value.ok(),
            baseline: baseline.ok(),
            difference: difference.ok(),
            undefined: why,
        }
    }

    fn value(
        &self,
        of: impl Fn(&Drawn) -> Option<f64>,
        whole: &Drawn,
        replicates: &[Drawn],
    ) -> Result<Value, String> {
        let finite = |value: f64| value.is_finite().then_some(value);
        let estimate = of(whole).and_then(finite).ok_or_else(|| {
            "no overlap: all weights are 0 at some step; log with more exploration, or shorten the horizon".to_owned()
        })?;
        let mut values: Vec<f64> = replicates
            .iter()
            .filter_map(&of)
            .filter_map(finite)
            .collect();
        if values.len() < replicates.len() {
            let missing = replicates.len() - values.len();
            return Err(format!(
                "no overlap in {missing} of {} replicates: weights lie in too few blocks; log more, or with more exploration",
                replicates.len()
            ));
        }
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let tail = tail(1.0 - self.options.confidence, self.blocks.len());
        Ok(Value {
            estimate,
            std_err: (squares / (n - 1.0)).sqrt(),
            interval: [tail, 1.0 - tail].map(|p| quantile_of_sorted(&values, p)),
        })
    }
}

/// Probability of either tail of a percentile interval over `units` units with error `alpha`, so that it is as
/// wide as one by Student's distribution with an unbiased variance.
///
/// Source: Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3, expanded percentiles.
fn tail(alpha: f64, units: usize) -> f64 {
    let n = units as f64;
    if units < 2 {
        return alpha / 2.0;
    }
    let t = quantile::student(1.0 - alpha / 2.0, n - 1.0);
    let z = t * (n / (n - 1.0)).sqrt();
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

fn add_all<const N: usize>(sums: &mut [[f64; N]], of: &[[f64; N]], times: f64) {
    for (sums, of) in sums.iter_mut().zip(of) {
        for (sum, x) in sums.iter_mut().zip(of) {
            *sum += times * x;
        }
    }
}

fn totals(sums: &[BlockSums], policy: usize, horizon: usize) -> Vec<[Scaled; 3]> {
    let total = |t: usize, which: usize| {
        let mut total = ScaledSum::default();
        for block in sums {
            total.merge(column(&block.policies[policy].steps[t], which)[1]);
        }
        total.total()
    };
    (0..horizon)
        .map(|t| [0, 1, 2].map(|which| total(t, which)))
        .collect()
}

fn flat(sums: &PolicySums, totals: &[[Scaled; 3]]) -> Flat {
    let steps = sums.steps.iter().zip(totals).map(|(sums, totals)| {
        let mut flat = [0.0; 6];
        for (which, total) in totals.iter().enumerate() {
            if total.is_zero() {
                continue;
            }
            let [numerator, denominator] = column(sums, which);
            flat[2 * which] = numerator.total().quotient(*total).value();
            flat[2 * which + 1] = denominator.total().quotient(*total).value();
        }
        flat
    });
    Flat {
        steps: steps.collect(),
        first: sums.first,
        influence: sums.influence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_the_level_for_many_units_and_smaller_for_few() {
        assert!((tail(0.05, 1_000_000) - 0.025).abs() < 1e-6);
        // t = 2.262 on 9 degrees, times √(10/9): 2.384.
        assert!(
            (tail(0.05, 10) - 0.008_56).abs() < 1e-4,
            "{}",
            tail(0.05, 10)
        );
    }
}
