//! How well estimates rank candidate policies, where their true values are known.
//!
//! Source: Kiyohara et al. 2024, "Towards Assessing and Benchmarking Risk-Return Tradeoff of Off-Policy
//! Evaluation", and Fu et al. 2021 for regret@k.

use super::error::{OpeError, check_length};

/// Scores of one estimator over the candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Candidates by falling estimate; equal ones in their order.
    pub ranking: Vec<usize>,
    /// Rank correlation of Spearman; `None` where estimates or values are all equal, as below.
    pub spearman: Option<f64>,
    /// Rank correlation of Kendall, with ties.
    pub kendall_tau_b: Option<f64>,
    /// Correlation of Pearson.
    pub pearson: Option<f64>,
    /// Mean of |estimate − value|.
    pub mean_abs_error: f64,
    /// Median of |estimate − value|.
    pub median_abs_error: f64,
    /// Mean of (estimate − value)².
    pub mse: f64,
    /// What choosing among the top k costs, for k from 1.
    pub top: Vec<TopK>,
    /// Of the candidates worse than the threshold, the share whose estimate is not; 0 without any.
    pub type_i: f64,
    /// Of those not worse, the share whose estimate is; 0 without any.
    pub type_ii: f64,
}

/// The k candidates with the highest estimates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopK {
    /// Best value of all less the best among them.
    pub regret: f64,
    /// That over the range of values; 0 where all are equal.
    pub normalized_regret: f64,
    /// The worst value among them.
    pub worst: f64,
}

impl Selection {
    /// Of `estimates` against the true `values`, one per candidate, in reward units. `threshold` is
    /// the value to beat, that of the incumbent. Top k goes up to `most`, at most the candidates there are.
    ///
    /// # Errors
    /// `TooFew` below two candidates; `Length`; `Setting` where an estimate or a value is not finite.
    pub fn new(
        estimates: &[f64],
        values: &[f64],
        threshold: f64,
        most: usize,
    ) -> Result<Self, OpeError> {
        let n = estimates.len();
        check_length("true values of candidates", values.len(), n)?;
        if n < 2 {
            return Err(OpeError::TooFew {
                what: "off-policy selection",
                needed: 2,
                found: n,
            });
        }
        let mut all = estimates.iter().chain(values).chain([&threshold]);
        if let Some(sick) = all.find(|x| !x.is_finite()) {
            return Err(OpeError::Setting {
                what: "estimate or value of a candidate",
                value: *sick,
                rule: "must be finite",
            });
        }
        let mut ranking: Vec<usize> = (0..n).collect();
        ranking.sort_by(|a, b| estimates[*b].total_cmp(&estimates[*a]));
        let mut errors: Vec<f64> = estimates
            .iter()
            .zip(values)
            .map(|(e, v)| (e - v).abs())
            .collect();
        errors.sort_by(f64::total_cmp);
        let worse = |value: &f64| *value < threshold;
        Ok(Self {
            spearman: pearson(&ranks(estimates), &ranks(values)),
            kendall_tau_b: kendall_tau_b(estimates, values),
            pearson: pearson(estimates, values),
            mean_abs_error: errors.iter().sum::<f64>() / n as f64,
            median_abs_error: super::moments::quantile_of_sorted(&errors, 0.5),
            mse: errors.iter().map(|e| e * e).sum::<f64>() / n as f64,
            top: (1..=most.min(n))
                .map(|k| top_k(&ranking[..k], values))
                .collect(),
            type_i: share(estimates, values, worse, |e| e >= threshold),
            type_ii: share(estimates, values, |v| !worse(v), |e| e < threshold),
            ranking,
        })
    }
}

/// Of the candidates of which `of` holds, the share whose estimate is mistaken.
fn share(
    estimates: &[f64],
    values: &[f64],
    of: impl Fn(&f64) -> bool,
    mistaken: impl Fn(f64) -> bool,
) -> f64 {
    let among = estimates.iter().zip(values).filter(|(_, v)| of(v));
    let (count, wrong) = among.fold((0, 0), |(count, wrong), (e, _)| {
        (count + 1, wrong + i32::from(mistaken(*e)))
    });
    if count == 0 {
        return 0.0;
    }
    f64::from(wrong) / f64::from(count)
}

fn top_k(chosen: &[usize], values: &[f64]) -> TopK {
    let highest = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::NEG_INFINITY, f64::max);
    let lowest = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let best = highest(&mut values.iter().copied());
    let range = best - lowest(&mut values.iter().copied());
    let regret = best - highest(&mut chosen.iter().map(|i| values[*i]));
    TopK {
        regret,
        normalized_regret: if range > 0.0 { regret / range } else { 0.0 },
        worst: lowest(&mut chosen.iter().map(|i| values[*i])),
    }
}

/// Correlation of Pearson; `None` where one does not vary.
#[must_use]
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut aa, mut ab, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        aa += x * x;
        ab += x * y;
        bb += y * y;
    }
    (aa > 0.0 && bb > 0.0).then(|| (ab / (aa.sqrt() * bb.sqrt())).clamp(-1.0, 1.0))
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |x: f64| values.iter().filter(|y| **y < x).count();
    let equal = |x: f64| values.iter().filter(|y| **y == x).count();
    let rank = |x: &f64| below(*x) as f64 + (equal(*x) as f64 + 1.0) / 2.0;
    values.iter().map(rank).collect()
}

/// Kendall's τ-b; `None` where one does not vary.
///
/// Source: Kendall 1945.
fn kendall_tau_b(a: &[f64], b: &[f64]) -> Option<f64> {
    let sign = |x: f64| f64::from(i8::from(x > 0.0) - i8::from(x < 0.0));
    let (mut concordance, mut pairs_a, mut pairs_b) = (0.0, 0.0, 0.0);
    for i in 0..a.len() {
        for j in 0..i {
            let (x, y) = (sign(a[i] - a[j]), sign(b[i] - b[j]));
            concordance += x * y;
            pairs_a += x * x;
            pairs_b += y * y;
        }
    }
    let untied: f64 = pairs_a * pairs_b;
    (untied > 0.0).then(|| concordance / untied.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values 1, 2, 3, 4 estimated as 2, 1, 4, 3: 4 of 6 pairs agree, ranks differ by 1 each.
    #[test]
    fn four_candidates_by_hand() {
        let of = Selection::new(&[2.0, 1.0, 4.0, 3.0], &[1.0, 2.0, 3.0, 4.0], 2.5, 3).unwrap();
        assert_eq!(of.ranking, [2, 3, 0, 1]);
        assert!((of.spearman.unwrap() - 0.6).abs() < 1e-15);
        assert!((of.kendall_tau_b.unwrap() - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(
            (of.mean_abs_error, of.median_abs_error, of.mse),
            (1.0, 1.0, 1.0)
        );
        assert_eq!(
            (of.top[0].regret, of.top[0].normalized_regret),
            (1.0, 1.0 / 3.0)
        );
        assert_eq!((of.top[1].regret, of.top[2].worst), (0.0, 1.0));
        assert_eq!((of.type_i, of.type_ii), (0.0, 0.0));
    }

    /// Worse than 2.5 are two, of which one is estimated above; not worse are two, one estimated below.
    #[test]
    fn errors_of_both_types() {
        let of = Selection::new(&[3.0, 1.0, 2.0, 9.0], &[1.0, 2.0, 3.0, 4.0], 2.5, 1).unwrap();
        assert_eq!((of.type_i, of.type_ii), (0.5, 0.5));
    }

    /// scipy.stats.kendalltau([1, 2, 2, 3], [1, 2, 3, 3]) = 0.8: 4 concordant pairs, 5 untied each.
    #[test]
    fn ties_are_corrected_for() {
        let tau = kendall_tau_b(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 3.0]);
        assert!((tau.unwrap() - 0.8).abs() < 1e-15);
        assert_eq!(ranks(&[1.0, 2.0, 2.0, 3.0]), [1.0, 2.5, 2.5, 4.0]);
    }

    #[test]
    fn equal_estimates_have_no_correlation() {
        let of = Selection::new(&[1.0, 1.0], &[1.0, 2.0], 0.0, 1).unwrap();
        assert_eq!(
            (of.spearman, of.kendall_tau_b, of.pearson),
            (None, None, None)
        );
    }
}
