//! What the weights of windows say of how far estimates can be trusted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use blkpilot_models::ope::pareto::k_hat_of_largest;
use blkpilot_models::ope::scaled::{Scaled, ScaledSum};
use serde::{Deserialize, Serialize};

use crate::windows::BlockSums;

/// Largest weights that are kept for the shape of the tail: enough for it up to 100 million windows.
const LARGEST: usize = 30_001;
/// Bins of the histogram per power of 10.
const BINS_PER_DECADE: f64 = 4.0;
/// Decades of the histogram on either side of 1; the outermost bins have what is beyond.
const DECADES: f64 = 6.0;
const BINS: usize = (2.0 * DECADES * BINS_PER_DECADE) as usize;
/// A weight that counts as this where it is greater: its square is a number still.
const LARGEST_WEIGHT: f64 = 1e150;

/// Facts about the weights of one policy over the windows of a log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// Whole windows.
    pub windows: u64,
    /// Effective sample size of whole windows: (Σw)²/Σw².
    pub ess: f64,
    /// The same of the blocks' sums of weights: in how many independent parts it lies.
    pub ess_blocks: f64,
    /// Effective sample size after each step of a window, with windows that end early.
    pub ess_per_step: Vec<f64>,
    /// Windows that reach each step.
    pub windows_per_step: Vec<u64>,
    /// Mean weight of whole windows; 1 is expected.
    pub mean: f64,
    /// How many standard errors, over blocks, it is from 1; `None` where it does not vary, at most 1000 either way.
    pub mean_z: Option<f64>,
    /// Share of the largest weight in the sum.
    pub max_share: f64,
    /// Share of whole windows of weight 0.
    pub zero_fraction: f64,
    /// Shape of the tail (Pareto k); above 0.7 no mean is to be trusted. `None` where too few weights differ.
    pub pareto_k: Option<f64>,
    /// Mean probability, over choices, of levels that the behaviour never takes there: what the log cannot say
    /// anything of. A lower bound: it counts choices that were certain.
    pub unsupported: f64,
    /// Weights of whole windows.
    pub histogram: Histogram,
}

impl Diagnostics {
    /// Steps of a window up to which the effective sample size is at least `least`.
    #[must_use]
    pub fn effective_horizon(&self, least: f64) -> usize {
        let first = self.ess_per_step.iter().position(|ess| *ess < least);
        first.unwrap_or(self.ess_per_step.len())
    }
}

/// Weights, counted by size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Weights of 0.
    pub zeros: u64,
    /// Decimal logarithms at which bins begin and end, one more than bins. What is beyond is in the outermost.
    pub edges: Vec<f64>,
    /// Weights per bin.
    pub counts: Vec<u64>,
}

/// Weights under way.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Per step: sum, sum of squares, windows.
    steps: Vec<([ScaledSum; 2], u64)>,
    whole: [ScaledSum; 2],
    n: u64,
    zeros: u64,
    largest: BinaryHeap<Reverse<Finite>>,
    counts: Vec<u64>,
    unsupported: f64,
    choices: u64,
}

/// A number that is one.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Finite(f64);

impl Eq for Finite {}

impl Ord for Finite {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Finite {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Weights {
    pub(crate) fn new(horizon: usize) -> Self {
        Self {
            steps: vec![([ScaledSum::default(); 2], 0); horizon],
            whole: [ScaledSum::default(); 2],
            n: 0,
            zeros: 0,
            largest: BinaryHeap::with_capacity(1024),
            counts: vec![0; BINS],
            unsupported: 0.0,
            choices: 0,
        }
    }

    pub(crate) fn unsupported(&mut self, mass: f64, choices: usize) {
        self.unsupported += mass;
        self.choices += choices as u64;
    }

    pub(crate) fn step(&mut self, at: usize, weight: Scaled) {
        let (sums, windows) = &mut self.steps[at];
        sums[0].add(weight);
        sums[1].add(weight.product(weight));
        *windows += 1;
    }

    /// Takes the weight of a whole window.
    pub(crate) fn whole(&mut self, weight: Scaled) {
        self.n += 1;
        self.whole[0].add(weight);
        self.whole[1].add(weight.product(weight));
        let value = Finite(weight.value().min(LARGEST_WEIGHT));
        if self.largest.len() < LARGEST {
            self.largest.push(Reverse(value));
        } else if self
            .largest
            .peek()
            .is_some_and(|Reverse(least)| value > *least)
        {
            self.largest.pop();
            self.largest.push(Reverse(value));
        }
        if weight.is_zero() {
            self.zeros += 1;
            return;
        }
        let bin = (weight.log10() + DECADES) * BINS_PER_DECADE;
        self.counts[(bin.max(0.0) as usize).min(BINS - 1)] += 1;
    }

    pub(crate) fn done(&self, blocks: &[BlockSums], policy: usize) -> Diagnostics {
        let mut largest: Vec<f64> = self.largest.iter().map(|Reverse(w)| w.0).collect();
        largest.sort_unstable_by(f64::total_cmp);
        let n = self.n.max(1) as f64;
        let total = self.whole[0].total();
        let share = largest.last().map_or(0.0, |largest| {
            ratio(Scaled::new(*largest), total).unwrap_or(0.0)
        });
        let edge = |i| f64::from(i) / BINS_PER_DECADE - DECADES;
        let (ess_blocks, mean_z) = of_blocks(blocks, policy);
        Diagnostics {
            windows: self.n,
            ess: ess(self.whole),
            ess_blocks,
            ess_per_step: self.steps.iter().map(|(sums, _)| ess(*sums)).collect(),
            windows_per_step: self.steps.iter().map(|(_, windows)| *windows).collect(),
            mean: total.times(1.0 / n).value().min(f64::MAX),
            mean_z,
            max_share: share,
            zero_fraction: self.zeros as f64 / n,
            pareto_k: k_hat_of_largest(&largest, self.n as usize),
            unsupported: self.unsupported / self.choices.max(1) as f64,
            histogram: Histogram {
                zeros: self.zeros,
                edges: (0..=BINS as i32).map(edge).collect(),
                counts: self.counts.clone(),
            },
        }
    }
}

fn ratio(a: Scaled, b: Scaled) -> Option<f64> {
    (!b.is_zero()).then(|| a.quotient(b).value())
}

fn ess([sum, squares]: [ScaledSum; 2]) -> f64 {
    let sum = sum.total();
    ratio(sum.product(sum), squares.total()).unwrap_or(0.0)
}

/// Weights that are all but 0 have hardly any spread, and a distance from 1 that says no more than "far".
const FARTHEST_Z: f64 = 1000.0;

/// Effective sample size of the blocks' sums, and how far the mean weight is from 1 in standard errors over
/// blocks: those of the ratio of the sum of weights to the number of windows.
fn of_blocks(blocks: &[BlockSums], policy: usize) -> (f64, Option<f64>) {
    let mut sums = [ScaledSum::default(); 2];
    let (mut windows, mut n) = (0.0, 0.0);
    let with_windows = || blocks.iter().filter(|block| block.whole > 0.0);
    for block in with_windows() {
        let weight = block.policies[policy].weight.total();
        sums[0].add(weight);
        sums[1].add(weight.product(weight));
        windows += block.whole;
        n += 1.0;
    }
    let mean = sums[0].total().times(1.0 / f64::max(windows, 1.0)).value();
    let residual =
        |block: &BlockSums| block.policies[policy].weight.total().value() - mean * block.whole;
    let squares: f64 = with_windows().map(|block| residual(block).powi(2)).sum();
    let std_err = (squares * n / f64::max(n - 1.0, 1.0)).sqrt() / f64::max(windows, 1.0);
    let z = (mean - 1.0) / std_err;
    (
        ess(sums),
        (n > 1.0 && std_err > 0.0 && z.is_finite()).then_some(z.clamp(-FARTHEST_Z, FARTHEST_Z)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_sample_size_is_that_of_equal_weights_and_of_one() {
        let mut weights = Weights::new(2);
        for _ in 0..8 {
            weights.whole(Scaled::new(3.0));
            weights.step(0, Scaled::new(3.0));
        }
        for _ in 0..4 {
            weights.whole(Scaled::ZERO);
        }
        let done = weights.done(&[], 0);
        assert_eq!((done.windows, done.ess), (12, 8.0));
        assert_eq!((done.mean, done.zero_fraction), (2.0, 1.0 / 3.0));
        assert_eq!(done.ess_per_step, [8.0, 0.0]);
        assert_eq!(done.effective_horizon(5.0), 1);
        assert_eq!(done.max_share, 0.125);
        assert_eq!(done.histogram.counts.iter().sum::<u64>(), 8);
    }

    #[test]
    fn weights_beyond_f64_have_an_effective_sample_size() {
        let mut weights = Weights::new(1);
        let mut large = Scaled::ONE;
        for _ in 0..5 {
            large = large.times(1e100);
        }
        weights.whole(large);
        weights.whole(large);
        weights.whole(Scaled::ONE);
        let done = weights.done(&[], 0);
        assert!((done.ess - 2.0).abs() < 1e-12, "{}", done.ess);
        assert!(done.mean.is_finite());
    }
}
