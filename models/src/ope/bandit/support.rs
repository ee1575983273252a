//! How far the evaluation policy is from the behaviour policy, where the latter was logged in full.

use super::BanditLog;

/// Means over rows, of all heads together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SupportDiagnostics {
    /// Mass that the evaluation policy puts where the behaviour policy never goes: no log of it says
    /// anything of that.
    pub mass_without_support: f64,
    /// Kullback-Leibler divergence of the evaluation from the behaviour policy, in nats. `None` where mass
    /// lacks support: it is infinite.
    pub kl: Option<f64>,
    /// E[w²] given the contexts; one over it is the share of effective samples to expect. `None` likewise.
    pub renyi2: Option<f64>,
    /// Share of rows whose logged action is the evaluation policy's most probable one.
    pub greedy_match: f64,
}

impl SupportDiagnostics {
    /// Of rows that passed [`BanditLog::columns`]; `None` where a head has no behaviour policy.
    #[must_use]
    pub fn new(log: &BanditLog<'_>) -> Option<Self> {
        let mut sums = [0.0; 4];
        for i in 0..log.rows() {
            let (mut supported, mut kl, mut renyi2, mut greedy) = (1.0, 0.0, 1.0, true);
            for head in &log.heads {
                let of = Row::new(head.evaluation.row(i), head.behaviour?.row(i));
                supported *= 1.0 - of.without_support;
                kl += of.kl;
                renyi2 *= of.renyi2;
                greedy &= of.greedy == head.action[i] as usize;
            }
            let of_row = [1.0 - supported, kl, renyi2, f64::from(u8::from(greedy))];
            sums.iter_mut().zip(of_row).for_each(|(sum, x)| *sum += x);
        }
        let [without_support, kl, renyi2, greedy] = sums.map(|sum| sum / log.rows() as f64);
        let supported = without_support == 0.0;
        Some(Self {
            mass_without_support: without_support,
            kl: supported.then_some(kl),
            renyi2: supported.then_some(renyi2),
            greedy_match: greedy,
        })
    }
}

struct Row {
    without_support: f64,
    kl: f64,
    renyi2: f64,
    greedy: usize,
}

impl Row {
    fn new(evaluation: &[f64], behaviour: &[f64]) -> Self {
        let mut row = Self {
            without_support: 0.0,
            kl: 0.0,
            renyi2: 0.0,
            greedy: 0,
        };
        for (level, (&e, &b)) in evaluation.iter().zip(behaviour).enumerate() {
            if e > evaluation[row.greedy] {
                row.greedy = level;
            }
            if e > 0.0 && b > 0.0 {
                row.kl += e * libm::log(e / b);
                row.renyi2 += e * e / b;
            } else {
                row.without_support += e;
            }
        }
        row
    }
}
