//! Latencies of one disk over windows, and by how much a change has moved them: the numbers of
//! [`trial`](super::trial), which says what they are for.

use std::collections::VecDeque;

use super::Harm;
use crate::window::DiskRow;

/// Windows that are remembered per disk.
const MOST_WINDOWS: usize = 32;
/// A normal deviate's median absolute value.
const NORMAL_MAD: f64 = 0.6745;
/// Noise of a logarithm where too little has been seen to estimate it.
const UNKNOWN_SIGMA: f64 = 0.25;
/// Differences from which σ is estimated.
const LEAST_DIFFERENCES: usize = 4;

/// Logarithms of a disk's latencies in one window, in ln µs; `None` where it completed nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Latency {
    pub(super) mean: f64,
    pub(super) p99: Option<f64>,
}

impl Latency {
    pub(super) fn of(row: &DiskRow) -> Option<Self> {
        let log = |us: f64| (us > 0.0).then(|| libm::log(us));
        Some(Self {
            mean: log(row.did.latency_us_mean.ok()?)?,
            p99: row.did.latency_us_p99.ok().and_then(log),
        })
    }
}

/// What is known of one disk while its settings stay as they are.
#[derive(Debug, Default)]
pub(super) struct History {
    windows: VecDeque<Latency>,
}

impl History {
    pub(super) fn push(&mut self, latency: Latency) {
        if self.windows.len() == MOST_WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(latency);
    }

    /// Forgets the newest windows.
    pub(super) fn forget(&mut self, newest: usize) {
        let kept = self.windows.len().saturating_sub(newest);
        self.windows.truncate(kept);
    }

    /// Windows that are known.
    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    /// The median of the mean latency over the last `most` windows, in ln µs.
    pub(super) fn recent(&self, most: usize) -> Option<f64> {
        median(self.last(most, |latency| Some(latency.mean)))
    }

    /// The last `most` values of one figure.
    fn last(&self, most: usize, figure: impl Fn(&Latency) -> Option<f64>) -> Vec<f64> {
        let newest = self.windows.iter().rev().take(most);
        newest.filter_map(figure).collect()
    }

    /// The median of its p99, the `newest` windows left out, microseconds.
    pub(super) fn p99_us(&self, newest: usize) -> Option<f64> {
        let older = self.windows.iter().rev().skip(newest);
        median(older.filter_map(|latency| latency.p99).collect()).map(libm::exp)
    }

    /// Standard deviation of one window's figure.
    pub(super) fn sigma(&self, figure: impl Fn(&Latency) -> Option<f64>) -> f64 {
        let values = self.last(MOST_WINDOWS, figure);
        let steps: Vec<f64> = values.windows(2).map(|w| libm::fabs(w[1] - w[0])).collect();
        if steps.len() < LEAST_DIFFERENCES {
            return UNKNOWN_SIGMA;
        }
        median(steps).unwrap_or(0.0) / NORMAL_MAD / std::f64::consts::SQRT_2
    }
}

/// A change of the logarithm of a latency, and its standard error.
#[derive(Debug, Clone, Copy)]
struct Effect {
    change: f64,
    error: f64,
}

/// What a change did to the latencies of its disk, as far as both are known.
#[derive(Debug)]
pub(super) struct Rise {
    mean: Option<Effect>,
    p99: Option<Effect>,
    /// The change that is borne.
    tolerated: f64,
}

/// By how much others have moved meanwhile, which is not the doing of a change, and the variance of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shift {
    pub(super) by: f64,
    pub(super) variance: f64,
}

impl Rise {
    /// From the windows before a change to those after it, as medians; `tolerated` is a logarithm.
    pub(super) fn between(before: &History, after: &History, shift: Shift, tolerated: f64) -> Self {
        let effect = |figure: fn(&Latency) -> Option<f64>| -> Option<Effect> {
            let sigma = before.sigma(figure);
            let [before, after] = [before, after].map(|h| h.last(MOST_WINDOWS, figure));
            let spread = 1.0 / before.len() as f64 + 1.0 / after.len() as f64;
            let error = libm::sqrt(sigma * sigma * spread + shift.variance);
            let change = median(after)? - median(before)? - shift.by;
            Some(Effect { change, error })
        };
        Self {
            mean: effect(|latency| Some(latency.mean)),
            p99: effect(|latency| latency.p99),
            tolerated,
        }
    }

    fn effects(&self) -> impl Iterator<Item = Effect> {
        [self.mean, self.p99].into_iter().flatten()
    }

    pub(super) fn is_beyond_tolerance(&self) -> bool {
        self.effects().any(|effect| effect.change > self.tolerated)
    }

    /// What is neither borne nor chance, which reaches `z` standard errors.
    pub(super) fn harm(&self, z: f64) -> Option<Harm> {
        let limit = |effect: &Effect| self.tolerated + z * effect.error;
        let worst = self
            .effects()
            .find(|effect| effect.change > limit(effect))?;
        Some(Harm::Latency {
            mean_ratio: libm::exp(self.mean.map_or(0.0, |effect| effect.change)),
            p99_ratio: self.p99.map(|effect| libm::exp(effect.change)),
            threshold: libm::exp(limit(&worst)),
        })
    }
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    Some(if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    })
}
