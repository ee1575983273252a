//! Where the reward weights of an episode come from.

use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use super::RewardConfig;

/// Which weights an episode is paid by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weighting {
    /// The same in each episode.
    Fixed(RewardConfig),
    /// Drawn anew for each episode. A policy that is trained so reads the weights off its observation, and serves
    /// under any of them: multi-objective learning with a conditioned policy, after Abels et al. 2019, "Dynamic
    /// Weights in Multi-Objective Deep Reinforcement Learning".
    Drawn(WeightRanges),
}

impl Default for Weighting {
    fn default() -> Self {
        Self::Fixed(RewardConfig::default())
    }
}

impl From<RewardConfig> for Weighting {
    fn from(reward: RewardConfig) -> Self {
        Self::Fixed(reward)
    }
}

impl From<WeightRanges> for Weighting {
    fn from(ranges: WeightRanges) -> Self {
        Self::Drawn(ranges)
    }
}

impl Weighting {
    /// The weights of an episode; fixed ones take nothing from the generator.
    pub fn draw(&self, rng: &mut crate::Rng) -> RewardConfig {
        match self {
            Self::Fixed(reward) => *reward,
            Self::Drawn(ranges) => ranges.draw(rng),
        }
    }
}

/// Least and greatest weights, each drawn uniformly between; the objective is drawn uniformly in its logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightRanges {
    /// Part of the host mean in a disk's training reward. It is how credit is given, and no preference: it is
    /// not drawn.
    pub beta: f64,
    /// Of `RewardConfig::cpu`.
    pub cpu: (f64, f64),
    /// Of `RewardConfig::page_cache`.
    pub page_cache: (f64, f64),
    /// Of `RewardConfig::writeback`.
    pub writeback: (f64, f64),
    /// Of `RewardConfig::change`.
    pub change: (f64, f64),
    /// Of `RewardConfig::slo`.
    pub slo: (f64, f64),
    /// Share of the episodes that have an objective for the p99, in [0, 1].
    pub slo_share: f64,
    /// The objective, microseconds.
    pub slo_p99_us: (f64, f64),
}

impl Default for WeightRanges {
    fn default() -> Self {
        Self {
            beta: RewardConfig::default().beta,
            cpu: (0.0, 0.6),
            page_cache: (0.0, 0.9),
            writeback: (0.2, 1.0),
            change: (0.0, 0.1),
            slo: (0.0, 1.0),
            slo_share: 0.5,
            slo_p99_us: (100.0, 20_000.0),
        }
    }
}

impl WeightRanges {
    /// What is wrong with the ranges: key and problem.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let ranges = [
            ("cpu", self.cpu),
            ("page_cache", self.page_cache),
            ("writeback", self.writeback),
            ("change", self.change),
            ("slo", self.slo),
        ];
        let is_good = |(low, high): (f64, f64)| 0.0 <= low && low <= high && high <= 1.0;
        let text = |(low, high): (f64, f64), wanted: &str| format!("= [{low}, {high}] {wanted}");
        let mut problems: Vec<_> = ranges
            .into_iter()
            .filter(|(_, range)| !is_good(*range))
            .map(|(key, range)| (key.to_owned(), text(range, "must be a range within [0, 1]")))
            .collect();
        for (key, share) in [("beta", self.beta), ("slo_share", self.slo_share)] {
            if !(0.0..=1.0).contains(&share) {
                problems.push((key.to_owned(), format!("= {share} must be in [0, 1]")));
            }
        }
        let (low, high) = self.slo_p99_us;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            let wanted = "must be a range of microseconds above 0";
            problems.push(("slo_p99_us".to_owned(), text(self.slo_p99_us, wanted)));
        }
        problems
    }

    fn draw(&self, rng: &mut crate::Rng) -> RewardConfig {
        let mut between = |(low, high): (f64, f64)| low + (high - low) * rng.random::<f64>();
        let weights = [self.cpu, self.page_cache, self.writeback, self.change];
        let [cpu, page_cache, writeback, change] = weights.map(&mut between);
        let slo = between(self.slo);
        let (low, high) = self.slo_p99_us;
        let objective = libm::exp(between((libm::log(low), libm::log(high))));
        let has_objective = rng.random::<f64>() < self.slo_share;
        RewardConfig {
            beta: self.beta,
            cpu,
            page_cache,
            writeback,
            change,
            slo,
            slo_p99_us: has_objective.then_some(objective),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn drawn_weights_fill_their_ranges_and_pass_the_checks_of_weights() {
        let ranges = WeightRanges::default();
        let mut rng = crate::Rng::seed_from_u64(1);
        let drawn: Vec<RewardConfig> = (0..1_000).map(|_| ranges.draw(&mut rng)).collect();
        assert!(drawn.iter().all(|reward| reward.problems().is_empty()));
        let fills = |of: fn(&RewardConfig) -> f64, (low, high): (f64, f64)| {
            let values = || drawn.iter().map(of);
            let (least, most) = (
                values().fold(f64::INFINITY, f64::min),
                values().fold(0.0, f64::max),
            );
            let margin = 0.01 * (high - low);
            (low..low + margin).contains(&least) && (high - margin..=high).contains(&most)
        };
        assert!(fills(|r| r.cpu, ranges.cpu) && fills(|r| r.page_cache, ranges.page_cache));
        assert!(fills(|r| r.writeback, ranges.writeback) && fills(|r| r.change, ranges.change));
        assert!(fills(|r| r.slo, ranges.slo));
        let objectives = drawn.iter().filter_map(|r| r.slo_p99_us);
        let (low, high) = ranges.slo_p99_us;
        assert!(objectives.clone().all(|us| (low..=high).contains(&us)));
        let share = objectives.count() as f64 / 1_000.0;
        assert!((share - ranges.slo_share).abs() < 0.05, "{share}");
    }

    #[test]
    fn fixed_weights_take_nothing_from_the_generator() {
        let mut rng = crate::Rng::seed_from_u64(1);
        let before = rng.clone();
        let reward = RewardConfig::default();
        assert_eq!(Weighting::from(reward).draw(&mut rng), reward);
        assert_eq!(rng, before);
    }

    #[test]
    fn each_range_that_cannot_be_is_named() {
        let ranges = WeightRanges {
            cpu: (0.5, 0.1),
            slo: (0.0, 1.5),
            slo_share: 2.0,
            slo_p99_us: (0.0, 10.0),
            ..WeightRanges::default()
        };
        let keys: Vec<String> = ranges.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["cpu", "slo", "slo_share", "slo_p99_us"]);
        assert_eq!(WeightRanges::default().problems(), []);
    }
}
