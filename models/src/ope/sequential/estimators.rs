//! Estimators that are means of a score per trajectory.

use super::Steps;
use crate::ope::error::OpeError;
use crate::ope::scaled::Scaled;
use crate::ope::scores::Scores;

/// What a cumulative weight counts at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cap {
    /// What it is.
    None,
    /// At most this.
    At(f64),
}

impl Cap {
    fn of(self, weight: Scaled) -> Scaled {
        match self {
            Self::At(most) if weight.value() > most => Scaled::new(most),
            _ => weight,
        }
    }

    fn check(self) -> Result<(), OpeError> {
        match self {
            Self::At(value) if value.is_nan() || value <= 0.0 || value.is_infinite() => {
                Err(OpeError::Setting {
                    what: "the cap of the weights",
                    value,
                    rule: "must be positive and finite",
                })
            }
            _ => Ok(()),
        }
    }
}

impl Steps {
    /// Discounted return of each trajectory: `G = Σ_t γ^t r_t`.
    #[must_use]
    pub fn returns(&self) -> Vec<f64> {
        let discounts = self.discounts();
        let of = |i| {
            let rewards = self.reward[self.rows_of(i)].iter();
            rewards
                .zip(&discounts)
                .map(|(r, discount)| discount * r)
                .sum()
        };
        (0..self.trajectories()).map(of).collect()
    }

    /// Weight of each whole trajectory, `w_{T−1}`.
    #[must_use]
    pub fn trajectory_weights(&self) -> Vec<Scaled> {
        let of = |i| self.walk(i).last().map_or(Scaled::ONE, |step| step.now);
        (0..self.trajectories()).map(of).collect()
    }

    /// Direct method: V(s_0).
    ///
    /// # Errors
    /// As [`Scores::mean`], as for all of these.
    pub fn direct_method(&self) -> Result<Scores, OpeError> {
        let first = |i: usize| self.v[self.offsets[i]];
        Scores::mean((0..self.trajectories()).map(first).collect())
    }

    /// Trajectory-wise importance sampling: `w_{T−1} G`.
    ///
    /// Source: Precup, Sutton and Singh 2000, "Eligibility traces for off-policy policy evaluation".
    ///
    /// # Errors
    /// `Overflow` where a weighted return is beyond f64.
    pub fn trajectory_wise(&self, cap: Cap) -> Result<Scores, OpeError> {
        cap.check()?;
        let weights = self.trajectory_weights();
        let weighted = weights.iter().zip(self.returns()).enumerate();
        let scores = weighted.map(|(i, (weight, g))| finite(i, cap.of(*weight).times(g)));
        Scores::mean(scores.collect::<Result<_, _>>()?)
    }

    /// Per-decision importance sampling: `Σ_t γ^t w_t r_t`.
    ///
    /// Source: Precup, Sutton and Singh 2000, the per-decision estimator.
    ///
    /// # Errors
    /// `Overflow` where a weighted reward is beyond f64.
    pub fn per_decision(&self, cap: Cap) -> Result<Scores, OpeError> {
        cap.check()?;
        let discounts = self.discounts();
        let score = |i| {
            let mut sum = 0.0;
            for step in self.walk(i) {
                let discounted = discounts[step.t] * self.reward[step.row];
                sum += finite(i, cap.of(step.now).times(discounted))?;
            }
            Ok(sum)
        };
        Scores::mean(
            (0..self.trajectories())
                .map(score)
                .collect::<Result<_, _>>()?,
        )
    }

    /// Doubly robust: `Σ_t γ^t [w_t (r_t − q_t) + w_{t−1} V_t]`.
    ///
    /// Source: Jiang and Li 2016, "Doubly robust off-policy value evaluation for reinforcement learning", with
    /// its recursion unrolled as in Thomas and Brunskill 2016.
    ///
    /// # Errors
    /// `Overflow` where a term is beyond f64.
    pub fn doubly_robust(&self) -> Result<Scores, OpeError> {
        let discounts = self.discounts();
        let score = |i| {
            let mut sum = 0.0;
            for step in self.walk(i) {
                let discount = discounts[step.t];
                let surprise = self.reward[step.row] - self.q[step.row];
                sum += finite(i, step.now.times(discount * surprise))?;
                sum += finite(i, step.before.times(discount * self.v[step.row]))?;
            }
            Ok(sum)
        };
        Scores::mean(
            (0..self.trajectories())
                .map(score)
                .collect::<Result<_, _>>()?,
        )
    }
}

pub(super) fn finite(trajectory: usize, term: Scaled) -> Result<f64, OpeError> {
    let value = term.value();
    if value.is_finite() {
        return Ok(value);
    }
    Err(OpeError::Overflow {
        trajectory,
        what: "a weighted reward",
        log10: term.log10(),
    })
}
