//! Per-decision importance sampling in one pass, for logs larger than memory.

use super::check_setting;
use crate::ope::error::{OpeError, Place, check_finite, check_length};
use crate::ope::moments::{CHUNK, Moments};
use crate::ope::scaled::Scaled;
use crate::ope::scores::{Kind, Summary};

/// What [`Steps::per_decision`](super::Steps::per_decision) without a cap says of the trajectories pushed so
/// far. Memory does not grow with them.
#[derive(Debug, Clone)]
pub struct PerDecisionStream {
    /// `gamma^t`.
    discounts: Vec<f64>,
    trajectories: usize,
    moments: Moments,
    scores: Vec<f64>,
}

impl PerDecisionStream {
    /// Without trajectories. `gamma` in [0, 1].
    ///
    /// # Errors
    /// `Setting` for gamma or horizon.
    pub fn new(horizon: usize, gamma: f64) -> Result<Self, OpeError> {
        check_setting(horizon, gamma)?;
        Ok(Self {
            discounts: super::discounts(gamma, horizon),
            trajectories: 0,
            moments: Moments::default(),
            scores: Vec::with_capacity(CHUNK),
        })
    }

    /// Adds trajectories of these `lengths`, whole ones. `ratio`: evaluation probability over propensity;
    /// `reward`: rewards; both one per step.
    ///
    /// # Errors
    /// `Length` where the columns are not as long as the trajectories; `Value`, with trajectory and step, for
    /// a length or a value out of range; `Overflow` where a weighted reward is beyond f64. Trajectories
    /// before it have been added.
    pub fn push(
        &mut self,
        lengths: &[usize],
        ratio: &[f64],
        reward: &[f64],
    ) -> Result<(), OpeError> {
        let rows = lengths.iter().sum();
        check_length("ratio", ratio.len(), rows)?;
        check_length("reward", reward.len(), rows)?;
        let mut begin = 0;
        for &length in lengths {
            let steps = begin..begin + length;
            let score = self.score(&ratio[steps.clone()], &reward[steps])?;
            begin += length;
            self.trajectories += 1;
            self.scores.push(score);
            if self.scores.len() == CHUNK {
                self.moments.push(&self.scores);
                self.scores.clear();
            }
        }
        Ok(())
    }

    /// Plain f64 as long as all of it is within f64; what is not, or is wrong, is looked into.
    fn score(&self, ratio: &[f64], reward: &[f64]) -> Result<f64, OpeError> {
        if ratio.is_empty() || ratio.len() > self.discounts.len() {
            let rule = "must be at least 1 and at most the horizon";
            let place = Place::Trajectory(self.trajectories as i64);
            return Err(OpeError::value(place, "number of steps", ratio.len(), rule));
        }
        let (mut weight, mut sum, mut low) = (1.0, 0.0, f64::INFINITY);
        let mut least_weight = f64::INFINITY;
        for ((ratio, reward), discount) in ratio.iter().zip(reward).zip(&self.discounts) {
            weight *= ratio;
            sum += weight * (discount * reward);
            low = ratio.min(low);
            if weight > 0.0 {
                least_weight = weight.min(least_weight);
            }
        }
        // A weight below the smallest normal number has lost digits, or is 0 though no ratio is.
        let is_whole = least_weight >= f64::MIN_POSITIVE && (weight > 0.0 || low == 0.0);
        if sum.is_finite() && low >= 0.0 && is_whole {
            return Ok(sum);
        }
        self.score_with_care(ratio, reward)
    }

    #[cold]
    fn score_with_care(&self, ratio: &[f64], reward: &[f64]) -> Result<f64, OpeError> {
        let (mut weight, mut sum) = (Scaled::ONE, 0.0);
        for (step, (ratio, reward)) in ratio.iter().zip(reward).enumerate() {
            let place = Place::Step {
                trajectory: self.trajectories as i64,
                step: step as i64,
            };
            check_finite(place, "ratio", *ratio)?;
            check_finite(place, "reward", *reward)?;
            if *ratio < 0.0 {
                return Err(OpeError::value(
                    place,
                    "ratio",
                    *ratio,
                    "must not be negative",
                ));
            }
            weight = weight.times(*ratio);
            let term = weight.times(self.discounts[step] * reward);
            sum += super::estimators::finite(self.trajectories, term)?;
        }
        Ok(sum)
    }

    /// What the trajectories so far say.
    ///
    /// # Errors
    /// `TooFew` below two trajectories; `Setting` where the estimate is beyond f64.
    pub fn summary(&self) -> Result<Summary, OpeError> {
        let mut moments = self.moments;
        moments.push(&self.scores);
        let n = self.trajectories;
        if n < 2 {
            return Err(OpeError::TooFew {
                what: "a standard error",
                needed: 2,
                found: n,
            });
        }
        let (estimate, variance) = (moments.mean(), moments.sample_variance());
        if !estimate.is_finite() || !variance.is_finite() {
            return Err(OpeError::Setting {
                what: "the estimate",
                value: estimate,
                rule: "must be finite, and its variance: the scores are too large for f64",
            });
        }
        Ok(Summary {
            n,
            estimate,
            std_err: (variance / n as f64).sqrt(),
            kind: Kind::Mean,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cap, StepColumns, Steps};
    use super::*;

    const HORIZON: usize = 400;

    /// Ratios and rewards of trajectories of 1 to 400 steps; the longer weigh 1e-160 to 1e160.
    fn columns() -> (Vec<usize>, Vec<f64>, Vec<f64>) {
        let lengths: Vec<usize> = (0..1500).map(|i| i * 7 % HORIZON + 1).collect();
        let (mut ratio, mut reward) = (vec![], vec![]);
        for (i, length) in lengths.iter().enumerate() {
            let factor = [0.4, 1.0, 2.4][i % 3];
            for t in 0..*length {
                ratio.push(if i % 50 == 0 && t == 3 { 0.0 } else { factor });
                reward.push((t % 7) as f64 / 1e9 - 1e-9);
            }
        }
        (lengths, ratio, reward)
    }

    #[test]
    fn a_stream_says_what_the_whole_says() {
        let (lengths, ratio, reward) = columns();
        let mut stream = PerDecisionStream::new(HORIZON, 0.9).unwrap();
        let mut begin = 0;
        for some in lengths.chunks(37) {
            let end = begin + some.iter().sum::<usize>();
            stream
                .push(some, &ratio[begin..end], &reward[begin..end])
                .unwrap();
            begin = end;
        }
        let columns = StepColumns {
            q: vec![0.0; ratio.len()],
            v: vec![0.0; ratio.len()],
            ratio,
            reward,
        };
        let steps = Steps::new(&lengths, HORIZON, 0.9, columns).unwrap();
        let whole = steps.per_decision(Cap::None).unwrap().summary().unwrap();
        let found = stream.summary().unwrap();
        assert_eq!(found.n, whole.n);
        for (a, b) in [
            (found.estimate, whole.estimate),
            (found.std_err, whole.std_err),
        ] {
            assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_trajectory_and_step() {
        let refused = |ratio: &[f64], reward: &[f64]| {
            let mut stream = PerDecisionStream::new(3, 1.0).unwrap();
            stream.push(&[1], &[1.0], &[1.0]).unwrap();
            let error = stream.push(&[ratio.len()], ratio, reward).unwrap_err();
            error.to_string()
        };
        let nan = refused(&[1.0, f64::NAN], &[1.0, 1.0]);
        assert!(nan.contains("trajectory 1, step 1: ratio = NaN"), "{nan}");
        let negative = refused(&[-1.0, -1.0], &[1.0, 1.0]);
        assert!(negative.contains("step 0: ratio = -1"), "{negative}");
        let infinite = refused(&[0.0, 1.0], &[1.0, f64::INFINITY]);
        assert!(infinite.contains("step 1: reward = inf"), "{infinite}");
        let long = refused(&[1.0; 4], &[1.0; 4]);
        assert!(long.contains("at most the horizon"), "{long}");
        let large = refused(&[1e200, 1e200], &[1.0, 1.0]);
        assert!(large.contains("weighted reward"), "{large}");
    }
}
