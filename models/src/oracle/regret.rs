//! Regret: (oracle − policy)/(oracle − random).

use serde::Serialize;

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
pub(super) const LEAST_RANGE: f64 = 1e-6;

/// Regret over the episodes of one scenario.
pub(super) fn regret(scale: Scale<'_>) -> Option<Estimate> {
    let of = |episodes: &[usize]| {
        let [lost, range] = scale.means(episodes);
        lost / range
    };
    let all: Vec<usize> = (0..scale.oracle.len()).collect();
    (scale.means(&all)[1] > LEAST_RANGE).then(|| Estimate {
        value: of(&all),
        ci95: ci95_of(&[all.len()], |drawn| of(&drawn[0])),
    })
}
