//! Estimators whose weights are divided by their sum over trajectories.

use super::Steps;
use crate::ope::error::OpeError;
use crate::ope::scaled::{Scaled, ScaledSum};
use crate::ope::scores::{Scores, Terms};
use crate::ope::weights::ess_of;

/// Sums over trajectories of the weights of each step; those that have ended count with their last weight.
#[derive(Debug, Clone, PartialEq)]
pub struct StepWeights {
    trajectories: usize,
    sums: Vec<Scaled>,
    ess: Vec<f64>,
}

impl StepWeights {
    /// One pass over the steps.
    #[must_use]
    pub fn new(steps: &Steps) -> Self {
        let (horizon, n) = (steps.horizon, steps.trajectories());
        let mut live = vec![[ScaledSum::default(); 2]; horizon];
        // Weights that are at their last value from this step on.
        let mut frozen = vec![[ScaledSum::default(); 2]; horizon + 1];
        for i in 0..n {
            let mut last = (0, Scaled::ONE);
            for step in steps.walk(i) {
                add(&mut live[step.t], step.now);
                last = (step.t + 1, step.now);
            }
            add(&mut frozen[last.0], last.1);
        }
        let mut ended = [ScaledSum::default(); 2];
        let all = live.into_iter().zip(frozen).map(|(live, frozen)| {
            ended[0].merge(frozen[0]);
            ended[1].merge(frozen[1]);
            let [mut total, mut squares] = live;
            total.merge(ended[0]);
            squares.merge(ended[1]);
            (total.total(), ess_of(total, squares))
        });
        let (sums, ess) = all.unzip();
        Self {
            trajectories: n,
            sums,
            ess,
        }
    }

    /// Effective sample size per step, in trajectories.
    #[must_use]
    pub fn ess(&self) -> &[f64] {
        &self.ess
    }

    /// First step whose effective sample size is below this share of the trajectories; the horizon where
    /// none is.
    #[must_use]
    pub fn effective_horizon(&self, share: f64) -> usize {
        let least = share * self.trajectories as f64;
        let first = self.ess.iter().position(|ess| *ess < least);
        first.unwrap_or(self.ess.len())
    }

    /// Sum of the weights with action t; that with the action before it where `Lag::Before`.
    fn sum(&self, lag: Lag, t: usize) -> Scaled {
        match (lag, t) {
            (Lag::Now, t) => self.sums[t],
            (Lag::Before, 0) => Scaled::new(self.trajectories as f64),
            (Lag::Before, t) => self.sums[t - 1],
        }
    }
}

fn add(sums: &mut [ScaledSum; 2], weight: Scaled) {
    sums[0].add(weight);
    sums[1].add(weight.product(weight));
}

/// Which weight belongs to a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lag {
    Now,
    Before,
}

/// `Σ_t γ^t Σ_i w_t x_t/Σ_i w_t` for one column x.
struct Part<'a> {
    x: &'a [f64],
    lag: Lag,
    weights: &'a StepWeights,
    steps: &'a Steps,
}

impl Part<'_> {
    fn weight(&self, step: super::Step) -> Scaled {
        match self.lag {
            Lag::Now => step.now,
            Lag::Before => step.before,
        }
    }

    /// Weighted mean of x at each step.
    fn means(&self, what: &'static str) -> Result<Vec<f64>, OpeError> {
        let mut products = vec![ScaledSum::default(); self.steps.horizon];
        for i in 0..self.steps.trajectories() {
            for step in self.steps.walk(i) {
                products[step.t].add(self.weight(step).times(self.x[step.row]));
            }
        }
        let mean = |(t, product): (usize, ScaledSum)| {
            let sum = self.weights.sum(self.lag, t);
            if sum.is_zero() {
                return Err(OpeError::NoOverlap { what });
            }
            Ok(product.total().quotient(sum).value())
        };
        products.into_iter().enumerate().map(mean).collect()
    }

    /// Adds `Σ_t γ^t (w_t/w̄_t)(x_t − mean_t)` to each trajectory's influence; x is 0 after the end.
    fn add_influence(&self, means: &[f64], influence: &mut [f64]) {
        let n = self.weights.trajectories as f64;
        let discounts = self.steps.discounts();
        let mean_weight = |t| self.weights.sum(self.lag, t).times(1.0 / n);
        // What a trajectory that has ended at t with weight 1 adds from there on.
        let mut tails = vec![Scaled::ZERO; self.steps.horizon + 1];
        let mut tail = ScaledSum::default();
        for t in (0..self.steps.horizon).rev() {
            tail.add(Scaled::new(-discounts[t] * means[t]).quotient(mean_weight(t)));
            tails[t] = tail.total();
        }
        for (i, influence) in influence.iter_mut().enumerate() {
            let mut end = (0, Scaled::ONE);
            for step in self.steps.walk(i) {
                let share = self.weight(step).quotient(mean_weight(step.t)).value();
                *influence += discounts[step.t] * share * (self.x[step.row] - means[step.t]);
                end = (step.t + 1, step.now);
            }
            *influence += end.1.product(tails[end.0]).value();
        }
    }

    /// Writes each step's numerator and denominator, relative to the sum of the step's weights.
    fn write_terms(&self, trajectory: usize, numerators: &mut [f64], denominators: &mut [f64]) {
        let relative = |weight: Scaled, t| weight.quotient(self.weights.sum(self.lag, t)).value();
        let discounts = self.steps.discounts();
        let mut end = (0, Scaled::ONE);
        for step in self.steps.walk(trajectory) {
            let weight = relative(self.weight(step), step.t);
            numerators[step.t] = discounts[step.t] * weight * self.x[step.row];
            denominators[step.t] = weight;
            end = (step.t + 1, step.now);
        }
        for (t, denominator) in denominators.iter_mut().enumerate().skip(end.0) {
            *denominator = relative(end.1, t);
        }
    }
}

impl Steps {
    /// Trajectory-wise weighted importance sampling: `Σ w_{T−1} G/Σ w_{T−1}`.
    ///
    /// Source: Precup, Sutton and Singh 2000, the weighted estimator.
    ///
    /// # Errors
    /// `NoOverlap` where all weights are 0, as for all of these.
    pub fn self_normalised_trajectory_wise(&self) -> Result<Scores, OpeError> {
        let (shares, returns) = (self.trajectory_shares()?, self.returns());
        let n = shares.len() as f64;
        let estimate = shares.iter().zip(&returns).map(|(w, g)| w * g).sum::<f64>();
        let influence = shares
            .iter()
            .zip(&returns)
            .map(|(w, g)| n * w * (g - estimate));
        Scores::ratio(estimate, influence.collect())
    }

    /// Each trajectory's share of the sum of weights.
    fn trajectory_shares(&self) -> Result<Vec<f64>, OpeError> {
        let weights = self.trajectory_weights();
        let mut sum = ScaledSum::default();
        weights.iter().for_each(|weight| sum.add(*weight));
        let total = sum.total();
        if total.is_zero() {
            let what = "trajectory-wise weighted importance sampling";
            return Err(OpeError::NoOverlap { what });
        }
        Ok(weights.iter().map(|w| w.quotient(total).value()).collect())
    }

    /// Numerators and denominators of `self_normalised_trajectory_wise`.
    ///
    /// # Errors
    /// `NoOverlap`.
    pub fn self_normalised_trajectory_wise_terms(&self) -> Result<Terms, OpeError> {
        let mut terms = Terms::new(1, self.trajectories());
        for (w, g) in self.trajectory_shares()?.into_iter().zip(self.returns()) {
            terms.push(|a, b| (a[0], b[0]) = (w * g, w));
        }
        Ok(terms)
    }

    /// Per-decision weighted importance sampling: `Σ_t γ^t Σ_i w_t r_t/Σ_i w_t`.
    ///
    /// Source: Thomas 2015, "Safe reinforcement learning", consistent weighted per-decision importance
    /// sampling.
    ///
    /// # Errors
    /// `NoOverlap` where the weights of a step are all 0.
    pub fn self_normalised_per_decision(&self, weights: &StepWeights) -> Result<Scores, OpeError> {
        self.sum_of_ratios(&self.reward_parts(weights), "snpdis at one of its steps")
    }

    /// Weighted doubly robust: `doubly_robust` with `w_t` and `w_{t−1}` over their means.
    ///
    /// Source: Thomas and Brunskill 2016, "Data-efficient off-policy policy evaluation for
    /// reinforcement learning", WDR.
    ///
    /// # Errors
    /// `NoOverlap` where the weights of a step are all 0.
    pub fn weighted_doubly_robust(&self, weights: &StepWeights) -> Result<Scores, OpeError> {
        let surprise = self.surprise();
        let parts = self.doubly_robust_parts(&surprise, weights);
        self.sum_of_ratios(&parts, "wdr at one of its steps")
    }

    /// Numerators and denominators of `self_normalised_per_decision`, one ratio per step.
    #[must_use]
    pub fn self_normalised_per_decision_terms(&self, weights: &StepWeights) -> Terms {
        self.terms(&self.reward_parts(weights))
    }

    /// Numerators and denominators of `weighted_doubly_robust`, two ratios per step.
    #[must_use]
    pub fn weighted_doubly_robust_terms(&self, weights: &StepWeights) -> Terms {
        self.terms(&self.doubly_robust_parts(&self.surprise(), weights))
    }

    /// r − q of each step.
    pub(super) fn surprise(&self) -> Vec<f64> {
        self.reward
            .iter()
            .zip(&self.q)
            .map(|(r, q)| r - q)
            .collect()
    }

    fn reward_parts<'a>(&'a self, weights: &'a StepWeights) -> [Part<'a>; 1] {
        let (x, lag) = (&self.reward, Lag::Now);
        [Part {
            x,
            lag,
            weights,
            steps: self,
        }]
    }

    fn doubly_robust_parts<'a>(
        &'a self,
        surprise: &'a [f64],
        weights: &'a StepWeights,
    ) -> [Part<'a>; 2] {
        let part = |x, lag| Part {
            x,
            lag,
            weights,
            steps: self,
        };
        [part(surprise, Lag::Now), part(&self.v, Lag::Before)]
    }

    fn sum_of_ratios(&self, parts: &[Part<'_>], what: &'static str) -> Result<Scores, OpeError> {
        let discounts = self.discounts();
        let mut influence = vec![0.0; self.trajectories()];
        let mut estimate = 0.0;
        for part in parts {
            let means = part.means(what)?;
            part.add_influence(&means, &mut influence);
            estimate += means
                .iter()
                .zip(&discounts)
                .map(|(m, d)| m * d)
                .sum::<f64>();
        }
        Scores::ratio(estimate, influence)
    }

    fn terms(&self, parts: &[Part<'_>]) -> Terms {
        let horizon = self.horizon;
        let mut terms = Terms::new(parts.len() * horizon, self.trajectories());
        for i in 0..self.trajectories() {
            terms.push(|numerators, denominators| {
                let chunks = numerators
                    .chunks_mut(horizon)
                    .zip(denominators.chunks_mut(horizon));
                for (part, (numerators, denominators)) in parts.iter().zip(chunks) {
                    part.write_terms(i, numerators, denominators);
                }
            });
        }
        terms
    }
}

impl StepWeights {
    /// The weight after each step of a trajectory over the sum of all at that step.
    pub(super) fn share(&self, weight: Scaled, t: usize) -> f64 {
        weight.quotient(self.sums[t]).value()
    }

    /// Whether all weights of some step are 0.
    pub(super) fn runs_out(&self) -> bool {
        self.sums.iter().any(|sum| sum.is_zero())
    }
}
