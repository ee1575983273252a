//! Whether levels were drawn with the propensities that were logged.
//!
//! Of a head with allowed levels A the mean of 1/(|A| p) over what was drawn with propensity p is 1 where every
//! allowed level can be drawn; below 1 by the share of levels that never are; and never above it. Of a head
//! with two levels the propensity of one gives that of the other, so that shares can be compared with it.

use blkpilot_env::EnvSpec;
use serde::{Deserialize, Serialize};

use crate::step::HostStep;

/// Bins of propensities of one width in [0, 1].
const BINS: usize = 10;

/// A head's propensities against what was drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadCalibration {
    /// Name of the head.
    pub head: String,
    /// Draws, of rows in which it had a choice.
    pub choices: u64,
    /// Mean of 1/(|A| p): 1 where everything allowed can be drawn.
    pub coverage: f64,
    /// Its standard error.
    pub coverage_std_err: f64,
    /// Share of draws that explored.
    pub explored: f64,
    /// Mean ε: what that share should be.
    pub epsilon: f64,
    /// Draws from two levels: of the one with the greater number, by its propensity.
    pub bins: Vec<CalibrationBin>,
}

impl HeadCalibration {
    /// How many standard errors coverage is above 1, which it cannot be if the propensities are right.
    #[must_use]
    pub fn excess_z(&self) -> f64 {
        match self.coverage - 1.0 {
            excess if excess <= 1e-9 => 0.0,
            excess => excess / self.coverage_std_err,
        }
    }
}

/// Draws whose propensity lies within a tenth.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Draws.
    pub draws: u64,
    /// Mean propensity of the level.
    pub propensity: f64,
    /// Share of draws that took it.
    pub share: f64,
}

#[derive(Debug, Clone, Default)]
struct Sums {
    head: String,
    n: f64,
    inverse: f64,
    inverse_squares: f64,
    explored: f64,
    epsilon: f64,
    bins: [[f64; 3]; BINS],
}

/// Sums under way.
#[derive(Debug)]
pub(crate) struct Calibrating {
    disks: Vec<Sums>,
    devices: Vec<Sums>,
}

impl Calibrating {
    pub(crate) fn new(spec: &EnvSpec) -> Self {
        let of = |heads: &[blkpilot_env::Head]| {
            let named = heads.iter().map(|head| Sums {
                head: head.name.clone(),
                ..Sums::default()
            });
            named.collect()
        };
        Self {
            disks: of(&spec.disk_heads),
            devices: of(&spec.device_heads),
        }
    }

    pub(crate) fn take(&mut self, step: &HostStep) {
        for row in &step.rows {
            let heads = if row.is_disk {
                &mut self.disks
            } else {
                &mut self.devices
            };
            for (sums, cell) in heads.iter_mut().zip(step.heads_of(row)) {
                if !cell.is_free {
                    continue;
                }
                let mask = &step.masks[cell.mask.range()];
                let allowed = mask.iter().filter(|reason| reason.is_allowed()).count();
                let inverse = 1.0 / (allowed as f64 * cell.propensity);
                sums.n += 1.0;
                sums.inverse += inverse;
                sums.inverse_squares += inverse * inverse;
                sums.explored += f64::from(u8::from(cell.explored));
                sums.epsilon += row.epsilon;
                if allowed == 2 {
                    let last = mask.iter().rposition(|reason| reason.is_allowed());
                    let is_last = last == Some(usize::from(cell.requested));
                    let p = if is_last {
                        cell.propensity
                    } else {
                        1.0 - cell.propensity
                    };
                    let bin = ((p * BINS as f64) as usize).min(BINS - 1);
                    let [draws, propensity, took] = &mut sums.bins[bin];
                    *draws += 1.0;
                    *propensity += p;
                    *took += f64::from(u8::from(is_last));
                }
            }
        }
    }

    pub(crate) fn done(&self) -> Vec<HeadCalibration> {
        let heads = self.disks.iter().chain(&self.devices);
        heads.filter(|sums| sums.n > 0.0).map(Sums::done).collect()
    }
}

impl Sums {
    fn done(&self) -> HeadCalibration {
        let n = self.n;
        let mean = self.inverse / n;
        let variance = (self.inverse_squares / n - mean * mean).max(0.0);
        let bin = |[draws, propensity, took]: &[f64; 3]| CalibrationBin {
            draws: *draws as u64,
            propensity: propensity / draws,
            share: took / draws,
        };
        let bins = self.bins.iter().filter(|[draws, ..]| *draws > 0.0);
        HeadCalibration {
            head: self.head.clone(),
            choices: n as u64,
            coverage: mean,
            coverage_std_err: (variance / n).sqrt(),
            explored: self.explored / n,
            epsilon: self.epsilon / n,
            bins: bins.map(bin).collect(),
        }
    }
}
