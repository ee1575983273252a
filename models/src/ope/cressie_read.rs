//! Empirical likelihood for importance weights: estimate and interval that use that weights average 1.
//!
//! Of all distributions of (weight, reward) under which weights average 1, the estimate is by the one
//! closest to the log in the Cressie-Read power divergence with λ = −2, and the interval covers those
//! within a chi-squared distance. One imagined row of extreme weight makes the constraint reachable.
//!
//! Source: Karampatziakis, Langford and Mineiro 2020, "Empirical Likelihood for Contextual Bandits";
//! conventions of VowpalWabbit/estimators, `bandits/cressieread.py`.

use super::error::{OpeError, Place};
use super::interval::Interval;
use super::quantile;

/// What weights and rewards can be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Smallest and largest weight possible: below and above 1. Rows beyond widen them.
    pub weight: Interval,
    /// Smallest and largest reward possible.
    pub reward: Interval,
}

/// Sums over the rows seen so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CressieRead {
    bounds: Bounds,
    n: f64,
    w: f64,
    ww: f64,
    wr: f64,
    wwr: f64,
    wwrr: f64,
    r: f64,
}

impl CressieRead {
    /// Without rows.
    ///
    /// # Errors
    /// `Setting` where the bounds of the weights are not on both sides of 1, or those of the rewards
    /// are not in order.
    pub fn new(bounds: Bounds) -> Result<Self, OpeError> {
        let [low, high] = bounds.weight;
        let refuse = |what, value, rule| Err(OpeError::Setting { what, value, rule });
        if !(0.0..1.0).contains(&low) {
            return refuse("smallest weight", low, "must be in [0, 1)");
        }
        if !(high > 1.0 && high.is_finite()) {
            return refuse("largest weight", high, "must be finite and above 1");
        }
        let [least, most] = bounds.reward;
        if !(least <= most && least.is_finite() && most.is_finite()) {
            return refuse("largest reward", most, "must be at least the smallest");
        }
        Ok(Self {
            bounds,
            n: 0.0,
            w: 0.0,
            ww: 0.0,
            wr: 0.0,
            wwr: 0.0,
            wwrr: 0.0,
            r: 0.0,
        })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// `Value` where a reward is outside its bounds, or a weight is negative.
    pub fn push(&mut self, weights: &[f64], rewards: &[f64]) -> Result<(), OpeError> {
        for (row, (&w, &r)) in weights.iter().zip(rewards).enumerate() {
            let place = Place::Row(row);
            if w.is_nan() || w < 0.0 {
                return Err(OpeError::value(place, "weight", w, "must not be negative"));
            }
            let [least, most] = self.bounds.reward;
            if !(least..=most).contains(&r) {
                let rule = "must be within the bounds given for rewards";
                return Err(OpeError::value(place, "reward", r, rule));
            }
            self.add(w, r);
        }
        Ok(())
    }

    fn add(&mut self, w: f64, r: f64) {
        let wr = w * r;
        self.n += 1.0;
        self.w += w;
        self.ww += w * w;
        self.wr += wr;
        self.wwr += w * wr;
        self.wwrr += wr * wr;
        self.r += r;
        let [low, high] = &mut self.bounds.weight;
        (*low, *high) = (low.min(w), high.max(w));
    }

    /// The weight of the imagined row that pulls the mean weight to 1.
    fn pulling(&self) -> f64 {
        let [low, high] = self.bounds.weight;
        if self.w < self.n { high } else { low }
    }

    /// The estimate: each row has probability (γ + β·w)/(n + 1); what they lack to a mean weight of 1
    /// gets the mean reward.
    ///
    /// # Errors
    /// `Empty` without rows.
    pub fn estimate(&self) -> Result<f64, OpeError> {
        self.check()?;
        let of = self.with_row(self.pulling(), 0.0);
        let variance = of.ww - of.w * of.w;
        let (gamma, beta) = ((of.ww - of.w) / variance, (1.0 - of.w) / variance);
        let count = self.n + 1.0;
        let seen = (gamma * self.wr + beta * self.wwr) / count;
        let missing = (1.0 - (gamma * self.w + beta * self.ww) / count).max(0.0);
        Ok(seen + missing * self.r / self.n)
    }

    fn check(&self) -> Result<(), OpeError> {
        if self.n == 0.0 {
            return Err(OpeError::Empty {
                what: "Cressie-Read",
            });
        }
        Ok(())
    }

    /// The interval, within the bounds of the reward.
    ///
    /// # Errors
    /// `Empty` without rows; `Singular` where no distribution is close enough.
    pub fn interval(&self, alpha: f64) -> Result<Interval, OpeError> {
        self.check()?;
        let count = self.n + 1.0;
        let of = self.with_row(self.pulling(), 0.0);
        let distance = count * (of.w - 1.0) * (of.w - 1.0) / (of.ww - of.w * of.w);
        // The upper quantile of F(1, n) is the square of Student's.
        let t = quantile::student(1.0 - alpha / 2.0, self.n);
        let phi = -(distance + t * t) / (2.0 * count);
        let [least, most] = self.bounds.reward;
        Ok([
            self.least(phi, least)?.clamp(least, most),
            (-self.mirrored().least(phi, -most)?).clamp(least, most),
        ])
    }

    /// The same log with rewards of the opposite sign.
    fn mirrored(&self) -> Self {
        Self {
            wr: -self.wr,
            wwr: -self.wwr,
            r: -self.r,
            ..*self
        }
    }

    /// The least value that a distribution within `phi` can have, where the imagined row has this reward.
    fn least(&self, phi: f64, reward: f64) -> Result<f64, OpeError> {
        let bounds = self.bounds.weight.into_iter();
        let candidates = bounds.filter_map(|weight| self.least_with(phi, weight, reward));
        candidates.min_by(f64::total_cmp).ok_or(OpeError::Singular {
            what: "the Cressie-Read interval",
            hint: "the weights do not vary, or are too far from averaging 1; give the true bounds of weights and rewards",
        })
    }

    fn least_with(&self, phi: f64, weight: f64, reward: f64) -> Option<f64> {
        let of = self.with_row(weight, reward);
        let variance = of.ww - of.w * of.w;
        if variance <= 0.0 {
            return None;
        }
        let covariance = of.wwr - of.w * of.wr;
        let x = of.wr + (1.0 - of.w) * covariance / variance;
        let y = covariance * covariance / variance - (of.wwrr - of.wr * of.wr);
        let z = phi + (1.0 - of.w) * (1.0 - of.w) / (2.0 * variance);
        if (y * z).abs() <= TINY {
            return Some(x);
        }
        (z <= 0.0 && y * z >= 0.0).then(|| x - (2.0 * y * z).sqrt())
    }

    /// Means with one row more.
    fn with_row(&self, w: f64, r: f64) -> Means {
        let count = self.n + 1.0;
        Means {
            w: (self.w + w) / count,
            ww: (self.ww + w * w) / count,
            wr: (self.wr + w * r) / count,
            wwr: (self.wwr + w * w * r) / count,
            wwrr: (self.wwrr + w * w * r * r) / count,
        }
    }
}

/// Below this a product of two differences of means is rounding.
const TINY: f64 = 1e-18;

struct Means {
    w: f64,
    ww: f64,
    wr: f64,
    wwr: f64,
    wwrr: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Bounds = Bounds {
        weight: [0.0, 100.0],
        reward: [0.0, 1.0],
    };

    fn of(weights: &[f64], rewards: &[f64]) -> CressieRead {
        let mut sums = CressieRead::new(UNIT).unwrap();
        sums.push(weights, rewards).unwrap();
        sums
    }

    /// Weights 0.5 and 1.5 average 1, so the imagined row has weight 0 and pulls the mean to 2/3: the
    /// mean square is 2.5/3, its variance 7/18, γ = 3/7, β = 6/7; Σ(γ + βw)w = 3, so nothing is missing,
    /// and the rewards 0 and 1 give (3/7·1.5 + 6/7·2.25)/3 = 6/7.
    #[test]
    fn estimate_by_hand() {
        let estimate = of(&[0.5, 1.5], &[0.0, 1.0]).estimate().unwrap();
        assert!((estimate - 6.0 / 7.0).abs() < 1e-14, "{estimate}");
    }

    #[test]
    fn a_constant_reward_is_estimated_exactly() {
        let weights: Vec<f64> = (0..50).map(|i| 0.5 + f64::from(i % 7) * 0.2).collect();
        let estimate = of(&weights, &[0.25; 50]).estimate().unwrap();
        assert!((estimate - 0.25).abs() < 1e-12, "{estimate}");
    }

    #[test]
    fn interval_holds_the_estimate_and_narrows_with_rows() {
        let row = |n: usize| -> (Vec<f64>, Vec<f64>) {
            (0..n)
                .map(|i| (0.5 + (i % 3) as f64 * 0.5, (i % 5) as f64 / 4.0))
                .unzip()
        };
        let width = |n: usize| {
            let (weights, rewards) = row(n);
            let sums = of(&weights, &rewards);
            let [low, high] = sums.interval(0.05).unwrap();
            let estimate = sums.estimate().unwrap();
            assert!(low < estimate && estimate < high, "{low} {estimate} {high}");
            high - low
        };
        assert!(width(3000) < width(300) / 2.0);
    }

    /// What is 1 − r of the mirrored rewards is r of these.
    #[test]
    fn both_ends_are_mirror_images() {
        let weights = [0.5, 1.5, 1.0, 0.25, 1.75];
        let rewards = [0.1, 0.4, 0.9, 0.6, 0.3];
        let mirrored = rewards.map(|r| 1.0 - r);
        let [low, high] = of(&weights, &rewards).interval(0.05).unwrap();
        let [low_mirrored, high_mirrored] = of(&weights, &mirrored).interval(0.05).unwrap();
        assert!((low + high_mirrored - 1.0).abs() < 1e-9);
        assert!((high + low_mirrored - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_reward_outside_its_bounds_is_refused() {
        let error = CressieRead::new(UNIT).unwrap().push(&[1.0], &[1.5]);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("row 0: reward = 1.5")
        );
    }
}
