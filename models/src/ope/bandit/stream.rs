//! Many estimators in one pass, chunk by chunk, for logs larger than memory.

use super::{BanditLog, Columns, Estimator, Shrinkage};
use crate::ope::error::OpeError;
use crate::ope::moments::{CHUNK, Moments};
use crate::ope::scores::{Kind, Summary};

/// Estimators over the rows pushed so far. Memory does not grow with them; nothing is allocated per row.
#[derive(Debug, Clone)]
pub struct Stream {
    estimators: Vec<(Estimator, Sums)>,
    n: usize,
    weight: Moments,
}

#[derive(Debug, Clone)]
enum Sums {
    Mean(Moments),
    Ratio(Ratio),
}

/// What a stream says in the end.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSummary {
    /// Each estimator with its estimate, or why it has none.
    pub estimates: Vec<(Estimator, Result<Summary, OpeError>)>,
    /// Mean weight.
    pub mean_weight: f64,
    /// Effective sample size.
    pub ess: f64,
}

impl Stream {
    /// Without rows.
    ///
    /// # Errors
    /// `Setting` for a parameter of an estimator out of range.
    pub fn new(estimators: &[Estimator]) -> Result<Self, OpeError> {
        estimators
            .iter()
            .try_for_each(|estimator| estimator.check())?;
        let begin = |estimator: &Estimator| {
            let sums = match estimator {
                Estimator::SelfNormalised | Estimator::SelfNormalisedDoublyRobust => {
                    Sums::Ratio(Ratio::default())
                }
                _ => Sums::Mean(Moments::default()),
            };
            (*estimator, sums)
        };
        Ok(Self {
            estimators: estimators.iter().map(begin).collect(),
            n: 0,
            weight: Moments::default(),
        })
    }

    /// Adds rows.
    pub fn push(&mut self, columns: &Columns) {
        for begin in (0..columns.rows()).step_by(CHUNK) {
            let end = (begin + CHUNK).min(columns.rows());
            let chunk = Chunk {
                weight: &columns.weight[begin..end],
                reward: &columns.reward[begin..end],
                value: &columns.value[begin..end],
                residual: &columns.residual[begin..end],
            };
            self.weight.push(chunk.weight);
            for (estimator, sums) in &mut self.estimators {
                match sums {
                    Sums::Mean(moments) => chunk.push_mean(*estimator, moments),
                    Sums::Ratio(ratio) => chunk.push_ratio(*estimator, ratio),
                }
            }
            self.n += end - begin;
        }
    }

    /// Adds all rows of a log, checked, in chunks that stay in the cache: what is read of it is read once.
    ///
    /// # Errors
    /// As [`BanditLog::columns`], the first in the order of the rows. Rows before the chunk that is wrong
    /// have been added.
    pub fn push_log(&mut self, log: &BanditLog<'_>) -> Result<(), OpeError> {
        let mut chunk = Columns::default();
        // A log without rows is told of, too.
        for begin in (0..log.rows().max(1)).step_by(CHUNK) {
            let end = (begin + CHUNK).min(log.rows());
            log.columns_of(begin..end, &mut chunk)?;
            self.push(&chunk);
        }
        Ok(())
    }

    /// What the rows so far say.
    #[must_use]
    pub fn summary(&self) -> StreamSummary {
        let n = self.n as f64;
        let mean_weight = self.weight.mean();
        let mean_square = self.weight.population_variance() + mean_weight * mean_weight;
        let of = |(estimator, sums): &(Estimator, Sums)| (*estimator, self.estimate(sums));
        StreamSummary {
            estimates: self.estimators.iter().map(of).collect(),
            mean_weight,
            ess: if mean_square > 0.0 {
                n * mean_weight * mean_weight / mean_square
            } else {
                0.0
            },
        }
    }

    fn estimate(&self, sums: &Sums) -> Result<Summary, OpeError> {
        if self.n < 2 {
            return Err(OpeError::TooFew {
                what: "a standard error",
                needed: 2,
                found: self.n,
            });
        }
        let summary = match sums {
            Sums::Mean(moments) => Summary {
                n: self.n,
                estimate: moments.mean(),
                std_err: (moments.sample_variance() / self.n as f64).sqrt(),
                kind: Kind::Mean,
            },
            Sums::Ratio(ratio) => ratio.summary(self.n)?,
        };
        if summary.estimate.is_finite() && summary.std_err.is_finite() {
            return Ok(summary);
        }
        Err(OpeError::Setting {
            what: "the standard error",
            value: summary.std_err,
            rule: "must be finite: squares of the scores are too large for f64; clip the weights",
        })
    }
}

#[derive(Clone, Copy)]
struct Chunk<'a> {
    weight: &'a [f64],
    reward: &'a [f64],
    value: &'a [f64],
    residual: &'a [f64],
}

impl Chunk<'_> {
    fn push_mean(&self, estimator: Estimator, moments: &mut Moments) {
        let mut buffer = [0.0; CHUNK];
        let scores = &mut buffer[..self.weight.len()];
        match estimator {
            Estimator::InverseWeight(shrinkage) => self.weighted(shrinkage, self.reward, scores),
            Estimator::DoublyRobust(shrinkage) => {
                self.weighted(shrinkage, self.residual, scores);
                scores.iter_mut().zip(self.value).for_each(|(s, v)| *s += v);
            }
            _ => scores.copy_from_slice(self.value),
        }
        moments.push(scores);
    }

    /// One loop per kind of shrinkage, so that each is a straight line.
    fn weighted(&self, shrinkage: Shrinkage, x: &[f64], out: &mut [f64]) {
        let rows = out.iter_mut().zip(self.weight).zip(x);
        match shrinkage {
            Shrinkage::None => rows.for_each(|((out, w), x)| *out = w * x),
            Shrinkage::Clip(most) => rows.for_each(|((out, w), x)| *out = w.min(most) * x),
            other => rows.for_each(|((out, w), x)| *out = other.of(*w) * x),
        }
    }

    fn push_ratio(&self, estimator: Estimator, ratio: &mut Ratio) {
        match estimator {
            Estimator::SelfNormalised => ratio.push(self.weight, self.reward, None),
            _ => ratio.push(self.weight, self.residual, Some(self.value)),
        }
    }
}

/// Sums for mean(V) + Σ w x/Σ w and the variance of its influence
/// `φ = (V − V̄) + (w/w̄)(x − ratio)`. Both x and V are taken around a pivot, so that little cancels:
/// where all are equal the variance is 0.
#[derive(Debug, Clone, Default)]
struct Ratio {
    /// Pivots of x and of V.
    pivots: Option<[f64; 2]>,
    /// Sums of w, of p = w (x − pivot) and of v = V − pivot, then of their products.
    w: f64,
    p: f64,
    v: f64,
    ww: f64,
    wp: f64,
    pp: f64,
    vw: f64,
    vp: f64,
    vv: f64,
}

impl Ratio {
    fn push(&mut self, weight: &[f64], x: &[f64], value: Option<&[f64]>) {
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let begin = || [mean(x), value.map_or(0.0, mean)];
        let [pivot, origin] = *self.pivots.get_or_insert_with(begin);
        for (w, x) in weight.iter().zip(x) {
            let p = w * (x - pivot);
            self.w += w;
            self.p += p;
            self.ww += w * w;
            self.wp += w * p;
            self.pp += p * p;
        }
        let Some(value) = value else { return };
        for ((w, x), value) in weight.iter().zip(x).zip(value) {
            let v = value - origin;
            self.v += v;
            self.vv += v * v;
            self.vw += v * w;
            self.vp += v * w * (x - pivot);
        }
    }

    fn summary(&self, n: usize) -> Result<Summary, OpeError> {
        let [pivot, origin] = self.pivots.unwrap_or_default();
        if self.w == 0.0 {
            return Err(OpeError::NoOverlap {
                what: "the self-normalised estimate",
            });
        }
        let rows = n as f64;
        let (mean_w, mean_v) = (self.w / rows, self.v / rows);
        let c = self.p / self.w;
        let of_value = self.vv - mean_v * self.v;
        let of_both = self.vp - mean_v * self.p - c * (self.vw - mean_v * self.w);
        let of_ratio = self.pp - 2.0 * c * self.wp + c * c * self.ww;
        let squares = of_value + 2.0 * of_both / mean_w + of_ratio / (mean_w * mean_w);
        Ok(Summary {
            n,
            estimate: origin + mean_v + pivot + c,
            std_err: squares.max(0.0).sqrt() / rows,
            kind: Kind::Ratio,
        })
    }
}
