//! Regret: (oracle − policy)/(oracle − random).

use std::collections::BTreeMap;

use serde::Serialize;

use super::policies::Sight;
use super::study::{RANDOM, Study};
use crate::bootstrap::ci95_of;

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its interval.
    pub ci95: [f64; 2],
}

/// Rewards per episode of one scenario, paired by seed.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a> {
    pub(super) oracle: &'a [f64],
    pub(super) policy: &'a [f64],
    pub(super) random: &'a [f64],
}

impl Scale<'_> {
    /// Means, over some episodes, of oracle − policy and of oracle − random.
    fn means(&self, episodes: &[usize]) -> [f64; 2] {
        let over = |other: &[f64]| {
            let differences = episodes.iter().map(|i| self.oracle[*i] - other[*i]);
            differences.sum::<f64>() / episodes.len() as f64
        };
        [over(self.policy), over(self.random)]
    }

    /// The regret if the oracle could have had `gap` more.
    pub(super) fn at_bound(&self, gap: f64) -> Option<f64> {
        let all: Vec<usize> = (0..self.oracle.len()).collect();
        let [lost, range] = self.means(&all);
        (range + gap > LEAST_RANGE).then(|| (lost + gap) / (range + gap))
    }
}

/// Least difference of oracle and random over which a regret is a number.
const LEAST_RANGE: f64 = 1e-6;

/// Regret over one scenario, or pooled over several: the sum of what is lost over the sum of the ranges.
pub(super) fn regret(scales: &[Scale<'_>]) -> Option<Estimate> {
    let of = |drawn: &[Vec<usize>]| {
        let means = scales
            .iter()
            .zip(drawn)
            .map(|(scale, episodes)| scale.means(episodes));
        let [lost, range] = means.fold([0.0; 2], |sum, m| [sum[0] + m[0], sum[1] + m[1]]);
        lost / range
    };
    let all: Vec<Vec<usize>> = scales
        .iter()
        .map(|s| (0..s.oracle.len()).collect())
        .collect();
    let range: f64 = scales
        .iter()
        .zip(&all)
        .map(|(s, all)| s.means(all)[1])
        .sum();
    let sizes: Vec<usize> = all.iter().map(Vec::len).collect();
    (range > LEAST_RANGE).then(|| Estimate {
        value: of(&all),
        ci95: ci95_of(&sizes, of),
    })
}

/// Regret by policy, pooled over the scenarios that all of `studies` played it in.
#[must_use]
pub fn pooled(studies: &[Study]) -> BTreeMap<String, Estimate> {
    let Some(first) = studies.first() else {
        return BTreeMap::new();
    };
    let of = |name: &String| {
        let scales: Option<Vec<Scale<'_>>> = studies
            .iter()
            .map(|study| {
                Some(Scale {
                    oracle: &study.policies.get(Sight::Next.name())?.rewards,
                    policy: &study.policies.get(name)?.rewards,
                    random: &study.policies.get(RANDOM)?.rewards,
                })
            })
            .collect();
        Some((name.clone(), regret(&scales?)?))
    };
    first.policies.keys().filter_map(of).collect()
}
